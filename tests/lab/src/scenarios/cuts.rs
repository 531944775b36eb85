//! Cables and paths that are cut while nodes live: `cut-replication`, `cut-clients`, `isolate-active`,
//! `isolate-standby`, `cut-coordinator`, `carrier-lost`, `frozen-primary-returns`.

use std::thread;
use std::time::{Duration, Instant};

use super::bed::{Bed, Extra, NAS, VMS};
use super::recovery::{
    PROMPT, SERVED, WHOLE, cut_drbd, cut_etcd, demand_silence, other, packets_of, until,
};
use super::{Ctx, Scenario};
use crate::error::LabError;
use crate::fault::Fault;
use crate::report::Window;

/// A scenario with two hypervisors on any engine, too long for every run; not only those of this file.
pub(super) const fn nightly(
    name: &'static str,
    summary: &'static str,
    run: fn(&mut Ctx) -> Result<(), LabError>,
) -> Scenario {
    Scenario { name, summary, engine: None, nightly: true, clients: 2, run }
}

/// The nodes lose each other, not the coordinator.
pub const REPLICATION: Scenario = Scenario {
    nightly: false,
    ..nightly(
        "cut-replication",
        "the NAS nodes lose each other, both ways, one way, DRBD only: the owner goes on alone",
        cut_replication,
    )
};

/// The owner loses its clients.
pub const CLIENTS: Scenario = nightly(
    "cut-clients",
    "the owner loses its clients, both ways and one way: handed over to the node that has them",
    cut_clients,
);

/// The owner loses everybody.
pub const ACTIVE: Scenario = nightly(
    "isolate-active",
    "the owner is cut off from everybody, both ways and one way: taken over; it stops itself",
    isolate_active,
);

/// The standby loses everybody.
pub const STANDBY: Scenario = nightly(
    "isolate-standby",
    "the standby is cut off from everybody, both ways and one way: the owner goes on",
    isolate_standby,
);

/// The coordinator is out of reach.
pub const COORDINATOR: Scenario = nightly(
    "cut-coordinator",
    "no coordinator for the owner, for both, for the owner with the replication cut as well (relay)",
    cut_coordinator,
);

/// The owner's interface goes down.
pub const CARRIER: Scenario = nightly(
    "carrier-lost",
    "the owner's network interface goes down: taken over; the owner stops itself and rejoins",
    carrier_lost,
);

/// The link comes back while the old owner is frozen.
pub const RETURNS: Scenario = nightly(
    "frozen-primary-returns",
    "the link is back while the old owner is frozen and the new one serves: self-fenced in 30 s",
    frozen_primary_returns,
);

/// Stall when the standby is lost, ms: that of its death, and what a search for a living one takes.
const STANDBY_LOST: f64 = 5000.0;
/// Stall of a takeover from an owner that lives, ms: its right must have run out.
const TAKEOVER: f64 = 7000.0;
/// No freeze lasts longer, ms (design section 4).
const FREEZE: f64 = 10_000.0;
/// Stalls behind a cut, as reports name them.
const HEALING: &str = "stall while healing";
const RETURNING: &str = "stall while the old owner returns";
/// How long a partition lasts.
const PARTED: Duration = Duration::from_secs(10);

/// The first service is up, whole, and written to all the time: where most scenarios begin.
pub(super) fn begin(ctx: &mut Ctx) -> Result<Bed, LabError> {
    begin_with(ctx, &Extra::default())
}

/// As [`begin`], with something more in the nodes.
pub(super) fn begin_with(ctx: &mut Ctx, extra: &Extra) -> Result<Bed, LabError> {
    let mut bed = Bed::up_with(ctx, &[VMS], extra)?;
    bed.pause_ms = 10;
    bed.wait_whole(ctx, Duration::from_secs(30))?;
    bed.write(ctx)?;
    Ok(bed)
}

