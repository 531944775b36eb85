//! The checker: compares what is on the volume with the writers' journals.
//!
//! A place is one block of one file of one writer. Its newest acknowledged write must be there, or one that was begun
//! after it and whose outcome nobody knows ("maybe": in flight when the writer was killed, or failed with an error).

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use serde::{Deserialize, Serialize};

use super::block::{Block, Content, WriterId, valid_size};
use super::buffer::AlignedBuf;
use super::journal::{self, Entry, Kind};
use super::{BlocksError, data_path};

/// Most faults that are told in full.
const EXAMPLES: usize = 10;
/// How much is read at once, bytes.
const CHUNK: usize = 1 << 20;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// No place is lost, stale, torn or foreign, and at least one acknowledged write was checked.
    pub ok: bool,
    /// Acknowledged writes in the journals.
    pub acknowledged: u64,
    /// Places with an acknowledged write, each of which was read.
    pub places: u64,
    /// Acknowledged, but only zeros are there, or nothing, or it cannot be read.
    pub lost: u64,
    /// Acknowledged, but an older write is there.
    pub stale: u64,
    /// Neither one write nor another, though no write was on its way there.
    pub torn: u64,
    /// A whole block that belongs elsewhere, or that the journals say was never written.
    pub foreign: u64,
    /// Places that hold a newer write than the newest acknowledged one; it was on its way. No fault.
    pub newer: u64,
    /// Torn places where a write was on its way: no promise was made for them. No fault.
    pub torn_in_flight: u64,
    /// Files that are not there. All of them missing hints at a volume that is not mounted.
    #[serde(default)]
    pub missing_files: u64,
    /// Journals whose last entry was torn. No fault.
    pub torn_journals: u64,
    /// The first faults in full.
    pub examples: Vec<Fault>,
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultKind {
    /// See [`CheckReport::lost`].
    Lost,
    /// See [`CheckReport::stale`].
    Stale,
    /// See [`CheckReport::torn`].
    Torn,
    /// See [`CheckReport::foreign`].
    Foreign,
}

/// One bad place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// Whose place it is.
    pub writer: String,
    /// File number.
    pub file: u32,
    /// Offset, bytes.
    pub offset: u64,
    /// Newest acknowledged sequence number.
    pub acknowledged_seq: Option<u64>,
    /// When that write was acknowledged, wall clock, ns.
    pub acknowledged_ns: Option<u64>,
    /// Sequence number that was found.
    pub found_seq: Option<u64>,
    /// When the block that was found was made, wall clock, ns.
    pub found_ns: Option<u64>,
    /// In words.
    pub detail: String,
}

impl CheckReport {
    fn add(&mut self, fault: Fault) {
        match fault.kind {
            FaultKind::Lost => self.lost += 1,
            FaultKind::Stale => self.stale += 1,
            FaultKind::Torn => self.torn += 1,
            FaultKind::Foreign => self.foreign += 1,
        }
        if self.examples.len() < EXAMPLES {
            self.examples.push(fault);
        }
    }
}

/// What the journals say of one place.
#[derive(Debug, Default)]
struct Place {
    acked: Option<u64>,
    acked_ns: Option<u64>,
    /// Begun after the newest acknowledged one, with unknown outcome.
    maybe: Vec<u64>,
}

impl Place {
    fn note(&mut self, entry: &Entry) {
        match entry.kind {
            Kind::Begun => self.maybe.push(entry.seq),
            Kind::Acknowledged if self.acked.is_none_or(|old| old < entry.seq) => {
                self.acked = Some(entry.seq);
                self.acked_ns = Some(entry.t_end);
                // Writes of one file follow each other: those begun earlier can only be older.
                self.maybe.retain(|seq| *seq > entry.seq);
            }
            Kind::Acknowledged | Kind::Failed | Kind::Start => {}
        }
    }
}

/// Extent of one writer's files, over all its runs.
#[derive(Clone, Copy, Debug)]
struct Extent {
    files: u32,
    blocks: u64,
    block_size: u32,
}

