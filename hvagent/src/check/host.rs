//! What is wrong with one hypervisor, judged from its report alone.
//!
//! Pure. Codes are stable. Rule kept: S12. Every part of the report that is unknown is a finding.

use super::remedy;
use super::report::{Disk, Guest, HostReport, Known, Mount, PoolReport};
use crate::core::finding::{Finding, Severity};
use crate::libvirt::domain::Cache;
use crate::mounts::check::{self, Belongs};

use Severity::{Error, Info, Warning};

/// All findings on a host, the worst first.
#[must_use]
pub fn judge_host(host: &HostReport) -> Vec<Finding> {
    let mut found = unknowns(host);
    found.extend(host.mounts.each().flat_map(|mount| self::mount(host, mount)));
    found.extend(host.mounts.each().filter_map(|mount| wrong_address(host, mount)));
    found.extend(host.pools.each().flat_map(|pool| self::pool(host, pool)));
    for guest in host.guests.each() {
        found.extend(disks(guest, Warning));
    }
    found.extend(host.locks.findings.iter().cloned());
    found.extend(no_lock_manager(host));
    found.extend(own_name(host));
    found.extend(clock(host));
    sort(&mut found);
    found
}

/// The worst first, those of a kind together, otherwise as they were found.
pub(super) fn sort(found: &mut [Finding]) {
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
}

/// What could not be looked at.
fn unknowns(host: &HostReport) -> Vec<Finding> {
    let run = "run hvagent as root on this host, then check again";
    let libvirt = "`systemctl status libvirtd virtqemud dbus`; is libvirt-dbus installed?";
    let parts = [
        (Error, "mounts-unknown", "NFS mounts", host.mounts.why(), run),
        (Warning, "libvirt-unknown", "libvirt", host.libvirt.why(), libvirt),
        (Warning, "pools-unknown", "storage pools", host.pools.why(), libvirt),
        (Warning, "guests-unknown", "guests", host.guests.why(), libvirt),
        (Info, "capabilities-unknown", "capabilities", host.capabilities.why(), libvirt),
        (Warning, "lock-manager-unknown", "qemu.conf", host.locks.manager.why(), run),
        (Info, "memory-unknown", "memory", host.free_memory.why(), run),
        (Info, "listening-unknown", "sockets", host.listening.why(), run),
    ];
    let told = |(severity, code, subject, why, remedy): (_, _, _, Option<&str>, _)| {
        why.map(|why| Finding::new(severity, code, subject, why, remedy))
    };
    let mut found: Vec<Finding> = parts.into_iter().filter_map(told).collect();
    if host.services.floating.is_empty() {
        found.push(Finding::new(
            Info,
            "services-unknown",
            "nasd",
            "no floating address is known: mounts cannot be matched with services",
            "name them in /etc/nasd/hvagent.toml ([[service]] name, addresses), or let the agent \
             reach nasd once: `systemctl start hvagent`",
        ));
    }
    found
}

/// Findings on a mount. One that is not of a known service counts if guests or pools lie on it.
pub(super) fn mount(host: &HostReport, mount: &Mount) -> Vec<Finding> {
    let (nfs, services) = (mount.nfs(), host.services.known());
    let mut found = check::all(std::slice::from_ref(&nfs), &services, &[]);
    let foreign = matches!(services.of(&nfs), Belongs::Elsewhere | Belongs::Unknown);
    if foreign && is_used(host, mount) {
        found.extend(check::options(&nfs));
    }
    for finding in &mut found {
        let command = remedy::remount(mount, &host.services);
        finding.remedy = format!("{}: {command}", finding.remedy);
    }
    found
}

fn is_used(host: &HostReport, mount: &Mount) -> bool {
    let here = |on: Option<&str>| on == Some(mount.point.as_str());
    let by_pool = host.pools.each().any(|pool| here(pool.on.as_deref()));
    let by_guest = |guest: &Guest| guest.on_nfs().any(|(_, place)| here(place.on.as_deref()));
    by_pool || host.guests.each().any(by_guest)
}

/// A service's file system, by the server's own identifier, that is mounted through an address
/// which is not the service's.
fn wrong_address(host: &HostReport, mount: &Mount) -> Option<Finding> {
    let services = host.services.known();
    let is_floating = |m: &Mount| matches!(services.of(&m.nfs()), Belongs::Service(_));
    let elsewhere = matches!(services.of(&mount.nfs()), Belongs::Elsewhere);
    let fsid = mount.fsid.as_ref().filter(|_| elsewhere)?;
    let same = |m: &&Mount| m.fsid.as_ref() == Some(fsid) && is_floating(m);
    let right = host.mounts.each().find(same)?;
    Some(Finding::new(
        Error,
        "mount-wrong-address",
        mount.point.as_str(),
        format!(
            "{} is the same file system as {}, but its address does not move",
            mount.source(),
            right.source()
        ),
        remedy::remount(mount, &host.services),
    ))
}

