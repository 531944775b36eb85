//! The one task that owns a service's state: feeds events to the core, executes its effects.
//!
//! Keeps "one task owns a state" (design, house rules). Nothing here decides about roles, records or
//! gates; that is [`crate::core::machine`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use nasd_proto::{ClientStall, Endpoint, HostStall, MoveEvent, outcome::Result as MoveResult};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

mod effects;
mod telling;

use super::hands::{Hands, lock};
use super::moves;
use super::right::Wish;
use crate::api::status::ServiceStatus;
use crate::coordinator::{CasOutcome, Coordinator, CoordinatorError, Versioned as Stored};
use crate::core::machine::{CasResult, Event, Machine, Stage, Versioned};
use crate::core::record::Record;
use crate::core::view::Now;
use telling::{Tally, outcome_event};

/// How often the core looks at the time when nothing happens.
const TICK: Duration = Duration::from_millis(100);
/// Time for a hold to be seen in the record.
const HOLD: Duration = Duration::from_secs(6);

/// What others ask of the task.
#[derive(Debug)]
pub enum Command {
    /// Something that the core must hear.
    Event(Event),
    /// The status document's entry.
    Status(oneshot::Sender<ServiceStatus>),
    /// The other node asks for its right.
    Consent {
        /// The epoch for which it asks.
        epoch: u64,
        /// How long the grant would live from its request.
        ttl: Duration,
        /// The answer.
        reply: oneshot::Sender<Consent>,
    },
    /// An operator wants the service taken over here (who, and why); the events go to the listener.
    TakeOver(String, mpsc::Sender<MoveEvent>),
    /// The owner cannot serve and asks this node to take over; the answer says whether it begins.
    AskedTakeover(String, oneshot::Sender<Result<(), String>>),
    /// No automatic action from now on (who asked), or again; answered when the record shows it.
    Hold(Option<String>, oneshot::Sender<Result<(), String>>),
    /// An operator's move; the events go to the listener.
    Switchover(moves::Request, mpsc::Sender<MoveEvent>),
    /// Undo the move.
    Abort(oneshot::Sender<bool>),
    /// Pre-flight on the target.
    CheckTarget(oneshot::Sender<TargetFacts>),
    /// The other node demoted: open here.
    HandOver(HandOverCall),
    /// A move that passed its pre-flight; its asker is told everything from here on.
    Begin(moves::Request, mpsc::Sender<MoveEvent>),
    /// Clients are back (or not) after the move of that epoch, measured on the target.
    ClientsBack(u64, Vec<ClientStall>),
    /// What hypervisors have measured of the move of that epoch.
    StallsTold(u64, Vec<HostStall>),
}

/// An answer to a request for the right.
#[derive(Debug, Clone, Copy)]
pub struct Consent {
    /// The epoch of the record that this node has seen.
    pub epoch: u64,
    /// Yes.
    pub consents: bool,
}

/// What the target's half of the pre-flight needs of the core.
#[derive(Debug, Clone)]
pub struct TargetFacts {
    /// Epoch of the record seen here.
    pub epoch: Option<u64>,
    /// Stage name.
    pub stage: &'static str,
    /// Problem, if any.
    pub problem: Option<String>,
}

/// A hand-over as it comes from the peer.
#[derive(Debug)]
pub struct HandOverCall {
    /// Epoch of the `moving` record.
    pub epoch: u64,
    /// Connections to tickle.
    pub connections: Vec<Endpoint>,
    /// For how long the service has been silent.
    pub silent_for: Duration,
    /// Where steps and outcome go.
    pub listener: mpsc::Sender<MoveEvent>,
}

/// The handle by which servers reach the task.
pub type Handle = mpsc::Sender<Command>;

/// The task's state.
pub struct ServiceTask {
    machine: Machine,
    hands: Arc<Hands>,
    inbox: mpsc::Receiver<Command>,
    me_tx: Handle,
    started: Instant,
    tally: Tally,
}

impl ServiceTask {
    /// A task for one service; run it with [`ServiceTask::run`].
    pub fn new(
        machine: Machine,
        hands: Arc<Hands>,
        inbox: mpsc::Receiver<Command>,
        me_tx: Handle,
    ) -> Self {
        Self { machine, hands, inbox, me_tx, started: Instant::now(), tally: Tally::default() }
    }

