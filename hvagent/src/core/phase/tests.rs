//! The whole transition table, the ways through it, and what holds on every way.

use super::*;
use proptest::prelude::*;

fn s(n: u64) -> Now {
    Duration::from_secs(n)
}

fn read(asked: u64) -> Event {
    Event::Read { asked: s(asked), answer: Answer::Good }
}

fn open(asked: u64) -> Event {
    Event::FreshOpen { asked: s(asked), answer: Answer::Good }
}

fn checked(asked: u64) -> Event {
    Event::Checked { asked: s(asked), problems: vec![] }
}

fn lossy(asked: u64) -> Event {
    Event::Checked { asked: s(asked), problems: vec!["192.0.2.50: lost 2 locks".into()] }
}

fn announced(id: MoveId, seconds: u64) -> Event {
    Event::Announced { id, lease: s(seconds) }
}

/// Runs through events at their seconds.
fn run(m: &mut Machine, events: &[(u64, Event)]) -> Vec<Effect> {
    events.iter().flat_map(|(at, e)| m.step(s(*at), e.clone())).collect()
}

fn fresh() -> Machine {
    Machine::new(s(0), Timing::default())
}

fn after(events: &[(u64, Event)]) -> Machine {
    let mut m = fresh();
    run(&mut m, events);
    m
}

fn way() -> Vec<(u64, Event)> {
    vec![
        (1, announced(7, 30)),
        (2, Event::CutBegun { id: 7 }),
        (3, Event::Reconnected),
        (4, read(3)),
        (5, open(4)),
        (6, checked(5)),
        (7, Event::Settled),
    ]
}

#[test]
fn a_planned_move_from_end_to_end() {
    let mut m = fresh();
    let effects = run(&mut m, &way());
    use Effect::{Hold, Probe, Release, Reply, ResumeGuests, Settle, Tell, Verify};
    assert_eq!(
        effects,
        [
            Hold,
            Tell(Phase::Announced),
            Reply { id: 7, taken: Ok(()) },
            Tell(Phase::Moving),
            Probe(Probing::Reads),
            Tell(Phase::IoBack),
            Probe(Probing::Opens),
            Tell(Phase::OpensBack),
            Probe(Probing::Rest),
            Verify { since: s(0) },
            ResumeGuests,
            Tell(Phase::Verified),
            Release,
            Settle,
            Tell(Phase::Normal),
        ]
    );
    let again = m.step(s(8), announced(7, 30));
    assert_eq!(again, [Reply { id: 7, taken: Err(NotReady::Stale { id: 7, known: 7 }) }]);
}

#[test]
fn s12_an_answer_of_the_old_server_proves_nothing() {
    // Asked after the word of the cut, answered by the old server before it went silent.
    let mut m = after(&way()[..2]);
    m.step(s(3), read(2));
    assert_eq!(m.phase(), Phase::Moving);
    // Asked before the new connection, answered after it.
    m.step(s(4), Event::Reconnected);
    m.step(s(5), read(3));
    assert_eq!(m.phase(), Phase::Moving);
    // The end of a stall is no proof while a cut is under way.
    let mut m = after(&way()[..2]);
    run(&mut m, &[(3, Event::StallEnded), (4, read(3))]);
    assert_eq!(m.phase(), Phase::Moving);
    // An open needs the read first.
    run(&mut m, &[(5, Event::Reconnected), (6, open(5))]);
    assert_eq!(m.phase(), Phase::Moving);
}

#[test]
fn an_unplanned_failover_is_seen_without_a_word_of_nasd() {
    let m = after(&[(1, Event::Stalled), (30, Event::Reconnected), (31, read(30)), (40, open(31))]);
    assert_eq!(m.phase(), Phase::OpensBack);
    let m = after(&[(1, Event::Stalled), (5, Event::StallEnded), (6, read(5))]);
    assert_eq!(m.phase(), Phase::IoBack, "a server that was only slow");
    let m = after(&[(1, Event::Reconnected)]);
    assert_eq!(m.phase(), Phase::Moving, "nobody knows yet whether opens work");
}

#[test]
fn a_second_failover_begins_anew() {
    let mut m = after(&way()[..5]);
    assert_eq!(m.phase(), Phase::OpensBack);
    m.step(s(6), Event::Reconnected);
    assert_eq!(m.phase(), Phase::Moving);
    run(&mut m, &[(7, read(5)), (7, checked(6))]);
    assert_eq!(m.phase(), Phase::Moving, "what was asked before does not count");
}

#[test]
fn s11_an_announcement_ends_by_itself() {
    let mut m = after(&[(1, announced(7, 30))]);
    let delay = Verdict::Delay { until: s(31), because: Phase::Announced };
    assert_eq!(m.gate(s(30), Operation::Migrate), delay);
    assert_eq!(m.gate(s(31), Operation::Migrate), Verdict::Permit, "though nothing has stepped");
    assert_eq!(m.due(), Some(s(31)));
    assert_eq!(m.step(s(31), Event::Tick), [Effect::Tell(Phase::Normal), Effect::Release]);
}

