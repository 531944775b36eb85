//! `demo`: two hypervisors write to one share, which is moved to the other NAS node and back; shows the steps of
//! both moves and what each client felt of them.
//!
//! It demands what every scenario demands, so that `lab test` keeps the demonstration true.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::bed::{Bed, Moved, VMS};
use super::{Ctx, Scenario};
use crate::error::LabError;
use crate::progress::Step;
use crate::report::{ScenarioReport, Stall, Window, stalls};

/// See the module.
pub const SCENARIO: Scenario = Scenario {
    name: "demo",
    summary: "a share moves to the other node and back while two clients write",
    engine: None,
    nightly: false,
    clients: 2,
    run,
};

/// Key of the moves in the report.
const MOVES: &str = "timeline";

fn run(ctx: &mut Ctx) -> Result<(), LabError> {
    let step = Step::begin("Starting nasd on nas1 and nas2, mounting the share on hv1 and hv2");
    let mut bed = Bed::up(ctx, &[VMS])?;
    step.done();
    let step = Step::begin("Starting a writer with locks on each");
    bed.write(ctx)?;
    step.done();
    let mut moves = Vec::new();
    for (from, to) in [("nas1", "nas2"), ("nas2", "nas1")] {
        moves.push((from, to, switch(ctx, &bed, from, to)?));
    }
    let step = Step::begin("Stopping the writers, reading every block back");
    bed.stop_writing(ctx)?;
    let windows: Vec<Window> = moves.iter().filter_map(|(_, _, moved)| moved.window).collect();
    bed.verify(ctx, &windows)?;
    step.done();
    let felt = stalls(&bed.stats, &windows);
    let told = moves.iter().enumerate().map(|(number, (from, to, moved))| {
        let felt: Vec<_> = felt.iter().filter(|s| s.window == number).collect();
        tell(from, to, moved, &felt)
    });
    let told: Vec<_> = told.collect();
    ctx.report.extra.insert(MOVES.to_owned(), told.into());
    ctx.demand(ctx.report.failed == 0, "both moves succeed");
    Ok(())
}

fn switch(ctx: &mut Ctx, bed: &Bed, from: &str, to: &str) -> Result<Moved, LabError> {
    let step = Step::begin(format!("nasctl switchover {} --to {to}", VMS.name));
    let moved = bed.switchover(ctx, from, VMS, &["--to", to])?;
    ctx.report.moves += 1;
    if moved.code != 0 {
        ctx.report.failed += 1;
        ctx.report.notes.push(format!("{}: {}", moved.outcome(), moved.message()));
        ctx.report.notes.extend(moved.refusals());
    }
    bed.wait_served(ctx, VMS, Duration::from_secs(20))?;
    step.done();
    Ok(moved)
}

/// One move for the report: its steps, from the first one's begin, and the stall of each client.
fn tell(from: &str, to: &str, moved: &Moved, felt: &[&Stall]) -> Value {
    let steps = moved.events.iter().filter(|e| e["event"] == "step" && e["done"] == true);
    let mut steps: Vec<_> = steps.collect();
    let begin = |e: &Value| e["started_unix_us"].as_u64().unwrap_or(0);
    steps.sort_by_key(|e| begin(e));
    let first = steps.first().map_or(0, |e| begin(e));
    let step = |e: &&Value| {
        let ms = |us: u64| us as f64 / 1000.0;
        let (at, took) = (begin(e).saturating_sub(first), e["took_us"].as_u64().unwrap_or(0));
        json!({"step": e["name"], "node": e["node"], "at_ms": ms(at), "took_ms": ms(took)})
    };
    let client = |s: &&Stall| {
        let name = s.writer.split(VMS.name).next().unwrap_or(&s.writer);
        json!({"client": name, "stall_ms": s.ms, "worst_file_ms": s.worst_file_ms, "below": s.below_threshold})
    };
    json!({
        "from": from, "to": to, "outcome": moved.outcome(),
        "steps": steps.iter().map(step).collect::<Vec<_>>(),
        "clients": felt.iter().map(client).collect::<Vec<_>>(),
    })
}

/// The moves as tables, and taken out of the report: what is left of it is for [`ScenarioReport::to_text`]. Empty
/// for other scenarios' reports.
#[must_use]
pub fn to_text(report: &mut ScenarioReport) -> String {
    let mut out = String::new();
    let moves = report.extra.remove(MOVES).unwrap_or_default();
    for one in moves.as_array().into_iter().flatten() {
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "\n{} → {}: {}\n",
            text(&one["from"]),
            text(&one["to"]),
            text(&one["outcome"])
        );
        let _ = writeln!(out, "  {:<24} {:<6} {:>9} {:>9}", "step", "node", "at ms", "took ms");
        for s in one["steps"].as_array().into_iter().flatten() {
            let (at, took) = (number(&s["at_ms"]), number(&s["took_ms"]));
            let (name, node) = (text(&s["step"]), text(&s["node"]));
            let _ = writeln!(out, "  {name:<24} {node:<6} {at:>9.1} {took:>9.1}");
        }
        let _ = writeln!(out, "\n  {:<24} {:>16} {:>9}", "client", "stall ms", "worst file");
        for c in one["clients"].as_array().into_iter().flatten() {
            let below = if c["below"] == true { "<" } else { "" };
            let stall = format!("{below}{:.0}", number(&c["stall_ms"]));
            let _ = writeln!(
                out,
                "  {:<24} {stall:>16} {:>10.0}",
                text(&c["client"]),
                number(&c["worst_file_ms"])
            );
        }
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, at_us: u64, took_us: u64) -> Value {
        json!({"event": "step", "name": name, "node": "nas1", "done": true, "started_unix_us": at_us, "took_us": took_us})
    }

    #[test]
    fn steps_are_told_in_the_order_of_time_from_the_first() {
        let events = vec![
            json!({"event": "preflight"}),
            step("open", 9_000_500, 1_000),
            step("cut", 9_000_000, 20_300),
        ];
        let stall = Stall {
            window: 0,
            writer: "hv1vms0".into(),
            ms: 412.3,
            worst_file_ms: 420.0,
            below_threshold: false,
            unfinished: false,
        };
        let told = tell("nas1", "nas2", &Moved { events, ..Moved::default() }, &[&stall]);
        let mut report = ScenarioReport::default();
        report.extra.insert(MOVES.to_owned(), vec![told].into());
        let shown = to_text(&mut report);
        let lines: Vec<Vec<&str>> = shown.lines().map(|l| l.split_whitespace().collect()).collect();
        let cut = lines.iter().position(|l| *l == ["cut", "nas1", "0.0", "20.3"]).unwrap();
        assert_eq!(lines[cut + 1], ["open", "nas1", "0.5", "1.0"]);
        assert!(lines.contains(&vec!["hv1", "412", "420"]), "{shown}");
        assert!(report.extra.is_empty() && to_text(&mut report).is_empty());
    }
}
