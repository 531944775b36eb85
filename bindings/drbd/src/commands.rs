//! Commands, their parameters and their errors.
//!
//! Keeps S3: promotion by force needs an [`OperatorConfirmed`], which only a person's typed text
//! makes; discard-my-data, invalidate and resume-io do not exist here at all.

use std::fmt;
use std::time::Duration;

use crate::enums::{DiskState, Fencing, OnIoError, TimeoutType};
use crate::generated::{v9, v84};
use crate::retcode::{Refusal, ReturnCode};
use crate::status::{ConnKey, Connection, Endpoint};
use crate::wire::DecodeError;
use crate::wire::attr::{Attrs, Writer};

/// A person has confirmed, by typing, that data may be lost. There is no other way to make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorConfirmed {
    operator: String,
    resource: String,
}

impl OperatorConfirmed {
    /// Takes what the operator typed: it must be `lose data of <resource>`, letter by letter. The
    /// caller records name and text (S3).
    ///
    /// # Errors
    /// The name is empty or the text is not the expected one.
    pub fn by_typed_text(
        operator: &str,
        resource: &str,
        typed: &str,
    ) -> Result<Self, ConfirmationError> {
        if operator.trim().is_empty() {
            return Err(ConfirmationError::NoOperator);
        }
        let expected = format!("lose data of {resource}");
        if typed != expected {
            return Err(ConfirmationError::WrongText { expected });
        }
        Ok(Self { operator: operator.to_owned(), resource: resource.to_owned() })
    }

    /// Who confirmed.
    #[must_use]
    pub fn operator(&self) -> &str {
        &self.operator
    }

    /// The resource that it holds for.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.resource
    }
}

/// A confirmation that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfirmationError {
    /// Nobody is named.
    #[error("the operator's name is missing")]
    NoOperator,
    /// Something else was typed.
    #[error("to confirm, type: {expected}")]
    WrongText {
        /// What must be typed.
        expected: String,
    },
}

/// Whether a promotion may override every check. There is no other override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Force {
    /// No: the kernel refuses what could lose data.
    No,
    /// Yes: stale or half-synchronised data becomes *the* data, fencing and quorum are ignored.
    OperatorConfirmed(OperatorConfirmed),
}

/// Everything a connect needs that the kernel may have forgotten.
///
/// 8.4 drops addresses and options of a connection when it becomes StandAlone, whoever caused that
/// (the peer's departure does not, a split brain does). Take the specification from the status while
/// there is a connection, and keep it ([`ConnectSpec::to_bytes`]); it may hold the shared secret.
#[derive(Clone, PartialEq, Eq)]
pub enum ConnectSpec {
    /// 8.4: both addresses and the options, as the kernel had them.
    V84 {
        /// Our end.
        my_addr: Endpoint,
        /// The peer's end.
        peer_addr: Endpoint,
        /// The attributes of `net_conf`.
        net: Vec<u8>,
    },
    /// 9 remembers the rest.
    V9 {
        /// The peer's node id.
        peer_node_id: u32,
    },
}

impl fmt::Debug for ConnectSpec {
    /// Without the options, which may hold the shared secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V84 { my_addr, peer_addr, .. } => {
                write!(f, "ConnectSpec({my_addr:?} - {peer_addr:?})")
            }
            Self::V9 { peer_node_id } => write!(f, "ConnectSpec(peer-node-id:{peer_node_id})"),
        }
    }
}

/// Tags of [`ConnectSpec::to_bytes`]; ours, not DRBD's.
mod stored {
    pub const NODE_ID: u16 = 1;
    pub const MY_ADDR: u16 = 2;
    pub const PEER_ADDR: u16 = 3;
    pub const NET: u16 = 4;
}

