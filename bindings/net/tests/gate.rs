//! S4, S5, S9, S12: the gate on a macvlan in a namespace of its own. Needs root.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{LIMIT, VIP, VIP6, World, must, wait_for};
use nasd_net::frames::{Announcer, Capture};
use nasd_net::gate::{Deadline, Gate, Origin, Which};
use nasd_net::{MonotonicInstant, NetError, NetnsWorker};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

fn requested_now() -> MonotonicInstant {
    MonotonicInstant::now()
}

/// Frames on the client's wire that come from the service's MAC.
fn from_service(capture: &Capture, world: &World) -> usize {
    let mac = world.nodes[0].spec.mac.0;
    capture.drain().iter().filter(|frame| frame.get(6..12) == Some(&mac[..])).count()
}

#[test]
fn s4_closed_by_default_not_even_arp_is_answered() {
    let world = World::new("closed", 1);
    let wire = Capture::open(&world.client, "eth0").unwrap();
    let gate = world.stand_up(0);
    world.address(0);
    assert_eq!(gate.origin(), Origin::Installed);
    assert!(!world.reachable(VIP) && !world.reachable(VIP6));
    let announcer = Announcer::open(world.nodes[0].service.netns(), "svc0").unwrap();
    for ip in [VIP, VIP6] {
        let refused = announcer.announce(World::ip(ip));
        let Err(NetError::Refused { source, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(source.raw_os_error(), Some(105), "ENOBUFS: the gate dropped it");
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(from_service(&wire, &world), 0, "a shut gate lets nothing out, from the start");

    gate.set(Which::Both, Deadline::NEVER).unwrap();
    assert!(world.reachable(VIP) && world.reachable(VIP6));
    announcer.announce(World::ip(VIP)).unwrap();
    announcer.announce(World::ip(VIP6)).unwrap();
    wait_for("frames of the service", LIMIT, || from_service(&wire, &world) > 0);
}

#[test]
fn s4_shuts_by_itself_with_nobody_running() {
    let world = World::new("self", 1);
    let gate = world.stand_up(0);
    world.address(0);
    let requested = requested_now();
    gate.set(Which::Both, Deadline::after(requested, Duration::from_millis(2500))).unwrap();
    assert!(world.reachable(VIP) && world.reachable(VIP6));
    assert!(gate.read().unwrap().ingress_open());
    drop(gate);
    let passed = requested_now().saturating_duration_since(requested);
    std::thread::sleep(Duration::from_millis(2510).saturating_sub(passed));
    assert!(!world.reachable(VIP) && !world.reachable(VIP6));
}

#[test]
fn c3_a_deadline_written_late_opens_nothing() {
    let world = World::new("late", 1);
    let gate = world.stand_up(0);
    world.address(0);
    let requested = requested_now();
    std::thread::sleep(Duration::from_millis(300));
    gate.set(Which::Both, Deadline::after(requested, Duration::from_millis(250))).unwrap();
    assert!(!world.reachable(VIP));
    let state = gate.read().unwrap();
    assert!(!state.ingress_open() && !state.egress_open());
}

#[test]
fn s5_sides_shut_apart() {
    let world = World::new("sides", 1);
    let wire = Capture::open(&world.client, "eth0").unwrap();
    let gate = world.stand_up(0);
    world.address(0);
    gate.set(Which::Both, Deadline::NEVER).unwrap();
    assert!(world.reachable(VIP));
    let announcer = Announcer::open(world.nodes[0].service.netns(), "svc0").unwrap();
    let announced = || {
        wire.drain();
        let _ = announcer.announce(World::ip(VIP));
        std::thread::sleep(Duration::from_millis(100));
        from_service(&wire, &world) > 0
    };

    gate.close(Which::Ingress).unwrap();
    assert!(!world.reachable(VIP), "requests do not get in");
    assert!(announced(), "replies still drain");

    gate.close(Which::Egress).unwrap();
    assert!(!announced());

    gate.set(Which::Ingress, Deadline::NEVER).unwrap();
    assert!(!world.reachable(VIP), "egress alone silences it (H9)");
    assert!(!announced());
}

#[test]
fn s9_a_new_process_adopts_without_disturbing() {
    let world = World::new("adopt", 1);
    let gate = world.stand_up(0);
    world.address(0);
    gate.set(Which::Both, Deadline::NEVER).unwrap();
    let before = gate.read().unwrap();
    drop(gate);
    let service = &world.nodes[0].service;
    let gate = Gate::install_or_adopt(service, "svc0", &world.pin(0), LIMIT).unwrap();
    assert_eq!(gate.origin(), Origin::Adopted);
    let after = gate.read().unwrap();
    assert_eq!((after.ingress, after.egress), (before.ingress, before.egress));
    assert!(world.reachable(VIP));
    gate.close(Which::Both).unwrap();
    assert!(!world.reachable(VIP), "the adopted map is the one the filters read");
    assert!(gate.verify(service, "svc0", LIMIT).unwrap());
}

#[test]
fn s12_a_missing_or_foreign_filter_means_shut() {
    let world = World::new("repair", 1);
    let gate = world.stand_up(0);
    world.address(0);
    let service = &world.nodes[0].service;
    gate.set(Which::Both, Deadline::NEVER).unwrap();
    must(service.netns(), "tc filter del dev svc0 egress");
    assert!(!gate.verify(service, "svc0", LIMIT).unwrap());
    let gate = Gate::install_or_adopt(service, "svc0", &world.pin(0), LIMIT).unwrap();
    assert_eq!(gate.origin(), Origin::Repaired);
    assert!(!gate.read().unwrap().ingress_open() && !world.reachable(VIP));

    // A filter on another map is no gate of ours: replaced, shut.
    gate.set(Which::Both, Deadline::NEVER).unwrap();
    std::fs::remove_file(world.pin(0)).unwrap();
    let fresh = Gate::install_or_adopt(service, "svc0", &world.pin(0), LIMIT).unwrap();
    assert_eq!(fresh.origin(), Origin::Installed);
    assert!(!world.reachable(VIP), "the old map opens nothing any more");
    gate.set(Which::Both, Deadline::NEVER).unwrap();
    assert!(!world.reachable(VIP));
    fresh.set(Which::Both, Deadline::NEVER).unwrap();
    assert!(world.reachable(VIP));
}

#[test]
fn what_is_foreign_is_refused_and_left_alone() {
    let world = World::new("foreign", 1);
    let node = &world.nodes[0];
    nasd_net::link::ensure_macvlan(&node.host, &node.service, &node.spec, LIMIT).unwrap();
    let install = |pin: &std::path::Path| Gate::install_or_adopt(&node.service, "svc0", pin, LIMIT);
    must(node.service.netns(), "tc qdisc add dev svc0 ingress");
    assert!(matches!(install(&world.pin(0)), Err(NetError::ForeignFilter { .. })));
    must(node.service.netns(), "tc qdisc del dev svc0 ingress");
    must(node.service.netns(), "tc qdisc add dev svc0 clsact");
    must(
        node.service.netns(),
        "tc filter add dev svc0 ingress pref 1 protocol ip u32 match u32 0 0 flowid 1:1",
    );
    assert!(matches!(install(&world.pin(0)), Err(NetError::ForeignFilter { .. })));
    must(node.service.netns(), "tc filter del dev svc0 ingress");
    assert!(install(&world.pin(0)).is_ok());

    let outside = world.bpffs.path().parent().unwrap().join("nasd-not-bpffs");
    assert!(matches!(install(&outside), Err(NetError::NotBpffs { .. })));
    assert!(!outside.exists());
    let gone = Gate::install_or_adopt(&node.service, "nosuch0", &world.pin(0), LIMIT);
    assert!(matches!(gone, Err(NetError::InterfaceMissing { .. })));
}

#[test]
fn uninstalling_leaves_nothing() {
    let world = World::new("uninst", 1);
    let gate = world.stand_up(0);
    world.address(0);
    assert!(!world.reachable(VIP));
    drop(gate);
    for _ in 0..2 {
        Gate::uninstall(&world.nodes[0].service, "svc0", &world.pin(0), LIMIT).unwrap();
    }
    assert!(!world.pin(0).exists());
    assert!(world.reachable(VIP), "an ungated interface answers");
}

/// Where bpffs is mounted when nothing is.
const BPFFS: &str = "/sys/fs/bpf";

fn is_bpffs() -> bool {
    statfs(BPFFS).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Mounts at the customary place, in the whole process's mount namespace.
fn customary_mounts() -> usize {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.split(' ').nth(4) == Some(BPFFS)).count()
}

/// Runs `task` on a thread with mounts of its own, where bpffs is missing at its customary place. What
/// is mounted there, also by threads that `task` starts, nobody else sees, and it ends with them.
fn without_bpffs(task: impl FnOnce() + Send) {
    let alone = || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        while is_bpffs() {
            umount2(BPFFS, MntFlags::MNT_DETACH).unwrap();
        }
        task();
    };
    let ended = std::thread::scope(|scope| scope.spawn(alone).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn bpffs_is_mounted_when_it_is_missing() {
    let world = World::new("bpffs", 1);
    let node = &world.nodes[0];
    nasd_net::link::ensure_macvlan(&node.host, &node.service, &node.spec, LIMIT).unwrap();
    let pin = std::path::Path::new(BPFFS).join("nasd/test-missing");
    let before = customary_mounts();
    without_bpffs(|| {
        // Pins are made by the worker's thread, which has the mounts of the one that starts it.
        let service = NetnsWorker::start(node.service.netns()).unwrap();
        for origin in [Origin::Installed, Origin::Adopted] {
            let gate = Gate::install_or_adopt(&service, "svc0", &pin, LIMIT).unwrap();
            assert_eq!(gate.origin(), origin);
            assert!(is_bpffs() && pin.exists());
        }
        Gate::uninstall(&service, "svc0", &pin, LIMIT).unwrap();
        assert!(!pin.exists());
    });
    assert_eq!(customary_mounts(), before, "the mount stays inside");
    assert!(!pin.exists());
}
