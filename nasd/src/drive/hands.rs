//! Everything a service's task can reach: the kernel, nasd-io, the coordinator, the peer.
//!
//! Owns no decision. Every call has a deadline (S8); what cannot be read is told as unknown (S12).

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nasd_net::MonotonicInstant;
use nasd_net::gate::Deadline;
use nasd_nfsd::records::Snapshot;
use nasd_proto::Endpoint;
use tokio::sync::watch;

use super::beat::Beats;
use super::drbd::{self, Resource};
use super::network::Network;
use super::relay;
use super::right::{Keeper, Right, Wish};
use super::task::{SharedCoordinator, cas_result, versioned};
use super::turns::Turns;
use crate::agents::Agents;
use crate::api::status::ServiceStatus;
use crate::config::{FenceAgent, RightConfig, ServiceConfig};
use crate::coordinator::LastSeen;
use crate::core::machine::{CasResult, Event, Machine};
use crate::core::record::{NodeName, Record};
use crate::core::step::StepError;
use crate::core::timing::Timing;
use crate::core::view::{DrbdView, Leftovers};
use crate::io::{Answer, CallError, Client, Launcher, Op, Refusal};
use crate::observe::history::History;
use crate::observe::timeline::Timeline;
use crate::peer::link::Link;

/// Between two tries of a step while another call is under way.
const OCCUPIED: Duration = Duration::from_millis(20);
/// Time for what nasd-io answers from memory or `/proc`.
const QUICK: Duration = Duration::from_secs(2);
/// Time for this node's own disk to take a record.
const REMEMBER: Duration = Duration::from_millis(800);

/// The hands of one service.
pub struct Hands {
    /// This node.
    pub me: NodeName,
    /// The other node.
    pub peer: NodeName,
    /// What switches it off, if there is such a thing.
    pub peer_fence: Option<FenceAgent>,
    /// The service's configuration.
    pub service: ServiceConfig,
    /// Digest of what must be equal on both nodes.
    pub config_digest: String,
    /// TTL, heartbeat, lifetimes.
    pub right: RightConfig,
    /// The consensus store.
    pub coordinator: SharedCoordinator,
    /// The last record seen, on this node's disk (S12).
    pub last_seen: LastSeen,
    /// Calls to the other nasd.
    pub peer_link: Link,
    /// The agents on hypervisors.
    pub agents: Agents,
    /// Namespace, addresses, frames.
    pub network: Arc<Network>,
    /// DRBD.
    pub drbd: Arc<Resource>,
    /// The gate with its epoch.
    pub keeper: Arc<Mutex<Keeper>>,
    /// What the core wants of the right.
    pub wish: watch::Sender<Option<Wish>>,
    /// What was granted.
    pub granted: watch::Receiver<Option<Right>>,
    /// Listeners of a move.
    pub timeline: Timeline,
    /// What happened, on this node's disk.
    pub history: History,
    /// Starts or finds nasd-io.
    pub launcher: Launcher,
    /// Who else opens on this node.
    pub turns: Arc<Turns>,
    /// The connection to it.
    pub io: Arc<tokio::sync::Mutex<Option<Client>>>,
    /// The peer's client records as it mirrored them last; the volume's win (S6).
    pub mirror: Mutex<Option<Snapshot>>,
    /// Clients' connections as last seen.
    pub clients: Mutex<Vec<nasd_net::sockets::Connection>>,
    /// The record as the core has it, for those who must not wait for the task (S10).
    pub record: watch::Sender<Option<Record>>,
    /// Stage, problem and epoch as the core has them, for beats and status.
    pub seen: watch::Sender<Seen>,
    /// What beats are made of.
    pub beats: Beats,
    /// Why this node is unfit to serve, as [`super::health`] judged last; none: it is fit.
    pub health: watch::Sender<Option<String>>,
    /// When the addresses' lifetimes were refreshed last.
    pub addressed_at: Mutex<Option<Instant>>,
}

