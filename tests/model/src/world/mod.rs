//! The world around two machines: virtual time, a queue of what happens next, two nodes, DRBD, the
//! coordinator, the wire, and clients that write.
//!
//! Owns the order of things. Everything that nasd itself does goes through [`Do`] and waits while the
//! process is stopped; what kernels do goes on. Whatever takes time is a happening of its own, so that
//! anything can come in between a check and its effect.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use nasd::core::machine::{Effect, Event, Machine, RunId, StepContext};
use nasd::core::peer::Ailment;
use nasd::core::record::NodeName;
use nasd::core::step::{Step, StepError};
use nasd::core::timing::Timing;
use nasd::core::view::Now;

use crate::hole::Planted;
use crate::properties::{Violation, Watch};
use crate::random::Random;
use crate::schedule::Fault;
use crate::trace::Trace;

pub mod clients;
pub mod coordinator;
pub mod data;
pub mod drbd;
mod effects;
mod faults;
pub mod gate;
mod kernel;
mod life;
pub mod net;
pub mod node;
mod power;
mod right;
mod steps;
pub mod volume;

use clients::Clients;
use coordinator::{Answer, Ask, Coordinator};
use drbd::Pair;
use gate::Right;
use net::{Message, Net};
use node::{Node, Process};

/// True time, in µs.
pub type Time = u64;
/// One millisecond.
pub const MS: Time = 1000;
/// One second.
pub const S: Time = 1000 * MS;

/// Grace in this world. Shorter than the real 90 s, so that schedules can outlast it.
pub const GRACE: Time = 20 * S;
/// How often the task that owns a machine looks at the time. Half as often as the real one: nothing may
/// hang on that.
const TICK: Time = 200 * MS;

/// The configuration's defaults.
#[must_use]
pub fn timing() -> Timing {
    let ms = Duration::from_millis;
    Timing::new(ms(1500), ms(250), ms(5000))
}

/// A node's name.
#[must_use]
pub fn name_of(n: usize) -> &'static str {
    ["A", "B"][n]
}

/// A true time in the core's form.
#[must_use]
pub fn duration(us: Time) -> Duration {
    Duration::from_micros(us)
}

/// A duration of the core in µs.
#[must_use]
pub fn micros(d: Duration) -> Time {
    Time::try_from(d.as_micros()).unwrap_or(Time::MAX)
}

/// What a nasd process does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Do {
    /// Its regular tick.
    Tick,
    /// A beat is due; `regular`: the next one follows.
    Beat { regular: bool },
    /// The core hears of something.
    Feed(Box<Event>),
    /// It hears the other nasd.
    Hear(Box<Message>),
    /// The coordinator answered.
    Answered(u64, Box<Answer>),
    /// It waits no longer for an answer.
    GiveUp(u64),
    /// It writes a grant's deadline into the gate.
    Refresh(Right),
    /// It begins a step.
    Begin(RunId, Step, StepContext),
    /// It waits for the right with which to open.
    AwaitRight { run: RunId, epoch: u64, until: Time },
    /// It opens the gate.
    Open { run: RunId, right: Right, ticket: u64 },
    /// It sends a compare-and-set once the right is finite.
    Cas { run: RunId, tries: u32 },
    /// Another process' command: DRBD's options and so on; see the chore.
    Chore(RunId, nasd::core::machine::Chore),
    /// It has looked around after its start.
    LookedAround,
    /// It reads the record because the watch said so.
    Watched,
    /// It knocks at the peer's node, after the coordinator has not shown the peer.
    Knock(RunId),
    /// It ends for an upgrade.
    EndForUpgrade,
}

/// What a kernel (or the volume process) does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum InKernel {
    /// A step takes effect; answered to that life of nasd.
    Step { life: u32, run: RunId, step: Step, context: StepContext },
    /// The helper asks nasd.
    HelperAsks { number: u64 },
    /// The helper's verdict reaches the kernel.
    HelperEnds { number: u64, yes: bool },
    /// A session's end is noticed.
    Notice,
    /// nasd is started (by the service manager).
    StartNasd,
    /// The node comes up.
    Boot,
}

/// What happens.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Happening {
    /// In that life of a nasd.
    Nasd(usize, u32, Do),
    /// In that boot of a kernel.
    Kernel(usize, u32, InKernel),
    /// DRBD's halves meet.
    Meet,
    /// A resynchronisation of that session ends.
    Resynced(u64),
    /// A message of that sender arrives.
    Arrive(usize, Box<Message>),
    /// A question of that nasd's life arrives at the coordinator.
    AtCoordinator { n: usize, life: u32, ask: u64, what: Box<Ask> },
    /// Clients write.
    Clients,
    /// Something breaks or is mended.
    Fault(Fault),
}

