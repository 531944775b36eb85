//! Whether a guest can migrate from this host to another, judged from both hosts' reports.
//!
//! Pure. Rule kept: S12. What is unknown on either side is a finding of its own, and what a guest
//! must not do without is an error when it is unknown.

use std::time::Duration;

use super::fit;
use super::host::{self, hosts_line, sort};
use super::leases;
use super::reach::{Door, Reach};
use super::remedy;
use super::report::{Guest, HostReport, Known, Mount, PoolReport, Transport};
use crate::core::finding::{Finding, Severity};
use crate::libvirt::state::{DomainState, Paused};
use crate::mounts::check::Belongs;

use Severity::{Error, Info, Warning};

/// Oldest report that is still believed: three of the agent's rounds of 60 s.
pub const OLDEST: Duration = Duration::from_secs(180);
/// Skew of the clocks that is told. Reports come within a few milliseconds; an agent that is busy
/// may take some hundred.
pub const SKEW_TOLD: Duration = Duration::from_millis(500);
/// Skew that breaks certificates' first minutes, logs and guests' clocks.
pub const SKEW_WRONG: Duration = Duration::from_secs(5);

/// The two sides of a migration. `age` is how old the target's report was when this host's clock
/// was read.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// Where the guest runs.
    pub here: &'a HostReport,
    /// Where it is to run.
    pub there: &'a HostReport,
    /// Of the target's report, at the time stamp of this host's.
    pub age: Duration,
    /// The way from here to there.
    pub reach: &'a Reach,
}

/// The finding when nothing is known of the target.
#[must_use]
pub fn target_unknown(to: &str, why: &str) -> Finding {
    let remedy = format!(
        "on {to}: `systemctl enable --now hvagent`; its certificate must name {to}, and \
         /etc/nasd/hvagent.toml both nasds; then check again"
    );
    Finding::new(Error, "target-unknown", to, why, remedy)
}

/// All findings on a migration of the guest `vm`, the worst first.
#[must_use]
pub fn judge_migration(vm: &str, pair: Pair<'_>) -> Vec<Finding> {
    let mut found: Vec<Finding> =
        [same_host(pair), old(pair), clock_skew(pair)].into_iter().flatten().collect();
    match (pair.here.guest(vm), pair.here.guests.why()) {
        (Some(guest), _) => found.extend(of_guest(guest, pair)),
        (None, Some(why)) => found.push(guest_unknown(vm, why)),
        (None, None) => found.push(no_guest(vm, pair.here)),
    }
    found.extend(name(pair));
    found.extend(transport(pair));
    found.extend(migration_ports(pair));
    found.extend(fit::versions(pair));
    found.extend(leases::locks(pair));
    sort(&mut found);
    found
}

fn of_guest(guest: &Guest, pair: Pair<'_>) -> Vec<Finding> {
    let mut found = state(guest, pair);
    found.extend(storage(guest, pair));
    found.extend(pools(guest, pair));
    found.extend(host::disks(guest, Error));
    found.extend(fit::processor(guest, pair));
    found.extend(fit::machine(guest, pair));
    found.extend(fit::memory(guest, pair));
    found
}

fn guest_unknown(vm: &str, why: &str) -> Finding {
    let remedy = "make libvirt answer (`systemctl status libvirtd virtqemud`), then check again";
    Finding::new(Error, "guest-unknown", vm, why, remedy)
}

fn no_guest(vm: &str, here: &HostReport) -> Finding {
    let evidence = format!("no running guest of {} has that name or uuid", here.host);
    Finding::new(
        Error,
        "guest-missing",
        vm,
        evidence,
        "`virsh list --all`; check on the host where it runs",
    )
}

fn same_host(pair: Pair<'_>) -> Option<Finding> {
    let evidence = "source and target are the same host";
    (pair.here.host == pair.there.host).then(|| {
        let remedy = "name another host after --to; hosts of the same name need names of their own \
                      (`hostnamectl set-hostname NAME`)";
        Finding::new(Error, "target-is-here", pair.there.host.as_str(), evidence, remedy)
    })
}

