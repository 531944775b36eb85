//! A planned move, and every way to disturb it once or twice.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says so when it fails")]

use model::explore::{Bound, planned_move};
use model::hole::Planted;
use model::schedule::Bench;

fn search(hole: Option<Planted>, bound: &Bound) -> model::explore::Found {
    let found = planned_move(Bench::new(hole).steady(), bound);
    println!(
        "{} schedules, {} states branched, {} met again",
        found.schedules, found.states, found.known
    );
    found
}

#[test]
fn every_single_disturbance_of_a_planned_move_keeps_the_promises() {
    let found = search(None, &Bound::one());
    assert_eq!(found.violation, None);
    assert!(found.schedules > 1000, "{}", found.schedules);
}

#[test]
fn every_pair_of_disturbances_of_a_planned_move_keeps_the_promises() {
    let found = search(None, &Bound::two());
    assert_eq!(found.violation, None);
    assert!(found.schedules > 10_000, "{}", found.schedules);
}

#[test]
fn finds_c1_without_chance() {
    let hole = "c1".parse().expect("a known hole");
    let (violation, way) = search(Some(hole), &Bound::two()).violation.expect("a violation");
    assert_eq!(violation.property, "I16 back only by compare-and-set", "{way:?}");
}
