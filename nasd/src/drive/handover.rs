//! The hand-over: what the old owner tells the target, and the target's watch on its clients; and what
//! is left when it cannot let go in good order: to ask for a takeover.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use nasd_proto::{
    AskTakeoverRequest, ClientStall, HandOverRequest, Outcome, move_event::Kind, outcome,
};

use super::hands::Hands;
use crate::core::machine::HandOverResult;

/// How long the target watches for its clients to come back, for the report only.
const WATCH: Duration = Duration::from_secs(3);

/// News from the target.
#[derive(Debug)]
pub enum HandOverNews {
    /// It serves, refuses, or nothing is known.
    Ended(HandOverResult),
    /// When each client was back.
    Clients(Vec<ClientStall>),
}

/// Calls the target and passes on what it says. Always ends with one `Ended`.
pub async fn call<F, Fut>(hands: &Hands, epoch: u64, silent_for: Duration, tell: F)
where
    F: Fn(HandOverNews) -> Fut,
    Fut: Future<Output = ()>,
{
    let request = HandOverRequest {
        service: hands.service.name.clone(),
        epoch,
        generation: 0,
        connections: hands.known_endpoints(),
        client_records: Vec::new(),
        silent_for_us: u64::try_from(silent_for.as_micros()).unwrap_or(u64::MAX),
    };
    let mut ended = false;
    match hands.peer_link.hand_over(request).await {
        Ok(mut stream) => {
            while let Ok(Some(event)) = stream.message().await {
                match event.kind {
                    Some(Kind::Outcome(outcome)) if !ended => {
                        ended = true;
                        tell(HandOverNews::Ended(verdict(outcome))).await;
                    }
                    Some(Kind::Outcome(outcome)) => {
                        tell(HandOverNews::Clients(outcome.clients)).await;
                    }
                    _ => hands.timeline.relay(event),
                }
            }
        }
        Err(error) => tracing::warn!(%error, "the hand-over call failed; its outcome is unknown"),
    }
    if !ended {
        tell(HandOverNews::Ended(HandOverResult::Unknown)).await;
    }
}

impl Hands {
    /// Asks the peer to take over; what comes of it is seen in the record, not here.
    pub async fn ask_takeover(&self, reason: &str) -> bool {
        let epoch = self.seen.borrow().epoch;
        let (service, reason) = (self.service.name.clone(), reason.to_owned());
        let request = AskTakeoverRequest { service, epoch, reason };
        match self.peer_link.ask_takeover(request).await {
            Ok(reply) if reply.accepted => true,
            Ok(reply) => {
                tracing::warn!(peer = %self.peer, reply.message, "the peer does not take over");
                false
            }
            Err(error) => {
                tracing::warn!(peer = %self.peer, %error, "the peer was not reached");
                false
            }
        }
    }
}

fn verdict(told: Outcome) -> HandOverResult {
    match told.result() {
        outcome::Result::Moved => HandOverResult::Opened,
        outcome::Result::Unknown => HandOverResult::Unknown,
        _ => HandOverResult::Refused(told.message),
    }
}

/// Looks at the new owner's sockets until every recorded client has a connection again.
pub async fn watch_clients(hands: &Hands, silent: Duration) -> Vec<ClientStall> {
    let began = Instant::now();
    let mut waiting: BTreeMap<IpAddr, SocketAddr> =
        hands.known_clients().into_iter().map(|c| (c.ip(), c)).collect();
    let mut back = Vec::new();
    while !waiting.is_empty() && began.elapsed() < WATCH {
        let connected = hands.connected_clients().await;
        waiting.retain(|ip, client| {
            let here = connected.iter().any(|c| c.ip() == *ip);
            if here {
                back.push(stall(*client, silent + began.elapsed(), true));
            }
            !here
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    back.extend(waiting.into_values().map(|c| stall(c, silent + began.elapsed(), false)));
    back
}

fn stall(client: SocketAddr, after: Duration, reclaimed: bool) -> ClientStall {
    ClientStall {
        client: client.to_string(),
        stall_us: u64::try_from(after.as_micros()).unwrap_or(u64::MAX),
        reclaimed,
    }
}
