//! Power cuts under load: `crash-active`, `crash-standby`. The node comes back by itself and becomes standby.

use std::time::Duration;

use super::bed::{Bed, VMS};
use super::recovery::other;
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
