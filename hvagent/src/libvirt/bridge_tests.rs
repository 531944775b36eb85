//! The bridge against a libvirt of our own on a private connection.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::fake::{self, GUEST, Knobs, POOL, path};
use super::super::state::{ControlState, Paused};
use super::*;

/// Long enough for a loaded machine, short enough for a test.
const SHORT: Duration = Duration::from_millis(150);

struct Lab {
    knobs: Arc<Knobs>,
    bridge: Bridge,
    server: Connection,
}

async fn lab_with(ask: Duration) -> Lab {
    let knobs = Arc::new(Knobs::default());
    let (server, client) = fake::libvirt(&knobs).await;
    let limits = Limits { ask, ..Limits::default() };
    Lab { knobs, bridge: Bridge::new(client, limits, Policy::default()), server }
}

async fn lab() -> Lab {
    lab_with(Duration::from_secs(10)).await
}

/// Waits until something holds.
async fn until(mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came so far");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_and_its_job_are_read() {
    let Lab { bridge, server: _server, .. } = lab().await;
    let guests = bridge.domains().await.unwrap();
    assert_eq!(guests, [path(GUEST)]);
    assert_eq!(bridge.domain(&guests[0]).await.unwrap().name, "guest1");
    let state = bridge.state(&guests[0]).await.unwrap();
    assert_eq!(state, DomainState::Paused(Paused::IoError));
    let control = bridge.control(&guests[0]).await.unwrap();
    assert_eq!((control.state, control.since_ms), (ControlState::Occupied, 7000));
    let job = bridge.job(&guests[0]).await.unwrap().unwrap();
    assert_eq!(
        (job.operation, job.speed),
        (super::super::job::Operation::MigrationOut, Some(1000))
    );
    assert_eq!(bridge.disk_errors(&guests[0]).await.unwrap(), ["vda"]);
    assert_eq!(bridge.block_job(&guests[0], "vdb".to_owned()).await.unwrap(), None);
    assert_eq!(bridge.block_job(&guests[0], "vda".to_owned()).await.unwrap().unwrap().end, 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_and_its_pools_are_read() {
    let Lab { bridge, server: _server, .. } = lab().await;
    let host = bridge.host().await.unwrap();
    assert_eq!((host.name.as_str(), host.libvirt, host.qemu), ("hv1", 9_000_000, 7_002_022));
    assert_eq!(bridge.pools().await.unwrap(), [path(POOL)]);
    let pool = bridge.pool(&path(POOL)).await.unwrap();
    assert_eq!((pool.active, pool.autostart, pool.persistent), (true, false, true));
    assert_eq!(pool.definition.mount_source().as_deref(), Some("10.0.0.9:/srv/vms"));
    assert_eq!(
        bridge.compare_cpu("<cpu>qemu64</cpu>".to_owned()).await.unwrap(),
        CpuMatch::Superset
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_arrive() {
    let Lab { knobs, bridge, server: _server } = lab().await;
    assert_eq!(bridge.max_speed(&path(GUEST)).await.unwrap(), 8_796_093_022_207);
    bridge.set_max_speed(&path(GUEST), 4).await.unwrap();
    bridge.abort_job(&path(GUEST)).await.unwrap();
    assert_eq!(knobs.speed.load(Ordering::SeqCst), 4);
    assert_eq!(knobs.aborted.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_an_answer() {
    let Lab { bridge, server: _server, .. } = lab().await;
    let error = bridge.find_domain("other".to_owned()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Refused { message, .. } if message.contains("not found")),
        "{error}"
    );
    assert_eq!(bridge.find_domain("guest1".to_owned()).await.unwrap(), path(GUEST));
    let error = bridge.state(&path("/org/libvirt/QEMU/domain/_gone")).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert_eq!((bridge.health(), bridge.outstanding()), (Health::Closed, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_a_libvirt_that_hangs_is_soon_not_asked_any_more() {
    let Lab { knobs, bridge, server: _server } = lab_with(SHORT).await;
    knobs.hangs.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        assert!(matches!(bridge.domains().await, Err(Error::Deadline { .. })));
    }
    let before = Instant::now();
    let error = bridge.state(&path(GUEST)).await.unwrap_err();
    assert!(matches!(error, Error::Open { outstanding: 2, .. }), "{error}");
    assert!(before.elapsed() < SHORT, "told at once");
    assert_eq!(knobs.calls.load(Ordering::SeqCst), 2, "the third call was not made");
    knobs.hangs.store(false, Ordering::SeqCst);
    knobs.goes_on.notify_waiters();
    until(|| bridge.health() == Health::Closed).await;
    assert_eq!(bridge.outstanding(), 0);
    assert!(bridge.domains().await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_a_caller_that_goes_away_leaves_nothing_behind() {
    let Lab { knobs, bridge, server: _server } = lab_with(SHORT).await;
    knobs.hangs.store(true, Ordering::SeqCst);
    for _ in 0..4 {
        let _ = tokio::time::timeout(Duration::from_millis(5), bridge.domains()).await;
    }
    until(|| bridge.health() == Health::Open).await;
    assert!(knobs.calls.load(Ordering::SeqCst) <= 3, "two slots, and never all threads");
    bridge.restarted();
    knobs.hangs.store(false, Ordering::SeqCst);
    assert!(bridge.domains().await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bridge_that_dies_is_no_hang() {
    let Lab { bridge, server, .. } = lab().await;
    server.close().await.unwrap();
    let error = bridge.domains().await.unwrap_err();
    assert!(!error.is_hang(), "{error}");
    assert_eq!(bridge.health(), Health::Closed);
}

/// What libvirt-dbus's interface descriptions say (`data/org.libvirt.Domain.xml`): a pair is **one**
/// argument. The fake must speak so, or these tests prove nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fake_answers_with_the_signatures_of_the_real_one() {
    let Lab { bridge, server: _server, .. } = lab().await;
    let promised = [
        ("GetState", "(ii)"),
        ("GetControlInfo", "(uut)"),
        ("GetJobStats", "(ia{sv})"),
        ("GetDiskErrors", "a(si)"),
        ("MigrateGetMaxSpeed", "t"),
    ];
    for (member, signature) in promised {
        let interface = Some("org.libvirt.Domain");
        let call = bridge.connection.call_method(Some(LIBVIRT), GUEST, interface, member, &0_u32);
        let reply = call.await.unwrap();
        // In the header's own bytes: the parsed form does not tell "(ii)" from "ii".
        let length = u8::try_from(signature.len()).unwrap();
        let bytes = [&[length], signature.as_bytes(), &[0]].concat();
        let header = reply.data().bytes();
        assert!(header.windows(bytes.len()).any(|window| window == bytes), "{member}");
    }
}
