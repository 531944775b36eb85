//! A healthy host, spoiled in one thing at a time.

use super::*;
use crate::check::samples;
use crate::libvirt::domain::OnError;

type Spoil = fn(&mut HostReport);

fn known<T>(known: &mut Known<T>) -> &mut T {
    match known {
        Known::Known(value) => value,
        Known::Unknown(why) => panic!("{why}"),
    }
}

fn mount_of(host: &mut HostReport) -> &mut Mount {
    &mut known(&mut host.mounts)[0]
}

fn pool_of(host: &mut HostReport) -> &mut PoolReport {
    &mut known(&mut host.pools)[0]
}

fn disk_of(host: &mut HostReport) -> &mut Disk {
    &mut known(&mut host.guests)[0].disks[0]
}

fn option(host: &mut HostReport, good: &str, bad: &str) {
    let mount = mount_of(host);
    assert!(mount.options.contains(good));
    mount.options = mount.options.replacen(good, bad, 1);
}

fn spoiled(spoil: Spoil) -> Vec<Finding> {
    let mut host = samples::host("hv1");
    spoil(&mut host);
    judge_host(&host)
}

#[test]
fn a_healthy_host_gives_nothing() {
    assert_eq!(judge_host(&samples::host("hv1")), []);
}

/// Spoil, code, severity, a part of the evidence, a part of the remedy.
#[rustfmt::skip]
const TABLE: &[(Spoil, &str, Severity, &str, &str)] = &[
    (|h| option(h, "hard", "soft"), "mount-soft", Error, "option soft",
     "`umount /vm && mount -t nfs4 -o hard,vers=4.2,proto=tcp,timeo=50,retrans=2 192.0.2.50:/vm /vm`"),
    (|h| option(h, "hard", "softerr"), "mount-soft", Error, "option softerr", "umount /vm && mount"),
    (|h| option(h, "vers=4.2", "vers=4.0"), "mount-version", Error, "vers=4.0", "umount /vm && mount"),
    (|h| {
        option(h, "addr=192.0.2.50", "addr=192.0.2.1");
        mount_of(h).address = Some("192.0.2.1".parse().unwrap());
        mount_of(h).server = "192.0.2.1".into();
        known(&mut h.pools).clear();
    }, "mount-node-address", Error, "node nas1 itself", "192.0.2.50:/vm /vm`"),
    (|h| {
        let mut other = mount_of(h).clone();
        (other.point, other.server) = ("/other".into(), "192.0.2.77".into());
        other.options = other.options.replace("192.0.2.50", "192.0.2.77");
        known(&mut h.mounts).push(other);
    }, "mount-wrong-address", Error, "same file system as 192.0.2.50:/vm", "192.0.2.50:/vm /other`"),
    (|h| pool_of(h).active = false, "pool-inactive", Warning, "not active",
     "`virsh pool-start vms && virsh pool-autostart vms`"),
    (|h| pool_of(h).persistent = false, "pool-not-persistent", Warning, "gone after", "virsh pool-define vms.xml"),
    (|h| pool_of(h).autostart = false, "pool-no-autostart", Info, "restart of this host", "`virsh pool-autostart vms`"),
    (|h| pool_of(h).mounted = Known::Known(None), "pool-not-mounted", Error, "nothing is mounted at /vm",
     "`virsh pool-destroy vms && virsh pool-start vms`"),
    (|h| pool_of(h).mounted = Known::Unknown("x".into()), "pool-mount-unknown", Warning, "x", "ls -la /vm"),
    (|h| pool_of(h).mounted = Known::Known(Some("192.0.2.50:/other".into())), "pool-mismatch", Error,
     "but 192.0.2.50:/other is mounted", "`virsh pool-edit vms`"),
    (|h| disk_of(h).cache = Cache::Unsafe, "disk-cache", Error, "cache=unsafe",
     "`virt-xml guest1 --edit target=vda --disk driver.cache=none`"),
    (|h| disk_of(h).cache = Cache::WriteBack, "disk-cache", Warning, "cache=writeback", "cache='none'"),
    (|h| disk_of(h).cache = Cache::WriteThrough, "disk-cache", Warning, "writethrough", "cache='none'"),
    (|h| disk_of(h).cache = Cache::Default, "disk-cache", Warning, "QEMU takes writeback", "cache='none'"),
    (|h| {
        disk_of(h).pauses_on_error = false;
        disk_of(h).on_write_error = OnError::Report;
    }, "disk-error-policy", Warning, "error_policy=report rerror_policy=stop",
     "driver.error_policy=stop,driver.rerror_policy=stop"),
    (|h| h.locks.manager = Known::Known(None), "lock-manager-none", Info, "no lock_manager", "lock_manager = \"sanlock\""),
    (|h| h.own_name.resolves_to = Known::Known(vec!["127.0.1.1".parse().unwrap()]), "own-name-loopback", Warning,
     "hv1 resolves to 127.0.1.1", "echo '192.0.2.11 hv1' >> /etc/hosts`"),
    (|h| h.own_name.resolves_to = Known::Unknown("no answer".into()), "own-name-unknown", Warning, "no answer",
     "echo '192.0.2.11 hv1'"),
    (|h| h.clock.synchronised = Known::Known(false), "clock-unsynchronised", Warning, "not kept right",
     "`timedatectl set-ntp true`"),
    (|h| h.clock.synchronised = Known::Unknown("no bus".into()), "clock-unknown", Info, "no bus", "chrony"),
    (|h| h.services.floating.clear(), "services-unknown", Info, "no floating address", "/etc/nasd/hvagent.toml"),
    (|h| h.mounts = Known::Unknown("gone".into()), "mounts-unknown", Error, "gone", "as root"),
    (|h| h.libvirt = Known::Unknown("hangs".into()), "libvirt-unknown", Warning, "hangs", "systemctl status libvirtd"),
    (|h| h.pools = Known::Unknown("hangs".into()), "pools-unknown", Warning, "hangs", "libvirt-dbus"),
    (|h| h.guests = Known::Unknown("hangs".into()), "guests-unknown", Warning, "hangs", "libvirt-dbus"),
    (|h| h.capabilities = Known::Unknown("hangs".into()), "capabilities-unknown", Info, "hangs", "libvirt-dbus"),
    (|h| h.locks.manager = Known::Unknown("denied".into()), "lock-manager-unknown", Warning, "denied", "as root"),
];

