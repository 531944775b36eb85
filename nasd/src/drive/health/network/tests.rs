//! Who is asked, and what silence means.

use super::*;

fn at(seconds: u64) -> Now {
    Duration::from_secs(seconds)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn traffic(peer: &str, acknowledged: u64) -> Traffic {
    let connection = sockets::Connection {
        local: "10.77.0.101:2049".parse().unwrap(),
        peer: peer.parse().unwrap(),
    };
    Traffic { connection, acknowledged: Some(acknowledged) }
}

fn is_bad(finding: &Finding) -> bool {
    matches!(finding, Finding::Bad { .. })
}

fn service() -> ServiceConfig {
    let text = r#"[cluster]
name = "t"
coordinator = { file = { path = "/tmp/t.json" } }
[[node]]
name = "nas1"
address = "127.0.0.1:7410"
[[node]]
name = "nas2"
address = "127.0.0.1:7411"
[peer]
ca = "/ca"
cert = "/cert"
key = "/key"
[[service]]
name = "vms"
drbd = "r0"
interface = "eth0"
addresses = ["10.77.0.101/24", "fd77::101/64"]
gateway = "10.77.0.1"
gateway6 = "fe80::1"
  [[service.filesystem]]
  volume = 0
  fstype = "ext4"
  export = "/vms"
  clients = ["*"]
"#;
    crate::config::Config::parse("t", text).unwrap().services.remove(0)
}

#[test]
fn neighbours_of_the_services_own_networks_are_asked() {
    let clients = ["10.77.0.12", "10.77.0.11", "192.0.2.7", "fd77::12", "127.0.0.1", "10.77.0.101"];
    let pairs = to_ask(&service(), &clients.map(ip), 0);
    let (four, six) = (ip("10.77.0.101"), ip("fd77::101"));
    let wanted = [
        (four, ip("10.77.0.1")),
        (six, ip("fe80::1")),
        (four, ip("10.77.0.11")),
        (four, ip("10.77.0.12")),
        (six, ip("fd77::12")),
    ];
    assert_eq!(pairs, wanted);
}

#[test]
fn many_clients_are_asked_in_turn() {
    let clients: Vec<_> = (11..41).map(|n| ip(&format!("10.77.0.{n}"))).collect();
    let mut seen = BTreeSet::new();
    for round in 0..10 {
        let pairs = to_ask(&service(), &clients, round);
        assert_eq!(pairs.len(), ASKED);
        seen.extend(pairs.into_iter().map(|(_, to)| to));
    }
    assert_eq!(seen.len(), clients.len() + 2);
}

#[test]
fn a_lost_wire_is_told_from_an_unknown_one() {
    let missing = NetError::InterfaceMissing { namespace: "host".into(), interface: "eth1".into() };
    assert!(is_bad(&judge_carrier("eth1", &Err(missing))));
    let late = NetError::WorkerGone { namespace: "host".into() };
    assert_eq!(judge_carrier("eth1", &Err(late)), Finding::Unknown);
}

#[test]
fn without_known_neighbours_there_is_no_verdict() {
    let known = Neighbours::default();
    for second in 0..60 {
        let asked = [ip("10.77.0.11"), ip("10.77.0.12"), ip("10.77.0.1")];
        assert_eq!(known.judge(at(second), &asked, &[ip("10.77.0.1")]), Finding::Unknown);
    }
}

#[test]
fn silence_of_those_who_had_answered_accuses_this_node() {
    let asked = [ip("10.77.0.11"), ip("10.77.0.12")];
    let mut known = Neighbours::default();
    known.answered(at(10), &asked, &asked);
    assert_eq!(known.judge(at(11), &asked, &[]), Finding::Well);
    let Finding::Bad { since, why } = known.judge(at(14), &asked, &[]) else {
        panic!("both are silent")
    };
    assert_eq!((since, why.as_str()), (at(10), "no answer from 10.77.0.11, 10.77.0.12"));
    known.answered(at(15), &asked, &asked[..1]);
    assert_eq!(known.judge(at(15), &asked, &[]), Finding::Well, "one is enough");
}

#[test]
fn one_silent_client_may_be_dead_itself() {
    let asked = [ip("10.77.0.11")];
    let mut known = Neighbours::default();
    known.answered(at(10), &asked, &asked);
    assert_eq!(known.judge(at(20), &asked, &[]), Finding::Unknown);
    // The gateway is not a client: its silence alone counts.
    assert!(is_bad(&known.judge(at(20), &asked, &asked)));
}

#[test]
fn answers_that_nobody_asked_for_prove_nothing() {
    let mut known = Neighbours::default();
    known.answered(at(10), &[ip("10.77.0.11")], &[ip("10.77.0.99")]);
    assert_eq!(known, Neighbours::default());
}

#[test]
fn acknowledged_replies_prove_their_clients() {
    let mut known = Neighbours::default();
    let (one, two) = ("10.77.0.11:800", "10.77.0.12:801");
    known.read_traffic(at(1), &[traffic(one, 5), traffic(two, 5)]);
    assert!(known.proven.is_empty(), "a first reading tells nothing");
    known.read_traffic(at(2), &[traffic(one, 6), traffic(two, 7)]);
    let asked = [ip("10.77.0.11"), ip("10.77.0.12")];
    assert_eq!(known.judge(at(3), &asked, &[]), Finding::Well);
    known.read_traffic(at(6), &[traffic(one, 6), traffic(two, 7)]);
    assert!(is_bad(&known.judge(at(6), &asked, &[])));
    known.read_traffic(at(7), &[traffic("127.0.0.1:9", 1)]);
    known.read_traffic(at(8), &[traffic("127.0.0.1:9", 9)]);
    assert!(is_bad(&known.judge(at(8), &asked, &[])), "a probe is no neighbour");
}
