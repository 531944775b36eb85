//! Open-file-description locks as QEMU takes them on a disk image, and the watch over them.
//!
//! QEMU's file driver locks single bytes: at 100 + n (shared) for each permission *n* in use, at 200 + n (shared) for
//! each permission it does not grant to others (block/file-posix.c, `RAW_LOCK_PERM_BASE`, `RAW_LOCK_SHARED_BASE`;
//! include/block/block-common.h, `BLK_PERM_*`: 0 consistent read, 1 write, 3 resize). A guest's disk therefore shows
//! 100, 101, 103, 201 and 203.
//!
//! `F_OFD_GETLK` through a second descriptor sees a lock that the kernel still holds. It does not tell that an NFS
//! *server* forgot it: the client answers from its own table first. When the client learns of the loss it marks the
//! lock, and every read and write through the descriptor that owns it answers EIO (fs/nfs/nfs4state.c,
//! `NFS_LOCK_LOST`). So EIO counts as a lost lock as well.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::BlocksError;
use super::buffer::{ALIGN, AlignedBuf};

/// One byte to be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockByte {
    /// Its offset in the file.
    pub at: i64,
    /// A write lock; else a read lock, which others may share.
    pub exclusive: bool,
}

const fn shared(at: i64) -> LockByte {
    LockByte { at, exclusive: false }
}

const fn exclusive(at: i64) -> LockByte {
    LockByte { at, exclusive: true }
}

/// What QEMU holds on the disk of a running guest.
pub const QEMU_LOCKS: [LockByte; 5] =
    [shared(100), shared(101), shared(103), shared(201), shared(203)];

/// Locks on each extra file: QEMU's five, and five exclusive ones that do not touch each other.
pub const EXTRA_LOCKS: [LockByte; 10] = [
    shared(100),
    shared(101),
    shared(103),
    shared(201),
    shared(203),
    exclusive(300),
    exclusive(302),
    exclusive(304),
    exclusive(306),
    exclusive(308),
];

/// A file with locks held through one descriptor and watched through another.
#[derive(Debug)]
pub struct LockedFile {
    /// For messages.
    pub path: PathBuf,
    /// The descriptor that owns the locks.
    pub owner: File,
    probe: File,
    bytes: &'static [LockByte],
}

impl LockedFile {
    /// Takes all locks through `owner`. `probe` is another open file description of the same file.
    ///
    /// # Errors
    /// [`BlocksError::Lock`] when a byte is refused, which it is at once: nothing waits for another holder.
    pub fn take(
        path: &Path,
        owner: File,
        probe: File,
        bytes: &'static [LockByte],
    ) -> Result<Self, BlocksError> {
        for byte in bytes {
            set_lock(&owner, *byte).map_err(|errno| BlocksError::Lock {
                path: path.to_owned(),
                byte: byte.at,
                source: errno.into(),
            })?;
        }
        Ok(Self { path: path.to_owned(), owner, probe, bytes })
    }

    /// Which bytes it should hold.
    #[must_use]
    pub const fn bytes(&self) -> &'static [LockByte] {
        self.bytes
    }

    /// Bytes whose lock is gone.
    ///
    /// # Errors
    /// That of `fcntl`, EIO among them.
    pub fn missing(&self) -> io::Result<Vec<i64>> {
        missing_of(&self.probe, self.bytes)
    }

    /// Reads one sector through the descriptor that owns the locks: EIO tells that the server lost them.
    ///
    /// # Errors
    /// That of `pread`.
    pub fn touch(&self) -> io::Result<()> {
        let mut buf = AlignedBuf::new(ALIGN);
        self.owner.read_at(buf.bytes_mut(), 0).map(|_| ())
    }
}

/// Bytes of `bytes` on which nobody holds a lock that `probe` would have to respect.
///
/// # Errors
/// That of `fcntl`.
pub fn missing_of(probe: &File, bytes: &[LockByte]) -> io::Result<Vec<i64>> {
    let mut missing = vec![];
    for byte in bytes {
        if !is_held(probe, *byte)? {
            missing.push(byte.at);
        }
    }
    Ok(missing)
}

fn set_lock(owner: &File, byte: LockByte) -> Result<(), Errno> {
    let kind = if byte.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    retry(|| fcntl(owner, FcntlArg::F_OFD_SETLK(&range(kind, byte.at))))
}

/// Asks whether a write lock could be had: held read and write locks both stand against it.
fn is_held(probe: &File, byte: LockByte) -> io::Result<bool> {
    let mut found = range(libc::F_WRLCK, byte.at);
    retry(|| {
        found = range(libc::F_WRLCK, byte.at);
        fcntl(probe, FcntlArg::F_OFD_GETLK(&mut found))
    })?;
    let wanted = if byte.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    Ok(libc::c_int::from(found.l_type) == wanted)
}

/// Repeats what a signal interrupted, a bounded number of times (S8).
fn retry(mut call: impl FnMut() -> Result<i32, Errno>) -> Result<(), Errno> {
    for _ in 0..100 {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other.map(|_| ()),
        }
    }
    Err(Errno::EINTR)
}

fn range(kind: libc::c_int, at: i64) -> libc::flock {
    libc::flock {
        // The three kinds are 0, 1 and 2 on every architecture.
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: at,
        l_len: 1,
        // fcntl(2): must be zero for open-file-description locks.
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    fn open(path: &Path) -> File {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
    }

    fn locked() -> (tempfile::TempDir, LockedFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let file = LockedFile::take(&path, open(&path), open(&path), &EXTRA_LOCKS).unwrap();
        (dir, file)
    }

    #[test]
    fn held_locks_are_seen_and_a_dropped_one_is_missed() {
        let (_dir, file) = locked();
        assert!(file.missing().unwrap().is_empty());
        for (at, expected) in [(101, vec![101]), (304, vec![101, 304])] {
            fcntl(&file.owner, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, at))).unwrap();
            assert_eq!(file.missing().unwrap(), expected);
        }
    }

    #[test]
    fn a_foreign_lock_of_the_wrong_kind_does_not_count_as_ours() {
        let (_dir, file) = locked();
        fcntl(&file.owner, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, 302))).unwrap();
        let other = open(&file.path);
        fcntl(&other, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, 302))).unwrap();
        assert_eq!(file.missing().unwrap(), [302]);
    }

    #[test]
    fn a_second_holder_of_an_exclusive_byte_is_refused_at_once() {
        let (_dir, file) = locked();
        let again = LockedFile::take(&file.path, open(&file.path), open(&file.path), &EXTRA_LOCKS);
        assert!(matches!(again, Err(BlocksError::Lock { byte: 300, .. })), "{again:?}");
    }

    #[test]
    fn guests_disks_can_be_shared_by_two_writers_as_qemu_does_in_a_migration() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let _a = LockedFile::take(&path, open(&path), open(&path), &QEMU_LOCKS).unwrap();
        LockedFile::take(&path, open(&path), open(&path), &QEMU_LOCKS).unwrap();
    }
}