#[test]
fn each_fault_has_its_finding_with_evidence_and_remedy() {
    let mut wrong = Vec::new();
    for (spoil, code, severity, evidence, remedy) in TABLE {
        let found = spoiled(*spoil);
        let fits = match found.as_slice() {
            [f] => {
                (f.code.as_str(), f.severity) == (*code, *severity)
                    && f.evidence.contains(evidence)
                    && f.remedy.contains(remedy)
            }
            _ => false,
        };
        if !fits {
            wrong.push((code, found));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_sanlock_says_is_passed_on() {
    let finding = Finding::new(Error, "lockspace-missing", "l", "not joined", "join it");
    let mut host = samples::host("hv1");
    host.locks.findings = vec![finding.clone()];
    assert_eq!(judge_host(&host), [finding]);
}

#[test]
fn a_foreign_mount_counts_only_if_it_is_used() {
    let mut host = samples::host("hv1");
    host.services = super::super::report::Services::default();
    option(&mut host, "hard", "soft");
    let codes =
        |host: &HostReport| -> Vec<_> { judge_host(host).into_iter().map(|f| f.code).collect() };
    assert_eq!(codes(&host), ["mount-soft", "services-unknown"], "a guest lies on it");
    known(&mut host.guests).clear();
    known(&mut host.pools).clear();
    assert_eq!(codes(&host), ["services-unknown"]);
}

#[test]
fn a_pool_may_name_its_server_otherwise_than_the_mount_does() {
    let mut host = samples::host("hv1");
    mount_of(&mut host).server = "storage".into();
    pool_of(&mut host).mounted = Known::Known(Some("storage:/vm".into()));
    assert_eq!(judge_host(&host), []);
    pool_of(&mut host).mounted = Known::Known(Some("192.0.2.50:/vm/".into()));
    assert_eq!(judge_host(&host), [], "a slash makes no difference");
}

#[test]
fn disks_off_nfs_and_read_only_ones_are_left_alone() {
    let mut host = samples::host("hv1");
    disk_of(&mut host).cache = Cache::WriteBack;
    disk_of(&mut host).read_only = true;
    assert_eq!(judge_host(&host), []);
    disk_of(&mut host).read_only = false;
    disk_of(&mut host).paths[0].on = None;
    assert_eq!(judge_host(&host), []);
}

#[test]
fn the_remedy_for_a_name_spares_the_other_names_of_its_line() {
    let line = hosts_line(&samples::host("hv1"));
    let expected = r"`sed -i -E 's/[[:space:]]hv1([[:space:]]|$)/\1/g' /etc/hosts; echo '192.0.2.11 hv1' >> /etc/hosts`";
    assert_eq!(line, expected);
}
