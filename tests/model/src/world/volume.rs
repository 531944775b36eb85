//! One volume on one node: its disk, its metadata, its generations.
//!
//! Owns the attach rule (what metadata make of a disk after a reboot), and the comparison of
//! generations in a handshake.

use super::data::{Content, Writes};
use super::drbd::Side;

/// State of a disk, in DRBD's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Disk {
    /// Failed and detached.
    Failed,
    /// In the middle of a resynchronisation.
    Inconsistent,
    /// A newer generation exists.
    Outdated,
    /// The peer's disk while there is no connection.
    Unknown,
    /// Complete at its time; what came later is not known.
    Consistent,
    /// Complete.
    UpToDate,
}

/// What survives a reboot of the node, in the volume's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Meta {
    pub(super) consistent: bool,
    pub(super) was_up_to_date: bool,
    pub(super) peer_outdated: bool,
}

/// One volume on one node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Volume {
    /// The local disk.
    pub disk: Disk,
    /// The peer's disk as this side knows it.
    pub peer: Disk,
    pub(super) uuid: u64,
    /// The generation that a Primary without a disk has shown to its users.
    pub(super) exposed: u64,
    pub(super) history: Vec<u64>,
    pub(super) meta: Meta,
    /// What is on the disk.
    pub content: Content,
    /// This side is the target of a resynchronisation.
    pub(super) target: bool,
    pub(super) source: bool,
    /// The disk cannot be attached.
    pub(super) broken: bool,
    /// Written here, not yet known to be at the peer: neither acknowledged nor failed.
    pub(super) pending: Writes,
    pub(super) pending_marker: bool,
}

pub(super) fn fresh_volume() -> Volume {
    Volume {
        disk: Disk::UpToDate,
        peer: Disk::UpToDate,
        uuid: 2,
        exposed: 2,
        history: Vec::new(),
        meta: Meta { consistent: true, was_up_to_date: true, peer_outdated: false },
        content: Content::default(),
        target: false,
        source: false,
        broken: false,
        pending: Writes::default(),
        pending_marker: false,
    }
}

impl Volume {
    /// An attached disk writes its state to its metadata; one that has failed cannot.
    pub(super) fn keep_meta(&mut self) {
        match self.disk {
            Disk::Failed | Disk::Unknown | Disk::Consistent => {}
            Disk::Inconsistent => self.meta.consistent = false,
            Disk::Outdated => self.meta.was_up_to_date = false,
            Disk::UpToDate => {
                (self.meta.consistent, self.meta.was_up_to_date) = (true, true);
            }
        }
    }

    pub(super) fn attached(&self) -> Disk {
        match self.meta {
            _ if self.broken => Disk::Failed,
            Meta { consistent: false, .. } => Disk::Inconsistent,
            Meta { was_up_to_date: false, .. } => Disk::Outdated,
            Meta { peer_outdated: true, .. } => Disk::UpToDate,
            _ => Disk::Consistent,
        }
    }

    pub(super) fn attach(&mut self) {
        self.disk = self.attached();
        self.peer = if self.meta.peer_outdated { Disk::Outdated } else { Disk::Unknown };
    }

    pub(super) fn outdate(&mut self) {
        if self.disk >= Disk::Consistent {
            self.disk = Disk::Outdated;
            self.keep_meta();
        }
    }

    pub(super) fn new_generation(&mut self, uuid: u64) {
        self.history.push(self.uuid);
        self.uuid = uuid;
    }

    pub(super) fn join(&mut self, n: usize, verdict: Verdict) {
        if self.disk == Disk::Failed {
            return;
        }
        match verdict {
            Verdict::SyncTo(target) if target == n => {
                (self.disk, self.target) = (Disk::Inconsistent, true);
            }
            Verdict::SyncTo(_) => (self.disk, self.source) = (Disk::UpToDate, true),
            _ if self.disk >= Disk::Outdated => self.disk = Disk::UpToDate,
            _ => {}
        }
    }

    pub(super) fn copy(&mut self, source: &Self) {
        self.content = source.content;
        self.uuid = source.uuid;
        self.history.clone_from(&source.history);
        (self.target, self.disk) = (false, Disk::UpToDate);
    }
}

/// What a handshake comes to for a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Same,
    SyncTo(usize),
    Split,
}

/// Who has newer data, by the generations.
pub(super) fn handshake(a: &Side, b: &Side, v: usize) -> Verdict {
    let (x, y) = (&a.volumes[v], &b.volumes[v]);
    if x.disk == Disk::Failed || y.disk == Disk::Failed {
        return Verdict::Same;
    }
    let verdict = if x.uuid == y.uuid {
        match (a.crashed_primary, b.crashed_primary) {
            (true, false) => Verdict::SyncTo(1),
            (false, true) => Verdict::SyncTo(0),
            _ => Verdict::Same,
        }
    } else if y.history.contains(&x.uuid) {
        Verdict::SyncTo(0)
    } else if x.history.contains(&y.uuid) {
        Verdict::SyncTo(1)
    } else {
        Verdict::Split
    };
    match (x.disk == Disk::Inconsistent, y.disk == Disk::Inconsistent) {
        (false, false) => verdict,
        (true, false) if verdict != Verdict::SyncTo(1) => Verdict::SyncTo(0),
        (false, true) if verdict != Verdict::SyncTo(0) => Verdict::SyncTo(1),
        _ => Verdict::Split,
    }
}
