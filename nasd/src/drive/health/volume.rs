//! State of the file systems: has one turned read-only, or met an error?
//!
//! Read from the mount table (by nasd-io, which never touches the volume for it) and from ext4's
//! counter of errors in `/sys`. The counter is stored on the volume and travels with it, so only
//! its *rise* while the service is served here says something about this node.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::board::{Board, Check};
use super::judge::Finding;
use super::{Bounded, Term, sysfs};
use crate::drive::hands::Hands;
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
    pub(super) volume: u16,
    pub(super) target: PathBuf,
    /// It was to be mounted for writing.
    pub(super) wants_rw: bool,
}

impl FileSystem {
    /// Watches for ever.
    pub(super) async fn watch(self) {
        let (mut term, mut bounded) = (Term::default(), Bounded::default());
        let mut baseline = None;
        loop {
            tokio::time::sleep(PERIOD).await;
            let check = Check::FileSystem(self.volume);
            if term.serving(&self.hands, self.board.now()).is_none() {
                baseline = None;
                self.board.post(check, Finding::Idle);
                continue;
            }
            let op = Op::MountState { target: self.target.clone() };
            let mount = match self.hands.io_call(op, LOOK).await {
                Ok(Answer::MountState { mount }) => mount,
                other => {
                    tracing::debug!(?other, "the mount table is unknown");
                    None
                }
            };
            let errors = match &mount {
                Some(m) if m.fstype == "ext4" => errors_of(&mut bounded, &m.source).await,
                _ => None,
            };
            let before = *baseline.get_or_insert(errors);
            self.board.post(check, judge(mount.as_ref(), self.wants_rw, before.zip(errors)));
        }
    }
}

/// ext4's count of errors on a device, where `/sys` tells it.
async fn errors_of(bounded: &mut Bounded, source: &str) -> Option<u64> {
    let path = format!("/sys/fs/ext4/{}/errors_count", sysfs::device_name(source)?);
    let read = move || match std::fs::read_to_string(&path) {
        Ok(text) => sysfs::number(&text),
        Err(error) => {
            tracing::debug!(%error, path, "no count of errors");
            None
        }
    };
    bounded.run(LOOK, read).await.flatten()
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
