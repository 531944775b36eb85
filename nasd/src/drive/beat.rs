//! Beats in both directions, and the keeper of the right to serve that they carry.
//!
//! Every heartbeat, owner or not, this node tells the other what it knows of itself; the answer is the
//! other's beat. Keeps S4 (a grant counts from when *its* request was sent; a refresh happens only for
//! the epoch that is wished for now), S10 (beats are made from what is at hand: observers with their
//! own tasks fetch it, and a service's task that hangs delays nobody) and S12 (what was read too long
//! ago is told as unread; a late beat is not heard).

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nasd_net::MonotonicInstant;
use nasd_net::gate::Deadline;
use nasd_proto::{Endpoint, HeartbeatReply, HeartbeatRequest, ServiceBeat};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::failpoint;
use super::hands::{Hands, blocking, lock};
use super::right::{Right, Wish};
use super::task::{Command, Handle};
use crate::core::machine::Event;
use crate::core::peer::{Ailment, Unfit};
use crate::core::right::{Grant, until};
use crate::core::timing::Timing;
use crate::peer::beat::{self, Ear};
use crate::peer::server::ask;

/// The longest wait for the peer before the record is asked as well: a dead peer's time-outs must not
/// use up the record's grant.
const PATIENCE: Duration = Duration::from_millis(250);
/// How often DRBD's options are read: a netlink call, and they change by an operator's hand only.
const OPTIONS: Duration = Duration::from_secs(5);
/// Options that were read longer ago than this are told as not read.
const OPTIONS_FRESH: Duration = Duration::from_secs(12);
/// The connections are told when they have changed, and this often anyway.
const TELL_CONNECTIONS: Duration = Duration::from_secs(1);
/// How often the service's task is asked whether it still answers.
const TASK: Duration = Duration::from_secs(1);
/// So many questions in a row without an answer are a task that hangs.
const HANGS_AFTER: u32 = 3;
/// Questions without an answer after which nasd ends: its next life adopts what runs (S9). The gate
/// stays open for its TTL only.
const GIVE_UP_AFTER: u32 = 8;
/// Reads of the record for the right that may be under way: one that hangs must not be the only one.
const READS: usize = 3;

/// What beats are made of and what came with those of the peer.
#[derive(Debug)]
pub struct Beats {
    /// For what the peer tells, in requests and replies.
    ear: Mutex<Ear>,
    /// For what it asks: its reply to our beat may overtake its own request, which is not late then.
    asked: Mutex<Ear>,
    facts: Mutex<Facts>,
    reads: Semaphore,
}

#[derive(Debug, Default)]
struct Facts {
    /// S1's violations and when their reading began; `None` in it: they could not be read.
    options: Option<(Instant, Option<Vec<String>>)>,
    connections: Vec<Endpoint>,
    told: Option<(Instant, Vec<Endpoint>)>,
    /// The drive's verdict on this node's health.
    health: Option<Unfit>,
    /// The service's task has not answered several times in a row.
    hangs: bool,
    /// The peer's configuration is another one.
    differs: bool,
}

impl Default for Beats {
    fn default() -> Self {
        Self {
            ear: Mutex::default(),
            asked: Mutex::default(),
            facts: Mutex::default(),
            reads: Semaphore::new(READS),
        }
    }
}

impl Beats {
    /// Why this node is not fit to serve, as its health was judged; told to the peer from now on.
    pub fn tell_health(&self, unfit: Option<Unfit>) {
        lock(&self.facts).health = unfit;
    }

    /// S1's violations, if they were read lately.
    fn options(&self, now: Instant) -> Option<Vec<String>> {
        let facts = lock(&self.facts);
        let (at, found) = facts.options.as_ref()?;
        found.clone().filter(|_| now.duration_since(*at) < OPTIONS_FRESH)
    }

