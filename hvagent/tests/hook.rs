//! libvirt's hook as a process, against an agent that says yes, no, wait, nothing or rubbish.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const XML: &str = "<domain type='kvm'><name>vm1</name><devices><disk type='file'>\
    <source file='/vms/vm1.raw'/><target dev='vda'/></disk></devices></domain>";

/// An agent that gives these answers, one per connection, and the last one for ever. An empty answer is
/// none: the connection stays open.
fn agent(directory: &Path, answers: &'static [&'static str]) -> std::sync::mpsc::Receiver<String> {
    let listener = UnixListener::bind(directory.join("socket")).unwrap();
    let (sender, questions) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for (at, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let _ = sender.send(line);
            let answer = answers[at.min(answers.len() - 1)];
            if !answer.is_empty() {
                let _ = writeln!(stream, "{answer}");
            } else {
                kept.push(stream);
            }
        }
    });
    questions
}

fn hook_with(directory: &Path, operation: &str, xml: &str, limit_ms: &str) -> (Output, Duration) {
    let before = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_hvagent-hook"))
        .args(["vm1", operation, "begin", "-"])
        .env("HVAGENT_SOCKET", directory.join("socket"))
        .env("HVAGENT_HOOK_LIMIT_MS", limit_ms)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(xml.as_bytes());
    (child.wait_with_output().unwrap(), before.elapsed())
}

fn hook(directory: &Path, operation: &str) -> (Output, Duration) {
    hook_with(directory, operation, XML, "30000")
}

fn words(output: &Output) -> String {
    assert!(output.stdout.is_empty(), "libvirt would take it for XML");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const ALLOW: &str = "{\"verdict\":\"allow\"}";
const WAIT: &str = "{\"verdict\":\"wait\",\"wait_ms\":100,\"reason\":\"the storage moves\"}";
const REFUSE: &str = "{\"verdict\":\"refuse\",\"reason\":\"the storage has failed\"}";

#[test]
fn an_agent_that_allows_lets_pass_in_silence() {
    let directory = tempfile::tempdir().unwrap();
    let questions = agent(directory.path(), &[ALLOW]);
    let (output, _) = hook(directory.path(), "migrate");
    assert!(output.status.success() && words(&output).is_empty());
    let asked: serde_json::Value = serde_json::from_str(&questions.recv().unwrap()).unwrap();
    let expected = serde_json::json!({
        "ask": "hook", "domain": "vm1", "operation": "migrate", "disks": ["/vms/vm1.raw"],
    });
    assert_eq!(asked, expected);
    let question: hvagent::api::Question = serde_json::from_value(asked).unwrap();
    assert!(matches!(question, hvagent::api::Question::Hook(_)), "the agent understands it");
}

#[test]
fn an_agent_that_refuses_gives_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let _questions = agent(directory.path(), &[REFUSE]);
    let (output, _) = hook(directory.path(), "prepare");
    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output).contains("vm1 is refused: the storage has failed"));
}

#[test]
fn s11_it_waits_as_long_as_it_is_told_to() {
    let directory = tempfile::tempdir().unwrap();
    let questions = agent(directory.path(), &[WAIT, WAIT, ALLOW]);
    let (output, time) = hook(directory.path(), "migrate");
    assert!(output.status.success() && time >= Duration::from_millis(200), "{time:?}");
    assert_eq!(questions.try_iter().count(), 3);
}

#[test]
fn s11_waiting_has_an_end() {
    let directory = tempfile::tempdir().unwrap();
    let _questions = agent(directory.path(), &[WAIT]);
    let (output, time) = hook_with(directory.path(), "prepare", XML, "1000");
    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output).contains("the storage moves"), "{}", words(&output));
    assert!(time >= Duration::from_secs(1) && time < Duration::from_secs(10), "{time:?}");
}

/// Two seconds, and room for a loaded machine.
const IN_TIME: Duration = Duration::from_secs(4);

#[test]
fn s11_an_agent_that_is_gone_holds_nobody_back() {
    let directory = tempfile::tempdir().unwrap();
    let (output, time) = hook(directory.path(), "migrate");
    assert!(output.status.success() && time < IN_TIME, "{time:?}");
    assert!(words(&output).contains("goes on unchecked"), "{}", words(&output));
}

#[test]
fn s11_nor_does_one_that_is_silent() {
    let directory = tempfile::tempdir().unwrap();
    let _questions = agent(directory.path(), &[""]);
    let (output, time) = hook(directory.path(), "migrate");
    assert!(output.status.success() && time < IN_TIME, "{time:?}");
    assert!(words(&output).contains("did not answer"), "{}", words(&output));
}

#[test]
fn s11_nor_one_that_dies_after_it_said_wait() {
    let directory = tempfile::tempdir().unwrap();
    let _questions = agent(directory.path(), &[WAIT, ""]);
    let (output, time) = hook(directory.path(), "migrate");
    assert!(output.status.success() && time < Duration::from_secs(8), "{time:?}");
}

#[test]
fn rubbish_is_let_pass_with_a_word() {
    let directory = tempfile::tempdir().unwrap();
    let _questions = agent(directory.path(), &["rubbish"]);
    let (output, _) = hook(directory.path(), "migrate");
    assert!(output.status.success() && words(&output).contains("not understood"));
    let (output, _) = hook_with(directory.path(), "migrate", "no XML", "1000");
    assert!(output.status.success() && words(&output).contains("XML is not understood"));
    let huge = format!("<domain>{}</domain>", " ".repeat(5 << 20));
    let (output, _) = hook_with(directory.path(), "migrate", &huge, "1000");
    assert!(output.status.success() && words(&output).contains("XML is not understood"));
}

#[test]
fn a_running_guest_is_never_put_at_risk() {
    let directory = tempfile::tempdir().unwrap();
    let questions = agent(directory.path(), &[REFUSE]);
    for operation in ["reconnect", "started", "release", "attach", "start", "stopped"] {
        assert!(hook(directory.path(), operation).0.status.success(), "{operation}");
    }
    assert_eq!(questions.try_iter().count(), 0, "the agent is not even asked");
}
