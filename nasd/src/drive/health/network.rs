//! The clients' side of the network: the wire, and whether neighbours on it still answer.
//!
//! Carrier is watched on both nodes. Neighbours are asked only while the service is served here
//! (the questions need its address and an open gate) and only when no reply has arrived lately.
//! Silence accuses this node only if those who are silent had answered in the same term, if they
//! are more than one client or the gateway (one client may be dead itself), and if the other node
//! is there to take over.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nasd_net::neighbours::Prober;
use nasd_net::sockets::{self, Traffic};
use nasd_net::{NetError, Netns, NetnsWorker, link};

use super::board::{Board, Check};
use super::judge::Finding;
use super::{Bounded, Term};
use crate::config::ServiceConfig;
use crate::core::view::Now;
use crate::drive::hands::Hands;
use crate::drive::network::{INTERFACE, NFS_PORT};

/// Between two looks at the carrier.
const CARRIER: Duration = Duration::from_millis(150);
/// Between two rounds of questions.
const ROUND: Duration = Duration::from_millis(1000);
/// For one netlink call.
const CALL: Duration = Duration::from_millis(800);
/// Neighbours asked in one round.
const ASKED: usize = 8;
/// Neighbours that must have answered before silence means something, unless the gateway did.
const ENOUGH: usize = 2;

/// Judges what the kernel says of the parent interface.
#[must_use]
pub fn judge_carrier(name: &str, found: &Result<link::LinkInfo, NetError>) -> Finding {
    let bad = |why: String| Finding::Bad { since: Now::MAX, why };
    match found {
        Ok(link) if !link.up => bad(format!("{name} is down")),
        Ok(link) => match link.carrier {
            Some(true) => Finding::Well,
            Some(false) => bad(format!("{name} has no carrier")),
            None => Finding::Unknown,
        },
        Err(NetError::InterfaceMissing { .. }) => bad(format!("{name} is not there")),
        Err(_) => Finding::Unknown,
    }
}

/// Watches the carrier for ever.
pub(super) async fn watch_carrier(hands: Arc<Hands>, board: Arc<Board>) {
    let name = hands.service.interface.clone();
    let mut bounded = Bounded::default();
    let mut worker: Option<Arc<NetnsWorker>> = None;
    loop {
        tokio::time::sleep(CARRIER).await;
        let (known, object) = (worker.clone(), name.clone());
        let look = move || {
            let worker = match known {
                Some(worker) => worker,
                None => Arc::new(NetnsWorker::start(&Netns::current()?)?),
            };
            let found = link::get(&worker, &object, CALL);
            Ok::<_, NetError>((worker, found))
        };
        let finding = match bounded.run(CALL * 2, look).await {
            Some(Ok((used, found))) => {
                worker = Some(used);
                judge_carrier(&name, &found)
            }
            other => {
                tracing::debug!(failed = ?other.map(|r| r.err()), "the carrier is unknown");
                Finding::Unknown
            }
        };
        board.post(Check::Carrier, finding);
    }
}

/// Who has been proven to be on the wire in this term, and when last anybody was.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Neighbours {
    proven: BTreeSet<IpAddr>,
    heard: Now,
    acknowledged: BTreeMap<sockets::Connection, u64>,
}

impl Neighbours {
    /// Takes the bytes that clients acknowledged: more of them prove both directions.
    pub fn read_traffic(&mut self, now: Now, traffic: &[Traffic]) {
        for one in traffic.iter().filter(|t| !t.connection.peer.ip().is_loopback()) {
            let Some(bytes) = one.acknowledged else { continue };
            let before = self.acknowledged.insert(one.connection, bytes);
            if before.is_some_and(|before| bytes > before) {
                self.prove(now, one.connection.peer.ip().to_canonical());
            }
        }
        self.acknowledged.retain(|c, _| traffic.iter().any(|t| t.connection == *c));
    }

    /// An answer of a neighbour that was asked.
    pub fn answered(&mut self, now: Now, asked: &[IpAddr], answers: &[IpAddr]) {
        for ip in answers.iter().filter(|ip| asked.contains(ip)) {
            self.prove(now, *ip);
        }
    }

    fn prove(&mut self, now: Now, ip: IpAddr) {
        self.proven.insert(ip);
        self.heard = now;
    }

    /// Judges a round: those who were asked, the gateways among them.
    #[must_use]
    pub fn judge(&self, now: Now, asked: &[IpAddr], gateways: &[IpAddr]) -> Finding {
        let silent_for = now.saturating_sub(self.heard);
        let proven: Vec<_> = asked.iter().filter(|ip| self.proven.contains(ip)).collect();
        let enough = proven.len() >= ENOUGH || proven.iter().any(|ip| gateways.contains(ip));
        if !self.proven.is_empty() && silent_for < ROUND * 2 {
            return Finding::Well;
        }
        if !enough {
            return Finding::Unknown;
        }
        let who: Vec<_> = proven.iter().take(3).map(ToString::to_string).collect();
        let more = if proven.len() > who.len() { " and others" } else { "" };
        Finding::Bad { since: self.heard, why: format!("no answer from {}{more}", who.join(", ")) }
    }
}

