//! Statistics of a writer: counted by all threads, written by one that never waits for storage (S10).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::BlocksError;
use super::gaps::{Gap, GapTracker, Moment};
use super::histogram::Histogram;

/// What a writer tells; rewritten each second and once more at its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WriterStats {
    /// Name of the writer.
    pub writer: String,
    /// Process id.
    pub pid: u32,
    /// All files are open and locked, all threads write.
    pub ready: bool,
    /// False in the last statistics of an ended writer.
    pub running: bool,
    /// Wall clock of the start, ns.
    pub start_ns: u64,
    /// Wall clock of these statistics, ns.
    pub now_ns: u64,
    /// Files, each written by a thread with one write at a time.
    pub files: u32,
    /// Blocks per file.
    pub blocks: u64,
    /// Bytes per block.
    pub block_size: u32,
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Writes that have not returned yet.
    pub in_flight: u64,
    /// Shortest gap that is listed, ms.
    pub gap_threshold_ms: f64,
    /// Gaps of the writer as a whole: no file completed a write.
    pub gaps: Vec<Gap>,
    /// Gaps of single files; never shorter than the writer's at the same time.
    pub file_gaps: Vec<Gap>,
    /// Gaps that last: of the writer (no file number) and of its files.
    pub open_gaps: Vec<Gap>,
    /// Gaps that were not listed because there were too many.
    pub gaps_dropped: u64,
    /// Errors of any operation on the volume.
    pub io_errors: IoErrors,
    /// Distinct locks that were held once and are not any more.
    pub lost_locks: u64,
    /// The watch over the locks.
    pub locks: LockStats,
    /// Latency of acknowledged writes.
    pub latency: Latency,
}

/// Errors of operations on the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoErrors {
    /// How many.
    pub count: u64,
    /// How many by errno; 0 stands for a short write.
    pub by_errno: BTreeMap<i32, u64>,
    /// The first.
    pub first: Option<FirstError>,
}

/// The first error, in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstError {
    /// Wall clock, ns.
    pub at_ns: u64,
    /// The operation.
    pub operation: String,
    /// The file.
    pub path: PathBuf,
    /// The errno; 0 stands for a short write.
    pub errno: i32,
    /// Its text.
    pub message: String,
}

/// The watch over the locks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockStats {
    /// Locks that were taken.
    pub taken: u64,
    /// Completed rounds of looking at all of them.
    pub rounds: u64,
    /// Wall clock of the last completed round, ns. An old one means that the watch itself hangs.
    pub last_round_ns: u64,
    /// The first lost ones, at most 20: file and byte.
    pub lost: Vec<(PathBuf, i64)>,
}

/// Latency, ms. Minimum and maximum are exact, percentiles at most 6.25 % too high; empty without a write.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Shortest.
    pub min_ms: Option<f64>,
    /// Median.
    pub p50_ms: Option<f64>,
    /// 90th percentile.
    pub p90_ms: Option<f64>,
    /// 99th percentile.
    pub p99_ms: Option<f64>,
    /// Longest.
    pub max_ms: Option<f64>,
}

impl Latency {
    fn of(histogram: &Histogram) -> Self {
        let ms = |ns: Option<u64>| ns.map(|ns| Duration::from_nanos(ns).as_secs_f64() * 1000.0);
        Self {
            min_ms: ms(histogram.min()),
            p50_ms: ms(histogram.percentile(50)),
            p90_ms: ms(histogram.percentile(90)),
            p99_ms: ms(histogram.percentile(99)),
            max_ms: ms(histogram.max()),
        }
    }
}

impl WriterStats {
    /// Reads statistics that a writer wrote.
    ///
    /// # Errors
    /// [`BlocksError::Read`], [`BlocksError::Json`].
    pub fn load(path: &Path) -> Result<Self, BlocksError> {
        let text = std::fs::read(path)
            .map_err(|source| BlocksError::Read { path: path.to_owned(), source })?;
        Ok(serde_json::from_slice(&text)?)
    }

