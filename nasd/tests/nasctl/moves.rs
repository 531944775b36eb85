//! Moves, takeovers and their end: texts, JSON lines, exit codes, broken streams (S12).

use std::process::Stdio;
use std::time::{Duration, Instant};

use nasd_proto::move_event::Kind;
use nasd_proto::outcome::Result as Wire;
use nasd_proto::{
    ClientStall, Finding, HostStall, MoveEvent, Outcome, Preflight, StallReport, Step,
    SwitchoverRequest,
};
use serde_json::{Value, json};
use tonic::Status;

use crate::fake::{Fake, Server, err, json_lines, nasctl, out};

fn event(kind: Kind) -> Result<MoveEvent, Status> {
    Ok(MoveEvent { kind: Some(kind) })
}

fn preflight(refuses: bool) -> Result<MoveEvent, Status> {
    let finding = Finding {
        code: "foreign-openers".into(),
        refuses,
        evidence: "/dev/drbd0: lvm[7]".into(),
        remedy: "stop it".into(),
    };
    event(Kind::Preflight(Preflight {
        service: "vms".into(),
        from: "nas1".into(),
        to: "nas2".into(),
        findings: vec![finding],
        predicted_stall_ms: 380,
    }))
}

fn step(done: bool) -> Result<MoveEvent, Status> {
    event(Kind::Step(Step {
        node: "nas1".into(),
        name: "cut".into(),
        started_unix_ns: 1_700_000_000_000_000_000,
        took_us: if done { 12_300 } else { 0 },
        done,
        detail: String::new(),
    }))
}

fn outcome(result: Wire) -> Result<MoveEvent, Status> {
    let clients = vec![ClientStall { client: "hv1".into(), stall_us: 341_000, reclaimed: true }];
    event(Kind::Outcome(Outcome {
        result: result.into(),
        message: String::new(),
        owner: "nas2".into(),
        epoch: 12,
        silent_us: 312_000,
        clients,
        ..Outcome::default()
    }))
}

fn scripted(script: Vec<Result<MoveEvent, Status>>) -> Server {
    Server::start(Fake { script, ..Fake::default() })
}

#[test]
fn a_move_is_told_from_preflight_to_stalls() {
    let server = scripted(vec![preflight(false), step(false), step(true), outcome(Wire::Moved)]);
    let output = server.run(&["switchover", "vms", "--to", "nas2", "--timeout", "2.5"]);
    let expected = "\
vms: nas1 → nas2

pre-flight
  warning  foreign-openers
    evidence  /dev/drbd0: lvm[7]
    remedy    stop it
  predicted stall: 380 ms

    +0.000 s  nas1        cut                          12 ms
moved: nas2 serves vms, epoch 12, silent for 312 ms

  CLIENT  STALL   STATE
  hv1     341 ms  reclaimed
";
    assert_eq!((out(&output).as_str(), output.status.code()), (expected, Some(0)));
    let asked = server.asked.lock().unwrap();
    let (service, to) = ("vms".to_owned(), "nas2".to_owned());
    let timeout_ms = 2500;
    assert_eq!(*asked, [SwitchoverRequest { service, to, timeout_ms, ..Default::default() }]);
}

#[test]
fn exit_codes_follow_the_outcome() {
    let results = [
        (Wire::Moved, 0, "moved"),
        (Wire::DryRun, 0, "dry-run"),
        (Wire::Refused, 1, "refused"),
        (Wire::RolledBack, 3, "rolled-back"),
        (Wire::Failed, 4, "failed"),
        (Wire::Unknown, 5, "unknown"),
    ];
    for (result, code, name) in results {
        let output = scripted(vec![outcome(result)]).run(&["switchover", "vms", "--json"]);
        assert_eq!(output.status.code(), Some(code), "{result:?}");
        let last = json_lines(&output).pop().unwrap();
        assert_eq!((&last["result"], &last["exit_code"]), (&json!(name), &json!(code)));
    }
}

