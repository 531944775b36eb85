//! The one task that owns the [`Book`], and the handle by which others reach it.
//!
//! Keeps S8: what a service's task tells is put into a channel and never waited for; a slow reader loses its
//! stream; a question that is not answered in time is a no (S12).

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nasd_proto::agent_message::Kind;
use nasd_proto::{AgentNews, HostReportReply, HostStall};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tonic::Status;

use super::StreamId;
use super::book::{Book, Out};
use super::number::MoveId;
use super::services::{Said, Terms};
use super::status::{Hypervisors, KnownHost};
use crate::core::preflight::Finding;
use crate::core::view::Now;

/// How often time is looked at.
const TICK: Duration = Duration::from_millis(200);
/// Time for an answer from memory.
const ANSWER: Duration = Duration::from_millis(500);
/// Questions and messages of agents that may wait.
const INBOX: usize = 256;
/// News that may wait; a channel of its own, so that agents cannot fill it.
const NEWS: usize = 128;
/// Messages that one agent may leave unread.
pub const UNREAD: usize = 64;

/// A planned move, as it is announced.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The service.
    pub service: String,
    /// Epoch that the move would write, and all else of it.
    pub terms: Terms,
}

/// Why a host's agent is not forgotten.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotForgotten {
    /// It lives; planned moves go on to ask it.
    #[error("hvagent of {host} spoke {} s ago: it lives", ago.as_secs())]
    Answers {
        /// The host.
        host: String,
        /// Since when it is silent.
        ago: Duration,
    },
    /// The task did not answer in time.
    #[error("whether planned moves still wait for hvagent of {host} is not known")]
    NotKnown {
        /// The host.
        host: String,
    },
}

/// What goes to one agent's stream.
pub type Outbox = mpsc::Sender<Result<AgentNews, Status>>;

/// An agent that wants to attach.
#[derive(Debug)]
pub struct Attaching {
    /// Its host, by its certificate.
    pub host: String,
    /// Its version.
    pub version: String,
    /// Where it reads.
    pub outbox: Outbox,
    /// Dropped when its stream is over for us.
    pub alive: oneshot::Sender<()>,
}

enum Command {
    Attach(Attaching, oneshot::Sender<Option<StreamId>>),
    Heard(StreamId, Kind),
    Detach(StreamId),
    Announce(Ask, oneshot::Sender<Vec<Finding>>),
    Look { service: String, predicted_ms: u32, force: bool, reply: oneshot::Sender<Vec<Finding>> },
    Abort(String, oneshot::Sender<bool>),
    Standing(String, oneshot::Sender<Option<Vec<Finding>>>),
    Moving { service: String, epoch: u64, reply: oneshot::Sender<MoveId> },
    Stalls { service: String, until: Instant, reply: oneshot::Sender<Vec<HostStall>> },
    Status(oneshot::Sender<BTreeMap<String, Hypervisors>>),
    Report(String, oneshot::Sender<HostReportReply>),
    Attached(oneshot::Sender<Vec<String>>),
    Known(oneshot::Sender<Vec<KnownHost>>),
    Forget(String, oneshot::Sender<Result<(), Duration>>),
}

/// The handle; cheap to clone.
#[derive(Debug, Clone)]
pub struct Agents {
    commands: mpsc::Sender<Command>,
    news: mpsc::Sender<(String, Said)>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command")
    }
}

impl Agents {
    /// Starts the task. It ends with the last handle.
    #[must_use]
    pub fn start(book: Book) -> Self {
        let (commands, inbox) = mpsc::channel(INBOX);
        let (news, told) = mpsc::channel(NEWS);
        tokio::spawn(Task::new(book).run(inbox, told));
        Self { commands, news }
    }

    /// Tells what happened to a service. Never waits: a full channel loses it, and agents then see for
    /// themselves.
    pub fn say(&self, service: &str, said: Said) {
        if let Err(error) = self.news.try_send((service.to_owned(), said)) {
            tracing::error!(service, ?said, %error, "not told to the hypervisors");
        }
    }

