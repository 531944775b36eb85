//! Guests from their XML: which files their disks are, and what decides whether they can migrate.

use roxmltree::Node;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::xml;

/// The deepest backing chain that is followed; libvirt's own limit is 200.
const CHAIN: usize = 256;

/// A guest's definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its uuid.
    pub uuid: String,
    /// `kvm`, `qemu` and so on.
    pub virt_type: String,
    /// Memory in bytes, the most it can have.
    pub memory: u64,
    /// Virtual processors, the most it can have.
    pub vcpus: u32,
    /// Architecture, such as `x86_64`.
    pub arch: Option<String>,
    /// Machine type, such as `pc-q35-7.2`.
    pub machine: Option<String>,
    /// The emulator's path.
    pub emulator: Option<String>,
    /// Its processor.
    pub cpu: Cpu,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Leases named in the XML itself.
    pub leases: Vec<Lease>,
    /// What libvirt does when the lock manager loses a lease.
    pub on_lock_failure: Option<String>,
    /// What stands in the way of a migration.
    pub blockers: Vec<Blocker>,
}

/// How the guest's processor is described.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// `custom`, `host-model`, `host-passthrough`, `maximum`; `None` is the hypervisor's default.
    pub mode: Option<String>,
    /// The model's name, for `custom`.
    pub model: Option<String>,
    /// The whole element, for a comparison by libvirt.
    pub xml: Option<String>,
}

/// What a disk is read from and written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A file, by its path on this host.
    File(String),
    /// A block device, by its path on this host.
    Block(String),
    /// A volume of a pool.
    Volume {
        /// The pool's name.
        pool: String,
        /// The volume's.
        volume: String,
    },
    /// QEMU speaks to a server itself.
    Network {
        /// `nbd`, `rbd`, `iscsi`...
        protocol: String,
        /// Export, image, target.
        name: Option<String>,
    },
    /// An empty drive.
    Empty,
    /// Anything else (`dir`, `nvme`, `vhostuser`, `vhostvdpa`): only on this host.
    Other(String),
}

/// `cache=` of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Not given: QEMU takes `writeback`.
    Default,
    /// No cache of the host.
    None,
    /// No cache of the host, every write synchronous.
    DirectSync,
    /// Through the host's cache.
    WriteThrough,
    /// In the host's cache.
    WriteBack,
    /// In the host's cache, flushes ignored.
    Unsafe,
    /// A word this program does not know.
    Unknown,
}

impl Cache {
    fn of(word: Option<&str>) -> Self {
        match word {
            None | Some("default") => Self::Default,
            Some("none") => Self::None,
            Some("directsync") => Self::DirectSync,
            Some("writethrough") => Self::WriteThrough,
            Some("writeback") => Self::WriteBack,
            Some("unsafe") => Self::Unsafe,
            Some(_) => Self::Unknown,
        }
    }

    /// Whether two hosts see the same bytes of a shared file, with that mode.
    #[must_use]
    pub const fn is_coherent(self) -> bool {
        matches!(self, Self::None | Self::DirectSync)
    }
}

/// `error_policy=` and `rerror_policy=` of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Pause the guest: the only policy it can be brought back from.
    Stop,
    /// Tell the guest.
    Report,
    /// Tell nobody.
    Ignore,
    /// Pause it when there is no space, else tell it: what QEMU does to writes by default.
    EnoSpace,
    /// Not given, or a word this program does not know.
    Default,
}

impl OnError {
    fn of(word: Option<&str>) -> Self {
        match word {
            Some("stop") => Self::Stop,
            Some("report") => Self::Report,
            Some("ignore") => Self::Ignore,
            Some("enospace") => Self::EnoSpace,
            _ => Self::Default,
        }
    }
}

/// A disk, or another drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// `disk`, `cdrom`, `floppy`, `lun`.
    pub device: String,
    /// Its name for libvirt, such as `vda`.
    pub target: String,
    /// `virtio`, `scsi`, `sata`, `ide`...
    pub bus: Option<String>,
    /// `qcow2`, `raw`...
    pub format: Option<String>,
    /// Where it lives.
    pub source: Source,
    /// What it is laid over, nearest first.
    pub backing: Vec<Source>,
    /// Its cache mode.
    pub cache: Cache,
    /// What happens when a write fails.
    pub on_write_error: OnError,
    /// What happens when a read fails; `Default` follows the writes' policy.
    pub on_read_error: OnError,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// Several guests may write to it.
    pub shareable: bool,
    /// Thrown away at the end.
    pub transient: bool,
    /// A copy of it is under way (a block job with a second target).
    pub mirroring: bool,
}

