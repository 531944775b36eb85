//! What one hypervisor tells of itself: the whole of what the checks look at, here and elsewhere.
//!
//! Owns names and units; `collect` fills it and the judges read it. Rule kept: S12. What could not
//! be read is [`Known::Unknown`] with the reason, never a default; a report in a form that this
//! program does not know is refused.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::core::finding::Finding;
use crate::libvirt::domain::{Blocker, Cache, OnError};
use crate::libvirt::pool::Pool;
use crate::libvirt::state::DomainState;
use crate::mounts::mountinfo::NfsMount;
use crate::mounts::options::NfsOptions;

/// The form of the report. It rises when the meaning of a field changes; fields that are added do
/// not change it.
pub const VERSION: u32 = 1;

/// The largest report that is read, in bytes. A host with a hundred guests has 300 KiB.
pub const LARGEST: usize = 4 << 20;

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Known<T> {
    /// What it is.
    Known(T),
    /// Why it is not known.
    Unknown(String),
}

impl<T> Known<T> {
    /// The value, if it is known.
    pub const fn get(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }

    /// Why it is not known.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Known(_) => None,
            Self::Unknown(why) => Some(why),
        }
    }

    /// From a result, keeping the error's words.
    pub fn of<E: std::fmt::Display>(result: Result<T, E>) -> Self {
        result.map_or_else(|error| Self::Unknown(error.to_string()), Self::Known)
    }
}

impl<T> Known<Vec<T>> {
    /// The elements; none where they are not known. Only for what looks at each: absence proves
    /// nothing here.
    pub fn each(&self) -> impl Iterator<Item = &T> {
        self.get().into_iter().flatten()
    }
}

/// One host's report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// [`VERSION`] of the program that wrote it.
    pub version: u32,
    /// The host's name, as its kernel has it.
    pub host: String,
    /// What the host's name means on the host itself.
    pub own_name: OwnName,
    /// The host's clock.
    pub clock: Clock,
    /// The kernel's release.
    pub kernel: Known<String>,
    /// Memory that new guests can have, in bytes.
    pub free_memory: Known<u64>,
    /// libvirt and QEMU.
    pub libvirt: Known<Versions>,
    /// What guests can be given here.
    pub capabilities: Known<Capabilities>,
    /// What nasd says of its services; empty lists where nasd was never heard.
    pub services: Services,
    /// NFS mounts.
    pub mounts: Known<Vec<Mount>>,
    /// libvirt's storage pools.
    pub pools: Known<Vec<PoolReport>>,
    /// Leases.
    pub locks: Locks,
    /// What listens here.
    pub listening: Known<Listening>,
    /// Guests that have a process.
    pub guests: Known<Vec<Guest>>,
    /// Storage phases, by the running agent.
    pub phases: Known<Vec<MountPhase>>,
}

/// A name and what it resolves to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnName {
    /// What the host's own name resolves to on the host.
    pub resolves_to: Known<Vec<IpAddr>>,
    /// The addresses of its interfaces, loopback left out.
    pub addresses: Known<Vec<IpAddr>>,
}

/// A host's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Nanoseconds since 1970 in UTC, read when the report was complete.
    pub unix_ns: u64,
    /// Whether the kernel's clock is kept right by a time service.
    pub synchronised: Known<bool>,
}

/// Versions: 1 000 000 major + 1000 minor + release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The name that libvirt gives to those that migrate to this host.
    pub name: String,
    /// libvirt's version.
    pub libvirt: u64,
    /// QEMU's version.
    pub qemu: u64,
}

/// What guests can be given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The host's architecture.
    pub arch: String,
    /// Model of the host's processor.
    pub model: Option<String>,
    /// What the processor has beyond the model.
    pub features: Vec<String>,
    /// Machine types, with their aliases.
    pub machines: Vec<String>,
    /// What a guest can be, by its kind.
    pub kinds: Vec<KindOfGuest>,
}

/// Processors for one kind of guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindOfGuest {
    /// `kvm` or `qemu`.
    pub virt_type: String,
    /// Models that run here.
    pub usable: Vec<String>,
    /// Models that are known here and do not run.
    pub unusable: Vec<String>,
    /// The model that is nearest to all that is possible here.
    pub host_model: Option<String>,
    /// What is possible beyond that model.
    pub host_features: Vec<String>,
}

/// What nasd says of its services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// Floating addresses.
    pub floating: Vec<Named>,
    /// The nodes' own addresses.
    pub nodes: Vec<Named>,
}

/// Addresses with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Of the service or the node.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

impl Services {
    /// In the form of the checks on mounts.
    #[must_use]
    pub fn known(&self) -> crate::mounts::check::Services {
        let pair = |named: &Named| (named.name.clone(), named.addresses.clone());
        crate::mounts::check::Services {
            floating: self.floating.iter().map(pair).collect(),
            nodes: self.nodes.iter().map(pair).collect(),
        }
    }
}

