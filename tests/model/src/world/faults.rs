//! Faults strike, and are mended.
//!
//! Owns how a fault of a schedule changes the world; what follows from it is the world's affair.

use nasd::core::machine::Event;
use nasd::core::peer::{Ailment, Unfit};

use super::data::VOLUMES;
use super::node::Process;
use super::{MS, World};
use crate::schedule::Fault;

impl World {
    pub(super) fn strike(&mut self, fault: Fault) {
        self.say(|| format!("---- {fault:?}"));
        match fault {
            Fault::Crash(n, for_) => self.crash(n, for_),
            Fault::KillNasd(n, for_) => self.kill_nasd(n, for_),
            Fault::StopNasd(n, for_) => self.stop_nasd(n, for_),
            Fault::Upgrade(n) => self.begin_upgrade(n),
            Fault::Wire(n, open) => self.net.open[n] = open,
            Fault::Lossy(loss, delay) => (self.net.loss, self.net.delay) = (loss, delay),
            Fault::Replication(open) => self.set_replication(open),
            Fault::Reach(n, reach) => self.coordinator.reach[n] = reach,
            Fault::Coordinator(up) => self.coordinator.up = up,
            Fault::Sticky(on) => self.coordinator.sticky = on,
            Fault::LoseAnswer => self.coordinator.lose_answer = true,
            Fault::LandLate => self.coordinator.land_late = true,
            Fault::BackUp => self.coordinator.back_up(),
            Fault::Restore => self.restore(),
            Fault::DiskFails(n, v) => self.disk_fails(n, v),
            Fault::Slow(n, percent) => self.weather.slow[n] = percent,
            Fault::Failing(n, percent) => self.weather.failing[n] = percent,
            Fault::LateAnswers(n, percent) => self.weather.late_answers[n] = percent,
            Fault::NoMount(n, on) => self.weather.no_mount[n] = on.then_some(self.now),
            Fault::HelperBroken(n, on) => self.weather.helper_broken[n] = on,
            Fault::HelperLate(n, by) => self.weather.helper_late[n] = by,
            Fault::Disconnect(n) if self.nodes[n].promoting.is_some() => {} // the kernel is busy
            Fault::Disconnect(n) => {
                self.pair.disconnect_gracefully(n);
            }
            Fault::Unfit(n, ailment) => self.health(n, ailment),
            Fault::Spoil(n) => self.spoil(n),
            Fault::Switchover => self.switchover(),
            Fault::Mend => self.mend(),
        }
        self.watch.data_changed = true;
    }

    /// Only a redundant pair loses a disk: the last good replica's loss is beyond the promise.
    fn disk_fails(&mut self, n: usize, v: usize) {
        let both = self.coordinator.record().is_some_and(|r| r.current.len() == 2);
        if both && self.pair.redundant() {
            self.pair.disk_fails(n, v);
        }
    }

    /// Somebody restores the coordinator's backup. A node that was cut off since before the backup
    /// cannot know better; the limit is stated to the operator, so it is not asked for here.
    fn restore(&mut self) {
        let epoch = |v: &Option<nasd::core::machine::Versioned>| v.as_ref().map(|v| v.record.epoch);
        let newest = epoch(&self.coordinator.stored);
        if self.nodes.iter().all(|node| epoch(&node.last_seen) == newest) {
            self.coordinator.restore();
            self.watch.record_changed = true;
        }
    }

    fn health(&mut self, n: usize, unfit: Option<Ailment>) {
        self.weather.unfit[n] = unfit;
        if self.nodes[n].nasd.process != Process::Dead {
            self.feed_later(n, MS, Event::Health(unfit.map(|a| Unfit::new(a, "unfit"))));
        }
    }

    /// The file system of a serving node meets an error; its nasd, if it runs, shuts the gate at once.
    fn spoil(&mut self, n: usize) {
        if self.gate_open(n) && self.nodes[n].nasd.process == Process::Running {
            self.nodes[n].spoiled = true;
            self.shut_gate(n);
            self.feed_later(n, MS, Event::Spoiled("an error".into()));
        }
    }

    /// An operator moves the service away from whoever serves.
    fn switchover(&mut self) {
        let serving = (0..2).find(|n| self.machine(*n).stage().name() == "serving");
        if let Some(n) = serving.filter(|n| self.nodes[*n].up) {
            let (to, timeout) = (self.peer_name(n), std::time::Duration::from_secs(10));
            self.feed_later(n, MS, Event::Switchover { to, timeout });
        }
    }

    /// All that is broken is repaired; nothing else is done for the nodes.
    fn mend(&mut self) {
        self.net = super::net::Net::default();
        self.weather = super::Weather::default();
        self.coordinator.up = true;
        self.coordinator.sticky = false;
        (self.coordinator.lose_answer, self.coordinator.land_late) = (false, false);
        self.coordinator.reach = [true; 2];
        self.set_replication(true);
        for n in 0..2 {
            for v in 0..VOLUMES {
                self.pair.attach(n, v);
            }
            self.health(n, None);
        }
    }
}
