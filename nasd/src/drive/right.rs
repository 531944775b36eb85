//! The right to serve as it is kept: the gate with the epoch for which it is armed, and the long right
//! that is taken before nasd ends.
//!
//! Keeps S4: the gate is only refreshed while it has been armed for the same epoch, under one lock with
//! its closing; a grant never shortens another one that still holds. [`super::beat`] asks for grants.

use std::sync::Arc;
use std::time::Duration;

use nasd_net::gate::{Deadline, Gate, GateState, Which};
use nasd_net::monotonic::MonotonicInstant;
use tokio::sync::watch;

use super::hands::{Hands, blocking};

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
    /// What was written last while armed.
    until: Deadline,
    opened: Option<u64>,
    shuts: u64,
    spoiled: bool,
}

impl Keeper {
    /// A gate as it was found or made; not armed.
    pub fn new(gate: Gate) -> Self {
        Self { gate, armed: None, until: Deadline::PAST, opened: None, shuts: 0, spoiled: false }
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
        if ticket != self.shuts || self.spoiled {
            return Ok(false);
        }
        self.gate.set(Which::Both, right.deadline)?;
        self.until = right.deadline;
        self.armed = Some(right.epoch);
        self.opened = Some(right.epoch);
        Ok(true)
    }

    /// Shuts both directions until [`Keeper::clean`]: what the server has to say are errors that no
    /// client must see (design, the mission: a guest waits, it gets no error).
    ///
    /// # Errors
    /// When the kernel refuses the write.
    pub fn spoil(&mut self) -> Result<(), nasd_net::NetError> {
        self.spoiled = true;
        self.close(Which::Both)
    }

    /// The file systems are unmounted: the next server has nothing to do with the last one's errors.
    pub fn clean(&mut self) {
        self.spoiled = false;
    }

    /// Whether it is shut by [`Keeper::spoil`].
    #[must_use]
    pub fn is_spoiled(&self) -> bool {
        self.spoiled
    }

    /// Whether a grant would refresh the gate at all.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.armed.is_some()
    }

    /// Renews the deadline, only while armed for the right's epoch.
    ///
    /// # Errors
    /// When the kernel refuses the write.
    pub fn refresh(&mut self, right: Right) -> Result<(), nasd_net::NetError> {
        if self.armed != Some(right.epoch) || outlasts(self.until, right.deadline) {
            return Ok(());
        }
        self.gate.set(Which::Both, right.deadline)?;
        self.until = right.deadline;
        Ok(())
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
        self.until = Deadline::PAST;
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

/// Whether what holds lasts longer than what was granted now: a grant is a promise, and a shorter one
/// takes nothing back. A right without end is none: it must get one as soon as it is asked for (S4).
fn outlasts(holds: Deadline, granted: Deadline) -> bool {
    holds != Deadline::NEVER && holds > granted
}

/// Pause between two tries for the long right; the ordinary one is renewed meanwhile.
const LONG_AGAIN: Duration = Duration::from_millis(100);

/// Takes the long right before nasd ends, so that an upgrade interrupts nothing (S9): only the peer can
/// grant it, because only the peer must wait for its end. False: the service goes silent when the
/// ordinary right ends, unless nasd is back before. Ends only with an answer: the caller sets the limit.
pub async fn take_long(hands: &Hands) -> bool {
    let Some(wanted) = (*hands.wish.borrow()).filter(|_| hands.gate_left().is_some()) else {
        return true;
    };
    let timing = hands.timing();
    if !wanted.sole_current && !ask_for_long(hands, wanted.epoch, timing.long_ttl).await {
        return false;
    }
    // The second belt must outlast the first: nobody renews the addresses while nasd is away.
    let (network, lifetime) = (Arc::clone(&hands.network), timing.long_ttl + timing.valid_lft);
    blocking(move || network.add_addresses(lifetime)).await.is_some()
}

/// Asks until the peer grants it: one that is busy, or has not read the record yet, may do so a moment later.
/// The caller sets the limit.
async fn ask_for_long(hands: &Hands, epoch: u64, life: Duration) -> bool {
    loop {
        let requested = MonotonicInstant::now();
        if hands.call_peer(None, Some((epoch, life))).await {
            let right = Right { epoch, deadline: Deadline::after(requested, life) };
            return hands.refresh_gate(right).is_ok();
        }
        tokio::time::sleep(LONG_AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s4_a_grant_never_shortens_another_but_an_endless_right_gets_an_end() {
        let at = |s: u64| Deadline::after(MonotonicInstant::from_nanos(0), Duration::from_secs(s));
        assert!(outlasts(at(20), at(2)), "the long right stays");
        assert!(!outlasts(at(1), at(2)));
        assert!(!outlasts(Deadline::NEVER, at(2)), "two members: the peer must be able to wait");
        assert!(!outlasts(at(20), Deadline::NEVER));
        assert!(!outlasts(Deadline::PAST, at(2)));
    }
}
