//! What to do next when nothing is under way: from record, DRBD and leftovers to the next effect.
//!
//! Keeps S1 ([`Proof`]), S9 (a restart is decided like everything else) and H2 (no freeze without end).

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

impl Machine {
    pub(super) fn decide(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.look_at_pending(now, out);
        // A write that may still land keeps this node from everything else: not on a watch alone, which
        // may have been away when the record moved on.
        self.must_read |= self.unsettled.is_some() && now >= self.last_read + UNSETTLED_READ;
        if self.must_read && now >= self.read_again_at {
            self.last_read = now;
            self.read_again_at = now + self.timing.read;
            out.push(Effect::Read);
        }
        if self.pending.is_some() {
            return;
        }
        if self.leftovers.is_none() || !self.record_known || self.drbd.role == Role::Unknown {
            return;
        }
        if self.emergency.is_some() {
            self.decide_emergency(now, out);
            return;
        }
        if self.exclude_lost_peer(now, out) || self.supersede(now, out) || self.write_hold(now, out)
        {
            return;
        }
        match self.stage.clone() {
            Stage::Waiting | Stage::Standby => self.decide_idle(now, out),
            Stage::Serving => self.decide_serving(now, out),
            Stage::Opening { at, .. } => self.continue_opening(now, at, out),
            Stage::TakingOver { at, reason } => self.continue_taking(now, at, &reason, out),
            Stage::Cutting { at, to } => self.continue_cut(now, at, to, out),
            Stage::Closing { at, .. } => self.run_step(now, CLOSE[at], out),
            Stage::HandedOver { since, .. } => self.decide_handed_over(now, since, out),
            Stage::Returning { .. } => self.decide_returning(now, out),
            Stage::Preparing { .. } => {}
        }
    }

    /// Waiting for the target must not outlast its reason: a move that is to end, a hand-over that the
    /// record shows as done.
    pub(super) fn look_at_pending(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(job) = self.pending.as_ref().map(|p| p.job.clone()) else { return };
        match (&self.stage, job) {
            (Stage::Preparing { .. }, Job::Warm) => {
                if let Some(reason) = self.must_stop(now) {
                    self.pending = None;
                    self.warmed(now, Err(reason), out);
                }
            }
            (Stage::Opening { .. }, Job::Step(Step::Promote)) => self.promotion_alone(now, out),
            (Stage::Opening { .. }, Job::Step(_)) if self.drbd.frozen => {
                // The step hangs on the frozen volume, and the freeze ends only with the exclusion. It is
                // run again then, and finds it done or waits for it.
                let hanging = self.pending.take();
                if !self.exclude_lost_peer(now, out) {
                    self.pending = hanging;
                }
            }
            (Stage::HandedOver { since, .. }, Job::HandOver) => {
                let Some(record) = self.record().cloned() else { return };
                if now >= *since + self.timing.silence && !self.peer_is_fresh(now) {
                    self.pending = None; // nothing is awaited from the dead; a record still decides
                }
                if !matches!(&record.phase, Phase::Moving { from, .. } if *from == self.me) {
                    self.pending = None;
                    self.finish_hand_over(&record, out);
                }
            }
            _ => {}
        }
    }

    /// The link went while the kernel promotes: it waits for its fence helper, the helper for a record
    /// without the peer. The peer had demoted (that was the proof) and comes back only by winning a
    /// compare-and-set on this same record, so the first of the two decides (C1, C4).
    fn promotion_alone(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(record) = self.record().cloned() else { return };
        let lost = !self.drbd.connected && self.drbd.role != Role::Unknown;
        let mine = record.authority() == Some(&self.me) && record.current.contains(&self.me);
        if lost && mine && record.current.contains(&self.peer) && now >= self.not_before {
            self.pending = None; // goes on in the kernel; the step is run again and finds it done
            self.change(now, record.exclude(&self.me, &self.peer), CAS, out);
        }
    }

