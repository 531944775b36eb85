//! QEMU with Debian's stock kernel.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::Machine;
use crate::deps;
use crate::error::LabError;
use crate::image::Image;
use crate::sys::{self, SHORT};

/// A guest that prints its word within this time shows that KVM works.
const PROBE: Duration = Duration::from_secs(5);

/// What the probe's guest prints.
const WORD: &str = "lab-kvm-works";

/// Whether a guest really runs under KVM: under some nested hypervisors it hangs in its first instructions though
/// the device opens.
pub fn kvm_works(image: &Image) -> bool {
    if !Path::new("/dev/kvm").exists() {
        return false;
    }
    let dir = std::env::temp_dir().join(format!("nasd-lab-kvm-{}", std::process::id()));
    let works = try_kvm(image, &dir).unwrap_or(false);
    // Best effort: a few megabytes in the temporary folder.
    let _ = std::fs::remove_dir_all(dir);
    works
}

fn try_kvm(image: &Image, dir: &Path) -> Result<bool, LabError> {
    deps::ensure(&[deps::QEMU, deps::PROBE])?;
    let tree = dir.join("tree");
    sys::make_dir(&tree.join("bin"))?;
    let busybox = sys::find("busybox").unwrap_or_default();
    std::fs::copy(&busybox, tree.join("bin/busybox")).map_err(LabError::io("copy", busybox))?;
    let init = format!("#!/bin/busybox sh\necho {WORD}\n/bin/busybox reboot -f\n");
    sys::write(&tree.join("init"), init, 0o755)?;
    let initrd = dir.join("initrd");
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | cpio --quiet -o -H newc > ../initrd"]).current_dir(&tree);
    sys::run(pack, SHORT)?;
    let mut guest = Command::new("qemu-system-x86_64");
    guest.args(["-accel", "kvm", "-cpu", "host", "-m", "128", "-display", "none"]);
    guest.args(["-serial", "stdio", "-no-reboot", "-monitor", "none", "-nic", "none", "-kernel"]);
    guest.arg(image.kernel()).arg("-initrd").arg(initrd);
    guest.args(["-append", "console=ttyS0 quiet panic=-1"]);
    Ok(sys::ask(guest, PROBE)?.stdout.contains(WORD))
}

/// See [`super::Engine::command`].
pub fn command(m: &Machine<'_>) -> Result<Command, LabError> {
    let root = m.own("qcow2");
    if !root.exists() {
        overlay(&m.image.root(), &root)?;
    }
    let mut q = Command::new("qemu-system-x86_64");
    q.args(["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"]);
    q.args(["-machine", "q35", "-smp", "1", "-nodefaults"]);
    let memory = m.node.memory_mib().max(640);
    q.args(["-m", &memory.to_string()]);
    // Marked by the lab once per start of it: the probe takes seconds.
    if m.work.join("kvm").exists() {
        q.args(["-accel", "kvm", "-cpu", "host"]);
    } else {
        // QEMU 7.2 spoils the flags in cmpxchg16b, and kernels of 6.12 die of that; without it they do otherwise.
        q.args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "qemu64,-cx16,+ssse3,+sse4.1,+sse4.2,+popcnt",
        ]);
    }
    // User-Mode Linux in another lab may hold the image under a lock of its own.
    drive(&mut q, &root, "format=qcow2,backing.file.locking=off", "a");
    let data = m.data();
    // Unused places keep the letters of the disks behind them.
    for (i, name) in ["b", "c"].iter().enumerate() {
        match data.get(i) {
            Some(disk) => drive(&mut q, disk, "format=raw", name),
            None => drive(&mut q, &m.payload(), "format=raw,read-only=on", name),
        }
    }
    drive(&mut q, &m.payload(), "format=raw,read-only=on", "d");
    nic(&mut q, 0, &m.node.tap(), &m.node.mac());
    nic(&mut q, 1, &m.node.management_tap(), &m.node.management_mac());
    let parameters = [vec!["root=/dev/vda".into(), "console=ttyS0".into()], m.parameters()];
    q.arg("-kernel").arg(m.image.kernel()).arg("-initrd").arg(m.image.initrd());
    q.args(["-append", &parameters.concat().join(" ")]);
    Ok(q)
}

fn drive(q: &mut Command, file: &Path, options: &str, letter: &str) {
    let file = file.display();
    let own = "if=none,cache=writeback,file.locking=off";
    q.arg("-drive").arg(format!("file={file},{options},{own},id=d{letter}"));
    q.arg("-device").arg(format!("virtio-blk-pci,drive=d{letter},serial=lab-{letter}"));
}

fn nic(q: &mut Command, index: u8, tap: &str, mac: &str) {
    let backend = format!("tap,id=n{index},ifname={tap},script=no,downscript=no");
    q.arg("-netdev").arg(backend);
    // No boot ROM: it costs seconds.
    q.arg("-device").arg(format!("virtio-net-pci,netdev=n{index},mac={mac},romfile="));
}

fn overlay(base: &Path, file: &Path) -> Result<(), LabError> {
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(base).arg(file);
    sys::run(create, SHORT).map(drop)
}
