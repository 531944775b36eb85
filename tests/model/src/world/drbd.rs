//! DRBD 8.4 as far as safety depends on it: one resource, two nodes, all volumes over one connection.
//!
//! Owns what the kernel would do, whatever nasd thinks: the freeze of a Primary that loses its peer,
//! the helper's verdict, self-outdating by a graceful disconnect, attach rules, resynchronisation.
//! It never looks at the record.

use std::collections::BTreeMap;

use nasd::core::record::DataUuid;
use nasd::core::view::{DrbdView, Role};

use super::data::{Content, Marker, VOLUMES, Writes};
pub use super::volume::{Disk, Volume};
use super::volume::{Verdict, fresh_volume, handshake};

/// State of the connection on one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Conn {
    /// Neither connected nor trying.
    StandAlone,
    /// Trying.
    Connecting,
    /// Connected in that session.
    Connected(u64),
}

/// One node's half.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Side {
    /// The kernel runs.
    pub up: bool,
    /// Role.
    pub primary: bool,
    /// Connection.
    pub conn: Conn,
    /// `susp_fen`.
    pub frozen: bool,
    /// Volumes.
    pub volumes: [Volume; VOLUMES],
    /// How often a connection came up: a helper's verdict from before is void.
    pub connects: u32,
    pub(super) peer_primary: bool,
    pub(super) crashed_primary: bool,
}

/// What the world has to do after an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Out {
    /// The view of that node changed.
    Changed(usize),
    /// The kernel runs the helper on that node.
    Helper(usize),
    /// Both sides may be able to connect.
    MayConnect,
    /// The node will notice that its session is over.
    WillNotice(usize),
    /// A resynchronisation began in that session.
    Resync(u64),
    /// Writes that had waited are acknowledged now.
    Acked(usize, usize, Box<Writes>),
    /// I/O goes on on that node.
    Thawed(usize),
}

/// What a promotion comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promotion {
    /// Primary.
    Done,
    /// The kernel refuses.
    Refused(&'static str),
    /// The helper must say yes first.
    NeedsHelper,
}

/// The resource on both nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The two halves.
    pub sides: [Side; 2],
    /// Replication packets get through.
    pub link: bool,
    /// What the world has to do.
    pub out: Vec<Out>,
    next: u64,
}

impl Pair {
    /// A new resource: connected, both complete and Secondary.
    #[must_use]
    pub fn new() -> Self {
        let side = || Side {
            up: true,
            primary: false,
            conn: Conn::Connected(1),
            frozen: false,
            volumes: [fresh_volume(), fresh_volume()],
            connects: 1,
            peer_primary: false,
            crashed_primary: false,
        };
        Self { sides: [side(), side()], link: true, out: Vec::new(), next: 4 }
    }

    pub(super) fn fresh(&mut self) -> u64 {
        self.next += 2;
        self.next
    }

    /// The two ends are in the same session and packets get through.
    #[must_use]
    pub fn in_session(&self) -> bool {
        let [a, b] = &self.sides;
        self.link && a.up && b.up && a.conn == b.conn && matches!(a.conn, Conn::Connected(_))
    }

    pub(super) fn changed(&mut self) {
        if self.in_session() {
            for n in 0..2 {
                let other = &self.sides[1 - n];
                let (primary, disks) = (other.primary, other.volumes.each_ref().map(|v| v.disk));
                let side = &mut self.sides[n];
                side.peer_primary = primary;
                for (volume, disk) in side.volumes.iter_mut().zip(disks) {
                    volume.peer = disk;
                    volume.meta.peer_outdated = false;
                }
            }
        }
        for n in 0..2 {
            for v in &mut self.sides[n].volumes {
                v.keep_meta();
            }
            self.out.push(Out::Changed(n));
        }
    }

