//! From the raw shape to a checked [`Config`]; collects every fault before it gives up.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::problem::Problem;
use super::raw::{self, Raw, Text};
use super::refusal::{Origin, Refusal};
use super::values::{Fsid, Mac, ValueError, duration, is_name, is_word};
use super::{
    AgentsConfig, Config, CoordinatorConfig, FenceAgent, NodeConfig, RightConfig, TlsPaths,
};
use crate::core::record::NodeName;

/// Right: below 300 ms a scheduling hiccup closes the gate; above 10 s a failover is no failover.
const TTL: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(10));
/// Heartbeat: the upper end is a third of the TTL, checked apart.
const HEARTBEAT: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(3));
/// Address lifetime: the kernel's own timer is up to a second late (hole C3).
const VALID_LFT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// `nfsd4_lease` and `nfsv4gracetime` accept 10 to 3600 s (`fs/nfsd/nfsctl.c`, `__write_leasetime`).
pub(super) const LEASE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(3600));
/// One call to the coordinator.
const DEADLINE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A fence agent: below a second no power supply answers; above two minutes nobody waits for it.
const FENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));
/// Wait for hypervisors: below a second none could answer, above ten minutes nobody waits.
const AGENTS_WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// `sun_path` (108, `unix(7)`) less the terminating zero.
const SOCKET_PATH_MAX: usize = 107;

pub(super) const NAME_RULE: &str = "lower-case letters, digits and '-', a letter first, at most 31";
pub(super) const WORD_RULE: &str = "letters, digits, '-', '_' and '.', at most 63";

/// Values seen so far with the place of their first use.
pub(super) struct Seen<T>(&'static str, pub(super) HashMap<T, Range<usize>>);

impl<T: Eq + Hash + ToString> Seen<T> {
    fn new(what: &'static str) -> Self {
        Self(what, HashMap::new())
    }
}

pub(super) struct Checker<'a> {
    pub(super) origin: &'a Origin,
    pub(super) found: Vec<Refusal<Problem>>,
}

/// Names that must be unique over all services.
pub(super) struct Unique {
    pub(super) names: Seen<String>,
    pub(super) resources: Seen<String>,
    pub(super) addresses: Seen<IpAddr>,
    pub(super) macs: Seen<Mac>,
    pub(super) exports: Seen<String>,
    pub(super) fsids: Seen<Fsid>,
    /// The services' addresses alone; `addresses` holds the nodes' own as well.
    pub(super) floating: HashSet<IpAddr>,
}

/// What the services' checks need of the rest.
pub(super) struct Context<'a> {
    pub(super) cluster: &'a str,
    pub(super) nodes: &'a [NodeConfig],
}

pub(super) fn validate(raw: Raw, origin: &Origin) -> Result<Config, Vec<Refusal<Problem>>> {
    let mut c = Checker { origin, found: Vec::new() };
    let cluster = c.name("cluster name", &raw.cluster.name, is_name, NAME_RULE);
    let mut unique = Unique::new();
    let nodes = c.nodes(&raw.nodes, raw.cluster.name.span(), &mut unique.addresses);
    let coordinator = c.coordinator(&raw.cluster.coordinator, &nodes);
    let peer = TlsPaths {
        ca: c.path("ca", &raw.peer.ca),
        cert: c.path("cert", &raw.peer.cert),
        key: c.path("key", &raw.peer.key),
    };
    let right = c.right(&raw.right);
    let control_socket = c.socket(raw.control.socket.as_ref());
    let watchdog = raw.watchdog.as_ref().map(|w| c.path("device", &w.device));
    let agents = c.agents(&raw.agents, &nodes);
    let context = Context { cluster: &cluster, nodes: &nodes };
    let services = raw.services.iter().map(|s| c.service(s, &context, &mut unique)).collect();
    c.endpoints_apart(&raw.cluster.coordinator, &unique.floating);
    match (<[NodeConfig; 2]>::try_from(nodes), coordinator) {
        (Ok(nodes), Some(coordinator)) if c.found.is_empty() => {
            let origin = origin.clone();
            Ok(Config {
                cluster,
                coordinator,
                nodes,
                peer,
                right,
                control_socket,
                watchdog,
                agents,
                services,
                origin,
            })
        }
        _ => Err(c.in_file_order()),
    }
}

