//! The generic-netlink family `nfsd` of newer kernels: what runs now, and settings read back.
//!
//! The family came step by step: `RPC_STATUS_GET` first (6.7), the others by 6.10; Linux 6.1 has
//! none of it. It has no way to end grace, and the control files do all the rest on every kernel,
//! so they stay the way to steer a server; this is for what they cannot tell ([`Client::running`])
//! and for a second opinion. Numbers: `include/uapi/linux/nfsd_netlink.h`, which is made from
//! `Documentation/netlink/specs/nfsd.yaml`; behaviour: `fs/nfsd/nfsctl.c`, functions `nfsd_nl_*`.
//!
//! Keeps S10 (the kernel works a request off inside `sendmsg`, behind a lock that every server of
//! the machine shares, so a thread of its own does it and callers wait only until their deadline)
//! and S12 (late, missing and unreadable answers are errors, never "nothing runs").

mod client;
mod model;
mod socket;
mod wire;

use std::io;
use std::time::Duration;

pub use client::Client;
pub use model::{Listener, Running, RunningCall, Threads, ThreadsChange, Version};
pub use wire::DecodeError;

/// Commands of the family that are used here (`NFSD_CMD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Calls in execution.
    RpcStatusGet = 1,
    /// Starts or stops threads.
    ThreadsSet = 2,
    /// Threads, lease, grace, scope.
    ThreadsGet = 3,
    /// Protocol versions; only while no server exists.
    VersionSet = 4,
    /// Protocol versions.
    VersionGet = 5,
    /// Listeners; only while no thread runs.
    ListenerSet = 6,
    /// Listeners.
    ListenerGet = 7,
}

/// What went wrong between us and the family.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel has no such family: steer and read through the control files.
    #[error("this kernel has no netlink family for its NFS server")]
    NoFamily,
    /// The family exists but is older than the command: use the control files for it.
    #[error("this kernel's nfsd family does not know {command:?}")]
    NoCommand {
        /// The command.
        command: Command,
    },
    /// The kernel refused; nothing was changed, except that a refused change of threads or
    /// listeners may have been carried out in part: read back.
    #[error("the kernel refused {command:?}: {source}")]
    Refused {
        /// The command.
        command: Command,
        /// The system's answer; EBUSY: a server exists or threads run.
        source: io::Error,
    },
    /// No answer within the limit. The kernel may still carry the request out: read back.
    #[error("no answer to {what} within {limit:?}")]
    Late {
        /// What was asked.
        what: &'static str,
        /// The caller's limit.
        limit: Duration,
    },
    /// The kernel's answer makes no sense; nothing is concluded from it.
    #[error("unreadable netlink answer: {0}")]
    Unreadable(#[from] DecodeError),
    /// The socket failed; the next call opens a new one.
    #[error("netlink socket: {0}")]
    Socket(#[from] io::Error),
    /// The thread that speaks to the kernel could not be started or has died.
    #[error("the netlink thread of {namespace} does not run")]
    Worker {
        /// The network namespace.
        namespace: String,
    },
}

impl NetlinkError {
    /// Is the interface simply not there, so that the control files are all there is?
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::NoFamily | Self::NoCommand { .. })
    }
}
