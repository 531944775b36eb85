//! The loop that waits for the pipe, opens it and answers.
//!
//! The pipe vanishes when the server stops and comes back with the next start; the loop outlives
//! both. It sees the pipe through inotify on its directory, with a short poll as second means.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::ControlFlow::{self, Break, Continue};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::{Deserialize, Serialize};

use super::inflight::InFlight;
use super::wire::{Command, LEN_V2, Reply, Request};
use super::{ClientRecords, WireError};
use crate::records::RecordsError;
use crate::{Error, Result, urgent};

/// How often the loop looks by itself. The kernel gives a reader 100 ms at the least before its
/// first look, so this is quick enough even if inotify said nothing.
const LOOK_MS: u8 = 20;

/// What the tracker has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrackerStatus {
    /// The directory is watched: the next start will find a reader.
    pub ready: bool,
    /// The kernel's pipe is open.
    pub pipe_open: bool,
    /// How often a pipe was opened.
    pub pipe_opens: u64,
    /// `GraceStart` answered with a list, since the tracker was made.
    pub grace_starts: u64,
    /// Upcalls that had to be refused: the server's client records are not complete.
    pub failures: u64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    pipe_open: AtomicBool,
    pipe_opens: AtomicU64,
    grace_starts: AtomicU64,
    failures: AtomicU64,
    ready: Mutex<bool>,
    became_ready: Condvar,
}

impl Shared {
    fn ready(&self) -> MutexGuard<'_, bool> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running tracker; dropping it ends its thread.
#[derive(Debug)]
pub struct Tracker {
    shared: Arc<Shared>,
    cpu: Option<usize>,
    thread: Option<JoinHandle<()>>,
}

impl Tracker {
    /// Starts serving `<pipefs>/nfsd/cld`. Not bound to a namespace: the mount decides.
    pub fn spawn(pipefs: &Path, records: Arc<dyn ClientRecords>) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let cpu = urgent::some_cpu();
        let inflight = InFlight::open(pipefs)
            .map_err(|source| Error::Control { file: pipefs.with_extension("inflight"), source })?;
        let dir = pipefs.join("nfsd");
        let service = Service { dir, shared: Arc::clone(&shared), records, cpu, inflight };
        let thread = thread::Builder::new()
            .name("nfsd-tracker".into())
            .spawn(move || service.run())
            .map_err(|_| Error::Worker { purpose: "client tracker" })?;
        Ok(Tracker { shared, cpu, thread: Some(thread) })
    }

    /// The processor the tracker is bound to. A thread that starts the server from the same
    /// one spares itself the kernel's 100 ms wait for the tracker.
    pub fn cpu(&self) -> Option<usize> {
        self.cpu
    }

