//! Planned moves, restarts and lost links.

use super::*;

#[test]
fn a_new_service_is_founded_and_opens_on_one_node() {
    let world = World::new();
    assert_eq!(world.owner(), Some(0));
    let record = world.record_now();
    assert_eq!((record.epoch, record.generation), (1, 1));
}

#[test]
fn moves_back_and_forth() {
    let mut world = World::new();
    for i in 0..6 {
        world.switchover(i % 2);
        assert_eq!(world.owner(), Some(1 - i % 2), "move {i}");
        assert_eq!(world.ends.pop(), Some(MoveEnd::Moved));
    }
    let record = world.record_now();
    assert_eq!((record.epoch, record.generation), (7, 7), "each move is one epoch, one opening");
}

#[test]
fn s5_the_cut_and_the_opening_run_in_order() {
    let mut world = World::new();
    for node in &mut world.nodes {
        node.trail.clear();
    }
    world.switchover(0);
    let names = |program: &[Step]| program.iter().map(|s| s.name()).collect::<Vec<_>>();
    assert_eq!(world.nodes[0].trail, names(CLOSE));
    assert_eq!(world.nodes[1].trail, names(OPEN));
}

#[test]
fn s8_a_failure_before_the_demotion_rolls_back() {
    for step in CLOSE {
        let mut world = World::new();
        world.fail = Some((0, *step, refused()));
        world.switchover(0);
        assert_eq!(world.owner(), Some(0), "{step}");
        assert!(matches!(world.ends[..], [MoveEnd::RolledBack(_)]), "{step}: {:?}", world.ends);
        let record = world.record_now();
        assert_eq!((record.epoch, record.authority()), (3, Some(&names()[0])), "{step}");
    }
}

#[test]
fn c4_a_target_that_cannot_open_gives_the_service_back_by_compare_and_set() {
    for step in OPEN {
        let mut world = World::new();
        world.fail = Some((1, *step, refused()));
        world.switchover(0);
        assert_eq!(world.owner(), Some(0), "{step}: {:?}", world.machines[0]);
        assert!(matches!(world.ends[..], [MoveEnd::RolledBack(_)]), "{step}: {:?}", world.ends);
        assert_eq!(world.record_now().epoch, 3, "{step}");
    }
}

#[test]
fn s9_a_target_opens_unasked_when_the_owner_demoted_and_fell_silent() {
    let mut world = World::new();
    world.swallow_hand_over = true;
    world.switchover(0);
    assert_eq!(world.owner(), Some(1));
    assert_eq!(world.ends, [MoveEnd::Moved]);
}

#[test]
fn s9_either_nasd_killed_after_each_effect_converges_to_one_owner() {
    for victim in 0..2 {
        for after in 0..40 {
            let mut world = World::amid_move(after);
            world.restart(victim);
            world.settle();
            assert!(
                world.owner().is_some(),
                "victim {victim} after {after}: {:#?}",
                world.machines
            );
            let owner = world.owner().unwrap();
            let record = world.record_now();
            assert_eq!(record.authority(), Some(&names()[owner]), "victim {victim} after {after}");
            assert!(matches!(record.phase, Phase::Serving { .. }), "{:?}", record.phase);
        }
    }
}

#[test]
fn h2_a_link_lost_at_any_point_of_a_move_ends_with_one_owner_and_no_freeze() {
    for after in 0..40 {
        let mut world = World::amid_move(after);
        world.linked = false;
        world.settle();
        for n in 0..2 {
            assert!(!world.is_frozen(n), "after {after}: the freeze has no end");
        }
        world.linked = true;
        world.settle();
        let owner = world.owner().unwrap_or_else(|| panic!("after {after}: {:#?}", world.machines));
        let record = world.record_now();
        assert_eq!(record.authority(), Some(&names()[owner]), "after {after}");
        assert_eq!(record.current.len(), 2, "after {after}: the other one is current again");
    }
}

#[test]
fn s2_a_node_outside_the_current_set_does_not_open() {
    let mut world = World::new();
    world.nodes[0] = Node::default();
    let stored = world.stored.as_mut().unwrap();
    stored.record.current = BTreeSet::from([names()[1].clone()]);
    stored.revision += 1;
    world.restart(0);
    world.restart(1);
    world.settle();
    assert_eq!(world.owner(), Some(1), "the node that has the data is asked to take over");
    assert!(!world.nodes[0].trail.contains(&"primary"));
}

#[test]
fn s12_an_older_record_is_not_believed() {
    let mut world = World::new();
    world.switchover(0);
    let mut old = world.stored.clone().unwrap();
    old.record.epoch = 1;
    world.feed(1, Event::Record(Some(old)));
    assert!(world.machines[1].problem().unwrap().contains("older record"));
    assert_eq!(world.machines[1].record().unwrap().epoch, 2);
}

#[test]
fn s4_consent_is_given_to_the_owner_of_the_same_epoch_only() {
    let mut world = World::new();
    let (now, ttl) = (world.now, timing().ttl);
    assert!(world.machines[1].consent(now, 1, ttl));
    assert!(!world.machines[1].consent(now, 2, ttl));
    assert!(!world.machines[0].consent(now, 1, ttl), "an owner consents to nobody");
    world.switchover(0);
    assert!(world.machines[0].consent(now, 2, ttl));
    assert!(!world.machines[1].consent(now, 2, ttl));
}

#[test]
fn an_abort_before_the_demotion_rolls_back() {
    let mut world = World::amid_move(0);
    world.feed(0, Event::Abort);
    world.settle();
    assert_eq!(world.owner(), Some(0));
    assert!(matches!(&world.ends[..], [MoveEnd::RolledBack(r)] if r.contains("aborted")));
}

#[test]
fn s8_a_gate_that_a_late_step_shut_is_opened_again() {
    let mut world = World::new();
    world.nodes[0].gate = false;
    world.feed(0, Event::GateShut);
    world.settle();
    assert_eq!(world.owner(), Some(0));
    assert_eq!(*world.machines[0].stage(), Stage::Serving);
}
