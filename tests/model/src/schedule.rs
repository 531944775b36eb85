//! Schedules: from a seed to faults at times, and the run of one.
//!
//! Owns chance. Every fault ends before the world is mended; afterwards the service must come back
//! within a bound, and meanwhile no property may break.

use nasd::core::peer::Ailment;

use crate::hole::Planted;
use crate::properties::{self, Violation};
use crate::random::Random;
use crate::trace::Trace;
use crate::world::data::VOLUMES;
use crate::world::node::Clock;
use crate::world::{Happening, MS, S, Time, World};

/// What breaks, or is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Power of a node, for that time.
    Crash(usize, Time),
    /// A nasd, which is started again after that time.
    KillNasd(usize, Time),
    /// A nasd is stopped for that time.
    StopNasd(usize, Time),
    /// A nasd is ended in order, with a long right.
    Upgrade(usize),
    /// The wire from that node to the other one.
    Wire(usize, bool),
    /// Percent of messages lost, longest delay.
    Lossy(u64, Time),
    /// DRBD's link.
    Replication(bool),
    /// A node reaches the coordinator.
    Reach(usize, bool),
    /// The coordinator has a majority.
    Coordinator(bool),
    /// Compare-and-sets land late, answers are lost.
    Sticky(bool),
    /// The next compare-and-set takes effect, and its answer is lost.
    LoseAnswer,
    /// The next compare-and-set lands after its asker has given up.
    LandLate,
    /// A backup of the coordinator is taken.
    BackUp,
    /// It is restored.
    Restore,
    /// A volume's disk on a node.
    DiskFails(usize, usize),
    /// Percent of a node's steps that take very long.
    Slow(usize, u64),
    /// Percent of a node's steps that are refused.
    Failing(usize, u64),
    /// Percent of a node's steps that are answered late.
    LateAnswers(usize, u64),
    /// A node's mount point is taken.
    NoMount(usize, bool),
    /// A node's helper exits 1.
    HelperBroken(usize, bool),
    /// A node's helper tells its verdict late.
    HelperLate(usize, Time),
    /// An operator disconnects DRBD gracefully on a node.
    Disconnect(usize),
    /// A node's health.
    Unfit(usize, Option<Ailment>),
    /// The file system of a node meets an error.
    Spoil(usize),
    /// An operator moves the service.
    Switchover,
    /// Everything is repaired.
    Mend,
}

/// Within that time after the mending the service must be back and both nodes current.
pub const BOUND: Time = 90 * S;
/// Faults begin within that time.
const WINDOW: Time = 8 * S;

/// What came of one run.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What broke.
    pub violation: Option<Violation>,
    /// The story, if it was kept.
    pub trace: Trace,
    /// Happenings.
    pub steps: u64,
    /// Time from the mending to the settled state.
    pub settled_after: Time,
    /// Acknowledged writes.
    pub acked: u32,
}

/// Worlds in which A serves and both nodes are current, to start from.
#[derive(Debug, Clone)]
pub struct Bench {
    plain: World,
    fence: World,
}

impl Bench {
    /// Founds the service. With a hole the founding must succeed all the same.
    #[must_use]
    pub fn new(planted: Option<Planted>) -> Self {
        let steady = |fence| {
            let mut world = World::new(planted, fence);
            world.run_until(4 * S);
            world
        };
        Self { plain: steady(false), fence: steady(true) }
    }

    /// The world to start from, without fence agents.
    #[must_use]
    pub fn steady(&self) -> &World {
        &self.plain
    }

    /// Runs one seed; every fourth has fence agents.
    #[must_use]
    pub fn run(&self, seed: u64, trace: Trace) -> Report {
        let steady = if seed % 4 == 3 { &self.fence } else { &self.plain };
        let mut world = steady.clone();
        world.trace = trace;
        world.calm = false;
        let mut random = Random::new(seed);
        for node in &mut world.nodes {
            let local = node.clock.local(world.now);
            let ppm = i64::try_from(random.between(0, 2000)).unwrap_or(0) - 1000;
            let shown = Clock { ppm, offset: 0 }.local(world.now);
            node.clock = Clock { ppm, offset: local - shown };
        }
        let faults = plan(&mut random);
        world.random = random;
        run(world, seed, &faults)
    }
}

