//! The order in which one node opens many services at once: the more important first.
//!
//! A taker that opens all services of a dead node shares one disk and one processor among them. A
//! service waits with its mount until nothing more important is still opening, but never long: it must
//! not depend on whether another one can be opened at all. No rule of safety rests on this.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;

/// Longest wait for more important services, below the deadline of the step that waits
/// ([`crate::core::step::Step::deadline`] of `mount`): several openings of a healthy node (0.5 s).
const LIMIT: Duration = Duration::from_secs(2);

/// Services that are opening on this node, with their priorities.
#[derive(Debug, Default)]
pub struct Turns(watch::Sender<BTreeMap<String, u8>>);

impl Turns {
    /// Notes whether the service is opening.
    pub fn set(&self, service: &str, priority: u8, opening: bool) {
        self.0.send_if_modified(|all| match opening {
            true => all.insert(service.to_owned(), priority) != Some(priority),
            false => all.remove(service).is_some(),
        });
    }

    /// Waits until nothing more important is opening; [`LIMIT`] at most. Services of the same
    /// priority do not wait for each other.
    pub async fn wait(&self, service: &str, priority: u8) {
        self.wait_within(LIMIT, service, priority).await;
    }

    async fn wait_within(&self, limit: Duration, service: &str, priority: u8) {
        let mut all = self.0.subscribe();
        let first = |all: &BTreeMap<String, u8>| all.values().all(|p| *p <= priority);
        if first(&all.borrow()) {
            return;
        }
        tracing::info!(service, priority, "more important services are opened first");
        if tokio::time::timeout(limit, all.wait_for(first)).await.is_err() {
            tracing::warn!(service, "a more important service is still not open; this one goes on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_less_important_waits_for_the_more_important_and_not_for_its_equal() {
        let turns = std::sync::Arc::new(Turns::default());
        for (service, priority) in [("db", 90), ("vms", 50), ("iso", 50)] {
            turns.set(service, priority, true);
        }
        turns.wait("db", 90).await;
        let waits = std::sync::Arc::clone(&turns);
        let second = tokio::spawn(async move { waits.wait("vms", 50).await });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        turns.set("db", 90, false);
        second.await.unwrap();
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let turns = Turns::default();
        turns.set("stuck", 90, true);
        let waits = turns.wait_within(Duration::from_millis(20), "vms", 50);
        tokio::time::timeout(Duration::from_secs(20), waits).await.unwrap();
    }
}
