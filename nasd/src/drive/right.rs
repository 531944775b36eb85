//! The keeper of the right to serve: asks for it, and turns every grant into an absolute deadline.
//!
//! Keeps S4: the deadline is counted from when the request was *sent*; the gate is only refreshed
//! while it has been armed for the same epoch, under one lock with its closing. A task of its own, so
//! that nothing a step does can delay a refresh.

use std::sync::Arc;
use std::time::Duration;

use nasd_net::gate::{Deadline, Gate, GateState, Which};
use nasd_net::monotonic::MonotonicInstant;
use tokio::sync::watch;

use super::failpoint;
use super::hands::Hands;
use crate::core::right::{Grant, until};

/// What the core wants: the right for an epoch, without expiry if this node alone is current.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// The record's epoch.
    pub epoch: u64,
    /// Nobody else may take over.
    pub sole_current: bool,
}

/// A right that was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Right {
    /// For this epoch only.
    pub epoch: u64,
    /// Until then.
    pub deadline: Deadline,
}

/// The gate together with the epoch for which it may be open.
#[derive(Debug)]
pub struct Keeper {
    gate: Gate,
    armed: Option<u64>,
    opened: Option<u64>,
    shuts: u64,
}

impl Keeper {
    /// A gate as it was found or made; not armed.
    pub fn new(gate: Gate) -> Self {
        Self { gate, armed: None, opened: None, shuts: 0 }
    }

    /// How often it has been shut. An opening that was begun before the last shutting is void: a
    /// step that was given up by its deadline may still be on its way here (S4).
    #[must_use]
    pub fn ticket(&self) -> u64 {
        self.shuts
    }

    /// Opens for an epoch, with a right of that epoch, unless it was shut since the ticket was taken.
    /// False: it stays shut.
    ///
    /// # Errors
    /// When the kernel refuses the write; the gate is then shut or as it was, and not armed.
    pub fn open(&mut self, right: Right, ticket: u64) -> Result<bool, nasd_net::NetError> {
        if ticket != self.shuts {
            return Ok(false);
        }
        self.gate.set(Which::Both, right.deadline)?;
        self.armed = Some(right.epoch);
        self.opened = Some(right.epoch);
        Ok(true)
    }

    /// Renews the deadline, only while armed for the right's epoch.
    ///
    /// # Errors
    /// When the kernel refuses the write.
    pub fn refresh(&mut self, right: Right) -> Result<(), nasd_net::NetError> {
        if self.armed == Some(right.epoch) {
            self.gate.set(Which::Both, right.deadline)
        } else {
            Ok(())
        }
    }

    /// Whether the gate has been open without interruption since it was opened in that epoch.
    #[must_use]
    pub fn is_open_since(&self, epoch: u64) -> bool {
        self.armed.is_some() && self.opened == Some(epoch)
    }

    /// The node goes on serving in a later epoch of its own (a move begun or rolled back): rights of
    /// that epoch may refresh a gate that is open. A shut gate stays shut.
    pub fn go_on_in(&mut self, epoch: u64) {
        if self.armed.is_some() {
            self.armed = Some(epoch);
        }
    }

    /// Shuts one direction or both; no refresh opens it again.
    ///
    /// # Errors
    /// When the kernel refuses the write.
    pub fn close(&mut self, which: Which) -> Result<(), nasd_net::NetError> {
        self.armed = None;
        self.shuts += 1;
        self.gate.close(which)
    }

    /// As it stands in the kernel.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn read(&self) -> Result<GateState, nasd_net::NetError> {
        self.gate.read()
    }
}

/// Asks for the right as long as somebody wants it. Ends with the service's task.
pub async fn keep(
    hands: Arc<Hands>,
    mut wish: watch::Receiver<Option<Wish>>,
    granted: watch::Sender<Option<Right>>,
) {
    loop {
        let wanted = *wish.borrow_and_update();
        if let Some(wanted) = wanted {
            renew(&hands, wanted, &granted).await;
        } else {
            granted.send_replace(None);
        }
        let pause = tokio::time::sleep(hands.heartbeat());
        tokio::select! {
            () = pause => {}
            changed = wish.changed() => if changed.is_err() { return },
        }
    }
}

async fn renew(hands: &Hands, wanted: Wish, granted: &watch::Sender<Option<Right>>) {
    let Some((grant, requested)) = ask(hands, wanted).await else { return };
    let deadline = match until(grant, hands.ttl()) {
        None => Deadline::NEVER,
        Some(ttl) => Deadline::after(requested, ttl),
    };
    let right = Right { epoch: wanted.epoch, deadline };
    failpoint::hit("right-before-refresh");
    if let Err(error) = hands.refresh_gate(right) {
        tracing::error!(%error, "the gate could not be refreshed; it shuts by itself");
    }
    granted.send_replace(Some(right));
}

/// The peer first: it costs one packet. The coordinator only when the peer does not consent. Each
/// grant comes with the time at which *its* request was sent.
async fn ask(hands: &Hands, wanted: Wish) -> Option<(Grant, MonotonicInstant)> {
    let requested = MonotonicInstant::now();
    if wanted.sole_current {
        return Some((Grant::SoleCurrent, requested));
    }
    if hands.peer_consents(wanted.epoch).await {
        return Some((Grant::Peer, requested));
    }
    let requested = MonotonicInstant::now();
    hands.record_consents(wanted.epoch).await.then_some((Grant::Record, requested))
}

/// The right for an epoch, waited for at most that long.
pub async fn wait_for(
    granted: &watch::Receiver<Option<Right>>,
    epoch: u64,
    limit: Duration,
) -> Option<Right> {
    let mut granted = granted.clone();
    let fresh = |right: &Option<Right>| {
        right.is_some_and(|r| r.epoch == epoch && r.deadline.allows(MonotonicInstant::now()))
    };
    let found = tokio::time::timeout(limit, granted.wait_for(fresh)).await;
    found.ok()?.ok().and_then(|r| *r)
}
