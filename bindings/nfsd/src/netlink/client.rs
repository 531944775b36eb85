//! The client: one thread in the service's namespace that owns the socket, callers with deadlines.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::model::{Listener, Running, RunningCall, Threads, ThreadsChange, Version};
use super::socket::{Deadline, Genl, Reply, refused};
use super::wire;
use super::{Command, NetlinkError};
use crate::netns::NetNs;

/// Requests that may wait while one is stuck in the kernel; more are refused as late.
const QUEUE: usize = 4;

type Result<T> = std::result::Result<T, NetlinkError>;
type Job = Box<dyn FnOnce(&mut Link) + Send>;

/// The thread's socket; opened when needed and again after a failure.
#[derive(Debug, Default)]
struct Link(Option<Genl>);

impl Link {
    fn request(
        &mut self,
        command: Command,
        flags: u16,
        attrs: &[u8],
        deadline: &Deadline,
    ) -> Result<Reply> {
        if deadline.left().is_zero() {
            return Err(deadline.late());
        }
        let mut genl = match self.0.take() {
            Some(genl) => genl,
            None => Genl::open()?,
        };
        let reply = genl.request(command, flags, attrs, deadline)?;
        // Only a socket without a loose end is used again; refusals may come from a family
        // that has another number by now (the module was loaded anew).
        if reply.errno == 0 {
            self.0 = Some(genl);
        }
        Ok(reply)
    }
}

/// Speaks to the `nfsd` family in one network namespace. Clones share the thread.
#[derive(Debug, Clone)]
pub struct Client {
    ns: NetNs,
    jobs: Arc<Mutex<Option<SyncSender<Job>>>>,
}

impl Client {
    /// Starts nothing yet: the thread comes with the first request and ends with the last clone.
    pub fn new(ns: NetNs) -> Self {
        Client { ns, jobs: Arc::default() }
    }

    /// The calls that threads execute now; none without a server.
    ///
    /// A call counts from when it has been decoded until its procedure has run (`nfsd_dispatch`);
    /// encoding and sending of the reply follow. Calls that wait in a socket do not count: they
    /// have not been executed.
    ///
    /// # Errors
    /// See [`NetlinkError`]; none of them means that nothing runs.
    pub fn running(&self, limit: Duration) -> Result<Running> {
        let command = Command::RpcStatusGet;
        let reply = self.call("calls in execution", limit, command, wire::DUMP, Vec::new())?;
        running(reply)
    }

