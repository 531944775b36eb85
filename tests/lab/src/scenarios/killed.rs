//! `nasd-killed-at-each-step`: SIGKILL of either nasd after each step of a planned move. systemd starts
//! it again; nobody else helps (S9).

use std::time::Duration;

use super::bed::{Bed, FAIL_POINTS, NAS, VMS};
use super::{Ctx, Scenario};
use crate::error::LabError;

/// See the module.
pub const SCENARIO: Scenario = Scenario {
    name: "nasd-killed-at-each-step",
    summary: "SIGKILL of either nasd after each step of a planned move; one node serves afterwards",
    engine: None,
    nightly: false,
    clients: 2,
    run,
};

/// Steps of the old owner, then of the target; names as in the timeline.
const OWNER: [&str; 8] = [
    "step:warm",
    "step:close-inbound",
    "step:drain",
    "step:close-outbound",
    "step:threads-0",
    "step:sync",
    "step:umount",
    "step:secondary",
];
const TARGET: [&str; 7] = [
    "step:primary",
    "step:mount",
    "step:marker",
    "step:threads",
    "step:probe",
    "step:open-gate",
    "step:tickle",
];

fn run(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = Bed::up(ctx, &[VMS])?;
    bed.write(ctx)?;
    let mut windows = Vec::new();
    let kills = OWNER.iter().map(|p| (true, *p)).chain(TARGET.iter().map(|p| (false, *p)));
    // A target's nasd dies at the owner's steps as well: it must not matter where the other one is.
    let bystander = ["step:warm", "step:close-outbound", "step:umount"];
    for (at_owner, point) in kills {
        windows.extend(kill_at(ctx, &bed, at_owner, point)?);
    }
    for point in bystander {
        windows.extend(kill_other(ctx, &bed, point)?);
    }
    bed.stop_writing(ctx)?;
    bed.verify(ctx, &windows)
}

fn other(owner: &str) -> &'static str {
    if owner == NAS[0] { NAS[1] } else { NAS[0] }
}

fn kill_at(
    ctx: &mut Ctx,
    bed: &Bed,
    at_owner: bool,
    point: &str,
) -> Result<Option<crate::report::Window>, LabError> {
    let owner = bed.wait_served(ctx, VMS, Duration::from_secs(40))?;
    let victim = if at_owner { owner.as_str() } else { other(&owner) };
    let before = restarts(ctx, victim)?;
    ctx.lab.push(victim, FAIL_POINTS, format!("{point} kill\n").as_bytes(), 0o600)?;
    // Asked at the node that stays, where possible, so that the answer is seen.
    let moved = bed.switchover(ctx, other(victim), VMS, &[])?;
    ctx.report.moves += 1;
    settle(ctx, bed, victim, point, before)?;
    ctx.report.notes.push(format!("{point} on {victim}: exit {} {}", moved.code, moved.outcome()));
    Ok(moved.window)
}

/// The target's nasd is killed by the clock while the owner hangs in a step.
fn kill_other(
    ctx: &mut Ctx,
    bed: &Bed,
    point: &str,
) -> Result<Option<crate::report::Window>, LabError> {
    let owner = bed.wait_served(ctx, VMS, Duration::from_secs(40))?;
    let victim = other(&owner);
    let before = restarts(ctx, victim)?;
    ctx.lab.push(&owner, FAIL_POINTS, format!("{point} hang:800\n").as_bytes(), 0o600)?;
    let job = ctx.lab.spawn(victim, &["bash", "-c", "sleep 0.6; pkill -9 -x nasd"])?;
    let moved = bed.switchover(ctx, &owner, VMS, &[])?;
    job.wait(ctx.patience(Duration::from_secs(10)))?;
    ctx.report.moves += 1;
    settle(ctx, bed, victim, point, before)?;
    let what = format!("{point}, {victim} killed: exit {} {}", moved.code, moved.outcome());
    ctx.report.notes.push(what);
    Ok(moved.window)
}

fn settle(
    ctx: &mut Ctx,
    bed: &Bed,
    victim: &str,
    point: &str,
    before: u64,
) -> Result<(), LabError> {
    let served = bed.wait_served(ctx, VMS, Duration::from_secs(60));
    if let Err(error) = served {
        ctx.report.failed += 1;
        ctx.demand(false, &format!("{point}: nobody serves after {victim} was killed: {error}"));
        return Err(error);
    }
    let killed = restarts(ctx, victim)? > before;
    ctx.demand(killed, &format!("{point}: nasd on {victim} was killed and started again"));
    Ok(())
}

fn restarts(ctx: &Ctx, node: &str) -> Result<u64, LabError> {
    let argv = ["systemctl", "show", "-P", "NRestarts", "nasd"];
    let text = ctx.lab.check(node, &argv, ctx.patience(Duration::from_secs(10)))?;
    Ok(text.trim().parse().unwrap_or(0))
}
