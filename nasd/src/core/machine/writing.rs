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
        let run = self.start(now, Job::Cas(record.clone()), limit);
        out.push(Effect::Cas { run, expected, record });
    }

    pub(super) fn cas_ended(
        &mut self,
        now: Now,
        record: Record,
        result: CasResult,
        out: &mut Vec<Effect>,
    ) {
        match result {
            CasResult::Won { revision } => {
                self.record = Some(Versioned { revision, record });
                self.record_known = true;
                self.unsettled = None;
                self.cas_won(now, out);
            }
            CasResult::Lost(found) => {
                self.learn(found);
                self.cas_not_won(now, "another node changed the record first", out);
            }
            CasResult::NotSent(why) => self.cas_not_won(now, &why, out),
            CasResult::Unknown => {
                self.must_read = true;
                self.unsettled = self.record.as_ref().map(|v| v.revision);
                self.cas_not_won(now, "the coordinator did not confirm in time", out);
            }
        }
    }

    pub(super) fn cas_won(&mut self, now: Now, out: &mut Vec<Effect>) {
        match self.stage.clone() {
            Stage::Preparing { to } => {
                let epoch = self.record().map_or(0, |r| r.epoch);
                let run = self.start(now, Job::Warm, WARM);
                out.push(Effect::Warm { run, to, epoch });
            }
            Stage::Returning { reason } => {
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
        self.change(now, Ok(stored.record), CAS, out);
        true
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
}
