//! Takes a host's report: small kernel tables, libvirt's files, libvirt and sanlock under deadlines.
//!
//! Keeps S10: no path below a mount is touched, each source has its own deadline, and one that is
//! silent leaves the others alone. Keeps S12: what did not answer is unknown, with its words.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nasd_sanlock::Client;
use zbus::Connection;

use super::conf::{Settings, Unreadable};
use super::libvirt::{self, Virtual};
use super::proc;
use super::reach::{self, MIGRATION_PORTS};
use super::report::{
    Clock, Guest, HostReport, Known, Listening, Locks, Lockspace, Mount, MountPhase, OwnName,
    PoolReport, Sanlock, Services, Transport, VERSION, millis,
};
use crate::core::finding::Finding;
use crate::libvirt::bridge::{Bridge, PoolView};
use crate::mounts::check::Belongs;
use crate::mounts::mountinfo::{self, NfsMount};
use crate::sanlock::{self, Expected, Survey};

/// For all of libvirt's answers together.
const LIBVIRT: Duration = Duration::from_secs(15);
/// For all of sanlock's.
const SANLOCK: Duration = Duration::from_secs(8);
/// The lockspace that libvirt makes by itself.
const OF_LIBVIRT: &str = "__LIBVIRT__DISKS__";

/// Where a report is taken from.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Where `proc` and `etc` are; `/` but for tests.
    pub root: PathBuf,
    /// libvirt; else why it cannot be asked.
    pub libvirt: Result<Bridge, String>,
    /// The system bus; else why there is none.
    pub bus: Result<Connection, String>,
    /// sanlock's daemon.
    pub sanlock: Client,
    /// What nasd says of its services.
    pub services: Services,
    /// The storage phases, which only the running agent knows.
    pub phases: Known<Vec<MountPhase>>,
    /// The longest stall of the mounts that was seen.
    pub stall: Option<Duration>,
}

impl Sources {
    /// This host, over the system bus. Without one the report says so.
    pub async fn of_this_host(services: Services, phases: Known<Vec<MountPhase>>) -> Self {
        let limit = Duration::from_secs(2);
        let bus = match tokio::time::timeout(limit, Connection::system()).await {
            Ok(bus) => bus.map_err(|error| format!("the system bus cannot be used: {error}")),
            Err(_) => Err(format!("the system bus did not answer within {limit:?}")),
        };
        let bridge =
            |bus: &Connection| Bridge::new(bus.clone(), Default::default(), Default::default());
        Self {
            root: "/".into(),
            libvirt: bus.as_ref().map(bridge).map_err(Clone::clone),
            bus,
            sanlock: Client::new(nasd_sanlock::SOCKET, limit),
            services,
            phases,
            stall: None,
        }
    }

    fn read(&self, file: &str) -> Result<Vec<u8>, String> {
        let path = self.root.join(file);
        std::fs::read(&path).map_err(|error| format!("/{file} cannot be read ({error})"))
    }

