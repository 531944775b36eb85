//! Prints the state of all resources, and every change of it, until interrupted.
//!
//! `drbd_status` follows; `drbd_status --once` prints state, options that violate S1, and ends.

use std::error::Error;
use std::time::Duration;

use nasd_drbd::{Drbd, Model, Notification, ResourceStatus};

fn main() -> Result<(), Box<dyn Error>> {
    let mut drbd = Drbd::open()?;
    println!("DRBD speaks {:?}", drbd.abi());
    for status in drbd.status()?.values() {
        print(status);
        for violation in status.s1_violations() {
            println!("  S1: {:?}: {violation}", violation.scope);
        }
    }
    if std::env::args().any(|argument| argument == "--once") { Ok(()) } else { follow(&drbd) }
}

fn follow(drbd: &Drbd) -> Result<(), Box<dyn Error>> {
    let mut events = drbd.events()?;
    loop {
        let Some(notification) = events.next(Duration::from_secs(60))? else { continue };
        println!("{notification:?}");
        match (&notification, events.model()) {
            (Notification::Synced(_), Some(model)) => model.resources().values().for_each(print),
            (Notification::Changed { resource, continues: false, .. }, Some(model)) => {
                show(model, resource);
            }
            _ => {}
        }
    }
}

fn show(model: &Model, resource: &str) {
    match model.resource(resource) {
        Some(status) => print(status),
        None => println!("{resource}: gone"),
    }
}

fn print(status: &ResourceStatus) {
    let frozen = if status.suspended.any() { " (suspended)" } else { "" };
    println!("{}: {}{frozen}", status.name, status.role);
    for (volume, device) in &status.devices {
        let uuid = device.current_uuid.unwrap_or(0);
        println!("  volume {volume} minor {}: {} {uuid:016X}", device.minor, device.disk);
    }
    for connection in &status.connections {
        println!("  {}: {}, peer {}", connection.key, connection.state, connection.peer_role);
        for (volume, peer) in &connection.peer_devices {
            let left = peer.out_of_sync_bytes.unwrap_or(0);
            println!("    volume {volume}: {} {}, {left} bytes to go", peer.repl, peer.disk);
        }
    }
}
