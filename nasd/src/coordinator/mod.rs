//! The consensus store behind a trait: `etcd` in production, `file` for one machine.
//!
//! Keeps S8 (an unknown outcome of a compare-and-set is told as such; nothing is decided until a read
//! resolves it) and S12 (reads are linearizable; what cannot be read or parsed is a no; each node keeps
//! the last record that it saw on its own disk).

mod etcd;
mod file;
mod last_seen;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use thiserror::Error;

pub use etcd::Etcd;
pub use file::{FileStore, write_durably};
pub use last_seen::{EmergencyNote, LastSeen, Memory};

use crate::config::{Config, CoordinatorConfig};
use crate::core::record::Record;

/// A record with the revision that a compare-and-set compares (etcd: `mod_revision`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The record.
    pub record: Record,
    /// Its revision; rises with every write of the key.
    pub revision: i64,
}

/// A compare-and-set whose outcome is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CasOutcome {
    /// It is written.
    Won {
        /// The new revision.
        revision: i64,
    },
    /// Somebody else was first; this is what is there.
    Lost {
        /// `None`: the key does not exist.
        now: Option<Versioned>,
    },
}

/// What can go wrong, and what is true then.
#[derive(Debug, Error)]
pub enum CoordinatorError {
    /// No answer in time; a read has no effect, so nothing has changed.
    #[error("the coordinator did not answer within {after:?}; is a majority of its members up?")]
    Unreachable {
        /// The deadline.
        after: Duration,
    },
    /// A write got no answer: it may have happened, or may still. A read must resolve it.
    #[error("whether the record was written is unknown: {reason}")]
    OutcomeUnknown {
        /// What happened to the call.
        reason: String,
    },
    /// It answered that it cannot.
    #[error("the coordinator refused: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// Its database is full: it reads, but writes nothing until an operator has made room.
    #[error(
        "the coordinator's database is full, so no failover is possible ({reason}); make room: etcdctl compact, etcdctl defrag on every member, then etcdctl alarm disarm"
    )]
    NoSpace {
        /// Its words.
        reason: String,
    },
    /// What is stored is no record of ours.
    #[error("the record at {key} is not readable ({reason}); nothing is decided from it")]
    Corrupt {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// The set-up is unusable.
    #[error("the coordinator cannot be used: {reason}")]
    SetUp {
        /// Why.
        reason: String,
    },
}

/// The store. Every call has its own deadline inside.
#[tonic::async_trait]
pub trait Coordinator: Send + Sync {
    /// The newest record; linearizable.
    async fn read(&self, service: &str) -> Result<Option<Versioned>, CoordinatorError>;
    /// Writes the first record, if there is none.
    async fn create(&self, service: &str, record: &Record) -> Result<CasOutcome, CoordinatorError>;
    /// Writes, if the revision is still this one.
    async fn compare_and_set(
        &self,
        service: &str,
        revision: i64,
        record: &Record,
    ) -> Result<CasOutcome, CoordinatorError>;
    /// Changes, best effort; a hint to read. Ends when the connection breaks.
    fn watch(&self, service: &str) -> BoxStream<'static, ()>;
    /// Whether that node's nasd answers *in the store* to a question put there now. `false` is
    /// evidence only as far as nobody answered in a fraction of a second; an error is no evidence.
    async fn seek(&self, node: &str, limit: Duration) -> Result<bool, CoordinatorError>;
    /// From now on: answers such questions for this node, and keeps the store fit for a failover.
    /// `here` is this node's address, `nas` are those of all NAS nodes.
    fn attend(&self, _me: &str, _here: IpAddr, _nas: &[IpAddr]) {}
    /// Whether it can be reached and written, as far as that is known of the last seconds.
    fn reach(&self) -> Option<bool>;
    /// What is wrong with the store though it answers, for the operator.
    fn alarm(&self) -> Option<String> {
        None
    }
}

/// Opens the configured store. Its reach is not needed yet.
///
/// # Errors
/// When keys or paths cannot be used.
pub async fn open(
    config: &Config,
    state_dir: &Path,
) -> Result<Arc<dyn Coordinator>, CoordinatorError> {
    match &config.coordinator {
        CoordinatorConfig::Etcd { endpoints, tls, deadline } => {
            let store = Etcd::new(&config.cluster, endpoints, tls.as_ref(), *deadline).await?;
            Ok(Arc::new(store.remembering(state_dir.join("etcd-cluster"))?))
        }
        CoordinatorConfig::File { path } => Ok(Arc::new(FileStore::new(path.clone()))),
    }
}

/// Reads a stored record strictly.
fn parse(key: &str, text: &[u8]) -> Result<Record, CoordinatorError> {
    serde_json::from_slice(text)
        .map_err(|e| CoordinatorError::Corrupt { key: key.to_owned(), reason: e.to_string() })
}
