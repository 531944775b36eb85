//! The times that failover is made of. Owns numbers and the taker's two waiting formulas (S4).

use std::time::Duration;

/// What the configuration fixes; equal on both nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two beats.
    pub heartbeat: Duration,
    /// Life of a grant by the peer, from its request.
    pub ttl: Duration,
    /// Life of a grant by the record, from its request. Shorter than [`Timing::ttl`]: a taker cannot
    /// see these, so it must wait them out from its own compare-and-set.
    pub record_ttl: Duration,
    /// Life of the long grant that an upgrade takes before it stops nasd (S9).
    pub long_ttl: Duration,
    /// Kernel lifetime of the floating address.
    pub valid_lft: Duration,
    /// Silence of the peer's nasd after which its node is looked for.
    pub silence: Duration,
    /// How long a node that has just started waits for a peer that it has never heard.
    pub cold_wait: Duration,
    /// How long a rebooted owner waits for its peer before it goes on alone.
    pub lone_wait: Duration,
    /// Largest time for the compare-and-set that begins a move; slower means no cut (design section 4:
    /// 1 s). A cluster with a longer right was configured for slower nodes.
    pub move_cas: Duration,
    /// Time for a read of the record before another one is begun.
    pub read: Duration,
}

impl Timing {
    /// From the three configured values.
    #[must_use]
    pub fn new(ttl: Duration, heartbeat: Duration, valid_lft: Duration) -> Self {
        Self {
            heartbeat,
            ttl,
            record_ttl: ttl / 2,
            long_ttl: Duration::from_secs(20).max(ttl * 4),
            valid_lft,
            silence: (heartbeat * 3).max(ttl / 2),
            cold_wait: Duration::from_secs(10).max(ttl * 2),
            lone_wait: Duration::from_secs(3).max(ttl),
            move_cas: Duration::from_secs(1).max(ttl * 2 / 3),
            read: Duration::from_secs(3).max(ttl),
        }
    }

    /// What is added to a grant's end before another node opens: 50 ms, and 0.1 % of its life for
    /// the difference of two clocks (S4).
    #[must_use]
    pub fn margin(&self, life: Duration) -> Duration {
        Duration::from_millis(50) + life / 1000
    }

    /// How late an answer of the coordinator may be before the peer is asked for it as well: a few times
    /// what a write costs through a second member (250 ms and an answer).
    #[must_use]
    pub fn late(&self) -> Duration {
        Duration::from_millis(700).max(self.ttl * 2 / 5)
    }

    /// Added when nobody ever reported the old owner's gate as enforced: the address then goes by its
    /// kernel lifetime alone, which the kernel checks lazily (S4).
    #[must_use]
    pub fn without_gate(&self) -> Duration {
        self.valid_lft + Duration::from_millis(1300)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s4_a_record_grant_ends_before_a_peer_grant() {
        let t = Timing::new(
            Duration::from_millis(1500),
            Duration::from_millis(250),
            Duration::from_secs(5),
        );
        assert!(t.record_ttl < t.ttl && t.ttl < t.long_ttl);
        assert_eq!(t.margin(t.ttl), Duration::from_micros(51_500));
        assert_eq!(t.without_gate(), Duration::from_millis(6300));
    }
}
