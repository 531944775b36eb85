//! Whether a mount is made so that a storage move cannot hurt the guests on it.
//!
//! Pure: takes what was parsed, gives findings with evidence and remedy. Rule kept: S12; an option
//! that the kernel did not show and a host that did not answer are findings.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::mountinfo::{NfsMount, Source};
use super::options::{NfsVersion, Patience};
use crate::core::finding::{Finding, Severity};

/// The least version whose clients say when they have reclaimed everything, which ends grace early.
pub const LEAST_VERSION: NfsVersion = NfsVersion { major: 4, minor: 1 };

/// Largest `timeo` that is recommended, in tenths of a second: it bounds how long a client keeps a
/// silent connection before it makes a new one. The kernel's default is 600.
pub const LARGEST_TIMEO_DS: u32 = 100;

/// What nasd says of its services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Services {
    /// Floating addresses by service.
    pub floating: BTreeMap<String, Vec<IpAddr>>,
    /// Addresses of the NAS nodes themselves by node: they do not move.
    pub nodes: BTreeMap<String, Vec<IpAddr>>,
}

/// Whose address a mount uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Belongs {
    /// To a service's floating address.
    Service(String),
    /// To a node's own address: it does not move with the service.
    Node(String),
    /// To a server that is none of ours.
    Elsewhere,
    /// The address is not known.
    Unknown,
}

impl Services {
    /// Whose address a mount uses. An address that is both counts as the service's.
    #[must_use]
    pub fn of(&self, mount: &NfsMount) -> Belongs {
        let Some(address) = mount.address() else {
            return Belongs::Unknown;
        };
        let owner = |map: &BTreeMap<String, Vec<IpAddr>>| {
            map.iter().find(|(_, all)| all.contains(&address)).map(|(name, _)| name.clone())
        };
        match (owner(&self.floating), owner(&self.nodes)) {
            (Some(service), _) => Belongs::Service(service),
            (None, Some(node)) => Belongs::Node(node),
            (None, None) => Belongs::Elsewhere,
        }
    }
}

/// What another hypervisor says of its mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerMounts {
    /// Its name.
    pub host: String,
    /// Sources by mount point; `None`: it has not answered.
    pub mounts: Option<BTreeMap<PathBuf, Source>>,
}

/// All findings on this host's mounts. Mounts of foreign servers are left alone.
#[must_use]
pub fn all(mounts: &[NfsMount], services: &Services, peers: &[PeerMounts]) -> Vec<Finding> {
    let mut out = Vec::new();
    for mount in mounts {
        let belongs = services.of(mount);
        out.extend(address(mount, &belongs, services));
        if matches!(belongs, Belongs::Service(_) | Belongs::Node(_)) {
            out.extend(options(mount));
            out.extend(peers.iter().filter_map(|p| same_on(mount, p)));
        }
    }
    out.extend(missing_here(mounts, services, peers));
    out
}

fn finding(m: &NfsMount, severity: Severity, code: &str, evidence: String, cure: &str) -> Finding {
    Finding::new(severity, code, m.point.display().to_string(), evidence, cure)
}

fn address(mount: &NfsMount, belongs: &Belongs, services: &Services) -> Option<Finding> {
    let used = mount.address().map_or_else(|| "?".to_owned(), |a| a.to_string());
    match belongs {
        Belongs::Node(node) => Some(finding(
            mount,
            Severity::Error,
            "mount-node-address",
            format!("{} is mounted through {used}, an address of node {node} itself", mount.source),
            &format!(
                "mount it through the service's floating address ({}): a node's own address does \
                 not move with the service",
                floating(services)
            ),
        )),
        Belongs::Unknown => Some(finding(
            mount,
            Severity::Warning,
            "mount-address-unknown",
            format!("the kernel shows no server address for {}", mount.source),
            "mount it through the service's floating address, so that it can be matched",
        )),
        Belongs::Service(_) | Belongs::Elsewhere => None,
    }
}

fn floating(services: &Services) -> String {
    let all = services.floating.values().flatten().map(ToString::to_string);
    let list = all.collect::<Vec<_>>().join(", ");
    if list.is_empty() { "none is configured".to_owned() } else { list }
}

/// Findings on the options alone.
#[must_use]
pub fn options(mount: &NfsMount) -> Vec<Finding> {
    [patience(mount), version(mount), transport(mount), locks(mount), timeo(mount)]
        .into_iter()
        .flatten()
        .collect()
}

fn patience(m: &NfsMount) -> Option<Finding> {
    let (severity, code, evidence) = match m.options.patience {
        Patience::Hard => return None,
        Patience::Soft => (Severity::Error, "mount-soft", "option soft"),
        Patience::SoftErr => (Severity::Error, "mount-soft", "option softerr"),
        Patience::Unsaid => {
            (Severity::Warning, "mount-hard-unknown", "neither hard nor soft is shown")
        }
    };
    let cure = "mount with hard: otherwise a storage move gives the guests I/O errors. Options of \
                a mounted file system cannot be changed";
    Some(finding(m, severity, code, evidence.to_owned(), cure))
}