/// Findings on a pool.
pub(super) fn pool(host: &HostReport, pool: &PoolReport) -> Vec<Finding> {
    let of_nfs = pool.on.is_some() || pool.definition.mount_source().is_some();
    if !of_nfs && !pool.definition.kind.is_mounted() {
        return Vec::new();
    }
    let found = [pool_active(pool), pool_mounted(pool), pool_source(host, pool)];
    found.into_iter().flatten().collect()
}

fn pool_active(pool: &PoolReport) -> Option<Finding> {
    let name = pool.definition.name.as_str();
    let shell = remedy::word(name);
    if !pool.active {
        let evidence = "defined, but not active: guests whose disks are volumes of it cannot start";
        let remedy = format!("`virsh pool-start {shell} && virsh pool-autostart {shell}`");
        return Some(Finding::new(Warning, "pool-inactive", name, evidence, remedy));
    }
    if !pool.persistent {
        let evidence = "not persistent: it is gone after a restart of libvirt";
        let remedy = format!(
            "`virsh pool-dumpxml {shell} > {shell}.xml && virsh pool-define {shell}.xml && virsh \
             pool-autostart {shell}`"
        );
        return Some(Finding::new(Warning, "pool-not-persistent", name, evidence, remedy));
    }
    let evidence = "not started with libvirt: it is missing after a restart of this host";
    let remedy = format!("`virsh pool-autostart {shell}`");
    let finding = Finding::new(Info, "pool-no-autostart", name, evidence, remedy);
    (!pool.autostart).then_some(finding)
}

fn pool_mounted(pool: &PoolReport) -> Option<Finding> {
    if !pool.active || !pool.definition.kind.is_mounted() {
        return None;
    }
    let (name, target) = (pool.definition.name.as_str(), shown(pool.definition.target.as_ref()));
    let shell = remedy::word(name);
    let (severity, code, evidence) = match &pool.mounted {
        Known::Known(Some(_)) => return None,
        Known::Known(None) => (
            Error,
            "pool-not-mounted",
            format!("active for libvirt, but nothing is mounted at {target}"),
        ),
        Known::Unknown(why) => (Warning, "pool-mount-unknown", why.clone()),
    };
    let remedy = format!(
        "see what was written to the empty directory meanwhile (`ls -la {}`), then `virsh \
         pool-destroy {shell} && virsh pool-start {shell}`",
        remedy::word(target)
    );
    Some(Finding::new(severity, code, name, evidence, remedy))
}

fn shown(text: Option<&String>) -> &str {
    text.map_or("?", String::as_str)
}

/// What is mounted at a pool's target is something else.
fn pool_source(host: &HostReport, pool: &PoolReport) -> Option<Finding> {
    let wanted = pool.definition.mount_source()?;
    let mounted = pool.mounted.get()?.as_ref()?;
    let mount = pool.definition.target.as_ref().and_then(|target| host.mount(bare(target)));
    let mount = mount.filter(|mount| is_same_source(&mount.source(), mounted));
    if is_same_source(&wanted, mounted) || mount.is_some_and(|mount| is_by_address(pool, mount)) {
        return None;
    }
    let name = pool.definition.name.as_str();
    let shell = remedy::word(name);
    let target = shown(pool.definition.target.as_ref());
    Some(Finding::new(
        Error,
        "pool-mismatch",
        name,
        format!("defined with source {wanted}, but {mounted} is mounted at {target}"),
        format!(
            "correct the source with `virsh pool-edit {shell}` if the mount is right; else move \
             the guests away and `umount {} && virsh pool-destroy {shell} && virsh pool-start {shell}`",
            remedy::word(target)
        ),
    ))
}

/// Without the slashes at the end.
fn bare(path: &str) -> &str {
    let bare = path.trim_end_matches('/');
    if bare.is_empty() { path } else { bare }
}

fn is_same_source(one: &str, other: &str) -> bool {
    let plain = |text: &str| bare(text).replace(['[', ']'], "");
    plain(one) == plain(other)
}

/// The pool names the address that the mount was made through by a name.
fn is_by_address(pool: &PoolReport, mount: &Mount) -> bool {
    let hosts = &pool.definition.source.hosts;
    let address = hosts.first().and_then(|host| crate::mounts::options::address(&host.name));
    let dir = pool.definition.source.dir.as_deref().map(bare);
    address.is_some() && address == mount.address && dir == Some(bare(&mount.path))
}