#[test]
fn s11_a_lease_is_cut_to_its_longest() {
    let m = after(&[(0, announced(7, 86_400))]);
    assert_eq!(m.due(), Some(Timing::default().longest_lease));
}

#[test]
fn an_announcement_without_time_is_none_and_takes_none_back() {
    let mut m = fresh();
    let over = [Effect::Reply { id: 7, taken: Err(NotReady::Over { id: 7 }) }];
    assert_eq!(m.step(s(1), announced(7, 0)), over);
    assert_eq!(m.phase(), Phase::Normal);
    m.step(s(2), announced(7, 30));
    assert_eq!(m.step(s(3), announced(7, 0)), over);
    assert_eq!(m.due(), Some(s(32)));
}

#[test]
fn a_renewal_moves_the_end_and_a_newer_move_replaces() {
    let mut m = after(&[(1, announced(7, 30)), (20, announced(7, 30))]);
    assert_eq!(m.due(), Some(s(50)));
    m.step(s(21), announced(9, 10));
    assert_eq!(m.due(), Some(s(31)));
    let refused = m.step(s(22), announced(8, 10));
    let taken = Err(NotReady::Stale { id: 8, known: 9 });
    assert_eq!(refused, [Effect::Reply { id: 8, taken }]);
}

#[test]
fn withdrawn_before_and_after_the_cut() {
    let mut m = after(&[(1, announced(7, 30)), (2, Event::Withdrawn { id: 7 })]);
    assert_eq!(m.phase(), Phase::Normal);
    m.step(s(3), Event::CutBegun { id: 7 });
    assert_eq!(m.phase(), Phase::Normal, "a word that was overtaken");
    // After the cut the old owner serves again: that has to be seen, too.
    let mut m = after(&way()[..2]);
    m.step(s(3), Event::Withdrawn { id: 7 });
    assert_eq!(m.phase(), Phase::Moving);
    m.step(s(4), read(3));
    assert_eq!(m.phase(), Phase::IoBack);
}

#[test]
fn an_announcement_outlives_a_hiccup() {
    let mut m = after(&[(1, announced(7, 200)), (2, Event::Stalled), (3, Event::StallEnded)]);
    run(&mut m, &[(4, read(3)), (5, open(4)), (6, checked(5))]);
    assert_eq!(m.phase(), Phase::Verified);
    assert!(matches!(m.gate(s(6), Operation::Migrate), Verdict::Delay { .. }));
    m.step(s(7), Event::Settled);
    assert_eq!(m.phase(), Phase::Announced);
    m.step(s(8), Event::CutBegun { id: 7 });
    assert_eq!(m.phase(), Phase::Moving);
}

#[test]
fn s12_what_was_not_verified_is_verified_later() {
    let since = |m: &mut Machine, events: &[(u64, Event)]| {
        let effects = run(m, events).into_iter();
        effects.filter(|e| matches!(e, Effect::Verify { .. })).collect::<Vec<_>>()
    };
    let mut m = after(&way());
    // A failover, and a second one before the first was verified; then one that was found lossy.
    let second = [(20, Event::Reconnected), (21, read(20)), (22, open(21))];
    assert_eq!(since(&mut m, &second), [Effect::Verify { since: s(5) }]);
    let third = [(23, Event::Reconnected), (24, read(23)), (25, open(24)), (26, lossy(25))];
    assert_eq!(since(&mut m, &third), [Effect::Verify { since: s(5) }]);
    let fourth = [(30, Event::Reconnected), (31, read(30)), (32, open(31))];
    assert_eq!(since(&mut m, &fourth), [Effect::Verify { since: s(5) }], "nobody accepted it");
    run(&mut m, &[(33, lossy(32)), (40, Event::Accepted), (41, Event::Settled)]);
    let fifth = [(50, Event::Reconnected), (51, read(50)), (52, open(51))];
    assert_eq!(since(&mut m, &fifth), [Effect::Verify { since: s(40) }]);
}

#[test]
fn busy_mounts_take_no_announcement() {
    let mut m = after(&way()[..4]);
    let taken = Err(NotReady::Busy(Phase::IoBack));
    assert_eq!(m.step(s(5), announced(8, 30)), [Effect::Reply { id: 8, taken }]);
}

