//! The right to serve (S4): how long a grant keeps the gate open, counted from its request.
//!
//! Owns the rule only. The kernel enforces the result; nothing here looks at a clock.

use std::time::Duration;

use super::timing::Timing;

/// Who granted the right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// The peer's nasd has seen the same epoch and has not begun to take over.
    Peer,
    /// A linearizable read of the record that still names this node.
    Record,
    /// This node is the only current one: nobody else may take over, so no expiry (H5).
    SoleCurrent,
}

/// How long a grant lives, counted from when its request was *sent*, so that a process that was
/// stopped in between writes a deadline that is past (C3). `None`: it does not expire.
#[must_use]
pub fn until(grant: Grant, timing: &Timing) -> Option<Duration> {
    match grant {
        Grant::Peer => Some(timing.ttl),
        Grant::Record => Some(timing.record_ttl),
        Grant::SoleCurrent => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h5_only_a_sole_owner_does_not_expire() {
        let ms = Duration::from_millis;
        let timing = Timing::new(ms(1500), ms(250), ms(5000));
        assert_eq!(until(Grant::SoleCurrent, &timing), None);
        assert_eq!(until(Grant::Peer, &timing), Some(ms(1500)));
        assert_eq!(until(Grant::Record, &timing), Some(ms(750)));
    }
}
