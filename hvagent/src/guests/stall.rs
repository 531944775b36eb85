//! How long each guest's writes stood still, seen from outside and without libvirt.
//!
//! QEMU's `write_bytes` rises when a write is handed to NFS; where it never rises (another file
//! system in between), its count of write calls is taken instead. A guest's stall is the longest time
//! without a rise that ends after the cut, so that a cut told a little early or late does no harm.
//! The result is as exact as the samples are dense, and says how dense they were. A guest that did
//! not write before the cut has no stall: its silence proves nothing (S12).

use std::collections::HashMap;
use std::time::Duration;

use super::proc::{Counters, Qemu};
use crate::core::Now;

/// A guest wrote "before the cut" if it did so within that time. An unplanned stall is only told of
/// some two seconds after it has begun; at rest samples are a second apart, so that the beginning of such
/// a stall is known to a second only.
const BEFORE: Duration = Duration::from_secs(5);

/// How long to wait between two samples.
#[must_use]
pub const fn period(at_rest: bool) -> Duration {
    if at_rest { Duration::from_secs(1) } else { Duration::from_millis(200) }
}

/// One guest's stall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stall {
    /// The guest.
    pub guest: String,
    /// How long its writes stood still.
    pub length: Duration,
    /// It may have been shorter or longer by so much.
    pub within: Duration,
    /// It has written since; otherwise the stall still lasts.
    pub over: bool,
}

#[derive(Debug, Clone)]
struct Trace {
    guest: String,
    last: Counters,
    /// When it was last seen to have written, and the time between the two samples that showed it.
    progress: Option<(Now, Duration)>,
    sampled: Now,
    watch: Option<Watch>,
}

#[derive(Debug, Clone, Copy)]
struct Watch {
    since: Now,
    longest: Option<(Duration, Duration)>,
}

/// Measures all guests.
#[derive(Debug, Default)]
pub struct Meter {
    traces: HashMap<(u32, u64), Trace>,
}

impl Meter {
    /// Takes what the processes have written up to `now`. Processes that are gone are forgotten.
    pub fn sample(&mut self, now: Now, processes: &[Qemu]) {
        let mut traces = HashMap::new();
        for qemu in processes {
            let id = (qemu.pid, qemu.started);
            let before = self.traces.remove(&id);
            let trace = match (before, qemu.written) {
                (Some(mut trace), Some(written)) => {
                    trace.take(now, written);
                    Some(trace)
                }
                (Some(trace), None) => Some(trace),
                (None, written) => written.map(|w| Trace::new(now, qemu, w)),
            };
            traces.extend(trace.map(|trace| (id, trace)));
        }
        self.traces = traces;
    }

    /// The storage below these guests falls silent at about `now`. Told again during one stall, the
    /// first word counts.
    pub fn cut(&mut self, now: Now, guests: &[String]) {
        for trace in self.traces.values_mut().filter(|t| guests.contains(&t.guest)) {
            let wrote = trace.progress.is_some_and(|(at, _)| now.saturating_sub(at) <= BEFORE);
            if wrote && trace.watch.is_none() {
                trace.watch = Some(Watch { since: now, longest: None });
            }
        }
    }

    /// The stalls of these guests up to `now`.
    #[must_use]
    pub fn stalls(&self, now: Now, guests: &[String]) -> Vec<Stall> {
        let ours = self.traces.values().filter(|trace| guests.contains(&trace.guest));
        let mut all: Vec<Stall> = ours.filter_map(|trace| trace.stall(now)).collect();
        all.sort_by(|a, b| a.guest.cmp(&b.guest));
        all
    }

    /// The move is over: what was measured of these guests is forgotten.
    pub fn done(&mut self, guests: &[String]) {
        for trace in self.traces.values_mut().filter(|t| guests.contains(&t.guest)) {
            trace.watch = None;
        }
    }
}

impl Trace {
    fn new(now: Now, qemu: &Qemu, written: Counters) -> Self {
        let guest = qemu.guest.clone();
        Self { guest, last: written, progress: None, sampled: now, watch: None }
    }

    fn take(&mut self, now: Now, written: Counters) {
        let apart = now.saturating_sub(self.sampled);
        if wrote(self.last, written) {
            self.note_gap(now, apart);
            self.progress = Some((now, apart));
        }
        (self.last, self.sampled) = (written, now);
    }

    fn note_gap(&mut self, now: Now, apart: Duration) {
        let Some(((from, begin), watch)) = self.progress.zip(self.watch.as_mut()) else { return };
        let gap = (now.saturating_sub(from), begin.max(apart));
        if now > watch.since && watch.longest.is_none_or(|(longest, _)| gap.0 > longest) {
            watch.longest = Some(gap);
        }
    }

