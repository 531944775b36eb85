//! One JSON file with all records: for a demonstration and for tests on one machine. flock orders the
//! writers; write, fsync, rename, fsync of the folder make each change whole.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{CasOutcome, Coordinator, CoordinatorError, Versioned};
use crate::core::record::Record;

/// How often a watcher looks.
const LOOK: Duration = Duration::from_millis(200);

/// A file.
pub struct FileStore {
    path: PathBuf,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    revision: i64,
    services: BTreeMap<String, Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    revision: i64,
    record: Record,
}

impl FileStore {
    /// A store at a path; the file is made by the first write.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn load(path: &Path) -> Result<Content, CoordinatorError> {
        match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| CoordinatorError::Corrupt {
                key: path.display().to_string(),
                reason: e.to_string(),
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Content::default()),
            Err(e) => Err(refused(path, &e)),
        }
    }

    fn change(
        path: &Path,
        service: &str,
        expected: Option<i64>,
        record: &Record,
    ) -> Result<CasOutcome, CoordinatorError> {
        let _lock = lock(path).map_err(|e| refused(path, &e))?;
        let mut content = Self::load(path)?;
        let now = content.services.remove(service);
        if now.as_ref().map(|e| e.revision) != expected {
            let now = now.map(|e| Versioned { record: e.record, revision: e.revision });
            return Ok(CasOutcome::Lost { now });
        }
        content.revision += 1;
        let revision = content.revision;
        content.services.insert(service.to_owned(), Entry { revision, record: record.clone() });
        store(path, &content)
            .map_err(|e| CoordinatorError::OutcomeUnknown { reason: e.to_string() })?;
        Ok(CasOutcome::Won { revision })
    }
}

fn refused(path: &Path, error: &io::Error) -> CoordinatorError {
    CoordinatorError::Refused { reason: format!("{}: {error}", path.display()) }
}

fn lock(path: &Path) -> io::Result<Flock<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.with_extension("lock"))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

fn store(path: &Path, content: &Content) -> io::Result<()> {
    write_durably(path, &serde_json::to_vec_pretty(content)?)
}

/// Replaces a file so that after a power cut either the old or the new content is there.
///
/// # Errors
/// The system's answer; the old content is then still there.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[tonic::async_trait]
impl Coordinator for FileStore {
    async fn read(&self, service: &str) -> Result<Option<Versioned>, CoordinatorError> {
        let mut content = Self::load(&self.path)?;
        let entry = content.services.remove(service);
        Ok(entry.map(|e| Versioned { record: e.record, revision: e.revision }))
    }

    async fn create(&self, service: &str, record: &Record) -> Result<CasOutcome, CoordinatorError> {
        Self::change(&self.path, service, None, record)
    }

    async fn compare_and_set(
        &self,
        service: &str,
        revision: i64,
        record: &Record,
    ) -> Result<CasOutcome, CoordinatorError> {
        Self::change(&self.path, service, Some(revision), record)
    }

    fn watch(&self, service: &str) -> BoxStream<'static, ()> {
        let (path, service) = (self.path.clone(), service.to_owned());
        let start = (path, service, 0_i64);
        stream::unfold(start, |(path, service, last)| async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let content = Self::load(&path).unwrap_or_default();
                let now = content.services.get(&service).map_or(0, |e| e.revision);
                if now != last {
                    return Some(((), (path, service, now)));
                }
            }
        })
        .boxed()
    }

    /// One machine: there is no other node that could be looked for here.
    async fn seek(&self, _node: &str, _limit: Duration) -> Result<bool, CoordinatorError> {
        Ok(false)
    }

    fn reach(&self) -> Option<bool> {
        Some(self.path.parent().is_some_and(Path::is_dir))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::core::record::NodeName;

    fn record() -> Record {
        let both = BTreeSet::from([NodeName::from("a"), NodeName::from("b")]);
        Record::first(both, BTreeMap::new())
    }

    #[tokio::test]
    async fn the_first_writer_wins_and_the_second_sees_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::new(dir.path().join("records.json"));
        assert_eq!(store.read("vms").await.unwrap(), None);
        let CasOutcome::Won { revision } = store.create("vms", &record()).await.unwrap() else {
            panic!("an empty store takes the first record");
        };
        assert!(matches!(store.create("vms", &record()).await.unwrap(), CasOutcome::Lost { .. }));
        let next = record().start(&NodeName::from("a")).unwrap();
        let won = store.compare_and_set("vms", revision, &next).await.unwrap();
        assert!(matches!(won, CasOutcome::Won { revision: r } if r > revision));
        match store.compare_and_set("vms", revision, &record()).await.unwrap() {
            CasOutcome::Lost { now: Some(now) } => assert_eq!(now.record, next),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn s12_a_damaged_file_is_no_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("records.json");
        fs::write(&path, "{\"revision\": 1, \"services\": {\"vms\": {}}}").unwrap();
        let store = FileStore::new(path);
        assert!(matches!(store.read("vms").await, Err(CoordinatorError::Corrupt { .. })));
        let denied = store.create("vms", &record()).await;
        assert!(matches!(denied, Err(CoordinatorError::Corrupt { .. })));
    }
}
