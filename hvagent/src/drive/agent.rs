//! The agent's state: what it hears becomes events of the mounts' machines, and their effects become what
//! must be done. No clock, no I/O.
//!
//! Keeps S10 (nothing here waits), S11 (a hold ends with its machine's) and S12 (readiness needs every
//! answer: a mount that cannot be seen, a lease whose age is unknown and hands that do not answer are a
//! no). A move that both nasds announce is one move: it has one number.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::hands::{Coming, GuestStall, Readiness};
use super::input::{Heard, Input, Order, Output, Pace};
use super::leases::Leases;
use super::moves::{Move, Moves};
use super::track::{SampledEvent, Track};
use crate::config::{Config, Services, kept::Kept};
use crate::core::Now;
use crate::core::phase::{Answer, Cause, Effect, Event, Phase, Probing, Timing};
use crate::mounts::host::{Look, Looked};
use crate::mounts::{kmsg, stall};
use crate::probe::protocol::{Outcome, What};
use crate::probe::{keeper, process};

/// Between two orders of a hold that goes on, between two questions for readiness, and between two
/// verifications of a mount that has failed its first.
const HOLD_AGAIN: Duration = Duration::from_secs(2);
const READY_AGAIN: Duration = Duration::from_secs(1);
const VERIFY_AGAIN: Duration = Duration::from_secs(10);
/// Between two looks whether libvirt answers.
const REACH_AGAIN: Duration = Duration::from_secs(10);
/// A planned move begins within that time after everybody is ready.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(2);

/// What the agent was told at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// This host's name.
    pub host: String,
    /// From the file.
    pub config: Config,
    /// From the local disk.
    pub kept: Kept,
    /// Of the machines.
    pub timing: Timing,
}

/// A link to a nasd.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) since: Now,
    pub(super) up: Result<(), String>,
}

/// The state.
#[derive(Debug)]
pub struct Agent {
    pub(super) settings: Settings,
    pub(super) services: Services,
    pub(super) tracks: BTreeMap<PathBuf, Track>,
    pub(super) moves: Moves,
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) leases: Leases,
    /// Why the mounts cannot be seen.
    pub(super) blind: Option<String>,
    /// Lines of the kernel's tables that were not understood.
    pub(super) misread: Vec<String>,
    /// Why the kernel's log is not heard.
    pub(super) unheard: Option<String>,
    pub(super) libvirt: Option<Result<(), String>>,
    /// NFS mounts of no service.
    pub(super) others: Vec<PathBuf>,
    told: Option<(Now, nasd_proto::AgentState)>,
    inhibited: bool,
    pace: Pace,
    again: Again,
    pub(super) out: Vec<Output>,
}

/// When something was last asked again.
#[derive(Debug, Default)]
struct Again {
    hold: Now,
    ready: Now,
    reach: Option<Now>,
}

impl Agent {
    /// Before anything was seen.
    #[must_use]
    pub fn new(now: Now, settings: Settings) -> Self {
        let down = Err("not connected yet".to_owned());
        let node =
            |n: &crate::config::Nasd| (n.name.clone(), Node { since: now, up: down.clone() });
        let mut agent = Self {
            nodes: settings.config.nasd.iter().map(node).collect(),
            leases: Leases::new(settings.config.lockspaces.clone()),
            settings,
            services: Services::new(),
            tracks: BTreeMap::new(),
            moves: Moves::default(),
            blind: Some("not looked at yet".to_owned()),
            misread: Vec::new(),
            unheard: None,
            libvirt: None,
            others: Vec::new(),
            told: None,
            inhibited: false,
            pace: Pace::Rest,
            again: Again::default(),
            out: Vec::new(),
        };
        agent.join_services();
        agent
    }

