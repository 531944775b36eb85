//! Storage pools from their XML, and in what two hosts' definitions of one differ.

use super::error::{Error, Result};
use super::xml;
use roxmltree::Node;
use serde::{Deserialize, Serialize};

/// libvirt's kinds of pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A directory that is simply there.
    Dir,
    /// A block device's file system, mounted by libvirt.
    Fs,
    /// A network file system, mounted by libvirt.
    Netfs,
    /// An LVM volume group.
    Logical,
    /// A partitioned disk.
    Disk,
    /// Logical units of an iSCSI target, through the kernel.
    Iscsi,
    /// The same through QEMU.
    IscsiDirect,
    /// A SCSI host adapter.
    Scsi,
    /// The host's multipath devices.
    Mpath,
    /// Ceph.
    Rbd,
    /// Sheepdog.
    Sheepdog,
    /// Gluster.
    Gluster,
    /// A ZFS pool.
    Zfs,
    /// Virtuozzo storage.
    Vstorage,
    /// A kind this program does not know.
    Other(String),
}

impl Kind {
    fn of(name: &str) -> Self {
        match name {
            "dir" => Self::Dir,
            "fs" => Self::Fs,
            "netfs" => Self::Netfs,
            "logical" => Self::Logical,
            "disk" => Self::Disk,
            "iscsi" => Self::Iscsi,
            "iscsi-direct" => Self::IscsiDirect,
            "scsi" => Self::Scsi,
            "mpath" => Self::Mpath,
            "rbd" => Self::Rbd,
            "sheepdog" => Self::Sheepdog,
            "gluster" => Self::Gluster,
            "zfs" => Self::Zfs,
            "vstorage" => Self::Vstorage,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Whether an active pool of that kind must have something mounted at its target. libvirt calls
    /// a pool active that is not.
    #[must_use]
    pub const fn is_mounted(&self) -> bool {
        matches!(self, Self::Fs | Self::Netfs | Self::Vstorage)
    }
}

/// A host the pool comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Name or address.
    pub name: String,
    /// Port, if it is not the usual one.
    pub port: Option<u16>,
}

/// Where a pool's storage comes from. What a kind does not have is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Servers.
    pub hosts: Vec<Host>,
    /// The directory exported by the server, or Gluster's directory.
    pub dir: Option<String>,
    /// Block devices, or the target's name for iSCSI.
    pub devices: Vec<String>,
    /// Volume group, Ceph pool, Gluster volume, ZFS pool.
    pub name: Option<String>,
    /// SCSI adapter: its name, or the names in the fabric.
    pub adapter: Option<String>,
    /// Initiator of iSCSI.
    pub initiator: Option<String>,
    /// File system or format (`nfs`, `ext4`, `lvm2`, `auto`).
    pub format: Option<String>,
    /// NFS version asked for.
    pub protocol: Option<String>,
}

/// A pool's definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Its name on this host.
    pub name: String,
    /// Its uuid.
    pub uuid: Option<String>,
    /// What it is.
    pub kind: Kind,
    /// Where it comes from.
    pub source: Source,
    /// Where it is on this host.
    pub target: Option<String>,
    /// Mount options given by hand.
    pub mount_options: Vec<String>,
}

impl Pool {
    /// Reads what `GetXMLDesc` returns.
    pub fn parse(text: &str) -> Result<Self> {
        let document = xml::parse("storage pool", text)?;
        let root = document.root_element();
        let missing = |what: &str| Error::BadXml { kind: "storage pool", what: what.to_owned() };
        let kind = root.attribute("type").ok_or_else(|| missing("it has no type"))?;
        Ok(Self {
            name: xml::text(root, "name").ok_or_else(|| missing("it has no name"))?,
            uuid: xml::text(root, "uuid"),
            kind: Kind::of(kind),
            source: xml::child(root, "source").map(source).transpose()?.unwrap_or_default(),
            target: xml::child(root, "target").and_then(|target| xml::text(target, "path")),
            mount_options: mount_options(root),
        })
    }

    /// The source as a mount table shows it, `host:dir`, for network file systems.
    #[must_use]
    pub fn mount_source(&self) -> Option<String> {
        let host = self.source.hosts.first()?;
        let dir = self.source.dir.as_ref()?;
        let bare = host.name.contains(':') && !host.name.starts_with('[');
        let name = if bare { format!("[{}]", host.name) } else { host.name.clone() };
        matches!(self.kind, Kind::Netfs).then(|| format!("{name}:{dir}"))
    }

