//! The right to serve (S4): for how long may the gate stay open, counted from what.
//!
//! Owns the arithmetic only. The kernel enforces the result; nothing here looks at a clock.

use std::time::Duration;

/// Half a millisecond per half second: the error of a running clock that the design assumes (0.1 %).
const DRIFT_DIVISOR: u32 = 1000;

/// Who carried the request for the right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// The peer's nasd has seen the same epoch and has not begun to take over.
    Peer,
    /// A linearizable read of the record that still names this node.
    Record,
    /// This node is the only current one: nobody else may take over, so no expiry (H5).
    SoleCurrent,
}

/// Until when the gate may stay open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Absolute monotonic time.
    At(Duration),
    /// No expiry.
    Never,
}

/// The deadline that a grant carries. `requested` is the monotonic time at which the request was
/// *sent*, so that a process stopped in between writes a deadline that is past (C3).
#[must_use]
pub fn until(grant: Grant, requested: Duration, ttl: Duration) -> Until {
    match grant {
        Grant::Peer | Grant::Record => Until::At(requested + ttl),
        Grant::SoleCurrent => Until::Never,
    }
}

/// How long a node that withdraws its consent waits before it opens: every right that it (or the
/// record) has ever granted has then run out on the other node (S4: TTL + 50 ms + 0.1 %).
#[must_use]
pub fn wait_out(ttl: Duration) -> Duration {
    ttl + Duration::from_millis(50) + ttl / DRIFT_DIVISOR
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_millis(1500);

    #[test]
    fn c3_the_deadline_counts_from_the_request() {
        let at = until(Grant::Peer, Duration::from_secs(10), TTL);
        assert_eq!(at, Until::At(Duration::from_millis(11_500)));
    }

    #[test]
    fn h5_a_sole_owner_does_not_expire() {
        assert_eq!(until(Grant::SoleCurrent, Duration::ZERO, TTL), Until::Never);
    }

    #[test]
    fn s4_the_taker_waits_longer_than_any_grant_lives() {
        assert!(wait_out(TTL) > TTL + TTL / DRIFT_DIVISOR);
    }
}
