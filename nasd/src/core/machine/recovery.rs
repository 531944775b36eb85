//! The emergency start: an operator has the service opened here though the coordinator has no majority.
//!
//! Keeps S3 (only when told, never by itself), S1 (what stands against it refuses it; the promotion has
//! the usual proof, by the adopted record) and S12: nothing that was done here is true for anybody else
//! until the coordinator is back. Then its record decides: untouched since, this node's claim is written
//! by compare-and-set; changed by somebody else, this node closes.

use std::time::Duration;

use super::*;

/// How often the coordinator is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// What goes on since an operator's emergency start.
#[derive(Debug, Clone)]
pub(super) struct Emergency {
    /// The last record that this node had seen.
    base: Record,
    /// Who typed it.
    by: String,
    /// What was believed before, should nothing come of it.
    before: (Option<Versioned>, bool),
    /// Begun in this life of nasd; an older one may have written data.
    fresh: bool,
    /// The coordinator's record, untouched since: the claim can be written.
    found: Option<Versioned>,
    /// For status and history.
    told: String,
}

impl Machine {
    /// Loud, as long as an operator's emergency start is not confirmed by the coordinator.
    #[must_use]
    pub fn emergency(&self) -> Option<&str> {
        self.emergency.as_ref().map(|e| e.told.as_str())
    }

    /// How the last one ended, or why it was not begun.
    #[must_use]
    pub fn emergency_end(&self) -> Option<&str> {
        self.emergency_end.as_deref()
    }

    /// Adopts the last record as this node's own, in memory. A refusal is told as its end.
    pub(super) fn start_emergency(
        &mut self,
        now: Now,
        last: Record,
        by: String,
        resumed: bool,
        out: &mut Vec<Effect>,
    ) {
        let may = if resumed { Ok(()) } else { self.may_begin_emergency(now, &last) };
        let adopted = may.and_then(|()| last.emergency(&self.me).map_err(|e| e.to_string()));
        let adopted = match adopted {
            Ok(record) if self.emergency.is_none() => record,
            Ok(_) => return,
            Err(why) => {
                let why = format!("no emergency start: {why}");
                self.emergency_end = Some(why);
                self.must_read = true;
                return;
            }
        };
        let before = (self.record.take(), self.record_known);
        let seen = before.0.clone().filter(|_| self.unreadable.is_none());
        let fresh = !resumed;
        let told = tell(&by, last.epoch, "");
        self.emergency = Some(Emergency { base: last, by, before, fresh, found: None, told });
        self.emergency_end = None;
        self.record = Some(Versioned { revision: 0, record: adopted });
        self.record_known = true;
        self.must_read = true;
        self.forget_plans(now, out);
        if self.stage != Stage::Serving {
            self.stage = Stage::Waiting;
        }
        if let Some(seen) = seen {
            self.hear_in_emergency(now, Some(seen), out);
        }
    }

    /// Whatever was planned rested on another record. A compare-and-set of this node that lands late
    /// gives the service to nobody else (`is_untouched`).
    fn forget_plans(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.pending = None;
        self.unsettled = None;
        self.taking = None;
        self.target_since = None;
        self.not_before = now;
        self.auto.running = false;
        if self.moving.take().is_some() {
            out.push(Effect::MoveEnded(MoveEnd::Failed("an emergency start ended it".into())));
        }
    }

    /// What stands against a beginning, besides what stands against a promotion.
    fn may_begin_emergency(&self, now: Now, last: &Record) -> Result<(), String> {
        let idle = matches!(
            self.stage,
            Stage::Waiting
                | Stage::Standby
                | Stage::Serving
                | Stage::HandedOver { .. }
                | Stage::Returning { .. }
        );
        let busy = self.pending.as_ref().is_some_and(|p| !matches!(p.job, Job::Cas(_)));
        if self.unreadable.is_none() {
            return Err("the coordinator answers".into());
        }
        if !idle || busy {
            return Err(format!("the service is {} here", self.stage.name()));
        }
        if let Some(known) = self.record().filter(|r| r.epoch > last.epoch) {
            return Err(format!(
                "this node's disk remembers epoch {}, but {} was seen",
                last.epoch, known.epoch
            ));
        }
        self.may_start_alone(now, last)
    }

