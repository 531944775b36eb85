//! Two machines in a small world: one record, one DRBD connection, steps that can be made to fail.

use std::collections::VecDeque;

use super::*;

#[derive(Default, Clone)]
struct Node {
    primary: bool,
    mounted: bool,
    threads: bool,
    gate: bool,
    trail: Vec<&'static str>,
}

struct World {
    now: Now,
    machines: Vec<Machine>,
    nodes: Vec<Node>,
    stored: Option<Versioned>,
    ends: Vec<MoveEnd>,
    queue: VecDeque<(usize, Effect)>,
    fail: Option<(usize, Step, StepError)>,
    swallow_hand_over: bool,
    linked: bool,
    marker: u64,
}

fn names() -> [NodeName; 2] {
    [NodeName::from("a"), NodeName::from("b")]
}

impl World {
    fn new() -> Self {
        let [a, b] = names();
        let machines = vec![Machine::new(a.clone(), b.clone(), true), Machine::new(b, a, false)];
        let mut world = Self {
            now: Duration::from_secs(1),
            machines,
            nodes: vec![Node::default(); 2],
            stored: None,
            ends: Vec::new(),
            queue: VecDeque::new(),
            fail: None,
            swallow_hand_over: false,
            linked: true,
            marker: 0,
        };
        for n in 0..2 {
            world.feed(n, Event::Started(Leftovers::default()));
        }
        world.settle();
        world
    }

    fn view(&self, n: usize) -> DrbdView {
        let role = |p: bool| if p { Role::Primary } else { Role::Secondary };
        DrbdView {
            role: role(self.nodes[n].primary),
            connected: self.linked,
            peer_role: if self.linked { role(self.nodes[1 - n].primary) } else { Role::Unknown },
            local_up_to_date: true,
            peer_up_to_date: self.linked,
            ..DrbdView::default()
        }
    }

    fn feed(&mut self, n: usize, event: Event) {
        for effect in self.machines[n].step(self.now, event) {
            self.queue.push_back((n, effect));
        }
        self.assert_one_writer();
    }

    fn assert_one_writer(&self) {
        assert!(!(self.nodes[0].primary && self.nodes[1].primary), "S1: two primaries");
        assert!(!(self.nodes[0].gate && self.nodes[1].gate), "S4: two open gates");
    }

    /// Runs effects and ticks until nothing happens for twenty seconds of world time.
    fn settle(&mut self) {
        for _ in 0..1000 {
            while let Some((n, effect)) = self.queue.pop_front() {
                self.execute(n, effect);
            }
            self.now += Duration::from_millis(25);
            for n in 0..2 {
                let view = self.view(n);
                // Heartbeats carry the epoch, and that makes the other node look.
                let epoch = self.stored.as_ref().map_or(0, |v| v.record.epoch);
                self.machines[n].heard_epoch(epoch);
                self.feed(n, Event::Drbd(view));
                self.feed(n, Event::Tick);
            }
        }
    }

    fn execute(&mut self, n: usize, effect: Effect) {
        match effect {
            Effect::Read => {
                let stored = self.stored.clone();
                self.feed(n, Event::Record(stored));
            }
            Effect::Cas { run, expected, record } => {
                let won = self.stored.as_ref().map(|v| v.revision) == expected;
                let result = if won {
                    let revision = expected.unwrap_or(0) + 1;
                    self.stored = Some(Versioned { revision, record });
                    CasResult::Won { revision }
                } else {
                    CasResult::Lost(self.stored.clone())
                };
                self.feed(n, Event::Cas { run, result });
            }
            Effect::Warm { run, .. } => self.feed(n, Event::Warmed { run, result: Ok(()) }),
            Effect::HandOver { run, epoch, .. } => {
                self.feed(1 - n, Event::Drbd(self.view(1 - n)));
                if self.swallow_hand_over {
                    self.feed(n, Event::HandOverEnded { run, result: HandOverResult::Unknown });
                } else {
                    self.feed(1 - n, Event::HandOver { epoch });
                }
            }
            Effect::MoveEnded(end) => self.ends.push(end),
            Effect::OpeningEnded(result) => {
                let run = self.machines[1 - n].pending.as_ref().map_or(0, |p| p.run);
                let result = match result {
                    Ok(()) => HandOverResult::Opened,
                    Err(reason) => HandOverResult::Refused(reason),
                };
                self.feed(1 - n, Event::HandOverEnded { run, result });
            }
            Effect::Run { run, step, context } => {
                let result = self.perform(n, step, &context);
                let view = self.view(n);
                self.feed(n, Event::Drbd(view));
                self.feed(n, Event::Ran { run, result });
            }
        }
    }

