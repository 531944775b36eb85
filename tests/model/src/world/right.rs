//! The keeper of the right: beats, consents, grants, and the gate (the drive's loop once more).
//!
//! Owns "counted from its request": every grant carries the local time at which it was asked for, and
//! writing it into the gate is a happening of its own.

use std::time::Duration;

use nasd::core::hole::Hole;
use nasd::core::machine::Event;
use nasd::core::peer::{GateReport, PeerBeat, Unfit};
use nasd::core::right::{Grant, until};
use nasd::core::step::{Step, StepError};
use nasd::core::view::Role;

use super::coordinator::Ask;
use super::gate::{Deadline, Right, Wish};
use super::net::Message;
use super::node::{Server, Waiting};
use super::{Do, Happening, MS, Time, World, duration, micros, timing};
use crate::hole::Planted;

impl World {
    /// What the core wants is shown to the keeper; a change wakes it.
    pub(super) fn publish(&mut self, n: usize) {
        let nasd = &mut self.nodes[n].nasd;
        let wish = nasd.machine.wants_right();
        let wish = wish.map(|epoch| Wish { epoch, sole: nasd.machine.sole_current() });
        if let Some(wish) = wish
            && matches!(nasd.machine.stage().name(), "serving" | "preparing")
        {
            nasd.keeper.go_on_in(wish.epoch);
        }
        if nasd.wish != wish {
            nasd.wish = wish;
            if wish.is_none() {
                nasd.granted = None;
            }
            self.nasd_later(n, 0, Do::Beat { regular: false });
        }
    }

    /// A beat is due: facts for the peer, and a request for the right if there is a wish.
    pub(super) fn beat(&mut self, n: usize, regular: bool) {
        if regular {
            let next = self.nodes[n].clock.true_span(micros(timing().heartbeat));
            self.nasd_later(n, next, Do::Beat { regular: true });
        }
        let wish = self.nodes[n].nasd.wish;
        match wish {
            Some(wish) if wish.sole => {
                let requested = self.local(n);
                self.granted(n, Grant::SoleCurrent, wish.epoch, requested, timing().ttl);
                self.send_beat(n, None, false);
            }
            Some(wish) => self.send_beat(n, Some((wish.epoch, timing().ttl)), false),
            None => self.send_beat(n, None, false),
        }
    }

    pub(super) fn send_beat(&mut self, n: usize, right: Option<(u64, Duration)>, upgrade: bool) {
        let requested = self.local(n);
        let ask = self.new_ask(n, Waiting::Beat { right, requested, upgrade });
        self.nasd_later(n, 300 * MS, Do::GiveUp(ask));
        let beat = self.own_beat(n);
        self.send(n, Message::Beat { ask, beat, right });
    }

    fn own_beat(&self, n: usize) -> PeerBeat {
        let (node, side) = (&self.nodes[n], &self.pair.sides[n]);
        let gate = match node.gate.deadline {
            Deadline::Never => GateReport::Open { left: None },
            Deadline::At(end) if self.gate_open(n) => {
                GateReport::Open { left: Some(duration(end - self.local(n))) }
            }
            Deadline::At(_) => GateReport::Shut,
        };
        PeerBeat {
            epoch: node.nasd.machine.record().map_or(0, |r| r.epoch),
            gate,
            role: if side.primary { Role::Primary } else { Role::Secondary },
            frozen: side.frozen,
            violations: Some(Vec::new()),
            coordinator: Some(self.coordinator.answers(n)),
            taking: node.nasd.machine.stage().name() == "taking-over",
            unfit: self.weather.unfit[n].map(|a| Unfit::new(a, "unfit")),
        }
    }

    /// The peer's beat: an answer to its request, and news for the core.
    pub(super) fn hear_beat(
        &mut self,
        n: usize,
        ask: u64,
        beat: PeerBeat,
        right: Option<(u64, Duration)>,
    ) {
        let now = self.machine_now(n);
        let machine = &mut self.nodes[n].nasd.machine;
        machine.heard_epoch(beat.epoch);
        let consents = right.is_some_and(|(epoch, life)| machine.consent(now, epoch, life));
        let own = self.own_beat(n);
        self.send(n, Message::BeatReply { ask, beat: own, consents });
        self.feed(n, Event::Peer(beat));
    }

    /// The answer to an own beat.
    pub(super) fn beat_answered(&mut self, n: usize, ask: u64, beat: PeerBeat, consents: bool) {
        self.feed(n, Event::Peer(beat));
        let Some(Waiting::Beat { right, requested, .. }) = self.nodes[n].nasd.waiting.remove(&ask)
        else {
            return; // too late
        };
        match right {
            Some((epoch, life)) if consents => {
                self.granted(n, Grant::Peer, epoch, requested, life);
            }
            Some((epoch, _)) => self.ask_record(n, epoch),
            None => {}
        }
    }