    fn text(&self, file: &str) -> Result<String, String> {
        self.read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn settings(&self, file: &str) -> Result<Settings, Unreadable> {
        Settings::read(&self.root.join(file))
    }
}

/// Takes the report. Ends within half a minute, whatever hangs.
pub async fn collect(from: &Sources) -> HostReport {
    let host = nix::unistd::gethostname();
    let host =
        host.map_or_else(|_| "localhost".to_owned(), |name| name.to_string_lossy().into_owned());
    let (resolves_to, synchronised, answers) =
        tokio::join!(reach::resolve(&host), synchronised(from), answers(from));
    let table = from.read("proc/self/mountinfo");
    let nfs = table.as_ref().map(|table| mountinfo::parse(table)).map_err(Clone::clone);
    let nfs = nfs.and_then(complete);
    let pools = pools(answers.pools, &table, nfs.as_deref());
    let guests = match (answers.guests, &nfs) {
        (Known::Known(found), mounts) => {
            let mounts = mounts.as_deref().unwrap_or_default();
            Known::Known(found.into_iter().map(|one| libvirt::guest(one, mounts, &pools)).collect())
        }
        (Known::Unknown(why), _) => Known::Unknown(why),
    };
    let locks = locks(from, &guests).await;
    HostReport {
        version: VERSION,
        host,
        own_name: OwnName { resolves_to, addresses: addresses() },
        kernel: Known::Known(rustix::system::uname().release().to_string_lossy().into_owned()),
        free_memory: free_memory(from),
        libvirt: answers.versions,
        capabilities: answers.capabilities,
        services: from.services.clone(),
        mounts: Known::of(nfs.map(|all| mounts(from, &all))),
        pools,
        locks,
        listening: Known::of(listening(from)),
        guests,
        phases: from.phases.clone(),
        clock: Clock { unix_ns: unix_ns(), synchronised },
    }
}

/// Nanoseconds since 1970; zero before.
fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

async fn synchronised(from: &Sources) -> Known<bool> {
    match &from.bus {
        Ok(bus) => super::clock::synchronised(bus).await,
        Err(why) => Known::Unknown(why.clone()),
    }
}

async fn answers(from: &Sources) -> Virtual {
    match &from.libvirt {
        Ok(bridge) => libvirt::ask(bridge, tokio::time::Instant::now() + LIBVIRT).await,
        Err(why) => Virtual::unknown(why),
    }
}

/// The addresses of this host's interfaces.
fn addresses() -> Known<Vec<IpAddr>> {
    let of = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    };
    let usable = |address: &IpAddr| !address.is_loopback() && !is_link_local(address);
    Known::of(nix::ifaddrs::getifaddrs().map(|all| all.filter_map(of).filter(usable).collect()))
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn free_memory(from: &Sources) -> Known<u64> {
    let missing = || "/proc/meminfo does not tell MemAvailable".to_owned();
    Known::of(
        from.text("proc/meminfo").and_then(|t| proc::available_memory(&t).ok_or_else(missing)),
    )
}

/// A table with a line that is not understood may hide a mount (S12).
fn complete(parsed: crate::mounts::Parsed<NfsMount>) -> Result<Vec<NfsMount>, String> {
    match parsed.problems.first() {
        Some(problem) => Err(format!("/proc/self/mountinfo: {problem}")),
        None => Ok(parsed.entries),
    }
}

fn mounts(from: &Sources, all: &[NfsMount]) -> Vec<Mount> {
    let volumes = from.text("proc/fs/nfsfs/volumes").unwrap_or_default();
    let services = from.services.known();
    let option = |(key, value): &(String, Option<String>)| match value {
        Some(value) => format!("{key}={value}"),
        None => key.clone(),
    };
    let one = |mount: &NfsMount| Mount {
        point: mount.point.display().to_string(),
        server: mount.source.server.clone(),
        path: mount.source.path.display().to_string(),
        root: mount.root.display().to_string(),
        device: format!("{}:{}", mount.device.0, mount.device.1),
        address: mount.address(),
        fsid: proc::fsid(&volumes, mount.device),
        service: match services.of(mount) {
            Belongs::Service(name) => Some(name),
            _ => None,
        },
        read_only: mount.read_only,
        options: mount.options.all.iter().map(option).collect::<Vec<_>>().join(","),
    };
    all.iter().map(one).collect()
}

/// libvirt's pools, with what is really mounted at their targets.
fn pools(
    views: Known<Vec<PoolView>>,
    table: &Result<Vec<u8>, String>,
    nfs: Result<&[NfsMount], &String>,
) -> Known<Vec<PoolReport>> {
    let one = |view: PoolView| {
        let target = view.definition.target.as_deref().map(|t| t.trim_end_matches('/').to_owned());
        let mounted = match (&target, table) {
            (None, _) => Known::Known(None),
            (Some(target), Ok(table)) => Known::Known(proc::mounted_at(table, target)),
            (Some(_), Err(why)) => Known::Unknown(why.clone()),
        };
        let on = target.and_then(|target| libvirt::holding(nfs.unwrap_or_default(), &target));
        let PoolView { definition, active, autostart, persistent } = view;
        PoolReport { definition, active, autostart, persistent, mounted, on }
    };
    match views {
        Known::Known(views) => Known::Known(views.into_iter().map(one).collect()),
        Known::Unknown(why) => Known::Unknown(why),
    }
}

/// Listening sockets; a host without the sixth version has no such table.
fn listening(from: &Sources) -> Result<Listening, String> {
    let mut found: Vec<_> = proc::listening(&from.text("proc/net/tcp")?).collect();
    match std::fs::read_to_string(from.root.join("proc/net/tcp6")) {
        Ok(table) => found.extend(proc::listening(&table)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("/proc/net/tcp6 cannot be read ({error})")),
    }
    let qemu = from.settings("etc/libvirt/qemu.conf").unwrap_or_default();
    let first = qemu.number("migration_port_min").unwrap_or(MIGRATION_PORTS.0);
    let last = qemu.number("migration_port_max").unwrap_or(MIGRATION_PORTS.1);
    let outside = |port: u16| found.iter().any(|(a, p)| *p == port && !a.is_loopback());
    let mut taken: Vec<_> =
        found.iter().map(|(_, p)| *p).filter(|p| (first..=last).contains(p)).collect();
    taken.sort_unstable();
    taken.dedup();
    let transports = Transport::ALL.into_iter().filter(|t| outside(t.port())).collect();
    Ok(Listening { transports, migration: (first, last), taken })
}

/// Lock manager, lockspaces, and what is wrong with them.
async fn locks(from: &Sources, guests: &Known<Vec<Guest>>) -> Locks {
    let manager = from.settings("etc/libvirt/qemu.conf");
    let manager = manager.map(|s| s.get("lock_manager").map(str::to_owned));
    let in_use = matches!(&manager, Ok(Some(name)) if name == "sanlock");
    let (manager, needed) = match in_use.then(|| needed(from, guests)) {
        Some(Ok(needed)) => (manager, needed),
        Some(Err(error)) => (Err(error), Vec::new()),
        None => (manager, Vec::new()),
    };
    let expected = Expected { lockspaces: needed.clone(), in_use, stall: from.stall };
    let client = from.sanlock.clone();
    let ask = tokio::task::spawn_blocking(move || survey(&client, &expected));
    let (sanlock, findings) = match tokio::time::timeout(SANLOCK, ask).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => (Known::Unknown(format!("sanlock was not asked ({error})")), Vec::new()),
        Err(_) => {
            (Known::Unknown(format!("sanlock did not answer within {SANLOCK:?}")), Vec::new())
        }
    };
    Locks { manager: Known::of(manager), needed, sanlock, findings }
}

