//! One service on one node: what to do next, given what is known.
//!
//! Owns the stage and the only decisions to close, open, promote or change the record. Keeps S1 (a
//! promotion carries a [`Proof`]), S5 (order of [`CLOSE`] and [`OPEN`]), S8 (deadlines; before the
//! demotion an overrun rolls back, after it only a compare-and-set brings the service back), S9
//! (a restart is decided from record, DRBD and leftovers alone) and S12.
//!
//! At most one effect that answers (and one read) is under way at a time; answers to abandoned ones are ignored by
//! their [`RunId`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::hole::{Hole, Holes};
use super::peer::{Ailment, GateReport, PeerBeat, PeerView, Sign, Unfit};
use super::record::{NodeName, Phase, Record, TransitionError};
use super::step::{CLOSE, OPEN, Proof, Step, StepError, TAKE};
use super::timing::Timing;
use super::view::{DrbdView, Leftovers, Now, Role};

mod beside;
mod deciding;
mod hearing;
mod moving;
mod recovery;
mod taking;
mod types;
mod walking;
mod writing;
mod yielding;

pub use types::*;

#[derive(Debug, Clone, PartialEq)]
enum Job {
    Step(Step),
    Cas(CasJob),
    Warm,
    HandOver,
}

/// A compare-and-set under way.
#[derive(Debug, Clone, PartialEq)]
struct CasJob {
    next: Record,
    /// The revision that it compares; it can land only while the record has that one.
    expected: Option<i64>,
    /// Only moves the revision on, so that another one can land no more (C5).
    supersedes: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Pending {
    run: RunId,
    job: Job,
    deadline: Now,
}

#[derive(Debug, Clone, PartialEq)]
struct Move {
    deadline: Now,
    aborted: bool,
    failed: Option<String>,
}

/// The state of one service on one node; owned by one task.
#[derive(Debug, Clone)]
pub struct Machine {
    me: NodeName,
    peer: NodeName,
    founds: bool,
    stage: Stage,
    record: Option<Versioned>,
    record_known: bool,
    must_read: bool,
    drbd: DrbdView,
    leftovers: Option<Leftovers>,
    pending: Option<Pending>,
    next_run: RunId,
    generation: u64,
    moving: Option<Move>,
    hand_over: Option<u64>,
    answer_due: bool,
    target_since: Option<Now>,
    not_before: Now,
    last_read: Now,
    read_again_at: Now,
    problem: Option<String>,
    unreadable: Option<String>,
    timing: Timing,
    holes: Holes,
    /// What happens beside the programs.
    side: Side,
    /// The other node, as its nasd told.
    peer_view: PeerView,
    /// Until when the owner may have a right by this node's consent; `None`: this life knows nothing.
    granted_until: Option<Now>,
    /// The revision that a compare-and-set of unknown outcome compared: it may still land (C5).
    unsettled: Option<i64>,
    /// A fence agent has confirmed: nothing is left to wait for.
    peer_is_off: bool,
    /// A target whose opening failed tries again by itself not before.
    open_again_at: Now,
    /// Why this node took over, while it opens.
    taking: Option<String>,
    /// When the checks of a takeover began; a beat heard since then ends it.
    take_began: Option<Now>,
    /// When the record of this takeover was seen first; the wait counts from here.
    taken_at: Option<Now>,
    /// A takeover that somebody asked for.
    asked: Option<String>,
    asked_answer_due: bool,
    /// An operator's wish about the hold, until the record shows it.
    want_hold: Option<Option<String>>,
    unfit: Option<Unfit>,
    /// When the threads were started that have never had an open gate: their grace period runs.
    threads_since: Option<Now>,
    /// A file system met an error: what is mounted must not be opened to clients any more.
    spoiled: Option<String>,
    auto: AutoMove,
    since: Since,
    marked: bool,
    /// An operator's emergency start that the coordinator has not confirmed.
    emergency: Option<recovery::Emergency>,
    emergency_end: Option<String>,
    /// The other node is preferred: move there when all has been well for so long.
    failback: Option<Duration>,
    /// The peer's power can be cut by a fence agent.
    can_fence: bool,
}

/// Chores and searches: at most one of each.
#[derive(Debug, Clone, Default)]
struct Side {
    chore: Option<(RunId, Chore, Now)>,
    chore_not_before: Now,
    /// Chores that failed, and when: others have their turn first.
    chore_failed: BTreeMap<Chore, Now>,
    /// The epoch in which this node has outdated itself.
    outdated_in: Option<u64>,
    seek: Option<(RunId, Now)>,
    sought: Option<(Now, Sign)>,
    seek_not_before: Now,
    wake: Option<Now>,
    fenced: bool,
    power_fence: Option<RunId>,
}

/// Automatic moves for this node's health: never flap.
#[derive(Debug, Clone, Default)]
struct AutoMove {
    running: bool,
    failed: u32,
    not_before: Now,
    /// This node has just received the service: no orderly move back before.
    settled_at: Now,
    /// The other node was asked to take over: until then nothing is written that would forbid it.
    yield_until: Now,
}

/// Since when something has been so; `None`: it is not.
#[derive(Debug, Clone, Default)]
struct Since {
    started: Option<Now>,
    frozen: Option<Now>,
    disconnected: Option<Now>,
    failed: Option<Now>,
    closing: Option<Now>,
    /// All is well for a move back.
    well: Option<Now>,
    /// The service belongs here and does not open.
    cannot_open: Option<Now>,
    /// The record was read last.
    learned: Option<Now>,
    /// First and last look at a resynchronisation of this node that has not ended: when, bytes to go.
    resync: Option<((Now, u64), (Now, u64))>,
    sound_once: bool,
}

impl Machine {
    /// A node that has seen nothing yet. `founds`: this node creates the record of a new service.
    #[must_use]
    pub fn new(me: NodeName, peer: NodeName, founds: bool, timing: Timing) -> Self {
        Self {
            me,
            peer,
            founds,
            stage: Stage::Waiting,
            record: None,
            record_known: false,
            must_read: true,
            drbd: DrbdView::default(),
            leftovers: None,
            pending: None,
            next_run: 1,
            generation: 0,
            moving: None,
            hand_over: None,
            answer_due: false,
            target_since: None,
            not_before: Now::ZERO,
            last_read: Now::ZERO,
            read_again_at: Now::ZERO,
            problem: None,
            unreadable: None,
            timing,
            holes: Holes::default(),
            side: Side::default(),
            peer_view: PeerView::default(),
            granted_until: None,
            unsettled: None,
            peer_is_off: false,
            open_again_at: Now::ZERO,
            taking: None,
            take_began: None,
            taken_at: None,
            asked: None,
            asked_answer_due: false,
            want_hold: None,
            unfit: None,
            threads_since: None,
            spoiled: None,
            auto: AutoMove::default(),
            since: Since::default(),
            marked: false,
            emergency: None,
            emergency_end: None,
            failback: None,
            can_fence: false,
        }
    }

