//! Two machines in a small world: one record, one DRBD connection, steps that can be made to fail.

use std::collections::VecDeque;

use super::*;

mod interruptions;
mod moves;
mod recovery;
mod takeovers;

#[derive(Default, Clone)]
struct Node {
    primary: bool,
    mounted: bool,
    threads: bool,
    gate: bool,
    /// Its file system met an error since it was mounted.
    spoiled: bool,
    stand_alone: bool,
    /// DRBD has been told that it is alone, and does not freeze again.
    thawed: bool,
    disk_failed: bool,
    dead: bool,
    frozen_nasd: bool,
    fenced: bool,
    asked: Vec<String>,
    chores: Vec<Chore>,
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
    beats: bool,
    coordinator: bool,
    marker: u64,
}

fn timing() -> Timing {
    let ms = Duration::from_millis;
    Timing::new(ms(1500), ms(250), ms(5000))
}

fn names() -> [NodeName; 2] {
    [NodeName::from("a"), NodeName::from("b")]
}

impl World {
    fn new() -> Self {
        let [a, b] = names();
        let machines = vec![
            Machine::new(a.clone(), b.clone(), true, timing()),
            Machine::new(b, a, false, timing()),
        ];
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
            beats: true,
            coordinator: true,
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
        let connected = self.connected();
        DrbdView {
            role: role(self.nodes[n].primary),
            connected,
            stand_alone: self.nodes[n].stand_alone,
            peer_role: if connected { role(self.nodes[1 - n].primary) } else { Role::Unknown },
            local_up_to_date: !self.nodes[n].disk_failed,
            local_consistent: !self.nodes[n].disk_failed,
            local_failed: self.nodes[n].disk_failed,
            peer_up_to_date: connected && !self.nodes[1 - n].disk_failed,
            frozen: self.is_frozen(n),
            ..DrbdView::default()
        }
    }

    fn connected(&self) -> bool {
        self.linked && self.nodes.iter().all(|n| !n.dead && !n.stand_alone)
    }

    fn beat(&self, from: usize) -> PeerBeat {
        PeerBeat {
            epoch: self.machines[from].record().map_or(0, |r| r.epoch),
            gate: if self.nodes[from].gate {
                GateReport::Open { left: Some(timing().ttl) }
            } else {
                GateReport::Shut
            },
            role: self.view(from).role,
            frozen: self.is_frozen(from),
            violations: Some(Vec::new()),
            coordinator: Some(true),
            taking: matches!(self.machines[from].stage(), Stage::TakingOver { .. }),
            unfit: None,
        }
    }

    fn runs(&self, n: usize) -> bool {
        !self.nodes[n].dead && !self.nodes[n].frozen_nasd
    }

    fn feed(&mut self, n: usize, event: Event) {
        if !self.runs(n) {
            return;
        }
        for effect in self.machines[n].step(self.now, event) {
            self.queue.push_back((n, effect));
        }
        self.assert_one_writer();
    }

    fn assert_one_writer(&self) {
        let writes = |n: usize| self.nodes[n].primary && !self.is_frozen(n);
        assert!(!(writes(0) && writes(1)), "S1: two writers");
        assert!(!(self.nodes[0].gate && self.nodes[1].gate), "S4: two open gates");
    }

