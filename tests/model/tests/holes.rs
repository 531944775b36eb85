//! Every hole that is put back must be found: a seed breaks the property that the hole is about, and
//! the same seed breaks nothing without the hole.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says so when it fails")]

use model::hole::Planted;
use model::schedule::Bench;
use model::trace::Trace;

/// Searches until the hole shows.
fn finds(hole: &str, expected: &[&str], seeds: u64) {
    let planted: Planted = hole.parse().expect("a known hole");
    let (open, shut) = (Bench::new(Some(planted)), Bench::new(None));
    let mut others = Vec::new();
    for seed in 0..seeds {
        let Some(violation) = open.run(seed, Trace::default()).violation else { continue };
        if !expected.contains(&violation.property) {
            others.push((seed, violation.property));
            continue;
        }
        if shut.run(seed, Trace::default()).violation.is_none() {
            println!("{hole}: seed {seed}: {}: {}", violation.property, violation.text);
            return;
        }
    }
    panic!("{hole} was not found by {seeds} seeds; others: {others:?}");
}

const BACK: &str = "I16 back only by compare-and-set";
const CURRENT: &str = "I2 current is complete";
const FREEZE: &str = "I14 no freeze for ever";
const PROGRESS: &str = "I13 progress";

#[test]
fn finds_c1_a_demoted_owner_comes_back_without_a_compare_and_set() {
    finds("c1", &[BACK, "I1 one writer"], 5000);
}

#[test]
fn finds_c2_a_failed_disk_is_forgotten() {
    finds("c2", &[CURRENT, "lost write"], 5000);
}

#[test]
fn finds_c3_a_deadline_counted_from_the_writing() {
    finds("c3", &["I4 one gate"], 5000);
}

#[test]
fn finds_c4_a_late_demotion_is_rolled_back() {
    finds("c4", &[BACK, "I1 one writer"], 20_000);
}

#[test]
fn finds_c5_an_unknown_outcome_is_not_superseded() {
    finds("c5", &[CURRENT, "I8 helper", "lost write"], 40_000);
}

#[test]
fn finds_c7_grace_runs_out_before_the_gate_opens() {
    finds("c7", &["I5 grace"], 10_000);
}

#[test]
fn finds_h1_a_plain_disconnect_outdates_the_taker() {
    finds("h1", &[PROGRESS, CURRENT, "I3 somebody has it all"], 5000);
}

#[test]
fn finds_h2_a_helper_that_failed_once() {
    finds("h2", &[FREEZE], 5000);
}

#[test]
fn finds_h3_taken_before_it_was_known_to_open() {
    finds("h3", &["I13 ready before taking"], 5000);
}

#[test]
fn finds_h4_a_hanging_nasd_counts_as_alive() {
    finds("h4", &[PROGRESS], 5000);
}

#[test]
fn finds_h5_a_sole_owner_loses_its_gate() {
    finds("h5", &["I20 a sole owner keeps its gate"], 5000);
}

#[test]
fn finds_h6_a_frozen_owner_without_the_coordinator() {
    finds("h6", &[FREEZE], 5000);
}

#[test]
fn finds_h7_nasd_blocks_on_the_frozen_volume() {
    finds("h7", &[FREEZE, PROGRESS], 2000);
}
