//! libvirt-dbus, systemd and logind as they answer, on a private connection. For tests.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::Notify;
use zbus::connection::Builder;
use zbus::{Connection, Guid, ObjectPath, OwnedObjectPath, OwnedVariant, Variant, interface};

pub(super) const GUEST: &str = "/org/libvirt/QEMU/domain/_5d3c1c9e_6a55_4c0e_9b6f_0f8d7b3c2a11";
pub(super) const POOL: &str = "/org/libvirt/QEMU/storagepool/_7c0e9b0e_7d5d_4cf5_9a55_2f6a5b0b8b11";
pub(super) const XML: &str = "<domain type='qemu'><name>guest1</name><uuid>u</uuid>\
    <memory unit='MiB'>96</memory></domain>";
const POOL_XML: &str = "<pool type='netfs'><name>vms</name><uuid>u</uuid>\
    <source><host name='10.0.0.9'/><dir path='/srv/vms'/></source>\
    <target><path>/images</path></target></pool>";

/// What the tests turn and look at.
#[derive(Default)]
pub(super) struct Knobs {
    /// Calls hang from now on.
    pub(super) hangs: AtomicBool,
    /// Those that hang go on.
    pub(super) goes_on: Notify,
    /// Calls that have come in.
    pub(super) calls: AtomicU32,
    /// The speed that was set.
    pub(super) speed: AtomicU32,
    /// Jobs that were aborted.
    pub(super) aborted: AtomicU32,
}

impl Knobs {
    async fn pass(&self) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if self.hangs.load(Ordering::SeqCst) {
            self.goes_on.notified().await;
        }
    }
}

/// libvirt's own error, the only one there is.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.libvirt")]
pub(super) enum Refusal {
    #[zbus(error)]
    Bus(zbus::Error),
    Error(String),
}

struct Connect(Arc<Knobs>);

#[interface(name = "org.libvirt.Connect")]
impl Connect {
    async fn list_domains(&self, flags: u32) -> Vec<OwnedObjectPath> {
        self.0.pass().await;
        if flags == 1 { vec![path(GUEST)] } else { Vec::new() }
    }

    async fn domain_lookup_by_name(&self, name: String) -> Result<OwnedObjectPath, Refusal> {
        let none =
            || Refusal::Error(format!("Domain not found: no domain with matching name '{name}'"));
        (name == "guest1").then(|| path(GUEST)).ok_or_else(none)
    }

    async fn list_storage_pools(&self, _flags: u32) -> Vec<OwnedObjectPath> {
        vec![path(POOL)]
    }

    #[zbus(name = "CompareCPU")]
    async fn compare_cpu(&self, xml: String, _flags: u32) -> i32 {
        if xml.contains("qemu64") { 2 } else { 0 }
    }

    async fn node_get_free_memory(&self) -> u64 {
        1 << 30
    }

    #[zbus(property)]
    async fn hostname(&self) -> String {
        "hv1".to_owned()
    }

    #[zbus(property)]
    async fn lib_version(&self) -> u64 {
        9_000_000
    }

    #[zbus(property)]
    async fn version(&self) -> u64 {
        7_002_022
    }
}

struct Domain(Arc<Knobs>);

#[interface(name = "org.libvirt.Domain")]
impl Domain {
    async fn get_state(&self, _flags: u32) -> ((i32, i32),) {
        self.0.pass().await;
        ((3, 5),)
    }

    #[zbus(name = "GetXMLDesc")]
    async fn get_xml_desc(&self, _flags: u32) -> String {
        XML.to_owned()
    }

    async fn get_control_info(&self, _flags: u32) -> ((u32, u32, u64),) {
        ((2, 0, 7000),)
    }

    async fn get_job_stats(&self, _flags: u32) -> ((i32, HashMap<String, OwnedVariant>),) {
        let values = [("operation", Variant::I32(5)), ("memory_bps", Variant::U64(1000))];
        let twice = |value| OwnedVariant::try_from(Variant::Variant(Box::new(value))).unwrap();
        let values = values.map(|(key, value)| (key.to_owned(), twice(value)));
        ((2, HashMap::from(values)),)
    }

    async fn get_block_job_info(&self, disk: String, _flags: u32) -> ((i32, u64, u64, u64),) {
        if disk == "vda" { ((2, 0, 5, 9),) } else { ((0, 0, 0, 0),) }
    }

    async fn get_disk_errors(&self, _flags: u32) -> Vec<(String, i32)> {
        vec![("vda".to_owned(), 1)]
    }

    async fn migrate_get_max_speed(&self, _flags: u32) -> u64 {
        8_796_093_022_207
    }

    async fn migrate_set_max_speed(&self, speed: u64, _flags: u32) {
        self.0.speed.store(u32::try_from(speed).unwrap(), Ordering::SeqCst);
    }

    async fn abort_job(&self) {
        self.0.aborted.fetch_add(1, Ordering::SeqCst);
    }
}

struct Pool;

#[interface(name = "org.libvirt.StoragePool")]
impl Pool {
    #[zbus(name = "GetXMLDesc")]
    async fn get_xml_desc(&self, _flags: u32) -> String {
        POOL_XML.to_owned()
    }

    #[zbus(property)]
    async fn active(&self) -> bool {
        true
    }

    #[zbus(property)]
    async fn autostart(&self) -> bool {
        false
    }

    #[zbus(property)]
    async fn persistent(&self) -> bool {
        true
    }
}

pub(super) fn path(text: &str) -> OwnedObjectPath {
    ObjectPath::try_from(text).unwrap().into()
}

/// A server with something more on it, and a client of it.
pub(super) async fn pair(
    more: impl FnOnce(Builder<'static>) -> Builder<'static>,
) -> (Connection, Connection) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = Builder::unix_stream(theirs).server(Guid::generate()).p2p();
    let (server, client) =
        tokio::join!(more(server).build(), Builder::unix_stream(ours).p2p().build());
    (server.unwrap(), client.unwrap())
}

/// libvirt-dbus with one guest and one pool.
pub(super) async fn libvirt(knobs: &Arc<Knobs>) -> (Connection, Connection) {
    pair(|server| {
        server
            .serve_at(super::proxy::QEMU, Connect(Arc::clone(knobs)))
            .serve_at(GUEST, Domain(Arc::clone(knobs)))
            .serve_at(POOL, Pool)
    })
    .await
}
