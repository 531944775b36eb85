//! The steps of the two programs, *close* and *open*, and the order that S5 prescribes.
//!
//! Owns names (they appear in timelines, logs and fail points), order and deadlines. Every step is
//! idempotent: running it again on a node where it has been done changes nothing and succeeds. That
//! is what makes rollback and restart the same thing as starting (S9).

use std::fmt;
use std::time::Duration;

use thiserror::Error;

/// Proof that this node may become Primary (S1). Only [`super::machine`] builds one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Connected, the peer is Secondary; the executor checks it once more just before the command.
    Released,
    /// This node is Primary already: nothing to prove, nothing to do.
    AlreadyPrimary,
    /// The record says that this node alone is current.
    SoleCurrent,
    /// S1's `Frozen`: disconnected by force, `StandAlone` and complete here, and *then* the record won
    /// that removes the former owner.
    Frozen,
}

/// One step. The order in which they may run is [`CLOSE`], [`OPEN`] and [`TAKE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Drop what comes in (S5); calls already executed can still be answered.
    CloseInbound,
    /// Wait until replies have left, at most [`DRAIN`].
    Drain,
    /// Drop what goes out and delete the addresses: the service is silent from here on.
    CloseOutbound,
    /// nfsd threads to 0: ends every client's state on this node, keeps their records.
    StopThreads,
    /// `syncfs` on every volume.
    Sync,
    /// `umount`, EBUSY retried; never lazy.
    Unmount,
    /// DRBD Secondary. Behind this step the node comes back only by a compare-and-set.
    Demote,
    /// DRBD Primary, with its proof.
    Promote,
    /// Mount every file system, verify device and type.
    Mount,
    /// Compare the marker file with the record, then write this opening's (S2).
    Marker,
    /// Load client records and exports, start threads; grace begins.
    StartThreads,
    /// A session of our own through the whole server (S5).
    Probe,
    /// Open the gate with the right, add the addresses, announce them.
    OpenGate,
    /// Make every recorded client notice at once.
    Tickle,
    /// Everything of an opening that can fail without the volume: mount points free, the server's
    /// helper there, exports resolvable (H3). Changes nothing.
    TakeReady,
    /// Disconnect DRBD by force and verify `StandAlone` with complete disks (H1).
    ForceDisconnect,
}

/// The cut, in S5's order.
pub const CLOSE: &[Step] = &[
    Step::CloseInbound,
    Step::Drain,
    Step::CloseOutbound,
    Step::StopThreads,
    Step::Sync,
    Step::Unmount,
    Step::Demote,
];

/// The opening, in S5's order: gate and address last.
pub const OPEN: &[Step] = &[
    Step::Promote,
    Step::Mount,
    Step::Marker,
    Step::StartThreads,
    Step::Probe,
    Step::OpenGate,
    Step::Tickle,
];

/// What a taker does before its compare-and-set (design section 6); [`OPEN`] follows.
pub const TAKE: &[Step] = &[Step::TakeReady, Step::ForceDisconnect];

/// Longest time for replies to drain (S5).
pub const DRAIN: Duration = Duration::from_millis(50);

impl Step {
    /// The name in timelines, logs and fail points.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::CloseInbound => "close-inbound",
            Self::Drain => "drain",
            Self::CloseOutbound => "close-outbound",
            Self::StopThreads => "threads-0",
            Self::Sync => "sync",
            Self::Unmount => "umount",
            Self::Demote => "secondary",
            Self::Promote => "primary",
            Self::Mount => "mount",
            Self::Marker => "marker",
            Self::StartThreads => "threads",
            Self::Probe => "probe",
            Self::OpenGate => "open-gate",
            Self::Tickle => "tickle",
            Self::TakeReady => "take-ready",
            Self::ForceDisconnect => "force-disconnect",
        }
    }

    /// How long the step may take before the core gives it up (S8). About ten times what a healthy
    /// node needs; the sum over [`CLOSE`] stays below the clients' lease of 15 s.
    #[must_use]
    pub fn deadline(self) -> Duration {
        let ms = match self {
            Self::CloseInbound | Self::Drain | Self::CloseOutbound | Self::Tickle => 1000,
            Self::StopThreads => 4000,
            Self::Sync | Self::Unmount | Self::Demote => 2000,
            Self::Promote | Self::Probe | Self::Marker => 3000,
            Self::OpenGate | Self::TakeReady | Self::ForceDisconnect => 2000,
            Self::Mount | Self::StartThreads => 8000,
        };
        Duration::from_millis(ms)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a step did not succeed. The message is written by the binding that knows the cause.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StepError {
    /// The step's deadline passed; it may still end later, which is why steps are idempotent.
    #[error("{step} was not done after {after_ms} ms")]
    Deadline {
        /// Which step.
        step: &'static str,
        /// The deadline in milliseconds.
        after_ms: u64,
    },
    /// Processes keep the file system busy.
    #[error("{path} is busy: {}; stop them, or let them leave the directory", holders.join(", "))]
    Busy {
        /// The mount point.
        path: String,
        /// Processes as `name (pid)`.
        holders: Vec<String>,
    },
    /// The volume is not the one that the record speaks of. Trying again does not help.
    #[error("wrong volume: {reason}")]
    WrongVolume {
        /// What was expected and found.
        reason: String,
    },
    /// The evidence for a promotion was not there when the command was about to be given.
    #[error("promotion not allowed: {reason}")]
    ProofGone {
        /// What was missing.
        reason: String,
    },
    /// The kernel or a helper refused.
    #[error("{step} was refused: {reason}")]
    Refused {
        /// Which step.
        step: &'static str,
        /// What it said.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(program: &[Step], step: Step) -> usize {
        program.iter().position(|s| *s == step).unwrap()
    }

    #[test]
    fn s5_silence_first_open_last() {
        assert!(position(CLOSE, Step::CloseOutbound) < position(CLOSE, Step::StopThreads));
        assert!(position(CLOSE, Step::Sync) < position(CLOSE, Step::Unmount));
        assert_eq!(CLOSE.last(), Some(&Step::Demote));
        for before in [Step::Mount, Step::Marker, Step::StartThreads, Step::Probe] {
            assert!(position(OPEN, before) < position(OPEN, Step::OpenGate));
        }
    }

    #[test]
    fn s8_the_cut_ends_within_the_lease() {
        let sum: Duration = CLOSE.iter().map(|s| s.deadline()).sum();
        assert!(sum < Duration::from_secs(15), "{sum:?}");
    }
}
