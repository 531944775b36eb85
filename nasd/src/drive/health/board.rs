//! Where the watchers leave what they found, and the one verdict that comes of it.
//!
//! A watcher that hangs is not heard: its last finding grows old and counts as unknown.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::judge::{Finding, Judge, Window};
use crate::core::view::Now;
use crate::drive::hands::lock;

/// A finding older than this is none.
const STALE: Duration = Duration::from_secs(4);
/// The judging is never further apart than this unless the process stood still.
const PAUSE: Duration = Duration::from_secs(1);

/// What is checked, with the object where there are several.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// The service's connection to the wire.
    Carrier,
    /// The clients' side of the network.
    Neighbours,
    /// The NFS server.
    Server,
    /// Writes to that volume.
    Canary(u16),
    /// Errors of writes to that volume.
    Errors(u16),
    /// State of that volume's file system.
    FileSystem(u16),
    /// DRBD's word about the local disks.
    LocalDisk,
    /// Progress of that volume's local disk.
    BackingDisk(u16),
}

impl Check {
    /// How long it must fail, and be well again.
    #[must_use]
    pub fn window(&self) -> Window {
        let (fail, clear) = match self {
            Self::Carrier => (500, 10_000),
            Self::Neighbours => (3000, 10_000),
            Self::Server => (6000, 15_000),
            // Their findings are judged by their own limits already, or certain at once.
            Self::Canary(_) | Self::Errors(_) | Self::FileSystem(_) => (0, 10_000),
            // A disk that is being attached is less than UpToDate for a moment.
            Self::LocalDisk => (0, 3000),
            Self::BackingDisk(_) => (5000, 10_000),
        };
        Window { fail: Duration::from_millis(fail), clear: Duration::from_millis(clear) }
    }

    fn name(&self) -> String {
        match self {
            Self::Carrier => "network interface".into(),
            Self::Neighbours => "client network".into(),
            Self::Server => "NFS server".into(),
            Self::Canary(volume) => format!("writes to volume {volume}"),
            Self::Errors(volume) => format!("errors of volume {volume}"),
            Self::FileSystem(volume) => format!("file system of volume {volume}"),
            Self::LocalDisk => "local disk".into(),
            Self::BackingDisk(volume) => format!("local disk of volume {volume}"),
        }
    }
}

/// Findings by check.
#[derive(Debug)]
pub struct Board {
    start: Instant,
    found: Mutex<BTreeMap<Check, (Now, Finding)>>,
    hanging: Mutex<BTreeMap<u16, Duration>>,
}

impl Default for Board {
    fn default() -> Self {
        Self { start: Instant::now(), found: Mutex::default(), hanging: Mutex::default() }
    }
}

impl Board {
    /// Time as the findings count it.
    #[must_use]
    pub fn now(&self) -> Now {
        self.start.elapsed()
    }

    /// Leaves a finding, in place of the check's last.
    pub fn post(&self, check: Check, finding: Finding) {
        let now = self.now();
        lock(&self.found).insert(check, (now, finding));
    }

    /// A canary has been seen hanging for so long, on any volume.
    #[must_use]
    pub fn canary_hangs(&self, limit: Duration) -> bool {
        lock(&self.hanging).values().any(|hung| *hung >= limit)
    }

    /// Leaves how long a volume's canary has been under way; none: it is not.
    pub fn hanging(&self, volume: u16, hung: Option<Duration>) {
        match hung {
            Some(hung) => lock(&self.hanging).insert(volume, hung),
            None => lock(&self.hanging).remove(&volume),
        };
    }

    fn read(&self, now: Now) -> Vec<(Check, Finding)> {
        let fresh = |at: Now| now.saturating_sub(at) <= STALE;
        let one = |(check, (at, finding)): (&Check, &(Now, Finding))| {
            let finding = if fresh(*at) { finding.clone() } else { Finding::Unknown };
            (check.clone(), finding)
        };
        lock(&self.found).iter().map(one).collect()
    }
}