#[test]
fn too_late_is_failed_and_late_is_better_than_never() {
    let mut m = after(&way()[..2]);
    m.step(s(123), Event::Tick);
    assert_eq!(m.phase(), Phase::Failed(Cause::IoNotBack));
    run(&mut m, &[(500, Event::Reconnected), (501, read(500))]);
    assert_eq!(m.phase(), Phase::IoBack);
    m.step(s(700), Event::Tick);
    assert_eq!(m.phase(), Phase::Failed(Cause::OpensNotBack));
    run(&mut m, &[(701, open(700)), (702, checked(701))]);
    assert_eq!(m.phase(), Phase::Verified);
}

#[test]
fn s12_no_verification_is_no_verification() {
    let mut m = after(&way()[..5]);
    m.step(s(90), Event::Tick);
    assert_eq!(m.phase(), Phase::Failed(Cause::Unverified));
    assert_eq!(m.problems(), ["the verification did not end in time"]);
}

#[test]
fn lost_locks_need_an_operator() {
    let mut m = after(&way()[..5]);
    m.step(s(6), lossy(5));
    assert_eq!(m.phase(), Phase::Failed(Cause::Unverified));
    assert_eq!(m.problems(), ["192.0.2.50: lost 2 locks"]);
    let refused = Verdict::Refuse { because: m.phase() };
    assert_eq!(m.gate(s(7), Operation::Migrate), refused);
    run(&mut m, &[(8, Event::Accepted), (9, Event::Settled)]);
    assert_eq!(m.phase(), Phase::Normal);
}

#[test]
fn s11_a_hold_has_an_end() {
    let mut m = after(&[(1, Event::Stalled)]);
    let effects = run(&mut m, &[(200, Event::Tick), (601, Event::Tick), (900, Event::Tick)]);
    assert_eq!(effects, [Effect::Tell(Phase::Failed(Cause::IoNotBack)), Effect::Release]);
}

#[test]
fn a_word_on_what_is_known_changes_nothing() {
    let mut m = after(&way());
    assert_eq!(m.step(s(9), Event::ServiceOpened { id: 7 }), vec![]);
    assert_eq!(m.step(s(9), Event::CutBegun { id: 7 }), vec![]);
    assert_eq!(m.phase(), Phase::Normal);
    // A newer one means that a move was missed.
    m.step(s(10), Event::ServiceOpened { id: 9 });
    assert_eq!(m.phase(), Phase::Moving);
    m.step(s(11), read(10));
    assert_eq!(m.phase(), Phase::IoBack);
}

#[test]
fn a_dead_descriptor_is_opened_anew_and_proves_nothing() {
    let mut m = after(&way()[..3]);
    let stale = Event::Read { asked: s(3), answer: Answer::Error(116) };
    assert_eq!(m.step(s(4), stale), [Effect::Rehold]);
    assert_eq!(m.phase(), Phase::Moving);
}

/// Ways into every phase.
fn phases() -> Vec<(&'static str, Machine)> {
    let unverified = [way()[..5].to_vec(), vec![(6, lossy(5))]].concat();
    let no_io = [way()[..2].to_vec(), vec![(123, Event::Tick)]].concat();
    let no_opens = [way()[..4].to_vec(), vec![(125, Event::Tick)]].concat();
    vec![
        ("normal", after(&[])),
        ("announced", after(&[(100, announced(7, 50))])),
        ("moving", after(&way()[..3])),
        ("io_back", after(&way()[..4])),
        ("opens_back", after(&way()[..5])),
        ("verified", after(&way()[..6])),
        ("failed: io", after(&no_io)),
        ("failed: opens", after(&no_opens)),
        ("failed: unverified", after(&unverified)),
    ]
}

fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Normal => "normal",
        Phase::Announced => "announced",
        Phase::Moving => "moving",
        Phase::IoBack => "io_back",
        Phase::OpensBack => "opens_back",
        Phase::Verified => "verified",
        Phase::Failed(Cause::IoNotBack) => "failed: io",
        Phase::Failed(Cause::OpensNotBack) => "failed: opens",
        Phase::Failed(Cause::Unverified) => "failed: unverified",
    }
}

/// Moves that do not happen are left out.
fn transitions() -> String {
    let asked = 125;
    let events = [
        ("announced", announced(9, 50)),
        ("withdrawn", Event::Withdrawn { id: 7 }),
        ("cut", Event::CutBegun { id: 9 }),
        ("opened", Event::ServiceOpened { id: 9 }),
        ("stalled", Event::Stalled),
        ("stall ended", Event::StallEnded),
        ("reconnected", Event::Reconnected),
        ("read", read(asked)),
        ("open", open(asked)),
        ("checked", checked(asked)),
        ("checked: bad", lossy(asked)),
        ("settled", Event::Settled),
        ("accepted", Event::Accepted),
    ];
    let mut out = String::new();
    for (from, machine) in phases() {
        for (event, what) in &events {
            let mut m = machine.clone();
            // Within every deadline of the phase: the events that led here came just before.
            let now = m.since().max(s(0)) + s(1);
            let what = match what.clone() {
                Event::Read { .. } => read(now.as_secs()),
                Event::FreshOpen { .. } => open(now.as_secs()),
                Event::Checked { problems, .. } => Event::Checked { asked: now, problems },
                other => other,
            };
            m.step(now, what);
            if name(m.phase()) != from {
                out.push_str(&format!("{from} --{event}--> {}\n", name(m.phase())));
            }
        }
    }
    out
}

