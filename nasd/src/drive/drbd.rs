//! DRBD as the drive sees it: one queue per resource gives commands, and what the kernel shows becomes
//! the core's view.
//!
//! Keeps S10 (own threads, deadlines) and S12 (no picture, no evidence: an unknown state is told to
//! the core as such).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nasd_drbd::{
    CommandError, CommandQueue, Device, DiskState, Drbd, Force, OpenError, Refusal, ResourceStatus,
    StatusError,
};
use thiserror::Error;

use super::connection::{self, ConnectionError, Specs, against_frozen, is_complete};
use super::handler::Handlers;
use crate::api::status::DrbdStatus;
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

/// What the kernel itself must show just before a promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Nothing: the record says that this node alone is current.
    Record,
    /// Connected to a Secondary peer, complete here.
    Released,
    /// Still cut off by our own hand, complete here.
    Frozen,
}

/// What of the evidence is missing, in words.
fn missing(evidence: Evidence, status: &ResourceStatus) -> Option<String> {
    let released =
        status.released_by_all() && status.all_up_to_date() && !status.is_resync_target();
    match evidence {
        Evidence::Record => None,
        Evidence::Released => (!released).then(|| {
            format!(
                "{} is not connected to a Secondary peer with UpToDate disks here any more",
                status.name
            )
        }),
        Evidence::Frozen => {
            against_frozen(status).map(|seen| format!("{} was cut off, but {seen}", status.name))
        }
    }
}

/// One resource.
pub struct Resource {
    pub(super) name: String,
    pub(super) queue: CommandQueue,
    pub(super) specs: Specs,
    handlers: Handlers,
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
        let resource = Self {
            name: name.to_owned(),
            queue,
            specs: Specs::default(),
            handlers: Handlers::default(),
            seen: Arc::default(),
        };
        // So that the addresses are known from the start; what is not up yet tells them later.
        resource.read()?;
        Ok(resource)
    }

    /// Reads the kernel now; for the check just before a promotion, and for the options.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self) -> Result<ResourceStatus, DrbdError> {
        let status = Drbd::open()?.status_of(&self.name)?;
        self.specs.remember(&status);
        Ok(status)
    }

    /// The last state that the events told.
    #[must_use]
    pub fn seen(&self) -> Option<ResourceStatus> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Promotes. The evidence is read once more just before (S1).
    ///
    /// # Errors
    /// When the evidence is gone, or the kernel refuses until the deadline.
    pub fn promote(&self, evidence: Evidence, limit: Duration) -> Result<(), StepError> {
        let until = Instant::now() + limit;
        loop {
            self.check(evidence)?;
            let left = until.saturating_duration_since(Instant::now());
            match self.queue.primary(Force::No, left) {
                Ok(_) => return Ok(()),
                // An abandoned try of ours may still be at it, and may have succeeded by now.
                Err(CommandError::Busy { .. }) if Instant::now() + AGAIN < until => {
                    if self.read().is_ok_and(|s| s.role == nasd_drbd::Role::Primary) {
                        return Ok(());
                    }
                    std::thread::sleep(AGAIN);
                }
                Err(error) if transient(&error) && Instant::now() + AGAIN < until => {
                    std::thread::sleep(AGAIN);
                }
                Err(error) => return Err(refused(Step::Promote, &error)),
            }
        }
    }

    fn check(&self, evidence: Evidence) -> Result<(), StepError> {
        if evidence == Evidence::Record {
            return Ok(());
        }
        let status = self.read().map_err(|e| StepError::ProofGone { reason: e.to_string() })?;
        match missing(evidence, &status) {
            Some(reason) => Err(StepError::ProofGone { reason }),
            None => Ok(()),
        }
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

    /// See [`connection::force_disconnect`].
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub fn force_disconnect(&self, limit: Duration) -> Result<(), ConnectionError> {
        connection::force_disconnect(self, limit)
    }

    /// See [`connection::drop_peer`].
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub fn drop_peer(&self, limit: Duration) -> Result<bool, ConnectionError> {
        connection::drop_peer(self, limit)
    }

    /// See [`connection::connect`].
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub fn connect(&self, limit: Duration) -> Result<(), ConnectionError> {
        connection::connect(self, limit)
    }

    /// See [`connection::retrigger`].
    ///
    /// # Errors
    /// [`ConnectionError`].
    pub fn retrigger(&self, limit: Duration) -> Result<bool, ConnectionError> {
        connection::retrigger(self, limit)
    }

    /// A command of this resource runs, perhaps one that nobody waits for any more: `drbdadm` must not
    /// be started beside it, it would hold up the whole node's netlink (H12).
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.queue.running().is_some()
    }

    /// Marks this node's disks outdated (S2).
    ///
    /// # Errors
    /// When the kernel refuses, or says yes and leaves a disk as it was (8.4 while connected).
    pub fn outdate(&self, limit: Duration) -> Result<(), CommandError> {
        self.queue.outdate(limit).map(drop)
    }

    /// Options that break S1, in words; what cannot be read is one of them.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let all = |status: ResourceStatus| {
            let options = status.s1_violations();
            let mut found: Vec<String> = options.iter().map(ToString::to_string).collect();
            found.extend(self.handler_violations());
            found
        };
        self.read().map_or_else(|error| vec![error.to_string()], all)
    }

    /// What this node can say of its own set-up: DRBD's options as the kernel has them, and the helper
    /// that the kernel calls. Empty: all as S1 needs it. `None`: nothing can be said now (8.4 knows
    /// no options without a connection), and what was said before still holds. A helper that cannot
    /// be looked at is no violation: one that does not run leaves this node frozen.
    ///
    /// # Errors
    /// When the kernel cannot be read.
    pub fn attest(&self) -> Result<Option<Vec<String>>, DrbdError> {
        let status = self.read()?;
        if status.connections.is_empty() {
            return Ok(None);
        }
        let options = status.s1_violations();
        let mut found: Vec<String> = options.iter().map(ToString::to_string).collect();
        found.extend(self.handlers.wrong(&self.name));
        Ok(Some(found))
    }

    /// What is wrong with the helper that the kernel calls.
    #[must_use]
    pub fn handler_violations(&self) -> Vec<String> {
        self.handlers.violations(&self.name)
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

    pub(super) fn show(&self, status: Option<ResourceStatus>) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = status;
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
    let failed = |reason| DrbdError::Up { resource: name.to_owned(), reason };
    drbdadm(&["up", name], UP).await.map_err(failed)
}

