//! The promises, as checks that run after everything that happens.
//!
//! Owns the invariants of the safety page's section 5 by their names. A check looks at the true state
//! of both nodes at one moment, which no nasd can.

use nasd::core::machine::Stage;
use nasd::core::peer::Ailment;
use nasd::core::record::{Phase, Record};

use crate::world::data::VOLUMES;
use crate::world::drbd::Conn;
use crate::world::node::Process;
use crate::world::{MS, S, Time, World, name_of, record_line};

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its name.
    pub property: &'static str,
    /// How.
    pub text: String,
}

/// What the checks remember.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// Data, disks or marks changed since the last check.
    pub data_changed: bool,
    /// The record changed since the last check.
    pub record_changed: bool,
    look_again: Time,
    /// Views are told in order.
    pub view_told: [Time; 2],
    epoch: [(u64, u64); 2],
    sole_since: [Option<Time>; 2],
    frozen_since: [Option<Time>; 2],
    unserved_since: [Option<Time>; 2],
}

impl Watch {
    /// A new nasd knows nothing.
    pub fn new_life(&mut self, n: usize) {
        self.epoch[n] = (0, 0);
        self.sole_since[n] = None;
        self.view_told[n] = 0;
    }
}

/// All of them.
pub fn check(world: &mut World) {
    one_writer(world);
    one_gate(world);
    for n in 0..2 {
        gate_means_ready(world, n);
        nothing_decreases(world, n);
    }
    if world.now >= world.watch.look_again {
        world.watch.look_again = world.now + LOOK;
        lasting(world);
    }
    if std::mem::take(&mut world.watch.data_changed)
        | std::mem::take(&mut world.watch.record_changed)
    {
        current_is_complete(world);
    }
}

/// How often that is looked at which may hold for a while, but not for long.
const LOOK: Time = 100 * MS;

fn lasting(world: &mut World) {
    for n in 0..2 {
        sole_owner_keeps_its_gate(world, n);
        freeze_ends(world, n);
        healthy_node_serves(world, n);
    }
}

fn one_writer(world: &mut World) {
    let writes = |n: usize| world.pair.completes_writes(n) && world.nodes[n].mounted;
    if writes(0) && writes(1) {
        world.violate("I1 one writer", || "both nodes are Primary, mounted and not frozen".into());
    }
}

fn one_gate(world: &mut World) {
    if world.gate_open(0) && world.gate_open(1) {
        world.violate("I4 one gate", || "both gates are open".into());
    }
}

fn gate_means_ready(world: &mut World, n: usize) {
    if !world.gate_open(n) {
        return;
    }
    let node = &world.nodes[n];
    let missing = [
        (!world.pair.sides[n].primary, "Primary"),
        (!node.mounted, "mounted"),
        (node.server.is_none(), "running threads"),
        (node.spoiled, "without errors that clients would hear of"),
    ];
    if let Some((_, what)) = missing.iter().find(|(is, _)| *is) {
        world.violate("I5 open means ready", || {
            format!("the gate of {} is open, and it is not {what}", name_of(n))
        });
    }
}

fn nothing_decreases(world: &mut World, n: usize) {
    let Some(record) = world.nodes[n].nasd.machine.record() else { return };
    let (now, before) = ((record.epoch, record.generation), world.watch.epoch[n]);
    if now == before {
        return;
    }
    if now.0 < before.0 || now.1 < before.1 {
        world.violate("I6 nothing decreases", || {
            format!("{} believes {now:?} after {before:?}", name_of(n))
        });
    }
    world.watch.epoch[n] = now;
}

/// I20: while a healthy nasd knows that its node alone is current, its gate does not end by time.
fn sole_owner_keeps_its_gate(world: &mut World, n: usize) {
    let node = &world.nodes[n];
    let machine = &node.nasd.machine;
    let sole = *machine.stage() == Stage::Serving
        && machine.is_settled()
        && world.nasd_runs(n)
        && !node.spoiled
        && !matches!(world.pair.sides[n].conn, Conn::Connected(_))
        && world.coordinator.record().is_some_and(|r| serves_alone(r, n))
        && machine.record() == world.coordinator.record();
    if !sole {
        world.watch.sole_since[n] = None;
        return;
    }
    let since = *world.watch.sole_since[n].get_or_insert(world.now);
    if world.now > since + 2 * S && !world.gate_open(n) {
        world.violate("I20 a sole owner keeps its gate", || {
            format!("{} alone is current, and its gate has ended by time", name_of(n))
        });
    }
}

