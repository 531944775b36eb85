//! DRBD's enumerations. Numbers that this version does not know are kept as `Unknown`, which no
//! predicate accepts (S12).

use std::fmt;

use crate::abi::Abi;
use crate::generated::{v9, v84};

macro_rules! wire_enum {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $number:expr, $text:literal;)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// A number that this version does not know.
            Unknown(u32),
        }

        impl $name {
            /// From the number on the wire, which both interfaces share.
            #[must_use]
            pub fn from_wire(number: u32) -> Self {
                $(if number == $number { return Self::$variant; })*
                Self::Unknown(number)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.write_str($text),)*
                    Self::Unknown(number) => write!(f, "unknown({number})"),
                }
            }
        }
    };
}

wire_enum! {
    /// Role of a node (`enum drbd_role`).
    Role {
        /// The peer has not said, or is not connected.
        Unspecified = v84::R_UNKNOWN, "Unknown";
        /// May write.
        Primary = v84::R_PRIMARY, "Primary";
        /// May not be opened.
        Secondary = v84::R_SECONDARY, "Secondary";
    }
}

wire_enum! {
    /// State of a connection (`enum drbd_conns` of 8.4 up to `C_WF_REPORT_PARAMS`,
    /// `enum drbd_conn_state` of 9; the numbers agree).
    ConnState {
        /// No network: does not try to connect.
        StandAlone = v9::C_STANDALONE, "StandAlone";
        /// On the way to StandAlone.
        Disconnecting = v9::C_DISCONNECTING, "Disconnecting";
        /// About to try to connect.
        Unconnected = v9::C_UNCONNECTED, "Unconnected";
        /// The peer did not answer in time.
        Timeout = v9::C_TIMEOUT, "Timeout";
        /// The socket broke.
        BrokenPipe = v9::C_BROKEN_PIPE, "BrokenPipe";
        /// The network failed.
        NetworkFailure = v9::C_NETWORK_FAILURE, "NetworkFailure";
        /// The peer spoke nonsense.
        ProtocolError = v9::C_PROTOCOL_ERROR, "ProtocolError";
        /// The peer is closing the connection.
        TearDown = v9::C_TEAR_DOWN, "TearDown";
        /// Waiting for the peer.
        Connecting = v9::C_CONNECTING, "Connecting";
        /// There is a connection.
        Connected = v9::C_CONNECTED, "Connected";
    }
}

wire_enum! {
    /// Replication between the two copies of a volume (`enum drbd_repl_state`).
    ReplState {
        /// Not connected.
        Off = v9::L_OFF, "Off";
        /// Every write goes to both.
        Established = v9::L_ESTABLISHED, "Established";
        /// A full resync as source is starting.
        StartingSyncS = v9::L_STARTING_SYNC_S, "StartingSyncS";
        /// A full resync as target is starting.
        StartingSyncT = v9::L_STARTING_SYNC_T, "StartingSyncT";
        /// Exchanging bitmaps, source.
        WfBitmapS = v9::L_WF_BITMAP_S, "WFBitMapS";
        /// Exchanging bitmaps, target.
        WfBitmapT = v9::L_WF_BITMAP_T, "WFBitMapT";
        /// Waiting for the source's generation.
        WfSyncUuid = v9::L_WF_SYNC_UUID, "WFSyncUUID";
        /// Resync, our data is the source.
        SyncSource = v9::L_SYNC_SOURCE, "SyncSource";
        /// Resync, our data is being overwritten.
        SyncTarget = v9::L_SYNC_TARGET, "SyncTarget";
        /// Online verify, source.
        VerifyS = v9::L_VERIFY_S, "VerifyS";
        /// Online verify, target.
        VerifyT = v9::L_VERIFY_T, "VerifyT";
        /// Resync paused, source.
        PausedSyncS = v9::L_PAUSED_SYNC_S, "PausedSyncS";
        /// Resync paused, target.
        PausedSyncT = v9::L_PAUSED_SYNC_T, "PausedSyncT";
        /// Congested: writes are not replicated for now.
        Ahead = v9::L_AHEAD, "Ahead";
        /// The peer is ahead.
        Behind = v9::L_BEHIND, "Behind";
    }
}

impl ReplState {
    /// A resync is running or about to, paused included (`StartingSyncS` … `PausedSyncT` but verify).
    #[must_use]
    pub fn is_resync(self) -> bool {
        use ReplState::{
            Ahead, Behind, PausedSyncS, StartingSyncS, StartingSyncT, SyncSource, WfBitmapS,
            WfBitmapT, WfSyncUuid,
        };
        self.is_resync_target()
            || matches!(self, PausedSyncS | StartingSyncS | StartingSyncT | SyncSource)
            || matches!(self, WfBitmapS | WfBitmapT | WfSyncUuid | Ahead | Behind)
    }