    fn perform(
        &mut self,
        n: usize,
        step: Step,
        context: &StepContext,
    ) -> Result<Option<u64>, StepError> {
        if let Some((who, which, error)) = &self.fail
            && (*who, *which) == (n, step)
        {
            return Err(error.clone());
        }
        let (peer_primary, linked) = (self.nodes[1 - n].primary, self.linked);
        let excluded = self.stored.as_ref().is_some_and(|v| {
            let [me, peer] =
                if n == 0 { names() } else { [names()[1].clone(), names()[0].clone()] };
            v.record.authority() == Some(&me) && !v.record.current.contains(&peer)
        });
        let touches =
            matches!(step, Step::Sync | Step::Unmount | Step::Marker | Step::StartThreads);
        if touches && self.is_frozen(n) {
            return Err(StepError::Deadline { step: step.name(), after_ms: 1 });
        }
        let node = &mut self.nodes[n];
        node.trail.push(step.name());
        match step {
            Step::CloseInbound | Step::CloseOutbound => node.gate = false,
            Step::StopThreads => node.threads = false,
            Step::Unmount => {
                assert!(!node.threads && !node.gate, "S5");
                node.mounted = false;
            }
            Step::Demote => {
                assert!(!node.mounted);
                node.primary = false;
            }
            Step::Promote => {
                let proof = context.proof.expect("S1: a promotion without proof");
                // As the executor and the kernel do: evidence once more, never a second Primary, and
                // without a connection the helper must find a record that excludes the peer.
                let allowed = match proof {
                    Proof::AlreadyPrimary => node.primary,
                    Proof::Released => linked && !peer_primary,
                    Proof::SoleCurrent => !linked && excluded,
                };
                if !allowed {
                    return Err(StepError::ProofGone { reason: "in the meantime".into() });
                }
                node.primary = true;
            }
            Step::Mount => node.mounted = node.primary,
            Step::Marker => {
                assert!(self.marker >= context.generation, "S2");
                self.marker += 1;
                return Ok(Some(self.marker));
            }
            Step::StartThreads => node.threads = true,
            Step::OpenGate => {
                assert!(node.primary && node.mounted && node.threads, "I5");
                node.gate = true;
            }
            Step::Drain | Step::Sync | Step::Probe | Step::Tickle => {}
        }
        Ok(None)
    }

    /// DRBD's freeze: a Primary that lost its peer, until the record says that it is alone.
    fn is_frozen(&self, n: usize) -> bool {
        let current = self.stored.as_ref().map(|v| &v.record.current);
        let peer_current = current.is_some_and(|c| c.contains(&names()[1 - n]));
        self.nodes[n].primary && !self.linked && peer_current
    }

    fn owner(&self) -> Option<usize> {
        self.nodes.iter().position(|n| n.gate)
    }

    fn switchover(&mut self, from: usize) {
        let to = names()[1 - from].clone();
        self.feed(from, Event::Switchover { to, timeout: Duration::from_secs(10) });
        self.settle();
    }

    /// A new nasd on the node: what the kernel holds stays, what nasd knew is gone.
    fn restart(&mut self, n: usize) {
        let [a, b] = names();
        let (me, peer) = if n == 0 { (a, b) } else { (b, a) };
        self.machines[n] = Machine::new(me, peer, n == 0);
        self.queue.retain(|(who, _)| *who != n);
        let node = &self.nodes[n];
        let left = Leftovers {
            mounted: node.mounted,
            all_mounted: node.mounted,
            serving_threads: node.threads,
            addressed: node.gate,
        };
        self.feed(n, Event::Started(left));
    }
}

fn refused() -> StepError {
    StepError::Refused { step: "test", reason: "no".into() }
}

#[test]
fn a_new_service_is_founded_and_opens_on_one_node() {
    let world = World::new();
    assert_eq!(world.owner(), Some(0));
    let record = world.stored.unwrap().record;
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
    let record = world.stored.unwrap().record;
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
        let record = world.stored.unwrap().record;
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
        assert_eq!(world.stored.unwrap().record.epoch, 3, "{step}");
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
            let mut world = World::new();
            let to = names()[1].clone();
            world.feed(0, Event::Switchover { to, timeout: Duration::from_secs(10) });
            for _ in 0..after {
                if let Some((n, effect)) = world.queue.pop_front() {
                    world.execute(n, effect);
                }
            }
            world.restart(victim);
            world.settle();
            assert!(
                world.owner().is_some(),
                "victim {victim} after {after}: {:#?}",
                world.machines
            );
            let owner = world.owner().unwrap();
            let record = world.stored.as_ref().unwrap().record.clone();
            assert_eq!(record.authority(), Some(&names()[owner]), "victim {victim} after {after}");
            assert!(matches!(record.phase, Phase::Serving { .. }), "{:?}", record.phase);
        }
    }
}

#[test]
fn h2_a_link_lost_at_any_point_of_a_move_ends_with_one_owner_and_no_freeze() {
    for after in 0..40 {
        let mut world = World::new();
        let to = names()[1].clone();
        world.feed(0, Event::Switchover { to, timeout: Duration::from_secs(10) });
        for _ in 0..after {
            if let Some((n, effect)) = world.queue.pop_front() {
                world.execute(n, effect);
            }
        }
        world.linked = false;
        world.settle();
        for n in 0..2 {
            assert!(!world.is_frozen(n), "after {after}: the freeze has no end");
        }
        world.linked = true;
        world.settle();
        let owner = world.owner().unwrap_or_else(|| panic!("after {after}: {:#?}", world.machines));
        let record = world.stored.as_ref().unwrap().record.clone();
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
    assert_eq!(world.owner(), None, "nobody may open what only the other node has");
    assert!(!world.nodes[0].primary);
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
    assert!(world.machines[1].consents(1));
    assert!(!world.machines[1].consents(2));
    assert!(!world.machines[0].consents(1), "an owner consents to nobody");
    world.switchover(0);
    assert!(world.machines[0].consents(2));
    assert!(!world.machines[1].consents(2));
}

#[test]
fn an_abort_before_the_demotion_rolls_back() {
    let mut world = World::new();
    let to = names()[1].clone();
    world.feed(0, Event::Switchover { to, timeout: Duration::from_secs(10) });
    world.feed(0, Event::Abort);
    world.settle();
    assert_eq!(world.owner(), Some(0));
    assert!(matches!(&world.ends[..], [MoveEnd::RolledBack(r)] if r.contains("aborted")));
}
