//! An owner that lives but cannot serve: `fs-readonly`, `nfsd-stuck`. It hands over in good order, or is taken over.

use std::time::{Duration, Instant};

use super::bed::{Bed, VMS};
use super::recovery::{PROMPT, SERVED, WHOLE, other};
use super::{Ctx, Scenario};
use crate::error::LabError;

/// The file system refuses writes.
pub const READONLY: Scenario = Scenario {
    name: "fs-readonly",
    summary: "the owner's file system turns read-only: handed over and mounted anew, and no client hears of the error",
    engine: None,
    nightly: true,
    clients: 2,
    run: readonly,
};

/// The server makes no progress.
pub const STUCK: Scenario = Scenario {
    name: "nfsd-stuck",
    summary: "every thread of the owner's server hangs: taken over; the old owner stops itself, rejoins",
    engine: None,
    nightly: true,
    clients: 2,
    run: stuck,
};

/// ext4's own test hook, with the reaction to errors that makes it read-only.
const BREAK: &str = "mount -o remount,errors=remount-ro /srv/nasd/vms/vms && \
    d=$(basename $(readlink -f $(findmnt -no SOURCE /srv/nasd/vms/vms))) && echo 1 > /sys/fs/ext4/$d/trigger_fs_error";
/// Nothing can be written any more, and who tries waits in the kernel.
const FREEZE: &str = "fsfreeze -f /srv/nasd/vms/vms";
/// Stalls, ms: detection and a move; detection, refused demotion and a takeover.
const MOVED_MAX: f64 = 3_000.0;
const TAKEN_MAX: f64 = 40_000.0;

fn begin(ctx: &mut Ctx) -> Result<Bed, LabError> {
    let mut bed = Bed::up(ctx, &[VMS])?;
    bed.pause_ms = 10;
    bed.wait_whole(ctx, Duration::from_secs(30))?;
    bed.write(ctx)?;
    Ok(bed)
}

fn replaced(ctx: &mut Ctx, script: &str, limit_ms: f64) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let begin = Instant::now();
    let (_, window) = bed.window(ctx, |ctx| {
        ctx.lab.sh(&owner, script, ctx.patience(PROMPT))?;
        ctx.report.moves += 1;
        bed.wait_serves(ctx, other(&owner), VMS, SERVED)?;
        bed.wait_writing(ctx, SERVED)
    })?;
    let took = begin.elapsed().as_secs_f64();
    ctx.report.notes.push(format!("{} serves after {took:.1} s", other(&owner)));
    let after = bed.wait_whole(ctx, WHOLE)?;
    ctx.demand(after != owner, "no failing back by itself");
    ctx.report.notes.push(format!("reboots of {owner}: {}", ctx.lab.reboots(&owner)));
    bed.conclude(ctx, &[window])?;
    bed.bound_stall(ctx, "stall max", &[window], limit_ms);
    Ok(())
}

fn readonly(ctx: &mut Ctx) -> Result<(), LabError> {
    replaced(ctx, BREAK, MOVED_MAX)
}

fn stuck(ctx: &mut Ctx) -> Result<(), LabError> {
    replaced(ctx, FREEZE, TAKEN_MAX)
}
