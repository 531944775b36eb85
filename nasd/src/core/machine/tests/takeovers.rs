//! Takeover without consent, the way back, and when it must not happen.

use std::collections::BTreeMap;

use super::*;
use crate::core::record::DataUuid;

impl World {
    fn run_for(&mut self, ms: u64) {
        let end = self.now + Duration::from_millis(ms);
        while self.now < end {
            self.turn();
        }
    }

    /// A planned move whose target is inside its promotion: the kernel waits for its helper, and the link is gone.
    fn amid_promotion() -> Self {
        Self::amid(Step::Promote)
    }

    /// The link goes while the target's step is under way; its answer does not come.
    fn amid(step: Step) -> Self {
        let mut world = Self::amid_move(0);
        let runs = |e: &(usize, Effect)| matches!(&e.1, Effect::Run { step: s, .. } if *s == step);
        while !world.queue.iter().any(runs) {
            let (n, effect) = world.queue.pop_front().unwrap();
            world.execute(n, effect);
        }
        world.queue.clear();
        world.linked = false;
        world
    }
}

#[test]
fn s1_a_dead_owner_is_replaced_and_the_taker_is_alone() {
    let mut world = World::new();
    world.power_cut(0);
    world.run_for(6000);
    assert_eq!(world.owner(), Some(1), "{:#?}", world.machines[1]);
    let record = world.record_now();
    assert_eq!((record.epoch, record.authority()), (2, Some(&names()[1])));
    assert!(matches!(record.phase, Phase::Serving { .. }));
    assert_eq!(record.current, BTreeSet::from([names()[1].clone()]));
    let trail = &world.nodes[1].trail;
    let at = |name: &str| trail.iter().position(|t| *t == name).unwrap();
    assert!(at("take-ready") < at("force-disconnect") && at("force-disconnect") < at("primary"));
}

#[test]
fn s4_the_gate_of_a_taker_opens_after_every_grant_has_ended() {
    let mut world = World::new();
    let now = world.now;
    assert!(world.machines[1].consent(now, 1, timing().ttl * 4), "a long right");
    world.power_cut(0);
    world.run_for(5800);
    assert_eq!(world.owner(), None, "the long right of 6 s has not ended");
    world.run_for(1500);
    assert_eq!(world.owner(), Some(1));
}

#[test]
fn s4_a_restarted_standby_waits_for_what_it_may_have_granted_and_no_longer() {
    let mut world = World::new();
    let endless = PeerBeat { gate: GateReport::Open { left: None }, ..world.beat(0) };
    world.restart(1);
    world.feed(1, Event::Peer(endless));
    assert_eq!(world.machines[1].granted_until, None, "a sole-current owner's right says nothing");
    let ending = world.beat(0);
    let now = world.now;
    world.feed(1, Event::Peer(ending));
    assert_eq!(world.machines[1].granted_until, Some(now + timing().ttl * 2));
}

#[test]
fn h14_a_confirmed_power_cut_after_the_compare_and_set_ends_the_wait() {
    for confirmed in [true, false] {
        let mut world = World::new();
        let machine = world.machines[1].clone();
        world.machines[1] = machine.with_power_fence();
        let now = world.now;
        assert!(world.machines[1].consent(now, 1, timing().ttl * 4), "a long right");
        if confirmed {
            world.power_cut(0);
        } else {
            world.nodes[0].frozen_nasd = true;
        }
        world.run_for(3000);
        assert_eq!(world.nodes[1].gate, confirmed, "{:#?}", world.machines[1]);
    }
}

#[test]
fn a_returning_owner_becomes_standby_and_current_again() {
    let mut world = World::new();
    world.power_cut(0);
    world.run_for(6000);
    world.power_on(0);
    world.settle();
    assert_eq!(world.owner(), Some(1));
    assert!(world.nodes[1].chores.contains(&Chore::Connect), "the taker lets it in again");
    assert_eq!(world.record_now().current.len(), 2);
    assert_eq!(*world.machines[0].stage(), Stage::Standby);
}

#[test]
fn a_dead_standby_is_excluded_and_the_owner_goes_on() {
    let mut world = World::new();
    world.power_cut(1);
    world.run_for(3000);
    assert_eq!(world.owner(), Some(0));
    assert_eq!(world.record_now().current, BTreeSet::from([names()[0].clone()]));
    assert!(!world.is_frozen(0));
    assert!(world.machines[0].sole_current(), "H5: its right has no end");
}

