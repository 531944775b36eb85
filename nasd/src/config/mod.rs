//! The configuration, `/etc/nasd/nasd.toml`: one file, the same on both nodes.
//!
//! Owns its shape, every check of it, and the names derived from it. Keeps S6 (scope, fsid, MAC and
//! export paths equal on both nodes and unlike those of any other service) and S12 (what is unknown
//! is refused, never ignored). Every refusal names file, line and remedy. [`host`] holds what must
//! be looked up on the machine; everything else here is pure.

pub mod host;
mod problem;
mod raw;
mod refusal;
mod services;
mod validate;
pub mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::core::record::NodeName;

pub use problem::Problem;
pub use refusal::{ConfigError, Origin, Refusal, Remedy};
pub use values::{Cidr, ClientMatch, Fsid, Mac};

/// Where the daemon looks when it is not told otherwise.
pub const DEFAULT_PATH: &str = "/etc/nasd/nasd.toml";

/// A checked configuration.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// The cluster's name; first part of every scope and of the coordinator's keys.
    pub cluster: String,
    /// Where the records are kept.
    pub coordinator: CoordinatorConfig,
    /// The two nodes, in the order of the file.
    pub nodes: [NodeConfig; 2],
    /// Credentials of this node on the peer channel.
    #[serde(skip)]
    pub peer: TlsPaths,
    /// Times of the right to serve (S4).
    pub right: RightConfig,
    /// The local control socket.
    #[serde(skip)]
    pub control_socket: PathBuf,
    /// The watchdog device behind the self-fence.
    #[serde(skip)]
    pub watchdog: Option<PathBuf>,
    /// What planned moves ask of hypervisors.
    // Left out of the digest when nothing is set: nodes may be upgraded one after the other.
    #[serde(skip_serializing_if = "AgentsConfig::is_default")]
    pub agents: AgentsConfig,
    /// The services, in the order of the file.
    pub services: Vec<ServiceConfig>,
    #[serde(skip)]
    origin: Origin,
}

/// The store of the records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CoordinatorConfig {
    /// An etcd cluster of three or more members.
    Etcd {
        /// Client URLs of all members.
        endpoints: Vec<String>,
        /// Credentials; none over plain `http://`.
        #[serde(skip)]
        tls: Option<TlsPaths>,
        /// Limit of one call.
        deadline: Duration,
    },
    /// One file: one machine only, for demonstrations and tests.
    File {
        /// The file.
        path: PathBuf,
    },
}

/// Files of a TLS identity. Read when used; they may be renewed while the daemon runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPaths {
    /// Certificates of the authority that signs the other side.
    pub ca: PathBuf,
    /// Our certificate chain.
    pub cert: PathBuf,
    /// Our private key.
    pub key: PathBuf,
}

/// A NAS node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeConfig {
    /// Its host name, as `uname -n` and DRBD's `on` sections spell it.
    pub name: NodeName,
    /// Where its peer channel listens.
    pub address: SocketAddr,
    /// A second address of it, on another network: beats are sent to both.
    // Left out of the digest when there is none: nodes may be upgraded one after the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<SocketAddr>,
    /// What switches it off (S1, `Fenced`).
    #[serde(skip)]
    pub fence: Option<FenceAgent>,
}

/// A standard fence agent, and what it needs to reach one node's power.
#[derive(Clone, PartialEq, Eq)]
pub struct FenceAgent {
    /// The program.
    pub program: PathBuf,
    /// Its parameters, passwords among them.
    pub parameters: BTreeMap<String, String>,
    /// For switching off and reading back together.
    pub timeout: Duration,
}

impl fmt::Debug for FenceAgent {
    /// Without the values: there are passwords among them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.parameters.keys().collect();
        f.debug_struct("FenceAgent").field("program", &self.program).field("names", &names).finish()
    }
}

/// Times of the right to serve (S4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RightConfig {
    /// How long a grant lasts from the moment it was asked for.
    pub ttl: Duration,
    /// How often the owner asks for the next one.
    pub heartbeat: Duration,
    /// Kernel lifetime of the floating address; whole seconds.
    pub valid_lft: Duration,
}

/// What planned moves ask of hypervisors' agents (design section 7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AgentsConfig {
    /// How long a planned move waits until all hypervisors are ready.
    pub wait: Duration,
    /// Hosts whose agents must be attached for a planned move.
    pub required: Vec<String>,
}

impl Default for AgentsConfig {
    /// A migration that is nearly done ends within 15 s; a longer one is better asked about.
    fn default() -> Self {
        Self { wait: Duration::from_secs(15), required: Vec::new() }
    }
}

impl AgentsConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How a service gets its interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum InterfaceMode {
    /// A macvlan on the node's interface, moved into the service's namespace.
    Macvlan,
}

/// File systems that can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

