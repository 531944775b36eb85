//! What DRBD says about a resource, and the conclusions that safety rules draw from it.
//!
//! S1: [`ResourceStatus::released_by`], [`ResourceStatus::is_stand_alone`]; S2:
//! [`ResourceStatus::all_up_to_date`], [`Device::has_generation`]. Every predicate is false when
//! something is absent or unknown (S12).

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::abi::Abi;
use crate::enums::{ConnState, DiskState, ReplState, Role};
use crate::options::{self, DiskOptions, NetOptions, ResourceOptions, S1Violation};

/// The bit of a generation identifier that marks a running primary (`UUID_PRIMARY`).
const UUID_PRIMARY: u64 = 1;
/// The identifier of a volume whose metadata has just been made (`UUID_JUST_CREATED`).
const UUID_JUST_CREATED: u64 = 4;

/// Which connection of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConnKey {
    /// 8.4 has exactly one.
    Only,
    /// 9: the peer's node id.
    Peer(u32),
}

impl fmt::Display for ConnKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only => f.write_str("peer"),
            Self::Peer(id) => write!(f, "peer-node-id:{id}"),
        }
    }
}

/// One end of a connection: the kernel's `struct sockaddr` as it is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Endpoint(pub(crate) Vec<u8>);

/// `AF_INET` and `AF_INET6`.
const INET: u16 = 2;
const INET6: u16 = 10;

impl Endpoint {
    /// The address, if it is IPv4 or IPv6 (DRBD knows others).
    #[must_use]
    pub fn socket_addr(&self) -> Option<SocketAddr> {
        let raw = &self.0;
        let family = u16::from_ne_bytes(*raw.first_chunk()?);
        let port = u16::from_be_bytes(*raw.get(2..)?.first_chunk()?);
        match family {
            INET => {
                let octets: [u8; 4] = *raw.get(4..)?.first_chunk()?;
                Some(SocketAddrV4::new(Ipv4Addr::from(octets), port).into())
            }
            INET6 => {
                let flow = u32::from_be_bytes(*raw.get(4..)?.first_chunk()?);
                let octets: [u8; 16] = *raw.get(8..)?.first_chunk()?;
                let scope = u32::from_ne_bytes(*raw.get(24..)?.first_chunk()?);
                Some(SocketAddrV6::new(Ipv6Addr::from(octets), port, flow, scope).into())
            }
            _ => None,
        }
    }
}

impl From<SocketAddr> for Endpoint {
    /// As `struct sockaddr_in` (16 bytes) or `sockaddr_in6` (28 bytes); the kernel compares bytes.
    fn from(address: SocketAddr) -> Self {
        let mut raw = Vec::with_capacity(28);
        match address {
            SocketAddr::V4(v4) => {
                raw.extend_from_slice(&INET.to_ne_bytes());
                raw.extend_from_slice(&v4.port().to_be_bytes());
                raw.extend_from_slice(&v4.ip().octets());
                raw.resize(16, 0);
            }
            SocketAddr::V6(v6) => {
                raw.extend_from_slice(&INET6.to_ne_bytes());
                raw.extend_from_slice(&v6.port().to_be_bytes());
                raw.extend_from_slice(&v6.flowinfo().to_be_bytes());
                raw.extend_from_slice(&v6.ip().octets());
                raw.extend_from_slice(&v6.scope_id().to_ne_bytes());
            }
        }
        Self(raw)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.socket_addr() {
            Some(address) => write!(f, "{address}"),
            None => write!(f, "sockaddr {:02x?}", self.0),
        }
    }
}

/// Why I/O is suspended. Any of them is enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspended {
    /// By an operator.
    pub user: bool,
    /// No replica can be reached.
    pub no_data: bool,
    /// The peer is lost and not fenced yet: the freeze that rule S1 counts on.
    pub fencing: bool,
    /// No quorum (9).
    pub quorum: bool,
}

impl Suspended {
    /// I/O is suspended for some reason.
    #[must_use]
    pub fn any(self) -> bool {
        self.user || self.no_data || self.fencing || self.quorum
    }
}

/// A volume of a resource on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Minor number of the device node.
    pub minor: u32,
    /// State of the local disk.
    pub disk: DiskState,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Current generation with the primary bit masked; `None` without a disk.
    pub current_uuid: Option<u64>,
    /// The current generation carries the mark of a running primary.
    pub primary_mark: bool,
    /// Older generations, newest first, zeros left out.
    pub history_uuids: Vec<u64>,
    /// Requests of the file system in flight.
    pub upper_pending: Option<u32>,
    /// Requests to the local disk in flight.
    pub lower_pending: Option<u32>,
    /// Quorum (9).
    pub has_quorum: Option<bool>,
    /// Opened by somebody (9).
    pub is_open: Option<bool>,
    /// Configuration of the disk; only from [`crate::Drbd::status`], and only while attached.
    pub options: Option<DiskOptions>,
}

