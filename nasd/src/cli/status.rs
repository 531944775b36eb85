//! `nasctl status` as text. Pure: a document in, text out. Owns the layout; a value that is not known
//! shows as `-`, never as a default (S12).

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

use super::hypervisors;
use super::text::{Paint, clean, table};
use crate::api::status::{DrbdStatus, NodeStatus, ServiceStatus};
use crate::core::record::{Phase, Record};

/// Renders the object that `status --json` prints.
#[must_use]
pub fn render(document: &Value, paint: Paint) -> String {
    let mut nodes = Vec::new();
    let mut lost = Vec::new();
    for node in list(document, "nodes") {
        match serde_json::from_value::<NodeStatus>(node.clone()) {
            Ok(status) => nodes.push(status),
            Err(error) => lost.push((word(node, "node"), format!("unreadable status: {error}"))),
        }
    }
    let gone = list(document, "unreachable").iter();
    lost.extend(gone.map(|u| (word(u, "node"), word(u, "reason"))));
    let mut out = String::new();
    for name in service_names(&nodes) {
        out.push_str(&service(name, &nodes, paint));
        out.push('\n');
    }
    for node in &nodes {
        out.push_str(&reach(node, paint));
    }
    for (node, reason) in &lost {
        let (node, reason) = (clean(node), clean(reason));
        let _ = writeln!(out, "{} {node} does not answer: {reason}", paint.bad("!"));
        let _ = writeln!(out, "    on {node}: systemctl status nasd");
    }
    out
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn word(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or("a node").to_owned()
}

/// In the order of the configuration, each once.
fn service_names(nodes: &[NodeStatus]) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    let all = nodes.iter().flat_map(|n| &n.services).map(|s| s.service.as_str());
    all.filter(|name| seen.insert(*name)).collect()
}

fn service(name: &str, nodes: &[NodeStatus], paint: Paint) -> String {
    let views: Vec<(&str, &ServiceStatus)> = nodes
        .iter()
        .flat_map(|n| n.services.iter().map(move |s| (n.node.as_str(), s)))
        .filter(|(_, s)| s.service == name)
        .collect();
    let record = views.iter().filter_map(|(_, s)| s.record.as_ref()).max_by_key(|r| r.epoch);
    let mut out = format!("{}  {}\n", paint.bold(&clean(name)), serving(&views, record, paint));
    if let Some(record) = record {
        let current: Vec<_> = record.current.iter().map(|n| clean(&n.0)).collect();
        let (phase, epoch, generation) = (&record.phase, record.epoch, record.generation);
        let _ = writeln!(
            out,
            "  record     epoch {epoch}, generation {generation}, {}, current {}",
            clean(&phase.to_string()),
            current.join(" ")
        );
    }
    out.push_str(&named("addresses", views.iter().flat_map(|(_, s)| &s.addresses)));
    out.push_str(&named("exports  ", views.iter().flat_map(|(_, s)| &s.exports)));
    out.push_str(&node_table(&views));
    out.push_str(&failover(&views, nodes, paint));
    for (node, status) in &views {
        out.push_str(&last_move(node, status));
    }
    out.push_str(&hypervisors::render(&views, paint));
    for (node, status) in &views {
        out.push_str(&problems(node, status, paint));
    }
    out
}

/// Who serves, by the nodes' own word first: a gate is fact, a record is intent.
fn serving(views: &[(&str, &ServiceStatus)], record: Option<&Record>, paint: Paint) -> String {
    let open: Vec<&str> = views.iter().filter(|(_, s)| s.gate_open).map(|(n, _)| *n).collect();
    match (open.as_slice(), record.map(|r| &r.phase)) {
        ([one], _) => format!("served by {}", paint.good(&clean(one))),
        ([], Some(Phase::Serving { owner })) if !views.iter().any(|(n, _)| *n == owner.0) => {
            let owner = clean(&owner.0);
            paint.warn(&format!("served by {owner} by the record; {owner} does not answer"))
        }
        ([], _) => paint.bad("served by nobody"),
        (several, _) => {
            let names = clean(&several.join(" and "));
            paint.bad(&format!("OPEN ON {names}: take one of them off the network now"))
        }
    }
}

fn named<'a>(label: &str, values: impl Iterator<Item = &'a String>) -> String {
    let values: BTreeSet<String> = values.map(|v| clean(v)).collect();
    if values.is_empty() {
        return String::new();
    }
    format!("  {label}  {}\n", values.into_iter().collect::<Vec<_>>().join(" "))
}

