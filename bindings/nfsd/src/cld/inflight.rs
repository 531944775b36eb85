//! The upcall being carried out, kept where a successor finds it.
//!
//! The kernel waits for the answer to an upcall without limit, and does not ask again when the
//! process that took it dies (`cld_pipe_destroy_msg`): an NFS thread, and with it every later
//! stop, would hang for ever. So each upcall is noted in a file on a RAM file system before it is
//! carried out; a process that starts while the pipe is there does it again (S9). All commands
//! may be done twice.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::wire::LEN_V2;

/// Length of the message, then the message, written at once.
#[derive(Debug)]
pub(super) struct InFlight {
    file: File,
}

impl InFlight {
    /// Beside the mount point of the pipe's file system, as `NAME.inflight`.
    pub(super) fn open(pipefs: &Path) -> io::Result<Self> {
        let path = pipefs.with_extension("inflight");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).mode(0o600).open(path)?;
        Ok(InFlight { file })
    }

    /// Notes an upcall.
    pub(super) fn note(&self, message: &[u8]) -> io::Result<()> {
        let length = u16::try_from(message.len()).unwrap_or(0);
        let mut entry = length.to_ne_bytes().to_vec();
        entry.extend(message);
        self.file.write_all_at(&entry, 0)
    }

    /// The upcall was answered.
    pub(super) fn clear(&self) -> io::Result<()> {
        self.file.write_all_at(&[0, 0], 0)
    }

    /// What a predecessor left unanswered.
    pub(super) fn left(&self) -> Option<Vec<u8>> {
        let mut entry = [0; 2 + LEN_V2];
        let got = self.file.read_at(&mut entry, 0).ok()?;
        let (length, message) = entry.get(..got)?.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        message.get(..length).filter(|message| !message.is_empty()).map(<[u8]>::to_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_finds_what_was_noted_until_it_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let pipefs = dir.path().join("pipefs");
        let first = InFlight::open(&pipefs).unwrap();
        assert_eq!(first.left(), None);
        first.note(&[7; LEN_V2]).unwrap();
        first.note(&[8; 100]).unwrap();
        drop(first);
        let second = InFlight::open(&pipefs).unwrap();
        assert_eq!(second.left(), Some(vec![8; 100]));
        second.clear().unwrap();
        assert_eq!(InFlight::open(&pipefs).unwrap().left(), None);
    }
}