    /// The connections, if they are due to be told.
    fn due_connections(&self, now: Instant) -> Option<Vec<Endpoint>> {
        let mut facts = lock(&self.facts);
        let same = facts.told.as_ref().is_some_and(|(at, told)| {
            *told == facts.connections && now.duration_since(*at) < TELL_CONNECTIONS
        });
        if same {
            return None;
        }
        facts.told = Some((now, facts.connections.clone()));
        Some(facts.connections.clone())
    }

    /// Another configuration on the peer is told once per change; a move's pre-flight refuses it.
    fn compare_digest(&self, theirs: &str, mine: &str) {
        let mut facts = lock(&self.facts);
        let differs = theirs != mine;
        if differs && !facts.differs {
            tracing::warn!("the peer's configuration is another one; copy nasd.toml to both nodes");
        }
        facts.differs = differs;
    }

    /// Why this node could not serve, were it asked to: its health. The state of its data is DRBD's and
    /// the record's to tell; a node that waits for its resynchronisation is as fit as any.
    fn unfit(&self) -> Option<Unfit> {
        let facts = lock(&self.facts);
        let why = "its nasd's task for the service hangs";
        let hangs = || facts.hangs.then(|| Unfit::new(Ailment::Other, why));
        facts.health.clone().or_else(hangs)
    }
}

impl Hands {
    /// The times that failover is made of.
    #[must_use]
    pub fn timing(&self) -> Timing {
        Timing::new(self.right.ttl, self.right.heartbeat, self.right.valid_lft)
    }

    /// This node's beat, from what is at hand. `life`: of the right that is asked for.
    pub fn beat(&self, asks: Option<(u64, Duration)>) -> ServiceBeat {
        let now = Instant::now();
        let (gate, drbd, options) =
            (lock(&self.keeper).read(), self.drbd_view(), self.beats.options(now));
        let left = gate.as_ref().ok().filter(|g| g.egress_open()).map(|g| match g.egress {
            Deadline::NEVER => beat::ENDLESS,
            end => beat::wire_ms(
                MonotonicInstant::from_nanos(end.as_nanos()).saturating_duration_since(g.now),
            ),
        });
        // A list read with the gate shut is the list of connections that were cut off.
        let connections = left.and_then(|_| self.beats.due_connections(now));
        let seen = self.seen.borrow().clone();
        let unfit = self.beats.unfit();
        ServiceBeat {
            service: self.service.name.clone(),
            epoch: asks.map_or(seen.epoch, |(epoch, _)| epoch),
            wants_right: asks.is_some(),
            gate_open: left.is_some(),
            connections_told: connections.is_some(),
            connections: connections.unwrap_or_default(),
            config_digest: self.config_digest.clone(),
            attested: options.is_some(),
            drbd_violations: options.unwrap_or_default(),
            ttl_ms: asks.map_or(0, |(_, life)| u32::try_from(life.as_millis()).unwrap_or(0)),
            gate_left_ms: left.unwrap_or(0),
            gate_enforced: gate.is_ok(),
            role: beat::wire_role(drbd.role).into(),
            frozen: drbd.frozen,
            coordinator: self.coordinator.reach(),
            stage: seen.stage.to_owned(),
            ailment: unfit.as_ref().map_or(0, |u| beat::wire_ailment(u.ailment).into()),
            unfit: unfit.map(|u| u.why).unwrap_or_default(),
        }
    }

    /// Whether a request is the youngest of the peer's requests; only that one is granted anything, over
    /// whichever path its copies come. A second consent to it promises nothing that the first did not.
    pub fn is_youngest_request(&self, boot_id: &str, sequence: u64) -> bool {
        lock(&self.beats.asked).is_latest(boot_id, sequence)
    }

