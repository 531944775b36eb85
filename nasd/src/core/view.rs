//! What the core knows of the world: DRBD's state as the kernel told it and the node's own leftovers.
//!
//! Owns the definition of the *evidence* that S1 and S2 ask for. Unknown is never permission (S12):
//! every predicate is false while nothing has been heard.

use std::collections::BTreeMap;
use std::time::Duration;

use super::record::DataUuid;

/// Time since an arbitrary start, `CLOCK_MONOTONIC` in production, counted by the model in tests.
pub type Now = Duration;

/// DRBD's role as the core needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// Not heard yet, or a number that the kernel's tables do not have.
    #[default]
    Unknown,
    /// May be written here.
    Primary,
    /// Receives.
    Secondary,
}

/// A resource's state: one connection, all its volumes (`GET_INITIAL_STATE` and events).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DrbdView {
    /// Our role.
    pub role: Role,
    /// The connection is `Connected`.
    pub connected: bool,
    /// The peer's role as the connection tells it; `Unknown` unless connected.
    pub peer_role: Role,
    /// There is no connection and none is tried (`StandAlone`).
    pub stand_alone: bool,
    /// Every volume's local disk is `UpToDate`.
    pub local_up_to_date: bool,
    /// Every volume's local disk is at least `Consistent`: what a rebooted node's disk is until it
    /// meets its peer, or until a promotion has fenced that.
    pub local_consistent: bool,
    /// Some volume's local disk is less than that by itself: failed, detached, inconsistent.
    pub local_failed: bool,
    /// Every volume's peer disk is `UpToDate` and holds what we acknowledge: its replication is
    /// `Established`, or we are the ones who are being resynchronised.
    pub peer_up_to_date: bool,
    /// A resynchronisation runs on some volume, in either direction.
    pub resync: bool,
    /// Bytes that the local disks still miss while they are resynchronised; `None`: not known, or
    /// nothing runs towards this node.
    pub missing_bytes: Option<u64>,
    /// I/O is frozen because the peer must be fenced first (`susp_fen`).
    pub frozen: bool,
    /// Current UUID of each volume.
    pub data_uuid: BTreeMap<u16, DataUuid>,
    /// Former current UUIDs of each volume (DRBD's history and bitmap slots).
    pub uuid_history: BTreeMap<u16, Vec<DataUuid>>,
}

impl DrbdView {
    /// The evidence of S1's `Released`: connected, the peer is Secondary, and our data is complete.
    #[must_use]
    pub fn released(&self) -> bool {
        self.connected
            && self.peer_role == Role::Secondary
            && self.local_up_to_date
            && self.role != Role::Unknown
    }

    /// S2's second belt: for every volume that the record knows, the local data is of that generation
    /// or descends from it.
    #[must_use]
    pub fn descends_from(&self, recorded: &BTreeMap<u16, DataUuid>) -> bool {
        recorded.iter().all(|(volume, uuid)| {
            let past = self.uuid_history.get(volume);
            self.data_uuid.get(volume) == Some(uuid) || past.is_some_and(|p| p.contains(uuid))
        })
    }

    /// Both replicas hold everything: the condition for the peer to be in `current` (S2).
    #[must_use]
    pub fn both_current(&self) -> bool {
        self.connected && self.local_up_to_date && self.peer_up_to_date && !self.resync
    }
}

/// What a restarted nasd finds of its former life (S9). Read once, before the first decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leftovers {
    /// At least one of the service's file systems is mounted at its place, from its device.
    pub mounted: bool,
    /// All of them are.
    pub all_mounted: bool,
    /// One of them writes nothing any more: it met an error, and must not be opened as it is.
    pub spoiled: bool,
    /// The service's NFS server runs threads.
    pub serving_threads: bool,
    /// The floating addresses are on the service's interface.
    pub addressed: bool,
    /// The durable mark of a disk that failed here: this replica may be behind whatever its metadata
    /// says (S2).
    pub marked: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s12_nothing_heard_permits_nothing() {
        let view = DrbdView::default();
        assert!(!view.released());
        assert!(!view.both_current());
    }

    #[test]
    fn s1_released_needs_a_connected_secondary_peer() {
        let good = DrbdView {
            role: Role::Secondary,
            connected: true,
            peer_role: Role::Secondary,
            local_up_to_date: true,
            ..DrbdView::default()
        };
        assert!(good.released());
        assert!(!DrbdView { connected: false, ..good.clone() }.released());
        assert!(!DrbdView { peer_role: Role::Primary, ..good.clone() }.released());
        assert!(!DrbdView { peer_role: Role::Unknown, ..good.clone() }.released());
        assert!(!DrbdView { local_up_to_date: false, ..good }.released());
    }
}
