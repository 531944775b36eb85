//! What happened to a service, for people who ask later: one JSON line per event, on this node's disk.
//!
//! Owns the file and its format. Writing never holds anybody up (S10): a thread of its own appends and
//! syncs, and events that it cannot keep up with are dropped and counted. A line that a power cut tore
//! is skipped when read, and said to be (S12). Decides nothing and is no evidence for anything.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The file is put aside when it has grown to this size; one older file is kept. A line has 200 to
/// 300 bytes, so between 3500 and
/// 10,000 events are kept.
const ROTATE_AT: u64 = 1 << 20;
/// Events that may wait for the disk; more than an eventful minute has.
const WAITING: usize = 1024;
/// What an entry of [`Past`] that stands for unreadable lines is called.
pub const DAMAGED: &str = "damaged-lines";

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in milliseconds of Unix time by this node's clock.
    pub unix_ms: u64,
    /// Who did it: an operator, or the node that decided by itself.
    pub who: String,
    /// What, as a verb with dashes: `takeover`, `switchover`, `hold`, `recover`, …
    pub what: String,
    /// Epoch of the record by then; 0: none was known.
    pub epoch: u64,
    /// How it ended: `done`, `refused`, `failed`, `unknown`, …
    pub result: String,
    /// Why, or what else is worth knowing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

impl Entry {
    /// An event of this moment.
    #[must_use]
    pub fn now(who: &str, what: &str, epoch: u64, result: &str, detail: &str) -> Self {
        Self {
            unix_ms: unix_ms(),
            who: who.to_owned(),
            what: what.to_owned(),
            epoch,
            result: result.to_owned(),
            detail: detail.to_owned(),
        }
    }
}

/// Unix time in milliseconds.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// An event with its place, as it is told to others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The node that wrote it down.
    pub node: String,
    /// The service that it is about.
    pub service: String,
    /// The event.
    #[serde(flatten)]
    pub entry: Entry,
}

/// The events of several nodes and services in one order, by their clocks; the newest `limit` of them
/// (0: all), oldest first.
#[must_use]
pub fn merge(mut told: Vec<Told>, limit: usize) -> Vec<Told> {
    // Stable: what one node wrote within a millisecond stays in its order.
    told.sort_by_key(|t| t.entry.unix_ms);
    let surplus = if limit == 0 { 0 } else { told.len().saturating_sub(limit) };
    told.drain(..surplus);
    told
}

enum Job {
    Note(Entry),
    Flush(mpsc::Sender<()>),
}

/// One service's history on this node; cheap to clone. The thread ends with the last clone.
#[derive(Debug, Clone)]
pub struct History {
    path: PathBuf,
    jobs: mpsc::SyncSender<Job>,
    dropped: Arc<AtomicU64>,
}

impl History {
    /// The history of a service below nasd's state directory. What cannot be written is logged: a
    /// service does not depend on its history.
    #[must_use]
    pub fn open(state_dir: &Path, service: &str) -> Self {
        let path = state_dir.join(format!("{service}.history.jsonl"));
        let (jobs, inbox) = mpsc::sync_channel(WAITING);
        let writer = Writer { path: path.clone(), rotate_at: ROTATE_AT };
        let spawned = std::thread::Builder::new()
            .name("nasd-history".into())
            .spawn(move || writer.run(&inbox));
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for the history; nothing is kept");
        }
        Self { path, jobs, dropped: Arc::default() }
    }

    /// Writes an event down, soon. Never waits.
    pub fn note(&self, entry: Entry) {
        if self.jobs.try_send(Job::Note(entry)).is_err() {
            let lost = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            tracing::warn!(lost, "the history's disk is too slow or gone; an event is not kept");
        }
    }

    /// Waits until everything noted before is on the disk, at most so long; whether it is.
    #[must_use]
    pub fn flush(&self, limit: Duration) -> bool {
        let (done, wait) = mpsc::channel();
        self.jobs.try_send(Job::Flush(done)).is_ok() && wait.recv_timeout(limit).is_ok()
    }

    /// The newest `limit` events (0: all that are kept), oldest first. Reads files: call it where
    /// that may wait.
    ///
    /// # Errors
    /// When a file is there and cannot be read.
    pub fn read(&self, limit: usize) -> io::Result<Vec<Entry>> {
        let mut entries = parse(&contents(&older(&self.path))?, &older(&self.path));
        entries.extend(parse(&contents(&self.path)?, &self.path));
        let surplus = if limit == 0 { 0 } else { entries.len().saturating_sub(limit) };
        entries.drain(..surplus);
        Ok(entries)
    }
}

fn older(path: &Path) -> PathBuf {
    path.with_extension("jsonl.1")
}

fn contents(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

/// Every readable line; a run of unreadable ones becomes one entry that says so, at its place in time.
fn parse(text: &[u8], path: &Path) -> Vec<Entry> {
    let (mut entries, mut damaged) = (Vec::<Entry>::new(), 0_usize);
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    for line in text.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
        match serde_json::from_slice::<Entry>(line) {
            Ok(entry) => {
                note_damage(&mut entries, &mut damaged, &name, entry.unix_ms);
                entries.push(entry);
            }
            Err(_) => damaged += 1,
        }
    }
    let last = entries.last().map_or(0, |e| e.unix_ms);
    note_damage(&mut entries, &mut damaged, &name, last);
    entries
}

