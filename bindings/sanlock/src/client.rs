//! The questions this program asks. One connection each: the daemon closes it after the answer.

use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::decode;
use crate::error::{Error, Result};
use crate::model::{Host, Listed, RenewalHistory, Status, Version};
use crate::stream::Stream;
use crate::wire::{self, Command};

/// Where the daemon listens unless `SANLOCK_RUN_DIR` moved it.
pub const SOCKET: &str = "/run/sanlock/sanlock.sock";

/// Takes the largest answer in few reads, so that the daemon is held up as little as can be.
const BUFFER: usize = 64 * 1024;

/// How much status is wanted. The daemon's lease checks wait while it answers: ask for little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Daemon, processes, lockspaces.
    Lockspaces,
    /// Leases too: which process holds which.
    Resources,
}

impl Detail {
    /// The daemon stops after records of that type; zero is everything.
    const fn argument(self) -> u32 {
        match self {
            Self::Lockspaces => 3,
            Self::Resources => 0,
        }
    }
}

/// Asks the daemon. Blocks, for its limit at most: in an asynchronous program call it on a
/// thread where that is allowed.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    limit: Duration,
}

impl Client {
    /// A client of the daemon at `socket` (see [`SOCKET`]); every call ends within `limit`.
    pub fn new(socket: impl Into<PathBuf>, limit: Duration) -> Self {
        Self { socket: socket.into(), limit }
    }

    /// Where it connects.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The daemon's version.
    pub fn version(&self) -> Result<Version> {
        self.ask(Command::Version, 0, None, decode::version)
    }

    /// The daemon's settings, processes and lockspaces. Compare with [`Self::lockspaces`] before
    /// relying on a lockspace's absence: a daemon that dies in the middle ends the answer as well.
    pub fn status(&self, detail: Detail) -> Result<Status> {
        self.ask(Command::Status, detail.argument(), None, decode::status)
    }

    /// The lockspaces, as a counted list.
    pub fn lockspaces(&self) -> Result<Vec<Listed>> {
        self.ask(Command::GetLockspaces, 0, None, decode::lockspaces)
    }

    /// The hosts of a lockspace and what the daemon thinks of them.
    pub fn hosts(&self, lockspace: &str) -> Result<Vec<Host>> {
        let answer = |answer: &mut BufReader<Stream>| decode::hosts(answer, lockspace);
        self.ask(Command::GetHosts, 0, Some(lockspace), answer)
    }

    /// The renewals of a lockspace that the daemon remembers: how fast the storage answered.
    pub fn renewals(&self, lockspace: &str) -> Result<RenewalHistory> {
        let answer = |answer: &mut BufReader<Stream>| decode::renewals(answer, lockspace);
        self.ask(Command::Renewal, 0, Some(lockspace), answer)
    }

    fn ask<T>(
        &self,
        command: Command,
        data: u32,
        lockspace: Option<&str>,
        decode: impl FnOnce(&mut BufReader<Stream>) -> Result<T>,
    ) -> Result<T> {
        let request = wire::request(command, data, lockspace)?;
        let stream = Stream::connect(&self.socket, self.limit)?;
        let sent = stream.send(&request);
        sent.map_err(|source| self.late(Error::Broken { doing: "the request", source }))?;
        let mut answer = BufReader::with_capacity(BUFFER, stream);
        decode(&mut answer).map_err(|error| self.late(error))
    }

    /// A read that timed out is the deadline's doing.
    fn late(&self, error: Error) -> Error {
        match error {
            Error::Broken { doing, source } if source.kind() == io::ErrorKind::TimedOut => {
                Error::Deadline { doing, limit: self.limit }
            }
            other => other,
        }
    }
}
