//! The operator's recoveries: nothing without the exact sentence (S3), and how each ends.

use std::process::{Command, Output, Stdio};

use serde_json::json;
use tonic::Status;

use crate::fake::{Fake, Server, err, json_lines, out};

const SENTENCE: &str = "open vms on nas2 and lose what only nas1 has";

fn recoverable() -> Server {
    Server::start(Fake { sentence: SENTENCE.into(), ..Fake::default() })
}

#[test]
fn s3_nothing_is_done_without_the_exact_sentence() {
    let server = recoverable();
    for wrong in
        ["", "yes", "open vms on nas1 and lose what only nas1 has", &format!("{SENTENCE} ")]
    {
        let output = server.run(&["recover", "vms", "--confirm", wrong]);
        assert_eq!(output.status.code(), Some(1), "{wrong:?}");
        assert!(err(&output).contains("nothing was changed"), "{}", err(&output));
    }
    let output = server.run(&["recover", "vms"]);
    assert_eq!(output.status.code(), Some(1), "no terminal, no --confirm");
    assert!(out(&output).contains("what may be lost\n  everything\n"), "{}", out(&output));
    assert!(out(&output).contains(SENTENCE) && err(&output).contains("--confirm"));
    let heard = server.heard();
    assert!(heard.iter().all(|r| r.contains("explain: true")), "{heard:?}");
}

#[test]
fn s3_the_sentence_is_passed_on_and_the_end_is_told() {
    let server = recoverable();
    let output = server.run(&["recover", "vms", "--confirm", SENTENCE]);
    assert_eq!(output.status.code(), Some(0));
    assert!(out(&output).ends_with("done: nasd opens vms here\n"), "{}", out(&output));
    let heard = server.heard();
    assert!(heard[1].contains("explain: false") && heard[1].contains(SENTENCE), "{heard:?}");
    let lines = json_lines(&server.run(&["recover", "vms", "--confirm", SENTENCE, "--json"]));
    assert_eq!(lines[0]["facts"], json!({"service": "vms"}));
    assert_eq!(lines[0]["confirmation"], json!(SENTENCE));
    assert_eq!((&lines[1]["result"], &lines[1]["exit_code"]), (&json!("done"), &json!(0)));
}

#[test]
fn a_recovery_that_broke_off_is_not_a_refusal() {
    for (status, code, name) in [
        (Status::aborted("the disk was not taken"), 4, "failed"),
        (Status::unknown("no answer"), 5, "unknown"),
        (Status::invalid_argument("?"), 1, "refused"),
    ] {
        let (sentence, refuse) = (SENTENCE.to_owned(), Some(status));
        let server = Server::start(Fake { sentence, refuse, ..Fake::default() });
        let output = server.run(&["recover", "vms", "--confirm", SENTENCE, "--json"]);
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(json_lines(&output)[1]["result"], json!(name));
    }
}

#[test]
fn what_is_not_possible_now_is_explained() {
    let server = Server::start(Fake::default());
    let output = server.run(&["emergency-start", "vms", "--confirm", ""]);
    assert_eq!(output.status.code(), Some(1), "an empty sentence confirms nothing");
    assert!(out(&output).contains("what may be lost"));
    assert_eq!(server.heard().len(), 1);
    assert!(server.heard()[0].contains("EmergencyStart"), "{:?}", server.heard());
}

#[test]
fn s3_split_brain_only_explains_unless_asked() {
    let server = recoverable();
    let output = server.run(&["split-brain", "vms", "--confirm", SENTENCE]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("--discard-mine"), "{}", err(&output));
    let output = server.run(&["split-brain", "vms", "--discard-mine", "--confirm", SENTENCE]);
    assert_eq!(output.status.code(), Some(0));
    let heard = server.heard();
    assert_eq!(heard.len(), 3);
    assert!(heard[2].contains("DiscardMine") && heard[2].contains("explain: false"), "{heard:?}");
}

/// Runs nasctl on a terminal of its own (`script` is part of every Debian) and types a line.
fn on_a_terminal(server: &Server, args: &str, typed: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_nasctl");
    let line = format!("{program} --socket {} {args}", server.socket().display());
    let mut command = Command::new("script");
    command.args(["-q", "-e", "-c", &line, "/dev/null"]).env("TERM", "dumb");
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut keyboard = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut keyboard, format!("{typed}\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(keyboard);
    output
}

#[test]
fn s3_on_a_terminal_the_sentence_is_asked_for() {
    let server = recoverable();
    let output = on_a_terminal(&server, "recover vms", "yes");
    assert_eq!(output.status.code(), Some(1), "{}", out(&output));
    assert!(out(&output).contains("nothing was changed"), "{}", out(&output));
    assert_eq!(server.heard().len(), 1, "{:?}", server.heard());
    let output = on_a_terminal(&server, "recover vms", SENTENCE);
    assert_eq!(output.status.code(), Some(0), "{}", out(&output));
    assert!(out(&output).contains("done: nasd opens vms here"), "{}", out(&output));
    assert_eq!(server.heard().len(), 3, "{:?}", server.heard());
}
