//! The owner's health (and the standby's disk and wire), judged over time.
//!
//! Each watcher looks at one thing on a task of its own and leaves a finding on the [`board`]; one
//! loop judges them all and tells the core when the verdict changes. Keeps S10 (a look that hangs
//! hangs nothing else; each has a deadline) and S12 (what cannot be seen is no verdict). Nothing
//! here decides what follows from a verdict.

pub mod board;
pub mod canary;
pub mod disk;
pub mod errors;
pub mod judge;
pub mod network;
pub mod server;
pub mod sysfs;
pub mod volume;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nasd_net::gate::GateState;
use tokio::task::JoinHandle;

use self::board::{Board, Check, Court};
use super::hands::{Hands, lock};
use super::task::{Command, Handle};
use crate::core::machine::Event;
use crate::core::peer::{Ailment, Unfit};
use crate::core::view::Now;

/// Between two judgements.
const SITTING: Duration = Duration::from_millis(100);
/// A watcher that did not look for so long stood still with its process.
const GAP: Duration = Duration::from_millis(2500);

/// Watches until the service's task is gone.
pub async fn watch(hands: Arc<Hands>, handle: Handle) {
    let board = Arc::new(Board::default());
    let watchers = start(&hands, &board, &handle);
    let mut court = Court::default();
    let mut told = Told::default();
    let mut tick = tokio::time::interval(SITTING);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !handle.is_closed() {
        tick.tick().await;
        let disks =
            hands.drbd.seen().map(|s| s.devices.iter().map(|(v, d)| (*v, d.disk)).collect());
        let disks: Option<Vec<_>> = disks;
        board.post(Check::LocalDisk, disk::disk_state(&hands.drbd_view(), disks.as_deref()));
        let verdict = court.sit(&board, SystemTime::now());
        let unfit: Vec<Check> = court.unfit().into_iter().cloned().collect();
        told.tell(&hands, &handle, unfit, verdict);
    }
    watchers.iter().for_each(JoinHandle::abort);
}

fn start(hands: &Arc<Hands>, board: &Arc<Board>, handle: &Handle) -> Vec<JoinHandle<()>> {
    let facts = disk::SharedFacts::default();
    let both = || (Arc::clone(hands), Arc::clone(board));
    let ((a, b), (c, d), (e, f), (g, h)) = (both(), both(), both(), both());
    let mut all = vec![
        tokio::spawn(disk::watch(a, b, Arc::clone(&facts))),
        tokio::spawn(server::watch(c, d)),
        tokio::spawn(network::watch_carrier(e, f)),
        tokio::spawn(network::watch_neighbours(g, h)),
    ];
    for fs in &hands.service.filesystems {
        let target = hands.service.mountpoint(fs);
        let ((hands, board), volume) = (both(), fs.volume);
        let canary = canary::Canary {
            hands,
            board,
            facts: Arc::clone(&facts),
            volume,
            target: target.clone(),
        };
        all.push(tokio::spawn(canary.watch()));
        let (hands, board) = both();
        let wants_rw = !fs.options.iter().any(|o| o == "ro");
        let handle = handle.clone();
        let file_system = volume::FileSystem { hands, board, handle, volume, target, wants_rw };
        all.push(tokio::spawn(file_system.watch()));
    }
    all
}

/// What the core has been told.
#[derive(Debug, Default)]
struct Told {
    unfit: Vec<Check>,
    verdict: Option<Unfit>,
    behind: bool,
}

/// The worst of what is wrong decides what can still be done in good order.
fn ailment(unfit: &[Check]) -> Ailment {
    if unfit.iter().any(|c| matches!(c, Check::BackingDisk(_))) {
        Ailment::Disk
    } else if unfit.iter().any(|c| matches!(c, Check::Canary(_))) {
        Ailment::Writes
    } else {
        Ailment::Other
    }
}

