//! Starts from nothing, and faults on top of faults: `both-power-cut`, `cold-start-stale`, `double-fault`,
//! `resync-then-crash`. Who is not current does not serve, and says why (S2).

use std::thread;
use std::time::Duration;

use super::bed::{Bed, Extra, FAIL_POINTS, NAS, VMS};
use super::mid_move::wait_stopped;
use super::recovery::{PROMPT, SERVED, WHOLE, one, other, power, until};
use super::{Ctx, Scenario};
use crate::error::LabError;
use crate::report::Window;

/// Both lose their power at once.
pub const BOTH: Scenario = Scenario {
    name: "both-power-cut",
    summary: "both NAS nodes lose power; they return in either order, or one alone: served, nothing lost",
    engine: None,
    nightly: false,
    clients: 2,
    run: both,
};

/// The one that missed writes boots alone.
pub const STALE: Scenario = Scenario {
    name: "cold-start-stale",
    summary: "a node that missed writes boots alone: refuses and says so, until the other returns",
    engine: None,
    nightly: true,
    clients: 2,
    run: stale,
};

/// The taker dies in grace.
pub const DOUBLE: Scenario = Scenario {
    name: "double-fault",
    summary: "the taker dies in grace, the first owner returns: refuses; the taker returns: all reclaim",
    engine: None,
    nightly: true,
    clients: 2,
    run: double,
};

/// The source of a resynchronisation dies.
pub const RESYNC: Scenario = Scenario {
    name: "resync-then-crash",
    summary: "the source of a resynchronisation dies: the target stays down and says why and how long",
    engine: None,
    nightly: true,
    clients: 2,
    run: resync_then_crash,
};

/// How long a node is watched that must not serve: longer than any wait for a silent peer.
const REFUSES: Duration = Duration::from_secs(25);
/// Makes a resynchronisation last minutes.
const SLOW: &str = "sed -i 's/resync-rate 200M/resync-rate 60k/' /etc/drbd.d/global_common.conf\n";

fn begin(ctx: &mut Ctx, hook: &'static str) -> Result<Bed, LabError> {
    let mut bed = Bed::up_with(ctx, &[VMS], &Extra { hook, ..Extra::default() })?;
    bed.pause_ms = 10;
    bed.wait_whole(ctx, Duration::from_secs(30))?;
    bed.write(ctx)?;
    Ok(bed)
}

fn both(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx, "")?;
    let mut windows = Vec::new();
    // First the owner, first the standby, the owner alone, the standby alone.
    for (owner_first, alone) in [(true, false), (false, false), (true, true), (false, true)] {
        let owner = bed.wait_whole(ctx, WHOLE)?;
        let first = if owner_first { owner.as_str() } else { other(&owner) }.to_owned();
        let (served, window) = bed.strike(ctx, |ctx| {
            NAS.iter().try_for_each(|n| power(ctx, false, n))?;
            thread::sleep(Duration::from_secs(2));
            power(ctx, true, &first)?;
            if alone { Ok(()) } else { power(ctx, true, other(&first)) }
        })?;
        ctx.report.notes.push(format!(
            "{owner} served; {first} boots first{}: {served} serves",
            if alone { ", alone" } else { "" }
        ));
        if alone {
            ctx.demand(served == first, "the only one that runs serves");
            power(ctx, true, other(&first))?;
        }
        bed.wait_whole(ctx, WHOLE)?;
        windows.push(window);
    }
    bed.conclude(ctx, &windows)
}

fn stale(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx, "")?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let standby = other(&owner);
    let cut = |ctx: &mut Ctx| power(ctx, false, standby);
    let (_, first) = bed.strike(ctx, cut)?;
    // Writes that only the owner has.
    thread::sleep(Duration::from_secs(3));
    let (said, second) = bed.window(ctx, |ctx| {
        power(ctx, false, &owner)?;
        power(ctx, true, standby)?;
        let said = bed.must_not_serve(ctx, standby, REFUSES)?;
        power(ctx, true, &owner)?;
        bed.wait_whole(ctx, WHOLE)?;
        bed.wait_writing(ctx, SERVED)?;
        Ok(said)
    })?;
    says_why(ctx, &said);
    bed.conclude(ctx, &[first, second])
}

/// A refusal must have words.
fn says_why(ctx: &mut Ctx, said: &str) {
    ctx.demand(!said.ends_with("null"), "the node that refuses says why");
    ctx.report.notes.push(said.to_owned());
}

fn double(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx, "")?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let taker = other(&owner);
    let (said, window) = bed.window(ctx, |ctx| {
        // Grace begins with the threads.
        ctx.lab.push(taker, FAIL_POINTS, b"step:open-gate stop\n", 0o600)?;
        power(ctx, false, &owner)?;
        ctx.report.moves += 1;
        wait_stopped(ctx, taker)?;
        power(ctx, false, taker)?;
        power(ctx, true, &owner)?;
        let said = bed.must_not_serve(ctx, &owner, REFUSES)?;
        power(ctx, true, taker)?;
        bed.wait_whole(ctx, WHOLE)?;
        bed.wait_writing(ctx, SERVED)?;
        Ok(said)
    })?;
    says_why(ctx, &said);
    bed.conclude(ctx, &[window])
}

fn resync_then_crash(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx, SLOW)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let standby = other(&owner);
    let (_, first) = bed.strike(ctx, |ctx| power(ctx, false, standby))?;
    let fill = "dd if=/dev/urandom of=/mnt/vms/fill bs=1M count=40 conv=fsync 2>/dev/null";
    ctx.lab.sh("hv1", fill, ctx.patience(Duration::from_secs(60)))?;
    power(ctx, true, standby)?;
    until(ctx, "the resynchronisation to begin", WHOLE, || {
        let seen = one(ctx, &owner, VMS)?["drbd"].to_string();
        if seen.contains("Inconsistent") { Ok(()) } else { Err(seen) }
    })?;
    // The target must learn its progress, to tell it when the source is gone.
    thread::sleep(Duration::from_secs(5));
    let (said, second) = source_dies(ctx, &bed, &owner, standby)?;
    says_why(ctx, &said);
    let timed = said.contains("MiB to go, about ") && said.contains(" s at the rate seen");
    ctx.demand(timed, "the refusal names the resynchronisation and how long it would have taken");
    bed.conclude(ctx, &[first, second])
}

fn source_dies(
    ctx: &mut Ctx,
    bed: &Bed,
    source: &str,
    target: &str,
) -> Result<(String, Window), LabError> {
    bed.window(ctx, |ctx| {
        power(ctx, false, source)?;
        ctx.report.moves += 1;
        let said = bed.must_not_serve(ctx, target, REFUSES)?;
        power(ctx, true, source)?;
        bed.wait_serves(ctx, source, VMS, WHOLE)?;
        for nas in NAS {
            let fast =
                "drbdsetup disk-options 0 --resync-rate=200M --c-plan-ahead=0 --c-min-rate=0";
            ctx.lab.sh(nas, fast, ctx.patience(PROMPT))?;
        }
        bed.wait_whole(ctx, WHOLE)?;
        bed.wait_writing(ctx, SERVED)?;
        Ok(said)
    })
}
