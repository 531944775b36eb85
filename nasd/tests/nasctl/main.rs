//! `nasctl` against a fake nasd. Here: nodes that do not answer, status, holds, history, usage (S8).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod fake;
mod forget;
mod moves;
mod recover;

use std::path::Path;
use std::time::{Duration, Instant};

use nasd_proto::NodeUnreachable;
use serde_json::json;

use fake::{Fake, Server, err, json_lines, nasctl, out};

#[test]
fn without_nasd_it_says_so_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent");
    let dead = dir.path().join("dead");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    for socket in [&absent, &dead] {
        for args in [&["status"][..], &["switchover", "vms"], &["switchover", "vms", "--abort"]] {
            let output = nasctl(socket, args).output().unwrap();
            assert_eq!(output.status.code(), Some(5), "{args:?}");
            let told = err(&output);
            assert!(told.contains("nasd does not run on this machine"), "{told}");
            assert!(told.contains("systemctl status nasd"), "{told}");
        }
    }
    let output = nasctl(&absent, &["switchover", "vms", "--json"]).output().unwrap();
    assert_eq!(json_lines(&output)[0]["result"], json!("unreachable"));
}

#[test]
fn s8_a_nasd_that_hangs_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let _silent = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
    let started = Instant::now();
    let output = nasctl(&dir.path().join("s"), &["status"]).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert!(err(&output).contains("did not answer within"), "{}", err(&output));
}

fn node_json() -> String {
    json!({
        "node": "nas1", "version": "0.1.0", "uptime_s": 5,
        "coordinator": {"kind": "file", "reachable": true},
        "peer": {"node": "nas2", "reachable": true},
        "services": [{"service": "vms", "stage": "serving", "addresses": [], "exports": [],
            "gate_open": true, "clients": []}],
    })
    .to_string()
}

fn status_server() -> Server {
    let unreachable = vec![NodeUnreachable { node: "nas2".into(), reason: "timed out".into() }];
    Server::start(Fake { nodes: vec![node_json()], unreachable, ..Fake::default() })
}

#[test]
fn status_shows_nodes_and_who_does_not_answer() {
    let server = status_server();
    let output = server.run(&["status"]);
    let expected = "\
vms  served by nas1
  NODE  STAGE    ROLE  CONNECTION  DISKS  GATE  GRACE  NFSD  CLIENTS
  nas1  serving  -     -           -      open  -      -     0
  would failover work now?  no
      nas2 does not answer
      nas1: this node does not tell whether it could take over

! nas2 does not answer: timed out
    on nas2: systemctl status nasd
";
    assert_eq!((out(&output).as_str(), output.status.code()), (expected, Some(0)));
    let output = server.run(&["status", "vms", "--json"]);
    let shown = &json_lines(&output)[0];
    assert_eq!(shown["nodes"][0]["services"][0]["stage"], json!("serving"));
    assert_eq!(shown["unreachable"], json!([{"node": "nas2", "reason": "timed out"}]));
}

#[test]
fn an_unknown_service_is_1_and_usage_is_2() {
    let server = status_server();
    let output = server.run(&["status", "nope"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(err(&output), "nasctl: no node that answered knows a service \"nope\"\n");
    for usage in [
        &["switchover"][..],
        &["switchover", "v", "--timeout", "0"],
        &["switchover", "v", "--abort", "--dry-run"],
    ] {
        assert_eq!(server.run(usage).status.code(), Some(2), "{usage:?}");
    }
}

#[test]
fn help_documents_exit_codes_and_examples() {
    let output = nasctl(Path::new("/nonexistent"), &["switchover", "--help"]).output().unwrap();
    let help = out(&output);
    for part in ["EXIT CODES", "EXAMPLES", "3  rolled back", "Ctrl-C", "one object per line"] {
        assert!(help.contains(part), "{part} is missing:\n{help}");
    }
}

#[test]
fn a_hold_says_what_became_of_each_service() {
    let server = Server::start(Fake::default());
    let output = server.run(&["hold", "vms", "--reason", "new disks"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(out(&output), "vms is held\nhome: no record\n");
    let output = server.run(&["unhold", "--all"]);
    assert_eq!(output.status.code(), Some(1), "one was not released");
    assert!(err(&output).starts_with("nasctl: vms is held\nhome: no record"), "{}", err(&output));
    let heard = server.heard();
    assert!(heard[0].contains("hold: true") && heard[0].contains(": new disks"), "{heard:?}");
    assert!(heard[1].contains("hold: false") && heard[1].contains(r#"service: """#), "{heard:?}");
    let line = &json_lines(&server.run(&["hold", "vms", "--json"]))[0];
    assert_eq!((&line["result"], &line["exit_code"]), (&json!("done"), &json!(0)));
    assert_eq!(server.run(&["hold"]).status.code(), Some(2));
}

#[test]
fn history_shows_both_nodes_and_who_is_missing() {
    let event = r#"{"node":"nas1","service":"vms","unix_ms":1700000000123,"who":"nas1","what":"takeover","epoch":13,"result":"done"}"#;
    let unreachable = vec![NodeUnreachable { node: "nas2".into(), reason: "timed out".into() }];
    let fake = Fake { history: vec![event.into()], unreachable, ..Fake::default() };
    let server = Server::start(fake);
    let output = server.run(&["history", "vms", "--limit", "5"]);
    let expected = "\
TIME (UTC)               NODE  SERVICE  WHAT      RESULT  EPOCH  WHO   DETAIL
2023-11-14 22:13:20.123  nas1  vms      takeover  done    13     nas1
! the events of nas2 are missing: timed out
";
    assert_eq!((out(&output).as_str(), output.status.code()), (expected, Some(0)));
    assert!(server.heard()[0].contains("limit: 5"));
    let lines = json_lines(&server.run(&["history", "--json"]));
    assert_eq!(lines[0]["what"], json!("takeover"));
    assert_eq!(lines[1], json!({"node": "nas2", "unreachable": "timed out"}));
}
