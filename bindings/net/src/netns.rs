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
use std::sync::{Arc, mpsc};
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

    /// Starts `task` on a fresh thread inside the namespace. Returns once the thread has entered.
    ///
    /// # Errors
    /// [`NetError::Namespace`] if it cannot be entered.
    pub fn spawn<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        let (entered, wait) = mpsc::sync_channel(1);
        let (go, started) = mpsc::sync_channel::<()>(1);
        let here = self.clone();
        thread::Builder::new()
            .name(self.thread_name())
            .spawn(move || {
                let _ = entered.send(here.enter());
                // The answer is in flight; the task starts at once when the way in was open.
                task()
            })
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