impl ConnectSpec {
    /// The specification of a connection as it is now; `None` if the kernel does not know it (8.4,
    /// StandAlone), or if the connection was not read by [`crate::Drbd::status`].
    #[must_use]
    pub fn of(connection: &Connection) -> Option<Self> {
        if let ConnKey::Peer(peer_node_id) = connection.key {
            return Some(Self::V9 { peer_node_id });
        }
        Some(Self::V84 {
            my_addr: connection.my_addr.clone()?,
            peer_addr: connection.peer_addr.clone()?,
            net: connection.options.as_ref()?.raw.clone(),
        })
    }

    /// For keeping it in a file across a restart. Host byte order: for this machine only.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::V9 { peer_node_id } => {
                Writer::default().u32(stored::NODE_ID, *peer_node_id).finish()
            }
            Self::V84 { my_addr, peer_addr, net } => Writer::default()
                .bytes(stored::MY_ADDR, &my_addr.0)
                .bytes(stored::PEER_ADDR, &peer_addr.0)
                .bytes(stored::NET, net)
                .finish(),
        }
    }

    /// The reverse of [`ConnectSpec::to_bytes`].
    ///
    /// # Errors
    /// The bytes are not such a specification.
    pub fn from_bytes(raw: &[u8]) -> Result<Self, DecodeError> {
        let attrs = Attrs::parse(raw)?;
        if let Some(peer_node_id) = attrs.get(stored::NODE_ID).and_then(|attr| attr.u32()) {
            return Ok(Self::V9 { peer_node_id });
        }
        let bytes = |kind, name| {
            let found = attrs.get(kind).map(|attr| attr.data.to_vec());
            found.ok_or(DecodeError::Missing(name))
        };
        let net = bytes(stored::NET, "net_conf")?;
        Attrs::parse(&net)?;
        Ok(Self::V84 {
            my_addr: Endpoint(bytes(stored::MY_ADDR, "my_addr")?),
            peer_addr: Endpoint(bytes(stored::PEER_ADDR, "peer_addr")?),
            net,
        })
    }
}

/// Where the metadata of a volume is (`meta-disk`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaIndex {
    /// At the end of the backing device.
    Internal,
    /// The whole of another device.
    FlexibleExternal,
    /// A slot of 128 MiB of another device.
    Indexed(u16),
}

impl MetaIndex {
    pub(crate) fn to_wire(self) -> i32 {
        match self {
            // What drbdadm sends for `meta-disk internal`; -1 is the layout of version 0.7.
            Self::Internal => v84::DRBD_MD_INDEX_FLEX_INT,
            Self::FlexibleExternal => v84::DRBD_MD_INDEX_FLEX_EXT,
            Self::Indexed(slot) => i32::from(slot),
        }
    }
}

/// Configuration of a disk to attach. Everything not named here is at the kernel's default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachSpec {
    /// The backing device.
    pub backing_dev: String,
    /// The device with the metadata; the backing device if internal.
    pub meta_dev: String,
    /// Where the metadata is.
    pub meta_dev_idx: MetaIndex,
    /// `on-io-error`.
    pub on_io_error: OnIoError,
    /// `disk-timeout`, in steps of 0.1 s; zero: none.
    pub disk_timeout: Duration,
    /// `fencing`; only 8.4 takes it here. On 8.4 it decides whether a cold disk attaches as
    /// UpToDate: never leave it out there (the kernel's default is dont-care).
    pub fencing: Option<Fencing>,
}

impl AttachSpec {
    pub(crate) fn disk_timeout_tenths(&self) -> u32 {
        u32::try_from(self.disk_timeout.as_millis() / 100).unwrap_or(u32::MAX)
    }
}

impl OnIoError {
    pub(crate) fn to_wire(self) -> u32 {
        match self {
            Self::PassOn => v84::EP_PASS_ON,
            Self::CallHelper => v84::EP_CALL_HELPER,
            Self::Detach => v84::EP_DETACH,
            Self::Unknown(number) => number,
        }
    }
}

