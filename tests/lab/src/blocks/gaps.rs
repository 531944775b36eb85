//! Gaps between consecutive completed writes: what a guest feels as a stall.
//!
//! Ends of a gap are told by the wall clock, to be laid beside the events of other nodes; its length is measured by
//! the monotonic clock.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Most gaps that are kept; later ones are only counted, so that a bad night does not eat the memory.
const KEEP: usize = 10_000;

/// A time without a completed write.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// Wall clock of the last write completed before, ns.
    pub start_ns: u64,
    /// Wall clock of the first write completed after, ns; for a gap that still lasts, of the statistics.
    pub end_ns: u64,
    /// Length by the monotonic clock, ms.
    pub ms: f64,
    /// The file, when the gap is one of a single file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<u32>,
}

/// A moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// `CLOCK_REALTIME`, ns.
    pub wall_ns: u64,
    /// `CLOCK_MONOTONIC`.
    pub mono: Instant,
}

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self { wall_ns: super::wall_ns(), mono: Instant::now() }
    }

    fn gap_until(self, end: Self, file: Option<u32>) -> Gap {
        let length = end.mono.saturating_duration_since(self.mono);
        Gap { start_ns: self.wall_ns, end_ns: end.wall_ns, ms: length.as_secs_f64() * 1000.0, file }
    }
}

/// Watches the completions of one stream: one file, or all files of a writer together.
#[derive(Debug)]
pub struct GapTracker {
    file: Option<u32>,
    threshold: Duration,
    last: Moment,
    gaps: Vec<Gap>,
    dropped: u64,
}

impl GapTracker {
    /// Starts watching at `from`: a first write that hangs is a gap too.
    #[must_use]
    pub const fn new(file: Option<u32>, threshold: Duration, from: Moment) -> Self {
        Self { file, threshold, last: from, gaps: Vec::new(), dropped: 0 }
    }

    /// A write completed. Completions of several threads may arrive in the wrong order; the older is ignored.
    pub fn completed(&mut self, at: Moment) {
        if at.mono <= self.last.mono {
            return;
        }
        if at.mono - self.last.mono >= self.threshold {
            if self.gaps.len() < KEEP {
                self.gaps.push(self.last.gap_until(at, self.file));
            } else {
                self.dropped += 1;
            }
        }
        self.last = at;
    }

    /// Gaps that have ended, in order.
    #[must_use]
    pub fn ended(&self) -> &[Gap] {
        &self.gaps
    }

    /// Gaps that were only counted.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The gap that lasts at `now`, if it is long enough to be one.
    #[must_use]
    pub fn open(&self, now: Moment) -> Option<Gap> {
        let length = now.mono.saturating_duration_since(self.last.mono);
        (length >= self.threshold).then(|| self.last.gap_until(now, self.file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn later(from: Moment, ms: u64) -> Moment {
        Moment {
            wall_ns: from.wall_ns + ms * 1_000_000,
            mono: from.mono + Duration::from_millis(ms),
        }
    }

    #[test]
    fn only_gaps_of_at_least_the_threshold_are_listed() {
        let start = Moment::now();
        let mut tracker = GapTracker::new(Some(3), Duration::from_millis(100), start);
        for ms in [50, 149, 249, 250, 900] {
            tracker.completed(later(start, ms));
        }
        let found: Vec<_> = tracker.ended().iter().map(|g| (g.ms.round(), g.file)).collect();
        assert_eq!(found, [(100.0, Some(3)), (650.0, Some(3))]);
        assert_eq!(tracker.ended()[1].start_ns, start.wall_ns + 250_000_000);
        assert_eq!(tracker.ended()[1].end_ns, start.wall_ns + 900_000_000);
        assert!(tracker.open(later(start, 950)).is_none());
        assert!((tracker.open(later(start, 1900)).unwrap().ms - 1000.0).abs() < 1e-6);
    }

    #[test]
    fn the_length_does_not_follow_a_step_of_the_wall_clock() {
        let start = Moment::now();
        let mut tracker = GapTracker::new(None, Duration::from_millis(100), start);
        let mut end = later(start, 400);
        end.wall_ns = start.wall_ns - 5_000_000_000;
        tracker.completed(end);
        assert!((tracker.ended()[0].ms - 400.0).abs() < 1e-6);
    }

    #[test]
    fn late_reports_of_earlier_completions_change_nothing() {
        let start = Moment::now();
        let mut tracker = GapTracker::new(None, Duration::from_millis(100), start);
        tracker.completed(later(start, 90));
        tracker.completed(later(start, 80));
        tracker.completed(later(start, 185));
        assert!(tracker.ended().is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let start = Moment::now();
        let mut tracker = GapTracker::new(None, Duration::from_millis(1), start);
        for n in 1..=KEEP as u64 + 5 {
            tracker.completed(later(start, n));
        }
        assert_eq!((tracker.ended().len(), tracker.dropped()), (KEEP, 5));
    }
}
