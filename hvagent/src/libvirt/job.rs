//! A guest's job and what to do about it when storage is about to move (S11).
//!
//! Nothing can hold a switchover back once the pre-copy has caught up, so a migration is judged by
//! when its switchover can come at the **earliest**: as soon as the memory that is left has been
//! sent, if the guest wrote nothing more. The window that must stay free of it begins when the storage
//! stalls and ends with grace: the destination's opens and locks wait for that.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::state::DomainState;
use super::value::{self, Params};

/// The slowest a migration can be made, in MiB/s: libvirt counts in whole ones.
const SLOWEST: u64 = 1;
const MIB: u64 = 1 << 20;
/// Pages are of that size where libvirt does not tell.
const PAGE: u64 = 4096;

/// QEMU counts its looks at the changed memory: one at the beginning, the next after the first round.
const MEASURED: u64 = 2;

/// What a job is for (`VIR_DOMAIN_JOB_OPERATION_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// The guest is being started.
    Start,
    /// It is being saved to a file, or restored.
    SaveOrRestore,
    /// It arrives here.
    MigrationIn,
    /// It leaves here.
    MigrationOut,
    /// A snapshot is taken, reverted to or removed.
    Snapshot,
    /// Its memory is written to a file.
    Dump,
    /// Its disks are being saved.
    Backup,
    /// libvirt does not tell (older than 3.3) or tells something new.
    Unknown,
}

/// What libvirt knows of a running job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What it is for.
    pub operation: Operation,
    /// How long it has run.
    pub elapsed: Duration,
    /// Something of the guest has been sent, or is known to have to be. Until the destination is prepared
    /// (libvirt's hook runs there meanwhile) all numbers are zero.
    pub begun: bool,
    /// Bytes left to be sent in the current round, memory and disks.
    pub remaining: Option<u64>,
    /// Bytes of memory sent per second, measured.
    pub speed: Option<u64>,
    /// Bytes of memory that the guest changes per second.
    pub dirty: Option<u64>,
    /// Looks at the guest's changed memory so far: one in the first round.
    pub iteration: Option<u64>,
    /// The destination has drawn pages: the switchover is over.
    pub post_copy: bool,
}

impl Job {
    /// From what `GetJobStats` returns; `None` when no job runs (or it has ended).
    pub(crate) fn of(kind: i32, params: &Params) -> Option<Self> {
        // 1 bounded, 2 unbounded; 3 to 5 are a job's end, 0 is none.
        if !matches!(kind, 1 | 2) {
            return None;
        }
        let number = |key| value::number(params, key);
        let page = number("memory_page_size").unwrap_or(PAGE);
        let signs = ["data_total", "memory_total", "memory_bps", "memory_iteration"];
        Some(Self {
            operation: Operation::of(number("operation")),
            elapsed: Duration::from_millis(number("time_elapsed").unwrap_or(0)),
            begun: signs.iter().any(|key| number(key).is_some_and(|n| n > 0)),
            remaining: number("data_remaining").or_else(|| number("memory_remaining")),
            speed: number("memory_bps").filter(|speed| *speed > 0),
            dirty: number("memory_dirty_rate").map(|pages| pages.saturating_mul(page)),
            iteration: number("memory_iteration"),
            post_copy: number("memory_postcopy_requests").is_some_and(|requests| requests > 0),
        })
    }
}

impl Job {
    /// A migration to here: only its source has numbers.
    #[must_use]
    pub(crate) const fn arriving() -> Self {
        Self {
            operation: Operation::MigrationIn,
            elapsed: Duration::ZERO,
            begun: false,
            remaining: None,
            speed: None,
            dirty: None,
            iteration: None,
            post_copy: false,
        }
    }

    /// How fast the guest changes its memory, once that has been measured: in the first round libvirt
    /// tells zero, and nothing is known of what the next round will find.
    fn measured_dirty(&self) -> Option<u64> {
        self.dirty.filter(|_| self.iteration.is_some_and(|round| round >= MEASURED))
    }
}

impl Operation {
    fn of(number: Option<u64>) -> Self {
        match number {
            Some(1) => Self::Start,
            Some(2 | 3) => Self::SaveOrRestore,
            Some(4) => Self::MigrationIn,
            Some(5) => Self::MigrationOut,
            Some(6 | 7 | 10) => Self::Snapshot,
            Some(8) => Self::Dump,
            Some(9) => Self::Backup,
            _ => Self::Unknown,
        }
    }
}

/// When no switchover may come, seen from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Until the storage stalls at the earliest.
    pub starts_in: Duration,
    /// How long it may stall.
    pub outage: Duration,
    /// How long new opens may wait after that.
    pub grace: Duration,
}

