//! The local disks under DRBD: does I/O that was begun also end? Watched on both nodes.
//!
//! A disk that hangs reports no error, so DRBD waits for it. The evidence is a request in flight
//! while nothing is completed for the whole window. Both `/sys` and DRBD's own count of requests
//! to the disk are read: a suspended device-mapper device holds requests back before `/sys` sees
//! them. Nothing here touches a volume or a disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nasd_drbd::DiskState;

use super::Bounded;
use super::board::{Board, Check};
use super::judge::Finding;
use super::sysfs::{self, IoCounts};
use crate::core::view::{DrbdView, Now};
use crate::drive::drbd::Resource;
use crate::drive::hands::{Hands, lock};

/// Between two looks. A standby must know of its own disk before its owner's patience ends
/// ([`super::canary`]).
const PERIOD: Duration = Duration::from_millis(500);
/// For one look at DRBD and `/sys`.
const LOOK: Duration = Duration::from_secs(2);

/// What one look at a volume tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Look {
    /// There is a local disk that could hang.
    pub attached: bool,
    /// Requests of the file system that DRBD has not answered.
    pub upper_pending: Option<u32>,
    /// Requests that DRBD has given to the local disk.
    pub lower_pending: Option<u32>,
    /// The local disk's counters.
    pub disk: Option<IoCounts>,
    /// The DRBD device's counters.
    pub drbd: Option<IoCounts>,
}

impl Look {
    /// Whether the local disk has something to do; unknown if neither source tells.
    #[must_use]
    pub fn disk_busy(&self) -> Option<bool> {
        let by_drbd = self.lower_pending.map(|n| n > 0);
        let by_sysfs = self.disk.map(|c| c.in_flight > 0);
        match (by_drbd, by_sysfs) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(false) || b.unwrap_or(false)),
        }
    }
}

/// A look with what it says about progress, for the judgement of a hanging write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// When.
    pub at: Now,
    /// What.
    pub look: Look,
    /// Both nodes were connected.
    pub connected: bool,
    /// When the DRBD device last completed a write, as far as seen. Reads say nothing: they need
    /// neither the peer nor, often, the disk.
    pub written_at: Option<Now>,
}

/// The last facts by volume.
pub type SharedFacts = Arc<Mutex<BTreeMap<u16, Facts>>>;

/// Progress of one counter over looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    last: Option<u64>,
    moved_at: Option<Now>,
}

impl Progress {
    /// Takes a reading; whether it moved since the last one. The first reading tells nothing.
    pub fn read(&mut self, now: Now, count: Option<u64>) -> Option<bool> {
        let (last, count) = (std::mem::replace(&mut self.last, count), count?);
        let moved = last.map(|last| last != count);
        if moved == Some(true) {
            self.moved_at = Some(now);
        }
        moved
    }
}

/// One disk over looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskWatch {
    progress: Progress,
    stuck_since: Option<Now>,
}

impl DiskWatch {
    /// Judges a look. While I/O is suspended what is pending may be DRBD's own waiting.
    pub fn judge(&mut self, now: Now, look: &Look, suspended: bool) -> Finding {
        let moved = self.progress.read(now, look.disk.map(|c| c.completed));
        let stuck = match (look.attached, look.disk_busy(), moved) {
            (false, ..) => return self.end(Finding::Idle),
            (true, Some(false), _) | (true, _, Some(true)) => return self.end(Finding::Well),
            (true, Some(true), Some(false)) => !suspended,
            _ => false,
        };
        if !stuck {
            return self.end(Finding::Unknown);
        }
        // Since the look before this one nothing has ended; what was pending then is not known.
        let since = *self.stuck_since.get_or_insert(now);
        let pending =
            look.lower_pending.map_or(0, u64::from).max(look.disk.map_or(0, |c| c.in_flight));
        Finding::Bad { since, why: format!("{pending} requests in flight and none completed") }
    }

    fn end(&mut self, finding: Finding) -> Finding {
        self.stuck_since = None;
        finding
    }
}

/// DRBD's word about the local disks; `disks` is none while nothing has been heard.
#[must_use]
pub fn disk_state(view: &DrbdView, disks: Option<&[(u16, DiskState)]>) -> Finding {
    let Some(disks) = disks else { return Finding::Unknown };
    // A resync's target is incomplete by nature; a node that is one cannot take over anyway.
    if !view.local_failed || view.resync {
        return Finding::Well;
    }
    let failed = |d: &DiskState| {
        use DiskState::{Detaching, Diskless, Failed, Inconsistent};
        matches!(d, Diskless | Failed | Detaching | Inconsistent)
    };
    let named = disks.iter().filter(|(_, disk)| failed(disk));
    let named: Vec<_> = named.map(|(v, disk)| format!("volume {v} is {disk:?}")).collect();
    let why = if named.is_empty() { "DRBD reports it failed".into() } else { named.join(", ") };
    Finding::Bad { since: Now::MAX, why }
}

/// Reads DRBD and `/sys` once. May block; never touches the disks.
fn look(drbd: &Resource) -> Option<(bool, BTreeMap<u16, Look>)> {
    let status =
        drbd.read().inspect_err(|error| tracing::debug!(%error, "no look at DRBD")).ok()?;
    let one = |device: &nasd_drbd::Device| {
        let backing = device.options.as_ref().and_then(|o| o.backing_dev.as_deref());
        Look {
            attached: !matches!(device.disk, DiskState::Diskless | DiskState::Attaching),
            upper_pending: device.upper_pending,
            lower_pending: device.lower_pending,
            disk: backing.and_then(|path| counts(&sys_path(Path::new(path))?)),
            drbd: counts(&format!("/sys/block/drbd{}/stat", device.minor)),
        }
    };
    Some((status.suspended.any(), status.devices.iter().map(|(v, d)| (*v, one(d))).collect()))
}

