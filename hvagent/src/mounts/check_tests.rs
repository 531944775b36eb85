//! Every finding from a mount table as the kernel writes it.

use super::*;
use crate::mounts::mountinfo::parse;
use proptest::prelude::*;

const GOOD: &str = "rw,vers=4.2,hard,proto=tcp,timeo=50,retrans=2,local_lock=none,addr=192.0.2.50";

fn mount(source: &str, options: &str) -> NfsMount {
    let line = format!("212 27 0:52 / /vm rw,relatime shared:118 - nfs4 {source} {options}\n");
    parse(line.as_bytes()).entries.remove(0)
}

fn services() -> Services {
    let ip = |s: &str| s.parse().unwrap();
    Services {
        floating: [("vm".to_owned(), vec![ip("192.0.2.50")])].into(),
        nodes: [
            ("nas1".to_owned(), vec![ip("192.0.2.1")]),
            ("nas2".to_owned(), vec![ip("192.0.2.2")]),
        ]
        .into(),
    }
}

fn peer(at: &str, source: &str) -> PeerMounts {
    let line = format!("1 1 0:1 / {at} rw - nfs4 {source} rw\n");
    let source = parse(line.as_bytes()).entries.remove(0).source;
    PeerMounts { host: "hv2".into(), mounts: Some([(PathBuf::from(at), source)].into()) }
}

fn codes(mounts: &[NfsMount], peers: &[PeerMounts]) -> Vec<String> {
    all(mounts, &services(), peers).into_iter().map(|f| f.code).collect()
}

#[test]
fn a_good_mount_gives_nothing() {
    let m = mount("192.0.2.50:/vm", GOOD);
    assert_eq!(codes(&[m], &[peer("/vm", "192.0.2.50:/vm")]), Vec::<String>::new());
}

#[test]
fn each_bad_option_has_its_finding() {
    for (good, bad, code, severity) in [
        ("hard", "soft", "mount-soft", Severity::Error),
        ("hard", "softerr", "mount-soft", Severity::Error),
        ("hard,", "", "mount-hard-unknown", Severity::Warning),
        ("vers=4.2", "vers=4.0", "mount-version", Severity::Error),
        ("vers=4.2", "vers=3", "mount-version", Severity::Error),
        ("vers=4.2,", "", "mount-version-unknown", Severity::Warning),
        ("proto=tcp", "proto=udp", "mount-transport", Severity::Warning),
        ("local_lock=none", "local_lock=posix", "mount-local-locks", Severity::Error),
        ("local_lock=none,", "", "mount-local-locks", Severity::Warning),
        ("hard", "hard,nolock", "mount-local-locks", Severity::Error),
        ("timeo=50", "timeo=600", "mount-timeo", Severity::Info),
    ] {
        let m = mount("192.0.2.50:/vm", &GOOD.replacen(good, bad, 1));
        let found = all(&[m], &services(), &[]);
        let short: Vec<_> = found.iter().map(|f| (f.code.as_str(), f.severity)).collect();
        assert_eq!(short, [(code, severity)], "{good} -> {bad}");
        assert!(!found[0].remedy.is_empty() && !found[0].evidence.is_empty());
        assert_eq!(found[0].subject, "/vm");
    }
}

#[test]
fn least_version_is_enough() {
    let m = mount("192.0.2.50:/vm", &GOOD.replace("vers=4.2", "vers=4.1"));
    assert_eq!(codes(&[m], &[]), Vec::<String>::new());
}

#[test]
fn a_nodes_own_address_is_told_with_the_floating_one() {
    let m = mount("192.0.2.1:/vm", &GOOD.replace("192.0.2.50", "192.0.2.1"));
    let found = all(&[m], &services(), &[]);
    assert_eq!(found[0].code, "mount-node-address");
    assert!(found[0].evidence.contains("nas1"));
    assert!(found[0].remedy.contains("192.0.2.50"));
}

#[test]
fn the_transports_address_counts_not_the_name() {
    // A name that resolved to a node when it was mounted.
    let m = mount("storage.example.net:/vm", &GOOD.replace("addr=192.0.2.50", "addr=192.0.2.2"));
    assert_eq!(services().of(&m), Belongs::Node("nas2".into()));
    let m = mount("storage.example.net:/vm", "rw,vers=4.2,hard,proto=tcp");
    assert_eq!(codes(&[m], &[]), ["mount-address-unknown"]);
}

#[test]
fn foreign_servers_are_left_alone() {
    let m = mount("203.0.113.9:/iso", "ro,vers=3,soft,proto=udp,addr=203.0.113.9");
    assert_eq!(codes(&[m], &[peer("/vm2", "203.0.113.9:/iso")]), Vec::<String>::new());
}

#[test]
fn hypervisors_must_agree() {
    let m = || vec![mount("192.0.2.50:/vm", GOOD)];
    assert_eq!(codes(&m(), &[peer("/vm", "192.0.2.50:/other")]), ["mount-source-differs"]);
    assert_eq!(codes(&m(), &[peer("/vm", "storage:/vm")]), ["mount-source-differs"]);
    assert_eq!(
        codes(&m(), &[peer("/elsewhere", "192.0.2.50:/vm")]),
        ["mount-missing-on-peer", "mount-missing-here"]
    );
    let silent = PeerMounts { host: "hv2".into(), mounts: None };
    assert_eq!(codes(&m(), &[silent]), ["mount-peer-unknown"]);
}

proptest! {
    /// Whatever the options: no finding at all means that the safe ones were shown.
    #[test]
    fn silence_means_safe(words in proptest::collection::vec("(hard|soft|softerr|vers=[0-9](\\.[0-9])?|proto=(tcp|udp)|nolock|local_lock=(none|all)|timeo=[0-9]{1,4}|[a-z=,]{0,8})", 0..10)) {
        let list = format!("rw,{},addr=192.0.2.50", words.join(","));
        let m = mount("192.0.2.50:/vm", &list);
        if all(std::slice::from_ref(&m), &services(), &[]).is_empty() {
            prop_assert_eq!(m.options.patience, Patience::Hard);
            prop_assert!(m.options.version >= Some(LEAST_VERSION));
            prop_assert!(!m.options.nolock);
        }
    }
}
