//! `nasctl history` as text or JSON lines. Pure. A line that cannot be read is counted, not hidden (S12).

use std::fmt::Write as _;

use nasd_proto::HistoryReply;
use serde_json::json;

use super::text::{Paint, clean, table, utc};
use crate::observe::history::Told;

/// A table, oldest first; then the nodes that did not answer.
#[must_use]
pub fn render(reply: &HistoryReply, paint: Paint) -> String {
    let told: Vec<Option<Told>> =
        reply.entry_json.iter().map(|l| serde_json::from_str(l).ok()).collect();
    let lost = told.iter().filter(|t| t.is_none()).count();
    let mut out = if told.is_empty() {
        "nothing has been kept yet\n".to_owned()
    } else {
        let head = ["TIME (UTC)", "NODE", "SERVICE", "WHAT", "RESULT", "EPOCH", "WHO", "DETAIL"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(told.iter().flatten().map(row));
        table("", &rows)
    };
    if lost > 0 {
        let _ = writeln!(out, "{} {lost} events cannot be read by this nasctl", paint.bad("!"));
    }
    for u in &reply.unreachable {
        let (node, reason) = (clean(&u.node), clean(&u.reason));
        let _ = writeln!(out, "{} the events of {node} are missing: {reason}", paint.bad("!"));
    }
    out
}

fn row(t: &Told) -> Vec<String> {
    let e = &t.entry;
    let epoch = if e.epoch == 0 { "-".to_owned() } else { e.epoch.to_string() };
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { clean(text) };
    vec![
        utc(e.unix_ms),
        clean(&t.node),
        clean(&t.service),
        clean(&e.what),
        or_dash(&e.result),
        epoch,
        or_dash(&e.who),
        clean(&e.detail),
    ]
}

/// One JSON object per event and per node that did not answer.
#[must_use]
pub fn lines(reply: &HistoryReply) -> String {
    let mut out = String::new();
    for line in &reply.entry_json {
        // A newer nasd's keys pass through; what is no JSON is told as text.
        let known = serde_json::from_str(line).unwrap_or_else(|_| json!({"unreadable": line}));
        let _ = writeln!(out, "{known}");
    }
    for u in &reply.unreachable {
        let _ = writeln!(out, "{}", json!({"node": u.node, "unreachable": u.reason}));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use nasd_proto::NodeUnreachable;

    fn reply() -> HistoryReply {
        let first = r#"{"node":"nas1","service":"vms","unix_ms":1700000000123,"who":"root@nas1","what":"hold","epoch":12,"result":"done","detail":"new disks"}"#;
        let second = r#"{"node":"nas2","service":"vms","unix_ms":1700000001000,"who":"","what":"damaged-lines","epoch":0,"result":"skipped","detail":"a\u001b[2Jb"}"#;
        HistoryReply {
            entry_json: vec![first.into(), second.into(), "{".into()],
            unreachable: vec![NodeUnreachable { node: "nas3".into(), reason: "timed out".into() }],
        }
    }

    #[test]
    fn events_stand_in_columns_and_gaps_are_told() {
        let expected = "\
TIME (UTC)               NODE  SERVICE  WHAT           RESULT   EPOCH  WHO        DETAIL
2023-11-14 22:13:20.123  nas1  vms      hold           done     12     root@nas1  new disks
2023-11-14 22:13:21.000  nas2  vms      damaged-lines  skipped  -      -          a [2Jb
! 1 events cannot be read by this nasctl
! the events of nas3 are missing: timed out
";
        assert_eq!(render(&reply(), Paint(false)), expected);
        assert_eq!(render(&HistoryReply::default(), Paint(false)), "nothing has been kept yet\n");
    }

    #[test]
    fn json_lines_are_complete() {
        let text = lines(&reply());
        let all: Vec<serde_json::Value> =
            text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(all.len(), 4);
        assert_eq!(all[0]["detail"], "new disks");
        assert_eq!(all[2]["unreadable"], "{");
        assert_eq!(all[3], json!({"node": "nas3", "unreachable": "timed out"}));
    }
}
