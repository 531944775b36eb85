//! A guest that can migrate, and one thing at a time that keeps it from it.

use super::*;
use crate::check::samples;
use crate::libvirt::domain::{Blocker, Cache};

struct Lab {
    here: HostReport,
    there: HostReport,
    age: Duration,
    reach: Reach,
}

type Spoil = fn(&mut Lab);

fn lab() -> Lab {
    let (here, there) = (samples::host("hv1"), samples::host("hv2"));
    Lab { here, there, age: Duration::ZERO, reach: samples::reach() }
}

fn judged(lab: &Lab) -> Vec<Finding> {
    let Lab { here, there, age, reach } = lab;
    judge_migration("guest1", Pair { here, there, age: *age, reach })
}

fn known<T>(known: &mut Known<T>) -> &mut T {
    match known {
        Known::Known(value) => value,
        Known::Unknown(why) => panic!("{why}"),
    }
}

impl Lab {
    fn guest(&mut self) -> &mut Guest {
        &mut known(&mut self.here.guests)[0]
    }

    fn their_mount(&mut self) -> &mut Mount {
        &mut known(&mut self.there.mounts)[0]
    }

    fn their_pool(&mut self) -> &mut PoolReport {
        &mut known(&mut self.there.pools)[0]
    }

    fn their_space(&mut self) -> &mut crate::check::report::Lockspace {
        &mut known(&mut self.there.locks.sanlock).lockspaces[0]
    }

    fn their_clock(&mut self, ahead: Duration) {
        self.there.clock.unix_ns += u64::try_from(ahead.as_nanos()).unwrap();
    }
}

#[test]
fn a_guest_that_can_migrate_gives_nothing() {
    assert_eq!(judged(&lab()), []);
}