    /// Replaces `path` as a whole: a reader sees the old or the new, never a part.
    ///
    /// # Errors
    /// [`BlocksError::Write`], [`BlocksError::Json`].
    pub fn store(&self, path: &Path) -> Result<(), BlocksError> {
        let wrong = |source| BlocksError::Write { path: path.to_owned(), source };
        let mut name = path.as_os_str().to_owned();
        name.push(".new");
        let new = PathBuf::from(name);
        std::fs::write(&new, serde_json::to_vec_pretty(self)?).map_err(wrong)?;
        std::fs::rename(&new, path).map_err(wrong)
    }

    /// Nothing went wrong: no errors, no lost locks, nothing hangs.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.io_errors.count == 0 && self.lost_locks == 0 && self.in_flight == 0
    }
}

/// What does not change during a run.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Name of the writer.
    pub writer: String,
    /// Files.
    pub files: u32,
    /// Blocks per file.
    pub blocks: u64,
    /// Bytes per block.
    pub block_size: u32,
    /// Shortest gap that is listed.
    pub gap_threshold: Duration,
}

/// The counters, shared by all threads. No lock is held during a call that could wait for storage.
#[derive(Debug)]
pub struct Counters {
    shape: Shape,
    start: Moment,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    all: GapTracker,
    files: BTreeMap<u32, GapTracker>,
    latency: Histogram,
    begun: u64,
    ended: u64,
    acknowledged: u64,
    ready_files: u32,
    extra_ready: bool,
    errors: IoErrors,
    lost: BTreeSet<(PathBuf, i64)>,
    locks: LockStats,
}