impl Window {
    fn ends_in(&self) -> Duration {
        self.starts_in.saturating_add(self.outage).saturating_add(self.grace)
    }
}

/// How careful to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caution {
    /// Kept free before and after the window.
    pub margin: Duration,
    /// The measured speed may be off by so many hundredths, either way.
    pub speed_percent: u32,
}

impl Default for Caution {
    /// Two seconds, and half as fast or as slow again.
    fn default() -> Self {
        Self { margin: Duration::from_secs(2), speed_percent: 50 }
    }
}

/// What to do about a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It will be over before the window: wait for it, and be busy until then.
    LetFinish {
        /// At the latest.
        within: Duration,
    },
    /// It cannot switch over before the window has ended, or has no switchover (any more).
    LetRun,
    /// Slow it down so that it cannot switch over before the window has ended, and allow it a
    /// downtime of 1 ms only. Write the old limits down first and restore them after.
    SlowDown {
        /// `MigrateSetMaxSpeed`, in MiB/s.
        mib_per_second: u64,
        /// It cannot switch over before that.
        holds_for: Duration,
    },
    /// Abort it, and start it again after the window. While the window is still far, ask for its
    /// statistics once more first: they may only not have been measured yet.
    AbortAndRetry,
    /// Its switchover is under way: too late for anything. The storage must not move before it is over.
    Wait,
    /// The other host decides: it has the numbers.
    AtSource,
}

/// Judges a job. `state` is the guest's at the same time, `limit` the speed in MiB/s that somebody has set for it.
#[must_use]
pub fn classify(
    job: &Job,
    state: DomainState,
    limit: Option<u64>,
    window: &Window,
    caution: &Caution,
) -> Verdict {
    match job.operation {
        Operation::MigrationIn => return Verdict::AtSource,
        Operation::MigrationOut => {}
        // What libvirt does not name may be a migration (S12); the others do not switch over.
        Operation::Unknown => return unknown(state),
        _ => return Verdict::LetRun,
    }
    if job.post_copy || state.is_post_copy() {
        return Verdict::LetRun;
    }
    if state.is_switching_over() {
        return Verdict::Wait;
    }
    pre_copy(job, limit, window, caution)
}

const fn unknown(state: DomainState) -> Verdict {
    match state {
        _ if state.is_post_copy() => Verdict::LetRun,
        _ => Verdict::Wait,
    }
}

fn pre_copy(job: &Job, limit: Option<u64>, window: &Window, caution: &Caution) -> Verdict {
    let Some((remaining, speed)) = job.remaining.zip(job.speed) else {
        // In its first second, when nothing is measured yet, or something is wrong with it.
        return Verdict::AbortAndRetry;
    };
    let latest = latest_end(remaining, speed, job.measured_dirty(), caution);
    if let Some(within) =
        latest.filter(|end| end.saturating_add(caution.margin) <= window.starts_in)
    {
        return Verdict::LetFinish { within };
    }
    let after = window.ends_in().saturating_add(caution.margin);
    // One that has not come near its limit yet may do so any moment.
    let fastest = faster(speed, caution).max(limit.unwrap_or(0).saturating_mul(MIB));
    if time(remaining, fastest) >= after {
        return Verdict::LetRun;
    }
    hold(remaining, after)
}

/// The speed at which what is left takes the whole window; abort if even the slowest is too fast.
fn hold(remaining: u64, after: Duration) -> Verdict {
    let seconds = after.as_secs().saturating_add(1);
    let mib_per_second = remaining / MIB / seconds;
    if mib_per_second < SLOWEST {
        return Verdict::AbortAndRetry;
    }
    let holds_for = time(remaining, mib_per_second.saturating_mul(MIB));
    Verdict::SlowDown { mib_per_second, holds_for }
}

/// When a pre-copy is over at the latest: if the speed falls and the guest goes on writing as it
/// does. `None`: it may never be.
fn latest_end(
    remaining: u64,
    speed: u64,
    dirty: Option<u64>,
    caution: &Caution,
) -> Option<Duration> {
    let slow = percent(speed, 100_u64.saturating_sub(caution.speed_percent.into()));
    let gain = slow.checked_sub(dirty?).filter(|gain| *gain > 0)?;
    Some(time(remaining, gain))
}

fn faster(speed: u64, caution: &Caution) -> u64 {
    percent(speed, 100_u64.saturating_add(caution.speed_percent.into()))
}

fn percent(value: u64, percent: u64) -> u64 {
    let product = u128::from(value) * u128::from(percent) / 100;
    u64::try_from(product).unwrap_or(u64::MAX)
}

/// How long so many bytes take.
fn time(bytes: u64, speed: u64) -> Duration {
    let millis = u128::from(bytes) * 1000 / u128::from(speed.max(1));
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