fn old(pair: Pair<'_>) -> Option<Finding> {
    (pair.age > OLDEST).then(|| {
        let host = pair.there.host.as_str();
        let evidence = format!(
            "its report is {} s old: what is true there now is unknown",
            pair.age.as_secs()
        );
        let remedy = format!("on {host}: `systemctl restart hvagent`, then check again");
        Finding::new(Error, "target-report-old", host, evidence, remedy)
    })
}

fn clock_skew(pair: Pair<'_>) -> Option<Finding> {
    let here = Duration::from_nanos(pair.here.clock.unix_ns);
    let there = Duration::from_nanos(pair.there.clock.unix_ns).saturating_add(pair.age);
    let skew = here.abs_diff(there);
    let severity = match skew {
        _ if skew > SKEW_WRONG => Error,
        _ if skew > SKEW_TOLD => Warning,
        _ => return None,
    };
    let order = if there > here { "ahead" } else { "behind" };
    let host = pair.there.host.as_str();
    let evidence = format!("the clock of {host} is {:.1} s {order}", skew.as_secs_f64());
    let remedy = "on both hosts: `timedatectl set-ntp true` (or `systemctl enable --now chrony`), \
                  and `chronyc makestep` or a restart of the service where the clock is wrong";
    Some(Finding::new(severity, "clock-skew", host, evidence, remedy))
}

/// What the guest does and what it is made of.
fn state(guest: &Guest, pair: Pair<'_>) -> Vec<Finding> {
    let name = guest.name.as_str();
    let mut found = Vec::new();
    let mut told = |code: &str, evidence: String, remedy: String| {
        found.push(Finding::new(Error, code, name, evidence, remedy));
    };
    let shell = remedy::word(name);
    match &guest.state {
        Known::Known(DomainState::Running | DomainState::Paused(Paused::ByUser)) => {}
        Known::Known(state) => told(
            "guest-state",
            format!("it is neither running nor paused by a user: {state:?}"),
            format!(
                "`virsh domstate --reason {shell}`; let it run again first (`virsh resume {shell}`)"
            ),
        ),
        Known::Unknown(why) => {
            told("guest-state-unknown", why.clone(), format!("`virsh domstate --reason {shell}`"))
        }
    }
    for blocker in &guest.blockers {
        let remedy = format!(
            "take it out with `virsh edit {shell}` and start the guest anew, or move the guest stopped"
        );
        told("migration-blocked", format!("{blocker:?} exists on this host only"), remedy);
    }
    for disk in guest.disks.iter().filter(|disk| disk.copying) {
        let target = remedy::word(&disk.target);
        told(
            "disk-being-copied",
            format!("a block job runs on {}", disk.target),
            format!(
                "`virsh blockjob {shell} {target}`; wait for its end or `virsh blockjob {shell} {target} --abort`"
            ),
        );
    }
    if pair.there.guests.each().any(|other| other.uuid == guest.uuid) {
        told(
            "guest-on-both",
            format!("a guest of the same uuid runs on {} as well", pair.there.host),
            "stop both, find out which disk is right; do not migrate".to_owned(),
        );
    }
    found
}

/// The guest's disks, file by file, and the mounts they lie on.
fn storage(guest: &Guest, pair: Pair<'_>) -> Vec<Finding> {
    if let Some(why) = pair.here.mounts.why().or(pair.there.mounts.why()) {
        let remedy = "run hvagent as root on both hosts, then check again";
        return vec![Finding::new(Error, "mounts-unknown", guest.name.as_str(), why, remedy)];
    }
    let mut found: Vec<Finding> =
        guest.disks.iter().flat_map(|disk| local(guest, disk, pair)).collect();
    let mut points: Vec<&str> =
        guest.on_nfs().filter_map(|(_, place)| place.on.as_deref()).collect();
    points.sort_unstable();
    points.dedup();
    for mount in points.into_iter().filter_map(|point| pair.here.mount(point)) {
        found.extend(same_storage(mount, pair));
        found.extend([pair.here, pair.there].into_iter().flat_map(|host| phase(mount, host)));
    }
    found
}

