//! How the rest of the agent reaches the guests' task, and the thread that samples QEMU's processes.
//!
//! Keeps S10: a task that does not answer is nobody's wait, as every caller has a deadline and may drop
//! the call. Keeps S12: a task that is gone is "not ready" and a problem.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};
use zbus::Connection;

use super::hypervisor::Hypervisor;
use super::limits::{self, Ledger};
use super::proc::Census;
use super::stall;
use super::task::{Order, Settings, Worker};
use crate::core::Now;
use crate::core::phase::Phase;
use crate::drive::hands::{Coming, GuestStall, Guests, Readiness};
use crate::libvirt::events;

/// Orders that may wait. More: the task hangs, and who asks is told nothing (S12).
const WAITING: usize = 256;
/// How often the task looks by itself.
const TICK: Duration = Duration::from_secs(1);
/// Between two attempts to hear libvirt's signals.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);

/// The guests' task, as others see it.
#[derive(Debug, Clone)]
pub struct Handle {
    orders: mpsc::Sender<Order>,
}

/// Starts the task and the sampling thread, on the current runtime. Limits that an earlier agent has
/// changed are restored soon after. `bus` is for libvirt's signals.
///
/// # Errors
/// The file with the old limits cannot be read: whether a guest is still slowed down is not known.
pub fn start<H: Hypervisor>(
    hypervisor: H,
    bus: Option<Connection>,
    settings: Settings,
) -> Result<Handle, limits::Error> {
    let (ledger, note) = Ledger::open(&settings.limits)?;
    if let Some(note) = note {
        tracing::error!("{note}");
    }
    let (orders, inbox) = mpsc::channel(WAITING);
    let (origin, busy) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let worker = Worker::new(Now::ZERO, hypervisor, settings, ledger);
    sample(origin, orders.clone(), Arc::clone(&busy));
    tokio::spawn(tick(orders.downgrade()));
    if let Some(bus) = bus {
        tokio::spawn(listen(bus, orders.downgrade()));
    }
    tokio::spawn(work(worker, inbox, origin, busy));
    Ok(Handle { orders })
}

async fn work<H: Hypervisor>(
    mut worker: Worker<H>,
    mut inbox: mpsc::Receiver<Order>,
    origin: Instant,
    busy: Arc<AtomicBool>,
) {
    while let Some(order) = inbox.recv().await {
        worker.take(origin.elapsed(), order).await;
        busy.store(worker.is_busy(), Ordering::Relaxed);
    }
}

/// A tick that finds no room is left out: the task is busy with what it has.
async fn tick(orders: mpsc::WeakSender<Order>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(orders) = orders.upgrade() else { return };
        // At most one waits, so that a slow libvirt does not leave a heap of them.
        let room = orders.max_capacity() - orders.capacity();
        if room < WAITING / 2 {
            let _ = orders.try_send(Order::Tick);
        }
    }
}

/// Passes libvirt's signals on; when the bus is lost it is tried again, for ever.
async fn listen(bus: Connection, orders: mpsc::WeakSender<Order>) {
    loop {
        match events::watch(&bus).await {
            Ok(mut signals) => {
                while let Some(event) = signals.recv().await {
                    let Some(orders) = orders.upgrade() else { return };
                    if orders.send(Order::Event(event)).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "libvirt's signals are not heard; it is polled"),
        }
        if orders.upgrade().is_none() {
            return;
        }
        tokio::time::sleep(LISTEN_AGAIN).await;
    }
}

/// A thread of its own, as reading a process's command line may wait for that process (S10). It ends
/// when the last handle is gone.
fn sample(origin: Instant, orders: mpsc::Sender<Order>, busy: Arc<AtomicBool>) {
    let orders = orders.downgrade();
    let thread = std::thread::Builder::new().name("guests".to_owned());
    let body = move || {
        let mut census = Census::new("/proc");
        loop {
            let Some(sender) = orders.upgrade() else { return };
            if let Some(seen) = census.look(origin.elapsed()) {
                let _ = sender.try_send(Order::Seen(origin.elapsed(), seen));
            }
            drop(sender);
            std::thread::sleep(stall::period(!busy.load(Ordering::Relaxed)));
        }
    };
    if let Err(error) = thread.spawn(body) {
        tracing::error!(%error, "no thread for QEMU's processes: stalls of guests are not measured");
    }
}

impl Handle {
    fn tell(&self, order: Order) {
        if self.orders.try_send(order).is_err() {
            tracing::warn!("the guests' task is overrun; an order to it is lost");
        }
    }

    /// `None`: the task is gone.
    async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).await.ok()?;
        answer.await.ok()
    }
}

const GONE: &str = "the agent's part for guests has ended: restart hvagent";

#[async_trait]
impl Guests for Handle {
    async fn hold(&mut self, mount: &Path) {
        self.ask(|done| Order::Hold(mount.to_owned(), done)).await;
    }

    async fn release(&mut self, mount: &Path) {
        self.ask(|done| Order::Release(mount.to_owned(), done)).await;
    }

    async fn ready(&mut self, mount: &Path, coming: Coming) -> Readiness {
        let gone = || Readiness { reasons: vec![GONE.to_owned()], ..Readiness::default() };
        let asked = self.ask(|answer| Order::Ready(mount.to_owned(), coming, answer));
        asked.await.unwrap_or_else(gone)
    }

    async fn resume(&mut self, mount: &Path) {
        let _ = self.orders.send(Order::Resume(mount.to_owned())).await;
    }

    async fn verify(&mut self, mount: &Path) -> Vec<String> {
        let asked = self.ask(|answer| Order::Verify(mount.to_owned(), answer));
        asked.await.unwrap_or_else(|| vec![GONE.to_owned()])
    }

    async fn stalls(&mut self, mount: &Path, _stall: Duration) -> Vec<GuestStall> {
        let asked = self.ask(|answer| Order::Stalls(mount.to_owned(), answer));
        asked.await.unwrap_or_default()
    }

    fn phase(&mut self, mount: &Path, phase: Phase) {
        self.tell(Order::Phase(mount.to_owned(), phase));
    }

    fn hook_waits(&mut self, time: Duration) {
        self.tell(Order::HookWaits(time));
    }

    fn mounts(&mut self, points: &[PathBuf]) {
        self.tell(Order::Mounts(points.to_vec()));
    }

    async fn reachable(&mut self) -> Result<(), String> {
        self.ask(Order::Reachable).await.unwrap_or_else(|| Err(GONE.to_owned()))
    }
}
