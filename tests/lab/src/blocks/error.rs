//! What can go wrong outside the blocks themselves: the environment of the writer and the checker.

use std::io;
use std::path::PathBuf;

/// The writer or the checker could not do its work. Bad blocks are not errors: the checker counts them.
#[derive(Debug, thiserror::Error)]
pub enum BlocksError {
    /// A writer's name is unusable.
    #[error("writer id {given:?} is unusable: give 1 to 16 letters, digits or underscores")]
    BadWriterId {
        /// What was given.
        given: String,
    },
    /// The block size is unusable with `O_DIRECT`.
    #[error("block size {given} is unusable: give a power of two between 512 and 1048576")]
    BadBlockSize {
        /// What was given, bytes.
        given: u32,
    },
    /// No file or no block was asked for.
    #[error(
        "nothing to write: files ({files}) and blocks per file ({blocks}) must both be at least 1"
    )]
    NothingToWrite {
        /// Files asked for.
        files: u32,
        /// Blocks per file asked for.
        blocks: u64,
    },
    /// The size of a file would not fit a file offset.
    #[error(
        "a file of {blocks} blocks of {block_size} bytes is larger than a file can be: give fewer blocks"
    )]
    TooLarge {
        /// Blocks per file.
        blocks: u64,
        /// Block size, bytes.
        block_size: u32,
    },
    /// The file system does not take `O_DIRECT`.
    #[error("the file system of {} refuses O_DIRECT: pass --no-direct if the page cache may be trusted there", path.display())]
    DirectRefused {
        /// The file.
        path: PathBuf,
    },
    /// A file could not be opened or prepared.
    #[error("cannot open or prepare {}: is the volume mounted and writable?", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A local file (journal or statistics) could not be written; the writer stops, as nothing could be proven.
    #[error("cannot write {}: is its file system full?", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A lock could not be taken at the start.
    #[error("byte {byte} of {} could not be locked: does another writer with the same id run?", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// The byte.
        byte: i64,
        /// Why.
        source: io::Error,
    },
    /// The journal is damaged before its end.
    #[error("entry {entry} of {} is damaged and others follow: this journal proves nothing", path.display())]
    JournalDamaged {
        /// The journal.
        path: PathBuf,
        /// Number of the entry, from 0.
        entry: u64,
    },
    /// The journal begins with something else than the start of a run.
    #[error("{} does not begin with the start of a run: is it a journal of this program?", path.display())]
    NotAJournal {
        /// The journal.
        path: PathBuf,
    },
    /// The journal speaks of a different writer or of blocks of another size.
    #[error("{} belongs to another writer or block size: give each writer its own journal", path.display())]
    JournalMismatch {
        /// The journal.
        path: PathBuf,
    },
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread {
        /// Why.
        source: io::Error,
    },
    /// Statistics could not be turned into JSON.
    #[error("cannot format the statistics")]
    Json {
        /// Why.
        #[from]
        source: serde_json::Error,
    },
}