    /// In what another host's definition of this pool differs, in a way that matters to a guest that
    /// migrates. Empty: equal.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let mut found = Vec::new();
        let mut compare = |what, here: String, there: String| {
            if here != there {
                found.push(Difference { what, here, there });
            }
        };
        compare("name", self.name.clone(), other.name.clone());
        compare("uuid", shown(self.uuid.as_ref()), shown(other.uuid.as_ref()));
        compare("type", format!("{:?}", self.kind), format!("{:?}", other.kind));
        compare("source host", self.source.hosts_shown(), other.source.hosts_shown());
        compare(
            "source dir",
            slashless(self.source.dir.as_ref()),
            slashless(other.source.dir.as_ref()),
        );
        compare("source device", self.source.devices.join(" "), other.source.devices.join(" "));
        compare("source name", shown(self.source.name.as_ref()), shown(other.source.name.as_ref()));
        compare("format", shown(self.source.format.as_ref()), shown(other.source.format.as_ref()));
        compare(
            "protocol",
            shown(self.source.protocol.as_ref()),
            shown(other.source.protocol.as_ref()),
        );
        compare("target path", slashless(self.target.as_ref()), slashless(other.target.as_ref()));
        compare("mount options", self.mount_options.join(","), other.mount_options.join(","));
        found
    }
}

impl Source {
    fn hosts_shown(&self) -> String {
        let one = |host: &Host| match host.port {
            Some(port) => format!("{} port {port}", host.name),
            None => host.name.clone(),
        };
        self.hosts.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// One difference between two definitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Which part.
    pub what: &'static str,
    /// Its value on the first host.
    pub here: String,
    /// Its value on the second.
    pub there: String,
}

fn shown(value: Option<&String>) -> String {
    value.map_or_else(|| "none".to_owned(), Clone::clone)
}

/// `/srv/vms/` and `/srv/vms` are the same.
fn slashless(value: Option<&String>) -> String {
    let value = shown(value);
    let bare = value.trim_end_matches('/');
    if bare.is_empty() { value } else { bare.to_owned() }
}

fn source(node: Node<'_, '_>) -> Result<Source> {
    let devices = xml::children(node, "device").filter_map(|device| xml::attribute(device, "path"));
    Ok(Source {
        hosts: xml::children(node, "host").map(host).collect::<Result<_>>()?,
        dir: xml::child_attribute(node, "dir", "path"),
        devices: devices.collect(),
        name: xml::text(node, "name"),
        adapter: xml::child(node, "adapter").and_then(adapter),
        initiator: xml::child(node, "initiator")
            .and_then(|initiator| xml::child_attribute(initiator, "iqn", "name")),
        format: xml::child_attribute(node, "format", "type"),
        protocol: xml::child_attribute(node, "protocol", "ver"),
    })
}

fn host(node: Node<'_, '_>) -> Result<Host> {
    let bad = |what: String| Error::BadXml { kind: "storage pool", what };
    let name = node.attribute("name").ok_or_else(|| bad("a host has no name".to_owned()))?;
    let port = match node.attribute("port") {
        Some(text) => Some(text.parse().map_err(|_| bad(format!("{text:?} is no port")))?),
        None => None,
    };
    Ok(Host { name: name.to_owned(), port })
}

fn adapter(node: Node<'_, '_>) -> Option<String> {
    let fabric = || {
        let (node_name, port_name) = (node.attribute("wwnn")?, node.attribute("wwpn")?);
        Some(format!("{node_name}/{port_name}"))
    };
    xml::attribute(node, "name").or_else(fabric)
}

/// The options of the `fs` name space, which is the only way to give any.
fn mount_options(root: Node<'_, '_>) -> Vec<String> {
    let of = |node: Node<'_, '_>| {
        let options = xml_options(node);
        options.filter_map(|option| xml::attribute(option, "name")).collect::<Vec<_>>()
    };
    let groups = root.children().filter(|child| child.tag_name().name() == "mount_opts");
    groups.flat_map(of).collect()
}

fn xml_options<'a, 'i: 'a>(node: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(|child| child.tag_name().name() == "option")
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