/// Longest freeze on a node whose nasd runs and reaches the coordinator, itself or through its peer.
/// The design says that one side acts within 10 s; the helper may have to be run again after that.
const FREEZE: Time = 20 * S;
/// Longest time without service while a complete node is healthy and the other nasd is away. The
/// longest right that may have to be waited out is that of an upgrade, 20 s.
const UNSERVED: Time = 40 * S;

/// Nothing is wrong with the tools of that node: what is expected below needs them.
fn tools_work(world: &World, n: usize) -> bool {
    let weather = &world.weather;
    weather.slow[n] == 0
        && weather.failing[n] == 0
        && weather.late_answers[n] == 0
        && weather.no_mount[n].is_none()
        && !weather.helper_broken[n]
        && weather.helper_late[n] == 0
        && world.net.loss == 0
        && !world.coordinator.sticky
        && !world.coordinator.restored
}

/// The process is neither stopped nor dead; whether it hangs is its own affair (H7).
fn process_runs(world: &World, n: usize) -> bool {
    let node = &world.nodes[n];
    node.up && matches!(node.nasd.process, Process::Running)
}

/// I14: a freeze ends while somebody can end it.
fn freeze_ends(world: &mut World, n: usize) {
    let side = &world.pair.sides[n];
    let owner = world.coordinator.record().and_then(|r| r.authority());
    let by_peer = owner.is_some_and(|o| o.0 == name_of(n)) // a former owner may stay frozen, unheard
        && world.net.both_ways()
        && process_runs(world, 1 - n)
        && !world.blocked_on_volume(1 - n)
        && world.coordinator.answers(1 - n);
    let can_end = side.primary
        && side.frozen
        && process_runs(world, n)
        && tools_work(world, n)
        && tools_work(world, 1 - n) // the peer may be the one that must act
        && (world.coordinator.answers(n) || by_peer);
    if !can_end {
        world.watch.frozen_since[n] = None;
        return;
    }
    let since = *world.watch.frozen_since[n].get_or_insert(world.now);
    if world.now > since + FREEZE {
        world.violate("I14 no freeze for ever", || {
            format!("{} is frozen since {} s, and nothing hinders its end", name_of(n), FREEZE / S)
        });
    }
}

/// I13: a complete, healthy node serves when the other one's nasd is away.
fn healthy_node_serves(world: &mut World, n: usize) {
    let current = world
        .coordinator
        .record()
        .is_some_and(|r| r.current.iter().any(|m| m.0 == name_of(n)) && r.hold.is_none());
    let could = current
        && process_runs(world, n)
        && !process_runs(world, 1 - n)
        && tools_work(world, n)
        && world.coordinator.answers(n)
        && !world.nodes[n].marked
        && world.weather.unfit[n] != Some(Ailment::Disk) // a hanging disk can serve nobody
        && (0..VOLUMES).all(|v| world.pair.claims_complete(n, v));
    if !could || world.serves(0) || world.serves(1) {
        world.watch.unserved_since[n] = None;
        return;
    }
    let since = *world.watch.unserved_since[n].get_or_insert(world.now);
    if world.now > since + UNSERVED {
        world.violate("I13 progress", || {
            format!("{} could serve since {} s, and nobody does", name_of(n), UNSERVED / S)
        });
    }
}

fn serves_alone(record: &Record, n: usize) -> bool {
    let owner = matches!(&record.phase, Phase::Serving { owner } if owner.0 == name_of(n));
    owner && record.current.len() == 1 && record.current.iter().all(|m| m.0 == name_of(n))
}

