//! `nasctl` against a fake nasd: texts, JSON lines, exit codes, broken streams (S8, S12).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nasd_proto::control_server::{Control, ControlServer};
use nasd_proto::move_event::Kind;
use nasd_proto::outcome::Result as Wire;
use nasd_proto::{
    AbortMoveReply, AbortMoveRequest, ClientStall, Finding, HistoryReply, HistoryRequest,
    HoldReply, HoldRequest, MoveEvent, NodeUnreachable, Outcome, Preflight, RecoverReply,
    RecoverRequest, StatusReply, StatusRequest, Step, SwitchoverRequest, TakeoverRequest,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

type Events = Pin<Box<dyn Stream<Item = Result<MoveEvent, Status>> + Send>>;

/// A nasd that plays a script.
#[derive(Clone, Default)]
struct Fake {
    nodes: Vec<String>,
    unreachable: Vec<NodeUnreachable>,
    /// Events of a switchover; `Err` breaks the stream.
    script: Vec<Result<MoveEvent, Status>>,
    /// Refuse the call itself.
    refuse: Option<Status>,
    /// Never end the stream.
    hang: bool,
    aborted: bool,
    asked: Arc<Mutex<Vec<SwitchoverRequest>>>,
    /// Every other request, as its debug text.
    heard: Arc<Mutex<Vec<String>>>,
    history: Vec<String>,
    /// The sentence that confirms a recovery; empty: not possible now.
    sentence: String,
}

impl Fake {
    fn hear(&self, request: &impl std::fmt::Debug) {
        self.heard.lock().unwrap().push(format!("{request:?}"));
    }

    fn play(&self) -> Result<Response<Events>, Status> {
        if let Some(status) = &self.refuse {
            return Err(status.clone());
        }
        let script = tokio_stream::iter(self.script.clone());
        if self.hang {
            return Ok(Response::new(Box::pin(script.chain(tokio_stream::pending()))));
        }
        Ok(Response::new(Box::pin(script)))
    }
}

#[tonic::async_trait]
impl Control for Fake {
    type SwitchoverStream = Events;

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        assert!(!request.into_inner().local_only, "the peer must be asked as well");
        let (node_json, unreachable) = (self.nodes.clone(), self.unreachable.clone());
        Ok(Response::new(StatusReply { node_json, unreachable }))
    }

    async fn switchover(
        &self,
        request: Request<SwitchoverRequest>,
    ) -> Result<Response<Events>, Status> {
        self.asked.lock().unwrap().push(request.into_inner());
        self.play()
    }

    type TakeoverStream = Events;

    async fn takeover(
        &self,
        request: Request<TakeoverRequest>,
    ) -> Result<Response<Events>, Status> {
        self.hear(&request.into_inner());
        self.play()
    }

    async fn hold(&self, request: Request<HoldRequest>) -> Result<Response<HoldReply>, Status> {
        let request = request.into_inner();
        self.hear(&request);
        if let Some(status) = &self.refuse {
            return Err(status.clone());
        }
        let message = "vms is held\nhome: no record".to_owned();
        Ok(Response::new(HoldReply { done: request.service == "vms", message }))
    }

    async fn history(
        &self,
        request: Request<HistoryRequest>,
    ) -> Result<Response<HistoryReply>, Status> {
        self.hear(&request.into_inner());
        let (entry_json, unreachable) = (self.history.clone(), self.unreachable.clone());
        Ok(Response::new(HistoryReply { entry_json, unreachable }))
    }

    async fn recover(
        &self,
        request: Request<RecoverRequest>,
    ) -> Result<Response<RecoverReply>, Status> {
        let request = request.into_inner();
        self.hear(&request);
        if request.explain {
            return Ok(Response::new(RecoverReply {
                done: false,
                message: "what may be lost\n  everything\n".into(),
                confirmation: self.sentence.clone(),
                details_json: r#"{"service":"vms"}"#.into(),
            }));
        }
        if let Some(status) = &self.refuse {
            return Err(status.clone());
        }
        let message = "nasd opens vms here".into();
        Ok(Response::new(RecoverReply { done: true, message, ..RecoverReply::default() }))
    }

    async fn abort_move(
        &self,
        _: Request<AbortMoveRequest>,
    ) -> Result<Response<AbortMoveReply>, Status> {
        let message = if self.aborted { "nas1 serves on" } else { "nothing is under way" };
        Ok(Response::new(AbortMoveReply { aborted: self.aborted, message: message.into() }))
    }
}

/// Runs the fake on a socket in a directory of its own, for as long as the value lives.
struct Server {
    dir: TempDir,
    asked: Arc<Mutex<Vec<SwitchoverRequest>>>,
    heard: Arc<Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start(fake: Fake) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (asked, heard) = (fake.asked.clone(), fake.heard.clone());
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::bind(dir.path().join("s")).unwrap()
        };
        let serve = tonic::transport::Server::builder()
            .add_service(ControlServer::new(fake))
            .serve_with_incoming(UnixListenerStream::new(listener));
        runtime.spawn(serve);
        Self { dir, asked, heard, _runtime: runtime }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    fn run(&self, args: &[&str]) -> Output {
        nasctl(&self.socket(), args).output().unwrap()
    }
}

fn nasctl(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nasctl"));
    command.arg("--socket").arg(socket).args(args);
    command
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json_lines(output: &Output) -> Vec<Value> {
    out(output).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

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
    assert_eq!(*asked, [SwitchoverRequest { service, to, dry_run: false, timeout_ms: 2500 }]);
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
