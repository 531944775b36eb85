//! The writer: one thread per file with one write at a time, one that watches locks, one that keeps the time.
//!
//! Only the last one, the caller of [`write_until`], touches no storage under test, so statistics appear and the end
//! comes within [`END_WAIT`] even while writes hang in the kernel (S8, S10). Threads that hang are left behind; the
//! process is expected to exit after that.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::libc;

use super::block::{Block, Content, Filler, WriterId, valid_size};
use super::buffer::AlignedBuf;
use super::gaps::Moment;
use super::journal::{self, Entry, Journal, Kind};
use super::locks::{EXTRA_LOCKS, LockedFile, QEMU_LOCKS};
use super::stats::{Counters, Shape, WriterStats};
use super::{BlocksError, data_path, lock_path, wall_ns};

/// How long the end waits for writes that are on their way.
pub const END_WAIT: Duration = Duration::from_secs(2);
/// How often locks are looked at.
const LOCK_ROUND: Duration = Duration::from_millis(250);
/// Extra files whose owner descriptor is read from in each round; all of them in the last.
const TOUCHES_PER_ROUND: usize = 8;
/// How often statistics are rewritten.
const STATS_EVERY: Duration = Duration::from_secs(1);
/// How often the end is looked for.
const TICK: Duration = Duration::from_millis(20);
/// Pause after an error, so that a dead mount does not become a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(50);
/// Added to the highest known sequence number at a start: more than an earlier run can have had on its way.
const SEQ_STEP: u64 = 1 << 20;

/// What to write.
#[derive(Clone, Debug)]
pub struct WriterConfig {
    /// Folder on the volume under test.
    pub dir: PathBuf,
    /// Name; unique among the writers of a folder.
    pub writer: WriterId,
    /// Files, at least 1.
    pub files: u32,
    /// Blocks per file, at least 1.
    pub blocks: u64,
    /// Bytes per block: a power of two from 512 to 1 MiB.
    pub block_size: u32,
    /// Journal of begun and acknowledged writes, not on the volume under test.
    pub log: Option<PathBuf>,
    /// Statistics, not on the volume under test.
    pub stats: Option<PathBuf>,
    /// Extra files with ten locks each.
    pub extra_locks: u32,
    /// End by itself after this time.
    pub run_for: Option<Duration>,
    /// Shortest gap that is listed.
    pub gap_threshold: Duration,
    /// Pause after each write of a file.
    pub pause: Duration,
    /// Use `O_DIRECT`.
    pub direct: bool,
    /// After the first pass choose blocks at random instead of going round.
    pub random: bool,
}

impl WriterConfig {
    fn check(&self) -> Result<(), BlocksError> {
        valid_size(self.block_size)?;
        if self.files == 0 || self.blocks == 0 {
            return Err(BlocksError::NothingToWrite { files: self.files, blocks: self.blocks });
        }
        let len = self.blocks.checked_mul(u64::from(self.block_size));
        if len.is_none_or(|len| i64::try_from(len).is_err()) {
            return Err(BlocksError::TooLarge { blocks: self.blocks, block_size: self.block_size });
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.blocks * u64::from(self.block_size)
    }
}

/// What all threads share.
struct Shared {
    config: WriterConfig,
    counters: Counters,
    journal: Option<Journal>,
    seq: AtomicU64,
    stopping: AtomicBool,
    locked: Mutex<Vec<Arc<LockedFile>>>,
    fatal: Mutex<Option<BlocksError>>,
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn watch(&self, file: Arc<LockedFile>) {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner).push(file);
    }

    fn give_up(&self, error: BlocksError) {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stopping.store(true, Ordering::SeqCst);
    }

