//! What the kernel says of this host's NFS mounts, read from procfs, sysfs and the kernel log only.
//!
//! No function here opens, stats or resolves a path *on* a mount: a dead server would hang the
//! caller (S10). What cannot be parsed is reported as such and never taken as good news (S12).

pub mod check;
pub mod escape;
pub mod host;
pub mod kmsg;
pub mod mountinfo;
pub mod mountstats;
pub mod options;
pub mod stall;
pub mod sunrpc;

/// A line that could not be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not understood ({what}): whatever it describes is unknown")]
pub struct LineProblem {
    /// Number of the line, from 1.
    pub line: usize,
    /// What is missing or malformed.
    pub what: &'static str,
}

/// What was understood of a file, and what was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<T> {
    /// The entries that were understood.
    pub entries: Vec<T>,
    /// The lines that were not. Not empty means: there may be more entries than listed.
    pub problems: Vec<LineProblem>,
}

impl<T> Default for Parsed<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), problems: Vec::new() }
    }
}

impl<T> Parsed<T> {
    /// Notes that `line` (from 1) was not understood.
    fn problem(&mut self, line: usize, what: &'static str) {
        self.problems.push(LineProblem { line, what });
    }
}
