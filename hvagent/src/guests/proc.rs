//! QEMU's processes out of `/proc`: what runs here when libvirt does not say.
//!
//! Only files that the kernel makes from memory are read, and of a process's descriptors only where
//! the links point: nothing opens or looks up a path on a mount. A command line can wait for a
//! process that is stuck in a page fault, so it is read once per process, and all of this belongs
//! into a thread of its own (S10). What cannot be read is missing and never made up (S12).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::core::Now;
use std::time::Duration;

/// How often all processes are looked through; in between only those that are known are looked at.
const SCAN_EVERY: Duration = Duration::from_secs(5);
/// How often the links of a process's descriptors are read again.
const FILES_EVERY: Duration = Duration::from_secs(10);
/// The longest command line that is looked at; a guest with hundreds of disks has less.
const COMMAND_LINE: usize = 1 << 20;

/// What a process has written so far, by `/proc/PID/io`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes handed to a file system that writes them out (`write_bytes`).
    pub bytes: u64,
    /// Calls of write and its kin (`syscw`), to whatever file.
    pub calls: u64,
}

/// A process of QEMU that runs a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// Its number.
    pub pid: u32,
    /// When it was started, in the kernel's ticks since boot: a number used anew is another process.
    pub started: u64,
    /// The guest's name.
    pub guest: String,
    /// The guest's uuid.
    pub uuid: Option<String>,
    /// Files it has open, by their real names.
    pub files: Vec<PathBuf>,
    /// What it has written; `None`: not told.
    pub written: Option<Counters>,
}

#[derive(Debug)]
struct Known {
    qemu: Qemu,
    files_at: Now,
}

/// Looks at the processes again and again, and remembers what does not change.
#[derive(Debug)]
pub struct Census {
    root: PathBuf,
    known: HashMap<u32, Known>,
    scanned: Option<Now>,
}

impl Census {
    /// Of a `/proc`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), known: HashMap::new(), scanned: None }
    }

    /// QEMU's processes now; one that was just started may be missing for five seconds. `None`: `/proc`
    /// cannot be read, nothing is known.
    pub fn look(&mut self, now: Now) -> Option<Vec<Qemu>> {
        let due = self.scanned.is_none_or(|at| now.saturating_sub(at) >= SCAN_EVERY);
        let pids = if due { self.scan()? } else { self.known.keys().copied().collect() };
        let mut known = HashMap::new();
        for pid in pids {
            let directory = self.root.join(pid.to_string());
            let Some(started) = qemu_since(&directory) else { continue };
            let before = self.known.remove(&pid).filter(|known| known.qemu.started == started);
            known.extend(follow(&directory, (pid, started), before, now).map(|k| (pid, k)));
        }
        self.known = known;
        self.scanned = if due { Some(now) } else { self.scanned };
        let mut all: Vec<Qemu> = self.known.values().map(|known| known.qemu.clone()).collect();
        all.sort_by_key(|qemu| qemu.pid);
        Some(all)
    }

    fn scan(&self) -> Option<Vec<u32>> {
        let entries = std::fs::read_dir(&self.root).ok()?.flatten();
        Some(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }
}

fn follow(directory: &Path, id: (u32, u64), before: Option<Known>, now: Now) -> Option<Known> {
    let fresh = || identify(directory, id).map(|qemu| Known { qemu, files_at: now });
    let mut known = before.or_else(fresh)?;
    known.qemu.written = counters(directory);
    if now.saturating_sub(known.files_at) >= FILES_EVERY {
        known.qemu.files = files(directory);
        known.files_at = now;
    }
    Some(known)
}

fn identify(directory: &Path, (pid, started): (u32, u64)) -> Option<Qemu> {
    let line = std::fs::read(directory.join("cmdline")).ok()?;
    let (guest, uuid) = named(line.get(..COMMAND_LINE.min(line.len()))?)?;
    Some(Qemu { pid, started, guest, uuid, files: files(directory), written: None })
}

/// When a process was started, if it looks like QEMU by its name (which waits for nothing).
fn qemu_since(directory: &Path) -> Option<u64> {
    let stat = std::fs::read_to_string(directory.join("stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    if !name.starts_with("qemu") {
        return None;
    }
    // The 22nd field; the third is the first after the name.
    tail.split_whitespace().nth(19)?.parse().ok()
}

/// The guest's name and uuid from QEMU's arguments.
fn named(line: &[u8]) -> Option<(String, Option<String>)> {
    let words: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
    let after = |option: &str| {
        let at = words.iter().position(|word| word == option)?;
        words.get(at + 1).map(|word| word.to_string())
    };
    Some((guest_name(&after("-name")?)?, after("-uuid")))
}

/// `guest=NAME,debug-threads=on` or just `NAME`; a comma of the name is doubled.
fn guest_name(value: &str) -> Option<String> {
    let escaped = value.replace(",,", "\u{0}");
    let mut parts = escaped.split(',');
    let first = parts.clone().next()?;
    let given = parts.find_map(|part| part.strip_prefix("guest="));
    let name = given.or(if first.contains('=') { None } else { Some(first) })?;
    (!name.is_empty()).then(|| name.replace('\u{0}', ","))
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory.join("fd")) else { return Vec::new() };
    let links = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let mut files: Vec<PathBuf> =
        links.filter(|link| link.is_absolute() && !link.starts_with("/dev")).collect();
    files.sort();
    files.dedup();
    files
}