#[test]
fn h4_a_hanging_nasd_is_replaced_when_its_right_has_lapsed_and_then_stops_its_node() {
    let mut world = World::new();
    let now = world.now;
    assert!(world.machines[1].consent(now, 1, timing().ttl));
    world.nodes[0].frozen_nasd = true;
    world.run_for(1600);
    assert_eq!(world.record_now().epoch, 1, "not before its right has ended");
    world.nodes[0].gate = false; // the kernel's gate has shut by itself
    world.run_for(6000);
    assert_eq!(world.owner(), Some(1), "{:#?}", world.machines[1]);
    world.nodes[0].frozen_nasd = false;
    world.nodes[0].primary = true;
    world.run_for(500);
    assert!(world.nodes[0].fenced || !world.nodes[0].primary, "{:#?}", world.machines[0]);
}

#[test]
fn an_owner_that_lives_elsewhere_is_left_alone() {
    let mut world = World::new();
    world.beats = false;
    world.run_for(10_000);
    assert_eq!(world.owner(), Some(0));
    assert_eq!(world.record_now().epoch, 1);
    assert!(world.machines[1].problem().unwrap().contains("path between the nodes is cut"));
}

#[test]
fn s12_without_a_coordinator_nobody_takes_over() {
    let mut world = World::new();
    world.coordinator = false;
    world.power_cut(0);
    world.run_for(8000);
    assert_eq!(world.owner(), None);
    assert!(!world.nodes[1].stand_alone, "not even the link is cut");
    world.coordinator = true;
    world.run_for(8000);
    assert_eq!(world.owner(), Some(1));
}

#[test]
fn a_held_service_is_not_taken_over() {
    let mut world = World::new();
    world.feed(0, Event::Hold(Some("alice".into())));
    world.run_for(500);
    assert_eq!(world.record_now().hold.as_deref(), Some("alice"));
    world.power_cut(0);
    world.run_for(8000);
    assert_eq!(world.owner(), None);
    world.feed(1, Event::Hold(None));
    world.run_for(8000);
    assert_eq!(world.owner(), Some(1));
}

#[test]
fn s2_an_excluded_standby_outdates_itself_and_takes_nothing() {
    let mut world = World::new();
    world.linked = false;
    world.run_for(3000);
    assert!(world.nodes[1].chores.contains(&Chore::Outdate));
    world.power_cut(0);
    world.run_for(20_000);
    assert_eq!(world.owner(), None);
    assert!(world.machines[1].problem().unwrap().contains("may miss acknowledged writes"));
    assert!(!world.machines[1].failover_ready(world.now).is_empty());
}

#[test]
fn c5_a_write_of_unknown_outcome_is_superseded_before_anything_rests_on_it() {
    let mut world = World::new();
    world.linked = false;
    world.run_for(3000);
    assert!(world.machines[0].sole_current());
    world.linked = true;
    world.coordinator = false;
    world.run_for(200);
    world.linked = false;
    world.run_for(200);
    assert!(!world.machines[0].sole_current(), "the inclusion may still land");
    let before = world.stored.as_ref().unwrap().revision;
    world.coordinator = true;
    world.run_for(4000);
    assert!(world.stored.as_ref().unwrap().revision > before, "superseded");
    assert!(world.machines[0].sole_current());
}

#[test]
fn both_dead_either_order_and_alone() {
    for alone in 0..2 {
        for later in [None, Some(4000), Some(30_000)] {
            let mut world = World::new();
            world.power_cut(0);
            world.power_cut(1);
            world.run_for(2000);
            world.power_on(alone);
            if let Some(ms) = later {
                world.run_for(ms);
                world.power_on(1 - alone);
            }
            world.settle();
            world.settle();
            assert!(world.owner().is_some(), "{alone} {later:?}: {:#?}", world.machines[alone]);
            if later.is_some() {
                assert_eq!(world.record_now().current.len(), 2, "{alone} {later:?}");
            }
        }
    }
}

#[test]
fn either_node_dies_at_each_step_of_a_planned_move() {
    for victim in 0..2 {
        for after in 0..40 {
            let mut world = World::amid_move(after);
            world.power_cut(victim);
            world.settle();
            assert_eq!(
                world.owner(),
                Some(1 - victim),
                "victim {victim} after {after}: {:#?}",
                world.machines[1 - victim]
            );
            world.power_on(victim);
            world.settle();
            assert_eq!(world.owner(), Some(1 - victim), "victim {victim} after {after}");
            assert_eq!(world.record_now().current.len(), 2, "victim {victim} after {after}");
        }
    }
}

