//! Compare-and-set of the record, and what its outcome means; an unknown one is read again (S8).

use std::time::Duration;

use super::*;

impl Machine {
    pub(super) fn change(
        &mut self,
        now: Now,
        next: Result<Record, TransitionError>,
        limit: Duration,
        out: &mut Vec<Effect>,
    ) {
        match next {
            Ok(record) => {
                let expected = self.record.as_ref().map(|v| v.revision);
                self.cas(now, expected, record, limit, out);
            }
            Err(error) => self.problem = Some(error.to_string()),
        }
    }

    pub(super) fn cas(
        &mut self,
        now: Now,
        expected: Option<i64>,
        record: Record,
        limit: Duration,
        out: &mut Vec<Effect>,
    ) {
        let job = CasJob { next: record.clone(), expected, supersedes: false };
        let run = self.start(now, Job::Cas(job), limit);
        out.push(Effect::Cas { run, expected, record });
    }

    pub(super) fn cas_ended(
        &mut self,
        now: Now,
        job: CasJob,
        result: CasResult,
        out: &mut Vec<Effect>,
    ) {
        let result = if self.emergency.is_some() {
            let Some(won) = self.claimed(now, result, out) else { return };
            won
        } else {
            result
        };
        match result {
            CasResult::Won { revision } => self.cas_confirmed(now, job, revision, out),
            CasResult::Lost(found) => {
                self.learn(found);
                if self.try_taking_again() {
                    return;
                }
                self.cas_not_won(now, "another node changed the record first", out);
            }
            CasResult::NotSent(why) => self.cas_not_won(now, &why, out),
            CasResult::Unknown => {
                self.must_read = true;
                // It can still land only if nothing has been written since what it compares.
                let still = self.record.as_ref().map(|v| v.revision) == job.expected;
                self.unsettled = if still { job.expected } else { self.unsettled };
                self.cas_not_won(now, "the coordinator did not confirm in time", out);
            }
        }
    }

    fn cas_confirmed(&mut self, now: Now, job: CasJob, revision: i64, out: &mut Vec<Effect>) {
        let newer = self.record.as_ref().is_some_and(|v| v.revision > revision);
        if newer {
            // Somebody wrote after it, and that has been read already: it was true for a moment.
            self.cas_not_won(now, "another node changed the record right after", out);
            return;
        }
        self.record = Some(Versioned { revision, record: job.next });
        self.record_known = true;
        self.unsettled = None;
        if !job.supersedes {
            self.cas_won(now, out);
        }
    }

    fn cas_won(&mut self, now: Now, out: &mut Vec<Effect>) {
        match self.stage.clone() {
            Stage::Preparing { to } => {
                let epoch = self.record().map_or(0, |r| r.epoch);
                let run = self.start(now, Job::Warm, WARM);
                out.push(Effect::Warm { run, to, epoch });
            }
            Stage::Returning { reason } if self.owns() => {
                self.not_before = now;
                self.open_if_proved(now, Why::Rollback(reason), out);
            }
            Stage::TakingOver { reason, .. } => self.took(now, reason, out),
            _ => self.problem = None,
        }
    }

    /// C5: a write whose outcome is not known may still land. Until the record's revision has moved on
    /// nothing is concluded from it; the authority moves it on itself, by writing the same again.
    pub(super) fn supersede(&mut self, now: Now, out: &mut Vec<Effect>) -> bool {
        let Some(stored) = self.record.clone() else { return false };
        let open = self.unsettled == Some(stored.revision) && !self.holes.has(Hole::C5);
        let mine = stored.record.may_serve(&self.me);
        if !open || !mine || self.must_read || now < self.not_before {
            return false;
        }
        let (next, expected) = (stored.record, Some(stored.revision));
        let job = CasJob { next: next.clone(), expected, supersedes: true };
        let run = self.start(now, Job::Cas(job), CAS);
        out.push(Effect::Cas { run, expected, record: next });
        true
    }

    /// The owner that asked for the takeover wrote something harmless first: the same again, from the
    /// disconnect on, with the new revision.
    fn try_taking_again(&mut self) -> bool {
        let Stage::TakingOver { reason, .. } = self.stage.clone() else { return false };
        let record = self.record().cloned();
        let still = self.asked_answer_due && record.is_some_and(|r| self.may_take(&r).is_ok());
        if still {
            self.stage = Stage::TakingOver { at: TAKE.len() - 1, reason };
        }
        still
    }

    fn owns(&self) -> bool {
        self.record().is_some_and(|r| r.authority() == Some(&self.me))
    }

    pub(super) fn cas_not_won(&mut self, now: Now, why: &str, out: &mut Vec<Effect>) {
        self.not_before = now + Duration::from_millis(200);
        match self.stage.clone() {
            Stage::Preparing { .. } => {
                self.stage = Stage::Serving;
                self.moving = None;
                self.auto_move_failed(now);
                out.push(Effect::MoveEnded(MoveEnd::RolledBack(format!("not begun: {why}"))));
            }
            Stage::TakingOver { .. } => self.take_failed(now, why.to_owned(), out),
            Stage::Returning { .. } | Stage::Serving => {}
            _ => self.problem = Some(why.to_owned()),
        }
    }

    /// The operator's hold is part of the record: both nodes and every later life see it.
    pub(super) fn write_hold(&mut self, now: Now, out: &mut Vec<Effect>) -> bool {
        let Some(want) = self.want_hold.clone() else { return false };
        let Some(record) = self.record().cloned() else { return false };
        if record.hold == want {
            self.want_hold = None;
            return false;
        }
        let still = matches!(self.stage, Stage::Serving | Stage::Standby | Stage::Waiting);
        if still && now >= self.not_before {
            self.change(now, Ok(record.held(want)), CAS, out);
        }
        still && self.pending.is_some()
    }
}
