//! Calls to the other nasd. Lazy connections, re-made by themselves; deadlines per call.
//!
//! Beats have a connection of their own: nothing large is ever in front of them, and a path that came
//! back is used again at once instead of after TCP's back-off. Where both nodes have a second address,
//! each beat goes to both at the same time: a peer is silent only when both paths are.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nasd_proto::peer_client::PeerClient;
use nasd_proto::{
    AbortMoveReply, AbortMoveRequest, AskTakeoverReply, AskTakeoverRequest, CheckTargetReply,
    CheckTargetRequest, ForgetHostRequest, HandOverRequest, HeartbeatReply, HeartbeatRequest,
    HistoryReply, HistoryRequest, MoveEvent, PrepareReply, PrepareRequest, RecoverReply,
    RelayReply, RelayRequest, StatusReply, StatusRequest, SwitchoverRequest,
};
use thiserror::Error;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use super::dial;
use super::tls::{self, TlsError};
use crate::config::{NodeConfig, TlsPaths};

/// Why the link could not be set up at all.
#[derive(Debug, Error)]
pub enum LinkError {
    /// Keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Address or TLS set-up.
    #[error("the peer channel to {address} cannot be set up: {source}")]
    Transport {
        /// The peer's address.
        address: String,
        /// What tonic says.
        source: tonic::transport::Error,
    },
}

/// Limit of one attempt to connect, TLS included.
const CHECK_CONNECT: Duration = Duration::from_secs(2);
/// The same for beats: short, so that a path that came back is found soon.
const BEAT_CONNECT: Duration = Duration::from_millis(700);
/// Time for one heartbeat; below the smallest right (S4).
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Time for pre-flight and status, which look at processes and mounts.
const CHECK: Duration = Duration::from_secs(5);
/// Time for forgetting a host: facts gathered anew, then one expiry per service, all at once.
const FORGET: Duration = Duration::from_secs(10);
/// Time for preparing the target.
const PREPARE: Duration = Duration::from_secs(15);

/// Time for the peer to pass something on to the coordinator and back.
const RELAY: Duration = Duration::from_millis(1500);
/// Pings of the connection for beats, and how long one may stay unanswered: a connection that fell
/// silent is given up after about a right's TTL.
const BEAT_PING: (Duration, Duration) = (Duration::from_millis(500), Duration::from_millis(1000));
/// Pings of the other connection.
const PING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));
/// A path for beats that was silent for so long is told of: with two of them nothing else would show it.
const SILENT: Duration = Duration::from_secs(5);

/// A handle for calling the peer; cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    client: PeerClient<Channel>,
    /// For beats, one or two.
    paths: Vec<Path>,
    heard: Arc<Mutex<Option<Instant>>>,
}

/// One way for beats.
#[derive(Debug, Clone)]
struct Path {
    client: PeerClient<Channel>,
    address: SocketAddr,
    silence: Arc<Mutex<Silence>>,
}

/// Since when beats over a path fail, and whether that was told.
#[derive(Debug, Default)]
struct Silence {
    since: Option<Instant>,
    told: bool,
}

impl Path {
    /// One beat over this path alone.
    async fn beat(mut self, request: HeartbeatRequest) -> Result<HeartbeatReply, Status> {
        let call = self.client.heartbeat(within(request, HEARTBEAT));
        let answer = in_time(HEARTBEAT, call).await;
        self.note(answer.as_ref().err());
        answer.map(tonic::Response::into_inner)
    }

    /// Beats have failed over it for [`SILENT`].
    fn is_silent(&self) -> bool {
        let silence = self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        silence.since.is_some_and(|since| since.elapsed() >= SILENT)
    }

    fn note(&self, error: Option<&Status>) {
        let mut silence = self.silence.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(error) = error else {
            if std::mem::take(&mut *silence).told {
                tracing::info!(address = %self.address, "the peer answers on this path again");
            }
            return;
        };
        let since = *silence.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= SILENT && !std::mem::replace(&mut silence.told, true) {
            tracing::warn!(address = %self.address, %error, "the peer does not answer on this path");
        }
    }
}

impl Link {
    /// Sets the link up without connecting.
    ///
    /// # Errors
    /// When keys or address cannot be used.
    pub fn new(peer: &NodeConfig, keys: &TlsPaths) -> Result<Self, LinkError> {
        let client = PeerClient::new(channel(peer, peer.address, keys, CHECK_CONNECT, PING)?);
        let mut paths = Vec::new();
        for address in [Some(peer.address), peer.heartbeat].into_iter().flatten() {
            let client = channel(peer, address, keys, BEAT_CONNECT, BEAT_PING)?;
            let (client, silence) = (PeerClient::new(client), Arc::default());
            paths.push(Path { client, address, silence });
        }
        Ok(Self { client, paths, heard: Arc::default() })
    }

