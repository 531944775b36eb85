//! Stopping this node at once: sysrq `b`.
//!
//! For an owner whose record has moved on while its I/O is frozen (design section 6). Nothing here
//! waits for a disk, a lock of another part of nasd, or the runtime: a file system may hang, and what
//! syncs or unmounts (a reboot, sysrq `s` or `u`) would hang with it. The watchdog stands behind it.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::{failpoint, watchdog};

/// The kernel's own reset.
const TRIGGER: &str = "/proc/sysrq-trigger";
/// Where the reason stands beside DRBD's messages, and survives in a console's or pstore's log.
const KMSG: &str = "/dev/kmsg";
/// How long the journal is waited for: its socket may be full.
const JOURNAL: Duration = Duration::from_millis(100);
/// Pause before the kernel is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Stops this node: does not return where the kernel lets us. Where it does not, the watchdog is not
/// petted any more, and the kernel is asked again and again from a thread of its own. Nothing comes
/// before the reset that can wait.
pub fn now(reason: &str) {
    failpoint::hit("self-fence");
    watchdog::let_it_bite();
    announce(reason, Path::new(KMSG));
    let refused = pull(Path::new(TRIGGER));
    let again = std::thread::Builder::new().name("self-fence".into()).spawn(|| {
        loop {
            std::thread::sleep(AGAIN);
            // Refused before, so most likely again; the watchdog is what is left.
            let _ = pull(Path::new(TRIGGER));
        }
    });
    tracing::error!(?refused, tried_again = again.is_ok(), "this node could not be stopped");
}

/// The kernel's log first: it never waits for a disk. The journal's socket may be full, so it gets a
/// moment and a thread that may be left behind.
fn announce(reason: &str, kmsg: &Path) {
    let line = format!("nasd: stopping this node at once: {}", reason.replace('\n', " "));
    if let Ok(mut log) = OpenOptions::new().append(true).open(kmsg) {
        // <24>: facility daemon, level emergency.
        let _ = log.write_all(format!("<24>{line}\n").as_bytes());
    }
    let (told, telling) = mpsc::channel();
    let journal = std::thread::Builder::new().name("last-words".into()).spawn(move || {
        tracing::error!("{line}");
        let _ = told.send(());
    });
    if journal.is_ok() {
        let _ = telling.recv_timeout(JOURNAL);
    }
}

/// One write of `b`; through this file the setting `kernel.sysrq` does not matter.
fn pull(trigger: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(trigger)?.write_all(b"b")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trigger_gets_one_letter_and_the_log_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let (trigger, kmsg) = (dir.path().join("trigger"), dir.path().join("kmsg"));
        std::fs::write(&trigger, "").unwrap();
        std::fs::write(&kmsg, "").unwrap();
        pull(&trigger).unwrap();
        announce("the record is\nnas2's", &kmsg);
        assert_eq!(std::fs::read(&trigger).unwrap(), b"b");
        let log = std::fs::read_to_string(&kmsg).unwrap();
        assert_eq!(log, "<24>nasd: stopping this node at once: the record is nas2's\n");
    }

    #[test]
    fn what_is_missing_is_an_error_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        assert!(pull(&dir.path().join("trigger")).is_err());
        assert!(!dir.path().join("trigger").exists(), "nothing is made in its place");
        announce("no log", &dir.path().join("kmsg"));
    }
}
