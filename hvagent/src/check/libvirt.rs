//! libvirt's part of the report: questions through the bridge, and guests as the report has them.
//!
//! Keeps S10: each question has the bridge's deadline, all of them one together. Keeps S12: a list
//! of which one entry could not be read is unknown as a whole.

use std::fmt::Display;
use std::future::Future;
use std::path::Path;

use tokio::time::{Instant, timeout_at};
use zbus::OwnedObjectPath;

use super::caps;
use super::report::{Capabilities, Disk, Guest, Known, Place, PoolReport, Versions};
use crate::libvirt::bridge::{Bridge, PoolView};
use crate::libvirt::domain::{self, Domain};
use crate::libvirt::state::DomainState;
use crate::mounts::mountinfo::{self, NfsMount};

/// Kinds of guest whose processors are asked for.
const KINDS: [&str; 2] = ["kvm", "qemu"];

/// A guest and what it does.
pub(super) type Found = (Domain, Known<DomainState>);

/// What libvirt says.
#[derive(Debug)]
pub(super) struct Virtual {
    pub(super) versions: Known<Versions>,
    pub(super) capabilities: Known<Capabilities>,
    pub(super) pools: Known<Vec<PoolView>>,
    pub(super) guests: Known<Vec<Found>>,
}

impl Virtual {
    /// Nothing, and why.
    pub(super) fn unknown(why: &str) -> Self {
        let why = || why.to_owned();
        Self {
            versions: Known::Unknown(why()),
            capabilities: Known::Unknown(why()),
            pools: Known::Unknown(why()),
            guests: Known::Unknown(why()),
        }
    }
}

/// Asks, until that moment at most.
pub(super) async fn ask(bridge: &Bridge, until: Instant) -> Virtual {
    let versions = by(until, "versions", versions(bridge)).await;
    if let Known::Unknown(why) = &versions {
        return Virtual::unknown(why);
    }
    Virtual {
        versions,
        pools: by(until, "pools", pools(bridge)).await,
        guests: by(until, "guests", guests(bridge)).await,
        capabilities: by(until, "capabilities", capabilities(bridge)).await,
    }
}

async fn by<T, E: Display>(
    until: Instant,
    what: &str,
    ask: impl Future<Output = Result<T, E>>,
) -> Known<T> {
    match timeout_at(until, ask).await {
        Ok(answer) => Known::of(answer),
        Err(_) => Known::Unknown(format!("libvirt did not tell its {what} in time")),
    }
}

async fn versions(bridge: &Bridge) -> crate::libvirt::Result<Versions> {
    let host = bridge.host().await?;
    Ok(Versions { name: host.name, libvirt: host.libvirt, qemu: host.qemu })
}

async fn pools(bridge: &Bridge) -> crate::libvirt::Result<Vec<PoolView>> {
    let mut found = Vec::new();
    for path in bridge.pools().await? {
        found.push(bridge.pool(&path).await?);
    }
    Ok(found)
}

/// The guests. One that ends between two questions is asked for once more with all others.
async fn guests(bridge: &Bridge) -> crate::libvirt::Result<Vec<Found>> {
    match guests_once(bridge).await {
        Err(error) if !error.is_hang() => guests_once(bridge).await,
        other => other,
    }
}

async fn guests_once(bridge: &Bridge) -> crate::libvirt::Result<Vec<Found>> {
    let mut found = Vec::new();
    for path in bridge.domains().await? {
        found.push((bridge.domain(&path).await?, state(bridge, &path).await));
    }
    Ok(found)
}

async fn state(bridge: &Bridge, path: &OwnedObjectPath) -> Known<DomainState> {
    Known::of(bridge.state(path).await)
}

/// Why the capabilities are not known.
#[derive(Debug, thiserror::Error)]
enum NoCapabilities {
    #[error(transparent)]
    Libvirt(#[from] crate::libvirt::Error),
    #[error(transparent)]
    Xml(#[from] caps::BadCapabilities),
}

async fn capabilities(bridge: &Bridge) -> Result<Capabilities, NoCapabilities> {
    let (mut found, kinds) = caps::host(&bridge.capabilities().await?)?;
    for kind in KINDS.into_iter().filter(|kind| kinds.iter().any(|k| k == kind)) {
        let xml = bridge.domain_capabilities(kind.to_owned()).await?;
        found.kinds.push(caps::kind_of_guest(kind, &xml)?);
    }
    Ok(found)
}

/// The point of the NFS mount that a path lies on, by its name.
pub(super) fn holding(mounts: &[NfsMount], path: &str) -> Option<String> {
    mountinfo::holding(mounts, Path::new(path)).map(|mount| mount.point.display().to_string())
}

/// A guest as the report has it.
pub(super) fn guest(
    (domain, state): Found,
    mounts: &[NfsMount],
    pools: &Known<Vec<PoolReport>>,
) -> Guest {
    let disks = domain.disks.iter().map(|one| disk(one, mounts, pools)).collect();
    let lockspaces = domain.leases.iter().filter_map(|lease| lease.lockspace.clone()).collect();
    Guest {
        state,
        cpu: caps::processor(&domain.cpu),
        disks,
        lockspaces,
        name: domain.name,
        uuid: domain.uuid,
        virt_type: domain.virt_type,
        arch: domain.arch,
        machine: domain.machine,
        memory: domain.memory,
        blockers: domain.blockers,
    }
}

fn disk(one: &domain::Disk, mounts: &[NfsMount], pools: &Known<Vec<PoolReport>>) -> Disk {
    let place = |path: String| Place { on: holding(mounts, &path), path };
    let sources = std::iter::once(&one.source).chain(&one.backing);
    let pool = match &one.source {
        domain::Source::Volume { pool, .. } => Some(pool.clone()),
        _ => None,
    };
    Disk {
        target: one.target.clone(),
        device: one.device.clone(),
        paths: sources.filter_map(|source| path(source, pools)).map(place).collect(),
        pool,
        cache: one.cache,
        on_write_error: one.on_write_error,
        on_read_error: one.on_read_error,
        pauses_on_error: one.pauses_on_error(),
        read_only: one.read_only,
        network: matches!(one.source, domain::Source::Network { .. }),
        copying: one.mirroring,
    }
}

/// Where a source lies on this host; a volume lies below its pool's target.
fn path(source: &domain::Source, pools: &Known<Vec<PoolReport>>) -> Option<String> {
    match source {
        domain::Source::File(path) | domain::Source::Block(path) => Some(path.clone()),
        domain::Source::Volume { pool, volume } => {
            let pool = pools.each().find(|p| p.definition.name == *pool)?;
            let target = pool.definition.target.as_deref()?;
            Some(format!("{}/{volume}", target.trim_end_matches('/')))
        }
        _ => None,
    }
}