    /// S1, S2 as far as one node can see: what forbids this replica to be the only one.
    fn may_start_alone(&self, now: Now, last: &Record) -> Result<(), String> {
        let heard = self.peer_view.heard.is_some_and(|at| now < at + self.timing.lone_wait);
        let (me, peer) = (&self.me, &self.peer);
        let no = if !last.current.contains(me) {
            format!("the replica of {me} may miss acknowledged writes: it is not current")
        } else if self.marked {
            format!("a disk of {me} had failed")
        } else if self.drbd.role == Role::Unknown || !self.drbd.local_consistent {
            format!("a disk of {me} is not complete")
        } else if !self.drbd.descends_from(&last.data_uuid) {
            format!("the data of {me} is not of the record's generation")
        } else if self.drbd.connected && self.drbd.peer_role != Role::Secondary {
            format!("DRBD is connected, and {peer} is not Secondary")
        } else if heard {
            format!("nasd on {peer} answers")
        } else {
            return Ok(());
        };
        Err(no)
    }

    /// [`Machine::decide`] as long as the coordinator has not confirmed.
    pub(super) fn decide_emergency(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.must_read |= now >= self.last_read + ASK_AGAIN;
        self.tell_emergency();
        if now >= self.not_before
            && let Some(found) = self.emergency.as_mut().and_then(|e| e.found.take())
        {
            self.claim(now, found, out);
            return;
        }
        match self.stage.clone() {
            Stage::Waiting | Stage::Standby => self.begin_alone(now, out),
            Stage::TakingOver { at, .. } => self.continue_alone(now, at, out),
            Stage::Opening { at, .. } => self.open_alone(now, at, out),
            Stage::Closing { at, .. } => self.run_step(now, CLOSE[at], out),
            _ => self.give_way_to_an_open_peer(now, out),
        }
    }

    fn tell_emergency(&mut self) {
        let reason = self.unreadable.as_deref().unwrap_or_default();
        if let Some(e) = &mut self.emergency {
            e.told = tell(&e.by, e.base.epoch, reason);
        }
    }

    fn base(&self) -> Option<Record> {
        self.emergency.as_ref().map(|e| e.base.clone())
    }

    /// Nothing is open. A former life's emergency waits for what stands against it, a new one ends.
    fn begin_alone(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(base) = self.base() else { return };
        if now < self.not_before || self.unreadable.is_none() {
            return; // the coordinator is being asked
        }
        if self.taking.is_none() {
            // S4: only another owner's right has to be waited out.
            let own = base.authority() == Some(&self.me);
            self.taken_at = Some(now);
            self.peer_is_off = own; // its own last grant is no other node's
            self.taking = Some("an operator's EMERGENCY start".into());
        }
        if self.drbd.role == Role::Primary {
            self.open_if_proved(now, Why::Takeover(self.taking.clone().unwrap_or_default()), out);
        } else if let Err(why) = self.may_start_alone(now, &base) {
            self.refrain(now, why);
        } else {
            let reason = self.taking.clone().unwrap_or_default();
            self.stage = Stage::TakingOver { at: 0, reason };
            self.run_step(now, TAKE[0], out);
        }
    }

    /// [`TAKE`] without its compare-and-set: the link is cut by force before this node promotes.
    fn continue_alone(&mut self, now: Now, at: usize, out: &mut Vec<Effect>) {
        let Some(base) = self.base() else { return };
        if let Err(why) = self.may_start_alone(now, &base) {
            self.stage = Stage::Waiting;
            self.refrain(now, why);
        } else if at < TAKE.len() {
            self.run_step(now, TAKE[at], out);
        } else {
            self.open_if_proved(now, Why::Takeover(self.taking.clone().unwrap_or_default()), out);
        }
    }

    /// Not Primary, and something stands against it.
    fn refrain(&mut self, now: Now, why: String) {
        if self.emergency.as_ref().is_some_and(|e| e.fresh) {
            self.abandon(format!("no emergency start: {why}"));
        } else {
            self.problem = Some(format!("the EMERGENCY start cannot go on: {why}"));
        }
        self.not_before = now + RETRY;
    }

    /// As if it had never been asked for.
    fn abandon(&mut self, why: String) {
        let Some(e) = self.emergency.take() else { return };
        (self.record, self.record_known) = e.before;
        self.taking = None;
        self.must_read = true;
        self.emergency_end = Some(why.clone());
        self.problem = Some(why);
    }

    /// As [`Machine::continue_opening`], with nothing to write before the threads start.
    fn open_alone(&mut self, now: Now, at: usize, out: &mut Vec<Effect>) {
        let step = OPEN[at];
        let opens = self.open_not_before(now);
        if step == Step::StartThreads && now < opens {
            self.wake(now, opens, out);
        } else if matches!(step, Step::StartThreads | Step::OpenGate) && self.peer_serves(now) {
            self.problem = Some(format!("{} serves: it is not opened here as well", self.peer));
        } else {
            self.run_step(now, step, out);
        }
    }

    /// The peer was heard lately, and is not idle.
    pub(super) fn peer_serves(&self, now: Now) -> bool {
        let beat = &self.peer_view.beat;
        let open = matches!(beat.gate, GateReport::Open { .. });
        self.peer_is_fresh(now) && (open || (beat.role == Role::Primary && !beat.frozen))
    }

