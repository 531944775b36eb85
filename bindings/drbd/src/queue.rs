//! One command thread per resource, with a socket of its own.
//!
//! Keeps S10: the kernel executes a command inside the system call, for as long as it takes (a
//! promotion waits for the fence-peer handler to end); only the queue's thread waits for that. The
//! caller waits until its own deadline and is then told that the command is still running (S8).

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::OpenError;
use crate::commands::{
    AttachSpec, Command, CommandError, ConnectSpec, Force, Outcome, TransportError,
};
use crate::enums::TimeoutType;
use crate::execute::Run;
use crate::socket::{Genl, Transport};
use crate::status::ConnKey;

/// What a command came to.
pub type CommandResult = Result<Outcome, CommandError>;

type Opener = Box<dyn FnMut() -> Result<Box<dyn Transport>, OpenError> + Send>;

struct Job {
    command: Command,
    abandoned: Arc<AtomicBool>,
    reply: mpsc::Sender<CommandResult>,
}

#[derive(Default)]
struct State {
    running: Option<(&'static str, Instant)>,
    last: Option<(&'static str, CommandResult)>,
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<State>>);

impl Shared {
    /// The state is a plain value: a thread that died while holding it has left it usable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The commands of one resource, one at a time. Dropping it does not wait for a running command.
pub struct CommandQueue {
    resource: String,
    jobs: mpsc::Sender<Job>,
    shared: Shared,
}

impl fmt::Debug for CommandQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommandQueue").field("resource", &self.resource).finish_non_exhaustive()
    }
}

/// A command that has been begun.
pub struct Pending {
    name: &'static str,
    began: Instant,
    result: mpsc::Receiver<CommandResult>,
    abandoned: Arc<AtomicBool>,
}

impl Pending {
    /// Waits, at most so long. May be called again after [`CommandError::StillRunning`].
    ///
    /// # Errors
    /// Those of the command, and [`CommandError::StillRunning`].
    pub fn wait(&self, timeout: Duration) -> CommandResult {
        self.result.recv_timeout(timeout).unwrap_or_else(|error| match error {
            RecvTimeoutError::Timeout => {
                Err(CommandError::StillRunning { command: self.name, after: self.began.elapsed() })
            }
            RecvTimeoutError::Disconnected => Err(CommandError::QueueGone),
        })
    }
}

impl Drop for Pending {
    /// A command that nobody waits for is not repeated; the system call in progress goes on.
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

impl CommandQueue {
    /// Starts the thread. Only one per resource makes sense.
    pub(crate) fn start(resource: &str) -> Result<Self, OpenError> {
        let first = Genl::open()?;
        let mut first: Option<Box<dyn Transport>> = Some(Box::new(first));
        Self::with(
            resource,
            Box::new(move || match first.take() {
                Some(open) => Ok(open),
                None => Ok(Box::new(Genl::open()?)),
            }),
        )
    }

    pub(crate) fn with(resource: &str, open: Opener) -> Result<Self, OpenError> {
        let (jobs, inbox) = mpsc::channel();
        let shared = Shared::default();
        let worker = Worker { resource: resource.to_owned(), open, shared: shared.clone() };
        let name: String = format!("drbd-{resource}").chars().take(15).collect();
        thread::Builder::new().name(name).spawn(move || worker.run(&inbox)).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(nix::libc::EAGAIN);
            OpenError::Transport(TransportError::Socket(errno))
        })?;
        Ok(Self { resource: resource.to_owned(), jobs, shared })
    }

    /// The resource.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// The command that is running, and for how long.
    #[must_use]
    pub fn running(&self) -> Option<(&'static str, Duration)> {
        self.shared.lock().running.map(|(name, since)| (name, since.elapsed()))
    }

    /// What the last command came to, also one that nobody waited for any more.
    #[must_use]
    pub fn last_result(&self) -> Option<(&'static str, CommandResult)> {
        self.shared.lock().last.clone()
    }

    /// Begins a command without waiting for it.
    ///
    /// # Errors
    /// [`CommandError::Busy`] while another one is running, even one that nobody waits for.
    pub fn begin(&self, command: Command) -> Result<Pending, CommandError> {
        let mut state = self.shared.lock();
        if let Some((running, since)) = state.running {
            return Err(CommandError::Busy { running, since: since.elapsed() });
        }
        let (name, began) = (command.name(), Instant::now());
        let (reply, result) = mpsc::channel();
        let abandoned = Arc::new(AtomicBool::new(false));
        let job = Job { command, abandoned: abandoned.clone(), reply };
        self.jobs.send(job).map_err(|_| CommandError::QueueGone)?;
        state.running = Some((name, began));
        Ok(Pending { name, began, result, abandoned })
    }

    fn run(&self, command: Command, deadline: Duration) -> CommandResult {
        self.begin(command)?.wait(deadline)
    }

    /// Becomes Primary on all volumes, or on none. Needs a proof that the caller holds (S1).
    ///
    /// # Errors
    /// See [`CommandError`]; on [`CommandError::is_outcome_unknown`] read the status.
    pub fn primary(&self, force: Force, deadline: Duration) -> CommandResult {
        self.run(Command::Primary(force), deadline)
    }