impl Disk {
    /// Every file or device on this host that belongs to the disk, the topmost first.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        let path = |source| match source {
            &Source::File(ref path) | &Source::Block(ref path) => Some(path.as_str()),
            _ => None,
        };
        std::iter::once(&self.source).chain(&self.backing).filter_map(path)
    }

    /// Whether an error of the storage pauses the guest, so that it can go on afterwards.
    #[must_use]
    pub fn pauses_on_error(&self) -> bool {
        let reads = match self.on_read_error {
            OnError::Default => self.on_write_error,
            other => other,
        };
        self.on_write_error == OnError::Stop && reads == OnError::Stop
    }
}

/// A lease named in the XML.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its lockspace.
    pub lockspace: Option<String>,
    /// Its name.
    pub key: String,
    /// The file it lives in.
    pub path: Option<String>,
}

/// Why a guest cannot, or may not be able to, migrate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Blocker {
    /// A device of the host is passed to it.
    HostDevice(String),
    /// A directory of the host is shared with it.
    SharedDirectory,
    /// Memory shared with others on the host.
    SharedMemory,
    /// Encrypted memory.
    EncryptedMemory(String),
    /// A TPM whose state lies on this host.
    LocalTpm,
    /// A disk that is thrown away at the end.
    TransientDisk(String),
    /// A drive whose source exists on this host only by its kind.
    LocalDrive(String),
    /// A network interface served by a process on this host.
    HostNetwork(String),
}

impl Domain {
    /// Reads what `GetXMLDesc` returns.
    pub fn parse(text: &str) -> Result<Self> {
        let document = xml::parse("domain", text)?;
        let root = document.root_element();
        let needed =
            |name: &'static str| xml::text(root, name).ok_or_else(|| bad(format!("no {name}")));
        let devices = xml::child(root, "devices");
        let disks: Vec<Disk> = match devices {
            Some(devices) => xml::children(devices, "disk").map(disk).collect::<Result<_>>()?,
            None => Vec::new(),
        };
        let os = xml::child(root, "os").and_then(|os| xml::child(os, "type"));
        Ok(Self {
            name: needed("name")?,
            uuid: needed("uuid")?,
            virt_type: xml::attribute(root, "type").unwrap_or_default(),
            memory: memory(root)?,
            vcpus: vcpus(root)?,
            arch: os.and_then(|os| xml::attribute(os, "arch")),
            machine: os.and_then(|os| xml::attribute(os, "machine")),
            emulator: devices.and_then(|devices| xml::text(devices, "emulator")),
            cpu: xml::child(root, "cpu").map(|node| cpu(node, text)).unwrap_or_default(),
            leases: devices.map(leases).unwrap_or_default(),
            on_lock_failure: xml::text(root, "on_lockfailure"),
            blockers: blockers(root, devices, &disks),
            disks,
        })
    }

    /// Disks of which something lives at or below a directory.
    pub fn disks_below<'a>(&'a self, directory: &'a str) -> impl Iterator<Item = &'a Disk> {
        self.disks.iter().filter(move |disk| disk.paths().any(|path| is_below(path, directory)))
    }
}

