//! Stalls as counters show them, made by hand and at random.

use super::*;
use proptest::prelude::*;

fn ms(n: u64) -> Now {
    Duration::from_millis(n)
}

fn t(connects: u64, sends: u64, recvs: u64) -> TcpTransport {
    TcpTransport { connects, sends, recvs, ..TcpTransport::default() }
}

fn read(transports: &[TcpTransport]) -> Reading {
    Reading::Counters { transports: transports.to_vec(), pending: None }
}

fn with_pending(transport: TcpTransport, pending: u64) -> Reading {
    Reading::Counters { transports: vec![transport], pending: Some(pending) }
}

/// Steps every 250 ms through the samples and collects what happens.
fn run(watch: &mut Watch, from: u64, samples: &[TcpTransport]) -> Vec<Event> {
    samples
        .iter()
        .enumerate()
        .flat_map(|(i, s)| watch.step(ms(from + 250 * i as u64), &read(&[*s])))
        .collect()
}

#[test]
fn work_and_idleness_are_no_stall() {
    let mut w = Watch::new(DEFAULT_THRESHOLD);
    let work: Vec<_> = (0..50).map(|i| t(1, 10 * i + i % 2, 10 * i)).collect();
    assert_eq!(run(&mut w, 0, &work), vec![]);
    assert_eq!(run(&mut w, 20_000, &vec![t(1, 491, 491); 100]), vec![]);
}

#[test]
fn a_failover_under_load() {
    let mut w = Watch::new(DEFAULT_THRESHOLD);
    let events = run(
        &mut w,
        0,
        &[
            t(1, 100, 100),
            t(1, 200, 199), // 250: a request waits
            t(1, 204, 199), // 500
            t(1, 204, 199), // 750: told
            t(1, 204, 199),
            t(2, 209, 199), // 1250: new connection, five sent again
            t(2, 240, 230), // 1500: answers
            t(2, 300, 295),
        ],
    );
    let report = Report { begin: ms(250), end: ms(1500), resolution: ms(250), reconnected: true };
    assert_eq!(
        events,
        [
            Event::Stalled { since: ms(250) },
            Event::Reconnected { connections: 1, at: ms(1250) },
            Event::Ended(report),
        ]
    );
    assert_eq!(report.length(), ms(1250));
}

#[test]
fn what_a_broken_connection_swallowed_is_no_stall_afterwards() {
    let mut w = Watch::new(DEFAULT_THRESHOLD);
    run(&mut w, 0, &[t(1, 100, 100), t(1, 105, 100), t(2, 110, 100), t(2, 110, 105)]);
    // Five are missing for ever. The mount is idle now.
    assert_eq!(run(&mut w, 1000, &vec![t(2, 110, 105); 100]), vec![]);
    assert_eq!(w.stalled_since(), None);
    // And a request that hangs is still seen.
    let events = run(&mut w, 30_000, &[t(2, 111, 105), t(2, 111, 105), t(2, 111, 105)]);
    assert_eq!(events, [Event::Stalled { since: ms(30_000) }]);
}

#[test]
fn a_request_after_a_pause_begins_the_stall_not_the_pause() {
    let mut w = Watch::new(ms(500));
    run(&mut w, 0, &vec![t(1, 50, 50); 40]);
    let events = run(&mut w, 10_000, &[t(1, 51, 50), t(1, 51, 50), t(1, 51, 50), t(1, 51, 51)]);
    assert_eq!(events[0], Event::Stalled { since: ms(10_000) });
    let Event::Ended(report) = events[1] else { panic!("{events:?}") };
    assert_eq!((report.begin, report.end), (ms(10_000), ms(10_750)));
    assert!(!report.reconnected);
}

#[test]
fn the_kernels_own_number_decides() {
    let mut w = Watch::new(ms(500));
    // A reply to a callback: sent, never answered, and nothing waits.
    for i in 0..20 {
        assert_eq!(
            w.step(ms(250 * i), &with_pending(t(1, 100 + u64::from(i > 2), 100), 0)),
            vec![]
        );
    }
    // All slots full before the first sample: the difference never moves, and still it is a stall.
    let mut w = Watch::new(ms(500));
    let full = |at| w_step(at, 32);
    fn w_step(at: u64, pending: u64) -> (Now, Reading) {
        (ms(at), with_pending(t(1, 132, 100), pending))
    }
    let events: Vec<_> = [0, 250, 500, 750]
        .into_iter()
        .flat_map(|at| {
            let (now, reading) = full(at);
            w.step(now, &reading)
        })
        .collect();
    assert_eq!(events, [Event::Stalled { since: ms(250) }]);
}