fn version(m: &NfsMount) -> Option<Finding> {
    let cure = "mount with vers=4.2 (at least 4.1): older clients cannot say when they have \
                reclaimed everything, so that every move waits for the whole grace, and version 3 \
                keeps locks outside the protocol";
    match m.options.version {
        Some(v) if v >= LEAST_VERSION => None,
        Some(v) => Some(finding(m, Severity::Error, "mount-version", format!("vers={v}"), cure)),
        None => {
            let evidence = "no vers= is shown".to_owned();
            Some(finding(m, Severity::Warning, "mount-version-unknown", evidence, cure))
        }
    }
}

fn transport(m: &NfsMount) -> Option<Finding> {
    let kind = m.options.transport.as_deref();
    if matches!(kind, Some("tcp" | "tcp6")) {
        return None;
    }
    let evidence = kind.map_or("no proto= is shown".to_owned(), |k| format!("proto={k}"));
    let cure = "mount with proto=tcp: the new server makes TCP clients reconnect at once, and \
                stalls can be told from TCP's counters only";
    Some(finding(m, Severity::Warning, "mount-transport", evidence, cure))
}

fn locks(m: &NfsMount) -> Option<Finding> {
    let (severity, evidence) = match (m.options.nolock, m.options.local_lock.as_deref()) {
        (true, _) => (Severity::Error, "option nolock".to_owned()),
        (false, Some("none")) => return None,
        (false, Some(kind)) => (Severity::Error, format!("local_lock={kind}")),
        (false, None) => (Severity::Warning, "no local_lock= is shown".to_owned()),
    };
    let cure = "mount with vers=4.2 and without nolock and local_lock: locks that stay on this \
                host do not keep another hypervisor from opening the same disk";
    Some(finding(m, severity, "mount-local-locks", evidence, cure))
}

fn timeo(m: &NfsMount) -> Option<Finding> {
    let timeo = m.options.timeo_ds.filter(|t| *t > LARGEST_TIMEO_DS)?;
    let evidence = format!("timeo={timeo} ({} s)", timeo / 10);
    let cure = "mount with timeo=50,retrans=2: after a power cut nobody closes the old connection, \
                and the client keeps to it as long as timeo lets it";
    Some(finding(m, Severity::Info, "mount-timeo", evidence, cure))
}

fn same_on(mount: &NfsMount, peer: &PeerMounts) -> Option<Finding> {
    let Some(theirs) = &peer.mounts else {
        let evidence = format!("{} has not answered", peer.host);
        let cure = "start hvagent there, or look yourself: what is mounted there is unknown";
        return Some(finding(mount, Severity::Warning, "mount-peer-unknown", evidence, cure));
    };
    match theirs.get(&mount.point) {
        Some(source) if *source == mount.source => None,
        Some(source) => Some(differs(mount, &peer.host, source)),
        None => Some(finding(
            mount,
            Severity::Error,
            "mount-missing-on-peer",
            format!("{} has nothing mounted at {}", peer.host, mount.point.display()),
            &format!("mount {} there at the same place, with the same options", mount.source),
        )),
    }
}

fn differs(mount: &NfsMount, host: &str, theirs: &Source) -> Finding {
    finding(
        mount,
        Severity::Error,
        "mount-source-differs",
        format!("here {}, on {host} {theirs}", mount.source),
        "mount the same source, written the same way, on every hypervisor: a guest that migrates \
         opens its disk by its path",
    )
}

/// Mount points that a peer has from one of our services and this host has not.
fn missing_here(mounts: &[NfsMount], services: &Services, peers: &[PeerMounts]) -> Vec<Finding> {
    let here = |point: &Path| mounts.iter().any(|m| m.point == point);
    let mut out = Vec::new();
    for peer in peers {
        for (point, source) in peer.mounts.iter().flatten() {
            if !here(point) && is_ours(source, mounts, services) {
                out.push(Finding::new(
                    Severity::Error,
                    "mount-missing-here",
                    point.display().to_string(),
                    format!("{} has {source} mounted at {}", peer.host, point.display()),
                    format!("mount {source} here at the same place, with the same options"),
                ));
            }
        }
    }
    out
}

/// A source names a server; it is ours if it is a floating address, or if a mount here that is
/// ours names the same server.
fn is_ours(source: &Source, mounts: &[NfsMount], services: &Services) -> bool {
    let by_address = super::options::address(&source.server)
        .is_some_and(|a| services.floating.values().flatten().any(|f| *f == a));
    let same_name = |m: &&NfsMount| m.source.server == source.server;
    by_address
        || mounts.iter().filter(same_name).any(|m| matches!(services.of(m), Belongs::Service(_)))
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
