//! What to do about each migration while the storage below its guest is about to move (S11).
//!
//! Pure. [`crate::libvirt::job`] judges a migration; here the judgement becomes a limit to set and a
//! reason to keep the storage where it is.
//!
//! **Nothing is ever aborted.** A migration that the agent ended would have to be begun again by it, and
//! for that it would need the destination's URI, the flags and the parameters. Nothing tells them: the
//! job's statistics do not carry them, libvirt runs its hook at the destination only, and that sees the
//! guest's XML and no more. Whoever began the migration would see it fail. So a migration that cannot be
//! slowed down enough is waited for (it is nearly over, or it would not be too quick), and the storage
//! is not ready until then. Post-copy is left alone altogether.

use std::time::Duration;

use crate::libvirt::job::{self, Caution, Job, Verdict, Window};
use crate::libvirt::state::DomainState;

const MIB: u64 = 1 << 20;
/// The slowest limit libvirt knows, in MiB/s.
const SLOWEST: u64 = 1;
/// A guest that changes its memory at twice the slowest speed never catches up with it.
const NEVER: u64 = 2 * SLOWEST * MIB;
/// Ask again then, where nothing better is known.
const SOON: Duration = Duration::from_secs(1);

/// Who holds back a migration that arrives here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// The agent at its source, which has its statistics. Right where every hypervisor of the share
    /// runs an agent: nasd then has the source's own word.
    SourceDecides,
    /// Nobody: storage does not move while one arrives. For shares with a hypervisor without an agent.
    Blocks,
}

/// How a migration is to be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// When no switchover may come.
    pub window: Window,
    /// How careful to be.
    pub caution: Caution,
    /// Who decides on those that arrive.
    pub incoming: Incoming,
}

/// Why the storage must not move yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// In words, without the guest's name.
    pub why: &'static str,
    /// When it may be different.
    pub retry_after: Duration,
    /// Nothing was sent yet: where the destination's hook holds the arrival back, nothing speaks against the
    /// storage's move.
    pub unbegun: bool,
}

/// What to do about one guest's job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Set this limit in MiB/s, and a downtime of 1 ms.
    pub limit: Option<u64>,
    /// Until then the storage is not ready.
    pub block: Option<Block>,
}

const LET_RUN: Decision = Decision { limit: None, block: None };

/// Decides on one guest. `job` is `Err` when it could not be asked for; `limited` is the limit in
/// MiB/s that the agent has set for it.
#[must_use]
pub fn decide(
    job: Result<Option<&Job>, ()>,
    state: DomainState,
    limited: Option<u64>,
    policy: &Policy,
) -> Decision {
    let Ok(job) = job else {
        return blocked("libvirt does not tell whether it migrates", SOON);
    };
    match job {
        Some(job) if holds(job, state, limited, policy) => LET_RUN,
        Some(job) => {
            let verdict = job::classify(job, state, limited, &policy.window, &policy.caution);
            judged(verdict, job, policy)
        }
        None if state.is_switching_over() => blocked("its switchover is under way", SOON),
        None if state == DomainState::Unknown => blocked("its state is not known", SOON),
        None => LET_RUN,
    }
}

/// Whether the limit that is set keeps a migration from its end until the window is over.
fn holds(job: &Job, state: DomainState, limited: Option<u64>, policy: &Policy) -> bool {
    let Some((limit, remaining)) = limited.zip(job.remaining) else { return false };
    let seconds = remaining / limit.saturating_mul(MIB).max(1);
    let out = job.operation == job::Operation::MigrationOut;
    out && !state.is_switching_over() && Duration::from_secs(seconds) >= end(policy)
}

/// Until the window is over, with the margin.
fn end(policy: &Policy) -> Duration {
    let Window { starts_in, outage, grace } = policy.window;
    let parts = [outage, grace, policy.caution.margin];
    parts.into_iter().fold(starts_in, Duration::saturating_add)
}

fn judged(verdict: Verdict, job: &Job, policy: &Policy) -> Decision {
    match verdict {
        Verdict::LetRun => LET_RUN,
        Verdict::LetFinish { within } => blocked("its migration ends soon", within.max(SOON)),
        Verdict::SlowDown { mib_per_second, .. } => {
            slowed(mib_per_second, "its migration is being slowed down", SOON)
        }
        Verdict::AbortAndRetry => too_quick(job),
        Verdict::Wait => blocked("its switchover may be under way", SOON),
        Verdict::AtSource => match policy.incoming {
            Incoming::SourceDecides => LET_RUN,
            Incoming::Blocks => blocked("it arrives here by migration", SOON),
        },
    }
}

/// Even the slowest speed would be over before the window. A guest that changes its memory faster than
/// that cannot catch up with it, and is slowed down all the same: what is left grows, and soon holds.
fn too_quick(job: &Job) -> Decision {
    let measured = job.iteration.is_some_and(|round| round > 1);
    if measured && job.dirty.is_some_and(|dirty| dirty >= NEVER) {
        return slowed(SLOWEST, "its migration is being slowed down to the slowest there is", SOON);
    }
    match job.remaining.zip(job.speed) {
        Some((remaining, speed)) => {
            let left = Duration::from_secs(remaining / speed.max(1));
            blocked("its migration is too near its end to be held back", left.max(SOON))
        }
        None if !job.begun => unbegun(),
        None => blocked("its migration has no numbers yet", SOON),
    }
}

const fn blocked(why: &'static str, retry_after: Duration) -> Decision {
    Decision { limit: None, block: Some(Block { why, retry_after, unbegun: false }) }
}