/// The judges of all checks.
#[derive(Debug, Default)]
pub struct Court {
    judges: BTreeMap<Check, Judge>,
    last: Option<Now>,
}

impl Court {
    /// Takes the board's findings of this moment; the verdict in words, or none.
    pub fn sit(&mut self, board: &Board, wall: SystemTime) -> Option<String> {
        let now = board.now();
        self.hear(now, board.read(now));
        self.verdict(now, wall)
    }

    fn hear(&mut self, now: Now, findings: Vec<(Check, Finding)>) {
        if self.last.is_some_and(|last| now.saturating_sub(last) > PAUSE) {
            self.judges.values_mut().for_each(|judge| judge.forget(now));
        }
        self.last = Some(now);
        for (check, finding) in findings {
            let window = check.window();
            self.judges.entry(check).or_insert_with(|| Judge::new(window)).hear(now, finding);
        }
    }

    /// Every unfit check with its evidence and since when; the text does not change while the set
    /// does not.
    fn verdict(&self, now: Now, wall: SystemTime) -> Option<String> {
        let one = |(check, judge): (&Check, &Judge)| {
            let (since, why) = judge.verdict()?;
            let since = wall.checked_sub(now.saturating_sub(since)).unwrap_or(wall);
            Some(format!("{}: {why} (since {})", check.name(), clock(since)))
        };
        let all: Vec<String> = self.judges.iter().filter_map(one).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Whether the same checks are unfit as the last time that this was asked.
    #[must_use]
    pub fn unfit(&self) -> Vec<&Check> {
        self.judges.iter().filter(|(_, j)| j.verdict().is_some()).map(|(c, _)| c).collect()
    }
}

/// `07:05:09 UTC`.
fn clock(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Now {
        Duration::from_millis(millis)
    }

    fn bad(since: u64) -> Finding {
        Finding::Bad { since: at(since), why: "no carrier on eth1".into() }
    }

    #[test]
    fn a_verdict_names_check_evidence_and_since_when() {
        let mut court = Court::default();
        let wall = UNIX_EPOCH + Duration::from_secs(7 * 3600 + 5 * 60 + 9);
        for now in [0, 100, 200, 300, 400, 500] {
            assert_eq!(court.verdict(at(now), wall), None);
            court.hear(at(now), vec![(Check::Carrier, bad(now))]);
        }
        let words = "network interface: no carrier on eth1 (since 07:05:09 UTC)";
        assert_eq!(court.verdict(at(500), wall + at(500)).as_deref(), Some(words));
        assert_eq!(court.unfit(), [&Check::Carrier]);
        let both = vec![(Check::Carrier, bad(600)), (Check::LocalDisk, bad(600))];
        court.hear(at(600), both);
        let text = court.verdict(at(600), wall + at(600)).unwrap();
        assert!(text.starts_with(words) && text.contains("; local disk: "), "{text}");
    }

    #[test]
    fn a_process_that_stood_still_accuses_nobody() {
        let mut court = Court::default();
        court.hear(at(0), vec![(Check::Carrier, bad(0))]);
        court.hear(at(30_000), vec![(Check::Carrier, bad(0))]);
        assert!(court.unfit().is_empty());
        court.hear(at(30_500), vec![(Check::Carrier, bad(0))]);
        assert_eq!(court.unfit().len(), 1);
    }

    #[test]
    fn old_findings_are_unknown() {
        let board = Board::default();
        board.post(Check::Carrier, bad(0));
        assert!(matches!(board.read(board.now())[0].1, Finding::Bad { .. }));
        assert_eq!(board.read(board.now() + STALE + at(10))[0].1, Finding::Unknown);
    }

    #[test]
    fn every_check_clears_slower_than_it_fails() {
        for check in [
            Check::Carrier,
            Check::Neighbours,
            Check::Server,
            Check::Canary(0),
            Check::FileSystem(0),
            Check::LocalDisk,
            Check::BackingDisk(0),
        ] {
            let Window { fail, clear } = check.window();
            assert!(clear > fail, "{check:?}");
        }
    }
}