    /// Without the peer's consent: a fresh read of the record.
    pub(super) fn ask_record(&mut self, n: usize, epoch: u64) {
        if self.nodes[n].nasd.wish.is_some_and(|w| w.epoch == epoch && !w.sole) {
            let requested = self.local(n);
            self.ask_coordinator(n, Ask::Read, Waiting::RightRead { epoch, requested });
        }
    }

    /// A grant becomes a deadline; writing it comes a moment (or a pause of the process) later.
    pub(super) fn granted(
        &mut self,
        n: usize,
        grant: Grant,
        epoch: u64,
        requested: Time,
        life: Duration,
    ) {
        let life = match (grant, until(grant, &timing())) {
            (_, None) => None,
            (Grant::Peer, Some(_)) => Some(micros(life)), // an upgrade asks for more
            (_, Some(life)) => Some(micros(life)),
        };
        let deadline = life.map_or(Deadline::Never, |life| Deadline::At(requested + life));
        let delay = self.delay(20, 3 * MS);
        self.nasd_later(n, delay, Do::Refresh(Right { epoch, deadline, life }));
    }

    /// The grant is written into the gate, whatever the time is by now.
    pub(super) fn refresh(&mut self, n: usize, mut right: Right) {
        if self.planted == Some(Planted::C3)
            && let Some(life) = right.life
        {
            right.deadline = Deadline::At(self.local(n) + life);
        }
        let node = &mut self.nodes[n];
        let was = node.gate.deadline;
        let written = node.nasd.keeper.refresh(&mut node.gate, right);
        node.nasd.granted = node.nasd.wish.is_some().then_some(right);
        if written && (was == Deadline::Never) != (right.deadline == Deadline::Never) {
            self.note(n, || format!("gate: deadline {:?}", right.deadline));
        }
        // The address went with the gate's end; a refreshed right brings it back only while armed.
    }

    // ---- opening -----------------------------------------------------------------------------

    /// The opening step waits for a right of its epoch that has not ended.
    pub(super) fn await_right(&mut self, n: usize, run: u64, epoch: u64, until: Time) {
        let local = self.local(n);
        let granted = self.nodes[n].nasd.granted;
        let fresh = granted.filter(|r| r.epoch == epoch && r.deadline.allows(local));
        if let Some(right) = fresh {
            let ticket = self.nodes[n].nasd.keeper.shuts;
            let delay = self.delay(MS, 10 * MS);
            self.nasd_later(n, delay, Do::Open { run, right, ticket });
        } else if self.now >= until {
            let error =
                StepError::Refused { step: Step::OpenGate.name(), reason: "no right".into() };
            let life = self.nodes[n].nasd.life;
            self.ran(n, life, run, Err(error));
        } else {
            self.nasd_later(n, 20 * MS, Do::AwaitRight { run, epoch, until });
        }
    }

    /// Address and gate.
    pub(super) fn open(&mut self, n: usize, run: u64, mut right: Right, ticket: u64) {
        if self.planted == Some(Planted::C3)
            && let Some(life) = right.life
        {
            right.deadline = Deadline::At(self.local(n) + life);
        }
        // S7: nobody is let in to a server whose grace ran down unseen.
        let checks = self.planted != Some(Planted::Core(Hole::C7));
        let late = |s: &Server| !s.opened && !s.reclaimed && self.now >= s.grace_until;
        let late = checks && self.nodes[n].server.as_ref().is_some_and(late);
        let node = &mut self.nodes[n];
        let opened = !late && node.nasd.keeper.open(&mut node.gate, right, ticket);
        let life = node.nasd.life;
        if opened {
            node.addressed = true;
            self.opened_gate(n);
            self.ran(n, life, run, Ok(None));
        } else {
            let reason = "the service was closed meanwhile".into();
            let error = StepError::Refused { step: Step::OpenGate.name(), reason };
            self.ran(n, life, run, Err(error));
        }
    }

    fn opened_gate(&mut self, n: usize) {
        self.note(n, || "gate: OPEN".into());
        let open = self.gate_open(n);
        if let Some(server) = self.nodes[n].server.as_mut().filter(|_| open) {
            server.opened = true;
        }
        crate::properties::gate_opened(self, n);
    }

    pub(super) fn shut_gate(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.nasd.keeper.close(&mut node.gate);
    }

    // ---- wire --------------------------------------------------------------------------------

    /// A message is on its way, or lost.
    pub(super) fn send(&mut self, from: usize, message: Message) {
        let lost = !self.net.open[from] || self.random.percent(self.net.loss);
        if !message.is_beat() {
            let what = message.name();
            self.note(from, || format!("  {what} {}", if lost { "is lost" } else { "sent" }));
        }
        if lost {
            return;
        }
        let delay = if self.calm { 200 } else { self.random.between(100, self.net.delay) };
        self.later(delay, Happening::Arrive(from, Box::new(message)));
    }

    /// A message is in the receiver's socket.
    pub(super) fn arrive(&mut self, from: usize, message: Box<Message>) {
        if self.net.open[from] && self.nodes[1 - from].up {
            self.nasd_later(1 - from, 0, Do::Hear(message));
        }
    }
}
