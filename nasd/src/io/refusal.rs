//! Why a request was not carried out, in a form that travels over the socket.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Holder;

/// An error of the system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct SysError {
    /// Number, where there was one.
    pub errno: Option<i32>,
    /// The system's words.
    pub text: String,
}

impl From<&io::Error> for SysError {
    fn from(error: &io::Error) -> Self {
        SysError { errno: error.raw_os_error(), text: error.to_string() }
    }
}

impl From<io::Error> for SysError {
    fn from(error: io::Error) -> Self {
        SysError::from(&error)
    }
}

impl From<rustix::io::Errno> for SysError {
    fn from(errno: rustix::io::Errno) -> Self {
        io::Error::from(errno).into()
    }
}

/// What is true instead of what was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Refusal {
    /// The line was not a request.
    #[error("request not understood: {text}")]
    NotUnderstood {
        /// What is wrong with it.
        text: String,
    },
    /// This process is for another service, namespace or protocol version: replace it.
    #[error("this process serves {service} in {} with protocol {version}", netns.display())]
    Stranger {
        /// Its service.
        service: String,
        /// Its namespace.
        netns: PathBuf,
        /// Its protocol version.
        version: u32,
    },
    /// Another request of the kind is still under way; nothing was done.
    #[error("{op} has been under way for {since_ms} ms")]
    Occupied {
        /// Which.
        op: String,
        /// Since when, milliseconds.
        since_ms: u64,
    },
    /// No thread could be had; nothing was done.
    #[error("too many requests under way")]
    Overloaded,
    /// The program failed while carrying the request out; how far it came is unknown: ask for
    /// the state. A defect to be reported.
    #[error("nasd-io failed inside {op}: {text}")]
    Crashed {
        /// Request.
        op: String,
        /// What was said.
        text: String,
    },
    /// Another file system is mounted there; it was left alone.
    #[error("{} carries {source_device} ({fstype})", target.display())]
    ForeignMount {
        /// Mount point.
        target: PathBuf,
        /// What is mounted.
        source_device: String,
        /// Its type.
        fstype: String,
    },
    /// The device is mounted at another place; nothing was done.
    #[error("{} is mounted on {}", device.display(), target.display())]
    MountedElsewhere {
        /// Device.
        device: PathBuf,
        /// Where.
        target: PathBuf,
    },
    /// The path is no block device that can be used.
    #[error("{} cannot be used as a device: {error}", device.display())]
    BadDevice {
        /// Device.
        device: PathBuf,
        /// The system's answer.
        error: SysError,
    },
    /// An option that this program will not pass on.
    #[error("mount option {option:?} is not allowed")]
    BadOption {
        /// The option.
        option: String,
    },
    /// The kernel refused the mount; nothing is mounted.
    #[error("mount of {} failed while {step}: {error} {}", device.display(), messages.join("; "))]
    MountFailed {
        /// Device.
        device: PathBuf,
        /// What was being done.
        step: String,
        /// The system's answer.
        error: SysError,
        /// The file system's own words.
        messages: Vec<String>,
    },
    /// Nothing is mounted where a volume is needed.
    #[error("nothing is mounted on {}", target.display())]
    NotMounted {
        /// Mount point.
        target: PathBuf,
    },
    /// Still busy at the deadline; it is still mounted.
    #[error("{} is busy after {waited_ms} ms; {} holders found", target.display(), holders.len())]
    Busy {
        /// Mount point.
        target: PathBuf,
        /// How long it was tried.
        waited_ms: u64,
        /// Who holds it.
        holders: Vec<Holder>,
    },
    /// The server runs or its records are open on a volume: stop it first.
    #[error("the NFS server is not stopped")]
    ServerRunning,
    /// `server_setup` has not been carried out by this process.
    #[error("the NFS server is not set up")]
    NotSetUp,
    /// No server runs that could know clients; nothing was changed.
    #[error("the NFS server does not run")]
    NotRunning,
    /// No volume's client records are loaded: who is recorded is unknown.
    #[error("no volume's client records are loaded")]
    RecordsNotLoaded,
    /// Grace runs and ends by itself; no client was expired.
    #[error("grace runs; it ends by itself")]
    InGrace,
    /// Removals of client records are ignored: the gate is shut, or has not been open for one lease.
    /// No client was expired.
    #[error(
        "removals of client records are ignored while the gate is shut and for one lease after"
    )]
    RemovalsIgnored,
    /// A client that was to be expired is not known to be silent for longer than a lease.
    #[error("client {name} {}; {expired} clients were expired before", match renewed_s {
        Some(s) => format!("renewed its lease {s} s ago"),
        None => "may have renewed its lease just now".into(),
    })]
    ClientLives {
        /// Its owner string.
        name: String,
        /// Seconds since it last renewed; absent: not known.
        renewed_s: Option<i64>,
        /// How many of those that were to be expired are gone.
        expired: usize,
    },
    /// The clients were expired, and records name them still: the next grace waits for them. They have come
    /// back, or removals are ignored since, or a record could not be removed.
    #[error("expired, but still in the client records: {}; the next grace waits for them", names.join(", "))]
    StillRecorded {
        /// Their owner strings.
        names: Vec<String>,
    },
    /// The server is set up otherwise and its settings cannot change while it exists.
    #[error("the NFS server exists with other settings; stop it first")]
    SetUpOtherwise,
    /// Clients that came now could not reclaim any more: the server must be started anew.
    #[error("grace has ended before the gate could open; the server must be started anew")]
    GraceOver,
    /// The volume has no client records although it must: a server started now would refuse
    /// every reclaim. Not started.
    #[error("no client records in {}", dir.display())]
    RecordsMissing {
        /// Where they should be.
        dir: PathBuf,
    },
    /// The client records are damaged. Not started.
    #[error("client records unusable: {text}")]
    RecordsUnusable {
        /// How.
        text: String,
    },
    /// The kernel runs without our client records, so every reclaim would be refused. A server
    /// just started was stopped again; one that was to be adopted still runs: close its gate
    /// and stop it.
    #[error("kernel does not use the client records: {text}")]
    TrackingFailed {
        /// What was seen.
        text: String,
    },
    /// A step of setting up, starting or stopping failed. After a failed start the server is
    /// stopped.
    #[error("{step}: {text}")]
    ServerStep {
        /// Which.
        step: String,
        /// What is wrong.
        text: String,
    },
    /// The exports do not fit together.
    #[error("exports: {text}")]
    BadExports {
        /// What is wrong.
        text: String,
    },
    /// The probe got no answer, or a refusal.
    #[error("probe: {text}")]
    ProbeFailed {
        /// What is wrong.
        text: String,
    },
    /// The probe found another server or another file system: do not open.
    #[error("probe: {what} is {found} instead of {wanted}")]
    ProbeMismatch {
        /// `scope`, `fsid` or `type`.
        what: String,
        /// What was found.
        found: String,
        /// What must be.
        wanted: String,
    },
    /// The marker is there and cannot be read: not the volume to serve.
    #[error("marker on {} cannot be read: {text}", target.display())]
    BadMarker {
        /// Mount point.
        target: PathBuf,
        /// What is wrong.
        text: String,
    },
    /// A system call on the volume failed.
    #[error("{step} on {} failed: {error}", path.display())]
    System {
        /// What was being done.
        step: String,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        error: SysError,
    },
}

impl Refusal {
    /// A failed system call.
    pub(super) fn system(step: &str, path: impl Into<PathBuf>, error: impl Into<SysError>) -> Self {
        Refusal::System { step: step.into(), path: path.into(), error: error.into() }
    }
}
