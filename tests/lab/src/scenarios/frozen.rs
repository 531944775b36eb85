//! A nasd or a node that stands still, or comes and goes: `nasd-frozen`, `freeze-active`, `nasd-crash-loop`,
//! `nasd-upgrade`. The gate shuts by itself (S4), and who wakes up late sends nothing.

use std::thread;
use std::time::{Duration, Instant};

use super::bed::{Bed, Extra, NAS, VMS};
use super::recovery::{GO_ON, PROMPT, WHOLE, demand_silence, packets_of};
use super::{Ctx, Scenario};
use crate::error::LabError;
use crate::fault::Fault;
use crate::report::Window;

/// The owner's nasd is stopped.
pub const NASD: Scenario = Scenario {
    name: "nasd-frozen",
    summary: "SIGSTOP of the owner's nasd for 1, 3, 30 and 120 s: taken over, SIGCONT sends no packet",
    engine: None,
    nightly: true,
    clients: 2,
    run: |ctx| nasd_frozen(ctx, &[1, 3, 30, 120]),
};

/// The same in short.
pub const NASD_SHORT: Scenario = Scenario {
    name: "nasd-frozen-short",
    summary: "SIGSTOP of the owner's nasd for 1, 3 and 8 s: taken over, SIGCONT sends no packet",
    engine: None,
    nightly: false,
    clients: 2,
    run: |ctx| nasd_frozen(ctx, &[1, 3, 8]),
};

/// The whole owner stands still.
pub const NODE: Scenario = Scenario {
    name: "freeze-active",
    summary: "the owner as a whole stands still for 20 s and goes on: taken over, and it sends no packet",
    engine: None,
    nightly: true,
    clients: 2,
    run: freeze_active,
};

/// The same with a fence agent.
pub const FENCED: Scenario = Scenario {
    name: "freeze-active-fenced",
    summary: "the owner stands still and is switched off by the fence agent: taken over at once",
    engine: None,
    nightly: true,
    clients: 2,
    run: freeze_fenced,
};

/// A nasd that dies all the time.
pub const CRASH_LOOP: Scenario = Scenario {
    name: "nasd-crash-loop",
    summary: "SIGKILL of the owner's nasd, then of both, each second for 20 s: served again at once",
    engine: None,
    nightly: true,
    clients: 2,
    run: crash_loop,
};

/// A restart in good order.
pub const UPGRADE: Scenario = Scenario {
    name: "nasd-upgrade",
    summary: "systemctl restart nasd on either node under load: no stall above 200 ms",
    engine: None,
    nightly: false,
    clients: 2,
    run: upgrade,
};

/// Until the gate of a stopped nasd has surely shut: the right's life, and a margin.
const GATE_SHUT: Duration = Duration::from_millis(2000);
/// How long a node is watched after it has gone on.
const WATCH: Duration = Duration::from_secs(5);
/// Stall when the owner's nasd hangs, ms: the right, the search, the taker's opening.
const TAKEN_MAX: f64 = 7000.0;
/// Stall over a restart of nasd, ms.
const UPGRADE_MAX: f64 = 200.0;

fn nasd_frozen(ctx: &mut Ctx, seconds: &[u64]) -> Result<(), LabError> {
    let mut bed = Bed::up(ctx, &[VMS])?;
    bed.pause_ms = 10;
    bed.wait_whole(ctx, Duration::from_secs(30))?;
    bed.write(ctx)?;
    let mut windows = Vec::new();
    for length in seconds {
        windows.push(stop_nasd(ctx, &bed, Duration::from_secs(*length))?);
    }
    bed.conclude(ctx, &windows)?;
    bed.bound_stall(ctx, "stall max", &windows, TAKEN_MAX);
    Ok(())
}

fn stop_nasd(ctx: &mut Ctx, bed: &Bed, length: Duration) -> Result<Window, LabError> {
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let begin = Instant::now();
    ctx.report.moves += 1;
    let (served, window) = bed.window(ctx, |ctx| {
        ctx.lab.sh(&owner, "pkill -STOP -x nasd", PROMPT)?;
        let capture = silent_after(ctx, begin, length, &owner)?;
        if capture.is_some() {
            bed.wait_serves(
                ctx,
                super::recovery::other(&owner),
                VMS,
                length.max(Duration::from_secs(3)),
            )?;
        }
        thread::sleep((begin + length).saturating_duration_since(Instant::now()));
        ctx.lab.sh(&owner, GO_ON, PROMPT)?;
        let served = bed.wait_any(ctx, VMS, WHOLE)?;
        thread::sleep(WATCH);
        if let Some(capture) = capture {
            demand_silence(ctx, &format!("{} s", length.as_secs()), capture)?;
        }
        bed.wait_writing(ctx, WHOLE)?;
        Ok(served)
    })?;
    ctx.report
        .notes
        .push(format!("nasd of {owner} stopped {} s: {served} serves", length.as_secs()));
    if length > GATE_SHUT {
        ctx.demand(
            served != owner,
            "a nasd that hangs longer than its right lasts loses the service",
        );
    }
    bed.wait_whole(ctx, WHOLE)?;
    Ok(window)
}

