//! DRBD as the drive sees it: one thread follows the kernel's events, one queue per resource gives
//! commands.
//!
//! Keeps S10 (own threads, deadlines) and S12 (no picture, no evidence: an unknown state is told to
//! the core as such).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nasd_drbd::{
    CommandError, CommandQueue, Drbd, Events, Force, OpenError, Refusal, ResourceStatus,
    StatusError,
};
use thiserror::Error;

use super::task::{Command, Handle};
use crate::api::status::DrbdStatus;
use crate::core::machine::Event;
use crate::core::record::DataUuid;
use crate::core::step::{Step, StepError};
use crate::core::view::{DrbdView, Role};

/// Time for `drbdadm up`.
const UP: Duration = Duration::from_secs(15);
/// Pause between tries of a promotion that the kernel calls transient.
const AGAIN: Duration = Duration::from_millis(5);

/// DRBD cannot be used.
#[derive(Debug, Error)]
pub enum DrbdError {
    /// The kernel's interface.
    #[error("DRBD's kernel interface: {0}; load the module (modprobe drbd)")]
    Open(#[from] OpenError),
    /// Its status.
    #[error("DRBD's status cannot be read: {0}")]
    Status(#[from] StatusError),
    /// `drbdadm up` failed.
    #[error("drbdadm up {resource}: {reason}; run it by hand to see more")]
    Up {
        /// The resource.
        resource: String,
        /// What it said.
        reason: String,
    },
}

/// One resource.
pub struct Resource {
    name: String,
    queue: CommandQueue,
    seen: Arc<Mutex<Option<ResourceStatus>>>,
}

impl Resource {
    /// Takes the resource, bringing it up when the kernel does not know it yet.
    ///
    /// # Errors
    /// When DRBD is not there, or `drbdadm up` fails.
    pub async fn attach(name: &str) -> Result<Self, DrbdError> {
        let mut drbd = Drbd::open()?;
        if drbd.status_of(name).is_err() {
            bring_up(name).await?;
        }
        let queue = drbd.commands(name)?;
        Ok(Self { name: name.to_owned(), queue, seen: Arc::default() })
    }

    /// Reads the kernel now; for the check just before a promotion, and for the options.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> Result<ResourceStatus, DrbdError> {
        Ok(Drbd::open()?.status_of(&self.name)?)
    }

    /// The last state that the events told.
    #[must_use]
    pub fn seen(&self) -> Option<ResourceStatus> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Promotes. With `released`, the evidence is read once more just before (S1).
    ///
    /// # Errors
    /// When the evidence is gone, or the kernel refuses until the deadline.
    pub fn promote(&self, released: bool, limit: Duration) -> Result<(), StepError> {
        let until = Instant::now() + limit;
        loop {
            if released {
                self.check_released()?;
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.queue.primary(Force::No, left) {
                Ok(_) => return Ok(()),
                Err(error) if transient(&error) && Instant::now() + AGAIN < until => {
                    std::thread::sleep(AGAIN);
                }
                Err(error) => return Err(refused(Step::Promote, &error)),
            }
        }
    }

    fn check_released(&self) -> Result<(), StepError> {
        let status = self.read().map_err(|e| StepError::ProofGone { reason: e.to_string() })?;
        if status.released_by_all() && status.all_up_to_date() && !status.is_resync_target() {
            return Ok(());
        }
        let reason = format!(
            "{} is not connected to a Secondary peer with UpToDate disks here any more",
            self.name
        );
        Err(StepError::ProofGone { reason })
    }

    /// Demotes, retrying while something (udev) has the device open for a moment.
    ///
    /// # Errors
    /// When something keeps it open, or the kernel refuses.
    pub fn demote(&self, limit: Duration) -> Result<(), StepError> {
        let patience = limit.saturating_sub(Duration::from_millis(200));
        match self.queue.secondary(patience, limit) {
            Ok(_) => Ok(()),
            Err(error) => Err(refused(Step::Demote, &error)),
        }
    }

    /// Options that break S1, in words.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        match self.read() {
            Ok(status) => status.s1_violations().iter().map(ToString::to_string).collect(),
            Err(error) => vec![error.to_string()],
        }
    }

    /// The status document's part.
    #[must_use]
    pub fn document(&self) -> Option<DrbdStatus> {
        let status = self.seen()?;
        let connection = status.connections.first();
        let disks = status.devices.iter().map(|(volume, device)| {
            let peer = connection.and_then(|c| c.peer_devices.get(volume));
            let peer = peer.map_or_else(|| "Unknown".to_owned(), |p| format!("{:?}", p.disk));
            (*volume, (format!("{:?}", device.disk), peer))
        });
        Some(DrbdStatus {
            resource: self.name.clone(),
            role: format!("{:?}", status.role),
            connection: connection
                .map_or_else(|| "StandAlone".into(), |c| format!("{:?}", c.state)),
            peer_role: connection
                .map_or_else(|| "Unknown".into(), |c| format!("{:?}", c.peer_role)),
            disks: disks.collect(),
            violations: Vec::new(),
        })
    }

