//! What goes on beside the programs: chores, and the end of a Primary that must not go on.
//!
//! Keeps S2 (mark, self-outdate), H2 (a freeze is watched, not waited for) and design section 6: a
//! frozen owner whose record has moved stops its node.

use super::*;

impl Machine {
    pub(super) fn beside(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.give_up_late(now);
        let Some(record) = self.record().cloned() else { return };
        self.fence_myself(now, &record, out);
        self.look_for_standby(now, out);
        if self.side.chore.is_some() || now < self.side.chore_not_before {
            return;
        }
        if let Some(chore) = self.wanted_chore(now, &record) {
            let run = self.next_run;
            self.next_run += 1;
            self.side.chore = Some((run, chore, now + CHORE));
            out.push(Effect::Chore { run, chore });
        }
    }

    fn give_up_late(&mut self, now: Now) {
        if self.side.seek.is_some_and(|(_, end)| now >= end) {
            self.side.seek = None;
            self.side.sought = Some((now, Sign::Unknown));
            self.side.seek_not_before = now + SEEK_AGAIN;
        }
        if self.side.chore.is_some_and(|(_, _, end)| now >= end) {
            self.side.chore = None;
            self.side.chore_not_before = now + CHORE_PAUSE;
        }
    }

    /// The record has moved without this node's doing, and it is still Primary: frozen I/O never ends
    /// by itself, and a close that does not end neither.
    fn fence_myself(&mut self, now: Now, record: &Record, out: &mut Vec<Effect>) {
        let taken = matches!(&record.phase,
            Phase::Serving { owner } | Phase::Taking { owner } if *owner == self.peer);
        let stuck = self.since.closing.is_some_and(|at| now >= at + CLOSE_PATIENCE);
        let must = taken && self.drbd.role == Role::Primary && (self.drbd.frozen || stuck);
        if !must || self.side.fenced || self.must_read || self.unsettled.is_some() {
            return;
        }
        self.side.fenced = true;
        let how = if self.drbd.frozen { "with frozen I/O" } else { "and cannot close" };
        let reason = format!(
            "the record says {} in epoch {}, and {} is Primary {how}",
            record.phase, record.epoch, self.me
        );
        self.problem = Some(reason.clone());
        out.push(Effect::SelfFence { reason });
    }

    fn wanted_chore(&self, now: Now, record: &Record) -> Option<Chore> {
        let wanted = [
            self.wants_retrigger(now, record).then_some(Chore::Retrigger),
            self.wants_drop_peer(now).then_some(Chore::DropPeer),
            self.wanted_mark(now, record),
            self.wants_outdate(record).then_some(Chore::Outdate),
            self.wants_connect(now, record).then_some(Chore::Connect),
        ];
        let failed = |chore: &Chore| {
            self.side.chore_failed.get(chore).is_some_and(|at| now < *at + CHORE_RETRY)
        };
        let rests = |chore: &Chore| failed(chore) && *chore != Chore::Retrigger;
        wanted.into_iter().flatten().find(|chore| !rests(chore))
    }

    /// C2: written when a disk that was sound in this life has failed; removed once both hold all.
    fn wanted_mark(&self, now: Now, record: &Record) -> Option<Chore> {
        if self.holes.has(Hole::C2) {
            return None;
        }
        let failed = self.since.failed.is_some_and(|at| now >= at + FAILED_PATIENCE);
        if failed && self.since.sound_once && !self.marked {
            return Some(Chore::Mark(true));
        }
        let whole = self.drbd.both_current() && record.current.contains(&self.me);
        (self.marked && whole).then_some(Chore::Mark(false))
    }

    /// An excluded node outdates itself: a later start without anybody to ask then finds it so.
    fn wants_outdate(&self, record: &Record) -> bool {
        !self.holes.has(Hole::C2)
            && !record.current.contains(&self.me)
            && !record.may_serve(&self.me)
            && self.drbd.role == Role::Secondary
            && !self.drbd.connected
            && self.drbd.local_consistent
            && self.side.outdated_in != Some(record.epoch)
            && self.read_since_the_loss()
    }

    /// What is outdated stays so until a resynchronisation: not on a record from before the loss.
    fn read_since_the_loss(&self) -> bool {
        let asked = self.since.disconnected.is_some_and(|at| self.last_read >= at);
        let answered = self.since.learned.is_some_and(|at| at >= self.last_read);
        asked && answered && !self.must_read && self.is_settled()
    }

    /// The record says since a while that this node is alone, and the kernel has not been told.
    fn wants_retrigger(&self, now: Now, record: &Record) -> bool {
        let long = self.since.frozen.is_some_and(|at| now >= at + FREEZE_PATIENCE);
        long && !self.holes.has(Hole::H2)
            && self.drbd.role == Role::Primary
            && record.authority() == Some(&self.me)
            && self.is_alone()
    }

    /// H11: a standby whose disk hangs holds every write back, without an error and without end; a
    /// dead one does so until DRBD's own timeouts. The owner goes on alone: forced disconnect,
    /// exclusion, helper.
    fn wants_drop_peer(&self, now: Now) -> bool {
        let ails = |unfit: &Option<Unfit>, what| unfit.as_ref().is_some_and(|u| u.ailment == what);
        let hangs = ails(&self.unfit, Ailment::Writes)
            && self.peer_is_fresh(now)
            && ails(&self.peer_view.beat.unfit, Ailment::Disk);
        let fresh = self.side.sought.filter(|(at, _)| now < *at + SEEK_AGAIN);
        let dead = matches!(fresh, Some((_, Sign::Nothing))) && !self.peer_is_fresh(now);
        let yields = self.yields(now);
        self.stage == Stage::Serving && self.drbd.connected && !yields && (hangs || dead)
    }

    /// A serving owner looks for a silent peer too: DRBD takes seconds to notice what beats and knocks
    /// tell at once.
    fn look_for_standby(&mut self, now: Now, out: &mut Vec<Effect>) {
        let started = self.since.started.unwrap_or(now);
        let silent = self.peer_view.heard.is_some()
            && self.peer_view.silent_for(now, started) >= self.timing.silence;
        if self.stage == Stage::Serving && self.drbd.connected && silent {
            self.seek(now, out);
        }
    }

    /// A standby always seeks its owner. An owner that disconnected by force connects again only to a
    /// node that says it is Secondary and has seen this epoch: a reconnect alone would release a
    /// frozen Primary (facts: safety, ways out of the freeze, 3). A Secondary's freeze means nothing;
    /// DRBD 8.4 leaves it set when a frozen node is demoted.
    fn wants_connect(&self, now: Now, record: &Record) -> bool {
        if !self.drbd.stand_alone || self.pending.is_some() || !self.is_settled() {
            return false; // a takeover of unknown outcome may still land: no way back to the owner yet
        }
        let standby = self.drbd.role == Role::Secondary
            && (record.authority() == Some(&self.peer)
                || matches!(record.phase, Phase::Moving { .. }))
            && matches!(
                self.stage,
                Stage::Standby
                    | Stage::Waiting
                    | Stage::HandedOver { .. }
                    | Stage::Returning { .. }
            );
        let beat = &self.peer_view.beat;
        let owner = self.stage == Stage::Serving
            && matches!(&record.phase, Phase::Serving { owner } if *owner == self.me)
            && self.peer_is_fresh(now)
            && beat.role == Role::Secondary
            && beat.unfit.as_ref().is_none_or(|u| u.ailment != Ailment::Disk)
            && beat.epoch >= record.epoch;
        standby || owner
    }
}
