//! The report of a scenario: what `lab` writes as JSON and prints, and how stalls are computed from the writers'
//! statistics. It shows whether S1, S2, S6 and S8 held; it keeps no rule itself.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::blocks::WriterStats;
use crate::blocks::check::CheckReport;
use crate::blocks::gaps::Gap;

/// The result of one scenario.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScenarioReport {
    /// Name of the scenario.
    pub scenario: String,
    /// What the nodes ran on: `uml`, `qemu`, …
    pub engine: String,
    /// Everything the scenario demands was met.
    pub ok: bool,
    /// Moves that were asked for.
    pub moves: u64,
    /// Moves that did not end as asked.
    pub failed: u64,
    /// Stalls of all clients in all moves, ms.
    pub stall_ms: Percentiles,
    /// Blocks on the volume, against the journals.
    pub blocks: BlockCounts,
    /// Errors that clients saw.
    pub io_errors: u64,
    /// Locks that clients lost.
    pub lost_locks: u64,
    /// What was seen of a guest, in scenarios that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestReport>,
    /// Migrations of a guest, in scenarios that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrations: Option<Migrations>,
    /// Remarks.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Bounds that the scenario demanded.
    #[serde(default)]
    pub bounds: Map<String, Value>,
    /// Anything else.
    #[serde(default)]
    pub extra: Map<String, Value>,
}

/// What was seen of a guest from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestReport {
    /// Longest times without an acknowledged write, one per move or migration, ms.
    pub stall_ms: Percentiles,
    /// How often it was paused, but for migrations.
    pub paused: u64,
    /// Errors of its disk, told by the guest or by its hypervisor.
    pub io_errors: u64,
}

/// Migrations of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Migrations {
    /// Succeeded, at once or at last.
    pub done: u64,
    /// Held back or aborted, and tried again.
    pub retried: u64,
    /// Given up.
    pub failed: u64,
    /// Longest time without an acknowledged write in each that was done, ms.
    pub downtime_ms: Percentiles,
}

/// Blocks on the volume, against the journals. See [`CheckReport`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockCounts {
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Acknowledged and not there.
    pub lost: u64,
    /// Acknowledged, but an older write is there.
    pub stale: u64,
    /// Mixed of several writes.
    pub torn: u64,
    /// Belonging elsewhere.
    pub foreign: u64,
}

impl BlockCounts {
    /// Places that are wrong.
    #[must_use]
    pub const fn bad(&self) -> u64 {
        self.lost + self.stale + self.torn + self.foreign
    }
}

impl From<&CheckReport> for BlockCounts {
    fn from(r: &CheckReport) -> Self {
        Self {
            acknowledged: r.acknowledged,
            lost: r.lost,
            stale: r.stale,
            torn: r.torn,
            foreign: r.foreign,
        }
    }
}

/// Minimum, median, 90th percentile, maximum. All empty (`null`) when there was nothing to measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Smallest.
    pub min: Option<f64>,
    /// Median, see [`percentile`].
    pub p50: Option<f64>,
    /// 90th percentile, see [`percentile`].
    pub p90: Option<f64>,
    /// Largest.
    pub max: Option<f64>,
}

impl Percentiles {
    /// Of `values` in any order.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self {
            min: sorted.first().copied(),
            p50: percentile(&sorted, 50),
            p90: percentile(&sorted, 90),
            max: sorted.last().copied(),
        }
    }
}

/// Nearest-rank percentile of ascending values: the smallest value that at least `percent` in a hundred do not
/// exceed. It is always a value that was measured; nothing is interpolated. `None` without values.
#[must_use]
pub fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent.min(100)).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// The time of one move, by the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Begin, ns.
    pub start_ns: u64,
    /// End, ns.
    pub end_ns: u64,
}

impl Window {
    const fn overlaps(self, gap: &Gap) -> bool {
        gap.start_ns < self.end_ns && gap.end_ns > self.start_ns
    }
}

/// What one client felt of one move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// Number of the move, from 0.
    pub window: usize,
    /// The writer.
    pub writer: String,
    /// From the last write completed before to the first completed after, of the writer as a whole, ms.
    pub ms: f64,
    /// The same for the file that had to wait longest; never shorter, ms.
    pub worst_file_ms: f64,
    /// No gap was long enough to be listed: `ms` is the writer's threshold, the stall was shorter.
    pub below_threshold: bool,
    /// Writes had not come back when the statistics were made: the stall is at least this long.
    pub unfinished: bool,
}

/// Stalls of every client in every move: the longest gap that overlaps the move's window.
///
/// The answer is in the order of windows, then of `stats`. A writer that did not run during a whole window has no
/// entry for it: nothing can be said.
#[must_use]
pub fn stalls(stats: &[WriterStats], windows: &[Window]) -> Vec<Stall> {
    let covered = |s: &WriterStats, w: &Window| s.start_ns <= w.start_ns && s.now_ns >= w.end_ns;
    windows
        .iter()
        .enumerate()
        .flat_map(|(number, window)| {
            let running = stats.iter().filter(move |s| covered(s, window));
            running.map(move |s| stall(s, number, *window))
        })
        .collect()
}

