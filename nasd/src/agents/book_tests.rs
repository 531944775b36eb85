//! Hosts and services together: who must be ready, who is, who hears what.

use nasd_proto::move_news::What;
use nasd_proto::{AgentState, Readiness, StallReport};

use super::*;
use crate::agents::hosts::{DEAF, MOST};

fn s(seconds: u64) -> Now {
    Duration::from_secs(seconds)
}

fn book(required: &[&str]) -> Book {
    let required = required.iter().map(|&h| h.to_owned()).collect();
    Book::new("nas1".into(), ["vms".to_owned(), "iso".to_owned()], required)
}

fn mounted(service: &str) -> Kind {
    let mount = MountState {
        service: service.into(),
        mount: format!("/{service}"),
        phase: "normal".into(),
        ..MountState::default()
    };
    Kind::State(AgentState { mounts: vec![mount] })
}

/// A host whose agent is attached and has told its mounts.
fn attach(book: &mut Book, now: Now, host: &str, stream: StreamId, service: &str) {
    book.attach(now, host, "1", stream).unwrap();
    book.heard(now, stream, mounted(service));
}

fn announce(book: &mut Book, now: Now, force: bool) -> (MoveId, Vec<StreamId>) {
    let terms = Terms { epoch: 8, wait: s(15), keep: s(30), force, predicted_stall_ms: 400 };
    announced(&book.announce(now, 1000, "vms", &terms).unwrap())
}

fn announced(out: &[Out]) -> (MoveId, Vec<StreamId>) {
    let mut id = 0;
    let of = |o: &Out| match o {
        Out::Send { to, news: AgentNews { kind: Some(NewsKind::Announce(a)) } } => {
            id = a.move_id;
            Some(*to)
        }
        _ => None,
    };
    let to = out.iter().filter_map(of).collect();
    (id, to)
}

fn news(out: &[Out]) -> Vec<(StreamId, What)> {
    let of = |o: &Out| match o {
        Out::Send { to, news: AgentNews { kind: Some(NewsKind::News(n)) } } => {
            Some((*to, n.what()))
        }
        _ => None,
    };
    out.iter().filter_map(of).collect()
}

fn ready(book: &mut Book, now: Now, stream: StreamId, move_id: MoveId) {
    let said = Readiness { service: "vms".into(), move_id, ready: true, ..Readiness::default() };
    book.heard(now, stream, Kind::Readiness(said));
}

fn codes(found: Option<Vec<Finding>>) -> Option<Vec<&'static str>> {
    found.map(|all| all.iter().map(|f| f.code).collect())
}

#[test]
fn only_hosts_with_the_service_mounted_must_be_ready() {
    let mut book = book(&[]);
    attach(&mut book, s(0), "hv1", 1, "vms");
    attach(&mut book, s(0), "hv2", 2, "iso");
    let (id, to) = announce(&mut book, s(1), false);
    assert_eq!(to, [1, 2], "all hear of it: one may be mounting it just now");
    assert_eq!(book.verdict(s(1), "vms"), None);
    ready(&mut book, s(2), 2, id);
    assert_eq!(book.verdict(s(2), "vms"), None);
    ready(&mut book, s(2), 1, id);
    assert_eq!(book.verdict(s(2), "vms"), Some(vec![]));
}

#[test]
fn s11_a_host_that_was_ready_and_is_not_any_more_speaks_against_the_move() {
    let mut book = book(&[]);
    attach(&mut book, s(0), "hv1", 1, "vms");
    assert_eq!(book.standing(s(0), "vms"), None, "nothing is announced");
    for force in [false, true] {
        let (id, _) = announce(&mut book, s(1), force);
        ready(&mut book, s(2), 1, id);
        assert_eq!(book.standing(s(2), "vms"), Some(vec![]));
        let said = Readiness { service: "vms".into(), move_id: id, ..Readiness::default() };
        book.heard(s(3), 1, Kind::Readiness(said));
        let found = book.standing(s(3), "vms").unwrap();
        assert_eq!(
            found.iter().map(|f| (f.code, f.refuses)).collect::<Vec<_>>(),
            [("hypervisor-not-ready", !force)]
        );
        book.say(s(4), "vms", Said::Withdrawn { epoch: 7 });
    }
}

#[test]
fn s12_a_host_that_has_not_told_its_mounts_may_have_it_mounted() {
    let mut book = book(&[]);
    book.attach(s(0), "hv1", "1", 1).unwrap();
    announce(&mut book, s(0), false);
    assert_eq!(book.verdict(s(14), "vms"), None);
    assert_eq!(codes(book.verdict(s(15), "vms")), Some(vec!["hypervisor-not-ready"]));
    book.heard(s(15), 1, mounted("iso"));
    assert_eq!(book.verdict(s(15), "vms"), Some(vec![]), "it has not");
}

