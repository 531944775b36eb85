//! Processes of this machine: those of a node as a whole, found again after a crash of the lab program.

use std::collections::HashMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Environment variable that marks all processes of a lab; its value is the lab's name.
pub const MARK: &str = "NASD_LAB_NAME";

/// How long killed processes may take to go. Freeing a node's memory takes a moment.
const DEATH: Duration = Duration::from_secs(10);

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it was started, clock ticks since boot (field 22 of proc_pid_stat(5)).
    pub start: u64,
}

struct Stat {
    state: char,
    parent: i32,
    start: u64,
}

/// Parses proc_pid_stat(5). The name, in parentheses, may itself contain spaces and parentheses.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // Fields 3 and 4 are taken; the start time is field 22.
    let start = fields.nth(17)?.parse().ok()?;
    Some(Stat { state, parent, start })
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

impl ProcessId {
    /// The process with this number now.
    pub fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|s| Self { pid, start: s.start })
    }

    /// Whether it still runs; a zombie does not.
    pub fn alive(self) -> bool {
        // Reaps it if it is our child; it is not when the lab was brought up by an earlier call.
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        stat(self.pid).is_some_and(|s| s.start == self.start && s.state != 'Z')
    }

    /// Whether it is stopped.
    pub fn stopped(self) -> bool {
        stat(self.pid).is_some_and(|s| s.start == self.start && s.state == 'T')
    }

    /// Whether it is the machine of this node: it says so in one of its arguments.
    pub fn has_argument(self, node: &str) -> bool {
        let arguments = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let own = format!("umid={node}");
        arguments.split(|b| *b == 0).any(|a| a == own.as_bytes())
    }

    /// Itself first, then all that descend from it.
    fn tree(self) -> Vec<Self> {
        let mut children: HashMap<i32, Vec<Self>> = HashMap::new();
        for pid in all() {
            if let Some(s) = stat(pid) {
                children.entry(s.parent).or_default().push(Self { pid, start: s.start });
            }
        }
        let mut tree = vec![self];
        let mut next = 0;
        while let Some(p) = tree.get(next) {
            let below = children.remove(&p.pid).unwrap_or_default();
            tree.extend(below);
            next += 1;
        }
        tree
    }

    /// Sends a signal to all that descend from it: to a node, and not to what keeps it.
    pub fn signal_below(self, signal: Signal) {
        if self.alive() {
            signal_all(self.tree().get(1..).unwrap_or_default(), signal);
        }
    }

    /// Whether nothing that it has started runs.
    pub fn is_childless(self) -> bool {
        self.tree().len() == 1
    }

    /// Whether what it has started is stopped, by a signal.
    pub fn stopped_below(self) -> bool {
        self.tree().get(1).is_some_and(|p| p.stopped())
    }

    /// Kills it and all that descend from it, and waits until they are gone. Tells whether they are.
    pub fn kill(self) -> bool {
        if !self.alive() {
            return true;
        }
        let tree = self.tree();
        signal_all(&tree, Signal::SIGKILL);
        gone(&tree)
    }
}

fn signal_all(processes: &[ProcessId], signal: Signal) {
    for p in processes {
        match kill(Pid::from_raw(p.pid), signal) {
            // Gone meanwhile is as good.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => eprintln!("lab: cannot signal process {}: {e}", p.pid),
        }
    }
}

fn gone(processes: &[ProcessId]) -> bool {
    let deadline = Instant::now() + DEATH;
    while processes.iter().any(|p| p.alive()) {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// All processes that carry the mark of this lab, but the calling one.
pub fn marked(lab: &str) -> Vec<ProcessId> {
    let mark = format!("{MARK}={lab}");
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let has = |pid: &i32| {
        let env = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        env.split(|b| *b == 0).any(|v| v == mark.as_bytes())
    };
    all().filter(|p| *p != own).filter(has).filter_map(ProcessId::of).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn names_with_parentheses_are_parsed() {
        let s = parse_stat("7 (a) b) (c) S 5 7 7 0 -1 4 0 0 0 0 1 2 3 4 20 0 1 0 99 1 2").unwrap();
        assert_eq!((s.state, s.parent, s.start), ('S', 5, 99));
        assert!(parse_stat("7 (a) S").is_none());
    }

    #[test]
    fn a_tree_is_frozen_thawed_and_killed() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 77 & wait"]).process_group(0).env(MARK, "process-test");
        let mut child = command.spawn().unwrap();
        let id = ProcessId::of(i32::try_from(child.id()).unwrap()).unwrap();
        let until = |what: &dyn Fn() -> bool| {
            let end = Instant::now() + Duration::from_secs(5);
            while !what() {
                assert!(Instant::now() < end);
                thread::sleep(Duration::from_millis(5));
            }
        };
        until(&|| id.tree().len() == 2 && marked("process-test").len() == 2);
        let tree = id.tree();
        id.signal_below(Signal::SIGSTOP);
        until(&|| tree[1].stopped() && id.stopped_below());
        assert!(!id.stopped(), "what keeps it goes on");
        id.signal_below(Signal::SIGCONT);
        until(&|| !tree[1].stopped() && !id.stopped_below());
        assert!(id.kill());
        // Reaped by then.
        assert!(child.wait().is_err());
        assert!(tree.iter().all(|p| !p.alive()));
        assert!(!ProcessId { start: id.start + 1, ..id }.alive());
    }
}