/// Whether a path is a directory or something below it, by its letters alone.
fn is_below(path: &str, directory: &str) -> bool {
    let directory = directory.trim_end_matches('/');
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn bad(what: String) -> Error {
    Error::BadXml { kind: "domain", what }
}

/// Bytes, from a number with a unit (KiB when none is given).
fn memory(root: Node<'_, '_>) -> Result<u64> {
    let Some(node) = xml::child(root, "memory") else { return Err(bad("no memory".to_owned())) };
    let unit = node.attribute("unit").unwrap_or("KiB");
    let scale: u64 = match unit {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        other => return Err(bad(format!("memory in {other:?}"))),
    };
    let number = node.text().and_then(|text| text.trim().parse::<u64>().ok());
    number
        .and_then(|number| number.checked_mul(scale))
        .ok_or_else(|| bad("no amount of memory".to_owned()))
}

fn vcpus(root: Node<'_, '_>) -> Result<u32> {
    match xml::text(root, "vcpu") {
        None => Ok(1),
        Some(text) => text.parse().map_err(|_| bad(format!("{text:?} vcpus"))),
    }
}

fn cpu(node: Node<'_, '_>, text: &str) -> Cpu {
    let mode = xml::attribute(node, "mode");
    let xml = text.get(node.range()).map(str::to_owned);
    Cpu { mode, model: xml::text(node, "model"), xml }
}

fn disk(node: Node<'_, '_>) -> Result<Disk> {
    let driver = |name: &str| xml::child(node, "driver").and_then(|driver| driver.attribute(name));
    let target = xml::child_attribute(node, "target", "dev");
    Ok(Disk {
        device: xml::attribute(node, "device").unwrap_or_else(|| "disk".to_owned()),
        target: target.ok_or_else(|| bad("a disk has no target".to_owned()))?,
        bus: xml::child_attribute(node, "target", "bus"),
        format: driver("type").map(str::to_owned),
        source: source(node),
        backing: backing(node)?,
        cache: Cache::of(driver("cache")),
        on_write_error: OnError::of(driver("error_policy")),
        on_read_error: OnError::of(driver("rerror_policy")),
        read_only: xml::child(node, "readonly").is_some(),
        shareable: xml::child(node, "shareable").is_some(),
        transient: xml::child(node, "transient").is_some(),
        mirroring: xml::child(node, "mirror").is_some(),
    })
}

/// The source of a `<disk>` or a `<backingStore>`, whose `type` says which attributes count.
fn source(node: Node<'_, '_>) -> Source {
    let kind = node.attribute("type").unwrap_or("file");
    let Some(source) = xml::child(node, "source") else { return Source::Empty };
    let get = |name: &str| xml::attribute(source, name);
    match kind {
        "file" => get("file").map_or(Source::Empty, Source::File),
        "block" => get("dev").map_or(Source::Empty, Source::Block),
        "volume" => match (get("pool"), get("volume")) {
            (Some(pool), Some(volume)) => Source::Volume { pool, volume },
            _ => Source::Empty,
        },
        "network" => {
            Source::Network { protocol: get("protocol").unwrap_or_default(), name: get("name") }
        }
        other => Source::Other(other.to_owned()),
    }
}

fn backing(disk: Node<'_, '_>) -> Result<Vec<Source>> {
    let mut chain = Vec::new();
    let mut above = disk;
    while let Some(store) = xml::child(above, "backingStore") {
        if store.attribute("type").is_none() {
            // An empty element ends the chain.
            break;
        }
        if chain.len() == CHAIN {
            return Err(bad(format!("a backing chain of more than {CHAIN}")));
        }
        chain.push(source(store));
        above = store;
    }
    Ok(chain)
}

fn leases(devices: Node<'_, '_>) -> Vec<Lease> {
    let lease = |node: Node<'_, '_>| {
        let (lockspace, key) = (xml::text(node, "lockspace"), xml::text(node, "key")?);
        Some(Lease { lockspace, key, path: xml::child_attribute(node, "target", "path") })
    };
    xml::children(devices, "lease").filter_map(lease).collect()
}

fn blockers(root: Node<'_, '_>, devices: Option<Node<'_, '_>>, disks: &[Disk]) -> Vec<Blocker> {
    let mut found: Vec<Blocker> = disks.iter().filter_map(drive_blocker).collect();
    let launch = xml::child(root, "launchSecurity");
    found.extend(launch.map(|node| Blocker::EncryptedMemory(named(node, "type"))));
    found.extend(devices.into_iter().flat_map(|node| node.children()).filter_map(device_blocker));
    found
}

fn drive_blocker(disk: &Disk) -> Option<Blocker> {
    if disk.transient {
        return Some(Blocker::TransientDisk(disk.target.clone()));
    }
    let local = matches!(disk.source, Source::Other(_));
    local.then(|| Blocker::LocalDrive(disk.target.clone()))
}

fn device_blocker(node: Node<'_, '_>) -> Option<Blocker> {
    match node.tag_name().name() {
        "hostdev" => Some(Blocker::HostDevice(named(node, "type"))),
        "filesystem" => Some(Blocker::SharedDirectory),
        "shmem" => Some(Blocker::SharedMemory),
        "tpm" => is_local_tpm(node).then_some(Blocker::LocalTpm),
        "interface" => network_blocker(node),
        _ => None,
    }
}

fn network_blocker(node: Node<'_, '_>) -> Option<Blocker> {
    match node.attribute("type")? {
        "hostdev" => Some(Blocker::HostDevice("network".to_owned())),
        kind @ ("vhostuser" | "vdpa") => Some(Blocker::HostNetwork(kind.to_owned())),
        _ => None,
    }
}

/// A TPM that is emulated keeps its state in a directory of the host, unless it is given a place.
fn is_local_tpm(node: Node<'_, '_>) -> bool {
    let backend = xml::child(node, "backend");
    backend.is_none_or(|backend| xml::child(backend, "source").is_none())
}

fn named(node: Node<'_, '_>, key: &str) -> String {
    xml::attribute(node, key).unwrap_or_else(|| "unknown".to_owned())
}

#[cfg(test)]
#[path = "domain_tests.rs"]
mod tests;
