//! libvirt over libvirt-dbus: every call has a deadline, and none is made while libvirt hangs (S10).
//!
//! A call that is given up goes on in the bridge and holds one of its threads. It is therefore
//! still waited for, by a task of its own, so that the [`Breaker`] knows how many threads are held. At most
//! `TOGETHER` calls are under way and the breaker's few are outstanding: the agent never takes the whole
//! bridge.
//!
//! Its errors carry a message and no code. Nothing here reads the words: after a refusal, ask for the state.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};
use zbus::{Connection, OwnedObjectPath};

use super::breaker::{Breaker, Health, Policy, Refused, Ticket};
use super::domain::Domain;
use super::error::{Error, Result};
use super::job::Job;
use super::pool::Pool;
use super::proxy::{self, ConnectProxy, DomainProxy, LIBVIRT, StoragePoolProxy};
use super::state::{BlockJob, Control, DomainState};
use crate::core::Now;

/// Calls under way at once. The bridge has four threads.
const TOGETHER: usize = 2;
/// `VIR_CONNECT_LIST_DOMAINS_ACTIVE`.
const ACTIVE: u32 = 1;

/// How long calls may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Questions.
    pub ask: Duration,
    /// Orders, which wait for QEMU.
    pub act: Duration,
}

impl Default for Limits {
    /// Two seconds for questions and ten for orders.
    fn default() -> Self {
        Self { ask: Duration::from_secs(2), act: Duration::from_secs(10) }
    }
}

/// The bridge. Clones share the breaker.
#[derive(Debug, Clone)]
pub struct Bridge {
    connection: Connection,
    limits: Limits,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    breaker: Mutex<Breaker>,
    slots: Semaphore,
    origin: Instant,
}

/// The host as libvirt knows it. Versions: 1 000 000 major + 1000 minor + release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// libvirt's version.
    pub libvirt: u64,
    /// QEMU's version.
    pub qemu: u64,
    /// Free memory in bytes.
    pub free_memory: u64,
}

/// A pool as libvirt knows it. Whether it is mounted is for the mount table to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolView {
    /// Its definition.
    pub definition: Pool,
    /// Started.
    pub active: bool,
    /// Started with libvirt.
    pub autostart: bool,
    /// Still there after a restart of libvirt.
    pub persistent: bool,
}

/// Whether a host can run a processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuMatch {
    /// It lacks something.
    Incompatible,
    /// It is just that.
    Identical,
    /// It has all of it and more.
    Superset,
    /// libvirt could not tell.
    Unknown,
}

impl Bridge {
    /// A bridge over a connection to the system bus.
    #[must_use]
    pub fn new(connection: Connection, limits: Limits, policy: Policy) -> Self {
        let breaker = Mutex::new(Breaker::new(policy));
        let (slots, origin) = (Semaphore::new(TOGETHER), Instant::now());
        Self { connection, limits, shared: Arc::new(Shared { breaker, slots, origin }) }
    }