const fn unbegun() -> Decision {
    let why = "its migration is about to begin";
    Decision { limit: None, block: Some(Block { why, retry_after: SOON, unbegun: true }) }
}

const fn slowed(limit: u64, why: &'static str, retry_after: Duration) -> Decision {
    Decision { limit: Some(limit), block: Some(Block { why, retry_after, unbegun: false }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guests::samples::migration;
    use crate::libvirt::job::Operation;
    use proptest::prelude::*;

    const RUNNING: DomainState = DomainState::Running;

    fn policy() -> Policy {
        let seconds = Duration::from_secs;
        Policy {
            window: Window { starts_in: seconds(10), outage: seconds(5), grace: seconds(15) },
            caution: Caution::default(),
            incoming: Incoming::SourceDecides,
        }
    }

    fn of(
        job: &Job,
        state: DomainState,
        limited: Option<u64>,
    ) -> (Option<u64>, Option<&'static str>) {
        let decision = decide(Ok(Some(job)), state, limited, &policy());
        (decision.limit, decision.block.map(|block| block.why))
    }

    /// The table of S11, as text: what is left (MiB), speed and dirtying (MiB/s), the limit that is
    /// set → the limit to set, and whether the storage waits.
    #[test]
    fn s11_the_table() {
        let table = [
            ("ends in time", (200, 100, 10), None, None, Some("its migration ends soon")),
            ("far from its end", (10_000, 100, 80), None, None, None),
            ("inside", (1000, 100, 60), None, Some(30), Some("its migration is being slowed down")),
            ("inside, held", (1000, 30, 60), Some(30), None, None),
            (
                "held, but not for long any more",
                (500, 30, 60),
                Some(30),
                Some(15),
                Some("its migration is being slowed down"),
            ),
            (
                "far below a limit that would not hold it",
                (432, 1, 0),
                Some(14),
                Some(13),
                Some("its migration is being slowed down"),
            ),
            ("too near", (20, 100, 0), None, None, Some("its migration ends soon")),
            (
                "too near, speed nearly eaten up",
                (30, 100, 60),
                None,
                Some(1),
                Some("its migration is being slowed down to the slowest there is"),
            ),
        ];
        for (name, (left, speed, dirty), limited, limit, why) in table {
            assert_eq!(
                of(&migration(left, speed, dirty), RUNNING, limited),
                (limit, why),
                "{name}"
            );
        }
    }

    #[test]
    fn s11_nothing_is_aborted_and_a_quick_end_is_waited_for() {
        let first = Job { iteration: Some(1), ..migration(20, 10, 0) };
        let decision = decide(Ok(Some(&first)), RUNNING, None, &policy());
        assert_eq!(decision.limit, None);
        assert_eq!(decision.block.unwrap().retry_after, Duration::from_secs(2));
        let unmeasured = Job { speed: None, iteration: None, ..first };
        assert!(of(&unmeasured, RUNNING, None).1.unwrap().contains("no numbers"));
    }

    #[test]
    fn s11_post_copy_is_never_touched_and_a_switchover_waited_for() {
        let job = migration(1000, 100, 60);
        assert_eq!(of(&job, DomainState::of((3, 12)), None), (None, None));
        assert_eq!(of(&job, DomainState::of((3, 13)), None), (None, None));
        let switching = of(&job, DomainState::of((3, 2)), Some(1));
        assert_eq!(switching, (None, Some("its switchover may be under way")));
    }

    #[test]
    fn s12_what_is_not_known_blocks() {
        let unknown = decide(Err(()), RUNNING, None, &policy());
        assert!(unknown.block.is_some() && unknown.limit.is_none());
        assert!(decide(Ok(None), DomainState::Unknown, None, &policy()).block.is_some());
        assert!(decide(Ok(None), DomainState::of((3, 2)), None, &policy()).block.is_some());
        assert_eq!(decide(Ok(None), RUNNING, None, &policy()), LET_RUN);
        assert_eq!(decide(Ok(None), DomainState::of((3, 1)), None, &policy()), LET_RUN);
    }

    #[test]
    fn who_decides_on_what_arrives() {
        let job = Job { operation: Operation::MigrationIn, ..migration(10, 100, 0) };
        assert_eq!(of(&job, RUNNING, None), (None, None));
        let blocks = Policy { incoming: Incoming::Blocks, ..policy() };
        assert!(decide(Ok(Some(&job)), RUNNING, None, &blocks).block.is_some());
    }

    proptest! {
        /// A migration that does not block is far enough from its end, whatever limit is set.
        #[test]
        fn s11_whatever_is_let_run_ends_after_the_window(
            left in 0_u64..200_000, speed in 1_u64..2000, dirty in 0_u64..3000,
            limited in proptest::option::of(1_u64..500),
        ) {
            let job = migration(left, speed, dirty);
            let decision = decide(Ok(Some(&job)), RUNNING, limited, &policy());
            if decision.block.is_none() {
                let fastest = limited.map_or(speed * 3 / 2, |limit| limit.max(speed * 3 / 2).min(
                    if holds(&job, RUNNING, limited, &policy()) { limit } else { u64::MAX }));
                prop_assert!(left / fastest.max(1) >= 31, "{left} {fastest}");
            }
        }

        #[test]
        fn s11_every_limit_set_is_slower_than_what_is_measured(
            left in 0_u64..200_000, speed in 1_u64..2000, dirty in 0_u64..3000,
        ) {
            if let Some(limit) = decide(Ok(Some(&migration(left, speed, dirty))), RUNNING, None, &policy()).limit {
                prop_assert!(limit >= 1 && limit <= speed * 3 / 2 + 1);
            }
        }
    }
}