    fn stall(&self, now: Now) -> Option<Stall> {
        let (watch, (from, begin)) = self.watch.zip(self.progress)?;
        let silent = now.saturating_sub(from);
        let stall =
            |length, within, over| Some(Stall { guest: self.guest.clone(), length, within, over });
        match watch.longest {
            Some((length, within)) if length >= silent => stall(length, within, true),
            _ => stall(silent, begin, false),
        }
    }
}

/// Whether anything was written between two samples.
const fn wrote(before: Counters, after: Counters) -> bool {
    match after.bytes {
        0 => after.calls > before.calls,
        bytes => bytes > before.bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn qemu(bytes: u64, calls: u64) -> Qemu {
        Qemu {
            pid: 7,
            started: 1,
            guest: "vm1".to_owned(),
            uuid: None,
            files: vec![],
            written: Some(Counters { bytes, calls }),
        }
    }

    fn names() -> Vec<String> {
        vec!["vm1".to_owned()]
    }

    const fn ms(ms: u64) -> Now {
        Duration::from_millis(ms)
    }

    /// Samples every 200 ms; the guest writes all the time but for the given span.
    fn run(cut: u64, silent: std::ops::Range<u64>, until: u64) -> Meter {
        let mut meter = Meter::default();
        let mut bytes = 4096;
        for at in (0..=until).step_by(200) {
            if !silent.contains(&at) {
                bytes += 4096;
            }
            meter.sample(ms(at), &[qemu(bytes, at)]);
            if at == cut {
                meter.cut(ms(at), &names());
            }
        }
        meter
    }

    #[test]
    fn a_stall_lasts_from_the_last_write_to_the_next() {
        let stalls = run(2000, 2001..5000, 8000).stalls(ms(8000), &names());
        let expected =
            Stall { guest: "vm1".to_owned(), length: ms(3000), within: ms(200), over: true };
        assert_eq!(stalls, [expected]);
    }

    #[test]
    fn a_cut_told_late_or_early_gives_the_same() {
        for cut in [1600, 4000] {
            let stalls = run(cut, 2001..5000, 8000).stalls(ms(8000), &names());
            assert_eq!((stalls[0].length, stalls[0].over), (ms(3000), true), "{cut}");
        }
    }

    #[test]
    fn a_stall_that_lasts_is_told_so() {
        let stalls = run(2000, 2001..9000, 8000).stalls(ms(8000), &names());
        assert_eq!((stalls[0].length, stalls[0].over), (ms(6000), false));
    }

    #[test]
    fn a_guest_that_did_not_write_before_has_none() {
        let stalls = run(8000, 1001..9000, 12_000).stalls(ms(12_000), &names());
        assert_eq!(stalls, []);
    }

    #[test]
    fn without_bytes_calls_count_and_with_bytes_they_do_not() {
        let mut meter = Meter::default();
        for at in [0, 200, 400] {
            meter.sample(ms(at), &[qemu(0, at)]);
        }
        meter.cut(ms(400), &names());
        assert_eq!(meter.stalls(ms(500), &names()).len(), 1);
        assert!(!wrote(Counters { bytes: 5, calls: 1 }, Counters { bytes: 5, calls: 9 }));
    }

    #[test]
    fn what_was_measured_is_forgotten_after_the_move_and_with_the_process() {
        let mut meter = run(2000, 2001..5000, 8000);
        meter.done(&names());
        assert_eq!(meter.stalls(ms(8000), &names()), []);
        meter.cut(ms(8000), &names());
        assert_eq!(meter.stalls(ms(8000), &names()).len(), 1);
        meter.sample(ms(8200), &[Qemu { started: 2, ..qemu(1, 1) }]);
        assert_eq!(meter.stalls(ms(8200), &names()), []);
    }

    proptest! {
        #[test]
        fn a_measured_stall_is_off_by_no_more_than_it_says(
            from in 1000_u64..4000, length in 300_u64..9000,
        ) {
            let meter = run(3000, from..from + length, 20_000);
            let after = from + length > 3000;
            for stall in meter.stalls(ms(20_000), &names()).iter().filter(|_| after) {
                let (seen, real) = (stall.length, ms(length));
                let apart = seen.max(real).saturating_sub(seen.min(real));
                prop_assert!(apart <= stall.within * 2, "{seen:?} {real:?}");
            }
        }
    }
}