/// All journals together.
#[derive(Debug, Default)]
struct Expected {
    writers: BTreeMap<WriterId, Extent>,
    places: HashMap<(WriterId, u32, u64), Place>,
    acknowledged: u64,
    torn_journals: u64,
}

impl Expected {
    fn load(logs: &[PathBuf]) -> Result<Self, BlocksError> {
        let mut all = Self::default();
        for path in logs {
            let end = journal::read(path, |entry| all.note(path, entry))?;
            if end.entries == 0 {
                return Err(BlocksError::NotAJournal { path: path.clone() });
            }
            all.torn_journals += u64::from(end.torn_tail);
        }
        Ok(all)
    }

    fn note(&mut self, path: &Path, entry: &Entry) -> Result<(), BlocksError> {
        if entry.kind == Kind::Start {
            return self.note_start(path, entry);
        }
        self.acknowledged += u64::from(entry.kind == Kind::Acknowledged);
        self.places.entry((entry.writer, entry.file, entry.offset)).or_default().note(entry);
        Ok(())
    }

    fn note_start(&mut self, path: &Path, entry: &Entry) -> Result<(), BlocksError> {
        let block_size = valid_size(entry.block_size)?;
        let new = Extent { files: entry.file, blocks: entry.offset, block_size };
        let extent = self.writers.entry(entry.writer).or_insert(new);
        if extent.block_size != block_size {
            return Err(BlocksError::JournalMismatch { path: path.to_owned() });
        }
        extent.files = extent.files.max(new.files);
        extent.blocks = extent.blocks.max(new.blocks);
        Ok(())
    }
}

/// Reads all files of the writers of `logs` in `dir` and compares.
///
/// # Errors
/// Journals that cannot be used, `O_DIRECT` that is refused, files that exist and cannot be opened. A missing file is
/// no error: what was acknowledged in it is lost.
pub fn check(dir: &Path, logs: &[PathBuf], direct: bool) -> Result<CheckReport, BlocksError> {
    // A folder that is not there must not look like lost data.
    std::fs::read_dir(dir).map_err(|source| BlocksError::Open { path: dir.to_owned(), source })?;
    let expected = Expected::load(logs)?;
    let mut report = CheckReport {
        acknowledged: expected.acknowledged,
        places: expected.places.values().filter(|p| p.acked.is_some()).count() as u64,
        torn_journals: expected.torn_journals,
        ..CheckReport::default()
    };
    for (writer, extent) in &expected.writers {
        for file in 0..extent.files {
            let reader = Reader::open(&data_path(dir, writer, file), direct)?;
            report.missing_files += u64::from(reader.0.is_none());
            check_file(&expected, *writer, file, *extent, reader, &mut report);
        }
    }
    let bad = report.lost + report.stale + report.torn + report.foreign;
    report.ok = bad == 0 && report.places > 0;
    Ok(report)
}

/// A data file, or the lack of one.
struct Reader(Option<File>);

impl Reader {
    fn open(path: &Path, direct: bool) -> Result<Self, BlocksError> {
        let flags = if direct { libc::O_DIRECT } else { 0 };
        match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => Ok(Self(Some(file))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self(None)),
            Err(e) if direct && e.raw_os_error() == Some(libc::EINVAL) => {
                Err(BlocksError::DirectRefused { path: path.to_owned() })
            }
            Err(source) => Err(BlocksError::Open { path: path.to_owned(), source }),
        }
    }

    /// Fills `out` from `offset` as far as the file goes and answers how far that is.
    fn read(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let Some(file) = &self.0 else { return Ok(0) };
        let mut have = 0;
        while have < out.len() {
            match file.read_at(&mut out[have..], offset + have as u64) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // A short direct read that ended off the grid: the file ends there.
                Err(e) if have > 0 && e.raw_os_error() == Some(libc::EINVAL) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(have)
    }
}

