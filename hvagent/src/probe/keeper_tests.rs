//! What the keeper does with helpers that answer, hang, lie and die.

use super::*;
use proptest::prelude::*;

fn s(n: u64) -> Now {
    Duration::from_secs(n)
}

fn good(id: u64) -> Option<Reply> {
    Some(Reply { id, outcome: Outcome::Good, took_us: 1 })
}

fn bad(id: u64) -> Option<Reply> {
    Some(Reply { id, outcome: Outcome::Error { errno: 5 }, took_us: 1 })
}

/// What is asked, if anything is.
fn asked(actions: &[Action]) -> Option<(Generation, Request)> {
    actions.iter().find_map(|a| match a {
        Action::Ask(generation, request) => Some((*generation, *request)),
        _ => None,
    })
}

/// A keeper whose helper holds the file; its next question is due at second 11.
fn holding() -> Keeper {
    let mut k = Keeper::new(Timing::default());
    let first = k.step(s(0), Input::Tick);
    assert_eq!(first[0], Action::Start(1));
    let (_, prepare) = asked(&first).unwrap();
    let (_, hold) = asked(&k.step(s(0), Input::Said(1, good(prepare.id)))).unwrap();
    let (_, read) = asked(&k.step(s(1), Input::Said(1, good(hold.id)))).unwrap();
    assert_eq!([prepare.what, hold.what, read.what], [What::Prepare, What::Hold, What::Read]);
    assert_eq!(asked(&k.step(s(1), Input::Said(1, good(read.id)))), None);
    k
}

#[test]
fn at_rest_reads_and_opens_take_turns() {
    let mut k = holding();
    assert_eq!(k.due(), Some(s(11)));
    let (_, open) = asked(&k.step(s(11), Input::Tick)).unwrap();
    assert_eq!(open.what, What::Open);
    let report = k.step(s(12), Input::Said(1, good(open.id)));
    let outcome = Outcome::Good;
    assert_eq!(report, [Action::Report { what: What::Open, asked: s(11), outcome }]);
    assert_eq!(asked(&k.step(s(22), Input::Tick)).unwrap().1.what, What::Read);
}

#[test]
fn a_mount_without_guests_is_not_kept_open() {
    let mut k = holding();
    let (_, drop) = asked(&k.step(s(2), Input::Used(false))).unwrap();
    let (_, visit) = asked(&k.step(s(2), Input::Said(1, good(drop.id)))).unwrap();
    assert_eq!([drop.what, visit.what], [What::Drop, What::Visit]);
    k.step(s(2), Input::Said(1, good(visit.id)));
    assert_eq!(asked(&k.step(s(12), Input::Tick)).unwrap().1.what, What::Visit);
}

#[test]
fn a_mount_that_gets_guests_or_moves_is_held_at_once() {
    let mut unused = holding();
    let (_, drop) = asked(&unused.step(s(2), Input::Used(false))).unwrap();
    let (_, visit) = asked(&unused.step(s(2), Input::Said(1, good(drop.id)))).unwrap();
    unused.step(s(2), Input::Said(1, good(visit.id)));
    for input in [Input::Used(true), Input::Probing(Probing::Reads)] {
        let mut k = unused.clone();
        assert_eq!(asked(&k.step(s(3), input)).unwrap().1.what, What::Hold);
    }
}

#[test]
fn a_move_is_probed_at_once_and_quickly() {
    let mut k = holding();
    let (_, read) = asked(&k.step(s(2), Input::Probing(Probing::Reads))).unwrap();
    assert_eq!(read.what, What::Read);
    assert_eq!(asked(&k.step(s(3), Input::Probing(Probing::Opens))), None, "one question is open");
    k.step(s(4), Input::Said(1, good(read.id)));
    assert_eq!(k.due(), Some(s(4) + Timing::default().quick));
    let next = k.step(s(5), Input::Tick);
    assert_eq!(asked(&next).unwrap().1.what, What::Open);
}

#[test]
fn a_helper_that_hangs_with_the_storage_is_left_alone() {
    let mut k = holding();
    k.step(s(2), Input::Probing(Probing::Reads));
    k.step(s(3), Input::Answering(None));
    for at in 4..1700 {
        assert_eq!(k.step(s(at), Input::Tick), vec![]);
    }
    assert_eq!(k.waiting_since(), Some((What::Read, s(2))));
    let hopeless = k.step(s(2 + 1800), Input::Tick);
    assert_eq!(hopeless, [Action::Kill(1)]);
}

#[test]
fn a_helper_that_hangs_alone_is_killed_and_replaced() {
    let mut k = holding();
    k.step(s(2), Input::Probing(Probing::Reads));
    k.step(s(20), Input::Answering(Some(s(20))));
    assert_eq!(k.step(s(34), Input::Tick), vec![]);
    assert_eq!(k.step(s(35), Input::Tick), [Action::Kill(1)]);
    assert_eq!(k.undead(), 1);
    let next = k.step(s(36), Input::Tick);
    assert_eq!(next[0], Action::Start(2));
    assert_eq!(asked(&next).unwrap().1.what, What::Hold, "no file is made while storage moves");
    // The first wakes up at last and answers: too late, it counts for nothing.
    assert_eq!(k.step(s(37), Input::Said(1, good(4))), vec![]);
    assert_eq!(k.step(s(37), Input::Ended(1)), vec![]);
    assert_eq!(k.undead(), 0);
}