    /// Runs effects and ticks until nothing happens for twenty seconds of world time.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.turn();
        }
    }

    /// Runs what is queued, then lets 25 ms pass.
    fn turn(&mut self) {
        while let Some((n, effect)) = self.queue.pop_front() {
            if self.runs(n) {
                self.execute(n, effect);
            }
        }
        self.now += Duration::from_millis(25);
        for n in 0..2 {
            self.look_around(n);
        }
    }

    fn look_around(&mut self, n: usize) {
        let view = self.view(n);
        self.feed(n, Event::Drbd(view));
        if self.beats && self.runs(1 - n) && self.now.as_millis().is_multiple_of(250) {
            let beat = self.beat(1 - n);
            self.feed(n, Event::Peer(beat));
        }
        // The watch: what changed in the coordinator is read.
        let known = self.machines[n].record.as_ref().map(|v| v.revision);
        if self.coordinator && known != self.stored.as_ref().map(|v| v.revision) {
            let stored = self.stored.clone();
            self.feed(n, Event::Record(stored));
        }
        self.feed(n, Event::Tick);
    }

    fn execute(&mut self, n: usize, effect: Effect) {
        match effect {
            Effect::Read if !self.coordinator => {
                self.feed(n, Event::RecordUnreadable("no majority".into()));
            }
            Effect::Read => {
                let stored = self.stored.clone();
                self.feed(n, Event::Record(stored));
            }
            Effect::Cas { run, .. } if !self.coordinator => {
                self.feed(n, Event::Cas { run, result: CasResult::Unknown });
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
            Effect::Wake { .. } | Effect::TakeoverEnded(_) => {}
            Effect::PowerFence { run } => {
                let confirmed = self.nodes[1 - n].dead;
                self.feed(n, Event::PowerFenced { run, confirmed });
            }
            Effect::SelfFence { .. } => self.nodes[n].fenced = true,
            Effect::AskTakeover { reason } => {
                self.nodes[n].asked.push(reason.clone());
                self.feed(1 - n, Event::TakeOver { reason });
            }
            Effect::Seek { run } => {
                let sign = self.sign(1 - n);
                self.feed(n, Event::Sought { run, sign });
            }
            Effect::Chore { run, chore } => {
                self.nodes[n].chores.push(chore);
                if chore == Chore::Connect {
                    self.nodes[n].stand_alone = false;
                }
                self.feed(n, Event::ChoreDone { run, result: Ok(()) });
            }
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
        let (peer_primary, linked) = (self.nodes[1 - n].primary, self.connected());
        let excluded = self.shown(n).is_some_and(|record| {
            let [me, peer] =
                if n == 0 { names() } else { [names()[1].clone(), names()[0].clone()] };
            record.authority() == Some(&me) && !record.current.contains(&peer)
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
                node.spoiled = false;
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
                    Proof::Frozen => node.stand_alone && excluded,
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
                assert!(!node.spoiled, "no client hears of an error");
                node.gate = true;
            }
            Step::TakeReady => {}
            Step::ForceDisconnect => node.stand_alone = true,
            Step::Drain | Step::Sync | Step::Probe | Step::Tickle => {}
        }
        Ok(None)
    }

    /// DRBD's freeze: a Primary that lost its peer, until the record says that it is alone.
    fn is_frozen(&self, n: usize) -> bool {
        let current = self.shown(n).map(|r| &r.current);
        let peer_current = current.is_some_and(|c| c.contains(&names()[1 - n]));
        self.nodes[n].primary && !self.connected() && peer_current && !self.nodes[n].thawed
    }

    /// What DRBD's helper on that node is answered from.
    fn shown(&self, n: usize) -> Option<&Record> {
        let machine = &self.machines[n];
        let own = machine.record().filter(|_| machine.emergency().is_some());
        own.or(self.stored.as_ref().map(|v| &v.record))
    }

    fn sign(&self, of: usize) -> Sign {
        match (self.coordinator, self.nodes[of].dead, self.nodes[of].frozen_nasd) {
            (false, _, _) => Sign::Unknown,
            (_, true, _) => Sign::Nothing,
            (_, _, true) => Sign::HostOnly,
            _ => Sign::Alive,
        }
    }

    /// A node that lost power and came back: all is down, nothing is remembered.
    fn power_cut(&mut self, n: usize) {
        self.nodes[n] = Node { dead: true, ..Node::default() };
        self.queue.retain(|(who, _)| *who != n);
    }

    fn power_on(&mut self, n: usize) {
        self.nodes[n] = Node::default();
        self.restart(n);
    }

    fn record_now(&self) -> Record {
        self.stored.as_ref().unwrap().record.clone()
    }

    fn owner(&self) -> Option<usize> {
        self.nodes.iter().position(|n| n.gate)
    }

    /// The operator asks for a planned move; nothing of it has run yet.
    fn ask_to_move(&mut self, from: usize) {
        let to = names()[1 - from].clone();
        self.feed(from, Event::Switchover { to, timeout: Duration::from_secs(10) });
    }

    fn switchover(&mut self, from: usize) {
        self.ask_to_move(from);
        self.settle();
    }

    /// A planned move from the first node that has come so many effects far.
    fn amid_move(effects: usize) -> Self {
        let mut world = Self::new();
        world.ask_to_move(0);
        world.execute_some(effects);
        world
    }

    /// Executes so many effects, or as many as there are; no time passes.
    fn execute_some(&mut self, effects: usize) {
        for _ in 0..effects {
            if let Some((n, effect)) = self.queue.pop_front() {
                self.execute(n, effect);
            }
        }
    }

    /// A new nasd on the node: what the kernel holds stays, what nasd knew is gone.
    fn restart(&mut self, n: usize) {
        let [a, b] = names();
        let (me, peer) = if n == 0 { (a, b) } else { (b, a) };
        self.machines[n] = Machine::new(me, peer, n == 0, timing());
        self.queue.retain(|(who, _)| *who != n);
        let node = &self.nodes[n];
        let left = Leftovers {
            mounted: node.mounted,
            all_mounted: node.mounted,
            spoiled: node.spoiled,
            serving_threads: node.threads,
            addressed: node.gate,
            marked: false,
        };
        self.feed(n, Event::Started(left));
    }
}

fn refused() -> StepError {
    StepError::Refused { step: "test", reason: "no".into() }
}
