//! The last record that this node saw, on its own disk: a coordinator that shows less than that was
//! lost, restored or replaced, and its answer is a no (S12).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::Versioned;
use super::file::write_durably;
use crate::core::record::Record;

/// One service's memory.
pub struct LastSeen {
    path: PathBuf,
    cached: Arc<Mutex<Option<Saved>>>,
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    crc32: u32,
    record: Record,
}

fn checksum(record: &Record) -> u32 {
    crc32fast::hash(serde_json::to_string(record).unwrap_or_default().as_bytes())
}

impl LastSeen {
    /// The memory of a service below nasd's state directory.
    #[must_use]
    pub fn at(state_dir: &Path, service: &str) -> Self {
        let path = state_dir.join(format!("{service}.record.json"));
        Self { path, cached: Arc::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Compares what the coordinator shows with what was seen, and keeps it when it is newer. One at
    /// a time, on a thread that may wait for the disk.
    ///
    /// # Errors
    /// Why the coordinator's answer must not be believed, for the operator.
    pub async fn judge_and_store(&self, read: Option<&Versioned>) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let (path, cached) = (self.path.clone(), Arc::clone(&self.cached));
        let read = read.map(|v| v.record.clone());
        let job = tokio::task::spawn_blocking(move || judge_and_store(&path, &cached, read));
        job.await.map_err(|e| e.to_string())?
    }
}

fn load(path: &Path, cached: &Mutex<Option<Saved>>) -> Result<Option<Saved>, String> {
    if let Some(saved) = lock(cached).clone() {
        return Ok(Some(saved));
    }
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("cannot read {}: {e}", path.display())),
    };
    let saved: Saved =
        serde_json::from_slice(&text).map_err(|e| format!("{} is damaged: {e}", path.display()))?;
    if saved.crc32 != checksum(&saved.record) {
        return Err(format!("{} is damaged: wrong checksum", path.display()));
    }
    Ok(Some(saved))
}

fn judge_and_store(
    path: &Path,
    cached: &Mutex<Option<Saved>>,
    read: Option<Record>,
) -> Result<(), String> {
    let seen = load(path, cached)?;
    judge(seen.as_ref().map(|s| &s.record), read.as_ref())?;
    let Some(record) = read else { return Ok(()) };
    if seen.is_some_and(|s| s.record == record) {
        return Ok(());
    }
    let saved = Saved { crc32: checksum(&record), record };
    let text = serde_json::to_vec(&saved).map_err(|e| e.to_string())?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
    }
    write_durably(path, &text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    *lock(cached) = Some(saved);
    Ok(())
}

fn lock(cached: &Mutex<Option<Saved>>) -> std::sync::MutexGuard<'_, Option<Saved>> {
    cached.lock().unwrap_or_else(PoisonError::into_inner)
}

fn judge(seen: Option<&Record>, read: Option<&Record>) -> Result<(), String> {
    let remedy = "if it was restored from a backup or replaced, that is no record of this service; nothing is decided from it";
    match (seen, read) {
        (Some(seen), None) => Err(format!(
            "the coordinator has no record, but this node has seen epoch {}: {remedy}",
            seen.epoch
        )),
        (Some(seen), Some(read))
            if (read.epoch, read.generation) < (seen.epoch, 0)
                || read.generation < seen.generation =>
        {
            Err(format!(
                "the coordinator shows epoch {} generation {}, this node has seen {} and {}: {remedy}",
                read.epoch, read.generation, seen.epoch, seen.generation
            ))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::core::record::NodeName;

    fn at(epoch: u64, generation: u64) -> Versioned {
        let both = BTreeSet::from([NodeName::from("a")]);
        let mut record = Record::first(both, BTreeMap::new());
        (record.epoch, record.generation) = (epoch, generation);
        Versioned { record, revision: 1 }
    }

    #[tokio::test]
    async fn s12_a_lost_or_older_record_is_a_no_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let memory = LastSeen::at(dir.path(), "vms");
        assert!(memory.judge_and_store(None).await.is_ok(), "never seen anything");
        memory.judge_and_store(Some(&at(3, 5))).await.unwrap();
        let memory = LastSeen::at(dir.path(), "vms");
        assert!(memory.judge_and_store(None).await.is_err());
        assert!(memory.judge_and_store(Some(&at(2, 5))).await.is_err());
        assert!(memory.judge_and_store(Some(&at(3, 4))).await.is_err());
        assert!(memory.judge_and_store(Some(&at(4, 5))).await.is_ok());
    }

    #[tokio::test]
    async fn s12_a_damaged_memory_is_told_not_ignored() {
        let dir = tempfile::tempdir().unwrap();
        LastSeen::at(dir.path(), "vms").judge_and_store(Some(&at(3, 5))).await.unwrap();
        let path = dir.path().join("vms.record.json");
        let text = fs::read_to_string(&path).unwrap().replace("\"epoch\":3", "\"epoch\":1");
        fs::write(&path, text).unwrap();
        let error = LastSeen::at(dir.path(), "vms").judge_and_store(Some(&at(1, 5))).await;
        assert!(error.unwrap_err().contains("checksum"));
    }
}