    /// Where the follower thread puts what it sees.
    #[must_use]
    pub fn slot(&self) -> Arc<Mutex<Option<ResourceStatus>>> {
        Arc::clone(&self.seen)
    }

    /// The block device of a volume.
    #[must_use]
    pub fn device(&self, volume: u16) -> Option<std::path::PathBuf> {
        let status = self.seen().or_else(|| self.read().ok())?;
        status.devices.get(&volume).map(|d| format!("/dev/drbd{}", d.minor).into())
    }
}

fn transient(error: &CommandError) -> bool {
    error.refusal().is_some_and(|r| r.is_transient() || matches!(r, Refusal::PeerIsPrimary))
}

fn refused(step: Step, error: &CommandError) -> StepError {
    StepError::Refused { step: step.name(), reason: error.to_string() }
}

/// `drbdadm` owns DRBD's configuration files; bringing a resource up is its job.
async fn bring_up(name: &str) -> Result<(), DrbdError> {
    let failed = |reason: String| DrbdError::Up { resource: name.to_owned(), reason };
    let mut command = tokio::process::Command::new("drbdadm");
    command.args(["up", name]).kill_on_drop(true);
    let output = tokio::time::timeout(UP, command.output())
        .await
        .map_err(|_| failed(format!("not done after {UP:?}")))?
        .map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// The core's view of a resource.
#[must_use]
pub fn view(status: &ResourceStatus) -> DrbdView {
    let connection = status.connections.first();
    let connected = status.connections.len() == 1
        && connection.is_some_and(|c| c.state == nasd_drbd::ConnState::Connected);
    let key = connection.map(|c| c.key);
    let uuids: BTreeMap<_, _> = status
        .devices
        .iter()
        .filter_map(|(v, d)| d.current_uuid.map(|u| (*v, DataUuid::new(u))))
        .collect();
    DrbdView {
        role: role(status.role),
        connected,
        peer_role: connection.filter(|_| connected).map_or(Role::Unknown, |c| role(c.peer_role)),
        local_up_to_date: status.all_up_to_date() && !status.is_resync_target(),
        peer_up_to_date: connected && key.is_some_and(|k| status.is_in_sync_with(k)),
        resync: status.is_resyncing(),
        frozen: status.suspended.fencing,
        data_uuid: uuids,
    }
}

fn role(role: nasd_drbd::Role) -> Role {
    match role {
        nasd_drbd::Role::Primary => Role::Primary,
        nasd_drbd::Role::Secondary => Role::Secondary,
        _ => Role::Unknown,
    }
}

/// A resource that is followed: where its state goes.
pub struct Follower {
    /// Resource name.
    pub resource: String,
    /// The resource's slot.
    pub slot: Arc<Mutex<Option<ResourceStatus>>>,
    /// The service's task.
    pub handle: Handle,
}

/// Follows the kernel's events for ever, on a thread of its own.
pub fn follow(followers: Vec<Follower>) -> std::io::Result<()> {
    let builder = std::thread::Builder::new().name("drbd-events".into());
    builder.spawn(move || follow_forever(&followers)).map(drop)
}

fn follow_forever(followers: &[Follower]) {
    let mut last: Vec<Option<DrbdView>> = vec![None; followers.len()];
    loop {
        match Drbd::open().and_then(|drbd| drbd.events()) {
            Ok(mut events) => follow_stream(&mut events, followers, &mut last),
            Err(error) => tracing::error!(%error, "DRBD's events cannot be read"),
        }
        tell(followers, &mut last, |_| None);
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn follow_stream(events: &mut Events, followers: &[Follower], last: &mut [Option<DrbdView>]) {
    loop {
        if let Err(error) = events.next(Duration::from_millis(500)) {
            tracing::warn!(%error, "DRBD's event stream broke; it is opened anew");
            return;
        }
        let Some(model) = events.model() else { continue };
        tell(followers, last, |name| model.resource(name).cloned());
    }
}

fn tell(
    followers: &[Follower],
    last: &mut [Option<DrbdView>],
    status: impl Fn(&str) -> Option<ResourceStatus>,
) {
    for (follower, last) in followers.iter().zip(last) {
        let status = status(&follower.resource);
        let view = status.as_ref().map(view).unwrap_or_default();
        *follower.slot.lock().unwrap_or_else(PoisonError::into_inner) = status;
        if last.as_ref() != Some(&view) {
            tracing::debug!(resource = follower.resource, ?view, "DRBD changed");
            *last = Some(view.clone());
            drop(follower.handle.blocking_send(Command::Event(Event::Drbd(view))));
        }
    }
}