impl Device {
    pub(crate) fn new(minor: u32) -> Self {
        Self {
            minor,
            disk: DiskState::Unknown(u32::MAX),
            size: None,
            current_uuid: None,
            primary_mark: false,
            history_uuids: Vec::new(),
            upper_pending: None,
            lower_pending: None,
            has_quorum: None,
            is_open: None,
            options: None,
        }
    }

    pub(crate) fn set_uuid(&mut self, raw: u64) {
        self.current_uuid = (raw & !UUID_PRIMARY != 0).then_some(raw & !UUID_PRIMARY);
        self.primary_mark = self.current_uuid.is_some() && raw & UUID_PRIMARY != 0;
    }

    /// The metadata is new and has never held data.
    #[must_use]
    pub fn is_just_created(&self) -> bool {
        self.current_uuid == Some(UUID_JUST_CREATED)
    }

    /// The generation is ours or one that ours descends from (S2). A volume without a generation,
    /// and the generation 0, are no.
    #[must_use]
    pub fn has_generation(&self, uuid: u64) -> bool {
        let uuid = uuid & !UUID_PRIMARY;
        uuid != 0
            && self.current_uuid.is_some()
            && (self.current_uuid == Some(uuid)
                || self.history_uuids.iter().any(|old| old & !UUID_PRIMARY == uuid))
    }
}

/// The peer's copy of a volume, seen over one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerDevice {
    /// Replication state.
    pub repl: ReplState,
    /// The peer's disk.
    pub disk: DiskState,
    /// Bytes that differ, or may.
    pub out_of_sync_bytes: Option<u64>,
    /// Bytes that the running resync had to copy at its start (9; see [`PeerDevice::resync_percent`]).
    pub resync_total_bytes: Option<u64>,
    /// The generation since which the bitmap counts; 0: none.
    pub bitmap_uuid: Option<u64>,
    /// The resync is paused, by whomever.
    pub resync_suspended: bool,
}

impl PeerDevice {
    pub(crate) fn new() -> Self {
        Self {
            repl: ReplState::Unknown(u32::MAX),
            disk: DiskState::Unknown(u32::MAX),
            out_of_sync_bytes: None,
            resync_total_bytes: None,
            bitmap_uuid: None,
            resync_suspended: false,
        }
    }

    /// How much of the volume is in sync, 0 to 100, given its size; `None` without a number.
    #[must_use]
    pub fn in_sync_percent(&self, size: u64) -> Option<f64> {
        let left = self.out_of_sync_bytes?.min(size);
        (size > 0).then(|| 100.0 - left as f64 * 100.0 / size as f64)
    }

    /// How far the running resync is, 0 to 100. Only 9 says how much there was to do.
    #[must_use]
    pub fn resync_percent(&self) -> Option<f64> {
        let total = self.resync_total_bytes.filter(|total| *total > 0)?;
        let left = self.out_of_sync_bytes?.min(total);
        self.repl.is_resync().then(|| 100.0 - left as f64 * 100.0 / total as f64)
    }
}

/// A connection to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Which one.
    pub key: ConnKey,
    /// The peer's name (9).
    pub name: Option<String>,
    /// Our end; absent on 8.4 while StandAlone. (Of several paths on 9, the first.)
    pub my_addr: Option<Endpoint>,
    /// The peer's end.
    pub peer_addr: Option<Endpoint>,
    /// State.
    pub state: ConnState,
    /// The peer's role. On 8.4 Primary if it is Primary for any volume.
    pub peer_role: Role,
    /// The peer's copies by volume.
    pub peer_devices: BTreeMap<u16, PeerDevice>,
    /// Configuration; only from [`crate::Drbd::status`], and on 8.4 not while StandAlone.
    pub options: Option<NetOptions>,
}

impl Connection {
    pub(crate) fn new(key: ConnKey) -> Self {
        Self {
            key,
            name: None,
            my_addr: None,
            peer_addr: None,
            state: ConnState::Unknown(u32::MAX),
            peer_role: Role::Unspecified,
            peer_devices: BTreeMap::new(),
            options: None,
        }
    }
}

/// One resource on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceStatus {
    /// The interface it was read through; some conclusions depend on it.
    pub abi: Abi,
    /// Name.
    pub name: String,
    /// Our role. On 8.4 Primary if we are Primary for any volume.
    pub role: Role,
    /// I/O is suspended, and why.
    pub suspended: Suspended,
    /// All I/O fails until the device is closed (9, after a forced demotion).
    pub fail_io: bool,
    /// Volumes.
    pub devices: BTreeMap<u16, Device>,
    /// Connections. 8.4 shows none, or a bare one, while StandAlone.
    pub connections: Vec<Connection>,
    /// Configuration; only from [`crate::Drbd::status`].
    pub options: Option<ResourceOptions>,
}