impl Fencing {
    pub(crate) fn to_wire(self) -> u32 {
        match self {
            Self::DontCare => v9::FP_DONT_CARE,
            Self::ResourceOnly => v9::FP_RESOURCE,
            Self::ResourceAndStonith => v9::FP_STONITH,
            Self::Unknown(number) => number,
        }
    }
}

/// A command on a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Become Primary on all volumes, or on none.
    Primary(Force),
    /// Become Secondary on all volumes, or on none. While something has a device open the attempt
    /// is repeated for `patience` (udev opens devices for a moment).
    Secondary {
        /// How long to repeat.
        patience: Duration,
    },
    /// See [`crate::CommandQueue::connect`].
    Connect(ConnectSpec),
    /// See [`crate::CommandQueue::disconnect_graceful`] and `disconnect_forced`.
    Disconnect {
        /// Which connection.
        key: ConnKey,
        /// Without asking the peer, and without marking anybody as outdated.
        forced: bool,
    },
    /// Attach a disk.
    Attach(u16, AttachSpec),
    /// Give a disk back.
    Detach(u16),
    /// Mark the local disks of all volumes as Outdated.
    Outdate,
    /// Start a new generation on a volume.
    NewCurrentUuid(u16),
    /// Ask how long a start should wait for the peer.
    TimeoutType(u16, ConnKey),
}

impl Command {
    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Primary(_) => "primary",
            Self::Secondary { .. } => "secondary",
            Self::Connect(_) => "connect",
            Self::Disconnect { forced: false, .. } => "disconnect",
            Self::Disconnect { forced: true, .. } => "disconnect --force",
            Self::Attach(..) => "attach",
            Self::Detach(_) => "detach",
            Self::Outdate => "outdate",
            Self::NewCurrentUuid(_) => "new-current-uuid",
            Self::TimeoutType(..) => "get-timeout-type",
        }
    }
}

/// What a successful command says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Nothing had to be changed, on any volume.
    pub nothing_to_do: bool,
    /// Remarks of the kernel.
    pub info: Vec<String>,
    /// The answer of [`Command::TimeoutType`].
    pub timeout_type: Option<TimeoutType>,
}

/// Why a command did not succeed, and what is true now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The kernel refused; nothing was changed.
    #[error("{command}: {reason} ({code})")]
    Refused {
        /// The command.
        command: &'static str,
        /// The volume, if it was about one.
        volume: Option<u16>,
        /// Why.
        reason: Refusal,
        /// The number.
        code: ReturnCode,
        /// The kernel's text.
        info: Vec<String>,
    },
    /// (8.4) One volume refused and the earlier ones could not all be put back: the volumes have
    /// different roles now. Read the status and repair.
    #[error(
        "{command}: volume {volume} refused ({cause}) and {not_undone:?} could not be put back"
    )]
    Mixed {
        /// The command.
        command: &'static str,
        /// The volume that refused.
        volume: u16,
        /// Why.
        cause: Box<CommandError>,
        /// Volumes that kept the new role.
        not_undone: Vec<u16>,
    },
    /// The deadline passed; the kernel goes on with the command, and the queue takes no other until
    /// it has ended. Whether it will succeed is not known.
    #[error("{command} is still running after {after:?}")]
    StillRunning {
        /// The command.
        command: &'static str,
        /// Time since it was begun.
        after: Duration,
    },
    /// Another command of this resource is running; this one was not begun.
    #[error("not begun: {running} has been running for {since:?}")]
    Busy {
        /// The command that runs.
        running: &'static str,
        /// For how long.
        since: Duration,
    },
    /// The kernel reports success, and the state says otherwise. Seen on 8.4: outdating a connected
    /// disk answers "nothing to do" and leaves it UpToDate.
    #[error("{command}: the kernel reports success, but volume {volume} is {disk}")]
    NoEffect {
        /// The command.
        command: &'static str,
        /// The first such volume.
        volume: u16,
        /// The state of its disk.
        disk: DiskState,
    },
    /// The caller had given up before the command, or its part for this volume, was begun; volumes
    /// that were changed before have been put back.
    #[error("{command}: not begun, the caller's deadline had passed")]
    Abandoned {
        /// The command.
        command: &'static str,
        /// The volume that it stopped at (8.4).
        volume: Option<u16>,
    },
    /// There is no such resource; nothing was done.
    #[error("resource {0} does not exist")]
    NoSuchResource(String),
    /// The resource has no such volume; nothing was done.
    #[error("the resource has no volume {0}")]
    NoSuchVolume(u16),
    /// The resource has no volumes at all; nothing was done.
    #[error("the resource has no volumes")]
    NoVolumes,
    /// There is no such connection, or the kernel does not tell its addresses; nothing was done.
    #[error("there is no connection {0}")]
    NoSuchConnection(ConnKey),
    /// The confirmation is for another resource; nothing was done.
    #[error("the operator's confirmation is for {0}")]
    ConfirmedForAnother(String),
    /// The parameters are for the other version of DRBD; nothing was done.
    #[error("the parameters are for another version of DRBD")]
    WrongAbi,
    /// The module is gone, the process lacks a capability, or the socket failed.
    #[error("{command}: {cause}")]
    Transport {
        /// The command.
        command: &'static str,
        /// What failed.
        #[source]
        cause: TransportError,
    },
    /// The queue's thread has ended; start another.
    #[error("the command thread has ended")]
    QueueGone,
}

