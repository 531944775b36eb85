//! libvirt's numbers for states, reasons and events (`libvirt-domain.h`, `libvirt-storage.h`).

use serde::{Deserialize, Serialize};

/// What a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainState {
    /// It runs.
    Running,
    /// It waits for a resource (not with QEMU).
    Blocked,
    /// It stands still, but its process is there.
    Paused(Paused),
    /// It is shutting itself down.
    ShuttingDown,
    /// It does not run.
    Off,
    /// Its process has crashed.
    Crashed,
    /// It sleeps.
    Suspended,
    /// libvirt does not know, or said something this program does not know.
    Unknown,
}

/// Why a guest is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Paused {
    /// Somebody asked for it. Never resumed by the agent.
    ByUser,
    /// For a migration: its switchover is under way.
    Migration,
    /// While it is saved or dumped.
    Saving,
    /// A disk's error: the agent may resume it once the storage is back.
    IoError,
    /// Its own watchdog fired.
    Watchdog,
    /// After it was restored.
    Restored,
    /// It is being shut down.
    ShuttingDown,
    /// A snapshot is taken.
    Snapshot,
    /// It crashed.
    Crashed,
    /// It is being started.
    Starting,
    /// At a migration's source, when the guest runs at the destination and draws its memory.
    PostCopy,
    /// The same, but the connection is lost: it is nowhere whole.
    PostCopyFailed,
    /// A call of libvirt failed half way.
    ApiError,
    /// libvirt gave no reason, or one this program does not know.
    Unknown,
}

impl DomainState {
    /// From the pair that `GetState` returns.
    #[must_use]
    pub const fn of((state, reason): (i32, i32)) -> Self {
        match state {
            1 => Self::Running,
            2 => Self::Blocked,
            3 => Self::Paused(Paused::of(reason)),
            4 => Self::ShuttingDown,
            5 => Self::Off,
            6 => Self::Crashed,
            7 => Self::Suspended,
            _ => Self::Unknown,
        }
    }

    /// Whether the agent may resume the guest when its storage is back. Nothing but an error of a
    /// disk makes it so (S12); whether its lease is still held is another question.
    #[must_use]
    pub const fn is_resumable(self) -> bool {
        matches!(self, Self::Paused(Paused::IoError))
    }

    /// Whether a migration's switchover is under way: the guest stands still at its source.
    #[must_use]
    pub const fn is_switching_over(self) -> bool {
        matches!(self, Self::Paused(Paused::Migration))
    }

    /// Whether the guest runs at the destination already and this side only serves its memory.
    #[must_use]
    pub const fn is_post_copy(self) -> bool {
        matches!(self, Self::Paused(Paused::PostCopy | Paused::PostCopyFailed))
    }
}

impl Paused {
    const fn of(reason: i32) -> Self {
        match reason {
            1 => Self::ByUser,
            2 => Self::Migration,
            3 | 4 => Self::Saving,
            5 => Self::IoError,
            6 => Self::Watchdog,
            7 => Self::Restored,
            8 => Self::ShuttingDown,
            9 => Self::Snapshot,
            10 => Self::Crashed,
            11 => Self::Starting,
            12 => Self::PostCopy,
            13 => Self::PostCopyFailed,
            14 => Self::ApiError,
            _ => Self::Unknown,
        }
    }
}

/// Whether libvirt can talk to a guest's QEMU. Told without waiting for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// What the connection does.
    pub state: ControlState,
    /// For how long, in milliseconds.
    pub since_ms: u64,
}

/// What libvirt's connection to a QEMU does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ControlState {
    /// Free.
    Free,
    /// A background job runs, such as a migration.
    Job,
    /// A command waits for QEMU's answer: if for long, QEMU hangs, on its storage most likely.
    Occupied,
    /// It is lost.
    Broken,
    /// A number this program does not know.
    Unknown,
}

impl Control {
    /// From what `GetControlInfo` returns (the second number is a detail of errors).
    #[must_use]
    pub const fn of((state, _, since_ms): (u32, u32, u64)) -> Self {
        let state = match state {
            0 => ControlState::Free,
            1 => ControlState::Job,
            2 => ControlState::Occupied,
            3 => ControlState::Broken,
            _ => ControlState::Unknown,
        };
        Self { state, since_ms }
    }
}

/// What a pool does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolState {
    /// Not started.
    Inactive,
    /// Being made.
    Building,
    /// Started. libvirt does not look whether its file system is still mounted.
    Running,
    /// Started, not whole.
    Degraded,
    /// Started, but not to be reached.
    Inaccessible,
    /// A number this program does not know.
    Unknown,
}

impl PoolState {
    /// From the first number of `GetInfo`.
    #[must_use]
    pub const fn of(state: i32) -> Self {
        match state {
            0 => Self::Inactive,
            1 => Self::Building,
            2 => Self::Running,
            3 => Self::Degraded,
            4 => Self::Inaccessible,
            _ => Self::Unknown,
        }
    }
}

/// A block job on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockJob {
    /// `VIR_DOMAIN_BLOCK_JOB_TYPE_*`: 1 pull, 2 copy, 3 commit, 4 active commit, 5 backup.
    pub kind: i32,
    /// Its limit in bytes per second; zero is none.
    pub bandwidth: u64,
    /// How far it is.
    pub current: u64,
    /// Of how much. Equal to `current` is ready to end, but zero of zero has only begun.
    pub end: u64,
}

impl BlockJob {
    /// From what `GetBlockJobInfo` returns; `None` when no job runs.
    #[must_use]
    pub const fn of((kind, bandwidth, current, end): (i32, u64, u64, u64)) -> Option<Self> {
        if kind == 0 { None } else { Some(Self { kind, bandwidth, current, end }) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_disks_error_may_be_resumed() {
        let resumable: Vec<_> =
            (-1..20).filter(|why| DomainState::of((3, *why)).is_resumable()).collect();
        assert_eq!(resumable, [5]);
        assert!(!DomainState::of((1, 5)).is_resumable(), "a running guest's reason 5 is another");
    }

    #[test]
    fn migrations_are_seen_at_their_source() {
        assert!(DomainState::of((3, 2)).is_switching_over());
        assert!(DomainState::of((3, 12)).is_post_copy() && DomainState::of((3, 13)).is_post_copy());
        assert!(!DomainState::of((3, 1)).is_switching_over());
    }

    #[test]
    fn a_block_job_of_type_zero_is_none() {
        assert_eq!(BlockJob::of((0, 0, 0, 0)), None);
        assert_eq!(BlockJob::of((2, 0, 5, 9)).map(|job| job.kind), Some(2));
    }

    proptest! {
        #[test]
        fn unknown_numbers_are_unknown(state: i32, reason: i32, control: u32) {
            prop_assume!(!(0..=14).contains(&state) && !(0..=14).contains(&reason) && control > 3);
            prop_assert_eq!(DomainState::of((state, reason)), DomainState::Unknown);
            prop_assert_eq!(DomainState::of((3, reason)), DomainState::Paused(Paused::Unknown));
            prop_assert_eq!(Control::of((control, 0, 0)).state, ControlState::Unknown);
            prop_assert_eq!(PoolState::of(state), PoolState::Unknown);
        }
    }
}