#[test]
fn double_fault_the_first_owner_refuses_stale_data_until_the_taker_is_back() {
    let mut world = World::new();
    world.power_cut(0);
    world.run_for(6000);
    world.power_cut(1);
    world.power_on(0);
    world.run_for(20_000);
    assert_eq!(world.owner(), None);
    assert!(world.machines[0].problem().unwrap().contains("may miss acknowledged writes"));
    world.power_on(1);
    world.settle();
    assert_eq!(world.owner(), Some(1));
}

#[test]
fn an_unfit_owner_moves_by_itself_and_an_unable_one_asks() {
    let mut world = World::new();
    world.feed(0, Event::Health(Some(Unfit::new(Ailment::Other, "no carrier"))));
    world.settle();
    assert_eq!(world.owner(), Some(1));
    assert_eq!(world.ends.pop(), Some(MoveEnd::Moved));

    let mut world = World::new();
    world.fail = Some((0, Step::Unmount, refused()));
    world.feed(0, Event::Health(Some(Unfit::new(Ailment::Other, "disk hangs"))));
    world.settle();
    assert_eq!(world.nodes[0].asked.first().map(String::as_str), Some("disk hangs"));
    assert_eq!(world.record_now().authority(), Some(&names()[1]));
}

#[test]
fn failback_happens_only_where_it_is_asked_for_and_only_after_its_delay() {
    let mut world = World::new();
    world.switchover(0);
    world.run_for(60_000);
    assert_eq!(world.owner(), Some(1), "no failback by itself");
    let machine = world.machines[1].clone();
    world.machines[1] = machine.with_failback(Duration::from_secs(30));
    world.run_for(2000);
    assert_eq!(world.owner(), Some(0), "all has been well for long already");
    assert_eq!(world.record_now().epoch, 3);
}

#[test]
fn h11_an_owner_held_back_by_its_standbys_disk_drops_it_and_goes_on() {
    let mut world = World::new();
    let ill = PeerBeat { unfit: Some(Unfit::new(Ailment::Disk, "disk hangs")), ..world.beat(1) };
    world.feed(0, Event::Peer(ill));
    world.feed(0, Event::Health(Some(Unfit::new(Ailment::Writes, "canary hangs"))));
    let effects = std::mem::take(&mut world.queue);
    let drops = |e: &(usize, Effect)| matches!(e.1, Effect::Chore { chore: Chore::DropPeer, .. });
    assert!(effects.iter().any(drops), "{effects:?}");
    assert!(!effects.iter().any(|e| matches!(e.1, Effect::Cas { .. })), "no move: {effects:?}");
}

#[test]
fn h2_a_freeze_that_stays_runs_the_helper_again() {
    let mut world = World::new();
    world.power_cut(1);
    world.run_for(1000);
    let frozen = DrbdView { frozen: true, ..world.view(0) };
    for _ in 0..40 {
        world.now += Duration::from_millis(100);
        world.feed(0, Event::Drbd(frozen.clone()));
    }
    while let Some((n, effect)) = world.queue.pop_front() {
        world.execute(n, effect);
    }
    assert!(world.nodes[0].chores.contains(&Chore::Retrigger));
}

#[test]
fn i3_the_last_current_node_is_never_excluded() {
    let mut world = World::new();
    world.nodes[0].disk_failed = true;
    world.run_for(500);
    assert_eq!(world.record_now().current, BTreeSet::from([names()[1].clone()]));
    assert_eq!(world.owner(), Some(0), "it serves the other one's data");
    world.linked = false;
    world.run_for(500);
    assert!(!world.record_now().current.is_empty());
    assert!(!world.nodes[0].asked.is_empty(), "it asks the node that has the data");
    world.run_for(8000);
    assert_eq!(world.record_now().authority(), Some(&names()[1]));
}

#[test]
fn c5_nothing_rests_on_a_record_that_is_being_widened() {
    let mut world = World::new();
    world.linked = false;
    world.run_for(3000);
    assert!(world.machines[0].is_settled() && world.machines[0].sole_current());
    world.linked = true;
    let view = world.view(0);
    world.feed(0, Event::Drbd(view));
    let widens = |e: &(usize, Effect)| matches!(&e.1, Effect::Cas { record, .. } if record.current.len() == 2);
    assert!(world.queue.iter().any(widens), "{:?}", world.queue);
    assert!(!world.machines[0].is_settled(), "the helper must wait for this write");
}

