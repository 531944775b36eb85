//! Owns the gate's map in the BPF file system: what lets a restarted nasd find it (rule S9).

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::SLOTS;
use crate::sys::bpf;
use crate::{NetError, Result};

/// The customary mount point; the only one that is mounted when it is missing.
const BPFFS: &str = "/sys/fs/bpf";

/// Opens the pinned map, or makes and pins one, all zero. True when it is new.
pub(super) fn open_or_create(pin: &Path) -> Result<(OwnedFd, bool)> {
    let name = c_path(pin)?;
    ensure_bpffs(pin)?;
    match bpf::open_pinned(&name) {
        Ok(map) => check(pin, &map).map(|()| (map, false)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let map = bpf::create_u64_array("nasd_gate", SLOTS)
                .map_err(|source| NetError::Bpf { action: "make the gate's map", source })?;
            bpf::pin(&map, &name).map_err(|source| fail("pin the gate's map at", pin, source))?;
            Ok((map, true))
        }
        Err(source) => Err(fail("open the pinned map", pin, source)),
    }
}

/// Removes the pin; one that is not there is no error.
pub(super) fn remove(pin: &Path) -> Result<()> {
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(fail("remove the pin", pin, source))
        }
        _ => Ok(()),
    }
}

/// Makes the folder of the pin, inside a BPF file system.
fn ensure_bpffs(pin: &Path) -> Result<()> {
    let folder = pin.parent().ok_or_else(|| NetError::NotBpffs { path: pin.into() })?;
    if pin.starts_with(BPFFS) && !is_bpffs(Path::new(BPFFS)) {
        let (kind, target) = (Some("bpf"), Path::new(BPFFS));
        mount(Some("bpf"), target, kind, MsFlags::empty(), Some("mode=0700"))
            .map_err(|errno| fail("mount a BPF file system at", target, errno.into()))?;
    }
    let existing = folder.ancestors().find(|path| path.exists());
    if !existing.is_some_and(is_bpffs) {
        return Err(NetError::NotBpffs { path: pin.into() });
    }
    fs::create_dir_all(folder).map_err(|source| fail("make the folder", folder, source))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == BPF_FS_MAGIC)
}

/// Refuses a map of another shape, and an object that is no map.
fn check(pin: &Path, map: &OwnedFd) -> Result<()> {
    let foreign = |what| Err(NetError::ForeignPin { path: pin.into(), what });
    // Programs and links answer the same query with other structures; only a map has entries.
    if bpf::lookup(map, 0).is_err() {
        return foreign("not a readable array map");
    }
    let info = bpf::map_info(map)
        .map_err(|source| NetError::Bpf { action: "examine the pinned map", source })?;
    let shape = (info.map_type, info.key_size, info.value_size, info.max_entries);
    if shape != (bpf::MAP_TYPE_ARRAY, 4, 8, SLOTS) {
        return foreign("a map of another shape");
    }
    Ok(())
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| NetError::NotBpffs { path: path.into() })
}

fn fail(action: &'static str, path: &Path, source: io::Error) -> NetError {
    NetError::Pin { action, path: path.into(), source }
}
