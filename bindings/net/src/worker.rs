//! Owns the one thread per namespace through which links, addresses and filters are changed.
//!
//! Calls block with a deadline (rules S8, S10): the caller goes on after it even if the thread is
//! stuck in the kernel (say, behind a held rtnl lock). A call whose deadline passed while it was
//! still waiting in the queue is never carried out.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rtnetlink::Handle;
use tokio::runtime::Runtime;

use crate::netlink::{Place, refused};
use crate::{NetError, Netns, Result};

type Job = Box<dyn FnOnce(&Inside) + Send>;

/// What a job finds inside the thread.
struct Inside {
    runtime: Runtime,
    handle: Handle,
}

/// A thread that lives in one namespace and carries out calls one after another.
#[derive(Debug)]
pub struct NetnsWorker {
    netns: Netns,
    jobs: mpsc::Sender<Job>,
}

impl NetnsWorker {
    /// Starts the thread. It ends when the worker is dropped and its queue is empty.
    ///
    /// # Errors
    /// [`NetError::Namespace`] if the namespace cannot be entered or has no netlink.
    pub fn start(netns: &Netns) -> Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, wait) = mpsc::sync_channel(1);
        let inside = netns.clone();
        // The handle of the thread is dropped: nothing ever waits for it to end (S10).
        netns.spawn(move || match Inside::new(&inside) {
            Ok(context) => {
                let _ = ready.send(Ok(()));
                while let Ok(job) = queue.recv() {
                    job(&context);
                }
            }
            Err(error) => drop(ready.send(Err(error))),
        })?;
        match wait.recv_timeout(Duration::from_secs(5)) {
            Ok(result) => result?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(NetError::WorkerGone { namespace: netns.name().into() });
            }
            Err(RecvTimeoutError::Timeout) => {
                return Err(NetError::Timeout {
                    namespace: netns.name().into(),
                    action: "start the worker",
                    limit: Duration::from_secs(5),
                });
            }
        }
        Ok(Self { netns: netns.clone(), jobs })
    }

    /// The namespace it works in.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Runs `task` on the thread, inside the namespace, and waits at most `limit`. `action`
    /// names the task in errors.
    ///
    /// # Errors
    /// [`NetError::Timeout`] (outcome unknown), [`NetError::WorkerGone`], and the task's own.
    pub fn call<T: Send + 'static>(
        &self,
        action: &'static str,
        limit: Duration,
        task: impl FnOnce(Instant) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.submit(action, limit, move |_, until| task(until))
    }

    /// Runs an rtnetlink conversation on the thread.
    pub(crate) fn route<T, F>(&self, action: &'static str, limit: Duration, task: F) -> Result<T>
    where
        T: Send + 'static,
        F: AsyncFnOnce(Handle) -> Result<T> + Send + 'static,
    {
        let late = NetError::Timeout { namespace: self.netns.name().into(), action, limit };
        self.submit(action, limit, move |inside, until| {
            let handle = inside.handle.clone();
            inside.runtime.block_on(async {
                match tokio::time::timeout_at(until.into(), task(handle)).await {
                    Ok(result) => result,
                    Err(_) => Err(late),
                }
            })
        })
    }

    fn submit<T: Send + 'static>(
        &self,
        action: &'static str,
        limit: Duration,
        task: impl FnOnce(&Inside, Instant) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let namespace = || self.netns.name().to_owned();
        let until = Instant::now() + limit;
        let (answer, wait) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |inside| {
            // The caller has given up: what it wanted must not happen behind its back.
            if Instant::now() < until {
                let _ = answer.send(task(inside, until));
            }
        });
        self.jobs.send(job).map_err(|_| NetError::WorkerGone { namespace: namespace() })?;
        match wait.recv_timeout(limit) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) if Instant::now() < until => {
                Err(NetError::WorkerGone { namespace: namespace() })
            }
            Err(_) => Err(NetError::Timeout { namespace: namespace(), action, limit }),
        }
    }
}

impl Inside {
    fn new(netns: &Netns) -> Result<Self> {
        let fail = |source| NetError::Namespace {
            name: netns.name().into(),
            action: "open a netlink socket in it",
            source,
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(fail)?;
        let (connection, handle, _events) = {
            let _entered = runtime.enter();
            rtnetlink::new_connection().map_err(fail)?
        };
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }
}

/// The public error for what rtnetlink reports.
pub(crate) fn rt_error(error: rtnetlink::Error, place: &Place<'_>) -> NetError {
    match error {
        rtnetlink::Error::NetlinkError(message) => refused(place, message.to_io()),
        _ => NetError::Malformed {
            namespace: place.namespace.into(),
            action: place.action,
            what: "the netlink conversation broke off",
        },
    }
}

/// The errno, when the kernel answered with one.
pub(crate) fn rt_errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().raw_os_error(),
        _ => None,
    }
}
