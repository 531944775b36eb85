//! Unmounting of volumes.
//!
//! Keeps S8: an unmount is retried while busy, until its deadline, and never made lazily or by
//! force (a lazy one would hide a device that is still busy, and demoting it would fail). Clients stall
//! meanwhile: once somebody is found who keeps the volume busy, it is not waited for any longer.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::super::{Answer, Holder, Refusal};
use super::holders;
use super::mounttable::MountTable;
use super::volume::elapsed_ms;

/// The kernel needs a few milliseconds after `threads 0` to let go of the exports
/// (`svc_export_put` of Linux 6.1 does it from a work queue).
const RETRY: Duration = Duration::from_millis(2);
/// So long a holder may take to go away by itself, as one does that only looks (`df`, a backup's scan). The rest of
/// the deadline is for finding out who it is: an answer that comes too late names nobody.
const PATIENCE: Duration = Duration::from_secs(1);

/// Unmounts, retrying while busy.
pub(super) fn unmount(target: &Path, deadline: Duration) -> Result<Answer, Refusal> {
    let began = Instant::now();
    if MountTable::read()?.at(target).is_empty() {
        return Ok(Answer::Unmounted { already: true, retries: 0, took_ms: elapsed_ms(began) });
    }
    MountTable::read()?.single(target)?;
    let times = Times { look: began + PATIENCE.min(deadline), end: began + deadline };
    let once = || umount2(target, MntFlags::UMOUNT_NOFOLLOW);
    let look = |end| holders::find(target, Some(end)).unwrap_or_default();
    match repeat(&times, once, look) {
        Ok(retries) => {
            Ok(Answer::Unmounted { already: false, retries, took_ms: elapsed_ms(began) })
        }
        Err(Failure::Busy(holders)) => {
            Err(Refusal::Busy { target: target.into(), waited_ms: elapsed_ms(began), holders })
        }
        Err(Failure::System(errno)) => {
            Err(Refusal::system("unmounting", target, std::io::Error::from(errno)))
        }
    }
}

/// From when on holders are looked for, and the end.
struct Times {
    look: Instant,
    end: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Failure {
    Busy(Vec<Holder>),
    System(Errno),
}

/// Tries until it is done, for as long as nobody is known to be in the way; how often it was repeated. Whoever is
/// found gets one more try.
fn repeat(
    times: &Times,
    mut once: impl FnMut() -> Result<(), Errno>,
    mut look: impl FnMut(Instant) -> Vec<Holder>,
) -> Result<u32, Failure> {
    let mut found: Option<Vec<Holder>> = None;
    let mut retries = 0;
    loop {
        match once() {
            Ok(()) => return Ok(retries),
            Err(Errno::EBUSY) => {}
            Err(other) => return Err(Failure::System(other)),
        }
        retries += 1;
        let now = Instant::now();
        match found.take() {
            Some(holders) if !holders.is_empty() || now >= times.end => {
                return Err(Failure::Busy(holders));
            }
            None if now >= times.look => found = Some(look(times.end)),
            waiting => {
                found = waiting;
                std::thread::sleep(RETRY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::HolderKind;

    fn times(look: u64, end: u64) -> Times {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        Times { look: at(look), end: at(end) }
    }

    fn sleep() -> Vec<Holder> {
        let path = "/srv/a/held".to_owned();
        vec![Holder { kind: HolderKind::OpenFile, pid: Some(7), name: "sleep".to_owned(), path }]
    }

    /// The answer has to come while somebody still waits for it, and clients stall meanwhile.
    #[test]
    fn s8_a_holder_is_named_long_before_the_deadline() {
        let times = times(5, 60_000);
        let end = repeat(&times, || Err(Errno::EBUSY), |_| sleep());
        assert_eq!(end, Err(Failure::Busy(sleep())));
        assert!(Instant::now() < times.end);
    }

    #[test]
    fn a_kernel_that_lets_go_late_is_waited_for() {
        let times = times(0, 60_000);
        let mut left = 20;
        let once = || {
            left -= 1;
            if left == 0 { Ok(()) } else { Err(Errno::EBUSY) }
        };
        assert_eq!(repeat(&times, once, |_| Vec::new()), Ok(19));
    }

    #[test]
    fn a_holder_that_has_gone_while_it_was_looked_for_is_no_obstacle() {
        let looked = std::cell::Cell::new(false);
        let once = || if looked.get() { Ok(()) } else { Err(Errno::EBUSY) };
        let look = |_| {
            looked.set(true);
            sleep()
        };
        assert!(repeat(&times(1, 60_000), once, look).is_ok());
    }

    #[test]
    fn it_ends_at_its_deadline_and_at_other_errors() {
        let busy = repeat(&times(1, 2), || Err(Errno::EBUSY), |_| Vec::new());
        assert_eq!(busy, Err(Failure::Busy(Vec::new())));
        let other = repeat(&times(1, 60_000), || Err(Errno::EINVAL), |_| Vec::new());
        assert_eq!(other, Err(Failure::System(Errno::EINVAL)));
    }

    #[test]
    fn unmounting_what_is_not_mounted_is_done_already() {
        let dir = tempfile::tempdir().unwrap();
        let done = unmount(dir.path(), Duration::ZERO);
        assert!(matches!(done, Ok(Answer::Unmounted { already: true, .. })));
    }
}