#[test]
fn the_transition_table() {
    assert_eq!(transitions(), include_str!("transitions.txt"));
}

#[test]
fn the_gate_table() {
    use Operation::{BlockJob, Migrate, Pause, Resume, Start};
    let mut out = String::new();
    for (phase, machine) in phases() {
        let now = machine.since() + s(1);
        let word = |op| match machine.gate(now, op) {
            Verdict::Permit => "permit",
            Verdict::Delay { .. } => "delay",
            Verdict::Refuse { .. } => "refuse",
        };
        let words = [Migrate, Start, Resume, Pause, BlockJob].map(word).join(" ");
        out.push_str(&format!("{phase}: {words}\n"));
    }
    assert_eq!(out, include_str!("gate.txt"));
}

fn event() -> impl Strategy<Value = Event> {
    let asked = || (0_u64..400).prop_map(s);
    let answer = || prop_oneof![3 => Just(Answer::Good), 1 => Just(Answer::Error(5))];
    prop_oneof![
        (0_u64..6, 0_u64..90).prop_map(|(id, lease)| announced(id, lease)),
        (0_u64..6).prop_map(|id| Event::Withdrawn { id }),
        (0_u64..6).prop_map(|id| Event::CutBegun { id }),
        (0_u64..6).prop_map(|id| Event::ServiceOpened { id }),
        Just(Event::Stalled),
        Just(Event::StallEnded),
        Just(Event::Reconnected),
        (asked(), answer()).prop_map(|(asked, answer)| Event::Read { asked, answer }),
        (asked(), answer()).prop_map(|(asked, answer)| Event::FreshOpen { asked, answer }),
        (asked(), any::<bool>()).prop_map(|(asked, bad)| Event::Checked {
            asked,
            problems: if bad { vec!["x".into()] } else { vec![] },
        }),
        Just(Event::Settled),
        Just(Event::Accepted),
        Just(Event::Tick),
    ]
}

proptest! {
    /// What holds on every way: see the messages.
    #[test]
    fn s11_s12_on_every_way(events in proptest::collection::vec((0_u64..40, event()), 0..80)) {
        let mut m = fresh();
        let (mut now, mut broken, mut held) = (0, None, false);
        for (gap, event) in events {
            now += gap;
            let before = m.phase();
            if matches!(event, Event::Reconnected) {
                broken = Some(s(now));
            }
            let asked = match &event {
                Event::Read { asked, .. } | Event::FreshOpen { asked, .. } => Some(*asked),
                _ => None,
            };
            for effect in m.step(s(now), event) {
                match effect {
                    Effect::Hold => { prop_assert!(!held, "held twice"); held = true; }
                    Effect::Release => { prop_assert!(held, "released twice"); held = false; }
                    _ => {}
                }
            }
            let after = m.phase();
            if after != before && matches!(after, Phase::IoBack | Phase::OpensBack) {
                prop_assert!(asked >= broken, "a probe from before the last connection counted");
            }
            let verdict = m.gate(s(now), Operation::Migrate);
            if verdict == Verdict::Permit {
                prop_assert!(matches!(after, Phase::Normal | Phase::Verified), "S11: {after:?}");
            }
            if let Verdict::Delay { until, .. } = verdict {
                prop_assert!(until > s(now) && until <= s(now) + s(300), "an endless delay");
            }
            if after == Phase::Normal {
                prop_assert!(!held, "at rest and holding");
            }
            prop_assert!(m.due().is_none_or(|due| due >= s(now)), "overdue after a step");
        }
    }

    /// Left alone, every mount is at rest or failed, and nothing is held.
    #[test]
    fn s11_left_alone_nothing_is_held(events in proptest::collection::vec((0_u64..40, event()), 0..40)) {
        let mut m = fresh();
        let mut held = 0_i32;
        let mut count = |effects: Vec<Effect>| {
            for e in effects {
                held += i32::from(e == Effect::Hold) - i32::from(e == Effect::Release);
            }
        };
        let mut now = 0;
        for (gap, event) in events {
            now += gap;
            count(m.step(s(now), event));
        }
        for i in 1..20 {
            count(m.step(s(now + 100 * i), Event::Tick));
        }
        prop_assert_eq!(held, 0);
        prop_assert!(matches!(m.phase(), Phase::Normal | Phase::Verified | Phase::Failed(_)));
    }
}