/// Runs `drbdadm`, at most so long.
///
/// # Errors
/// What it said, or that it did not end.
pub(super) async fn drbdadm(args: &[&str], limit: Duration) -> Result<(), String> {
    let mut command = tokio::process::Command::new("drbdadm");
    command.args(args).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(limit, command.output())
        .await
        .map_err(|_| format!("not done after {limit:?}"))?
        .map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
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
    let history = status.devices.keys().map(|v| (*v, history_of(status, *v))).collect();
    DrbdView {
        role: role(status.role),
        connected,
        peer_role: connection.filter(|_| connected).map_or(Role::Unknown, |c| role(c.peer_role)),
        stand_alone: status.is_stand_alone(),
        local_up_to_date: status.all_up_to_date() && !status.is_resync_target(),
        local_consistent: consistent(status),
        local_failed: failed(status),
        peer_up_to_date: connected && key.is_some_and(|k| status.is_complete_at(k)),
        resync: status.is_resyncing(),
        missing_bytes: status
            .out_of_sync_bytes()
            .filter(|_| connected && status.is_resync_target()),
        frozen: status.suspended.fencing,
        data_uuid: uuids,
        uuid_history: history,
    }
}

/// Every disk is at least `Consistent`, and nothing overwrites it.
fn consistent(status: &ResourceStatus) -> bool {
    !status.devices.is_empty()
        && status.devices.values().all(is_complete)
        && !status.is_resync_target()
}

/// Some disk is gone or has lost data by itself (S2). A resync's target is incomplete for a reason
/// that ends by itself; `Attaching` and `Negotiating` are on the way to something.
fn failed(status: &ResourceStatus) -> bool {
    let lost = |d: &Device| {
        matches!(
            d.disk,
            DiskState::Diskless
                | DiskState::Failed
                | DiskState::Detaching
                | DiskState::Inconsistent
        )
    };
    status.devices.values().any(lost) && !status.is_resync_target()
}