#[test]
fn a_dry_run_with_a_refusal_would_not_move() {
    let output = scripted(vec![preflight(true), outcome(Wire::DryRun)]).run(&[
        "switchover",
        "vms",
        "--dry-run",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(out(&output).contains("  refusal  foreign-openers\n"), "{}", out(&output));
}

#[test]
fn json_is_one_object_per_line_and_ends_with_the_outcome() {
    let output = scripted(vec![preflight(false), step(true), outcome(Wire::Moved)]).run(&[
        "switchover",
        "vms",
        "--json",
    ]);
    let lines = json_lines(&output);
    let events: Vec<_> = lines.iter().map(|l| l["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["preflight", "step", "outcome"]);
    assert_eq!(lines[1]["started_unix_us"], json!(1_700_000_000_000_000_u64));
    assert_eq!(lines[2]["clients"][0]["stall_us"], json!(341_000));
}

#[test]
fn s12_a_stream_that_breaks_or_ends_early_is_unknown() {
    for broken in [Some(Err(Status::unavailable("gone"))), Some(Err(Status::not_found("x"))), None]
    {
        let mut script = vec![preflight(false), step(false)];
        script.extend(broken);
        let server = scripted(script);
        let output = server.run(&["switchover", "vms"]);
        assert_eq!(output.status.code(), Some(5));
        assert!(out(&output).contains("not finished: nas1 cut"), "{}", out(&output));
        let told = err(&output);
        assert!(told.contains("outcome unknown") && told.contains("nasctl status"), "{told}");
        let last = json_lines(&server.run(&["switchover", "vms", "--json"])).pop().unwrap();
        assert_eq!(last["result"], json!("unknown"));
        assert_eq!(last["owner"], Value::Null);
    }
}

#[test]
fn a_call_that_nasd_refuses_changed_nothing() {
    let refuse = Some(Status::not_found("no service 'vms'"));
    let output = Server::start(Fake { refuse, ..Fake::default() }).run(&["switchover", "vms"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(err(&output), "nasctl: refused: no service 'vms'\n");
    let refuse = Some(Status::internal("?"));
    let output = Server::start(Fake { refuse, ..Fake::default() }).run(&["switchover", "vms"]);
    assert_eq!(output.status.code(), Some(5), "an internal error says nothing about the move");
}

#[test]
fn ctrl_c_undoes_nothing_and_says_so() {
    let script = vec![preflight(false), step(false)];
    let server = Server::start(Fake { script, hang: true, ..Fake::default() });
    let mut command = nasctl(&server.socket(), &["switchover", "vms"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.asked.lock().unwrap().is_empty() {
        assert!(Instant::now() < deadline, "nasctl did not ask");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(5));
    assert!(err(&output).contains("interrupted\n  the move may go on in nasd, nothing is undone"));
}

#[test]
fn abort_says_whether_it_aborted() {
    for (aborted, code, name) in [(true, 0, "aborted"), (false, 1, "not-aborted")] {
        let server = Server::start(Fake { aborted, ..Fake::default() });
        let output = server.run(&["switchover", "vms", "--abort", "--json"]);
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(json_lines(&output)[0]["result"], json!(name));
        assert_eq!(server.run(&["switchover", "vms", "--abort"]).status.code(), Some(code));
    }
}

#[test]
fn a_takeover_is_told_like_a_move() {
    let server = scripted(vec![step(true), outcome(Wire::Moved)]);
    let output = server.run(&["takeover", "vms", "--reason", "nas1 hangs"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(out(&output).contains("taken over: nas2 serves vms, epoch 12"), "{}", out(&output));
    let heard = server.heard().join("\n");
    assert!(heard.contains(r#"service: "vms""#) && heard.contains(r#"reason: "nas1 hangs""#));
    assert!(!heard.contains(r#"by: """#), "the operator is named: {heard}");
    let lines = json_lines(&server.run(&["takeover", "vms", "--json"]));
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[1]["result"], &lines[1]["exit_code"]), (&json!("moved"), &json!(0)));
}

#[test]
fn s12_a_takeovers_exit_codes_are_those_of_a_move() {
    for (result, code) in
        [(Wire::Refused, 1), (Wire::RolledBack, 3), (Wire::Failed, 4), (Wire::Unknown, 5)]
    {
        let output = scripted(vec![outcome(result)]).run(&["takeover", "vms"]);
        assert_eq!(output.status.code(), Some(code), "{result:?}");
    }
    let output = scripted(vec![step(false)]).run(&["takeover", "vms"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(err(&output).contains("the takeover may go on in nasd"), "{}", err(&output));
    let refuse = Some(Status::failed_precondition("nas2 is not current"));
    let output = Server::start(Fake { refuse, ..Fake::default() }).run(&["takeover", "vms"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn s11_the_hypervisors_terms_are_passed_on_and_their_stalls_shown() {
    let stall = |guest: &str, stall_ms| HostStall {
        host: "hv1".into(),
        stall: Some(StallReport {
            mount: "/vms".into(),
            guest: guest.into(),
            stall_ms,
            move_id: 9,
            ..StallReport::default()
        }),
    };
    let told = |o: Outcome| event(Kind::Outcome(o));
    let stalls = vec![stall("", 412), stall("db\u{1b}[2J", 1550)];
    let moved =
        Outcome { result: Wire::Moved.into(), owner: "nas2".into(), stalls, ..Outcome::default() };
    let server = scripted(vec![told(moved)]);
    let output = server.run(&["switchover", "vms", "--force", "--wait", "60"]);
    let expected = "
measured on the hypervisors
  HOST  MOUNT  GUEST   STALL
  hv1   /vms   -       412 ms
  hv1   /vms   db [2J  1.55 s
";
    assert!(out(&output).ends_with(expected), "{}", out(&output));
    let asked = server.asked.lock().unwrap()[0].clone();
    assert_eq!((asked.force, asked.wait_ms), (true, 60_000));
    let line = &json_lines(&server.run(&["switchover", "vms", "--json"]))[0];
    assert_eq!(line["stalls"][0]["stall_ms"], json!(412));
    assert_eq!(line["stalls"][0]["guest"], Value::Null);
    assert_eq!(
        (&line["stalls"][1]["host"], &line["stalls"][1]["move_id"]),
        (&json!("hv1"), &json!(9))
    );
}

#[test]
fn a_hypervisor_that_is_well_is_a_note_and_one_that_is_not_refuses() {
    let finding = |code: &str, refuses, remedy: &str| Finding {
        code: code.into(),
        refuses,
        evidence: "hv1: /vms is normal".into(),
        remedy: remedy.into(),
    };
    let findings =
        vec![finding("hypervisor", false, ""), finding("hypervisor-not-ready", true, "look there")];
    let preflight = event(Kind::Preflight(Preflight { findings, ..Preflight::default() }));
    let server = scripted(vec![preflight, outcome(Wire::Refused)]);
    let output = server.run(&["switchover", "vms"]);
    assert_eq!(output.status.code(), Some(1));
    let shown = out(&output);
    assert!(shown.contains("  note  hypervisor\n    evidence  hv1: /vms is normal\n"), "{shown}");
    assert!(shown.contains("  refusal  hypervisor-not-ready\n"), "{shown}");
}