#[test]
fn s12_late_readiness_for_an_older_move_is_ignored() {
    let mut book = book(&[]);
    attach(&mut book, s(0), "hv1", 1, "vms");
    let (old, _) = announce(&mut book, s(1), false);
    book.say(s(2), "vms", Said::Withdrawn { epoch: 7 });
    let (id, _) = announce(&mut book, s(3), false);
    ready(&mut book, s(4), 1, old);
    assert_eq!(book.verdict(s(4), "vms"), None);
    ready(&mut book, s(5), 1, id);
    assert_eq!(book.verdict(s(5), "vms"), Some(vec![]));
}

#[test]
fn s12_a_host_that_falls_silent_is_not_ready_any_more_and_is_forgotten_at_last() {
    let mut book = book(&[]);
    attach(&mut book, s(0), "hv1", 1, "vms");
    let (id, _) = announce(&mut book, s(0), false);
    ready(&mut book, s(0), 1, id);
    assert_eq!(book.verdict(s(15), "vms"), Some(vec![]));
    assert_eq!(codes(book.verdict(s(16), "vms")), Some(vec!["hypervisor-silent"]));
    book.detach(1);
    assert_eq!(codes(book.verdict(s(16), "vms")), Some(vec!["hypervisor-silent"]));
    assert_eq!(codes(Some(book.look(s(299), "vms", 400, false))), Some(vec!["hypervisor-silent"]));
    assert!(book.look(s(300), "vms", 400, false).is_empty(), "after 5 minutes it is forgotten");
}

#[test]
fn a_host_that_is_proven_dead_stands_in_nobodys_way() {
    let mut book = book(&[]);
    attach(&mut book, s(0), "hv1", 1, "vms");
    attach(&mut book, s(20), "hv2", 2, "vms");
    let (id, _) = announce(&mut book, s(20), false);
    ready(&mut book, s(20), 2, id);
    assert_eq!(book.verdict(s(20), "vms"), None, "hv1 is waited for");
    assert_eq!(book.forget(s(20), "hv2"), Err(s(0)), "it answers");
    assert_eq!(book.known(s(20)).len(), 2);
    assert_eq!(book.forget(s(20), "hv1"), Ok(vec![Out::Close(1)]));
    assert_eq!(book.verdict(s(20), "vms"), Some(vec![]));
    assert_eq!(book.forget(s(20), "hv1"), Ok(vec![]), "done already");
    let left = book.known(s(21));
    assert_eq!((left.len(), left[0].host.as_str(), left[0].heard_ms), (1, "hv2", 1000));
    assert_eq!(left[0].services, ["vms"]);
}

#[test]
fn a_host_that_has_unmounted_the_service_may_go() {
    let mut book = book(&[]);
    attach(&mut book, s(0), "hv1", 1, "vms");
    book.heard(s(1), 1, Kind::State(AgentState::default()));
    book.detach(1);
    assert!(book.look(s(2), "vms", 400, false).is_empty());
}

#[test]
fn an_agent_that_attaches_anew_is_asked_anew() {
    let mut book = book(&[]);
    attach(&mut book, s(0), "hv1", 1, "vms");
    let (id, _) = announce(&mut book, s(0), false);
    ready(&mut book, s(0), 1, id);
    let out = book.attach(s(1), "hv1", "2", 7).unwrap();
    assert_eq!(out[0], Out::Close(1));
    assert_eq!(announced(&out), (id, vec![7]), "it hears of the move at once");
    assert_eq!(book.verdict(s(1), "vms"), None, "what held before its restart holds no more");
    ready(&mut book, s(1), 1, id);
    assert_eq!(book.verdict(s(1), "vms"), None, "the old stream is nobody's");
    ready(&mut book, s(1), 7, id);
    assert_eq!(book.verdict(s(1), "vms"), Some(vec![]));
}

#[test]
fn required_hosts_must_be_attached_and_are_told_of_once() {
    let mut book = book(&["hv1", "hv2"]);
    attach(&mut book, s(0), "hv1", 1, "iso");
    let absent = book.look(s(1), "vms", 400, false);
    assert_eq!(codes(Some(absent)), Some(vec!["hypervisor-absent"]), "hv2");
    attach(&mut book, s(1), "hv2", 2, "vms");
    book.detach(2);
    let found = book.look(s(2), "vms", 400, true);
    assert_eq!(codes(Some(found.clone())), Some(vec!["hypervisor-silent"]));
    assert!(!found[0].refuses);
}