impl Told {
    /// Tells a change, without waiting; what the full inbox did not take is told the next time.
    fn tell(&mut self, hands: &Hands, handle: &Handle, unfit: Vec<Check>, verdict: Option<String>) {
        if unfit != self.unfit {
            match &verdict {
                Some(why) => tracing::error!(service = hands.service.name, why, "unfit to serve"),
                None => tracing::info!(service = hands.service.name, "fit to serve again"),
            }
            (self.unfit, self.behind) = (unfit, true);
            self.verdict = verdict.clone().map(|why| Unfit::new(ailment(&self.unfit), why));
            hands.beats.tell_health(self.verdict.clone());
            hands.health.send_replace(verdict);
        }
        if self.behind {
            let event = Event::Health(self.verdict.clone());
            self.behind = handle.try_send(Command::Event(event)).is_err();
        }
    }
}

/// The time in which the service is served here without interruption, as one watcher sees it.
#[derive(Debug, Clone, Copy, Default)]
struct Term {
    floor: Option<Now>,
    looked: Now,
}

impl Term {
    /// Before this nothing counts; none while the service is not served here.
    fn serving(&mut self, hands: &Hands, now: Now) -> Option<Now> {
        self.look(now, is_serving(hands))
    }

    fn look(&mut self, now: Now, serving: bool) -> Option<Now> {
        let stood_still = now.saturating_sub(self.looked) > GAP;
        self.looked = now;
        if !serving || stood_still {
            self.floor = None;
        }
        serving.then(|| *self.floor.get_or_insert(now))
    }

    /// What was before now is explained by something else.
    fn raise(&mut self, now: Now) {
        if let Some(floor) = &mut self.floor {
            *floor = (*floor).max(now);
        }
    }
}

/// Served here, and the gate open both ways: clients can be there, and no cut has begun.
fn is_serving(hands: &Hands) -> bool {
    let stage = hands.seen.borrow().stage;
    let open = |state: GateState| state.ingress_open() && state.egress_open();
    matches!(stage, "serving" | "preparing") && lock(&hands.keeper).read().is_ok_and(open)
}

/// DRBD holds I/O back, by fencing or otherwise: what hangs now does so by its will.
fn suspended(hands: &Hands) -> bool {
    hands.drbd_view().frozen || hands.drbd.seen().is_some_and(|s| s.suspended.any())
}

/// Runs looks that may hang, one at a time: while one hangs no other is begun.
#[derive(Debug, Default)]
struct Bounded {
    hanging: Option<JoinHandle<()>>,
}

impl Bounded {
    /// The result, if it comes within the limit.
    async fn run<T: Send + 'static>(
        &mut self,
        limit: Duration,
        look: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if self.hanging.as_ref().is_some_and(|job| !job.is_finished()) {
            return None;
        }
        let (tell, told) = tokio::sync::oneshot::channel();
        let job = tokio::task::spawn_blocking(move || drop(tell.send(look())));
        self.hanging = Some(job);
        match tokio::time::timeout(limit, told).await {
            Ok(found) => found.ok(),
            Err(_) => {
                tracing::debug!(?limit, "a look at this node hangs");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_ends_with_serving_and_with_a_pause() {
        let at = Duration::from_millis;
        let mut term = Term::default();
        assert_eq!(term.look(at(500), false), None);
        assert_eq!(term.look(at(1000), true), Some(at(1000)));
        assert_eq!(term.look(at(2000), true), Some(at(1000)));
        term.raise(at(2500));
        assert_eq!(term.look(at(3000), true), Some(at(2500)));
        assert_eq!(term.look(at(33_000), true), Some(at(33_000)), "the process stood still");
        assert_eq!(term.look(at(34_000), false), None);
        assert_eq!(term.look(at(35_000), true), Some(at(35_000)));
    }

    #[tokio::test]
    async fn s10_a_look_that_hangs_is_alone_and_holds_nobody() {
        let mut bounded = Bounded::default();
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let limit = Duration::from_millis(20);
        let hung = bounded.run(limit, move || wait.recv().is_ok()).await;
        assert_eq!(hung, None);
        assert_eq!(bounded.run(limit, || 1).await, None, "no second thread is spent");
        drop(release);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(bounded.run(limit * 50, || 2).await, Some(2));
    }
}