/// Faults that cut `node` off from each of `others`: both ways, then only what it sends, then only what it receives.
fn ways(node: &str, others: &[&str]) -> [(&'static str, Vec<Fault>); 3] {
    let one_way = |from: &str, to: &str| Fault::CutOneWay { from: from.into(), to: to.into() };
    [
        (
            "both ways",
            others.iter().map(|o| Fault::Cut { a: node.into(), b: (*o).into() }).collect(),
        ),
        ("its sending", others.iter().map(|o| one_way(node, o)).collect()),
        ("its receiving", others.iter().map(|o| one_way(o, node)).collect()),
    ]
}

fn apply(ctx: &mut Ctx, faults: &[Fault]) -> Result<(), LabError> {
    faults.iter().try_for_each(|f| ctx.lab.fault(f))
}

fn cut_replication(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let (mut cuts, mut heals) = (Vec::new(), Vec::new());
    for (what, faults) in ways(&owner, &[other(&owner)]) {
        cuts.push(goes_on(ctx, &bed, &owner, what, &faults)?);
        bed.must_not_serve(ctx, other(&owner), Duration::from_secs(4))?;
        heals.push(heal(ctx, &bed, &owner)?);
    }
    cuts.push(goes_on(ctx, &bed, &owner, "DRBD only", &[cut_drbd(&owner)])?);
    heals.push(heal(ctx, &bed, &owner)?);
    conclude(ctx, &mut bed, (&cuts, STANDBY_LOST), (HEALING, &heals, 1000.0))
}

/// Cut off in this way, the owner must keep the service.
fn goes_on(
    ctx: &mut Ctx,
    bed: &Bed,
    owner: &str,
    what: &str,
    faults: &[Fault],
) -> Result<Window, LabError> {
    let (served, cut) = bed.strike(ctx, |ctx| apply(ctx, faults))?;
    ctx.demand(served == owner, &format!("{what}: the owner goes on"));
    Ok(cut)
}

/// The verdict on the cuts, and bounds of both stalls: that of the cuts, and the named one of their ends.
fn conclude(
    ctx: &mut Ctx,
    bed: &mut Bed,
    (cuts, longest): (&[Window], f64),
    (healing, heals, limit): (&str, &[Window], f64),
) -> Result<(), LabError> {
    bed.conclude(ctx, cuts)?;
    bed.bound_stall(ctx, "stall max", cuts, longest);
    bed.bound_stall(ctx, healing, heals, limit);
    Ok(())
}

/// The cables are whole again; the owner must keep the service.
fn heal(ctx: &mut Ctx, bed: &Bed, owner: &str) -> Result<Window, LabError> {
    let (after, window) = bed.window(ctx, |ctx| {
        ctx.lab.fault(&Fault::Heal)?;
        bed.wait_whole(ctx, WHOLE)
    })?;
    ctx.demand(after == owner, "the owner keeps the service");
    Ok(window)
}

fn cut_clients(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let mut windows = Vec::new();
    for number in 0..3 {
        let owner = bed.wait_whole(ctx, WHOLE)?;
        let taker = other(&owner);
        let (what, faults) = &ways(&owner, &["hv1", "hv2"])[number];
        let start = Instant::now();
        let (_, window) = bed.window(ctx, |ctx| {
            apply(ctx, faults)?;
            ctx.report.moves += 1;
            bed.wait_serves(ctx, taker, VMS, SERVED)?;
            bed.wait_writing(ctx, SERVED)
        })?;
        let took = start.elapsed().as_secs_f64();
        ctx.report.notes.push(format!("clients cut, {what}: {taker} serves after {took:.1} s"));
        windows.push(window);
        ctx.lab.fault(&Fault::Heal)?;
        let after = bed.wait_whole(ctx, WHOLE)?;
        ctx.demand(after == taker, "no failing back by itself");
        // Not sooner than the rate limit of automatic moves.
        thread::sleep(Duration::from_secs(if number < 2 { 61 } else { 0 }));
    }
    bed.conclude(ctx, &windows)?;
    bed.bound_stall(ctx, "stall max", &windows, 30_000.0);
    Ok(())
}

fn isolate_active(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let (mut cuts, mut heals) = (Vec::new(), Vec::new());
    for number in 0..3 {
        let owner = bed.wait_whole(ctx, WHOLE)?;
        let everybody = [other(&owner), "hv1", "hv2"];
        let (what, faults) = &ways(&owner, &everybody)[number];
        let (cut, back) = isolated(ctx, &bed, &owner, what, &|ctx| apply(ctx, faults), &|ctx| {
            ctx.lab.fault(&Fault::Heal)
        })?;
        cuts.push(cut);
        heals.push(back);
    }
    conclude(ctx, &mut bed, (&cuts, TAKEOVER), (RETURNING, &heals, 1000.0))
}

type Act<'a> = &'a dyn Fn(&mut Ctx) -> Result<(), LabError>;

/// An owner that lives and is cut off: the other takes over, then the cut ends; both windows.
fn isolated(
    ctx: &mut Ctx,
    bed: &Bed,
    owner: &str,
    what: &str,
    cut: Act<'_>,
    heal: Act<'_>,
) -> Result<(Window, Window), LabError> {
    let (served, window) = bed.window(ctx, |ctx| {
        cut(ctx)?;
        ctx.report.moves += 1;
        bed.wait_serves(ctx, other(owner), VMS, SERVED)?;
        bed.wait_writing(ctx, SERVED)?;
        Ok(other(owner))
    })?;
    let capture = packets_of(ctx, owner)?;
    thread::sleep(PARTED);
    let reboots = ctx.lab.reboots(owner);
    let start = Instant::now();
    let (after, back) = bed.window(ctx, |ctx| {
        heal(ctx)?;
        bed.wait_whole(ctx, WHOLE)
    })?;
    demand_silence(ctx, what, capture)?;
    ctx.demand(after == served, &format!("{what}: the new owner keeps the service"));
    let (again, took) = (ctx.lab.reboots(owner), start.elapsed().as_secs_f64());
    ctx.report.notes.push(format!(
        "{what}: whole {took:.1} s after the cut's end; reboots of {owner} {reboots} before it, {} after",
        again - reboots
    ));
    Ok((window, back))
}

fn isolate_standby(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let standby = other(&owner);
    let (mut cuts, mut heals) = (Vec::new(), Vec::new());
    for (what, faults) in ways(standby, &[owner.as_str(), "hv1", "hv2"]) {
        cuts.push(goes_on(ctx, &bed, &owner, what, &faults)?);
        let said = bed.must_not_serve(ctx, standby, PARTED)?;
        ctx.report.notes.push(format!("{what}: {said}"));
        heals.push(heal(ctx, &bed, &owner)?);
    }
    conclude(ctx, &mut bed, (&cuts, STANDBY_LOST), (HEALING, &heals, 1000.0))
}

fn cut_coordinator(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let alone = without_coordinator(ctx, &bed, &owner, &[owner.as_str()])?;
    let (_, relayed) = bed.strike(ctx, |ctx| {
        ctx.lab.fault(&cut_etcd(&owner))?;
        ctx.lab.fault(&cut_drbd(&owner))
    })?;
    ctx.lab.fault(&Fault::Heal)?;
    bed.wait_whole(ctx, WHOLE)?;
    // Last: the members' own connections need as long to come back as they were cut, and until then there is no
    // majority that could be written through the peer.
    let both = without_coordinator(ctx, &bed, &owner, &NAS)?;
    bed.conclude(ctx, &[alone, relayed, both])?;
    bed.bound_stall(ctx, "stall without coordinator", &[alone, both], 500.0);
    bed.bound_stall(ctx, "stall with relay", &[relayed], FREEZE);
    Ok(())
}

/// These nodes cannot reach the coordinator for a while; the owner goes on.
fn without_coordinator(
    ctx: &mut Ctx,
    bed: &Bed,
    owner: &str,
    nodes: &[&str],
) -> Result<Window, LabError> {
    let (served, window) = bed.strike(ctx, |ctx| {
        nodes.iter().try_for_each(|n| ctx.lab.fault(&cut_etcd(n)))?;
        thread::sleep(Duration::from_secs(20));
        Ok(())
    })?;
    ctx.demand(served == owner, &format!("no coordinator for {nodes:?}: the owner goes on"));
    ctx.lab.fault(&Fault::Heal)?;
    bed.wait_whole(ctx, WHOLE)?;
    Ok(window)
}

fn carrier_lost(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let interface = ctx.lab.engine().interface();
    let set = |state: &'static str| format!("ip link set {interface} {state}");
    let (node, down, up) = (owner.clone(), set("down"), set("up"));
    let run = |script: String| {
        let node = node.clone();
        move |ctx: &mut Ctx| {
            // It may have stopped itself: then its boot brings the interface up.
            if ctx.lab.answers(&node) {
                ctx.lab.exec(&node, &["sh", "-c", &script], PROMPT)?;
            }
            Ok(())
        }
    };
    let (cut, back) = isolated(ctx, &bed, &owner, "interface down", &run(down), &run(up))?;
    conclude(ctx, &mut bed, (&[cut], TAKEOVER), (RETURNING, &[back], 1000.0))
}

fn frozen_primary_returns(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let taker = other(&owner);
    // It must still be there, frozen, when the link comes back: nasd alone would have stopped the node.
    let (_, window) = bed.window(ctx, |ctx| {
        ctx.lab.fault(&Fault::LinkDown { node: owner.clone() })?;
        ctx.report.moves += 1;
        bed.wait_serves(ctx, taker, VMS, SERVED)
    })?;
    let start = Instant::now();
    let before = boot(ctx, &owner)?;
    let (_, back) = bed.window(ctx, |ctx| {
        ctx.lab.fault(&Fault::LinkUp { node: owner.clone() })?;
        until(ctx, "the old owner to stop itself", Duration::from_secs(30), || {
            match boot(ctx, &owner) {
                Ok(now) if now == before => Err("it runs on".to_owned()),
                _ => Ok(()),
            }
        })
    })?;
    let fenced = start.elapsed().as_secs_f64();
    ctx.report.extra.insert("self-fenced after s".into(), fenced.into());
    ctx.bound("self-fenced after s", Some(fenced), 30.0);
    let after = bed.wait_whole(ctx, WHOLE)?;
    ctx.demand(after == taker, "the new owner keeps the service");
    let returning = "stall when the old owner returns";
    conclude(ctx, &mut bed, (&[window], TAKEOVER), (returning, &[back], 500.0))
}

/// Changes with each boot of the node.
fn boot(ctx: &Ctx, node: &str) -> Result<String, LabError> {
    let argv = ["cat", "/proc/sys/kernel/random/boot_id"];
    ctx.lab.check(node, &argv, Duration::from_secs(2))
}