    /// Takes a beat of the peer in, unless it is late. Waits for nobody.
    pub fn hear(&self, handle: &Handle, told: &ServiceBeat, boot_id: &str, sequence: u64) {
        if !lock(&self.beats.ear).accept(boot_id, sequence) {
            tracing::debug!(service = self.service.name, sequence, "a late beat is not heard");
            return;
        }
        // For the tickles after a crash. An empty list is not believed: a dying server has no
        // connections either, and a tickle too many does no harm.
        if told.gate_open && !told.connections.is_empty() && !self.serves() {
            self.remember_clients(&told.connections);
        }
        self.beats.compare_digest(&told.config_digest, &self.config_digest);
        let event = Event::Peer(beat::heard(told));
        if handle.try_send(Command::Event(event)).is_err() {
            tracing::warn!(
                service = self.service.name,
                "the service's task is too busy for a beat"
            );
        }
    }

    /// This node serves, or is about to.
    fn serves(&self) -> bool {
        self.wish.borrow().is_some() || self.gate_left().is_some()
    }

    /// One beat to the peer; whether it consents to the right that was asked for.
    pub async fn call_peer(&self, handle: Option<&Handle>, asks: Option<(u64, Duration)>) -> bool {
        let request = HeartbeatRequest {
            node: self.me.0.clone(),
            sequence: beat::sequence(),
            services: vec![self.beat(asks)],
            boot_id: beat::boot_id().to_owned(),
        };
        let Ok(reply) = self.peer_link.heartbeat(request).await else { return false };
        if let (Some(handle), Some(told)) = (handle, self.own(&reply)) {
            self.hear(handle, told, &reply.boot_id, reply.sequence);
        }
        asks.is_some_and(|(epoch, _)| consents(&reply, &self.service.name, epoch))
    }

    fn own<'a>(&self, reply: &'a HeartbeatReply) -> Option<&'a ServiceBeat> {
        reply.beats.iter().find(|b| b.service == self.service.name)
    }

    /// A grant, turned into an absolute deadline and written into the gate; void if the wish is another
    /// one by now.
    fn keep_right(&self, wanted: Wish, right: Right, granted: &watch::Sender<Option<Right>>) {
        failpoint::hit("right-before-refresh");
        if *self.wish.borrow() != Some(wanted) {
            return;
        }
        if let Err(error) = self.refresh_gate(right) {
            tracing::error!(%error, "the gate could not be refreshed; it shuts by itself");
        }
        granted.send_if_modified(|old| {
            let longer = old.is_none_or(|o| {
                o.epoch != right.epoch
                    || o.deadline < right.deadline
                    || o.deadline == Deadline::NEVER
            });
            if longer {
                *old = Some(right);
            }
            longer
        });
    }
}

/// Whether the answer to a request consents to it: named, of the same epoch, and a yes.
#[must_use]
pub fn consents(reply: &HeartbeatReply, service: &str, epoch: u64) -> bool {
    reply.services.iter().any(|s| s.service == service && s.epoch == epoch && s.consents)
}

/// When the right ends that was requested then.
#[must_use]
pub fn deadline(grant: Grant, requested: MonotonicInstant, timing: &Timing) -> Deadline {
    until(grant, timing).map_or(Deadline::NEVER, |life| Deadline::after(requested, life))
}

/// Beats, and asks for the right as long as somebody wants it.
pub async fn keep(
    hands: Arc<Hands>,
    handle: Handle,
    mut wish: watch::Receiver<Option<Wish>>,
    granted: watch::Sender<Option<Right>>,
) {
    let _observers = observe(&hands, &handle);
    let mut tick = tokio::time::interval(hands.heartbeat());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wanted = *wish.borrow_and_update();
        if wanted.is_none() {
            granted.send_replace(None);
        }
        begin_round(&hands, &handle, wanted, &granted);
        tokio::select! {
            _ = tick.tick() => {}
            changed = wish.changed() => if changed.is_err() { return },
        }
    }
}

