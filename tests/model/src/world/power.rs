//! Disks that fail and are attached again, power that goes and comes.
//!
//! Owns what each of them leaves in the metadata (C2: a disk that has failed cannot be written any
//! more, not even to say so).

use super::data::Writes;
use super::drbd::{Conn, Disk, Out, Pair, Side, Volume};
use super::volume::{Verdict, handshake};

impl Pair {
    /// An I/O error: the disk detaches itself; its metadata can be written no more (C2).
    pub fn disk_fails(&mut self, n: usize, v: usize) {
        if !self.sides[n].up || self.sides[n].volumes[v].disk == Disk::Failed {
            return;
        }
        let volume = &mut self.sides[n].volumes[v];
        (volume.disk, volume.broken) = (Disk::Failed, true);
        volume.exposed = volume.uuid;
        (volume.target, volume.source) = (false, false);
        let used = self.sides.iter().any(|s| s.primary);
        let uuid = self.fresh();
        let session = self.in_session();
        let other = &mut self.sides[1 - n].volumes[v];
        if session {
            if used && other.disk == Disk::UpToDate {
                other.new_generation(uuid);
                self.sides[n].volumes[v].exposed = uuid;
            }
            let other = &mut self.sides[1 - n].volumes[v];
            (other.target, other.source) = (false, false);
        }
        self.changed();
    }

    /// The disk is sound again and attached; while connected that is a handshake of its own.
    pub fn attach(&mut self, n: usize, v: usize) {
        if !self.sides[n].volumes[v].broken {
            return;
        }
        self.sides[n].volumes[v].broken = false;
        if !self.sides[n].up {
            return;
        }
        self.sides[n].volumes[v].attach();
        if self.in_session() {
            let [a, b] = &self.sides;
            let verdict = handshake(a, b, v);
            if verdict == Verdict::Split {
                for n in 0..2 {
                    self.leave(n, Conn::StandAlone);
                }
                return;
            }
            for n in 0..2 {
                self.sides[n].volumes[v].join(n, verdict);
            }
            if let Conn::Connected(session) = self.sides[n].conn {
                self.out.push(Out::Resync(session));
            }
        }
        self.changed();
    }

    /// Power is gone.
    pub fn crash(&mut self, n: usize) {
        let side = &mut self.sides[n];
        side.up = false;
        side.crashed_primary |= side.primary;
        (side.primary, side.frozen, side.peer_primary) = (false, false, false);
        let was = std::mem::replace(&mut side.conn, Conn::StandAlone);
        for volume in &mut side.volumes {
            (volume.target, volume.source) = (false, false);
            (volume.pending, volume.pending_marker) = (Writes::default(), false);
        }
        if matches!(was, Conn::Connected(_)) && self.sides[1 - n].conn == was {
            self.out.push(Out::WillNotice(1 - n));
        }
        self.changed();
    }

    /// `drbdadm up` after a boot.
    pub fn boot(&mut self, n: usize) {
        let side = &mut self.sides[n];
        (side.up, side.conn) = (true, Conn::Connecting);
        side.volumes.iter_mut().for_each(Volume::attach);
        self.changed();
        self.out.push(Out::MayConnect);
    }

    /// Both replicas are connected and complete.
    #[must_use]
    pub fn redundant(&self) -> bool {
        let complete = |s: &Side| s.volumes.iter().all(|v| v.disk == Disk::UpToDate);
        self.in_session() && self.sides.iter().all(complete)
    }

    /// What the node's metadata would make of its disks at an attach; a running disk is what it is.
    #[must_use]
    pub fn claims_complete(&self, n: usize, v: usize) -> bool {
        let side = &self.sides[n];
        let volume = &side.volumes[v];
        let disk = if side.up { volume.disk } else { volume.attached() };
        disk >= Disk::Consistent
    }
}
