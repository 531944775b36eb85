//! Self-describing blocks: the proof that no acknowledged write was lost.
//!
//! Owns the format of a block, the log of acknowledged writes, the writer that runs on a client while the service
//! moves, and the checker that compares the volume with the logs afterwards. It measures what S1 (one writer),
//! S2 (never stale), S6 (locks survive) and S8 (deadlines) promise; it keeps no rule itself.
//!
//! What the checker can prove: for each place (writer, file, offset) the *newest* acknowledged write, or a newer one
//! that was on its way, is on the volume. Acknowledged writes that were overwritten later are proven by their successor.

pub mod block;
pub mod buffer;
pub mod check;
mod error;
pub mod gaps;
pub mod histogram;
pub mod journal;
pub mod locks;
pub mod stats;
pub mod writer;

#[cfg(test)]
mod tests;

pub use block::{Block, Content, WriterId};
pub use check::{CheckReport, check};
pub use error::BlocksError;
pub use stats::WriterStats;
pub use writer::{WriterConfig, write_until};

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Path of data file number `file` of `writer` inside `dir`.
#[must_use]
pub fn data_path(dir: &Path, writer: &WriterId, file: u32) -> PathBuf {
    dir.join(format!("w{writer}-{file}.blk"))
}

/// Path of extra lock file number `file` of `writer` inside `dir`.
#[must_use]
pub fn lock_path(dir: &Path, writer: &WriterId, file: u32) -> PathBuf {
    dir.join(format!("w{writer}-{file}.lck"))
}

/// `CLOCK_REALTIME` in nanoseconds: the one clock that can be compared between nodes. Zero before 1970.
#[must_use]
pub fn wall_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| u64::try_from(d.as_nanos()).ok())
        .unwrap_or(0)
}
