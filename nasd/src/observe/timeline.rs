//! The timeline of a move: steps with start and duration, sent to everybody who listens.
//!
//! Owns the listeners of one service. A listener that has gone away or is slow loses events; the
//! move never waits for it (S8).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nasd_proto::{MoveEvent, Outcome, Step, move_event::Kind};
use tokio::sync::mpsc;

/// Sends to listeners; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    listeners: Arc<Mutex<Vec<Listener>>>,
}

#[derive(Debug)]
struct Listener {
    to: mpsc::Sender<MoveEvent>,
    steps_only: bool,
}

impl Timeline {
    /// Adds a listener; it hears everything from now on until [`Timeline::hang_up`].
    pub fn listen(&self, to: mpsc::Sender<MoveEvent>) {
        self.lock().push(Listener { to, steps_only: false });
    }

    /// Adds a listener that hears steps only: the old owner, whose verdict comes by itself.
    pub fn listen_to_steps(&self, to: mpsc::Sender<MoveEvent>) {
        self.lock().push(Listener { to, steps_only: true });
    }

    /// Ends every listener's stream.
    pub fn hang_up(&self) {
        self.lock().clear();
    }

    /// A step has ended on a node.
    pub fn step(&self, node: &str, name: &str, began: SystemTime, took: Duration, detail: String) {
        let since = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.send(Kind::Step(Step {
            node: node.to_owned(),
            name: name.to_owned(),
            started_unix_ns: u64::try_from(since.as_nanos()).unwrap_or(0),
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            done: true,
            detail,
        }));
    }

    /// How it ended.
    pub fn outcome(&self, outcome: Outcome) {
        self.send(Kind::Outcome(outcome));
    }

    /// Passes on what the other node told.
    pub fn relay(&self, event: MoveEvent) {
        let step = matches!(event.kind, Some(Kind::Step(_)));
        self.lock().retain(|l| (l.steps_only && !step) || l.to.try_send(event.clone()).is_ok());
    }

    fn send(&self, kind: Kind) {
        self.relay(MoveEvent { kind: Some(kind) });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Listener>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
