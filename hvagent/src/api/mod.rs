//! What is said on the agent's socket, `/run/hvagent/socket`: one JSON object a line, a question and its
//! answer, on a connection of its own.
//!
//! Keeps S11 and its exception to S12: a hook that gets no answer in time lets go.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub mod serve;

/// Where the agent listens.
pub const SOCKET: &str = "/run/hvagent/socket";

/// Longest line that is read, in bytes. The XML of a guest with many disks has some 20 KiB.
pub const LONGEST_LINE: usize = 1 << 20;

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Question {
    /// Everything the agent knows.
    Status,
    /// May this begin?
    Hook(Hook),
    /// An operator takes the problems that were found on a mount after a move.
    Accept {
        /// The mount point.
        mount: PathBuf,
    },
}

/// What a question that cannot be answered gets, and an accepted one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done.
    Done,
    /// Not understood, or not done: why.
    Error(String),
}

/// Everything the agent knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// This host.
    pub host: String,
    /// The agent's version.
    pub version: String,
    /// Since its start.
    pub up_s: u64,
    /// The nasds that are configured.
    pub nasds: Vec<NasdStatus>,
    /// Why libvirt does not answer; `None`: it does.
    pub libvirt: Option<String>,
    /// Mounts that a service serves.
    pub mounts: Vec<MountStatus>,
    /// NFS mounts of no known service.
    pub other_mounts: Vec<PathBuf>,
    /// What is wrong with the host as a whole.
    pub problems: Vec<String>,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NasdStatus {
    /// The node.
    pub name: String,
    /// Why it does not answer; `None`: it does.
    pub down: Option<String>,
    /// For how long that has been so.
    pub for_s: u64,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStatus {
    /// The service below it.
    pub service: String,
    /// Mount point.
    pub mount: PathBuf,
    /// Phase in kebab case, such as `io-back`.
    pub phase: String,
    /// For how long.
    pub for_ms: u64,
    /// The move under way.
    pub move_id: Option<u64>,
    /// Migrations are held back.
    pub held: bool,
    /// No answers of the server for so long.
    pub stalled_ms: Option<u64>,
    /// What a stall may last before a guest loses its lease; absent: no leases.
    pub margin_ms: Option<u64>,
    /// Until the next renewal of a lease is due.
    pub next_renewal_ms: Option<u64>,
    /// Guests that run with a disk there.
    pub guests: u32,
    /// Migrations that run.
    pub migrations: u32,
    /// What the last stall cost; guest `""` is the mount as a whole.
    pub last_stalls: Vec<StallStatus>,
    /// In words.
    pub problems: Vec<String>,
}

/// What a stall cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StallStatus {
    /// The guest.
    pub guest: String,
    /// How long.
    pub stall_ms: u64,
    /// In which move.
    pub move_id: Option<u64>,
}

/// What libvirt's hook asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// What is about to happen.
    pub operation: Operation,
    /// The guest's name.
    pub domain: String,
    /// Its uuid, where the hook knows it.
    #[serde(default)]
    pub uuid: Option<String>,
    /// Paths of its disks and leases, as in its XML.
    pub disks: Vec<PathBuf>,
}

/// As [`crate::core::phase::Operation`], on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// A live migration, from or to here.
    Migrate,
    /// Start of a guest.
    Start,
    /// Resume of a paused guest.
    Resume,
    /// Pause of a guest.
    Pause,
    /// Copy, commit or pull of a disk.
    BlockJob,
}

/// What the hook is told. A mount that no service of nasd serves never refuses anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// Go on.
    Allow,
    /// Ask again after this time at the latest; it may be shorter.
    Wait {
        /// Milliseconds until the phase that is the reason ends.
        wait_ms: u64,
        /// Why, in words.
        reason: String,
    },
    /// Do not.
    Refuse {
        /// Why, in words for whoever started it.
        reason: String,
    },
}
