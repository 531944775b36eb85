//! Writer and checker together: each planted fault is found, and a killed writer leaves provable blocks.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::check::{CheckReport, FaultKind, check};
use super::journal::{self, Kind};
use super::*;

const SIZE: u64 = 4096;

fn config(dir: &Path, direct: bool) -> WriterConfig {
    WriterConfig {
        dir: dir.to_owned(),
        writer: "hv1".parse().unwrap(),
        files: 2,
        blocks: 8,
        block_size: SIZE as u32,
        log: Some(dir.join("journal")),
        stats: Some(dir.join("stats.json")),
        extra_locks: 2,
        run_for: Some(Duration::from_millis(300)),
        gap_threshold: Duration::from_millis(100),
        pause: Duration::ZERO,
        direct,
        random: true,
    }
}

/// Runs with `O_DIRECT`, or without it where the file system of temporary files refuses it.
fn run(dir: &Path) -> (WriterStats, bool) {
    match write_until(config(dir, true), &AtomicBool::new(false)) {
        Err(BlocksError::DirectRefused { .. }) => {
            (write_until(config(dir, false), &AtomicBool::new(false)).unwrap(), false)
        }
        other => (other.unwrap(), true),
    }
}

/// A finished run with its folder.
struct Run {
    dir: tempfile::TempDir,
    stats: WriterStats,
    direct: bool,
}

impl Run {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (stats, direct) = run(dir.path());
        Self { dir, stats, direct }
    }

    fn path(&self, file: u32) -> PathBuf {
        data_path(self.dir.path(), &"hv1".parse().unwrap(), file)
    }

    fn check(&self) -> CheckReport {
        check(self.dir.path(), &[self.dir.path().join("journal")], self.direct).unwrap()
    }

    fn read(&self, file: u32, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        let data = OpenOptions::new().read(true).open(self.path(file)).unwrap();
        data.read_exact_at(&mut bytes, block * SIZE).unwrap();
        bytes
    }

    fn plant(&self, file: u32, block: u64, bytes: &[u8]) {
        let data = OpenOptions::new().write(true).open(self.path(file)).unwrap();
        data.write_all_at(bytes, block * SIZE).unwrap();
        data.sync_all().unwrap();
    }

    fn block(&self, file: u32, block: u64) -> Block {
        match Block::decode(&self.read(file, block)) {
            Content::Whole(found) => found,
            other => panic!("{other:?}"),
        }
    }

    fn plant_block(&self, file: u32, block: u64, content: &Block) {
        let mut bytes = vec![0; SIZE as usize];
        content.encode(&mut bytes);
        self.plant(file, block, &bytes);
    }
}

fn counts(r: &CheckReport) -> [u64; 4] {
    [r.lost, r.stale, r.torn, r.foreign]
}

#[test]
fn an_undisturbed_run_is_clean() {
    let run = Run::new();
    assert!(run.stats.is_clean(), "{:?}", run.stats);
    assert!(run.stats.ready && !run.stats.running);
    assert_eq!(run.stats.locks.taken, 2 * 5 + 2 * 10);
    assert!(run.stats.locks.rounds >= 2);
    let report = run.check();
    assert!(report.ok, "{report:?}");
    assert_eq!(report.acknowledged, run.stats.acknowledged);
    assert_eq!((report.places, report.newer), (16, 0));
    // The last statistics, not those of a second before.
    let stored = WriterStats::load(&run.dir.path().join("stats.json")).unwrap();
    assert_eq!((stored.running, stored.now_ns), (false, run.stats.now_ns));
    assert_eq!(stored.acknowledged, run.stats.acknowledged);
}

#[test]
fn lost_blocks_are_found() {
    let run = Run::new();
    run.plant(0, 3, &[0; SIZE as usize]);
    let report = run.check();
    assert_eq!(counts(&report), [1, 0, 0, 0]);
    assert!(!report.ok);
    let fault = &report.examples[0];
    assert_eq!((fault.kind, fault.file, fault.offset), (FaultKind::Lost, 0, 3 * SIZE));
    assert!(fault.acknowledged_seq.is_some());
}

#[test]
fn a_shorter_or_missing_file_is_lost() {
    let run = Run::new();
    OpenOptions::new().write(true).open(run.path(0)).unwrap().set_len(6 * SIZE).unwrap();
    assert_eq!(counts(&run.check()), [2, 0, 0, 0]);
    OpenOptions::new().write(true).open(run.path(0)).unwrap().set_len(5 * SIZE + 100).unwrap();
    assert_eq!(counts(&run.check()), [3, 0, 0, 0]);
    std::fs::remove_file(run.path(1)).unwrap();
    let report = run.check();
    assert_eq!((counts(&report), report.missing_files), ([11, 0, 0, 0], 1));
}

#[test]
fn stale_blocks_are_found() {
    let run = Run::new();
    let now = run.block(1, 2);
    run.plant_block(1, 2, &Block { seq: now.seq - 1, ..now });
    let report = run.check();
    assert_eq!(counts(&report), [0, 1, 0, 0]);
    let fault = &report.examples[0];
    assert_eq!((fault.found_seq, fault.acknowledged_seq), (Some(now.seq - 1), Some(now.seq)));
}

#[test]
fn torn_blocks_are_found() {
    let run = Run::new();
    let mut bytes = run.read(0, 0);
    bytes[2048..].fill(0);
    run.plant(0, 0, &bytes);
    bytes[..512].fill(0x55);
    run.plant(1, 7, &bytes);
    let report = run.check();
    assert_eq!(counts(&report), [0, 0, 2, 0]);
    assert!(report.examples[0].detail.contains("sector 4"), "{report:?}");
}

