//! Limits of migrations: set while a mount is held, and back to before.
//!
//! Keeps S9 (old limits are on disk before new ones are set, and are restored after a crash) and S11 (a
//! migration that cannot be held back is let finish, and waited for).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zbus::OwnedObjectPath;

use super::super::holds::{self, Policy};
use super::super::hypervisor::Hypervisor;
use super::super::inventory;
use super::super::limits::{Noted, Old};
use super::Worker;
use crate::core::Now;
use crate::core::phase::Phase;
use crate::libvirt::Error;
use crate::libvirt::job::Window;

/// While limits are changed, QEMU gets no more than this for the switchover: the least there is.
pub(super) const LEAST_DOWNTIME: Duration = Duration::from_millis(1);
/// A limit that does not keep a migration from its end by then never will: QEMU went on sending while it was set.
/// nasd has heard of it by then, too.
const IN_VAIN: Duration = Duration::from_secs(4);
/// Between two attempts to restore limits.
const AGAIN: Duration = Duration::from_secs(5);

impl<H: Hypervisor> Worker<H> {
    pub(super) fn policy(&self, now: Now, mount: &Path) -> Policy {
        let since = self.held.get(mount).copied().unwrap_or(now);
        let patience = self.settings.patience.saturating_sub(now.saturating_sub(since));
        let predicted = self.outages.get(mount).copied().unwrap_or_default();
        let (outage, grace) = (self.settings.outage.max(predicted), self.settings.grace);
        Policy {
            window: Window { starts_in: patience, outage, grace },
            caution: self.settings.caution,
            incoming: self.settings.incoming,
        }
    }

    pub(super) async fn hold_back(&mut self, now: Now, mount: &Path) {
        self.look_at_jobs(now, mount).await;
        self.let_go(now, mount).await;
        let policy = self.policy(now, mount);
        let limit = |guest: &inventory::Guest| {
            if self.let_go.contains(guest.path.as_str()) {
                return None;
            }
            let told = guest.told.as_ref()?;
            let job = told.job.as_ref().map(Option::as_ref).map_err(|_| ());
            let limited = self.limited.get(guest.path.as_str()).copied();
            let limit = holds::decide(job, told.state, limited, &policy).limit?;
            Some((guest.path.clone(), guest.name().to_owned(), limit))
        };
        let wanted: Vec<_> = self.inventory.on(mount).filter_map(limit).collect();
        for (path, name, limit) in wanted {
            self.slow_down(&path, &name, limit).await;
        }
    }

    /// Gives those their speed back that were slowed down too late: they would only last longer, and the
    /// storage waits for them in any case. Not before nasd has been told so for a while, and never once the
    /// storage is cut.
    async fn let_go(&mut self, now: Now, mount: &Path) {
        self.forget_let_go();
        if self.phases.get(mount) != Phase::Announced {
            return;
        }
        let mut policy = self.policy(now, mount);
        policy.window.starts_in = Duration::ZERO;
        let in_vain = |guest: &inventory::Guest| {
            let path = guest.path.as_str();
            let limited = *self.limited.get(path)?;
            let told_since = *self.blocked_since.get(path)?;
            let told = guest.told.as_ref()?;
            let job = told.job.as_ref().ok()?.as_ref()?;
            let decision = holds::decide(Ok(Some(job)), told.state, Some(limited), &policy);
            let vain = decision.block.is_some() && decision.limit.is_none();
            (vain && now.saturating_sub(told_since) >= IN_VAIN).then(|| path.to_owned())
        };
        let in_vain: BTreeSet<String> = self.inventory.on(mount).filter_map(in_vain).collect();
        // From here on it is waited for, whatever comes of the calls: the speed that libvirt tells is still that of
        // the limit, and would pass for a migration that lasts longer than the move.
        self.let_go.extend(in_vain);
        let due: Vec<Old> =
            self.ledger.all().filter(|old| self.let_go.contains(&old.path)).cloned().collect();
        for old in due {
            if self.put_back(&old).await {
                tracing::info!(guest = old.guest, "its migration is too near its end: let finish");
                self.forget(&old).await;
            }
        }
    }

    /// Those whose migration is over, or who are gone.
    fn forget_let_go(&mut self) {
        let ended = |path: &String| {
            let Some(guest) = self.inventory.get(path) else { return true };
            let over =
                |told: &inventory::Told| told.job == Ok(None) && !told.state.is_switching_over();
            guest.told.as_ref().is_some_and(over)
        };
        let ended: BTreeSet<String> = self.let_go.iter().filter(|p| ended(p)).cloned().collect();
        self.let_go.retain(|path| !ended.contains(path));
    }

    /// Since when nasd hears that a guest's migration stands in the way: as long as it is answered so.
    pub(super) fn note_blocked(&mut self, now: Now, mount: &Path, policy: &Policy) {
        let blocked = |guest: &inventory::Guest| {
            let told = guest.told.as_ref()?;
            let job = told.job.as_ref().map(Option::as_ref).map_err(|_| ());
            let limited = self.limited.get(guest.path.as_str()).copied();
            let block = holds::decide(job, told.state, limited, policy).block;
            block.map(|_| guest.path.as_str().to_owned())
        };
        let blocked: BTreeSet<String> = self.inventory.on(mount).filter_map(blocked).collect();
        let here: BTreeSet<String> =
            self.inventory.on(mount).map(|guest| guest.path.as_str().to_owned()).collect();
        self.blocked_since.retain(|path, _| blocked.contains(path) || !here.contains(path));
        for path in blocked {
            self.blocked_since.entry(path).or_insert(now);
        }
    }

