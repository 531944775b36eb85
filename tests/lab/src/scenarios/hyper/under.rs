//! `switchover-under-vm`: planned moves of the storage below a guest that runs on.

use std::time::Duration;

use super::super::bed::VMS;
use super::super::{Ctx, Scenario};
use super::domain::Hyper;
use super::hosts::Leases;
use crate::error::LabError;

/// Five moves.
pub const SWITCHOVER: Scenario = Scenario {
    name: "switchover-under-vm",
    summary: "5 planned moves below a running guest; its stall is seen from outside",
    engine: None,
    nightly: false,
    clients: 2,
    run: under_vm,
};

fn under_vm(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, Some(Leases::of(10)))?;
    let mut windows = Vec::new();
    for number in 1..=5_u64 {
        let moved = hyper.bed.switchover(ctx, "nas1", VMS, &[])?;
        ctx.report.moves += 1;
        let good = moved.code == 0 && moved.outcome() == "moved";
        ctx.report.failed += u64::from(!good);
        let what = format!("move {number}: {}", moved.words());
        ctx.demand(good, &what);
        windows.extend(moved.window);
        hyper.bed.wait_served(ctx, VMS, Duration::from_secs(20))?;
        hyper.settle(ctx)?;
    }
    hyper.conclude(ctx, &windows)?;
    let stall = ctx.report.guest.map(|g| g.stall_ms).unwrap_or_default();
    ctx.bound("guest's stall p50 ms", stall.p50, 3000.0);
    ctx.bound("guest's stall max ms", stall.max, 10_000.0);
    Ok(())
}