/// Files of a disk that lie on no shared storage.
fn local(guest: &Guest, disk: &super::report::Disk, pair: Pair<'_>) -> Vec<Finding> {
    let off = disk.paths.iter().filter(|place| place.on.is_none());
    let judge = |path: &str| {
        let (severity, code, evidence) = if path.starts_with("/dev/") {
            (
                Warning,
                "disk-shared-unknown",
                "a device: whether both hosts have the same is not known",
            )
        } else if disk.read_only {
            (Warning, "disk-local-media", "read-only and not on NFS: it must be there as well")
        } else {
            (Error, "disk-not-shared", "not on NFS: the guest would lose it")
        };
        let host = &pair.there.host;
        let remedy = match severity {
            Error => "move the disk to the shared storage (`virsh blockcopy`), or migrate with \
                      `--copy-storage-all` into a file that exists there"
                .to_owned(),
            _ => format!(
                "on {host}: `ls -l {}`; a drive can be emptied with `virsh change-media`",
                remedy::word(path)
            ),
        };
        let subject = format!("{} {}", guest.name, disk.target);
        Finding::new(severity, code, subject, format!("{path}: {evidence}"), remedy)
    };
    off.map(|place| judge(&place.path)).collect()
}

/// Whether the file system of a mount is at the same place there, and the same.
fn same_storage(mount: &Mount, pair: Pair<'_>) -> Vec<Finding> {
    let host = pair.there.host.as_str();
    let subject = mount.point.as_str();
    let command = remedy::mount(&mount.source(), subject);
    let Some(other) = pair.there.mount_of(subject).filter(|other| other.point == subject) else {
        let evidence =
            format!("{host} has nothing mounted at {subject}, here it is {}", mount.source());
        let remedy = format!(
            "on {host}: `mkdir -p {} && {command}`, and the same in /etc/fstab or the pool",
            remedy::word(subject)
        );
        return vec![Finding::new(Error, "mount-missing-on-peer", subject, evidence, remedy)];
    };
    let mut found: Vec<Finding> = [file_system(mount, other, pair), options(mount, other, pair)]
        .into_iter()
        .flatten()
        .collect();
    found.extend(host::mount(pair.there, other).into_iter().map(|finding| on(host, finding)));
    found.extend(host::mount(pair.here, mount));
    found
}

/// A finding of the other host, said to be there.
pub(super) fn on(host: &str, mut finding: Finding) -> Finding {
    finding.subject = format!("{} on {host}", finding.subject);
    finding.remedy = format!("on {host}: {}", finding.remedy);
    finding
}

fn file_system(mount: &Mount, other: &Mount, pair: Pair<'_>) -> Option<Finding> {
    let same_source = mount.path == other.path && mount.root == other.root;
    let same_address = mount.address.is_some() && mount.address == other.address;
    let same_fsid = match (&mount.fsid, &other.fsid) {
        (Some(one), Some(two)) => Some(one == two),
        _ => None,
    };
    if same_source && same_address && same_fsid != Some(false) {
        return None;
    }
    let is_same = same_source && same_fsid == Some(true);
    if is_same { other_address(mount, other, pair) } else { Some(differs(mount, other, pair)) }
}

fn differs(mount: &Mount, other: &Mount, pair: Pair<'_>) -> Finding {
    let host = pair.there.host.as_str();
    let shown = |m: &Mount| {
        let address = m.address.map_or_else(|| "?".to_owned(), |a| a.to_string());
        let fsid = m.fsid.as_deref().unwrap_or("?");
        format!("{} (address {address}, fsid {fsid}, part {})", m.source(), m.root)
    };
    let evidence = format!("here {}, on {host} {}", shown(mount), shown(other));
    let remedy =
        format!("on {host}: {}", remedy::remount(&as_here(mount, other), &pair.here.services));
    Finding::new(Error, "mount-source-differs", mount.point.as_str(), evidence, remedy)
}