    async fn slow_down(&mut self, path: &OwnedObjectPath, name: &str, limit: u64) {
        if self.limited.get(path.as_str()) == Some(&limit) {
            return;
        }
        match self.note(path, name).await {
            Ok(noted) => self.limit(noted, path, limit).await,
            Err(why) => {
                tracing::warn!(guest = name, why, "its migration is not slowed down");
                self.disk = Some(why);
            }
        }
    }

    /// The limits as they are, on disk.
    pub(super) async fn note(
        &mut self,
        path: &OwnedObjectPath,
        name: &str,
    ) -> std::result::Result<Noted, String> {
        let known = self.ledger.all().find(|old| old.path == path.as_str()).cloned();
        let old = match known {
            Some(old) => old,
            None => {
                let speed = self.hypervisor.speed(path).await.map_err(|error| error.to_string())?;
                Old {
                    path: path.as_str().to_owned(),
                    guest: name.to_owned(),
                    mib_per_second: speed,
                    downtime_ms: u64::try_from(self.settings.downtime.as_millis()).unwrap_or(300),
                }
            }
        };
        self.ledger.note(old).await.map_err(|error| error.to_string())
    }

    /// Sets a limit whose old value is on disk. It counts once libvirt has confirmed it.
    async fn limit(&mut self, noted: Noted, path: &OwnedObjectPath, limit: u64) {
        self.disk = None;
        if let Err(error) = self.hypervisor.set_speed(path, limit).await {
            tracing::warn!(guest = noted.path(), %error, "its migration is not slowed down");
            return;
        }
        self.limited.insert(path.as_str().to_owned(), limit);
        tracing::info!(
            guest = noted.path(),
            mib_per_second = limit,
            "its migration is slowed down"
        );
        // The speed alone holds by the bytes that are left; this only keeps QEMU from ending early.
        if let Err(error) = self.hypervisor.set_downtime(path, LEAST_DOWNTIME).await {
            tracing::warn!(guest = noted.path(), %error, "its downtime limit is as before");
        }
    }

    pub(super) async fn end_long_holds(&mut self, now: Now) {
        let longest = self.settings.longest_hold;
        let over = self.held.iter().filter(|(_, since)| now.saturating_sub(**since) >= longest);
        let over: Vec<PathBuf> = over.map(|(mount, _)| mount.clone()).collect();
        for mount in over {
            tracing::warn!(mount = %mount.display(), "a hold was not ended in time: it ends now");
            self.release(now, &mount).await;
        }
    }

    // ---- back to before ----

    pub(super) async fn release(&mut self, now: Now, mount: &Path) {
        self.held.remove(mount);
        let here: Vec<String> =
            self.inventory.on(mount).map(|guest| guest.path.as_str().to_owned()).collect();
        for path in here {
            self.let_go.remove(&path);
            self.blocked_since.remove(&path);
        }
        self.outages.remove(mount);
        self.restore(now).await;
    }

    /// Restores all limits but those of guests on a mount that is held. Whose mount is not known
    /// waits until none is held.
    pub(super) async fn restore(&mut self, now: Now) {
        self.restore_at = now.saturating_add(AGAIN);
        let mut kept: BTreeSet<String> = BTreeSet::new();
        for mount in self.held.keys() {
            kept.extend(self.inventory.on(mount).map(|guest| guest.path.as_str().to_owned()));
        }
        let unheld = |old: &&Old| {
            let known = self.inventory.get(&old.path).is_some() || self.held.is_empty();
            known && !kept.contains(&old.path)
        };
        let due: Vec<Old> = self.ledger.all().filter(unheld).cloned().collect();
        for old in due {
            if self.inventory.is_gone(now, &old.path) {
                tracing::info!(
                    guest = old.guest,
                    "it is gone from this host, and its old limits too"
                );
                self.forget(&old).await;
            } else if self.put_back(&old).await {
                tracing::info!(guest = old.guest, "the limits of its migrations are as before");
                self.forget(&old).await;
            }
        }
    }

    /// Whether a guest's limits are as before. The downtime belongs to a running migration: where none
    /// runs any more, libvirt has reset it.
    pub(super) async fn put_back(&mut self, old: &Old) -> bool {
        // Whatever comes of the calls, nobody may count on the limit any more.
        self.limited.remove(&old.path);
        let Ok(path) = OwnedObjectPath::try_from(old.path.clone()) else {
            // Not a name that libvirt ever gave: nothing can be restored by it.
            return true;
        };
        if let Err(error) = self.hypervisor.set_speed(&path, old.mib_per_second).await {
            tracing::warn!(guest = old.guest, %error, "the limits of its migrations stay for now");
            return false;
        }
        let downtime = Duration::from_millis(old.downtime_ms);
        match self.hypervisor.set_downtime(&path, downtime).await {
            Ok(()) => true,
            Err(Error::Refused { .. }) => {
                matches!(self.hypervisor.job(&path).await, Ok(None))
            }
            Err(_) => false,
        }
    }

    async fn forget(&mut self, old: &Old) {
        self.limited.remove(&old.path);
        if let Err(error) = self.ledger.forget(&old.path).await {
            tracing::warn!(guest = old.guest, %error, "its old limits are restored, and still on disk");
        }
    }
}
