//! One NAS node: what its kernel holds, what its disk keeps, and its nasd process.
//!
//! Owns the difference between the three: a killed nasd leaves the kernel as it was, a reboot leaves
//! only the disk.

use std::collections::BTreeMap;
use std::time::Duration;

use nasd::core::machine::{Machine, RunId, Versioned};
use nasd::core::record::{NodeName, Record};
use nasd::core::step::Step;

use super::Time;
use super::gate::{Gate, Keeper, Right, Wish};

/// A clock that runs a little fast or slow.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Parts per million above true time.
    pub ppm: i64,
    /// Shown at true time 0.
    pub offset: Time,
}

impl Clock {
    /// The node's monotonic clock at a true time.
    #[must_use]
    pub fn local(&self, now: Time) -> Time {
        let drift = i128::from(now) * i128::from(self.ppm) / 1_000_000;
        let local = i128::from(self.offset) + i128::from(now) + drift;
        Time::try_from(local).unwrap_or(0)
    }

    /// True time that passes while the node counts that much.
    #[must_use]
    pub fn true_span(&self, local: Time) -> Time {
        let span = i128::from(local) * 1_000_000 / (1_000_000 + i128::from(self.ppm));
        Time::try_from(span).unwrap_or(0)
    }
}

/// The NFS server in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    /// Grace ends by itself then.
    pub grace_until: Time,
    /// Clients may still reclaim, or had nothing to reclaim.
    pub reclaimed: bool,
    /// The gate has been open since it started.
    pub opened: bool,
}

/// What nasd waits for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Waiting {
    /// The core's read.
    Read,
    /// A read that is to carry the right of an epoch; its request's local time.
    RightRead { epoch: u64, requested: Time },
    /// A beat's reply.
    Beat { right: Option<(u64, Duration)>, requested: Time, upgrade: bool },
    /// A compare-and-set for the core.
    Cas { run: RunId, expected: Option<i64>, record: Record, widens: bool },
    /// The same, by the peer.
    Relayed { run: RunId, record: Record },
    /// The core's read, by the peer.
    RelayedRead,
    /// A question for the peer, with the peer's number.
    ForPeer { ask: u64 },
    /// The target's readiness.
    Prepare { run: RunId },
    /// The target's verdict.
    HandOver { run: RunId },
    /// The coordinator's word on the peer.
    Seek { run: RunId },
}

/// How the process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// It runs.
    Running,
    /// SIGSTOP until that time.
    Stopped(Time),
    /// Killed.
    Dead,
}

/// The nasd process.
#[derive(Debug, Clone)]
pub struct Nasd {
    /// How often it was started; what belongs to another life is void.
    pub life: u32,
    /// How it is.
    pub process: Process,
    /// The core.
    pub machine: Machine,
    /// Local time at its start.
    pub started: Time,
    /// The gate's keeper.
    pub keeper: Keeper,
    /// What the core wants of the right.
    pub wish: Option<Wish>,
    /// What was granted.
    pub granted: Option<Right>,
    /// Open questions.
    pub(crate) waiting: BTreeMap<u64, Waiting>,
    /// The old owner waits for the verdict on its hand-over: its number.
    pub hand_over: Option<u64>,
}

/// One node.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its clock.
    pub clock: Clock,
    /// How often it was booted.
    pub boot: u32,
    /// It has power.
    pub up: bool,
    /// Its nasd.
    pub nasd: Nasd,
    /// The gate in its kernel.
    pub gate: Gate,
    /// The volumes are mounted.
    pub mounted: bool,
    /// A file system met an error since it was mounted.
    pub spoiled: bool,
    /// The NFS server's threads.
    pub server: Option<Server>,
    /// The address is there.
    pub addressed: bool,
    /// On disk: a local disk had failed.
    pub marked: bool,
    /// On disk: the last record seen.
    pub last_seen: Option<Versioned>,
    /// The helper runs: its number and the connection count at its start.
    pub helper: Option<(u64, u32)>,
    /// Since when.
    pub helper_since: Option<Time>,
    /// A promotion waits in the kernel for the helper: its answer's number, nasd's life, the epoch.
    pub promoting: Option<(RunId, u32, u64)>,
    /// The step that the volume process has under way.
    pub volume_busy: Option<Step>,
}

impl Node {
    /// The last-seen rule: a lost, older or foreign record is not believed (S12).
    ///
    /// # Errors
    /// Why not.
    pub fn judge_and_keep(&mut self, read: Option<&Versioned>) -> Result<(), String> {
        let seen = self.last_seen.as_ref().map(|v| &v.record);
        match (seen, read.map(|v| &v.record)) {
            (Some(_), None) => return Err("the record is gone".into()),
            (Some(s), Some(r)) if r.epoch < s.epoch || r.generation < s.generation => {
                return Err(format!("epoch {} is older than {} seen here", r.epoch, s.epoch));
            }
            _ => {}
        }
        if let Some(read) = read {
            self.last_seen = Some(read.clone());
        }
        Ok(())
    }
}
