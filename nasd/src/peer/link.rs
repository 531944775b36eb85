//! Calls to the other nasd. One lazy connection, re-made by itself; deadlines per call.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nasd_proto::peer_client::PeerClient;
use nasd_proto::{
    AbortMoveReply, AbortMoveRequest, CheckTargetReply, CheckTargetRequest, HandOverRequest,
    HeartbeatReply, HeartbeatRequest, MoveEvent, PrepareReply, PrepareRequest, StatusReply,
    StatusRequest, SwitchoverRequest,
};
use thiserror::Error;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

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

/// Time for one heartbeat; below the smallest right (S4).
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Time for pre-flight and status, which look at processes and mounts.
const CHECK: Duration = Duration::from_secs(5);
/// Time for preparing the target.
const PREPARE: Duration = Duration::from_secs(15);

/// A handle for calling the peer; cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    client: PeerClient<Channel>,
    heard: Arc<Mutex<Option<Instant>>>,
}

impl Link {
    /// Sets the link up without connecting.
    ///
    /// # Errors
    /// When keys or address cannot be used.
    pub fn new(peer: &NodeConfig, keys: &TlsPaths) -> Result<Self, LinkError> {
        let address = format!("https://{}", peer.address);
        let failed = |source| LinkError::Transport { address: address.clone(), source };
        let endpoint = Endpoint::from_shared(address.clone())
            .map_err(failed)?
            .connect_timeout(Duration::from_secs(1))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(2))
            .tls_config(tls::client(keys, &peer.name.0)?)
            .map_err(failed)?;
        let client = PeerClient::new(endpoint.connect_lazy());
        Ok(Self { client, heard: Arc::default() })
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

    /// Asks for the right.
    ///
    /// # Errors
    /// gRPC's status; no answer is a no.
    pub async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatReply, Status> {
        let answer = self.client.clone().heartbeat(within(request, HEARTBEAT)).await;
        self.answered(answer)
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
