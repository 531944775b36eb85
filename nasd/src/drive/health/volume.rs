//! State of the file systems: has one turned read-only, or met an error?
//!
//! Read from the mount table (by nasd-io, which never touches the volume for it) and from ext4's
//! counter of errors in `/sys`. The counter is stored on the volume and travels with it, so only
//! its *rise* while the service is served here says something about this node.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::board::{Board, Check};
use super::errors::{self, Listener};
use super::judge::Finding;
use super::{Bounded, Term, sysfs};
use crate::drive::hands::Hands;
use crate::drive::task::Handle;
use crate::io::{Answer, MountPoint, Op};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// For one look.
const LOOK: Duration = Duration::from_secs(2);

/// Judges what is mounted, and the errors counted at the beginning of the term and now.
#[must_use]
pub fn judge(mount: Option<&MountPoint>, wants_rw: bool, errors: Option<(u64, u64)>) -> Finding {
    // A mount that is missing belongs to the stages, not to health.
    let Some(mount) = mount else { return Finding::Unknown };
    let bad = |why: String| Finding::Bad { since: crate::core::view::Now::MAX, why };
    if mount.read_only && wants_rw {
        return bad(format!("{} has become read-only", mount.source));
    }
    match errors {
        Some((before, now)) if now > before => {
            bad(format!("{} has met {} errors", mount.source, now - before))
        }
        _ => Finding::Well,
    }
}

/// One file system.
pub(super) struct FileSystem {
    pub(super) hands: Arc<Hands>,
    pub(super) board: Arc<Board>,
    pub(super) handle: Handle,
    pub(super) volume: u16,
    pub(super) target: PathBuf,
    /// It was to be mounted for writing.
    pub(super) wants_rw: bool,
}

impl FileSystem {
    /// Watches for ever.
    pub(super) async fn watch(self) {
        let (mut term, mut bounded) = (Term::default(), Bounded::default());
        let (mut baseline, mut alarm) = (None, Alarm::default());
        loop {
            tokio::time::sleep(PERIOD).await;
            let check = Check::FileSystem(self.volume);
            if term.serving(&self.hands, self.board.now()).is_none() {
                baseline = None;
                self.board.post(check, Finding::Idle);
                continue;
            }
            let mount = self.mount().await;
            let seen = match &mount {
                Some(m) if m.fstype == "ext4" => Seen::of(&mut bounded, &m.source).await,
                _ => Seen::default(),
            };
            let before = baseline.get_or_insert(seen).count;
            let finding = judge(mount.as_ref(), self.wants_rw, before.zip(seen.count));
            if let Some(mount) = &mount {
                self.raise(&mut alarm, mount, seen, &finding).await;
            }
            self.board.post(check, finding);
        }
    }

    async fn mount(&self) -> Option<MountPoint> {
        let op = Op::MountState { target: self.target.clone() };
        match self.hands.io_call(op, LOOK).await {
            Ok(Answer::MountState { mount }) => mount,
            other => {
                tracing::debug!(?other, "the mount table is unknown");
                None
            }
        }
    }

    /// Listens to every new mount, unless it met an error lately; what was not heard and is seen now
    /// (an operator's remount) shuts the gate as well.
    async fn raise(&self, alarm: &mut Alarm, mount: &MountPoint, seen: Seen, finding: &Finding) {
        if alarm.mount != Some(mount.id) {
            alarm.silent = errors::is_recent(seen.last, SystemTime::now());
            alarm.mount = Some(mount.id);
            alarm.listener = if alarm.silent { None } else { self.listen() };
            if alarm.silent {
                let source = &mount.source;
                tracing::error!(
                    source,
                    "met an error lately: check it (e2fsck); clients hear of the next one"
                );
            }
        } else if let (Finding::Bad { why, .. }, false) = (finding, alarm.silent)
            && self.hands.gate_left().is_some()
        {
            drop(self.handle.send(errors::spoil(&self.hands, why.clone())).await);
        }
    }

    fn listen(&self) -> Option<Listener> {
        let (hands, handle, volume) = (Arc::clone(&self.hands), self.handle.clone(), self.volume);
        let heard = move || {
            if hands.gate_left().is_some() {
                let why = format!("the file system of volume {volume} has met an error");
                drop(handle.blocking_send(errors::spoil(&hands, why)));
            }
        };
        match Listener::start(&self.target, heard) {
            Ok(listener) => Some(listener),
            Err(error) => {
                tracing::warn!(%error, volume, "errors of the file system are only looked for each second");
                None
            }
        }
    }
}

/// Who listens to which mount.
#[derive(Debug, Default)]
struct Alarm {
    mount: Option<u64>,
    /// It met an error lately.
    silent: bool,
    listener: Option<Listener>,
}

/// What ext4 remembers of errors, where `/sys` tells it; it is stored on the volume.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    count: Option<u64>,
    /// Seconds since 1970; 0: never.
    last: Option<u64>,
}

impl Seen {
    async fn of(bounded: &mut Bounded, source: &str) -> Self {
        let Some(device) = sysfs::device_name(source).map(str::to_owned) else {
            return Self::default();
        };
        let read = move || Self {
            count: number_in(&device, "errors_count"),
            last: number_in(&device, "last_error_time"),
        };
        bounded.run(LOOK, read).await.unwrap_or_default()
    }
}

fn number_in(device: &str, attribute: &str) -> Option<u64> {
    let path = format!("/sys/fs/ext4/{device}/{attribute}");
    match std::fs::read_to_string(&path) {
        Ok(text) => sysfs::number(&text),
        Err(error) => {
            tracing::debug!(%error, path, "ext4 does not tell");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(read_only: bool) -> MountPoint {
        MountPoint {
            id: 1,
            source: "/dev/drbd0".into(),
            fstype: "ext4".into(),
            dev: "147:0".into(),
            read_only,
        }
    }

    fn is_bad(finding: Finding) -> bool {
        matches!(finding, Finding::Bad { .. })
    }

    #[test]
    fn read_only_and_new_errors_are_bad() {
        assert_eq!(judge(Some(&mount(false)), true, None), Finding::Well);
        assert!(is_bad(judge(Some(&mount(true)), true, None)));
        assert_eq!(judge(Some(&mount(true)), false, None), Finding::Well, "as configured");
        assert!(is_bad(judge(Some(&mount(false)), true, Some((2, 3)))));
    }

    #[test]
    fn errors_of_the_past_came_with_the_volume() {
        assert_eq!(judge(Some(&mount(false)), true, Some((5, 5))), Finding::Well);
        assert_eq!(judge(Some(&mount(false)), true, Some((5, 0))), Finding::Well, "after fsck");
        assert_eq!(judge(None, true, None), Finding::Unknown);
    }
}
