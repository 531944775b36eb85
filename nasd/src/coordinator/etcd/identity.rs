//! Which etcd cluster this node belongs to, kept on its own disk: the answer of another one is a no
//! (S12), whatever it says, also after a restart of nasd.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::CoordinatorError;
use super::super::file::write_durably;

/// The cluster that answered first; 0: none yet.
#[derive(Debug, Default)]
pub(super) struct ClusterId {
    known: AtomicU64,
    file: Option<PathBuf>,
}

impl ClusterId {
    /// As the file says; without a file the first answer decides and is written there.
    pub(super) fn remembered(file: PathBuf) -> Result<Self, CoordinatorError> {
        let known = match fs::read_to_string(&file) {
            Ok(text) => u64::from_str_radix(text.trim(), 16).map_err(|e| damaged(&file, &e))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
            Err(e) => return Err(damaged(&file, &e)),
        };
        Ok(Self { known: AtomicU64::new(known), file: Some(file) })
    }

    /// Whether an answer is from the cluster that this node belongs to.
    pub(super) fn check(&self, found: u64) -> Result<(), String> {
        match self.known.compare_exchange(0, found, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {
                self.remember(found);
                Ok(())
            }
            Err(known) if known == found => Ok(()),
            Err(known) => Err(self.foreign(found, known)),
        }
    }

    /// On a thread: the disk may be slow, and the answer does not depend on it.
    fn remember(&self, found: u64) {
        let Some(file) = self.file.clone().filter(|_| found != 0) else { return };
        std::thread::spawn(move || {
            if let Err(error) = write_durably(&file, format!("{found:016x}\n").as_bytes()) {
                tracing::error!(%error, file = %file.display(), "the cluster's identity is not kept");
            }
        });
    }

    fn foreign(&self, found: u64, known: u64) -> String {
        let remedy = self.file.as_ref().map_or_else(
            || "name only members of one cluster, and restart nasd after a restore".to_owned(),
            |file| {
                format!(
                    "name only members of one cluster; if etcd was replaced on purpose, stop nasd on both nodes and remove {} there",
                    file.display()
                )
            },
        );
        format!(
            "the answer is from etcd cluster {found:016x}, earlier ones were from {known:016x}; {remedy}"
        )
    }
}

fn damaged(file: &Path, error: &dyn std::fmt::Display) -> CoordinatorError {
    CoordinatorError::SetUp {
        reason: format!(
            "{} cannot be read ({error}); it names the etcd cluster that this node belongs to; compare with etcdctl endpoint status, then correct or remove it",
            file.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s12_another_cluster_is_a_no_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("etcd-cluster");
        fs::write(&file, "00000000000000aa\n").unwrap();
        let id = ClusterId::remembered(file.clone()).unwrap();
        assert!(id.check(0xaa).is_ok());
        assert!(id.check(0xbb).unwrap_err().contains("00000000000000bb"));
        assert!(id.check(0).is_err(), "an answer that does not say is a no");
        fs::write(&file, "what?").unwrap();
        assert!(matches!(ClusterId::remembered(file), Err(CoordinatorError::SetUp { .. })));
    }

    #[test]
    fn s12_the_first_answer_decides() {
        let id = ClusterId::default();
        assert!(id.check(7).is_ok());
        assert!(id.check(8).is_err());
    }
}
