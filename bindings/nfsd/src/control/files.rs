//! Reading and writing of kernel control files: one open, one transfer, errors with the name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::{Error, Result};

/// More than any control file answers (`SIMPLE_TRANSACTION_LIMIT` is below one page).
const LIMIT: u64 = 1 << 20;

fn fail(file: &Path, source: io::Error) -> Error {
    Error::Control { file: file.into(), source }
}

/// Is it the kernel's "not now"?
pub(super) fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EBUSY as i32)
}

/// The content, replaced where it is not UTF-8.
pub(super) fn read(file: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    File::open(file)
        .and_then(|f| f.take(LIMIT).read_to_end(&mut bytes))
        .map_err(|e| fail(file, e))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A lone number.
pub(super) fn read_number(file: &Path) -> Result<u32> {
    let content = read(file)?;
    content.trim().parse().map_err(|_| unreadable(file, &content))
}

/// One write, as the kernel's parsers want it.
pub(super) fn write(file: &Path, text: &str) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(file)
        .and_then(|mut f| f.write_all(text.as_bytes()))
        .map_err(|e| fail(file, e))
}

/// As [`write`], for what may change only while no server exists.
pub(super) fn write_setting(file: &Path, text: &str) -> Result<()> {
    match write(file, text) {
        Err(Error::Control { file, source }) if is_busy(&source) => {
            Err(Error::ServerExists { file })
        }
        other => other,
    }
}

/// The error for content that makes no sense.
pub(super) fn unreadable(file: &Path, content: &str) -> Error {
    Error::Unreadable { file: file.into(), content: content.chars().take(80).collect() }
}

/// Everything in `dir`.
pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|e| fail(dir, e))?;
    entries.map(|entry| entry.map(|e| e.path()).map_err(|e| fail(dir, e))).collect()
}

/// `dir/*/name` of every subdirectory; entries that vanish meanwhile are skipped.
pub(super) fn read_each(dir: &Path, name: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).map_err(|e| fail(dir, e))?;
    Ok(entries.flatten().filter_map(|entry| read(&entry.path().join(name)).ok()).collect())
}

/// Is it the kernel's answer for what has just gone (`get_nfsdfs_clp`)?
fn has_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENXIO as i32)
}

fn present<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(Error::Control { source, .. }) if has_gone(&source) => Ok(None),
        other => other.map(Some),
    }
}

/// As [`read`]; none: it is gone.
pub(super) fn read_present(file: &Path) -> Result<Option<String>> {
    present(read(file))
}

/// As [`write`]; false: it is gone, and nothing was written.
pub(super) fn write_present(file: &Path, text: &str) -> Result<bool> {
    present(write(file, text)).map(|written| written.is_some())
}

/// Gives the calling thread, and only it, a host name of its own.
pub(super) fn take_hostname(name: &str) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWUTS)
        .and_then(|()| nix::unistd::sethostname(name))
        .map_err(|errno| Error::Namespace { namespace: "uts".into(), source: errno.into() })
}
