//! The disk that carries what changes from run to run into the nodes: our programs, and each node's own files.
//!
//! It is mounted read-only at `/lab`: `bin/`, `pki/NODE/`, and per node `node/NODE/setup` with `node/NODE/root/`,
//! which is copied over the node's root; `guest/` has the nested guest's kernel and root.

mod files;
mod guest;
mod programs;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

pub use files::{BOOT_HOOK, RESOURCES};
pub use programs::{build, same_output, workspace};

use crate::engine::Engine;
use crate::error::LabError;
use crate::image::Image;
use crate::pki::Authority;
use crate::spec::Node;
use crate::sys::{self, SHORT};

/// Runs the node's own script. The name of the node is on the kernel's command line.
const SETUP: &str = "\
set -eu
node=$(sed 's/.*lab\\.node=\\([^ ]*\\).*/\\1/' /proc/cmdline)
exec /bin/sh /lab/node/$node/setup
";

/// Makes the disk for these nodes, which boot `image`.
///
/// # Errors
/// [`LabError::Io`], [`LabError::Pki`], or those of the programs that make it.
pub fn make(disk: &Path, image: &Image, engine: Engine, nodes: &[Node]) -> Result<(), LabError> {
    let stage = disk.with_extension("stage");
    programs::stage(&stage.join("bin"))?;
    guest::make(image, &stage.join("bin"), &stage.join("guest"))?;
    sys::write(&stage.join("setup"), SETUP, 0o755)?;
    let authority = Authority::new()?;
    for node in nodes {
        let dir = stage.join("node").join(&node.name);
        let script = files::setup(engine, node);
        sys::write(&dir.join("setup"), script, 0o755)?;
        for (path, content) in files::of(engine, node, nodes) {
            sys::write(&dir.join("root").join(path), content, 0o644)?;
        }
        pki(&stage, &dir, &authority, node)?;
        links(&stage, &dir.join("root"))?;
        programs::units(&dir.join("root/etc/systemd/system"))?;
    }
    pack(&stage, disk)?;
    fs::remove_dir_all(&stage).map_err(LabError::io("remove", &stage))
}

fn pki(stage: &Path, dir: &Path, authority: &Authority, node: &Node) -> Result<(), LabError> {
    let identity = authority.identity(node)?;
    let files = [
        ("ca.pem", &authority.certificate, 0o644),
        ("node.pem", &identity.certificate, 0o644),
        ("node.key", &identity.key, 0o600),
    ];
    for (name, text, mode) in files {
        sys::write(&stage.join("pki").join(&node.name).join(name), text, mode)?;
        sys::write(&dir.join("root/etc/lab/pki").join(name), text, mode)?;
    }
    Ok(())
}

/// Our programs appear where a package would install them.
fn links(stage: &Path, root: &Path) -> Result<(), LabError> {
    let bin = stage.join("bin");
    let entries = fs::read_dir(&bin).map_err(LabError::io("read folder", &bin))?;
    for entry in entries.flatten() {
        let name = entry.file_name();
        for dir in ["usr/bin", "usr/sbin", "usr/lib/nasd"] {
            let dir = root.join(dir);
            sys::make_dir(&dir)?;
            let path = dir.join(&name);
            symlink(Path::new("/lab/bin").join(&name), &path)
                .map_err(LabError::io("create link", path))?;
        }
    }
    Ok(())
}

fn pack(stage: &Path, image: &Path) -> Result<(), LabError> {
    let mut size = Command::new("du");
    size.args(["-sm", "--apparent-size"]).arg(stage);
    let text = sys::run(size, SHORT)?;
    let mib: u64 = text.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(256);
    sys::sparse(image, (mib * 5 / 4 + 16) << 20)?;
    let mut make = Command::new("mke2fs");
    // Without a journal the disk can be mounted read-only by several nodes at once.
    make.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-L", "lab-payload", "-d"]);
    make.arg(stage).arg(image);
    sys::run(make, SHORT * 3).map(drop)
}