    /// Becomes Secondary on all volumes, or on none; repeated for `patience` while something has a
    /// device open (udev does, for a moment).
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn secondary(&self, patience: Duration, deadline: Duration) -> CommandResult {
        self.run(Command::Secondary { patience }, deadline)
    }

    /// Connects. Success means that DRBD *tries*: follow the status for Connected. A reconnect alone
    /// unfreezes a primary whose I/O waits for the peer (H13, way out 3 of `Frozen`).
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn connect(&self, spec: ConnectSpec, deadline: Duration) -> CommandResult {
        self.run(Command::Connect(spec), deadline)
    }

    /// Leaves in good order: the two nodes agree that the one that is **not** Primary is outdated.
    /// Called while the peer is Primary, it marks *this node's own* disks Outdated and the owner runs
    /// on without a freeze, so it is never a step of a takeover (H1). Called on a Primary, it marks
    /// the peer. With two Secondaries nobody is marked (seen on 8.4). Right for a standby whose disk
    /// hangs, or before maintenance. 8.4 forgets the configuration of the connection: keep its
    /// [`ConnectSpec`]. The peer keeps trying to connect.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn disconnect_graceful(&self, key: ConnKey, deadline: Duration) -> CommandResult {
        self.run(Command::Disconnect { key, forced: false }, deadline)
    }

    /// Cuts the connection without agreement: **nobody** is marked. An owner with `fencing
    /// resource-and-stonith` freezes its I/O and calls its handler; our own disks stay as they are.
    /// This is the first half of the proof `Frozen` (S1): afterwards the caller verifies StandAlone
    /// and UpToDate on all volumes in a fresh status. Called on a Primary, it freezes *us*.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn disconnect_forced(&self, key: ConnKey, deadline: Duration) -> CommandResult {
        self.run(Command::Disconnect { key, forced: true }, deadline)
    }

    /// Attaches a disk to a volume that exists.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn attach(&self, volume: u16, spec: AttachSpec, deadline: Duration) -> CommandResult {
        self.run(Command::Attach(volume, spec), deadline)
    }

    /// Detaches a disk in good order: waits for its requests, for ever on a disk that hangs.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn detach(&self, volume: u16, deadline: Duration) -> CommandResult {
        self.run(Command::Detach(volume), deadline)
    }

    /// Marks the local disks of all volumes Outdated (S2), and checks that they are: while connected
    /// 9 refuses, 8.4 does nothing and says that nothing was to be done.
    ///
    /// # Errors
    /// See [`CommandError`]; volumes before the one named are outdated.
    pub fn outdate(&self, deadline: Duration) -> CommandResult {
        self.run(Command::Outdate, deadline)
    }

    /// Starts a new generation on a volume. Never clears the bitmap.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn new_current_uuid(&self, volume: u16, deadline: Duration) -> CommandResult {
        self.run(Command::NewCurrentUuid(volume), deadline)
    }

    /// What the metadata says about the last time: was the peer outdated, had we been alone?
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn get_timeout_type(
        &self,
        volume: u16,
        key: ConnKey,
        deadline: Duration,
    ) -> Result<TimeoutType, CommandError> {
        let outcome = self.run(Command::TimeoutType(volume, key), deadline)?;
        outcome.timeout_type.ok_or(CommandError::QueueGone)
    }
}

struct Worker {
    resource: String,
    open: Opener,
    shared: Shared,
}

impl Worker {
    fn run(mut self, inbox: &mpsc::Receiver<Job>) {
        let mut transport = None;
        while let Ok(job) = inbox.recv() {
            let result = self.execute(&mut transport, &job);
            if matches!(result, Err(CommandError::Transport { .. })) {
                // A late answer must not be taken for that of the next command.
                transport = None;
            }
            let mut state = self.shared.lock();
            state.running = None;
            state.last = Some((job.command.name(), result.clone()));
            drop(state);
            // Nobody may be waiting any more; `last_result` has it.
            let _ = job.reply.send(result);
        }
    }

    fn execute(&mut self, transport: &mut Option<Box<dyn Transport>>, job: &Job) -> CommandResult {
        let command = job.command.name();
        let open = match transport {
            Some(open) => open,
            None => transport.insert((self.open)().map_err(|error| not_open(command, error))?),
        };
        Run { transport: open.as_mut(), resource: &self.resource, abandoned: &job.abandoned }
            .command(&job.command)
    }
}

fn not_open(command: &'static str, error: OpenError) -> CommandError {
    let cause = match error {
        OpenError::ModuleAbsent => TransportError::ModuleAbsent,
        OpenError::Transport(cause) => cause,
        OpenError::UnknownInterface { .. } | OpenError::NoFamilyId | OpenError::NoEventsGroup => {
            TransportError::Rejected(nix::libc::EPROTONOSUPPORT)
        }
    };
    CommandError::Transport { command, cause }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
