//! The lab program's side of the agents: one connection per request, each with a deadline.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::LabError;
use crate::netns::Namespace;
use crate::spec::Node;
use crate::wire::{CHUNK, Frame, PORT, Reply, Request};

/// Over a command's own limit, for what the agent and the way there take.
const SLACK: Duration = Duration::from_secs(5);

/// For requests that do not wait for anything.
const PROMPT: Duration = Duration::from_secs(10);

/// For moving a file.
const TRANSFER: Duration = Duration::from_secs(60);

/// What a command in a node said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Output {
    /// Exit code; 128 + number for a signal.
    pub code: i32,
    /// Standard output, with what is not UTF-8 replaced.
    pub stdout: String,
    /// Standard error, with what is not UTF-8 replaced.
    pub stderr: String,
}

impl Output {
    /// Whether it exited with 0.
    #[must_use]
    pub const fn ok(&self) -> bool {
        self.code == 0
    }
}

/// Speaks to the agent of one node.
#[derive(Clone, Debug)]
pub struct Client {
    namespace: Namespace,
    node: String,
    address: SocketAddr,
}

/// What came back before the end of a request.
#[derive(Default)]
struct Streams {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    data: Vec<u8>,
}

impl Client {
    /// For this node in that namespace.
    pub fn new(namespace: &Namespace, node: &Node) -> Self {
        let address = SocketAddr::from((node.management(), PORT));
        Self { namespace: namespace.clone(), node: node.name.clone(), address }
    }

    fn agent(&self) -> impl Fn(io::Error) -> LabError + '_ {
        |source| LabError::Agent { node: self.node.clone(), source }
    }

    fn ask(
        &self,
        request: &Request,
        data: &[u8],
        limit: Duration,
    ) -> Result<(Reply, Streams), LabError> {
        let deadline = Instant::now() + limit;
        let patience = limit.min(PROMPT);
        let connect = || TcpStream::connect_timeout(&self.address, patience).map_err(self.agent());
        let mut stream = self.namespace.enter(connect)?;
        // Nagle would hold back the small frames of a push.
        stream.set_nodelay(true).map_err(self.agent())?;
        talk(&mut stream, request, data, deadline).map_err(self.agent())
    }

    /// Whether the agent answers within `limit`.
    pub fn ping(&self, limit: Duration) -> bool {
        matches!(self.ask(&Request::Ping, &[], limit), Ok((Reply::Ok, _)))
    }

    /// See [`crate::Lab::exec`].
    pub fn exec(&self, argv: &[&str], limit: Duration) -> Result<Output, LabError> {
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Exec { argv: own(argv), timeout_ms };
        let (reply, s) = self.ask(&request, &[], limit + SLACK)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        match reply {
            Reply::Exited(code) => {
                Ok(Output { code, stdout: text(s.stdout), stderr: text(s.stderr) })
            }
            Reply::TimedOut => {
                let command = argv.join(" ");
                Err(LabError::ExecTimeout { node: self.node.clone(), command, limit })
            }
            other => Err(self.refused(other)),
        }
    }

    /// See [`crate::Lab::spawn`].
    pub fn spawn(&self, argv: &[&str]) -> Result<Job, LabError> {
        match self.ask(&Request::Spawn { argv: own(argv) }, &[], PROMPT)?.0 {
            Reply::Started { job, pid, log } => {
                Ok(Job { client: self.clone(), command: argv.join(" "), job, pid, log })
            }
            other => Err(self.refused(other)),
        }
    }

    /// See [`crate::Lab::push`].
    pub fn push(&self, path: &str, bytes: &[u8], mode: u32) -> Result<(), LabError> {
        let request = Request::Push { path: path.to_owned(), mode };
        self.expect_ok(self.ask(&request, bytes, TRANSFER)?.0)
    }

    /// See [`crate::Lab::pull`].
    pub fn pull(&self, path: &str) -> Result<Vec<u8>, LabError> {
        let (reply, streams) = self.ask(&Request::Pull { path: path.to_owned() }, &[], TRANSFER)?;
        self.expect_ok(reply)?;
        Ok(streams.data)
    }

    fn expect_ok(&self, reply: Reply) -> Result<(), LabError> {
        if reply == Reply::Ok { Ok(()) } else { Err(self.refused(reply)) }
    }

    fn refused(&self, reply: Reply) -> LabError {
        let message = match reply {
            Reply::Failed(message) => message,
            other => format!("answered {other:?}"),
        };
        LabError::Refused { node: self.node.clone(), message }
    }
}

fn own(argv: &[&str]) -> Vec<String> {
    argv.iter().map(|a| (*a).to_owned()).collect()
}

fn arm(stream: &TcpStream, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    stream.set_read_timeout(Some(left))?;
    stream.set_write_timeout(Some(left))
}

fn talk(
    stream: &mut TcpStream,
    request: &Request,
    data: &[u8],
    deadline: Instant,
) -> io::Result<(Reply, Streams)> {
    arm(stream, deadline)?;
    Frame::Request(request.clone()).write(stream)?;
    if matches!(request, Request::Push { .. }) {
        for chunk in data.chunks(CHUNK) {
            arm(stream, deadline)?;
            Frame::Data(chunk.to_vec()).write(stream)?;
        }
        Frame::Eof.write(stream)?;
    }
    let mut streams = Streams::default();
    loop {
        arm(stream, deadline)?;
        match Frame::read(stream)? {
            Frame::Stdout(b) => streams.stdout.extend(b),
            Frame::Stderr(b) => streams.stderr.extend(b),
            Frame::Data(b) => streams.data.extend(b),
            Frame::Done(reply) => return Ok((reply, streams)),
            Frame::Request(_) | Frame::Eof => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// A command that runs in the background in a node. It goes on when this is dropped.
#[derive(Clone, Debug)]
pub struct Job {
    client: Client,
    command: String,
    job: u64,
    pid: u32,
    log: String,
}

impl Job {
    /// Process id in the node; its process group has the same number.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// File in the node that collects both outputs.
    #[must_use]
    pub fn log(&self) -> &str {
        &self.log
    }

    /// What it has written so far.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn output(&self) -> Result<String, LabError> {
        let bytes = self.client.pull(&self.log)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Waits for its end; the exit code.
    ///
    /// # Errors
    /// [`LabError::ExecTimeout`] if it still runs after `limit` (it goes on), or if the node does not answer.
    pub fn wait(&self, limit: Duration) -> Result<i32, LabError> {
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Wait { job: self.job, timeout_ms };
        match self.client.ask(&request, &[], limit + SLACK)?.0 {
            Reply::Exited(code) => Ok(code),
            Reply::TimedOut => {
                let (node, command) = (self.client.node.clone(), self.command.clone());
                Err(LabError::ExecTimeout { node, command, limit })
            }
            other => Err(self.client.refused(other)),
        }
    }

    /// Sends a signal, by number, to its process group. Nothing happens if it has ended.
    ///
    /// # Errors
    /// If the node does not answer or knows no such signal.
    pub fn signal(&self, signal: i32) -> Result<(), LabError> {
        let request = Request::Kill { job: self.job, signal };
        self.client.expect_ok(self.client.ask(&request, &[], PROMPT)?.0)
    }

    /// Kills its process group (SIGKILL).
    ///
    /// # Errors
    /// As [`Job::signal`].
    pub fn kill(&self) -> Result<(), LabError> {
        self.signal(9)
    }
}
