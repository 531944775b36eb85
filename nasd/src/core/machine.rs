//! One service on one node: what to do next, given what is known.
//!
//! Owns the stage and the only decisions to close, open, promote or change the record. Keeps S1 (a
//! promotion carries a [`Proof`]), S5 (order of [`CLOSE`] and [`OPEN`]), S8 (deadlines; before the
//! demotion an overrun rolls back, after it only a compare-and-set brings the service back), S9
//! (a restart is decided from record, DRBD and leftovers alone) and S12.
//!
//! At most one effect that answers is under way at a time; answers to abandoned ones are ignored by
//! their [`RunId`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::record::{DataUuid, NodeName, Phase, Record, TransitionError};
use super::step::{CLOSE, OPEN, Proof, Step, StepError};
use super::view::{DrbdView, Leftovers, Now, Role};

/// Number of an effect that will be answered.
pub type RunId = u64;

/// A record with the revision that a compare-and-set compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The coordinator's revision (etcd: `mod_revision`).
    pub revision: i64,
    /// The record.
    pub record: Record,
}

/// What a step needs besides its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepContext {
    /// Epoch of the record that allows the step.
    pub epoch: u64,
    /// The record's generation: the marker on the volume must have at least this one (S2).
    pub generation: u64,
    /// For [`Step::Promote`].
    pub proof: Option<Proof>,
}

/// Why the service opens here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Start of nasd, or of the service.
    Start,
    /// The other node handed over.
    HandOver,
    /// A move from here failed; the text says why.
    Rollback(String),
}

/// Where this node stands with the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Not decided yet: something must be heard first, or a failed opening waits for its next try.
    Waiting,
    /// The other node has the authority and nothing is left here.
    Standby,
    /// On the way through [`OPEN`].
    Opening {
        /// Index into [`OPEN`].
        at: usize,
        /// Why.
        why: Why,
    },
    /// Gate open.
    Serving,
    /// A planned move: the record is being moved, the target warmed. Clients notice nothing.
    Preparing {
        /// The target.
        to: NodeName,
    },
    /// On the way through [`CLOSE`] with a target waiting.
    Cutting {
        /// The target.
        to: NodeName,
        /// Index into [`CLOSE`].
        at: usize,
    },
    /// Demoted; the target opens.
    HandedOver {
        /// The target.
        to: NodeName,
        /// Since when.
        since: Now,
    },
    /// Demoted, and taking the authority back by a compare-and-set.
    Returning {
        /// Why the move failed.
        reason: String,
    },
    /// On the way through [`CLOSE`] because the service does not belong here.
    Closing {
        /// Index into [`CLOSE`].
        at: usize,
        /// Why.
        reason: String,
    },
}

impl Stage {
    /// The name in status documents.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Standby => "standby",
            Self::Opening { .. } => "opening",
            Self::Serving => "serving",
            Self::Preparing { .. } => "preparing",
            Self::Cutting { .. } => "cutting",
            Self::HandedOver { .. } => "handed-over",
            Self::Returning { .. } => "returning",
            Self::Closing { .. } => "closing",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// nasd started and looked around. First event of a life.
    Started(Leftovers),
    /// The coordinator answered a read or a watch.
    Record(Option<Versioned>),
    /// A read failed or timed out: nothing is known (S12).
    RecordUnreadable(String),
    /// DRBD's state changed.
    Drbd(DrbdView),
    /// A step ended. `marker_generation` is set by [`Step::Marker`].
    Ran {
        /// Which effect.
        run: RunId,
        /// What came of it; for `Marker` the generation written.
        result: Result<Option<u64>, StepError>,
    },
    /// A compare-and-set ended.
    Cas {
        /// Which effect.
        run: RunId,
        /// What came of it.
        result: CasResult,
    },
    /// The target is warm, or says why it is not.
    Warmed {
        /// Which effect.
        run: RunId,
        /// The refusal in words.
        result: Result<(), String>,
    },
    /// The target answered the hand-over, or nothing is known.
    HandOverEnded {
        /// Which effect.
        run: RunId,
        /// What came of it.
        result: HandOverResult,
    },
    /// The other node demoted and hands over.
    HandOver {
        /// Epoch of the `moving` record.
        epoch: u64,
    },
    /// An operator wants the service moved; pre-flight has passed.
    Switchover {
        /// The target.
        to: NodeName,
        /// From now to the demotion.
        timeout: Duration,
    },
    /// An operator wants the move undone.
    Abort,
    /// Time passed.
    Tick,
}

