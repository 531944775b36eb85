//! Holds a shutdown of the host back while any mount moves. A logind that does not answer is asked again,
//! and nothing waits for it (S10).

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::late;
use crate::libvirt::systemd::{Inhibitor, Mode};

/// Between two attempts.
const AGAIN: Duration = Duration::from_secs(10);
/// What whoever shuts down is told.
const WHY: &str = "the storage of running guests is moving";

/// Follows what is wanted until the agent is gone.
pub async fn run(mut wanted: watch::Receiver<bool>) {
    let mut held: Option<Inhibitor> = None;
    loop {
        let want = *wanted.borrow_and_update();
        match (want, held.is_some()) {
            (true, false) => held = take().await,
            (false, true) => held = None,
            _ => {}
        }
        let missing = want && held.is_none();
        let changed = wanted.changed();
        let gone = match missing {
            true => matches!(timeout(AGAIN, changed).await, Ok(Err(_))),
            false => changed.await.is_err(),
        };
        if gone {
            return;
        }
    }
}

async fn take() -> Option<Inhibitor> {
    let taken = match late::bus().await {
        Ok(bus) => Inhibitor::take(&bus, WHY, Mode::Block).await,
        Err(error) => Err(error),
    };
    let told = |error| tracing::warn!(%error, "a shutdown of this host is not held back");
    taken.map_err(told).ok()
}