impl Counters {
    /// Starts the clocks.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let start = Moment::now();
        let state = State {
            all: GapTracker::new(None, shape.gap_threshold, start),
            files: BTreeMap::new(),
            latency: Histogram::default(),
            begun: 0,
            ended: 0,
            acknowledged: 0,
            ready_files: 0,
            extra_ready: false,
            errors: IoErrors::default(),
            lost: BTreeSet::new(),
            locks: LockStats::default(),
        };
        Self { shape, start, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// File `file` is open and holds `locks` locks; its gaps count from now.
    pub fn file_ready(&self, file: u32, locks: usize) {
        let now = Moment::now();
        let mut state = self.state();
        if state.ready_files == 0 {
            state.all = GapTracker::new(None, self.shape.gap_threshold, now);
        }
        state.ready_files += 1;
        state.locks.taken += locks as u64;
        state.files.insert(file, GapTracker::new(Some(file), self.shape.gap_threshold, now));
    }

    /// The extra files are open and hold `locks` locks.
    pub fn extra_ready(&self, locks: usize) {
        let mut state = self.state();
        state.extra_ready = true;
        state.locks.taken += locks as u64;
    }

    /// A write is handed to the kernel.
    pub fn write_begun(&self) {
        self.state().begun += 1;
    }

    /// A write was acknowledged at `at`, `latency` after it was begun.
    pub fn write_completed(&self, file: u32, at: Moment, latency: Duration) {
        let mut state = self.state();
        state.ended += 1;
        state.acknowledged += 1;
        state.latency.add(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        state.all.completed(at);
        if let Some(tracker) = state.files.get_mut(&file) {
            tracker.completed(at);
        }
    }

    /// A write returned an error, which [`Self::error`] tells.
    pub fn write_failed(&self) {
        self.state().ended += 1;
    }

    /// An operation on the volume failed.
    pub fn error(&self, operation: &str, path: &Path, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        let mut state = self.state();
        state.errors.count += 1;
        *state.errors.by_errno.entry(errno).or_default() += 1;
        state.errors.first.get_or_insert_with(|| FirstError {
            at_ns: super::wall_ns(),
            operation: operation.to_owned(),
            path: path.to_owned(),
            errno,
            message: error.to_string(),
        });
    }

    /// Locks of `path` at these bytes are gone. Each counts once, however often it is missed.
    pub fn locks_lost(&self, path: &Path, bytes: impl IntoIterator<Item = i64>) {
        let mut state = self.state();
        for byte in bytes {
            let new = state.lost.insert((path.to_owned(), byte));
            if new && state.locks.lost.len() < 20 {
                state.locks.lost.push((path.to_owned(), byte));
            }
        }
    }

    /// All locks have been looked at once more.
    pub fn lock_round(&self) {
        let mut state = self.state();
        state.locks.rounds += 1;
        state.locks.last_round_ns = super::wall_ns();
    }

    /// All that is known now.
    #[must_use]
    pub fn snapshot(&self, running: bool) -> WriterStats {
        let now = Moment::now();
        let state = self.state();
        let trackers = || std::iter::once(&state.all).chain(state.files.values());
        WriterStats {
            writer: self.shape.writer.clone(),
            pid: std::process::id(),
            ready: state.extra_ready && state.ready_files == self.shape.files,
            running,
            start_ns: self.start.wall_ns,
            now_ns: now.wall_ns,
            files: self.shape.files,
            blocks: self.shape.blocks,
            block_size: self.shape.block_size,
            acknowledged: state.acknowledged,
            in_flight: state.begun - state.ended,
            gap_threshold_ms: self.shape.gap_threshold.as_secs_f64() * 1000.0,
            gaps: state.all.ended().to_vec(),
            file_gaps: state.files.values().flat_map(|t| t.ended().iter().copied()).collect(),
            open_gaps: open_gaps(trackers(), now, running, state.begun - state.ended),
            gaps_dropped: trackers().map(GapTracker::dropped).sum(),
            io_errors: state.errors.clone(),
            lost_locks: state.lost.len() as u64,
            locks: state.locks.clone(),
            latency: Latency::of(&state.latency),
        }
    }
}

/// A writer that has ended with nothing on its way has no gap that lasts: it merely stopped.
fn open_gaps<'a>(
    trackers: impl Iterator<Item = &'a GapTracker>,
    now: Moment,
    running: bool,
    in_flight: u64,
) -> Vec<Gap> {
    if !running && in_flight == 0 {
        return vec![];
    }
    trackers.filter_map(|t| t.open(now)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters() -> Counters {
        Counters::new(Shape {
            writer: "hv1".into(),
            files: 1,
            blocks: 4,
            block_size: 4096,
            gap_threshold: Duration::from_millis(20),
        })
    }

    #[test]
    fn a_writer_is_ready_when_all_its_files_are() {
        let counters = counters();
        assert!(!counters.snapshot(true).ready);
        counters.extra_ready(10);
        assert!(!counters.snapshot(true).ready);
        counters.file_ready(0, 5);
        let stats = counters.snapshot(true);
        assert!(stats.ready);
        assert_eq!(stats.locks.taken, 15);
    }

    #[test]
    fn a_hanging_write_is_in_flight_and_an_open_gap() {
        let counters = counters();
        counters.file_ready(0, 0);
        counters.write_begun();
        std::thread::sleep(Duration::from_millis(30));
        let stats = counters.snapshot(false);
        assert_eq!((stats.in_flight, stats.open_gaps.len()), (1, 2));
        assert!(!stats.is_clean());
        counters.write_completed(0, Moment::now(), Duration::from_millis(30));
        let stats = counters.snapshot(false);
        assert!(stats.is_clean() && stats.open_gaps.is_empty());
        assert_eq!((stats.gaps.len(), stats.file_gaps.len()), (1, 1));
        assert_eq!(stats.latency.max_ms, Some(30.0));
    }

    #[test]
    fn each_lost_lock_counts_once_and_the_first_error_is_kept() {
        let counters = counters();
        let path = Path::new("x");
        counters.locks_lost(path, [100, 101]);
        counters.locks_lost(path, [101, 103]);
        counters.error("write", path, &io::Error::from_raw_os_error(5));
        counters.error("read", path, &io::Error::from_raw_os_error(28));
        let stats = counters.snapshot(true);
        assert_eq!(stats.lost_locks, 3);
        assert_eq!(stats.io_errors.count, 2);
        let first = stats.io_errors.first.unwrap();
        assert_eq!((first.errno, first.operation.as_str()), (5, "write"));
    }

    #[test]
    fn statistics_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.json");
        let counters = counters();
        counters.error("write", Path::new("x"), &io::Error::from_raw_os_error(5));
        let stats = counters.snapshot(true);
        stats.store(&path).unwrap();
        assert_eq!(WriterStats::load(&path).unwrap(), stats);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
