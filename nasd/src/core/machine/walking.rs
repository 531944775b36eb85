//! Walking through [`OPEN`] and [`CLOSE`], and what a failed step means (S5, S8).

use super::*;

impl Machine {
    pub(super) fn run_step(&mut self, now: Now, step: Step, out: &mut Vec<Effect>) {
        let Some(record) = self.record() else { return };
        let proof = if step == Step::Promote { self.proof() } else { None };
        let context = StepContext {
            epoch: record.epoch,
            generation: record.generation,
            accepts: record.lowest_generation(&self.me),
            proof,
        };
        if step == Step::StartThreads {
            self.threads_since.get_or_insert(now);
        }
        let run = self.start(now, Job::Step(step), step.deadline());
        out.push(Effect::Run { run, step, context });
    }

    pub(super) fn step_ended(
        &mut self,
        now: Now,
        step: Step,
        result: Result<Option<u64>, StepError>,
        out: &mut Vec<Effect>,
    ) {
        match (self.stage.clone(), result) {
            (Stage::Opening { at, why }, Ok(generation)) => {
                if let Some(generation) = generation {
                    self.generation = generation;
                }
                self.advance_opening(now, at, why, out);
            }
            (Stage::Opening { why, .. }, Err(error)) => self.opening_failed(now, why, &error, out),
            (Stage::Cutting { to, at }, Ok(_)) => self.stage = Stage::Cutting { to, at: at + 1 },
            (Stage::Cutting { to, at }, Err(error)) => {
                self.cut_failed(now, to, at, step, &error, out)
            }
            (Stage::TakingOver { at, reason }, Ok(_)) => {
                self.stage = Stage::TakingOver { at: at + 1, reason };
            }
            (Stage::TakingOver { .. }, Err(error)) => self.take_failed(now, error.to_string(), out),
            (Stage::Closing { at, reason }, Ok(_)) => self.advance_closing(at, reason, out),
            (Stage::Closing { reason, .. }, Err(error)) => {
                self.closing_failed(now, &reason, &error, out);
            }
            _ => {}
        }
    }

    pub(super) fn advance_opening(&mut self, now: Now, at: usize, why: Why, out: &mut Vec<Effect>) {
        let at = at + 1;
        if at < OPEN.len() {
            self.stage = Stage::Opening { at, why };
            return;
        }
        self.stage = Stage::Serving;
        self.threads_since = None;
        self.leftovers = Some(Leftovers::default());
        self.problem = None;
        self.hand_over = None;
        self.target_since = None;
        self.since.cannot_open = None;
        self.since.closing = None;
        if !matches!(why, Why::Start | Why::Rollback(_)) {
            // What made the other node unfit may be here too: not back and forth (never flap).
            self.auto.settled_at = now + AUTO_MOVE_PAUSE;
        }
        self.answer(Ok(()), out);
        self.forget_fence();
        if self.taking.take().is_some() {
            out.push(Effect::TakeoverEnded(Ok(())));
        }
        if let Some(ended) = self.moving.take() {
            let reason = match why {
                Why::Rollback(reason) | Why::Takeover(reason) => reason,
                _ => ended.failed.unwrap_or_else(|| "the move was given up".into()),
            };
            self.auto_move_failed(now);
            out.push(Effect::MoveEnded(MoveEnd::RolledBack(reason)));
        }
    }

    /// S8: a step that was given up may end later. A gate that it shut is opened again by the whole
    /// program; what stands already is found done.
    pub(super) fn gate_shut(&mut self, now: Now) {
        if self.stage == Stage::Serving && self.pending.is_none() && self.spoiled.is_none() {
            self.problem = Some("the gate was found shut; it is opened again".into());
            self.not_before = now;
            self.stage = Stage::Waiting;
        }
    }

    pub(super) fn answer(&mut self, result: Result<(), String>, out: &mut Vec<Effect>) {
        if std::mem::take(&mut self.answer_due) {
            out.push(Effect::OpeningEnded(result));
        }
    }

    pub(super) fn opening_failed(
        &mut self,
        now: Now,
        why: Why,
        error: &StepError,
        out: &mut Vec<Effect>,
    ) {
        self.problem = Some(error.to_string());
        self.not_before = now + RETRY;
        if why == Why::HandOver {
            // The target never opens half a service: it closes what it has begun and says so.
            self.hand_over = None;
            self.open_again_at = now + RETRY;
            self.not_before = now;
            self.close(now, error.to_string(), out);
        } else {
            self.stage = Stage::Waiting;
            self.must_read = true;
            self.give_away_what_does_not_open(now, out);
        }
    }

    pub(super) fn advance_closing(&mut self, at: usize, reason: String, out: &mut Vec<Effect>) {
        let at = at + 1;
        if at < CLOSE.len() {
            self.stage = Stage::Closing { at, reason };
            return;
        }
        self.answer(Err(reason.clone()), out);
        self.leftovers = Some(Leftovers::default());
        self.spoiled = None;
        self.threads_since = None;
        self.since.closing = None;
        self.problem = Some(reason);
        self.stage = Stage::Standby;
        if self.drbd.role == Role::Primary {
            self.drbd.role = Role::Unknown; // it has demoted; nothing is decided until DRBD says so too
        }
        self.target_since = None;
        self.must_read = true;
    }

    /// Closing is never given up: a later step may still succeed, and all is tried again.
    pub(super) fn closing_failed(
        &mut self,
        now: Now,
        reason: &str,
        error: &StepError,
        out: &mut Vec<Effect>,
    ) {
        let problem = format!("{reason}; closing: {error}");
        self.answer(Err(problem.clone()), out);
        self.problem = Some(problem);
        self.stage = Stage::Waiting;
        self.leftovers = Some(Leftovers { mounted: true, ..self.leftovers.unwrap_or_default() });
        self.not_before = now + RETRY;
        self.must_read = true;
    }
}