/// Once the gate has shut, a capture; none when the nasd goes on before that.
fn silent_after(
    ctx: &Ctx,
    begin: Instant,
    length: Duration,
    owner: &str,
) -> Result<Option<crate::capture::Capture>, LabError> {
    if length < GATE_SHUT {
        return Ok(None);
    }
    thread::sleep((begin + GATE_SHUT).saturating_duration_since(Instant::now()));
    packets_of(ctx, owner).map(Some)
}

fn freeze_active(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = Bed::up(ctx, &[VMS])?;
    bed.pause_ms = 10;
    bed.wait_whole(ctx, Duration::from_secs(30))?;
    bed.write(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let begin = Instant::now();
    let freeze = Fault::Freeze { node: owner.clone() };
    let (served, window) = bed.strike(ctx, |ctx| ctx.lab.fault(&freeze))?;
    ctx.demand(served != owner, "the other node has taken over");
    let capture = packets_of(ctx, &owner)?;
    thread::sleep((begin + Duration::from_secs(20)).saturating_duration_since(Instant::now()));
    let (whole, thaw) = bed.window(ctx, |ctx| {
        ctx.lab.fault(&Fault::Thaw { node: owner.clone() })?;
        thread::sleep(WATCH);
        bed.wait_whole(ctx, WHOLE)
    })?;
    demand_silence(ctx, "after the thaw", capture)?;
    ctx.demand(whole == served, "the new owner keeps the service");
    bed.conclude(ctx, &[window])?;
    bed.bound_stall(ctx, "stall of the takeover", &[window], TAKEN_MAX);
    bed.bound_stall(ctx, "stall while the old owner returns", &[thaw], 1000.0);
    Ok(())
}

fn freeze_fenced(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = Bed::up_with(ctx, &[VMS], &Extra { fence: true, ..Extra::default() })?;
    bed.pause_ms = 10;
    bed.wait_whole(ctx, Duration::from_secs(30))?;
    bed.write(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let freeze = Fault::Freeze { node: owner.clone() };
    let (served, window) = bed.strike(ctx, |ctx| ctx.lab.fault(&freeze))?;
    ctx.demand(served != owner, "the other node has taken over");
    let off = ctx.lab.switched_off(&owner)?;
    ctx.demand(off, "the fence agent has switched the old owner off");
    ctx.lab.fault(&Fault::PowerCut { node: owner.clone() })?;
    let whole = bed.power_on(ctx, &owner)?;
    ctx.demand(whole == served, "the new owner keeps the service");
    bed.conclude(ctx, &[window])?;
    bed.bound_stall(ctx, "stall of the takeover", &[window], TAKEN_MAX);
    Ok(())
}

fn crash_loop(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = Bed::up(ctx, &[VMS])?;
    bed.wait_whole(ctx, Duration::from_secs(30))?;
    bed.write(ctx)?;
    let mut windows = Vec::new();
    for both in [false, true] {
        let owner = bed.wait_whole(ctx, WHOLE)?;
        let (served, window) = bed.strike(ctx, |ctx| {
            for _ in 0..20 {
                for nas in NAS.iter().filter(|n| both || **n == owner) {
                    // It may just not be there.
                    ctx.lab.exec(nas, &["pkill", "-9", "-x", "nasd"], PROMPT)?;
                }
                thread::sleep(Duration::from_secs(1));
            }
            Ok(())
        })?;
        ctx.report.notes.push(format!("both {both}: {owner} before, {served} after"));
        windows.push(window);
    }
    bed.wait_whole(ctx, WHOLE)?;
    bed.conclude(ctx, &windows)?;
    bed.bound_stall(ctx, "stall max", &windows, 10_000.0);
    Ok(())
}

fn upgrade(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = Bed::up(ctx, &[VMS])?;
    bed.wait_whole(ctx, Duration::from_secs(30))?;
    bed.write(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let mut windows = Vec::new();
    for round in 0..6 {
        let nas = NAS[round % 2];
        let (served, window) = bed.strike(ctx, |ctx| {
            ctx.lab
                .sh(nas, "systemctl restart nasd", ctx.patience(Duration::from_secs(40)))
                .map(drop)
        })?;
        ctx.demand(served == owner, "a restart of nasd moves nothing");
        windows.push(window);
        bed.wait_whole(ctx, WHOLE)?;
    }
    bed.conclude(ctx, &windows)?;
    bed.bound_stall(ctx, "stall over a restart", &windows, UPGRADE_MAX);
    Ok(())
}
