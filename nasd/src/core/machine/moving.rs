//! The planned move on the old owner: before the demotion it rolls back by itself (S8), after it only
//! by a compare-and-set (C1, C4).

use std::time::Duration;

use super::*;

impl Machine {
    pub(super) fn begin_move(
        &mut self,
        now: Now,
        to: &NodeName,
        timeout: Duration,
        out: &mut Vec<Effect>,
    ) {
        let busy = self.stage != Stage::Serving || self.pending.is_some();
        let Some(record) = self.record().cloned().filter(|_| !busy && *to == self.peer) else {
            let why =
                format!("the service is {} here; a move starts from serving", self.stage.name());
            out.push(Effect::MoveEnded(MoveEnd::RolledBack(why)));
            return;
        };
        match record.begin_move(&self.me, to) {
            Ok(next) => {
                self.moving = Some(Move { deadline: now + timeout, aborted: false, failed: None });
                self.stage = Stage::Preparing { to: to.clone() };
                self.change(now, Ok(next), self.timing.move_cas, out);
            }
            Err(error) => out.push(Effect::MoveEnded(MoveEnd::RolledBack(error.to_string()))),
        }
    }

    pub(super) fn must_stop(&self, now: Now) -> Option<String> {
        let m = self.moving.as_ref()?;
        if m.aborted {
            Some("aborted by the operator".into())
        } else if now >= m.deadline {
            Some("the time for the move was over before the owner had demoted".into())
        } else if !self.peer_holds_everything() {
            Some(format!("the replica on {} was lost", self.peer))
        } else {
            None
        }
    }

    pub(super) fn warmed(&mut self, now: Now, result: Result<(), String>, out: &mut Vec<Effect>) {
        let Stage::Preparing { to } = self.stage.clone() else { return };
        let stop = result.err().or_else(|| self.must_stop(now));
        match stop {
            // Nothing was cut: the service has never stopped; only the record goes back, lazily.
            Some(reason) => {
                self.stage = Stage::Serving;
                self.moving = None;
                self.auto_move_failed(now);
                out.push(Effect::MoveEnded(MoveEnd::RolledBack(reason)));
            }
            None => self.stage = Stage::Cutting { to, at: 0 },
        }
    }

    pub(super) fn continue_cut(
        &mut self,
        now: Now,
        at: usize,
        to: NodeName,
        out: &mut Vec<Effect>,
    ) {
        if at == CLOSE.len() {
            self.hand_over_now(now, to, out);
        } else if let Some(reason) = self.must_stop(now) {
            self.roll_back(now, reason, out);
        } else {
            self.run_step(now, CLOSE[at], out);
        }
    }

    pub(super) fn cut_failed(
        &mut self,
        now: Now,
        to: NodeName,
        at: usize,
        step: Step,
        error: &StepError,
        out: &mut Vec<Effect>,
    ) {
        let demoted = step == Step::Demote && self.drbd.role == Role::Secondary;
        if demoted && !self.holes.has(Hole::C4) {
            self.stage = Stage::Cutting { to, at: at + 1 };
        } else {
            self.roll_back(now, error.to_string(), out);
        }
    }

    /// Before the demotion: the same node opens again, without asking anybody (S8).
    pub(super) fn roll_back(&mut self, now: Now, reason: String, out: &mut Vec<Effect>) {
        self.not_before = now;
        self.open_if_proved(now, Why::Rollback(reason), out);
    }

    pub(super) fn hand_over_now(&mut self, now: Now, to: NodeName, out: &mut Vec<Effect>) {
        let epoch = self.record().map_or(0, |r| r.epoch);
        self.leftovers = Some(Leftovers::default());
        self.spoiled = None;
        self.threads_since = None;
        self.stage = Stage::HandedOver { to: to.clone(), since: now };
        let run = self.start(now, Job::HandOver, HAND_OVER_PATIENCE);
        out.push(Effect::HandOver { run, to, epoch });
    }

    pub(super) fn hand_over_ended(&mut self, result: HandOverResult, out: &mut Vec<Effect>) {
        match result {
            HandOverResult::Opened => {
                // Its record follows lazily; consenting to its right goes on meanwhile.
                self.stage = Stage::Standby;
                self.auto.running = false;
                self.must_read = true;
                if self.moving.take().is_some() {
                    out.push(Effect::MoveEnded(MoveEnd::Moved));
                }
            }
            HandOverResult::Refused(reason) => {
                if let Some(m) = &mut self.moving {
                    m.failed = Some(reason.clone());
                }
                self.stage = Stage::Returning { reason };
            }
            HandOverResult::Unknown => self.must_read = true,
        }
    }
}