    /// H2, I14: a Primary whose peer is gone is frozen until the record says that it is alone; steps
    /// on the frozen volume would hang. While serving, `decide_serving` does the same.
    pub(super) fn exclude_lost_peer(&mut self, now: Now, out: &mut Vec<Effect>) -> bool {
        let Some(record) = self.record().cloned() else { return false };
        let concerned = self.drbd.role == Role::Primary
            && self.stage != Stage::Serving
            && !self.peer_holds_everything()
            && record.current.contains(&self.peer);
        let yields = self.yields(now) && !self.drbd.connected;
        if !concerned || now < self.not_before || yields {
            return false;
        }
        if !record.current.contains(&self.me) {
            self.ask_for_takeover(now, format!("the replica of {} is not current", self.me), out);
            return false;
        }
        let next = match &record.phase {
            Phase::Moving { from, .. } if *from == self.me => record.return_alone(&self.me),
            _ => record.exclude(&self.me, &self.peer),
        };
        let legal = next.is_ok();
        if legal {
            self.change(now, next, CAS, out);
        }
        legal
    }

    pub(super) fn decide_idle(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(record) = self.record().cloned() else {
            self.must_read |= now >= self.last_read + Duration::from_millis(500);
            self.found(now, out);
            return;
        };
        match &record.phase {
            Phase::Stopped => self.start_service(now, &record, out),
            Phase::Moving { from, .. } if *from == self.me => self.decide_left_move(now, out),
            Phase::Moving { .. } => self.decide_target(now, &record, out),
            Phase::Serving { owner } | Phase::Taking { owner } if *owner == self.me => {
                self.decide_own(now, &record, out);
            }
            Phase::Serving { .. } | Phase::Taking { .. } => self.stand_by(now, &record, out),
        }
    }

    /// A new service: both replicas are complete, nobody has ever written a record.
    pub(super) fn found(&mut self, now: Now, out: &mut Vec<Effect>) {
        if now < self.not_before {
            return;
        }
        if !self.founds {
            self.problem = Some(format!("no record yet; {} creates it", self.peer));
            return;
        }
        if !self.drbd.both_current() || self.drbd.peer_role != Role::Secondary {
            self.problem = Some(
                "new service: waits until both DRBD replicas are connected, UpToDate and Secondary"
                    .into(),
            );
            return;
        }
        let both = BTreeSet::from([self.me.clone(), self.peer.clone()]);
        if let Ok(record) = Record::first(both, self.drbd.data_uuid.clone()).start(&self.me) {
            self.cas(now, None, record, CAS, out);
        }
    }

    pub(super) fn start_service(&mut self, now: Now, record: &Record, out: &mut Vec<Effect>) {
        if self.founds && now >= self.not_before {
            self.change(now, record.start(&self.me), CAS, out);
        }
    }

    /// This node was moving the service away when its nasd went. Not demoted: it still serves.
    pub(super) fn decide_left_move(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.drbd.role == Role::Primary {
            let reason = "nasd was restarted during the move".to_owned();
            self.open_if_proved(now, Why::Rollback(reason), out);
        } else {
            let to = self.peer.clone();
            self.stage = Stage::HandedOver { to, since: now };
        }
    }

    /// This node is the target. It opens when it is asked, or when the owner demoted and went silent.
    pub(super) fn decide_target(&mut self, now: Now, record: &Record, out: &mut Vec<Effect>) {
        let asked = self.hand_over == Some(record.epoch);
        if self.drbd.role == Role::Primary {
            self.open_if_proved(now, Why::HandOver, out);
            return;
        }
        let alone = self.is_alone() && !self.drbd.connected && now >= self.open_again_at;
        if alone && now >= self.not_before && self.may_take(record).is_ok() {
            // It alone has the data, and the old owner cannot serve without it. Whether that one has
            // demoted is not known here: as a takeover, with the wait for its right.
            let why = format!("{} alone has the data, in the middle of a move to it", self.me);
            self.begin_take(now, why, out);
            return;
        }
        if !self.drbd.released() {
            self.target_since = None;
            self.stage = Stage::Standby;
            self.take_if_link_lost(now, asked, record, out);
            return;
        }
        let since = *self.target_since.get_or_insert(now);
        if asked || now >= since + UNASKED_OPENING {
            self.open_if_proved(now, Why::HandOver, out);
        }
    }