/// Spoil, code, severity, a part of the evidence, a part of the remedy.
#[rustfmt::skip]
const TABLE: &[(Spoil, &str, Severity, &str, &str)] = &[
    (|l| {
        l.age = Duration::from_secs(181);
        l.there.clock.unix_ns -= 181_000_000_000;
    }, "target-report-old", Error, "181 s old", "systemctl restart hvagent"),
    (|l| l.their_clock(Duration::from_millis(600)), "clock-skew", Warning, "0.6 s ahead", "`timedatectl set-ntp true`"),
    (|l| l.there.clock.unix_ns -= 6_000_000_000, "clock-skew", Error, "6.0 s behind", "chronyc makestep"),
    (|l| known(&mut l.here.guests).clear(), "guest-missing", Error, "no running guest", "`virsh list --all`"),
    (|l| l.here.guests = Known::Unknown("hangs".into()), "guest-unknown", Error, "hangs", "systemctl status libvirtd"),
    (|l| l.guest().state = Known::Known(DomainState::Paused(Paused::IoError)), "guest-state", Error, "IoError", "`virsh domstate --reason guest1`"),
    (|l| l.guest().state = Known::Unknown("hangs".into()), "guest-state-unknown", Error, "hangs", "virsh domstate"),
    (|l| l.guest().blockers.push(Blocker::SharedMemory), "migration-blocked", Error, "SharedMemory", "`virsh edit guest1`"),
    (|l| l.guest().disks[0].copying = true, "disk-being-copied", Error, "on vda", "`virsh blockjob guest1 vda`"),
    (|l| l.there.guests = l.here.guests.clone(), "guest-on-both", Error, "same uuid", "do not migrate"),
    (|l| l.there.mounts = Known::Unknown("gone".into()), "mounts-unknown", Error, "gone", "as root"),
    (|l| l.guest().disks[0].paths[0] = crate::check::report::Place { path: "/home/x".into(), on: None }, "disk-not-shared", Error, "/home/x", "virsh blockcopy"),
    (|l| l.guest().disks[0].paths[0] = crate::check::report::Place { path: "/dev/sdb".into(), on: None }, "disk-shared-unknown", Warning, "/dev/sdb", "`ls -l /dev/sdb`"),
    (|l| {
        l.guest().disks[0].paths[0] = crate::check::report::Place { path: "/iso/x".into(), on: None };
        l.guest().disks[0].read_only = true;
    }, "disk-local-media", Warning, "/iso/x", "virsh change-media"),
    (|l| known(&mut l.there.mounts).clear(), "mount-missing-on-peer", Error, "nothing mounted at /vm",
     "on hv2: `mkdir -p /vm && mount -t nfs4 -o hard,vers=4.2,proto=tcp,timeo=50,retrans=2 192.0.2.50:/vm /vm`"),
    (|l| l.their_mount().fsid = Some("other:0".into()), "mount-source-differs", Error, "fsid other:0", "on hv2: move the guests away, then `umount /vm"),
    (|l| l.their_mount().path = "/other".into(), "mount-source-differs", Error, "192.0.2.50:/other", "192.0.2.50:/vm /vm`"),
    (|l| l.their_mount().root = "/sub".into(), "mount-source-differs", Error, "part /sub", "umount /vm"),
    (|l| {
        let mount = l.their_mount();
        (mount.server, mount.address) = ("192.0.2.77".into(), Some("192.0.2.77".parse().unwrap()));
        mount.options = mount.options.replace("192.0.2.50", "192.0.2.77");
        l.their_pool().mounted = Known::Known(Some("192.0.2.50:/vm".into()));
    }, "mount-wrong-address", Error, "192.0.2.77 on hv2 is not a floating address", "on hv2: move the guests away, then `umount /vm && mount -t nfs4 -o hard,vers=4.2,proto=tcp,timeo=50,retrans=2 192.0.2.50:/vm /vm`"),
    (|l| l.their_mount().options = samples::OPTIONS.replace("vers=4.2", "vers=4.1"), "mount-options-differ", Warning, "vers=4.1", "umount /vm"),
    (|l| l.their_mount().read_only = true, "mount-options-differ", Error, "on hv2 ro", "umount /vm"),
    (|l| l.their_mount().options = samples::OPTIONS.replace("hard", "soft"), "mount-soft", Error, "option soft", "on hv2: "),
    (|l| known(&mut l.there.phases)[0].phase = "io-back".into(), "storage-moving", Error, "io-back", "`hvagent status`"),
    (|l| known(&mut l.here.phases).clear(), "phase-unknown", Error, "does not tell", "on hv1: `systemctl enable --now hvagent`"),
    (|l| l.there.phases = Known::Unknown("not running".into()), "phase-unknown", Error, "not running", "on hv2: `systemctl enable --now hvagent`"),
    (|l| l.there.pools = Known::Unknown("hangs".into()), "pools-unknown", Warning, "hangs", "virsh pool-list"),
    (|l| known(&mut l.there.pools).clear(), "pool-mismatch", Error, "no pool of that name", "scp /tmp/vms.xml hv2:/tmp/"),
    (|l| l.their_pool().definition.uuid = Some("other".into()), "pool-mismatch", Error, "uuid: here 7c0e9b0e, on hv2 other", "virsh pool-define /tmp/vms.xml && virsh pool-start vms"),
    (|l| l.their_pool().active = false, "pool-inactive", Error, "not active", "on hv2: `virsh pool-start vms"),
    (|l| l.their_pool().mounted = Known::Known(None), "pool-not-mounted", Error, "nothing is mounted", "on hv2: "),
    (|l| l.guest().disks[0].cache = Cache::WriteBack, "disk-cache", Error, "writeback", "driver.cache=none"),
    (|l| l.guest().disks[0].pauses_on_error = false, "disk-error-policy", Warning, "error_policy", "error_policy='stop'"),
    (|l| l.guest().cpu.model = Some("EPYC-Rome".into()), "cpu-model", Error, "does not run on hv2", "virsh hypervisor-cpu-baseline"),
    (|l| l.guest().cpu.model = Some("new".into()), "cpu-model", Error, "is not known on hv2", "virsh hypervisor-cpu-compare"),
    (|l| {
        l.guest().cpu.model = Some("EPYC".into());
        l.guest().cpu.features = vec!["x2apic".into(), "avx512f".into()];
    }, "cpu-feature", Error, "hv2 lacks avx512f", "scp /tmp/guest1.xml hv2:/tmp/"),
    (|l| l.guest().cpu.features = vec!["avx512f".into()], "cpu-not-proven", Warning, "avx512f", "virsh hypervisor-cpu-compare"),
    (|l| {
        l.guest().cpu.mode = Some("host-passthrough".into());
        known(&mut l.there.capabilities).features.clear();
    }, "cpu-passthrough", Error, "they differ", "virsh hypervisor-cpu-baseline"),
    (|l| known(&mut l.there.capabilities).kinds.clear(), "kvm-missing", Error, "type kvm", "modprobe kvm_intel"),
    (|l| l.there.capabilities = Known::Unknown("hangs".into()), "cpu-unknown", Warning, "hangs", "virsh hypervisor-cpu-compare"),
    (|l| l.guest().machine = Some("pc-q35-9.0".into()), "machine-missing", Error, "pc-q35-9.0", "`virsh edit guest1`"),
    (|l| l.guest().arch = Some("aarch64".into()), "arch-differs", Error, "aarch64", "choose another host"),
    (|l| l.there.free_memory = Known::Known(1 << 20), "memory-short", Error, "1 MiB free, the guest may need 1024 MiB", "move a guest away from hv2"),
    (|l| l.there.free_memory = Known::Unknown("gone".into()), "memory-unknown", Warning, "gone", "`free -m`"),
    (|l| known(&mut l.there.libvirt).qemu = 6_002_000, "qemu-older", Error, "6.2.0, older than 7.2.22", "--only-upgrade qemu-system-x86"),
    (|l| known(&mut l.there.libvirt).libvirt = 8_000_000, "libvirt-older", Warning, "8.0.0", "--only-upgrade libvirt"),
    (|l| known(&mut l.there.libvirt).qemu = 8_000_000, "qemu-differs", Info, "8.0.0", "the way back"),
    (|l| l.there.libvirt = Known::Unknown("hangs".into()), "libvirt-unknown", Error, "hangs", "virsh version"),
    (|l| l.reach.resolves_to = Known::Known(vec!["127.0.1.1".parse().unwrap()]), "target-name", Error, "127.0.1.1 here", "on hv1: `sed -i"),
    (|l| l.reach.resolves_to = Known::Known(vec!["192.0.2.99".parse().unwrap()]), "target-name", Error, "192.0.2.99", "echo '192.0.2.12 hv2'"),
    (|l| l.reach.resolves_to = Known::Unknown("no such name".into()), "target-name", Error, "no such name", "echo '192.0.2.12 hv2' >> /etc/hosts"),
    (|l| l.there.own_name.resolves_to = Known::Known(vec!["127.0.1.1".parse().unwrap()]), "target-name", Warning, "its own name to 127.0.1.1", "on hv2: `sed -i"),
    (|l| l.reach.transports.clear(), "transport-unreachable", Error, "not tried", "libvirtd-tls.socket"),
    (|l| l.reach.transports = vec![(Transport::Tls, Door::Silent("no answer".into()))], "transport-unreachable", Error, "tls (16514)", "16514/tcp"),
    (|l| l.reach.transports = vec![(Transport::Tcp, Door::Open)], "transport-plain", Info, "16509", "libvirtd-tls.socket"),
    (|l| l.reach.migration = Some((49152, Door::Silent("no route".into()))), "migration-ports-filtered", Error, "no route", "--add-port=49152-49215/tcp"),
    (|l| known(&mut l.there.listening).taken = (49152..=49215).collect(), "migration-ports-taken", Error, "49152-49215", "migration_port_max"),
    (|l| l.there.locks.manager = Known::Known(None), "lock-manager-differs", Error, "here sanlock, on hv2 none", "lock_manager"),
    (|l| l.there.locks.manager = Known::Unknown("x".into()), "lock-manager-unknown", Error, "not known", "as root"),
    (|l| l.there.locks.sanlock = Known::Unknown("silent".into()), "sanlock-no-answer", Error, "silent", "systemctl status sanlock"),
    (|l| l.their_space().joined = false, "lockspace-missing", Error, "joined here, not there", "on hv2: `systemctl restart libvirtd`"),
    (|l| l.their_space().host_id = 1, "host-id-same", Error, "number 1", "host_id in /etc/libvirt/qemu-sanlock.conf"),
    (|l| l.their_space().io_timeout = 20, "io-timeout-differs", Warning, "10 here and 20 there", "io_timeout"),
];