#[test]
fn h11_a_dead_standby_is_dropped_before_drbd_notices() {
    let mut world = World::new();
    let now = world.now + Duration::from_secs(2);
    let connected = world.view(0);
    world.power_cut(1);
    world.now = now;
    world.feed(0, Event::Drbd(connected));
    let seeks = world.queue.iter().find_map(|e| match &e.1 {
        Effect::Seek { run } => Some(*run),
        _ => None,
    });
    world.feed(0, Event::Sought { run: seeks.unwrap(), sign: Sign::Nothing });
    let drops = |e: &(usize, Effect)| matches!(e.1, Effect::Chore { chore: Chore::DropPeer, .. });
    assert!(world.queue.iter().any(drops), "{:?}", world.queue);
}

#[test]
fn s4_a_taker_restarted_after_its_promotion_waits_anew() {
    let mut world = World::new();
    let now = world.now;
    assert!(world.machines[1].consent(now, 1, timing().ttl));
    world.power_cut(0);
    while !world.nodes[1].primary {
        world.turn();
    }
    world.restart(1);
    let restarted = world.now;
    while world.owner().is_none() {
        world.turn();
    }
    assert!(world.now >= restarted + timing().long_ttl, "it knows nothing of what was granted");
}

#[test]
fn a_takeover_that_is_asked_of_the_owner_is_refused_at_once_and_forgotten() {
    let mut world = World::new();
    world.feed(0, Event::TakeOver { reason: "alice".into() });
    let refused = |e: &(usize, Effect)| matches!(&e.1, Effect::TakeoverEnded(Err(_)));
    assert!(world.queue.iter().any(refused), "{:?}", world.queue);
    world.switchover(0);
    world.run_for(2000);
    assert_eq!(world.owner(), Some(1));
    assert_eq!(world.record_now().epoch, 2, "nothing is taken over later");
}

#[test]
fn s2_nobody_outdates_itself_on_a_record_from_before_the_loss() {
    let mut world = World::new();
    world.linked = false;
    world.run_for(50);
    let old = Versioned { revision: 0, ..world.stored.clone().unwrap() };
    let sole = BTreeSet::from([names()[0].clone()]);
    world.linked = true;
    let view = world.view(1);
    world.feed(1, Event::Drbd(view));
    world.machines[1].record =
        Some(Versioned { record: Record { current: sole, ..old.record }, ..old });
    world.linked = false;
    let view = world.view(1);
    world.queue.clear();
    world.feed(1, Event::Drbd(view));
    let outdates =
        |e: &(usize, Effect)| matches!(&e.1, Effect::Chore { chore: Chore::Outdate, .. });
    assert!(!world.queue.iter().any(outdates), "it must read first: {:?}", world.queue);
    assert!(world.queue.iter().any(|e| e.1 == Effect::Read));
}

#[test]
fn an_owner_that_cannot_open_gives_the_service_to_the_other_node() {
    let mut world = World::new();
    world.power_cut(0);
    world.power_cut(1);
    world.run_for(1000);
    world.power_on(0);
    world.power_on(1);
    world.fail = Some((0, Step::Mount, refused()));
    world.run_for(40_000);
    assert_eq!(world.owner(), Some(1), "{:#?}", world.machines[0]);
}

#[test]
fn h4_a_hanging_owner_is_replaced_in_the_middle_of_a_move_too() {
    let mut world = World::new();
    world.run_for(500);
    let now = world.now;
    assert!(world.machines[1].consent(now, 1, timing().ttl));
    world.ask_to_move(0);
    world.execute_some(3);
    world.nodes[0].frozen_nasd = true;
    world.nodes[0].gate = false;
    world.run_for(10_000);
    assert_eq!(world.owner(), Some(1), "{:#?}", world.machines[1]);
}

