//! The emergency start: what refuses it, how it opens, and what the coordinator's return makes of it.

use std::collections::BTreeMap;

use super::*;
use crate::core::record::DataUuid;

/// The owner and the coordinator's majority have died together.
fn struck() -> World {
    let mut world = World::new();
    world.coordinator = false;
    world.power_cut(0);
    run_for(&mut world, 8000);
    assert_eq!(world.owner(), None);
    world
}

fn run_for(world: &mut World, ms: u64) {
    let end = world.now + Duration::from_millis(ms);
    while world.now < end {
        world.turn();
    }
}

fn stored(world: &World) -> Record {
    world.stored.as_ref().unwrap().record.clone()
}

fn begin(world: &mut World, n: usize, resumed: bool) {
    let last = stored(world);
    world.feed(n, Event::Emergency { last, by: "alice".into(), resumed });
}

/// What the refusal says; nothing has been done.
fn refused(mut world: World) -> String {
    world.nodes[1].trail.clear();
    begin(&mut world, 1, false);
    let now = world.now;
    assert!(world.machines[1].emergency().is_none(), "{:#?}", world.machines[1]);
    assert!(world.machines[1].wants_right().is_none());
    let problem = world.machines[1].emergency_end().unwrap().to_owned();
    run_for(&mut world, 3000);
    assert!(world.now > now && !world.nodes[1].stand_alone && !world.nodes[1].primary);
    problem
}

fn opened() -> World {
    let mut world = struck();
    begin(&mut world, 1, false);
    run_for(&mut world, 6000);
    assert_eq!(world.owner(), Some(1), "{:#?}", world.machines[1]);
    world.nodes[1].thawed = true;
    world
}

#[test]
fn s3_an_emergency_start_opens_alone_and_says_so() {
    let world = opened();
    let machine = &world.machines[1];
    assert_eq!(machine.record().unwrap().epoch, 2);
    assert_eq!(stored(&world).epoch, 1, "nothing was written");
    assert!(machine.sole_current() && machine.is_settled(), "a right without end, helper answered");
    assert_eq!(machine.wants_right(), Some(2));
    assert!(machine.problem().unwrap().starts_with("EMERGENCY: started by alice"));
    let trail = &world.nodes[1].trail;
    let at = |name: &str| trail.iter().position(|t| *t == name).unwrap();
    assert!(at("take-ready") < at("force-disconnect") && at("force-disconnect") < at("primary"));
}

#[test]
fn s3_no_compare_and_set_is_sent_while_the_coordinator_is_silent() {
    let mut world = struck();
    begin(&mut world, 1, false);
    let end = world.now + Duration::from_secs(20);
    while world.now < end {
        let cas = |e: &(usize, Effect)| e.0 == 1 && matches!(e.1, Effect::Cas { .. });
        assert!(!world.queue.iter().any(cas), "{:?}", world.queue);
        world.turn();
    }
    assert_eq!(world.owner(), Some(1));
}

#[test]
fn s4_an_emergency_start_waits_for_the_former_owners_right() {
    let mut world = struck();
    let now = world.now;
    assert!(world.machines[1].consent(now, 1, timing().ttl * 4), "a long right");
    begin(&mut world, 1, false);
    run_for(&mut world, 5500);
    assert_eq!(world.owner(), None);
    run_for(&mut world, 1500);
    assert_eq!(world.owner(), Some(1));
}

#[test]
fn s3_refused_while_the_coordinator_answers() {
    let mut world = World::new();
    world.power_cut(0);
    run_for(&mut world, 500);
    begin(&mut world, 1, false);
    assert!(world.machines[1].emergency().is_none());
    assert!(world.machines[1].emergency_end().unwrap().contains("the coordinator answers"));
}

#[test]
fn s2_refused_where_the_last_record_does_not_name_this_node() {
    let mut world = struck();
    let sole = BTreeSet::from([names()[0].clone()]);
    world.stored.as_mut().unwrap().record.current = sole;
    assert!(refused(world).contains("not current"));
}

