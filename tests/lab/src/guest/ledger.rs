//! The account of one guest: which writes were acknowledged, when, and by which hypervisor they were told.
//!
//! Keeps the journal that [`crate::blocks::check()`] compares with the disk afterwards. The guest has one write on its
//! way at a time and numbers them, so that a line which says that a write was acknowledged also says that the next one
//! was begun. Two hypervisors running one guest (S1) show as numbers that do not rise, or as more changes of the host
//! than there were migrations.

use std::io;
use std::path::Path;

use super::line::{Line, Word};
use super::{BLOCK_SIZE, BLOCKS, offset_of};
use crate::blocks::gaps::Moment;
use crate::blocks::journal::{Entry, Kind, start_entry};
use crate::blocks::stats::{Counters, Shape};
use crate::blocks::{WriterId, WriterStats};

/// Shortest gap that is listed, ms.
const GAP_MS: u64 = 20;

/// Most writes whose lines may be missing between two that are there. More is a line that lies.
const MISSING: u64 = 1 << 16;

/// The guest was seen on another hypervisor than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where it was.
    pub from: String,
    /// Where it is.
    pub to: String,
    /// Wall clock of the last line from where it was, ns.
    pub since_ns: u64,
    /// Wall clock of the first line from there, ns.
    pub at_ns: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    writer: WriterId,
    counters: Counters,
    journal: Vec<u8>,
    /// The newest write that is known to have been begun.
    begun: Option<u64>,
    /// The newest write whose end was told.
    ended: Option<u64>,
    host: Option<String>,
    told_ns: u64,
    changes: Vec<Change>,
    starts: u64,
    repeated: u64,
    damaged: u64,
}

impl Ledger {
    /// An account without entries.
    #[must_use]
    pub fn new(writer: WriterId) -> Self {
        let counters = Counters::new(Shape {
            writer: writer.to_string(),
            files: 1,
            blocks: BLOCKS,
            block_size: BLOCK_SIZE,
            gap_threshold: std::time::Duration::from_millis(GAP_MS),
        });
        Self {
            writer,
            counters,
            journal: Vec::new(),
            begun: None,
            ended: None,
            host: None,
            told_ns: 0,
            changes: Vec::new(),
            starts: 0,
            repeated: 0,
            damaged: 0,
        }
    }

    /// `host` told this at this moment.
    pub fn note(&mut self, host: &str, line: Line, at: Moment) {
        let known = self.ended.is_some_and(|ended| line.seq <= ended);
        let begun = self.begun.unwrap_or(line.seq);
        if known || (self.starts == 0 && line.word != Word::Start) {
            self.repeated += 1;
            return;
        }
        if line.word != Word::Start && line.seq > begun + MISSING {
            self.damaged += 1;
            return;
        }
        self.seen_on(host, at);
        match line.word {
            Word::Start => self.started(line.seq, at),
            Word::Acknowledged => self.acknowledged(line.seq, at),
            Word::Failed(errno) => self.failed(line.seq, errno, at),
        }
    }

    /// Something came that is no whole line.
    pub const fn note_damaged(&mut self) {
        self.damaged += 1;
    }

    fn seen_on(&mut self, host: &str, at: Moment) {
        let before = self.host.replace(host.to_owned());
        let since_ns = std::mem::replace(&mut self.told_ns, at.wall_ns);
        if let Some(from) = before.filter(|from| from != host) {
            self.changes.push(Change { from, to: host.to_owned(), since_ns, at_ns: at.wall_ns });
        }
    }

    fn started(&mut self, seq: u64, at: Moment) {
        if self.starts == 0 {
            self.counters.extra_ready(0);
            self.counters.file_ready(0, 0);
        }
        self.starts += 1;
        let start = start_entry(self.writer, 1, BLOCKS, BLOCK_SIZE, seq);
        self.journal.extend(start.encode());
        self.begin(seq, at);
    }

    /// What is told of `seq` tells that all up to it were begun.
    fn begin(&mut self, seq: u64, at: Moment) {
        let first = self.begun.map_or(seq, |b| b + 1);
        // Between two runs of a guest lie numbers that nobody used.
        let first = if first + MISSING < seq { seq } else { first };
        for seq in first..=seq {
            self.write(Kind::Begun, seq, at);
        }
        self.begun = self.begun.max(Some(seq));
    }

    fn acknowledged(&mut self, seq: u64, at: Moment) {
        self.begin(seq, at);
        self.write(Kind::Acknowledged, seq, at);
        self.counters.write_begun();
        self.counters.write_completed(0, at, std::time::Duration::ZERO);
        self.ended = Some(seq);
        self.begin(seq + 1, at);
    }

    fn failed(&mut self, seq: u64, errno: i32, at: Moment) {
        self.begin(seq, at);
        self.write(Kind::Failed, seq, at);
        let error = io::Error::from_raw_os_error(errno);
        self.counters.error("write", Path::new("disk of the guest"), &error);
        self.ended = Some(seq);
        self.begin(seq + 1, at);
    }

    fn write(&mut self, kind: Kind, seq: u64, at: Moment) {
        let entry = Entry {
            kind,
            writer: self.writer,
            file: 0,
            block_size: BLOCK_SIZE,
            offset: offset_of(seq),
            seq,
            t_start: at.wall_ns,
            t_end: if kind == Kind::Begun { 0 } else { at.wall_ns },
        };
        self.journal.extend(entry.encode());
    }

    /// Name of the writer in the blocks.
    #[must_use]
    pub const fn writer(&self) -> &WriterId {
        &self.writer
    }

    /// The journal as a file for the checker.
    #[must_use]
    pub fn journal(&self) -> &[u8] {
        &self.journal
    }

