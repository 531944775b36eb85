//! nasd's orderly end: whether its services get rights that last until it is back.
//!
//! Keeps S9 (an upgrade interrupts nothing) and, where nobody comes back, the right's ordinary end: the
//! peer must not have to wait for a long one. Nothing is moved here: that is the operator's to ask for
//! while nasd runs.

use std::time::Duration;

use futures_util::future::join_all;

use super::hands::Hands;
use super::right::{self, Wish};
use super::systemd::{self, Intent};
use super::watchdog;
use crate::api::control::Services;
use crate::observe::history::Entry;

/// Time for the long right of one service.
const LONG_RIGHT: Duration = Duration::from_secs(3);
/// Time for what was noted to reach the disk.
const NOTED: Duration = Duration::from_millis(500);

/// Waits until nasd is asked to end, and leaves every service as the reason for it wants.
pub async fn take_leave(services: &Services) {
    terminated().await;
    let intent = systemd::intent().await;
    tracing::info!(?intent, "asked to end; services go on until their right runs out");
    match intent {
        // Nobody comes back in time. The watchdog stays armed: it covers a shutdown that hangs.
        Intent::Shutdown => return,
        Intent::Stop => say_what_follows(services).await,
        Intent::Restart | Intent::Unknown => take_long_rights(services).await,
    }
    watchdog::part();
}

async fn take_long_rights(services: &Services) {
    let each = services.by_name.values().map(|entry| async {
        let taken = tokio::time::timeout(LONG_RIGHT, right::take_long(&entry.hands)).await;
        (entry.hands.service.name.as_str(), taken.unwrap_or(false))
    });
    for (service, taken) in join_all(each).await {
        if !taken {
            tracing::warn!(service, "no long right: it goes silent unless nasd is back at once");
        }
    }
}

/// An operator stopped nasd for good: what that means is told where it will be looked for.
async fn say_what_follows(services: &Services) {
    let mut noted = Vec::new();
    for entry in services.by_name.values() {
        let hands = &entry.hands;
        let wish = (*hands.wish.borrow()).filter(|_| hands.gate_left().is_some());
        let Some(wish) = wish else { continue };
        let text = stopped_owner(hands, wish);
        tracing::warn!(service = hands.service.name, "nasd is stopped on the owner: {text}");
        hands.history.note(Entry::now("operator", "stop-nasd", wish.epoch, "done", &text));
        noted.push(hands.history.clone());
    }
    let kept = tokio::task::spawn_blocking(move || noted.iter().all(|h| h.flush(NOTED)));
    if !kept.await.unwrap_or(false) {
        tracing::warn!("the disk is slow or gone: what was noted may be lost");
    }
}

fn stopped_owner(hands: &Hands, wish: Wish) -> String {
    let record = hands.record.borrow();
    let held = record.as_ref().and_then(|r| r.hold.as_deref());
    what_follows(&hands.service.name, &hands.peer.0, wish, held, hands.ttl())
}

/// What happens to a service whose nasd was stopped while it served.
fn what_follows(
    service: &str,
    peer: &str,
    wish: Wish,
    held: Option<&str>,
    ttl: Duration,
) -> String {
    let soon = format!("the service goes on until its right ends, within {ttl:?}");
    let first = format!("to keep its clients working move it first: nasctl switchover {service}");
    match (wish.sole_current, held) {
        (true, _) => format!(
            "the service goes on until its addresses expire and is then silent until nasd runs here again, because {peer} does not hold all of its data; to keep its clients working wait for the resynchronisation, then move it first: nasctl switchover {service}"
        ),
        (false, Some(who)) => format!(
            "{soon}, and is then silent until nasd runs here again, because it is held ({who}); {first}"
        ),
        (false, None) => format!("{soon}, and {peer} takes over then; {first}"),
    }
}

async fn terminated() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut term) => {
            term.recv().await;
        }
        Err(error) => {
            tracing::warn!(%error, "SIGTERM cannot be waited for");
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(sole_current: bool, held: Option<&str>) -> String {
        let wish = Wish { epoch: 4, sole_current };
        what_follows("vms", "nas2", wish, held, Duration::from_millis(1500))
    }

    #[test]
    fn a_stop_on_the_owner_says_what_follows_and_what_to_do_first() {
        let free = told(false, None);
        assert!(free.contains("within 1.5s, and nas2 takes over"), "{free}");
        let held = told(false, Some("anna: new cables"));
        assert!(held.contains("anna: new cables") && !held.contains("takes over"), "{held}");
        let alone = told(true, None);
        assert!(alone.contains("nas2 does not hold all"), "{alone}");
        for text in [free, held, alone] {
            assert!(text.ends_with("nasctl switchover vms"), "{text}");
        }
    }
}