/// An NFS mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it is.
    pub point: String,
    /// The server, by name or address, as it was given to mount.
    pub server: String,
    /// The path on the server.
    pub path: String,
    /// What of the file system is mounted: `/` unless it is a bind mount.
    pub root: String,
    /// Major and minor of the device, as mountinfo shows it.
    pub device: String,
    /// The address of the server that the kernel talks to.
    pub address: Option<IpAddr>,
    /// The server's identifier of the file system; the same file system has the same on both nodes.
    pub fsid: Option<String>,
    /// The service that it comes from, as far as its address tells.
    pub service: Option<String>,
    /// Not writable here.
    pub read_only: bool,
    /// The options in force.
    pub options: String,
}

impl Mount {
    /// The options in force, understood.
    #[must_use]
    pub fn understood(&self) -> NfsOptions {
        NfsOptions::parse(&self.options)
    }

    /// `server:/path`, as mount takes it.
    #[must_use]
    pub fn source(&self) -> String {
        self.nfs().source.to_string()
    }

    /// As the checks on mounts take it.
    #[must_use]
    pub fn nfs(&self) -> NfsMount {
        let number = |text: Option<&str>| text.and_then(|t| t.parse().ok()).unwrap_or(0);
        let mut device = self.device.split(':');
        let path = PathBuf::from(&self.path);
        NfsMount {
            id: 0,
            parent: 0,
            device: (number(device.next()), number(device.next())),
            root: PathBuf::from(&self.root),
            point: PathBuf::from(&self.point),
            source: crate::mounts::mountinfo::Source { server: self.server.clone(), path },
            options: self.understood(),
            read_only: self.read_only,
        }
    }
}

/// A storage pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// Its definition.
    pub definition: Pool,
    /// Started, as libvirt thinks.
    pub active: bool,
    /// Started with libvirt.
    pub autostart: bool,
    /// Still there after a restart of libvirt.
    pub persistent: bool,
    /// What is mounted at its target itself; `None` where nothing is.
    pub mounted: Known<Option<String>>,
    /// The point of the NFS mount that its target lies on; `None` where it is none.
    pub on: Option<String>,
}

/// What keeps two hosts from running the same guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locks {
    /// `lock_manager` of libvirt's QEMU driver; `None` is libvirt's default, none.
    pub manager: Known<Option<String>>,
    /// Lockspaces that guests of this host need.
    pub needed: Vec<String>,
    /// What sanlock says.
    pub sanlock: Known<Sanlock>,
    /// What was found in that, on that host.
    pub findings: Vec<Finding>,
}

/// What sanlock says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sanlock {
    /// The daemon's version.
    pub version: String,
    /// The name under which the host writes its leases.
    pub host_name: String,
    /// A host that loses its lease is reset.
    pub watchdog: bool,
    /// Seconds from the watchdog's last ping to the reset, where the daemon tells.
    pub watchdog_fire_timeout: Option<u32>,
    /// The lockspaces.
    pub lockspaces: Vec<Lockspace>,
}

/// A lockspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lockspace {
    /// Its name.
    pub name: String,
    /// The host's number in it.
    pub host_id: u64,
    /// The file or device it lives on.
    pub path: String,
    /// Joined, and not lost.
    pub joined: bool,
    /// Seconds one storage access may take.
    pub io_timeout: u32,
    /// How long the storage may stay silent from now, in milliseconds; `None`: no lease is held.
    pub margin_ms: Option<u64>,
}

/// What listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// `tls` (16514), `tcp` (16509) and `ssh` (22), those that do beyond loopback.
    pub transports: Vec<Transport>,
    /// The ports of incoming migrations: first and last.
    pub migration: (u16, u16),
    /// Those of them that something listens on already.
    pub taken: Vec<u16>,
}

/// How libvirt can be reached from another host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Port 16514.
    Tls,
    /// Port 16509, not encrypted.
    Tcp,
    /// Port 22.
    Ssh,
}

impl Transport {
    /// All of them, the best first.
    pub const ALL: [Self; 3] = [Self::Tls, Self::Tcp, Self::Ssh];

    /// Its usual port.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Tls => 16514,
            Self::Tcp => 16509,
            Self::Ssh => 22,
        }
    }

    /// Its name in a URI of libvirt.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Tcp => "tcp",
            Self::Ssh => "ssh",
        }
    }
}

/// A guest that has a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Its uuid.
    pub uuid: String,
    /// What it does.
    pub state: Known<DomainState>,
    /// `kvm`, `qemu`.
    pub virt_type: String,
    /// Its architecture.
    pub arch: Option<String>,
    /// Its machine type.
    pub machine: Option<String>,
    /// Memory in bytes, the most it can have.
    pub memory: u64,
    /// Its processor.
    pub cpu: Processor,
    /// Its disks and drives.
    pub disks: Vec<Disk>,
    /// Lockspaces that its definition names.
    pub lockspaces: Vec<String>,
    /// What stands in the way of a migration.
    pub blockers: Vec<Blocker>,
}

