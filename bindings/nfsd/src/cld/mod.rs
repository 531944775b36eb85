//! The kernel's client tracker, played by ourselves instead of by the usual daemon.
//!
//! The kernel asks over a pipe, `<rpc_pipefs>/nfsd/cld`, that exists only while a server runs:
//! it appears *inside* the write to `threads`, and the kernel looks once after 100 ms, then each
//! 100 ms, ten times, for a reader (`nfsd4_cld_tracking_init`). Too late means no tracking, and
//! every reclaim is refused; so [`Tracker`] must be ready before threads are written.
//!
//! Keeps S6.

mod inflight;
mod serve;
mod slot;
mod wire;

pub use serve::{Tracker, TrackerStatus};
pub use slot::RecordSlot;
pub use wire::{Command, Reply, Request, WireError};

use crate::records::{ClientRecord, RecordsError};

/// What the tracker asks its owner. Every call is one upcall of the kernel that waits for it.
pub trait ClientRecords: Send + Sync {
    /// A client finished reclaiming or confirmed: it must be on stable storage on return.
    fn create(&self, client: &ClientRecord) -> Result<(), RecordsError>;
    /// A client is gone for good.
    fn remove(&self, client: &ClientRecord) -> Result<(), RecordsError>;
    /// May this client reclaim? (Only old kernels ask; newer ones hold the list themselves.)
    fn may_reclaim(&self, client: &ClientRecord) -> Result<bool, RecordsError>;
    /// Grace begins: the list of clients that may reclaim. May block up to a deadline of its own
    /// until the list is known; the kernel waits, holding its global server lock.
    fn grace_start(&self) -> Result<Vec<ClientRecord>, RecordsError>;
    /// Grace is over: on return no older list may ever be used again.
    fn grace_done(&self) -> Result<(), RecordsError>;
}
