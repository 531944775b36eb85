//! The exhaustive search: a planned move in a calm world, and every way to spend a few deviations.
//!
//! Owns completeness within its bound: at every point at which something other than a tick or a beat
//! is next, each fault of the list may strike first, or what is next may come later than what follows
//! it. The search takes every combination of at most so many deviations; a state that was reached
//! before is not searched again.

use std::collections::HashSet;
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hasher};

use crate::properties::Violation;
use crate::schedule::{Fault, mend_and_wait};
use crate::trace::Trace;
use crate::world::{Do, Happening, MS, S, Time, World};

/// One way to leave the undisturbed course.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deviation {
    /// A fault strikes first.
    Strike(Fault),
    /// What is next comes that much later (µs).
    Postpone(Time),
}

/// What may deviate, and how often.
#[derive(Debug, Clone)]
pub struct Bound {
    /// The faults.
    pub faults: Vec<Fault>,
    /// The delays.
    pub delays: Vec<Time>,
    /// Deviations in one schedule, at most.
    pub deviations: u32,
    /// They fall into this time from the operator's command.
    pub window: Time,
    /// Time from the window's end to the mending.
    pub rest: Time,
}

impl Bound {
    /// One deviation out of everything.
    #[must_use]
    pub fn one() -> Self {
        let mut faults = vec![Fault::Replication(false), Fault::LoseAnswer, Fault::LandLate];
        for n in 0..2 {
            faults.extend([
                Fault::Crash(n, 5 * S),
                Fault::KillNasd(n, 300 * MS),
                Fault::StopNasd(n, 4 * S),
                Fault::Wire(n, false),
                Fault::Reach(n, false),
                Fault::DiskFails(n, 0),
            ]);
        }
        Self { faults, delays: vec![30 * MS, 2500 * MS], deviations: 1, window: 3 * S, rest: 4 * S }
    }

    /// Any two out of the few that matter most.
    #[must_use]
    pub fn two() -> Self {
        let mut faults = vec![Fault::Replication(false), Fault::LandLate];
        for n in 0..2 {
            faults.extend([Fault::Crash(n, 5 * S), Fault::KillNasd(n, 300 * MS)]);
        }
        Self { faults, delays: vec![2500 * MS], deviations: 2, window: 700 * MS, rest: 6 * S }
    }
}

/// What the search came to.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Schedules run to their end.
    pub schedules: u64,
    /// Different states at which the search branched.
    pub states: u64,
    /// States that had been searched already.
    pub known: u64,
    /// The first violation, and the way to it.
    pub violation: Option<(Violation, Way)>,
}

struct Search<'a> {
    bound: &'a Bound,
    end: Time,
    seen: HashSet<(u64, u32)>,
    found: Found,
}

/// Searches a planned move.
#[must_use]
pub fn planned_move(steady: &World, bound: &Bound) -> Found {
    let mut world = steady.clone();
    world.strike_before_next(Fault::Switchover);
    let end = world.now + bound.window;
    let mut search = Search { bound, end, seen: HashSet::new(), found: Found::default() };
    search.from(world, bound.deviations, &mut Vec::new());
    let mut found = search.found;
    found.states = search.seen.len() as u64;
    found
}

/// Ticks, beats and the clients' writes are too many, and nothing hangs on their order.
fn branches(what: &Happening) -> bool {
    match what {
        Happening::Clients => false,
        Happening::Arrive(_, message) => !message.is_beat(),
        Happening::Nasd(_, _, what) => match what {
            Do::Tick | Do::Beat { .. } | Do::GiveUp(_) | Do::Refresh(_) => false,
            Do::AwaitRight { .. } => false,
            Do::Hear(message) => !message.is_beat(),
            _ => true,
        },
        _ => true,
    }
}

/// Kernels, wires and the coordinator take the time that they want.
fn outside(what: &Happening) -> bool {
    !matches!(what, Happening::Nasd(..))
}

/// Deviations, each before the happening of that number.
pub type Way = Vec<(u64, Deviation)>;

impl Search<'_> {
    /// All schedules from here with that many deviations left.
    fn from(&mut self, mut world: World, left: u32, way: &mut Way) {
        while self.found.violation.is_none() {
            let in_window = world.next().is_some_and(|(at, _)| at <= self.end);
            if left == 0 || !in_window || world.violation.is_some() {
                return self.finish(world, way);
            }
            if world.next().is_some_and(|(_, what)| branches(what)) {
                if !self.seen.insert((digest(&world), left)) {
                    self.found.known += 1;
                    return;
                }
                self.deviate(&world, left, way);
            }
            world.advance(self.end);
        }
    }

    fn deviate(&mut self, world: &World, left: u32, way: &mut Way) {
        let strikes = self.bound.faults.iter().map(|f| Deviation::Strike(*f));
        let (bound, outside) = (self.bound, world.next().is_some_and(|(_, what)| outside(what)));
        // A process that waits long waits as a whole: that is a stop, not a late task.
        let delays = bound.delays.iter().filter(|d| outside || **d < 100 * MS);
        let delays = delays.map(|d| Deviation::Postpone(*d));
        for deviation in strikes.chain(delays) {
            let mut other = world.clone();
            way.push((other.steps, deviation));
            apply(&mut other, deviation);
            self.from(other, left - 1, way);
            way.pop();
        }
    }

    fn finish(&mut self, mut world: World, way: &Way) {
        self.found.schedules += 1;
        world.run_until(self.end + self.bound.rest);
        if world.violation.is_none() {
            mend_and_wait(&mut world);
        }
        if let Some(violation) = world.violation {
            self.found.violation = Some((violation, way.clone()));
        }
    }
}

fn apply(world: &mut World, deviation: Deviation) {
    match deviation {
        Deviation::Strike(fault) => world.strike_before_next(fault),
        Deviation::Postpone(by) => world.postpone(by),
    }
}

struct Digest(DefaultHasher);

impl Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}

fn digest(world: &World) -> u64 {
    let mut digest = Digest(DefaultHasher::new());
    // Hashing text cannot fail.
    let _ = world.describe(&mut digest);
    digest.0.finish()
}

/// The story of one way through the move, for people.
#[must_use]
pub fn story(steady: &World, bound: &Bound, way: &[(u64, Deviation)]) -> Trace {
    let mut world = steady.clone();
    world.trace = Trace::kept();
    world.strike_before_next(Fault::Switchover);
    let end = world.now + bound.window;
    for (steps, deviation) in way {
        while world.steps < *steps && world.advance(end) {}
        apply(&mut world, *deviation);
    }
    world.run_until(end + bound.rest);
    mend_and_wait(&mut world);
    world.trace
}
