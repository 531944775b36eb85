//! `nasd-fence-peer`: the helper that DRBD runs when it has lost its peer.
//!
//! Owns the translation of nasd's answer into an exit code of DRBD's, and nothing else: it decides
//! nothing, never touches the volume (its I/O is frozen while we run, S9) and needs no runtime.
//! Keeps S12: only the exact words `outdated` and `fenced` permit; silence, a torn line, an unknown
//! word, an internal error all end in exit 1, which leaves the I/O frozen. Keeps S8 and S10: the
//! main thread only waits for a deadline, so nothing that blocks below can keep the process alive.
//!
//! Exit codes, read by `conn_try_outdate_peer()` in the kernel's `drbd_nl.c`:
//!
//! | code | meaning | when |
//! |---|---|---|
//! | 4 | peer is outdated | nasd answered `outdated`: the compare-and-set is confirmed |
//! | 7 | peer was powered off | nasd answered `fenced` |
//! | 1 | helper failed, stay frozen | everything else |
//!
//! `wait` makes it ask again: nasd has the question, but no confirmed compare-and-set yet.
//!
//! 5 ("unreachable, assumed dead") is never returned: on an `UpToDate` survivor the kernel takes it
//! as permission.
//!
//! Called by `drbdadm` from `handlers { fence-peer … }` (`DRBD_RESOURCE` in the environment, on 8.4 with
//! `DRBD_MINOR` beside it), or by the kernel itself (module parameter `usermode_helper`; arguments
//! `fence-peer RESOURCE`, for a device `minor-N` in its place; nasd knows which resource that is). The
//! kernel then calls it for its other events as well. Those end in 0, as with `drbdadm` when no
//! handler is configured: the kernel drops the connection if `before-resync-target` fails
//! (`drbd_worker.c`), so they must not end in an error.
//!
//! Environment, for tests: `NASD_FENCE_SOCKET` (path), `NASD_FENCE_TIMEOUT_MS` (total limit),
//! `NASD_FENCE_KMSG` (file to log to in place of `/dev/kmsg`).

use std::env;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// nasd's socket for this helper.
const SOCKET: &str = "/run/nasd/fence.sock";
/// Total limit. Below the 600 s after which `drbdadm` kills its handler, so that the exit code is ours.
const TIMEOUT: Duration = Duration::from_secs(300);
/// How often an absent nasd is looked for. It restarts within 200 ms (`RestartSec=` of its unit).
const POLL: Duration = Duration::from_millis(100);
/// How long one answer is waited for before the question is asked anew, on a new connection: longer than
/// nasd keeps a question (60 s), so that this ends only talks with a nasd that is stopped.
const PATIENCE: Duration = Duration::from_secs(75);
/// How often the log says that we still wait.
const REMIND: Duration = Duration::from_secs(10);
/// How long the end waits for the last log line: stderr may be a pipe that nobody reads.
const FLUSH: Duration = Duration::from_millis(100);
/// Longest answer looked at; the words that count have eight letters at most.
const ANSWER_MAX: usize = 64;
/// Longest resource name passed on. DRBD itself allows 127 bytes (`drbd_cfg_context`: `nla_len` 128).
const NAME_MAX: usize = 128;

const EXIT_NOTHING_TO_DO: i32 = 0;
const EXIT_STAY_FROZEN: i32 = 1;
const EXIT_PEER_OUTDATED: i32 = 4;
const EXIT_PEER_FENCED: i32 = 7;