    /// Threads, lease, grace and scope.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn threads(&self, limit: Duration) -> Result<Threads> {
        Ok(Threads::decode(&self.get("threads", limit, Command::ThreadsGet)?)?)
    }

    /// Starts or stops threads, as a write to `threads` does but with a scope of its own choice.
    /// Takes as long as that, tracker included.
    ///
    /// # Errors
    /// `Refused` with EBUSY if times or scope are given while threads run, EINVAL if a time is
    /// not 10 to 3600 s. After `Late` the kernel goes on: read back.
    pub fn set_threads(&self, change: &ThreadsChange, limit: Duration) -> Result<()> {
        self.set("start of threads", limit, Command::ThreadsSet, change.encode())
    }

    /// Versions that the kernel knows, and whether they are served.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn versions(&self, limit: Duration) -> Result<Vec<Version>> {
        Ok(Version::decode_all(&self.get("versions", limit, Command::VersionGet)?)?)
    }

    /// 4.1 and 4.2, and nothing else.
    ///
    /// # Errors
    /// `Refused` with EBUSY while a server exists.
    pub fn serve_v41_and_v42(&self, limit: Duration) -> Result<()> {
        let attrs = Version::encode_all(&Version::SERVED);
        self.set("choice of versions", limit, Command::VersionSet, attrs)
    }

    /// The listeners, one per address family.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn listeners(&self, limit: Duration) -> Result<Vec<Listener>> {
        Ok(Listener::decode_all(&self.get("listeners", limit, Command::ListenerGet)?)?)
    }

    /// Makes the listeners exactly these; an empty list removes the server that waits for threads.
    ///
    /// # Errors
    /// `Refused` with EBUSY while threads run.
    pub fn set_listeners(&self, listeners: &[Listener], limit: Duration) -> Result<()> {
        let attrs = Listener::encode_all(listeners);
        self.set("change of listeners", limit, Command::ListenerSet, attrs)
    }

    fn get(&self, what: &'static str, limit: Duration, command: Command) -> Result<Vec<u8>> {
        self.call(what, limit, command, wire::ACK, Vec::new())?.single(command)
    }

    fn set(
        &self,
        what: &'static str,
        limit: Duration,
        command: Command,
        attrs: Vec<u8>,
    ) -> Result<()> {
        self.call(what, limit, command, wire::ACK, attrs)?.accepted(command).map(drop)
    }

    /// Has the thread do it, and waits no longer than `limit`.
    fn call(
        &self,
        what: &'static str,
        limit: Duration,
        command: Command,
        flags: u16,
        attrs: Vec<u8>,
    ) -> Result<Reply> {
        let deadline = Deadline { at: Instant::now() + limit, limit, what };
        let (tell, told) = sync_channel(1);
        self.submit(
            Box::new(move |link| {
                let _ = tell.send(link.request(command, flags, &attrs, &deadline));
            }),
            &deadline,
        )?;
        match told.recv_timeout(deadline.left()) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(deadline.late()),
            Err(RecvTimeoutError::Disconnected) => Err(self.dead()),
        }
    }

    fn submit(&self, job: Job, deadline: &Deadline) -> Result<()> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = match jobs.take() {
            Some(sender) => sender,
            None => self.start()?,
        };
        match sender.try_send(job) {
            Ok(()) => {
                *jobs = Some(sender);
                Ok(())
            }
            Err(TrySendError::Full(_)) => {
                *jobs = Some(sender);
                Err(deadline.late())
            }
            Err(TrySendError::Disconnected(_)) => Err(self.dead()),
        }
    }

    fn start(&self) -> Result<SyncSender<Job>> {
        let (sender, queue) = sync_channel::<Job>(QUEUE);
        let work = move || {
            let mut link = Link::default();
            while let Ok(job) = queue.recv() {
                job(&mut link);
            }
        };
        // Nobody waits for the thread to end: it may be stuck in the kernel (S10).
        self.ns.spawn("nfsd-netlink", work).map(drop).map_err(|error| {
            tracing::warn!(%error, "netlink thread");
            self.dead()
        })?;
        Ok(sender)
    }

    fn dead(&self) -> NetlinkError {
        NetlinkError::Worker { namespace: self.ns.label().into() }
    }
}

/// ENODEV: no server. ENOBUFS after some calls: the dump had no room for the rest.
fn running(reply: Reply) -> Result<Running> {
    let command = Command::RpcStatusGet;
    let more = reply.errno == libc::ENOBUFS && !reply.bodies.is_empty();
    if !more && reply.errno != 0 && reply.errno != libc::ENODEV {
        return Err(refused(command, reply.errno));
    }
    let calls: std::result::Result<Vec<_>, _> =
        reply.bodies.iter().map(|body| RunningCall::decode(body)).collect();
    Ok(Running { calls: calls?, more })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::wire::Writer;

    fn reply(calls: usize, errno: i32) -> Reply {
        let body = Writer::default().u32(1, 7).finish();
        Reply { bodies: vec![body; calls], errno }
    }

    #[test]
    fn s12_only_a_whole_answer_says_that_nothing_runs() {
        assert_eq!(running(reply(0, 0)).unwrap(), Running::default());
        assert_eq!(running(reply(0, libc::ENODEV)).unwrap(), Running::default());
        assert!(running(reply(0, libc::ENOBUFS)).is_err());
        assert!(running(reply(0, libc::EIO)).is_err());
        let cut = running(reply(3, libc::ENOBUFS)).unwrap();
        assert_eq!((cut.calls.len(), cut.more), (3, true));
    }

    #[test]
    fn s10_a_stuck_thread_holds_up_nobody() {
        let client = Client::new(NetNs::current().unwrap());
        let limit = Duration::from_millis(30);
        let deadline = Deadline { at: Instant::now() + limit, limit, what: "a test" };
        let (release, stuck) = sync_channel::<()>(1);
        client.submit(Box::new(move |_| stuck.recv().unwrap_or_default()), &deadline).unwrap();
        let began = Instant::now();
        for _ in 0..QUEUE + 3 {
            assert!(matches!(client.running(limit), Err(NetlinkError::Late { .. })));
        }
        assert!(began.elapsed() < Duration::from_secs(2));
        drop(release);
        // What waited is thrown away as late; then the thread serves again.
        let until = Instant::now() + Duration::from_secs(5);
        let served = |client: &Client| {
            let again = client.running(Duration::from_secs(1));
            !matches!(again, Err(NetlinkError::Late { .. } | NetlinkError::Worker { .. }))
        };
        while !served(&client) {
            assert!(Instant::now() < until, "the thread never came back");
        }
    }
}
