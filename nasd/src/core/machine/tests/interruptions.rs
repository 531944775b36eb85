//! What must not be opened to clients again as it stands: a file system that met an error, a server whose
//! grace period ran unseen. And a fence agent's word, which is good for one takeover only.

use std::collections::BTreeMap;

use super::*;
use crate::core::record::DataUuid;

fn spoil(world: &mut World) {
    world.nodes[0].spoiled = true;
    world.nodes[0].gate = false; // the drive shuts it before it says so
    world.nodes[0].trail.clear();
    world.feed(0, Event::Spoiled("drbd0 has met an error".into()));
    world.feed(0, Event::GateShut);
}

#[test]
fn a_file_system_with_an_error_is_mounted_anew_by_the_other_node() {
    let mut world = World::new();
    spoil(&mut world);
    world.settle();
    assert_eq!(world.owner(), Some(1), "{:#?}", world.machines[0]);
    assert!(!world.nodes[0].trail.contains(&Step::OpenGate.name()), "{:?}", world.nodes[0].trail);
}

#[test]
fn without_another_node_it_is_mounted_anew_here_and_no_client_hears_of_it() {
    let mut world = World::new();
    world.power_cut(1);
    world.settle();
    spoil(&mut world);
    world.settle();
    assert_eq!(world.owner(), Some(0), "{:#?}", world.machines[0]);
    let trail = &world.nodes[0].trail;
    let position = |step: Step| trail.iter().position(|name| *name == step.name());
    assert!(position(Step::Unmount).is_some_and(|at| Some(at) < position(Step::OpenGate)));
}

#[test]
fn a_move_that_fails_does_not_open_it_as_it_was() {
    let mut world = World::new();
    world.fail = Some((0, Step::Demote, refused()));
    spoil(&mut world);
    for _ in 0..200 {
        world.turn();
    }
    assert!(!world.nodes[0].gate, "closed until it can be unmounted and mounted");
    world.fail = None;
    world.settle();
    assert!(world.owner().is_some(), "{:#?}", world.machines);
}

#[test]
fn s9_a_restarted_nasd_does_not_open_it_as_it_was() {
    for peer in [true, false] {
        let mut world = World::new();
        if !peer {
            world.power_cut(1);
            world.settle();
        }
        spoil(&mut world);
        world.restart(0);
        world.settle();
        assert!(world.owner().is_some(), "{:#?}", world.machines[0]);
    }
}

#[test]
fn s7_a_server_whose_grace_ran_before_its_gate_opened_is_started_anew() {
    let mut world = World::new();
    world.fail = Some((1, Step::OpenGate, refused()));
    world.power_cut(0);
    while !world.nodes[1].threads {
        world.turn();
    }
    let began = world.now;
    while world.now < began + GRACE_SPENT - Duration::from_secs(2) {
        world.turn();
    }
    let starts = |world: &World| {
        let trail = &world.nodes[1].trail;
        trail.iter().filter(|name| **name == Step::StopThreads.name()).count()
    };
    assert_eq!(starts(&world), 0, "grace is long enough for a wait like this");
    while world.now < began + GRACE_SPENT + Duration::from_secs(2) {
        world.turn();
    }
    world.fail = None;
    world.settle();
    assert_eq!(world.owner(), Some(1));
    assert_eq!(starts(&world), 1);
}

#[test]
fn s4_a_confirmed_fence_says_nothing_of_a_later_takeover() {
    let mut world = World::new();
    let machine = world.machines[1].clone();
    world.machines[1] = machine.with_power_fence();
    world.power_cut(0);
    world.settle();
    world.power_on(0);
    world.settle();
    assert_eq!(world.owner(), Some(1));
    assert_ne!(world.machines[1].open_not_before(world.now), Now::ZERO, "it waits again");
}

#[test]
fn c4_the_link_lost_between_demote_and_promote_leaves_nobody_waiting_for_ever() {
    let mut world = World::new();
    world.swallow_hand_over = true;
    world.ask_to_move(0);
    while world.nodes[0].primary {
        world.turn();
    }
    assert!(!world.nodes[1].primary);
    (world.linked, world.beats) = (false, false); // the coordinator is reached by both
    world.settle();
    assert_eq!(world.owner(), Some(0), "{:#?}", world.machines);
    (world.linked, world.beats) = (true, true);
    world.settle();
    assert_eq!(world.owner(), Some(0));
    assert_eq!(world.record_now().current.len(), 2);
}

#[test]
fn s2_what_a_primary_wrote_descends_from_what_it_had() {
    let uuids = |raw: u64| BTreeMap::from([(0, DataUuid::new(raw))]);
    for (role, descends) in [(Role::Primary, true), (Role::Secondary, false)] {
        let mut world = World::new();
        let before = DrbdView { role, data_uuid: uuids(0x10), ..world.view(0) };
        world.feed(0, Event::Drbd(before));
        // 8.4 tells of the new generation with the next event only, and StandAlone has no slots.
        let alone = DrbdView {
            role: Role::Secondary,
            connected: false,
            stand_alone: true,
            data_uuid: uuids(0x20),
            uuid_history: BTreeMap::new(),
            ..world.view(0)
        };
        world.feed(0, Event::Drbd(alone));
        assert_eq!(world.machines[0].drbd.descends_from(&uuids(0x10)), descends);
    }
}

#[test]
fn a_generation_that_is_not_told_is_the_last_one_that_was() {
    let uuids = |raw: u64| BTreeMap::from([(0, DataUuid::new(raw))]);
    let mut world = World::new();
    let told = DrbdView {
        data_uuid: uuids(0x20),
        uuid_history: BTreeMap::from([(0, vec![DataUuid::new(0x10)])]),
        ..world.view(1)
    };
    world.feed(1, Event::Drbd(told));
    let half = DrbdView {
        connected: false,
        data_uuid: BTreeMap::new(),
        uuid_history: BTreeMap::new(),
        ..world.view(1)
    };
    world.feed(1, Event::Drbd(half));
    for recorded in [0x10, 0x20] {
        assert!(world.machines[1].drbd.descends_from(&uuids(recorded)));
    }
    assert!(!world.machines[1].drbd.descends_from(&uuids(0x30)));
}

#[test]
fn a_target_that_dies_with_the_hand_over_in_its_hands_is_not_waited_for() {
    let demoted = |effects: &usize| !World::amid_move(*effects).nodes[0].primary;
    let mut world = World::amid_move((0..100).find(demoted).unwrap());
    world.power_cut(1);
    let lost = world.now;
    while world.owner().is_none() {
        world.turn();
        assert!(world.now < lost + Duration::from_secs(5), "{:#?}", world.machines[0]);
    }
    assert_eq!(world.owner(), Some(0));
}
