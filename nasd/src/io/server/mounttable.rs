//! The kernel's mount table, `/proc/thread-self/mountinfo`: reading it never touches a volume.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::{MountPoint, Refusal};

/// Options that say that nothing can be written (any more). Newer kernels leave `rw` when ext4
/// stops after an error, and say so in words of their own.
const READ_ONLY: [&str; 3] = ["ro", "emergency_ro", "shutdown"];

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) dev: String,
    pub(super) target: PathBuf,
    pub(super) fstype: String,
    pub(super) source: String,
    pub(super) read_only: bool,
    /// Peer groups that it propagates to or receives from (`shared:` and `master:`,
    /// proc_pid_mountinfo(5)).
    pub(super) groups: Vec<u32>,
}

impl From<&Entry> for MountPoint {
    fn from(entry: &Entry) -> Self {
        MountPoint {
            id: entry.id,
            source: entry.source.clone(),
            fstype: entry.fstype.clone(),
            dev: entry.dev.clone(),
            read_only: entry.read_only,
        }
    }
}

/// The table at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MountTable(Vec<Entry>);

impl MountTable {
    /// Of this process.
    pub(super) fn read() -> Result<Self, Refusal> {
        let file = Path::new("/proc/thread-self/mountinfo");
        let text = fs::read(file).map_err(|e| Refusal::system("reading", file, e))?;
        Ok(Self::parse(&text))
    }

    /// Lines that cannot be read are left out.
    pub(super) fn parse(text: &[u8]) -> Self {
        MountTable(text.split(|b| *b == b'\n').filter_map(entry).collect())
    }

    /// All entries.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.0
    }

    /// Mounts exactly at `target`, the visible one last.
    pub(super) fn at(&self, target: &Path) -> Vec<&Entry> {
        self.0.iter().filter(|entry| entry.target == target).collect()
    }

    /// The visible mount at `target`.
    pub(super) fn top(&self, target: &Path) -> Option<MountPoint> {
        self.at(target).last().map(|entry| MountPoint::from(*entry))
    }

    /// The one mount at `target`.
    ///
    /// # Errors
    /// Nothing is mounted there, or mounts are stacked.
    pub(super) fn single(&self, target: &Path) -> Result<&Entry, Refusal> {
        match self.at(target).as_slice() {
            [] => Err(Refusal::NotMounted { target: target.into() }),
            [only] => Ok(only),
            [.., top] => Err(foreign(target, top)),
        }
    }
}

/// The refusal that names what is mounted.
pub(super) fn foreign(target: &Path, entry: &Entry) -> Refusal {
    Refusal::ForeignMount {
        target: target.into(),
        source_device: entry.source.clone(),
        fstype: entry.fstype.clone(),
    }
}

fn entry(line: &[u8]) -> Option<Entry> {
    let words: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let separator = words.iter().position(|word| *word == b"-")?;
    let text = |at: usize| Some(String::from_utf8_lossy(words.get(at)?).into_owned());
    let options = |at: usize| text(at).unwrap_or_default();
    let read_only = |list: String| list.split(',').any(|option| READ_ONLY.contains(&option));
    Some(Entry {
        id: text(0)?.parse().ok()?,
        dev: text(2)?,
        target: unescape(words.get(4)?),
        fstype: text(separator + 1)?,
        source: unescape(words.get(separator + 2)?).to_string_lossy().into_owned(),
        read_only: read_only(options(5)) || read_only(options(separator + 3)),
        groups: words
            .get(6..separator)
            .unwrap_or_default()
            .iter()
            .filter_map(|w| group(w))
            .collect(),
    })
}

fn group(field: &[u8]) -> Option<u32> {
    let field = std::str::from_utf8(field).ok()?;
    field.strip_prefix("shared:").or_else(|| field.strip_prefix("master:"))?.parse().ok()
}

/// Blank, tab, newline and backslash stand as three octal digits.
pub(super) fn unescape(word: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, tail)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                out.push(byte);
                rest = rest.get(4..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

fn octal(bytes: &[u8]) -> Option<u8> {
    let digits = bytes.strip_prefix(b"\\")?.get(..3)?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &[u8] = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        90 22 147:0 / /srv/nasd/s/a\\040b rw,noatime shared:5 master:1 - ext4 /dev/drbd0 ro\n\
        91 22 0:44 / /stack rw - tmpfs none rw\n\
        92 91 147:1 / /stack ro - xfs /dev/drbd1 rw\n\
        broken line\n";

    #[test]
    fn entries_with_and_without_optional_fields() {
        let table = MountTable::parse(TEXT);
        assert_eq!(table.entries().len(), 4);
        let volume = table.single(Path::new("/srv/nasd/s/a b")).unwrap();
        assert_eq!((volume.dev.as_str(), volume.fstype.as_str()), ("147:0", "ext4"));
        assert!(volume.read_only, "the superblock is read-only");
        assert_eq!(table.top(Path::new("/stack")).unwrap().source, "/dev/drbd1");
        assert!(table.top(Path::new("/stack")).unwrap().read_only);
        assert!(!table.top(Path::new("/")).unwrap().read_only);
    }

    #[test]
    fn a_file_system_that_stopped_by_itself_is_read_only() {
        for (options, wanted) in [
            ("rw", false),
            ("rw,errors=remount-ro", false),
            ("rw,emergency_ro", true),
            ("rw,shutdown,data=ordered", true),
            ("ro,relatime", true),
        ] {
            let line = format!("90 22 147:0 / /v rw,noatime - ext4 /dev/drbd0 {options}\n");
            let table = MountTable::parse(line.as_bytes());
            assert_eq!(table.top(Path::new("/v")).unwrap().read_only, wanted, "{options}");
        }
    }

    #[test]
    fn nothing_and_stacked_mounts_are_refused() {
        let table = MountTable::parse(TEXT);
        let single = |path: &str| table.single(Path::new(path)).unwrap_err();
        assert!(matches!(single("/srv"), Refusal::NotMounted { .. }));
        assert!(matches!(single("/stack"), Refusal::ForeignMount { .. }));
    }

    #[test]
    fn own_table_has_proc() {
        assert!(MountTable::read().unwrap().top(Path::new("/proc")).is_some());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = MountTable::parse(&text);
        }
    }
}
