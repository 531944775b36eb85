//! `both-at-once` and `kill-nas-mid-migration`, as far as they can be judged without hvagent: nobody holds a
//! migration back, so its downtime may contain a move; but the guest must neither be lost nor run twice.

use std::thread;
use std::time::Duration;

use super::super::bed::{REST, VMS};
use super::super::recovery::{SERVED, WHOLE};
use super::super::{Ctx, Scenario};
use super::domain::{Hyper, Migrated, Migration};
use crate::blocks::wall_ns;
use crate::error::LabError;
use crate::fault::Fault;
use crate::report::Window;

/// A move in a migration.
pub const BOTH: Scenario = Scenario {
    name: "both-at-once",
    summary: "migration and planned move at once, offset swept over the migration",
    engine: None,
    nightly: true,
    clients: 2,
    run: both_at_once,
};

/// A power cut in a migration.
pub const KILL: Scenario = Scenario {
    name: "kill-nas-mid-migration",
    summary: "power cut of the owner during a migration, instant swept over it",
    engine: None,
    nightly: true,
    clients: 2,
    run: kill_nas,
};

/// Offsets of the move or the power cut after the start of the migration, ms.
const OFFSETS_MS: [u64; 6] = [0, 1000, 2000, 3500, 5000, 8000];

/// Starts a migration and does `work` this long after; the migration has ended when this returns.
fn during<T>(
    ctx: &mut Ctx,
    hyper: &mut Hyper,
    offset_ms: u64,
    work: impl FnOnce(&mut Ctx, &Hyper) -> Result<T, LabError>,
) -> Result<(T, Migrated), LabError> {
    let migration = Migration::begin(ctx, hyper.name(), &hyper.host())?;
    thread::sleep(Duration::from_millis(offset_ms));
    let done = work(ctx, hyper)?;
    let migrated = migration.end(ctx)?;
    hyper.count(&migrated);
    let text = format!(
        "{offset_ms} ms: migration {} after {} ms {}",
        if migrated.ok { "done" } else { "failed" },
        migrated.took.as_millis(),
        migrated.words
    );
    ctx.report.notes.push(text.trim().to_owned());
    Ok((done, migrated))
}

fn both_at_once(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, None)?;
    let mut windows = Vec::new();
    for offset_ms in OFFSETS_MS {
        let start_ns = wall_ns();
        let (moved, _) = during(ctx, &mut hyper, offset_ms, |ctx, hyper| {
            hyper.bed.switchover(ctx, "nas1", VMS, &[])
        })?;
        ctx.report.moves += 1;
        let good = moved.code == 0 && moved.outcome() == "moved";
        ctx.report.failed += u64::from(!good);
        ctx.demand(good, &format!("{offset_ms} ms: move: {} {}", moved.outcome(), moved.message()));
        hyper.bed.wait_served(ctx, VMS, SERVED)?;
        hyper.settle(ctx)?;
        windows.push(Window { start_ns, end_ns: wall_ns() });
    }
    hyper.conclude(ctx, &windows)
}

fn kill_nas(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, None)?;
    let mut windows = Vec::new();
    for offset_ms in OFFSETS_MS {
        let owner = hyper.bed.wait_whole(ctx, WHOLE)?;
        let start_ns = wall_ns();
        during(ctx, &mut hyper, offset_ms, |ctx, hyper| {
            ctx.lab.fault(&Fault::PowerCut { node: owner.clone() })?;
            ctx.report.moves += 1;
            hyper.bed.wait_any(ctx, VMS, SERVED)
        })?;
        hyper.settle(ctx)?;
        windows.push(Window { start_ns, end_ns: wall_ns() });
        hyper.bed.power_on(ctx, &owner)?;
        thread::sleep(REST);
    }
    hyper.conclude(ctx, &windows)
}