impl FsType {
    /// The kernel's name of it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// Places in the file that the host checks point at.
#[derive(Debug, Clone, Default)]
pub struct ServiceSpans {
    /// The value of `drbd`.
    pub drbd: Range<usize>,
    /// The value of `interface`.
    pub interface: Range<usize>,
}

/// One service: the unit that moves.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceConfig {
    /// Its name: `a-z`, `0-9`, `-`.
    pub name: String,
    /// Its DRBD resource; no other service uses it.
    pub drbd: String,
    /// The node's interface that carries it, on both nodes.
    pub interface: String,
    /// Its floating addresses.
    pub addresses: Vec<Cidr>,
    /// IPv4 default gateway inside the service's namespace.
    pub gateway: Option<Ipv4Addr>,
    /// IPv6 default gateway inside the service's namespace.
    pub gateway6: Option<Ipv6Addr>,
    /// How it gets its interface.
    pub mode: InterfaceMode,
    /// NFS server threads.
    pub threads: u16,
    /// Where a node opens several services at once, the greater is opened first: 0 to 100.
    pub priority: u8,
    /// NFSv4 lease, whole seconds.
    pub lease: Duration,
    /// Longest grace, whole seconds; at least the lease.
    pub grace: Duration,
    /// The node that starts it when both could.
    pub preferred: Option<NodeName>,
    /// Go back to the preferred node when both nodes have been well for so long; `None`: never by
    /// itself.
    pub failback_after: Option<Duration>,
    /// The administrator's word that volatile write caches are acceptable here (hole C8).
    pub unsafe_write_cache: bool,
    /// Its file systems, at least one.
    pub filesystems: Vec<FilesystemConfig>,
    scope: String,
    mac: Mac,
    #[serde(skip)]
    spans: ServiceSpans,
}

/// One file system of a service, with its export.
#[derive(Debug, Clone, Serialize)]
pub struct FilesystemConfig {
    /// The DRBD volume number.
    pub volume: u16,
    /// What it is formatted with.
    pub fstype: FsType,
    /// Mount options, none of which weakens what an acknowledged write means.
    pub options: Vec<String>,
    /// The path that clients mount, `/vms`.
    pub export: String,
    /// The id in its filehandles.
    pub fsid: Fsid,
    /// Who may mount it.
    pub clients: Vec<ClientMatch>,
    /// Read and write, or read only.
    pub rw: bool,
    /// Whether root on a client stays root.
    pub no_root_squash: bool,
    /// User that squashed requests run as.
    pub anonuid: Option<u32>,
    /// Group that squashed requests run as.
    pub anongid: Option<u32>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`], or [`ConfigError::Refused`] with every fault found.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&path.to_string_lossy(), &text)
    }

    /// Checks a text; `name` is what refusals call it.
    ///
    /// # Errors
    /// [`ConfigError::Refused`] with every fault found.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        let origin = Origin::new(name, text);
        let raw = toml::from_str(text).map_err(|e| shape_refused(&origin, &e))?;
        validate::validate(raw, &origin)
            .map_err(|refusals| ConfigError::Refused { file: name.to_owned(), refusals })
    }

    /// SHA-256, in hexadecimal, over everything that must be equal on both nodes: all but the paths
    /// of keys and sockets, comments and order of services and endpoints. Pre-flight compares it.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut canonical = self.clone();
        canonical.services.sort_by(|a, b| a.name.cmp(&b.name));
        canonical.nodes.sort_by(|a, b| a.name.cmp(&b.name));
        if let CoordinatorConfig::Etcd { endpoints, .. } = &mut canonical.coordinator {
            endpoints.sort();
        }
        // JSON of a struct of texts and numbers cannot fail; an empty text would still differ from
        // every real one and so be refused.
        let text = serde_json::to_string(&canonical).unwrap_or_default();
        Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect()
    }

    /// The node that runs under this host name; a fully qualified one matches its first label.
    #[must_use]
    pub fn this_node(&self, hostname: &str) -> Option<&NodeConfig> {
        let short = hostname.split('.').next().unwrap_or(hostname);
        let named = |want: &str| self.nodes.iter().find(|n| n.name.0 == want);
        named(hostname).or_else(|| named(short))
    }

    /// The other node; `None` when `node` is neither.
    #[must_use]
    pub fn peer_of(&self, node: &NodeName) -> Option<&NodeConfig> {
        let [a, b] = &self.nodes;
        match node {
            n if *n == a.name => Some(b),
            n if *n == b.name => Some(a),
            _ => None,
        }
    }

    /// A service by name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&ServiceConfig> {
        self.services.iter().find(|s| s.name == name)
    }

    /// The file this came from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}

fn shape_refused(origin: &Origin, error: &toml::de::Error) -> ConfigError {
    let problem = Problem::Shape { message: error.message().replace('\n', " ") };
    let refusal = Refusal::new(origin, error.span().unwrap_or(0..0), problem);
    ConfigError::Refused { file: origin.name().to_owned(), refusals: vec![refusal] }
}

impl ServiceConfig {
    /// The NFS server scope, `cluster.service`: equal on both nodes, unlike every other (S6).
    #[must_use]
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// The MAC address of its interface on either node.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The network namespace's name.
    #[must_use]
    pub fn netns_name(&self) -> String {
        format!("nasd-{}", self.name)
    }

    /// The directory that becomes the NFSv4 pseudo root.
    #[must_use]
    pub fn pseudo_root(&self) -> PathBuf {
        Path::new("/srv/nasd").join(&self.name)
    }

    /// Where a file system of this service is mounted.
    #[must_use]
    pub fn mountpoint(&self, fs: &FilesystemConfig) -> PathBuf {
        self.pseudo_root().join(fs.export.trim_start_matches('/'))
    }

    /// Sockets and volatile state.
    #[must_use]
    pub fn run_dir(&self) -> PathBuf {
        Path::new("/run/nasd").join(&self.name)
    }

    /// What survives a reboot of the node: last record seen, local marks.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        Path::new("/var/lib/nasd").join(&self.name)
    }

    /// The file system on a DRBD volume.
    #[must_use]
    pub fn filesystem(&self, volume: u16) -> Option<&FilesystemConfig> {
        self.filesystems.iter().find(|f| f.volume == volume)
    }
}

#[cfg(test)]
mod tests;
