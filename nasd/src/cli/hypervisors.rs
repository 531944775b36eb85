//! Hypervisors and the stalls they measured, as text. Pure: what both nodes know, each host once.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::text::{Paint, clean, span_us, table};
use crate::agents::status::{Hypervisor, Mount, Stall};
use crate::api::status::ServiceStatus;

/// One host by the node that heard it last, and the nodes to which it is attached.
struct Seen<'a> {
    by: &'a Hypervisor,
    attached: Vec<&'a str>,
}

/// The hosts of one service and what the last move cost them; empty when no agent was ever heard.
pub(super) fn render(views: &[(&str, &ServiceStatus)], paint: Paint) -> String {
    let hosts = merged(views);
    let mut out = String::new();
    if !hosts.is_empty() {
        out.push_str(&hosts_table(&hosts));
        out.push_str(&problems(&hosts, paint));
    }
    let stalls_told = newest_stalls(views);
    if !stalls_told.is_empty() {
        out.push_str("  stalls of the last move, measured on the hypervisors\n");
        out.push_str(&stalls("    ", &stalls_told));
    }
    out
}

fn merged<'a>(views: &[(&'a str, &'a ServiceStatus)]) -> BTreeMap<&'a str, Seen<'a>> {
    let mut hosts: BTreeMap<&str, Seen<'_>> = BTreeMap::new();
    for (node, status) in views {
        for host in status.hypervisors.iter().flat_map(|h| &h.hosts) {
            let seen = hosts.entry(&host.host).or_insert(Seen { by: host, attached: Vec::new() });
            if host.attached {
                seen.attached.push(node);
            }
            if host.heard_ms < seen.by.heard_ms {
                seen.by = host;
            }
        }
    }
    hosts
}

fn hosts_table(hosts: &BTreeMap<&str, Seen<'_>>) -> String {
    let head = ["HYPERVISOR", "AGENT", "MOUNT", "PHASE", "MARGIN", "GUESTS", "MIGRATIONS"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (host, seen) in hosts {
        if seen.by.mounts.is_empty() {
            rows.push(vec![clean(host), agent(seen), "not told".to_owned()]);
        }
        rows.extend(seen.by.mounts.iter().map(|m| row(host, seen, m)));
    }
    table("  ", &rows)
}

fn row(host: &str, seen: &Seen<'_>, m: &Mount) -> Vec<String> {
    let margin = m.margin_ms.map(|ms| span_us(ms.saturating_mul(1000)));
    vec![
        clean(host),
        agent(seen),
        clean(&m.mount),
        clean(&m.phase),
        margin.unwrap_or_else(|| "-".to_owned()),
        m.guests.to_string(),
        m.migrations.to_string(),
    ]
}

/// To which nodes it is attached, or for how long nobody has heard it.
fn agent(seen: &Seen<'_>) -> String {
    if seen.attached.is_empty() {
        return format!("silent {}", span_us(seen.by.heard_ms.saturating_mul(1000)));
    }
    let nodes: Vec<_> = seen.attached.iter().map(|n| clean(n)).collect();
    nodes.join(" ")
}

fn problems(hosts: &BTreeMap<&str, Seen<'_>>, paint: Paint) -> String {
    let mut out = String::new();
    for (host, seen) in hosts {
        let host = clean(host);
        for (mount, problem) in
            seen.by.mounts.iter().flat_map(|m| m.problems.iter().map(move |p| (m, p)))
        {
            let _ = writeln!(
                out,
                "  {} {host}, {}: {}",
                paint.bad("!"),
                clean(&mount.mount),
                clean(problem)
            );
            let _ = writeln!(out, "      on {host}: hvagent check");
        }
        if seen.attached.is_empty() {
            let _ = writeln!(
                out,
                "  {} {host}: its agent does not answer; no planned move without it",
                paint.bad("!")
            );
            let _ = writeln!(out, "      on {host}: systemctl status hvagent");
        }
    }
    out
}

/// Agents report to both nodes: the node that knows the newer move is believed.
fn newest_stalls(views: &[(&str, &ServiceStatus)]) -> Vec<Stall> {
    let told = views.iter().filter_map(|(_, s)| s.hypervisors.as_ref()).map(|h| &h.stalls);
    let newest = told.max_by_key(|s| (s.iter().map(|s| s.move_id).max(), s.len()));
    newest.cloned().unwrap_or_default()
}

/// A table of stalls.
pub(super) fn stalls(indent: &str, told: &[Stall]) -> String {
    let mut rows = vec![["HOST", "MOUNT", "GUEST", "STALL"].map(str::to_owned).to_vec()];
    rows.extend(told.iter().map(|s| {
        let guest = s.guest.as_deref().map_or_else(|| "-".to_owned(), clean);
        let stall = span_us(s.stall_ms.saturating_mul(1000));
        vec![clean(&s.host), clean(&s.mount), guest, stall]
    }));
    table(indent, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn view(
        attached: bool,
        heard_ms: u64,
        phase: &str,
        stalls: &serde_json::Value,
    ) -> ServiceStatus {
        let mounts = json!([{"mount": "/vms", "phase": phase, "move_id": 0, "margin_ms": 42_000,
            "guests": 3, "migrations": 1, "problems": ["no watchdog"]}]);
        let host =
            json!({"host": "hv1", "attached": attached, "heard_ms": heard_ms, "mounts": mounts});
        let document = json!({"service": "vms", "stage": "serving", "addresses": [], "exports": [],
            "gate_open": true, "clients": [], "hypervisors": {"hosts": [host], "stalls": stalls}});
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn each_host_is_shown_once_by_who_heard_it_last() {
        let stall = |id: u64| json!([{"host": "hv1", "move_id": id, "mount": "/vms", "stall_ms": 412, "ended_unix_ms": 0}]);
        let (a, b) = (view(true, 900, "moving", &stall(1)), view(true, 100, "normal", &stall(2)));
        let shown = render(&[("nas1", &a), ("nas2", &b)], Paint(false));
        let expected = "  \
  HYPERVISOR  AGENT      MOUNT  PHASE   MARGIN   GUESTS  MIGRATIONS
  hv1         nas1 nas2  /vms   normal  42.00 s  3       1
  ! hv1, /vms: no watchdog
      on hv1: hvagent check
  stalls of the last move, measured on the hypervisors
    HOST  MOUNT  GUEST  STALL
    hv1   /vms   -      412 ms
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn s12_a_silent_agent_is_told_with_what_to_do() {
        let a = view(false, 20_000, "normal", &json!([]));
        let shown = render(&[("nas1", &a)], Paint(false));
        assert!(shown.contains("hv1         silent 20.00 s"), "{shown}");
        assert!(shown.contains("! hv1: its agent does not answer"), "{shown}");
        assert!(shown.ends_with("on hv1: systemctl status hvagent\n"), "{shown}");
        let none = ServiceStatus { hypervisors: None, ..a };
        assert_eq!(render(&[("nas1", &none)], Paint(false)), "");
    }
}