    pub(super) fn open_if_proved(&mut self, now: Now, why: Why, out: &mut Vec<Effect>) {
        if now < self.not_before {
            return;
        }
        if self.proof().is_none() {
            self.stage = Stage::Waiting;
            self.problem = Some(
                "the record names this node, but DRBD is not connected to a Secondary peer with an UpToDate disk here; promoting now could split the data".into(),
            );
            self.give_away_what_does_not_open(now, out);
            return;
        }
        if let Some(why) = self.spoiled.clone() {
            self.close(now, why, out); // opened as it is, the server would tell its errors
            return;
        }
        self.problem = None;
        self.stage = Stage::Opening { at: 0, why };
        self.run_step(now, OPEN[0], out);
    }

    /// S1: what proves that a promotion here makes no second writer, at this moment.
    pub(super) fn proof(&self) -> Option<Proof> {
        let record = self.record().filter(|r| r.may_serve(&self.me))?;
        if self.drbd.role == Role::Primary {
            return Some(Proof::AlreadyPrimary);
        }
        if !record.current.contains(&self.me) {
            return None; // S2: this replica may miss acknowledged writes
        }
        if self.drbd.released() {
            return Some(Proof::Released);
        }
        let taking = matches!(record.phase, Phase::Taking { .. });
        if !self.is_alone() || !self.whole_alone() {
            return None;
        }
        if taking && self.drbd.stand_alone { Some(Proof::Frozen) } else { Some(Proof::SoleCurrent) }
    }

    /// S2 without a peer to ask: no mark, complete as far as the metadata knows, of the record's data.
    pub(super) fn whole_alone(&self) -> bool {
        let recorded = self.record().map(|r| &r.data_uuid);
        !self.drbd.connected
            && self.drbd.local_consistent
            && (!self.marked || self.holes.has(Hole::C2))
            && recorded.is_some_and(|r| self.drbd.descends_from(r) || self.holes.has(Hole::C2))
    }

    pub(super) fn stand_by(&mut self, now: Now, record: &Record, out: &mut Vec<Effect>) {
        let left = self.leftovers.unwrap_or_default();
        let dirty = left.mounted || left.serving_threads || left.addressed;
        if self.drbd.role == Role::Primary && self.drbd.frozen {
            // Steps on a frozen volume hang; this node can only be stopped (see `beside`).
            self.stage = Stage::Waiting;
            return;
        }
        if dirty || self.drbd.role == Role::Primary {
            self.close(
                now,
                format!("the record says {} in epoch {}", record.phase, record.epoch),
                out,
            );
            return;
        }
        self.problem = None;
        self.since.cannot_open = None;
        self.stage = Stage::Standby;
        self.consider_takeover(now, record, out);
    }

    pub(super) fn close(&mut self, now: Now, reason: String, out: &mut Vec<Effect>) {
        if now < self.not_before {
            return;
        }
        self.since.closing.get_or_insert(now);
        self.stage = Stage::Closing { at: 0, reason };
        self.run_step(now, CLOSE[0], out);
    }

    /// Keeps the record truthful while serving; writes lazily what openings and rollbacks made true.
    pub(super) fn decide_serving(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(record) = self.record().cloned() else { return };
        if now < self.not_before {
            return;
        }
        if self.leave_spoiled(now, &record, out) || self.move_for_health(now, &record, out) {
            return;
        }
        let uuids = self.drbd.data_uuid.clone();
        let me_current = record.current.contains(&self.me);
        let peer_current = record.current.contains(&self.peer);
        let next = match &record.phase {
            Phase::Moving { to, .. } if *to == self.me => {
                record.settle_move(&self.me, self.generation, uuids)
            }
            Phase::Moving { from, .. } if *from == self.me => record.return_from_move(&self.me),
            Phase::Taking { owner } if *owner == self.me => {
                record.settle_take(&self.me, self.generation, uuids)
            }
            Phase::Serving { owner } if *owner == self.me => {
                if record.generation < self.generation {
                    record.reopened(&self.me, self.generation, uuids)
                } else if me_current && self.drbd.local_failed && self.peer_holds_everything() {
                    record.exclude(&self.me, &self.me) // its own disk: the data lives over there
                } else if peer_current && !self.drbd.connected && self.yields(now) {
                    return;
                } else if peer_current && !me_current && !self.peer_holds_everything() {
                    let why = format!("{} alone has the data and is not reached", self.peer);
                    self.ask_for_takeover(now, why, out);
                    return;
                } else if peer_current && !self.peer_holds_everything() {
                    record.exclude(&self.me, &self.peer)
                } else if !peer_current && self.drbd.both_current() {
                    record.include(&self.me, &self.peer)
                } else if !me_current && self.drbd.both_current() {
                    record.include(&self.me, &self.me)
                } else if !uuids.is_empty() && record.data_uuid != uuids {
                    record.with_data(&self.me, uuids)
                } else {
                    return;
                }
            }
            _ => {
                self.close(
                    now,
                    format!("the record says {} in epoch {}", record.phase, record.epoch),
                    out,
                );
                return;
            }
        };
        self.change(now, next, CAS, out);
    }