/// The endless right is written here, in the keeper's own order: a round of its own could do it after
/// the wish for it has gone.
fn begin_round(
    hands: &Arc<Hands>,
    handle: &Handle,
    wanted: Option<Wish>,
    granted: &watch::Sender<Option<Right>>,
) {
    let timing = hands.timing();
    if let Some(alone) = wanted.filter(|w| w.sole_current) {
        let deadline = deadline(Grant::SoleCurrent, MonotonicInstant::now(), &timing);
        hands.keep_right(alone, Right { epoch: alone.epoch, deadline }, granted);
    }
    let (hands, handle, granted) = (Arc::clone(hands), handle.clone(), granted.clone());
    tokio::spawn(async move {
        match wanted.filter(|w| !w.sole_current) {
            Some(wanted) => ask_for_right(&hands, &handle, wanted, &timing, &granted).await,
            None => drop(hands.call_peer(Some(&handle), None).await),
        }
    });
}

/// The peer first: it costs one packet. The record when the peer says no, and beside it when it is
/// late. Each grant counts from when *its* request was sent.
async fn ask_for_right(
    hands: &Hands,
    handle: &Handle,
    wanted: Wish,
    timing: &Timing,
    granted: &watch::Sender<Option<Right>>,
) {
    let grant = |grant, requested| {
        let deadline = deadline(grant, requested, timing);
        hands.keep_right(wanted, Right { epoch: wanted.epoch, deadline }, granted);
    };
    let requested = MonotonicInstant::now();
    let asks = Some((wanted.epoch, timing.ttl));
    let call = hands.call_peer(Some(handle), asks);
    let peer = async {
        let yes = call.await;
        if yes {
            grant(Grant::Peer, requested);
        }
        yes
    };
    tokio::pin!(peer);
    let record = async {
        let Ok(_one_of_few) = hands.beats.reads.try_acquire() else { return };
        let requested = MonotonicInstant::now();
        if hands.record_consents(wanted.epoch).await {
            grant(Grant::Record, requested);
        }
    };
    match tokio::time::timeout(PATIENCE.min(timing.heartbeat), &mut peer).await {
        Ok(true) => {}
        Ok(false) => record.await,
        Err(_) => drop(tokio::join!(peer, record)),
    }
}

/// What beats need is fetched beside them, each kind by its own task.
fn observe(hands: &Arc<Hands>, handle: &Handle) -> JoinSet<()> {
    let mut observers = JoinSet::new();
    observers.spawn(observe_options(Arc::clone(hands)));
    observers.spawn(observe_connections(Arc::clone(hands)));
    observers.spawn(observe_task(Arc::clone(hands), handle.clone()));
    observers
}

async fn observe_options(hands: Arc<Hands>) {
    loop {
        let (began, drbd) = (Instant::now(), Arc::clone(&hands.drbd));
        let found = blocking(move || drbd.attest()).await.flatten();
        lock(&hands.beats.facts).options = Some((began, found));
        tokio::time::sleep(OPTIONS).await;
    }
}

async fn observe_connections(hands: Arc<Hands>) {
    loop {
        if hands.gate_left().is_some() {
            let network = Arc::clone(&hands.network);
            if let Some(list) = blocking(move || network.connections()).await {
                let mut list: Vec<_> = list.iter().map(endpoint).collect();
                list.sort_by(|a, b| (&a.peer, &a.local).cmp(&(&b.peer, &b.local)));
                lock(&hands.beats.facts).connections = list;
            }
        }
        tokio::time::sleep(hands.heartbeat()).await;
    }
}

fn endpoint(connection: &nasd_net::sockets::Connection) -> Endpoint {
    Endpoint { local: connection.local.to_string(), peer: connection.peer.to_string() }
}

