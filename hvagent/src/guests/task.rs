//! The one task that owns what is known of guests and what was changed about them.
//!
//! It works orders off one after the other; each call of libvirt has a deadline, and a libvirt that
//! hangs is soon not called any more, so an order waits for seconds at most. Whoever gave it may give
//! up waiting: nothing depends on that. A hold ends by [`Settings::longest_hold`] even if nobody ends it
//! (S11). While a mount is silent, libvirt is not asked about its guests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;
use zbus::OwnedObjectPath;

use super::holds::{self, Incoming, Policy};
use super::hypervisor::Hypervisor;
use super::inventory::{self, Ask, Inventory, RESYNC, Told};
use super::leases::{self, Places};
use super::limits::{self, Ledger, Noted, Old};
use super::proc::Qemu;
use super::readiness::{self, View};
use super::rounds::{Candidate, Phases, Run, Tries};
use super::stall::Meter;
use crate::core::Now;
use crate::core::phase::{Phase, Timing};
use crate::drive::hands::{GuestStall, Readiness};
use crate::libvirt::events::{Event, Lost};
use crate::libvirt::job::{Caution, Window};
use crate::libvirt::{Error, Result};

/// While limits are changed, QEMU gets no more than this for the switchover: the least there is.
const LEAST_DOWNTIME: Duration = Duration::from_millis(1);
/// Between two attempts to restore limits.
const AGAIN: Duration = Duration::from_secs(5);

/// The task's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The stall that a move is expected to cost, for migrations and leases.
    pub outage: Duration,
    /// How long new opens may wait after it.
    pub grace: Duration,
    /// From the beginning of a hold, so long migrations that are nearly over are let finish.
    pub patience: Duration,
    /// How careful migrations are judged.
    pub caution: Caution,
    /// Who decides on migrations that arrive here.
    pub incoming: Incoming,
    /// The downtime limit to restore: libvirt-dbus cannot be asked for it.
    pub downtime: Duration,
    /// A lease must last longer than the outage by so much.
    pub lease_safety: Duration,
    /// A hold that nobody ends, ends then.
    pub longest_hold: Duration,
    /// Between a resume and the look whether the guest still runs.
    pub look_again: Duration,
    /// A verification tells what it knows by then; resumes go on. Less than the caller waits.
    pub verify: Duration,
    /// After the start, before limits left by an earlier agent are restored: nasd may announce the
    /// move anew that they were made for.
    pub settle: Duration,
    /// Where old limits are kept.
    pub limits: PathBuf,
    /// Where sanlock and libvirt's configuration are.
    pub places: Places,
}

impl Default for Settings {
    /// A measured move stalls for under a second and a takeover for a few; grace ends as soon as all
    /// clients have reclaimed, at the latest one lease later where one of them is idle. QEMU's own
    /// downtime limit is 300 ms.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            outage: seconds(5),
            grace: seconds(15),
            patience: seconds(10),
            caution: Caution::default(),
            incoming: Incoming::SourceDecides,
            downtime: Duration::from_millis(300),
            lease_safety: seconds(5),
            longest_hold: Timing::default().longest_hold,
            look_again: seconds(5),
            verify: seconds(7),
            settle: seconds(5),
            limits: limits::FILE.into(),
            places: Places::default(),
        }
    }
}

/// What is asked of the task.
#[derive(Debug)]
pub(super) enum Order {
    Hold(PathBuf, oneshot::Sender<()>),
    Release(PathBuf, oneshot::Sender<()>),
    Ready(PathBuf, Duration, oneshot::Sender<Readiness>),
    Resume(PathBuf),
    Verify(PathBuf, oneshot::Sender<Vec<String>>),
    Stalls(PathBuf, oneshot::Sender<Vec<GuestStall>>),
    Mounts(Vec<PathBuf>),
    Phase(PathBuf, Phase),
    StartWaits(Duration),
    Reachable(oneshot::Sender<std::result::Result<(), String>>),
    Event(Event),
    Seen(Now, Vec<Qemu>),
    Tick,
}