    /// Whether calls are made at present.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared.breaker().health()
    }

    /// Calls given up and not answered since.
    #[must_use]
    pub fn outstanding(&self) -> u32 {
        self.shared.breaker().outstanding()
    }

    /// The bridge or libvirtd was restarted: what hung is gone.
    pub fn restarted(&self) {
        self.shared.breaker().restarted();
    }

    /// The host. Also the cheapest way to see whether libvirt lives.
    pub async fn host(&self) -> Result<Host> {
        let libvirt = self.connect("LibVersion", async |proxy| proxy.lib_version().await).await?;
        Ok(Host {
            name: self.connect("Hostname", async |proxy| proxy.hostname().await).await?,
            libvirt,
            qemu: self.connect("Version", async |proxy| proxy.version().await).await?,
            free_memory: self
                .connect("NodeGetFreeMemory", async |proxy| proxy.node_get_free_memory().await)
                .await?,
        })
    }

    /// Whether this host can run a guest's processor, given as in the guest's definition.
    pub async fn compare_cpu(&self, xml: String) -> Result<CpuMatch> {
        let answer =
            self.connect("CompareCPU", async move |proxy| proxy.compare_cpu(&xml, 0).await).await?;
        Ok(match answer {
            0 => CpuMatch::Incompatible,
            1 => CpuMatch::Identical,
            2 => CpuMatch::Superset,
            _ => CpuMatch::Unknown,
        })
    }

    /// The host's processor and the machines it can be, as libvirt's XML.
    pub async fn capabilities(&self) -> Result<String> {
        self.connect("GetCapabilities", async |proxy| proxy.get_capabilities().await).await
    }

    /// What guests of a kind (`kvm`, `qemu`) can be given, as libvirt's XML.
    pub async fn domain_capabilities(&self, virt_type: String) -> Result<String> {
        let ask = async move |proxy: ConnectProxy<'static>| {
            proxy.get_domain_capabilities("", "", "", &virt_type, 0).await
        };
        self.connect("GetDomainCapabilities", ask).await
    }

    /// The guests that have a process, running or paused.
    pub async fn domains(&self) -> Result<Vec<OwnedObjectPath>> {
        self.connect("ListDomains", async |proxy| proxy.list_domains(ACTIVE).await).await
    }

    /// The guest of that name.
    pub async fn find_domain(&self, name: String) -> Result<OwnedObjectPath> {
        let call = "DomainLookupByName";
        self.connect(call, async move |proxy| proxy.domain_lookup_by_name(&name).await).await
    }

    /// A guest's definition, as it runs.
    pub async fn domain(&self, path: &OwnedObjectPath) -> Result<Domain> {
        let xml = self.ask(path, "Domain.GetXMLDesc", async |proxy| proxy.get_xml_desc(0).await);
        Domain::parse(&xml.await?)
    }

    /// A guest's state.
    pub async fn state(&self, path: &OwnedObjectPath) -> Result<DomainState> {
        let state = self.ask(path, "Domain.GetState", async |proxy| proxy.get_state(0).await);
        state.await.map(DomainState::of)
    }

    /// What libvirt's connection to a guest's QEMU does.
    pub async fn control(&self, path: &OwnedObjectPath) -> Result<Control> {
        let call = "Domain.GetControlInfo";
        let info = self.ask(path, call, async |proxy| proxy.get_control_info(0).await);
        info.await.map(Control::of)
    }

    /// A guest's job, if one runs.
    pub async fn job(&self, path: &OwnedObjectPath) -> Result<Option<Job>> {
        let call = "Domain.GetJobStats";
        let stats = self.ask(path, call, async |proxy| proxy.get_job_stats(0).await);
        stats.await.map(|(kind, params)| Job::of(kind, &params))
    }

    /// A disk's job, if one runs.
    pub async fn block_job(
        &self,
        path: &OwnedObjectPath,
        disk: String,
    ) -> Result<Option<BlockJob>> {
        let call = "Domain.GetBlockJobInfo";
        let info =
            async move |proxy: DomainProxy<'static>| proxy.get_block_job_info(&disk, 0).await;
        self.ask(path, call, info).await.map(BlockJob::of)
    }

    /// Disks of a guest that have failed, by their names.
    pub async fn disk_errors(&self, path: &OwnedObjectPath) -> Result<Vec<String>> {
        let call = "Domain.GetDiskErrors";
        let errors = self.ask(path, call, async |proxy| proxy.get_disk_errors(0).await).await?;
        Ok(errors.into_iter().map(|(disk, _)| disk).collect())
    }

    /// The limit of a guest's migrations in MiB/s: write it down before changing it.
    pub async fn max_speed(&self, path: &OwnedObjectPath) -> Result<u64> {
        let call = "Domain.MigrateGetMaxSpeed";
        self.ask(path, call, async |proxy| proxy.migrate_get_max_speed(0).await).await
    }

    /// Limits a guest's migrations, the running one too.
    pub async fn set_max_speed(&self, path: &OwnedObjectPath, mib_per_second: u64) -> Result<()> {
        let set = async move |proxy: DomainProxy<'static>| {
            proxy.migrate_set_max_speed(mib_per_second, 0).await
        };
        self.act(path, "Domain.MigrateSetMaxSpeed", set).await
    }

    /// How long a guest may stand still for the running migration's switchover. Whole milliseconds.
    pub async fn set_max_downtime(&self, path: &OwnedObjectPath, downtime: Duration) -> Result<()> {
        let millis = u64::try_from(downtime.as_millis()).unwrap_or(u64::MAX);
        let set = async move |proxy: DomainProxy<'static>| {
            proxy.migrate_set_max_downtime(millis, 0).await
        };
        self.act(path, "Domain.MigrateSetMaxDowntime", set).await
    }

    /// Ends a guest's job. Never for a post-copy.
    pub async fn abort_job(&self, path: &OwnedObjectPath) -> Result<()> {
        self.act(path, "Domain.AbortJob", async |proxy| proxy.abort_job().await).await
    }

    /// Lets a paused guest go on. May wait for opens on its storage: only after they are back.
    pub async fn resume(&self, path: &OwnedObjectPath) -> Result<()> {
        self.act(path, "Domain.Resume", async |proxy| proxy.resume().await).await
    }

    /// The pools.
    pub async fn pools(&self) -> Result<Vec<OwnedObjectPath>> {
        let call = "ListStoragePools";
        self.connect(call, async |proxy| proxy.list_storage_pools(0).await).await
    }

    /// A pool.
    pub async fn pool(&self, path: &OwnedObjectPath) -> Result<PoolView> {
        let xml =
            self.of_pool(path, "StoragePool.GetXMLDesc", async |pool| pool.get_xml_desc(0).await);
        let definition = Pool::parse(&xml.await?)?;
        let active = self.of_pool(path, "StoragePool.Active", async |pool| pool.active().await);
        let active = active.await?;
        let autostart =
            self.of_pool(path, "StoragePool.Autostart", async |pool| pool.autostart().await);
        let autostart = autostart.await?;
        let persistent =
            self.of_pool(path, "StoragePool.Persistent", async |pool| pool.persistent().await);
        Ok(PoolView { definition, active, autostart, persistent: persistent.await? })
    }
}

