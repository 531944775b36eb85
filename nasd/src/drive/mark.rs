//! The durable mark of a disk that failed here (S2, C2).
//!
//! DRBD's metadata on the failed disk may go on saying "was up to date", and after a restart the disk
//! may answer again. The mark stands on the node's own disk and says that this replica may be behind,
//! until it has been seen `UpToDate` beside its peer again. A mark that cannot be looked for is
//! there (S12).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::coordinator::write_durably;

/// One service's mark.
#[derive(Debug, Clone)]
pub struct Mark {
    path: PathBuf,
}

/// The mark is not as it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}; the mark is as it was")]
pub struct MarkError {
    path: String,
    source: io::Error,
}

impl Mark {
    /// The mark of a service below nasd's state directory.
    #[must_use]
    pub fn at(state_dir: &Path, service: &str) -> Self {
        Self { path: state_dir.join(format!("{service}.disk-failed")) }
    }

    /// Whether it stands. What cannot be read counts as a mark.
    #[must_use]
    pub fn stands(&self) -> bool {
        match fs::symlink_metadata(&self.path) {
            Ok(_) => true,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Sets it, durably; done where it stands.
    ///
    /// # Errors
    /// The system's answer.
    pub fn set(&self) -> Result<(), MarkError> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).map_err(|e| self.failed(e))?;
        }
        let text = "A local disk of this service failed. nasd removes this file when the volume\n\
                    has been resynchronised.\n";
        write_durably(&self.path, text.as_bytes()).map_err(|e| self.failed(e))
    }

    /// Removes it, durably; done where there is none.
    ///
    /// # Errors
    /// The system's answer; the mark may come back after a power cut.
    pub fn clear(&self) -> Result<(), MarkError> {
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.failed(error)),
        }
        match self.path.parent() {
            Some(dir) => File::open(dir).and_then(|d| d.sync_all()).map_err(|e| self.failed(e)),
            None => Ok(()),
        }
    }

    fn failed(&self, source: io::Error) -> MarkError {
        MarkError { path: self.path.display().to_string(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s2_the_mark_stands_until_it_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("not there yet");
        let (mark, other) = (Mark::at(&state, "vms"), Mark::at(&state, "iso"));
        assert!(!mark.stands());
        mark.clear().unwrap();
        mark.set().unwrap();
        mark.set().unwrap();
        assert!(mark.stands() && Mark::at(&state, "vms").stands());
        assert!(!other.stands());
        mark.clear().unwrap();
        mark.clear().unwrap();
        assert!(!mark.stands());
    }

    #[test]
    fn s12_a_mark_that_cannot_be_looked_for_stands() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(Mark::at(&file, "vms").stands());
        assert!(Mark::at(&file, "vms").set().is_err());
    }
}