    /// Our own data is, or is about to be, overwritten.
    #[must_use]
    pub fn is_resync_target(self) -> bool {
        use ReplState::{Behind, PausedSyncT, StartingSyncT, SyncTarget, WfBitmapT, WfSyncUuid};
        matches!(self, SyncTarget | PausedSyncT | StartingSyncT | WfBitmapT | WfSyncUuid | Behind)
    }
}

/// State of a disk (`enum drbd_disk_state`). The numbers differ between the interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiskState {
    /// No disk.
    Diskless,
    /// Reading the metadata.
    Attaching,
    /// Being detached (9 only).
    Detaching,
    /// Failed; becomes Diskless.
    Failed,
    /// Attached, agreeing with the peer.
    Negotiating,
    /// In the middle of a resync: no usable data.
    Inconsistent,
    /// Consistent, but a newer generation exists.
    Outdated,
    /// The peer's disk, not connected.
    DUnknown,
    /// Consistent; whether it is outdated is not known.
    Consistent,
    /// The newest data.
    UpToDate,
    /// A number that this version does not know.
    Unknown(u32),
}

impl DiskState {
    /// From the number on the wire, which means different states on the two interfaces.
    #[must_use]
    pub fn from_wire(abi: Abi, number: u32) -> Self {
        match abi {
            Abi::V84 => Self::from_v84(number),
            Abi::V9 => Self::from_v9(number),
        }
    }

    fn from_v84(number: u32) -> Self {
        match number {
            v84::D_DISKLESS => Self::Diskless,
            v84::D_ATTACHING => Self::Attaching,
            v84::D_FAILED => Self::Failed,
            v84::D_NEGOTIATING => Self::Negotiating,
            v84::D_INCONSISTENT => Self::Inconsistent,
            v84::D_OUTDATED => Self::Outdated,
            v84::D_UNKNOWN => Self::DUnknown,
            v84::D_CONSISTENT => Self::Consistent,
            v84::D_UP_TO_DATE => Self::UpToDate,
            other => Self::Unknown(other),
        }
    }

    fn from_v9(number: u32) -> Self {
        match number {
            v9::D_DISKLESS => Self::Diskless,
            v9::D_ATTACHING => Self::Attaching,
            v9::D_DETACHING => Self::Detaching,
            v9::D_FAILED => Self::Failed,
            v9::D_NEGOTIATING => Self::Negotiating,
            v9::D_INCONSISTENT => Self::Inconsistent,
            v9::D_OUTDATED => Self::Outdated,
            v9::D_UNKNOWN => Self::DUnknown,
            v9::D_CONSISTENT => Self::Consistent,
            v9::D_UP_TO_DATE => Self::UpToDate,
            other => Self::Unknown(other),
        }
    }
}

impl fmt::Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(number) => write!(f, "unknown({number})"),
            known => write!(f, "{known:?}"),
        }
    }
}

wire_enum! {
    /// What to do about a lost peer (`fencing`; per disk on 8.4, per connection on 9).
    Fencing {
        /// Nothing: a stale node may be promoted.
        DontCare = v84::FP_DONT_CARE, "dont-care";
        /// Call the helper, do not freeze.
        ResourceOnly = v84::FP_RESOURCE, "resource-only";
        /// Freeze, call the helper, thaw when it says so.
        ResourceAndStonith = v84::FP_STONITH, "resource-and-stonith";
    }
}

wire_enum! {
    /// What to do when no replica can be reached (`on-no-data-accessible`).
    OnNoData {
        /// Requests fail.
        IoError = v84::OND_IO_ERROR, "io-error";
        /// Requests wait.
        SuspendIo = v84::OND_SUSPEND_IO, "suspend-io";
    }
}

wire_enum! {
    /// What to do about an error of the local disk (`on-io-error`).
    OnIoError {
        /// Report it upwards.
        PassOn = v84::EP_PASS_ON, "pass_on";
        /// Call the helper.
        CallHelper = v84::EP_CALL_HELPER, "call-local-io-error";
        /// Go on without the disk.
        Detach = v84::EP_DETACH, "detach";
    }
}

wire_enum! {
    /// Replication protocol.
    Protocol {
        /// A write is complete when it is in the local send buffer.
        A = v84::DRBD_PROT_A, "A";
        /// …when the peer has received it.
        B = v84::DRBD_PROT_B, "B";
        /// …when it is on the peer's disk.
        C = v84::DRBD_PROT_C, "C";
    }
}