    /// What nasd on that node is told.
    #[must_use]
    pub fn view(&self, n: usize) -> DrbdView {
        let side = &self.sides[n];
        if !side.up {
            return DrbdView::default();
        }
        let connected = matches!(side.conn, Conn::Connected(_));
        let all = |f: &dyn Fn(&Volume) -> bool| side.volumes.iter().all(f);
        let target = side.volumes.iter().any(|v| v.target);
        let failed = |v: &Volume| matches!(v.disk, Disk::Failed | Disk::Inconsistent);
        let role = |primary: bool| if primary { Role::Primary } else { Role::Secondary };
        DrbdView {
            role: role(side.primary),
            connected,
            peer_role: if connected { role(side.peer_primary) } else { Role::Unknown },
            stand_alone: side.conn == Conn::StandAlone,
            local_up_to_date: all(&|v| v.disk == Disk::UpToDate) && !target,
            local_consistent: all(&|v| v.disk >= Disk::Consistent) && !target,
            local_failed: side.volumes.iter().any(failed) && !target,
            peer_up_to_date: connected && all(&|v| v.peer == Disk::UpToDate && !v.source),
            missing_bytes: None,
            resync: side.volumes.iter().any(|v| v.target || v.source),
            frozen: side.frozen,
            data_uuid: self.uuids(n),
            uuid_history: self.history(n),
        }
    }

    fn uuids(&self, n: usize) -> BTreeMap<u16, DataUuid> {
        let with = |(i, v): (usize, &Volume)| Some((u16::try_from(i).ok()?, DataUuid::new(v.uuid)));
        let attached = |(_, v): &(usize, &Volume)| v.disk != Disk::Failed;
        self.sides[n].volumes.iter().enumerate().filter(attached).filter_map(with).collect()
    }

    fn history(&self, n: usize) -> BTreeMap<u16, Vec<DataUuid>> {
        let uuids = |v: &Volume| v.history.iter().map(|u| DataUuid::new(*u)).collect();
        let volumes = self.sides[n].volumes.iter().enumerate();
        volumes.filter_map(|(i, v)| Some((u16::try_from(i).ok()?, uuids(v)))).collect()
    }

    // ---- writing -----------------------------------------------------------------------------

    /// I/O goes through on that node.
    #[must_use]
    pub fn writable(&self, n: usize) -> bool {
        let side = &self.sides[n];
        side.up && side.primary && !side.frozen
    }

    /// A write there could be acknowledged. Before a Primary notices that its peer is gone it is not
    /// frozen, but every write waits for the peer's answer (protocol C).
    #[must_use]
    pub fn completes_writes(&self, n: usize) -> bool {
        let waits = matches!(self.sides[n].conn, Conn::Connected(_)) && !self.in_session();
        self.writable(n) && !waits
    }

    /// A client's write, by number. True: acknowledged.
    pub fn write(&mut self, n: usize, volume: usize, number: u32) -> bool {
        self.put(n, volume, |content| content.writes.add(number), |v| v.pending.add(number))
    }

    /// The marker file on every volume. True: it is stable.
    pub fn write_marker(&mut self, n: usize, marker: Marker) -> bool {
        (0..VOLUMES)
            .all(|volume| self.put(n, volume, |c| c.marker = marker, |v| v.pending_marker = true))
    }

    fn put(
        &mut self,
        n: usize,
        volume: usize,
        put: impl Fn(&mut Content),
        wait: impl Fn(&mut Volume),
    ) -> bool {
        if !self.writable(n) {
            return false;
        }
        let here = self.sides[n].volumes[volume].disk == Disk::UpToDate;
        if here {
            put(&mut self.sides[n].volumes[volume].content);
        }
        if !matches!(self.sides[n].conn, Conn::Connected(_)) {
            return here; // unfrozen and alone: the peer is known to be outdated
        }
        if !self.in_session() {
            wait(&mut self.sides[n].volumes[volume]);
            return false; // waits for the peer until the loss is noticed
        }
        let other = &mut self.sides[1 - n].volumes[volume];
        let there = other.disk == Disk::UpToDate;
        if other.disk >= Disk::Inconsistent {
            put(&mut other.content);
        }
        here || there
    }