/// Outcome of a compare-and-set.
#[derive(Debug, Clone, PartialEq)]
pub enum CasResult {
    /// Confirmed.
    Won {
        /// The new revision.
        revision: i64,
    },
    /// Somebody else wrote first; this is what is there now.
    Lost(Option<Versioned>),
    /// Nobody knows: a read must resolve it before anything is decided (S8).
    Unknown,
}

/// Outcome of a hand-over, as the old owner sees it.
#[derive(Debug, Clone, PartialEq)]
pub enum HandOverResult {
    /// The target serves.
    Opened,
    /// The target could not open and has closed again.
    Refused(String),
    /// The channel broke.
    Unknown,
}

/// What to do. Effects are executed in order; those with a `run` are answered by an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Execute a step under its deadline.
    Run {
        /// Number of the answer.
        run: RunId,
        /// Which step.
        step: Step,
        /// With what.
        context: StepContext,
    },
    /// Read the record (linearizable); answered by [`Event::Record`] or `RecordUnreadable`.
    Read,
    /// Write the record if its revision is still this one; `None` creates it.
    Cas {
        /// Number of the answer.
        run: RunId,
        /// The revision to compare.
        expected: Option<i64>,
        /// The whole new record.
        record: Record,
    },
    /// Write dirty pages back, prepare the target; clients notice nothing.
    Warm {
        /// Number of the answer.
        run: RunId,
        /// The target.
        to: NodeName,
        /// Epoch of the move.
        epoch: u64,
    },
    /// Tell the target to open.
    HandOver {
        /// Number of the answer.
        run: RunId,
        /// The target.
        to: NodeName,
        /// Epoch of the move.
        epoch: u64,
    },
    /// A move from here has ended.
    MoveEnded(MoveEnd),
    /// An opening after a hand-over has ended: the answer to the old owner.
    OpeningEnded(Result<(), String>),
}

/// How a move ended, told to the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MoveEnd {
    /// The target serves.
    Moved,
    /// This node serves again.
    RolledBack(String),
    /// Nobody serves, or it is not known who does.
    Failed(String),
}

/// Largest time for the compare-and-set that begins a move; slower means no cut (design section 4).
pub const MOVE_CAS: Duration = Duration::from_secs(1);
/// Time for warming the target.
pub const WARM: Duration = Duration::from_secs(20);
/// How long a demoted owner waits for its target before it takes the service back.
pub const HAND_OVER_PATIENCE: Duration = Duration::from_secs(15);
/// After how long a target opens by itself when the old owner has demoted but sent no hand-over.
pub const UNASKED_OPENING: Duration = Duration::from_secs(1);
/// Pause between two tries of an opening.
pub const RETRY: Duration = Duration::from_secs(1);
/// Time for any other compare-and-set.
pub const CAS: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, PartialEq)]
enum Job {
    Step(Step),
    Cas(Record),
    Warm,
    HandOver,
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
    problem: Option<String>,
    unreadable: Option<String>,
}