fn stall(stats: &WriterStats, number: usize, window: Window) -> Stall {
    let open = |of_file: bool| stats.open_gaps.iter().filter(move |g| g.file.is_some() == of_file);
    let whole = longest(stats.gaps.iter().chain(open(false)), window);
    let file = longest(stats.file_gaps.iter().chain(open(true)), window);
    let ms = whole.unwrap_or(stats.gap_threshold_ms);
    Stall {
        window: number,
        writer: stats.writer.clone(),
        ms,
        worst_file_ms: file.unwrap_or(ms).max(ms),
        below_threshold: whole.is_none(),
        unfinished: stats.open_gaps.iter().any(|g| window.overlaps(g)),
    }
}

fn longest<'a>(gaps: impl Iterator<Item = &'a Gap>, window: Window) -> Option<f64> {
    gaps.filter(|g| window.overlaps(g)).map(|g| g.ms).max_by(f64::total_cmp)
}

impl ScenarioReport {
    /// Takes over what the clients saw: stalls, errors, locks. Open ends are told in the notes.
    pub fn add_clients(&mut self, stats: &[WriterStats], windows: &[Window]) {
        let all = stalls(stats, windows);
        let values: Vec<f64> = all.iter().map(|s| s.ms).collect();
        self.stall_ms = Percentiles::of(&values);
        self.io_errors += stats.iter().map(|s| s.io_errors.count).sum::<u64>();
        self.lost_locks += stats.iter().map(|s| s.lost_locks).sum::<u64>();
        for s in all.iter().filter(|s| s.unfinished) {
            let (move_, ms) = (s.window + 1, s.worst_file_ms);
            self.notes.push(format!("move {move_}: {} still waited after {ms:.0} ms", s.writer));
        }
        let missing = stats.len() * windows.len() - all.len();
        if missing > 0 {
            self.notes.push(format!("{missing} stalls unknown: a client did not run throughout"));
        }
    }

    /// For people: one line per key, numbers aligned.
    #[must_use]
    pub fn to_text(&self) -> String {
        let verdict = if self.ok { "ok" } else { "FAILED" };
        let mut out = format!("{} ({}): {verdict}\n", self.scenario, self.engine);
        let mut line = |name: &str, text: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "  {name:<12} {text}");
        };
        line("moves", format!("{:>8}   failed {:>6}", self.moves, self.failed));
        line("stall ms", stall_text(&self.stall_ms));
        line("blocks", blocks_text(&self.blocks));
        line("io errors", format!("{:>8}", self.io_errors));
        line("lost locks", format!("{:>8}", self.lost_locks));
        if let Some(g) = &self.guest {
            line("guest ms", stall_text(&g.stall_ms));
            line("guest", format!("{:>8} paused   io errors {}", g.paused, g.io_errors));
        }
        if let Some(m) = &self.migrations {
            line(
                "migrations",
                format!("{:>8}   retried {}   failed {}", m.done, m.retried, m.failed),
            );
            line("downtime ms", stall_text(&m.downtime_ms));
        }
        for (name, value) in self.bounds.iter().chain(&self.extra) {
            line(name, value.to_string());
        }
        for note in &self.notes {
            line("note", note.clone());
        }
        out
    }
}

fn stall_text(p: &Percentiles) -> String {
    let show = |v: Option<f64>| v.map_or_else(|| "–".to_owned(), |v| format!("{v:.0}"));
    format!(
        "min {:>6}   p50 {:>6}   p90 {:>6}   max {:>6}",
        show(p.min),
        show(p.p50),
        show(p.p90),
        show(p.max)
    )
}