/// The state. `H` is libvirt.
#[derive(Debug)]
pub(super) struct Worker<H> {
    hypervisor: H,
    settings: Settings,
    inventory: Inventory,
    ledger: Ledger,
    meter: Meter,
    phases: Phases,
    /// Mounts whose phases are told: nothing is concluded from the calls then.
    phase_told: BTreeSet<PathBuf>,
    tries: Tries,
    /// Mounts that are held, since when.
    held: BTreeMap<PathBuf, Now>,
    /// Limits in MiB/s that are in force because they were set and confirmed.
    limited: BTreeMap<String, u64>,
    /// Why the last limit could not be put on disk.
    disk: Option<String>,
    resync_at: Now,
    restore_at: Now,
    quiet_until: Now,
}

impl<H: Hypervisor> Worker<H> {
    pub(super) fn new(now: Now, hypervisor: H, settings: Settings, ledger: Ledger) -> Self {
        Self {
            hypervisor,
            restore_at: now.saturating_add(settings.settle),
            settings,
            inventory: Inventory::default(),
            ledger,
            meter: Meter::default(),
            phases: Phases::default(),
            phase_told: BTreeSet::new(),
            tries: Tries::default(),
            held: BTreeMap::new(),
            limited: BTreeMap::new(),
            disk: None,
            resync_at: now,
            quiet_until: now,
        }
    }

    /// Whether samples must be dense.
    pub(super) fn is_busy(&self) -> bool {
        !self.held.is_empty()
    }

    /// Works one order off.
    pub(super) async fn take(&mut self, now: Now, order: Order) {
        match order {
            Order::Hold(mount, done) => {
                self.hold(now, mount).await;
                let _ = done.send(());
            }
            Order::Release(mount, done) => {
                self.release(now, &mount).await;
                let _ = done.send(());
            }
            Order::Ready(mount, within, answer) => {
                let _ = answer.send(self.ready(now, &mount, within).await);
            }
            Order::Resume(mount) => {
                let run = self.run(mount);
                tokio::spawn(run.go());
            }
            Order::Verify(mount, answer) => self.verify(now, mount, answer).await,
            Order::Stalls(mount, answer) => {
                let _ = answer.send(self.stalls(now, &mount));
            }
            Order::Mounts(points) => self.inventory.mounts(points),
            Order::Phase(mount, phase) => {
                self.phases.set(&mount, phase);
                self.phase_told.insert(mount);
            }
            Order::StartWaits(time) => {
                self.quiet_until = self.quiet_until.max(now.saturating_add(time));
            }
            Order::Reachable(answer) => {
                let _ = answer.send(self.inventory.doubt(now).map_or(Ok(()), Err));
            }
            Order::Event(event) => self.event(now, event).await,
            Order::Seen(at, seen) => {
                self.meter.sample(at, &seen);
                self.inventory.processes(at, seen);
            }
            Order::Tick => self.tick(now).await,
        }
    }

    async fn tick(&mut self, now: Now) {
        self.end_long_holds(now).await;
        if now >= self.resync_at && now >= self.quiet_until {
            self.resync(now).await;
        }
        let speaks = |mount: &&PathBuf| !self.is_silent(mount);
        let held: Vec<PathBuf> = self.held.keys().filter(speaks).cloned().collect();
        for mount in &held {
            self.hold_back(now, mount).await;
        }
        if now >= self.restore_at {
            self.restore(now).await;
        }
    }

    /// The storage does not answer: neither will a libvirt that is asked about its guests.
    fn is_silent(&self, mount: &Path) -> bool {
        matches!(self.phases.get(mount), Phase::Moving)
    }

    // ---- what is known ----

    async fn event(&mut self, now: Now, event: Event) {
        match inventory::wanted(&event) {
            Ask::Nothing => {}
            Ask::One(path) => drop(self.look(now, &path).await),
            Ask::All => {
                if event != Event::Resync(Lost::Overrun) {
                    self.hypervisor.restarted();
                }
                self.resync_at = now;
            }
        }
    }

