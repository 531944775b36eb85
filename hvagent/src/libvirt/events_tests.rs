//! Signals sent by a libvirt of our own.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use zbus::DynamicType;

use super::super::fake::{self, GUEST, Knobs, POOL, path};
use super::*;

struct Lab {
    server: Connection,
    events: mpsc::Receiver<Event>,
    _client: Connection,
}

async fn lab() -> Lab {
    let (server, client) = fake::libvirt(&Arc::new(Knobs::default())).await;
    let events = watch(&client).await.unwrap();
    Lab { server, events, _client: client }
}

impl Lab {
    async fn emit(
        &self,
        at: &str,
        interface: &str,
        member: &str,
        body: &(impl Serialize + DynamicType),
    ) {
        self.server.emit_signal(None::<&str>, at, interface, member, body).await.unwrap();
    }

    async fn next(&mut self) -> Event {
        tokio::time::timeout(Duration::from_secs(10), self.events.recv()).await.unwrap().unwrap()
    }
}

const CONNECT: &str = "org.libvirt.Connect";
const DOMAIN: &str = "org.libvirt.Domain";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_become_events() {
    let mut lab = lab().await;
    lab.emit(QEMU, CONNECT, "DomainEvent", &(path(GUEST), 3_i32, 2_i32)).await;
    let (domain, change) = (path(GUEST), Change::Suspended);
    assert_eq!(lab.next().await, Event::Lifecycle { domain, change, detail: 2 });
    lab.emit(GUEST, DOMAIN, "IOError", &("/images/a", "virtio-disk0", 1_i32, "")).await;
    let event = lab.next().await;
    assert!(matches!(&event, Event::IoError { source, paused: true, .. } if source == "/images/a"));
    lab.emit(GUEST, DOMAIN, "BlockJob", &("vda", 2_i32, 3_i32)).await;
    assert!(matches!(lab.next().await, Event::BlockJob { kind: 2, status: 3, .. }));
    lab.emit(QEMU, CONNECT, "StoragePoolEvent", &(path(POOL), 2_i32, 0_i32)).await;
    assert_eq!(lab.next().await, Event::Pool { pool: path(POOL) });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_that_are_not_understood_are_passed_over() {
    let mut lab = lab().await;
    lab.emit(QEMU, CONNECT, "DomainEvent", &"text").await;
    lab.emit(QEMU, CONNECT, "NodeDeviceEvent", &(path(POOL), 2_i32, 0_i32)).await;
    lab.emit("/elsewhere", CONNECT, "DomainEvent", &(path(GUEST), 2_i32, 0_i32)).await;
    lab.emit(QEMU, CONNECT, "DomainEvent", &(path(GUEST), 99_i32, 0_i32)).await;
    let event = lab.next().await;
    assert!(matches!(event, Event::Lifecycle { change: Change::Other(99), .. }), "{event:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_bridge_calls_for_resynchronisation() {
    let mut lab = lab().await;
    lab.emit("/org/freedesktop/DBus", BUS, "NameOwnerChanged", &("org.libvirt", ":1.7", "")).await;
    assert_eq!(lab.next().await, Event::Resync(Lost::BridgeGone));
    lab.emit("/org/freedesktop/DBus", BUS, "NameOwnerChanged", &("org.libvirt", "", ":1.9")).await;
    assert_eq!(lab.next().await, Event::Resync(Lost::BridgeStarted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_a_slow_reader_loses_events_and_is_told_but_holds_nothing_up() {
    let mut lab = lab().await;
    for detail in 0..i32::try_from(2 * WAITING).unwrap() {
        lab.emit(QEMU, CONNECT, "DomainEvent", &(path(GUEST), 2_i32, detail)).await;
    }
    // Answers still come on the same connection.
    let proxy: super::super::proxy::ConnectProxy<'_> =
        super::super::proxy::of(&lab._client).await.unwrap();
    let answer = tokio::time::timeout(Duration::from_secs(10), proxy.list_domains(1)).await;
    assert_eq!(answer.unwrap().unwrap().len(), 1);
    // The drain's queue and ours may still be moving: read until the loss is told.
    let mut told = false;
    for _ in 0..3 * WAITING {
        lab.emit(QEMU, CONNECT, "DomainEvent", &(path(GUEST), 2_i32, -1_i32)).await;
        if lab.next().await == Event::Resync(Lost::Overrun) {
            told = true;
            break;
        }
    }
    assert!(told);
}