/// A task that has ended comes back only with nasd (S9): beats without one would tell the peer that all
/// is well.
async fn observe_task(hands: Arc<Hands>, handle: Handle) {
    let (mut silent, mut shut) = (0_u32, 0_u32);
    loop {
        let serves = hands.seen.borrow().stage == "serving";
        let (armed, spoiled) = {
            let keeper = lock(&hands.keeper);
            (keeper.is_armed(), keeper.is_spoiled())
        };
        shut = if serves && !armed && !spoiled { shut + 1 } else { 0 };
        if spoiled {
            // Said again until the file systems are unmounted: the gate stays shut as long.
            let why = "a file system met an error and must be mounted anew".to_owned();
            drop(handle.try_send(Command::Event(Event::Spoiled(why))));
        }
        if shut >= 2 {
            tracing::error!(service = hands.service.name, "serving, and the gate is shut for good");
            drop(handle.try_send(Command::Event(Event::GateShut)));
        }
        if handle.is_closed() {
            tracing::error!(service = hands.service.name, "its task has ended; nasd starts anew");
            std::process::exit(1);
        }
        let answered = ask(&handle, Command::CheckTarget).await.is_some();
        silent = if answered { 0 } else { silent.saturating_add(1) };
        let hangs = silent >= HANGS_AFTER;
        if silent >= GIVE_UP_AFTER {
            tracing::error!(
                service = hands.service.name,
                "its task hangs for ever; nasd starts anew"
            );
            std::process::exit(1);
        }
        let before = std::mem::replace(&mut lock(&hands.beats.facts).hangs, hangs);
        if hangs && !before {
            tracing::error!(service = hands.service.name, "the service's task does not answer");
        }
        tokio::time::sleep(TASK).await;
    }
}

#[cfg(test)]
mod tests {
    use nasd_proto::ServiceConsent;

    use super::*;

    fn reply(epoch: u64, consents: bool) -> HeartbeatReply {
        let services = vec![ServiceConsent { service: "vms".into(), epoch, consents }];
        HeartbeatReply { services, ..HeartbeatReply::default() }
    }

    #[test]
    fn s12_only_a_yes_of_the_same_epoch_and_service_consents() {
        assert!(consents(&reply(4, true), "vms", 4));
        assert!(!consents(&reply(4, false), "vms", 4));
        assert!(!consents(&reply(5, true), "vms", 4));
        assert!(!consents(&reply(4, true), "iso", 4));
        assert!(!consents(&HeartbeatReply::default(), "vms", 0));
    }

    #[test]
    fn s4_c3_a_grant_counts_from_its_request() {
        let ms = Duration::from_millis;
        let timing = Timing::new(ms(1500), ms(250), ms(5000));
        let asked = MonotonicInstant::from_nanos(1_000_000_000);
        let end = |grant| deadline(grant, asked, &timing).as_nanos();
        assert_eq!(end(Grant::Peer), 2_500_000_000);
        assert_eq!(end(Grant::Record), 1_750_000_000);
        assert_eq!(deadline(Grant::SoleCurrent, asked, &timing), Deadline::NEVER);
    }

    #[test]
    fn s12_options_read_long_ago_are_not_attested() {
        let (beats, now) = (Beats::default(), Instant::now());
        assert_eq!(beats.options(now), None, "never read");
        lock(&beats.facts).options = Some((now, Some(Vec::new())));
        assert_eq!(beats.options(now), Some(Vec::new()));
        assert_eq!(beats.options(now + OPTIONS_FRESH), None, "too old");
        lock(&beats.facts).options = Some((now, None));
        assert_eq!(beats.options(now), None, "could not be read");
    }

    #[test]
    fn connections_are_told_when_they_change_and_every_second() {
        let (beats, now) = (Beats::default(), Instant::now());
        assert_eq!(beats.due_connections(now), Some(Vec::new()));
        assert_eq!(beats.due_connections(now), None);
        let one = vec![Endpoint { local: "l".into(), peer: "p".into() }];
        lock(&beats.facts).connections = one.clone();
        assert_eq!(beats.due_connections(now), Some(one.clone()));
        assert_eq!(beats.due_connections(now), None);
        assert_eq!(beats.due_connections(now + TELL_CONNECTIONS), Some(one));
    }
}