    /// Asks for everything. At the first call that hangs it stops: what is known stays, as old.
    async fn resync(&mut self, now: Now) {
        self.resync_at = now.saturating_add(RESYNC);
        let listed = match self.hypervisor.guests().await {
            Ok(listed) => listed,
            Err(error) => return self.doubt(now, &error),
        };
        self.inventory.listed(now, &listed);
        for path in &listed {
            if self.look(now, path).await.is_err() {
                return;
            }
        }
        if self.inventory.needs_pools() {
            match self.hypervisor.pools().await {
                Ok(pools) => self.inventory.pools(pools),
                Err(error) => tracing::warn!(%error, "the directories of pools are not known"),
            }
        }
    }

    /// Everything about one guest. A guest that libvirt refuses to speak of may be gone: the next
    /// list tells.
    async fn look(&mut self, now: Now, path: &OwnedObjectPath) -> Result<()> {
        match self.hypervisor.guest(path).await {
            Ok(told) => {
                self.inventory.told(now, path.clone(), told);
                Ok(())
            }
            Err(error) if concerns_one(&error) => {
                self.resync_at = self.resync_at.min(now.saturating_add(Duration::from_secs(1)));
                Ok(())
            }
            Err(error) => {
                self.doubt(now, &error);
                Err(error)
            }
        }
    }

    /// libvirt fails: asked again soon, by a call that the breaker may forbid.
    fn doubt(&mut self, now: Now, error: &Error) {
        self.inventory.failed(error.to_string());
        self.resync_at = self.resync_at.min(now.saturating_add(AGAIN));
    }

    /// What may have changed of a mount's guests since a second ago. An answer that does not come makes
    /// the old one unknown (S12).
    async fn look_at_jobs(&mut self, now: Now, mount: &Path) {
        let known = |guest: &inventory::Guest| {
            guest.told.clone().map(|told| (guest.path.clone(), told.domain))
        };
        let guests: Vec<_> = self.inventory.on(mount).filter_map(known).collect();
        let mut left = false;
        for (path, domain) in guests {
            match self.hypervisor.state(&path).await {
                Ok(state) => {
                    let job = self.hypervisor.job(&path).await.map_err(|error| error.to_string());
                    self.inventory.told(now, path, Told { domain, state, job });
                }
                Err(error) if concerns_one(&error) => left = true,
                Err(error) => return self.doubt(now, &error),
            }
        }
        if left {
            self.refresh(now).await;
        }
    }

    /// The list anew, unless it would hang on a guest whose start waits.
    async fn refresh(&mut self, now: Now) {
        if now >= self.quiet_until {
            self.resync(now).await;
        }
    }

    // ---- holds ----

    async fn hold(&mut self, now: Now, mount: PathBuf) {
        if !self.held.contains_key(&mount) {
            self.begin(now, &mount).await;
        }
        if !self.is_silent(&mount) {
            self.hold_back(now, &mount).await;
        }
    }

    async fn begin(&mut self, now: Now, mount: &Path) {
        self.held.insert(mount.to_owned(), now);
        // A run of the move before may still hold the old ones, and ends by itself.
        self.tries = Tries::default();
        self.conclude(mount, Phase::Announced);
        let names = self.inventory.names(mount);
        self.meter.done(&names);
        self.meter.cut(now, &names);
        if self.inventory.doubt(now).is_some() {
            self.refresh(now).await;
        }
    }

    /// Where nobody tells phases, the calls say enough of them.
    fn conclude(&self, mount: &Path, phase: Phase) {
        if !self.phase_told.contains(mount) {
            self.phases.set(mount, phase);
        }
    }

    fn policy(&self, now: Now, mount: &Path) -> Policy {
        let since = self.held.get(mount).copied().unwrap_or(now);
        let patience = self.settings.patience.saturating_sub(now.saturating_sub(since));
        let (outage, grace) = (self.settings.outage, self.settings.grace);
        Policy {
            window: Window { starts_in: patience, outage, grace },
            caution: self.settings.caution,
            incoming: self.settings.incoming,
        }
    }