/// One call, boxed, as it outlives the one who asked for it.
macro_rules! through {
    ($name:ident, $proxy:ty, $limit:ident) => {
        async fn $name<T, F, R>(
            &self,
            path: &OwnedObjectPath,
            call: &'static str,
            then: F,
        ) -> Result<T>
        where
            T: Send + 'static,
            F: FnOnce($proxy) -> R + Send + 'static,
            R: Future<Output = zbus::Result<T>> + Send + 'static,
        {
            let (connection, path) = (self.connection.clone(), path.clone());
            let whole = async move { then(proxy::at::<$proxy>(&connection, path).await?).await };
            self.call(call, self.limits.$limit, whole).await
        }
    };
}

impl Bridge {
    through!(ask, DomainProxy<'static>, ask);
    through!(act, DomainProxy<'static>, act);
    through!(of_pool, StoragePoolProxy<'static>, ask);

    async fn connect<T, F, R>(&self, call: &'static str, then: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(ConnectProxy<'static>) -> R + Send + 'static,
        R: Future<Output = zbus::Result<T>> + Send + 'static,
    {
        let connection = self.connection.clone();
        let whole =
            async move { then(proxy::of::<ConnectProxy<'static>>(&connection).await?).await };
        self.call(call, self.limits.ask, whole).await
    }

    async fn call<T, F>(&self, call: &'static str, limit: Duration, future: F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = zbus::Result<T>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        // A task of its own: it must give its ticket back even if nobody waits for it any more.
        tokio::spawn(async move { shared.attempt(call, limit, future, reply).await });
        answer
            .await
            .unwrap_or_else(|_| Err(Error::Bus { call, message: "it was given up".to_owned() }))
    }
}

impl Shared {
    async fn attempt<T, F>(
        &self,
        call: &'static str,
        limit: Duration,
        future: F,
        reply: oneshot::Sender<Result<T>>,
    ) where
        F: Future<Output = zbus::Result<T>> + Send,
    {
        let until = Instant::now() + limit;
        let Ok(Ok(slot)) = timeout_at(until, self.slots.acquire()).await else {
            let outstanding = self.breaker().outstanding();
            let _ = reply.send(Err(Error::Open { call, outstanding, wait: Duration::ZERO }));
            return;
        };
        let ticket = match self.permit(call) {
            Ok(ticket) => ticket,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        let mut future = std::pin::pin!(future);
        if let Ok(result) = timeout_at(until, &mut future).await {
            self.breaker().answered(ticket);
            let _ = reply.send(result.map_err(|error| Error::of_bus(LIBVIRT, call, &error)));
            return;
        }
        let now = self.now();
        self.breaker().given_up(ticket, now);
        tracing::warn!(call, ?limit, "libvirt does not answer");
        let _ = reply.send(Err(Error::Deadline { service: LIBVIRT, call, limit }));
        drop(slot);
        let _ = future.await;
        self.breaker().late_answer(ticket);
    }

    fn permit(&self, call: &'static str) -> Result<Ticket> {
        let now = self.now();
        self.breaker().ask(now).map_err(|Refused { outstanding, wait }| Error::Open {
            call,
            outstanding,
            wait,
        })
    }

    fn now(&self) -> Now {
        self.origin.elapsed()
    }

    /// The breaker's state is whole between any two statements of its own: a panic elsewhere while it
    /// is locked does not spoil it.
    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "bridge_tests.rs"]
mod tests;