fn blocks_text(b: &BlockCounts) -> String {
    format!(
        "{:>8} acknowledged   lost {}   stale {}   torn {}   foreign {}",
        b.acknowledged, b.lost, b.stale, b.torn, b.foreign
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gap(start_ms: u64, end_ms: u64, file: Option<u32>) -> Gap {
        let (start_ns, end_ns) = (start_ms * 1_000_000, end_ms * 1_000_000);
        Gap { start_ns, end_ns, ms: (end_ms - start_ms) as f64, file }
    }

    fn window(start_ms: u64, end_ms: u64) -> Window {
        Window { start_ns: start_ms * 1_000_000, end_ns: end_ms * 1_000_000 }
    }

    fn writer(gaps: Vec<Gap>) -> WriterStats {
        WriterStats {
            writer: "hv1".into(),
            pid: 1,
            ready: true,
            running: false,
            start_ns: 0,
            now_ns: 100_000_000_000,
            files: 1,
            blocks: 1,
            block_size: 4096,
            acknowledged: 1,
            in_flight: 0,
            gap_threshold_ms: 100.0,
            file_gaps: gaps.iter().map(|g| Gap { file: Some(0), ..*g }).collect(),
            gaps,
            open_gaps: vec![],
            gaps_dropped: 0,
            io_errors: Default::default(),
            lost_locks: 0,
            locks: Default::default(),
            latency: Default::default(),
        }
    }

    #[test]
    fn the_longest_overlapping_gap_is_the_stall() {
        let stats =
            writer(vec![gap(900, 1050, None), gap(1100, 1500, None), gap(3000, 9000, None)]);
        let found = stalls(&[stats], &[window(1000, 2000), window(2000, 3000), window(8000, 8500)]);
        let short: Vec<_> = found.iter().map(|s| (s.ms, s.below_threshold)).collect();
        assert_eq!(short, [(400.0, false), (100.0, true), (6000.0, false)]);
    }

    #[test]
    fn one_stuck_file_is_seen_though_the_others_go_on() {
        let mut stats = writer(vec![gap(1000, 1300, None)]);
        stats.file_gaps.push(gap(1000, 6000, Some(1)));
        let found = &stalls(&[stats], &[window(900, 2000)])[0];
        assert_eq!((found.ms, found.worst_file_ms), (300.0, 5000.0));
    }

    #[test]
    fn a_gap_that_lasts_is_unfinished_and_noted() {
        let mut stats = writer(vec![]);
        stats.open_gaps = vec![gap(1000, 100_000, None), gap(1000, 100_000, Some(0))];
        stats.io_errors.count = 3;
        stats.lost_locks = 2;
        let mut report = ScenarioReport::default();
        report.add_clients(&[stats], &[window(900, 2000), window(99_000, 200_000)]);
        assert_eq!(report.stall_ms.max, Some(99_000.0));
        assert_eq!((report.io_errors, report.lost_locks), (3, 2));
        assert_eq!(report.notes.len(), 2, "{:?}", report.notes);
    }

    proptest! {
        #[test]
        fn percentiles_are_nearest_rank(mut values in prop::collection::vec(0.0_f64..1e6, 1..50), p in 1_usize..=100) {
            let all = Percentiles::of(&values);
            values.sort_by(f64::total_cmp);
            let found = percentile(&values, p).unwrap();
            let below = values.iter().filter(|v| **v <= found).count();
            prop_assert!(below * 100 >= p * values.len());
            let less = values.iter().filter(|v| **v < found).count();
            prop_assert!(less * 100 < p * values.len());
            prop_assert_eq!((all.min, all.max), (values.first().copied(), values.last().copied()));
        }
    }

    #[test]
    fn the_keys_of_the_json_are_those_promised() {
        let json = serde_json::to_value(ScenarioReport::default()).unwrap();
        let keys = |v: &Value| -> Vec<String> {
            let mut keys: Vec<_> = v.as_object().unwrap().keys().cloned().collect();
            keys.sort();
            keys
        };
        let wanted = "blocks bounds engine extra failed io_errors lost_locks moves notes ok scenario stall_ms";
        assert_eq!(keys(&json).join(" "), wanted);
        assert_eq!(keys(&json["stall_ms"]).join(" "), "max min p50 p90");
        assert_eq!(keys(&json["blocks"]).join(" "), "acknowledged foreign lost stale torn");
        assert!(json["stall_ms"]["p50"].is_null());
    }

    #[test]
    fn guests_and_migrations_have_keys_of_their_own() {
        let (guest, migrations) = (Some(GuestReport::default()), Some(Migrations::default()));
        let report = ScenarioReport { guest, migrations, ..ScenarioReport::default() };
        let json = serde_json::to_value(&report).unwrap();
        let wanted = r#"{"stall_ms":{"min":null,"p50":null,"p90":null,"max":null},"paused":0,"io_errors":0}"#;
        assert_eq!(json["guest"], serde_json::from_str::<Value>(wanted).unwrap());
        let wanted = r#"{"done":0,"retried":0,"failed":0,"downtime_ms":{"min":null,"p50":null,"p90":null,"max":null}}"#;
        assert_eq!(json["migrations"], serde_json::from_str::<Value>(wanted).unwrap());
        assert!(report.to_text().contains("retried 0"));
    }

    #[test]
    fn text_tells_the_verdict_and_the_numbers() {
        let report = ScenarioReport {
            scenario: "planned".into(),
            stall_ms: Percentiles::of(&[327.0, 646.4]),
            ..ScenarioReport::default()
        };
        let text = report.to_text();
        assert!(text.starts_with("planned (): FAILED\n"), "{text}");
        assert!(text.contains("max    646"), "{text}");
    }
}
