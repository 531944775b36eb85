//! A hypervisor on which all is well, for tests to spoil.

use std::time::Duration;

use super::reach::{Door, MIGRATION_PORTS, Reach};
use super::report::*;
use crate::libvirt::domain::{Cache, OnError};
use crate::libvirt::pool::Pool;
use crate::libvirt::state::DomainState;

pub(crate) const OPTIONS: &str =
    "rw,vers=4.2,hard,proto=tcp,timeo=50,retrans=2,sec=sys,local_lock=none,addr=192.0.2.50";
/// 2026-11-21.
pub(crate) const NOW: Duration = Duration::from_secs(1_795_219_200);

fn ip(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

pub(crate) fn mount() -> Mount {
    Mount {
        point: "/vm".into(),
        server: "192.0.2.50".into(),
        path: "/vm".into(),
        root: "/".into(),
        device: "0:52".into(),
        address: Some(ip("192.0.2.50")),
        fsid: Some("8a3f6c01:0".into()),
        service: Some("vm".into()),
        read_only: false,
        options: OPTIONS.into(),
    }
}

pub(crate) fn pool() -> PoolReport {
    let text = "<pool type='netfs'><name>vms</name><uuid>7c0e9b0e</uuid><source>\
        <host name='192.0.2.50'/><dir path='/vm'/></source><target><path>/vm</path></target></pool>";
    PoolReport {
        definition: Pool::parse(text).unwrap(),
        active: true,
        autostart: true,
        persistent: true,
        mounted: Known::Known(Some("192.0.2.50:/vm".into())),
        on: Some("/vm".into()),
    }
}

pub(crate) fn guest() -> Guest {
    Guest {
        name: "guest1".into(),
        uuid: "5d3c1c9e".into(),
        state: Known::Known(DomainState::Running),
        virt_type: "kvm".into(),
        arch: Some("x86_64".into()),
        machine: Some("pc-q35-7.2".into()),
        memory: 1 << 30,
        cpu: Processor {
            mode: Some("custom".into()),
            model: Some("qemu64".into()),
            features: Vec::new(),
        },
        disks: vec![Disk {
            target: "vda".into(),
            device: "disk".into(),
            paths: vec![Place { path: "/vm/guest1.img".into(), on: Some("/vm".into()) }],
            pool: None,
            cache: Cache::None,
            on_write_error: OnError::Stop,
            on_read_error: OnError::Stop,
            pauses_on_error: true,
            read_only: false,
            network: false,
            copying: false,
        }],
        lockspaces: Vec::new(),
        blockers: Vec::new(),
    }
}

fn capabilities() -> Capabilities {
    let kvm = KindOfGuest {
        virt_type: "kvm".into(),
        usable: vec!["EPYC".into(), "qemu64".into()],
        unusable: vec!["EPYC-Rome".into()],
        host_model: Some("EPYC".into()),
        host_features: vec!["x2apic".into()],
    };
    Capabilities {
        arch: "x86_64".into(),
        model: Some("EPYC".into()),
        features: vec!["svm".into()],
        machines: vec!["pc-q35-7.2".into(), "q35".into()],
        kinds: vec![kvm],
    }
}

fn sanlock(host: &str) -> Sanlock {
    let lockspace = Lockspace {
        name: "__LIBVIRT__DISKS__".into(),
        host_id: if host == "hv1" { 1 } else { 2 },
        path: "/leases/l".into(),
        joined: true,
        io_timeout: 10,
        margin_ms: Some(70_000),
    };
    Sanlock {
        version: "3.8.5".into(),
        host_name: host.into(),
        watchdog: true,
        watchdog_fire_timeout: None,
        lockspaces: vec![lockspace],
    }
}

/// `hv1` at 192.0.2.11, any other at 192.0.2.12.
pub(crate) fn host(name: &str) -> HostReport {
    let address = ip(if name == "hv1" { "192.0.2.11" } else { "192.0.2.12" });
    let named = |name: &str, address| Named { name: name.into(), addresses: vec![ip(address)] };
    let versions = Versions { name: name.into(), libvirt: 9_000_000, qemu: 7_002_022 };
    HostReport {
        version: VERSION,
        host: name.into(),
        own_name: OwnName {
            resolves_to: Known::Known(vec![address]),
            addresses: Known::Known(vec![address]),
        },
        clock: Clock {
            unix_ns: u64::try_from(NOW.as_nanos()).unwrap(),
            synchronised: Known::Known(true),
        },
        kernel: Known::Known("6.1.0".into()),
        free_memory: Known::Known(8 << 30),
        libvirt: Known::Known(versions),
        capabilities: Known::Known(capabilities()),
        services: Services {
            floating: vec![named("vm", "192.0.2.50")],
            nodes: vec![named("nas1", "192.0.2.1"), named("nas2", "192.0.2.2")],
        },
        mounts: Known::Known(vec![mount()]),
        pools: Known::Known(vec![pool()]),
        locks: Locks {
            manager: Known::Known(Some("sanlock".into())),
            needed: vec!["__LIBVIRT__DISKS__".into()],
            sanlock: Known::Known(sanlock(name)),
            findings: Vec::new(),
        },
        listening: Known::Known(Listening {
            transports: vec![Transport::Tls],
            migration: MIGRATION_PORTS,
            taken: Vec::new(),
        }),
        guests: Known::Known(if name == "hv1" { vec![guest()] } else { Vec::new() }),
        phases: Known::Known(vec![MountPhase { mount: "/vm".into(), phase: "normal".into() }]),
    }
}

/// The way to `hv2`.
pub(crate) fn reach() -> Reach {
    Reach {
        name: "hv2".into(),
        resolves_to: Known::Known(vec![ip("192.0.2.12")]),
        transports: vec![
            (Transport::Tls, Door::Open),
            (Transport::Tcp, Door::Refused),
            (Transport::Ssh, Door::Open),
        ],
        migration: Some((49152, Door::Refused)),
    }
}
