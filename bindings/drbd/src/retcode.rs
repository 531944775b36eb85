//! Return codes of commands, and what they say about the state of things.
//!
//! One signed field of DRBD's header carries two enumerations: values above 100 are
//! `enum drbd_ret_code` (101 is success), the others `enum drbd_state_rv` (positive is success).

use std::fmt;

use crate::abi::Abi;
use crate::generated::{v9, v84};

/// The return code of a command, as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReturnCode(pub i32);

impl ReturnCode {
    /// The command succeeded.
    #[must_use]
    pub fn is_success(self) -> bool {
        self.0 == v84::NO_ERROR || (v84::SS_SUCCESS..=v84::SS_CW_NO_NEED).contains(&self.0)
    }

    /// The object was in the state asked for already.
    #[must_use]
    pub fn is_nothing_to_do(self) -> bool {
        self.0 == v84::SS_NOTHING_TO_DO
    }
}

impl fmt::Display for ReturnCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "code {}", self.0)
    }
}

/// Why the kernel refused; says what is true now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The peer is Primary, for this or for another volume (-1, -20).
    #[error("the peer is Primary")]
    PeerIsPrimary,
    /// No UpToDate disk is within reach, and fencing the peer did not help (-2).
    #[error("no UpToDate disk is within reach")]
    NoUpToDateDisk,
    /// There is no usable local disk (-4).
    #[error("there is no local disk")]
    NoLocalDisk,
    /// There is no remote disk (-5).
    #[error("there is no remote disk")]
    NoRemoteDisk,
    /// A connected disk is not outdated (-6).
    #[error("refused to outdate while connected")]
    ConnectedNotOutdated,
    /// The peer is not connected and not outdated, and the fence-peer handler did not say that it is
    /// (-7). No promotion happened.
    #[error("the peer is not outdated and the fence-peer handler did not confirm it")]
    PeerNotOutdated,
    /// A resync is running (-8).
    #[error("a resync is running")]
    ResyncRunning,
    /// The connection is StandAlone already (-9).
    #[error("the connection is StandAlone already")]
    AlreadyStandAlone,
    /// The peer refused the change (-10).
    #[error("the peer refused")]
    RefusedByPeer,
    /// The volume has no disk (-11, 138).
    #[error("the volume is Diskless")]
    Diskless,
    /// Something has the device open (-12): it is still Primary.
    #[error("the device is in use{}", list(openers))]
    InUse {
        /// What the kernel says about the openers (9 only), a line each.
        openers: Vec<String>,
    },
    /// The network of the resource is not configured (-13).
    #[error("the connection is not configured")]
    NoNetConfig,
    /// Needs a connection (-15; -21 on 8.4).
    #[error("needs a connection")]
    NeedConnection,
    /// The disk is worse than Outdated (-16).
    #[error("the disk is in a state lower than Outdated")]
    LowerThanOutdated,
    /// The peer's version cannot do this (-17).
    #[error("not supported by the peer")]
    NotSupported,
    /// Another change of state was running (-18, -19): try again after the next change.
    #[error("another change of state is running; try again")]
    Transient,
    /// The command was interrupted (129; -21 on 9): nothing is known, read the status.
    #[error("interrupted")]
    Interrupted,
    /// A reader on the peer has the device open (9: -22).
    #[error("the peer has the device open for reading")]
    PeerHasReader,
    /// The peers did not agree in time (9: -23).
    #[error("the peers did not agree in time")]
    Timeout,
    /// This node has no quorum (9: -25).
    #[error("no quorum")]
    NoQuorum,
    /// There is no such volume (127).
    #[error("no such volume")]
    MinorUnknown,
    /// There is no such resource (158).
    #[error("no such resource")]
    ResourceUnknown,
    /// The resource is in use (159).
    #[error("the resource is in use")]
    ResourceInUse,
    /// The disk is attached already (124).
    #[error("the disk is attached already")]
    DiskConfigured,
    /// The connection is configured already (125).
    #[error("the connection is configured already")]
    NetConfigured,
    /// The data is not the current generation (150).
    #[error("the data is not current")]
    DataNotCurrent,
    /// The kernel does not understand the request (126, 162).
    #[error("the kernel rejects the request as invalid")]
    InvalidRequest,
    /// The caller may not do this (152).
    #[error("not permitted")]
    Permission,
    /// Another error of configuration; see the kernel's text.
    #[error("configuration error")]
    Configuration,
    /// A number that this version does not know, 0 included.
    #[error("unknown failure")]
    Unknown,
}

fn list(openers: &[String]) -> String {
    if openers.is_empty() { String::new() } else { format!(" ({})", openers.join("; ")) }
}

impl Refusal {
    /// The meaning of a code that is not a success. `info` is the kernel's text.
    #[must_use]
    pub fn from_code(abi: Abi, code: ReturnCode, info: &[String]) -> Self {
        if code.0 > v84::ERR_CODE_BASE {
            return Self::from_config_error(code.0);
        }
        match (abi, code.0) {
            (Abi::V84, v84::SS_OUTDATE_WO_CONN) => Self::NeedConnection,
            (Abi::V9, v9::SS_INTERRUPTED) => Self::Interrupted,
            (Abi::V9, v9::SS_PRIMARY_READER) => Self::PeerHasReader,
            (Abi::V9, v9::SS_TIMEOUT) => Self::Timeout,
            (Abi::V9, v9::SS_NO_QUORUM) => Self::NoQuorum,
            (_, v84::SS_DEVICE_IN_USE) => Self::InUse { openers: info.to_vec() },
            (_, code) => Self::from_state_error(code),
        }
    }