/// What we were called for.
#[derive(Debug, PartialEq, Eq)]
enum Call {
    /// The peer of this resource is lost.
    FencePeer(String),
    /// Another event of the kernel's; not ours.
    Other(String),
    /// The call makes no sense; why.
    Wrong(&'static str),
}

/// What one conversation with nasd came to.
#[derive(Debug, PartialEq, Eq)]
enum Talk {
    Outdated,
    Fenced,
    /// A whole line that permits nothing.
    No(String),
    /// `wait`, or no whole line (nasd is absent or went away). Ask again.
    Again(String),
}

fn main() {
    // A panic anywhere must not become an exit code that DRBD knows; Rust's 101 is not one.
    let started = Instant::now();
    let (log, lines) = mpsc::channel();
    let (flushed_tx, flushed) = mpsc::channel();
    let logger = thread::Builder::new().name("log".into()).spawn(move || {
        write_log(&lines);
        // Nobody listens any more when the wait for us was given up.
        let _ = flushed_tx.send(());
    });
    let args: Vec<String> = env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let code = match classify(&args, resource_from_environment().as_deref()) {
        Call::FencePeer(resource) => ask_within(timeout(), started, resource, log.clone()),
        Call::Other(event) => {
            say(&log, format!("{event}: nothing to do"));
            EXIT_NOTHING_TO_DO
        }
        Call::Wrong(why) => {
            say(&log, format!("wrong call ({why}): exit 1, I/O stays frozen"));
            EXIT_STAY_FROZEN
        }
    };
    drop(log);
    if logger.is_ok() {
        let _ = flushed.recv_timeout(FLUSH);
    }
    process::exit(code);
}

/// Asks in a thread of its own; the caller's thread only watches the deadline (a `connect` to a
/// stopped nasd with a full backlog blocks and has no timeout of its own).
fn ask_within(limit: Duration, started: Instant, resource: String, log: Sender<String>) -> i32 {
    let (tx, answer) = mpsc::channel();
    let (name, worker_log) = (resource.clone(), log.clone());
    let deadline = started + limit;
    let worker = thread::Builder::new().name("ask".into()).spawn(move || {
        // The receiver is gone only when the deadline has passed: then nothing may be said any more.
        let _ = tx.send(ask_until_answered(&name, deadline, &worker_log));
    });
    if let Err(error) = worker {
        say(&log, format!("{resource}: no thread ({error}): exit 1, I/O stays frozen"));
        return EXIT_STAY_FROZEN;
    }
    let answer = answer.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    let (code, text) = match answer {
        Ok(Talk::Outdated) => (EXIT_PEER_OUTDATED, "peer is outdated: exit 4".to_owned()),
        Ok(Talk::Fenced) => (EXIT_PEER_FENCED, "peer is powered off: exit 7".to_owned()),
        Ok(Talk::No(line)) => {
            (EXIT_STAY_FROZEN, format!("nasd said {line:?}: exit 1, I/O stays frozen"))
        }
        Ok(Talk::Again(_)) | Err(_) => {
            let s = limit.as_secs_f64();
            (
                EXIT_STAY_FROZEN,
                format!(
                    "no answer within {s} s: exit 1, I/O stays frozen; look at `systemctl status nasd`"
                ),
            )
        }
    };
    say(&log, format!("{resource}: {text}"));
    code
}

/// Asks again and again until nasd has said a whole line, or the deadline has passed.
fn ask_until_answered(resource: &str, deadline: Instant, log: &Sender<String>) -> Talk {
    let socket = socket_path();
    let mut remind_at = Instant::now();
    loop {
        let talk = ask_once(&socket, resource);
        let Talk::Again(why) = talk else { return talk };
        let now = Instant::now();
        if now >= deadline {
            return Talk::Again(why);
        }
        if now >= remind_at {
            say(log, format!("{resource}: waiting for nasd at {}: {why}", socket.display()));
            remind_at = now + REMIND;
        }
        thread::sleep(POLL);
    }
}

/// One conversation. Nothing that ends it counts as an answer: nasd may be stopped, restart in the
/// middle, or not be there yet. The main thread watches the total.
fn ask_once(socket: &PathBuf, resource: &str) -> Talk {
    match UnixStream::connect(socket).and_then(|stream| converse(stream, resource)) {
        Ok(line) => judge(&line),
        Err(error) => Talk::Again(error.to_string()),
    }
}

fn converse(mut stream: UnixStream, resource: &str) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("fence-peer {resource}\n").as_bytes())?;
    let mut line = Vec::with_capacity(ANSWER_MAX);
    let mut byte = [0_u8; 1];
    while line.len() < ANSWER_MAX {
        if stream.read(&mut byte)? == 0 {
            break;
        }
        line.push(byte[0]);
        if byte[0] == b'\n' {
            break;
        }
    }
    Ok(line)
}

