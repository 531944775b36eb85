//! Limits of migrations as they were before the agent changed them, on the host's own disk.
//!
//! Invariant: a limit is changed only after its old value is on disk, synced and renamed into place;
//! [`Noted`] is the proof and only [`Ledger::note`] makes one. So an agent that dies at any moment
//! leaves either no changed limit or one that the next agent finds and restores (S9).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where they are kept.
pub const FILE: &str = "/var/lib/hvagent/limits.json";
/// For one write to the host's own disk.
const DEADLINE: Duration = Duration::from_secs(5);
/// A longer file is not one of ours: some 200 bytes per guest.
const LONGEST: u64 = 4 << 20;

/// Why the old limits are not on disk. No limit may be changed then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error(
        "{} cannot be written ({error}): no migration is slowed down; make room there, or make it \
         writable for the agent", file.display()
    )]
    Unwritable {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// The host's own disk does not answer.
    #[error(
        "{} was not written within {DEADLINE:?}: no migration is slowed down; look at the host's \
         own disk", file.display()
    )]
    Slow {
        /// The file.
        file: PathBuf,
    },
    /// The file exists and cannot be read.
    #[error(
        "{} cannot be read ({error}): limits changed before may still be in force; look with \
         `virsh migrate-getspeed GUEST` on each guest", file.display()
    )]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
}

/// One guest's limits before they were changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Old {
    /// The guest's object on the bus.
    pub path: String,
    /// Its name, for the operator.
    pub guest: String,
    /// The speed limit in MiB/s.
    pub mib_per_second: u64,
    /// The downtime limit in milliseconds: configured, as libvirt-dbus cannot be asked for it.
    pub downtime_ms: u64,
}

/// The old limits of a guest are on disk: its limits may be changed.
#[derive(Debug)]
#[must_use]
pub struct Noted {
    path: String,
}

impl Noted {
    /// Whose they are.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Contents {
    limits: Vec<Old>,
}

/// The old limits of all guests whose limits are changed.
#[derive(Debug)]
pub struct Ledger {
    file: PathBuf,
    old: BTreeMap<String, Old>,
    /// Number of the last write that was begun.
    begun: u64,
    /// Number of the newest one that reached the disk; a write given up may still end, and must not
    /// put older contents over newer ones.
    done: Arc<Mutex<u64>>,
}

impl Ledger {
    /// Reads what an earlier agent has left. Contents that are not understood are put aside beside
    /// the file and told as the second value.
    ///
    /// # Errors
    /// The file is there and cannot be read, or not be put aside.
    pub fn open(file: impl Into<PathBuf>) -> Result<(Self, Option<String>), Error> {
        let file = file.into();
        let failed = |error| Error::Unreadable { file: file.clone(), error };
        let (contents, note) = match read(&file).map_err(failed)? {
            None => (Contents::default(), None),
            Some(bytes) => match serde_json::from_slice(&bytes) {
                Ok(contents) => (contents, None),
                Err(error) => {
                    let aside = file.with_extension("bad");
                    std::fs::rename(&file, &aside).map_err(failed)?;
                    (Contents::default(), Some(not_understood(&aside, &error)))
                }
            },
        };
        let old = contents.limits.into_iter().map(|old| (old.path.clone(), old)).collect();
        Ok((Self { file, old, begun: 0, done: Arc::default() }, note))
    }

    /// The guests whose limits are changed.
    pub fn all(&self) -> impl Iterator<Item = &Old> {
        self.old.values()
    }

