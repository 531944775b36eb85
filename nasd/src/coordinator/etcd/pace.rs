//! How long a member may keep a call before the next one is asked beside it.
//!
//! A cluster that is slow as a whole must not be asked three times for everything: that is what keeps it
//! slow. So the patience grows with the answers' own times, and stays far below the deadline.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Patience with a healthy cluster: a few times what a write costs (slowest of 145 writes/s in the lab:
/// 0.12 s).
const LEAST: Duration = Duration::from_millis(250);
/// How many usual answers one may take.
const TIMES: u32 = 3;
/// Members that are asked within the deadline whatever the answers' times: a majority of three is left
/// without the first, and the third helps when the second is cut off.
const ASKED: u32 = 3;

/// The usual time of an answer, µs: each new one counts an eighth, as in RFC 6298, section 2.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    /// An answer came. Two at once may count as one: this is an estimate.
    pub(super) fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let usual = self.0.load(Ordering::Relaxed);
        self.0.store(usual - usual / 8 + took / 8, Ordering::Relaxed);
    }

    /// How long a member may take before the next one is asked too.
    pub(super) fn patience(&self, deadline: Duration) -> Duration {
        let usual = Duration::from_micros(self.0.load(Ordering::Relaxed));
        usual.saturating_mul(TIMES).min(deadline / ASKED).max(LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(2);

    #[test]
    fn a_healthy_cluster_gets_the_least_patience() {
        let pace = Pace::default();
        assert_eq!(pace.patience(DEADLINE), LEAST);
        (0..100).for_each(|_| pace.note(Duration::from_millis(20)));
        assert_eq!(pace.patience(DEADLINE), LEAST);
    }

    #[test]
    fn a_slow_cluster_is_asked_less_and_all_members_still_in_time() {
        let pace = Pace::default();
        (0..100).for_each(|_| pace.note(Duration::from_millis(150)));
        let patience = pace.patience(DEADLINE);
        assert!(patience > LEAST && patience < Duration::from_millis(451), "{patience:?}");
        (0..100).for_each(|_| pace.note(Duration::from_secs(30)));
        assert_eq!(pace.patience(DEADLINE), DEADLINE / 3);
        (0..100).for_each(|_| pace.note(Duration::ZERO));
        assert_eq!(pace.patience(DEADLINE), LEAST, "it recovers");
    }
}
