//! Guests and migrations for tests.

use std::time::Duration;

use zbus::{ObjectPath, OwnedObjectPath};

use super::inventory::{Guest, Told};
use crate::libvirt::domain::Domain;
use crate::libvirt::job::{Job, Operation};
use crate::libvirt::state::DomainState;

const MIB: u64 = 1 << 20;

pub(crate) fn object(name: &str) -> OwnedObjectPath {
    let path = format!("/org/libvirt/QEMU/domain/_{name}");
    ObjectPath::try_from(path).unwrap().into()
}

pub(crate) fn migration(remaining_mib: u64, speed_mib: u64, dirty_mib: u64) -> Job {
    Job {
        operation: Operation::MigrationOut,
        elapsed: Duration::from_secs(3),
        begun: true,
        remaining: Some(remaining_mib * MIB),
        speed: Some(speed_mib * MIB),
        dirty: Some(dirty_mib * MIB),
        iteration: Some(2),
        post_copy: false,
    }
}

pub(crate) fn domain(name: &str, files: &[&str]) -> Domain {
    let disk = |file: &&str| {
        format!("<disk type='file'><source file='{file}'/><target dev='vda'/></disk>")
    };
    let disks: String = files.iter().map(disk).collect();
    let xml = format!(
        "<domain type='kvm'><name>{name}</name><uuid>u-{name}</uuid><memory>1</memory>\
         <devices>{disks}</devices></domain>"
    );
    Domain::parse(&xml).unwrap()
}

pub(crate) fn told(name: &str, state: DomainState, job: Result<Option<Job>, String>) -> Told {
    Told { domain: domain(name, &[]), state, job }
}

pub(crate) fn running(name: &str, files: &[&str]) -> Told {
    Told { domain: domain(name, files), ..told(name, DomainState::Running, Ok(None)) }
}

pub(crate) fn guest_with(told: Told) -> Guest {
    Guest { path: object("a"), told: Some(told), at: Duration::ZERO }
}
