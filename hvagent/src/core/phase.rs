//! The storage phases of one mount: vocabulary, and what may happen to guests in each.
//!
//! ```text
//! Normal ──announced──▶ Announced ──cut──▶ Moving ──read──▶ IoBack ──open──▶ OpensBack
//!   ▲  ▲                 │ lease over        ▲ │              │                 │
//!   │  └─────────────────┘     stall, new    │ └─ too late ─▶ Failed ◀─ late ───┤
//!   │                          connection ───┘                  ▲     problems ─┤
//!   └───────────── settled ── Verified ◀──── no problem ────────┴───────────────┘
//! ```
//!
//! Two probes tell the phases apart: a read through a descriptor held since before (I/O is back)
//! and a fresh open (grace is over). A probe counts only if it was *asked* after the storage was
//! seen or told to answer again: an answer of the old server proves nothing.
//!
//! Rules kept: S11 (no switchover of a guest in a storage move; every hold has an end) and S12 (an
//! unknown outcome is never a permission).

use std::time::Duration;

use super::Now;

mod gate;
mod machine;

pub use gate::{Operation, Verdict};
pub use machine::Machine;

/// A number that nasd chose: it rises with every move of the service, so the greater is the newer.
pub type MoveId = u64;

/// Where a mount stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nothing is going on.
    Normal,
    /// A move will begin; the announcement ends by itself.
    Announced,
    /// The storage is silent, or nobody has proven yet that it answers.
    Moving,
    /// Reads and writes through open files work; opens and locks may wait for the end of grace.
    IoBack,
    /// Opens work too; locks, leases and guests are being looked at.
    OpensBack,
    /// All is well; limits are being restored and stalls reported.
    Verified,
    /// Not back in time, or back with losses.
    Failed(Cause),
}

/// What has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// No read was answered in time.
    IoNotBack,
    /// No open was answered in time.
    OpensNotBack,
    /// Verification found problems, or did not end in time.
    Unverified,
}

/// How long each phase may last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Longest lease of an announcement that is taken; longer ones are cut.
    pub longest_lease: Duration,
    /// From the beginning of [`Phase::Moving`] to the first read.
    pub io_back: Duration,
    /// From the first read to the first open.
    pub opens_back: Duration,
    /// From the first open to the end of the verification.
    pub verified: Duration,
    /// Longest time for which running migrations are held back without a break (S11).
    pub longest_hold: Duration,
}

impl Default for Timing {
    /// Grace lasts 90 s, and a lease of 15 s more where clients still reclaim (design, S7); the other
    /// numbers leave a power cut and its fencing room.
    fn default() -> Self {
        Self {
            longest_lease: Duration::from_secs(300),
            io_back: Duration::from_secs(120),
            opens_back: Duration::from_secs(120),
            verified: Duration::from_secs(60),
            longest_hold: Duration::from_secs(600),
        }
    }
}

/// How a probe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The server has answered, and well.
    Good,
    /// An error came back: this `errno`.
    Error(i32),
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// nasd will move the service below the mount.
    Announced {
        /// Which move.
        id: MoveId,
        /// How long the announcement holds from now unless it is renewed.
        lease: Duration,
    },
    /// nasd has given the move up, before or after the cut.
    Withdrawn {
        /// Which move.
        id: MoveId,
    },
    /// nasd has begun to silence the service.
    CutBegun {
        /// Which move.
        id: MoveId,
    },
    /// nasd serves again, on whichever node.
    ServiceOpened {
        /// Which move.
        id: MoveId,
    },
    /// No answers although requests wait, for longer than the threshold.
    Stalled,
    /// Answers flow again.
    StallEnded,
    /// The client has made a new connection.
    Reconnected,
    /// The read through the held descriptor has ended.
    Read {
        /// When it was asked.
        asked: Now,
        /// How it ended.
        answer: Answer,
    },
    /// The fresh open has ended.
    FreshOpen {
        /// When it was asked.
        asked: Now,
        /// How it ended.
        answer: Answer,
    },
    /// The verification has ended.
    Checked {
        /// When it was asked for.
        asked: Now,
        /// What it has found; empty: all is well.
        problems: Vec<String>,
    },
    /// Limits are restored, guests resumed, stalls reported.
    Settled,
    /// An operator has looked at the problems and takes them.
    Accepted,
    /// Time has passed.
    Tick,
}

/// Why an announcement is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// That move is over, or a newer one is known.
    #[error("move {id} is older than what this host knows ({known}): nothing was prepared for it")]
    Stale {
        /// The announced one.
        id: MoveId,
        /// The newer one.
        known: MoveId,
    },
    /// It has no time left.
    #[error("the announcement of move {id} has a lease of zero: nothing was prepared for it")]
    Over {
        /// The announced one.
        id: MoveId,
    },
    /// The mount is not at rest.
    #[error("the mount is not at rest ({0:?}): announce again when it is")]
    Busy(Phase),
}

/// How the mount is to be probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probing {
    /// Now and then.
    Rest,
    /// Reads through the held descriptor, one after the other. This also makes an idle client speak,
    /// so that it reconnects and reclaims at once.
    Reads,
    /// Fresh opens, one after the other.
    Opens,
}

/// What must be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Inhibit the host's shutdown and hold back running migrations.
    Hold,
    /// Take both back and restore the limits that were changed.
    Release,
    /// Probe like this from now on.
    Probe(Probing),
    /// The held descriptor is of no use any more: open it anew.
    Rehold,
    /// Look at locks, leases and guests, then send [`Event::Checked`].
    Verify {
        /// The end of what earlier verifications have covered: the log counts from there.
        since: Now,
    },
    /// Resume guests that I/O errors on this mount have paused.
    ResumeGuests,
    /// Report stalls, then send [`Event::Settled`].
    Settle,
    /// Tell nasd and the log.
    Tell(Phase),
    /// Answer an announcement.
    Reply {
        /// The move.
        id: MoveId,
        /// Taken, or why not.
        taken: Result<(), NotReady>,
    },
}

#[cfg(test)]
mod tests;
