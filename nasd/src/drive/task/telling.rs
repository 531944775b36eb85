//! What is told about moves and takeovers: to the operator who asked, to the old owner, to the history.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nasd_proto::{
    ClientStall, HostStall, MoveEvent, Outcome, move_event::Kind, outcome::Result as MoveResult,
};
use tokio::sync::mpsc;

use super::{Command, ServiceTask};
use crate::agents::Said;
use crate::api::status::LastMove;
use crate::core::machine::{MoveEnd, Stage};
use crate::drive::handover;
use crate::observe::history::Entry;

/// How long after a move the stalls that hypervisors measured are waited for.
const STALLS: Duration = Duration::from_secs(3);

/// What is told about the move that runs or ran.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) silent_since: Option<Instant>,
    pub(super) silent_before: Duration,
    pub(super) silent: Duration,
    /// Of the move from here, until it is told.
    pub(super) outcome: Option<Outcome>,
    /// When that move ended, and whether its clients are known.
    ended: Option<(Instant, bool)>,
    pub(super) last: Option<LastMove>,
    /// On the target: the epoch of the hand-over and the old owner's ear. Verdicts go there and
    /// nowhere else.
    pub(super) answer_to: Option<(u64, mpsc::Sender<MoveEvent>)>,
    /// The hand-over of that epoch has been opened; its clients are watched.
    pub(super) opened: Option<u64>,
    /// The takeover that runs, or ran last, has cut DRBD's connection.
    pub(super) cut: bool,
    /// The server ran when nasd started, and nothing else was heard since.
    pub(super) adopted: bool,
    /// An operator's emergency start goes on.
    emergency: bool,
}

impl ServiceTask {
    /// On the old owner (or after a rollback): the operator's answer.
    pub(super) fn move_ended(&mut self, end: MoveEnd) {
        let since = self.tally.silent_since.take().map_or(Duration::ZERO, |t| t.elapsed());
        let epoch = self.machine.record().map_or(0, |r| r.epoch);
        let (me, peer) = (self.hands.me.0.clone(), self.hands.peer.0.clone());
        let (result, message, owner) = match end {
            MoveEnd::Moved => (MoveResult::Moved, String::new(), peer.clone()),
            MoveEnd::RolledBack(why) => (MoveResult::RolledBack, why, me.clone()),
            MoveEnd::Failed(why) => (MoveResult::Failed, why, String::new()),
        };
        self.tally.silent = if result == MoveResult::Moved || !since.is_zero() {
            self.tally.silent_before + since
        } else {
            Duration::ZERO
        };
        tracing::info!(result = result.as_str_name(), %message, silent = ?self.tally.silent, "move ended");
        let outcome = Outcome {
            result: result.into(),
            message,
            owner,
            epoch,
            silent_us: u64::try_from(self.tally.silent.as_micros()).unwrap_or(u64::MAX),
            ..Outcome::default()
        };
        self.remember_move(&me, &peer, result);
        self.note("move", result.as_str_name(), &outcome.message);
        if result == MoveResult::Moved {
            self.wait_for_clients(outcome);
        } else {
            self.hands.timeline.outcome(outcome);
            self.hands.timeline.hang_up();
        }
    }

