//! The crate's error type. Each variant says what is true now; fields carry the evidence.

use std::io;
use std::path::PathBuf;

use crate::cld::WireError;
use crate::exports::ExportError;
use crate::netlink::NetlinkError;
use crate::probe::ProbeError;
use crate::records::RecordsError;

/// Short form used throughout the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What is wrong, and so what is true now.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network namespace could not be opened or entered; nothing was done in it.
    #[error("network namespace {namespace} cannot be entered: {source}")]
    Namespace {
        /// Its name or path.
        namespace: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A thread could not be started or it died; its work may be half done.
    #[error("worker thread for {purpose} could not run")]
    Worker {
        /// What the thread was for.
        purpose: &'static str,
    },
    /// A kernel control file could not be read or written.
    #[error("control file {} cannot be used: {source}", file.display())]
    Control {
        /// The file.
        file: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A control file held something that this crate does not understand.
    #[error("control file {} holds {content:?}, which is not understood", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Its content, shortened.
        content: String,
    },
    /// The setting can only be changed while no server exists in the namespace (EBUSY):
    /// stop the threads and remove the listeners first.
    #[error("{} cannot be changed: a server exists already in this namespace", file.display())]
    ServerExists {
        /// The control file that refused.
        file: PathBuf,
    },
    /// The kernel runs other protocol versions than were asked for; do not serve.
    #[error("kernel answers protocol versions {found:?} instead of 4.1 and 4.2 alone")]
    WrongVersions {
        /// What the kernel reports.
        found: String,
    },
    /// A kernel file system could not be mounted; the directory is as it was.
    #[error("{fstype} cannot be mounted on {}: {source}", dir.display())]
    Mount {
        /// `nfsd` or `rpc_pipefs`.
        fstype: &'static str,
        /// Where it should appear.
        dir: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Something else is mounted where a control directory is needed; it was left alone.
    #[error("{} carries another file system (type {magic:#x}); {fstype} not mounted", dir.display())]
    ForeignMount {
        /// The wanted type.
        fstype: &'static str,
        /// The directory.
        dir: PathBuf,
        /// `f_type` found there.
        magic: u64,
    },
    /// The server scope must have 1 to 64 bytes without NUL (it is set as a host name).
    #[error("server scope {scope:?} is not usable: it needs 1 to 64 printable bytes")]
    BadScope {
        /// The scope given.
        scope: String,
    },
    /// Fewer threads run than were asked for.
    #[error("{found} server threads run, {wanted} were asked for")]
    Threads {
        /// Asked for.
        wanted: u32,
        /// Running.
        found: u32,
    },
    /// Grace cannot be ended: it is over already or the tracker is not active (EBUSY).
    #[error("grace is over already, or client tracking is not active")]
    GraceNotRunning,
    /// A client that was to be expired speaks, or nobody knows whether it does: it was left alone.
    #[error("client {name} {}; {expired} clients were expired before", last_renewal(*renewed_s))]
    ClientLives {
        /// Its owner string, replaced where it is not UTF-8.
        name: String,
        /// Seconds since it last renewed its lease; absent: not known.
        renewed_s: Option<i64>,
        /// How many of those that were to be expired are gone.
        expired: usize,
    },
    /// The netlink family; never means that nothing runs.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// An upcall of the tracker pipe cannot be decoded.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Client records.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// Export definitions or cache channels.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The probe.
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

fn last_renewal(renewed_s: Option<i64>) -> String {
    match renewed_s {
        Some(s) => format!("renewed its lease {s} s ago"),
        None => "may have renewed its lease just now: the kernel does not tell".into(),
    }
}
