//! `hvagent status` and `hvagent accept`: ask the running agent over its socket, and say what it says.
//!
//! Blocking, with a deadline for everything: the agent may be stopped (S10). No answer is an exit code of its
//! own, never "all is well" (S12).

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::api::serve::json;
use crate::api::{MountStatus, Question, Reply, SOCKET, Status};

/// For the whole exchange, each direction.
const LIMIT: Duration = Duration::from_secs(5);
/// Longest answer that is read.
const LONGEST: u64 = 4 << 20;

/// All mounts are at rest and nothing is wrong.
const WELL: u8 = 0;
/// Something is wrong.
const WRONG: u8 = 1;
/// No agent answers.
const NO_AGENT: u8 = 3;
/// A mount is moving, and nothing is wrong.
const MOVING: u8 = 4;

/// Exit codes, for `--help`.
pub const STATUS_HELP: &str = "\
Exit codes:
  0  every mount is at rest and nothing is wrong
  1  something is wrong: see the problems
  2  wrong arguments
  3  no agent answers
  4  storage is moving, and nothing is wrong";

/// What to show.
#[derive(Debug, Clone, Args)]
#[command(after_help = STATUS_HELP)]
pub struct StatusArgs {
    /// Print JSON, as hvagent::api::Status documents it.
    #[arg(long)]
    pub json: bool,
    /// The agent's socket.
    #[arg(long, default_value = SOCKET)]
    pub socket: PathBuf,
}

/// What to accept.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Exit codes: 0 accepted, 1 nothing to accept there, 3 no agent answers.")]
pub struct AcceptArgs {
    /// The mount point.
    pub mount: PathBuf,
    /// The agent's socket.
    #[arg(long, default_value = SOCKET)]
    pub socket: PathBuf,
}

/// Shows the status.
#[must_use]
pub fn run(args: &StatusArgs) -> ExitCode {
    let (line, status) = match asked(&args.socket, &Question::Status) {
        Ok(line) => match serde_json::from_str::<Status>(&line) {
            Ok(status) => (line, status),
            Err(error) => {
                return no_agent(&args.socket, &format!("it answers in other words: {error}"));
            }
        },
        Err(error) => return no_agent(&args.socket, &error.to_string()),
    };
    let shown = if args.json { line } else { text(&status) };
    let _ = writeln!(std::io::stdout(), "{}", shown.trim_end());
    ExitCode::from(code(&status))
}

/// Accepts a mount's problems.
#[must_use]
pub fn accept(args: &AcceptArgs) -> ExitCode {
    let question = Question::Accept { mount: args.mount.clone() };
    match asked(&args.socket, &question).map(|line| serde_json::from_str::<Reply>(&line)) {
        Ok(Ok(Reply::Done)) => ExitCode::SUCCESS,
        Ok(Ok(Reply::Error(why))) => {
            let _ = writeln!(std::io::stderr(), "hvagent: {}: {why}", args.mount.display());
            ExitCode::from(WRONG)
        }
        Ok(Err(error)) => no_agent(&args.socket, &error.to_string()),
        Err(error) => no_agent(&args.socket, &error.to_string()),
    }
}

fn no_agent(socket: &Path, why: &str) -> ExitCode {
    let _ = writeln!(
        std::io::stderr(),
        "hvagent: no agent answers on {} ({why}): is hvagent.service running, and are you root?",
        socket.display()
    );
    ExitCode::from(NO_AGENT)
}

fn asked(socket: &Path, question: &Question) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.write_all(format!("{}\n", json(question)).as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut line)?;
    if line.is_empty() { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(line) }
}

fn code(status: &Status) -> u8 {
    let wrong = !status.problems.is_empty() || status.mounts.iter().any(|m| !m.problems.is_empty());
    let moving = status.mounts.iter().any(|mount| mount.phase != "normal");
    match (wrong, moving) {
        (true, _) => WRONG,
        (false, true) => MOVING,
        (false, false) => WELL,
    }
}

