//! What kernels do by themselves: the fence helper, reconnects, noticing a lost peer.
//!
//! Owns the way from DRBD's [`Out`] to happenings. Nothing here waits for nasd except the helper.

use nasd::core::machine::Event;
use nasd::core::record::{NodeName, Phase, Record};

use super::drbd::{Conn, Out};
use super::{Happening, InKernel, MS, S, World};

/// How long the helper waits for a yes (`nasd-fence-peer`).
const HELPER: super::Time = 300 * S;

/// How long a question is open before a link that is back answers it (the drive's fence.rs).
const LINK_PATIENCE: super::Time = S;
/// How long a promotion waits for its record (the drive's fence.rs).
const PROMOTION_PATIENCE: super::Time = 2 * S;

/// I8: this node has the authority, and the peer is out of the current set (the drive's rule).
fn excludes(record: &Record, me: &NodeName, peer: &NodeName) -> bool {
    record.authority() == Some(me) && record.current.contains(me) && !record.current.contains(peer)
}

impl World {
    pub(super) fn in_kernel(&mut self, n: usize, what: InKernel) {
        match what {
            InKernel::Step { life, run, step, context } => {
                self.kernel_step(n, life, run, step, context);
            }
            InKernel::HelperAsks { number } => self.helper_asks(n, number),
            InKernel::HelperEnds { number, yes } => self.helper_ends(n, number, yes),
            InKernel::Notice => self.pair.lose(n),
            InKernel::StartNasd => self.start_nasd(n),
            InKernel::Boot => self.boot(n),
        }
    }

    // ---- the helper --------------------------------------------------------------------------

    /// Runs on that node are coalesced into one.
    pub(super) fn start_helper(&mut self, n: usize) {
        if self.nodes[n].helper.is_some() {
            return;
        }
        self.number += 1;
        let number = self.number;
        self.nodes[n].helper = Some((number, self.pair.sides[n].connects));
        self.nodes[n].helper_since = Some(self.now);
        self.note(n, || "  helper runs".into());
        if self.weather.helper_broken[n] {
            self.kernel_later(n, 20 * MS, InKernel::HelperEnds { number, yes: false });
        } else {
            let delay = self.delay(5 * MS, 50 * MS);
            self.kernel_later(n, delay, InKernel::HelperAsks { number });
            self.kernel_later(n, HELPER, InKernel::HelperEnds { number, yes: false });
        }
    }

    /// It asks until nasd shows a record that excludes the peer.
    fn helper_asks(&mut self, n: usize, number: u64) {
        let Some((_, connects)) = self.nodes[n].helper.filter(|(running, _)| *running == number)
        else {
            return;
        };
        match self.word(n) {
            Some(true) => {
                crate::properties::helper_says_yes(self, n, connects);
                let late = self.weather.helper_late[n];
                let delay = self.delay(5 * MS, 40 * MS) + late;
                self.kernel_later(n, delay, InKernel::HelperEnds { number, yes: true });
            }
            Some(false) => {
                let delay = self.delay(5 * MS, 40 * MS);
                self.kernel_later(n, delay, InKernel::HelperEnds { number, yes: false });
            }
            None => self.kernel_later(n, 100 * MS, InKernel::HelperAsks { number }),
        }
    }

    /// What nasd says to the helper; `None`: wait (the drive's rules). A yes only from a record that
    /// is settled; a no when the other node has the service, when the link is back, and when only a
    /// promotion waits.
    fn word(&self, n: usize) -> Option<bool> {
        let nasd = &self.nodes[n].nasd;
        if !self.nasd_runs(n) {
            return None;
        }
        let (me, peer) = (&self.nodes[n].name, &self.nodes[1 - n].name);
        let record = nasd.machine.record().filter(|_| nasd.machine.is_settled());
        let asked = self.nodes[n].helper_since.unwrap_or(self.now);
        let side = &self.pair.sides[n];
        let moved = |r: &Record| {
            matches!(&r.phase,
                Phase::Serving { owner } | Phase::Taking { owner } if owner == peer)
        };
        if record.is_some_and(|r| excludes(r, me, peer)) {
            return Some(true);
        }
        let back = matches!(side.conn, Conn::Connected(_)) && self.now >= asked + LINK_PATIENCE;
        let promoting = !side.primary && self.now >= asked + PROMOTION_PATIENCE;
        (record.is_some_and(moved) || back || promoting).then_some(false)
    }

