//! Whether a guest gets its leases where it goes: lock managers and lockspaces of both hosts.
//!
//! Pure. Rule kept: S12. A lock manager or a daemon that is not known is an error.

use super::migrate::{Pair, on};
use super::report::{Known, Lockspace, Sanlock};
use crate::core::finding::{Finding, Severity};

use Severity::{Error, Warning};

/// Lock managers and lockspaces of both hosts.
pub(super) fn locks(pair: Pair<'_>) -> Vec<Finding> {
    let (here, there) = (&pair.here.locks, &pair.there.locks);
    let host = pair.there.host.as_str();
    let (Some(ours), Some(theirs)) = (here.manager.get(), there.manager.get()) else {
        let evidence = "the lock manager of one of the hosts is not known";
        let remedy = "run hvagent as root on both hosts, then check again";
        return vec![Finding::new(Error, "lock-manager-unknown", host, evidence, remedy)];
    };
    if ours != theirs {
        let shown = |manager: &Option<String>| manager.clone().unwrap_or_else(|| "none".to_owned());
        let evidence = format!("here {}, on {host} {}", shown(ours), shown(theirs));
        let remedy = "set the same lock_manager in /etc/libvirt/qemu.conf on both, and restart libvirtd \
                      while no guest runs there";
        return vec![Finding::new(Error, "lock-manager-differs", host, evidence, remedy)];
    }
    let mut found = Vec::new();
    if pair.here.uses_sanlock() {
        found.extend(here.findings.iter().cloned());
        found.extend(there.findings.iter().cloned().map(|finding| on(host, finding)));
        found.extend(lockspaces(pair));
        found.dedup_by(|one, two| one.code == two.code && one.subject == two.subject);
    }
    found
}

fn lockspaces(pair: Pair<'_>) -> Vec<Finding> {
    let (here, there) = match (&pair.here.locks.sanlock, &pair.there.locks.sanlock) {
        (Known::Known(here), Known::Known(there)) => (here, there),
        (Known::Unknown(why), _) | (_, Known::Unknown(why)) => {
            let remedy =
                "`systemctl status sanlock` on both hosts; without leases the guest cannot arrive";
            return vec![Finding::new(Error, "sanlock-no-answer", "sanlock", why.as_str(), remedy)];
        }
    };
    here.lockspaces.iter().flat_map(|space| lockspace(space, there, pair)).collect()
}

fn lockspace(space: &Lockspace, there: &Sanlock, pair: Pair<'_>) -> Vec<Finding> {
    let host = pair.there.host.as_str();
    let subject = format!("{} on {host}", space.name);
    let finding = |severity, code, evidence: String, remedy: &str| {
        vec![Finding::new(
            severity,
            code,
            subject.clone(),
            evidence,
            format!("on {host}: {remedy}"),
        )]
    };
    let same = |other: &&Lockspace| other.name == space.name;
    let Some(other) = there.lockspaces.iter().find(same).filter(|other| other.joined) else {
        if pair.there.locks.findings.iter().any(|f| f.subject == space.name && f.severity == Error)
        {
            return Vec::new();
        }
        let evidence = "joined here, not there: the guest could not get its leases".to_owned();
        let remedy = "`systemctl restart libvirtd` (or virtqemud) joins libvirt's own lockspace, which takes 20 s or more; \
                      others with `sanlock client add_lockspace`";
        return finding(Error, "lockspace-missing", evidence, remedy);
    };
    if other.host_id == space.host_id {
        let evidence = format!("both hosts have number {} in it", other.host_id);
        let remedy = "set another host_id in /etc/libvirt/qemu-sanlock.conf and restart libvirtd while no guest runs there";
        return finding(Error, "host-id-same", evidence, remedy);
    }
    if other.io_timeout != space.io_timeout {
        let evidence =
            format!("io_timeout is {} here and {} there", space.io_timeout, other.io_timeout);
        let remedy = "set the same io_timeout in /etc/libvirt/qemu-sanlock.conf and join the lockspace again";
        return finding(Warning, "io-timeout-differs", evidence, remedy);
    }
    Vec::new()
}