#[test]
fn s2_refused_with_an_incomplete_disk_a_mark_or_other_data() {
    let mut world = struck();
    world.nodes[1].disk_failed = true;
    run_for(&mut world, 100);
    assert!(refused(world).contains("not complete"));
    let mut world = struck();
    world.machines[1].marked = true;
    assert!(refused(world).contains("had failed"));
    let mut world = struck();
    let uuids = BTreeMap::from([(0, DataUuid::new(0x40))]);
    world.stored.as_mut().unwrap().record.data_uuid = uuids;
    assert!(refused(world).contains("generation"));
}

#[test]
fn s1_refused_while_the_peer_answers_or_is_seen_as_primary() {
    let mut world = World::new();
    world.coordinator = false;
    world.feed(1, Event::RecordUnreadable("no majority".into()));
    run_for(&mut world, 500);
    assert!(refused(world).contains("DRBD is connected"));
    let mut world = struck();
    let beat = PeerBeat { role: Role::Secondary, ..PeerBeat::default() };
    world.feed(1, Event::Peer(beat));
    assert!(refused(world).contains("nasd on a answers"));
}

#[test]
fn s1_a_peer_that_speaks_before_the_promotion_ends_it() {
    let mut world = struck();
    begin(&mut world, 1, false);
    world.feed(1, Event::Peer(PeerBeat { role: Role::Secondary, ..PeerBeat::default() }));
    run_for(&mut world, 3000);
    assert!(!world.nodes[1].primary && world.machines[1].emergency().is_none());
    assert!(world.machines[1].emergency_end().unwrap().contains("answers"));
}

#[test]
fn an_untouched_record_is_claimed_and_all_is_as_always() {
    let mut world = opened();
    world.coordinator = true;
    run_for(&mut world, 1500);
    let record = stored(&world);
    assert_eq!((record.epoch, record.authority()), (2, Some(&names()[1])));
    assert!(matches!(record.phase, Phase::Serving { .. }));
    assert_eq!(record.current, BTreeSet::from([names()[1].clone()]));
    assert!(record.generation >= 2, "this opening counts");
    assert!(world.machines[1].emergency().is_none() && world.machines[1].problem().is_none());
    world.power_on(0);
    world.settle();
    assert_eq!(world.owner(), Some(1), "it never stopped");
    assert_eq!(stored(&world).current.len(), 2);
}

#[test]
fn a_hold_is_no_claim_and_survives() {
    let mut world = opened();
    let held = stored(&world).held(Some("bob".into()));
    world.stored = Some(Versioned { revision: 90, record: held });
    world.coordinator = true;
    run_for(&mut world, 1500);
    let record = stored(&world);
    assert_eq!((record.hold.as_deref(), record.authority()), (Some("bob"), Some(&names()[1])));
}

#[test]
fn s1_a_record_that_somebody_changed_closes_gate_first() {
    let mut world = opened();
    let by_a = stored(&world).exclude(&names()[0], &names()[1]).unwrap();
    world.stored = Some(Versioned { revision: 90, record: by_a.clone() });
    world.nodes[1].trail.clear();
    world.coordinator = true;
    run_for(&mut world, 1500);
    assert_eq!(world.nodes[1].trail.first(), Some(&"close-inbound"), "{:#?}", world.machines[1]);
    assert!(!world.nodes[1].primary && world.owner().is_none(), "{:#?}", world.machines[1]);
    assert_eq!(stored(&world), by_a);
    assert!(world.machines[1].emergency_end().unwrap().contains("changed meanwhile"));
    assert!(world.machines[1].wants_right().is_none());
}

#[test]
fn s8_a_claim_of_unknown_outcome_that_landed_is_recognised() {
    let mut world = opened();
    world.coordinator = true;
    let claims = |e: &(usize, Effect)| matches!(&e.1, Effect::Cas { .. });
    let written = loop {
        if let Some(at) = world.queue.iter().position(claims) {
            break world.queue.remove(at).unwrap();
        }
        let Some((n, effect)) = world.queue.pop_front() else {
            world.now += Duration::from_millis(25);
            world.look_around(1);
            continue;
        };
        world.execute(n, effect);
    };
    let (_, Effect::Cas { run, record, .. }) = written else { unreachable!() };
    world.stored = Some(Versioned { revision: 91, record });
    world.feed(1, Event::Cas { run, result: CasResult::Unknown });
    assert!(world.machines[1].sole_current(), "its right goes on");
    run_for(&mut world, 2000);
    assert_eq!(world.owner(), Some(1));
    assert!(world.machines[1].emergency().is_none());
    assert_eq!(stored(&world).epoch, 2);
}

