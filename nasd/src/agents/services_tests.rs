//! Numbers, leases and news of one service, on both nodes.

use super::*;

fn s(seconds: u64) -> Now {
    Duration::from_secs(seconds)
}

fn terms(epoch: u64) -> Terms {
    Terms { epoch, wait: s(15), keep: s(30), force: false, predicted_stall_ms: 400 }
}

/// A service, and what gives its numbers.
#[derive(Default)]
struct Node {
    service: Service,
    numbers: Numbers,
}

impl Node {
    fn announce(&mut self, now: Now, epoch: u64) -> Option<MoveId> {
        self.service.announce(now, 1000, &mut self.numbers, &terms(epoch))
    }

    fn moving(&mut self, now: Now, epoch: u64) -> MoveId {
        self.service.moving(now, 1000, &mut self.numbers, epoch)
    }

    fn say(&mut self, now: Now, said: Said) -> Option<(What, MoveId)> {
        let news = self.service.take("vms", "nas1", now, said)?;
        assert_eq!((news.service.as_str(), news.owner.as_str()), ("vms", "nas1"));
        Some((news.what(), news.move_id))
    }
}

#[test]
fn both_nodes_tell_of_one_move_under_one_number() {
    let (mut owner, mut target) = (Node::default(), Node::default());
    let id = owner.announce(s(0), 8).unwrap();
    assert_eq!(owner.moving(s(2), 8), id);
    assert_eq!(target.say(s(2), Said::Prepared { id, epoch: 8 }), None);
    assert_eq!(owner.say(s(3), Said::Cut { epoch: 8 }), Some((What::Cut, id)));
    assert_eq!(target.say(s(3), Said::Opened { epoch: 8 }), Some((What::Opened, id)));
    assert_eq!(owner.say(s(3), Said::Gone), None);
    // The target dies later: what the former owner takes over is another move.
    let taken = owner.say(s(60), Said::Opened { epoch: 9 }).unwrap();
    assert_eq!(taken.0, What::Opened);
    assert!(taken.1 > id, "newer than the move before");
}

#[test]
fn a_rollback_after_the_cut_is_told_under_the_moves_number() {
    for taken_back in [8, 9] {
        let mut owner = Node::default();
        let id = owner.announce(s(0), 8).unwrap();
        owner.moving(s(1), 8);
        owner.say(s(2), Said::Cut { epoch: 8 });
        let back = owner.say(s(3), Said::Opened { epoch: taken_back });
        assert_eq!(back, Some((What::Opened, id)));
        assert_eq!(owner.say(s(4), Said::Withdrawn { epoch: 9 }), None, "it is over");
    }
}

#[test]
fn a_takeover_by_the_prepared_target_ends_that_move_and_a_later_one_does_not() {
    let mut target = Node::default();
    target.say(s(0), Said::Prepared { id: 777, epoch: 8 });
    assert_eq!(target.say(s(5), Said::Opened { epoch: 9 }), Some((What::Opened, 777)));
    target.say(s(10), Said::Prepared { id: 778, epoch: 10 });
    let later = target.say(s(11), Said::Opened { epoch: 12 }).unwrap();
    assert_eq!(later.1, number::of_epoch(12), "another record's opening");
    target.say(s(20), Said::Prepared { id: 779, epoch: 13 });
    let late = target.say(s(141), Said::Opened { epoch: 13 }).unwrap();
    assert_eq!(late.1, number::of_epoch(13));
}

#[test]
fn a_refused_move_is_withdrawn_and_its_number_is_not_used_again() {
    let mut owner = Node::default();
    let first = owner.announce(s(0), 8).unwrap();
    assert_eq!(owner.announce(s(1), 8), None, "one at a time");
    assert_eq!(owner.say(s(2), Said::Withdrawn { epoch: 7 }), Some((What::Withdrawn, first)));
    assert_eq!(owner.say(s(2), Said::Withdrawn { epoch: 7 }), None);
    let second = owner.announce(s(3), 8).unwrap();
    assert!(second > first);
    owner.moving(s(4), 8);
    let told = owner.say(s(5), Said::Withdrawn { epoch: 8 });
    assert_eq!(told, Some((What::Withdrawn, second)), "begun, and ended before the cut");
}

