//! Proof that a server answers, by a session as any client's, made and torn down.
//!
//! The probe opens nothing and never says that it has reclaimed, so the server keeps no client
//! record of it (`nfsd4_client_record_create` runs only then). It runs before the gate opens (S5).

mod client;
mod xdr;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use client::{null_call, probe};

/// What to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Server, normally the namespace's loopback and port 2049.
    pub address: SocketAddr,
    /// Name of an export below the root.
    pub export: String,
    /// Ours, unique per node and service: two probes of one name would disturb each other.
    pub owner: String,
    /// For everything together.
    pub deadline: Duration,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The server's scope (`eir_server_scope`).
    pub scope: Vec<u8>,
    /// The export's `fsid`, 16 bytes as on the wire; an export by UUID shows that UUID.
    pub fsid: [u8; 16],
    /// `NF4DIR` (2) for a directory.
    pub kind: u32,
}

/// Why the server is not proven to serve.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nobody listens, or the connection broke.
    #[error("connection to {address} failed: {source}")]
    Connection {
        /// The server.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// No answer in time.
    #[error("no answer from {address} within the deadline while in {step}")]
    Deadline {
        /// The server.
        address: SocketAddr,
        /// What was being asked.
        step: &'static str,
    },
    /// The server refused the call itself (RPC level).
    #[error("{step} was refused by the RPC layer: {reason}")]
    Rpc {
        /// What was being asked.
        step: &'static str,
        /// In which way.
        reason: RpcReason,
    },
    /// The server answered with an NFS error.
    #[error("{step} answered NFS status {status}")]
    Nfs {
        /// What was being asked.
        step: &'static str,
        /// `nfsstat4`.
        status: u32,
    },
    /// The answer has not the form of the protocol.
    #[error("answer to {step} cannot be read")]
    Garbled {
        /// What was being asked.
        step: &'static str,
    },
}

/// Ways in which a call is refused (RFC 5531).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RpcReason {
    /// Authentication: the export caches do not know this address.
    #[error("authentication error {0}")]
    Denied(u32),
    /// Another program, version or procedure, or an internal error.
    #[error("accept status {0}")]
    Accept(u32),
}
