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

use super::holds::Incoming;
use super::hypervisor::{self, Hypervisor};
use super::inventory::{self, Ask, Inventory, RESYNC, Told};
use super::leases::{self, Places};
use super::limits::{self, Ledger};
use super::proc::Qemu;
use super::readiness::{self, View};
use super::rounds::{Candidate, Phases, Run, Tries};
use super::stall::Meter;
use crate::core::Now;
use crate::core::phase::{Phase, Timing};
use crate::drive::hands::{Coming, GuestStall, Readiness};
use crate::libvirt::events::{Event, Lost};
use crate::libvirt::job::Caution;
use crate::libvirt::{Error, Result};

mod limiting;

/// Until libvirt is asked again that has failed.
const AGAIN: Duration = Duration::from_secs(5);

/// A hook waits for no longer (110 s for a migration): what is known is not taken for old meanwhile.
const QUIET: Duration = Duration::from_secs(120);

/// The task's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The stall that a move is expected to cost at least, for migrations and leases: nasd's own prediction
    /// counts where it is longer.
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
    Ready(PathBuf, Coming, oneshot::Sender<Readiness>),
    Resume(PathBuf),
    Verify(PathBuf, oneshot::Sender<Vec<String>>),
    Stalls(PathBuf, oneshot::Sender<Vec<GuestStall>>),
    Mounts(Vec<PathBuf>),
    Phase(PathBuf, Phase),
    HookWaits(Duration),
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
    tries: Tries,
    /// Mounts that are held, since when.
    held: BTreeMap<PathBuf, Now>,
    /// What nasd predicts of the announced moves, by mount.
    outages: BTreeMap<PathBuf, Duration>,
    /// Limits in MiB/s that are in force because they were set and confirmed.
    limited: BTreeMap<String, u64>,
    /// Since when nasd is told that a guest's migration stands in the way, by the guest's object.
    blocked_since: BTreeMap<String, Now>,
    /// Guests whose migrations were slowed down in vain: they end as fast as they can, and are waited for.
    let_go: BTreeSet<String>,
    /// Why the last limit could not be put on disk.
    disk: Option<String>,
    resync_at: Now,
    restore_at: Now,
    quiet_since: Now,
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
            tries: Tries::default(),
            held: BTreeMap::new(),
            outages: BTreeMap::new(),
            limited: BTreeMap::new(),
            blocked_since: BTreeMap::new(),
            let_go: BTreeSet::new(),
            disk: None,
            resync_at: now,
            quiet_since: now,
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
            Order::Ready(mount, coming, answer) => {
                let _ = answer.send(self.ready(now, &mount, coming).await);
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
            Order::Phase(mount, phase) => self.phases.set(&mount, phase),
            Order::HookWaits(time) => {
                if now >= self.quiet_until {
                    self.quiet_since = now;
                }
                self.quiet_until = self.quiet_until.max(now.saturating_add(time));
                let long = now.saturating_sub(self.quiet_since) > QUIET;
                self.inventory.quiet((!long).then_some(self.quiet_since));
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
        if now >= self.quiet_until {
            self.inventory.quiet(None);
        }
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
                    let job = hypervisor::job_of(self.hypervisor.job(&path).await);
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
        let names = self.inventory.names(mount);
        self.meter.done(&names);
        self.meter.cut(now, &names);
        if self.inventory.doubt(now).is_some() {
            self.refresh(now).await;
        }
    }

    // ---- answers ----

    async fn ready(&mut self, now: Now, mount: &Path, coming: Coming) -> Readiness {
        if !coming.outage.is_zero() {
            self.outages.insert(mount.to_owned(), coming.outage);
        }
        if self.inventory.doubt(now).is_some() {
            self.refresh(now).await;
        }
        self.look_at_jobs(now, mount).await;
        let leases = leases::ask(&self.settings.places).await;
        let mut policy = self.policy(now, mount);
        policy.window.starts_in = policy.window.starts_in.min(coming.within);
        self.note_blocked(now, mount, &policy);
        let view = View {
            inventory: &self.inventory,
            limited: &self.limited,
            let_go: &self.let_go,
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
