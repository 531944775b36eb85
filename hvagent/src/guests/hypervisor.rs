//! What the guests' task asks of libvirt: a small trait, so that its tests have a libvirt that fails
//! where they want it to. Every method has a deadline of its own (S10).

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use zbus::OwnedObjectPath;

use super::inventory::Told;
use crate::libvirt::Result;
use crate::libvirt::bridge::Bridge;
use crate::libvirt::job::Job;
use crate::libvirt::state::DomainState;

/// libvirt, as far as the guests' task needs it.
pub trait Hypervisor: Clone + Send + Sync + 'static {
    /// The guests that have a process.
    fn guests(&self) -> impl Future<Output = Result<Vec<OwnedObjectPath>>> + Send;
    /// Everything of one guest. A job that is not told is told as such.
    fn guest(&self, path: &OwnedObjectPath) -> impl Future<Output = Result<Told>> + Send;
    /// What may change from second to second.
    fn state(&self, path: &OwnedObjectPath) -> impl Future<Output = Result<DomainState>> + Send;
    /// The guest's job.
    fn job(&self, path: &OwnedObjectPath) -> impl Future<Output = Result<Option<Job>>> + Send;
    /// The limit of migrations in MiB/s.
    fn speed(&self, path: &OwnedObjectPath) -> impl Future<Output = Result<u64>> + Send;
    /// Sets it.
    fn set_speed(
        &self,
        path: &OwnedObjectPath,
        mib_per_second: u64,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Sets the longest downtime of the running migration.
    fn set_downtime(
        &self,
        path: &OwnedObjectPath,
        downtime: Duration,
    ) -> impl Future<Output = Result<()>> + Send;
    /// Lets a paused guest go on.
    fn resume(&self, path: &OwnedObjectPath) -> impl Future<Output = Result<()>> + Send;
    /// The directories of pools, by their names.
    fn pools(&self) -> impl Future<Output = Result<BTreeMap<String, String>>> + Send;
    /// The bridge or libvirt was started anew: calls that hung are gone.
    fn restarted(&self);
}

impl Hypervisor for Bridge {
    async fn guests(&self) -> Result<Vec<OwnedObjectPath>> {
        self.domains().await
    }

    async fn guest(&self, path: &OwnedObjectPath) -> Result<Told> {
        let domain = self.domain(path).await?;
        let state = Self::state(self, path).await?;
        let job = Self::job(self, path).await.map_err(|error| error.to_string());
        Ok(Told { domain, state, job })
    }

    async fn state(&self, path: &OwnedObjectPath) -> Result<DomainState> {
        Self::state(self, path).await
    }

    async fn job(&self, path: &OwnedObjectPath) -> Result<Option<Job>> {
        Self::job(self, path).await
    }

    async fn speed(&self, path: &OwnedObjectPath) -> Result<u64> {
        self.max_speed(path).await
    }

    async fn set_speed(&self, path: &OwnedObjectPath, mib_per_second: u64) -> Result<()> {
        self.set_max_speed(path, mib_per_second).await
    }

    async fn set_downtime(&self, path: &OwnedObjectPath, downtime: Duration) -> Result<()> {
        self.set_max_downtime(path, downtime).await
    }

    async fn resume(&self, path: &OwnedObjectPath) -> Result<()> {
        Self::resume(self, path).await
    }

    async fn pools(&self) -> Result<BTreeMap<String, String>> {
        let mut directories = BTreeMap::new();
        for path in Self::pools(self).await? {
            let definition = self.pool(&path).await?.definition;
            directories.extend(definition.target.map(|target| (definition.name, target)));
        }
        Ok(directories)
    }

    fn restarted(&self) {
        Self::restarted(self);
    }
}
