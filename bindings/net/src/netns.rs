//! Owns named network namespaces: making, adopting, entering and removing them.
//!
//! A name is a bind mount below `/run/netns`, as the usual `ip netns` commands make it, so that an
//! operator can look inside with them. Entering changes the *network* namespace only: mounts stay
//! as they are (unlike `ip netns exec`, which hides bpffs).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, fstatfs};

use crate::{NetError, Result};

/// Where names live (ip-netns(8)).
pub const NAMESPACE_DIR: &str = "/run/netns";

/// Longest wait for another maker of namespaces to release its lock.
const LOCK_LIMIT: Duration = Duration::from_secs(2);

/// `NSFS_MAGIC` of include/uapi/linux/magic.h.
const NSFS: FsType = FsType(libc::NSFS_MAGIC as _);

/// A network namespace, held open: it lives as long as this value even if its name is removed.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
    fd: Arc<OwnedFd>,
}

/// Identity of a namespace: device and inode of its nsfs file. Two handles with the same id are
/// the same namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

impl Netns {
    /// Makes the namespace `name`, or adopts it when it is there. A leftover file that is not a
    /// mount (a crash between the two steps) is mounted over.
    ///
    /// # Errors
    /// [`NetError::BadNamespaceName`], [`NetError::Namespace`] with the step that failed
    /// (`CAP_SYS_ADMIN` is needed).
    pub fn create(name: &str) -> Result<Self> {
        let path = name_path(name)?;
        let fail = |action| move |source| NetError::Namespace { name: name.into(), action, source };
        prepare_directory().map_err(fail("prepare /run/netns"))?;
        let _lock = lock_directory().map_err(fail("lock /run/netns"))?;
        if let Ok(found) = Self::open(name) {
            return Ok(found);
        }
        place_file(&path).map_err(fail("make its file"))?;
        thread::scope(|scope| scope.spawn(|| mount_new(&path)).join())
            .map_err(|_| NetError::TaskPanicked { name: name.into() })?
            .map_err(fail("make and mount it"))?;
        Self::open(name)
    }

    /// Opens an existing namespace by name.
    ///
    /// # Errors
    /// [`NetError::NamespaceMissing`], [`NetError::NotANamespace`], [`NetError::Namespace`].
    pub fn open(name: &str) -> Result<Self> {
        let path = name_path(name)?;
        Self::open_path(name, &path)
    }

    /// The namespace of the calling thread, under the name `host` in messages.
    ///
    /// # Errors
    /// [`NetError::Namespace`] when `/proc` is not there.
    pub fn current() -> Result<Self> {
        Self::open_path("host", Path::new("/proc/thread-self/ns/net"))
    }