/// The other host's mount, with the source that is used here.
fn as_here(mount: &Mount, other: &Mount) -> Mount {
    let (server, path) = (mount.server.clone(), mount.path.clone());
    Mount { server, path, address: mount.address, ..other.clone() }
}

/// The same file system through two addresses: which of them does not move with the service?
fn other_address(mount: &Mount, other: &Mount, pair: Pair<'_>) -> Option<Finding> {
    let services = pair.here.services.known();
    let floats = |m: &Mount| matches!(services.of(&m.nfs()), Belongs::Service(_));
    let (host, wrong) = match (floats(mount), floats(other)) {
        (true, true) => return None,
        (true, false) => (&pair.there.host, other),
        (false, _) => (&pair.here.host, mount),
    };
    let shown = |m: &Mount| m.address.map_or_else(|| "?".to_owned(), |a| a.to_string());
    Some(Finding::new(
        Error,
        "mount-wrong-address",
        mount.point.as_str(),
        format!(
            "the same file system through {} here and {} on {}: {} on {host} is not a floating address",
            shown(mount),
            shown(other),
            pair.there.host,
            shown(wrong)
        ),
        format!("on {host}: {}", remedy::remount(wrong, &pair.here.services)),
    ))
}

/// Options that a guest notices after it has moved.
fn options(mount: &Mount, other: &Mount, pair: Pair<'_>) -> Option<Finding> {
    let of = |m: &Mount| {
        let o = m.understood();
        let version = o.version.map_or_else(|| "?".to_owned(), |v| v.to_string());
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "?".to_owned());
        [
            format!("vers={version}"),
            format!("proto={}", text(&o.transport)),
            format!("sec={}", text(&o.security)),
            format!("local_lock={}", text(&o.local_lock)),
            (if m.read_only { "ro" } else { "rw" }).to_owned(),
        ]
    };
    let (here, there) = (of(mount), of(other));
    let pairs: Vec<_> = here.iter().zip(&there).filter(|(one, two)| one != two).collect();
    if pairs.is_empty() {
        return None;
    }
    let host = pair.there.host.as_str();
    let list = |side: Vec<&String>| side.into_iter().cloned().collect::<Vec<_>>().join(",");
    let (one, two) = pairs.into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
    let severity = if mount.read_only == other.read_only { Warning } else { Error };
    let evidence = format!("here {}, on {host} {}", list(one), list(two));
    let remedy = format!("on {host}: {}", remedy::remount(other, &pair.here.services));
    Some(Finding::new(severity, "mount-options-differ", mount.point.as_str(), evidence, remedy))
}

/// S11: no migration while the storage moves. A mount that is no service's has no phases.
fn phase(mount: &Mount, host: &HostReport) -> Option<Finding> {
    let ours = mount.service.is_some()
        || matches!(host.services.known().of(&mount.nfs()), Belongs::Service(_));
    if !ours {
        return None;
    }
    let subject = format!("{} on {}", mount.point, host.host);
    let of_mount = |phases: &Vec<super::report::MountPhase>| {
        phases.iter().find(|p| p.mount == mount.point).map(|p| p.phase.clone())
    };
    let (code, evidence) = match (host.phases.get().and_then(of_mount), host.phases.why()) {
        (Some(phase), _) if phase == "normal" => return None,
        (Some(phase), _) => ("storage-moving", format!("the storage's phase is {phase}")),
        (None, why) => {
            ("phase-unknown", why.unwrap_or("the agent does not tell of this mount").to_owned())
        }
    };
    let remedy = match code {
        "storage-moving" => "wait until `hvagent status` shows normal on both hosts".to_owned(),
        _ => format!("on {}: `systemctl enable --now hvagent`, then check again", host.host),
    };
    Some(Finding::new(Error, code, subject, evidence, remedy))
}

