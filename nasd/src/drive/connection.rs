//! DRBD's connection: cut it by force for a takeover, bring it back, have the kernel fence again.
//!
//! Keeps S1's `Frozen` (the cut is forced, and what it left is read from the kernel anew), S8 (every
//! wait ends) and S12 (what the kernel does not say is no evidence). Nothing here is asked of a
//! resource while another command of it runs: the queue refuses (H12).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nasd_drbd::{
    CommandError, CommandResult, ConnKey, ConnState, ConnectSpec, Connection, Device, DiskState,
    ResourceStatus, Role,
};
use thiserror::Error;

use super::drbd::{DrbdError, Resource};

/// Pause between two looks at the kernel.
const LOOK: Duration = Duration::from_millis(10);
/// How long a refused connect is repeated: 8.4 answers the disconnect a moment before its worker has
/// forgotten the old addresses, and refuses the same ones until then.
const SETTLE: Duration = Duration::from_secs(1);

/// The connection is not as it was asked for. Nothing else was changed.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// DRBD cannot be read.
    #[error(transparent)]
    Read(#[from] DrbdError),
    /// The kernel refused.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A forced disconnect is a taker's; on a Primary it would freeze the service.
    #[error("{0} is not Secondary here: cutting its connection would freeze it")]
    NotSecondary(String),
    /// Not the evidence that a takeover needs.
    #[error("{resource}: {seen}; this node's data cannot be taken")]
    NoEvidence {
        /// The resource.
        resource: String,
        /// What the kernel shows.
        seen: String,
    },
    /// The kernel has forgotten the addresses, and nasd never saw them.
    #[error("the addresses of {0} are not known here")]
    Forgotten(String),
}

/// What connects a resource, as last seen: 8.4 forgets addresses and options at `StandAlone`.
#[derive(Default)]
pub struct Specs(Mutex<Vec<ConnectSpec>>);

impl Specs {
    fn lock(&self) -> MutexGuard<'_, Vec<ConnectSpec>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what a status tells; one that tells nothing changes nothing.
    pub fn remember(&self, status: &ResourceStatus) {
        let seen: Vec<_> = status.connections.iter().filter_map(ConnectSpec::of).collect();
        if !seen.is_empty() {
            *self.lock() = seen;
        }
    }

    /// What was seen last.
    #[must_use]
    pub fn all(&self) -> Vec<ConnectSpec> {
        self.lock().clone()
    }
}

/// What these commands need of a resource; a trait, so that their order can be tested without a kernel.
pub(super) trait Line {
    /// The resource's name.
    fn name(&self) -> &str;
    /// A fresh reading of the kernel; keeps the specifications that it tells.
    fn look(&self) -> Result<ResourceStatus, DrbdError>;
    /// What was seen to connect it.
    fn known(&self) -> Vec<ConnectSpec>;
    /// One connection cut by force.
    fn disconnect(&self, key: ConnKey, limit: Duration) -> CommandResult;
    /// One connection configured.
    fn join(&self, spec: ConnectSpec, limit: Duration) -> CommandResult;
}

impl Line for Resource {
    fn name(&self) -> &str {
        &self.name
    }

    fn look(&self) -> Result<ResourceStatus, DrbdError> {
        self.read()
    }

    fn known(&self) -> Vec<ConnectSpec> {
        self.specs.all()
    }

    fn disconnect(&self, key: ConnKey, limit: Duration) -> CommandResult {
        self.queue.disconnect_forced(key, limit)
    }

    fn join(&self, spec: ConnectSpec, limit: Duration) -> CommandResult {
        self.queue.connect(spec, limit)
    }
}

/// Cuts every connection by force, then reads the kernel anew: `StandAlone`, every disk at least
/// `Consistent`, nothing overwriting it (S1, H1). Where it has been done it only looks. Data that
/// cannot be taken is left connected: cutting a resynchronisation would help nobody.
///
/// # Errors
/// [`ConnectionError`]; the connections may be cut all the same.
pub(super) fn force_disconnect(line: &impl Line, limit: Duration) -> Result<(), ConnectionError> {
    let until = Instant::now() + limit;
    let before = line.look()?;
    if before.role != Role::Secondary {
        return Err(ConnectionError::NotSecondary(before.name));
    }
    if let Some(seen) = against_taking(&before) {
        return Err(ConnectionError::NoEvidence { resource: before.name, seen });
    }
    cut(line, &before, until)?;
    loop {
        let status = line.look()?;
        let Some(seen) = against_frozen(&status) else { return Ok(()) };
        if Instant::now() + LOOK >= until {
            return Err(ConnectionError::NoEvidence { resource: status.name, seen });
        }
        std::thread::sleep(LOOK);
    }
}