impl Unique {
    fn new() -> Self {
        Self {
            names: Seen::new("service name"),
            resources: Seen::new("DRBD resource"),
            addresses: Seen::new("address"),
            macs: Seen::new("MAC address"),
            exports: Seen::new("export path"),
            fsids: Seen::new("fsid"),
            floating: HashSet::new(),
        }
    }
}

impl Checker<'_> {
    pub(super) fn refuse(&mut self, span: Range<usize>, problem: Problem) {
        self.found.push(Refusal::new(self.origin, span, problem));
    }

    fn in_file_order(mut self) -> Vec<Refusal<Problem>> {
        self.found.sort_by_key(Refusal::line);
        self.found
    }

    pub(super) fn once<T: Eq + Hash + ToString>(
        &mut self,
        seen: &mut Seen<T>,
        value: T,
        span: Range<usize>,
    ) {
        if let Some(first) = seen.1.get(&value) {
            let (what, first) = (seen.0, self.origin.line(first.start));
            let value = value.to_string();
            self.refuse(span, Problem::Duplicate { what, value, first });
        } else {
            seen.1.insert(value, span);
        }
    }

    pub(super) fn name(
        &mut self,
        what: &'static str,
        text: &Text,
        good: fn(&str) -> bool,
        allowed: &'static str,
    ) -> String {
        let value = text.get_ref().clone();
        if !good(&value) {
            self.refuse(text.span(), Problem::Name { what, value: value.clone(), allowed });
        }
        value
    }

    pub(super) fn bad_value(
        &mut self,
        key: &'static str,
        text: &Text,
        example: &'static str,
        source: ValueError,
    ) {
        let value = text.get_ref().clone();
        self.refuse(text.span(), Problem::Value { key, value, example, source });
    }

    fn path(&mut self, key: &'static str, text: &Text) -> PathBuf {
        let value = text.get_ref();
        if !Path::new(value).is_absolute() || value.contains('\0') {
            self.refuse(text.span(), Problem::Path { key, value: value.clone(), max: None });
        }
        PathBuf::from(value)
    }

    fn socket(&mut self, text: Option<&Text>) -> PathBuf {
        let Some(text) = text else { return PathBuf::from("/run/nasd/control.sock") };
        if text.get_ref().len() > SOCKET_PATH_MAX {
            let (value, max) = (text.get_ref().clone(), Some(SOCKET_PATH_MAX));
            self.refuse(text.span(), Problem::Path { key: "socket", value, max });
        }
        self.path("socket", text)
    }

    pub(super) fn time(
        &mut self,
        key: &'static str,
        text: Option<&Text>,
        range: (Duration, Duration),
        default: Duration,
    ) -> Duration {
        let Some(text) = text else { return default };
        let value = match duration(text.get_ref()) {
            Ok(value) => value,
            Err(source) => {
                self.bad_value(key, text, "\"1500ms\", \"15s\" or \"2m\"", source);
                return default;
            }
        };
        let (min, max) = range;
        if !(min..=max).contains(&value) {
            self.refuse(text.span(), Problem::DurationRange { key, value, min, max });
            return default;
        }
        value
    }

    pub(super) fn seconds(
        &mut self,
        key: &'static str,
        text: Option<&Text>,
        range: (Duration, Duration),
        default: Duration,
    ) -> Duration {
        let value = self.time(key, text, range, default);
        if let Some(text) = text
            && value.subsec_nanos() != 0
        {
            self.refuse(text.span(), Problem::WholeSeconds { key, value });
        }
        value
    }

    fn right(&mut self, raw: &raw::Right) -> RightConfig {
        let ttl = self.time("ttl", raw.ttl.as_ref(), TTL, Duration::from_millis(1500));
        let third = HEARTBEAT.1.min(ttl / 3).min(Duration::from_millis(250));
        let heartbeat = self.time("heartbeat", raw.heartbeat.as_ref(), HEARTBEAT, third);
        let valid_lft =
            self.seconds("valid_lft", raw.valid_lft.as_ref(), VALID_LFT, Duration::from_secs(5));
        let at =
            |text: &Option<Text>| text.as_ref().or(raw.ttl.as_ref()).map_or(0..0, Spanned::span);
        if heartbeat > ttl / 3 {
            self.refuse(at(&raw.heartbeat), Problem::HeartbeatAboveTtl { heartbeat, ttl });
        }
        if valid_lft < ttl + Duration::from_secs(1) {
            self.refuse(at(&raw.valid_lft), Problem::LifetimeBelowTtl { valid_lft, ttl });
        }
        RightConfig { ttl, heartbeat, valid_lft }
    }

    fn agents(&mut self, raw: &raw::Agents, nodes: &[NodeConfig]) -> AgentsConfig {
        let default = AgentsConfig::default();
        let wait = self.time("wait", raw.wait.as_ref(), AGENTS_WAIT, default.wait);
        let mut seen = Seen::new("hypervisor");
        let mut required = Vec::new();
        for text in &raw.required {
            let host = self.name("hypervisor", text, is_word, WORD_RULE);
            self.once(&mut seen, host.clone(), text.span());
            if nodes.iter().any(|n| n.name.0 == host) {
                self.refuse(text.span(), Problem::NodeAsAgent { value: host.clone() });
            }
            required.push(host);
        }
        required.sort();
        AgentsConfig { wait, required }
    }

    fn nodes(
        &mut self,
        raw: &[Spanned<raw::Node>],
        at: Range<usize>,
        own: &mut Seen<IpAddr>,
    ) -> Vec<NodeConfig> {
        if raw.len() != 2 {
            let span = raw.get(2).map_or(at, Spanned::span);
            self.refuse(span, Problem::NodeCount { found: raw.len() });
        }
        let (mut names, mut sockets) = (Seen::new("node name"), Seen::new("node address"));
        let mut nodes = Vec::new();
        for node in raw.iter().map(Spanned::get_ref) {
            let name = self.name("node name", &node.name, is_word, WORD_RULE);
            self.once(&mut names, name.clone(), node.name.span());
            let Some(address) = self.node_address("address", &node.address) else { continue };
            self.once(&mut sockets, address, node.address.span());
            own.1.entry(address.ip()).or_insert_with(|| node.address.span());
            let heartbeat = self.second_path(node, address, &mut sockets, own);
            let fence = node.fence.as_ref().map(|f| self.fence(f));
            nodes.push(NodeConfig { name: NodeName(name), address, heartbeat, fence });
        }
        self.second_paths_of_both(raw);
        nodes
    }

    fn second_path(
        &mut self,
        node: &raw::Node,
        first: SocketAddr,
        sockets: &mut Seen<SocketAddr>,
        own: &mut Seen<IpAddr>,
    ) -> Option<SocketAddr> {
        let text = node.heartbeat.as_ref()?;
        let address = self.node_address("heartbeat", text)?;
        self.once(sockets, address, text.span());
        if address.ip() == first.ip() {
            self.refuse(text.span(), Problem::SamePath { address: first.ip() });
        }
        own.1.entry(address.ip()).or_insert_with(|| text.span());
        Some(address)
    }

    /// Each node calls the other: a path that only one of them can use carries no right.
    fn second_paths_of_both(&mut self, raw: &[Spanned<raw::Node>]) {
        let one = raw.iter().map(Spanned::get_ref).find(|n| n.heartbeat.is_some());
        let other = raw.iter().find(|n| n.get_ref().heartbeat.is_none());
        if let (Some(one), Some(other)) = (one, other) {
            let (with, without) = (one.name.get_ref().clone(), other.get_ref().name.get_ref());
            let problem = Problem::OneSidedPath { with, without: without.clone() };
            self.refuse(other.get_ref().name.span(), problem);
        }
    }

    fn fence(&mut self, raw: &raw::Fence) -> FenceAgent {
        let mut parameters = BTreeMap::new();
        for (name, value) in &raw.parameters {
            let text = match value.get_ref() {
                toml::Value::String(text) => text.clone(),
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(flag) => u8::from(*flag).to_string(),
                _ => "\n".to_owned(),
            };
            let named = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
            if name.is_empty() || !named || name == "action" || text.contains(['\n', '\0']) {
                self.refuse(value.span(), Problem::FenceParameter { name: name.clone() });
            }
            parameters.insert(name.clone(), text);
        }
        let program = self.path("agent", &raw.agent);
        let timeout = self.time("timeout", raw.timeout.as_ref(), FENCE, Duration::from_secs(20));
        FenceAgent { program, parameters, timeout }
    }

    fn node_address(&mut self, key: &'static str, text: &Text) -> Option<SocketAddr> {
        let parsed = text.get_ref().parse::<SocketAddr>().ok();
        let good =
            parsed.filter(|a| a.port() != 0 && !a.ip().is_unspecified() && !a.ip().is_multicast());
        if good.is_none() {
            self.refuse(text.span(), Problem::NodeAddress { key, value: text.get_ref().clone() });
        }
        good
    }

    fn coordinator(
        &mut self,
        raw: &Spanned<raw::Coordinator>,
        nodes: &[NodeConfig],
    ) -> Option<CoordinatorConfig> {
        match (&raw.get_ref().etcd, &raw.get_ref().file) {
            (Some(etcd), None) => Some(self.etcd(etcd)),
            (None, Some(file)) => {
                self.file_is_local(raw.span(), nodes);
                Some(CoordinatorConfig::File { path: self.path("path", &file.path) })
            }
            (etcd, _) => {
                let found = if etcd.is_some() { 2 } else { 0 };
                self.refuse(raw.span(), Problem::CoordinatorChoice { found });
                None
            }
        }
    }

    /// One machine: both peers have the same address, or both are on the loopback.
    fn file_is_local(&mut self, at: Range<usize>, nodes: &[NodeConfig]) {
        let [first, second] = nodes else { return };
        let (a, b) = (first.address.ip(), second.address.ip());
        if a != b && !(a.is_loopback() && b.is_loopback()) {
            self.refuse(at, Problem::FileElsewhere { node: second.name.0.clone(), address: b });
        }
    }

    fn etcd(&mut self, raw: &raw::Etcd) -> CoordinatorConfig {
        let mut seen = Seen::new("etcd endpoint");
        let mut endpoints = Vec::new();
        for text in raw.endpoints.get_ref() {
            self.endpoint(text);
            self.once(&mut seen, text.get_ref().clone(), text.span());
            endpoints.push(text.get_ref().clone());
        }
        if endpoints.len() < 3 {
            self.refuse(raw.endpoints.span(), Problem::FewEndpoints { found: endpoints.len() });
        }
        let secure = endpoints.iter().any(|e| e.starts_with("https://"));
        let tls = self.etcd_tls(raw, secure);
        let deadline =
            self.time("deadline", raw.deadline.as_ref(), DEADLINE, Duration::from_secs(2));
        CoordinatorConfig::Etcd { endpoints, tls, deadline }
    }

    fn etcd_tls(&mut self, raw: &raw::Etcd, secure: bool) -> Option<TlsPaths> {
        let parts = [("ca", &raw.ca), ("cert", &raw.cert), ("key", &raw.key)];
        if !secure && parts.iter().all(|(_, part)| part.is_none()) {
            return None;
        }
        if let Some((missing, _)) = parts.iter().find(|(_, part)| part.is_none()) {
            self.refuse(raw.endpoints.span(), Problem::TlsPart { missing });
        }
        for text in raw.endpoints.get_ref().iter().filter(|e| e.get_ref().starts_with("http://")) {
            let why = "plain http beside ca, cert and key";
            self.refuse(text.span(), Problem::Endpoint { value: text.get_ref().clone(), why });
        }
        let mut path = |key, text: &Option<Text>| text.as_ref().map(|t| self.path(key, t));
        Some(TlsPaths {
            ca: path("ca", &raw.ca)?,
            cert: path("cert", &raw.cert)?,
            key: path("key", &raw.key)?,
        })
    }

    fn endpoint(&mut self, text: &Text) {
        if endpoint_host(text.get_ref()).is_none() {
            let why = "not a URL of scheme, host and port";
            self.refuse(text.span(), Problem::Endpoint { value: text.get_ref().clone(), why });
        }
    }

    /// etcd on an address that moves with a service could not be asked whether it may move.
    fn endpoints_apart(&mut self, raw: &Spanned<raw::Coordinator>, floating: &HashSet<IpAddr>) {
        let Some(etcd) = &raw.get_ref().etcd else { return };
        for text in etcd.endpoints.get_ref() {
            let ip = endpoint_host(text.get_ref()).and_then(|h| h.parse::<IpAddr>().ok());
            if ip.is_some_and(|ip| floating.contains(&ip)) {
                let why = "a floating address of a service";
                self.refuse(text.span(), Problem::Endpoint { value: text.get_ref().clone(), why });
            }
        }
    }

    pub(super) fn line_of(&self, at: &Range<usize>) -> usize {
        self.origin.line(at.start)
    }
}

/// Host part of `scheme://host:port`, brackets removed.
fn endpoint_host(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let (host, port) = rest.trim_end_matches('/').rsplit_once(':')?;
    port.parse::<u16>().ok().filter(|p| *p != 0)?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let good =
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:".contains(&b));
    good.then_some(host)
}
