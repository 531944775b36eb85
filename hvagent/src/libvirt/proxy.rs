//! The D-Bus interfaces, as `libvirt-dbus` (data/org.libvirt.*.xml), systemd and logind publish them.
//!
//! Only what the agent uses. Nothing here has a deadline: call through [`super::bridge`] and
//! [`super::systemd`]. Proxies are built **without a property cache**: filling it asks libvirt for
//! every property of every object.

use zbus::proxy::{Builder, CacheProperties, Defaults};
use zbus::{Connection, OwnedFd, OwnedObjectPath, Proxy};

use super::value::Params;

/// The bridge's name.
pub const LIBVIRT: &str = "org.libvirt";
/// The object for qemu:///system; everything of it lives below.
pub const QEMU: &str = "/org/libvirt/QEMU";
/// systemd's name.
pub const SYSTEMD: &str = "org.freedesktop.systemd1";
/// logind's name.
pub const LOGIND: &str = "org.freedesktop.login1";

/// One unit of `ListUnitsByNames`: name, description, load state, active state, sub state, followed
/// unit, path, job's number, job's type, job's path.
pub type ListedUnit =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// A connection of libvirt.
#[zbus::proxy(
    interface = "org.libvirt.Connect",
    default_service = "org.libvirt",
    default_path = "/org/libvirt/QEMU"
)]
pub trait Connect {
    /// Guests. Flags: 1 running ones (of whatever state), 2 the others; 0 both.
    fn list_domains(&self, flags: u32) -> zbus::Result<Vec<OwnedObjectPath>>;

    /// The guest of that name.
    fn domain_lookup_by_name(&self, name: &str) -> zbus::Result<OwnedObjectPath>;

    /// The guest of that uuid.
    #[zbus(name = "DomainLookupByUUID")]
    fn domain_lookup_by_uuid(&self, uuid: &str) -> zbus::Result<OwnedObjectPath>;

    /// Pools; flags 0: all.
    fn list_storage_pools(&self, flags: u32) -> zbus::Result<Vec<OwnedObjectPath>>;

    /// Whether this host can give a guest that processor: -1 error, 0 no, 1 the very same, 2 more.
    #[zbus(name = "CompareCPU")]
    fn compare_cpu(&self, xml: &str, flags: u32) -> zbus::Result<i32>;

    /// The host's processor, and the kinds of guest and machines it can be.
    fn get_capabilities(&self) -> zbus::Result<String>;

    /// What this host can run, for an emulator and a machine (each may be empty).
    fn get_domain_capabilities(
        &self,
        emulator: &str,
        arch: &str,
        machine: &str,
        virt_type: &str,
        flags: u32,
    ) -> zbus::Result<String>;

    /// Free memory in bytes.
    fn node_get_free_memory(&self) -> zbus::Result<u64>;

    /// The host's name as libvirt knows it.
    #[zbus(property(emits_changed_signal = "false"))]
    fn hostname(&self) -> zbus::Result<String>;

    /// libvirt's version: 1 000 000 major + 1000 minor + release.
    #[zbus(property(emits_changed_signal = "false"))]
    fn lib_version(&self) -> zbus::Result<u64>;

    /// QEMU's version, in the same form.
    #[zbus(property(emits_changed_signal = "false"))]
    fn version(&self) -> zbus::Result<u64>;
}

/// A guest.
#[zbus::proxy(
    interface = "org.libvirt.Domain",
    default_service = "org.libvirt",
    assume_defaults = false
)]
pub trait Domain {
    /// State and reason.
    fn get_state(&self, flags: u32) -> zbus::Result<(i32, i32)>;

    /// The definition. Flags: 1 with secrets, 2 the one for the next start.
    #[zbus(name = "GetXMLDesc")]
    fn get_xml_desc(&self, flags: u32) -> zbus::Result<String>;

    /// What libvirt's connection to QEMU does: state, detail, milliseconds. Does not wait for it.
    fn get_control_info(&self, flags: u32) -> zbus::Result<(u32, u32, u64)>;

    /// The job: type and values.
    fn get_job_stats(&self, flags: u32) -> zbus::Result<(i32, Params)>;

    /// Ends the job, if it can be ended.
    fn abort_job(&self) -> zbus::Result<()>;

    /// The speed limit of migrations in MiB/s.
    fn migrate_get_max_speed(&self, flags: u32) -> zbus::Result<u64>;

    /// Sets it.
    fn migrate_set_max_speed(&self, mib_per_second: u64, flags: u32) -> zbus::Result<()>;

    /// Sets the downtime a migration may cost, in milliseconds. It cannot be asked for.
    fn migrate_set_max_downtime(&self, millis: u64, flags: u32) -> zbus::Result<()>;

    /// Disks with errors: name and kind (1 other, 2 no space).
    fn get_disk_errors(&self, flags: u32) -> zbus::Result<Vec<(String, i32)>>;

    /// A disk's job: type, bandwidth, current, end. All zero when there is none.
    fn get_block_job_info(&self, disk: &str, flags: u32) -> zbus::Result<(i32, u64, u64, u64)>;

    /// Lets a paused guest go on.
    fn resume(&self) -> zbus::Result<()>;

    /// Its name.
    #[zbus(property(emits_changed_signal = "false"))]
    fn name(&self) -> zbus::Result<String>;
}

/// A storage pool.
#[zbus::proxy(
    interface = "org.libvirt.StoragePool",
    default_service = "org.libvirt",
    assume_defaults = false
)]
pub trait StoragePool {
    /// The definition. Flags: 1 the one for the next start.
    #[zbus(name = "GetXMLDesc")]
    fn get_xml_desc(&self, flags: u32) -> zbus::Result<String>;

    /// State, capacity, allocation, available.
    fn get_info(&self) -> zbus::Result<(i32, u64, u64, u64)>;

    /// Started.
    #[zbus(property(emits_changed_signal = "false"))]
    fn active(&self) -> zbus::Result<bool>;

    /// Started with libvirt.
    #[zbus(property(emits_changed_signal = "false"))]
    fn autostart(&self) -> zbus::Result<bool>;

    /// Still there after a restart of libvirt.
    #[zbus(property(emits_changed_signal = "false"))]
    fn persistent(&self) -> zbus::Result<bool>;
}

/// systemd.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
pub trait Systemd {
    /// The state of units, in one call; loads those that are not loaded.
    fn list_units_by_names(&self, names: &[&str]) -> zbus::Result<Vec<ListedUnit>>;
}

/// logind.
#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
pub trait Logind {
    /// Holds shutdown or sleep back for as long as the descriptor is open.
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<OwnedFd>;

    /// A shutdown is under way.
    #[zbus(property(emits_changed_signal = "false"))]
    fn preparing_for_shutdown(&self) -> zbus::Result<bool>;
}

/// A proxy for an object, without a cache.
pub(super) async fn at<T>(connection: &Connection, path: OwnedObjectPath) -> zbus::Result<T>
where
    T: From<Proxy<'static>> + Defaults,
{
    let builder: Builder<'static, T> = Builder::new(connection);
    builder.path(path).cache_properties(CacheProperties::No).build().await
}

/// A proxy for the one object a service has, without a cache.
pub(super) async fn of<T>(connection: &Connection) -> zbus::Result<T>
where
    T: From<Proxy<'static>> + Defaults,
{
    let builder: Builder<'static, T> = Builder::new(connection);
    builder.cache_properties(CacheProperties::No).build().await
}
