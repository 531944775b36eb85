//! `nasd-fence-peer` against a fake nasd: every answer, no daemon, garbage, a hang (S8, S10, S12).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The helper, started as the kernel does it, with everything it touches below `dir`.
fn helper(dir: &Path, limit_ms: u32) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nasd-fence-peer"));
    command
        .env_clear()
        .env("NASD_FENCE_SOCKET", dir.join("fence.sock"))
        .env("NASD_FENCE_TIMEOUT_MS", limit_ms.to_string())
        .env("NASD_FENCE_KMSG", dir.join("kmsg"))
        .stderr(Stdio::piped())
        .args(["fence-peer", "r0"]);
    std::fs::write(dir.join("kmsg"), "").unwrap();
    command
}

fn dir() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("fence.sock");
    (dir, socket)
}

fn read_request(stream: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

/// Answers one connection after another with the next of `answers`, then closes it.
fn serve(listener: UnixListener, answers: Vec<&'static [u8]>) -> thread::JoinHandle<Vec<String>> {
    thread::spawn(move || {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            requests.push(read_request(&stream));
            stream.write_all(answer).unwrap();
        }
        requests
    })
}

fn code_after(answers: Vec<&'static [u8]>) -> (Option<i32>, Vec<String>) {
    let (dir, socket) = dir();
    let count = answers.len();
    let server = serve(UnixListener::bind(socket).unwrap(), answers);
    let output = helper(dir.path(), 20_000).output().unwrap();
    let requests = server.join().unwrap();
    assert_eq!(requests.len(), count);
    (output.status.code(), requests)
}

#[test]
fn outdated_is_4_and_fenced_is_7() {
    let asked = vec!["fence-peer r0\n".to_owned()];
    assert_eq!(code_after(vec![b"outdated\n"]), (Some(4), asked.clone()));
    assert_eq!(code_after(vec![b"fenced\n"]), (Some(7), asked));
}

#[test]
fn s12_any_other_answer_is_1_never_5() {
    for answer in
        [&b"5\n"[..], b"unreachable\n", b"no\n", b"outdated!\n", b"\xff\xfe\n", &[b'x'; 4096]]
    {
        let (dir, socket) = dir();
        let listener = UnixListener::bind(socket).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // The helper may hang up before it has read all of a long answer.
            let _ = stream.write_all(answer);
            thread::sleep(Duration::from_secs(20));
        });
        let output = helper(dir.path(), 20_000).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{answer:?}");
    }
}

#[test]
fn s9_a_nasd_that_restarts_in_the_middle_is_asked_again() {
    let (code, requests) = code_after(vec![b"", b"outda", b"wait\n", b"outdated\n"]);
    assert_eq!(code, Some(4));
    assert_eq!(requests, vec!["fence-peer r0\n"; 4]);
}

#[test]
fn s9_an_absent_nasd_is_waited_for() {
    let (dir, socket) = dir();
    let mut child = helper(dir.path(), 20_000).spawn().unwrap();
    thread::sleep(Duration::from_millis(400));
    assert!(child.try_wait().unwrap().is_none(), "it must wait for nasd");
    let server = serve(UnixListener::bind(socket).unwrap(), vec![b"outdated\n"]);
    assert_eq!(child.wait().unwrap().code(), Some(4));
    server.join().unwrap();
}

#[test]
fn s8_no_daemon_at_all_is_1_at_the_limit() {
    let (dir, _) = dir();
    let started = Instant::now();
    let output = helper(dir.path(), 500).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!((500..5000).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("waiting for nasd at"), "{told}");
    assert!(told.contains("r0: no answer within 0.5 s: exit 1"), "{told}");
    let kmsg = std::fs::read_to_string(dir.path().join("kmsg")).unwrap();
    assert!(kmsg.contains("<29>nasd-fence-peer: r0: no answer within 0.5 s"), "{kmsg}");
}

#[test]
fn s8_a_nasd_that_never_answers_is_1_at_the_limit() {
    let (dir, socket) = dir();
    let listener = UnixListener::bind(socket).unwrap();
    let held = thread::spawn(move || listener.accept().unwrap());
    let output = helper(dir.path(), 500).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    drop(held.join().unwrap());
}

#[test]
fn s8_a_stopped_nasd_with_a_full_backlog_is_1_at_the_limit() {
    let (dir, socket) = dir();
    let _listener = UnixListener::bind(&socket).unwrap();
    // Nobody accepts; fill the backlog until a connect blocks, in threads that are left behind.
    for _ in 0..5000 {
        let socket = socket.clone();
        let (tx, rx) = std::sync::mpsc::channel();
        thread::spawn(move || tx.send(UnixStream::connect(socket).unwrap()));
        match rx.recv_timeout(Duration::from_secs(1)) {
            Ok(stream) => std::mem::forget(stream),
            Err(_) => break,
        }
    }
    let output = helper(dir.path(), 500).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn s8_a_stderr_that_nobody_reads_does_not_hold_the_answer_back() {
    let (dir, socket) = dir();
    let server = serve(UnixListener::bind(socket).unwrap(), vec![b"outdated\n"]);
    let (mut full, reader) = UnixStream::pair().unwrap();
    full.set_nonblocking(true).unwrap();
    while full.write(&[0; 4096]).is_ok() {}
    full.set_nonblocking(false).unwrap();
    let mut command = helper(dir.path(), 20_000);
    let mut child = command.stderr(Stdio::from(std::os::fd::OwnedFd::from(full))).spawn().unwrap();
    assert_eq!(wait_at_most(&mut child, Duration::from_secs(10)), Some(4));
    server.join().unwrap();
    drop(reader);
}

fn wait_at_most(child: &mut Child, limit: Duration) -> Option<i32> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("still running after {limit:?}");
}

#[test]
fn called_by_drbdadm_the_resource_comes_from_the_environment() {
    let (dir, socket) = dir();
    let server = serve(UnixListener::bind(&socket).unwrap(), vec![b"fenced\n"]);
    let status = Command::new(env!("CARGO_BIN_EXE_nasd-fence-peer"))
        .env_clear()
        .env("NASD_FENCE_SOCKET", &socket)
        .env("NASD_FENCE_KMSG", dir.path().join("kmsg"))
        .env("DRBD_RESOURCE", "vms")
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(7));
    assert_eq!(server.join().unwrap(), ["fence-peer vms\n"]);
}

#[test]
fn other_events_of_the_kernel_end_in_0_and_a_wrong_call_in_1() {
    let (dir, _) = dir();
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_nasd-fence-peer"))
            .env_clear()
            .env("NASD_FENCE_KMSG", dir.path().join("kmsg"))
            .args(args)
            .status()
            .unwrap()
            .code()
    };
    assert_eq!(run(&["before-resync-target", "minor-0"]), Some(0));
    assert_eq!(run(&[]), Some(1));
    assert_eq!(run(&["fence-peer", "r0", "r1"]), Some(1));
}
