//! What goes into the image. A change of anything here makes a new image.

/// Bumped when `build.rs` changes what comes out without a change here.
const EDITION: &str = "2";

/// Release of the root file system.
pub const RELEASE: &str = "trixie";

/// Release whose User-Mode Linux runs on present CPUs: older ones die at start where the CPU has AMX state.
pub const UML_RELEASE: &str = "forky";

/// Packages of the root file system, without recommendations.
pub const PACKAGES: &[&str] = &[
    "bpftool",
    "dbus",
    "drbd-utils",
    "e2fsprogs",
    "etcd-client",
    "etcd-server",
    "ethtool",
    "iproute2",
    "iptables",
    "iputils-ping",
    "kmod",
    "less",
    "libvirt-clients",
    "libvirt-daemon-plugin-sanlock",
    "libvirt-daemon-system",
    "libvirt-dbus",
    "linux-image-cloud-amd64",
    "lsof",
    "nfs-common",
    "nftables",
    "polkitd",
    "procps",
    "psmisc",
    "qemu-system-x86",
    "sanlock",
    "strace",
    "systemd",
    "systemd-sysv",
    "tcpdump",
    "udev",
    "util-linux",
    "xfsprogs",
];

/// Units that cost boot time, wait for what a lab does not have, or start what nasd or a test starts by itself.
pub const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "auth-rpcgss-module.service",
    "console-getty.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "drbd.service",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "etcd.service",
    "fsidd.service",
    "fstrim.timer",
    "getty-static.service",
    "getty.target",
    "getty@tty1.service",
    "kmod-static-nodes.service",
    "ldconfig.service",
    "logrotate.timer",
    "man-db.timer",
    "modprobe@fuse.service",
    "nfs-blkmap.service",
    "nfs-client.target",
    "nfs-idmapd.service",
    "nfs-kernel-server.service",
    "nfs-mountd.service",
    "nfs-server.service",
    "nfsdcld.service",
    "nftables.service",
    "rpc-gssd.service",
    "rpc-statd-notify.service",
    "rpc-statd.service",
    "rpcbind.service",
    "rpcbind.socket",
    "serial-getty@.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-debug.mount",
    "systemd-ask-password-console.path",
    "systemd-ask-password-wall.path",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hibernate-clear.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-logind.service",
    "systemd-machine-id-commit.service",
    "systemd-networkd-wait-online.service",
    "systemd-networkd.service",
    "systemd-pcrmachine.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-tpm2-setup-early.service",
    "systemd-tpm2-setup.service",
    "systemd-update-done.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
    "xfs_scrub_all.timer",
];

/// Units that their packages switch on and only hypervisors with guests want: those start them when they are asked to.
pub const DISABLED: &[&str] = &[
    "libvirt-guests.service",
    "libvirtd-admin.socket",
    "libvirtd-ro.socket",
    "libvirtd.service",
    "libvirtd.socket",
    "machines.target",
    "sanlock.service",
    "virtlockd-admin.socket",
    "virtlockd.service",
    "virtlockd.socket",
    "virtlogd-admin.socket",
    "virtlogd.service",
    "virtlogd.socket",
    "wdmd.service",
];

/// Mounts the payload and hands over to it: what may change between builds of our programs is not in the image.
const SETUP_UNIT: &str = "\
[Unit]
Description=Set up this node of the lab
DefaultDependencies=no
After=systemd-remount-fs.service systemd-tmpfiles-setup.service systemd-sysctl.service systemd-udev-trigger.service
Before=basic.target
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/lab-mount
ExecStart=/bin/sh /lab/setup
StandardOutput=journal+console
StandardError=journal+console
TimeoutStartSec=120
";