#[derive(Debug, Clone)]
struct Entry {
    at: Time,
    number: u64,
    what: Happening,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// What may go wrong at random while it lasts.
#[derive(Debug, Clone, Default)]
pub struct Weather {
    /// Percent of a node's steps that take far longer than usual.
    pub slow: [u64; 2],
    /// Percent of a node's steps that are refused.
    pub failing: [u64; 2],
    /// Percent of a node's steps that take effect in time and are answered late.
    pub late_answers: [u64; 2],
    /// Since when a node cannot mount: its mount point is taken.
    pub no_mount: [Option<Time>; 2],
    /// A node's helper exits 1 at once.
    pub helper_broken: [bool; 2],
    /// A node's helper takes that long to tell its verdict, µs.
    pub helper_late: [Time; 2],
    /// A node's health as its nasd judges it.
    pub unfit: [Option<Ailment>; 2],
}

/// The world.
#[derive(Debug, Clone)]
pub struct World {
    /// True time.
    pub now: Time,
    queue: BinaryHeap<Reverse<Entry>>,
    number: u64,
    /// Chance.
    pub random: Random,
    /// Delays are fixed: for the exhaustive search.
    pub calm: bool,
    /// The two nodes.
    pub nodes: [Node; 2],
    /// DRBD.
    pub pair: Pair,
    /// The store.
    pub coordinator: Coordinator,
    /// The wire.
    pub net: Net,
    /// The clients.
    pub clients: Clients,
    /// What may go wrong.
    pub weather: Weather,
    /// A hole.
    pub planted: Option<Planted>,
    /// There are fence agents.
    pub fence: bool,
    /// The story.
    pub trace: Trace,
    /// Properties.
    pub watch: Watch,
    /// The first property that was violated.
    pub violation: Option<Violation>,
    /// Happenings so far.
    pub steps: u64,
    meeting: bool,
}

impl World {
    /// Two new nodes, a new resource, an empty coordinator; both nasds start. With `fence` each can
    /// cut the other one's power.
    #[must_use]
    pub fn new(planted: Option<Planted>, fence: bool) -> Self {
        let mut world = Self {
            now: 0,
            queue: BinaryHeap::new(),
            number: 0,
            random: Random::new(0),
            calm: true,
            nodes: [0, 1].map(|n| life::new_node(n, planted, fence)),
            pair: Pair::new(),
            coordinator: Coordinator::default(),
            net: Net::default(),
            clients: Clients::default(),
            weather: Weather::default(),
            planted,
            fence,
            trace: Trace::default(),
            watch: Watch::default(),
            violation: None,
            steps: 0,
            meeting: false,
        };
        for n in 0..2 {
            world.start_nasd(n);
        }
        world.later(50 * MS, Happening::Clients);
        world
    }

    // ---- time --------------------------------------------------------------------------------

    /// Puts something into the queue.
    pub(crate) fn at(&mut self, at: Time, what: Happening) {
        self.number += 1;
        let entry = Entry { at: at.max(self.now), number: self.number, what };
        self.queue.push(Reverse(entry));
    }

    /// The same, from now on.
    pub(crate) fn later(&mut self, delay: Time, what: Happening) {
        self.at(self.now + delay, what);
    }

    pub(crate) fn nasd_later(&mut self, n: usize, delay: Time, what: Do) {
        let life = self.nodes[n].nasd.life;
        self.later(delay, Happening::Nasd(n, life, what));
    }

    pub(crate) fn feed_later(&mut self, n: usize, delay: Time, event: Event) {
        self.nasd_later(n, delay, Do::Feed(Box::new(event)));
    }

    pub(crate) fn kernel_later(&mut self, n: usize, delay: Time, what: InKernel) {
        let boot = self.nodes[n].boot;
        self.later(delay, Happening::Kernel(n, boot, what));
    }

    /// A delay in that range of µs; the shortest in a calm world.
    pub(crate) fn delay(&mut self, low: Time, high: Time) -> Time {
        if self.calm { low } else { self.random.between(low, high) }
    }

    /// The node's monotonic clock.
    #[must_use]
    pub fn local(&self, n: usize) -> Time {
        self.nodes[n].clock.local(self.now)
    }

    /// The time that the node's machine sees.
    #[must_use]
    pub fn machine_now(&self, n: usize) -> Now {
        duration(self.local(n).saturating_sub(self.nodes[n].nasd.started))
    }

    /// The gate lets packets through.
    #[must_use]
    pub fn gate_open(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        node.up && node.gate.deadline.allows(self.local(n))
    }

    pub(crate) fn note(&mut self, n: usize, text: impl FnOnce() -> String) {
        self.trace.add(self.now, Some(n), text);
    }

    pub(crate) fn say(&mut self, text: impl FnOnce() -> String) {
        self.trace.add(self.now, None, text);
    }