    async fn ask<T>(
        &self,
        limit: Duration,
        make: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Option<T> {
        let (tx, rx) = oneshot::channel();
        let asked = async {
            self.commands.send(make(tx)).await.ok()?;
            rx.await.ok()
        };
        tokio::time::timeout(limit, asked).await.ok().flatten()
    }

    /// Announces a move and waits until all are ready, the time is over, or they will not be. Whatever refuses
    /// in the answer, the announcement is withdrawn already; otherwise it holds until [`Agents::say`] ends it.
    pub async fn announce(&self, ask: Ask) -> Vec<Finding> {
        let (limit, service) = (ask.terms.wait + ANSWER * 4, ask.service.clone());
        let answer = self.ask(limit, |reply| Command::Announce(ask, reply)).await;
        answer.unwrap_or_else(|| {
            self.say(&service, Said::Withdrawn { epoch: 0 });
            vec![unknown()]
        })
    }

    /// What the agents say now; nothing is announced.
    pub async fn look(&self, service: &str, predicted_ms: u32, force: bool) -> Vec<Finding> {
        let service = service.to_owned();
        let make = |reply| Command::Look { service, predicted_ms, force, reply };
        self.ask(ANSWER, make).await.unwrap_or_else(|| vec![unknown()])
    }

    /// Ends the waiting for hypervisors; false: nobody waited.
    pub async fn abort(&self, service: &str) -> bool {
        let service = service.to_owned();
        self.ask(ANSWER, |reply| Command::Abort(service, reply)).await.unwrap_or(false)
    }

    /// What speaks against the announced move by now; `None`: none is announced.
    pub async fn standing(&self, service: &str) -> Option<Vec<Finding>> {
        let service = service.to_owned();
        let told = self.ask(ANSWER, |reply| Command::Standing(service, reply)).await;
        told.unwrap_or_else(|| Some(vec![unknown()]))
    }

    /// The number of the move that now begins; 0 when it is not told in time.
    pub async fn moving(&self, service: &str, epoch: u64) -> MoveId {
        let service = service.to_owned();
        self.ask(ANSWER, |reply| Command::Moving { service, epoch, reply }).await.unwrap_or(0)
    }

    /// Stalls of the last move: at once when every host has told its own, at the latest after `wait`.
    pub async fn stalls(&self, service: &str, wait: Duration) -> Vec<HostStall> {
        let (service, until) = (service.to_owned(), Instant::now() + wait);
        let make = |reply| Command::Stalls { service, until, reply };
        self.ask(wait + ANSWER, make).await.unwrap_or_default()
    }

    /// For the status document; `None`: the task does not answer.
    pub async fn status(&self) -> Option<BTreeMap<String, Hypervisors>> {
        self.ask(ANSWER, Command::Status).await
    }

    /// What a host told of itself last.
    pub async fn report(&self, host: &str) -> Option<HostReportReply> {
        let host = host.to_owned();
        self.ask(ANSWER, |reply| Command::Report(host, reply)).await
    }

    /// Hosts whose agents are attached.
    pub async fn attached(&self) -> Vec<String> {
        self.ask(ANSWER, Command::Attached).await.unwrap_or_default()
    }

    /// All hosts, attached or not; `None`: the task does not answer.
    pub async fn known(&self) -> Option<Vec<KnownHost>> {
        self.ask(ANSWER, Command::Known).await
    }

    /// Forgets a host that is proven dead: no planned move waits for its agent any more. Done as well when no
    /// such host is known.
    ///
    /// # Errors
    /// [`NotForgotten`].
    pub async fn forget(&self, host: &str) -> Result<(), NotForgotten> {
        let name = host.to_owned();
        match self.ask(ANSWER, |reply| Command::Forget(name, reply)).await {
            Some(Ok(())) => Ok(()),
            Some(Err(ago)) => Err(NotForgotten::Answers { host: host.to_owned(), ago }),
            None => Err(NotForgotten::NotKnown { host: host.to_owned() }),
        }
    }

    /// An agent attaches; `None`: there is no place for it.
    pub async fn attach(&self, attaching: Attaching) -> Option<StreamId> {
        self.ask(ANSWER * 4, |reply| Command::Attach(attaching, reply)).await.flatten()
    }

    /// Passes on what an agent said. Waits while the task is behind, which slows that agent only; false: the
    /// task has ended.
    pub async fn heard(&self, stream: StreamId, kind: Kind) -> bool {
        self.commands.send(Command::Heard(stream, kind)).await.is_ok()
    }

    /// The agent's stream has ended.
    pub async fn detach(&self, stream: StreamId) {
        // A task that has ended has no streams.
        let _ = self.commands.send(Command::Detach(stream)).await;
    }
}

fn unknown() -> Finding {
    Finding::refusal(
        "hypervisors-unknown",
        "nasd's task for the hypervisors does not answer",
        "see the journal of nasd on the owner",
    )
}

/// One agent's stream.
struct Stream {
    outbox: Outbox,
    _alive: oneshot::Sender<()>,
}

struct Task {
    book: Book,
    began: Instant,
    next: StreamId,
    streams: BTreeMap<StreamId, Stream>,
    waiting: BTreeMap<String, oneshot::Sender<Vec<Finding>>>,
    stalls: Vec<(String, Instant, oneshot::Sender<Vec<HostStall>>)>,
}

impl Task {
    fn new(book: Book) -> Self {
        let (streams, waiting, stalls) = Default::default();
        Self { book, began: Instant::now(), next: 1, streams, waiting, stalls }
    }

    fn now(&self) -> Now {
        self.began.elapsed()
    }