    /// The service is open; the operator also wants to know when each client was back.
    fn wait_for_clients(&mut self, outcome: Outcome) {
        let epoch = outcome.epoch;
        self.tally.outcome = Some(outcome);
        self.tally.ended = Some((Instant::now(), false));
        let tell = self.me_tx.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(4)).await;
            drop(tell.send(Command::ClientsBack(epoch, Vec::new())).await);
        });
    }

    pub(super) fn clients_back(&mut self, epoch: u64, clients: Vec<ClientStall>) {
        if self.tally.opened == Some(epoch) {
            self.tally.opened = None;
            if let Some((_, listener)) = self.tally.answer_to.take() {
                let told = self.opened_outcome(MoveResult::Moved, String::new());
                // The old owner may have gone; the move is done all the same.
                let _ = listener.try_send(outcome_event(Outcome { clients, ..told }));
            }
            self.hands.timeline.hang_up();
        } else if let Some(outcome) = self.tally.outcome.as_mut().filter(|o| o.epoch == epoch)
            && let Some((since, known @ false)) = &mut self.tally.ended
        {
            outcome.clients = clients;
            *known = true;
            let wait = STALLS.saturating_sub(since.elapsed());
            self.wait_for_stalls(epoch, wait);
        }
    }

    /// Hypervisors know what guests have felt; where there are none, nothing is waited for.
    fn wait_for_stalls(&self, epoch: u64, wait: Duration) {
        let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
        tokio::spawn(async move {
            let stalls = hands.agents.stalls(&hands.service.name, wait).await;
            drop(tell.send(Command::StallsTold(epoch, stalls)).await);
        });
    }

    pub(super) fn stalls_told(&mut self, epoch: u64, stalls: Vec<HostStall>) {
        if self.tally.outcome.as_ref().is_some_and(|o| o.epoch == epoch)
            && let Some(outcome) = self.tally.outcome.take()
        {
            self.hands.timeline.outcome(Outcome { stalls, ..outcome });
            self.hands.timeline.hang_up();
        }
    }

    /// The announced move will not be made.
    pub(super) fn withdraw(&self) {
        let epoch = self.machine.record().map_or(0, |r| r.epoch);
        self.hands.agents.say(&self.hands.service.name, Said::Withdrawn { epoch });
    }

    pub(super) fn opened_outcome(&self, result: MoveResult, message: String) -> Outcome {
        Outcome {
            result: result.into(),
            message,
            owner: self.hands.me.0.clone(),
            epoch: self.machine.record().map_or(0, |r| r.epoch),
            silent_us: u64::try_from(self.tally.silent.as_micros()).unwrap_or(u64::MAX),
            ..Outcome::default()
        }
    }

    /// On the target: the answer to the old owner, then the watch on its clients.
    pub(super) fn opening_ended(&mut self, result: Result<(), String>) {
        let here = self.tally.silent_since.take().map_or(Duration::ZERO, |t| t.elapsed());
        self.tally.silent = self.tally.silent_before + here;
        let Some((epoch, listener)) = self.tally.answer_to.clone() else { return };
        match result {
            Ok(()) => {
                let told = self.opened_outcome(MoveResult::Moved, String::new());
                let _ = listener.try_send(outcome_event(told));
                self.tally.opened = Some(epoch);
                let (me, peer) = (self.hands.me.0.clone(), self.hands.peer.0.clone());
                self.remember_move(&peer, &me, MoveResult::Moved);
                let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
                let silent = self.tally.silent;
                tokio::spawn(async move {
                    let clients = handover::watch_clients(&hands, silent).await;
                    drop(tell.send(Command::ClientsBack(epoch, clients)).await);
                });
            }
            Err(reason) => {
                self.tally.answer_to = None;
                let told = self.opened_outcome(MoveResult::Failed, reason);
                let _ = listener.try_send(outcome_event(told));
                self.hands.timeline.hang_up();
            }
        }
    }

    fn remember_move(&mut self, from: &str, to: &str, result: MoveResult) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let result = match result {
            MoveResult::Moved => "moved",
            MoveResult::RolledBack => "rolled-back",
            _ => "failed",
        };
        self.tally.last = Some(LastMove {
            from: from.to_owned(),
            to: to.to_owned(),
            result: result.to_owned(),
            silent_ms: u64::try_from(self.tally.silent.as_millis()).unwrap_or(u64::MAX),
            ended_unix_s: now.as_secs(),
        });
    }

    /// On the node that took over: the operator's answer, if one asked, and the clients' return.
    pub(super) fn takeover_ended(&mut self, result: Result<(), String>) {
        let since = self.tally.silent_since.take().map_or(Duration::ZERO, |t| t.elapsed());
        self.tally.silent = since;
        let (result, message) = match result {
            Ok(()) => (MoveResult::Moved, String::new()),
            Err(why) => (not_taken(self.tally.cut), why),
        };
        self.note("takeover", result.as_str_name(), &message);
        if result == MoveResult::Moved {
            let (me, peer) = (self.hands.me.0.clone(), self.hands.peer.0.clone());
            self.remember_move(&peer, &me, result);
        }
        let outcome = self.opened_outcome(result, message);
        self.hands.timeline.outcome(outcome);
        self.hands.timeline.hang_up();
    }

    /// One line of history, by this node.
    pub(super) fn note(&self, what: &str, result: &str, detail: &str) {
        let epoch = self.machine.record().map_or(0, |r| r.epoch);
        self.hands.history.note(Entry::now(&self.hands.me.0, what, epoch, result, detail));
    }

    /// Begin and end of an emergency start; its note on the disk ends with it.
    fn note_emergency(&mut self) {
        let on = self.machine.emergency().is_some();
        if std::mem::replace(&mut self.tally.emergency, on) == on {
            return;
        }
        let text = self.machine.emergency().or(self.machine.emergency_end()).unwrap_or_default();
        tracing::error!(service = self.hands.service.name, on, text, "EMERGENCY start");
        self.note("EMERGENCY", if on { "begun" } else { "ended" }, text);
        if !on {
            let hands = Arc::clone(&self.hands);
            tokio::spawn(async move { hands.last_seen.end_emergency().await });
        }
    }

    /// Every change of the stage is logged; those that an operator asks about later are kept.
    pub(super) fn note_stage(&mut self, before: &'static str) {
        self.note_emergency();
        let stage = self.machine.stage().name();
        if stage == before {
            return;
        }
        let opening =
            matches!(self.machine.stage(), Stage::Opening { .. } | Stage::TakingOver { .. });
        let service = &self.hands.service.name;
        self.hands.turns.set(service, self.hands.service.priority, opening);
        let epoch = self.machine.record().map_or(0, |r| r.epoch);
        // What ran before nasd started was never cut: agents have nothing to look at.
        let adopted = std::mem::take(&mut self.tally.adopted);
        if let Some(said) = news(before, stage, epoch).filter(|_| !(adopted && stage == "serving"))
        {
            self.hands.agents.say(service, said);
        }
        // On the way to serving through the stages of a start it is still the same server.
        self.tally.adopted = adopted && matches!(stage, "waiting" | "opening");
        let problem = self.machine.problem().unwrap_or_default();
        tracing::info!(service, from = before, to = stage, problem, "stage");
        if matches!(stage, "taking-over" | "serving") || before == "serving" {
            self.note("stage", stage, problem);
        }
    }
}

