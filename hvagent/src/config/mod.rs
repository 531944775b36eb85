//! The agent's configuration, `/etc/nasd/hvagent.toml`: read once, checked as a whole.
//!
//! Every fault is told with its line and a remedy, all of them at once. Rule kept: S12; a key that is not
//! known refuses the file, and a value out of its bounds is never bent into them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

pub mod kept;
mod problem;

pub use problem::{ConfigError, Fault, Problem};

/// Where the file is.
pub const FILE: &str = "/etc/nasd/hvagent.toml";

/// Floating addresses by service.
pub type Services = BTreeMap<String, Vec<IpAddr>>;

/// A nasd to attend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nasd {
    /// The node's name, as its certificate has it.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Key files for the links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPaths {
    /// The authority that signs all certificates.
    pub ca: PathBuf,
    /// This host's certificate, which names it.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// How often and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intervals {
    /// Between two tellings of an unchanged state; 1 s to 60 s.
    pub state: Duration,
    /// Between two looks at the mounts' counters at rest; 200 ms to 10 s.
    pub rest: Duration,
    /// The same while any mount is not at rest; 50 ms to 1 s.
    pub busy: Duration,
    /// Silence that is taken for a stall; 100 ms to 10 s.
    pub stall: Duration,
    /// Between two questions to sanlock; 1 s to 30 s.
    pub leases: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            state: Duration::from_secs(5),
            rest: Duration::from_secs(1),
            busy: Duration::from_millis(200),
            stall: crate::mounts::stall::DEFAULT_THRESHOLD,
            leases: Duration::from_secs(5),
        }
    }
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// This host's name; the system's where the file names none.
    pub host: Option<String>,
    /// The NAS nodes; may be empty: the agent then only watches.
    pub nasd: Vec<Nasd>,
    /// Present wherever a nasd is.
    pub tls: Option<TlsPaths>,
    /// Services known without a nasd; they win over what a nasd says.
    pub services: Services,
    /// sanlock lockspaces that this host must have joined.
    pub lockspaces: Vec<String>,
    /// How often and how long.
    pub intervals: Intervals,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// Unreadable, or with faults.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// Checks a text; `name` is told with the faults.
    ///
    /// # Errors
    /// All its faults.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        let mut faults = Faults { text, found: Vec::new() };
        let config = match toml::from_str::<Raw>(text) {
            Ok(raw) => faults.check(raw),
            Err(error) => {
                let message = error.message().to_owned();
                faults.add(error.span().unwrap_or(0..0), Problem::Shape { message });
                Self::default()
            }
        };
        match faults.found.is_empty() {
            true => Ok(config),
            false => Err(ConfigError::Faults { name: name.to_owned(), faults: faults.found }),
        }
    }

    /// This host's name.
    #[must_use]
    pub fn host_name(&self) -> String {
        let system = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.host.clone().unwrap_or_else(system)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    host: Option<Spanned<String>>,
    #[serde(default)]
    nasd: Vec<RawNasd>,
    peer: Option<Spanned<RawPeer>>,
    #[serde(default)]
    service: Vec<RawService>,
    #[serde(default)]
    lockspaces: Vec<String>,
    #[serde(default)]
    interval: RawIntervals,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNasd {
    name: Spanned<String>,
    address: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPeer {
    ca: Spanned<String>,
    cert: Spanned<String>,
    key: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    name: Spanned<String>,
    addresses: Spanned<Vec<Spanned<String>>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawIntervals {
    state: Option<Spanned<String>>,
    rest: Option<Spanned<String>>,
    busy: Option<Spanned<String>>,
    stall: Option<Spanned<String>>,
    leases: Option<Spanned<String>>,
}

struct Faults<'a> {
    text: &'a str,
    found: Vec<Fault>,
}

impl Faults<'_> {
    fn line(&self, at: usize) -> usize {
        self.text.bytes().take(at).filter(|b| *b == b'\n').count().saturating_add(1)
    }

    fn add(&mut self, span: Range<usize>, problem: Problem) {
        self.found.push(Fault { line: self.line(span.start), problem });
    }

    fn check(&mut self, raw: Raw) -> Config {
        let nasd = self.nodes(raw.nasd);
        let tls = raw.peer.and_then(|peer| self.tls(peer.into_inner()));
        if !nasd.is_empty() && tls.is_none() && self.found.is_empty() {
            self.add(0..0, Problem::NoPeer);
        }
        Config {
            host: raw.host.and_then(|host| self.name("host", host)),
            nasd,
            tls,
            services: self.services(raw.service),
            lockspaces: raw.lockspaces,
            intervals: self.intervals(raw.interval),
        }
    }

    fn name(&mut self, what: &'static str, name: Spanned<String>) -> Option<String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let text = name.get_ref();
        let good = !text.is_empty() && text.len() <= 64 && text.chars().all(allowed);
        if !good {
            self.add(name.span(), Problem::Name { what, value: text.clone() });
        }
        good.then(|| name.into_inner())
    }

    fn nodes(&mut self, raw: Vec<RawNasd>) -> Vec<Nasd> {
        let mut nodes: Vec<Nasd> = Vec::new();
        for node in raw {
            let (named, placed) = (node.name.span(), node.address.span());
            let Some(name) = self.name("nasd", node.name) else { continue };
            if nodes.iter().any(|n| n.name == name) {
                self.add(named, Problem::Twice { what: "nasd", value: name });
                continue;
            }
            let text = node.address.into_inner();
            match text.parse::<SocketAddr>() {
                Ok(address) if address.port() != 0 && !address.ip().is_unspecified() => {
                    nodes.push(Nasd { name, address });
                }
                _ => self.add(placed, Problem::Address { value: text }),
            }
        }
        nodes
    }

    fn tls(&mut self, raw: RawPeer) -> Option<TlsPaths> {
        let mut path = |key, value: Spanned<String>| {
            let span = value.span();
            let path = PathBuf::from(value.into_inner());
            let absolute = path.is_absolute();
            if !absolute {
                self.add(span, Problem::Path { key, value: path.display().to_string() });
            }
            absolute.then_some(path)
        };
        let (ca, cert, key) = (path("ca", raw.ca), path("cert", raw.cert), path("key", raw.key));
        Some(TlsPaths { ca: ca?, cert: cert?, key: key? })
    }

    fn services(&mut self, raw: Vec<RawService>) -> Services {
        let mut services = Services::new();
        let mut owners: BTreeMap<IpAddr, String> = BTreeMap::new();
        for service in raw {
            let named = service.name.span();
            let Some(name) = self.name("service", service.name) else { continue };
            if services.contains_key(&name) {
                self.add(named, Problem::Twice { what: "service", value: name });
                continue;
            }
            let addresses = self.addresses(&name, service.addresses, &mut owners);
            services.insert(name, addresses);
        }
        services
    }

    fn addresses(
        &mut self,
        service: &str,
        list: Spanned<Vec<Spanned<String>>>,
        owners: &mut BTreeMap<IpAddr, String>,
    ) -> Vec<IpAddr> {
        if list.get_ref().is_empty() {
            self.add(list.span(), Problem::NoAddresses { service: service.to_owned() });
        }
        let mut addresses = Vec::new();
        for text in list.into_inner() {
            let Ok(address) = text.get_ref().parse::<IpAddr>() else {
                self.add(text.span(), Problem::Ip { value: text.into_inner() });
                continue;
            };
            if owners.insert(address, service.to_owned()).is_some() {
                let value = address.to_string();
                self.add(text.span(), Problem::Twice { what: "address", value });
            }
            addresses.push(address);
        }
        addresses
    }

    fn intervals(&mut self, raw: RawIntervals) -> Intervals {
        let usual = Intervals::default();
        let mut of = |key, text: Option<Spanned<String>>, usual, (min, max)| {
            text.and_then(|t| self.interval(key, t, min, max)).unwrap_or(usual)
        };
        Intervals {
            state: of("state", raw.state, usual.state, (1_000, 60_000)),
            rest: of("rest", raw.rest, usual.rest, (200, 10_000)),
            busy: of("busy", raw.busy, usual.busy, (50, 1_000)),
            stall: of("stall", raw.stall, usual.stall, (100, 10_000)),
            leases: of("leases", raw.leases, usual.leases, (1_000, 30_000)),
        }
    }

    fn interval(
        &mut self,
        key: &'static str,
        text: Spanned<String>,
        min_ms: u64,
        max_ms: u64,
    ) -> Option<Duration> {
        let Some(value) = milliseconds(text.get_ref()) else {
            let value = text.get_ref().clone();
            self.add(text.span(), Problem::Duration { key, value });
            return None;
        };
        if !(min_ms..=max_ms).contains(&value) {
            self.add(text.span(), Problem::Range { key, value, min_ms, max_ms });
            return None;
        }
        Some(Duration::from_millis(value))
    }
}

/// `5s` or `200ms`.
fn milliseconds(text: &str) -> Option<u64> {
    match text.strip_suffix("ms") {
        Some(number) => number.parse().ok(),
        None => text.strip_suffix('s')?.parse::<u64>().ok()?.checked_mul(1000),
    }
}

#[cfg(test)]
mod tests;