    fn open_path(name: &str, path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => NetError::NamespaceMissing { name: name.into() },
            _ => NetError::Namespace { name: name.into(), action: "open it", source },
        })?;
        match fstatfs(&file) {
            Ok(stat) if stat.filesystem_type() == NSFS => {}
            _ => return Err(NetError::NotANamespace { path: path.into() }),
        }
        Ok(Self { name: name.into(), fd: Arc::new(file.into()) })
    }

    /// Removes the name. Sockets, processes and handles keep the namespace itself alive.
    /// Removing what is not there is no error.
    ///
    /// # Errors
    /// [`NetError::BadNamespaceName`], [`NetError::Namespace`].
    pub fn remove(name: &str) -> Result<()> {
        let path = name_path(name)?;
        // EINVAL: a file that nothing is mounted on; ENOENT: nothing there. Both are fine.
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(NetError::Namespace { name: name.into(), action: "remove its name", source })
            }
            _ => Ok(()),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its identity.
    ///
    /// # Errors
    /// [`NetError::Namespace`] if the descriptor cannot be examined.
    pub fn id(&self) -> Result<NetnsId> {
        let meta = self
            .fd
            .try_clone()
            .and_then(|fd| File::from(fd).metadata())
            .map_err(|source| self.error("examine it", source))?;
        Ok(NetnsId { device: meta.dev(), inode: meta.ino() })
    }

    /// Runs `task` on a fresh thread inside the namespace and waits for it. The wait has no
    /// deadline of its own: for calls into the kernel use [`crate::NetnsWorker`].
    ///
    /// # Errors
    /// [`NetError::Namespace`] if it cannot be entered, [`NetError::TaskPanicked`].
    pub fn run<T: Send>(&self, task: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            thread::Builder::new()
                .name(self.thread_name())
                .spawn_scoped(scope, || self.enter().map(|()| task()))
                .map_err(|source| self.error("start a thread", source))?
                .join()
                .map_err(|_| NetError::TaskPanicked { name: self.name.clone() })?
        })
    }

    /// Starts `task` on a fresh thread inside the namespace. If the thread cannot enter, the task
    /// does not run and joining gives the error.
    ///
    /// # Errors
    /// [`NetError::Namespace`] if no thread can be started.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let here = self.clone();
        thread::Builder::new()
            .name(self.thread_name())
            .spawn(move || here.enter().map(|()| task()))
            .map_err(|source| self.error("start a thread", source))
    }

    /// Has the child of `command` run inside the namespace (network only). For tokio's command
    /// use its `as_std_mut`.
    pub fn enter_on_exec(&self, command: &mut Command) {
        crate::sys::spawn::enter_before_exec(command, Arc::clone(&self.fd));
    }

    /// Moves the calling thread into the namespace, for good.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&*self.fd, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| self.error("enter it", errno.into()))
    }

    pub(crate) fn raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    fn error(&self, action: &'static str, source: io::Error) -> NetError {
        NetError::Namespace { name: self.name.clone(), action, source }
    }

    /// Thread names are cut at 15 bytes by the kernel.
    fn thread_name(&self) -> String {
        format!("net-{}", self.name)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Path of a name, if it is a plain file name.
fn name_path(name: &str) -> Result<PathBuf> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 255 || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(NetError::BadNamespaceName { name: name.into() });
    }
    Ok(Path::new(NAMESPACE_DIR).join(name))
}

/// Makes the directory a shared mount, so that names made in one mount namespace are seen, and
/// can be removed, in the others (mount_namespaces(7)).
fn prepare_directory() -> io::Result<()> {
    let dir = Path::new(NAMESPACE_DIR);
    fs::DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    let share = || change(None, dir, MsFlags::MS_SHARED | MsFlags::MS_REC);
    match share() {
        // Not a mount point yet: bind it to itself first.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            change(Some(dir), dir, MsFlags::MS_BIND | MsFlags::MS_REC)?;
            share()
        }
        other => other,
    }
}

/// Serialises makers, nasd's and others', by the directory's lock.
fn lock_directory() -> io::Result<Flock<File>> {
    let until = Instant::now() + LOCK_LIMIT;
    let mut file = File::open(NAMESPACE_DIR)?;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, errno)) if Instant::now() >= until => return Err(errno.into()),
            Err((back, _)) => file = back,
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn place_file(path: &Path) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).mode(0o444).open(path).map(drop)
}

/// On a thread of its own: leaves for a new namespace and mounts it over `path`.
fn mount_new(path: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    change(Some(Path::new("/proc/thread-self/ns/net")), path, MsFlags::MS_BIND)
}

fn change(source: Option<&Path>, target: &Path, flags: MsFlags) -> io::Result<()> {
    mount(source, target, None::<&str>, flags, None::<&str>).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_name_never_leaves_the_directory(name in any::<String>()) {
            if let Ok(path) = name_path(&name) {
                prop_assert_eq!(path.parent(), Some(Path::new(NAMESPACE_DIR)));
                prop_assert_eq!(path.file_name().and_then(|n| n.to_str()), Some(name.as_str()));
            }
        }
    }

    #[test]
    fn dots_and_slashes_are_refused() {
        for name in ["", ".", "..", "a/b", "/", "a b", "\0"] {
            assert!(name_path(name).is_err(), "{name:?}");
        }
        assert!(name_path("nasd-vms.1").is_ok());
    }
}