    fn helper_ends(&mut self, n: usize, number: u64, yes: bool) {
        let Some((_, connects)) = self.nodes[n].helper.filter(|(running, _)| *running == number)
        else {
            return;
        };
        self.nodes[n].helper = None;
        self.note(n, || format!("  helper ends: {}", if yes { "outdated" } else { "exit 1" }));
        if yes {
            crate::properties::helper_ended(self, n, connects);
            self.pair.fenced(n, connects);
        }
        if let Some((run, life, epoch)) = self.nodes[n].promoting.take() {
            let valid = yes && self.pair.sides[n].connects == connects;
            if valid || matches!(self.pair.sides[n].conn, Conn::Connected(_)) {
                self.promote_in_kernel(n, life, run, epoch, valid);
            } else {
                let reason = "the peer is not outdated".to_owned();
                let error = nasd::core::step::StepError::Refused { step: "primary", reason };
                self.ran(n, life, run, Err(error));
            }
        }
    }

    // ---- DRBD's consequences -----------------------------------------------------------------

    /// After every happening: what DRBD did becomes happenings.
    pub(super) fn settle_pair(&mut self) {
        while !self.pair.out.is_empty() {
            let out = std::mem::take(&mut self.pair.out);
            let mut told = [false; 2];
            for what in out.into_iter().rev() {
                self.settle_one(what, &mut told);
            }
        }
    }

    fn settle_one(&mut self, what: Out, told: &mut [bool; 2]) {
        match what {
            // Only the last view of one moment is told.
            Out::Changed(n) => {
                self.watch.data_changed = true;
                if !std::mem::replace(&mut told[n], true) && self.nodes[n].up {
                    let view = self.pair.view(n);
                    let delay = self.delay(200, 3 * MS);
                    let at = (self.now + delay).max(self.watch.view_told[n]);
                    self.watch.view_told[n] = at;
                    let life = self.nodes[n].nasd.life;
                    let feed = super::Do::Feed(Box::new(Event::Drbd(view)));
                    self.at(at, Happening::Nasd(n, life, feed));
                }
            }
            Out::Helper(n) => self.start_helper(n),
            Out::MayConnect => self.meet_soon(),
            Out::WillNotice(n) => {
                // A reset comes at once while packets flow; otherwise a timer must run out.
                let alive = self.pair.link && self.nodes[1 - n].up;
                let delay =
                    if alive { self.delay(MS, 30 * MS) } else { self.delay(500 * MS, 6 * S) };
                self.kernel_later(n, delay, InKernel::Notice);
            }
            Out::Resync(session) => {
                let delay = self.delay(300 * MS, 5 * S);
                self.later(delay, Happening::Resynced(session));
            }
            Out::Acked(n, volume, writes) => self.late_acks(n, volume, *writes),
            Out::Thawed(n) => self.note(n, || "  I/O goes on".into()),
        }
    }

    pub(super) fn meet_soon(&mut self) {
        if !self.meeting && self.pair.can_meet() {
            self.meeting = true;
            let delay = self.delay(50 * MS, 900 * MS);
            self.later(delay, Happening::Meet);
        }
    }

    /// Replication packets get through, or not.
    pub(super) fn set_replication(&mut self, open: bool) {
        if self.pair.link == open {
            return;
        }
        self.pair.link = open;
        self.say(|| format!("replication link {}", if open { "up" } else { "CUT" }));
        if open {
            self.meet_soon();
            return;
        }
        for n in 0..2 {
            if matches!(self.pair.sides[n].conn, Conn::Connected(_)) {
                let delay = self.delay(200 * MS, 6 * S);
                self.kernel_later(n, delay, InKernel::Notice);
            }
        }
    }
}