    /// What the node would read: its own disk, or the peer's while it has none.
    #[must_use]
    pub fn readable(&self, n: usize, volume: usize) -> Option<&Content> {
        let here = &self.sides[n].volumes[volume];
        let there = &self.sides[1 - n].volumes[volume];
        if here.disk == Disk::UpToDate {
            Some(&here.content)
        } else if self.in_session() && there.disk == Disk::UpToDate {
            Some(&there.content)
        } else {
            None
        }
    }

    /// Every volume can be read there.
    #[must_use]
    pub fn has_data(&self, n: usize) -> bool {
        (0..VOLUMES).all(|v| self.readable(n, v).is_some())
    }

    // ---- connection --------------------------------------------------------------------------

    /// The node notices that its session is over.
    pub fn lose(&mut self, n: usize) {
        if self.in_session() || !matches!(self.sides[n].conn, Conn::Connected(_)) {
            return;
        }
        self.leave(n, Conn::Connecting);
    }

    pub(super) fn leave(&mut self, n: usize, next: Conn) {
        let was = std::mem::replace(&mut self.sides[n].conn, next);
        let side = &mut self.sides[n];
        side.peer_primary = false;
        for volume in &mut side.volumes {
            volume.target = false;
            volume.source = false;
            if !matches!(volume.peer, Disk::Inconsistent | Disk::Outdated) {
                volume.peer = Disk::Unknown;
            }
        }
        if side.primary {
            self.freeze_or_go_on(n);
        }
        if matches!(was, Conn::Connected(_)) && self.sides[1 - n].conn == was {
            self.out.push(Out::WillNotice(1 - n));
        }
        self.changed();
        self.out.push(Out::MayConnect);
    }

    /// `resource-and-stonith`: a Primary whose peer is of unknown state stops all I/O and asks. It
    /// asks again whenever it leaves a connection or an attempt at one.
    fn freeze_or_go_on(&mut self, n: usize) {
        let side = &mut self.sides[n];
        if side.volumes.iter().any(|v| v.peer > Disk::Outdated) {
            side.frozen = true;
            self.out.push(Out::Helper(n));
        } else {
            self.go_on_alone(n);
        }
    }

    /// The peer is known to be outdated: a new generation begins, what waited is acknowledged.
    fn go_on_alone(&mut self, n: usize) {
        for v in 0..VOLUMES {
            let uuid = self.fresh();
            let volume = &mut self.sides[n].volumes[v];
            if volume.disk == Disk::UpToDate {
                volume.new_generation(uuid);
                let waited = std::mem::take(&mut volume.pending);
                volume.pending_marker = false;
                self.out.push(Out::Acked(n, v, Box::new(waited)));
            }
        }
        if std::mem::take(&mut self.sides[n].frozen) {
            self.out.push(Out::Thawed(n));
        }
    }

    /// `disconnect --force`: this side only, its disks stay what they are.
    pub fn disconnect_forced(&mut self, n: usize) {
        if self.sides[n].conn != Conn::StandAlone {
            self.leave(n, Conn::StandAlone);
        }
    }

    /// `disconnect`: between a Primary and a Secondary the Secondary's disks become Outdated, and the
    /// Primary goes on at once. Hangs (false) while the peer does not answer.
    pub fn disconnect_gracefully(&mut self, n: usize) -> bool {
        if !matches!(self.sides[n].conn, Conn::Connected(_)) {
            self.disconnect_forced(n);
            return true;
        }
        let blind = |s: &Side| s.primary && s.volumes.iter().any(|v| v.disk < Disk::UpToDate);
        if !self.in_session() || self.sides.iter().any(blind) {
            return false; // no answer, or a Primary refuses to lose its only data
        }
        for primary in 0..2 {
            if self.sides[primary].primary {
                for v in 0..VOLUMES {
                    self.sides[primary].volumes[v].peer = Disk::Outdated;
                    self.sides[1 - primary].volumes[v].outdate();
                }
            }
        }
        self.sides[1 - n].conn = Conn::Connecting;
        self.leave_with_known_peer(1 - n, Conn::Connecting);
        self.leave_with_known_peer(n, Conn::StandAlone);
        true
    }

