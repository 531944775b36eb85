//! The picture of all resources that the event stream adds up to. Pure: events in, state out.
//!
//! Keeps S12 in the face of the stream's races (the kernel sends its dump and its multicast
//! independently): a dump entry never overwrites what a multicast event said, and never revives what
//! a multicast event destroyed, because after joining the group the latest multicast about an object
//! is at least as new as the dump.

use std::collections::{BTreeMap, BTreeSet};

use crate::abi::Abi;
use crate::enums::{ConnState, DiskState, NotifyKind, ReplState, Role};
use crate::status::{ConnKey, Device, Endpoint, PeerDevice, ResourceStatus, Suspended};

/// One notification of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The kernel's counter (multicast), or our request's number (dump).
    pub seq: u32,
    /// What happened.
    pub kind: NotifyKind,
    /// More notifications of the same change follow.
    pub continues: bool,
    /// The resource; empty for [`Object::InitialStateDone`].
    pub resource: String,
    /// The object that it happened to.
    pub object: Object,
}

/// The object of a notification. `info` is absent when the object is destroyed, statistics may be
/// absent from any change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// The resource itself.
    Resource(Option<ResourceInfo>),
    /// A volume.
    Device {
        /// Its number in the resource.
        volume: u16,
        /// Its minor number.
        minor: u32,
        /// State.
        info: Option<DeviceInfo>,
        /// Statistics.
        stats: Option<DeviceStats>,
    },
    /// A connection.
    Connection {
        /// Which.
        key: ConnKey,
        /// The peer's name (9).
        name: Option<String>,
        /// Our address (8.4).
        my_addr: Option<Endpoint>,
        /// The peer's address (8.4).
        peer_addr: Option<Endpoint>,
        /// State.
        info: Option<ConnectionInfo>,
    },
    /// The peer's copy of a volume.
    PeerDevice {
        /// Over which connection.
        key: ConnKey,
        /// Volume.
        volume: u16,
        /// State.
        info: Option<PeerDeviceInfo>,
        /// Statistics.
        stats: Option<PeerDeviceStats>,
    },
    /// A path of a connection (9); not followed.
    Path,
    /// The kernel calls a helper, or a helper has returned.
    Helper {
        /// The volume, if it is about one.
        volume: Option<u16>,
        /// Which helper, for example `fence-peer`.
        name: String,
        /// Wait status of the helper: its exit code is bits 8 to 15.
        status: u32,
    },
    /// The dump is complete.
    InitialStateDone,
}

/// `resource_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceInfo {
    /// Our role.
    pub role: Role,
    /// Suspension of I/O.
    pub suspended: Suspended,
    /// All I/O fails (9).
    pub fail_io: bool,
}

/// `device_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The local disk.
    pub disk: DiskState,
    /// Quorum (9).
    pub has_quorum: Option<bool>,
    /// Opened (9).
    pub is_open: Option<bool>,
}

/// `device_statistics`, as far as used; sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Size in bytes.
    pub size: Option<u64>,
    /// Requests of the file system in flight.
    pub upper_pending: Option<u32>,
    /// Requests to the disk in flight.
    pub lower_pending: Option<u32>,
    /// The generation as the kernel has it, with the primary bit.
    pub current_uuid: Option<u64>,
    /// Older generations.
    pub history_uuids: Vec<u64>,
}

/// `connection_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// State.
    pub state: ConnState,
    /// The peer's role.
    pub peer_role: Role,
}

/// `peer_device_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerDeviceInfo {
    /// Replication.
    pub repl: ReplState,
    /// The peer's disk.
    pub disk: DiskState,
    /// The resync is paused.
    pub resync_suspended: bool,
}

/// `peer_device_statistics`, as far as used; in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerDeviceStats {
    /// Bytes out of sync.
    pub out_of_sync: Option<u64>,
    /// Bytes that the running resync had to copy (9).
    pub resync_total: Option<u64>,
    /// Generation of the bitmap.
    pub bitmap_uuid: Option<u64>,
}

/// Identity of an object in the stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKey {
    /// The resource.
    Resource,
    /// A volume.
    Device(u16),
    /// A connection.
    Connection(ConnKey),
    /// A peer's copy.
    PeerDevice(ConnKey, u16),
}

impl Object {
    /// The identity; `None` for what the model does not hold.
    #[must_use]
    pub fn key(&self) -> Option<ObjectKey> {
        match self {
            Self::Resource(_) => Some(ObjectKey::Resource),
            Self::Device { volume, .. } => Some(ObjectKey::Device(*volume)),
            Self::Connection { key, .. } => Some(ObjectKey::Connection(*key)),
            Self::PeerDevice { key, volume, .. } => Some(ObjectKey::PeerDevice(*key, *volume)),
            Self::Path | Self::Helper { .. } | Self::InitialStateDone => None,
        }
    }
}

/// What an event did to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// The object was entered, changed or removed.
    Updated,
    /// The dump entry was older than what multicast had said.
    Stale,
    /// The dump is complete: the model is whole.
    Complete,
    /// Not about an object that the model holds.
    Ignored,
}

/// All resources of this node.
#[derive(Clone, Debug)]
pub struct Model {
    abi: Abi,
    resources: BTreeMap<String, ResourceStatus>,
    complete: bool,
    /// Objects that multicast spoke about while the dump was running.
    spoken: BTreeSet<(String, ObjectKey)>,
}

impl Model {
    /// An empty model that expects a dump.
    #[must_use]
    pub fn new(abi: Abi) -> Self {
        Self { abi, resources: BTreeMap::new(), complete: false, spoken: BTreeSet::new() }
    }