#[test]
fn s11_the_lease_is_renewed_while_nasd_waits_and_until_the_cut() {
    let mut book = book(&[]);
    attach(&mut book, s(0), "hv1", 1, "vms");
    let (id, _) = announce(&mut book, s(0), false);
    assert!(book.tick(s(1)).is_empty());
    assert_eq!(announced(&book.tick(s(2))), (id, vec![1]));
    ready(&mut book, s(3), 1, id);
    assert_eq!(announced(&book.tick(s(4))), (id, vec![1]), "also between yes and the cut");
    assert_eq!(book.moving(s(5), 1000, "vms", 8), id);
    assert_eq!(news(&book.say(s(5), "vms", Said::Cut { epoch: 8 })), [(1, What::Cut)]);
    assert!(book.tick(s(8)).is_empty());
}

#[test]
fn s11_an_announced_move_that_never_begins_is_withdrawn() {
    let mut book = book(&[]);
    attach(&mut book, s(0), "hv1", 1, "vms");
    announce(&mut book, s(0), false);
    for now in 1..45 {
        book.heard(s(now), 1, mounted("vms"));
        assert!(news(&book.tick(s(now))).is_empty());
    }
    assert_eq!(news(&book.tick(s(45))), [(1, What::Withdrawn)]);
    assert!(!book.is_announced("vms"));
}

#[test]
fn a_second_move_of_the_service_is_not_announced_beside_the_first() {
    let mut book = book(&[]);
    announce(&mut book, s(0), false);
    let terms = Terms { epoch: 8, wait: s(1), keep: s(1), force: true, predicted_stall_ms: 0 };
    let refused = book.announce(s(1), 1000, "vms", &terms).unwrap_err();
    assert_eq!((refused.code, refused.refuses), ("hypervisors-busy", true));
    assert!(book.announce(s(1), 1000, "iso", &terms).is_ok());
    assert!(book.announce(s(1), 1000, "nope", &terms).is_err());
}

#[test]
fn who_attaches_late_hears_what_it_may_have_missed() {
    let mut book = book(&[]);
    book.say(s(0), "vms", Said::Opened { epoch: 8 });
    let out = book.attach(s(5), "hv1", "1", 1).unwrap();
    assert_eq!(news(&out), [(1, What::Opened)]);
}

#[test]
fn streams_that_are_dead_are_closed() {
    let mut book = book(&[]);
    attach(&mut book, s(0), "hv1", 1, "vms");
    assert!(book.tick(DEAF).is_empty());
    assert_eq!(book.tick(DEAF + s(1)), [Out::Close(1)]);
}

#[test]
fn what_hosts_say_is_bounded() {
    let mut book = book(&[]);
    for i in 0..MOST as u64 {
        assert!(book.attach(s(0), &format!("hv{i}"), "1", i).is_some());
    }
    assert!(book.attach(s(0), "more", "1", 999).is_none());
    book.heard(s(1), 1, Kind::HostReportJson("x".repeat(tame::REPORT + 1)));
    assert_eq!(book.report(s(1), "hv1").report_json, "");
    book.heard(s(1), 1, Kind::HostReportJson("{}".into()));
    let report = book.report(s(3), "hv1");
    assert_eq!((report.report_json.as_str(), report.age_ms), ("{}", 2000));
    assert_eq!(report.hosts.len(), MOST);
}

#[test]
fn stalls_are_complete_when_every_host_has_told_its_own() {
    let mut book = book(&[]);
    assert!(book.stalls(s(0), "vms").1, "nobody to wait for");
    attach(&mut book, s(0), "hv1", 1, "vms");
    attach(&mut book, s(0), "hv2", 2, "vms");
    let report = || Kind::Stall(StallReport { service: "vms".into(), ..StallReport::default() });
    book.heard(s(1), 1, report());
    assert!(!book.stalls(s(1), "vms").1);
    book.heard(s(1), 2, report());
    let (told, complete) = book.stalls(s(1), "vms");
    assert_eq!((told.len(), complete), (2, true));
    let shown = &book.status(s(1))["vms"];
    assert_eq!((shown.hosts.len(), shown.stalls.len()), (2, 2));
    assert_eq!((shown.hosts[0].host.as_str(), shown.hosts[0].attached), ("hv1", true));
    assert_eq!(shown.hosts[0].mounts[0].phase, "normal");
}
