//! Runs code in a network namespace, on threads of their own.
//!
//! A thread that entered a namespace never leaves it: it ends. Callers' threads stay where they
//! were. Files under `/proc/net` belong to the *process leader's* namespace, so code here uses
//! [`rpc_dir`], which resolves through `/proc/thread-self`.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::{Error, Result};

/// Where `/proc/net/rpc` of the *calling thread's* namespace is found.
pub fn rpc_dir() -> PathBuf {
    PathBuf::from("/proc/thread-self/net/rpc")
}

/// An open handle on a network namespace; keeps it alive.
#[derive(Debug, Clone)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
    label: String,
}

impl NetNs {
    /// Opens the namespace behind `path`, as `/run/netns/NAME`.
    pub fn open(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let file = File::open(path)
            .map_err(|source| Error::Namespace { namespace: label.clone(), source })?;
        Ok(NetNs { fd: Arc::new(file.into()), label })
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Its path, for messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Moves the calling thread into the namespace for the rest of its life.
    pub fn enter(&self) -> Result<()> {
        setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Namespace {
            namespace: self.label.clone(),
            source: errno.into(),
        })
    }

    /// Runs `work` on a new thread inside the namespace and waits for it.
    ///
    /// The wait lasts as long as `work`: the caller owns the deadline.
    pub fn run<T, F>(&self, purpose: &'static str, work: F) -> Result<T>
    where
        T: Send,
        F: FnOnce() -> Result<T> + Send,
    {
        thread::scope(|scope| {
            let job = thread::Builder::new()
                .name(purpose.into())
                .spawn_scoped(scope, || self.enter().and_then(|()| work()))
                .map_err(|_| Error::Worker { purpose })?;
            job.join().map_err(|_| Error::Worker { purpose })?
        })
    }

    /// Starts a long-lived thread inside the namespace.
    ///
    /// Returns once the thread has entered (or failed to).
    pub fn spawn<F>(&self, purpose: &'static str, work: F) -> Result<thread::JoinHandle<()>>
    where
        F: FnOnce() + Send + 'static,
    {
        let ns = self.clone();
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let handle = thread::Builder::new()
            .name(purpose.into())
            .spawn(move || {
                let entered = ns.enter();
                let ok = entered.is_ok();
                let _ = tell.send(entered);
                if ok {
                    work();
                }
            })
            .map_err(|_| Error::Worker { purpose })?;
        told.recv().map_err(|_| Error::Worker { purpose })??;
        Ok(handle)
    }
}