/// What agents are to hear of a change of the stage. Told before anything of the new stage is done, and never
/// waited for.
fn news(before: &str, now: &str, epoch: u64) -> Option<Said> {
    match (before, now) {
        ("preparing", "cutting") => Some(Said::Cut { epoch }),
        ("preparing", _) => Some(Said::Withdrawn { epoch }),
        (_, "serving") => Some(Said::Opened { epoch }),
        // What this node serves next is another move.
        ("handed-over" | "closing", "standby") => Some(Said::Gone),
        _ => None,
    }
}

/// Refused means that nothing was changed.
fn not_taken(cut: bool) -> MoveResult {
    if cut { MoveResult::Failed } else { MoveResult::Refused }
}

pub(super) fn outcome_event(outcome: Outcome) -> MoveEvent {
    MoveEvent { kind: Some(Kind::Outcome(outcome)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s11_agents_hear_of_the_cut_the_opening_and_of_moves_that_are_not_made() {
        assert_eq!(news("serving", "preparing", 7), None);
        assert_eq!(news("preparing", "cutting", 7), Some(Said::Cut { epoch: 7 }));
        for nothing_cut in ["serving", "waiting", "opening", "closing", "standby"] {
            let told = news("preparing", nothing_cut, 7);
            assert_eq!(told, Some(Said::Withdrawn { epoch: 7 }), "{nothing_cut}");
        }
        for opening in ["opening", "taking-over", "waiting", "returning"] {
            assert_eq!(news(opening, "serving", 8), Some(Said::Opened { epoch: 8 }), "{opening}");
        }
        assert_eq!(news("cutting", "handed-over", 7), None);
        assert_eq!(news("handed-over", "standby", 7), Some(Said::Gone));
    }

    #[test]
    fn a_takeover_that_has_cut_the_link_is_not_told_as_if_nothing_was_changed() {
        assert_eq!(not_taken(false), MoveResult::Refused);
        assert_eq!(not_taken(true), MoveResult::Failed);
    }
}