fn text(status: &Status) -> String {
    let mut out =
        format!("{}  hvagent {}  up {}\n", status.host, status.version, seconds(status.up_s));
    for nasd in &status.nasds {
        let how = match &nasd.down {
            None => "answers".to_owned(),
            Some(why) => format!("does not answer: {why}"),
        };
        let _ = writeln!(out, "nasd {}  {how}  (for {})", nasd.name, seconds(nasd.for_s));
    }
    let libvirt = status.libvirt.as_ref();
    let _ = writeln!(out, "libvirt  {}", libvirt.map_or("answers", String::as_str));
    for mount in &status.mounts {
        out.push_str(&of_mount(mount));
    }
    for other in &status.other_mounts {
        let _ = writeln!(out, "mount {}  of no known service", other.display());
    }
    for problem in &status.problems {
        let _ = writeln!(out, "! {problem}");
    }
    out
}

fn of_mount(mount: &MountStatus) -> String {
    let mut out = format!(
        "mount {}  service {}  {} for {}",
        mount.mount.display(),
        mount.service,
        mount.phase,
        seconds(mount.for_ms / 1000)
    );
    if let Some(id) = mount.move_id {
        let _ = write!(out, "  move {id}");
    }
    if mount.held {
        out.push_str("  migrations are held back");
    }
    let _ = write!(out, "\n  {} guests, {} migrations", mount.guests, mount.migrations);
    if let Some(margin) = mount.margin_ms {
        let _ = write!(out, "  margin {} s", margin / 1000);
    }
    if let Some(next) = mount.next_renewal_ms {
        let _ = write!(out, "  next renewal in {} s", next / 1000);
    }
    out.push('\n');
    for stall in &mount.last_stalls {
        let who = if stall.guest.is_empty() { "the mount" } else { &stall.guest };
        let id = stall.move_id.map_or_else(|| "unannounced".to_owned(), |id| format!("move {id}"));
        let _ = writeln!(out, "  last stall of {who}: {} ms ({id})", stall.stall_ms);
    }
    for problem in &mount.problems {
        let _ = writeln!(out, "  ! {problem}");
    }
    out
}

fn seconds(all: u64) -> String {
    match (all / 3600, all / 60 % 60, all % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{NasdStatus, StallStatus};

    fn status() -> Status {
        let stall = StallStatus { guest: "vm1".into(), stall_ms: 412, move_id: Some(7) };
        let mount = MountStatus {
            service: "vms".into(),
            mount: "/vm".into(),
            phase: "normal".into(),
            for_ms: 61_000,
            move_id: None,
            held: false,
            stalled_ms: None,
            margin_ms: Some(64_000),
            next_renewal_ms: Some(3_000),
            guests: 2,
            migrations: 0,
            last_stalls: vec![stall],
            problems: vec![],
        };
        let nasd = NasdStatus { name: "nas1".into(), down: None, for_s: 5 };
        Status {
            host: "hv1".into(),
            version: "1".into(),
            up_s: 7,
            nasds: vec![nasd],
            libvirt: None,
            mounts: vec![mount],
            other_mounts: vec![],
            problems: vec![],
        }
    }

    #[test]
    fn a_status_is_readable_and_its_code_says_the_worst() {
        let mut status = status();
        let shown = text(&status);
        for words in ["normal for 1 min 1 s", "margin 64 s", "last stall of vm1: 412 ms (move 7)"] {
            assert!(shown.contains(words), "{shown}");
        }
        assert_eq!(code(&status), WELL);
        status.mounts[0].phase = "moving".into();
        assert_eq!(code(&status), MOVING);
        status.mounts[0].problems.push("late".into());
        assert_eq!(code(&status), WRONG);
    }

    #[test]
    fn a_status_survives_json() {
        let status = status();
        assert_eq!(serde_json::from_str::<Status>(&json(&status)).unwrap(), status);
    }

    #[test]
    fn nobody_there_is_no_answer() {
        assert!(asked(Path::new("/nonexistent/socket"), &Question::Status).is_err());
    }
}