#[test]
fn a_move_that_nobody_announced_has_a_number_all_the_same() {
    let mut owner = Node::default();
    let id = owner.moving(s(0), 8);
    assert!(id > number::of_epoch(8));
    assert_eq!(owner.say(s(1), Said::Cut { epoch: 8 }), Some((What::Cut, id)));
}

#[test]
fn s11_an_announcement_is_renewed_and_ends_by_itself() {
    let mut owner = Node::default();
    owner.announce(s(0), 8).unwrap();
    let mut lease =
        |now, wanted| owner.service.announcement("vms", now, wanted).map(|a| a.lease_ms);
    assert_eq!(lease(s(0), true), Some(6000));
    assert_eq!(lease(s(1), false), None);
    assert_eq!(lease(s(2), false), Some(6000));
    assert_eq!(lease(s(3), false), None);
    assert_eq!(lease(s(4), false), Some(6000));
    assert_eq!(lease(s(44), false), Some(1000), "never beyond its end");
    assert!(!owner.service.is_overdue(s(44)) && owner.service.is_overdue(s(45)));
}

#[test]
fn s12_an_answer_to_another_announcement_is_none() {
    let mut owner = Node::default();
    let old = owner.announce(s(0), 8).unwrap();
    owner.say(s(1), Said::Withdrawn { epoch: 7 });
    let id = owner.announce(s(2), 8).unwrap();
    let said = |move_id| Readiness { move_id, ready: true, ..Readiness::default() };
    owner.service.answered("hv1", said(old));
    owner.service.answered("hv2", said(id + 1));
    assert!(owner.service.announced().unwrap().answers.is_empty());
    owner.service.answered("hv1", said(id));
    assert_eq!(owner.service.announced().unwrap().answers.len(), 1);
    owner.service.forget_answer("hv1");
    assert!(owner.service.announced().unwrap().answers.is_empty());
}

#[test]
fn stalls_are_of_the_last_move_only_and_bounded() {
    let report = |move_id, guest: &str, stall_ms| StallReport {
        move_id,
        guest: guest.into(),
        stall_ms,
        ..StallReport::default()
    };
    let mut owner = Node::default();
    let id = owner.moving(s(0), 8);
    owner.say(s(1), Said::Cut { epoch: 8 });
    owner.service.stalled("hv1", report(id, "", 400));
    owner.service.stalled("hv1", report(0, "db", 500));
    owner.service.stalled("hv1", report(id, "db", 600));
    owner.service.stalled("hv1", report(id - 1, "old", 9));
    let told: Vec<_> = owner
        .service
        .stalls()
        .iter()
        .filter_map(|s| s.stall.as_ref())
        .map(|s| s.stall_ms)
        .collect();
    assert_eq!(told, [400, 600], "said twice counts once, an older move's not at all");
    for i in 0..1000 {
        owner.service.stalled("hv1", report(id, &i.to_string(), 1));
    }
    assert_eq!(owner.service.stalls().len(), STALLS);
    owner.service.stalled("hv1", report(id + 1, "", 1));
    assert_eq!(owner.service.stalls().len(), 1, "the other node knows a newer move");
}

#[test]
fn news_is_told_again_to_those_who_may_have_missed_it() {
    let mut node = Node::default();
    assert_eq!(node.service.recent(s(0)), None);
    node.say(s(1), Said::Opened { epoch: 8 });
    assert_eq!(node.service.recent(s(60)).map(MoveNews::what), Some(What::Opened));
    assert_eq!(node.service.recent(s(61)), None);
}