fn node_table(views: &[(&str, &ServiceStatus)]) -> String {
    let head = ["NODE", "STAGE", "ROLE", "CONNECTION", "DISKS", "GATE", "GRACE", "NFSD", "CLIENTS"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(views.iter().map(|(node, s)| row(node, s)));
    table("  ", &rows)
}

fn row(node: &str, s: &ServiceStatus) -> Vec<String> {
    let drbd = |f: fn(&DrbdStatus) -> String| s.drbd.as_ref().map_or_else(dash, |d| clean(&f(d)));
    let grace = match s.in_grace {
        Some(true) => "running".to_owned(),
        Some(false) => "over".to_owned(),
        None => dash(),
    };
    vec![
        clean(node),
        clean(&s.stage),
        drbd(|d| d.role.clone()),
        drbd(|d| d.connection.clone()),
        drbd(disks),
        gate(s),
        grace,
        s.threads.map_or_else(dash, |t| t.to_string()),
        s.clients.len().to_string(),
    ]
}

fn dash() -> String {
    "-".to_owned()
}

/// `0:UpToDate/UpToDate`: volume, own disk, peer's disk.
fn disks(drbd: &DrbdStatus) -> String {
    let one = |(volume, (own, peer)): (&u16, &(String, String))| format!("{volume}:{own}/{peer}");
    drbd.disks.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn gate(s: &ServiceStatus) -> String {
    match (s.gate_open, s.gate_left_ms) {
        (true, Some(ms)) => format!("open {}.{} s", ms / 1000, ms % 1000 / 100),
        (true, None) => "open".to_owned(),
        (false, _) => "shut".to_owned(),
    }
}

/// Held or not, and what would happen if the owner died now. Yes only if every node says so (S12).
fn failover(views: &[(&str, &ServiceStatus)], nodes: &[NodeStatus], paint: Paint) -> String {
    let mut out = String::new();
    if let Some(by) = views.iter().find_map(|(_, s)| s.hold.as_ref()) {
        let by = paint.warn(&format!("by {}", clean(by)));
        let _ = writeln!(out, "  held       {by}; nothing happens by itself");
    }
    let mut against: Vec<String> = Vec::new();
    let silent = nodes.iter().map(|n| n.peer.node.as_str());
    for node in silent.filter(|peer| !views.iter().any(|(n, _)| n == peer)) {
        against.push(format!("{} does not answer", clean(node)));
    }
    let takes = |n: &NodeStatus| views.iter().any(|(name, s)| *name == n.node && !s.gate_open);
    for node in nodes.iter().filter(|n| !n.coordinator.reachable && takes(n)) {
        against.push(format!(
            "{} cannot reach {}",
            clean(&node.node),
            clean(&node.coordinator.kind)
        ));
    }
    for (node, status) in views {
        against.extend(status.failover.iter().map(|r| format!("{}: {}", clean(node), clean(r))));
    }
    let mut seen = BTreeSet::new();
    against.retain(|reason| seen.insert(reason.clone()));
    let answer = if against.is_empty() { paint.good("yes") } else { paint.warn("no") };
    let _ = writeln!(out, "  would failover work now?  {answer}");
    for reason in against {
        let _ = writeln!(out, "      {reason}");
    }
    out
}

fn last_move(node: &str, s: &ServiceStatus) -> String {
    let Some(m) = &s.last_move else { return String::new() };
    let (from, to, result) = (clean(&m.from), clean(&m.to), clean(&m.result));
    format!(
        "  last move  {from} → {to} {result}, silent {} ms (told by {})\n",
        m.silent_ms,
        clean(node)
    )
}

/// What is wrong, each with what to do about it.
fn problems(node: &str, s: &ServiceStatus, paint: Paint) -> String {
    let mut out = String::new();
    let mut tell = |what: &str, remedy: &str| {
        let _ = writeln!(out, "  {} {}: {}", paint.bad("!"), clean(node), clean(what));
        let _ = writeln!(out, "      {remedy}");
    };
    if let Some(emergency) = &s.emergency {
        tell(
            emergency,
            "bring a majority of the coordinator back; keep the other node from serving",
        );
    }
    let twice = s.problem.is_some() && s.problem == s.emergency;
    if let Some(problem) = s.problem.as_ref().filter(|_| !twice) {
        tell(problem, "see: journalctl -u nasd");
    }
    if let Some(unfit) = &s.fit {
        tell(
            &format!("not fit to serve: {unfit}"),
            "repair it; nasd sees by itself when it is well",
        );
    }
    if let Some(drbd) = &s.drbd {
        for violation in &drbd.violations {
            let resource = clean(&drbd.resource);
            tell(
                violation,
                &format!("correct the resource's file, then: drbdadm adjust {resource}"),
            );
        }
        let bad = |(own, peer): &(String, String)| own != "UpToDate" || peer != "UpToDate";
        if drbd.disks.values().any(bad) {
            let remedy = format!(
                "no planned move until it is UpToDate; see: drbdadm status {}",
                clean(&drbd.resource)
            );
            tell(&format!("a replica is not up to date ({})", disks(drbd)), &remedy);
        }
        if drbd.connection == "StandAlone" {
            let service = clean(&s.service);
            let remedy = format!("whether the replicas have parted: nasctl split-brain {service}");
            tell("replication stands alone: no connection is tried", &remedy);
        }
    }
    out
}

/// What a node does not reach.
fn reach(node: &NodeStatus, paint: Paint) -> String {
    let mut out = String::new();
    let (name, peer) = (clean(&node.node), clean(&node.peer.node));
    if !node.coordinator.reachable {
        let why = node.coordinator.error.as_deref().map_or_else(|| "no answer".to_owned(), clean);
        let kind = clean(&node.coordinator.kind);
        let _ = writeln!(out, "{} {name}: {kind} is unreachable: {why}", paint.bad("!"));
        out.push_str("    services run on, but none can move; check the coordinator\n");
    }
    if !node.peer.reachable {
        let ago = node.peer.last_answer_ms;
        let ago =
            ago.map_or_else(|| "never answered".to_owned(), |ms| format!("silent for {ms} ms"));
        let _ = writeln!(out, "{} {name}: nasd on {peer} {ago}", paint.bad("!"));
        let _ = writeln!(out, "    on {peer}: systemctl status nasd");
    }
    for path in node.peer.silent_paths.iter().filter(|_| node.peer.reachable) {
        let path = clean(path);
        let _ = writeln!(out, "{} {name}: no beats reach {peer} over {path}", paint.bad("!"));
        out.push_str("    the other path carries them alone; check that network\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, peer: &str, serves: bool) -> Value {
        let record = json!({"epoch": 12, "phase": {"name": "serving", "owner": "nas1"},
            "current": ["nas1", "nas2"], "data_uuid": {}, "generation": 4});
        let mut service = json!({
            "service": "vms", "stage": if serves { "serving" } else { "standby" }, "record": record,
            "drbd": {"resource": "r0", "role": if serves { "Primary" } else { "Secondary" },
                "connection": "Connected", "peer_role": "Secondary",
                "disks": {"0": ["UpToDate", "UpToDate"]}, "violations": []},
            "addresses": ["192.0.2.10/24"], "exports": ["/srv/vms"], "gate_open": serves,
            "clients": if serves { json!(["10.0.0.21:893"]) } else { json!([]) },
            "failover": [],
        });
        if serves {
            service["gate_left_ms"] = json!(1480);
            service["threads"] = json!(16);
            service["in_grace"] = json!(false);
        }
        json!({"node": name, "version": "0.1.0", "uptime_s": 5, "services": [service],
            "coordinator": {"kind": "etcd", "reachable": true},
            "peer": {"node": peer, "reachable": true, "last_answer_ms": 20}})
    }

    fn text(nodes: &[Value], unreachable: Value) -> String {
        render(&json!({"nodes": nodes, "unreachable": unreachable}), Paint(false))
    }

    #[test]
    fn a_healthy_pair_is_calm() {
        let expected = "\
vms  served by nas1
  record     epoch 12, generation 4, serving(nas1), current nas1 nas2
  addresses  192.0.2.10/24
  exports    /srv/vms
  NODE  STAGE    ROLE       CONNECTION  DISKS                GATE        GRACE  NFSD  CLIENTS
  nas1  serving  Primary    Connected   0:UpToDate/UpToDate  open 1.4 s  over   16    1
  nas2  standby  Secondary  Connected   0:UpToDate/UpToDate  shut        -      -     0
  would failover work now?  yes

";
        assert_eq!(
            text(&[node("nas1", "nas2", true), node("nas2", "nas1", false)], json!([])),
            expected
        );
    }

    #[test]
    fn a_silent_owner_is_not_said_to_serve() {
        let shown = text(
            &[node("nas2", "nas1", false)],
            json!([{"node": "nas1", "reason": "deadline has elapsed"}]),
        );
        assert!(
            shown.contains("vms  served by nas1 by the record; nas1 does not answer\n"),
            "{shown}"
        );
        assert!(
            shown.ends_with(
                "! nas1 does not answer: deadline has elapsed\n    on nas1: systemctl status nasd\n"
            ),
            "{shown}"
        );
    }

    #[test]
    fn why_failover_would_not_work_is_said_once_each() {
        let (mut a, mut b) = (node("nas1", "nas2", true), node("nas2", "nas1", false));
        for n in [&mut a, &mut b] {
            n["services"][0]["hold"] = json!("root@nas1: new disks");
        }
        b["services"][0]["failover"] = json!(["it is held", "it is held", "no fence agent"]);
        b["services"][0]["fit"] = json!("its client network has no carrier");
        let expected = "
  held       by root@nas1: new disks; nothing happens by itself
  would failover work now?  no
      nas2: it is held
      nas2: no fence agent
  ! nas2: not fit to serve: its client network has no carrier
      repair it; nasd sees by itself when it is well

";
        let shown = text(&[a, b], json!([]));
        assert!(shown.ends_with(expected), "{shown}");
    }

    #[test]
    fn s12_failover_is_no_without_both_nodes_words() {
        let alone = text(&[node("nas1", "nas2", true)], json!([]));
        let no = "  would failover work now?  no\n      nas2 does not answer\n";
        assert!(alone.contains(no), "{alone}");
        let (a, mut b) = (node("nas1", "nas2", true), node("nas2", "nas1", false));
        b["coordinator"]["reachable"] = json!(false);
        let shown = text(&[a, b], json!([]));
        assert!(shown.contains("now?  no\n      nas2 cannot reach etcd\n"), "{shown}");
        let (mut a, b) = (node("nas1", "nas2", true), node("nas2", "nas1", false));
        a["coordinator"]["reachable"] = json!(false);
        let shown = text(&[a.clone(), b.clone()], json!([]));
        assert!(shown.contains("now?  yes\n"), "the standby is the one that takes: {shown}");
        a["services"][0].as_object_mut().unwrap().remove("failover");
        let shown = text(&[a, b], json!([]));
        assert!(shown.contains("now?  no\n      nas1: this node does not tell"), "{shown}");
    }

    #[test]
    fn two_open_gates_are_an_alarm() {
        let shown = text(&[node("nas1", "nas2", true), node("nas2", "nas1", true)], json!([]));
        assert!(shown.contains("OPEN ON nas1 and nas2"), "{shown}");
    }

    #[test]
    fn an_emergency_is_told_loudly_and_once() {
        let mut bad = node("nas1", "nas2", true);
        let told = "EMERGENCY: started by alice without the coordinator";
        bad["services"][0]["problem"] = json!(told);
        bad["services"][0]["emergency"] = json!(told);
        let shown = text(&[bad], json!([]));
        assert_eq!(shown.matches("EMERGENCY").count(), 1, "{shown}");
        assert!(shown.contains("! nas1: EMERGENCY"), "{shown}");
        assert!(shown.contains("bring a majority of the coordinator back"), "{shown}");
    }

    #[test]
    fn problems_come_with_what_to_do() {
        let mut bad = node("nas1", "nas2", true);
        bad["services"][0]["problem"] = json!("the marker is missing\u{1b}[2J");
        bad["services"][0]["drbd"]["violations"] = json!(["protocol is A"]);
        bad["services"][0]["drbd"]["disks"] = json!({"0": ["UpToDate", "Inconsistent"]});
        bad["coordinator"] = json!({"kind": "etcd", "reachable": false, "error": "timed out"});
        bad["peer"]["reachable"] = json!(false);
        let shown = text(&[bad], json!([]));
        let expected = "
  ! nas1: the marker is missing [2J
      see: journalctl -u nasd
  ! nas1: protocol is A
      correct the resource's file, then: drbdadm adjust r0
  ! nas1: a replica is not up to date (0:UpToDate/Inconsistent)
      no planned move until it is UpToDate; see: drbdadm status r0

! nas1: etcd is unreachable: timed out
    services run on, but none can move; check the coordinator
! nas1: nasd on nas2 silent for 20 ms
    on nas2: systemctl status nasd
";
        assert!(shown.ends_with(expected), "{shown}");
    }

    #[test]
    fn one_silent_path_of_two_is_told() {
        let (mut a, b) = (node("nas1", "nas2", true), node("nas2", "nas1", false));
        a["peer"]["silent_paths"] = json!(["192.0.2.2:7411"]);
        let shown = text(&[a, b], json!([]));
        let expected = "! nas1: no beats reach nas2 over 192.0.2.2:7411\n    the other path";
        assert!(shown.contains(expected) && shown.contains("now?  yes\n"), "{shown}");
    }

    #[test]
    fn replicas_that_may_have_parted_are_told_with_the_command_that_explains() {
        let mut a = node("nas1", "nas2", true);
        a["services"][0]["drbd"]["connection"] = json!("StandAlone");
        let shown = text(&[a], json!([]));
        let remedy = "      whether the replicas have parted: nasctl split-brain vms\n";
        assert!(shown.contains(remedy), "{shown}");
    }

    #[test]
    fn s12_an_unreadable_node_counts_as_silent() {
        let shown = text(&[json!({"node": "nas9"})], json!([]));
        assert!(
            shown.starts_with("! nas9 does not answer: unreadable status: missing field"),
            "{shown}"
        );
    }
}