#[test]
fn an_open_has_the_patience_of_a_grace() {
    let mut k = holding();
    k.step(s(2), Input::Answering(Some(s(2))));
    k.step(s(2), Input::Probing(Probing::Opens));
    assert_eq!(k.step(s(150), Input::Tick), vec![]);
    assert_eq!(k.step(s(182), Input::Tick), [Action::Kill(1)]);
}

#[test]
fn the_undead_are_few() {
    let mut k = holding();
    k.step(s(2), Input::Probing(Probing::Reads));
    let mut started = 0;
    for at in 3..20_000 {
        for action in k.step(s(at), Input::Answering(Some(s(3)))) {
            started += usize::from(matches!(action, Action::Start(_)));
        }
    }
    assert_eq!((started, k.undead()), (1, MOST_UNDEAD));
    assert_eq!(k.due(), None, "nothing to do until one of them is gone");
    let again = k.step(s(20_000), Input::Ended(1));
    assert_eq!(again[0], Action::Start(3));
}

#[test]
fn lies_and_nonsense_end_a_helper() {
    for said in [None, good(77)] {
        let mut k = holding();
        k.step(s(2), Input::Probing(Probing::Reads));
        assert_eq!(k.step(s(3), Input::Said(1, said)), [Action::Kill(1)]);
    }
    let mut k = holding();
    assert_eq!(k.step(s(2), Input::Said(1, good(3))), [Action::Kill(1)], "nothing was asked");
}

#[test]
fn a_death_is_followed_by_a_new_helper_after_a_pause() {
    let mut k = holding();
    assert_eq!(k.step(s(2), Input::Ended(1)), vec![]);
    assert_eq!(k.due(), Some(s(3)));
    assert_eq!(k.step(s(3), Input::Tick)[0], Action::Start(2));
}

#[test]
fn a_dead_descriptor_is_opened_anew() {
    let mut k = holding();
    k.step(s(2), Input::Probing(Probing::Reads));
    let report = k.step(s(3), Input::Said(1, bad(4)));
    assert!(matches!(report[..], [Action::Report { outcome: Outcome::Error { errno: 5 }, .. }]));
    let (_, hold) = asked(&k.step(s(3), Input::Rehold)).unwrap();
    assert_eq!(hold.what, What::Hold);
    assert_eq!(asked(&k.step(s(3), Input::Said(1, bad(hold.id)))), None, "not at once");
    assert_eq!(asked(&k.step(s(4), Input::Tick)).unwrap().1.what, What::Hold);
}

fn input() -> impl Strategy<Value = Input> {
    let probing = prop_oneof![Just(Probing::Rest), Just(Probing::Reads), Just(Probing::Opens)];
    let reply = proptest::option::of((0_u64..30, any::<bool>()));
    prop_oneof![
        probing.prop_map(Input::Probing),
        Just(Input::Rehold),
        proptest::option::of((0_u64..3000).prop_map(s)).prop_map(Input::Answering),
        (1_u64..8, reply).prop_map(|(g, r)| {
            Input::Said(g, r.and_then(|(id, ok)| if ok { good(id) } else { bad(id) }))
        }),
        (1_u64..8).prop_map(Input::Ended),
        Just(Input::Tick),
    ]
}

proptest! {
    /// One question at a time, to the living only; few processes; answers only to what was asked.
    #[test]
    fn s10_whatever_happens(inputs in proptest::collection::vec((0_u64..400, input()), 0..150)) {
        let mut k = Keeper::new(Timing::default());
        let (mut now, mut alive, mut open) = (0, None, false);
        for (gap, input) in inputs {
            now += gap;
            if let Input::Ended(g) = input && alive == Some(g) {
                (alive, open) = (None, false);
            }
            for action in k.step(s(now), input) {
                match action {
                    Action::Start(g) => {
                        prop_assert!(alive.is_none());
                        (alive, open) = (Some(g), false);
                    }
                    Action::Ask(g, _) => {
                        prop_assert_eq!(alive, Some(g));
                        prop_assert!(!open, "two questions");
                        open = true;
                    }
                    Action::Kill(g) => {
                        prop_assert_eq!(alive, Some(g));
                        (alive, open) = (None, false);
                    }
                    Action::Report { .. } => {
                        prop_assert!(open, "an answer without a question");
                        open = false;
                    }
                }
            }
            prop_assert!(k.undead() <= MOST_UNDEAD);
            prop_assert!(k.due().is_none_or(|d| d > s(now)) || k.waiting_since().is_none());
        }
    }
}