/// libvirt's own lockspace, and those that guests name.
fn needed(from: &Sources, guests: &Known<Vec<Guest>>) -> Result<Vec<String>, Unreadable> {
    let settings = from.settings("etc/libvirt/qemu-sanlock.conf")?;
    let automatic = settings.number::<u8>("auto_disk_leases") == Some(1);
    let mut needed: Vec<_> = automatic.then(|| OF_LIBVIRT.to_owned()).into_iter().collect();
    needed.extend(guests.each().flat_map(|guest| &guest.lockspaces).cloned());
    needed.sort_unstable();
    needed.dedup();
    Ok(needed)
}

/// Blocks, each question for the client's limit at most.
fn survey(client: &Client, expected: &Expected) -> (Known<Sanlock>, Vec<Finding>) {
    let begun = Instant::now();
    match Survey::take(client, Duration::ZERO) {
        Ok(survey) => {
            let now = begun.elapsed();
            (Known::Known(told(&survey, now)), sanlock::check(&survey, expected, now))
        }
        Err(error) => {
            let finding = sanlock::without_answer(&error, expected);
            (Known::Unknown(error.to_string()), finding.into_iter().collect())
        }
    }
}

fn told(survey: &Survey, now: Duration) -> Sanlock {
    let one = |space: &sanlock::Space| {
        let (lockspace, lease) = (&space.lockspace, survey.lease(space));
        Lockspace {
            name: lockspace.name.clone(),
            host_id: lockspace.host_id,
            path: lockspace.disk.path.clone(),
            joined: lease.is_some(),
            io_timeout: lockspace.io_timeout,
            margin_ms: lease.map(|lease| millis(lease.margin(now))),
        }
    };
    Sanlock {
        version: survey.daemon.version.clone(),
        host_name: survey.daemon.host_name.clone(),
        watchdog: survey.daemon.use_watchdog,
        watchdog_fire_timeout: survey.daemon.watchdog_fire_timeout,
        lockspaces: survey.spaces.iter().map(one).collect(),
    }
}

#[cfg(test)]
#[path = "collect_tests.rs"]
mod tests;
