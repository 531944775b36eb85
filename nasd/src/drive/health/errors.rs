//! A file system's errors in the moment in which they happen, and the gate that is shut at once.
//!
//! Between an error of ext4 and the next look at its state a busy server tells EROFS or EIO to guests for
//! a second; they fail, where a server that is silent only makes them wait. The kernel tells the error
//! itself (fanotify, `FAN_FS_ERROR`), before the file system turns read-only. What a server wrote into its
//! connections after that dies with them behind the gate.
//!
//! Nothing here touches the volume: a mark is set on a mounted root, which no disk is asked for (S10).

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{io, thread};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::libc::FAN_REPORT_FID;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};

use crate::core::machine::Event;
use crate::drive::hands::{Hands, lock};
use crate::drive::task::Command;

/// A file system that met an error so lately was mounted anew because of it. It is damaged on the disk:
/// mounting it over and over would stop every guest for the sake of one.
pub const RECENT: Duration = Duration::from_secs(600);

/// Until the listener looks whether it is still wanted, ms.
const LOOK: u16 = 500;

/// Tells of errors of one file system.
#[derive(Debug)]
pub struct Errors(Fanotify);

impl Errors {
    /// Of the file system that is mounted there.
    ///
    /// # Errors
    /// Before Linux 5.16, without `CAP_SYS_ADMIN`, or when nothing is mounted there.
    pub fn of(target: &Path) -> io::Result<Self> {
        let flags = InitFlags::FAN_CLASS_NOTIF
            | InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK
            | InitFlags::from_bits_retain(FAN_REPORT_FID);
        let group = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC)?;
        let mark = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
        group.mark(mark, MaskFlags::FAN_FS_ERROR, AT_FDCWD, Some(target))?;
        Ok(Self(group))
    }

    /// Waits for an error, at most so long; true: one has happened.
    ///
    /// # Errors
    /// When the kernel does not let the events be read.
    pub fn wait(&self, limit_ms: u16) -> io::Result<bool> {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, limit_ms) {
            Ok(0) | Err(Errno::EINTR) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        match self.0.read_events() {
            Ok(events) => Ok(events.iter().any(|e| e.mask().contains(MaskFlags::FAN_FS_ERROR))),
            Err(Errno::EAGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Listens on a thread of its own, which no task of nasd can hold up, until an error or until dropped.
#[derive(Debug)]
pub struct Listener(Arc<AtomicBool>);

impl Listener {
    /// `heard` runs on the thread, once, after an error.
    ///
    /// # Errors
    /// As [`Errors::of`], and when no thread can be made.
    pub fn start(target: &Path, heard: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let errors = Errors::of(target)?;
        let wanted = Arc::new(AtomicBool::new(true));
        let still = Arc::clone(&wanted);
        let listen = move || {
            while still.load(Ordering::Relaxed) {
                match errors.wait(LOOK) {
                    Ok(false) => {}
                    Ok(true) => return heard(),
                    Err(error) => return tracing::warn!(%error, "errors are not heard any more"),
                }
            }
        };
        thread::Builder::new().name("fs-errors".into()).spawn(listen)?;
        Ok(Self(wanted))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Whether an error at that time (seconds since 1970; 0: never) forbids to shut the gate for the next one.
#[must_use]
pub fn is_recent(last_error: Option<u64>, wall: SystemTime) -> bool {
    let now = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    last_error.is_some_and(|at| at > 0 && now < Duration::from_secs(at).saturating_add(RECENT))
}

/// Shuts the gate, and returns what the core must be told: what is mounted must not be opened again. The
/// gate stays shut until the file systems have been unmounted, whoever asks.
#[must_use]
pub fn spoil(hands: &Hands, why: String) -> Command {
    if let Err(error) = lock(&hands.keeper).spoil() {
        tracing::error!(%error, "the gate could not be shut; clients may hear of the error");
    }
    tracing::error!(service = hands.service.name, why, "shut: it must be mounted anew");
    Command::Event(Event::Spoiled(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_today_is_left_to_the_clients() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert!(is_recent(Some(999_999), now));
        assert!(is_recent(Some(1_000_500), now), "a clock that went back");
        assert!(!is_recent(Some(999_000), now));
        assert!(!is_recent(Some(0), now), "never");
        assert!(!is_recent(None, now), "not told");
    }

    #[test]
    fn nothing_is_told_of_a_file_system_that_is_well() {
        let folder = tempfile::tempdir().unwrap();
        let Ok(errors) = Errors::of(folder.path()) else { return }; // an old kernel, or not root
        assert!(!errors.wait(20).unwrap());
    }

    #[test]
    fn a_path_that_is_not_there_is_an_error() {
        assert!(Listener::start(Path::new("/nonexistent/of/nasd"), || ()).is_err());
    }
}
