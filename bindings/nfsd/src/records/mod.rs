//! The NFS server's client records, kept on the volume itself: `<mount>/.nasd/clients/`.
//!
//! Who is in the list may reclaim after a move; who is not loses its locks. So (S6): the list
//! travels with the data; a list that is missing or damaged stops the start; only one that says
//! it is empty is empty.
//!
//! Files: `gen-N` is an append-only log of one generation's clients, `state` (replaced as a
//! whole) says which generation is *current* and which, during grace, is the *recovery* set.
//! Grace begins: the current set becomes the recovery set and an empty one begins; a client
//! enters it when it has reclaimed. Grace ends: the recovery set is void for ever. Grace begins
//! again before it ended: recovery set and current set together form the next recovery set.

mod format;
mod store;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use store::Store;

/// A client as the kernel names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientRecord {
    /// Its owner string (`co_ownerid`), 1 to 1024 bytes.
    pub name: Vec<u8>,
    /// SHA-256 of its Kerberos principal, or empty.
    pub princhash: Vec<u8>,
}

/// The records at one moment, as mirrored to the peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Number of the current generation; rises with every grace.
    pub generation: u64,
    /// Does grace run?
    pub in_grace: bool,
    /// Clients that may reclaim in this grace; empty outside grace.
    pub recovery: Vec<ClientRecord>,
    /// Clients that have state now (in grace: that have reclaimed).
    pub current: Vec<ClientRecord>,
}

impl Snapshot {
    /// Clients that would have to be let in if the server were started from this snapshot.
    pub fn recorded(&self) -> usize {
        let extra = self.current.iter().filter(|c| !self.recovery.iter().any(|r| r.name == c.name));
        self.recovery.len() + extra.count()
    }

    /// Would a client of this name have to be let in?
    pub fn names(&self, name: &[u8]) -> bool {
        self.recovery.iter().chain(&self.current).any(|client| client.name == name)
    }

    /// Clients of the recovery set that have reclaimed.
    pub fn reclaimed(&self) -> usize {
        self.recovery.iter().filter(|r| self.current.iter().any(|c| c.name == r.name)).count()
    }
}

/// What is wrong with the records, and so what is true now.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The volume carries no records although it must: do not start the server; look whether
    /// this is the right volume, or restore the records from the peer's mirror.
    #[error("no client records in {}: a server started now would refuse every reclaim", dir.display())]
    Missing {
        /// Where they should be.
        dir: PathBuf,
    },
    /// A file is damaged: do not start the server.
    #[error("client records in {} are damaged at byte {offset}: {what}", file.display())]
    Damaged {
        /// Which file.
        file: PathBuf,
        /// Where.
        offset: usize,
        /// What does not fit.
        what: &'static str,
    },
    /// A file could not be read or written.
    #[error("client records: {} failed: {source}", file.display())]
    Io {
        /// Which file.
        file: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A client that cannot be recorded (name of 0 or more than 1024 bytes, hash over 32).
    #[error("a client with a name of {name} bytes and a hash of {hash} bytes cannot be recorded")]
    BadClient {
        /// Length of its name.
        name: usize,
        /// Length of its hash.
        hash: usize,
    },
    /// A write failed before; what is on disk is unknown until the store is opened again.
    #[error("client records: an earlier write failed; the store must be opened again")]
    Poisoned,
    /// No volume's records are loaded, and none came before the deadline.
    #[error("no volume's client records are loaded")]
    NotLoaded,
}
