//! nasd's side of the socket: calls with deadlines, many at once on one connection.
//!
//! A call that passes its deadline is given up *here*; over there it may still hang, or be
//! carried out later (S12: its outcome is unknown). The process survives us: reconnect and ask.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Answer, Op, Outcome, Refusal, Request, Response, VERSION};

/// How a call can fail.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer in time. The request may still be under way: its outcome is unknown.
    #[error("nasd-io has not answered {op} within {after:?}; its outcome is unknown")]
    Deadline {
        /// Request.
        op: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The process or the connection is gone. Outcome unknown; connect again and ask.
    #[error("nasd-io is gone while {op} was under way; its outcome is unknown")]
    Gone {
        /// Request.
        op: &'static str,
    },
    /// It answered that it did not do it.
    #[error("nasd-io refused {op}: {refusal}")]
    Refused {
        /// Request.
        op: &'static str,
        /// Why, and what is true now.
        refusal: Box<Refusal>,
    },
    /// It answered something that does not fit the request: it is of another version.
    #[error("nasd-io answered {op} with something else")]
    Unexpected {
        /// Request.
        op: &'static str,
    },
}

impl CallError {
    /// The refusal, if it is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            CallError::Refused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }
}

type Result<T> = std::result::Result<T, CallError>;
type Waiting = HashMap<u64, oneshot::Sender<Outcome>>;

/// Calls that wait; none any more once the connection is gone.
#[derive(Debug, Default)]
struct Pending(Mutex<Option<Waiting>>);

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to one `nasd-io`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    pending: Arc<Pending>,
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    next: Arc<AtomicU64>,
}

impl Client {
    /// Connects; the first call should be [`Client::hello`].
    pub async fn connect(socket: &Path) -> std::io::Result<Self> {
        let (reader, writer) = UnixStream::connect(socket).await?.into_split();
        let pending = Arc::new(Pending(Mutex::new(Some(Waiting::new()))));
        tokio::spawn(read_answers(reader, Arc::clone(&pending)));
        let writer = Arc::new(tokio::sync::Mutex::new(writer));
        Ok(Client { pending, writer, next: Arc::new(AtomicU64::new(1)) })
    }

    /// False once the connection is gone.
    pub fn is_connected(&self) -> bool {
        self.pending.lock().is_some()
    }

    /// One request; its answer within `deadline`.
    pub async fn call(&self, op: Op, deadline: Duration) -> Result<Answer> {
        let name = op.name();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        match self.pending.lock().as_mut() {
            Some(waiting) => waiting.insert(id, tell),
            None => return Err(CallError::Gone { op: name }),
        };
        let _forget = Forget { pending: &self.pending, id };
        let exchange = async {
            self.send(&Request { id, op }).await.map_err(|_| CallError::Gone { op: name })?;
            told.await.map_err(|_| CallError::Gone { op: name })
        };
        match timeout_at(Instant::now() + deadline, exchange).await {
            Err(_) => Err(CallError::Deadline { op: name, after: deadline }),
            Ok(Err(error)) => Err(error),
            Ok(Ok(Outcome::Ok(answer))) => Ok(answer),
            Ok(Ok(Outcome::Error(refusal))) => {
                Err(CallError::Refused { op: name, refusal: Box::new(refusal) })
            }
        }
    }