/// I2, I3: every acknowledged write is on every member of the current set whose disks claim to be
/// complete, and at least one member has them all.
fn current_is_complete(world: &mut World) {
    let Some(record) = world.coordinator.record().filter(|_| !world.coordinator.restored) else {
        return;
    };
    let members: Vec<usize> =
        (0..2).filter(|n| record.current.iter().any(|m| m.0 == name_of(*n))).collect();
    let mut somebody = members.is_empty();
    let mut liar = None;
    for n in members {
        let missing = (0..VOLUMES).find_map(|v| {
            let have = &world.pair.sides[n].volumes[v].content.writes;
            have.missing(&world.clients.acked[v]).map(|lost| (v, lost))
        });
        let Some((v, lost)) = missing else {
            somebody = true;
            continue;
        };
        let claims = (0..VOLUMES).all(|v| world.pair.claims_complete(n, v));
        if claims && !world.nodes[n].marked {
            liar = Some((n, v, lost));
        }
    }
    if let Some((n, v, lost)) = liar {
        world.violate("I2 current is complete", || {
            format!("{} is current and lacks write {lost} of volume {v}", name_of(n))
        });
    } else if !somebody {
        world.violate("I3 somebody has it all", || "no member of current has every write".into());
    }
}

// ---- at events ---------------------------------------------------------------------------------

/// A compare-and-set was committed.
pub fn committed(world: &mut World) {
    let nobody = world.coordinator.record().is_some_and(|r| r.current.is_empty());
    if nobody {
        world.violate("I3 somebody has it all", || "the record's current set is empty".into());
    }
    ready_before_taking(world);
    let past = &world.coordinator.past;
    let [.., before, now] = &past[..] else { return };
    let falls = now.epoch < before.epoch || now.generation < before.generation;
    if falls && !world.coordinator.restored {
        let text = format!("{} after {}", record_line(now), record_line(before));
        world.violate("I6 nothing decreases", || text);
    }
}

/// H3: a taker has looked whether it can open before it takes.
fn ready_before_taking(world: &mut World) {
    let Some(Phase::Taking { owner }) = world.coordinator.record().map(|r| &r.phase) else {
        return;
    };
    let Some(n) = (0..2).find(|n| owner.0 == name_of(*n)) else { return };
    let [.., before, _] = &world.coordinator.past[..] else { return };
    if matches!(&before.phase, Phase::Taking { owner } if owner.0 == name_of(n)) {
        return; // it had taken before
    }
    let blind = world.weather.no_mount[n].is_some_and(|since| world.now > since + 5 * S);
    if blind && !world.pair.sides[n].primary {
        world.violate("I13 ready before taking", || {
            format!("{} has taken the service and cannot mount it", name_of(n))
        });
    }
}

/// A node became Primary, for a step of that epoch.
pub fn promoted(world: &mut World, n: usize, epoch: u64) {
    let me = name_of(n);
    let mut of_epoch = world.coordinator.past.iter().filter(|r| r.epoch == epoch);
    let mine = |r: &Record| {
        r.authority().is_some_and(|a| a.0 == me) && r.current.iter().any(|m| m.0 == me)
    };
    if !of_epoch.clone().any(mine) {
        let left = of_epoch.any(|r| matches!(&r.phase, Phase::Moving { from, .. } if from.0 == me));
        let property =
            if left { "I16 back only by compare-and-set" } else { "I7 promoted by record" };
        world.violate(property, || {
            format!("{me} became Primary in epoch {epoch}, which is not its")
        });
    }
    complete(world, n, "becomes Primary");
}

fn complete(world: &mut World, n: usize, what: &str) {
    for v in 0..VOLUMES {
        let acked = world.clients.acked[v];
        let missing = world.pair.readable(n, v).and_then(|c| c.writes.missing(&acked));
        if let Some(lost) = missing {
            world.violate("lost write", || {
                format!("{} {what} without the acknowledged write {lost}", name_of(n))
            });
        }
    }
}

