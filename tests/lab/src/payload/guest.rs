//! The nested guest's kernel and root, from what the image keeps for it and our own program.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::error::LabError;
use crate::guest::MODULES;
use crate::image::Image;
use crate::sys::{self, SHORT};

/// Our program that is the guest's `init`.
const INIT: &str = "lab-guest";

/// Makes `vmlinuz` and `initrd` in the folder `to`; `bin` has our programs.
///
/// # Errors
/// [`LabError::Io`], or those of `cpio`.
pub fn make(image: &Image, bin: &Path, to: &Path) -> Result<(), LabError> {
    if !bin.join(INIT).is_file() {
        return Ok(());
    }
    let root = to.join("root");
    for dir in ["dev", "lib64", MODULES] {
        sys::make_dir(&root.join(dir))?;
    }
    copy(&bin.join(INIT), &root.join("init"))?;
    all(&image.guest().join("lib64"), &root.join("lib64"))?;
    // The loader is named by its path and looks for the others there.
    symlink("lib64", root.join("lib")).map_err(LabError::io("create link", root.join("lib")))?;
    all(&image.guest(), &root.join(MODULES))?;
    copy(&image.kernel(), &to.join("vmlinuz"))?;
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | cpio --quiet -o -H newc > ../initrd"]).current_dir(&root);
    sys::run(pack, SHORT)?;
    fs::remove_dir_all(&root).map_err(LabError::io("remove", root))
}

/// Copies the files of a folder, not what is below.
fn all(from: &Path, to: &Path) -> Result<(), LabError> {
    let entries = fs::read_dir(from).map_err(LabError::io("read folder", from))?;
    for entry in entries.flatten().filter(|e| e.path().is_file()) {
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<(), LabError> {
    fs::copy(from, to).map(drop).map_err(LabError::io("copy", from))
}
