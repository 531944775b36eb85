//! DRBD's connection: cut it by force for a takeover, bring it back, have the kernel fence again.
//!
//! Keeps S1's `Frozen` (the cut is forced, and what it left is read from the kernel anew), S8 (every
//! wait ends) and S12 (what the kernel does not say is no evidence). Nothing here is asked of a
//! resource while another command of it runs: the queue refuses (H12).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nasd_drbd::{
    CommandError, ConnKey, ConnState, ConnectSpec, Device, DiskState, ResourceStatus, Role,
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
    #[error("{0} is Primary here: cutting its connection would freeze it")]
    Primary(String),
    /// Cut, and yet not the evidence that a takeover needs.
    #[error("{resource} was cut, but {seen}; this node's data cannot be taken")]
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

impl Resource {
    /// Cuts every connection by force, then reads the kernel anew: `StandAlone`, every disk at least
    /// `Consistent`, nothing overwriting it (S1, H1). Where it has been done it only looks.
    ///
    /// # Errors
    /// [`ConnectionError`]; the connections may be cut all the same.
    pub fn force_disconnect(&self, limit: Duration) -> Result<(), ConnectionError> {
        let until = Instant::now() + limit;
        let before = self.read()?;
        if before.role == Role::Primary {
            return Err(ConnectionError::Primary(before.name));
        }
        self.cut(&before, until)?;
        loop {
            let status = self.read()?;
            let Some(seen) = against_frozen(&status) else { return Ok(()) };
            if Instant::now() + LOOK >= until {
                return Err(ConnectionError::NoEvidence { resource: status.name, seen });
            }
            std::thread::sleep(LOOK);
        }
    }

    fn cut(&self, status: &ResourceStatus, until: Instant) -> Result<(), ConnectionError> {
        for key in linked(status) {
            match self.queue.disconnect_forced(key, left(until)) {
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
    pub fn drop_peer(&self, limit: Duration) -> Result<bool, ConnectionError> {
        let status = self.read()?;
        self.cut(&status, Instant::now() + limit)?;
        Ok(!linked(&status).is_empty())
    }

    /// Lets DRBD connect again. Done when it tries: whether the peer answers is another matter.
    ///
    /// # Errors
    /// [`ConnectionError`]; [`ConnectionError::Forgotten`] when only `drbdadm` knows how.
    pub fn connect(&self, limit: Duration) -> Result<(), ConnectionError> {
        let until = Instant::now() + limit.min(SETTLE);
        loop {
            let status = self.read()?;
            if !status.is_stand_alone() {
                return Ok(());
            }
            match self.connect_once(left(Instant::now() + limit)) {
                Err(ConnectionError::Command(error @ CommandError::Refused { .. }))
                    if Instant::now() < until =>
                {
                    tracing::debug!(%error, resource = status.name, "not connected yet");
                    std::thread::sleep(LOOK);
                }
                other => return other,
            }
        }
    }

    fn connect_once(&self, limit: Duration) -> Result<(), ConnectionError> {
        let specs = self.specs.all();
        if specs.is_empty() {
            return Err(ConnectionError::Forgotten(self.name.clone()));
        }
        for spec in specs {
            self.queue.connect(spec, limit)?;
        }
        Ok(())
    }

    /// Has the kernel run its fence helper again (H2). On 8.4 the receiver does that whenever it ends
    /// on a Primary whose peer is not known to be outdated; a forced disconnect ends it, and the
    /// connect gives the peer its chance again. Returns whether there was a frozen Primary to do it to.
    ///
    /// # Errors
    /// [`ConnectionError`]; after one the resource may be `StandAlone`, and is still frozen.
    pub fn retrigger(&self, limit: Duration) -> Result<bool, ConnectionError> {
        let until = Instant::now() + limit;
        let mut status = self.read()?;
        if !awaits_fencing(&status) {
            return Ok(false);
        }
        if status.is_stand_alone() {
            // Without a receiver there is none that could end.
            self.connect(left(until))?;
            status = self.read()?;
        }
        if awaits_fencing(&status) {
            self.cut(&status, until)?;
        }
        self.connect(left(until))?;
        Ok(true)
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

/// What speaks against the proof `Frozen`, in words; `None`: nothing.
pub(super) fn against_frozen(status: &ResourceStatus) -> Option<String> {
    if !status.is_stand_alone() {
        let states = status.connections.iter().map(|c| c.state.to_string()).collect::<Vec<_>>();
        return Some(format!("its connection is {}", states.join(", ")));
    }
    if status.is_resync_target() {
        return Some("a resynchronisation of its disks was under way".into());
    }
    if status.devices.is_empty() {
        return Some("it has no volumes".into());
    }
    let bad = status.devices.iter().find(|(_, device)| !is_complete(device));
    bad.map(|(volume, device)| format!("the disk of volume {volume} is {}", device.disk))
}
