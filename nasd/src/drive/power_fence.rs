//! Power fencing through a standard fence agent: parameters on its standard input, `off`, then `status`
//! read back.
//!
//! Keeps S1's `Fenced` and H14: only a node that the record has excluded is switched off, and only an
//! agent that says "off" when asked for the status is believed. A dead or late agent is a
//! [`Fenced::Failed`] and nothing more: the takeover goes on as `Frozen` plus its wait (S12).

use std::collections::BTreeMap;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::fence;
use super::hands::Hands;
use crate::config::FenceAgent;

/// Exit code of `action=status` for "the node is off" (the agents' common interface; 0 is "on").
const IS_OFF: i32 = 2;
/// Between two looks at the status: a power supply takes a moment.
const LOOK: Duration = Duration::from_millis(500);

/// What an attempt to switch the peer off came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fenced {
    /// The agent switched it off and then said that it is off.
    Confirmed,
    /// It is not known to be off; it may be, and it may be on.
    Failed {
        /// Why, in words.
        reason: String,
    },
}

impl Hands {
    /// Switches the peer off, if a fence agent is configured for it; `None`: there is none. Refuses
    /// while the record still counts the peer (H14). Ends within the agent's time limit.
    pub async fn power_fence(&self) -> Option<Fenced> {
        let agent = self.peer_fence.as_ref()?;
        let excluded =
            self.record.borrow().as_ref().is_some_and(|r| fence::excluded(r, &self.me, &self.peer));
        if !excluded {
            let reason = format!("the record does not exclude {} yet", self.peer);
            return Some(Fenced::Failed { reason });
        }
        tracing::warn!(peer = %self.peer, agent = %agent.program.display(), "switching the peer off");
        let result = off(agent).await;
        tracing::warn!(peer = %self.peer, ?result, "power fencing ended");
        Some(result)
    }
}

/// Off, then seen to be off.
pub async fn off(agent: &FenceAgent) -> Fenced {
    let until = Instant::now() + agent.timeout;
    match switch_off(agent, until).await {
        Ok(()) => Fenced::Confirmed,
        Err(reason) => Fenced::Failed { reason },
    }
}

async fn switch_off(agent: &FenceAgent, until: Instant) -> Result<(), String> {
    let (status, said) = call(agent, "off", until).await?;
    if !status.success() {
        return Err(format!("the agent could not switch it off ({status}): {said}"));
    }
    loop {
        let (status, said) = call(agent, "status", until).await?;
        if status.code() == Some(IS_OFF) {
            return Ok(());
        }
        if Instant::now() + LOOK >= until {
            return Err(format!("switched off, but its status is {status}: {said}"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// One run of the agent; its status and the end of what it wrote to standard error.
async fn call(
    agent: &FenceAgent,
    action: &str,
    until: Instant,
) -> Result<(ExitStatus, String), String> {
    let mut command = Command::new(&agent.program);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    // A group of its own, so that what the agent started ends with it.
    command.process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| format!("{}: {e}", agent.program.display()))?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let input = input(&agent.parameters, action);
    let Ok(result) = tokio::time::timeout_at(until, talk(&mut child, &input)).await else {
        if let Some(group) = group {
            // It may have ended this very moment.
            let _ = killpg(group, Signal::SIGKILL);
        }
        return Err(format!("the agent did not end its {action} in time"));
    };
    result.map_err(|e| format!("the agent's {action}: {e}"))
}

async fn talk(child: &mut Child, input: &str) -> std::io::Result<(ExitStatus, String)> {
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()).await {
            // An agent that has made up its mind before it has read all: its exit code counts.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            other => other?,
        }
    }
    let mut said = Vec::new();
    if let Some(mut stderr) = child.stderr.take() {
        tokio::io::AsyncReadExt::read_to_end(&mut stderr, &mut said).await?;
    }
    let status = child.wait().await?;
    let said = String::from_utf8_lossy(&said);
    Ok((status, said.trim().lines().last().unwrap_or_default().to_owned()))
}

/// `name=value`, one a line, the action last: the agents take the last one.
fn input(parameters: &BTreeMap<String, String>, action: &str) -> String {
    let mut lines: String =
        parameters.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    lines.push_str(&format!("action={action}\n"));
    lines
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    /// A fence agent in shell; `$action` is what it is asked for, `$seen` a file of its own.
    fn agent(dir: &Path, body: &str, timeout_ms: u64) -> FenceAgent {
        let program = dir.join("fence_test");
        let script = format!(
            "#!/bin/sh\nseen={}/seen\nwhile read -r line; do echo \"$line\" >> $seen; \
             case \"$line\" in action=*) action=${{line#action=}};; esac; done\n{body}\n",
            dir.display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let parameters = BTreeMap::from([
            ("ip".to_owned(), "192.0.2.9".to_owned()),
            ("password".to_owned(), "a b=c".to_owned()),
        ]);
        FenceAgent { program, parameters, timeout: Duration::from_millis(timeout_ms) }
    }

    fn why(fenced: Fenced) -> String {
        match fenced {
            Fenced::Failed { reason } => reason,
            Fenced::Confirmed => panic!("confirmed"),
        }
    }

    #[tokio::test]
    async fn s1_off_and_then_seen_to_be_off() {
        let dir = tempfile::tempdir().unwrap();
        let agent = agent(dir.path(), "[ \"$action\" = status ] && exit 2; exit 0", 10_000);
        assert_eq!(off(&agent).await, Fenced::Confirmed);
        let seen = std::fs::read_to_string(dir.path().join("seen")).unwrap();
        let once = |action| format!("ip=192.0.2.9\npassword=a b=c\naction={action}\n");
        assert_eq!(seen, once("off") + &once("status"));
    }

    #[tokio::test]
    async fn s12_a_node_that_is_not_seen_off_is_not_fenced() {
        let dir = tempfile::tempdir().unwrap();
        let still_on = agent(dir.path(), "exit 0", 1_200);
        assert!(why(off(&still_on).await).contains("its status is exit status: 0"));
        let unreadable = agent(dir.path(), "[ \"$action\" = status ] && exit 1; exit 0", 700);
        assert!(why(off(&unreadable).await).contains("exit status: 1"));
        let refused = agent(dir.path(), "echo first >&2; echo login failed >&2; exit 1", 5_000);
        assert!(why(off(&refused).await).contains("login failed"));
        let absent = FenceAgent { program: dir.path().join("gone"), ..refused };
        assert!(why(off(&absent).await).contains("gone"));
    }

    #[tokio::test]
    async fn s8_an_agent_that_hangs_ends_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let hangs = agent(dir.path(), "sleep 77 & echo $! > $seen.pid; wait", 800);
        let began = Instant::now();
        assert!(why(off(&hangs).await).contains("in time"));
        assert!(began.elapsed() < Duration::from_secs(5));
        let pid = std::fs::read_to_string(dir.path().join("seen.pid")).unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        for _ in 0..50 {
            // Gone, or a zombie until somebody reaps it.
            if state().map_or(true, |s| s.contains(") Z ")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the agent's child goes on: {:?}", state());
    }
}
