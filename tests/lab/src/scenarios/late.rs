//! Openings and clients that come late: `long-wait-before-open`, `hypervisor-ports-late`. All clients reclaim, and no
//! guest sees an error (S6, S7).

use std::thread;
use std::time::Duration;

use super::bed::{Bed, FAIL_POINTS, VMS, hypervisors};
use super::cuts::{begin, nightly};
use super::mid_move::wait_stopped;
use super::recovery::{PROMPT, SERVED, WHOLE, other};
use super::{Ctx, Scenario};
use crate::error::LabError;
use crate::fault::Fault;
use crate::report::Window;

/// The taker is held up.
pub const OPENING: Scenario = nightly(
    "long-wait-before-open",
    "a takeover held up for 100 s before and behind the start of the threads: all reclaim",
    long_wait,
);

/// The clients are.
pub const CLIENTS: Scenario = nightly(
    "hypervisor-ports-late",
    "clients reach nobody for 45 s around a failover, as behind a booting switch: all reclaim",
    ports_late,
);

/// Longer than the grace period, which must not run down unseen.
const HELD: Duration = Duration::from_secs(100);

fn long_wait(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let mut windows = Vec::new();
    for point in ["before:threads", "step:threads"] {
        windows.push(held(ctx, &bed, point)?);
    }
    bed.conclude(ctx, &windows)?;
    bed.bound_stall(ctx, "stall max", &windows, 115_000.0);
    Ok(())
}

/// The taker's nasd stands still at that point; its server may run meanwhile, but nothing opens the gate.
fn held(ctx: &mut Ctx, bed: &Bed, point: &str) -> Result<Window, LabError> {
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let taker = other(&owner);
    let (_, window) = bed.strike(ctx, |ctx| {
        ctx.lab.push(taker, FAIL_POINTS, format!("{point} stop\n").as_bytes(), 0o600)?;
        ctx.lab.fault(&Fault::PowerCut { node: owner.clone() })?;
        wait_stopped(ctx, taker)?;
        thread::sleep(HELD);
        ctx.lab.sh(taker, "pkill -CONT -x nasd", PROMPT).map(drop)
    })?;
    bed.power_on(ctx, &owner)?;
    Ok(window)
}

fn ports_late(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let address = VMS.address.parse().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED);
    let (_, window) = bed.window(ctx, |ctx| {
        for node in hypervisors(ctx) {
            ctx.lab.fault(&Fault::CutAddress { node, address })?;
        }
        thread::sleep(Duration::from_secs(2));
        ctx.lab.fault(&Fault::PowerCut { node: owner.clone() })?;
        ctx.report.moves += 1;
        thread::sleep(Duration::from_secs(43));
        ctx.lab.fault(&Fault::Heal)?;
        bed.wait_any(ctx, VMS, SERVED)?;
        bed.wait_writing(ctx, SERVED)
    })?;
    bed.power_on(ctx, &owner)?;
    bed.conclude(ctx, &[window])?;
    bed.bound_stall(ctx, "stall max", &[window], 65_000.0);
    Ok(())
}