    /// The other node was not dead. The record that both know gives it the right.
    fn give_way_to_an_open_peer(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(base) = self.base().filter(|b| b.authority() != Some(&self.me)) else { return };
        if self.peer_serves(now) {
            let why = format!("{} serves, by the record of epoch {}", self.peer, base.epoch);
            // No write of this node wins by a revision that is none.
            self.lose(now, Versioned { revision: -1, record: base }, why, out);
            self.must_read = true;
        }
    }

    /// The coordinator's word in an emergency, from a read or from a lost compare-and-set.
    pub(super) fn hear_in_emergency(
        &mut self,
        now: Now,
        heard: Option<Versioned>,
        out: &mut Vec<Effect>,
    ) {
        self.must_read = false;
        self.unreadable = None;
        let Some(heard) = heard else {
            self.unreadable = Some("the coordinator has no record: it was replaced".into());
            return;
        };
        if matches!(&self.pending, Some(Pending { job: Job::Cas(_), .. })) {
            return; // its outcome tells more
        }
        if self.is_untouched(&heard.record) {
            if let Some(e) = &mut self.emergency {
                e.found = Some(heard);
            }
            return;
        }
        let (phase, epoch) = (heard.record.phase.clone(), heard.record.epoch);
        let why = format!("the record was changed meanwhile: {phase} in epoch {epoch}");
        self.lose(now, heard, why, out);
    }

    /// Nobody else has claimed the service: the record is as it was seen last (a hold claims nothing),
    /// or names this node by a write of its own that landed late.
    fn is_untouched(&self, found: &Record) -> bool {
        let Some(e) = &self.emergency else { return false };
        let mine = found.authority() == Some(&self.me)
            && e.base.epoch <= found.epoch
            && found.epoch <= e.base.epoch + 1;
        mine || found.held(None) == e.base.held(None)
    }

    /// The coordinator is back and nobody else was faster: the claim is written. Where nothing has been
    /// promoted yet there is nothing to claim.
    fn claim(&mut self, now: Now, found: Versioned, out: &mut Vec<Effect>) {
        let fresh = self.emergency.as_ref().is_some_and(|e| e.fresh);
        if fresh && self.drbd.role == Role::Secondary {
            self.stage = Stage::Waiting;
            self.abandon("the coordinator answers again; nothing was done here".into());
            self.learn(Some(found));
            return;
        }
        let Some(mine) = self.record().map(|r| r.held(found.record.hold.clone())) else { return };
        let next = if self.stage == Stage::Serving {
            mine.settle_take(&self.me, self.generation, self.drbd.data_uuid.clone())
        } else {
            Ok(mine)
        };
        match next {
            Ok(record) => self.cas(now, Some(found.revision), record, CAS, out),
            Err(error) => self.problem = Some(error.to_string()),
        }
    }

    /// The outcome of the claim. Won: the rest is as always. Unknown: if it lands it is this node's own,
    /// and the next read tells; this node remains the only one that goes by its record.
    pub(super) fn claimed(
        &mut self,
        now: Now,
        result: CasResult,
        out: &mut Vec<Effect>,
    ) -> Option<CasResult> {
        self.emergency.as_ref()?;
        self.not_before = now + Duration::from_millis(200);
        match result {
            won @ CasResult::Won { .. } => {
                let by = self.emergency.take().map(|e| e.by).unwrap_or_default();
                self.unreadable = None;
                self.must_read = true;
                self.emergency_end =
                    Some(format!("the coordinator has confirmed what {by} started"));
                return Some(won);
            }
            CasResult::Lost(found) => self.hear_in_emergency(now, found, out),
            CasResult::NotSent(_) | CasResult::Unknown => self.must_read = true,
        }
        None
    }

    /// Somebody else has the service: gate first (S5), then all the rest.
    fn lose(&mut self, now: Now, record: Versioned, why: String, out: &mut Vec<Effect>) {
        self.emergency = None;
        let why = format!("the EMERGENCY start is over, this node closes: {why}");
        self.emergency_end = Some(why.clone());
        self.record = Some(record);
        self.forget_plans(now, out);
        self.problem = Some(why.clone());
        // Steps on a frozen volume hang; `beside` stops the node then.
        self.stage = Stage::Waiting;
        if self.drbd.role == Role::Primary && !self.drbd.frozen {
            self.close(now, why, out);
        }
    }
}

fn tell(by: &str, epoch: u64, reason: &str) -> String {
    let reason = if reason.is_empty() { "it is being asked" } else { reason };
    format!(
        "EMERGENCY: started by {by} without the coordinator, after epoch {epoch}; nobody else knows of it, and a change there ends it ({reason})"
    )
}
