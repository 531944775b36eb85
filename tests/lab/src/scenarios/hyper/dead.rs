//! `forget-host`: a hypervisor loses its power for good. While it lives it cannot be forgotten; once it is, nothing
//! waits for it any more: no planned move for its agent, no grace for its record (S7).

use std::thread;
use std::time::{Duration, Instant};

use super::super::bed::VMS;
use super::super::operator::{only_with_the_sentence, typed};
use super::super::recovery::{PROMPT, SERVED, WHOLE, one, serves, until};
use super::super::{Ctx, Scenario, cuts};
use super::domain::{HOSTS, Hyper};
use super::hung::wait_phase;
use crate::error::LabError;
use crate::fault::Fault;
use crate::report::Window;

/// A dead host's record.
pub const FORGET: Scenario = Scenario {
    clients: 3,
    ..cuts::nightly(
        "forget-host",
        "a hypervisor dies with files open: forgotten with the sentence, then no grace waits for it",
        forget,
    )
};

const DEAD: &str = "hv3";
const COMMAND: [&str; 2] = ["forget-host", DEAD];
/// All other clients have reclaimed long before; with the dead one's record it would be 90 s.
const GRACE: f64 = 20_000.0;

fn forget(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, None)?;
    for hv in HOSTS.into_iter().chain([DEAD]) {
        wait_phase(ctx, hv, "normal", SERVED)?;
    }
    let open = "exec 9>>/mnt/vms/held-open; flock 9; sleep 600";
    let _open = ctx.lab.spawn(DEAD, &["bash", "-c", open])?;
    thread::sleep(Duration::from_secs(2));
    let alive = typed(ctx, "nas1", &COMMAND, Some("hv3 is dead"))?;
    ctx.demand(alive.code == 1, &format!("one that lives is not forgotten: {}", alive.text));
    ctx.report.notes.push(alive.text.trim().replace('\n', " | "));
    ctx.lab.fault(&Fault::PowerCut { node: DEAD.to_owned() })?;
    refused_for_its_sake(ctx, &hyper)?;
    let sentence = only_with_the_sentence(ctx, "nas1", &COMMAND)?;
    ctx.report.notes.push(format!("forgotten with: {sentence}"));
    let window = moves(ctx, &mut hyper)?;
    ctx.lab.fault(&Fault::PowerOn { node: DEAD.to_owned() })?;
    hyper.conclude(ctx, &[window])
}

/// Before it is forgotten its agent's silence stands in the way of a planned move.
fn refused_for_its_sake(ctx: &mut Ctx, hyper: &Hyper) -> Result<(), LabError> {
    let refusal = until(ctx, "a move to be refused for the dead host", WHOLE, || {
        let argv = ["--wait", "1", "--dry-run"];
        let dry = hyper.bed.switchover(ctx, "nas1", VMS, &argv).map_err(|e| e.to_string())?;
        let silent = dry.words().contains("has not heard of it");
        if silent { Ok(dry.words()) } else { Err(dry.words()) }
    })?;
    ctx.report.notes.push(refusal);
    Ok(())
}

/// A move and a migration right after it.
fn moves(ctx: &mut Ctx, hyper: &mut Hyper) -> Result<Window, LabError> {
    let start_ns = crate::blocks::wall_ns();
    let moved = hyper.bed.switchover(ctx, "nas1", VMS, &["--wait", "30"])?;
    ctx.report.moves += 1;
    let good = moved.code == 0 && moved.outcome() == "moved";
    ctx.demand(good, &format!("without --force: {}", moved.words()));
    let begin = Instant::now();
    let owner = hyper.bed.wait_served(ctx, VMS, SERVED)?;
    until(ctx, "the grace to end", WHOLE, || {
        let seen = one(ctx, &owner, VMS)?;
        let over = serves(&seen) && seen["in_grace"] == false;
        if over { Ok(()) } else { Err(seen["in_grace"].to_string()) }
    })?;
    ctx.bound("grace ms", Some(begin.elapsed().as_secs_f64() * 1000.0), GRACE);
    let migrated = hyper.migrate(ctx)?;
    ctx.demand(migrated.ok, &format!("the migration is done: {}", migrated.words));
    ctx.report.notes.push(format!("a migration right after it: {} ms", migrated.took.as_millis()));
    hyper.settle(ctx)?;
    thread::sleep(PROMPT.min(Duration::from_secs(1)));
    Ok(Window { start_ns, end_ns: crate::blocks::wall_ns() })
}
