//! The channels themselves: a thread that answers, the filling ahead, and the flush.
//!
//! Channels belong to the network namespace of the thread that opens them. While no table is
//! set, questions stay unread: the kernel keeps them and the client is told to try again, which
//! is better than a refusal that a client would take for a stale handle.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

use super::ExportError;
use super::lines::Request;
use super::model::ExportTable;
use crate::netns::{NetNs, rpc_dir};
use crate::{Error, Result};

/// Question lines fit in a page.
const LINE_MAX: usize = 8192;
/// How often the thread looks whether it should end or a table was set.
const LOOK_MS: u8 = 50;

/// A channel and how its questions read.
struct Channel {
    name: &'static str,
    parse: fn(&[u8]) -> Option<Request>,
}

const CHANNELS: [Channel; 3] = [
    Channel { name: "auth.unix.ip", parse: Request::parse_address },
    Channel { name: "nfsd.export", parse: Request::parse_export },
    Channel { name: "nfsd.fh", parse: Request::parse_file_system },
];

fn channel_of(request: &Request) -> &'static str {
    match request {
        Request::Address { .. } => "auth.unix.ip",
        Request::Export { .. } => "nfsd.export",
        Request::FileSystem { .. } => "nfsd.fh",
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default()
}

/// What the answerer has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswererStatus {
    /// Questions answered since it was made.
    pub answered: u64,
    /// Answers that the kernel refused, and lines not understood.
    pub failures: u64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    failures: AtomicU64,
    table: Mutex<Option<Arc<ExportTable>>>,
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Option<Arc<ExportTable>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers the export caches of one namespace; dropping it ends its thread.
#[derive(Debug)]
pub struct Answerer {
    ns: NetNs,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Answerer {
    /// Opens the channels in `ns` and starts answering once a table is set.
    pub fn spawn(ns: NetNs) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let files = ns.run("nfsd-channels", || Ok(open_all(&rpc_dir())?))?;
        let service = Service { shared: Arc::clone(&shared), files };
        let thread = std::thread::Builder::new()
            .name("nfsd-exports".into())
            .spawn(move || service.run())
            .map_err(|_| Error::Worker { purpose: "export caches" })?;
        Ok(Answerer { ns, shared, thread: Some(thread) })
    }

    /// What to answer from now on; none: leave questions unanswered. Does not touch the caches.
    pub fn set_table(&self, table: Option<ExportTable>) {
        *self.shared.table() = table.map(Arc::new);
    }

    /// Enters into the caches what clients would ask for, with the table that is set.
    ///
    /// The kernel resolves the export paths while it takes the lines: they must be mounted, and
    /// from then on the caches hold the mounts busy until [`flush`].
    /// Returns the number of entries. Nothing is done without a table.
    pub fn prefill(&self, known: &[IpAddr]) -> Result<usize> {
        let Some(table) = self.shared.table().clone() else { return Ok(0) };
        self.ns.run("nfsd-prefill", || {
            let requests = table.prefill(known);
            let mut writer = Writer::default();
            for request in &requests {
                writer.write(channel_of(request), &table.answer(request, now_s()))?;
            }
            Ok(requests.len())
        })
    }

    /// Counters.
    pub fn status(&self) -> AnswererStatus {
        AnswererStatus {
            answered: self.shared.answered.load(Ordering::Acquire),
            failures: self.shared.failures.load(Ordering::Acquire),
        }
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Empties the caches of `ns`, so that they let go of the mounts.
///
/// Never while clients can reach the server: they would see stale handles (S5).
pub fn flush(ns: &NetNs) -> Result<()> {
    ns.run("nfsd-flush", || {
        for cache in ["auth.unix.ip", "nfsd.fh", "nfsd.export"] {
            let file = rpc_dir().join(cache).join("flush");
            std::fs::write(&file, format!("{}\n", now_s()))
                .map_err(|source| ExportError::Channel { file, source })?;
        }
        Ok(())
    })
}

fn open(file: PathBuf) -> std::result::Result<File, ExportError> {
    let opened = OpenOptions::new().read(true).write(true).open(&file);
    opened.map_err(|source| ExportError::Channel { file, source })
}

fn open_all(rpc: &Path) -> std::result::Result<Vec<File>, ExportError> {
    CHANNELS.iter().map(|channel| open(rpc.join(channel.name).join("channel"))).collect()
}

fn write_line(mut file: &File, line: &[u8]) -> std::result::Result<(), ExportError> {
    file.write_all(line).map_err(|source| ExportError::Refused {
        line: String::from_utf8_lossy(line).trim_end().into(),
        source,
    })
}

/// Channels opened for writing only (a second reader would take the answerer's questions).
#[derive(Default)]
struct Writer {
    files: Vec<(&'static str, File)>,
}

impl Writer {
    fn write(
        &mut self,
        channel: &'static str,
        line: &[u8],
    ) -> std::result::Result<(), ExportError> {
        if let Some((_, file)) = self.files.iter().find(|(name, _)| *name == channel) {
            return write_line(file, line);
        }
        let path = rpc_dir().join(channel).join("channel");
        let opened = OpenOptions::new().write(true).open(&path);
        let file = opened.map_err(|source| ExportError::Channel { file: path, source })?;
        write_line(&file, line)?;
        self.files.push((channel, file));
        Ok(())
    }
}

struct Service {
    shared: Arc<Shared>,
    files: Vec<File>,
}

impl Service {
    fn run(&self) {
        while !self.shared.stop.load(Ordering::Acquire) {
            let table = self.shared.table().clone();
            match table {
                Some(table) => self.one_round(&table),
                None => std::thread::sleep(std::time::Duration::from_millis(LOOK_MS.into())),
            }
        }
    }

    fn one_round(&self, table: &ExportTable) {
        let mut fds: Vec<PollFd<'_>> =
            self.files.iter().map(|f| PollFd::new(f.as_fd(), PollFlags::POLLIN)).collect();
        if !matches!(poll(&mut fds, PollTimeout::from(LOOK_MS)), Ok(1..)) {
            return;
        }
        let ready = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        for ((fd, file), channel) in fds.iter().zip(&self.files).zip(&CHANNELS) {
            if ready(fd).contains(PollFlags::POLLIN) {
                self.answer(file, channel, table);
            }
        }
    }

    /// One question of one channel.
    fn answer(&self, mut file: &File, channel: &Channel, table: &ExportTable) {
        let mut buffer = vec![0; LINE_MAX];
        let length = match file.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => return,
            Err(error) => return self.failed(channel, &error),
        };
        let line = buffer.get(..length).unwrap_or_default();
        let Some(request) = (channel.parse)(line) else {
            return self.failed(channel, &String::from_utf8_lossy(line));
        };
        tracing::debug!(channel = channel.name, ?request, "export cache asks");
        match write_line(file, &table.answer(&request, now_s())) {
            Ok(()) => drop(self.shared.answered.fetch_add(1, Ordering::AcqRel)),
            Err(error) => self.failed(channel, &error),
        }
    }

    fn failed(&self, channel: &Channel, what: &dyn std::fmt::Display) {
        self.shared.failures.fetch_add(1, Ordering::AcqRel);
        tracing::warn!(channel = channel.name, %what, "export cache could not be answered");
    }
}
