//! Running jobs and announced moves.

use std::collections::HashMap;

use proptest::prelude::*;
use zbus::{OwnedVariant, Variant};

use super::*;

const RUNNING: DomainState = DomainState::Running;

/// A move in 10 s that stalls for 5 s and has a grace of 15 s.
const WINDOW: Window = Window {
    starts_in: Duration::from_secs(10),
    outage: Duration::from_secs(5),
    grace: Duration::from_secs(15),
};

fn migration(remaining_mib: u64, speed_mib: u64, dirty_mib: u64) -> Job {
    Job {
        operation: Operation::MigrationOut,
        elapsed: Duration::from_secs(3),
        begun: true,
        remaining: Some(remaining_mib * MIB),
        speed: Some(speed_mib * MIB),
        dirty: Some(dirty_mib * MIB),
        iteration: Some(2),
        post_copy: false,
    }
}

fn judged(job: &Job) -> Verdict {
    classify(job, RUNNING, None, &WINDOW, &Caution::default())
}

#[test]
fn s11_a_migration_below_its_limit_may_reach_it_any_moment() {
    let job = migration(432, 1, 0);
    let with = |limit| classify(&job, RUNNING, limit, &WINDOW, &Caution::default());
    assert_eq!(with(None), Verdict::LetRun);
    assert_eq!(with(Some(2)), Verdict::LetRun, "the limit is slow enough");
    assert!(matches!(with(Some(100)), Verdict::SlowDown { .. }), "{:?}", with(Some(100)));
    assert!(matches!(with(Some(u64::MAX)), Verdict::SlowDown { .. }));
}

#[test]
fn s11_a_migration_that_ends_in_time_is_let_finish() {
    let verdict = judged(&migration(200, 100, 10));
    assert_eq!(verdict, Verdict::LetFinish { within: Duration::from_secs(5) });
}

#[test]
fn s11_in_its_first_round_no_end_is_promised() {
    let first = Job { iteration: Some(1), ..migration(200, 100, 0) };
    assert!(
        !matches!(judged(&first), Verdict::LetFinish { .. }),
        "what the guest changes is unknown"
    );
}

#[test]
fn s11_a_migration_far_from_its_end_is_let_run() {
    assert_eq!(judged(&migration(10_000, 100, 80)), Verdict::LetRun);
}

#[test]
fn s11_a_migration_that_would_end_inside_is_slowed_down() {
    let verdict = judged(&migration(1000, 100, 60));
    assert_eq!(
        verdict,
        Verdict::SlowDown { mib_per_second: 30, holds_for: Duration::from_millis(33_333) }
    );
}

#[test]
fn s11_or_aborted_when_slow_is_not_slow_enough() {
    assert_eq!(judged(&migration(20, 100, 60)), Verdict::AbortAndRetry);
    let unmeasured = Job { speed: None, ..migration(1000, 1, 0) };
    assert_eq!(judged(&unmeasured), Verdict::AbortAndRetry);
}

#[test]
fn s11_a_switchover_under_way_is_waited_for_and_a_post_copy_never_touched() {
    let job = migration(1, 100, 0);
    let judge = |job: &Job, state| {
        classify(job, DomainState::of(state), None, &WINDOW, &Caution::default())
    };
    assert_eq!(judge(&job, (3, 2)), Verdict::Wait);
    assert_eq!(judge(&job, (3, 12)), Verdict::LetRun);
    let drawing = Job { post_copy: true, ..job };
    assert_eq!(judge(&drawing, (1, 0)), Verdict::LetRun);
}

#[test]
fn other_jobs_have_no_switchover_and_unnamed_ones_might() {
    let of = |operation| judged(&Job { operation, ..migration(10, 100, 0) });
    assert_eq!(of(Operation::Backup), Verdict::LetRun);
    assert_eq!(of(Operation::MigrationIn), Verdict::AtSource);
    assert_eq!(of(Operation::Unknown), Verdict::Wait);
}

