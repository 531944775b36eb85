//! `lab-blocks`: writes self-describing blocks while storage moves, and checks afterwards that none was lost.
//!
//! Shows whether S1, S2 and S6 held. Exit codes: 0 clean; 1 something is wrong with blocks, locks or I/O; 2 usage or
//! environment: nothing is said about the blocks.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use lab::blocks::{BlocksError, CheckReport, WriterConfig, WriterId, check, locks, write_until};
use nix::sys::signal::{SigSet, Signal};

/// Write self-describing blocks while storage moves, and check afterwards that none was lost.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write until the time is over or SIGTERM comes; statistics go to standard output at the end.
    Write(WriteArgs),
    /// Compare the volume with the journals of the writers.
    Check(CheckArgs),
    /// Ask, from another client, whether a running writer's locks are held by the server.
    Locks(LocksArgs),
}

#[derive(Args)]
struct WriteArgs {
    /// Folder on the volume under test.
    #[arg(long)]
    dir: PathBuf,
    /// Name of the writer: 1 to 16 letters, digits, underscores.
    #[arg(long)]
    writer: WriterId,
    /// Files, each with one write at a time.
    #[arg(long, default_value_t = 1)]
    files: u32,
    /// Blocks per file.
    #[arg(long, default_value_t = 256)]
    blocks: u64,
    /// Bytes per block.
    #[arg(long, default_value_t = 4096)]
    block_size: u32,
    /// End after this time, seconds; without it: at SIGTERM or SIGINT.
    #[arg(long)]
    seconds: Option<u32>,
    /// Journal of acknowledged writes; never on the volume under test.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Statistics as JSON, replaced each second; never on the volume under test.
    #[arg(long)]
    stats: Option<PathBuf>,
    /// Extra files with ten locks each.
    #[arg(long, default_value_t = 0)]
    locks: u32,
    /// Shortest gap between completed writes that is listed, ms.
    #[arg(long, default_value_t = 100)]
    gap_ms: u64,
    /// Pause after each write of a file, ms.
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// Go round the blocks of a file instead of choosing at random after the first pass.
    #[arg(long)]
    round_robin: bool,
    /// Without O_DIRECT.
    #[arg(long)]
    no_direct: bool,
}

#[derive(Args)]
struct CheckArgs {
    /// Folder on the volume under test.
    #[arg(long)]
    dir: PathBuf,
    /// Journals of the writers.
    #[arg(long, required = true, value_delimiter = ',')]
    log: Vec<PathBuf>,
    /// Report as JSON.
    #[arg(long)]
    json: bool,
    /// Without O_DIRECT.
    #[arg(long)]
    no_direct: bool,
}

#[derive(Args)]
struct LocksArgs {
    /// Folder on the volume under test.
    #[arg(long)]
    dir: PathBuf,
    /// Name of the writer.
    #[arg(long)]
    writer: WriterId,
    /// Files of the writer.
    #[arg(long, default_value_t = 1)]
    files: u32,
    /// Extra files of the writer.
    #[arg(long, default_value_t = 0)]
    locks: u32,
}

fn main() {
    let done = match Cli::parse().command {
        Command::Write(args) => write(args),
        Command::Check(args) => run_check(&args),
        Command::Locks(args) => run_locks(&args),
    };
    let code = match done {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(error) => {
            complain(&error);
            2
        }
    };
    // Not a return: a thread that hangs in the kernel must not be waited for.
    std::process::exit(code)
}

fn complain(error: &BlocksError) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    eprintln!("lab-blocks: {text}");
}

/// Standard output may be closed; that is no reason to change the verdict.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn write(args: WriteArgs) -> Result<bool, BlocksError> {
    let stop = stop_on_signal()?;
    let config = WriterConfig {
        dir: args.dir,
        writer: args.writer,
        files: args.files,
        blocks: args.blocks,
        block_size: args.block_size,
        log: args.log,
        stats: args.stats,
        extra_locks: args.locks,
        run_for: args.seconds.map(|s| Duration::from_secs(s.into())),
        gap_threshold: Duration::from_millis(args.gap_ms),
        pause: Duration::from_millis(args.pause_ms),
        direct: !args.no_direct,
        random: !args.round_robin,
    };
    let stats = write_until(config, &stop)?;
    print(&serde_json::to_string_pretty(&stats)?);
    Ok(stats.is_clean())
}

/// Signals are blocked in all threads and taken by one that waits for them: no handler, so nothing is interrupted.
fn stop_on_signal() -> Result<Arc<AtomicBool>, BlocksError> {
    let stop = Arc::new(AtomicBool::new(false));
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().map_err(|errno| BlocksError::Thread { source: errno.into() })?;
    let flag = Arc::clone(&stop);
    std::thread::Builder::new()
        .spawn(move || {
            let _ = signals.wait();
            flag.store(true, Ordering::SeqCst);
        })
        .map_err(|source| BlocksError::Thread { source })?;
    Ok(stop)
}

fn run_check(args: &CheckArgs) -> Result<bool, BlocksError> {
    let report = check(&args.dir, &args.log, !args.no_direct)?;
    if args.json {
        print(&serde_json::to_string_pretty(&report)?);
    } else {
        print(&check_text(&report));
    }
    Ok(report.ok)
}

fn check_text(r: &CheckReport) -> String {
    let mut out = format!(
        "{}: {} acknowledged writes, {} blocks checked: lost {}, stale {}, torn {}, foreign {} \
         (newer {}, torn in flight {})",
        if r.ok { "ok" } else { "BAD" },
        r.acknowledged,
        r.places,
        r.lost,
        r.stale,
        r.torn,
        r.foreign,
        r.newer,
        r.torn_in_flight,
    );
    if r.missing_files > 0 {
        out.push_str(&format!("\n  {} files are missing: is the volume mounted?", r.missing_files));
    }
    for f in &r.examples {
        out.push_str(&format!(
            "\n  {:?}: writer {} file {} offset {}: acknowledged {:?}, found {:?}: {}",
            f.kind, f.writer, f.file, f.offset, f.acknowledged_seq, f.found_seq, f.detail
        ));
    }
    out
}

fn run_locks(args: &LocksArgs) -> Result<bool, BlocksError> {
    let mut missing = 0;
    for number in 0..args.files {
        let path = lab::blocks::data_path(&args.dir, &args.writer, number);
        missing += report_missing(&path, &locks::QEMU_LOCKS)?;
    }
    for number in 0..args.locks {
        let path = lab::blocks::lock_path(&args.dir, &args.writer, number);
        missing += report_missing(&path, &locks::EXTRA_LOCKS)?;
    }
    print(&format!("{missing} locks are missing"));
    Ok(missing == 0)
}

fn report_missing(path: &std::path::Path, bytes: &[locks::LockByte]) -> Result<usize, BlocksError> {
    let wrong = |source| BlocksError::Open { path: path.to_owned(), source };
    let probe = std::fs::OpenOptions::new().read(true).write(true).open(path).map_err(wrong)?;
    let missing = locks::missing_of(&probe, bytes)
        .map_err(|source| BlocksError::Read { path: path.to_owned(), source })?;
    for byte in &missing {
        print(&format!("{}: byte {byte} is not locked", path.display()));
    }
    Ok(missing.len())
}
