//! The node's watchdog device: what is left when nasd, or the kernel's own reset, fails (design
//! section 6).
//!
//! It is petted by a thread of its own, and only while every service's task answers: a nasd that stands
//! still is as good as none. The descriptor is handed to the service manager, so that the device keeps
//! counting while nasd is replaced or restarted after a crash; the magic letter that disarms it is
//! written only by a nasd that was asked to end, and takes effect only when nobody takes the descriptor
//! up again. Nothing is started over a volume's file system here (S9).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{ForeignRawFd, PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sd_notify::NotifyState;
use thiserror::Error;
use tokio::sync::oneshot;

use super::task::{Command, Handle};

/// The descriptor's name in the service manager's store.
const NAME: &str = "nasd-watchdog";
/// How often the device is petted: far below any timeout that a watchdog has.
const PET: Duration = Duration::from_secs(1);
/// How old the last sign of life may be. Tasks are asked every [`ASK`] and may take this long.
const FRESH: Duration = Duration::from_secs(5);
/// Between two questions to the tasks.
const ASK: Duration = Duration::from_millis(500);
/// Disarms the device at its last close (`Documentation/watchdog/watchdog-api.rst`).
const MAGIC: &[u8] = b"V";

/// The self-fence has been refused: nothing is petted any more.
static BITE: AtomicBool = AtomicBool::new(false);
/// The device in use, for the orderly end.
static IN_USE: OnceLock<Arc<Device>> = OnceLock::new();

/// The watchdog is not guarded. nasd runs without it.
#[derive(Debug, Error)]
pub enum WatchdogError {
    /// The device.
    #[error("watchdog {device}: {source}; load its module, or remove [watchdog]")]
    Device {
        /// Its path.
        device: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The thread.
    #[error("the watchdog's thread: {0}")]
    Thread(io::Error),
}

/// Nobody pets the watchdog from now on: it resets the node when its time is over.
pub fn let_it_bite() {
    BITE.store(true, Ordering::SeqCst);
}

/// The descriptor that a former life left with the service manager. Call it before anything is
/// started: what was passed must not leak into children, or the device could never be released.
#[must_use]
pub fn inherited() -> Option<File> {
    // This also marks all of them close-on-exec.
    let mut passed = sd_notify::listen_fds_with_names().ok()?;
    let (number, _) = passed.find(|(_, name)| name == NAME)?;
    match duplicate(number) {
        Ok(descriptor) => Some(File::from(descriptor)),
        Err(error) => {
            tracing::warn!(%error, "the watchdog's descriptor cannot be taken up");
            None
        }
    }
}

/// A number is no descriptor yet; the kernel makes one of it, as it would for another process.
fn duplicate(number: i32) -> io::Result<OwnedFd> {
    let this = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(this.as_fd(), ForeignRawFd::from(number), PidfdGetfdFlags::empty())?)
}

/// Guards the node from here on: opens the device unless it was inherited, leaves a copy with the
/// service manager, asks the tasks, pets the device while they answer.
///
/// # Errors
/// [`WatchdogError`].
pub fn start(
    device: &Path,
    inherited: Option<File>,
    tasks: Vec<Handle>,
) -> Result<(), WatchdogError> {
    let failed = |source| WatchdogError::Device { device: device.display().to_string(), source };
    let file = match inherited {
        Some(file) => file,
        None => OpenOptions::new().write(true).open(device).map_err(failed)?,
    };
    let stored = sd_notify::notify_with_fds(
        &[NotifyState::FdStore, NotifyState::FdName(NAME)],
        &[file.as_fd()],
    );
    if let Err(error) = stored {
        tracing::debug!(%error, "no service manager keeps the watchdog's descriptor");
    }
    let pulse = Arc::new(Pulse::default());
    let device = Arc::new(Device::new(file));
    drop(IN_USE.set(Arc::clone(&device)));
    tokio::spawn(listen(tasks, Arc::clone(&pulse)));
    let thread = std::thread::Builder::new().name("watchdog".into());
    thread.spawn(move || pet_forever(&device, &pulse)).map_err(WatchdogError::Thread)?;
    tracing::info!("the watchdog guards this node");
    Ok(())
}

/// An inherited watchdog that is not configured any more is disarmed and given back.
pub fn give_up(inherited: File) {
    let device = Device::new(inherited);
    device.disarm();
    let removed = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(NAME)]);
    tracing::info!(?removed, "the watchdog is not configured any more; it is disarmed");
}

/// nasd was asked to end: the device is disarmed if nobody takes it up again. Its next owner's first
/// pet takes this back.
pub fn part() {
    if let Some(device) = IN_USE.get() {
        device.disarm();
    }
}

/// When all tasks answered last, in milliseconds since this was made.
struct Pulse {
    since: Instant,
    at: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { since: Instant::now(), at: AtomicU64::new(0) }
    }
}