/// Runs a world through faults, which are times from now.
#[must_use]
pub fn run(mut world: World, seed: u64, faults: &[(Time, Fault)]) -> Report {
    let start = world.now;
    let end = start + faults.iter().map(|(at, fault)| at + lasts(*fault)).max().unwrap_or(0) + S;
    for (at, fault) in faults {
        world.at(start + at, Happening::Fault(*fault));
    }
    world.run_until(end);
    mend_and_wait(&mut world);
    Report {
        seed,
        violation: world.violation.clone(),
        steps: world.steps,
        settled_after: world.now - end,
        acked: world.clients.acked.iter().map(|w| w.count()).sum(),
        trace: world.trace,
    }
}

/// Repairs everything, and waits until the service is back; a property is violated if it is not.
pub fn mend_and_wait(world: &mut World) {
    let end = world.now;
    world.at(end, Happening::Fault(Fault::Mend));
    let mut missing = Ok(());
    while world.violation.is_none() {
        world.run_until(world.now + 250 * MS);
        missing = properties::settled(world);
        if missing.is_ok() || world.now > end + BOUND || world.coordinator.restored {
            break;
        }
    }
    if let Err((property, text)) = missing
        && !world.coordinator.restored
    {
        world.violate(property, || format!("{text}, {} s after the last fault", BOUND / S));
    }
}

fn lasts(fault: Fault) -> Time {
    match fault {
        Fault::Crash(_, time) | Fault::KillNasd(_, time) | Fault::StopNasd(_, time) => time,
        Fault::Upgrade(_) => 4 * S,
        _ => 0,
    }
}

// ---- plans -------------------------------------------------------------------------------------

struct Plan<'a> {
    random: &'a mut Random,
    faults: Vec<(Time, Fault)>,
}

/// The faults of a seed: a few at random, or a story with random times in it.
fn plan(random: &mut Random) -> Vec<(Time, Fault)> {
    let mut plan = Plan { random, faults: Vec::new() };
    if plan.random.percent(40) {
        plan.story();
    }
    let many = plan.random.between(1, 3);
    for _ in 0..many {
        plan.any();
    }
    let mut faults = plan.faults;
    spare_failed_disks(&mut faults);
    faults.sort_by_key(|(at, _)| *at);
    faults
}

/// A second node lost within moments of a failed disk is two failures at once, before anything could
/// be written down anywhere: no system with two replicas survives that.
fn spare_failed_disks(faults: &mut Vec<(Time, Fault)>) {
    let mut victim = None;
    faults.retain(|(_, fault)| match fault {
        Fault::DiskFails(n, _) => *victim.get_or_insert(*n) == *n,
        _ => true,
    });
    let failed: Vec<Time> = faults
        .iter()
        .filter(|(_, f)| matches!(f, Fault::DiskFails(..)))
        .map(|(at, _)| *at)
        .collect();
    for at in failed {
        for (when, fault) in faults.iter_mut() {
            let close = *when + 5 * S > at && *when < at + 5 * S;
            if close && !matches!(fault, Fault::DiskFails(..)) {
                *when = at + 5 * S + (*when % S);
            }
        }
    }
}