impl Machine {
    /// A node that has seen nothing yet. `founds`: this node creates the record of a new service.
    #[must_use]
    pub fn new(me: NodeName, peer: NodeName, founds: bool) -> Self {
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
            problem: None,
            unreadable: None,
        }
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
        self.unreadable.as_deref().or(self.problem.as_deref())
    }

    /// The generation of this node's last opening, 0 before the first.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The epoch for which this node wants (or keeps) the right to serve; `None`: gate shut.
    #[must_use]
    pub fn wants_right(&self) -> Option<u64> {
        let open = match &self.stage {
            Stage::Serving | Stage::Preparing { .. } | Stage::Opening { .. } => true,
            Stage::Cutting { at, .. } => *at == 0,
            _ => false,
        };
        self.record().filter(|r| open && self.may_serve(r)).map(|r| r.epoch)
    }

    /// Whether this node alone is current, so that its right needs no renewal (S4).
    #[must_use]
    pub fn sole_current(&self) -> bool {
        self.record().is_some_and(|r| r.current == BTreeSet::from([self.me.clone()]))
    }

    /// The answer to the other node's request for its right: yes only while this node has seen the
    /// same epoch, knows the asker as owner and has not begun to open.
    #[must_use]
    pub fn consents(&self, epoch: u64) -> bool {
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
        out
    }

    fn take_in(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Started(leftovers) => self.leftovers = Some(leftovers),
            Event::Record(record) => self.learn(record),
            Event::RecordUnreadable(reason) => {
                self.must_read = true;
                self.unreadable = Some(reason);
            }
            Event::Drbd(view) => self.drbd = view,
            Event::Ran { run, result } => {
                if let Some(Job::Step(step)) = self.answered(run) {
                    self.step_ended(now, step, result, out);
                }
            }
            Event::Cas { run, result } => {
                if let Some(Job::Cas(record)) = self.answered(run) {
                    self.cas_ended(now, record, result, out);
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
            }
            Event::Switchover { to, timeout } => self.begin_move(now, &to, timeout, out),
            Event::Abort => {
                if let Some(m) = &mut self.moving {
                    m.aborted = true;
                }
            }
            Event::Tick => {}
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
            Job::Cas(record) => self.cas_ended(now, record, CasResult::Unknown, out),
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

    fn may_serve(&self, record: &Record) -> bool {
        let leaves = matches!(&record.phase, Phase::Moving { from, .. } if *from == self.me);
        record.authority() == Some(&self.me) || leaves
    }

    // ---- deciding ----------------------------------------------------------------------------

    fn decide(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.pending.is_some() {
            return;
        }
        if self.must_read && now >= self.last_read + Duration::from_millis(50) {
            self.last_read = now;
            out.push(Effect::Read);
        }
        if self.leftovers.is_none() || !self.record_known || self.drbd.role == Role::Unknown {
            return;
        }
        match self.stage.clone() {
            Stage::Waiting | Stage::Standby => self.decide_idle(now, out),
            Stage::Serving => self.decide_serving(now, out),
            Stage::Opening { at, .. } => self.run_step(now, OPEN[at], out),
            Stage::Cutting { at, to } => self.continue_cut(now, at, to, out),
            Stage::Closing { at, .. } => self.run_step(now, CLOSE[at], out),
            Stage::HandedOver { since, .. } => self.decide_handed_over(now, since, out),
            Stage::Returning { .. } => self.decide_returning(now, out),
            Stage::Preparing { .. } => {}
        }
    }

    fn decide_idle(&mut self, now: Now, out: &mut Vec<Effect>) {
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
                self.open_if_proved(now, Why::Start, out);
            }
            Phase::Serving { .. } | Phase::Taking { .. } => self.stand_by(now, &record, out),
        }
    }

    /// A new service: both replicas are complete, nobody has ever written a record.
    fn found(&mut self, now: Now, out: &mut Vec<Effect>) {
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

    fn start_service(&mut self, now: Now, record: &Record, out: &mut Vec<Effect>) {
        if self.founds {
            self.change(now, record.start(&self.me), CAS, out);
        }
    }

    /// This node was moving the service away when its nasd went. Not demoted: it still serves.
    fn decide_left_move(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.drbd.role == Role::Primary {
            let reason = "nasd was restarted during the move".to_owned();
            self.open_if_proved(now, Why::Rollback(reason), out);
        } else {
            let to = self.peer.clone();
            self.stage = Stage::HandedOver { to, since: now };
        }
    }

    /// This node is the target. It opens when it is asked, or when the owner demoted and went silent.
    fn decide_target(&mut self, now: Now, record: &Record, out: &mut Vec<Effect>) {
        let asked = self.hand_over == Some(record.epoch);
        if self.drbd.role == Role::Primary {
            self.open_if_proved(now, Why::HandOver, out);
            return;
        }
        if !self.drbd.released() {
            self.target_since = None;
            self.stage = Stage::Standby;
            return;
        }
        let since = *self.target_since.get_or_insert(now);
        if asked || now >= since + UNASKED_OPENING {
            self.open_if_proved(now, Why::HandOver, out);
        }
    }

    fn open_if_proved(&mut self, now: Now, why: Why, out: &mut Vec<Effect>) {
        if now < self.not_before {
            return;
        }
        if self.proof().is_none() {
            self.stage = Stage::Waiting;
            self.problem = Some(
                "the record names this node, but DRBD is not connected to a Secondary peer with an UpToDate disk here; promoting now could split the data".into(),
            );
            return;
        }
        self.problem = None;
        self.stage = Stage::Opening { at: 0, why };
        self.run_step(now, OPEN[0], out);
    }

    /// S1: what proves that a promotion here makes no second writer, at this moment.
    fn proof(&self) -> Option<Proof> {
        if self.drbd.role == Role::Primary {
            Some(Proof::AlreadyPrimary)
        } else if self.drbd.released() {
            Some(Proof::Released)
        } else if self.sole_current() && self.drbd.local_up_to_date && !self.drbd.connected {
            Some(Proof::SoleCurrent)
        } else {
            None
        }
    }

    fn stand_by(&mut self, now: Now, record: &Record, out: &mut Vec<Effect>) {
        let left = self.leftovers.unwrap_or_default();
        let dirty = left.mounted || left.serving_threads || left.addressed;
        if dirty || self.drbd.role == Role::Primary {
            self.close(
                now,
                format!("the record says {} in epoch {}", record.phase, record.epoch),
                out,
            );
            return;
        }
        self.problem = None;
        self.stage = Stage::Standby;
    }

    fn close(&mut self, now: Now, reason: String, out: &mut Vec<Effect>) {
        if now < self.not_before {
            return;
        }
        self.stage = Stage::Closing { at: 0, reason };
        self.run_step(now, CLOSE[0], out);
    }

    /// Keeps the record truthful while serving; writes lazily what openings and rollbacks made true.
    fn decide_serving(&mut self, now: Now, out: &mut Vec<Effect>) {
        let Some(record) = self.record().cloned() else { return };
        if now < self.not_before {
            return;
        }
        let uuids = self.drbd.data_uuid.clone();
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
                } else if peer_current && !self.peer_holds_everything() {
                    record.exclude(&self.me, &self.peer)
                } else if !peer_current && self.drbd.both_current() {
                    record.include(&self.me, &self.peer)
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

    fn peer_holds_everything(&self) -> bool {
        self.drbd.connected && self.drbd.peer_up_to_date
    }

    fn decide_handed_over(&mut self, now: Now, since: Now, out: &mut Vec<Effect>) {
        let Some(record) = self.record().cloned() else { return };
        let still_moving = matches!(&record.phase, Phase::Moving { from, .. } if *from == self.me);
        if !still_moving {
            self.finish_hand_over(&record, out);
            return;
        }
        if now >= self.last_read + Duration::from_millis(500) {
            self.must_read = true;
        }
        if now >= since + HAND_OVER_PATIENCE && self.drbd.released() {
            let reason = format!("{} did not open the service", self.peer);
            self.stage = Stage::Returning { reason };
            self.decide_returning(now, out);
        }
    }

    fn finish_hand_over(&mut self, record: &Record, out: &mut Vec<Effect>) {
        self.stage = Stage::Waiting;
        if self.moving.take().is_some() {
            let end = if record.authority() == Some(&self.peer) {
                MoveEnd::Moved
            } else {
                MoveEnd::Failed(format!(
                    "the record says {} in epoch {}",
                    record.phase, record.epoch
                ))
            };
            out.push(Effect::MoveEnded(end));
        }
    }

    /// C1, C4: a demoted owner comes back only by winning this compare-and-set.
    fn decide_returning(&mut self, now: Now, out: &mut Vec<Effect>) {
        if now < self.not_before || !self.drbd.released() {
            return;
        }
        let Some(record) = self.record().cloned() else { return };
        match record.return_from_move(&self.me) {
            Ok(next) => self.change(now, Ok(next), CAS, out),
            Err(_) => self.finish_hand_over(&record, out),
        }
    }

    // ---- steps -------------------------------------------------------------------------------

    fn run_step(&mut self, now: Now, step: Step, out: &mut Vec<Effect>) {
        let Some(record) = self.record() else { return };
        let proof = if step == Step::Promote { self.proof() } else { None };
        let context = StepContext { epoch: record.epoch, generation: record.generation, proof };
        let run = self.start(now, Job::Step(step), step.deadline());
        out.push(Effect::Run { run, step, context });
    }

    fn step_ended(
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
                self.advance_opening(at, why, out);
            }
            (Stage::Opening { why, .. }, Err(error)) => self.opening_failed(now, why, &error, out),
            (Stage::Cutting { to, at }, Ok(_)) => self.stage = Stage::Cutting { to, at: at + 1 },
            (Stage::Cutting { to, at }, Err(error)) => {
                self.cut_failed(now, to, at, step, &error, out)
            }
            (Stage::Closing { at, reason }, Ok(_)) => self.advance_closing(at, reason, out),
            (Stage::Closing { reason, .. }, Err(error)) => {
                self.closing_failed(now, &reason, &error, out);
            }
            _ => {}
        }
    }

    fn advance_opening(&mut self, at: usize, why: Why, out: &mut Vec<Effect>) {
        let at = at + 1;
        if at < OPEN.len() {
            self.stage = Stage::Opening { at, why };
            return;
        }
        self.stage = Stage::Serving;
        self.leftovers = Some(Leftovers::default());
        self.problem = None;
        self.hand_over = None;
        self.target_since = None;
        self.answer(Ok(()), out);
        if let Some(ended) = self.moving.take() {
            let reason = match why {
                Why::Rollback(reason) => reason,
                _ => ended.failed.unwrap_or_else(|| "the move was given up".into()),
            };
            out.push(Effect::MoveEnded(MoveEnd::RolledBack(reason)));
        }
    }

    fn answer(&mut self, result: Result<(), String>, out: &mut Vec<Effect>) {
        if std::mem::take(&mut self.answer_due) {
            out.push(Effect::OpeningEnded(result));
        }
    }

    fn opening_failed(&mut self, now: Now, why: Why, error: &StepError, out: &mut Vec<Effect>) {
        self.problem = Some(error.to_string());
        self.not_before = now + RETRY;
        if why == Why::HandOver {
            // The target never opens half a service: it closes what it has begun and says so.
            self.hand_over = None;
            self.not_before = now;
            self.close(now, error.to_string(), out);
        } else {
            self.stage = Stage::Waiting;
            self.must_read = true;
        }
    }

    fn advance_closing(&mut self, at: usize, reason: String, out: &mut Vec<Effect>) {
        let at = at + 1;
        if at < CLOSE.len() {
            self.stage = Stage::Closing { at, reason };
            return;
        }
        self.answer(Err(reason.clone()), out);
        self.leftovers = Some(Leftovers::default());
        self.problem = Some(reason);
        self.stage = Stage::Standby;
        self.target_since = None;
        self.must_read = true;
    }

    /// Closing is never given up: a later step may still succeed, and all is tried again.
    fn closing_failed(&mut self, now: Now, reason: &str, error: &StepError, out: &mut Vec<Effect>) {
        let problem = format!("{reason}; closing: {error}");
        self.answer(Err(problem.clone()), out);
        self.problem = Some(problem);
        self.stage = Stage::Waiting;
        self.leftovers = Some(Leftovers { mounted: true, ..self.leftovers.unwrap_or_default() });
        self.not_before = now + RETRY;
        self.must_read = true;
    }

    // ---- the planned move --------------------------------------------------------------------

    fn begin_move(&mut self, now: Now, to: &NodeName, timeout: Duration, out: &mut Vec<Effect>) {
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
                self.change(now, Ok(next), MOVE_CAS, out);
            }
            Err(error) => out.push(Effect::MoveEnded(MoveEnd::RolledBack(error.to_string()))),
        }
    }

    fn must_stop(&self, now: Now) -> Option<String> {
        let m = self.moving.as_ref()?;
        if m.aborted {
            Some("aborted by the operator".into())
        } else if now >= m.deadline {
            Some("the time for the move was over before the owner had demoted".into())
        } else {
            None
        }
    }

    fn warmed(&mut self, now: Now, result: Result<(), String>, out: &mut Vec<Effect>) {
        let Stage::Preparing { to } = self.stage.clone() else { return };
        let stop = result.err().or_else(|| self.must_stop(now));
        match stop {
            // Nothing was cut: the service has never stopped; only the record goes back, lazily.
            Some(reason) => {
                self.stage = Stage::Serving;
                self.moving = None;
                out.push(Effect::MoveEnded(MoveEnd::RolledBack(reason)));
            }
            None => self.stage = Stage::Cutting { to, at: 0 },
        }
    }

    fn continue_cut(&mut self, now: Now, at: usize, to: NodeName, out: &mut Vec<Effect>) {
        if at == CLOSE.len() {
            self.hand_over_now(now, to, out);
        } else if let Some(reason) = self.must_stop(now) {
            self.roll_back(now, reason, out);
        } else {
            self.run_step(now, CLOSE[at], out);
        }
    }

    fn cut_failed(
        &mut self,
        now: Now,
        to: NodeName,
        at: usize,
        step: Step,
        error: &StepError,
        out: &mut Vec<Effect>,
    ) {
        let demoted = step == Step::Demote && self.drbd.role == Role::Secondary;
        if demoted {
            self.stage = Stage::Cutting { to, at: at + 1 };
        } else {
            self.roll_back(now, error.to_string(), out);
        }
    }

    /// Before the demotion: the same node opens again, without asking anybody (S8).
    fn roll_back(&mut self, now: Now, reason: String, out: &mut Vec<Effect>) {
        self.not_before = now;
        self.open_if_proved(now, Why::Rollback(reason), out);
    }

    fn hand_over_now(&mut self, now: Now, to: NodeName, out: &mut Vec<Effect>) {
        let epoch = self.record().map_or(0, |r| r.epoch);
        self.leftovers = Some(Leftovers::default());
        self.stage = Stage::HandedOver { to: to.clone(), since: now };
        let run = self.start(now, Job::HandOver, HAND_OVER_PATIENCE);
        out.push(Effect::HandOver { run, to, epoch });
    }

    fn hand_over_ended(&mut self, result: HandOverResult, out: &mut Vec<Effect>) {
        match result {
            HandOverResult::Opened => {
                // Its record follows lazily; consenting to its right goes on meanwhile.
                self.stage = Stage::Standby;
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

    // ---- the record --------------------------------------------------------------------------

    fn change(
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

    fn cas(
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

    fn cas_ended(&mut self, now: Now, record: Record, result: CasResult, out: &mut Vec<Effect>) {
        match result {
            CasResult::Won { revision } => {
                self.record = Some(Versioned { revision, record });
                self.record_known = true;
                self.cas_won(now, out);
            }
            CasResult::Lost(found) => {
                self.learn(found);
                self.cas_not_won(now, "another node changed the record first", out);
            }
            CasResult::Unknown => {
                self.must_read = true;
                self.cas_not_won(now, "the coordinator did not confirm in time", out);
            }
        }
    }

    fn cas_won(&mut self, now: Now, out: &mut Vec<Effect>) {
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
            _ => self.problem = None,
        }
    }

    fn cas_not_won(&mut self, now: Now, why: &str, out: &mut Vec<Effect>) {
        self.not_before = now + Duration::from_millis(200);
        match self.stage.clone() {
            Stage::Preparing { .. } => {
                self.stage = Stage::Serving;
                self.moving = None;
                out.push(Effect::MoveEnded(MoveEnd::RolledBack(format!("not begun: {why}"))));
            }
            Stage::Returning { .. } | Stage::Serving => {}
            _ => self.problem = Some(why.to_owned()),
        }
    }

    /// The UUIDs to write with the next record.
    #[must_use]
    pub fn data_uuids(&self) -> &BTreeMap<u16, DataUuid> {
        &self.drbd.data_uuid
    }
}

#[cfg(test)]
mod tests;