    fn take_fatal(&self) -> Option<BlocksError> {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Counts an error; EIO also means that the locks of the file are lost.
    fn failed(&self, operation: &str, file: &LockedFile, error: &io::Error) {
        self.counters.error(operation, &file.path, error);
        if error.raw_os_error() == Some(libc::EIO) {
            self.counters.locks_lost(&file.path, file.bytes().iter().map(|b| b.at));
        }
    }
}

/// Writes until `stop` becomes true or the configured time is over, then returns the last statistics.
///
/// # Errors
/// Wrong arguments, files that cannot be opened or locked, a journal that cannot be written. Errors of the writes
/// themselves are no errors here: they are counted.
pub fn write_until(config: WriterConfig, stop: &AtomicBool) -> Result<WriterStats, BlocksError> {
    config.check()?;
    let shared = Arc::new(share(config)?);
    let mut threads = vec![];
    for file in 0..shared.config.files {
        threads.push(spawn(&shared, move |shared| write_file(shared, file))?);
    }
    threads.push(spawn(&shared, watch_locks)?);
    let kept = keep_time(&shared, stop);
    shared.stopping.store(true, Ordering::SeqCst);
    await_end(&threads);
    let stats = shared.counters.snapshot(false);
    store_stats(&shared, &stats)?;
    kept?;
    shared.take_fatal().map_or(Ok(stats), Err)
}

fn share(config: WriterConfig) -> Result<Shared, BlocksError> {
    let c = &config;
    let (journal, seq) = match &c.log {
        Some(path) => {
            let last = journal::last_seq(path, &c.writer, c.block_size)?;
            let seq = last.map_or(1, |last| last + SEQ_STEP);
            let start = journal::start_entry(c.writer, c.files, c.blocks, c.block_size, seq);
            (Some(Journal::begin(path, &start)?), seq)
        }
        None => (None, 1),
    };
    let counters = Counters::new(Shape {
        writer: c.writer.to_string(),
        files: c.files,
        blocks: c.blocks,
        block_size: c.block_size,
        gap_threshold: c.gap_threshold,
    });
    Ok(Shared {
        config,
        counters,
        journal,
        seq: AtomicU64::new(seq),
        stopping: AtomicBool::new(false),
        locked: Mutex::new(vec![]),
        fatal: Mutex::new(None),
    })
}

fn spawn(
    shared: &Arc<Shared>,
    work: impl FnOnce(&Shared) -> Result<(), BlocksError> + Send + 'static,
) -> Result<JoinHandle<()>, BlocksError> {
    let shared = Arc::clone(shared);
    std::thread::Builder::new()
        .spawn(move || {
            if let Err(error) = work(&shared) {
                shared.give_up(error);
            }
        })
        .map_err(|source| BlocksError::Thread { source })
}

fn keep_time(shared: &Shared, stop: &AtomicBool) -> Result<(), BlocksError> {
    let end = shared.config.run_for.map(|time| Instant::now() + time);
    let mut next_stats = Instant::now();
    while !stop.load(Ordering::SeqCst) && !shared.stopping() {
        let now = Instant::now();
        if end.is_some_and(|end| now >= end) {
            break;
        }
        if now >= next_stats {
            store_stats(shared, &shared.counters.snapshot(true))?;
            next_stats = now + STATS_EVERY;
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}

fn await_end(threads: &[JoinHandle<()>]) {
    let deadline = Instant::now() + END_WAIT;
    while Instant::now() < deadline && !threads.iter().all(JoinHandle::is_finished) {
        std::thread::sleep(TICK);
    }
}

fn store_stats(shared: &Shared, stats: &WriterStats) -> Result<(), BlocksError> {
    shared.config.stats.as_ref().map_or(Ok(()), |path| stats.store(path))
}

fn open(path: &Path, flags: i32, direct: bool) -> Result<File, BlocksError> {
    let flags = if direct { flags | libc::O_DIRECT } else { flags };
    // Read and write: a read lock needs a readable descriptor, a write lock a writable one.
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(flags);
    options.open(path).map_err(|source| {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::EINVAL) if direct => BlocksError::DirectRefused { path },
            _ => BlocksError::Open { path, source },
        }
    })
}

/// Opens a file of at least `len` bytes, locks it and puts it under watch.
fn prepare(
    shared: &Shared,
    path: &Path,
    len: u64,
    bytes: &'static [super::locks::LockByte],
) -> Result<Arc<LockedFile>, BlocksError> {
    let wrong = |source| BlocksError::Open { path: path.to_owned(), source };
    let owner = open(path, libc::O_DSYNC, shared.config.direct)?;
    if owner.metadata().map_err(wrong)?.len() < len {
        owner.set_len(len).map_err(wrong)?;
    }
    owner.sync_all().map_err(wrong)?;
    let probe = open(path, 0, shared.config.direct)?;
    let file = Arc::new(LockedFile::take(path, owner, probe, bytes)?);
    shared.watch(Arc::clone(&file));
    Ok(file)
}

fn write_file(shared: &Shared, number: u32) -> Result<(), BlocksError> {
    let config = &shared.config;
    let path = data_path(&config.dir, &config.writer, number);
    let file = prepare(shared, &path, config.len(), &QEMU_LOCKS)?;
    let highest = highest_seq(config, &file, number)?;
    if highest > 0 {
        shared.seq.fetch_max(highest + SEQ_STEP, Ordering::SeqCst);
    }
    shared.counters.file_ready(number, file.bytes().len());
    let mut buf = AlignedBuf::new(config.block_size as usize);
    let mut places = Places::new(config, number);
    while !shared.stopping() {
        let offset = places.next_block() * u64::from(config.block_size);
        if !write_one(shared, &file, number, offset, &mut buf)? {
            std::thread::sleep(ERROR_PAUSE);
        } else if !config.pause.is_zero() {
            std::thread::sleep(config.pause);
        }
    }
    Ok(())
}

/// The highest sequence number of this writer that an earlier run left in the file; 0 for none.
fn highest_seq(config: &WriterConfig, file: &LockedFile, number: u32) -> Result<u64, BlocksError> {
    let mut buf = AlignedBuf::new(config.block_size as usize);
    let mut highest = 0;
    for block in 0..config.blocks {
        let offset = block * u64::from(config.block_size);
        file.owner
            .read_exact_at(buf.bytes_mut(), offset)
            .map_err(|source| BlocksError::Read { path: file.path.clone(), source })?;
        match Block::decode(buf.bytes()) {
            Content::Whole(b) if b.writer == config.writer && b.file == number => {
                highest = highest.max(b.seq);
            }
            _ => {}
        }
    }
    Ok(highest)
}

/// Writes one block and journals it. `Ok(false)`: the write failed and was counted.
fn write_one(
    shared: &Shared,
    file: &LockedFile,
    number: u32,
    offset: u64,
    buf: &mut AlignedBuf,
) -> Result<bool, BlocksError> {
    let seq = shared.seq.fetch_add(1, Ordering::SeqCst);
    let writer = shared.config.writer;
    let start = Moment::now();
    Block { writer, file: number, offset, seq, wall_ns: start.wall_ns }.encode(buf.bytes_mut());
    let entry = |kind, t_end| Entry {
        kind,
        writer,
        file: number,
        block_size: shared.config.block_size,
        offset,
        seq,
        t_start: start.wall_ns,
        t_end,
    };
    journal(shared, &entry(Kind::Begun, 0))?;
    shared.counters.write_begun();
    let result = write_whole(&file.owner, buf.bytes(), offset);
    let end = Moment::now();
    match result {
        Ok(()) => {
            // Journal first: what the statistics call acknowledged, the checker must be able to demand.
            journal(shared, &entry(Kind::Acknowledged, end.wall_ns))?;
            shared.counters.write_completed(number, end, end.mono - start.mono);
            Ok(true)
        }
        Err(error) => {
            shared.counters.write_failed();
            shared.failed("write", file, &error);
            journal(shared, &entry(Kind::Failed, end.wall_ns))?;
            Ok(false)
        }
    }
}

/// One `pwrite`; a short one is an error, as an acknowledgement of the whole block cannot be built from parts.
fn write_whole(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    match file.write_at(bytes, offset) {
        Ok(n) if n == bytes.len() => Ok(()),
        Ok(_) => Err(io::Error::new(io::ErrorKind::WriteZero, "short write")),
        Err(error) => Err(error),
    }
}

fn journal(shared: &Shared, entry: &Entry) -> Result<(), BlocksError> {
    shared.journal.as_ref().map_or(Ok(()), |journal| journal.append(entry))
}

/// Which block comes next: one pass in order, so that each holds something, then as configured.
struct Places {
    blocks: u64,
    done: u64,
    random: Option<Filler>,
}

impl Places {
    fn new(config: &WriterConfig, number: u32) -> Self {
        let mut seed = config.writer.bytes().to_vec();
        seed.extend(number.to_le_bytes());
        seed.extend(wall_ns().to_le_bytes());
        Self { blocks: config.blocks, done: 0, random: config.random.then(|| Filler::new(&seed)) }
    }

