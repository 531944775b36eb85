//! The last record that this node saw, on its own disk: a coordinator that shows less than that was
//! lost, restored or replaced, and its answer is a no (S12). Beside it, as long as it lasts, the word of
//! an operator who had the service started from that record without the coordinator: it must survive a
//! restart (S9), because data has been written on it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

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
    /// Unix time, seconds, when the current set was seen to have changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current_since: Option<u64>,
}

/// What this node remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// The last record seen.
    pub record: Record,
    /// Unix time, seconds, by this node's clock, since when the record has had this current set, as
    /// far as this node saw it.
    pub current_since: Option<u64>,
}

/// An operator's emergency start that the coordinator has not confirmed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmergencyNote {
    /// The record from which it was started.
    pub base: Record,
    /// Who typed it.
    pub by: String,
}

fn unix_s() -> Option<u64> {
    SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|d| d.as_secs())
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

    /// What was seen last; `None`: nothing yet.
    ///
    /// # Errors
    /// Why the memory cannot be used, for the operator.
    pub async fn last(&self) -> Result<Option<Memory>, String> {
        let _turn = self.turn.lock().await;
        let (path, cached) = (self.path.clone(), Arc::clone(&self.cached));
        let job = tokio::task::spawn_blocking(move || load(&path, &cached));
        let saved = job.await.map_err(|e| e.to_string())??;
        Ok(saved.map(|s| Memory { record: s.record, current_since: s.current_since }))
    }

    fn note_path(&self) -> PathBuf {
        self.path.with_extension("").with_extension("emergency.json")
    }

    /// Keeps an operator's emergency start, durably: before anything is done by it.
    ///
    /// # Errors
    /// Why it could not be kept.
    pub async fn begin_emergency(&self, note: &EmergencyNote) -> Result<(), String> {
        let _turn = self.turn.lock().await;
        let (path, text) = (self.note_path(), serde_json::to_vec(note));
        let text = text.map_err(|e| e.to_string())?;
        let job = tokio::task::spawn_blocking(move || {
            write_durably(&path, &text).map_err(|e| format!("cannot write {}: {e}", path.display()))
        });
        job.await.map_err(|e| e.to_string())?
    }

    /// The emergency start that goes on. One that was followed by a younger record is over.
    ///
    /// # Errors
    /// Why it cannot be told.
    pub async fn emergency(&self) -> Result<Option<EmergencyNote>, String> {
        let last = self.last().await?;
        let _turn = self.turn.lock().await;
        let path = self.note_path();
        let text = match tokio::fs::read(&path).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| format!("cannot read {}: {e}", path.display()))?,
        };
        let note: EmergencyNote = serde_json::from_slice(&text)
            .map_err(|e| format!("{} is damaged: {e}", path.display()))?;
        Ok(Some(note).filter(|n| last.is_none_or(|l| l.record.epoch <= n.base.epoch)))
    }

    /// It is over. What cannot be removed is told, and ends with the next younger record.
    pub async fn end_emergency(&self) {
        let _turn = self.turn.lock().await;
        let path = self.note_path();
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(%error, path = %path.display(), "the emergency start's note stays; remove it by hand");
            }
            _ => {}
        }
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
    if seen.as_ref().is_some_and(|s| s.record == record) {
        return Ok(());
    }
    let current_since = match &seen {
        Some(s) if s.record.current == record.current => s.current_since,
        Some(_) => unix_s(),
        None => None, // who was current before this node looked is not known
    };
    let saved = Saved { crc32: checksum(&record), record, current_since };
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
    async fn what_was_seen_last_is_told_with_the_age_of_its_current_set() {
        let dir = tempfile::tempdir().unwrap();
        let memory = LastSeen::at(dir.path(), "vms");
        assert_eq!(memory.last().await, Ok(None));
        memory.judge_and_store(Some(&at(3, 5))).await.unwrap();
        let first = Memory { record: at(3, 5).record, current_since: None };
        assert_eq!(memory.last().await, Ok(Some(first)));
        let mut sole = at(3, 6);
        sole.record.current = BTreeSet::from([NodeName::from("b")]);
        memory.judge_and_store(Some(&sole)).await.unwrap();
        let since = memory.last().await.unwrap().unwrap().current_since;
        assert!(since.is_some());
        sole.record.generation = 7;
        memory.judge_and_store(Some(&sole)).await.unwrap();
        let again = LastSeen::at(dir.path(), "vms").last().await.unwrap().unwrap();
        assert_eq!((again.record, again.current_since), (sole.record, since));
    }

    #[tokio::test]
    async fn s9_an_emergency_start_is_remembered_until_a_younger_record() {
        let dir = tempfile::tempdir().unwrap();
        let memory = LastSeen::at(dir.path(), "vms");
        memory.judge_and_store(Some(&at(3, 5))).await.unwrap();
        assert_eq!(memory.emergency().await, Ok(None));
        let note = EmergencyNote { base: at(3, 5).record, by: "alice".into() };
        memory.begin_emergency(&note).await.unwrap();
        let memory = LastSeen::at(dir.path(), "vms");
        assert_eq!(memory.emergency().await, Ok(Some(note.clone())));
        memory.judge_and_store(Some(&at(3, 5))).await.unwrap();
        assert_eq!(memory.emergency().await, Ok(Some(note.clone())), "the same record");
        memory.judge_and_store(Some(&at(4, 6))).await.unwrap();
        assert_eq!(memory.emergency().await, Ok(None), "over");
        memory.begin_emergency(&note).await.unwrap();
        memory.end_emergency().await;
        memory.end_emergency().await;
        assert!(!dir.path().join("vms.emergency.json").exists());
        std::fs::write(dir.path().join("vms.emergency.json"), "{").unwrap();
        assert!(memory.emergency().await.unwrap_err().contains("damaged"));
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
