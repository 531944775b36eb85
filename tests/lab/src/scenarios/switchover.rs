//! Planned moves: `switchover`, `switchover-stock-kernel`, `switchover-two-services`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::bed::{Bed, ISO, Moved, VMS};
use super::{Ctx, Scenario};
use crate::engine::Engine;
use crate::error::LabError;
use crate::report::{Percentiles, Window};

/// Twenty moves back and forth.
pub const SWITCHOVER: Scenario = Scenario {
    name: "switchover",
    summary: "20 planned moves back and forth, two clients writing with locks held",
    engine: None,
    nightly: false,
    clients: 2,
    run: |ctx| moves(ctx, 20, Some((600.0, 1500.0))),
};

/// The same code on Debian's own kernel.
pub const STOCK_KERNEL: Scenario = Scenario {
    name: "switchover-stock-kernel",
    summary: "3 planned moves with Debian's own kernel",
    engine: Some(Engine::Qemu),
    nightly: false,
    // Three emulated nodes are enough for two processors.
    clients: 1,
    run: |ctx| moves(ctx, 3, None),
};

/// A move must not disturb the neighbour.
pub const TWO_SERVICES: Scenario = Scenario {
    name: "switchover-two-services",
    summary: "two services on opposite nodes; moving one does not stall the other's clients",
    engine: None,
    nightly: false,
    clients: 2,
    run: two_services,
};

fn moves(ctx: &mut Ctx, count: u64, bounds: Option<(f64, f64)>) -> Result<(), LabError> {
    let mut bed = Bed::up(ctx, &[VMS])?;
    bed.write(ctx)?;
    let (mut windows, mut steps) = (Vec::new(), BTreeMap::<String, Vec<f64>>::new());
    for number in 0..count {
        // Asked alternately at the owner and at the other node: both must work.
        let on = if number % 4 < 2 { "nas1" } else { "nas2" };
        let moved = bed.switchover(ctx, on, VMS, &[])?;
        ctx.report.moves += 1;
        note_move(ctx, number, &moved);
        for (name, us) in moved.steps() {
            steps.entry(name.to_owned()).or_default().push(us as f64 / 1000.0);
        }
        windows.extend(moved.window);
        bed.wait_served(ctx, VMS, Duration::from_secs(20))?;
    }
    bed.stop_writing(ctx)?;
    bed.verify(ctx, &windows)?;
    let medians = steps.iter().map(|(n, ms)| (n.clone(), Percentiles::of(ms).p50.into()));
    let medians: serde_json::Map<_, _> = medians.collect();
    ctx.report.extra.insert("step_median_ms".into(), medians.into());
    let each = crate::report::stalls(&bed.stats, &windows);
    let each = each.iter().map(|s| format!("{}:{} {:.0}", s.window, s.writer, s.ms));
    ctx.report.extra.insert("stalls".into(), each.collect::<Vec<_>>().into());
    ctx.demand(ctx.report.failed == 0, "every move succeeds");
    if let Some((p50, max)) = bounds {
        ctx.bound("stall p50 ms", ctx.report.stall_ms.p50, p50);
        ctx.bound("stall max ms", ctx.report.stall_ms.max, max);
    }
    Ok(())
}

fn note_move(ctx: &mut Ctx, number: u64, moved: &Moved) {
    if moved.code != 0 || moved.outcome() != "moved" {
        ctx.report.failed += 1;
        let what =
            format!("move {number}: exit {} {} {}", moved.code, moved.outcome(), moved.message());
        ctx.report.notes.push(what);
        ctx.report.notes.extend(moved.refusals());
    }
}

fn two_services(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = Bed::up(ctx, &[VMS, ISO])?;
    bed.write(ctx)?;
    let mut windows: Vec<Window> = Vec::new();
    for number in 0..4 {
        let moved = bed.switchover(ctx, "nas1", VMS, &[])?;
        ctx.report.moves += 1;
        note_move(ctx, number, &moved);
        windows.extend(moved.window);
        bed.wait_served(ctx, VMS, Duration::from_secs(20))?;
    }
    bed.stop_writing(ctx)?;
    let neighbours: Vec<_> =
        bed.stats.iter().filter(|s| s.writer.contains(ISO.name)).cloned().collect();
    let stalls = crate::report::stalls(&neighbours, &windows);
    let worst = stalls.iter().map(|s| s.ms).fold(0.0, f64::max);
    bed.verify(ctx, &windows)?;
    let moving: Vec<_> =
        bed.stats.iter().filter(|s| s.writer.contains(VMS.name)).cloned().collect();
    let own: Vec<f64> = crate::report::stalls(&moving, &windows).iter().map(|s| s.ms).collect();
    ctx.report.stall_ms = Percentiles::of(&own);
    ctx.report.extra.insert("neighbour_stall_max_ms".into(), worst.into());
    ctx.demand(ctx.report.failed == 0, "every move succeeds");
    ctx.bound("neighbour's stall max ms", Some(worst), 200.0);
    Ok(())
}
