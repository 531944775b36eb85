//! The kernel file systems `nfsd` and `rpc_pipefs` at directories of our choice.
//!
//! Their superblocks belong to the network namespace of the thread that makes the mount. A
//! directory may still carry a mount of an earlier namespace (the namespace was made anew, or
//! another service used the directory): writing there would steer the wrong server. So a mount
//! is made aside first and its device number compared with what is there.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::mount::{MntFlags, umount2};
use rustix::fs::{CWD, fstat, stat, statfs};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsmount, fsopen,
    move_mount,
};

use crate::{Error, Result};

/// A kind of kernel file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    name: &'static str,
    magic: u64,
}

/// `nfsd_fill_super`, "nfsd" in ASCII.
pub(super) const NFSD: Kind = Kind { name: "nfsd", magic: 0x6e66_7364 };
/// `RPCAUTH_GSSMAGIC`.
pub(super) const PIPEFS: Kind = Kind { name: "rpc_pipefs", magic: 0x6759_6969 };

/// Stacked mounts are taken off one by one; more than this many is not our doing.
const MAX_STACK: usize = 8;

/// Mounts `kind` of the calling thread's namespace on `dir` unless it is there already.
pub(super) fn ensure(kind: Kind, dir: &Path) -> Result<()> {
    let fail = |source: io::Error| Error::Mount { fstype: kind.name, dir: dir.into(), source };
    fs::create_dir_all(dir).map_err(fail)?;
    let aside = mount_aside(kind).map_err(|e| fail(e.into()))?;
    let wanted = fstat(&aside).map_err(|e| fail(e.into()))?.st_dev;
    for _ in 0..MAX_STACK {
        if stat(dir).map_err(|e| fail(e.into()))?.st_dev == wanted {
            return Ok(());
        }
        if !is_mount_point(dir).map_err(fail)? {
            return attach(&aside, dir).map_err(|e| fail(e.into()));
        }
        remove_stale(kind, dir)?;
    }
    Err(fail(io::Error::from(io::ErrorKind::ResourceBusy)))
}

fn mount_aside(kind: Kind) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind.name, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn attach(aside: &OwnedFd, dir: &Path) -> rustix::io::Result<()> {
    move_mount(aside.as_fd(), "", CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// A mount point has another device than its parent, or (same device) is listed as one.
fn is_mount_point(dir: &Path) -> io::Result<bool> {
    let parent = dir.parent().unwrap_or(Path::new("/"));
    Ok(stat(dir)?.st_dev != stat(parent)?.st_dev)
}

/// Takes off a mount of the same kind that belongs to another namespace.
fn remove_stale(kind: Kind, dir: &Path) -> Result<()> {
    let fail = |source: io::Error| Error::Mount { fstype: kind.name, dir: dir.into(), source };
    let magic = statfs(dir).map_err(|e| fail(e.into()))?.f_type as u64;
    if magic != kind.magic {
        return Err(Error::ForeignMount { fstype: kind.name, dir: dir.into(), magic });
    }
    umount2(dir, MntFlags::empty()).map_err(|e| fail(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_directory_is_no_mount_point_and_proc_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        assert!(!is_mount_point(&sub).unwrap());
        assert!(is_mount_point(Path::new("/proc")).unwrap());
    }

    #[test]
    fn foreign_mount_is_named_and_left_alone() {
        let error = remove_stale(NFSD, Path::new("/proc")).unwrap_err();
        assert!(matches!(error, Error::ForeignMount { magic: 0x9fa0, .. }));
        assert!(Path::new("/proc/self").exists());
    }
}