impl CommandError {
    /// The kernel's reason, if it refused.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { reason, .. } => Some(reason),
            Self::Mixed { cause, .. } => cause.refusal(),
            _ => None,
        }
    }

    /// The kernel's number, if it refused.
    #[must_use]
    pub fn code(&self) -> Option<ReturnCode> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Mixed { cause, .. } => cause.code(),
            _ => None,
        }
    }

    /// Whether the command took effect is not known: read the status before deciding anything.
    #[must_use]
    pub fn is_outcome_unknown(&self) -> bool {
        match self {
            Self::Refused { reason, .. } => {
                matches!(reason, Refusal::Interrupted | Refusal::Unknown)
            }
            Self::Mixed { .. } | Self::StillRunning { .. } | Self::QueueGone => true,
            Self::Transport { cause, .. } => cause.is_outcome_unknown(),
            _ => false,
        }
    }
}

/// The way to the kernel failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The process lacks CAP_NET_ADMIN (8.4), or CAP_SYS_ADMIN too (9). Nothing was done.
    #[error("not permitted: needs CAP_NET_ADMIN, for DRBD 9 CAP_SYS_ADMIN too")]
    NotPermitted,
    /// The DRBD module is not loaded (any more). Nothing was done.
    #[error("the DRBD module is not loaded")]
    ModuleAbsent,
    /// The kernel rejected the request before DRBD saw it. Nothing was done.
    #[error("the kernel rejected the request: errno {0}")]
    Rejected(i32),
    /// The socket failed; whether the command was executed is not known.
    #[error("the netlink socket failed: errno {0}")]
    Socket(i32),
    /// The kernel executed the request and no answer came in time; the outcome is not known.
    #[error("no answer from the kernel")]
    NoReply,
    /// The answer makes no sense; the outcome is not known.
    #[error("the kernel's answer makes no sense: {0}")]
    Decode(#[from] DecodeError),
}

impl TransportError {
    fn is_outcome_unknown(&self) -> bool {
        matches!(self, Self::Socket(_) | Self::NoReply | Self::Decode(_))
    }

    /// From the errno of a netlink error message.
    pub(crate) fn from_errno(errno: i32) -> Self {
        match errno {
            nix::libc::EPERM => Self::NotPermitted,
            nix::libc::ENOENT => Self::ModuleAbsent,
            other => Self::Rejected(other),
        }
    }
}
