//! The status document of one node: what `nasctl status --json` prints and scripts read.
//!
//! Owns names and units only; every value is computed in `core` or read by `drive`. A value that is
//! not known is absent, never a default (S12).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::agents::status::Hypervisors;
use crate::core::record::{DataUuid, Record};

/// One node's view, as it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node's name in the configuration.
    pub node: String,
    /// nasd's version.
    pub version: String,
    /// Seconds since nasd started.
    pub uptime_s: u64,
    /// Whether the coordinator answered last time, and how long it took.
    pub coordinator: CoordinatorStatus,
    /// Whether the peer's nasd answers heartbeats.
    pub peer: PeerStatus,
    /// One entry per configured service, in the order of the configuration.
    pub services: Vec<ServiceStatus>,
}

/// Reach of the coordinator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CoordinatorStatus {
    /// `etcd` or `file`.
    pub kind: String,
    /// The last call succeeded.
    pub reachable: bool,
    /// What the last failure said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Reach of the other nasd.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The other node's name.
    pub node: String,
    /// It answered a heartbeat within the last second.
    pub reachable: bool,
    /// Milliseconds since its last answer; absent if it never answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_answer_ms: Option<u64>,
    /// Addresses of the other node over which no beat was answered for 5 s.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent_paths: Vec<String>,
}

/// One service as this node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// The service's name.
    pub service: String,
    /// This node's stage: `standby`, `opening`, `serving`, `preparing`, `cutting`, `handed-over`,
    /// `returning`, `closing`, `taking-over`, `waiting`.
    pub stage: String,
    /// Why the service is not where it should be, in words for the operator; absent when all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The last record read from the coordinator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<Record>,
    /// DRBD, as the kernel tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drbd: Option<DrbdStatus>,
    /// Floating addresses of the service.
    pub addresses: Vec<String>,
    /// Export paths of the service.
    pub exports: Vec<String>,
    /// The gate: open, and for how many more milliseconds (absent: for ever, or shut).
    pub gate_open: bool,
    /// Milliseconds until the gate shuts unless the right is renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate_left_ms: Option<u64>,
    /// Running nfsd threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// Grace is running: new opens and locks wait, running I/O does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_grace: Option<bool>,
    /// Established client connections.
    pub clients: Vec<String>,
    /// How the last move of this service ended, if this node took part in one since nasd's start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_move: Option<LastMove>,
    /// Why this node could not take the service over now, were its owner to die (or could not be
    /// replaced, were it the owner); empty: failover would work.
    #[serde(default = "failover_unknown")]
    pub failover: Vec<String>,
    /// Who holds the service, and why: no automatic move or takeover until it is released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<String>,
    /// An operator started the service on this node without the coordinator, which has not confirmed it
    /// yet; absent: nothing of the kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emergency: Option<String>,
    /// Why this node is not fit to serve; absent: it is, as far as it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fit: Option<String>,
    /// Hypervisors that have the service mounted, and what the last move cost them; absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisors: Option<Hypervisors>,
    /// DRBD's current generation of each volume on this node.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data_uuid: BTreeMap<u16, DataUuid>,
    /// Former generations of each volume, newest first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub uuid_history: BTreeMap<u16, Vec<DataUuid>>,
}

/// What is told of failover before anything is known: no promise (S12).
#[must_use]
pub fn failover_unknown() -> Vec<String> {
    vec!["this node does not tell whether it could take over".to_owned()]
}

/// DRBD of one service in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrbdStatus {
    /// Resource name.
    pub resource: String,
    /// `Primary`, `Secondary`.
    pub role: String,
    /// Connection state, DRBD's word.
    pub connection: String,
    /// The peer's role, DRBD's word.
    pub peer_role: String,
    /// Local and peer disk state per volume, DRBD's words.
    pub disks: BTreeMap<u16, (String, String)>,
    /// Options that break rule S1, empty when none.
    pub violations: Vec<String>,
}

/// The last move in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastMove {
    /// From which node.
    pub from: String,
    /// To which node.
    pub to: String,
    /// `moved`, `rolled-back`, `failed`.
    pub result: String,
    /// Milliseconds during which the service was silent.
    pub silent_ms: u64,
    /// Unix time of the end, seconds.
    pub ended_unix_s: u64,
}
