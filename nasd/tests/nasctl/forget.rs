//! Forgetting a host: nothing without the exact sentence, and what became of it.

use serde_json::json;
use tonic::Status;

use crate::fake::{Fake, Server, err, json_lines, out};

const SENTENCE: &str = "hv3 is dead";

fn server(forgets: bool, refuse: Option<Status>) -> Server {
    Server::start(Fake { sentence: SENTENCE.into(), forgets, refuse, ..Fake::default() })
}

#[test]
fn a_host_is_explained_and_then_forgotten() {
    let server = server(true, None);
    let output = server.run(&["forget-host", "hv3", "--confirm", SENTENCE]);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(out(&output).starts_with("what is true now\n  vms on nas1: silent\n"));
    assert!(out(&output).ends_with("done: vms: 1 client(s) expired\n"), "{}", out(&output));
    let heard = server.heard();
    assert!(heard[0].contains("explain: true") && heard[0].contains(r#"host: "hv3""#));
    assert!(heard[1].contains("explain: false") && heard[1].contains(SENTENCE), "{heard:?}");
    let lines = json_lines(&server.run(&["forget-host", "hv3", "--confirm", SENTENCE, "--json"]));
    assert_eq!(lines[0]["confirmation"], json!(SENTENCE));
    assert_eq!(lines[0]["facts"], json!({"host": "hv3"}));
    assert_eq!((&lines[1]["result"], &lines[1]["exit_code"]), (&json!("done"), &json!(0)));
}

#[test]
fn s12_nothing_is_forgotten_without_the_exact_sentence() {
    let server = server(true, None);
    for args in [&["forget-host", "hv3"][..], &["forget-host", "hv3", "--confirm", "hv2 is dead"]] {
        let output = server.run(args);
        assert_eq!(output.status.code(), Some(1));
        assert!(err(&output).contains("nothing was changed"), "{}", err(&output));
    }
    let heard = server.heard();
    assert!(heard.iter().all(|r| r.contains("explain: true")), "{heard:?}");
    assert_eq!(server.run(&["forget-host"]).status.code(), Some(2));
}

#[test]
fn a_host_that_lives_after_all_is_a_refusal_and_half_a_forgetting_is_none() {
    for (refuse, code, name) in [
        (None, 1, "refused"),
        (Some(Status::aborted("vms: still recorded")), 4, "failed"),
        (Some(Status::unknown("nas2 did not answer")), 5, "unknown"),
    ] {
        let output =
            server(false, refuse).run(&["forget-host", "hv3", "--confirm", SENTENCE, "--json"]);
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(json_lines(&output)[1]["result"], json!(name));
    }
}