impl ResourceStatus {
    pub(crate) fn new(abi: Abi, name: &str) -> Self {
        Self {
            abi,
            name: name.to_owned(),
            role: Role::Unspecified,
            suspended: Suspended::default(),
            fail_io: false,
            devices: BTreeMap::new(),
            connections: Vec::new(),
            options: None,
        }
    }

    /// A connection by its key.
    #[must_use]
    pub fn connection(&self, key: ConnKey) -> Option<&Connection> {
        self.connections.iter().find(|connection| connection.key == key)
    }

    pub(crate) fn connection_mut(&mut self, key: ConnKey) -> &mut Connection {
        let at = self.connections.iter().position(|connection| connection.key == key);
        let at = at.unwrap_or_else(|| {
            self.connections.push(Connection::new(key));
            self.connections.len() - 1
        });
        &mut self.connections[at]
    }

    /// There are volumes and the local disk of each is UpToDate (S2).
    #[must_use]
    pub fn all_up_to_date(&self) -> bool {
        !self.devices.is_empty()
            && self.devices.values().all(|device| device.disk == DiskState::UpToDate)
    }

    /// Evidence for the proof `Released` (S1): connected, and the peer says that it is Secondary.
    #[must_use]
    pub fn released_by(&self, key: ConnKey) -> bool {
        self.connection(key).is_some_and(|connection| {
            connection.state == ConnState::Connected && connection.peer_role == Role::Secondary
        })
    }

    /// There is at least one peer, and each is `Released` (see [`Self::released_by`]).
    #[must_use]
    pub fn released_by_all(&self) -> bool {
        !self.connections.is_empty()
            && self.connections.iter().all(|connection| self.released_by(connection.key))
    }

    /// No network at all: half of the proof `Frozen` (S1). On 8.4 the kernel drops a connection's
    /// configuration with it, so a resource with volumes and *no* connection is StandAlone; on 9 a
    /// resource without connections is merely unconfigured, which is no proof of anything.
    #[must_use]
    pub fn is_stand_alone(&self) -> bool {
        let none_is_proof = self.abi == Abi::V84 && !self.devices.is_empty();
        let all = |state| self.connections.iter().all(|connection| connection.state == state);
        all(ConnState::StandAlone) && (none_is_proof || !self.connections.is_empty())
    }

    /// The peer holds everything that was acknowledged, whatever our own disks are: all its disks are
    /// `UpToDate`, and replication runs, or runs towards us.
    #[must_use]
    pub fn is_complete_at(&self, key: ConnKey) -> bool {
        let Some(connection) = self.connections.iter().find(|c| c.key == key) else { return false };
        let holds = |peer: &PeerDevice| {
            peer.disk == DiskState::UpToDate
                && (peer.repl == ReplState::Established || peer.repl.is_resync_target())
        };
        !self.devices.is_empty()
            && connection.state == ConnState::Connected
            && self
                .devices
                .keys()
                .all(|volume| connection.peer_devices.get(volume).is_some_and(holds))
    }

    /// A resync is running on some volume, paused included.
    #[must_use]
    pub fn is_resyncing(&self) -> bool {
        self.peer_devices().any(|peer| peer.repl.is_resync())
    }

    /// Our own data is being overwritten, or is about to be (S2: never promote).
    #[must_use]
    pub fn is_resync_target(&self) -> bool {
        self.peer_devices().any(|peer| peer.repl.is_resync_target())
    }

    /// Both copies of every volume are UpToDate and replication is established: only then may the
    /// peer be a member of *current* (S2).
    #[must_use]
    pub fn is_in_sync_with(&self, key: ConnKey) -> bool {
        let Some(connection) = self.connection(key) else { return false };
        let peer_good = |volume: &u16| {
            connection.peer_devices.get(volume).is_some_and(|peer| {
                peer.repl == ReplState::Established && peer.disk == DiskState::UpToDate
            })
        };
        connection.state == ConnState::Connected
            && self.all_up_to_date()
            && self.devices.keys().all(peer_good)
    }

    /// Bytes that differ or may, over all volumes and peers; `None` if some number is absent.
    #[must_use]
    pub fn out_of_sync_bytes(&self) -> Option<u64> {
        self.peer_devices()
            .try_fold(0u64, |sum, peer| Some(sum.saturating_add(peer.out_of_sync_bytes?)))
    }

    /// Options that are not as rule S1 needs them, those that cannot be read included (S12). On 8.4
    /// the options of the network can be read only while there is a connection, those of a disk only
    /// while it is attached.
    #[must_use]
    pub fn s1_violations(&self) -> Vec<S1Violation> {
        options::s1_violations(self)
    }

    fn peer_devices(&self) -> impl Iterator<Item = &PeerDevice> {
        self.connections.iter().flat_map(|connection| connection.peer_devices.values())
    }
}