/// The gate was opened by a step.
pub fn gate_opened(world: &mut World, n: usize) {
    if !world.gate_open(n) {
        return; // the right had ended before it could be written
    }
    complete(world, n, "opens");
    let marker = world.pair.readable(n, 0).map_or(0, |c| c.marker.generation);
    let recorded = world.coordinator.record().map_or(0, |r| r.generation);
    let known = world.pair.has_data(n) && !world.coordinator.restored;
    if marker < recorded && known {
        world.violate("I5 open means ready", || {
            format!("{} opens generation {marker}, the record says {recorded}", name_of(n))
        });
    }
    let late = world.nodes[n].server.is_some_and(|s| !s.reclaimed && world.now >= s.grace_until);
    if late {
        world.violate("I5 grace", || {
            format!("{} opens after grace has run out, and nobody could reclaim", name_of(n))
        });
    }
}

/// I8 asks for no more: a peer out of the current set has no claim that a yes could break.
fn excluded(world: &World, n: usize) -> bool {
    let peer = name_of(1 - n);
    world.coordinator.restored
        || world.coordinator.record().is_some_and(|r| r.current.iter().all(|m| m.0 != peer))
}

/// The helper exits with "outdated", and the kernel would not ignore it.
pub fn helper_says_yes(world: &mut World, n: usize, connects: u32) {
    let side = &world.pair.sides[n];
    let counts = side.connects == connects && !matches!(side.conn, Conn::Connected(_));
    if counts && !excluded(world, n) {
        world.violate("I8 helper", || {
            format!("the helper of {} says yes while the record does not", name_of(n))
        });
    }
}

/// Its verdict reaches the kernel, which looks at the connection count only.
pub fn helper_ended(world: &mut World, n: usize, connects: u32) {
    let side = &world.pair.sides[n];
    let counts = side.connects == connects && !matches!(side.conn, Conn::Connected(_));
    if counts && !excluded(world, n) {
        world.violate("I8 helper", || {
            format!("a late yes of the helper thaws {} though the peer is current", name_of(n))
        });
    }
}

/// A node stops itself.
pub fn self_fenced(world: &mut World, n: usize) {
    let taken = world.coordinator.record().and_then(|r| r.authority());
    let others = taken.is_some_and(|a| a.0 == name_of(1 - n)) || world.coordinator.restored;
    if !others {
        world.violate("I18 fenced after the record", || {
            format!("{} stops itself and the record is not the other one's", name_of(n))
        });
    }
}

/// A node asks for the other one's power to be cut (H14).
pub fn power_fenced(world: &mut World, n: usize) {
    if !excluded(world, n) {
        world.violate("I18 fenced after the record", || {
            format!("{} cuts the power of a node that the record has not let go", name_of(n))
        });
    }
}

// ---- progress ----------------------------------------------------------------------------------

/// I13, I14: what everything must come to once nothing is broken any more.
///
/// # Errors
/// What is missing.
pub fn settled(world: &World) -> Result<(), (&'static str, String)> {
    let frozen = (0..2).find(|n| world.pair.sides[*n].frozen && world.pair.sides[*n].primary);
    let progress = "I13 progress";
    if let Some(n) = frozen {
        return Err(("I14 no freeze for ever", format!("{} is frozen", name_of(n))));
    }
    let serving: Vec<usize> = (0..2).filter(|n| world.serves(*n)).collect();
    let [n] = serving[..] else {
        return Err((progress, format!("{} nodes serve", serving.len())));
    };
    let Some(record) = world.coordinator.record() else {
        return Err((progress, "no record".into()));
    };
    let owner = matches!(&record.phase, Phase::Serving { owner } if owner.0 == name_of(n));
    if !owner || record.current.len() != 2 {
        return Err((
            progress,
            format!("{} serves, the record says {}", name_of(n), record_line(record)),
        ));
    }
    if world.clients.last_ack.is_none_or(|(at, by)| by != n || world.now > at + 1000 * MS) {
        return Err((progress, format!("no write is acknowledged by {}", name_of(n))));
    }
    let both = world.pair.view(n);
    if !both.both_current() {
        return Err((progress, "the replicas are not in sync".into()));
    }
    Ok(())
}