/// Only a whole line counts: a torn `outdated` is no answer (S12).
fn judge(line: &[u8]) -> Talk {
    match line {
        b"outdated\n" => Talk::Outdated,
        b"fenced\n" => Talk::Fenced,
        b"wait\n" => Talk::Again("nasd has no confirmed answer yet".to_owned()),
        whole if whole.ends_with(b"\n") || whole.len() >= ANSWER_MAX => {
            Talk::No(String::from_utf8_lossy(whole).trim_end().to_owned())
        }
        [] => Talk::Again("nasd closed the connection without an answer".to_owned()),
        _ => Talk::Again("nasd closed the connection in the middle of its answer".to_owned()),
    }
}

/// Which call this is: `args` with the program's name first, `env_resource` from `drbdadm`.
fn classify(args: &[String], env_resource: Option<&str>) -> Call {
    let env_resource = env_resource.filter(|name| !name.is_empty());
    let (event, argument) = match args.get(1..).unwrap_or_default() {
        [] => ("fence-peer", None),
        // In a handler's line: `nasd-fence-peer RESOURCE`.
        [only] if only.as_str() != "fence-peer" && !is_other_event(only) => {
            ("fence-peer", Some(only.as_str()))
        }
        [event] => (event.as_str(), None),
        [event, resource] => (event.as_str(), Some(resource.as_str())),
        _ => return Call::Wrong("too many arguments"),
    };
    if is_other_event(event) {
        return Call::Other(event.to_owned());
    }
    if event != "fence-peer" {
        return Call::Wrong("unknown event");
    }
    resource_of(argument, env_resource)
}

/// `DRBD_RESOURCE`, else the first of `DRBD_MINOR` (a list where there are several volumes).
fn resource_from_environment() -> Option<String> {
    let set = |name| env::var(name).ok().filter(|value| !value.trim().is_empty());
    set("DRBD_RESOURCE").or_else(|| minor_name(&set("DRBD_MINOR")?))
}

fn minor_name(minors: &str) -> Option<String> {
    let first: u32 = minors.split_whitespace().next()?.parse().ok()?;
    Some(format!("minor-{first}"))
}

/// The resource of a `fence-peer` call. `minor-N` is passed on as it is, unless a name is known too.
fn resource_of(argument: Option<&str>, env: Option<&str>) -> Call {
    let name = match (argument, env) {
        (Some(a), Some(e)) if a != e && !a.starts_with("minor-") && !e.starts_with("minor-") => {
            return Call::Wrong("the argument and DRBD_RESOURCE name different resources");
        }
        (Some(name), Some(e)) if e.starts_with("minor-") => name,
        (_, Some(name)) | (Some(name), None) => name,
        (None, None) => {
            return Call::Wrong("no resource, neither as argument nor in DRBD_RESOURCE");
        }
    };
    if name.len() > NAME_MAX || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Call::Wrong("not a resource name");
    }
    Call::FencePeer(name.to_owned())
}

/// The kernel's other helper calls (8.4: `drbd_khelper()`, `conn_khelper()`; 9 adds quorum-lost and
/// disconnected).
fn is_other_event(word: &str) -> bool {
    matches!(
        word,
        "unfence-peer"
            | "before-resync-target"
            | "after-resync-target"
            | "before-resync-source"
            | "out-of-sync"
            | "local-io-error"
            | "pri-lost"
            | "pri-lost-after-sb"
            | "pri-on-incon-degr"
            | "initial-split-brain"
            | "split-brain"
            | "quorum-lost"
            | "disconnected"
    )
}

fn socket_path() -> PathBuf {
    env::var_os("NASD_FENCE_SOCKET").map_or_else(|| PathBuf::from(SOCKET), PathBuf::from)
}

/// The total limit; an unreadable or longer one from the environment is ignored.
fn timeout() -> Duration {
    let given = env::var("NASD_FENCE_TIMEOUT_MS").ok().and_then(|ms| ms.parse().ok());
    given.map(Duration::from_millis).filter(|t| *t <= TIMEOUT).unwrap_or(TIMEOUT)
}

fn say(log: &Sender<String>, line: String) {
    // Logging is best effort: without a logger the answer still counts.
    let _ = log.send(line);
}