/// The pools of both hosts. Those that the guest lies in matter most.
fn pools(guest: &Guest, pair: Pair<'_>) -> Vec<Finding> {
    if let Some(why) = pair.here.pools.why().or(pair.there.pools.why()) {
        let remedy =
            "make libvirt answer on both hosts (`virsh pool-list --all`), then check again";
        return vec![Finding::new(Warning, "pools-unknown", guest.name.as_str(), why, remedy)];
    }
    pair.here.pools.each().flat_map(|pool| same_pool(pool, is_of(guest, pool), pair)).collect()
}

fn is_of(guest: &Guest, pool: &PoolReport) -> bool {
    let by_name = |disk: &super::report::Disk| disk.pool.as_deref() == Some(&pool.definition.name);
    let target = pool.definition.target.as_deref().map(std::path::Path::new);
    let below =
        |path: &str| target.is_some_and(|target| std::path::Path::new(path).starts_with(target));
    let of = |disk: &super::report::Disk| {
        by_name(disk) || disk.paths.iter().any(|place| below(&place.path))
    };
    guest.disks.iter().any(of)
}

fn same_pool(pool: &PoolReport, used: bool, pair: Pair<'_>) -> Vec<Finding> {
    let is_shared = pool.on.is_some() || pool.definition.mount_source().is_some();
    if !used && !is_shared {
        return Vec::new();
    }
    let (name, host) = (pool.definition.name.as_str(), pair.there.host.as_str());
    let severity = if used { Error } else { Warning };
    let mut found = Vec::new();
    match pair.there.pools.each().find(|other| other.definition.name == name) {
        None => {
            let evidence = format!("{host} has no pool of that name");
            found.push(Finding::new(severity, "pool-mismatch", name, evidence, define(name, host)));
        }
        Some(other) => {
            found.extend(pool_differs(pool, other, severity, host));
            found
                .extend(host::pool(pair.there, other).into_iter().map(|finding| on(host, finding)));
            found.extend(host::pool(pair.here, pool).into_iter().filter(|_| used));
        }
    }
    found.iter_mut().filter(|f| used && f.code == "pool-inactive").for_each(|f| f.severity = Error);
    found
}

fn pool_differs(
    pool: &PoolReport,
    other: &PoolReport,
    severity: Severity,
    host: &str,
) -> Option<Finding> {
    let differences = pool.definition.differences(&other.definition);
    if differences.is_empty() {
        return None;
    }
    let shown =
        differences.iter().map(|d| format!("{}: here {}, on {host} {}", d.what, d.here, d.there));
    let evidence = shown.collect::<Vec<_>>().join("; ");
    let name = pool.definition.name.as_str();
    Some(Finding::new(severity, "pool-mismatch", name, evidence, define(name, host)))
}

/// How to give the other host this host's definition.
fn define(name: &str, host: &str) -> String {
    let shell = remedy::word(name);
    let file = remedy::word(&format!("/tmp/{name}.xml"));
    format!(
        "here: `virsh pool-dumpxml {shell} > {file} && scp {file} {host}:/tmp/`; on {host}, while no \
         guest there uses it: `virsh pool-destroy {shell}; virsh pool-undefine {shell}; virsh \
         pool-define {file} && virsh pool-start {shell} && virsh pool-autostart {shell}`"
    )
}

