//! The task that owns the hands: takes orders one after the other, each under its deadline (S10).
//!
//! Keeps S12: what was not done in time is answered as not ready, as a problem, or as still to be done.

use std::path::Path;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::hands::{Guests, Readiness};
use super::input::{Heard, Input, Order};

/// For holding back, letting go, and resuming: several calls to libvirt for each guest.
const ACT: Duration = Duration::from_secs(15);
/// For looking: nasd and the phases wait for it.
const LOOK: Duration = Duration::from_secs(8);

/// Executes orders until nobody gives any more.
pub async fn run(
    mut guests: Box<dyn Guests>,
    mut orders: mpsc::Receiver<Order>,
    heard: mpsc::Sender<Input>,
) {
    while let Some(order) = orders.recv().await {
        let Some(answer) = execute(guests.as_mut(), order).await else { continue };
        if heard.send(Input::Heard(answer)).await.is_err() {
            return;
        }
    }
}

async fn execute(guests: &mut dyn Guests, order: Order) -> Option<Heard> {
    Some(match order {
        Order::Hold(mount) => {
            if timeout(ACT, guests.hold(&mount)).await.is_err() {
                late("hold", &mount);
            }
            Heard::Held(mount)
        }
        Order::Release(mount) => {
            let done = timeout(ACT, guests.release(&mount)).await.is_ok();
            if !done {
                late("release", &mount);
            }
            Heard::Released(mount, done)
        }
        Order::Ready { mount, id, coming } => {
            let readiness = timeout(LOOK, guests.ready(&mount, coming)).await;
            Heard::Ready(mount, id, readiness.unwrap_or_else(|_| unknown()))
        }
        Order::Resume(mount) => {
            if timeout(ACT, guests.resume(&mount)).await.is_err() {
                late("resume", &mount);
            }
            return None;
        }
        Order::Verify { mount, asked } => {
            let found = timeout(LOOK, guests.verify(&mount)).await;
            Heard::Verified(mount, asked, found.unwrap_or_else(|_| vec![silent()]))
        }
        Order::Stalls { mount, stall } => {
            let stalls = timeout(LOOK, guests.stalls(&mount, stall)).await.unwrap_or_default();
            Heard::Stalls(mount, stalls)
        }
        Order::HookWaits(time) => {
            guests.hook_waits(time);
            return None;
        }
        Order::Phase(mount, phase) => {
            guests.phase(&mount, phase);
            return None;
        }
        Order::Mounts(points) => {
            guests.mounts(&points);
            return None;
        }
        Order::Reachable => {
            let answer = timeout(LOOK, guests.reachable()).await;
            Heard::Reachable(answer.unwrap_or_else(|_| Err(silent())))
        }
    })
}

fn late(what: &str, mount: &Path) {
    tracing::warn!(what, mount = %mount.display(), limit = ?ACT,
        "libvirt did not answer in time: guests may still be as they were");
}

fn silent() -> String {
    format!(
        "libvirt did not answer within {} s: the state of the guests is unknown",
        LOOK.as_secs()
    )
}

fn unknown() -> Readiness {
    Readiness { reasons: vec![silent()], ..Readiness::default() }
}

/// What is answered for an order that could not even be given.
#[must_use]
pub fn refused(order: Order) -> Option<Heard> {
    match order {
        Order::Hold(mount) => Some(Heard::Held(mount)),
        Order::Release(mount) => Some(Heard::Released(mount, false)),
        Order::Ready { mount, id, .. } => Some(Heard::Ready(mount, id, unknown())),
        Order::Verify { mount, asked } => Some(Heard::Verified(mount, asked, vec![silent()])),
        Order::Stalls { mount, .. } => Some(Heard::Stalls(mount, Vec::new())),
        Order::Reachable => Some(Heard::Reachable(Err(silent()))),
        Order::Resume(_) | Order::Mounts(_) | Order::Phase(..) | Order::HookWaits(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::hands::{Coming, GuestStall, NoGuests};
    use async_trait::async_trait;

    struct Hangs;

    #[async_trait]
    impl Guests for Hangs {
        async fn hold(&mut self, _: &Path) {
            std::future::pending::<()>().await;
        }
        async fn release(&mut self, _: &Path) {
            std::future::pending::<()>().await;
        }
        async fn ready(&mut self, _: &Path, _: Coming) -> Readiness {
            std::future::pending().await
        }
        async fn resume(&mut self, _: &Path) {
            std::future::pending::<()>().await;
        }
        async fn verify(&mut self, _: &Path) -> Vec<String> {
            std::future::pending().await
        }
        async fn stalls(&mut self, _: &Path, _: Duration) -> Vec<GuestStall> {
            std::future::pending().await
        }
        async fn reachable(&mut self) -> Result<(), String> {
            std::future::pending().await
        }
    }

    async fn answers(guests: Box<dyn Guests>) -> Vec<Heard> {
        let (orders, from) = mpsc::channel(16);
        let (heard, mut ears) = mpsc::channel(16);
        tokio::spawn(run(guests, from, heard));
        let mount = || std::path::PathBuf::from("/vm");
        let coming = Coming { within: Duration::ZERO, outage: Duration::ZERO };
        for order in [
            Order::Hold(mount()),
            Order::Ready { mount: mount(), id: 7, coming },
            Order::Resume(mount()),
            Order::Verify { mount: mount(), asked: Duration::ZERO },
            Order::Release(mount()),
            Order::Reachable,
        ] {
            orders.send(order).await.unwrap();
        }
        drop(orders);
        let mut all = Vec::new();
        while let Some(Input::Heard(one)) = ears.recv().await {
            all.push(one);
        }
        all
    }

    #[tokio::test(start_paused = true)]
    async fn s12_hands_that_hang_are_never_a_yes() {
        let answers = answers(Box::new(Hangs)).await;
        assert_eq!(answers.len(), 5, "{answers:?}");
        assert!(matches!(&answers[1], Heard::Ready(_, 7, r) if !r.ready && !r.reasons.is_empty()));
        assert!(matches!(&answers[2], Heard::Verified(_, _, problems) if !problems.is_empty()));
        assert_eq!(answers[3], Heard::Released("/vm".into(), false));
        assert!(matches!(&answers[4], Heard::Reachable(Err(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_without_guests_is_ready() {
        let answers = answers(Box::new(NoGuests)).await;
        assert!(matches!(&answers[1], Heard::Ready(_, 7, r) if r.ready));
        assert!(matches!(&answers[2], Heard::Verified(_, _, problems) if problems.is_empty()));
    }
}
