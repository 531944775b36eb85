//! The one task that owns a service's state: feeds events to the core, executes its effects.
//!
//! Keeps "one task owns a state" (design, house rules). Nothing here decides about roles, records or
//! gates; that is [`crate::core::machine`].

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nasd_proto::{
    ClientStall, Endpoint, MoveEvent, Outcome, move_event::Kind, outcome::Result as MoveResult,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::handover::{self, HandOverNews};
use super::hands::{Hands, lock};
use super::moves;
use super::right::Wish;
use crate::api::status::{LastMove, ServiceStatus};
use crate::coordinator::{CasOutcome, Coordinator, CoordinatorError, Versioned as Stored};
use crate::core::machine::{CasResult, Effect, Event, Machine, MoveEnd, Versioned};
use crate::core::view::Now;

/// How often the core looks at the time when nothing happens.
const TICK: Duration = Duration::from_millis(100);

/// What others ask of the task.
#[derive(Debug)]
pub enum Command {
    /// Something that the core must hear.
    Event(Event),
    /// The status document's entry.
    Status(oneshot::Sender<ServiceStatus>),
    /// The other node asks for its right: its epoch, and the answer.
    Consent(u64, oneshot::Sender<Consent>),
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

/// What is told about the move that runs or ran.
#[derive(Debug, Default)]
struct Tally {
    silent_since: Option<Instant>,
    silent_before: Duration,
    silent: Duration,
    outcome: Option<Outcome>,
    last: Option<LastMove>,
    /// On the target: the epoch of the hand-over and the old owner's ear. Verdicts go there and
    /// nowhere else.
    answer_to: Option<(u64, mpsc::Sender<MoveEvent>)>,
    /// The hand-over of that epoch has been opened; its clients are watched.
    opened: Option<u64>,
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
            Command::Consent(epoch, reply) => {
                self.machine.heard_epoch(epoch);
                let mine = self.machine.record().map_or(0, |r| r.epoch);
                let consent = Consent { epoch: mine, consents: self.machine.consents(epoch) };
                let _ = reply.send(consent);
                self.feed(Event::Tick);
            }
            Command::Switchover(request, listener) => self.switchover(request, listener),
            Command::Abort(reply) => {
                let moving = matches!(self.machine.stage().name(), "preparing" | "cutting");
                let _ = reply.send(moving);
                self.feed(Event::Abort);
            }
            Command::CheckTarget(reply) => drop(reply.send(self.target_facts())),
            Command::HandOver(call) => self.hand_over(call),
            Command::Begin(request, listener) => self.begin(request, listener),
            Command::ClientsBack(epoch, clients) => self.clients_back(epoch, clients),
        }
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
        );
        let (hands, last) = (Arc::clone(&self.hands), self.tally.last.clone());
        tokio::spawn(async move {
            let mut status = hands.status().await;
            (status.stage, status.problem, status.record) = machine;
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
            return;
        }
        self.tally.outcome = None;
        self.hands.timeline.listen(listener);
        self.feed(Event::Switchover { to: request.to, timeout: request.timeout });
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
        self.note(&event);
        let effects = self.machine.step(self.now(), event);
        self.publish();
        for effect in effects {
            self.execute(effect);
        }
    }

    fn note(&mut self, event: &Event) {
        if let Event::Switchover { .. } = event {
            self.tally.silent_before = Duration::ZERO;
            self.tally.silent_since = None;
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
        self.hands.publish_record(self.machine.record());
    }

    fn execute(&mut self, effect: Effect) {
        match effect {
            Effect::Run { run, step, context } => {
                if step.name() == "close-inbound" {
                    self.tally.silent_since = Some(Instant::now());
                }
                let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
                tokio::spawn(async move {
                    let result = hands.run(step, context).await;
                    drop(tell.send(Command::Event(Event::Ran { run, result })).await);
                });
            }
            Effect::Read => {
                let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
                tokio::spawn(async move {
                    let event = hands.read_record().await;
                    drop(tell.send(Command::Event(event)).await);
                });
            }
            Effect::Cas { run, expected, record } => {
                let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
                tokio::spawn(async move {
                    let result = hands.write_record(expected, record).await;
                    drop(tell.send(Command::Event(Event::Cas { run, result })).await);
                });
            }
            Effect::Warm { run, epoch, .. } => {
                let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
                tokio::spawn(async move {
                    let result = moves::warm(&hands, epoch).await;
                    drop(tell.send(Command::Event(Event::Warmed { run, result })).await);
                });
            }
            Effect::HandOver { run, epoch, .. } => self.call_target(run, epoch),
            Effect::MoveEnded(end) => self.move_ended(end),
            Effect::OpeningEnded(result) => self.opening_ended(result),
        }
    }

    fn call_target(&mut self, run: u64, epoch: u64) {
        let silent_for = self.tally.silent_since.map_or(Duration::ZERO, |t| t.elapsed());
        self.tally.silent_before = silent_for;
        self.tally.silent_since = Some(Instant::now());
        let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
        tokio::spawn(async move {
            let news = |news: HandOverNews| {
                let tell = tell.clone();
                async move {
                    let command = match news {
                        HandOverNews::Ended(result) => {
                            Command::Event(Event::HandOverEnded { run, result })
                        }
                        HandOverNews::Clients(clients) => Command::ClientsBack(epoch, clients),
                    };
                    drop(tell.send(command).await);
                }
            };
            handover::call(&hands, epoch, silent_for, news).await;
        });
    }

    /// On the old owner (or after a rollback): the operator's answer.
    fn move_ended(&mut self, end: MoveEnd) {
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
            clients: Vec::new(),
        };
        self.remember_move(&me, &peer, result);
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
        let tell = self.me_tx.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(4)).await;
            drop(tell.send(Command::ClientsBack(epoch, Vec::new())).await);
        });
    }

    fn clients_back(&mut self, epoch: u64, clients: Vec<ClientStall>) {
        if self.tally.opened == Some(epoch) {
            self.tally.opened = None;
            if let Some((_, listener)) = self.tally.answer_to.take() {
                let told = self.opened_outcome(MoveResult::Moved, String::new());
                // The old owner may have gone; the move is done all the same.
                let _ = listener.try_send(outcome_event(Outcome { clients, ..told }));
            }
            self.hands.timeline.hang_up();
        } else if self.tally.outcome.as_ref().is_some_and(|o| o.epoch == epoch)
            && let Some(outcome) = self.tally.outcome.take()
        {
            self.hands.timeline.outcome(Outcome { clients, ..outcome });
            self.hands.timeline.hang_up();
        }
    }

    fn opened_outcome(&self, result: MoveResult, message: String) -> Outcome {
        Outcome {
            result: result.into(),
            message,
            owner: self.hands.me.0.clone(),
            epoch: self.machine.record().map_or(0, |r| r.epoch),
            silent_us: u64::try_from(self.tally.silent.as_micros()).unwrap_or(u64::MAX),
            clients: Vec::new(),
        }
    }

    /// On the target: the answer to the old owner, then the watch on its clients.
    fn opening_ended(&mut self, result: Result<(), String>) {
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

fn outcome_event(outcome: Outcome) -> MoveEvent {
    MoveEvent { kind: Some(Kind::Outcome(outcome)) }
}

/// A coordinator shared by all services.
pub type SharedCoordinator = Arc<dyn Coordinator>;