#[test]
fn each_obstacle_has_its_finding_with_evidence_and_remedy() {
    let mut wrong = Vec::new();
    for (spoil, code, severity, evidence, remedy) in TABLE {
        let mut lab = lab();
        spoil(&mut lab);
        let found = judged(&lab);
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
fn the_age_of_a_report_is_no_skew() {
    let mut lab = lab();
    lab.age = Duration::from_secs(59);
    lab.there.clock.unix_ns -= 59_000_000_000;
    assert_eq!(judged(&lab), []);
}

#[test]
fn a_host_is_no_target_for_itself() {
    let mut lab = lab();
    lab.there = lab.here.clone();
    let codes: Vec<_> = judged(&lab).into_iter().map(|f| f.code).collect();
    assert!(codes.contains(&"target-is-here".to_owned()), "{codes:?}");
}

#[test]
fn a_lockspace_that_the_target_misses_is_told_once() {
    let mut lab = lab();
    known(&mut lab.there.locks.sanlock).lockspaces.clear();
    let told = Finding::new(Error, "lockspace-missing", "__LIBVIRT__DISKS__", "not joined", "join");
    lab.there.locks.findings = vec![told];
    let found = judged(&lab);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(
        (found[0].code.as_str(), found[0].remedy.as_str()),
        ("lockspace-missing", "on hv2: join")
    );
}

#[test]
fn a_pool_that_the_guest_does_not_use_is_a_warning() {
    let mut lab = lab();
    let mut other = known(&mut lab.here.pools)[0].clone();
    (other.definition.name, other.definition.target) = ("iso".into(), Some("/iso".into()));
    known(&mut lab.here.pools).push(other);
    let found = judged(&lab);
    assert_eq!((found[0].code.as_str(), found[0].severity), ("pool-mismatch", Warning));
    assert_eq!(found[0].subject, "iso");
}

#[test]
fn s12_a_target_of_which_nothing_is_known_is_an_error_that_says_what_to_do() {
    let finding = target_unknown("hv2", "nasd has no report of it");
    assert_eq!((finding.code.as_str(), finding.severity), ("target-unknown", Error));
    assert!(finding.remedy.contains("systemctl enable --now hvagent"));
}

#[test]
fn mounts_of_no_service_have_no_phase() {
    let mut lab = lab();
    for host in [&mut lab.here, &mut lab.there] {
        host.services = crate::check::report::Services::default();
        known(&mut host.mounts)[0].service = None;
        host.phases = Known::Unknown("not running".into());
    }
    assert_eq!(judged(&lab), []);
}