/// Writes every line to stderr and to the kernel's log, where it stands beside DRBD's own messages
/// and survives a frozen file system. Best effort.
fn write_log(lines: &Receiver<String>) {
    let kmsg = env::var_os("NASD_FENCE_KMSG").unwrap_or_else(|| "/dev/kmsg".into());
    let mut kmsg = OpenOptions::new().append(true).open(kmsg).ok();
    for line in lines {
        if let Some(kmsg) = &mut kmsg {
            // <29>: facility daemon, level notice, the smallest that common console set-ups keep.
            let _ = kmsg.write_all(format!("<29>nasd-fence-peer: {line}\n").as_bytes());
        }
        let _ = writeln!(io::stderr(), "nasd-fence-peer: {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(args: &[&str], env: Option<&str>) -> Call {
        let args: Vec<String> = std::iter::once("nasd-fence-peer")
            .chain(args.iter().copied())
            .map(Into::into)
            .collect();
        classify(&args, env)
    }

    fn fence(name: &str) -> Call {
        Call::FencePeer(name.to_owned())
    }

    #[test]
    fn every_way_of_being_called_names_the_resource() {
        assert_eq!(call(&["fence-peer", "r0"], None), fence("r0"), "kernel");
        assert_eq!(call(&["fence-peer", "minor-3"], None), fence("minor-3"), "old kernels");
        assert_eq!(call(&[], Some("r0")), fence("r0"), "drbdadm's handler");
        assert_eq!(call(&["r0"], Some("r0")), fence("r0"), "handler with an argument");
        assert_eq!(
            call(&["minor-3"], Some("r0")),
            fence("r0"),
            "the name is better than the minor"
        );
        assert_eq!(call(&["fence-peer"], Some("r0")), fence("r0"));
        assert_eq!(call(&[], Some("minor-3")), fence("minor-3"), "only DRBD_MINOR is set");
        assert_eq!(call(&["r0"], Some("minor-3")), fence("r0"), "the name is better here too");
    }

    #[test]
    fn a_list_of_minors_names_its_first() {
        assert_eq!(minor_name("3"), Some("minor-3".to_owned()));
        assert_eq!(minor_name("3 4"), Some("minor-3".to_owned()));
        for bad in ["", "x", "-1", "3,4"] {
            assert_eq!(minor_name(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn s12_a_doubtful_call_is_wrong() {
        let wrong: [(&[&str], Option<&str>); 8] = [
            (&[], None),
            (&[], Some("")),
            (&["fence-peer"], None),
            (&["fence-peer", "r0"], Some("r1")),
            (&["fence-peer", "r0", "x"], None),
            (&["fence-peer", "r0\nfence-peer r1"], None),
            (&["fence-peer", "r 0"], None),
            (&["sing", "r0"], None),
        ];
        for (args, env) in wrong {
            assert!(matches!(call(args, env), Call::Wrong(_)), "{args:?} {env:?}");
        }
        assert!(matches!(call(&["x".repeat(200).as_str()], None), Call::Wrong(_)));
    }

    #[test]
    fn other_events_of_the_kernel_are_not_ours() {
        let other = call(&["before-resync-target", "minor-0"], None);
        assert_eq!(other, Call::Other("before-resync-target".to_owned()));
        assert!(matches!(call(&["unfence-peer", "r0"], Some("r0")), Call::Other(_)));
    }

    #[test]
    fn wait_is_no_answer_yet() {
        assert!(matches!(judge(b"wait\n"), Talk::Again(_)));
        assert!(matches!(judge(b"waiting\n"), Talk::No(_)));
    }

    #[test]
    fn s12_only_two_whole_lines_permit() {
        assert_eq!(judge(b"outdated\n"), Talk::Outdated);
        assert_eq!(judge(b"fenced\n"), Talk::Fenced);
        for no in [
            &b"5\n"[..],
            b"OUTDATED\n",
            b"outdated \n",
            b" fenced\n",
            b"\n",
            b"outdated\0\n",
            b"\xff\n",
        ] {
            assert!(matches!(judge(no), Talk::No(_)), "{no:?}");
        }
        assert!(matches!(judge(&[b'x'; ANSWER_MAX]), Talk::No(_)), "endless line");
        for torn in [&b""[..], b"outdated", b"fenc"] {
            assert!(matches!(judge(torn), Talk::Again(_)), "{torn:?}");
        }
    }
}