#[test]
fn foreign_blocks_are_found() {
    let run = Run::new();
    let here = run.block(0, 1);
    run.plant(0, 1, &run.read(0, 2));
    run.plant(0, 3, &run.read(1, 3));
    let other = Block { writer: "hv2".parse().unwrap(), offset: 4 * SIZE, ..here };
    run.plant_block(0, 4, &other);
    // Right place, but a write that no journal knows of.
    run.plant_block(0, 5, &Block { offset: 5 * SIZE, seq: u64::MAX, ..here });
    assert_eq!(counts(&run.check()), [0, 0, 0, 4]);
}

/// Appends the start of a write to the journal, as a writer does before it is killed.
fn begin_write(run: &Run, file: u32, block: u64) -> Block {
    let now = run.block(file, block);
    let newer = Block { seq: now.seq + 1_000_000, ..now };
    let entry = journal::Entry {
        kind: Kind::Begun,
        offset: newer.offset,
        file,
        seq: newer.seq,
        ..journal::start_entry(newer.writer, 2, 8, SIZE as u32, 0)
    };
    let log = OpenOptions::new().append(true).open(run.dir.path().join("journal")).unwrap();
    std::io::Write::write_all(&mut &log, &entry.encode()).unwrap();
    newer
}

#[test]
fn a_write_in_flight_may_have_happened_or_not_or_in_part() {
    let run = Run::new();
    let newer = begin_write(&run, 0, 0);
    assert!(run.check().ok, "not happened");
    let old = run.read(0, 0);
    run.plant_block(0, 0, &newer);
    let report = run.check();
    assert!(report.ok);
    assert_eq!(report.newer, 1);
    let mut torn = run.read(0, 0);
    torn[512..].copy_from_slice(&old[512..]);
    run.plant(0, 0, &torn);
    let report = run.check();
    assert!(report.ok);
    assert_eq!(report.torn_in_flight, 1);
    // But nothing older than the acknowledged write may come back.
    run.plant_block(0, 0, &Block { seq: newer.seq - 1_000_001, ..newer });
    assert_eq!(counts(&run.check()), [0, 1, 0, 0]);
}

#[test]
fn a_missing_folder_or_an_empty_journal_is_an_error_and_not_a_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("journal");
    std::fs::write(&log, []).unwrap();
    let empty = check(dir.path(), std::slice::from_ref(&log), true);
    assert!(matches!(empty, Err(BlocksError::NotAJournal { .. })), "{empty:?}");
    let none = check(&dir.path().join("none"), &[log], true);
    assert!(matches!(none, Err(BlocksError::Open { .. })), "{none:?}");
}

#[test]
fn nothing_acknowledged_is_not_ok() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("journal");
    let start = journal::start_entry("hv1".parse().unwrap(), 1, 1, SIZE as u32, 1);
    journal::Journal::begin(&log, &start).unwrap();
    assert!(!check(dir.path(), &[log], true).unwrap().ok);
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    for (files, blocks, block_size) in
        [(0, 1, 4096), (1, 0, 4096), (1, 1, 1000), (1, u64::MAX, 512)]
    {
        let config = WriterConfig { files, blocks, block_size, ..config(dir.path(), true) };
        assert!(write_until(config, &AtomicBool::new(false)).is_err());
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

const CHILD_DIR: &str = "LAB_BLOCKS_TEST_DIR";

/// Not a test by itself: the writer that [`a_killed_writer_leaves_provable_blocks`] kills.
#[test]
#[ignore = "started by another test"]
fn child_writer() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let dir = PathBuf::from(dir);
    let direct = !dir.join("no-direct").exists();
    let config = WriterConfig { run_for: Some(Duration::from_secs(20)), ..config(&dir, direct) };
    write_until(config, &AtomicBool::new(false)).unwrap();
}

/// Starts a writer, waits until it has acknowledged something new, kills it.
fn write_and_kill(dir: &Path) {
    let log = dir.join("journal");
    let before = std::fs::metadata(&log).map_or(0, |m| m.len());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "blocks::tests::child_writer", "--ignored"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(15);
    while std::fs::metadata(&log).map_or(0, |m| m.len()) < before + 64 * 200 {
        assert!(Instant::now() < deadline, "the writer does not write");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_writer_leaves_provable_blocks() {
    let dir = tempfile::tempdir().unwrap();
    // Learn whether O_DIRECT works here, then begin from nothing.
    let (_, direct) = run(dir.path());
    if !direct {
        std::fs::write(dir.path().join("no-direct"), []).unwrap();
    }
    let log = dir.path().join("journal");
    let mut last = 0;
    for _ in 0..3 {
        write_and_kill(dir.path());
        let report = check(dir.path(), std::slice::from_ref(&log), direct).unwrap();
        assert!(report.ok, "{report:?}");
        assert!(report.acknowledged > last);
        last = report.acknowledged;
    }
    let me = "hv1".parse().unwrap();
    let before = journal::last_seq(&log, &me, SIZE as u32).unwrap();
    run(dir.path());
    let mut starts = vec![];
    journal::read(&log, |e| {
        if e.kind == Kind::Start {
            starts.push(Some(e.seq));
        }
        Ok(())
    })
    .unwrap();
    assert!(starts.is_sorted() && starts.last().copied().flatten() > before);
}

#[test]
fn a_new_journal_over_old_files_goes_on_with_higher_numbers() {
    let run_1 = Run::new();
    let old = run_1.block(0, 0).seq;
    std::fs::remove_file(run_1.dir.path().join("journal")).unwrap();
    run(run_1.dir.path());
    assert!(run_1.block(0, 0).seq > old + 1000);
    assert!(run_1.check().ok);
}
