//! What is known about a running lab, kept in a file so that later calls, and the cleaning up after a crash, find it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::LabError;
use crate::process::ProcessId;
use crate::spec::Node;
use crate::sys;

/// Folder with one folder per lab.
const ROOT: &str = "/run/nasd-lab";

/// A running lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// Name of the lab.
    pub name: String,
    /// What its nodes run on.
    pub engine: Engine,
    /// Folder of the image it was brought up with; its copy-on-write files fit no other.
    #[serde(default)]
    pub image: Option<PathBuf>,
    /// Its nodes.
    pub nodes: Vec<NodeState>,
}

/// A node and its process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeState {
    /// The node.
    pub node: Node,
    /// Its process; `None` while its power is off.
    pub process: Option<ProcessId>,
}

/// Folder of a lab's state.
pub fn dir(lab: &str) -> PathBuf {
    Path::new(ROOT).join(lab)
}

/// Folder of a lab's big files, in memory: flushes to a busy disk would drown what is measured.
pub fn work(lab: &str) -> PathBuf {
    Path::new("/dev/shm").join(format!("nasd-lab-{lab}"))
}

/// Names of all labs that have left something here, whole or not.
pub fn labs() -> Vec<String> {
    let names = |dir: &str, prefix: &str| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|e| e.file_name().into_string().ok());
        names.filter_map(|n| n.strip_prefix(prefix).map(str::to_owned)).collect()
    };
    let places = [(ROOT, ""), ("/dev/shm", "nasd-lab-"), ("/run/netns", "nasdlab-")];
    let mut all: Vec<_> = places.iter().flat_map(|(dir, prefix)| names(dir, prefix)).collect();
    all.sort();
    all.dedup();
    all
}

fn file(lab: &str) -> PathBuf {
    dir(lab).join("state.json")
}

impl State {
    /// Of the lab of this name.
    ///
    /// # Errors
    /// [`LabError::Unknown`], [`LabError::BadState`], [`LabError::Io`].
    pub fn load(lab: &str) -> Result<Self, LabError> {
        let path = file(lab);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(LabError::Unknown { name: lab.to_owned() });
            }
            Err(e) => return Err(LabError::io("read", path)(e)),
        };
        let bad = |source| LabError::BadState { name: lab.to_owned(), source };
        serde_json::from_slice(&text).map_err(bad)
    }

    /// Replaces the file in one step.
    ///
    /// # Errors
    /// [`LabError::Io`].
    pub fn save(&self) -> Result<(), LabError> {
        let bad = |source| LabError::BadState { name: self.name.clone(), source };
        let text = serde_json::to_vec_pretty(self).map_err(bad)?;
        let (path, new) = (file(&self.name), dir(&self.name).join("state.new"));
        sys::write(&new, text, 0o600)?;
        fs::rename(&new, &path).map_err(LabError::io("rename to", path))
    }
}
