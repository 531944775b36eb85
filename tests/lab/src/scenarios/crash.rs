//! Power cuts under load: `crash-active`, `crash-standby`, `crash-two-services`. The node comes back by itself and becomes standby.

use std::time::Duration;

use super::bed::{Bed, ISO, NAS, VMS};
use super::cuts::nightly;
use super::recovery::{PROMPT, WHOLE, one, other, serves, until};
use super::{Ctx, Scenario};
use crate::error::LabError;
use crate::fault::Fault;
use crate::report::Window;

/// The owner loses its power, ten times.
pub const ACTIVE: Scenario = Scenario {
    name: "crash-active",
    summary: "power cut of the owner, 10 times; the other takes over, the first rejoins and resyncs",
    engine: None,
    nightly: false,
    clients: 2,
    run: |ctx| crashes(ctx, 10, true),
};

/// The standby loses its power, five times.
pub const STANDBY: Scenario = Scenario {
    name: "crash-standby",
    summary: "power cut of the standby, 5 times; the owner goes on, the standby rejoins and resyncs",
    engine: None,
    nightly: false,
    clients: 2,
    run: |ctx| crashes(ctx, 5, false),
};

/// One node must open two services at once.
pub const TWO: Scenario = nightly(
    "crash-two-services",
    "the owner of two services loses power, 3 times: the other opens the more important one first",
    two,
);

/// Bounds of the stall of clients, ms: median and maximum when the owner dies, maximum when the standby does.
const ACTIVE_P50: f64 = 2500.0;
const ACTIVE_MAX: f64 = 5000.0;
const STANDBY_MAX: f64 = 2000.0;

fn crashes(ctx: &mut Ctx, rounds: u32, active: bool) -> Result<(), LabError> {
    let mut bed = Bed::up(ctx, &[VMS])?;
    bed.pause_ms = 10;
    bed.wait_whole(ctx, Duration::from_secs(30))?;
    bed.write(ctx)?;
    let (mut crashes, mut returns) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (crash, back) = crash(ctx, &bed, active)?;
        crashes.push(crash);
        returns.push(back);
    }
    bed.conclude(ctx, &crashes)?;
    let back = bed.stalls(&returns).max;
    ctx.report.extra.insert("stall while the node returns, max ms".into(), back.into());
    let stall = ctx.report.stall_ms;
    if active {
        ctx.bound("stall p50 ms", stall.p50, ACTIVE_P50);
        ctx.bound("stall max ms", stall.max, ACTIVE_MAX);
    } else {
        ctx.bound("stall max ms", stall.max, STANDBY_MAX);
    }
    Ok(())
}

/// One power cut and the return; the windows of both.
fn crash(ctx: &mut Ctx, bed: &Bed, active: bool) -> Result<(Window, Window), LabError> {
    let owner = bed.wait_whole(ctx, Duration::from_secs(60))?;
    let victim = if active { owner.as_str() } else { other(&owner) }.to_owned();
    let cut = Fault::PowerCut { node: victim.clone() };
    let (serves, crash) = bed.strike(ctx, |ctx| ctx.lab.fault(&cut))?;
    ctx.demand(serves != victim, "the node without power does not serve");
    let (after, back) = bed.window(ctx, |ctx| bed.power_on(ctx, &victim))?;
    ctx.demand(after == serves, "the service stays where it is when the node returns");
    Ok((crash, back))
}

fn two(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = Bed::up(ctx, &[VMS, ISO])?;
    bed.pause_ms = 10;
    bed.write(ctx)?;
    let mut windows = Vec::new();
    for _ in 0..3 {
        let owner = both_on_one(ctx, &bed)?;
        let (serves, window) =
            bed.strike(ctx, |ctx| ctx.lab.fault(&Fault::PowerCut { node: owner.clone() }))?;
        let order = opened(ctx, &serves)?;
        ctx.report.notes.push(format!("{serves} opened {order}"));
        let first = format!("{} {}", ISO.name, VMS.name);
        ctx.demand(order == first, "the more important service is opened first");
        windows.push(window);
        ctx.lab.fault(&Fault::PowerOn { node: owner })?;
    }
    both_on_one(ctx, &bed)?;
    bed.conclude(ctx, &windows)?;
    // The second is opened after the first.
    ctx.bound("stall max ms", ctx.report.stall_ms.max, 2.0 * ACTIVE_MAX);
    Ok(())
}

/// Waits until both services are whole and brings the second one to the node of the first; its name.
fn both_on_one(ctx: &mut Ctx, bed: &Bed) -> Result<String, LabError> {
    let owner = bed.wait_whole(ctx, WHOLE)?;
    until(ctx, "the second service to be whole", WHOLE, || {
        let seen = NAS.map(|nas| one(ctx, nas, ISO));
        let ready = |s: &Result<serde_json::Value, String>| {
            s.as_ref().is_ok_and(|s| s["failover"].as_array().is_none_or(Vec::is_empty))
        };
        if seen.iter().all(ready) { Ok(()) } else { Err(format!("{seen:?}")) }
    })?;
    if !one(ctx, &owner, ISO).is_ok_and(|s| serves(&s)) {
        let moved = bed.switchover(ctx, &owner, ISO, &[])?;
        ctx.demand(moved.code == 0, "the second service moves to the node of the first");
    }
    Ok(owner)
}

/// The services in the order in which this node's nasd opened their gates, the last two times.
fn opened(ctx: &Ctx, node: &str) -> Result<String, LabError> {
    let script = "journalctl -u nasd -b -o cat | grep 'step=\"open-gate\"' | tail -n 2 \
        | sed 's/.*service=\"\\([a-z]*\\)\".*/\\1/'";
    let names = ctx.lab.sh(node, script, ctx.patience(PROMPT))?;
    Ok(names.split_whitespace().collect::<Vec<_>>().join(" "))
}
