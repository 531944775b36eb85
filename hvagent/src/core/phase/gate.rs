//! What may be done to a guest whose disk is on the mount, phase by phase (S11).
//!
//! Three reasons: a switchover needs new opens and locks at the destination; a resume under a lock
//! manager opens its lease anew; a pause of a guest with I/O in flight blocks its QEMU until the
//! storage answers. A delay always names its end, at which the caller asks again.

use super::{Cause, Machine, Now, Phase};

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Begin a live migration, from here or to here.
    Migrate,
    /// Start a guest.
    Start,
    /// Resume a paused guest.
    Resume,
    /// Pause a guest.
    Pause,
    /// Begin a copy, commit or pull of a disk.
    BlockJob,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Permit,
    /// Wait, and ask again at the latest then.
    Delay {
        /// The end of the wait.
        until: Now,
        /// The phase that is the reason.
        because: Phase,
    },
    /// Do not.
    Refuse {
        /// The phase that is the reason.
        because: Phase,
    },
}

/// A verdict without its time.
#[derive(Clone, Copy)]
enum Rule {
    Permit,
    Delay,
    Refuse,
}

impl Machine {
    /// Whether `operation` may begin at `now`. Time that has passed counts although no step has
    /// been made for it.
    #[must_use]
    pub fn gate(&self, now: Now, operation: Operation) -> Verdict {
        let because = self.phase_at(now);
        match rule(because, operation) {
            Rule::Permit => Verdict::Permit,
            Rule::Refuse => Verdict::Refuse { because },
            Rule::Delay => match self.end_of(because) {
                Some(until) if until > now => Verdict::Delay { until, because },
                _ => Verdict::Refuse { because },
            },
        }
    }
}

fn rule(phase: Phase, operation: Operation) -> Rule {
    use Operation::{BlockJob, Migrate, Pause};
    match (phase, operation) {
        (Phase::Normal | Phase::Verified, _) => Rule::Permit,
        // Pausing a guest before the stall is safe, and the only way to keep a lease manager from
        // killing it in a long one.
        (Phase::Announced, Pause) => Rule::Permit,
        (Phase::Moving, Pause) => Rule::Refuse,
        (Phase::Announced | Phase::Moving | Phase::IoBack, BlockJob) => Rule::Refuse,
        (Phase::Announced | Phase::Moving | Phase::IoBack, _) => Rule::Delay,
        (Phase::OpensBack, Migrate | BlockJob) => Rule::Delay,
        (Phase::Failed(Cause::Unverified), Migrate | BlockJob) => Rule::Refuse,
        (Phase::OpensBack | Phase::Failed(Cause::Unverified), _) => Rule::Permit,
        (Phase::Failed(Cause::IoNotBack | Cause::OpensNotBack), _) => Rule::Refuse,
    }
}
