//! What is said on the agent's socket, `/run/hvagent/socket`: one JSON object a line, a question and its
//! answer, on a connection of its own.
//!
//! Keeps S11 and its exception to S12: a hook that gets no answer in time lets go.

use serde::{Deserialize, Serialize};

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
}

/// What libvirt's hook asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// What is about to happen.
    pub operation: Operation,
    /// The guest's name.
    pub domain: String,
    /// Paths of its disks and leases, as in its XML.
    pub disks: Vec<std::path::PathBuf>,
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