#[test]
fn one_connection_of_several_is_enough() {
    let mut w = Watch::new(ms(500));
    let mut events = Vec::new();
    for i in 0..10_u64 {
        let busy = t(1, 100 + 10 * i, 100 + 10 * i);
        let stuck = t(1, if i == 0 { 50 } else { 52 }, 50);
        events.extend(w.step(ms(250 * i), &read(&[busy, stuck])));
    }
    assert_eq!(events, [Event::Stalled { since: ms(250) }]);
}

#[test]
fn an_idle_connection_beside_a_busy_one_is_not_stalled() {
    let mut w = Watch::new(ms(500));
    for i in 0..40_u64 {
        let transports = vec![t(1, 101 + 10 * i, 100 + 10 * i), t(1, 7, 7)];
        let reading = Reading::Counters { transports, pending: Some(1) };
        assert_eq!(w.step(ms(250 * i), &reading), vec![]);
    }
}

#[test]
fn unknown_changes_nothing() {
    let mut w = Watch::new(ms(500));
    run(&mut w, 0, &[t(1, 10, 10), t(1, 12, 10), t(1, 12, 10), t(1, 12, 10)]);
    assert_eq!(w.stalled_since(), Some(ms(250)));
    assert_eq!(w.step(ms(5000), &Reading::Unknown), vec![]);
    assert_eq!(w.stalled_since(), Some(ms(250)));
    let events = w.step(ms(6000), &read(&[t(1, 12, 12)]));
    let Event::Ended(report) = events[0] else { panic!("{events:?}") };
    assert_eq!(report.resolution, ms(5250), "nothing was seen in between");
}

#[test]
fn an_unmount_ends_it_and_another_mount_begins_anew() {
    let mut w = Watch::new(ms(500));
    run(&mut w, 0, &[t(1, 10, 10), t(1, 12, 10), t(1, 12, 10), t(1, 12, 10)]);
    assert!(matches!(w.step(ms(1000), &Reading::Gone)[..], [Event::Ended(_)]));
    assert_eq!(w.step(ms(1250), &read(&[t(1, 3, 3)])), vec![]);
    let events = w.step(ms(1500), &read(&[t(1, 1, 1)]));
    assert_eq!(events, [Event::Restarted]);
}

#[test]
fn a_floor_follows_callbacks_after_a_minute() {
    let mut w = Watch::new(ms(500));
    run(&mut w, 0, &[t(1, 10, 10)]);
    // From here on the difference is 1 for ever; a renewal every ten seconds.
    let mut late = 0;
    for i in 0..600_u64 {
        let renewals = i / 40;
        let events = w.step(ms(250 + 250 * i), &read(&[t(1, 11 + renewals, 10 + renewals)]));
        late += usize::from(i > 400 && !events.is_empty());
    }
    assert_eq!(late, 0);
    assert_eq!(w.stalled_since(), None);
}

#[test]
fn a_lost_connection_hides_the_kernels_number_but_ends_nothing() {
    let mut w = Watch::new(ms(500));
    let mut events = Vec::new();
    for (i, pending) in [Some(32), Some(32), None, None, None, Some(32)].into_iter().enumerate() {
        // All slots were full before the first sample, so the counters alone say nothing.
        let reading = Reading::Counters { transports: vec![t(1, 132, 100)], pending };
        events.extend(w.step(ms(250 * i as u64), &reading));
    }
    assert_eq!(events, [Event::Stalled { since: ms(250) }]);
}

#[test]
fn a_stall_that_begins_with_a_broken_connection_is_seen() {
    let mut w = Watch::new(ms(500));
    let mut events = Vec::new();
    for (i, pending) in [Some(32), Some(32), None, None, None, None].into_iter().enumerate() {
        let done = 20 * (i as u64).min(2);
        let reading = Reading::Counters { transports: vec![t(1, 132 + done, 100 + done)], pending };
        events.extend(w.step(ms(250 * i as u64), &reading));
    }
    assert_eq!(events, [Event::Stalled { since: ms(500) }]);
    // Nothing waits after all: it was answered just before.
    let reading = Reading::Counters { transports: vec![t(2, 172, 140)], pending: Some(0) };
    assert!(matches!(w.step(ms(2000), &reading)[..], [Event::Reconnected { .. }, Event::Ended(_)]));
}