/// The generations that a volume's data descends from: history, and the bitmap's base.
fn history_of(status: &ResourceStatus, volume: u16) -> Vec<DataUuid> {
    let own = status.devices.get(&volume).map(|d| d.history_uuids.clone()).unwrap_or_default();
    let bitmaps =
        status.connections.iter().filter_map(|c| c.peer_devices.get(&volume)?.bitmap_uuid);
    let mut all: Vec<u64> = bitmaps.chain(own).map(|uuid| uuid & !1).filter(|u| *u != 0).collect();
    all.dedup();
    all.into_iter().map(DataUuid::new).collect()
}

fn role(role: nasd_drbd::Role) -> Role {
    match role {
        nasd_drbd::Role::Primary => Role::Primary,
        nasd_drbd::Role::Secondary => Role::Secondary,
        _ => Role::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use nasd_drbd::{ConnState, ReplState};

    use super::*;
    use crate::drive::connection::tests::status;

    fn secondary(state: Option<ConnState>, disk: DiskState) -> ResourceStatus {
        status(nasd_drbd::Role::Secondary, state, disk)
    }

    fn target(disk: DiskState) -> ResourceStatus {
        let mut status = secondary(Some(ConnState::Connected), disk);
        for peer in status.connections[0].peer_devices.values_mut() {
            peer.repl = ReplState::SyncTarget;
        }
        status
    }

    #[test]
    fn s2_a_disk_that_fails_is_told_from_one_that_is_being_filled() {
        let connected = Some(ConnState::Connected);
        for disk in
            [DiskState::Diskless, DiskState::Failed, DiskState::Detaching, DiskState::Inconsistent]
        {
            let view = view(&secondary(connected, disk));
            assert!(view.local_failed && !view.local_consistent, "{disk:?}");
        }
        for disk in [DiskState::Attaching, DiskState::Negotiating, DiskState::Outdated] {
            let view = view(&secondary(connected, disk));
            assert!(!view.local_failed && !view.local_consistent, "{disk:?}");
        }
        let filling = view(&target(DiskState::Inconsistent));
        assert!(!filling.local_failed && !filling.local_consistent && filling.resync);
        assert!(!view(&target(DiskState::UpToDate)).local_consistent, "about to be overwritten");
    }

    #[test]
    fn s2_a_rebooted_nodes_disk_is_consistent_and_not_up_to_date() {
        let view = view(&secondary(Some(ConnState::Connecting), DiskState::Consistent));
        assert!(view.local_consistent && !view.local_up_to_date && !view.local_failed);
        assert!(!view.stand_alone, "it still seeks its peer");
    }

    #[test]
    fn stand_alone_is_no_connection_or_one_that_is_not_tried() {
        let up = DiskState::UpToDate;
        assert!(view(&secondary(None, up)).stand_alone, "8.4 forgets the connection");
        assert!(view(&secondary(Some(ConnState::StandAlone), up)).stand_alone);
        for state in [ConnState::Connecting, ConnState::Disconnecting, ConnState::Unknown(77)] {
            assert!(!view(&secondary(Some(state), up)).stand_alone, "{state:?}");
        }
        let mut bare = secondary(None, up);
        bare.devices.clear();
        let view = view(&bare);
        assert!(!view.stand_alone && !view.local_consistent, "S12: nothing is no evidence");
    }

    #[test]
    fn s2_the_past_is_history_and_bitmap_without_the_primarys_mark() {
        let view = view(&secondary(Some(ConnState::Connected), DiskState::UpToDate));
        assert_eq!(view.data_uuid[&0], DataUuid::new(0x40));
        let past = [0x50, 0x30, 0x20].map(DataUuid::new);
        assert_eq!(view.uuid_history[&0], past);
        let recorded = |uuid| BTreeMap::from([(0, DataUuid::new(uuid))]);
        assert!(view.descends_from(&recorded(0x50)) && view.descends_from(&recorded(0x40)));
        assert!(!view.descends_from(&recorded(0x60)));
    }

    #[test]
    fn s1_each_proof_has_its_evidence() {
        let (up, cut) = (DiskState::UpToDate, None);
        let linked = secondary(Some(ConnState::Connected), up);
        let alone = secondary(cut, up);
        assert_eq!(missing(Evidence::Released, &linked), None);
        assert!(missing(Evidence::Released, &alone).is_some());
        assert_eq!(missing(Evidence::Frozen, &alone), None);
        assert!(missing(Evidence::Frozen, &linked).is_some(), "reconnected behind our back");
        assert!(missing(Evidence::Frozen, &secondary(cut, DiskState::Outdated)).is_some());
    }
}