    /// Takes what has happened.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Output> {
        match input {
            Input::Looked(look) => self.looked(now, look),
            Input::Kernel(event) => self.kernel(now, &event),
            Input::KernelUnheard(why) => self.unheard = Some(why),
            Input::Leases(answer) => self.leases.take(answer),
            Input::Probed(mount, report) => self.probed(now, &mount, report),
            Input::News(node, news) => self.news(now, &node, news),
            Input::Linked(node, up) => self.linked(now, node, up),
            Input::Heard(heard) => self.heard(now, heard),
            Input::Tick => {}
        }
        self.tick(now);
        self.finish(now)
    }

    /// An operator takes the problems of a mount as they are. `false`: there is nothing to take.
    pub fn accept(&mut self, now: Now, mount: &Path) -> (bool, Vec<Output>) {
        let failed = |t: &Track| t.machine.phase() == Phase::Failed(Cause::Unverified);
        let found = self.tracks.get(mount).is_some_and(failed);
        if found {
            self.event(now, mount, Event::Accepted);
        }
        (found, self.finish(now))
    }

    /// Those of the file win.
    fn join_services(&mut self) {
        let told = self.settings.kept.values().flatten();
        self.services = told.map(|(name, addresses)| (name.clone(), addresses.clone())).collect();
        self.services.extend(self.settings.config.services.clone());
    }

    pub(super) fn welcomed(&mut self, node: &str, services: Services) {
        if self.settings.kept.get(node) != Some(&services) {
            self.settings.kept.insert(node.to_owned(), services);
            self.out.push(Output::Keep(self.settings.kept.clone()));
            self.join_services();
        }
    }

    fn linked(&mut self, now: Now, node: String, up: Result<(), String>) {
        let changed = self.nodes.get(&node).is_none_or(|n| n.up.is_ok() != up.is_ok());
        match self.nodes.get_mut(&node) {
            Some(known) if !changed => known.up = up,
            _ => drop(self.nodes.insert(node, Node { since: now, up })),
        }
    }

    fn looked(&mut self, now: Now, look: Result<Look, String>) {
        let look = match look {
            Ok(look) => look,
            Err(why) => {
                self.blind = Some(why);
                return;
            }
        };
        self.blind = None;
        let told = look.problems.iter().map(|(file, p)| format!("{}: {p}", file.display()));
        self.misread = told.collect();
        // Of several in the same place the last one is seen by everybody.
        let seen: BTreeMap<PathBuf, Looked> =
            look.mounts.into_iter().map(|l| (l.mount.point.clone(), l)).collect();
        self.forget(&seen);
        self.others.clear();
        for (point, looked) in seen {
            match self.service_of(looked.mount.address()) {
                Some(service) => self.sampled(now, &point, &service, &looked),
                None => self.others.push(point),
            }
        }
    }

    fn service_of(&self, address: Option<IpAddr>) -> Option<String> {
        let address = address?;
        let found = self.services.iter().find(|(_, all)| all.contains(&address));
        found.map(|(name, _)| name.clone())
    }

    /// Mounts that are gone, that are another file system by now, or no service's any more.
    fn forget(&mut self, seen: &BTreeMap<PathBuf, Looked>) {
        // A table that was not understood may hide a mount.
        let complete = self.misread.is_empty();
        let lost = |track: &Track| match seen.get(&track.point) {
            None => complete,
            Some(looked) => {
                looked.mount.device != track.device
                    || self.service_of(looked.mount.address()).as_ref() != Some(&track.service)
            }
        };
        let lost: Vec<_> =
            self.tracks.values().filter(|t| lost(t)).map(|t| t.point.clone()).collect();
        for point in lost {
            let Some(track) = self.tracks.remove(&point) else { continue };
            tracing::info!(mount = %point.display(), service = track.service, "mount is gone");
            if track.held {
                self.out.push(Output::Order(Order::Release(point.clone())));
            }
            self.out.push(Output::StopProbe(point));
            self.told_mounts();
        }
    }

    fn told_mounts(&mut self) {
        let points = self.tracks.keys().cloned().collect();
        self.out.push(Output::Order(Order::Mounts(points)));
    }

    fn sampled(&mut self, now: Now, point: &Path, service: &str, looked: &Looked) {
        if !self.tracks.contains_key(point) {
            self.discover(now, point, service, looked);
        }
        let Some(track) = self.tracks.get_mut(point) else { return };
        for event in track.sample(now, &looked.reading) {
            let (event, answering) = match event {
                SampledEvent::Stalled => (Event::Stalled, None),
                SampledEvent::Ended => (Event::StallEnded, Some(now)),
                SampledEvent::Reconnected => (Event::Reconnected, Some(now)),
            };
            self.event(now, point, event);
            self.probe(point, keeper::Input::Answering(answering));
        }
    }

    fn discover(&mut self, now: Now, point: &Path, service: &str, looked: &Looked) {
        let (timing, stall) = (self.settings.timing, self.settings.config.intervals.stall);
        let track = Track::new(now, service, looked, timing, stall);
        tracing::info!(mount = %point.display(), service, "mount is watched");
        self.tracks.insert(point.to_owned(), track);
        self.out.push(Output::StartProbe(point.to_owned(), looked.mount.device));
        if matches!(looked.reading, stall::Reading::Counters { .. }) {
            self.probe(point, keeper::Input::Answering(Some(now)));
        }
        self.told_mounts();
        for event in self.moves.for_newcomer(service, now) {
            self.event(now, point, event);
        }
    }

    fn kernel(&mut self, now: Now, event: &kmsg::Event) {
        let kmsg::Event::LostLocks { server, count } = event else { return };
        let words = format!(
            "{count} locks were lost at {server}: what held them gets I/O errors \
                             until its guest is migrated or restarted"
        );
        tracing::error!(server, count, "locks were lost");
        for track in self.tracks.values_mut().filter(|t| t.server == *server) {
            track.lost_locks.push((now, words.clone()));
        }
    }

    fn probed(&mut self, now: Now, mount: &Path, report: process::Report) {
        let Some(track) = self.tracks.get_mut(mount) else { return };
        let answer = match report.outcome {
            Outcome::Good => {
                track.proven = now;
                track.probe_error = None;
                Answer::Good
            }
            Outcome::Error { errno } => {
                track.probe_error = Some(errno);
                Answer::Error(errno)
            }
        };
        let asked = report.asked;
        match report.what {
            What::Read => self.event(now, mount, Event::Read { asked, answer }),
            What::Open | What::Visit => self.event(now, mount, Event::FreshOpen { asked, answer }),
            What::Prepare | What::Hold | What::Drop => {}
        }
    }

    fn heard(&mut self, now: Now, heard: Heard) {
        match heard {
            Heard::Held(mount) => self.on(&mount, |track| track.holding = false),
            Heard::Released(mount, done) => self.on(&mount, |track| track.release_again = !done),
            Heard::Ready(mount, id, readiness) => self.ready(&mount, id, readiness),
            Heard::Verified(mount, asked, problems) => self.verified(now, &mount, asked, problems),
            Heard::Stalls(mount, guests) => self.settled(now, &mount, guests),
            Heard::Reachable(answer) => self.libvirt = Some(answer),
        }
    }

    fn on(&mut self, mount: &Path, change: impl FnOnce(&mut Track)) {
        if let Some(track) = self.tracks.get_mut(mount) {
            change(track);
        }
    }

    fn ready(&mut self, mount: &Path, id: u64, readiness: Readiness) {
        self.on(mount, |track| {
            track.asking = false;
            track.census = (readiness.guests, readiness.migrations);
            // Number 0 only counts.
            if id != 0 {
                track.hands = Some((id, readiness));
            }
        });
    }

    fn verified(&mut self, now: Now, mount: &Path, asked: Now, mut problems: Vec<String>) {
        let Some(track) = self.tracks.get_mut(mount) else { return };
        track.verifying = None;
        problems.extend(track.locks_lost_since(track.verify_since));
        problems.extend(self.leases.lost(mount));
        self.event(now, mount, Event::Checked { asked, problems });
    }

    fn settled(&mut self, now: Now, mount: &Path, guests: Vec<GuestStall>) {
        if let Some(cost) = self.tracks.get_mut(mount).and_then(|t| t.cost.as_mut()) {
            cost.guests = guests;
        }
        self.report(mount);
        self.event(now, mount, Event::Settled);
    }

    /// Gives a machine an event, and does what it says.
    pub(super) fn event(&mut self, now: Now, mount: &Path, event: Event) {
        let Some(track) = self.tracks.get_mut(mount) else { return };
        let mut effects = track.machine.step(now, event);
        // Guests are resumed before they are looked at.
        effects.sort_by_key(|effect| matches!(effect, Effect::Verify { .. }));
        for effect in effects {
            self.effect(now, mount, effect);
        }
    }

    fn effect(&mut self, now: Now, mount: &Path, effect: Effect) {
        let point = mount.to_owned();
        match effect {
            Effect::Hold => {
                self.on(mount, |track| (track.held, track.holding) = (true, true));
                self.order(Order::Hold(point));
            }
            Effect::Release => {
                self.on(mount, |track| track.held = false);
                self.order(Order::Release(point));
            }
            Effect::Probe(probing) => self.probe(mount, keeper::Input::Probing(probing)),
            Effect::Rehold => self.probe(mount, keeper::Input::Rehold),
            Effect::Verify { since } => self.verify(now, mount, since),
            Effect::ResumeGuests => self.order(Order::Resume(point)),
            Effect::Settle => self.settle(mount),
            Effect::Tell(phase) => self.entered(mount, phase),
            Effect::Reply { id, taken } => {
                self.on(mount, |track| track.refused = taken.err().map(|why| (id, why)));
            }
        }
    }

    fn order(&mut self, order: Order) {
        self.out.push(Output::Order(order));
    }

    fn probe(&mut self, mount: &Path, input: keeper::Input) {
        self.out.push(Output::Probe(mount.to_owned(), input));
    }

    fn verify(&mut self, now: Now, mount: &Path, since: Now) {
        self.on(mount, |track| {
            (track.verifying, track.verify_since, track.verified_at) = (Some(now), since, now);
        });
        self.order(Order::Verify { mount: mount.to_owned(), asked: now });
    }

    /// What the stall cost is asked for first, and reported with the guests' share.
    fn settle(&mut self, mount: &Path) {
        let Some(track) = self.tracks.get_mut(mount) else { return };
        let stall = track.longest.unwrap_or_default();
        let id = track.machine.move_id();
        track.cost = Some(super::track::Cost { id, stall, guests: Vec::new() });
        self.leases.stalled(stall);
        self.order(Order::Stalls { mount: mount.to_owned(), stall });
    }

    fn entered(&mut self, mount: &Path, phase: Phase) {
        let name = super::track::phase_name(phase);
        let Some(track) = self.tracks.get_mut(mount) else { return };
        if matches!(phase, Phase::Normal | Phase::Announced) {
            track.longest = None;
        }
        let id = track.machine.move_id();
        tracing::info!(mount = %mount.display(), service = track.service, id, phase = name, "phase");
        self.order(Order::Phase(mount.to_owned(), phase));
        if phase == Phase::Normal {
            self.probe(mount, keeper::Input::Probing(Probing::Rest));
        }
    }

    /// What is asked again as time passes.
    fn tick(&mut self, now: Now) {
        for mount in self.tracks.keys().cloned().collect::<Vec<_>>() {
            self.event(now, &mount, Event::Tick);
            self.verify_again(now, &mount);
        }
        self.moves.expire(now);
        if due(&mut self.again.hold, now, HOLD_AGAIN) {
            self.hold_again();
        }
        if due(&mut self.again.ready, now, READY_AGAIN) {
            self.ask_ready();
        }
        if self.again.reach.is_none_or(|at| now.saturating_sub(at) >= REACH_AGAIN) {
            self.again.reach = Some(now);
            self.order(Order::Reachable);
            self.count();
        }
    }

    /// Guests and migrations are counted now and then where no move asks.
    fn count(&mut self) {
        let mut orders = Vec::new();
        for track in self.tracks.values_mut().filter(|track| !track.asking) {
            track.asking = true;
            let coming = Coming { within: READY_WITHIN, outage: Duration::ZERO };
            orders.push(Order::Ready { mount: track.point.clone(), id: 0, coming });
        }
        self.out.extend(orders.into_iter().map(Output::Order));
    }

    fn verify_again(&mut self, now: Now, mount: &Path) {
        let Some(track) = self.tracks.get(mount) else { return };
        let failed = track.machine.phase() == Phase::Failed(Cause::Unverified);
        let due = now.saturating_sub(track.verified_at) >= VERIFY_AGAIN;
        if failed && due {
            self.verify(now, mount, track.verify_since);
        }
    }

    /// Migrations that have begun since are held as well; a release that failed is tried again.
    fn hold_again(&mut self) {
        let mut orders = Vec::new();
        for track in self.tracks.values_mut() {
            if track.held && !track.holding {
                track.holding = true;
                orders.push(Order::Hold(track.point.clone()));
            } else if !track.held && track.release_again {
                orders.push(Order::Release(track.point.clone()));
            }
        }
        self.out.extend(orders.into_iter().map(Output::Order));
    }

    /// For each move that is announced and not begun.
    pub(super) fn ask_ready(&mut self) {
        let mut orders = Vec::new();
        for track in self.tracks.values_mut() {
            let Some(Move { id, outage, .. }) = self.moves.waiting(&track.service) else {
                continue;
            };
            if !track.asking {
                track.asking = true;
                let (mount, id) = (track.point.clone(), *id);
                let coming = Coming { within: READY_WITHIN, outage: *outage };
                orders.push(Order::Ready { mount, id, coming });
            }
        }
        self.out.extend(orders.into_iter().map(Output::Order));
    }

    /// Who keeps files open on a mount cannot be unmounted: only where guests do, or storage moves.
    fn tell_use(&mut self) {
        let mut changed = Vec::new();
        for track in self.tracks.values_mut() {
            let used = track.machine.phase() != Phase::Normal || track.census.0 > 0;
            if std::mem::replace(&mut track.used, used) != used {
                changed.push(Output::Probe(track.point.clone(), keeper::Input::Used(used)));
            }
        }
        self.out.extend(changed);
    }

    /// What follows from the state as it is now.
    pub(super) fn finish(&mut self, now: Now) -> Vec<Output> {
        self.tell_use();
        let held = self.tracks.values().any(|track| track.held);
        if std::mem::replace(&mut self.inhibited, held) != held {
            self.out.push(Output::Inhibit(held));
        }
        let busy = |t: &Track| t.machine.phase() != Phase::Normal || t.stalled_for(now).is_some();
        let pace = if self.tracks.values().any(busy) { Pace::Busy } else { Pace::Rest };
        if std::mem::replace(&mut self.pace, pace) != pace {
            self.out.push(Output::Pace(pace));
        }
        self.tell_readiness(now);
        let state = self.state(now);
        let every = self.settings.config.intervals.state;
        let old = |at: Now| now.saturating_sub(at) >= every;
        let told = self.told.as_ref();
        if told.is_none_or(|(at, told)| old(*at) || super::tell::differs(told, &state)) {
            self.told = Some((now, state.clone()));
            self.out.push(Output::State(state));
        }
        std::mem::take(&mut self.out)
    }

    /// The services that are known.
    #[must_use]
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The mounts whose migrations are held back.
    #[must_use]
    pub fn held(&self) -> BTreeSet<PathBuf> {
        let held = self.tracks.values().filter(|track| track.held || track.release_again);
        held.map(|track| track.point.clone()).collect()
    }
}

/// Whether that much has passed since; if so, since now.
fn due(last: &mut Now, now: Now, pause: Duration) -> bool {
    let due = now.saturating_sub(*last) >= pause;
    if due {
        *last = now;
    }
    due
}

#[cfg(test)]
#[path = "agent_tests.rs"]
mod tests;