    pub(crate) fn violate(&mut self, property: &'static str, text: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let text = text();
            self.trace.add(self.now, None, || format!("VIOLATED {property}: {text}"));
            self.violation = Some(Violation { property, text });
        }
    }

    // ---- the loop ----------------------------------------------------------------------------

    /// Lets the next thing happen. False: nothing is left, or it lies behind `end`, or a property is
    /// violated.
    pub fn advance(&mut self, end: Time) -> bool {
        let due = self.queue.peek().is_some_and(|Reverse(e)| e.at <= end);
        if !due || self.violation.is_some() {
            return false;
        }
        let Some(Reverse(entry)) = self.queue.pop() else { return false };
        self.now = entry.at;
        self.steps += 1;
        self.happen(entry.what);
        self.settle_pair();
        crate::properties::check(self);
        true
    }

    /// Runs until that time.
    pub fn run_until(&mut self, end: Time) {
        while self.advance(end) {}
        self.now = self.now.max(end);
    }

    /// What happens next, for the exhaustive search.
    #[must_use]
    pub(crate) fn next(&self) -> Option<(Time, &Happening)> {
        self.queue.peek().map(|Reverse(e)| (e.at, &e.what))
    }

    /// What would happen next happens later instead.
    pub fn postpone(&mut self, by: Time) {
        if let Some(Reverse(entry)) = self.queue.pop() {
            self.at(entry.at + by, entry.what);
        }
    }

    /// A fault strikes just before what happens next.
    pub fn strike_before_next(&mut self, fault: Fault) {
        if let Some((at, _)) = self.next() {
            self.now = self.now.max(at);
        }
        self.happen(Happening::Fault(fault));
        self.settle_pair();
        crate::properties::check(self);
    }