    /// The other node is the preferred one: the service goes back there by a planned move when both
    /// have been current and fit for that long. Without this it stays where it is.
    #[must_use]
    pub fn with_failback(mut self, after: Duration) -> Self {
        self.failback = Some(after);
        self
    }

    /// A fence agent for the other node is configured: a taker asks it, after its compare-and-set.
    #[must_use]
    pub fn with_power_fence(mut self) -> Self {
        self.can_fence = true;
        self
    }

    /// The same machine with a rule left out, for the model.
    #[cfg(feature = "holes")]
    #[must_use]
    pub fn with_holes(mut self, holes: Holes) -> Self {
        self.holes = holes;
        self
    }

    /// Where this node stands.
    #[must_use]
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The last record read.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref().map(|v| &v.record)
    }

    /// What keeps the service from where it should be.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        let usual = self.unreadable.as_deref().or(self.problem.as_deref());
        match &self.emergency {
            Some(_) if self.stage == Stage::Serving => self.emergency(),
            Some(_) => self.problem.as_deref().or(self.emergency()),
            None => usual,
        }
    }

    /// The epoch for which this node wants (or keeps) the right to serve; `None`: gate shut.
    #[must_use]
    pub fn wants_right(&self) -> Option<u64> {
        let open = match &self.stage {
            Stage::Serving | Stage::Preparing { .. } | Stage::Opening { .. } => true,
            Stage::Cutting { at, .. } => *at == 0,
            _ => false,
        };
        self.record().filter(|r| open && r.may_serve(&self.me)).map(|r| r.epoch)
    }

    /// Whether the record is known for sure: no write of this node is open that could still land and
    /// make another node current (C5). DRBD's helper must not be answered from one that is not.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        (self.unsettled.is_none() || self.holes.has(Hole::C5)) && !self.widens()
    }

    /// A write is under way that makes more nodes current.
    #[must_use]
    pub fn widens(&self) -> bool {
        let known = self.record().map_or(0, |r| r.current.len());
        matches!(&self.pending,
            Some(Pending { job: Job::Cas(job), .. }) if job.next.current.len() > known)
    }

    /// Whether this node alone is current, so that its right needs no renewal (S4).
    #[must_use]
    pub fn sole_current(&self) -> bool {
        !self.holes.has(Hole::H5) && self.is_alone()
    }

    fn is_alone(&self) -> bool {
        self.is_settled()
            && self.record().is_some_and(|r| r.current == BTreeSet::from([self.me.clone()]))
    }

    /// The answer to the other node's request for its right of that life: yes only while this node
    /// has seen the same epoch, knows the asker as owner and has not begun to take over or to open.
    /// A yes is remembered: a takeover waits it out (S4).
    pub fn consent(&mut self, now: Now, epoch: u64, life: Duration) -> bool {
        let consents = self.consents(epoch);
        if consents {
            let until = now + life;
            self.granted_until = Some(self.granted_until.map_or(until, |g| g.max(until)));
        }
        consents
    }

    fn consents(&self, epoch: u64) -> bool {
        let idle = matches!(self.stage, Stage::Standby | Stage::HandedOver { .. } | Stage::Waiting)
            && self.pending.as_ref().is_none_or(|p| p.job == Job::HandOver);
        let Some(record) = self.record().filter(|r| idle && r.epoch == epoch) else { return false };
        let leaves = matches!(&record.phase, Phase::Moving { from, .. } if *from == self.peer);
        record.authority() == Some(&self.peer) || leaves
    }

    /// The other node works with a younger epoch than this one has seen: look again.
    pub fn heard_epoch(&mut self, epoch: u64) {
        if self.record().is_none_or(|r| r.epoch < epoch) {
            self.must_read = true;
        }
    }

    /// Takes an event in and says what to do.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.take_in(now, event, &mut out);
        self.expire(now, &mut out);
        self.decide(now, &mut out);
        self.refuse_unheard_asking(&mut out);
        self.beside(now, &mut out);
        out
    }

    fn take_in(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Started(leftovers) => {
                self.leftovers = Some(leftovers);
                self.marked = leftovers.marked;
                let why = "the file system met an error and writes nothing any more";
                self.spoiled = leftovers.spoiled.then(|| why.to_owned());
                self.since.started = Some(now);
            }
            Event::Record(record) => {
                self.read_again_at = now;
                self.since.learned = Some(now);
                if self.emergency.is_some() {
                    self.hear_in_emergency(now, record, out);
                } else {
                    self.learn(record);
                }
            }
            Event::RecordUnreadable(reason) => {
                self.read_again_at = now + UNREADABLE_PAUSE;
                self.must_read = true;
                self.unreadable = Some(reason);
            }
            Event::Drbd(view) => self.see_drbd(now, view),
            Event::Ran { run, result } => {
                if let Some(Job::Step(step)) = self.answered(run) {
                    self.step_ended(now, step, result, out);
                }
            }
            Event::Cas { run, result } => {
                if let Some(Job::Cas(job)) = self.answered(run) {
                    self.cas_ended(now, job, result, out);
                }
            }
            Event::Warmed { run, result } => {
                if self.answered(run).is_some() {
                    self.warmed(now, result, out);
                }
            }
            Event::HandOverEnded { run, result } => {
                if self.answered(run).is_some() {
                    self.hand_over_ended(result, out);
                }
            }
            Event::HandOver { epoch } => {
                self.hand_over = Some(epoch);
                self.answer_due = true;
                self.heard_epoch(epoch);
                self.answer_late_hand_over(epoch, out);
            }
            Event::Switchover { to, timeout } => self.begin_move(now, &to, timeout, out),
            Event::Abort => {
                if let Some(m) = &mut self.moving {
                    m.aborted = true;
                }
            }
            Event::Peer(beat) => self.hear(now, beat),
            Event::Sought { run, sign } => self.sought(now, run, sign),
            Event::ChoreDone { run, result } => self.chore_done(now, run, result),
            Event::GateShut => self.gate_shut(now),
            Event::Spoiled(why) => self.spoiled = Some(why),
            Event::PowerFenced { run, confirmed } => self.power_fenced(run, confirmed),
            Event::Health(unfit) => self.unfit = unfit,
            Event::TakeOver { reason } => {
                self.asked = Some(reason);
                self.asked_answer_due = true;
            }
            Event::Hold(by) => self.want_hold = Some(by),
            Event::Emergency { last, by, resumed } => {
                self.start_emergency(now, last, by, resumed, out);
            }
            Event::Tick => {}
        }
    }

    /// A hand-over that arrives when all is decided already: opened unasked, or superseded.
    fn answer_late_hand_over(&mut self, epoch: u64, out: &mut Vec<Effect>) {
        let Some(record) = self.record() else { return };
        let mine = record.authority() == Some(&self.me);
        let seen = record.epoch;
        if self.stage == Stage::Serving && mine && seen == epoch {
            self.answer(Ok(()), out);
        } else if seen > epoch {
            self.answer(Err(format!("the record is of epoch {seen} already")), out);
        }
    }

    /// A record that is older than the one already seen is a no (S12); it is not believed.
    fn learn(&mut self, record: Option<Versioned>) {
        self.must_read = false;
        let late = matches!((&self.record, &record), (Some(old), Some(new))
            if new.record.epoch == old.record.epoch && new.revision < old.revision);
        if late {
            return;
        }
        let older = match (&self.record, &record) {
            (Some(old), Some(new)) => new.record.epoch < old.record.epoch,
            (Some(_), None) => true,
            _ => false,
        };
        if older {
            let seen = self.record().map_or(0, |r| r.epoch);
            self.unreadable = Some(format!(
                "the coordinator shows an older record than epoch {seen}, which this node has seen: it was restored or replaced; nothing is decided from it"
            ));
            return;
        }
        self.unreadable = None;
        self.record_known = true;
        let revision = record.as_ref().map(|r| r.revision);
        let first = self.record.is_none();
        if first && record.as_ref().is_some_and(|v| v.record.may_serve(&self.me)) {
            self.unsettled = revision; // a former life may have sent what can still land (C5)
        }
        if self.unsettled.is_some_and(|at| revision.is_some_and(|r| r > at)) {
            self.unsettled = None; // what was compared with `at` can land no more
        }
        self.record = record;
    }

    fn answered(&mut self, run: RunId) -> Option<Job> {
        let matches = self.pending.as_ref().is_some_and(|p| p.run == run);
        if matches { self.pending.take().map(|p| p.job) } else { None }
    }

    fn expire(&mut self, now: Now, out: &mut Vec<Effect>) {
        let late = self.pending.as_ref().is_some_and(|p| now >= p.deadline);
        let Some(pending) = (if late { self.pending.take() } else { None }) else { return };
        match pending.job {
            Job::Step(step) => {
                let after_ms = u64::try_from(step.deadline().as_millis()).unwrap_or(u64::MAX);
                let error = StepError::Deadline { step: step.name(), after_ms };
                self.step_ended(now, step, Err(error), out);
            }
            Job::Cas(job) => self.cas_ended(now, job, CasResult::Unknown, out),
            Job::Warm => self.warmed(now, Err("the target did not answer in time".into()), out),
            Job::HandOver => self.hand_over_ended(HandOverResult::Unknown, out),
        }
    }

    fn start(&mut self, now: Now, job: Job, limit: Duration) -> RunId {
        let run = self.next_run;
        self.next_run += 1;
        self.pending = Some(Pending { run, job, deadline: now + limit });
        run
    }
}

#[cfg(test)]
mod tests;