    /// Whether that guest's limits are changed.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.old.contains_key(path)
    }

    /// Puts a guest's limits on disk. What is there already is older, and stays.
    ///
    /// # Errors
    /// They are not on disk: change nothing.
    pub async fn note(&mut self, old: Old) -> Result<Noted, Error> {
        let path = old.path.clone();
        if !self.old.contains_key(&path) {
            self.old.insert(path.clone(), old);
            if let Err(error) = self.write().await {
                self.old.remove(&path);
                return Err(error);
            }
        }
        Ok(Noted { path })
    }

    /// A guest's limits are restored, or the guest is gone.
    ///
    /// # Errors
    /// The file still names it: the next agent restores it once more, which does no harm.
    pub async fn forget(&mut self, path: &str) -> Result<(), Error> {
        match self.old.remove(path) {
            Some(_) => self.write().await,
            None => Ok(()),
        }
    }

    async fn write(&mut self) -> Result<(), Error> {
        self.begun = self.begun.saturating_add(1);
        let contents = Contents { limits: self.old.values().cloned().collect() };
        let (file, done, number) = (self.file.clone(), Arc::clone(&self.done), self.begun);
        let write = tokio::task::spawn_blocking(move || {
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            if number > *done {
                replace(&file, &serde_json::to_vec_pretty(&contents)?)?;
                *done = number;
            }
            Ok(())
        });
        let file = self.file.clone();
        match tokio::time::timeout(DEADLINE, write).await {
            Err(_) => Err(Error::Slow { file }),
            Ok(Err(lost)) => Err(Error::Unwritable { file, error: std::io::Error::other(lost) }),
            Ok(Ok(written)) => written.map_err(|error| Error::Unwritable { file, error }),
        }
    }
}

fn not_understood(aside: &Path, error: &serde_json::Error) -> String {
    format!(
        "the limits of migrations kept by an earlier agent are not understood ({error}) and were put \
         aside as {}: look with `virsh migrate-getspeed GUEST` whether a guest is still slowed down",
        aside.display()
    )
}

fn read(file: &Path) -> std::io::Result<Option<Vec<u8>>> {
    match std::fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        // Too long to be ours: not understood, which an empty text is as well.
        Ok(meta) if meta.len() > LONGEST => Ok(Some(Vec::new())),
        Ok(_) => std::fs::read(file).map(Some),
    }
}

/// Puts new contents in place of the old ones, at once and for good.
fn replace(file: &Path, contents: &[u8]) -> std::io::Result<()> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory)?;
    let fresh = file.with_extension("new");
    let mut out = File::create(&fresh)?;
    out.write_all(contents)?;
    out.sync_all()?;
    std::fs::rename(&fresh, file)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn old(path: &str, speed: u64) -> Old {
        let (path, guest) = (path.to_owned(), "vm1".to_owned());
        Old { path, guest, mib_per_second: speed, downtime_ms: 300 }
    }

    fn open(file: &Path) -> Ledger {
        let (ledger, note) = Ledger::open(file).unwrap();
        assert_eq!(note, None);
        ledger
    }

    #[tokio::test]
    async fn s9_what_is_noted_is_on_disk_before_the_proof_exists() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("deep/limits.json");
        let mut ledger = open(&file);
        let noted = ledger.note(old("/a", 100)).await.unwrap();
        // The agent dies here: nothing else of it is asked.
        assert_eq!(noted.path(), "/a");
        let again = open(&file);
        assert_eq!(again.all().collect::<Vec<_>>(), [&old("/a", 100)]);
    }

    #[tokio::test]
    async fn the_oldest_values_stay() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("limits.json");
        let mut ledger = open(&file);
        let _ = ledger.note(old("/a", 100)).await.unwrap();
        let _ = ledger.note(old("/a", 1)).await.unwrap();
        let _ = ledger.note(old("/b", 7)).await.unwrap();
        ledger.forget("/b").await.unwrap();
        ledger.forget("/never").await.unwrap();
        assert_eq!(open(&file).all().collect::<Vec<_>>(), [&old("/a", 100)]);
    }

    #[tokio::test]
    async fn s12_without_a_disk_there_is_no_proof() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("limits.json");
        let mut ledger = open(&file);
        // A directory in the way of the new file.
        std::fs::create_dir(file.with_extension("new")).unwrap();
        let error = ledger.note(old("/a", 100)).await.unwrap_err();
        assert!(error.to_string().contains("no migration is slowed down"), "{error}");
        assert!(!ledger.has("/a"));
    }

    #[test]
    fn rubbish_is_put_aside_and_told() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("limits.json");
        std::fs::write(&file, "{\"limits\": [{").unwrap();
        let (ledger, note) = Ledger::open(&file).unwrap();
        assert_eq!(ledger.all().count(), 0);
        assert!(note.unwrap().contains("limits.bad"));
        assert!(file.with_extension("bad").exists() && !file.exists());
    }

    proptest! {
        #[test]
        fn no_contents_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("limits.json");
            std::fs::write(&file, bytes).unwrap();
            prop_assert!(Ledger::open(&file).is_ok());
        }
    }
}
