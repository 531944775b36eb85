//! A hundred thousand schedules, two at a time, and not one broken promise.

#![allow(clippy::expect_used, clippy::panic, reason = "a test says so when it fails")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use model::schedule::Bench;
use model::trace::Trace;

/// More can be run with `MODEL_SEEDS`.
const SEEDS: u64 = 100_000;
const THREADS: u64 = 2;

#[test]
fn hundred_thousand_seeds() {
    let wanted = std::env::var("MODEL_SEEDS").ok().and_then(|text| text.parse().ok());
    let seeds = wanted.unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let broken: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(|| search(&next, seeds))).collect();
        workers.into_iter().flat_map(|w| w.join().expect("a worker")).collect()
    });
    let shown = broken.iter().take(20).cloned().collect::<Vec<_>>().join("\n");
    assert!(
        broken.is_empty(),
        "{} of {seeds} schedules broke a promise; replay one with `cargo run -p model -- replay SEED`:\n{shown}",
        broken.len()
    );
}

fn search(next: &AtomicU64, seeds: u64) -> Vec<String> {
    let bench = Bench::new(None);
    let mut broken = Vec::new();
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds {
            return broken;
        }
        if let Some(violation) = bench.run(seed, Trace::default()).violation {
            broken.push(format!("seed {seed}: {}: {}", violation.property, violation.text));
        }
    }
}

#[test]
fn a_seed_means_the_same_schedule_every_time() {
    let (one, two) = (Bench::new(None), Bench::new(None));
    for seed in 0..30 {
        let (a, b) = (one.run(seed, Trace::kept()), two.run(seed, Trace::kept()));
        assert_eq!((a.steps, a.acked, a.violation), (b.steps, b.acked, b.violation));
        assert_eq!(a.trace.to_string(), b.trace.to_string(), "seed {seed}");
    }
}