wire_enum! {
    /// Policies after a split brain, and for a resync that contradicts the roles (`after-sb-*`,
    /// `rr-conflict`). Everything but Disconnect may discard data or restart I/O by itself.
    AfterSb {
        /// Give up the connection; an operator decides.
        Disconnect = v9::ASB_DISCONNECT, "disconnect";
        /// Discard the younger primary's changes.
        DiscardYoungerPrimary = v9::ASB_DISCARD_YOUNGER_PRI, "discard-younger-primary";
        /// Discard the older primary's changes.
        DiscardOlderPrimary = v9::ASB_DISCARD_OLDER_PRI, "discard-older-primary";
        /// Discard the side that has no changes.
        DiscardZeroChanges = v9::ASB_DISCARD_ZERO_CHG, "discard-zero-changes";
        /// Discard the side with fewer changes.
        DiscardLeastChanges = v9::ASB_DISCARD_LEAST_CHG, "discard-least-changes";
        /// Discard the local changes.
        DiscardLocal = v9::ASB_DISCARD_LOCAL, "discard-local";
        /// Discard the peer's changes.
        DiscardRemote = v9::ASB_DISCARD_REMOTE, "discard-remote";
        /// Only if the other policies agree.
        Consensus = v9::ASB_CONSENSUS, "consensus";
        /// Discard the secondary's changes.
        DiscardSecondary = v9::ASB_DISCARD_SECONDARY, "discard-secondary";
        /// Ask the helper.
        CallHelper = v9::ASB_CALL_HELPER, "call-pri-lost-after-sb";
        /// Change data under a running primary.
        Violently = v9::ASB_VIOLENTLY, "violently-as0p";
        /// Try again (9 only).
        RetryConnect = v9::ASB_RETRY_CONNECT, "retry-connect";
        /// Discard automatically (9 only).
        AutoDiscard = v9::ASB_AUTO_DISCARD, "auto-discard";
    }
}

wire_enum! {
    /// How long a start-up script should wait for the peer (`enum drbd_timeout_flag`).
    TimeoutType {
        /// Nothing known about the peer.
        Default = v84::UT_DEFAULT, "default";
        /// We had been alone before.
        Degraded = v84::UT_DEGRADED, "degraded";
        /// The peer is known to be outdated.
        PeerOutdated = v84::UT_PEER_OUTDATED, "peer-outdated";
    }
}

wire_enum! {
    /// Kind of a notification, without the "continues" bit (`enum drbd_notification_type`).
    NotifyKind {
        /// Part of a dump.
        Exists = v9::NOTIFY_EXISTS, "exists";
        /// The object is new.
        Create = v9::NOTIFY_CREATE, "create";
        /// The object changed.
        Change = v9::NOTIFY_CHANGE, "change";
        /// The object is gone.
        Destroy = v9::NOTIFY_DESTROY, "destroy";
        /// A helper is about to run.
        Call = v9::NOTIFY_CALL, "call";
        /// A helper has ended.
        Response = v9::NOTIFY_RESPONSE, "response";
        /// The resource has a new name (9 only).
        Rename = v9::NOTIFY_RENAME, "rename";
    }
}

/// The bit of a notification that says that more of the same change follows.
pub(crate) const NOTIFY_CONTINUES: u32 = v9::NOTIFY_CONTINUES;

#[cfg(test)]
mod tests {
    use super::*;

    /// Facts 2.5: 9 inserted Detaching = 2 and shifted the rest.
    #[test]
    fn s12_disk_states_are_read_by_the_table_of_the_abi() {
        use DiskState as D;
        let v84 = [
            D::Diskless,
            D::Attaching,
            D::Failed,
            D::Negotiating,
            D::Inconsistent,
            D::Outdated,
            D::DUnknown,
            D::Consistent,
            D::UpToDate,
        ];
        let v9 = [
            D::Diskless,
            D::Attaching,
            D::Detaching,
            D::Failed,
            D::Negotiating,
            D::Inconsistent,
            D::Outdated,
            D::DUnknown,
            D::Consistent,
            D::UpToDate,
        ];
        for (number, state) in (0..).zip(v84) {
            assert_eq!(D::from_wire(Abi::V84, number), state);
        }
        for (number, state) in (0..).zip(v9) {
            assert_eq!(D::from_wire(Abi::V9, number), state);
        }
        assert_eq!(D::from_wire(Abi::V84, 9), D::Unknown(9));
        assert_eq!(D::from_wire(Abi::V9, 10), D::Unknown(10));
        assert_eq!(D::from_wire(Abi::V9, 8), D::Consistent, "8 is UpToDate only on 8.4");
    }

    #[test]
    fn numbers_of_states() {
        let connections: Vec<_> = (0..11).map(|n| ConnState::from_wire(n).to_string()).collect();
        assert_eq!(connections[0], "StandAlone");
        assert_eq!(connections[8..], ["Connecting", "Connected", "unknown(10)"]);
        assert_eq!(ReplState::from_wire(10), ReplState::Established);
        assert_eq!(ReplState::from_wire(17), ReplState::SyncTarget);
        assert_eq!(ReplState::from_wire(8), ReplState::Unknown(8));
        assert_eq!(Role::from_wire(1), Role::Primary);
        assert_eq!(Role::from_wire(2), Role::Secondary);
        assert_eq!(NotifyKind::from_wire(3), NotifyKind::Destroy);
    }

    #[test]
    fn resync_directions() {
        assert!(ReplState::SyncSource.is_resync() && !ReplState::SyncSource.is_resync_target());
        assert!(ReplState::PausedSyncT.is_resync_target());
        for calm in [ReplState::Off, ReplState::Established, ReplState::VerifyS] {
            assert!(!calm.is_resync());
        }
    }
}