/// The payload is the disk with the label `lab-payload`. Waits for it: under QEMU disks appear during the boot.
const MOUNT_SCRIPT: &str = "\
#!/bin/sh
set -eu
n=0
while :; do
    for d in /dev/ubdd /dev/vdd /dev/ubdb /dev/vdb; do
        [ -b $d ] || continue
        [ \"$(blkid -o value -s LABEL $d)\" = lab-payload ] || continue
        exec mount -t ext4 -o ro,noload $d /lab
    done
    n=$((n + 1))
    [ $n -lt 300 ] || { echo 'lab-mount: no payload disk'; exit 1; }
    sleep 0.1
done
";

/// Files of the image: path, content, mode.
pub const FILES: &[(&str, &str, u32)] = &[
    ("etc/systemd/system/lab-setup.service", SETUP_UNIT, 0o644),
    ("usr/local/sbin/lab-mount", MOUNT_SCRIPT, 0o755),
    (
        "etc/systemd/journald.conf.d/lab.conf",
        "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n",
        0o644,
    ),
    // Events of terminals, of which there are many, are of no use to anybody and cost a second.
    (
        "etc/systemd/system/systemd-udev-trigger.service.d/lab.conf",
        "[Service]\nExecStart=\nExecStart=-udevadm trigger --type=all --action=add \
         --subsystem-nomatch=tty --subsystem-nomatch=vc --subsystem-nomatch=mem \
         --prioritized-subsystem=module,block,tpmrm,net,virtio\n",
        0o644,
    ),
    ("etc/systemd/system.conf.d/lab.conf", "[Manager]\nDefaultTimeoutStopSec=15s\n", 0o644),
    ("etc/fstab", "", 0o644),
    ("etc/machine-id", "", 0o444),
    ("etc/selinux/config", "SELINUX=disabled\n", 0o644),
    // A node that panics shall be seen to have panicked, not come back by itself.
    (
        "etc/sysctl.d/lab.conf",
        "kernel.printk = 7 4 1 7\nkernel.hung_task_timeout_secs = 60\n",
        0o644,
    ),
];

/// Symbolic links of the image: path, target.
pub const LINKS: &[(&str, &str)] = &[
    ("etc/systemd/system/sysinit.target.wants/lab-setup.service", "../lab-setup.service"),
    ("etc/systemd/system/default.target", "/usr/lib/systemd/system/multi-user.target"),
];

/// Folders that are emptied: nothing in them is used in a node, and the image is smaller.
pub const EMPTIED: &[&str] =
    &["usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"];

/// Files that are removed. libvirt asks each emulator that it finds for its abilities, which takes seconds.
pub const REMOVED: &[&str] = &["usr/bin/qemu-system-i386"];

/// Size of the root file system, MiB. The file is sparse.
pub const SIZE_MIB: u64 = 2048;

/// Files of the image's C library that User-Mode Linux needs on this machine, in `usr/lib/x86_64-linux-gnu`.
pub const UML_LIBRARIES: &[&str] = &["ld-linux-x86-64.so.2", "libc.so.6"];

/// Files of the image's C library, and what comes with it, that a nested guest needs.
pub const GUEST_LIBRARIES: &[&str] = &["ld-linux-x86-64.so.2", "libc.so.6", "libgcc_s.so.1"];

/// Modules of the stock kernel that a nested guest needs, in the order of loading. This kernel has the virtio bus,
/// PCI and the console built in.
pub const GUEST_MODULES: &[&str] = &["kernel/drivers/block/virtio_blk.ko"];

/// Of everything above.
pub fn hash() -> u64 {
    let mut text = [EDITION, RELEASE, UML_RELEASE].join("\n");
    let lists = [
        PACKAGES,
        MASKED,
        DISABLED,
        EMPTIED,
        REMOVED,
        UML_LIBRARIES,
        GUEST_LIBRARIES,
        GUEST_MODULES,
    ];
    for list in lists {
        text += &list.join("\n");
    }
    for (path, content, mode) in FILES {
        text += &format!("{path}\n{content}{mode:o}");
    }
    for (path, target) in LINKS {
        text += &format!("{path}\n{target}");
    }
    fnv(format!("{text}{SIZE_MIB}").as_bytes())
}

/// FNV-1a, 64 bits: the same on every build of this program, which the standard library's hasher does not promise.
fn fnv(bytes: &[u8]) -> u64 {
    let step = |h: u64, b: &u8| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_matches_its_published_vectors() {
        assert_eq!(fnv(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