/// What the target's name resolves to, here and there.
fn name(pair: Pair<'_>) -> Option<Finding> {
    let (name, host) = (pair.reach.name.as_str(), pair.there.host.as_str());
    let fix = |at: &str| format!("on {at}: {}", hosts_line(pair.there));
    let found = match &pair.reach.resolves_to {
        Known::Known(found) if !found.is_empty() => found,
        Known::Known(_) => {
            return Some(Finding::new(
                Error,
                "target-name",
                name,
                "it resolves to nothing",
                fix(&pair.here.host),
            ));
        }
        Known::Unknown(why) => {
            return Some(Finding::new(
                Error,
                "target-name",
                name,
                why.as_str(),
                fix(&pair.here.host),
            ));
        }
    };
    if let Some(loopback) = found.iter().find(|address| address.is_loopback()) {
        let evidence =
            format!("{name} resolves to {loopback} here: the guest would be sent to its own host");
        return Some(Finding::new(Error, "target-name", name, evidence, fix(&pair.here.host)));
    }
    let own = pair.there.own_name.addresses.get();
    if let Some(own) = own.filter(|own| !found.iter().any(|address| own.contains(address))) {
        let evidence = format!("{name} resolves to {found:?} here, but {host} has {own:?}");
        return Some(Finding::new(Error, "target-name", name, evidence, fix(&pair.here.host)));
    }
    let at_home = pair.there.own_name.resolves_to.each().find(|address| address.is_loopback())?;
    let evidence = format!(
        "{host} resolves its own name to {at_home}: it may tell the source to send the guest there"
    );
    Some(Finding::new(Warning, "target-name", name, evidence, fix(host)))
}

/// Whether libvirt there can be asked at all.
fn transport(pair: Pair<'_>) -> Option<Finding> {
    let is_open = |wanted: Transport| {
        pair.reach.transports.iter().any(|(t, door)| *t == wanted && *door == Door::Open)
    };
    let host = pair.there.host.as_str();
    if is_open(Transport::Tls) || is_open(Transport::Ssh) {
        return None;
    }
    if is_open(Transport::Tcp) {
        let evidence = "only tcp (16509) answers: orders and, without --tls, the guest's memory are not encrypted";
        let remedy = format!(
            "on {host}: certificates in /etc/pki/libvirt, then `systemctl stop libvirtd && systemctl enable --now libvirtd-tls.socket`"
        );
        return Some(Finding::new(Info, "transport-plain", host, evidence, remedy));
    }
    let shown = pair
        .reach
        .transports
        .iter()
        .map(|(t, door)| format!("{} ({}): {door:?}", t.name(), t.port()));
    let shown = shown.collect::<Vec<_>>().join(", ");
    let evidence =
        if shown.is_empty() { "not tried, as its address is not known".to_owned() } else { shown };
    let remedy = format!(
        "on {host}: `systemctl stop libvirtd && systemctl enable --now libvirtd-tls.socket` (with \
         certificates; virtproxyd-tls.socket where libvirt is split), and let 16514/tcp through its firewall"
    );
    Some(Finding::new(Error, "transport-unreachable", host, evidence, remedy))
}

fn migration_ports(pair: Pair<'_>) -> Option<Finding> {
    let host = pair.there.host.as_str();
    if let Some(listening) = pair.there.listening.get() {
        let (first, last) = listening.migration;
        if usize::from(last.saturating_sub(first)) < listening.taken.len() {
            let evidence = format!("all ports of {first}-{last} are taken");
            let remedy = format!(
                "on {host}: wait for running migrations, or raise migration_port_max in /etc/libvirt/qemu.conf"
            );
            return Some(Finding::new(Error, "migration-ports-taken", host, evidence, remedy));
        }
    }
    let (port, Door::Silent(why)) = pair.reach.migration.as_ref()? else { return None };
    let evidence = format!("port {port} does not answer, not even with a refusal: {why}");
    let remedy = format!(
        "on {host}: let 49152-49215/tcp through from the other hypervisors (`firewall-cmd \
         --permanent --add-port=49152-49215/tcp && firewall-cmd --reload`)"
    );
    Some(Finding::new(Error, "migration-ports-filtered", host, evidence, remedy))
}

#[cfg(test)]
#[path = "migrate_tests.rs"]
mod tests;
