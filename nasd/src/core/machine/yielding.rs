//! Letting the other node serve: moves for this node's health, failback, asking for a takeover.
//!
//! Keeps "hand over in good order where possible; never flap" (design section 6): what is judged here
//! moves the service at most once per pause, and an asking never comes true later than its reason.

use std::time::Duration;

use super::*;

/// Until the next automatic move after one for this node's health; the next node has its own pause.
const SHORT_PAUSE: Duration = Duration::from_secs(5);

impl Machine {
    /// A file system met an error, and the gate is shut so that no client hears of it: whoever serves next
    /// mounts anew. The other node if it can, this one otherwise; both without an error to any client.
    pub(super) fn leave_spoiled(
        &mut self,
        now: Now,
        record: &Record,
        out: &mut Vec<Effect>,
    ) -> bool {
        let Some(why) = self.spoiled.clone() else { return false };
        if self.peer_could_serve(now, record) && now >= self.auto.not_before {
            self.move_away(now, SHORT_PAUSE, out);
        }
        if self.stage == Stage::Serving {
            self.close(now, why, out);
        }
        true
    }

    /// This node cannot serve well, and the other could: hand over in good order, and if that fails
    /// twice, let the other one take over. True: begun.
    pub(super) fn move_for_health(
        &mut self,
        now: Now,
        record: &Record,
        out: &mut Vec<Effect>,
    ) -> bool {
        if !self.peer_could_serve(now, record) {
            self.since.well = None;
            return false;
        }
        let well = *self.since.well.get_or_insert(now);
        let Some(Unfit { ailment, why: reason }) = self.unfit.clone() else {
            self.auto.failed = 0;
            return self.go_home(now, well, out);
        };
        let orderly = ailment == Ailment::Other;
        if now < self.auto.not_before || (orderly && now < self.auto.settled_at) {
            return false;
        }
        // With hanging writes nothing can be written back or unmounted: no move in good order.
        if self.auto.failed >= 2 || !orderly {
            self.ask_now(now, reason, out);
            if orderly {
                self.auto.not_before = now + AUTO_MOVE_PAUSE;
            }
            return false;
        }
        self.move_away(now, SHORT_PAUSE, out);
        true
    }

    /// Whether an automatic move to the other node may be tried: nothing is held, and it is fit and whole.
    fn peer_could_serve(&self, now: Now, record: &Record) -> bool {
        record.hold.is_none()
            && matches!(record.phase, Phase::Serving { .. })
            && record.current.contains(&self.peer)
            && self.peer_holds_everything()
            && self.peer_is_fresh(now)
            && self.peer_view.beat.unfit.is_none()
    }

    fn move_away(&mut self, now: Now, pause: Duration, out: &mut Vec<Effect>) {
        self.auto.running = true;
        self.auto.not_before = now + pause;
        let to = self.peer.clone();
        self.begin_move(now, &to, AUTO_MOVE, out);
    }

    /// Failback, where it is configured: never soon, never twice in a short time.
    fn go_home(&mut self, now: Now, well: Now, out: &mut Vec<Effect>) -> bool {
        let due = self.failback.is_some_and(|after| now >= well + after);
        if !due || !self.drbd.both_current() || now < self.auto.not_before.max(self.auto.settled_at)
        {
            return false;
        }
        self.move_away(now, AUTO_MOVE_PAUSE, out);
        true
    }

    /// Called wherever a move has ended without moving.
    pub(super) fn auto_move_failed(&mut self, now: Now) {
        if std::mem::take(&mut self.auto.running) {
            self.auto.failed += 1;
            let pause = if self.unfit.is_some() { AUTO_MOVE_RETRY } else { AUTO_MOVE_PAUSE };
            self.auto.not_before = now + pause;
        }
    }

    /// At most every few seconds; the answer is a record that has moved, or nothing.
    pub(super) fn ask_for_takeover(&mut self, now: Now, reason: String, out: &mut Vec<Effect>) {
        self.problem = Some(format!("{reason}; {} must take the service", self.peer));
        if now + ASK_PAUSE >= self.auto.yield_until {
            self.ask_now(now, reason, out);
        }
    }

    fn ask_now(&mut self, now: Now, reason: String, out: &mut Vec<Effect>) {
        self.auto.not_before = now + ASK_PAUSE;
        self.auto.yield_until = now + 2 * ASK_PAUSE;
        out.push(Effect::AskTakeover { reason });
    }

    /// Whether the other node is to win the next compare-and-set: it was asked to take over, or says
    /// that it does. The freeze lasts no longer by that than one side needs to act (design section 4).
    pub(super) fn yields(&self, now: Now) -> bool {
        let takes = self.peer_is_fresh(now) && self.peer_view.beat.taking;
        let frozen = self.since.frozen.unwrap_or(now);
        (now < self.auto.yield_until || takes) && now < frozen + 2 * ASK_PAUSE
    }

    /// An asking that nothing could be made of in this step is refused in it: it must not come true
    /// days later.
    pub(super) fn refuse_unheard_asking(&mut self, out: &mut Vec<Effect>) {
        if self.asked.take().is_some() {
            let stage = self.stage.name();
            let why = self.problem.clone().unwrap_or_else(|| format!("it is {stage} here"));
            self.answer_asked(Err(why), out);
        }
    }

    /// The service belongs here, does not open, and the other node could serve it.
    pub(super) fn give_away_what_does_not_open(&mut self, now: Now, out: &mut Vec<Effect>) {
        let since = *self.since.cannot_open.get_or_insert(now);
        let Some(record) = self.record() else { return };
        let able = record.hold.is_none()
            && record.current.contains(&self.peer)
            && self.peer_is_fresh(now)
            && self.peer_view.beat.unfit.is_none();
        if able && now >= since + OPEN_PATIENCE {
            let why = self.problem.clone().unwrap_or_else(|| "it does not open".into());
            self.ask_for_takeover(now, why, out);
        }
    }

    /// The authority is here, the data is over there (this node lost its disk and then its life).
    pub(super) fn ask_whoever_has_the_data(
        &mut self,
        now: Now,
        record: &Record,
        out: &mut Vec<Effect>,
    ) -> bool {
        let elsewhere = !record.current.contains(&self.me)
            && record.current.contains(&self.peer)
            && self.drbd.role == Role::Secondary;
        if !elsewhere {
            return false;
        }
        let reason = format!("the replica of {} is not current", self.me);
        self.ask_for_takeover(now, reason, out);
        true
    }
}