#[test]
fn an_owner_frozen_without_a_majority_goes_on_where_it_stands() {
    let mut world = World::new();
    world.coordinator = false;
    world.power_cut(1);
    run_for(&mut world, 5000);
    assert!(world.is_frozen(0));
    world.nodes[0].trail.clear();
    begin(&mut world, 0, false);
    run_for(&mut world, 500);
    assert!(!world.is_frozen(0) && world.machines[0].sole_current());
    assert!(world.nodes[0].trail.is_empty(), "nothing was closed or opened");
    world.coordinator = true;
    run_for(&mut world, 1500);
    assert_eq!((stored(&world).epoch, world.owner()), (2, Some(0)));
}

#[test]
fn a_coordinator_that_comes_back_before_the_promotion_decides_as_always() {
    let mut world = struck();
    world.fail = Some((1, Step::TakeReady, refused_step()));
    begin(&mut world, 1, false);
    run_for(&mut world, 2000);
    assert!(world.machines[1].emergency().is_some() && !world.nodes[1].primary);
    world.coordinator = true;
    world.fail = None;
    run_for(&mut world, 6000);
    assert!(world.machines[1].emergency().is_none());
    assert_eq!(world.owner(), Some(1), "by an ordinary takeover");
    assert_eq!(stored(&world).epoch, 2);
}

fn refused_step() -> StepError {
    StepError::Refused { step: "test", reason: "no".into() }
}

#[test]
fn s9_a_restarted_nasd_goes_on_and_claims_what_it_wrote() {
    for reboot in [false, true] {
        let mut world = opened();
        if reboot {
            world.power_cut(1);
        }
        world.nodes[1].dead = false;
        let [a, b] = names();
        world.machines[1] = Machine::new(b, a, false, timing());
        world.queue.clear();
        begin(&mut world, 1, true);
        let up = world.nodes[1].mounted;
        let left = Leftovers { mounted: up, serving_threads: up, ..Leftovers::default() };
        world.feed(1, Event::Started(left));
        run_for(&mut world, 30_000);
        assert_eq!(world.owner(), Some(1), "{reboot}: {:#?}", world.machines[1]);
        world.coordinator = true;
        run_for(&mut world, 1500);
        assert_eq!(stored(&world).authority(), Some(&names()[1]), "{reboot}");
        assert!(world.machines[1].emergency().is_none());
    }
}

#[test]
fn s1_an_owner_that_was_not_dead_keeps_the_service() {
    let mut world = opened();
    world.nodes[1].trail.clear();
    let open = PeerBeat {
        epoch: 1,
        gate: GateReport::Open { left: None },
        role: Role::Primary,
        ..PeerBeat::default()
    };
    world.feed(1, Event::Peer(open));
    run_for(&mut world, 1000);
    assert_eq!(world.nodes[1].trail.first(), Some(&"close-inbound"));
    assert!(world.owner().is_none() && world.machines[1].emergency().is_none());
}

#[test]
fn s1_a_returning_owner_does_not_open_beside_an_emergency() {
    let mut world = opened();
    world.nodes[0].dead = false;
    world.restart(0);
    // Both reach the coordinator at once; the old owner is the first to act.
    world.coordinator = true;
    let record = world.stored.clone();
    world.feed(0, Event::Record(record));
    let beat = PeerBeat {
        gate: GateReport::Open { left: None },
        role: Role::Primary,
        ..PeerBeat::default()
    };
    world.machines[0].since.disconnected = Some(Duration::ZERO);
    world.queue.clear();
    world.feed(0, Event::Peer(beat));
    let view = world.view(0);
    world.feed(0, Event::Drbd(view));
    let alone = |r: &Record| r.current.len() == 1;
    let cas = |e: &(usize, Effect)| matches!(&e.1, Effect::Cas { record, .. } if alone(record));
    assert!(!world.queue.iter().any(cas), "{:?}", world.queue);
}
