//! The writer's local log: what it was about to write, and what was acknowledged.
//!
//! Entries of 64 bytes, each appended by one `write(2)`, so that killing the writer loses nothing that was
//! acknowledged to it. (A power cut of the machine that holds the log does: keep it on memory or disk of a machine
//! that survives the test.) The entry *before* a write tells the checker later which places may hold something newer
//! than the newest acknowledged write, and which may not.
//!
//! ```text
//!  0 4 CRC-32 of bytes 4..64       16 8 offset, bytes (start of a run: blocks per file)
//!  4 1 kind                        24 8 sequence number
//!  5 1 version (1)                 32 8 wall clock when the write was begun, ns
//!  6 2 zero                        40 8 wall clock when it was completed, ns
//!  8 4 file (start of a run: how many)   48 16 writer
//! 12 4 block size, bytes
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use super::block::{WriterId, u32_at, u64_at};
use super::{BlocksError, wall_ns};

/// Bytes of an entry. It divides the page size, so no entry is ever split between two pages.
pub const ENTRY_LEN: usize = 64;
const VERSION: u8 = 1;

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A run began: `file` is the number of files, `offset` the number of blocks in each.
    Start,
    /// A write is about to be handed to the kernel.
    Begun,
    /// The write returned success.
    Acknowledged,
    /// The write returned an error: whether it reached the volume is unknown.
    Failed,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Start => 0,
            Self::Begun => 1,
            Self::Acknowledged => 2,
            Self::Failed => 3,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Start),
            1 => Some(Self::Begun),
            2 => Some(Self::Acknowledged),
            3 => Some(Self::Failed),
            _ => None,
        }
    }
}

/// One entry of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it says.
    pub kind: Kind,
    /// Whose it is.
    pub writer: WriterId,
    /// File number; at the start of a run the number of files.
    pub file: u32,
    /// Block size, bytes.
    pub block_size: u32,
    /// Offset, bytes; at the start of a run the number of blocks per file.
    pub offset: u64,
    /// Sequence number.
    pub seq: u64,
    /// Wall clock when the write was begun, ns.
    pub t_start: u64,
    /// Wall clock when it was completed, ns; 0 for [`Kind::Begun`].
    pub t_end: u64,
}

impl Entry {
    /// As it stands in the file.
    #[must_use]
    pub fn encode(&self) -> [u8; ENTRY_LEN] {
        let mut out = [0; ENTRY_LEN];
        out[4] = self.kind.code();
        out[5] = VERSION;
        out[8..12].copy_from_slice(&self.file.to_le_bytes());
        out[12..16].copy_from_slice(&self.block_size.to_le_bytes());
        out[16..24].copy_from_slice(&self.offset.to_le_bytes());
        out[24..32].copy_from_slice(&self.seq.to_le_bytes());
        out[32..40].copy_from_slice(&self.t_start.to_le_bytes());
        out[40..48].copy_from_slice(&self.t_end.to_le_bytes());
        out[48..64].copy_from_slice(&self.writer.bytes());
        let crc = crc32fast::hash(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `None` when the entry is damaged.
    #[must_use]
    pub fn decode(raw: &[u8; ENTRY_LEN]) -> Option<Self> {
        if u32_at(raw, 0) != crc32fast::hash(&raw[4..]) || raw[5] != VERSION {
            return None;
        }
        let mut name = [0; 16];
        name.copy_from_slice(&raw[48..64]);
        Some(Self {
            kind: Kind::from_code(raw[4])?,
            writer: WriterId::from_bytes(name)?,
            file: u32_at(raw, 8),
            block_size: u32_at(raw, 12),
            offset: u64_at(raw, 16),
            seq: u64_at(raw, 24),
            t_start: u64_at(raw, 32),
            t_end: u64_at(raw, 40),
        })
    }
}

/// The end of a journal that is being written. Appends may come from several threads.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
}

impl Journal {
    /// Opens or makes the journal and appends the start of a run. A torn last entry of an earlier run is cut off.
    ///
    /// # Errors
    /// [`BlocksError::Open`], [`BlocksError::Write`].
    pub fn begin(path: &Path, start: &Entry) -> Result<Self, BlocksError> {
        let open = |source| BlocksError::Open { path: path.to_owned(), source };
        let file = OpenOptions::new().append(true).create(true).open(path).map_err(open)?;
        let len = file.metadata().map_err(open)?.len();
        file.set_len(len - len % ENTRY_LEN as u64).map_err(open)?;
        let journal = Self { file, path: path.to_owned() };
        journal.append(start)?;
        Ok(journal)
    }

    /// Appends one entry with one `write(2)`; `O_APPEND` keeps entries of several threads apart.
    ///
    /// # Errors
    /// [`BlocksError::Write`]: the entry may be missing or torn, the writer must stop.
    pub fn append(&self, entry: &Entry) -> Result<(), BlocksError> {
        let wrong = |source| BlocksError::Write { path: self.path.clone(), source };
        match (&self.file).write(&entry.encode()) {
            Ok(ENTRY_LEN) => Ok(()),
            Ok(_) => Err(wrong(io::ErrorKind::WriteZero.into())),
            Err(source) => Err(wrong(source)),
        }
    }
}

/// What reading a journal to its end told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JournalEnd {
    /// Good entries.
    pub entries: u64,
    /// The last entry was torn: its write had not been acknowledged to the writer's journal when it died.
    pub torn_tail: bool,
}

