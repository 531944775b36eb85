//! What the guests' task asks of libvirt: a small trait, so that its tests have a libvirt that fails
//! where they want it to. Every method has a deadline of its own (S10).

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use zbus::OwnedObjectPath;

use super::inventory::Told;
use crate::libvirt::bridge::Bridge;
use crate::libvirt::job::Job;
use crate::libvirt::state::DomainState;
use crate::libvirt::{Error, Result};

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
        let job = job_of(Self::job(self, path).await);
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

/// libvirt's own words where a migration arrives (`qemuDomainGetJobStatsInternal`). A libvirt that speaks another
/// language is not understood, and the storage waits until the guest has arrived (S12).
const ARRIVES: &str = "only on the source host";

/// What an answer about a guest's job says of it: one that arrives has no statistics, and libvirt refuses to tell
/// any.
pub(super) fn job_of(answer: Result<Option<Job>>) -> std::result::Result<Option<Job>, String> {
    match answer {
        Ok(job) => Ok(job),
        Err(Error::Refused { message, .. }) if message.contains(ARRIVES) => {
            Ok(Some(Job::arriving()))
        }
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::job::Operation;

    #[test]
    fn a_guest_that_arrives_is_known_by_the_refusal() {
        let refused = |words: &str| {
            let message = words.to_owned();
            Err(Error::Refused { call: "Domain.GetJobStats", message })
        };
        let of = |answer| job_of(answer).map(|job| job.map(|job| job.operation));
        let english =
            "Operation not supported: migration statistics are available only on the source host";
        assert_eq!(of(refused(english)), Ok(Some(Operation::MigrationIn)));
        assert!(of(refused("autrement")).is_err(), "S12");
        let limit = Duration::from_secs(2);
        let hangs = Error::Deadline { service: "org.libvirt", call: "Domain.GetJobStats", limit };
        assert!(of(Err(hangs)).is_err(), "S12");
    }
}