impl Pulse {
    fn beat(&self) {
        let now = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.store(now, Ordering::SeqCst);
    }

    fn age(&self) -> Duration {
        let at = Duration::from_millis(self.at.load(Ordering::SeqCst));
        self.since.elapsed().saturating_sub(at)
    }
}

/// Asks every task something small; only when all have answered is there a pulse.
async fn listen(tasks: Vec<Handle>, pulse: Arc<Pulse>) {
    loop {
        let mut all = true;
        for task in &tasks {
            all &= answers(task, FRESH).await;
        }
        if all {
            pulse.beat();
        }
        tokio::time::sleep(ASK).await;
    }
}

async fn answers(task: &Handle, limit: Duration) -> bool {
    let (reply, answer) = oneshot::channel();
    let asked =
        async { task.send(Command::CheckTarget(reply)).await.is_ok() && answer.await.is_ok() };
    tokio::time::timeout(limit, asked).await.unwrap_or(false)
}

struct Device {
    file: Mutex<File>,
    parted: AtomicBool,
}

impl Device {
    fn new(file: File) -> Self {
        Self { file: Mutex::new(file), parted: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Any byte but the magic one, and never after that.
    fn pet(&self) -> io::Result<()> {
        let mut file = self.lock();
        if self.parted.load(Ordering::SeqCst) {
            return Ok(());
        }
        file.write_all(b"\0")
    }

    fn disarm(&self) {
        let mut file = self.lock();
        self.parted.store(true, Ordering::SeqCst);
        if let Err(error) = file.write_all(MAGIC) {
            tracing::warn!(%error, "the watchdog cannot be disarmed");
        }
    }
}

/// Never returns, so that the descriptor is never closed by this process's own will.
fn pet_forever(device: &Device, pulse: &Pulse) {
    let mut late = false;
    loop {
        if may_pet(pulse, BITE.load(Ordering::SeqCst)) {
            late = false;
            if let Err(error) = device.pet() {
                tracing::error!(%error, "the watchdog cannot be petted");
            }
        } else if !late {
            late = true;
            tracing::error!(age = ?pulse.age(), "nasd stands still: the watchdog is not petted");
        }
        std::thread::sleep(PET);
    }
}

fn may_pet(pulse: &Pulse, bite: bool) -> bool {
    !bite && pulse.age() < FRESH
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::os::fd::AsRawFd;

    use tokio::sync::mpsc;

    use super::*;
    use crate::drive::task::TargetFacts;

    fn device() -> (Device, File) {
        let file = tempfile::tempfile().unwrap();
        (Device::new(file.try_clone().unwrap()), file)
    }

    fn written(mut file: File) -> Vec<u8> {
        let mut all = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut all).unwrap();
        all
    }

    #[test]
    fn only_an_orderly_end_disarms_and_nothing_pets_after_it() {
        let (device, file) = device();
        device.pet().unwrap();
        device.pet().unwrap();
        assert_eq!(written(file.try_clone().unwrap()), b"\0\0", "a crash leaves it armed");
        device.disarm();
        device.pet().unwrap();
        assert_eq!(written(file), b"\0\0V", "a pet would arm it again");
    }

    #[test]
    fn s12_without_a_fresh_pulse_it_is_not_petted() {
        let pulse = Pulse::default();
        assert!(may_pet(&pulse, false));
        assert!(!may_pet(&pulse, true), "the self-fence was refused");
        let Some(long_ago) = Instant::now().checked_sub(FRESH + FRESH) else { return };
        let old = Pulse { since: long_ago, at: AtomicU64::new(0) };
        assert!(!may_pet(&old, false));
        old.beat();
        assert!(may_pet(&old, false));
    }

    #[tokio::test]
    async fn a_task_that_hangs_stops_the_pulse() {
        let (quick, mut quick_inbox) = mpsc::channel(4);
        let (stuck, stuck_inbox) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(Command::CheckTarget(reply)) = quick_inbox.recv().await {
                let facts = TargetFacts { epoch: None, stage: "standby", problem: None };
                let _ = reply.send(facts);
            }
        });
        let limit = Duration::from_millis(300);
        assert!(answers(&quick, limit).await);
        assert!(!answers(&stuck, limit).await, "nobody reads its inbox");
        drop(stuck_inbox);
        assert!(!answers(&stuck, limit).await, "its task has ended");
    }

    #[test]
    fn a_passed_number_becomes_a_descriptor_of_the_same_file() {
        let file = tempfile::tempfile().unwrap();
        let copy = File::from(duplicate(file.as_raw_fd()).unwrap());
        (&copy).write_all(b"x").unwrap();
        assert_eq!(written(file), b"x");
        assert!(duplicate(1_000_000).is_err());
    }
}