    /// Runs until the handles are gone.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(command) => self.take(command).await,
                    None => return,
                },
                _ = tick.tick() => self.feed(Event::Tick),
            }
        }
    }

    fn now(&self) -> Now {
        self.started.elapsed()
    }

    async fn take(&mut self, command: Command) {
        match command {
            Command::Event(event) => self.feed(event),
            Command::Status(reply) => self.status(reply),
            Command::Consent { epoch, ttl, reply } => self.consent(epoch, ttl, reply),
            Command::TakeOver(reason, listener) => self.take_over(reason, listener),
            Command::AskedTakeover(reason, reply) => self.asked_takeover(reason, reply),
            Command::Hold(by, reply) => self.hold(by, reply),
            Command::Switchover(request, listener) => self.switchover(request, listener),
            Command::Abort(reply) => self.abort(reply),
            Command::CheckTarget(reply) => drop(reply.send(self.target_facts())),
            Command::HandOver(call) => self.hand_over(call),
            Command::Begin(request, listener) => self.begin(request, listener),
            Command::ClientsBack(epoch, clients) => self.clients_back(epoch, clients),
            Command::StallsTold(epoch, stalls) => self.stalls_told(epoch, stalls),
        }
    }

    fn consent(&mut self, epoch: u64, ttl: Duration, reply: oneshot::Sender<Consent>) {
        let now = self.now();
        self.machine.heard_epoch(epoch);
        let mine = self.machine.record().map_or(0, |r| r.epoch);
        let consents = self.machine.consent(now, epoch, ttl);
        // An asker that has given up needs no answer; the grant counts all the same.
        let _ = reply.send(Consent { epoch: mine, consents });
        self.feed(Event::Tick);
    }

    fn take_over(&mut self, reason: String, listener: mpsc::Sender<MoveEvent>) {
        if self.machine.stage().name() == "serving" {
            let here = format!("{} serves already", self.hands.me);
            let refused = self.opened_outcome(MoveResult::Refused, here);
            let _ = listener.try_send(outcome_event(refused));
            return;
        }
        self.tally.silent_before = Duration::ZERO;
        self.tally.silent_since = Some(Instant::now());
        self.hands.timeline.listen(listener);
        self.feed(Event::TakeOver { reason });
    }

    fn asked_takeover(&mut self, reason: String, reply: oneshot::Sender<Result<(), String>>) {
        self.note("takeover", "asked", &reason);
        self.feed(Event::TakeOver { reason });
        let begun = self.machine.stage().name() == "taking-over";
        let why = || self.machine.problem().unwrap_or("not now").to_owned();
        let _ = reply.send(if begun { Ok(()) } else { Err(why()) });
    }

    fn hold(&mut self, by: Option<String>, reply: oneshot::Sender<Result<(), String>>) {
        let record = self.hands.record.subscribe();
        self.feed(Event::Hold(by.clone()));
        tokio::spawn(async move {
            let shows = |r: &Option<Record>| r.as_ref().is_some_and(|r| r.hold == by);
            let mut record = record;
            let shown = tokio::time::timeout(HOLD, record.wait_for(shows)).await;
            let _ = reply.send(match shown {
                Ok(Ok(_)) => Ok(()),
                _ => Err("the coordinator has not confirmed it; it is tried again".to_owned()),
            });
        });
    }

    /// A move that waits for hypervisors is given up as well: nothing of it has begun.
    fn abort(&mut self, reply: oneshot::Sender<bool>) {
        let moving = matches!(self.machine.stage().name(), "preparing" | "cutting");
        let hands = Arc::clone(&self.hands);
        tokio::spawn(async move {
            let waited = !moving && hands.agents.abort(&hands.service.name).await;
            // An asker that has given up needs no answer.
            let _ = reply.send(moving || waited);
        });
        self.feed(Event::Abort);
    }

    fn target_facts(&self) -> TargetFacts {
        TargetFacts {
            epoch: self.machine.record().map(|r| r.epoch),
            stage: self.machine.stage().name(),
            problem: self.machine.problem().map(str::to_owned),
        }
    }

    fn status(&self, reply: oneshot::Sender<ServiceStatus>) {
        let machine = (
            self.machine.stage().name().to_owned(),
            self.machine.problem().map(str::to_owned),
            self.machine.record().cloned(),
            self.machine.failover_ready(self.now()),
        );
        let serves = *self.machine.stage() == Stage::Serving;
        let (hands, last) = (Arc::clone(&self.hands), self.tally.last.clone());
        tokio::spawn(async move {
            let mut status = hands.status().await;
            (status.stage, status.problem, status.record, status.failover) = machine;
            status.failover.extend(hands.coordinator.alarm());
            if let Some(record) = status.record.as_ref().filter(|_| serves) {
                status.failover.extend(hands.look_at_markers(record).await.unfit);
            }
            if hands.coordinator.reach() == Some(false) {
                status.failover.push("the coordinator does not answer this node".into());
            }
            status.last_move = last;
            drop(reply.send(status));
        });
    }

    /// An operator's move: pre-flight in a task of its own, then the core hears of it.
    fn switchover(&mut self, request: moves::Request, listener: mpsc::Sender<MoveEvent>) {
        let facts = moves::Facts {
            stage: self.machine.stage().clone(),
            last_silent: self.tally.last.as_ref().map(|l| l.silent_ms),
        };
        if matches!(self.machine.stage().name(), "preparing" | "cutting" | "handed-over") {
            // The operator joins the move that runs and hears its rest.
            self.hands.timeline.listen(listener);
            return;
        }
        let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
        tokio::spawn(async move {
            moves::preflight_and_begin(&hands, request, facts, listener, &tell).await;
        });
    }

    /// The pre-flight took a while: the service must still be serving here, or only the asker hears.
    fn begin(&mut self, request: moves::Request, listener: mpsc::Sender<MoveEvent>) {
        if self.machine.stage().name() != "serving" {
            let what =
                format!("the service is {} by now; see nasctl status", self.machine.stage().name());
            let refused = self.opened_outcome(MoveResult::Refused, what);
            // An asker that has gone away needs no answer.
            let _ = listener.try_send(outcome_event(refused));
            self.withdraw();
            return;
        }
        self.tally.outcome = None;
        self.hands.timeline.listen(listener);
        self.feed(Event::Switchover { to: request.to, timeout: request.timeout });
        if self.machine.stage().name() != "preparing" {
            self.withdraw();
        }
    }

    fn hand_over(&mut self, call: HandOverCall) {
        self.hands.timeline.listen_to_steps(call.listener.clone());
        self.hands.remember_clients(&call.connections);
        self.tally.silent_before = call.silent_for;
        self.tally.silent_since = Some(Instant::now());
        self.tally.answer_to = Some((call.epoch, call.listener));
        self.feed(Event::HandOver { epoch: call.epoch });
    }

    fn feed(&mut self, event: Event) {
        self.prepare_tally(&event);
        let before = self.machine.stage().name();
        let effects = self.machine.step(self.now(), event);
        self.publish();
        self.note_stage(before);
        for effect in effects {
            self.execute(effect);
        }
    }

    fn prepare_tally(&mut self, event: &Event) {
        if let Event::Switchover { .. } = event {
            self.tally.silent_before = Duration::ZERO;
            self.tally.silent_since = None;
        }
        if let Event::Started(left) = event {
            self.tally.adopted = left.all_mounted && left.serving_threads && left.addressed;
        }
        if let Event::TakeOver { .. } = event
            && self.machine.stage().name() != "taking-over"
        {
            self.tally.cut = false;
        }
    }

    fn publish(&self) {
        let wish = self
            .machine
            .wants_right()
            .map(|epoch| Wish { epoch, sole_current: self.machine.sole_current() });
        if let Some(wish) = wish
            && matches!(self.machine.stage().name(), "serving" | "preparing")
        {
            lock(&self.hands.keeper).go_on_in(wish.epoch);
        }
        self.hands.wish.send_if_modified(|old| {
            let changed = *old != wish;
            *old = wish;
            changed
        });
        self.hands.publish_seen(&self.machine);
        // Whose outcome is open is nobody's evidence: DRBD's helper must not be told from it (C5).
        self.hands.publish_record(self.machine.record().filter(|_| self.machine.is_settled()));
    }
}

/// A stored record in the core's form.
#[must_use]
pub fn versioned(stored: Stored) -> Versioned {
    Versioned { revision: stored.revision, record: stored.record }
}

/// The coordinator's answer in the core's form; everything but a confirmation is no confirmation.
#[must_use]
pub fn cas_result(answer: Result<CasOutcome, CoordinatorError>) -> CasResult {
    match answer {
        Ok(CasOutcome::Won { revision }) => CasResult::Won { revision },
        Ok(CasOutcome::Lost { now }) => CasResult::Lost(now.map(versioned)),
        Err(error) => {
            tracing::warn!(%error, "compare-and-set without a confirmed outcome");
            CasResult::Unknown
        }
    }
}

/// A coordinator shared by all services.
pub type SharedCoordinator = Arc<dyn Coordinator>;
