//! `init` of the nested guest: makes the disk appear, writes to it for ever, and says what was acknowledged.
//!
//! Everything is done by one thread with one write at a time. Each write is on stable storage when it returns
//! (`O_DIRECT` and `O_DSYNC`), and is told only after that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::libc;
use nix::mount::{MsFlags, mount};

use super::line::{Line, Word};
use super::{BLOCK_SIZE, BLOCKS, MODULES, PAUSE_VARIABLE, WRITER_VARIABLE, offset_of};
use crate::blocks::block::Content;
use crate::blocks::buffer::AlignedBuf;
use crate::blocks::{Block, WriterId, wall_ns};

/// Until the kernel has found its devices.
const DEVICES: Duration = Duration::from_secs(30);
/// Between two looks for a device.
const PAUSE: Duration = Duration::from_millis(10);
/// Pause after an error.
const ERROR_PAUSE: Duration = Duration::from_millis(50);
/// Added to the highest number on the disk at a start: more than an earlier run can have had on its way.
const SEQ_STEP: u64 = 1 << 20;
/// Pause after each write when the command line names none.
const DEFAULT_PAUSE_MS: u64 = 10;
/// Name of the writer when the command line names none.
const DEFAULT_WRITER: &str = "vm1";

/// Writes for ever.
///
/// # Errors
/// When a device does not appear, or nothing can be said any more.
pub fn run() -> io::Result<()> {
    mount(Some("none"), "/dev", Some("devtmpfs"), MsFlags::empty(), None::<&str>)?;
    load_modules(&Path::new("/").join(MODULES))?;
    let disk = open_disk(&device("vda")?)?;
    let mut port = OpenOptions::new().write(true).open(device("vport")?)?;
    let writer = writer()?;
    let first = highest(&disk, writer)? + SEQ_STEP;
    say(&mut port, first, Word::Start)?;
    let mut buf = AlignedBuf::new(BLOCK_SIZE as usize);
    let pause = pause();
    for seq in first.. {
        let offset = offset_of(seq);
        Block { writer, file: 0, offset, seq, wall_ns: wall_ns() }.encode(buf.bytes_mut());
        match disk.write_all_at(buf.bytes(), offset) {
            Ok(()) => say(&mut port, seq, Word::Acknowledged)?,
            Err(e) => {
                say(&mut port, seq, Word::Failed(e.raw_os_error().unwrap_or_default()))?;
                thread::sleep(ERROR_PAUSE);
            }
        }
        thread::sleep(pause);
    }
    Ok(())
}

/// One `write(2)`, so that the port takes the line as a whole.
fn say(port: &mut File, seq: u64, word: Word) -> io::Result<()> {
    port.write_all(format!("{}\n", Line { seq, word }).as_bytes())
}

fn load_modules(dir: &Path) -> io::Result<()> {
    let mut paths: Vec<_> = fs::read_dir(dir)?.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        finit_module(&File::open(path)?, c"", ModuleInitFlags::empty())?;
    }
    Ok(())
}

/// The device file whose name begins like this, as soon as it is there.
fn device(prefix: &str) -> io::Result<PathBuf> {
    let end = Instant::now() + DEVICES;
    loop {
        let names = fs::read_dir("/dev")?.flatten().map(|e| e.path());
        let meant = |p: &PathBuf| {
            p.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(prefix))
        };
        match names.into_iter().find(meant) {
            Some(path) => return Ok(path),
            None if Instant::now() >= end => return Err(io::ErrorKind::NotFound.into()),
            None => thread::sleep(PAUSE),
        }
    }
}

fn open_disk(path: &Path) -> io::Result<File> {
    let flags = libc::O_DIRECT | libc::O_DSYNC;
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

/// The highest number of this writer on the disk; 0 for none.
fn highest(disk: &File, writer: WriterId) -> io::Result<u64> {
    let mut buf = AlignedBuf::new(BLOCK_SIZE as usize);
    let mut highest = 0;
    for block in 0..BLOCKS {
        disk.read_exact_at(buf.bytes_mut(), block * u64::from(BLOCK_SIZE))?;
        if let Content::Whole(found) = Block::decode(buf.bytes())
            && found.writer == writer
        {
            highest = highest.max(found.seq);
        }
    }
    Ok(highest)
}

fn writer() -> io::Result<WriterId> {
    let name = std::env::var(WRITER_VARIABLE).unwrap_or_else(|_| DEFAULT_WRITER.to_owned());
    name.parse().map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn pause() -> Duration {
    let text = std::env::var(PAUSE_VARIABLE).ok();
    Duration::from_millis(text.and_then(|t| t.parse().ok()).unwrap_or(DEFAULT_PAUSE_MS))
}
