//! Which requests may run beside which.
//!
//! Requests that change something run one at a time. A question to the volume runs once per kind
//! and mount point: on a frozen volume each would hang, and threads would pile up. While a volume
//! is being let go no canary begins on it: its open file would keep the volume busy. An expiry of clients
//! waits for calls that may wait for the volume, so it has a lane of its own and no stop waits for it; but none
//! begins while the server is being changed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Op, Refusal};

/// Threads at most.
const MAX: usize = 64;

#[derive(Debug)]
struct Running {
    number: u64,
    lane: Option<String>,
    op: &'static str,
    since: Instant,
}

#[derive(Debug, Default)]
struct List {
    next: u64,
    running: Vec<Running>,
}

/// The requests under way.
#[derive(Debug, Default)]
pub(super) struct Lanes(Arc<Mutex<List>>);

/// A request's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    lanes: Arc<Mutex<List>>,
    number: u64,
}

fn lock(list: &Mutex<List>) -> MutexGuard<'_, List> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Requests with the same lane exclude each other; none: unlimited.
fn lane(op: &Op) -> Option<String> {
    match op {
        Op::Mount { .. }
        | Op::Unmount { .. }
        | Op::WriteMarker { .. }
        | Op::ServerSetup(_)
        | Op::ServerStart { .. }
        | Op::ServerStop
        | Op::Exit => Some("change".into()),
        Op::SyncFs { target } | Op::Canary { target } | Op::ReadMarker { target } => {
            Some(format!("{} {}", op.name(), target.display()))
        }
        Op::Mend { target, .. } => Some(format!("{} {}", op.name(), target.display())),
        Op::ExpireClients { .. } => Some("expire".into()),
        Op::Probe { .. } => Some("probe".into()),
        Op::Pulse { .. } => Some("pulse".into()),
        _ => None,
    }
}

/// Must `op` wait for `other`, which is under way in another lane?
fn gives_way(op: &Op, other: &str) -> bool {
    let closing = [Op::ServerStop.name(), Op::Exit.name(), "unmount"];
    let opening = ["server_setup", "server_start", "write_marker"];
    match op {
        Op::Canary { .. } => closing.contains(&other),
        Op::ExpireClients { .. } | Op::Mend { .. } => {
            closing.contains(&other) || opening.contains(&other)
        }
        // What an earlier opening had to mend must not come after this one's.
        Op::WriteMarker { .. } => other == "mend",
        _ => false,
    }
}

impl Lanes {
    /// Takes a place, or says who has it.
    pub(super) fn enter(&self, op: &Op) -> Result<Place, Refusal> {
        let lane = lane(op);
        let mut list = lock(&self.0);
        let excludes = |r: &&Running| (lane.is_some() && r.lane == lane) || gives_way(op, r.op);
        if let Some(other) = list.running.iter().find(excludes) {
            let since_ms = u64::try_from(other.since.elapsed().as_millis()).unwrap_or(u64::MAX);
            return Err(Refusal::Occupied { op: other.op.into(), since_ms });
        }
        if list.running.len() >= MAX {
            return Err(Refusal::Overloaded);
        }
        let number = list.next;
        list.next += 1;
        list.running.push(Running { number, lane, op: op.name(), since: Instant::now() });
        Ok(Place { lanes: Arc::clone(&self.0), number })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let number = self.number;
        lock(&self.lanes).running.retain(|running| running.number != number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Marker;

    fn canary(target: &str) -> Op {
        Op::Canary { target: target.into() }
    }

    #[test]
    fn a_hanging_question_blocks_only_its_own_kind() {
        let lanes = Lanes::default();
        let hanging = lanes.enter(&canary("/a")).unwrap();
        assert!(matches!(lanes.enter(&canary("/a")), Err(Refusal::Occupied { .. })));
        lanes.enter(&canary("/b")).unwrap();
        lanes.enter(&Op::SyncFs { target: "/a".into() }).unwrap();
        lanes.enter(&Op::ServerStatus).unwrap();
        drop(hanging);
        lanes.enter(&canary("/a")).unwrap();
    }

    #[test]
    fn what_is_mended_comes_before_the_next_opening() {
        let marker = Marker { service: "s".into(), epoch: 1, generation: 1, node: "a".into() };
        let mend = Op::Mend { target: "/a".into(), marker: marker.clone() };
        let opening = Op::WriteMarker { target: "/a".into(), marker };
        let lanes = Lanes::default();
        let mending = lanes.enter(&mend).unwrap();
        assert!(matches!(lanes.enter(&opening), Err(Refusal::Occupied { op, .. }) if op == "mend"));
        drop(mending);
        let _writing = lanes.enter(&opening).unwrap();
        assert!(lanes.enter(&mend).is_err());
    }

    #[test]
    fn no_canary_begins_while_its_volume_is_let_go() {
        for closing in [Op::Unmount { target: "/a".into(), deadline_ms: 1 }, Op::ServerStop] {
            let lanes = Lanes::default();
            let canary_in_flight = lanes.enter(&canary("/a")).unwrap();
            let place = lanes.enter(&closing).unwrap();
            drop(canary_in_flight);
            assert!(matches!(lanes.enter(&canary("/a")),
                Err(Refusal::Occupied { op, .. }) if op == closing.name()));
            lanes.enter(&Op::SyncFs { target: "/a".into() }).unwrap();
            drop(place);
            lanes.enter(&canary("/a")).unwrap();
        }
    }

    #[test]
    fn a_stop_does_not_wait_for_an_expiry_that_hangs() {
        let lanes = Lanes::default();
        let expire = || Op::ExpireClients { names: Vec::new() };
        let _hanging = lanes.enter(&expire()).unwrap();
        assert!(matches!(lanes.enter(&expire()), Err(Refusal::Occupied { .. })));
        drop(lanes.enter(&Op::ServerStop).unwrap());
        lanes.enter(&Op::ServerStatus).unwrap();
    }

    #[test]
    fn s5_no_client_is_expired_while_the_server_is_stopped_or_started() {
        let unmount = Op::Unmount { target: "/a".into(), deadline_ms: 1 };
        for change in [Op::ServerStop, Op::Exit, unmount] {
            let lanes = Lanes::default();
            let place = lanes.enter(&change).unwrap();
            let expire = Op::ExpireClients { names: Vec::new() };
            assert!(matches!(lanes.enter(&expire),
                Err(Refusal::Occupied { op, .. }) if op == change.name()));
            drop(place);
            lanes.enter(&expire).unwrap();
        }
    }

    #[test]
    fn changes_exclude_each_other() {
        let lanes = Lanes::default();
        let _stop = lanes.enter(&Op::ServerStop).unwrap();
        let unmount = Op::Unmount { target: "/a".into(), deadline_ms: 1 };
        assert!(matches!(lanes.enter(&unmount),
            Err(Refusal::Occupied { op, .. }) if op == "server_stop"));
        let _one = lanes.enter(&Op::ServerStatus).unwrap();
        let _two = lanes.enter(&Op::ServerStatus).unwrap();
    }

    #[test]
    fn threads_are_limited() {
        let lanes = Lanes::default();
        let places: Vec<_> = (0..MAX).map(|_| lanes.enter(&Op::Records).unwrap()).collect();
        assert_eq!(lanes.enter(&Op::Records).unwrap_err(), Refusal::Overloaded);
        drop(places);
        lanes.enter(&Op::Records).unwrap();
    }
}