/// Findings on the disks of a guest that lie on NFS; `coherence` is how bad a cache is that another
/// host does not see.
pub(super) fn disks(guest: &Guest, coherence: Severity) -> Vec<Finding> {
    let on_nfs = guest.disks.iter().filter(|disk| disk.is_on_nfs() && !disk.read_only);
    on_nfs.flat_map(|disk| [cache(guest, disk, coherence), policy(guest, disk)]).flatten().collect()
}

fn subject(guest: &Guest, disk: &Disk) -> String {
    format!("{} {}", guest.name, disk.target)
}

fn cache(guest: &Guest, disk: &Disk, coherence: Severity) -> Option<Finding> {
    let (severity, evidence) = match disk.cache {
        Cache::None | Cache::DirectSync => return None,
        Cache::Unsafe => (Error, "cache=unsafe: flushes are ignored, a crash loses writes"),
        Cache::WriteBack => {
            (coherence, "cache=writeback: another host does not see this host's cache")
        }
        Cache::WriteThrough => {
            (coherence, "cache=writethrough: another host keeps what it has read")
        }
        Cache::Default => (coherence, "no cache= is given, QEMU takes writeback"),
        Cache::Unknown => (coherence, "cache= has a value that is not known"),
    };
    let remedy = remedy::driver(&guest.name, &disk.target, &[("cache", "none")]);
    Some(Finding::new(severity, "disk-cache", subject(guest, disk), evidence, remedy))
}

fn policy(guest: &Guest, disk: &Disk) -> Option<Finding> {
    if disk.pauses_on_error {
        return None;
    }
    let evidence = format!(
        "error_policy={:?} rerror_policy={:?}: an error of the storage reaches the guest, whose \
         file system becomes read-only",
        disk.on_write_error, disk.on_read_error
    );
    let stop = [("error_policy", "stop"), ("rerror_policy", "stop")];
    let remedy = remedy::driver(&guest.name, &disk.target, &stop);
    let evidence = evidence.to_lowercase();
    Some(Finding::new(Warning, "disk-error-policy", subject(guest, disk), evidence, remedy))
}

fn no_lock_manager(host: &HostReport) -> Option<Finding> {
    let none = matches!(host.locks.manager.get(), Some(None));
    let writes = |guest: &Guest| guest.on_nfs().any(|(disk, _)| !disk.read_only);
    (none && host.guests.each().any(writes)).then(|| {
        Finding::new(
            Info,
            "lock-manager-none",
            "qemu.conf",
            "no lock_manager is set: only QEMU's own image locks keep two hosts from running the \
             same guest",
            "set lock_manager = \"sanlock\" in /etc/libvirt/qemu.conf on all hypervisors, if guests \
             are started by more than one program",
        )
    })
}

fn own_name(host: &HostReport) -> Option<Finding> {
    let name = host.host.as_str();
    let found = match &host.own_name.resolves_to {
        Known::Known(found) => found,
        Known::Unknown(why) => {
            let remedy = format!("add this host's address to /etc/hosts: {}", hosts_line(host));
            return Some(Finding::new(Warning, "own-name-unknown", name, why.as_str(), remedy));
        }
    };
    let loopback = found.iter().find(|address| address.is_loopback())?;
    Some(Finding::new(
        Warning,
        "own-name-loopback",
        name,
        format!(
            "{name} resolves to {loopback} on {name}: a guest that migrates here may be sent to its own host"
        ),
        format!("replace that line of /etc/hosts: {}", hosts_line(host)),
    ))
}

/// A command that puts the host's own address where its name stands, or adds it.
pub(super) fn hosts_line(host: &HostReport) -> String {
    let address = host.own_name.addresses.each().next();
    let address = address.map_or_else(|| "ADDRESS".to_owned(), ToString::to_string);
    let name = &host.host;
    // The name is taken out of its lines, whose other names (localhost!) stay.
    format!(
        "`sed -i -E 's/[[:space:]]{name}([[:space:]]|$)/\\1/g' /etc/hosts; echo '{address} {name}' >> \
         /etc/hosts`"
    )
}

fn clock(host: &HostReport) -> Option<Finding> {
    let remedy = "`timedatectl set-ntp true` (with systemd-timesyncd), or `systemctl enable --now \
                  chrony`";
    let (severity, code, evidence) = match &host.clock.synchronised {
        Known::Known(true) => return None,
        Known::Known(false) => (
            Warning,
            "clock-unsynchronised",
            "the kernel's clock is not kept right by a time service",
        ),
        Known::Unknown(why) => (Info, "clock-unknown", why.as_str()),
    };
    Some(Finding::new(severity, code, host.host.as_str(), evidence, remedy))
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
