//! Lives of a nasd and boots of a node: start, kill, stop, crash, boot.
//!
//! Owns what each of them leaves behind (S9).

use std::collections::BTreeMap;

use nasd::core::machine::{Event, Machine};
use nasd::core::peer::Unfit;
use nasd::core::record::NodeName;
use nasd::core::view::Leftovers;

use super::coordinator::Ask;
use super::gate::{Gate, Keeper};
use super::node::{Clock, Nasd, Node, Process, Waiting};
use super::{Do, Happening, InKernel, MS, Time, World, name_of, timing};
use crate::hole::Planted;

fn machine(n: usize, planted: Option<Planted>, fence: bool) -> Machine {
    let (me, peer) = (NodeName::from(name_of(n)), NodeName::from(name_of(1 - n)));
    let machine = Machine::new(me, peer, n == 0, timing());
    let machine = if fence { machine.with_power_fence() } else { machine };
    match planted {
        Some(planted) => machine.with_holes(planted.holes()),
        None => machine,
    }
}

/// A node with power and without a nasd.
pub(super) fn new_node(n: usize, planted: Option<Planted>, fence: bool) -> Node {
    Node {
        name: NodeName::from(name_of(n)),
        clock: Clock { ppm: 0, offset: 1000 * super::S * (n as Time + 1) },
        boot: 1,
        up: true,
        nasd: Nasd {
            life: 0,
            process: Process::Dead,
            machine: machine(n, planted, fence),
            started: 0,
            keeper: Keeper::default(),
            wish: None,
            granted: None,
            waiting: BTreeMap::new(),
            hand_over: None,
        },
        gate: Gate::SHUT,
        mounted: false,
        spoiled: false,
        server: None,
        addressed: false,
        marked: false,
        last_seen: None,
        helper: None,
        helper_since: None,
        promoting: None,
        volume_busy: None,
    }
}

impl World {
    /// A new life of nasd: it knows nothing, and looks around first.
    pub(super) fn start_nasd(&mut self, n: usize) {
        let local = self.local(n);
        let machine = machine(n, self.planted, self.fence);
        let nasd = &mut self.nodes[n].nasd;
        nasd.life += 1;
        nasd.process = Process::Running;
        nasd.machine = machine;
        nasd.started = local;
        nasd.keeper = Keeper::default();
        (nasd.wish, nasd.granted, nasd.hand_over) = (None, None, None);
        nasd.waiting.clear();
        self.watch.new_life(n);
        self.note(n, || "nasd starts".into());
        let view = self.pair.view(n);
        let delay = self.delay(MS, 20 * MS);
        self.feed_later(n, delay, Event::Drbd(view));
        let delay = self.delay(20 * MS, 200 * MS);
        self.nasd_later(n, delay, Do::LookedAround);
        self.nasd_later(n, delay, Do::Watched);
        self.nasd_later(n, delay, Do::Tick);
        self.nasd_later(n, delay, Do::Beat { regular: true });
    }

    pub(super) fn looked_around(&mut self, n: usize) {
        let node = &self.nodes[n];
        let left = Leftovers {
            mounted: node.mounted,
            all_mounted: node.mounted,
            spoiled: node.spoiled,
            serving_threads: node.server.is_some(),
            addressed: node.addressed,
            marked: node.marked,
        };
        if let Some(ailment) = self.weather.unfit[n] {
            let unfit = Unfit::new(ailment, "unfit");
            self.feed_later(n, 500 * MS, Event::Health(Some(unfit)));
        }
        self.feed(n, Event::Started(left));
    }

    /// SIGKILL; the service manager starts it again after that time.
    pub(super) fn kill_nasd(&mut self, n: usize, again: Time) {
        if !self.nodes[n].up || self.nodes[n].nasd.process == Process::Dead {
            return;
        }
        if self.blocked_on_volume(n) {
            return; // H7: a process in D cannot be killed
        }
        self.note(n, || "nasd is killed".into());
        self.nodes[n].nasd.process = Process::Dead;
        self.nodes[n].nasd.life += 1;
        self.kernel_later(n, again, InKernel::StartNasd);
    }

    /// SIGSTOP for that time.
    pub(super) fn stop_nasd(&mut self, n: usize, for_: Time) {
        if self.nodes[n].up && self.nodes[n].nasd.process == Process::Running {
            self.note(n, || format!("nasd is stopped for {} ms", for_ / MS));
            self.nodes[n].nasd.process = Process::Stopped(self.now + for_);
        }
    }