    fn leave_with_known_peer(&mut self, n: usize, next: Conn) {
        self.sides[n].conn = next;
        for volume in &mut self.sides[n].volumes {
            volume.target = false;
            volume.source = false;
        }
        if self.sides[n].primary {
            for volume in &mut self.sides[n].volumes {
                volume.peer = volume.peer.min(Disk::Outdated);
                volume.meta.peer_outdated = true;
            }
            self.go_on_alone(n);
        } else {
            for volume in &mut self.sides[n].volumes {
                volume.peer = Disk::Unknown;
            }
        }
        self.changed();
    }

    /// `connect`.
    pub fn connect(&mut self, n: usize) {
        if self.sides[n].conn == Conn::StandAlone {
            self.sides[n].conn = Conn::Connecting;
            self.changed();
            self.out.push(Out::MayConnect);
        }
    }

    /// Both sides are trying and packets get through.
    #[must_use]
    pub fn can_meet(&self) -> bool {
        let trying = |s: &Side| s.up && s.conn == Conn::Connecting;
        self.link && self.sides.iter().all(trying)
    }

    /// The handshake.
    pub fn meet(&mut self) {
        if !self.can_meet() {
            return;
        }
        if let Some(n) = (0..2).find(|n| self.would_see_other_data(*n)) {
            self.leave(n, Conn::StandAlone); // "can only connect to data with current UUID"
            return;
        }
        let [a, b] = &self.sides;
        let verdicts = [0, 1].map(|v| handshake(a, b, v));
        if (a.primary && b.primary) || verdicts.contains(&Verdict::Split) {
            for n in 0..2 {
                self.leave(n, Conn::StandAlone);
            }
            return;
        }
        for n in 0..2 {
            let target = verdicts.contains(&Verdict::SyncTo(n));
            if target && self.sides[n].primary {
                self.leave(n, Conn::StandAlone); // rr-conflict disconnect
                return;
            }
        }
        self.join(verdicts);
    }

    /// A Primary without its own disk goes on only with data of the generation that it has shown.
    fn would_see_other_data(&self, n: usize) -> bool {
        let differs = |(here, there): (&Volume, &Volume)| {
            here.disk == Disk::Failed && here.exposed != there.uuid
        };
        let [here, there] = [&self.sides[n], &self.sides[1 - n]];
        here.primary && here.volumes.iter().zip(&there.volumes).any(differs)
    }

    fn join(&mut self, verdicts: [Verdict; VOLUMES]) {
        let session = self.fresh();
        for n in 0..2 {
            let side = &mut self.sides[n];
            side.conn = Conn::Connected(session);
            side.connects += 1;
            side.crashed_primary = false;
            for (volume, verdict) in side.volumes.iter_mut().zip(verdicts) {
                volume.join(n, verdict);
            }
        }
        for n in 0..2 {
            self.resend(n);
            self.leave_failed_disks_behind(n);
        }
        self.changed();
        if verdicts.iter().any(|v| *v != Verdict::Same) {
            self.out.push(Out::Resync(session));
        }
    }

    /// What is written while the peer has no disk is of a new generation.
    fn leave_failed_disks_behind(&mut self, n: usize) {
        for v in 0..VOLUMES {
            let gone = self.sides[1 - n].volumes[v].disk == Disk::Failed;
            let uuid = self.fresh();
            let side = &mut self.sides[n];
            if side.primary && gone && side.volumes[v].disk == Disk::UpToDate {
                side.volumes[v].new_generation(uuid);
            }
        }
    }