/// Where the counters of a device node are; looks at the node in `/dev`, opens nothing.
fn sys_path(node: &Path) -> Option<String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let meta = std::fs::metadata(node).ok().filter(|m| m.file_type().is_block_device())?;
    let (major, minor) = (nix::sys::stat::major(meta.rdev()), nix::sys::stat::minor(meta.rdev()));
    Some(format!("/sys/dev/block/{major}:{minor}/stat"))
}

fn counts(path: &str) -> Option<IoCounts> {
    let text = std::fs::read_to_string(path);
    let text = text.inspect_err(|error| tracing::debug!(%error, path, "no counters")).ok()?;
    sysfs::io_counts(&text)
}

/// Watches for ever.
pub(super) async fn watch(hands: Arc<Hands>, board: Arc<Board>, facts: SharedFacts) {
    let mut bounded = Bounded::default();
    let mut watches: BTreeMap<u16, (DiskWatch, Progress)> = BTreeMap::new();
    loop {
        tokio::time::sleep(PERIOD).await;
        let drbd = Arc::clone(&hands.drbd);
        let Some(Some((suspended, looks))) = bounded.run(LOOK, move || look(&drbd)).await else {
            continue;
        };
        let connected = hands.drbd_view().connected;
        for (volume, look) in looks {
            let now = board.now();
            let (watch, drbd) = watches.entry(volume).or_default();
            board.post(Check::BackingDisk(volume), watch.judge(now, &look, suspended));
            drbd.read(now, look.drbd.map(|c| c.written));
            let written_at = drbd.moved_at;
            lock(&facts).insert(volume, Facts { at: now, look, connected, written_at });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> Now {
        Duration::from_secs(seconds)
    }

    fn look(pending: u32, in_flight: u64, completed: u64) -> Look {
        Look {
            attached: true,
            lower_pending: Some(pending),
            disk: Some(IoCounts { completed, written: 0, in_flight }),
            ..Look::default()
        }
    }

    #[test]
    fn a_disk_that_completes_nothing_while_busy_hangs() {
        let mut watch = DiskWatch::default();
        assert_eq!(watch.judge(at(1), &look(0, 0, 7), false), Finding::Well);
        // A suspended device-mapper device: only DRBD sees the request.
        for second in 2..9 {
            match watch.judge(at(second), &look(3, 0, 7), false) {
                Finding::Bad { since, why } => {
                    assert_eq!(since, at(2));
                    assert_eq!(why, "3 requests in flight and none completed");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(watch.judge(at(9), &look(3, 0, 8), false), Finding::Well);
    }

    #[test]
    fn s12_what_cannot_be_read_is_unknown() {
        let mut watch = DiskWatch::default();
        let blind = Look { attached: true, ..Look::default() };
        for second in 1..9 {
            assert_eq!(watch.judge(at(second), &blind, false), Finding::Unknown);
        }
        let no_counter = Look { lower_pending: Some(2), ..blind };
        for second in 9..20 {
            assert_eq!(watch.judge(at(second), &no_counter, false), Finding::Unknown);
        }
        let idle = Look { lower_pending: Some(0), ..blind };
        assert_eq!(watch.judge(at(20), &idle, false), Finding::Well);
    }

    #[test]
    fn a_frozen_or_absent_disk_is_not_a_hanging_one() {
        let mut watch = DiskWatch::default();
        watch.judge(at(1), &look(2, 2, 7), false);
        assert_eq!(watch.judge(at(2), &look(2, 2, 7), true), Finding::Unknown);
        let detached = Look { attached: false, ..look(2, 2, 7) };
        assert_eq!(watch.judge(at(3), &detached, false), Finding::Idle);
    }

    #[test]
    fn a_failed_disk_is_named_and_a_resync_is_none() {
        let failed = DrbdView { local_failed: true, ..DrbdView::default() };
        let disks = [(0, DiskState::UpToDate), (1, DiskState::Diskless)];
        assert_eq!(disk_state(&failed, None), Finding::Unknown);
        let Finding::Bad { why, .. } = disk_state(&failed, Some(&disks)) else {
            panic!("a failed disk is bad")
        };
        assert_eq!(why, "volume 1 is Diskless");
        assert_eq!(disk_state(&DrbdView::default(), Some(&disks)), Finding::Well);
        let target = DrbdView { resync: true, ..failed };
        assert_eq!(disk_state(&target, Some(&[(0, DiskState::Inconsistent)])), Finding::Well);
    }

    #[test]
    fn the_counters_of_this_hosts_devices_are_read() {
        let Ok(devices) = std::fs::read_dir("/sys/block") else { return };
        for device in devices.flatten() {
            let path = device.path().join("stat").display().to_string();
            assert!(counts(&path).is_some(), "{path}");
        }
        assert_eq!(counts("/sys/block/no-such-device/stat"), None);
        assert_eq!(sys_path(Path::new("/dev/null")), None, "no block device");
    }

    proptest! {
        #[test]
        fn progress_is_never_a_hang(counts in prop::collection::vec(1u64..5, 1..40)) {
            let (mut watch, mut total) = (DiskWatch::default(), 0);
            for (second, step) in counts.into_iter().enumerate() {
                total += step;
                let finding = watch.judge(at(second as u64), &look(9, 9, total), false);
                let is_bad = matches!(finding, Finding::Bad { .. });
                prop_assert!(!is_bad);
            }
        }
    }
}