    async fn hold_back(&mut self, now: Now, mount: &Path) {
        self.look_at_jobs(now, mount).await;
        let policy = self.policy(now, mount);
        let limit = |guest: &inventory::Guest| {
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
    async fn note(
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

    async fn end_long_holds(&mut self, now: Now) {
        let longest = self.settings.longest_hold;
        let over = self.held.iter().filter(|(_, since)| now.saturating_sub(**since) >= longest);
        let over: Vec<PathBuf> = over.map(|(mount, _)| mount.clone()).collect();
        for mount in over {
            tracing::warn!(mount = %mount.display(), "a hold was not ended in time: it ends now");
            self.release(now, &mount).await;
        }
    }

    // ---- back to before ----

    async fn release(&mut self, now: Now, mount: &Path) {
        // A release ends a move that was verified, or one that was not made.
        let phase = self.phases.get(mount);
        let ended = if phase == Phase::OpensBack { Phase::Verified } else { Phase::Normal };
        if self.held.remove(mount).is_some() {
            self.conclude(mount, ended);
        }
        self.restore(now).await;
    }

    /// Restores all limits but those of guests on a mount that is held. Whose mount is not known
    /// waits until none is held.
    async fn restore(&mut self, now: Now) {
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
    async fn put_back(&self, old: &Old) -> bool {
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

    // ---- answers ----

    async fn ready(&mut self, now: Now, mount: &Path, within: Duration) -> Readiness {
        if self.inventory.doubt(now).is_some() {
            self.refresh(now).await;
        }
        self.look_at_jobs(now, mount).await;
        let leases = leases::ask(&self.settings.places).await;
        let mut policy = self.policy(now, mount);
        policy.window.starts_in = policy.window.starts_in.min(within);
        let view = View {
            inventory: &self.inventory,
            limited: &self.limited,
            leases: &leases,
            policy,
            safety: self.settings.lease_safety,
            disk: self.disk.as_deref(),
        };
        readiness::judge(&view, mount, now)
    }

    fn stalls(&self, now: Now, mount: &Path) -> Vec<GuestStall> {
        let stalls = self.meter.stalls(now, &self.inventory.names(mount));
        stalls.into_iter().map(|s| GuestStall { guest: s.guest, stall: s.length }).collect()
    }

    /// Resumes who is still paused, in a task of its own, and tells what is wrong then.
    async fn verify(&mut self, now: Now, mount: PathBuf, answer: oneshot::Sender<Vec<String>>) {
        if self.inventory.doubt(now).is_some() {
            self.refresh(now).await;
        }
        let doubt = self.inventory.doubt_about(&mount, now);
        let (run, limit) = (tokio::spawn(self.run(mount).go()), self.settings.verify);
        tokio::spawn(async move {
            let mut problems = match tokio::time::timeout(limit, run).await {
                Ok(Ok(problems)) => problems,
                _ => vec![
                    "guests paused by errors of their disks are still being resumed".to_owned(),
                ],
            };
            problems.extend(doubt);
            let _ = answer.send(problems);
        });
    }

    fn run(&self, mount: PathBuf) -> Run<H> {
        let candidate = |guest: &inventory::Guest| Candidate {
            path: guest.path.clone(),
            name: guest.name().to_owned(),
        };
        // Whoever asks has seen opens succeed: without that nobody asks for a resume.
        self.conclude(&mount, Phase::OpensBack);
        Run {
            hypervisor: self.hypervisor.clone(),
            guests: self.inventory.on(&mount).map(candidate).collect(),
            mount,
            phases: self.phases.clone(),
            places: self.settings.places.clone(),
            tries: Tries::clone(&self.tries),
            look_again: self.settings.look_again,
        }
    }
}

/// Whether an error speaks of one guest only, which may be gone, and libvirt answers otherwise.
const fn concerns_one(error: &Error) -> bool {
    matches!(error, Error::Refused { .. } | Error::BadXml { .. } | Error::BadAnswer { .. })
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
