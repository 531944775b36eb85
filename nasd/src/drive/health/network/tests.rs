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