    async fn send(&self, request: &Request) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        // The lock is kept by a task of its own: a call given up half way through a line would
        // spoil the connection for all others.
        let writer = Arc::clone(&self.writer);
        let write = async move { writer.lock().await.write_all(&line).await };
        tokio::spawn(write).await.map_err(std::io::Error::other)?
    }

    /// Checks that the process is for this service, namespace and protocol.
    /// True if it has a server set up already.
    pub async fn hello(&self, service: &str, netns: &Path, deadline: Duration) -> Result<bool> {
        let (service, netns) = (service.into(), netns.into());
        match self.call(Op::Hello { service, netns, version: VERSION }, deadline).await? {
            Answer::Hello { set_up, .. } => Ok(set_up),
            _ => Err(CallError::Unexpected { op: "hello" }),
        }
    }

    /// For requests that answer with nothing but how long they took.
    pub async fn timed(&self, op: Op, deadline: Duration) -> Result<Duration> {
        let name = op.name();
        match self.call(op, deadline).await? {
            Answer::Took { took_ms }
            | Answer::Mounted { took_ms, .. }
            | Answer::Unmounted { took_ms, .. }
            | Answer::Probed { took_ms } => Ok(Duration::from_millis(took_ms)),
            _ => Err(CallError::Unexpected { op: name }),
        }
    }
}

/// Forgets a call that nobody waits for any more.
struct Forget<'a> {
    pending: &'a Pending,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(waiting) = self.pending.lock().as_mut() {
            waiting.remove(&self.id);
        }
    }
}

async fn read_answers(reader: OwnedReadHalf, pending: Arc<Pending>) {
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<Response>(&line) {
            Ok(Response { id, outcome }) => deliver(&pending, id, outcome),
            Err(error) => {
                tracing::warn!(%error, "answer of nasd-io not understood");
                break;
            }
        }
    }
    // Dropping the senders tells every waiting call.
    pending.lock().take();
}

fn deliver(pending: &Pending, id: u64, outcome: Outcome) {
    let waiting = pending.lock().as_mut().and_then(|waiting| waiting.remove(&id));
    if let Some(tell) = waiting {
        let _ = tell.send(outcome);
    }
}

/// Finds the service's process, or starts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launcher {
    /// The program.
    pub program: PathBuf,
    /// Its socket.
    pub socket: PathBuf,
    /// Service.
    pub service: String,
    /// Network namespace.
    pub netns: PathBuf,
}

/// Why there is no process to talk to.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program could not be started.
    #[error("{} cannot be started: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// It does not listen within the deadline.
    #[error("nothing listens on {} within {after:?}", socket.display())]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// The deadline.
        after: Duration,
    },
    /// It listens and does not answer as it should; when it was refused, it is another's.
    #[error(transparent)]
    Hello(#[from] CallError),
}

impl Launcher {
    /// Connects to the process that lives, else starts one; both greeted within `deadline`.
    pub async fn connect(&self, deadline: Duration) -> std::result::Result<Client, LaunchError> {
        let until = Instant::now() + deadline;
        let client = match Client::connect(&self.socket).await {
            Ok(client) => client,
            Err(_) => {
                self.start()?;
                self.wait(until, deadline).await?
            }
        };
        let left = until.saturating_duration_since(Instant::now());
        client.hello(&self.service, &self.netns, left).await?;
        Ok(client)
    }

    /// Starts the program in a process group of its own, so that what ends nasd spares it.
    fn start(&self) -> std::result::Result<(), LaunchError> {
        let spawned = tokio::process::Command::new(&self.program)
            .arg("--service")
            .arg(&self.service)
            .arg("--netns")
            .arg(&self.netns)
            .arg("--socket")
            .arg(&self.socket)
            .stdin(std::process::Stdio::null())
            .process_group(0)
            .kill_on_drop(false)
            .spawn();
        let program = self.program.clone();
        // Dropping the handle leaves it to the runtime to collect the process when it ends.
        spawned.map(drop).map_err(|source| LaunchError::Start { program, source })
    }

    async fn wait(
        &self,
        until: Instant,
        after: Duration,
    ) -> std::result::Result<Client, LaunchError> {
        loop {
            if let Ok(client) = Client::connect(&self.socket).await {
                return Ok(client);
            }
            if Instant::now() >= until {
                return Err(LaunchError::Silent { socket: self.socket.clone(), after });
            }
            sleep(Duration::from_millis(2)).await;
        }
    }
}

#[cfg(test)]
mod tests;
