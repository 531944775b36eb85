//! Storage moves and dies while a guest migrates: `both-at-once`, `kill-nas-mid-migration`. The guest must neither be
//! lost nor run twice, and no downtime of a migration may contain a planned move (S11).

use std::thread;
use std::time::Duration;

use super::super::bed::{Moved, REST, VMS};
use super::super::recovery::{SERVED, WHOLE};
use super::super::{Ctx, Scenario};
use super::domain::{HOSTS, Hyper, Migrated, Migration};
use super::hung::wait_phase;
use crate::blocks::wall_ns;
use crate::error::LabError;
use crate::fault::Fault;
use crate::report::Window;

/// A move in a migration.
pub const BOTH: Scenario = Scenario {
    name: "both-at-once",
    summary: "migration and planned move at once, 10 times, offset swept over the migration",
    engine: None,
    nightly: true,
    clients: 2,
    run: both_at_once,
};

/// A power cut in a migration.
pub const KILL: Scenario = Scenario {
    name: "kill-nas-mid-migration",
    summary: "power cut of the owner during a migration, 10 instants swept over it",
    engine: None,
    nightly: true,
    clients: 2,
    run: kill_nas,
};

/// Instants, from the start of a migration to its end.
const INSTANTS: u32 = 10;

/// A migration alone tells how long one takes; the offsets that sweep over it.
fn offsets(ctx: &mut Ctx, hyper: &mut Hyper) -> Result<Vec<Duration>, LabError> {
    let alone = hyper.migrate(ctx)?;
    ctx.demand(alone.ok, &format!("a migration alone: {}", alone.words));
    hyper.settle(ctx)?;
    ctx.report.notes.push(format!("a migration alone: {} ms", alone.took.as_millis()));
    Ok((0..INSTANTS).map(|n| alone.took * n / (INSTANTS - 1)).collect())
}

/// Starts a migration and does `work` this long after; the migration has ended when this returns.
fn during<T>(
    ctx: &mut Ctx,
    hyper: &mut Hyper,
    offset: Duration,
    work: impl FnOnce(&mut Ctx, &Hyper) -> Result<T, LabError>,
) -> Result<(T, Migrated), LabError> {
    let migration = Migration::begin(ctx, hyper.name(), &hyper.host())?;
    thread::sleep(offset);
    let done = work(ctx, hyper)?;
    let migrated = migration.end(ctx)?;
    hyper.count(&migrated);
    let text = format!(
        "{} ms: migration {} after {} ms {}",
        offset.as_millis(),
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
    for offset in offsets(ctx, &mut hyper)? {
        let ms = offset.as_millis();
        for hv in HOSTS {
            wait_phase(ctx, hv, "normal", WHOLE)?;
        }
        let start_ns = wall_ns();
        let (moved, migrated) = during(ctx, &mut hyper, offset, |ctx, hyper| {
            hyper.bed.switchover(ctx, "nas1", VMS, &["--wait", "45"])
        })?;
        ctx.report.moves += 1;
        let good = moved.code == 0 && moved.outcome() == "moved";
        ctx.report.failed += u64::from(!good);
        ctx.demand(good, &format!("{ms} ms: move: {}", moved.words()));
        ctx.demand(migrated.ok, &format!("{ms} ms: the migration is done: {}", migrated.words));
        hyper.bed.wait_served(ctx, VMS, SERVED)?;
        hyper.settle(ctx)?;
        demand_apart(ctx, &hyper, start_ns, &moved);
        windows.push(Window { start_ns, end_ns: wall_ns() });
    }
    hyper.conclude(ctx, &windows)
}

/// S11: from the guest's last word on one host to its first on the other, storage does not move.
fn demand_apart(ctx: &mut Ctx, hyper: &Hyper, since_ns: u64, moved: &Moved) {
    let Some((cut, open)) = silence(moved) else {
        return ctx
            .demand(moved.outcome() != "moved", "the move tells when the storage was silent");
    };
    for change in hyper.changes().iter().filter(|c| c.at_ns > since_ns) {
        let apart = open <= change.since_ns || cut >= change.at_ns;
        let ms = |at: u64| i128::from(at) / 1_000_000 - i128::from(since_ns) / 1_000_000;
        let words = format!(
            "downtime {}..{} ms, storage moved {}..{} ms",
            ms(change.since_ns),
            ms(change.at_ns),
            ms(cut),
            ms(open)
        );
        ctx.report.notes.push(words.clone());
        ctx.demand(apart, &format!("no downtime contains a move: {words}"));
    }
}

/// When the gate closed on one node and when it opened on the other, ns of wall clock.
fn silence(moved: &Moved) -> Option<(u64, u64)> {
    let step = |name: &str| {
        let of = |e: &&serde_json::Value| e["event"] == "step" && e["name"] == name;
        let e = moved.events.iter().rfind(of)?;
        Some((e["started_unix_us"].as_u64()? * 1000, e["took_us"].as_u64()? * 1000))
    };
    let (cut, (opening, took)) = (step("close-inbound")?.0, step("open-gate")?);
    Some((cut, opening + took))
}

fn kill_nas(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, None)?;
    let mut windows = Vec::new();
    for offset in offsets(ctx, &mut hyper)? {
        let owner = hyper.bed.wait_whole(ctx, WHOLE)?;
        let start_ns = wall_ns();
        during(ctx, &mut hyper, offset, |ctx, hyper| {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn storage_is_silent_from_the_first_gate_to_the_second() {
        let step = |name: &str, at: u64, took: u64| json!({"event": "step", "name": name, "started_unix_us": at, "took_us": took});
        let events = vec![
            step("warm", 1, 1),
            step("close-inbound", 10, 2),
            step("open-gate", 30, 5),
            json!({"event": "outcome"}),
        ];
        let moved = Moved { events, ..Moved::default() };
        assert_eq!(silence(&moved), Some((10_000, 35_000)));
        assert_eq!(silence(&Moved::default()), None);
    }
}