fn cut(line: &impl Line, status: &ResourceStatus, until: Instant) -> Result<(), ConnectionError> {
    for key in linked(status) {
        match line.disconnect(key, left(until)) {
            Ok(_) | Err(CommandError::NoSuchConnection(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Cuts the owner's own connection by force, because the peer holds back every write (H11). I/O
/// freezes until the record excludes the peer. Returns whether there was anything to cut.
///
/// # Errors
/// [`ConnectionError`].
pub(super) fn drop_peer(line: &impl Line, limit: Duration) -> Result<bool, ConnectionError> {
    let status = line.look()?;
    cut(line, &status, Instant::now() + limit)?;
    Ok(!linked(&status).is_empty())
}

/// Lets DRBD connect again. Done when it tries: whether the peer answers is another matter.
///
/// # Errors
/// [`ConnectionError`]; [`ConnectionError::Forgotten`] when only `drbdadm` knows how.
pub(super) fn connect(line: &impl Line, limit: Duration) -> Result<(), ConnectionError> {
    let until = Instant::now() + limit;
    let settled = until.min(Instant::now() + SETTLE);
    loop {
        if !line.look()?.is_stand_alone() {
            return Ok(());
        }
        match connect_once(line, left(until)) {
            Err(ConnectionError::Command(error @ CommandError::Refused { .. }))
                if Instant::now() < settled =>
            {
                tracing::debug!(%error, resource = line.name(), "not connected yet");
                std::thread::sleep(LOOK);
            }
            other => return other,
        }
    }
}

fn connect_once(line: &impl Line, limit: Duration) -> Result<(), ConnectionError> {
    let specs = line.known();
    if specs.is_empty() {
        return Err(ConnectionError::Forgotten(line.name().to_owned()));
    }
    for spec in specs {
        line.join(spec, limit)?;
    }
    Ok(())
}

/// Has the kernel run its fence helper again (H2). On 8.4 the receiver does that whenever it ends on a
/// Primary whose peer is not known to be outdated; a forced disconnect ends it, and the connect gives
/// the peer its chance again. Returns whether there was a frozen Primary to do it to.
///
/// # Errors
/// [`ConnectionError`]; after one the resource may be `StandAlone`, and is still frozen.
pub(super) fn retrigger(line: &impl Line, limit: Duration) -> Result<bool, ConnectionError> {
    let until = Instant::now() + limit;
    let mut status = line.look()?;
    if !awaits_fencing(&status) {
        return Ok(false);
    }
    if status.is_stand_alone() {
        // Without a receiver there is none that could end, and a failed handshake leaves none.
        connect(line, left(until))?;
        status = receiving(line, until)?;
    }
    if awaits_fencing(&status) {
        cut(line, &status, until)?;
    }
    connect(line, left(until))?;
    Ok(true)
}

/// Waits, a moment at most, until the receiver works: the kernel's worker starts it after the connect
/// was answered, and one that is cut before it runs ends without a word.
fn receiving(line: &impl Line, until: Instant) -> Result<ResourceStatus, ConnectionError> {
    let until = until.min(Instant::now() + SETTLE);
    loop {
        let status = line.look()?;
        let starting =
            |c: &Connection| matches!(c.state, ConnState::Unconnected | ConnState::StandAlone);
        if !status.connections.iter().all(starting) || Instant::now() + LOOK >= until {
            return Ok(status);
        }
        std::thread::sleep(LOOK);
    }
}

/// A frozen Primary that has nobody to talk to. One that is just connecting goes on by itself.
fn awaits_fencing(status: &ResourceStatus) -> bool {
    let connected = status.connections.iter().any(|c| c.state == ConnState::Connected);
    status.role == Role::Primary && status.suspended.fencing && !connected
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// Connections that there are to cut.
fn linked(status: &ResourceStatus) -> Vec<ConnKey> {
    let up = status.connections.iter().filter(|c| c.state != ConnState::StandAlone);
    up.map(|c| c.key).collect()
}

/// A disk that holds everything up to the cut: `Consistent` is what a rebooted node's disk is until
/// it has met its peer or fenced it, and the kernel turns it into `UpToDate` only by fencing.
pub(super) fn is_complete(device: &Device) -> bool {
    matches!(device.disk, DiskState::Consistent | DiskState::UpToDate)
}

/// What speaks against taking this node's data, in words, connected or not; `None`: nothing.
fn against_taking(status: &ResourceStatus) -> Option<String> {
    if status.is_resync_target() {
        return Some("its disks are being resynchronised".into());
    }
    if status.devices.is_empty() {
        return Some("it has no volumes".into());
    }
    let bad = status.devices.iter().find(|(_, device)| !is_complete(device));
    bad.map(|(volume, device)| format!("the disk of volume {volume} is {}", device.disk))
}

/// What speaks against the proof `Frozen`, in words; `None`: nothing.
pub(super) fn against_frozen(status: &ResourceStatus) -> Option<String> {
    if !status.is_stand_alone() {
        let states = status.connections.iter().map(|c| c.state.to_string()).collect::<Vec<_>>();
        return Some(format!("its connection is {}", states.join(", ")));
    }
    against_taking(status)
}

#[cfg(test)]
#[path = "connection_tests.rs"]
pub(super) mod tests;