#[test]
fn s2_the_past_of_the_data_outlives_the_connection_that_told_it() {
    let mut world = World::new();
    let (one, two) = (DataUuid::new(0x10), DataUuid::new(0x20));
    let known = DrbdView {
        data_uuid: BTreeMap::from([(0, two)]),
        uuid_history: BTreeMap::from([(0, vec![one])]),
        ..world.view(1)
    };
    world.feed(1, Event::Drbd(known.clone()));
    let forgotten = DrbdView { uuid_history: BTreeMap::new(), ..known };
    world.feed(1, Event::Drbd(forgotten.clone()));
    assert!(world.machines[1].drbd.descends_from(&BTreeMap::from([(0, one)])));
    let other = DrbdView { data_uuid: BTreeMap::from([(0, DataUuid::new(0x30))]), ..forgotten };
    world.feed(1, Event::Drbd(other));
    assert!(!world.machines[1].drbd.descends_from(&BTreeMap::from([(0, one)])), "other data");
}

#[test]
fn h12_a_link_lost_inside_a_promotion_is_decided_by_the_record_at_once() {
    let mut world = World::amid_promotion();
    let view = world.view(1);
    world.feed(1, Event::Drbd(view));
    let sole = BTreeSet::from([names()[1].clone()]);
    let excludes =
        |e: &(usize, Effect)| matches!(&e.1, Effect::Cas { record, .. } if record.current == sole);
    assert!(world.queue.iter().any(excludes), "{:?}", world.queue);
    world.settle();
    assert_eq!(world.owner(), Some(1));
}

#[test]
fn h2_a_step_that_hangs_on_a_frozen_volume_does_not_hold_the_exclusion_up() {
    for step in [Step::Mount, Step::Marker, Step::StartThreads, Step::Probe] {
        let mut world = World::amid(step);
        let view = world.view(1);
        assert!(view.frozen);
        world.feed(1, Event::Drbd(view));
        let excludes = |e: &(usize, Effect)| matches!(&e.1, Effect::Cas { record, .. } if record.current.len() == 1);
        assert!(world.queue.iter().any(excludes), "{step}: {:?}", world.queue);
        world.settle();
        assert_eq!(world.owner(), Some(1), "{step}");
        assert!(!world.nodes[1].trail.contains(&Step::Unmount.name()), "{step}: it went on");
    }
}

#[test]
fn a_target_that_has_excluded_the_old_owner_opens_even_after_a_failed_try() {
    let mut world = World::amid_promotion();
    world.fail = Some((1, Step::Promote, refused()));
    let view = world.view(1);
    world.feed(1, Event::Drbd(view));
    world.run_for(1000);
    assert_eq!(world.owner(), None);
    world.fail = None;
    world.run_for(8000);
    assert_eq!(world.owner(), Some(1), "{:#?}", world.machines[1]);
}

#[test]
fn a_refusal_tells_how_long_the_resynchronisation_would_have_taken() {
    let mut world = World::new();
    world.nodes[1].disk_failed = true;
    world.run_for(500);
    // The first is of before the replicas were compared, the last of an event that repeats an old number.
    for (seconds, mib) in [(0, 0_u64), (1, 100), (2, 80), (1, 100)] {
        world.now += Duration::from_secs(seconds);
        let view = DrbdView { missing_bytes: Some(mib << 20), resync: true, ..world.view(1) };
        world.feed(1, Event::Drbd(view));
    }
    let why = world.machines[1].may_take(&world.record_now()).unwrap_err();
    assert!(why.contains("80 MiB to go, about 8 s"), "{why}");
}

#[test]
fn s4_a_target_that_alone_has_the_data_waits_for_an_owner_that_has_not_demoted() {
    let mut world = World::new();
    world.run_for(500);
    world.nodes[0].disk_failed = true;
    world.run_for(500);
    world.ask_to_move(0);
    while world.record_now().epoch == 1 {
        let (n, effect) = world.queue.pop_front().unwrap();
        world.execute(n, effect);
    }
    let granted = world.now;
    assert!(world.nodes[0].gate, "not demoted, and open");
    let stored = world.stored.clone();
    world.feed(1, Event::Record(stored));
    assert!(world.machines[1].consent(granted, 2, timing().ttl));
    world.linked = false;
    world.beats = false;
    world.machines[0].moving = None;
    world.nodes[0].frozen_nasd = true;
    world.queue.clear();
    while world.now < granted + timing().ttl {
        world.turn();
        assert!(!world.nodes[1].gate, "the old owner's right has not ended");
    }
    world.nodes[0].gate = false;
    world.run_for(8000);
    assert_eq!(world.owner(), Some(1), "{:#?}", world.machines[1]);
}