    /// Acknowledged writes, gaps and errors; `running` as in [`Counters::snapshot`].
    #[must_use]
    pub fn stats(&self, running: bool) -> WriterStats {
        self.counters.snapshot(running)
    }

    /// Number of the newest write whose end was told.
    #[must_use]
    pub const fn newest(&self) -> Option<u64> {
        self.ended
    }

    /// The hypervisor that spoke last.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// All changes of the hypervisor, in order.
    #[must_use]
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// How often the guest came up.
    #[must_use]
    pub const fn starts(&self) -> u64 {
        self.starts
    }

    /// Writes that were told twice, or out of order: two guests run.
    #[must_use]
    pub const fn repeated(&self) -> u64 {
        self.repeated
    }

    /// What was no whole line. No fault: what it said counts as not known.
    #[must_use]
    pub const fn damaged(&self) -> u64 {
        self.damaged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{Block, check, data_path};
    use std::fs;

    fn at(ms: u64) -> Moment {
        static BASE: std::sync::OnceLock<Moment> = std::sync::OnceLock::new();
        let base = BASE.get_or_init(Moment::now);
        let later = std::time::Duration::from_millis(ms);
        Moment { wall_ns: base.wall_ns + ms * 1_000_000, mono: base.mono + later }
    }

    fn say(ledger: &mut Ledger, host: &str, seq: u64, ms: u64) {
        ledger.note(host, Line { seq, word: Word::Acknowledged }, at(ms));
    }

    fn started() -> Ledger {
        let mut ledger = Ledger::new("vm1".parse().unwrap());
        ledger.note("hv1", Line { seq: 1, word: Word::Start }, at(0));
        ledger
    }

    /// Checks a disk that holds these writes, made in this order.
    fn checked(ledger: &Ledger, writes: &[u64]) -> crate::blocks::CheckReport {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = vec![0; (BLOCKS * u64::from(BLOCK_SIZE)) as usize];
        for seq in writes.iter().copied() {
            let offset = offset_of(seq);
            let block = Block { writer: *ledger.writer(), file: 0, offset, seq, wall_ns: 0 };
            block.encode(&mut disk[offset as usize..][..BLOCK_SIZE as usize]);
        }
        fs::write(data_path(dir.path(), ledger.writer(), 0), disk).unwrap();
        let log = dir.path().join("log");
        fs::write(&log, ledger.journal()).unwrap();
        check(dir.path(), &[log], false).unwrap()
    }

    #[test]
    fn an_acknowledged_write_must_be_there_and_the_next_one_may() {
        let mut ledger = started();
        for seq in 1..=300 {
            say(&mut ledger, "hv1", seq, seq);
        }
        let all: Vec<u64> = (1..=300).collect();
        assert!(checked(&ledger, &all).ok);
        let one_more: Vec<u64> = (1..=301).collect();
        assert!(checked(&ledger, &one_more).ok);
        let report = checked(&ledger, &all[..299]);
        assert_eq!((report.ok, report.stale), (false, 1));
        let report = checked(&ledger, &all[100..]);
        assert_eq!((report.ok, report.lost), (false, 56));
        let two_more: Vec<u64> = (1..=302).collect();
        assert_eq!(checked(&ledger, &two_more).foreign, 1);
    }

    #[test]
    fn a_lost_line_is_forgiven() {
        let mut ledger = started();
        for seq in [1, 2, 5] {
            say(&mut ledger, "hv1", seq, seq);
        }
        assert!(checked(&ledger, &[1, 2, 3, 4, 5]).ok);
        assert_eq!(ledger.stats(false).acknowledged, 3);
    }

    #[test]
    fn a_migration_is_one_change_of_the_host_and_its_gap_is_seen() {
        let mut ledger = started();
        say(&mut ledger, "hv1", 1, 1000);
        say(&mut ledger, "hv2", 2, 1500);
        say(&mut ledger, "hv2", 3, 1510);
        let (from, to) = ("hv1".into(), "hv2".into());
        let (since_ns, at_ns) = (at(1000).wall_ns, at(1500).wall_ns);
        let change = Change { from, to, since_ns, at_ns };
        assert_eq!((ledger.changes(), ledger.repeated()), (&[change][..], 0));
        let gap = ledger.stats(false).gaps.into_iter().find(|g| g.start_ns == at(1000).wall_ns);
        assert!((gap.unwrap().ms - 500.0).abs() < 1e-6);
    }

    #[test]
    fn two_guests_that_run_at_once_are_seen() {
        let mut ledger = started();
        for (host, seq) in [("hv1", 1), ("hv2", 1), ("hv1", 2), ("hv2", 2), ("hv2", 3)] {
            say(&mut ledger, host, seq, seq);
        }
        assert_eq!(ledger.repeated(), 2);
        assert_eq!(ledger.newest(), Some(3));
    }

    #[test]
    fn a_second_run_goes_on_where_its_own_first_line_says() {
        let mut ledger = started();
        say(&mut ledger, "hv1", 1, 1);
        ledger.note("hv1", Line { seq: 1 << 20, word: Word::Start }, at(5));
        say(&mut ledger, "hv1", 1 << 20, 6);
        assert_eq!((ledger.starts(), ledger.repeated(), ledger.damaged()), (2, 0, 0));
        assert!(checked(&ledger, &[1, 2, 1 << 20]).ok);
    }

    #[test]
    fn a_failed_write_is_an_error_with_unknown_outcome() {
        let mut ledger = started();
        ledger.note("hv1", Line { seq: 1, word: Word::Failed(5) }, at(1));
        say(&mut ledger, "hv1", 2, 2);
        assert_eq!(ledger.stats(false).io_errors.by_errno, [(5, 1)].into());
        assert!(checked(&ledger, &[2]).ok);
        assert!(checked(&ledger, &[1, 2]).ok);
    }
}