fn counters(directory: &Path) -> Option<Counters> {
    let text = std::fs::read_to_string(directory.join("io")).ok()?;
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    Some(Counters { bytes: number("write_bytes:")?, calls: number("syscw:")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn process(root: &Path, pid: u32, comm: &str, line: &[u8], io: &str) {
        let directory = root.join(pid.to_string());
        std::fs::create_dir_all(directory.join("fd")).unwrap();
        let fields = (3..22).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        std::fs::write(directory.join("stat"), format!("{pid} ({comm}) {fields} 777 1 2\n"))
            .unwrap();
        std::fs::write(directory.join("cmdline"), line).unwrap();
        std::fs::write(directory.join("io"), io).unwrap();
        let _ = std::os::unix::fs::symlink("/vms/a.raw", directory.join("fd/9"));
        let _ = std::os::unix::fs::symlink("socket:[1]", directory.join("fd/10"));
    }

    const IO: &str = "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 40\nread_bytes: 5\nwrite_bytes: 4096\n\
                      cancelled_write_bytes: 0\n";

    #[test]
    fn guests_are_found_without_libvirt() {
        let root = tempfile::tempdir().unwrap();
        let line = b"/usr/bin/qemu-system-x86_64\0-name\0guest=vm1,debug-threads=on\0-uuid\0u-1\0";
        process(root.path(), 7, "qemu-system-x86", line, IO);
        process(root.path(), 8, "bash", b"bash\0-name\0guest=no\0", IO);
        std::fs::create_dir(root.path().join("sys")).unwrap();
        let all = Census::new(root.path()).look(Now::ZERO).unwrap();
        assert_eq!(
            all,
            [Qemu {
                pid: 7,
                started: 777,
                guest: "vm1".to_owned(),
                uuid: Some("u-1".to_owned()),
                files: vec!["/vms/a.raw".into()],
                written: Some(Counters { bytes: 4096, calls: 40 }),
            }]
        );
    }

    #[test]
    fn s12_counters_that_cannot_be_read_are_missing_and_no_proc_is_unknown() {
        let root = tempfile::tempdir().unwrap();
        process(root.path(), 7, "qemu-kvm", b"qemu\0-name\0vm1\0", "rubbish");
        assert_eq!(Census::new(root.path()).look(Now::ZERO).unwrap()[0].written, None);
        assert_eq!(Census::new(root.path().join("none")).look(Now::ZERO), None);
    }

    #[test]
    fn a_process_that_ends_is_forgotten_and_counters_are_read_anew() {
        let root = tempfile::tempdir().unwrap();
        process(root.path(), 7, "qemu-kvm", b"qemu\0-name\0vm1\0", IO);
        let mut census = Census::new(root.path());
        assert_eq!(census.look(Now::ZERO).unwrap().len(), 1);
        std::fs::write(root.path().join("7/io"), IO.replace("4096", "8192")).unwrap();
        let again = census.look(Now::from_secs(1)).unwrap();
        assert_eq!(again[0].written.unwrap().bytes, 8192);
        std::fs::remove_dir_all(root.path().join("7")).unwrap();
        process(root.path(), 9, "qemu-kvm", b"qemu\0-name\0vm9\0", IO);
        assert!(census.look(Now::from_secs(2)).unwrap().is_empty());
        assert_eq!(census.look(Now::from_secs(5)).unwrap()[0].guest, "vm9");
    }

    #[test]
    fn names_with_commas_and_of_old_qemus() {
        assert_eq!(guest_name("guest=a,,b,debug-threads=on").as_deref(), Some("a,b"));
        assert_eq!(guest_name("debug-threads=on,guest=x").as_deref(), Some("x"));
        assert_eq!(guest_name("plain").as_deref(), Some("plain"));
        assert_eq!(guest_name("debug-threads=on"), None);
        assert_eq!(guest_name("guest="), None);
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        assert!(Census::new("/proc").look(Now::ZERO).is_some());
    }

    proptest! {
        #[test]
        fn no_command_line_panics(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = named(&line);
        }
    }
}
