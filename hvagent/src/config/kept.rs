//! What the nasds told last about their services, kept on the local disk: the agent knows its mounts
//! when no nasd answers.
//!
//! Kept per node, so that each new welcome replaces what that node said before. A file that cannot be
//! understood is as good as none: the next welcome writes a new one.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::Services;

/// Where it is, below the state directory.
pub const FILE: &str = "/var/lib/hvagent/services.json";

/// Largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// By node.
pub type Kept = BTreeMap<String, Services>;

/// Why it is not kept.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be written ({error}): until a nasd answers, a restarted agent will not know which \
         mounts it serves; check the disk and the directory", path.display())]
pub struct NotKept {
    path: PathBuf,
    #[source]
    error: std::io::Error,
}

/// What was kept; empty where there is nothing.
#[must_use]
pub fn load(path: &Path) -> Kept {
    let small = std::fs::metadata(path).is_ok_and(|m| m.len() <= LARGEST);
    let text = if small { std::fs::read(path).unwrap_or_default() } else { Vec::new() };
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Replaces the file in one step.
///
/// # Errors
/// The old file is still there.
pub fn store(path: &Path, kept: &Kept) -> Result<(), NotKept> {
    write(path, kept).map_err(|error| NotKept { path: path.to_owned(), error })
}

fn write(path: &Path, kept: &Kept) -> std::io::Result<()> {
    let dir = path.parent().ok_or(std::io::ErrorKind::InvalidInput)?;
    std::fs::create_dir_all(dir)?;
    let next = path.with_extension("new");
    let mut file = std::fs::File::create(&next)?;
    file.write_all(&serde_json::to_vec_pretty(kept)?)?;
    file.sync_all()?;
    std::fs::rename(&next, path)?;
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_comes_back_and_rubbish_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/services.json");
        assert_eq!(load(&path), Kept::new());
        let services = Services::from([("vms".to_owned(), vec![[10, 0, 0, 5].into()])]);
        let kept = Kept::from([("nas1".to_owned(), services)]);
        store(&path, &kept).unwrap();
        assert_eq!(load(&path), kept);
        std::fs::write(&path, b"{\"nas1\": 7").unwrap();
        assert_eq!(load(&path), Kept::new());
    }

    #[test]
    fn a_disk_that_refuses_is_told() {
        let error = store(Path::new("/proc/nowhere/services.json"), &Kept::new()).unwrap_err();
        assert!(error.to_string().contains("will not know"));
    }
}