fn params(values: &[(&str, u64)]) -> Params {
    let twice = |value| Variant::Variant(Box::new(Variant::U64(value)));
    let entry = |(key, value): &(&str, u64)| {
        (str::to_owned(key), OwnedVariant::try_from(twice(*value)).unwrap())
    };
    values.iter().map(entry).collect()
}

#[test]
fn statistics_are_read_as_the_bridge_wraps_them() {
    let mut params = params(&[
        ("time_elapsed", 1500),
        ("data_remaining", 4096),
        ("memory_remaining", 1),
        ("memory_bps", 1000),
        ("memory_dirty_rate", 3),
        ("memory_page_size", 4096),
        ("memory_iteration", 2),
        ("memory_postcopy_requests", 0),
    ]);
    let operation = Variant::Variant(Box::new(Variant::I32(5)));
    params.insert("operation".to_owned(), OwnedVariant::try_from(operation).unwrap());
    let job = Job::of(2, &params).unwrap();
    assert_eq!(job.operation, Operation::MigrationOut);
    assert_eq!((job.remaining, job.speed, job.dirty), (Some(4096), Some(1000), Some(12288)));
    assert_eq!((job.elapsed, job.post_copy), (Duration::from_millis(1500), false));
}

#[test]
fn no_job_and_an_ended_job_are_none() {
    for kind in [-1, 0, 3, 4, 5, 6] {
        assert_eq!(Job::of(kind, &HashMap::new()), None, "{kind}");
    }
    let bare = Job::of(1, &HashMap::new()).unwrap();
    assert_eq!((bare.operation, bare.remaining), (Operation::Unknown, None));
}

fn any_job() -> impl Strategy<Value = Job> {
    let numbers = (any::<Option<u64>>(), any::<Option<u64>>(), any::<Option<u64>>());
    numbers.prop_map(|(remaining, speed, dirty)| Job {
        remaining,
        speed,
        dirty,
        ..migration(0, 1, 0)
    })
}

proptest! {
    /// S11: whatever the numbers, a migration that is let go on cannot switch over inside the
    /// window: not at any speed within the caution's bounds or up to its limit, and not if the guest stops writing.
    #[test]
    fn s11_no_verdict_lets_a_switchover_into_the_window(
        remaining in 0_u64..1 << 42,
        speed in 1_u64..1 << 36,
        dirty in 0_u64..1 << 36,
        starts in 0_u64..600,
        outage in 0_u64..120,
        grace in 0_u64..120,
        real_percent in 50_u64..=150,
        limit in proptest::option::of(1_u64..1 << 20),
    ) {
        let s = Duration::from_secs;
        let window = Window { starts_in: s(starts), outage: s(outage), grace: s(grace) };
        let job = Job {
            remaining: Some(remaining), speed: Some(speed), dirty: Some(dirty),
            ..migration(0, 1, 0)
        };
        let real = speed as f64 * real_percent as f64 / 100.0;
        match classify(&job, RUNNING, limit, &window, &Caution::default()) {
            Verdict::LetFinish { .. } => {
                let end = remaining as f64 / (real - dirty as f64);
                prop_assert!(end <= starts as f64, "ends after {end} s");
            }
            Verdict::LetRun => {
                let fastest = real.max((limit.unwrap_or(0) * MIB) as f64);
                let earliest = remaining as f64 / fastest;
                prop_assert!(earliest + 0.01 >= (starts + outage + grace) as f64);
            }
            Verdict::SlowDown { mib_per_second, holds_for } => {
                prop_assert!(mib_per_second >= 1);
                let earliest = remaining as f64 / (mib_per_second * MIB) as f64;
                prop_assert!(earliest + 0.01 >= (starts + outage + grace) as f64);
                prop_assert!(holds_for >= s(starts + outage + grace));
            }
            Verdict::AbortAndRetry => {}
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn no_numbers_overflow(job in any_job(), limit: Option<u64>, seconds: u64, percent: u32) {
        let huge = Duration::from_secs(seconds);
        let window = Window { starts_in: huge, outage: huge, grace: huge };
        let caution = Caution { margin: huge, speed_percent: percent };
        let _ = classify(&job, RUNNING, limit, &window, &caution);
    }
}