impl Plan<'_> {
    fn at(&mut self, at: Time, fault: Fault) {
        self.faults.push((at, fault));
    }

    /// Some time, often close to that of another fault.
    fn moment(&mut self) -> Time {
        let near = self.faults.first().map(|(at, _)| *at).filter(|_| self.random.percent(50));
        match near {
            Some(at) => at + self.random.between(0, 1500 * MS),
            None => self.random.between(0, WINDOW),
        }
    }

    /// Short, middling or long.
    fn span(&mut self) -> Time {
        match self.random.between(0, 2) {
            0 => self.random.between(50 * MS, S),
            1 => self.random.between(S, 5 * S),
            _ => self.random.between(5 * S, 15 * S),
        }
    }

    fn for_a_while(&mut self, on: Fault, off: Fault) {
        let (at, span) = (self.moment(), self.span());
        self.at(at, on);
        self.at(at + span, off);
    }

    fn any(&mut self) {
        let n = self.random.node();
        let (at, span) = (self.moment(), self.span());
        match self.random.between(0, 24) {
            0 | 1 => self.at(at, Fault::Crash(n, span)),
            2 | 3 => self.at(at, Fault::KillNasd(n, span.min(5 * S))),
            4 | 5 => self.at(at, Fault::StopNasd(n, span)),
            6 => self.at(at, Fault::Upgrade(n)),
            7 => self.for_a_while(Fault::Wire(n, false), Fault::Wire(n, true)),
            8 => self.for_a_while(Fault::Lossy(30, 400 * MS), Fault::Lossy(0, 2 * MS)),
            9 | 10 => self.for_a_while(Fault::Replication(false), Fault::Replication(true)),
            11 => self.for_a_while(Fault::Reach(n, false), Fault::Reach(n, true)),
            12 => self.for_a_while(Fault::Coordinator(false), Fault::Coordinator(true)),
            13 => self.for_a_while(Fault::Sticky(true), Fault::Sticky(false)),
            14 => {
                let v = self.random.bits() as usize % VOLUMES;
                self.at(at, Fault::DiskFails(n, v));
            }
            15 => self.for_a_while(Fault::Slow(n, 30), Fault::Slow(n, 0)),
            16 => self.for_a_while(Fault::Failing(n, 30), Fault::Failing(n, 0)),
            17 => self.for_a_while(Fault::HelperBroken(n, true), Fault::HelperBroken(n, false)),
            18 => self.for_a_while(Fault::HelperLate(n, 4 * S), Fault::HelperLate(n, 0)),
            19 => {
                let ailment = self.random.pick(&[Ailment::Disk, Ailment::Writes, Ailment::Other]);
                self.for_a_while(Fault::Unfit(n, Some(ailment)), Fault::Unfit(n, None));
            }
            22 => self.for_a_while(Fault::LateAnswers(n, 40), Fault::LateAnswers(n, 0)),
            23 => self.for_a_while(Fault::NoMount(n, true), Fault::NoMount(n, false)),
            24 => self.at(at, Fault::Spoil(n)),
            20 if self.random.percent(30) => self.at(at, Fault::Disconnect(n)),
            21 if self.random.percent(10) => {
                self.at(at, Fault::BackUp);
                self.at(at + span, Fault::Restore);
            }
            _ => self.at(at, Fault::Switchover),
        }
    }

    /// Combinations that the safety page warns of; what surrounds them is chance.
    fn story(&mut self) {
        let (at, soon) = (self.random.between(0, 2 * S), self.random.between(0, 800 * MS));
        let (later, long) = (self.random.between(5 * S, 9 * S), self.random.between(8 * S, 24 * S));
        match self.random.between(0, 11) {
            0 => self.two(at, Fault::Switchover, at + soon, Fault::Replication(false)),
            1 => self.two(at, Fault::LateAnswers(0, 40), at + soon, Fault::Switchover),
            2 => {
                self.two(at, Fault::DiskFails(1, 0), at + later, Fault::Crash(0, long));
                self.at(at + later + soon, Fault::Crash(1, soon + S));
            }
            3 => self.lost_twice(at, later, soon),
            4 => self.two(
                at,
                Fault::Upgrade(0),
                at + soon + 500 * MS,
                Fault::Crash(0, 2 * S + 2 * long),
            ),
            5 => {
                self.two(at, Fault::HelperBroken(0, true), at + soon, Fault::Replication(false));
                self.two(
                    at + later,
                    Fault::HelperBroken(0, false),
                    at + later + 25 * S,
                    Fault::Replication(true),
                );
            }
            6 => self.two(at, Fault::Crash(1, long), at + later, Fault::Coordinator(false)),
            7 => {
                self.two(at, Fault::Reach(0, false), at + soon, Fault::Replication(false));
                self.at(at + 28 * S, Fault::Replication(true));
            }
            8 => {
                self.two(at, Fault::Lossy(0, 200 * MS), at + soon, Fault::StopNasd(0, long));
            }
            9 => {
                self.two(at, Fault::StopNasd(0, 48 * S + later), at + soon, Fault::Lossy(0, 2 * MS))
            }
            10 => {
                self.two(at, Fault::NoMount(1, true), at + later, Fault::Crash(0, soon + 4 * S));
                self.at(at + later + long, Fault::NoMount(1, false));
            }
            _ => {
                self.two(at, Fault::Crash(0, long), at + soon + S, Fault::Coordinator(false));
                self.at(at + long, Fault::Coordinator(true));
            }
        }
    }

    /// The peer comes back while the coordinator is slow, and is lost again (C5).
    fn lost_twice(&mut self, at: Time, later: Time, soon: Time) {
        self.two(at, Fault::Replication(false), at + later, Fault::Sticky(true));
        self.at(at + later + soon, Fault::Replication(true));
        let again = at + later + soon + self.random.between(300 * MS, 6 * S);
        self.two(again, Fault::Replication(false), again + 20 * S, Fault::Replication(true));
    }

    fn two(&mut self, at: Time, one: Fault, then: Time, two: Fault) {
        self.at(at, one);
        self.at(then, two);
    }
}