/// The connected clients and gateways that share a network with one of the service's addresses,
/// each with the address to ask from. At most [`ASKED`], another part of them each round.
#[must_use]
pub fn to_ask(service: &ServiceConfig, clients: &[IpAddr], round: usize) -> Vec<(IpAddr, IpAddr)> {
    let gateways = gateways(service);
    let from = |ip: &IpAddr| {
        let same_family = |own: &IpAddr| own.is_ipv4() == ip.is_ipv4();
        let near = service.addresses.iter().find(|a| a.contains(*ip) && a.address() != *ip);
        let own = near.map(|a| a.address()).or_else(|| {
            // A router named by its link-local address shares no prefix.
            let any = service.addresses.iter().map(|a| a.address()).find(same_family);
            any.filter(|_| gateways.contains(ip))
        })?;
        Some((own, *ip))
    };
    let clients: BTreeSet<IpAddr> = clients.iter().copied().filter(|c| !c.is_loopback()).collect();
    let clients: Vec<_> =
        clients.iter().filter(|c| !gateways.contains(c)).filter_map(from).collect();
    let room = ASKED.saturating_sub(gateways.len());
    let skip = if clients.len() > room { round.wrapping_mul(room) % clients.len() } else { 0 };
    let some = clients.iter().cycle().skip(skip).take(room.min(clients.len())).copied();
    gateways.iter().filter_map(from).chain(some).collect()
}

fn gateways(service: &ServiceConfig) -> Vec<IpAddr> {
    let four = service.gateway.map(IpAddr::V4);
    four.into_iter().chain(service.gateway6.map(IpAddr::V6)).collect()
}

/// Sockets and thread in the service's namespace, made when first needed.
struct Reach {
    worker: NetnsWorker,
    prober: Prober,
}

impl Reach {
    fn open(service: &ServiceConfig) -> Result<Self, NetError> {
        let netns = Netns::open(&service.netns_name())?;
        let ipv6 = service.addresses.iter().any(|a| a.address().is_ipv6());
        let prober = Prober::open(&netns, INTERFACE, ipv6)?;
        Ok(Self { worker: NetnsWorker::start(&netns)?, prober })
    }

    fn traffic(&self) -> Result<Vec<Traffic>, NetError> {
        sockets::traffic(&self.worker, NFS_PORT, CALL)
    }
}

/// Watches the neighbours for ever.
pub(super) async fn watch_neighbours(hands: Arc<Hands>, board: Arc<Board>) {
    let mut watch = Watch {
        gateways: gateways(&hands.service),
        hands,
        board,
        reach: None,
        bounded: Bounded::default(),
        term: Term::default(),
        known: Neighbours::default(),
        asked: Vec::new(),
        round: 0,
    };
    loop {
        tokio::time::sleep(ROUND).await;
        let finding = watch.round().await;
        watch.board.post(Check::Neighbours, finding);
    }
}

struct Watch {
    hands: Arc<Hands>,
    board: Arc<Board>,
    gateways: Vec<IpAddr>,
    reach: Option<Arc<Reach>>,
    bounded: Bounded,
    term: Term,
    known: Neighbours,
    asked: Vec<IpAddr>,
    round: usize,
}

impl Watch {
    async fn round(&mut self) -> Finding {
        let now = self.board.now();
        let Some(floor) = self.term.serving(&self.hands, now) else {
            // Who answered on another term's wire proves nothing about this one's.
            (self.known, self.asked) = (Neighbours::default(), Vec::new());
            return Finding::Idle;
        };
        let Some((reach, traffic)) = self.look().await else { return Finding::Unknown };
        self.known.read_traffic(now, &traffic);
        self.known.answered(now, &self.asked, &reach.prober.answers());
        // The questions judged here were asked a round ago: there was time to answer.
        let mut finding = self.known.judge(now, &self.asked, &self.gateways);
        if let Finding::Bad { since, .. } = &mut finding {
            *since = (*since).max(floor);
        }
        let asked = self.ask(&reach, &traffic, now);
        if !self.hands.drbd_view().connected || !asked {
            return Finding::Unknown;
        }
        finding
    }

    async fn look(&mut self) -> Option<(Arc<Reach>, Vec<Traffic>)> {
        let (known, service) = (self.reach.clone(), self.hands.service.clone());
        let look = move || -> Result<_, NetError> {
            let reach = known.map_or_else(|| Reach::open(&service).map(Arc::new), Ok)?;
            let traffic = reach.traffic()?;
            Ok((reach, traffic))
        };
        match self.bounded.run(CALL * 2, look).await? {
            Ok((reach, traffic)) => {
                self.reach = Some(Arc::clone(&reach));
                Some((reach, traffic))
            }
            Err(error) => {
                tracing::debug!(%error, "the neighbours are unknown");
                self.reach = None;
                None
            }
        }
    }

    /// Asks unless somebody was heard just now. False: the questions did not leave, so silence
    /// proves nothing.
    fn ask(&mut self, reach: &Reach, traffic: &[Traffic], now: Now) -> bool {
        let heard_now = !self.known.proven.is_empty() && self.known.heard == now;
        let clients: Vec<_> =
            traffic.iter().map(|t| t.connection.peer.ip().to_canonical()).collect();
        let pairs = to_ask(&self.hands.service, &clients, self.round);
        self.round = self.round.wrapping_add(1);
        self.asked = pairs.iter().map(|(_, to)| *to).collect();
        if heard_now {
            return true;
        }
        pairs.iter().all(|(own, to)| match reach.prober.ask(*own, *to) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "a neighbour could not be asked");
                false
            }
        })
    }
}

#[cfg(test)]
mod tests;