    async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Command>,
        mut told: mpsc::Receiver<(String, Said)>,
    ) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                Some((service, said)) = told.recv() => self.say(&service, said),
                command = inbox.recv() => match command {
                    Some(command) => self.take(command),
                    None => return,
                },
                _ = tick.tick() => {
                    let out = self.book.tick(self.now());
                    self.carry_out(out);
                }
            }
            self.answer_those_who_wait();
            self.answer_stalls();
        }
    }

    fn take(&mut self, command: Command) {
        let now = self.now();
        // An asker that has given up needs no answer.
        match command {
            Command::Attach(attaching, reply) => drop(reply.send(self.attach(now, attaching))),
            Command::Heard(stream, kind) => self.book.heard(now, stream, kind),
            Command::Detach(stream) => self.end(stream),
            Command::Announce(ask, reply) => self.announce(now, &ask, reply),
            Command::Look { service, predicted_ms, force, reply } => {
                drop(reply.send(self.book.look(now, &service, predicted_ms, force)));
            }
            Command::Abort(service, reply) => drop(reply.send(self.abort(&service))),
            Command::Standing(service, reply) => {
                let _ = reply.send(self.book.standing(now, &service));
            }
            Command::Moving { service, epoch, reply } => {
                let _ = reply.send(self.book.moving(now, unix_s(), &service, epoch));
            }
            Command::Stalls { service, until, reply } => self.stalls.push((service, until, reply)),
            Command::Status(reply) => drop(reply.send(self.book.status(now))),
            Command::Report(host, reply) => drop(reply.send(self.book.report(now, &host))),
            Command::Attached(reply) => drop(reply.send(self.book.attached())),
            Command::Known(reply) => drop(reply.send(self.book.known(now))),
            Command::Forget(host, reply) => drop(reply.send(self.forget(now, &host))),
        }
    }

    fn attach(&mut self, now: Now, attaching: Attaching) -> Option<StreamId> {
        let stream = self.next;
        let out = self.book.attach(now, &attaching.host, &attaching.version, stream)?;
        self.next += 1;
        tracing::info!(host = attaching.host, version = attaching.version, "agent attached");
        let (outbox, alive) = (attaching.outbox, attaching.alive);
        self.streams.insert(stream, Stream { outbox, _alive: alive });
        self.carry_out(out);
        Some(stream)
    }

    fn announce(&mut self, now: Now, ask: &Ask, reply: oneshot::Sender<Vec<Finding>>) {
        match self.book.announce(now, unix_s(), &ask.service, &ask.terms) {
            Ok(out) => {
                self.waiting.insert(ask.service.clone(), reply);
                self.carry_out(out);
            }
            Err(finding) => drop(reply.send(vec![finding])),
        }
    }

    fn forget(&mut self, now: Now, host: &str) -> Result<(), Duration> {
        let out = self.book.forget(now, host)?;
        tracing::warn!(host, "agent forgotten: its host is dead");
        self.carry_out(out);
        Ok(())
    }

    fn abort(&mut self, service: &str) -> bool {
        let Some(reply) = self.waiting.remove(service) else { return false };
        let aborted = Finding::refusal("aborted", "the operator aborted the move", "");
        let _ = reply.send(vec![aborted]);
        self.withdraw(service);
        true
    }

    fn say(&mut self, service: &str, said: Said) {
        let out = self.book.say(self.now(), service, said);
        self.carry_out(out);
    }

    fn withdraw(&mut self, service: &str) {
        self.say(service, Said::Withdrawn { epoch: 0 });
    }

    /// Whoever announced a move hears as soon as it is decided; one that is gone has it withdrawn.
    fn answer_those_who_wait(&mut self) {
        let now = self.now();
        for service in self.waiting.keys().cloned().collect::<Vec<_>>() {
            let gone = self.waiting.get(&service).is_none_or(oneshot::Sender::is_closed);
            let lost = !self.book.is_announced(&service);
            let verdict = self.book.verdict(now, &service);
            if !gone && !lost && verdict.is_none() {
                continue;
            }
            let Some(reply) = self.waiting.remove(&service) else { continue };
            // Ended by news of the service while somebody waited: the service's task knows more than we do.
            let found = verdict.unwrap_or_else(|| vec![unknown()]);
            let refused = found.iter().any(|f| f.refuses);
            if reply.send(found).is_err() || refused {
                self.withdraw(&service);
            }
        }
    }

    fn answer_stalls(&mut self) {
        let now = self.now();
        for (service, until, reply) in std::mem::take(&mut self.stalls) {
            let (told, complete) = self.book.stalls(now, &service);
            if complete || Instant::now() >= until {
                let _ = reply.send(told);
            } else {
                self.stalls.push((service, until, reply));
            }
        }
    }

    fn carry_out(&mut self, out: Vec<Out>) {
        for out in out {
            match out {
                Out::Close(stream) => self.end(stream),
                Out::Send { to, news } => {
                    let Some(stream) = self.streams.get(&to) else { continue };
                    if let Err(error) = stream.outbox.try_send(Ok(news)) {
                        tracing::warn!(stream = to, %error, "an agent does not read; its stream is closed");
                        self.end(to);
                    }
                }
            }
        }
    }

    fn end(&mut self, stream: StreamId) {
        self.book.detach(stream);
        self.streams.remove(&stream);
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
