//! The JSON that scripts read: `switchover --json` lines and the `status --json` object.
//!
//! Owns names and units (documented in `nasctl switchover --help`). No number exceeds 2^53, which
//! JSON readers elsewhere would round: times are microseconds, not nanoseconds.

use nasd_proto::{Outcome, Preflight, StatusReply, Step};
use serde_json::{Value, json};

use super::moves::Ending;
use crate::agents::status::stall;

/// `{"event":"preflight", …}`.
#[must_use]
pub fn preflight(p: &Preflight) -> Value {
    let finding = |f: &nasd_proto::Finding| json!({"code": f.code, "refuses": f.refuses, "evidence": f.evidence, "remedy": f.remedy});
    json!({
        "event": "preflight", "service": p.service, "from": p.from, "to": p.to,
        "findings": p.findings.iter().map(finding).collect::<Vec<_>>(),
        "predicted_stall_ms": p.predicted_stall_ms,
    })
}

/// `{"event":"step", …}`.
#[must_use]
pub fn step(s: &Step) -> Value {
    json!({
        "event": "step", "node": s.node, "name": s.name, "done": s.done, "took_us": s.took_us,
        "started_unix_us": s.started_unix_ns / 1000, "detail": s.detail,
    })
}

/// `{"event":"outcome", …}` as nasd reported it.
#[must_use]
pub fn outcome(o: &Outcome, ending: Ending) -> Value {
    let client = |c: &nasd_proto::ClientStall| json!({"client": c.client, "stall_us": c.stall_us, "reclaimed": c.reclaimed});
    json!({
        "event": "outcome", "result": ending.name(), "message": o.message,
        "owner": (!o.owner.is_empty()).then_some(&o.owner), "epoch": o.epoch,
        "silent_us": o.silent_us, "exit_code": ending.code(),
        "clients": o.clients.iter().map(client).collect::<Vec<_>>(),
        "stalls": o.stalls.iter().map(stall).collect::<Vec<_>>(),
    })
}

/// The last line when nasd did not report an outcome itself: the same keys, nothing known.
#[must_use]
pub fn ended(ending: Ending, message: &str) -> Value {
    json!({
        "event": "outcome", "result": ending.name(), "message": message, "owner": null,
        "epoch": null, "silent_us": null, "clients": [], "stalls": [], "exit_code": ending.code(),
    })
}

/// The last line of what is neither a move nor a takeover.
#[must_use]
pub fn told(ending: Ending, message: &str) -> Value {
    json!({
        "event": "outcome", "result": ending.name(), "message": message,
        "exit_code": ending.code(),
    })
}

/// `{"nodes": […], "unreachable": […]}`, with only `service` when one is given. A node whose document
/// cannot be read counts as unreachable (S12).
#[must_use]
pub fn status(reply: &StatusReply, service: Option<&str>) -> Value {
    let lost = |u: &nasd_proto::NodeUnreachable| json!({"node": u.node, "reason": u.reason});
    let mut unreachable: Vec<Value> = reply.unreachable.iter().map(lost).collect();
    let mut nodes = Vec::new();
    for text in &reply.node_json {
        match serde_json::from_str::<Value>(text) {
            Ok(node) if node.is_object() => nodes.push(only(node, service)),
            Ok(_) => unreachable.push(json!({"node": null, "reason": "status is not an object"})),
            Err(e) => unreachable.push(json!({"node": null, "reason": format!("status: {e}")})),
        }
    }
    json!({"nodes": nodes, "unreachable": unreachable})
}

fn only(mut node: Value, service: Option<&str>) -> Value {
    let services = node.get_mut("services").and_then(Value::as_array_mut);
    if let (Some(name), Some(services)) = (service, services) {
        services.retain(|s| s.get("service").and_then(Value::as_str) == Some(name));
    }
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_keeps_unknown_fields_and_filters() {
        let node = r#"{"node":"nas1","new":1,"services":[{"service":"a"},{"service":"b"}]}"#;
        let reply = StatusReply { node_json: vec![node.into(), "{".into()], unreachable: vec![] };
        let shown = status(&reply, Some("b"));
        assert_eq!(
            shown["nodes"],
            json!([{"node": "nas1", "new": 1, "services": [{"service": "b"}]}])
        );
        assert!(shown["unreachable"][0]["reason"].as_str().unwrap().starts_with("status: EOF"));
    }

    #[test]
    fn a_step_line_is_stable() {
        let s = Step { node: "n".into(), started_unix_ns: 5_999, took_us: 7, ..Step::default() };
        assert_eq!(
            step(&s).to_string(),
            r#"{"detail":"","done":false,"event":"step","name":"","node":"n","started_unix_us":5,"took_us":7}"#
        );
    }
}