    /// `enum drbd_state_rv`, the part that both interfaces share.
    fn from_state_error(code: i32) -> Self {
        match code {
            v84::SS_TWO_PRIMARIES | v84::SS_O_VOL_PEER_PRI => Self::PeerIsPrimary,
            v84::SS_NO_UP_TO_DATE_DISK => Self::NoUpToDateDisk,
            v84::SS_NO_LOCAL_DISK => Self::NoLocalDisk,
            v84::SS_NO_REMOTE_DISK => Self::NoRemoteDisk,
            v84::SS_CONNECTED_OUTDATES => Self::ConnectedNotOutdated,
            v84::SS_PRIMARY_NOP => Self::PeerNotOutdated,
            v84::SS_RESYNC_RUNNING => Self::ResyncRunning,
            v84::SS_ALREADY_STANDALONE => Self::AlreadyStandAlone,
            v84::SS_CW_FAILED_BY_PEER => Self::RefusedByPeer,
            v84::SS_IS_DISKLESS => Self::Diskless,
            v84::SS_NO_NET_CONFIG => Self::NoNetConfig,
            v84::SS_NEED_CONNECTION => Self::NeedConnection,
            v84::SS_LOWER_THAN_OUTDATED => Self::LowerThanOutdated,
            v84::SS_NOT_SUPPORTED => Self::NotSupported,
            v84::SS_IN_TRANSIENT_STATE | v84::SS_CONCURRENT_ST_CHG => Self::Transient,
            _ => Self::Unknown,
        }
    }

    /// `enum drbd_ret_code`.
    fn from_config_error(code: i32) -> Self {
        match code {
            v84::ERR_INTR => Self::Interrupted,
            v84::ERR_NO_DISK => Self::Diskless,
            v84::ERR_MINOR_INVALID => Self::MinorUnknown,
            v84::ERR_RES_NOT_KNOWN => Self::ResourceUnknown,
            v84::ERR_RES_IN_USE => Self::ResourceInUse,
            v84::ERR_DISK_CONFIGURED => Self::DiskConfigured,
            v84::ERR_NET_CONFIGURED => Self::NetConfigured,
            v84::ERR_DATA_NOT_CURRENT => Self::DataNotCurrent,
            v84::ERR_MANDATORY_TAG | v84::ERR_INVALID_REQUEST => Self::InvalidRequest,
            v84::ERR_PERM => Self::Permission,
            v84::ERR_LOCAL_ADDR..=v9::ERR_PATH_COLLISION => Self::Configuration,
            _ => Self::Unknown,
        }
    }

    /// Worth repeating the very same command after a moment, without new evidence.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Transient | Self::InUse { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(abi: Abi, code: i32) -> Refusal {
        Refusal::from_code(abi, ReturnCode(code), &[])
    }

    #[test]
    fn success_is_101_or_1_to_4() {
        let good: Vec<i32> = (-40..400).filter(|code| ReturnCode(*code).is_success()).collect();
        assert_eq!(good, [1, 2, 3, 4, 101]);
    }

    #[test]
    fn refusals_seen_in_the_lab() {
        for abi in [Abi::V84, Abi::V9] {
            assert_eq!(of(abi, -1), Refusal::PeerIsPrimary);
            assert_eq!(of(abi, -2), Refusal::NoUpToDateDisk);
            assert_eq!(of(abi, -7), Refusal::PeerNotOutdated);
            assert_eq!(of(abi, -12), Refusal::InUse { openers: vec![] });
            assert_eq!(of(abi, -18), Refusal::Transient);
            assert_eq!(of(abi, -19), Refusal::Transient);
            assert_eq!(of(abi, 158), Refusal::ResourceUnknown);
            assert_eq!(of(abi, 127), Refusal::MinorUnknown);
        }
    }

    #[test]
    fn minus_21_differs_between_the_interfaces() {
        assert_eq!(of(Abi::V84, -21), Refusal::NeedConnection);
        assert_eq!(of(Abi::V9, -21), Refusal::Interrupted);
        assert_eq!(of(Abi::V9, -22), Refusal::PeerHasReader);
        assert_eq!(of(Abi::V84, -22), Refusal::Unknown);
    }

    #[test]
    fn s12_numbers_nobody_knows_are_refusals() {
        for code in [0, 5, 99, 100, -3, -99, 999, i32::MIN, i32::MAX] {
            assert!(!ReturnCode(code).is_success());
            assert_eq!(of(Abi::V9, code), Refusal::Unknown, "{code}");
        }
    }

    #[test]
    fn openers_are_told() {
        let info = ["drbd0 opened by mount (pid 7)".to_owned()];
        let refusal = Refusal::from_code(Abi::V9, ReturnCode(-12), &info);
        assert!(refusal.to_string().contains("pid 7"), "{refusal}");
    }
}