    /// Where the peer's nasd listens.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.paths.iter().map(|p| p.address).collect()
    }

    /// Those of the peer's addresses over which beats have failed for 5 s and more.
    #[must_use]
    pub fn silent_paths(&self) -> Vec<SocketAddr> {
        self.paths.iter().filter(|p| p.is_silent()).map(|p| p.address).collect()
    }

    /// Time since the peer was heard last.
    #[must_use]
    pub fn last_answer(&self) -> Option<Duration> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.map(|at| at.elapsed())
    }

    /// The peer was heard: it answered, or it asked.
    pub fn mark_heard(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn answered<T>(&self, answer: Result<tonic::Response<T>, Status>) -> Result<T, Status> {
        if answer.is_ok() {
            self.mark_heard();
        }
        answer.map(tonic::Response::into_inner)
    }

    /// Beats, and asks for the right, over all paths at the same time: the first answer counts. Ends in
    /// time also while a connection is being made.
    ///
    /// # Errors
    /// gRPC's status; no answer is a no.
    pub async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatReply, Status> {
        // In tasks of their own, so that the slower one goes on: a call that is dropped is withdrawn at
        // the peer too, and nobody would drive the connection that is being made for it.
        let beat = |path: &Path| tokio::spawn(path.clone().beat(request.clone()));
        let mut calls: FuturesUnordered<_> = self.paths.iter().map(beat).collect();
        let mut answer = Err(Status::unavailable("no path to the peer"));
        while let Some(ended) = calls.next().await {
            answer = ended.unwrap_or_else(|error| Err(Status::internal(error.to_string())));
            if answer.is_ok() {
                self.mark_heard();
                break;
            }
        }
        answer
    }

    /// Asks the peer to read or write the record for this node (H6).
    ///
    /// # Errors
    /// gRPC's status: whether it was written is then unknown.
    pub async fn relay(&self, request: RelayRequest) -> Result<RelayReply, Status> {
        let mut client = self.client.clone();
        let call = client.relay(within(request, RELAY));
        self.answered(in_time(RELAY, call).await)
    }

    /// Asks the peer to take over: this node cannot serve and cannot let go in good order.
    ///
    /// # Errors
    /// gRPC's status.
    pub async fn ask_takeover(
        &self,
        request: AskTakeoverRequest,
    ) -> Result<AskTakeoverReply, Status> {
        let mut client = self.client.clone();
        let call = client.ask_takeover(within(request, CHECK));
        self.answered(in_time(CHECK, call).await)
    }

    /// The peer's own history of a service.
    ///
    /// # Errors
    /// gRPC's status.
    pub async fn history(&self, request: HistoryRequest) -> Result<HistoryReply, Status> {
        let mut client = self.client.clone();
        let call = client.history(within(request, CHECK));
        self.answered(in_time(CHECK, call).await)
    }

    /// The peer's part of forgetting a host; with `explain` its facts.
    ///
    /// # Errors
    /// gRPC's status: without `explain` it is then unknown what was forgotten, unless the code says so.
    pub async fn forget_host(&self, request: ForgetHostRequest) -> Result<RecoverReply, Status> {
        let limit = if request.explain { CHECK } else { FORGET };
        let mut client = self.client.clone();
        let call = client.forget_host(within(request, limit));
        self.answered(in_time(limit, call).await)
    }

    /// The target's half of the pre-flight.
    ///
    /// # Errors
    /// gRPC's status.
    pub async fn check_target(
        &self,
        request: CheckTargetRequest,
    ) -> Result<CheckTargetReply, Status> {
        let answer = self.client.clone().check_target(within(request, CHECK)).await;
        self.answered(answer)
    }

    /// Warms the target.
    ///
    /// # Errors
    /// gRPC's status.
    pub async fn prepare(&self, request: PrepareRequest) -> Result<PrepareReply, Status> {
        let answer = self.client.clone().prepare(within(request, PREPARE)).await;
        self.answered(answer)
    }

    /// Hands over; the stream ends with outcomes. Its deadline is the core's patience.
    ///
    /// # Errors
    /// gRPC's status: the outcome is then unknown.
    pub async fn hand_over(
        &self,
        request: HandOverRequest,
    ) -> Result<Streaming<MoveEvent>, Status> {
        let answer = self.client.clone().hand_over(Request::new(request)).await;
        self.answered(answer)
    }

    /// Passes an operator's request to the node that owns the service.
    ///
    /// # Errors
    /// gRPC's status.
    pub async fn start_move(
        &self,
        request: SwitchoverRequest,
    ) -> Result<Streaming<MoveEvent>, Status> {
        let answer = self.client.clone().start_move(Request::new(request)).await;
        self.answered(answer)
    }

    /// Passes an abort on.
    ///
    /// # Errors
    /// gRPC's status.
    pub async fn abort_move(&self, request: AbortMoveRequest) -> Result<AbortMoveReply, Status> {
        let answer = self.client.clone().abort_move(within(request, CHECK)).await;
        self.answered(answer)
    }

    /// The peer's status document.
    ///
    /// # Errors
    /// gRPC's status.
    pub async fn status(&self) -> Result<StatusReply, Status> {
        let request = within(StatusRequest { local_only: true }, CHECK);
        let answer = self.client.clone().status(request).await;
        self.answered(answer)
    }
}

fn within<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// The call's own deadline covers the call; this one covers waiting for a connection as well.
async fn in_time<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Status> {
    let late = || Status::deadline_exceeded(format!("no answer within {limit:?}"));
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| Err(late()))
}

fn channel(
    peer: &NodeConfig,
    address: SocketAddr,
    keys: &TlsPaths,
    connect: Duration,
    (ping, limit): (Duration, Duration),
) -> Result<Channel, LinkError> {
    let address = format!("https://{address}");
    let failed = |source| LinkError::Transport { address: address.clone(), source };
    let endpoint = Endpoint::from_shared(address.clone())
        .map_err(failed)?
        .connect_timeout(connect)
        .http2_keep_alive_interval(ping)
        .keep_alive_timeout(limit)
        .tls_config(tls::client(keys, &peer.name.0)?)
        .map_err(failed)?;
    Ok(dial::lazily(&endpoint))
}

#[cfg(test)]
mod tests;
