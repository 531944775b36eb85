//! The crate's error type. Each variant says what is true now; fields carry the evidence.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Short form used throughout the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What is wrong. None of these says anything about the leases: they are unknown then (S12).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens, or this user may not connect.
    #[error(
        "sanlock's socket {} cannot be used: {source}; check that sanlock.service runs and that \
         this user is root or in the group sanlock",
        path.display()
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The daemon did not answer in time; the connection was closed.
    #[error(
        "sanlock did not finish \"{doing}\" within {limit:?}; its main loop may hang, and then it \
         checks no lease: look at `systemctl status sanlock`"
    )]
    Deadline {
        /// The step.
        doing: &'static str,
        /// The client's limit for a whole exchange.
        limit: Duration,
    },
    /// The connection broke.
    #[error("connection to sanlock broke in \"{doing}\": {source}")]
    Broken {
        /// The step.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The answer ended early: the daemon died or was restarted in the middle of it.
    #[error("sanlock's answer ended in the middle of {part}; ask again")]
    Truncated {
        /// What was being read.
        part: &'static str,
    },
    /// Whatever listens on the socket is not sanlock.
    #[error("the answer does not begin with sanlock's magic number (found {found:#010x})")]
    NotSanlock {
        /// The number found.
        found: u32,
    },
    /// The daemon speaks another protocol than this program knows; nothing was read from it.
    #[error(
        "sanlock speaks protocol {found:#010x}, this program knows {:#010x}",
        crate::wire::PROTOCOL
    )]
    OtherVersion {
        /// `SM_PROTO` of the daemon.
        found: u32,
    },
    /// The answer belongs to another question.
    #[error("sanlock answered command {found} instead of {asked}")]
    OtherCommand {
        /// Number of the command sent.
        asked: u32,
        /// Number of the command answered.
        found: u32,
    },
    /// A length which the daemon cannot mean.
    #[error("sanlock announces {found} for {part}, at most or exactly {allowed} is possible")]
    BadLength {
        /// What has that length.
        part: &'static str,
        /// As announced, in bytes or in pieces.
        found: u64,
        /// The bound.
        allowed: u64,
    },
    /// A record of a kind that is unknown or does not belong here.
    #[error(
        "sanlock sent a record of type {found} in its {answer} answer, which is not understood"
    )]
    UnexpectedRecord {
        /// Which answer.
        answer: &'static str,
        /// `SANLK_STATE_*`.
        found: u32,
    },
    /// The text of a record lacks a field, holds it twice, or its value is not understood.
    #[error("field {key} of a sanlock {record} record is {found:?}, which is not understood")]
    BadField {
        /// Kind of record.
        record: &'static str,
        /// The key.
        key: &'static str,
        /// The value, shortened; `None` when the field is missing.
        found: Option<String>,
    },
    /// No lockspace of that name is joined on this host.
    #[error("lockspace {name:?} is not joined on this host")]
    NoSuchLockspace {
        /// As asked for.
        name: String,
    },
    /// The lockspace was joined a moment ago; the other hosts' leases have not been read yet.
    #[error("sanlock has not read the leases of lockspace {name:?} yet; ask again after a renewal")]
    NotReadYet {
        /// As asked for.
        name: String,
    },
    /// The daemon has more than its answer can hold.
    #[error("sanlock could not send all {count} entries; the list would be incomplete")]
    Incomplete {
        /// How many there are.
        count: u32,
    },
    /// The daemon refused for another reason.
    #[error("sanlock refused {command}: {code}")]
    Refused {
        /// The command's name.
        command: &'static str,
        /// Negative errno or a code of `sanlock_rv.h`.
        code: i32,
    },
    /// A lockspace's name has 1 to 48 bytes without NUL.
    #[error("{name:?} cannot be a lockspace's name: 1 to 48 bytes, no NUL")]
    BadName {
        /// As given.
        name: String,
    },
}