/// A client with `depth` requests always under way and a server that is up or down.
fn loaded(depth: u64, up: &[bool]) -> (Vec<Event>, Vec<(u64, u64)>) {
    let (mut w, mut events, mut downs) = (Watch::new(ms(500)), Vec::new(), Vec::new());
    let (mut sends, mut recvs, mut connects, mut was) = (depth, 0, 1, true);
    for (i, up) in up.iter().enumerate() {
        let i = i as u64;
        match (was, up) {
            (_, true) => {
                if !was {
                    connects += 1;
                    sends += depth;
                }
                sends += 20;
                recvs += 20;
            }
            (true, false) => downs.push((i, i)),
            (false, false) => downs.last_mut().unwrap().1 = i,
        }
        was = *up;
        let transports = vec![t(connects, sends, recvs)];
        let pending = Some(depth);
        events.extend(w.step(ms(250 * i), &Reading::Counters { transports, pending }));
    }
    (events, downs)
}

fn sample() -> impl Strategy<Value = Reading> {
    let line = (0_u64..3, 0_u64..200, 0_u64..200).prop_map(|(c, s, r)| t(c, s, r));
    prop_oneof![
        6 => (proptest::collection::vec(line, 0..3), proptest::option::of(0_u64..3))
            .prop_map(|(transports, pending)| Reading::Counters { transports, pending }),
        1 => Just(Reading::Unknown),
        1 => Just(Reading::Gone),
    ]
}

proptest! {
    /// Every end has a beginning that was told, and no stall ends before it begins.
    #[test]
    fn ends_follow_beginnings(samples in proptest::collection::vec((0_u64..2000, sample()), 0..120)) {
        let mut w = Watch::new(ms(500));
        let (mut now, mut open) = (0, None);
        for (gap, reading) in samples {
            now += gap;
            for event in w.step(ms(now), &reading) {
                match event {
                    Event::Stalled { since } => {
                        prop_assert!(open.is_none());
                        prop_assert!(ms(now) - since >= ms(500));
                        open = Some(since);
                    }
                    Event::Ended(report) => {
                        prop_assert_eq!(open.take(), Some(report.begin));
                        prop_assert!(report.end >= report.begin);
                    }
                    _ => {}
                }
            }
            prop_assert_eq!(w.stalled_since(), open);
        }
    }

    /// A server that answers everything at once never stalls, whatever the load and the history.
    #[test]
    fn a_prompt_server_never_stalls(steps in proptest::collection::vec((1_u64..50, 0_u64..3), 1..100),
                                    lost in 0_u64..9) {
        let mut w = Watch::new(ms(500));
        let (mut sends, mut recvs, mut connects) = (lost, 0, 1);
        for (i, (done, broken)) in steps.into_iter().enumerate() {
            sends += done;
            recvs += done;
            // A connection that breaks swallows some requests, which are sent again and answered.
            if broken == 2 {
                connects += 1;
                sends += 4;
            }
            let events = w.step(ms(250 * i as u64), &read(&[t(connects, sends, recvs)]));
            let stalled = events.iter().any(|e| matches!(e, Event::Stalled { .. }));
            prop_assert!(!stalled, "{:?}", events);
        }
    }

    /// Under load, with the kernel's own number: each long silence is one stall of its length.
    #[test]
    fn stalls_under_load(depth in 1_u64..64, up in proptest::collection::vec((any::<bool>(), 4_usize..12), 1..12)) {
        let samples: Vec<bool> = up.iter().flat_map(|(up, n)| vec![*up; *n]).chain([true; 4]).collect();
        let samples = [vec![true; 4], samples].concat();
        let (events, downs) = loaded(depth, &samples);
        let reports: Vec<Report> = events.iter().filter_map(|e| match e {
            Event::Ended(report) => Some(*report),
            _ => None,
        }).collect();
        prop_assert_eq!(reports.len(), downs.len());
        for (report, (first, last)) in reports.iter().zip(downs) {
            prop_assert!(report.reconnected);
            prop_assert_eq!(report.end, ms(250 * (last + 1)));
            prop_assert_eq!(report.begin, ms(250 * (first - 1)), "last sample with an answer");
        }
    }

    /// Extreme numbers are survived.
    #[test]
    fn any_numbers(all in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..20)) {
        let mut w = Watch::new(ms(0));
        for (i, (c, s, r)) in all.into_iter().enumerate() {
            let _ = w.step(ms(i as u64), &read(&[t(c, s, r)]));
        }
    }
}