fn check_file(
    expected: &Expected,
    writer: WriterId,
    file: u32,
    extent: Extent,
    reader: Reader,
    report: &mut CheckReport,
) {
    let size = extent.block_size as usize;
    let per_chunk = (CHUNK / size).max(1);
    let mut buf = AlignedBuf::new(per_chunk * size);
    let mut block = 0;
    while block < extent.blocks {
        let count = per_chunk.min(usize::try_from(extent.blocks - block).unwrap_or(per_chunk));
        let start = block * u64::from(extent.block_size);
        let whole = reader.read(&mut buf.bytes_mut()[..count * size], start);
        for index in 0..count {
            let offset = start + (index * size) as u64;
            let bytes = &mut buf.bytes_mut()[index * size..(index + 1) * size];
            let found = match &whole {
                Ok(have) if (index + 1) * size <= *have => Ok(true),
                Ok(_) => Ok(false),
                // Something in the chunk is unreadable: find out which block.
                Err(_) => reader.read(bytes, offset).map(|have| have == size),
            };
            let at = At { writer, file, offset };
            let place = expected.places.get(&(writer, file, offset));
            judge(at, place, found.map(|is_there| is_there.then_some(&*bytes)), report);
        }
        block += count as u64;
    }
}

#[derive(Clone, Copy)]
struct At {
    writer: WriterId,
    file: u32,
    offset: u64,
}

/// Judges one place. `found`: its bytes, `None` beyond the end of the file, or why it cannot be read.
fn judge(
    at: At,
    place: Option<&Place>,
    found: io::Result<Option<&[u8]>>,
    report: &mut CheckReport,
) {
    let nothing = Place::default();
    let place = place.unwrap_or(&nothing);
    let acked = place.acked.is_some();
    let fault = |kind, detail: String| Some(fault(at, place, kind, None, detail));
    let bad = match found.map(|bytes| bytes.map(Block::decode)) {
        Err(e) if acked => fault(FaultKind::Lost, format!("cannot be read: {e}")),
        Ok(None) if acked => {
            fault(FaultKind::Lost, "the file ends before it, or is missing".into())
        }
        Ok(Some(Content::Zero)) if acked => fault(FaultKind::Lost, "only zeros".into()),
        Err(_) | Ok(None | Some(Content::Zero)) => None,
        Ok(Some(Content::Torn { .. })) if !place.maybe.is_empty() => {
            report.torn_in_flight += 1;
            None
        }
        Ok(Some(Content::Torn { sector, seq: Some(seq) })) => fault(
            FaultKind::Torn,
            format!("begins as write {seq}, differs from sector {sector} on"),
        ),
        Ok(Some(Content::Torn { seq: None, .. })) => {
            fault(FaultKind::Torn, "does not begin with a header".into())
        }
        Ok(Some(Content::Whole(block))) => judge_whole(at, place, block, report),
    };
    if let Some(bad) = bad {
        report.add(bad);
    }
}

fn judge_whole(at: At, place: &Place, block: Block, report: &mut CheckReport) -> Option<Fault> {
    let (kind, detail) = if (block.writer, block.file, block.offset)
        != (at.writer, at.file, at.offset)
    {
        let origin = format!("block of {} file {} at {}", block.writer, block.file, block.offset);
        (FaultKind::Foreign, origin)
    } else if Some(block.seq) == place.acked {
        return None;
    } else if place.maybe.contains(&block.seq) {
        report.newer += u64::from(place.acked.is_some());
        return None;
    } else if place.acked.is_some_and(|acked| block.seq < acked) {
        (FaultKind::Stale, "an older write than the acknowledged one".to_owned())
    } else {
        (FaultKind::Foreign, "no journal knows of this write".to_owned())
    };
    Some(fault(at, place, kind, Some(block), detail))
}

fn fault(at: At, place: &Place, kind: FaultKind, found: Option<Block>, detail: String) -> Fault {
    Fault {
        kind,
        writer: at.writer.to_string(),
        file: at.file,
        offset: at.offset,
        acknowledged_seq: place.acked,
        acknowledged_ns: place.acked_ns,
        found_seq: found.map(|b| b.seq),
        found_ns: found.map(|b| b.wall_ns),
        detail,
    }
}