    /// Power is gone for that time.
    pub(super) fn crash(&mut self, n: usize, boot_after: Time) {
        if !self.nodes[n].up {
            return;
        }
        self.note(n, || "POWER LOST".into());
        self.pair.crash(n);
        let node = &mut self.nodes[n];
        node.up = false;
        node.boot += 1;
        node.nasd.life += 1;
        node.nasd.process = Process::Dead;
        node.gate = Gate::SHUT;
        (node.mounted, node.addressed, node.server) = (false, false, None);
        node.spoiled = false;
        (node.helper, node.promoting, node.volume_busy) = (None, None, None);
        self.watch.data_changed = true;
        self.kernel_later(n, boot_after, InKernel::Boot);
    }

    pub(super) fn boot(&mut self, n: usize) {
        self.note(n, || "boots".into());
        self.nodes[n].up = true;
        self.pair.boot(n);
        self.watch.data_changed = true;
        let delay = self.delay(100 * MS, 2000 * MS);
        self.kernel_later(n, delay, InKernel::StartNasd);
    }

    /// An upgrade: a long right first, then nasd ends (S9).
    pub(super) fn begin_upgrade(&mut self, n: usize) {
        let life = timing().long_ttl;
        if !self.nasd_runs(n) {
            return;
        }
        self.note(n, || "nasd is asked to end (upgrade)".into());
        let wish = self.nodes[n].nasd.wish;
        if let Some(wish) = wish.filter(|w| !w.sole) {
            self.send_beat(n, Some((wish.epoch, life)), true);
        }
        let patience = self.delay(400 * MS, 600 * MS);
        self.nasd_later(n, patience, Do::EndForUpgrade);
    }

    pub(super) fn end_for_upgrade(&mut self, n: usize) {
        let again = self.delay(200 * MS, 3000 * MS);
        self.kill_nasd(n, again);
    }

    // ---- questions to the coordinator --------------------------------------------------------

    /// Sends a question; the answer comes, or the asker gives up.
    pub(super) fn ask_coordinator(&mut self, n: usize, what: Ask, waiting: Waiting) {
        let ask = self.new_ask(n, waiting);
        let reaches = self.coordinator.answers(n);
        let patience = if reaches { self.delay(1000 * MS, 1500 * MS) } else { 500 * MS };
        self.nasd_later(n, patience, Do::GiveUp(ask));
        if !reaches {
            return;
        }
        let stuck = self.coordinator.sticky && !self.calm && self.random.percent(40);
        let cas = matches!(what, Ask::Cas { .. });
        let delay = if cas && std::mem::take(&mut self.coordinator.land_late) {
            patience + 200 * MS
        } else if stuck && cas {
            self.random.between(1000 * MS, 8000 * MS)
        } else {
            self.delay(2 * MS, 30 * MS)
        };
        let life = self.nodes[n].nasd.life;
        self.later(delay, Happening::AtCoordinator { n, life, ask, what: Box::new(what) });
    }

    pub(super) fn new_ask(&mut self, n: usize, waiting: Waiting) -> u64 {
        self.number += 1;
        let ask = self.number;
        self.nodes[n].nasd.waiting.insert(ask, waiting);
        ask
    }

    /// A question arrives; it is served even if its asker has died since.
    pub(super) fn at_coordinator(&mut self, n: usize, life: u32, ask: u64, what: Ask) {
        if !self.coordinator.up {
            return;
        }
        let before = self.coordinator.stored.as_ref().map(|v| v.revision);
        let answer = self.coordinator.take(what);
        if self.coordinator.stored.as_ref().map(|v| v.revision) != before {
            self.committed(n);
        }
        let unlucky = self.coordinator.sticky && !self.calm && self.random.percent(20);
        let cas = matches!(answer, super::coordinator::Answer::Cas(_));
        let lost = unlucky || cas && std::mem::take(&mut self.coordinator.lose_answer);
        if self.coordinator.reach[n] && !lost {
            let delay = self.delay(2 * MS, 30 * MS);
            self.later(delay, Happening::Nasd(n, life, Do::Answered(ask, Box::new(answer))));
        }
    }

    fn committed(&mut self, by: usize) {
        if let Some(stored) = self.coordinator.stored.clone() {
            let line = super::record_line(&stored.record);
            self.say(|| format!("COMMITTED #{} {line} (by {})", stored.revision, name_of(by)));
        }
        self.watch.record_changed = true;
        crate::properties::committed(self);
        for n in 0..2 {
            if self.coordinator.answers(n) && self.nodes[n].nasd.process != Process::Dead {
                let delay = self.delay(2 * MS, 50 * MS);
                self.nasd_later(n, delay, Do::Watched);
            }
        }
    }
}