    /// Waits until the next start of the server will find a reader; false after `deadline`.
    pub fn wait_ready(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        let mut ready = self.shared.ready();
        while !*ready {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.became_ready.wait_timeout(ready, left);
            ready = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Counters and state.
    pub fn status(&self) -> TrackerStatus {
        TrackerStatus {
            ready: *self.shared.ready(),
            pipe_open: self.shared.pipe_open.load(Ordering::Acquire),
            pipe_opens: self.shared.pipe_opens.load(Ordering::Acquire),
            grace_starts: self.shared.grace_starts.load(Ordering::Acquire),
            failures: self.shared.failures.load(Ordering::Acquire),
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Service {
    dir: PathBuf,
    shared: Arc<Shared>,
    records: Arc<dyn ClientRecords>,
    cpu: Option<usize>,
    inflight: InFlight,
}

impl Service {
    /// Does again what a predecessor took from this pipe and did not answer.
    fn finish_predecessor(&self, pipe: &mut File) {
        let Some(message) = self.inflight.left() else { return };
        tracing::warn!("a predecessor left a tracker upcall unanswered; doing it again");
        if let Err(error) = self.answer(pipe, &message) {
            tracing::warn!(%error, "the kernel did not wait for it");
        }
        self.clear_note();
    }

    fn clear_note(&self) {
        if let Err(error) = self.inflight.clear() {
            tracing::error!(%error, "note of a tracker upcall cannot be cleared");
        }
    }

    /// Answers one upcall, noted meanwhile for a successor.
    fn take(&self, pipe: &mut File, message: &[u8]) -> ControlFlow<()> {
        if let Err(error) = self.inflight.note(message) {
            tracing::error!(%error, "tracker upcall cannot be noted");
        }
        let flow = self.answer_to(pipe, message);
        self.clear_note();
        flow
    }

    /// Prepares the race for the pipe; failing to costs 100 ms and nothing else.
    fn hurry(&self) {
        let bound = self.cpu.map_or(Ok(()), urgent::bind_to);
        let urgent = bound.and_then(|()| urgent::outrank()).or_else(|_| urgent::be_first());
        if let Err(error) = urgent {
            tracing::info!(%error, "client tracker runs at ordinary priority");
        }
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    fn set_ready(&self, ready: bool) {
        *self.shared.ready() = ready;
        self.shared.became_ready.notify_all();
    }

    fn run(&self) {
        self.hurry();
        let watch = self.watch();
        if let Err(error) = &watch {
            tracing::warn!(%error, "no inotify on the tracker directory, polling it instead");
        }
        self.serve_present(watch.as_ref().ok());
        while !self.stopped() {
            self.set_ready(self.dir.is_dir());
            match self.open_pipe() {
                Ok(pipe) => self.serve_pipe(pipe, watch.as_ref().ok()),
                Err(_) => wait_for_change(watch.as_ref().ok()),
            }
        }
        self.set_ready(false);
    }

    /// A pipe that is there at the beginning was a predecessor's.
    fn serve_present(&self, watch: Option<&Inotify>) {
        match self.open_pipe() {
            Ok(mut pipe) => {
                self.set_ready(true);
                self.finish_predecessor(&mut pipe);
                self.serve_pipe(pipe, watch);
            }
            // No server is left that could wait for an answer.
            Err(_) => self.clear_note(),
        }
    }

    fn open_pipe(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.dir.join("cld"))
    }

    fn watch(&self) -> nix::Result<Inotify> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(&self.dir, AddWatchFlags::IN_CREATE)?;
        Ok(inotify)
    }

    /// Answers until the pipe goes away or the tracker is stopped.
    ///
    /// The kernel does not wake a poller when it removes the pipe (`rpc_close_pipes`); a start
    /// right after a stop is seen by the new pipe's creation.
    fn serve_pipe(&self, mut pipe: File, watch: Option<&Inotify>) {
        // The creation of this very pipe is no news.
        drop(watch.map(Inotify::read_events));
        self.shared.pipe_open.store(true, Ordering::Release);
        self.shared.pipe_opens.fetch_add(1, Ordering::AcqRel);
        while !self.stopped() && self.one_round(&mut pipe, watch).is_continue() {}
        self.shared.pipe_open.store(false, Ordering::Release);
    }

    fn one_round(&self, pipe: &mut File, watch: Option<&Inotify>) -> ControlFlow<()> {
        let mut fds = vec![PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        fds.extend(watch.map(|watch| PollFd::new(watch.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::from(LOOK_MS)) {
            Ok(0) | Err(Errno::EINTR) => return Continue(()),
            Ok(_) => {}
            Err(_) => return Break(()),
        }
        let events =
            |at: usize| fds.get(at).and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        let (events, created) = (events(0), events(1).contains(PollFlags::POLLIN));
        if created
            || events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL)
        {
            return Break(());
        }
        if !events.contains(PollFlags::POLLIN) {
            return Continue(());
        }
        let mut buffer = [0; LEN_V2];
        match pipe.read(&mut buffer) {
            Ok(0) => Continue(()),
            Ok(length) => self.take(pipe, buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Continue(()),
            Err(_) => Break(()),
        }
    }

    fn answer_to<P: Write>(&self, pipe: &mut P, bytes: &[u8]) -> ControlFlow<()> {
        match self.answer(pipe, bytes) {
            Ok(()) => Continue(()),
            // EINVAL: the kernel has given up on this upcall; the pipe itself is fine.
            Err(Failure::Pipe(error)) if error.raw_os_error() == Some(Errno::EINVAL as i32) => {
                tracing::warn!("the kernel no longer waits for this tracker answer");
                Continue(())
            }
            Err(error) => {
                tracing::warn!(%error, "tracker pipe closed");
                Break(())
            }
        }
    }

    fn answer<P: Write>(&self, pipe: &mut P, bytes: &[u8]) -> std::result::Result<(), Failure> {
        let request = Request::parse(bytes)?;
        tracing::debug!(command = ?request.command(), xid = request.xid(), "tracker upcall");
        let reply = match request.command() {
            Command::GetVersion => Reply::Version,
            Command::Unknown(_) => Reply::Failed(Errno::EOPNOTSUPP as i32),
            Command::GraceStart => self.grace_start(pipe, &request)?,
            Command::GraceDone => self.done(self.records.grace_done()),
            Command::Create => self.done(self.records.create(&request.client()?)),
            Command::Remove => self.done(self.records.remove(&request.client()?)),
            Command::Check => match self.records.may_reclaim(&request.client()?) {
                Ok(false) => Reply::Failed(Errno::EACCES as i32),
                other => self.done(other.map(|_| ())),
            },
        };
        Ok(pipe.write_all(&request.reply(reply))?)
    }

    fn done(&self, outcome: std::result::Result<(), RecordsError>) -> Reply {
        match outcome {
            Ok(()) => Reply::Done,
            Err(error) => {
                self.shared.failures.fetch_add(1, Ordering::AcqRel);
                tracing::error!(%error, "client records failed");
                Reply::Failed(Errno::EIO as i32)
            }
        }
    }

    fn grace_start<P: Write>(
        &self,
        pipe: &mut P,
        request: &Request,
    ) -> std::result::Result<Reply, Failure> {
        let clients = match self.records.grace_start() {
            Ok(clients) => clients,
            Err(error) => return Ok(self.done(Err(error))),
        };
        for client in &clients {
            pipe.write_all(&request.progress(client)?)?;
        }
        self.shared.grace_starts.fetch_add(1, Ordering::AcqRel);
        Ok(Reply::Done)
    }
}

/// Sleeps until something is created in the directory, at most [`LOOK_MS`].
fn wait_for_change(inotify: Option<&Inotify>) {
    let Some(inotify) = inotify else {
        return thread::sleep(Duration::from_millis(LOOK_MS.into()));
    };
    let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
    if matches!(poll(&mut fds, PollTimeout::from(LOOK_MS)), Ok(1..)) {
        let _ = inotify.read_events();
    }
}

/// Why no answer was given.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("pipe: {0}")]
    Pipe(#[from] io::Error),
}

#[cfg(test)]
mod tests {
    use super::super::wire::tests::upcall;
    use super::*;
    use crate::records::ClientRecord;

    fn named(name: &str) -> ClientRecord {
        ClientRecord { name: name.into(), princhash: vec![7; 32] }
    }

    #[derive(Default)]
    struct Fake {
        list: Vec<ClientRecord>,
        created: Mutex<Vec<ClientRecord>>,
        broken: bool,
    }

    impl ClientRecords for Fake {
        fn create(&self, client: &ClientRecord) -> std::result::Result<(), RecordsError> {
            self.created.lock().unwrap().push(client.clone());
            if self.broken { Err(RecordsError::NotLoaded) } else { Ok(()) }
        }
        fn remove(&self, _: &ClientRecord) -> std::result::Result<(), RecordsError> {
            Ok(())
        }
        fn may_reclaim(&self, client: &ClientRecord) -> std::result::Result<bool, RecordsError> {
            Ok(self.list.contains(client))
        }
        fn grace_start(&self) -> std::result::Result<Vec<ClientRecord>, RecordsError> {
            if self.broken { Err(RecordsError::NotLoaded) } else { Ok(self.list.clone()) }
        }
        fn grace_done(&self) -> std::result::Result<(), RecordsError> {
            Ok(())
        }
    }

    fn service(fake: Fake) -> (Service, Arc<Fake>) {
        let fake = Arc::new(fake);
        let records: Arc<dyn ClientRecords> = fake.clone();
        let dir = tempfile::tempdir().unwrap();
        let inflight = InFlight::open(&dir.path().join("p")).unwrap();
        let dir = "/nonexistent".into();
        (Service { dir, shared: Arc::default(), records, cpu: None, inflight }, fake)
    }

    fn statuses(bytes: &[u8]) -> Vec<i16> {
        bytes.chunks(LEN_V2).map(|m| i16::from_ne_bytes([m[2], m[3]])).collect()
    }

    #[test]
    fn grace_start_streams_each_client_then_success() {
        let (service, _) = service(Fake { list: vec![named("a"), named("b")], ..Fake::default() });
        let mut out = Vec::new();
        service.answer(&mut out, &upcall(4, 9, None, true)).unwrap();
        assert_eq!(statuses(&out), [-115, -115, 0]);
        let second = Request::parse(&out[LEN_V2..2 * LEN_V2]).unwrap();
        assert_eq!((second.client().unwrap(), second.xid()), (named("b"), 9));
        assert_eq!(service.shared.grace_starts.load(Ordering::Acquire), 1);
    }

    #[test]
    fn unknown_records_refuse_grace_start_instead_of_saying_empty() {
        let (service, _) = service(Fake { broken: true, ..Fake::default() });
        let mut out = Vec::new();
        service.answer(&mut out, &upcall(4, 9, None, true)).unwrap();
        assert_eq!(statuses(&out), [-5]);
        assert_eq!(service.shared.grace_starts.load(Ordering::Acquire), 0);
        assert_eq!(service.shared.failures.load(Ordering::Acquire), 1);
    }

    #[test]
    fn create_and_check_reach_the_records() {
        let (service, fake) = service(Fake { list: vec![named("a")], ..Fake::default() });
        let mut out = Vec::new();
        service.answer(&mut out, &upcall(0, 1, Some(&named("n")), true)).unwrap();
        service.answer(&mut out, &upcall(2, 2, Some(&named("a")), true)).unwrap();
        service.answer(&mut out, &upcall(2, 3, Some(&named("z")), true)).unwrap();
        assert_eq!(statuses(&out), [0, 0, -13]);
        assert_eq!(*fake.created.lock().unwrap(), [named("n")]);
    }

    fn wait_opens(tracker: &Tracker, opens: u64) {
        let until = Instant::now() + Duration::from_secs(5);
        while tracker.status().pipe_opens < opens && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(tracker.status().pipe_opens >= opens);
    }

    #[test]
    fn loop_opens_a_pipe_that_appears_and_again_after_it_broke() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("nfsd")).unwrap();
        let tracker = Tracker::spawn(dir.path(), Arc::new(Fake::default())).unwrap();
        assert!(tracker.wait_ready(Duration::from_secs(5)));
        assert!(!tracker.status().pipe_open);
        let pipe = dir.path().join("nfsd/cld");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        wait_opens(&tracker, 1);
        OpenOptions::new().write(true).open(&pipe).unwrap().write_all(b"garbage").unwrap();
        wait_opens(&tracker, 2);
    }

    #[test]
    fn s9_an_upcall_taken_by_a_dead_predecessor_is_done_and_answered() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("nfsd")).unwrap();
        let pipe = dir.path().join("nfsd/cld");
        std::fs::write(&pipe, b"").unwrap();
        let message = upcall(0, 5, Some(&named("n")), true);
        InFlight::open(dir.path()).unwrap().note(&message).unwrap();
        let fake = Arc::new(Fake::default());
        let records: Arc<dyn ClientRecords> = fake.clone();
        let tracker = Tracker::spawn(dir.path(), records).unwrap();
        wait_opens(&tracker, 1);
        drop(tracker);
        assert_eq!(*fake.created.lock().unwrap(), [named("n")]);
        let answer = Request::parse(&std::fs::read(&pipe).unwrap()).unwrap();
        assert_eq!((answer.xid(), answer.client().unwrap()), (5, named("n")));
        assert_eq!(InFlight::open(dir.path()).unwrap().left(), None);
    }

    #[test]
    fn not_ready_without_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let tracker = Tracker::spawn(dir.path(), Arc::new(Fake::default())).unwrap();
        assert!(!tracker.wait_ready(Duration::from_millis(60)));
    }
}