/// A guest's processor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processor {
    /// `custom`, `host-model`, `host-passthrough`, `maximum`; `None` is QEMU's own default.
    pub mode: Option<String>,
    /// Its model.
    pub model: Option<String>,
    /// What it must have beyond the model.
    pub features: Vec<String>,
}

/// A disk or another drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Its name for libvirt, such as `vda`.
    pub target: String,
    /// `disk`, `cdrom`, `floppy`, `lun`.
    pub device: String,
    /// Its files and devices on this host, the topmost first.
    pub paths: Vec<Place>,
    /// The pool it is a volume of, if it is given so.
    pub pool: Option<String>,
    /// Its cache mode.
    pub cache: Cache,
    /// What happens when a write fails.
    pub on_write_error: OnError,
    /// What happens when a read fails.
    pub on_read_error: OnError,
    /// Whether an error of the storage pauses the guest, so that it can go on afterwards.
    pub pauses_on_error: bool,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// QEMU reaches its storage by the network itself.
    pub network: bool,
    /// A copy of it is under way.
    pub copying: bool,
}

/// A file or device of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Its path.
    pub path: String,
    /// The point of the NFS mount that it lies on; `None` where it lies on none.
    pub on: Option<String>,
}

/// The storage phase of a mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPhase {
    /// The mount point.
    pub mount: String,
    /// `core::phase::Phase` in kebab case, such as `io-back`.
    pub phase: String,
}

impl HostReport {
    /// For others, as JSON: of the guests' processors and disks nobody elsewhere has any use.
    ///
    /// # Errors
    /// Never in practice: every field is plain data.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let mut brief = self.clone();
        if let Known::Known(guests) = &mut brief.guests {
            for guest in guests {
                guest.cpu = Processor::default();
                guest.disks.clear();
            }
        }
        serde_json::to_string(&brief)
    }

    /// From another host.
    ///
    /// # Errors
    /// The text is too long, is no report, or one in a form that this program does not know.
    pub fn from_json(text: &str) -> Result<Self, BadReport> {
        if text.len() > LARGEST {
            return Err(BadReport::TooLong { bytes: text.len() });
        }
        /// Read first: a later form may have other fields.
        #[derive(Deserialize)]
        struct Form {
            version: u32,
        }
        let form: Form = serde_json::from_str(text)?;
        if form.version != VERSION {
            return Err(BadReport::Version { theirs: form.version });
        }
        Ok(serde_json::from_str(text)?)
    }

    /// The guest of that name or uuid.
    #[must_use]
    pub fn guest(&self, name: &str) -> Option<&Guest> {
        self.guests.each().find(|guest| guest.name == name || guest.uuid == name)
    }

    /// The mount at that point. Of several the last is seen.
    #[must_use]
    pub fn mount(&self, point: &str) -> Option<&Mount> {
        self.mounts.get()?.iter().rfind(|mount| mount.point == point)
    }

    /// The mount that a path lies on, by its name alone.
    #[must_use]
    pub fn mount_of(&self, path: &str) -> Option<&Mount> {
        let path = std::path::Path::new(path);
        let depth = |mount: &&Mount| std::path::Path::new(&mount.point).components().count();
        self.mounts.each().filter(|m| path.starts_with(&m.point)).max_by_key(depth)
    }

    /// Whether libvirt's guests rely on sanlock; unknown counts as no.
    #[must_use]
    pub fn uses_sanlock(&self) -> bool {
        self.locks.manager.get().and_then(Option::as_deref) == Some("sanlock")
    }
}

impl Guest {
    /// Every place of its disks that lies on NFS, with the disk.
    pub fn on_nfs(&self) -> impl Iterator<Item = (&Disk, &Place)> {
        let places = |disk| Disk::places(disk).map(move |place| (disk, place));
        self.disks.iter().flat_map(places).filter(|(_, place)| place.on.is_some())
    }
}

impl Disk {
    fn places(&self) -> impl Iterator<Item = &Place> {
        self.paths.iter()
    }

    /// Whether anything of it lies on NFS.
    #[must_use]
    pub fn is_on_nfs(&self) -> bool {
        self.places().any(|place| place.on.is_some())
    }
}

/// A report that cannot be used. What its host is like is unknown.
#[derive(Debug, thiserror::Error)]
pub enum BadReport {
    /// More than any host has to tell.
    #[error("the report has {bytes} bytes, more than {LARGEST}: it is not read")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// Of an hvagent whose reports differ.
    #[error(
        "the report has form {theirs}, this hvagent knows {VERSION}: install the same version of hvagent on all hypervisors"
    )]
    Version {
        /// Its form.
        theirs: u32,
    },
    /// Not a report.
    #[error(
        "the report is not understood ({0}): install the same version of hvagent on all hypervisors"
    )]
    Json(#[from] serde_json::Error),
}

/// Milliseconds of a span, as many as the number takes.
#[must_use]
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