    /// What a frozen Primary held back goes to the peer and is acknowledged ("case 2").
    fn resend(&mut self, n: usize) {
        for v in 0..VOLUMES {
            let content = self.sides[n].volumes[v].content;
            let volume = &mut self.sides[n].volumes[v];
            let waited = std::mem::take(&mut volume.pending);
            let marker = std::mem::take(&mut volume.pending_marker);
            let other = &mut self.sides[1 - n].volumes[v];
            if other.disk != Disk::Failed {
                other.content.writes.add_all(&waited);
                if marker {
                    other.content.marker = content.marker;
                }
            }
            self.out.push(Out::Acked(n, v, Box::new(waited)));
        }
        if std::mem::take(&mut self.sides[n].frozen) {
            self.out.push(Out::Thawed(n));
        }
    }

    /// A resynchronisation of that session is done. False: not yet, packets do not get through.
    pub fn resynced(&mut self, session: u64) -> bool {
        if self.sides.iter().any(|s| s.conn != Conn::Connected(session)) {
            return true; // void
        }
        if !self.in_session() {
            return false;
        }
        for v in 0..VOLUMES {
            for n in 0..2 {
                if self.sides[n].volumes[v].target {
                    let source = self.sides[1 - n].volumes[v].clone();
                    self.sides[n].volumes[v].copy(&source);
                    self.sides[1 - n].volumes[v].source = false;
                }
            }
        }
        self.changed();
        true
    }

    // ---- helper and role ---------------------------------------------------------------------

    /// The helper's verdict, for the connection count at its start.
    pub fn fenced(&mut self, n: usize, connects: u32) {
        let side = &mut self.sides[n];
        if side.connects != connects || matches!(side.conn, Conn::Connected(_)) {
            return; // the connection came back meanwhile: the kernel ignores the verdict
        }
        for volume in &mut side.volumes {
            volume.peer = volume.peer.min(Disk::Outdated);
            volume.meta.peer_outdated = true;
        }
        if side.primary {
            self.go_on_alone(n);
        }
        self.changed();
    }

    /// `primary`, without force. With `fenced`, the helper has said yes for it.
    pub fn promote(&mut self, n: usize, fenced: bool) -> Promotion {
        if !self.in_session() {
            self.lose(n); // a promotion asks the peer first
        }
        let side = &self.sides[n];
        if !side.up {
            return Promotion::Refused("down");
        }
        if side.primary {
            return Promotion::Done;
        }
        if matches!(side.conn, Conn::Connected(_)) {
            if self.sides[1 - n].primary {
                return Promotion::Refused("the peer is Primary");
            }
            if side.volumes.iter().any(|v| v.disk != Disk::UpToDate) {
                return Promotion::Refused("no UpToDate disk");
            }
            self.become_primary(n);
            self.leave_failed_disks_behind(n);
            return Promotion::Done;
        }
        if side.volumes.iter().any(|v| v.disk < Disk::Consistent) {
            return Promotion::Refused("no UpToDate disk");
        }
        let known = side.volumes.iter().all(|v| v.peer <= Disk::Outdated);
        let complete = side.volumes.iter().all(|v| v.disk == Disk::UpToDate);
        if !(fenced || known && complete) {
            return Promotion::NeedsHelper;
        }
        for volume in &mut self.sides[n].volumes {
            volume.disk = Disk::UpToDate;
            volume.peer = volume.peer.min(Disk::Outdated);
            volume.meta.peer_outdated = true;
        }
        self.become_primary(n);
        self.go_on_alone(n);
        Promotion::Done
    }

    fn become_primary(&mut self, n: usize) {
        self.sides[n].primary = true;
        self.changed();
    }

    /// `secondary`; the caller has checked that nothing has it open.
    pub fn demote(&mut self, n: usize) {
        if self.sides[n].primary {
            self.sides[n].primary = false;
            self.changed();
        }
    }

    /// `outdate`. False: refused, it is connected or Primary.
    pub fn outdate(&mut self, n: usize) -> bool {
        let side = &mut self.sides[n];
        if side.primary || matches!(side.conn, Conn::Connected(_)) {
            return false;
        }
        side.volumes.iter_mut().for_each(Volume::outdate);
        self.changed();
        true
    }
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}