    /// Everything that decides the future, told to a hasher's writer.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn describe(&self, to: &mut impl std::fmt::Write) -> std::fmt::Result {
        let mut queue: Vec<_> = self.queue.iter().map(|Reverse(e)| e).collect();
        queue.sort_unstable();
        write!(to, "{} {:?} {:?}", self.now, self.nodes, self.pair)?;
        write!(to, "{:?} {:?} {:?}", self.coordinator, self.net, self.clients)?;
        queue.iter().try_for_each(|e| write!(to, "{} {:?}", e.at, e.what))
    }

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Nasd(n, life, what) => self.in_nasd(n, life, what),
            Happening::Kernel(n, boot, what) => {
                if self.nodes[n].boot == boot {
                    self.in_kernel(n, what);
                }
            }
            Happening::Meet => {
                self.meeting = false;
                self.pair.meet();
            }
            Happening::Resynced(session) => {
                if !self.pair.resynced(session) {
                    self.later(S, Happening::Resynced(session));
                }
            }
            Happening::Arrive(from, message) => self.arrive(from, message),
            Happening::AtCoordinator { n, life, ask, what } => {
                self.at_coordinator(n, life, ask, *what);
            }
            Happening::Clients => self.clients_write(),
            Happening::Fault(fault) => self.strike(fault),
        }
    }

    /// A stopped process does everything later; a dead one nothing any more.
    fn in_nasd(&mut self, n: usize, life: u32, what: Do) {
        let node = &self.nodes[n];
        if !node.up || node.nasd.life != life {
            return;
        }
        let until = match node.nasd.process {
            Process::Dead => return,
            Process::Stopped(until) if until > self.now => until,
            Process::Stopped(_) => {
                self.nodes[n].nasd.process = Process::Running;
                self.note(n, || "nasd goes on".into());
                return self.in_nasd(n, life, what);
            }
            Process::Running if self.blocked_on_volume(n) => self.now + 50 * MS,
            Process::Running => return self.do_it(n, what),
        };
        self.at(until, Happening::Nasd(n, life, what));
    }

    /// nasd on that node runs and is not stopped.
    #[must_use]
    pub fn nasd_runs(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let runs = match node.nasd.process {
            Process::Running => true,
            Process::Stopped(until) => until <= self.now,
            Process::Dead => false,
        };
        node.up && runs && !self.blocked_on_volume(n)
    }

    /// Hole H7: a thread of nasd sits on the frozen volume, and the process with it.
    pub(crate) fn blocked_on_volume(&self, n: usize) -> bool {
        let touches = self.planted == Some(Planted::H7) && self.nodes[n].mounted;
        touches && self.pair.sides[n].frozen
    }

    fn do_it(&mut self, n: usize, what: Do) {
        match what {
            Do::Tick => {
                let next = self.nodes[n].clock.true_span(TICK);
                self.nasd_later(n, next, Do::Tick);
                self.feed(n, Event::Tick);
            }
            Do::Beat { regular } => self.beat(n, regular),
            Do::Feed(event) => self.feed(n, *event),
            Do::Hear(message) => self.hear(n, *message),
            Do::Answered(ask, answer) => self.answered(n, ask, *answer),
            Do::GiveUp(ask) => self.give_up(n, ask),
            Do::Refresh(right) => self.refresh(n, right),
            Do::Begin(run, step, context) => self.begin_step(n, run, step, context),
            Do::AwaitRight { run, epoch, until } => self.await_right(n, run, epoch, until),
            Do::Open { run, right, ticket } => self.open(n, run, right, ticket),
            Do::Cas { run, tries } => self.send_cas(n, run, tries),
            Do::Chore(run, chore) => self.chore(n, run, chore),
            Do::LookedAround => self.looked_around(n),
            Do::Watched => self.ask_coordinator(n, Ask::Read, node::Waiting::Read),
            Do::Knock(run) => self.knock(n, run),
            Do::EndForUpgrade => self.end_for_upgrade(n),
        }
    }

    // ---- the core ----------------------------------------------------------------------------

    /// The node's machine takes an event in, and what it wants done is begun.
    pub fn feed(&mut self, n: usize, event: Event) {
        self.tell_event(n, &event);
        let now = self.machine_now(n);
        let before = self.trace.is_kept().then(|| self.stage_line(n));
        let effects = self.nodes[n].nasd.machine.step(now, event);
        if let Some(before) = before {
            let after = self.stage_line(n);
            if after != before {
                self.note(n, || format!("    = {after}"));
            }
        }
        self.publish(n);
        for effect in effects {
            self.tell_effect(n, &effect);
            self.execute(n, effect);
        }
    }

    fn stage_line(&self, n: usize) -> String {
        let machine = &self.nodes[n].nasd.machine;
        let record = machine.record().map_or_else(|| "no record".into(), record_line);
        let problem = machine.problem().map(|p| format!("; problem: {p}")).unwrap_or_default();
        format!("{:?}; {record}{problem}", machine.stage())
    }

    fn tell_event(&mut self, n: usize, event: &Event) {
        match event {
            Event::Tick | Event::Peer(_) => {}
            Event::Drbd(view) => self.note(n, || format!("  > DRBD {}", view_line(view))),
            Event::Record(Some(v)) => {
                self.note(n, || format!("  > read #{} {}", v.revision, record_line(&v.record)));
            }
            other => self.note(n, || format!("  > {other:?}")),
        }
    }

    fn tell_effect(&mut self, n: usize, effect: &Effect) {
        match effect {
            Effect::Cas { run, expected, record } => {
                self.note(n, || format!("  < Cas {run} {expected:?} {}", record_line(record)));
            }
            Effect::Run { run, step, context } => {
                self.note(n, || {
                    format!("  < {step} (run {run}, epoch {}, {:?})", context.epoch, context.proof)
                });
            }
            other => self.note(n, || format!("  < {other:?}")),
        }
    }

    /// A step's answer, or a late one that the core ignores by its number.
    pub(crate) fn ran(
        &mut self,
        n: usize,
        life: u32,
        run: RunId,
        result: Result<Option<u64>, StepError>,
    ) {
        let delay = self.delay(100, 2 * MS);
        let event = Event::Ran { run, result };
        self.later(delay, Happening::Nasd(n, life, Do::Feed(Box::new(event))));
    }

    pub(crate) fn machine(&self, n: usize) -> &Machine {
        &self.nodes[n].nasd.machine
    }

    /// The other node's name.
    #[must_use]
    pub fn peer_name(&self, n: usize) -> NodeName {
        self.nodes[1 - n].name.clone()
    }
}

/// A record on one line.
#[must_use]
pub fn record_line(record: &nasd::core::record::Record) -> String {
    let current: Vec<_> = record.current.iter().map(|n| n.0.as_str()).collect();
    let (epoch, generation) = (record.epoch, record.generation);
    format!("{} e{epoch} g{generation} {{{}}}", record.phase, current.join(","))
}

fn view_line(view: &nasd::core::view::DrbdView) -> String {
    let connection = match (view.connected, view.stand_alone) {
        (true, _) => format!("connected to {:?}", view.peer_role),
        (_, true) => "StandAlone".into(),
        _ => "connecting".into(),
    };
    let flags = [
        (view.local_up_to_date, "up-to-date"),
        (view.local_consistent && !view.local_up_to_date, "consistent"),
        (view.local_failed, "FAILED"),
        (view.peer_up_to_date, "peer up-to-date"),
        (view.resync, "resync"),
        (view.frozen, "FROZEN"),
    ];
    let flags: Vec<_> = flags.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
    format!("{:?}, {connection}, {}", view.role, flags.join(", "))
}
