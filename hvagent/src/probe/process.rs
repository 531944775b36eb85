//! Runs what the keeper decides: starts helpers, asks them, kills them, and waits for none (S10).
//!
//! Everything is asynchronous: a helper that sleeps in the kernel costs a process and two idle
//! tasks. When the agent dies, the helpers' input ends and they end as soon as they wake.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::keeper::{Action, Generation, Input, Keeper, Timing};
use super::protocol::{self, LONGEST_LINE, Outcome, Reply, Request, What};
use crate::core::Now;

/// For writing a question into an empty pipe.
const WRITE_DEADLINE: Duration = Duration::from_secs(1);

/// Longest sleep without looking.
const LONGEST_NAP: Duration = Duration::from_secs(5);

/// How helpers are started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The program, which must not lie on a mount that is probed.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<std::ffi::OsString>,
}

impl Launch {
    /// This program as helper of a mount.
    #[must_use]
    pub fn helper(program: PathBuf, mount: &std::path::Path, device: (u32, u32)) -> Self {
        let device = format!("{}:{}", device.0, device.1);
        let arguments = vec!["probe-helper".into(), "--device".into(), device.into(), mount.into()];
        Self { program, arguments }
    }
}

/// How a probe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// What was asked.
    pub what: What,
    /// When, by the clock that [`run`] was given.
    pub asked: Now,
    /// How it ended.
    pub outcome: Outcome,
}

/// A started helper.
struct Running {
    input: ChildStdin,
    kill: Option<oneshot::Sender<()>>,
}

/// Something from a helper's tasks.
type Heard = (Generation, Result<Option<Reply>, ()>);

struct Runner {
    launch: Launch,
    keeper: Keeper,
    origin: Instant,
    running: BTreeMap<Generation, Running>,
    heard: mpsc::UnboundedSender<Heard>,
    reports: mpsc::Sender<Report>,
}

/// Probes one mount until `inputs` or the reader of `reports` is gone; then kills the helper and
/// returns at once. Times are counted from `origin`.
pub async fn run(
    launch: Launch,
    timing: Timing,
    origin: Instant,
    mut inputs: mpsc::Receiver<Input>,
    reports: mpsc::Sender<Report>,
) {
    let (heard, mut ears) = mpsc::unbounded_channel();
    let keeper = Keeper::new(timing);
    let mut runner = Runner { launch, keeper, origin, running: BTreeMap::new(), heard, reports };
    runner.step(Input::Tick).await;
    loop {
        let due = runner.keeper.due().map_or(LONGEST_NAP, |d| d.saturating_sub(runner.now()));
        let input = tokio::select! {
            input = inputs.recv() => match input {
                Some(input) => input,
                None => return,
            },
            Some((generation, said)) = ears.recv() => runner.hear(generation, said),
            () = tokio::time::sleep(due.min(LONGEST_NAP)) => Input::Tick,
        };
        if !runner.step(input).await {
            return;
        }
    }
}

impl Runner {
    fn now(&self) -> Now {
        self.origin.elapsed()
    }

    fn hear(&mut self, generation: Generation, said: Result<Option<Reply>, ()>) -> Input {
        match said {
            Ok(reply) => Input::Said(generation, reply),
            Err(()) => {
                self.running.remove(&generation);
                Input::Ended(generation)
            }
        }
    }

    /// `false`: nobody reads the reports any more.
    async fn step(&mut self, input: Input) -> bool {
        let now = self.now();
        let actions = self.keeper.step(now, input);
        for action in actions {
            match action {
                Action::Start(generation) => self.start(generation),
                Action::Ask(generation, request) => self.ask(generation, request).await,
                Action::Kill(generation) => self.kill(generation),
                Action::Report { what, asked, outcome } => {
                    if !self.report(Report { what, asked, outcome }) {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// A reader that has fallen behind gets the later reports: an old probe proves nothing.
    fn report(&self, report: Report) -> bool {
        !matches!(self.reports.try_send(report), Err(mpsc::error::TrySendError::Closed(_)))
    }

    fn start(&mut self, generation: Generation) {
        match spawn(&self.launch) {
            Ok((child, input, output)) => {
                let (kill, killed) = oneshot::channel();
                self.running.insert(generation, Running { input, kill: Some(kill) });
                tokio::spawn(listen(generation, output, self.heard.clone()));
                tokio::spawn(attend(generation, child, killed, self.heard.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, program = %self.launch.program.display(),
                    "no probe helper could be started: the state of the mount is unknown");
                let _ = self.heard.send((generation, Err(())));
            }
        }
    }

    /// An unwritten question is answered by the helper's end, which follows.
    async fn ask(&mut self, generation: Generation, request: Request) {
        let Some(running) = self.running.get_mut(&generation) else { return };
        let Ok(line) = protocol::line(&request) else { return };
        let written = tokio::time::timeout(WRITE_DEADLINE, running.input.write_all(&line)).await;
        if !matches!(written, Ok(Ok(()))) {
            self.kill(generation);
        }
    }

    fn kill(&mut self, generation: Generation) {
        let kill = self.running.get_mut(&generation).and_then(|r| r.kill.take());
        if let Some(kill) = kill {
            let _ = kill.send(());
        }
    }
}

fn spawn(launch: &Launch) -> std::io::Result<(Child, ChildStdin, ChildStdout)> {
    let mut child = Command::new(&launch.program)
        .args(&launch.arguments)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let lost = || std::io::Error::other("the helper has no pipes");
    let input = child.stdin.take().ok_or_else(lost)?;
    let output = child.stdout.take().ok_or_else(lost)?;
    Ok((child, input, output))
}

/// Passes on what a helper says. A line that is too long or not of the protocol is nonsense.
async fn listen(generation: Generation, output: ChildStdout, heard: mpsc::UnboundedSender<Heard>) {
    let limit = u64::try_from(LONGEST_LINE).unwrap_or(u64::MAX).saturating_add(1);
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        let read = (&mut output).take(limit).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(n) if n > 0) {
            return;
        }
        let reply = protocol::parse::<Reply>(line.trim_ascii_end()).ok();
        let nonsense = reply.is_none();
        // After nonsense nothing more is listened to: the helper will be killed.
        if heard.send((generation, Ok(reply))).is_err() || nonsense {
            return;
        }
    }
}

/// Waits for a helper's end, which may be never; kills it when told to, or when the runner is gone.
async fn attend(
    generation: Generation,
    mut child: Child,
    killed: oneshot::Receiver<()>,
    heard: mpsc::UnboundedSender<Heard>,
) {
    tokio::select! {
        _ = child.wait() => {}
        _ = killed => {
            let _ = child.start_kill();
            let _ = child.wait().await;
        }
    }
    let _ = heard.send((generation, Err(())));
}