    pub(super) fn peer_holds_everything(&self) -> bool {
        self.drbd.connected && (self.drbd.peer_up_to_date || self.holes.has(Hole::C2))
    }

    pub(super) fn decide_handed_over(&mut self, now: Now, since: Now, out: &mut Vec<Effect>) {
        let Some(record) = self.record().cloned() else { return };
        let still_moving = matches!(&record.phase, Phase::Moving { from, .. } if *from == self.me);
        if !still_moving {
            self.finish_hand_over(&record, out);
            return;
        }
        if now >= self.last_read + Duration::from_millis(500) {
            self.must_read = true;
        }
        if self.holes.has(Hole::C1) && now >= since + UNASKED_OPENING {
            self.come_back_unasked(now, out);
            return;
        }
        if !self.drbd.released() || !self.peer_is_fresh(now) {
            let patient = now >= since + HAND_OVER_PATIENCE / 3;
            if self.take_if_link_lost(now, patient, &record, out) {
                return;
            }
        }
        if now >= since + HAND_OVER_PATIENCE && !self.drbd.released() {
            self.give_up_move(out);
        } else if now >= since + HAND_OVER_PATIENCE {
            let reason = format!("{} did not open the service", self.peer);
            self.stage = Stage::Returning { reason };
            self.decide_returning(now, out);
        }
    }

    /// The peer is out of reach after this node has demoted: the operator is told, deciding goes on.
    pub(super) fn give_up_move(&mut self, out: &mut Vec<Effect>) {
        let why = format!(
            "{} cannot be reached and {} has demoted: nobody serves; the service opens by itself when the nodes are connected again",
            self.peer, self.me
        );
        self.problem = Some(why.clone());
        if self.moving.take().is_some() {
            out.push(Effect::MoveEnded(MoveEnd::Failed(why)));
        }
    }

    pub(super) fn finish_hand_over(&mut self, record: &Record, out: &mut Vec<Effect>) {
        self.stage = Stage::Waiting;
        if record.authority() == Some(&self.me) {
            return; // it is ours again: the opening that follows ends the move
        }
        self.auto.running = false;
        if self.moving.take().is_some() {
            out.push(Effect::MoveEnded(MoveEnd::Moved));
        }
    }

    /// C1, C4: a demoted owner comes back only by winning this compare-and-set.
    pub(super) fn decide_returning(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(record) = self.record().cloned() else { return };
        if !matches!(&record.phase, Phase::Moving { from, .. } if *from == self.me) {
            self.finish_hand_over(&record, out);
            return;
        }
        let overdue =
            self.moving.as_ref().is_some_and(|m| now >= m.deadline + 2 * HAND_OVER_PATIENCE);
        if overdue && !self.drbd.released() {
            self.give_up_move(out);
        }
        self.must_read |= now >= self.last_read + Duration::from_millis(500);
        if now < self.not_before || !self.drbd.released() {
            return;
        }
        if !record.current.contains(&self.me) {
            let why = format!("the replica of {} is not current", self.me);
            self.ask_for_takeover(now, why, out);
            return;
        }
        self.change(now, record.return_from_move(&self.me), CAS, out);
    }
}