    fn next_block(&mut self) -> u64 {
        let round = self.done % self.blocks;
        self.done += 1;
        match &mut self.random {
            Some(random) if self.done > self.blocks => random.next_word() % self.blocks,
            _ => round,
        }
    }
}

fn watch_locks(shared: &Shared) -> Result<(), BlocksError> {
    let config = &shared.config;
    for number in 0..config.extra_locks {
        let path = lock_path(&config.dir, &config.writer, number);
        prepare(shared, &path, super::buffer::ALIGN as u64, &EXTRA_LOCKS)?;
    }
    shared.counters.extra_ready(config.extra_locks as usize * EXTRA_LOCKS.len());
    let mut from = 0;
    while !shared.stopping() {
        lock_round(shared, from, TOUCHES_PER_ROUND);
        from += TOUCHES_PER_ROUND;
        let next = Instant::now() + LOCK_ROUND;
        while Instant::now() < next && !shared.stopping() {
            std::thread::sleep(TICK);
        }
    }
    lock_round(shared, 0, usize::MAX);
    Ok(())
}

/// Looks at all locks, and reads through the owners of `touches` of the files, beginning at `from`.
fn lock_round(shared: &Shared, from: usize, touches: usize) {
    let files = shared.locked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for file in &files {
        match file.missing() {
            Ok(lost) => shared.counters.locks_lost(&file.path, lost),
            Err(error) => shared.failed("lock check", file, &error),
        }
    }
    for index in (0..files.len()).take(touches) {
        let file = &files[(from + index) % files.len()];
        if let Err(error) = file.touch() {
            shared.failed("read", file, &error);
        }
    }
    shared.counters.lock_round();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eio_on_a_locked_file_counts_its_locks_as_lost_and_other_errors_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let config = WriterConfig {
            dir: dir.path().to_owned(),
            writer: "hv1".parse().unwrap(),
            files: 1,
            blocks: 1,
            block_size: 4096,
            log: None,
            stats: None,
            extra_locks: 0,
            run_for: None,
            gap_threshold: Duration::from_millis(100),
            pause: Duration::ZERO,
            direct: false,
            random: false,
        };
        let shared = share(config).unwrap();
        let file = prepare(&shared, &dir.path().join("image"), 4096, &QEMU_LOCKS).unwrap();
        let mut lost = vec![];
        for errno in [libc::ENOSPC, libc::EIO, libc::EIO] {
            shared.failed("write", &file, &io::Error::from_raw_os_error(errno));
            lost.push(shared.counters.snapshot(true).lost_locks);
        }
        assert_eq!(lost, [0, 5, 5]);
        assert_eq!(shared.counters.snapshot(true).io_errors.by_errno, [(28, 1), (5, 2)].into());
    }
}
