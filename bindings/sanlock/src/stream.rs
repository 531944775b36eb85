//! A connection that ends by its deadline, whatever the daemon does (S10).

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with,
};

use crate::error::{Error, Result};

/// Pause between two attempts to connect while the daemon's backlog is full.
const AGAIN: Duration = Duration::from_millis(20);

/// An open connection and the instant at which it is given up.
pub(crate) struct Stream {
    socket: OwnedFd,
    until: Instant,
}

impl Stream {
    /// Connects to the daemon's socket. Gives up after `limit`, which counts for all that follows.
    pub(crate) fn connect(path: &Path, limit: Duration) -> Result<Self> {
        let refused = |errno: Errno| Error::Connect { path: path.to_owned(), source: errno.into() };
        let address = SocketAddrUnix::new(path).map_err(refused)?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let stream = Self { socket: socket.map_err(refused)?, until: Instant::now() + limit };
        loop {
            match connect(&stream.socket, &address) {
                Ok(()) => return Ok(stream),
                Err(Errno::INTR) => {}
                // A full backlog. Nothing tells when there is room again.
                Err(Errno::AGAIN) if stream.left() > AGAIN => std::thread::sleep(AGAIN),
                Err(Errno::AGAIN) => return Err(Error::Deadline { doing: "connect", limit }),
                Err(errno) => return Err(refused(errno)),
            }
        }
    }

    /// Sends a request, in one piece unless the kernel cannot take it whole.
    pub(crate) fn send(&self, request: &[u8]) -> io::Result<()> {
        let mut rest = request;
        while !rest.is_empty() {
            match send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Waits until the socket is ready or the deadline has passed.
    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        let left = self.left();
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let limit = Timespec::try_from(left).map_err(|_| io::ErrorKind::TimedOut)?;
        match poll(&mut [PollFd::new(&self.socket, flags)], Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // Checked here as well, or a daemon that never stops sending would hold us.
            if self.left().is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Ok((count, _)) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::IN)?,
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}