    /// The dump has been read to its end; before, absence means nothing (S12).
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// All resources by name.
    #[must_use]
    pub fn resources(&self) -> &BTreeMap<String, ResourceStatus> {
        &self.resources
    }

    /// One resource; `None` also while the model is incomplete.
    #[must_use]
    pub fn resource(&self, name: &str) -> Option<&ResourceStatus> {
        self.resources.get(name).filter(|_| self.complete)
    }

    pub(crate) fn into_resources(self) -> BTreeMap<String, ResourceStatus> {
        self.resources
    }

    /// Enters one event.
    pub fn apply(&mut self, event: &Event) -> Applied {
        if event.object == Object::InitialStateDone {
            self.complete = true;
            self.spoken.clear();
            return Applied::Complete;
        }
        let Some(key) = event.object.key() else { return Applied::Ignored };
        match event.kind {
            NotifyKind::Exists => self.exists(event, key),
            NotifyKind::Create | NotifyKind::Change => {
                self.speak(event, key);
                self.upsert(event);
                Applied::Updated
            }
            NotifyKind::Destroy => {
                self.speak(event, key.clone());
                self.remove(&event.resource, &key);
                Applied::Updated
            }
            NotifyKind::Call
            | NotifyKind::Response
            | NotifyKind::Rename
            | NotifyKind::Unknown(_) => Applied::Ignored,
        }
    }

    fn speak(&mut self, event: &Event, key: ObjectKey) {
        if !self.complete {
            self.spoken.insert((event.resource.clone(), key));
        }
    }

    fn exists(&mut self, event: &Event, key: ObjectKey) -> Applied {
        if self.spoken.contains(&(event.resource.clone(), key)) {
            return Applied::Stale;
        }
        self.upsert(event);
        Applied::Updated
    }

    fn upsert(&mut self, event: &Event) {
        let abi = self.abi;
        let status = self
            .resources
            .entry(event.resource.clone())
            .or_insert_with(|| ResourceStatus::new(abi, &event.resource));
        match &event.object {
            Object::Resource(info) => set_resource(status, info.as_ref()),
            Object::Device { volume, minor, info, stats } => {
                let device = status.devices.entry(*volume).or_insert_with(|| Device::new(*minor));
                device.minor = *minor;
                set_device(device, info.as_ref(), stats.as_ref());
            }
            Object::Connection { key, name, my_addr, peer_addr, info } => {
                let connection = status.connection_mut(*key);
                let keep = |new: &Option<Endpoint>, old: Option<Endpoint>| new.clone().or(old);
                connection.name = name.clone().or(connection.name.take());
                connection.my_addr = keep(my_addr, connection.my_addr.take());
                connection.peer_addr = keep(peer_addr, connection.peer_addr.take());
                if let Some(info) = info {
                    connection.state = info.state;
                    connection.peer_role = info.peer_role;
                }
            }
            Object::PeerDevice { key, volume, info, stats } => {
                // 8.4 tells a peer device's last change after its connection has gone: that must not
                // bring the connection back, with a state that nobody ever told.
                let known = status.connections.iter().any(|c| c.key == *key);
                let late = self.complete && event.kind == NotifyKind::Change;
                if known || !late {
                    let peers = &mut status.connection_mut(*key).peer_devices;
                    let peer = peers.entry(*volume).or_insert_with(PeerDevice::new);
                    set_peer_device(peer, info.as_ref(), stats.as_ref());
                }
            }
            Object::Path | Object::Helper { .. } | Object::InitialStateDone => {}
        }
    }

    fn remove(&mut self, resource: &str, key: &ObjectKey) {
        let Some(status) = self.resources.get_mut(resource) else { return };
        match key {
            ObjectKey::Resource => {
                self.resources.remove(resource);
            }
            ObjectKey::Device(volume) => {
                status.devices.remove(volume);
            }
            ObjectKey::Connection(key) => {
                status.connections.retain(|connection| connection.key != *key);
            }
            ObjectKey::PeerDevice(key, volume) => {
                let found = status.connections.iter_mut().find(|found| found.key == *key);
                if let Some(connection) = found {
                    connection.peer_devices.remove(volume);
                }
            }
        }
    }
}

fn set_resource(status: &mut ResourceStatus, info: Option<&ResourceInfo>) {
    if let Some(info) = info {
        status.role = info.role;
        status.suspended = info.suspended;
        status.fail_io = info.fail_io;
    }
}

fn set_device(device: &mut Device, info: Option<&DeviceInfo>, stats: Option<&DeviceStats>) {
    if let Some(info) = info {
        device.disk = info.disk;
        device.has_quorum = info.has_quorum.or(device.has_quorum);
        device.is_open = info.is_open.or(device.is_open);
    }
    if let Some(stats) = stats {
        device.size = stats.size.or(device.size);
        device.upper_pending = stats.upper_pending.or(device.upper_pending);
        device.lower_pending = stats.lower_pending.or(device.lower_pending);
        if let Some(raw) = stats.current_uuid {
            device.set_uuid(raw);
            device.history_uuids.clone_from(&stats.history_uuids);
        }
    }
}

fn set_peer_device(
    peer: &mut PeerDevice,
    info: Option<&PeerDeviceInfo>,
    stats: Option<&PeerDeviceStats>,
) {
    if let Some(info) = info {
        peer.repl = info.repl;
        peer.disk = info.disk;
        peer.resync_suspended = info.resync_suspended;
    }
    if let Some(stats) = stats {
        peer.out_of_sync_bytes = stats.out_of_sync.or(peer.out_of_sync_bytes);
        peer.resync_total_bytes = stats.resync_total.or(peer.resync_total_bytes);
        peer.bitmap_uuid = stats.bitmap_uuid.or(peer.bitmap_uuid);
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