/// What the core shows of itself to those who must not wait for it (S10).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Name of the stage.
    pub stage: &'static str,
    /// Epoch of the last record seen; 0: none.
    pub epoch: u64,
    /// What keeps the service from where it should be.
    pub problem: Option<String>,
    /// An operator's emergency start goes on, in words.
    pub emergency: Option<String>,
    /// How the last one ended, or why it was not begun.
    pub emergency_end: Option<String>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hands {
    // ---- nasd-io -----------------------------------------------------------------------------

    /// One call to nasd-io; a lost process is found or started again once.
    ///
    /// # Errors
    /// [`CallError`]; `Gone` when there is no process to talk to.
    pub async fn io_call(&self, op: Op, limit: Duration) -> Result<Answer, CallError> {
        let name = op.name();
        let client = self.io_client(limit).await.ok_or(CallError::Gone { op: name })?;
        client.call(op, limit).await
    }

    /// A call that waits for another one which is under way: a step that was given up, because the volume
    /// was frozen, may still be at it and is about to end (H2).
    ///
    /// # Errors
    /// As [`Hands::io_call`].
    pub async fn io_step(&self, op: Op, limit: Duration) -> Result<Answer, CallError> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.io_call(op.clone(), left).await {
                Err(CallError::Refused { refusal, .. })
                    if left > OCCUPIED && matches!(*refusal, Refusal::Occupied { .. }) =>
                {
                    tokio::time::sleep(OCCUPIED).await;
                }
                other => return other,
            }
        }
    }

    async fn io_client(&self, limit: Duration) -> Option<Client> {
        let mut slot = self.io.lock().await;
        if let Some(client) = slot.as_ref().filter(|c| c.is_connected()) {
            return Some(client.clone());
        }
        match self.launcher.connect(limit).await {
            Ok(client) => {
                *slot = Some(client.clone());
                drop(slot);
                if let Err(error) = self.set_up_server(&client).await {
                    tracing::warn!(%error, "the NFS server could not be prepared");
                }
                Some(client)
            }
            Err(error) => {
                tracing::error!(%error, service = self.service.name, "no nasd-io");
                None
            }
        }
    }

    /// Makes the NFS server ready to start, which touches no volume and serves nobody; why it cannot be. Only
    /// where it does not run.
    ///
    /// # Errors
    /// In words.
    pub async fn prepare_server(&self, limit: Duration) -> Result<(), String> {
        let op = Op::ServerSetup(super::steps::setup_of(&self.service));
        self.io_call(op, limit).await.map(drop).map_err(|e| e.to_string())
    }

    async fn set_up_server(&self, client: &Client) -> Result<(), CallError> {
        let op = Op::ServerSetup(super::steps::setup_of(&self.service));
        client.call(op, Duration::from_secs(10)).await.map(drop)
    }

    /// `syncfs` on every mounted volume; how long it took.
    ///
    /// # Errors
    /// When a volume cannot be written back in time.
    pub async fn sync_all(&self) -> Result<Duration, StepError> {
        let start = Instant::now();
        for fs in &self.service.filesystems {
            let op = Op::SyncFs { target: self.service.mountpoint(fs) };
            let done = self.io_call(op, Duration::from_secs(15)).await;
            done.map_err(|e| super::steps::refused("sync", &e))?;
        }
        Ok(start.elapsed())
    }

    /// The client records for the peer's mirror, as JSON; empty when none are loaded.
    pub async fn client_records(&self) -> Vec<u8> {
        match self.io_call(Op::Records, QUICK).await {
            Ok(Answer::Records { snapshot: Some(s) }) => serde_json::to_vec(&s).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// Keeps what the peer mirrored; what cannot be read is no mirror (S12).
    pub fn keep_mirror(&self, records: &[u8]) {
        if records.is_empty() {
            return;
        }
        match serde_json::from_slice(records) {
            Ok(snapshot) => *lock(&self.mirror) = Some(snapshot),
            Err(error) => tracing::warn!(%error, "the peer's client records cannot be read"),
        }
    }

    /// Who uses the volumes, as `name (pid)`; `None` when it could not be determined.
    pub async fn holders(&self) -> Option<Vec<String>> {
        let mut all = Vec::new();
        for fs in &self.service.filesystems {
            let op = Op::Holders { target: self.service.mountpoint(fs) };
            match self.io_call(op, Duration::from_secs(5)).await.ok()? {
                Answer::Holders { holders } => all.extend(holders.iter().map(super::steps::holder)),
                _ => return None,
            }
        }
        all.sort();
        all.dedup();
        Some(all)
    }

    /// Whether every mount point is free (or, on the owner, taken by its own device).
    pub async fn foreign_mounts(&self) -> Vec<String> {
        let mut found = Vec::new();
        for fs in &self.service.filesystems {
            let target = self.service.mountpoint(fs);
            let op = Op::MountState { target: target.clone() };
            match self.io_call(op, QUICK).await {
                Ok(Answer::MountState { mount: None }) => {}
                Ok(Answer::MountState { mount: Some(m) }) => {
                    found.push(format!("{} carries {} ({})", target.display(), m.source, m.fstype));
                }
                Ok(_) => found.push(format!("{}: not understood", target.display())),
                Err(error) => found.push(format!("{}: {error}", target.display())),
            }
        }
        found
    }

    /// What a former life has left (S9).
    pub async fn leftovers(&self) -> Leftovers {
        let mark = super::mark::Mark::at(
            std::path::Path::new(super::start::STATE_DIR),
            &self.service.name,
        );
        let mut left =
            Leftovers { all_mounted: true, marked: mark.stands(), ..Leftovers::default() };
        for fs in &self.service.filesystems {
            let op = Op::MountState { target: self.service.mountpoint(fs) };
            let answer = self.io_call(op, QUICK).await;
            let there = matches!(&answer, Ok(Answer::MountState { mount: Some(_) }) | Err(_));
            left.mounted |= there;
            left.all_mounted &= there;
            left.spoiled |=
                matches!(answer, Ok(Answer::MountState { mount: Some(m) }) if m.read_only);
        }
        if left.spoiled
            && let Err(error) = lock(&self.keeper).spoil()
        {
            tracing::error!(%error, "the gate of a file system that met an error stays open");
        }
        if let Ok(Answer::Status(status)) = self.io_call(Op::ServerStatus, QUICK).await {
            left.serving_threads = status.threads > 0;
        }
        let network = Arc::clone(&self.network);
        left.addressed = blocking(move || network.addressed()).await.unwrap_or(true);
        left
    }

    // ---- coordinator -------------------------------------------------------------------------

    /// See [`Timing::late`].
    pub(super) fn late(&self) -> Duration {
        Timing::new(self.right.ttl, self.right.heartbeat, self.right.valid_lft).late()
    }

    /// A linearizable read, judged against the last record that this node saw.
    pub async fn read_record(&self) -> Event {
        let own = self.coordinator.read(&self.service.name);
        let read = match relay::read_beside(self, own).await {
            Ok(read) => read,
            Err(error) => return Event::RecordUnreadable(error.to_string()),
        };
        match self.remember(read.as_ref()).await {
            Ok(()) => Event::Record(read.map(versioned)),
            Err(reason) => Event::RecordUnreadable(reason),
        }
    }

    /// Judges what was read and keeps it on this node's disk. A disk that hangs holds nothing up: the
    /// core compares with what it has seen in this life anyway, and a frozen service must not wait for
    /// a system disk.
    async fn remember(&self, read: Option<&crate::coordinator::Versioned>) -> Result<(), String> {
        match tokio::time::timeout(REMEMBER, self.last_seen.judge_and_store(read)).await {
            Ok(judged) => judged,
            Err(_) => {
                tracing::error!("this node's system disk hangs: the record is not kept on it");
                Ok(())
            }
        }
    }

    /// The record, freshly read, or nothing.
    pub async fn fresh_record(&self) -> Option<Record> {
        match self.read_record().await {
            Event::Record(Some(v)) => Some(v.record),
            _ => None,
        }
    }

    /// A compare-and-set (or the creation of a new record).
    ///
    /// One that makes another node current (`widens`) is sent only while the kernel says, read anew,
    /// that the peer holds everything: the core's view may lag behind a link that is lost already and
    /// whose helper was answered from the old record. The core shows no record from before this
    /// reading on, so no later helper is answered either.
    pub async fn write_record(
        &self,
        expected: Option<i64>,
        record: Record,
        widens: bool,
    ) -> CasResult {
        let name = &self.service.name;
        if record.current.len() > 1 && !self.right_is_finite().await {
            let why = "the peer is not made current while this node's right has no end";
            return CasResult::NotSent(why.into());
        }
        if widens && expected.is_some() && !self.in_sync_by_now().await {
            return CasResult::NotSent("the replicas are not in sync any more".into());
        }
        let own = async {
            cas_result(match expected {
                Some(revision) => self.coordinator.compare_and_set(name, revision, &record).await,
                None => self.coordinator.create(name, &record).await,
            })
        };
        let result = relay::write_beside(self, expected, &record, own).await;
        if let CasResult::Won { revision } = &result {
            let stored = crate::coordinator::Versioned { record, revision: *revision };
            if let Err(error) = self.remember(Some(&stored)).await {
                tracing::error!(error, "the record could not be kept on this node's disk");
            }
        }
        result
    }

    async fn in_sync_by_now(&self) -> bool {
        let drbd = Arc::clone(&self.drbd);
        let read = blocking(move || drbd.read()).await;
        read.is_some_and(|status| drbd::view(&status).both_current())
    }

    /// S4: before another node may take over, this one's right must have an end.
    async fn right_is_finite(&self) -> bool {
        for _ in 0..100 {
            let endless = lock(&self.keeper).read().is_ok_and(|s| s.egress == Deadline::NEVER);
            if !endless {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    /// Shows stage and epoch to those who must not wait for the task.
    pub fn publish_seen(&self, machine: &Machine) {
        let seen = Seen {
            stage: machine.stage().name(),
            epoch: machine.record().map_or(0, |r| r.epoch),
            problem: machine.problem().map(str::to_owned),
            emergency: machine.emergency().map(str::to_owned),
            emergency_end: machine.emergency_end().map(str::to_owned),
        };
        self.seen.send_if_modified(|old| {
            let changed = *old != seen;
            *old = seen;
            changed
        });
    }

    /// Shows the core's record to those who must not wait for the task.
    pub fn publish_record(&self, record: Option<&Record>) {
        self.record.send_if_modified(|old| {
            let changed = old.as_ref() != record;
            if changed {
                *old = record.cloned();
            }
            changed
        });
    }

    // ---- the right ---------------------------------------------------------------------------

    /// How often the right is asked for.
    #[must_use]
    pub fn heartbeat(&self) -> Duration {
        self.right.heartbeat
    }

    /// How long a grant lives from its request.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.right.ttl
    }

    /// Writes a grant's deadline into the gate and, now and then, renews the addresses' lifetimes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn refresh_gate(&self, right: Right) -> Result<(), nasd_net::NetError> {
        {
            let mut keeper = lock(&self.keeper);
            // Under this lock [`Hands::right_is_finite`] looks: an endless right is not written any
            // more once the wish for it has gone.
            let alone = self.wish.borrow().is_some_and(|w| w.sole_current);
            if right.deadline == Deadline::NEVER && !alone {
                return Ok(());
            }
            keeper.refresh(right)?;
        }
        let due =
            lock(&self.addressed_at).is_some_and(|at| at.elapsed() > self.right.valid_lft / 4);
        if due {
            *lock(&self.addressed_at) = Some(Instant::now());
            let (network, lifetime) = (Arc::clone(&self.network), self.right.valid_lft);
            let (keeper, ticket) = (Arc::clone(&self.keeper), lock(&self.keeper).ticket());
            tokio::task::spawn_blocking(move || {
                if let Err(error) = network.add_addresses(lifetime) {
                    tracing::error!(%error, "the addresses' lifetimes could not be renewed");
                }
                // A cut that came in between has deleted them; they must not come back (C3).
                if lock(&keeper).ticket() != ticket
                    && let Err(error) = network.delete_addresses()
                {
                    tracing::error!(%error, "an address could not be deleted");
                }
            });
        }
        Ok(())
    }

    /// Whether a linearizable read of the record still names this node in that epoch.
    pub async fn record_consents(&self, epoch: u64) -> bool {
        self.fresh_record().await.is_some_and(|r| r.epoch == epoch && r.may_serve(&self.me))
    }

    /// Time left until the gate shuts; `None`: shut or unknown.
    #[must_use]
    pub fn gate_left(&self) -> Option<Duration> {
        let state = lock(&self.keeper).read().ok()?;
        let end = MonotonicInstant::from_nanos(state.egress.as_nanos());
        state.egress_open().then(|| end.saturating_duration_since(state.now))
    }

    // ---- clients -----------------------------------------------------------------------------

    /// Reads the established connections and remembers them; keeps the old list if none is read.
    pub async fn refresh_connections(&self) {
        let network = Arc::clone(&self.network);
        if let Some(list) = blocking(move || network.connections()).await {
            *lock(&self.clients) = list;
        }
    }

    /// Remembers connections that the peer told.
    pub fn remember_clients(&self, endpoints: &[Endpoint]) {
        let parsed = endpoints.iter().filter_map(|e| {
            let (local, peer) = (e.local.parse().ok()?, e.peer.parse().ok()?);
            Some(nasd_net::sockets::Connection { local, peer })
        });
        *lock(&self.clients) = parsed.collect();
    }

    /// The remembered connections for the wire.
    #[must_use]
    pub fn known_endpoints(&self) -> Vec<Endpoint> {
        let clients = lock(&self.clients);
        clients
            .iter()
            .map(|c| Endpoint { local: c.local.to_string(), peer: c.peer.to_string() })
            .collect()
    }

    /// The remembered clients.
    #[must_use]
    pub fn known_clients(&self) -> Vec<SocketAddr> {
        lock(&self.clients).iter().map(|c| c.peer).collect()
    }

    /// Clients that are connected now.
    pub async fn connected_clients(&self) -> Vec<SocketAddr> {
        let network = Arc::clone(&self.network);
        let list = blocking(move || network.connections()).await.unwrap_or_default();
        list.into_iter().map(|c| c.peer).collect()
    }

    /// Addresses of clients, for filling the export caches ahead.
    #[must_use]
    pub fn known_client_addresses(&self) -> Vec<IpAddr> {
        let mut all: Vec<_> = self.known_clients().iter().map(|c| c.ip().to_canonical()).collect();
        all.sort();
        all.dedup();
        all
    }

    // ---- state -------------------------------------------------------------------------------

    /// DRBD as last seen.
    #[must_use]
    pub fn drbd_view(&self) -> DrbdView {
        self.drbd.seen().as_ref().map(drbd::view).unwrap_or_default()
    }

    /// DRBD options that break S1; no answer in time is a violation as well (S12).
    pub async fn violations(&self) -> Vec<String> {
        let drbd = Arc::clone(&self.drbd);
        let job = tokio::task::spawn_blocking(move || drbd.violations());
        match tokio::time::timeout(QUICK, job).await {
            Ok(Ok(found)) => found,
            _ => vec!["DRBD's options could not be read in time".into()],
        }
    }

    /// The status document's entry, without what only the core knows.
    pub async fn status(&self) -> ServiceStatus {
        let server = match self.io_call(Op::ServerStatus, QUICK).await {
            Ok(Answer::Status(status)) => Some(status),
            _ => None,
        };
        let left = self.gate_left();
        let view = self.drbd_view();
        let mut drbd = self.drbd.document();
        if let Some(drbd) = &mut drbd {
            drbd.violations = self.violations().await;
        }
        ServiceStatus {
            service: self.service.name.clone(),
            stage: String::new(),
            problem: None,
            record: None,
            drbd,
            addresses: self.service.addresses.iter().map(ToString::to_string).collect(),
            exports: self.service.filesystems.iter().map(|f| f.export.clone()).collect(),
            gate_open: left.is_some(),
            gate_left_ms: left
                .filter(|l| *l < Duration::from_secs(86_400))
                .map(|l| u64::try_from(l.as_millis()).unwrap_or(u64::MAX)),
            threads: server.as_ref().map(|s| s.threads),
            in_grace: server.as_ref().map(|s| s.threads > 0 && !s.grace_over),
            clients: self.connected_clients().await.iter().map(ToString::to_string).collect(),
            last_move: None,
            hypervisors: None,
            hold: self.record.borrow().as_ref().and_then(|r| r.hold.clone()),
            failover: crate::api::status::failover_unknown(),
            fit: self.health.borrow().clone(),
            emergency: self.seen.borrow().emergency.clone(),
            data_uuid: view.data_uuid,
            uuid_history: view.uuid_history,
        }
    }
}

/// Runs a call that may block on a thread for it; `None` when it failed.
pub(super) async fn blocking<T, E>(
    task: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Option<T>
where
    T: Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    match tokio::task::spawn_blocking(task).await {
        Ok(Ok(value)) => Some(value),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the kernel did not answer as expected");
            None
        }
        Err(_) => None,
    }
}