/// Reads a journal, giving each entry to `each`, in the order they were written.
///
/// # Errors
/// [`BlocksError::Open`], [`BlocksError::Read`], [`BlocksError::NotAJournal`], [`BlocksError::JournalDamaged`] and
/// whatever `each` answers.
pub fn read(
    path: &Path,
    mut each: impl FnMut(&Entry) -> Result<(), BlocksError>,
) -> Result<JournalEnd, BlocksError> {
    let file =
        File::open(path).map_err(|source| BlocksError::Open { path: path.to_owned(), source })?;
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let mut end = JournalEnd::default();
    let mut bad = None;
    let mut raw = [0; ENTRY_LEN];
    while let Some(whole) = next_raw(&mut reader, &mut raw, path)? {
        if let Some(entry) = bad {
            return Err(BlocksError::JournalDamaged { path: path.to_owned(), entry });
        }
        match Entry::decode(&raw).filter(|_| whole) {
            Some(entry) if end.entries == 0 && entry.kind != Kind::Start => {
                return Err(BlocksError::NotAJournal { path: path.to_owned() });
            }
            Some(entry) => each(&entry)?,
            None if end.entries == 0 => {
                return Err(BlocksError::NotAJournal { path: path.to_owned() });
            }
            None => {
                bad = Some(end.entries);
                continue;
            }
        }
        end.entries += 1;
    }
    end.torn_tail = bad.is_some();
    Ok(end)
}

/// `Some(true)`: a whole entry; `Some(false)`: part of one; `None`: the end.
fn next_raw(
    reader: &mut impl Read,
    raw: &mut [u8; ENTRY_LEN],
    path: &Path,
) -> Result<Option<bool>, BlocksError> {
    let mut have = 0;
    while have < ENTRY_LEN {
        match reader.read(&mut raw[have..]) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(BlocksError::Read { path: path.to_owned(), source }),
        }
    }
    Ok(if have == 0 { None } else { Some(have == ENTRY_LEN) })
}

/// The highest sequence number an earlier run of `writer` left in its journal; `None` without a journal.
///
/// # Errors
/// [`BlocksError::JournalMismatch`] when it belongs to another writer or block size, and those of [`read`].
pub fn last_seq(
    path: &Path,
    writer: &WriterId,
    block_size: u32,
) -> Result<Option<u64>, BlocksError> {
    if std::fs::metadata(path).map_or(true, |m| m.len() == 0) {
        return Ok(None);
    }
    let mut last = None;
    read(path, |entry| {
        if entry.writer != *writer || entry.block_size != block_size {
            return Err(BlocksError::JournalMismatch { path: path.to_owned() });
        }
        last = last.max(Some(entry.seq));
        Ok(())
    })?;
    Ok(last)
}

/// The entry that begins a run.
#[must_use]
pub fn start_entry(writer: WriterId, files: u32, blocks: u64, block_size: u32, seq: u64) -> Entry {
    Entry {
        kind: Kind::Start,
        writer,
        file: files,
        block_size,
        offset: blocks,
        seq,
        t_start: wall_ns(),
        t_end: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt;

    fn entry(kind: Kind, seq: u64) -> Entry {
        Entry { kind, seq, ..start_entry("hv1".parse().unwrap(), 2, 8, 4096, 0) }
    }

    fn journal_of(seqs: &[u64]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = Journal::begin(&path, &entry(Kind::Start, 0)).unwrap();
        for seq in seqs {
            journal.append(&entry(Kind::Acknowledged, *seq)).unwrap();
        }
        (dir, path)
    }

    proptest! {
        #[test]
        fn an_entry_reads_back_and_any_changed_bit_is_found(
            code in 0_u8..4, file in any::<u32>(), offset in any::<u64>(), seq in any::<u64>(),
            times in any::<(u64, u64)>(), at in 0_usize..ENTRY_LEN, bit in 0_u8..8,
        ) {
            let entry = Entry {
                kind: Kind::from_code(code).unwrap(), writer: "w_1".parse().unwrap(), file,
                block_size: 512, offset, seq, t_start: times.0, t_end: times.1,
            };
            let mut raw = entry.encode();
            prop_assert_eq!(Entry::decode(&raw), Some(entry));
            raw[at] ^= 1 << bit;
            prop_assert_eq!(Entry::decode(&raw), None);
        }
    }

    #[test]
    fn a_torn_tail_is_dropped_and_cut_off_by_the_next_run() {
        let (_dir, path) = journal_of(&[1, 2]);
        let file = OpenOptions::new().append(true).open(&path).unwrap();
        (&file).write_all(&entry(Kind::Acknowledged, 3).encode()[..40]).unwrap();
        let mut seqs = vec![];
        let mut keep = |e: &Entry| {
            seqs.push(e.seq);
            Ok(())
        };
        let end = read(&path, &mut keep).unwrap();
        assert_eq!((end.entries, end.torn_tail), (3, true));
        assert_eq!(seqs, [0, 1, 2]);
        Journal::begin(&path, &entry(Kind::Start, 9)).unwrap();
        let end = read(&path, |_| Ok(())).unwrap();
        assert_eq!((end.entries, end.torn_tail), (4, false));
    }

    #[test]
    fn damage_in_the_middle_is_an_error() {
        let (_dir, path) = journal_of(&[1, 2, 3]);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff], 2 * ENTRY_LEN as u64 + 30).unwrap();
        let found = read(&path, |_| Ok(()));
        assert!(matches!(found, Err(BlocksError::JournalDamaged { entry: 2, .. })), "{found:?}");
    }

    #[test]
    fn foreign_journals_are_refused() {
        let (_dir, path) = journal_of(&[7]);
        let me = "hv1".parse().unwrap();
        assert_eq!(last_seq(&path, &me, 4096).unwrap(), Some(7));
        assert!(last_seq(&path, &me, 512).is_err());
        assert!(last_seq(&path, &"hv2".parse().unwrap(), 4096).is_err());
        std::fs::write(&path, [1; 64]).unwrap();
        assert!(matches!(last_seq(&path, &me, 4096), Err(BlocksError::NotAJournal { .. })));
    }
}