fn note_damage(entries: &mut Vec<Entry>, damaged: &mut usize, name: &str, unix_ms: u64) {
    if *damaged > 0 {
        let detail = format!("{damaged} unreadable lines of {name} are left out");
        let (what, result) = (DAMAGED.to_owned(), "skipped".to_owned());
        entries.push(Entry { unix_ms, what, result, detail, ..Entry::default() });
        *damaged = 0;
    }
}

/// The thread's side.
struct Writer {
    path: PathBuf,
    rotate_at: u64,
}

impl Writer {
    fn run(&self, inbox: &mpsc::Receiver<Job>) {
        let mut file = None;
        while let Ok(job) = inbox.recv() {
            match job {
                Job::Note(entry) => {
                    if let Err(error) = self.append(&mut file, &entry) {
                        file = None;
                        let path = self.path.display();
                        tracing::error!(%error, %path, ?entry, "the history cannot be written");
                    }
                }
                // Who asked may have given up.
                Job::Flush(done) => drop(done.send(())),
            }
        }
    }

    fn append(&self, slot: &mut Option<File>, entry: &Entry) -> io::Result<()> {
        let mut file = match slot.take() {
            Some(file) => file,
            None => self.open()?,
        };
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        file.write_all(&line)?;
        file.sync_data()?;
        if file.metadata()?.len() < self.rotate_at {
            *slot = Some(file);
            return Ok(());
        }
        fs::rename(&self.path, older(&self.path))?;
        self.sync_dir()
    }

    /// For appending; a line that a crash left without its end is ended first.
    fn open(&self) -> io::Result<File> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        let new = !self.path.exists();
        let mut file = OpenOptions::new().create(true).append(true).read(true).open(&self.path)?;
        if new {
            self.sync_dir()?;
        }
        if file.metadata()?.len() > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        Ok(file)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unix_ms: u64, what: &str) -> Entry {
        Entry { unix_ms, what: what.into(), ..Entry::default() }
    }

    fn told(node: &str, unix_ms: u64, what: &str) -> Told {
        Told { node: node.into(), service: "vms".into(), entry: at(unix_ms, what) }
    }

    fn whats(entries: &[Entry]) -> Vec<&str> {
        entries.iter().map(|e| e.what.as_str()).collect()
    }

    #[test]
    fn events_survive_a_restart_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let history = History::open(&state, "vms");
        assert_eq!(history.read(0).unwrap(), [], "nothing has happened yet");
        history.note(Entry::now("root", "hold", 4, "done", "maintenance"));
        assert!(history.flush(Duration::from_secs(5)));
        drop(history);
        let history = History::open(&state, "vms");
        history.note(at(7, "takeover"));
        assert!(history.flush(Duration::from_secs(5)));
        let all = history.read(0).unwrap();
        assert_eq!(whats(&all), ["hold", "takeover"]);
        assert_eq!((all[0].who.as_str(), all[0].epoch), ("root", 4));
        assert_eq!(whats(&history.read(1).unwrap()), ["takeover"]);
        assert_eq!(History::open(&state, "other").read(0).unwrap(), []);
    }

    #[test]
    fn s9_a_torn_line_costs_itself_only_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vms.history.jsonl");
        let good = serde_json::to_string(&at(5, "first")).unwrap();
        fs::write(&path, format!("{good}\nnot json\n\u{0}\u{0}\n{{\"unix_ms\":9,\"wh")).unwrap();
        let history = History::open(dir.path(), "vms");
        history.note(at(11, "after"));
        assert!(history.flush(Duration::from_secs(5)));
        let all = history.read(0).unwrap();
        assert_eq!(whats(&all), ["first", DAMAGED, "after"]);
        assert_eq!(all[1].unix_ms, 11);
        assert_eq!(all[1].detail, "3 unreadable lines of vms.history.jsonl are left out");
    }

    #[test]
    fn a_file_that_grew_is_put_aside_and_still_read() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(dir.path(), "vms");
        let writer = Writer { path: history.path.clone(), rotate_at: 300 };
        let mut file = None;
        for n in 0..20 {
            writer.append(&mut file, &at(n, &format!("e{n}"))).unwrap();
        }
        assert!(older(&history.path).exists());
        assert!(fs::metadata(older(&history.path)).unwrap().len() < 400);
        let kept = history.read(0).unwrap();
        assert!((5..15).contains(&kept.len()), "{kept:?}");
        assert_eq!(kept.last().unwrap().what, "e19");
        assert!(kept.windows(2).all(|w| w[0].unix_ms + 1 == w[1].unix_ms), "{kept:?}");
    }

    #[test]
    fn nodes_are_merged_by_time_and_the_newest_kept() {
        let all = vec![
            told("nas1", 10, "a"),
            told("nas1", 30, "c"),
            told("nas1", 30, "d"),
            told("nas2", 20, "b"),
            told("nas2", 40, "e"),
        ];
        let order = |t: &[Told]| t.iter().map(|t| t.entry.what.clone()).collect::<String>();
        assert_eq!(order(&merge(all.clone(), 0)), "abcde");
        assert_eq!(order(&merge(all, 2)), "de");
    }

    #[test]
    fn a_line_for_others_is_flat() {
        let line = serde_json::to_string(&told("nas1", 10, "hold")).unwrap();
        let expected = r#"{"node":"nas1","service":"vms","unix_ms":10,"who":"","what":"hold","epoch":0,"result":""}"#;
        assert_eq!(line, expected);
        assert_eq!(serde_json::from_str::<Told>(&line).unwrap(), told("nas1", 10, "hold"));
    }
}
