//! Answers nasctl. Owns no state: commands go to the services' tasks, here or on the other node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nasd_proto::control_server::Control;
use nasd_proto::{
    AbortMoveReply, AbortMoveRequest, ForgetHostRequest, HistoryReply, HistoryRequest, HoldReply,
    HoldRequest, MoveEvent, NodeUnreachable, Outcome, RecoverReply, RecoverRequest, StatusReply,
    StatusRequest, SwitchoverRequest, TakeoverRequest, move_event::Kind, outcome,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::status::{CoordinatorStatus, NodeStatus, PeerStatus};
use crate::agents::Agents;
use crate::core::record::{NodeName, Phase};
use crate::drive::moves::{self, DEFAULT_TIMEOUT};
use crate::drive::task::Command;
use crate::peer::link::Link;
use crate::peer::server::{Entry, ask, ok_stream};

/// All services of this node and the way to the other one.
#[derive(Clone)]
pub struct Services {
    /// By name.
    pub by_name: Arc<BTreeMap<String, Entry>>,
    /// This node.
    pub me: NodeName,
    /// The other node.
    pub peer: NodeName,
    /// Calls to it.
    pub link: Link,
    /// The agents on hypervisors.
    pub agents: Agents,
    /// How long planned moves wait for them by default.
    pub agents_wait: Duration,
    /// `etcd` or `file`.
    pub coordinator_kind: &'static str,
    /// Start of nasd.
    pub started: Instant,
}

/// nasctl's server.
pub struct ControlService {
    /// What it serves.
    pub services: Services,
}

impl Services {
    pub(super) fn entry(&self, service: &str) -> Result<&Entry, Status> {
        self.by_name.get(service).ok_or_else(|| {
            let known: Vec<_> = self.by_name.keys().map(String::as_str).collect();
            Status::not_found(format!("no service {service}; configured are {}", known.join(", ")))
        })
    }

    /// This node's status document.
    pub async fn status_here(&self) -> NodeStatus {
        let mut services = Vec::new();
        let mut hypervisors = self.agents.status().await.unwrap_or_default();
        for entry in self.by_name.values() {
            let (tx, rx) = tokio::sync::oneshot::channel();
            if entry.handle.send(Command::Status(tx)).await.is_ok()
                && let Ok(Ok(mut status)) = tokio::time::timeout(Duration::from_secs(4), rx).await
            {
                status.hold = status.record.as_ref().and_then(|r| r.hold.clone());
                status.hypervisors = hypervisors.remove(&status.service);
                services.push(status);
            }
        }
        let error = self.coordinator_error().await;
        let last = self.link.last_answer();
        NodeStatus {
            node: self.me.0.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: self.started.elapsed().as_secs(),
            coordinator: CoordinatorStatus {
                kind: self.coordinator_kind.to_owned(),
                reachable: error.is_none(),
                error,
            },
            peer: PeerStatus {
                node: self.peer.0.clone(),
                reachable: last.is_some_and(|l| l < Duration::from_secs(2)),
                last_answer_ms: last.map(|l| u64::try_from(l.as_millis()).unwrap_or(u64::MAX)),
                silent_paths: self.link.silent_paths().iter().map(ToString::to_string).collect(),
            },
            services,
        }
    }

    async fn coordinator_error(&self) -> Option<String> {
        let entry = self.by_name.values().next()?;
        let read = entry.hands.coordinator.read(&entry.hands.service.name).await;
        read.err().map(|e| e.to_string())
    }

    /// Begins a move of a service that this node owns; the caller hears its events.
    ///
    /// # Errors
    /// An unknown service, or a task that has ended.
    pub async fn begin_move(
        &self,
        request: &SwitchoverRequest,
    ) -> Result<mpsc::Receiver<MoveEvent>, Status> {
        let entry = self.entry(&request.service)?;
        let to =
            if request.to.is_empty() { self.peer.clone() } else { NodeName(request.to.clone()) };
        if to != self.peer && to != self.me {
            let known = format!("{} and {}", self.me, self.peer);
            return Err(Status::invalid_argument(format!("no node {to}; configured are {known}")));
        }
        let timeout = match request.timeout_ms {
            0 => DEFAULT_TIMEOUT,
            ms => Duration::from_millis(u64::from(ms)),
        };
        let wait = match request.wait_ms {
            0 => self.agents_wait,
            ms => Duration::from_millis(u64::from(ms)),
        };
        let (dry_run, force) = (request.dry_run, request.force);
        let wanted = moves::Request { to, dry_run, timeout, force, wait };
        let (listener, events) = mpsc::channel(256);
        let sent = entry.handle.send(Command::Switchover(wanted, listener)).await;
        sent.map_err(|_| Status::unavailable("the service's task has ended"))?;
        Ok(events)
    }

    /// Aborts a move from this node.
    ///
    /// # Errors
    /// An unknown service.
    pub async fn abort_local(&self, service: &str) -> Result<AbortMoveReply, Status> {
        let entry = self.entry(service)?;
        let aborted = ask(&entry.handle, Command::Abort).await.unwrap_or(false);
        let message = if aborted {
            "the move is being undone; the service stays where it was".to_owned()
        } else {
            format!("no move of {service} is under way on {} that could be undone", self.me)
        };
        Ok(AbortMoveReply { aborted, message })
    }

    /// The node that owns the service, as far as this one knows.
    fn owner_of(&self, service: &str) -> Result<Option<NodeName>, Status> {
        let record = self.entry(service)?.hands.record.borrow().clone();
        Ok(record.and_then(|r| match r.phase {
            // Until it has settled, the move is the old owner's to tell of.
            Phase::Moving { from, .. } => Some(from),
            _ => r.authority().cloned(),
        }))
    }
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        let mine = self.services.status_here().await;
        let json = serde_json::to_string(&mine).map_err(|e| Status::internal(e.to_string()))?;
        let mut reply = StatusReply { node_json: vec![json], unreachable: Vec::new() };
        if !request.into_inner().local_only {
            match self.services.link.status().await {
                Ok(theirs) => reply.node_json.extend(theirs.node_json),
                Err(error) => reply.unreachable.push(NodeUnreachable {
                    node: self.services.peer.0.clone(),
                    reason: error.message().to_owned(),
                }),
            }
        }
        Ok(Response::new(reply))
    }

    type SwitchoverStream = ReceiverStream<Result<MoveEvent, Status>>;

    async fn switchover(
        &self,
        request: Request<SwitchoverRequest>,
    ) -> Result<Response<Self::SwitchoverStream>, Status> {
        let mut request = request.into_inner();
        let services = &self.services;
        match services.owner_of(&request.service)? {
            Some(owner) if owner == services.peer => {
                if request.to.is_empty() {
                    request.to.clone_from(&services.me.0);
                }
                let remote = services.link.start_move(request).await?;
                Ok(Response::new(relay(remote)))
            }
            _ => Ok(Response::new(ok_stream(services.begin_move(&request).await?))),
        }
    }

    async fn abort_move(
        &self,
        request: Request<AbortMoveRequest>,
    ) -> Result<Response<AbortMoveReply>, Status> {
        let request = request.into_inner();
        let here = self.services.abort_local(&request.service).await?;
        if here.aborted {
            return Ok(Response::new(here));
        }
        Ok(Response::new(self.services.link.abort_move(request).await?))
    }

    type TakeoverStream = ReceiverStream<Result<MoveEvent, Status>>;

    async fn takeover(
        &self,
        request: Request<TakeoverRequest>,
    ) -> Result<Response<Self::TakeoverStream>, Status> {
        let events = self.services.take_over(&request.into_inner()).await?;
        Ok(Response::new(ok_stream(events)))
    }

    async fn hold(&self, request: Request<HoldRequest>) -> Result<Response<HoldReply>, Status> {
        self.services.hold(&request.into_inner()).await.map(Response::new)
    }

    async fn history(
        &self,
        request: Request<HistoryRequest>,
    ) -> Result<Response<HistoryReply>, Status> {
        self.services.history(&request.into_inner()).await.map(Response::new)
    }

    async fn recover(
        &self,
        request: Request<RecoverRequest>,
    ) -> Result<Response<RecoverReply>, Status> {
        self.services.recover(&request.into_inner()).await.map(Response::new)
    }

    async fn forget_host(
        &self,
        request: Request<ForgetHostRequest>,
    ) -> Result<Response<RecoverReply>, Status> {
        self.services.forget_host(request.into_inner()).await.map(Response::new)
    }
}

/// Passes the other node's events on; a broken channel is told as an unknown outcome.
fn relay(mut remote: tonic::Streaming<MoveEvent>) -> ReceiverStream<Result<MoveEvent, Status>> {
    let (tx, rx) = mpsc::channel(64);
    tokio::spawn(async move {
        loop {
            let event = match remote.message().await {
                Ok(Some(event)) => event,
                Ok(None) => return,
                Err(error) => unknown(error.message()),
            };
            let last = matches!(&event.kind, Some(Kind::Outcome(o)) if o.result() == outcome::Result::Unknown);
            if tx.send(Ok(event)).await.is_err() || last {
                return;
            }
        }
    });
    ReceiverStream::new(rx)
}

fn unknown(reason: &str) -> MoveEvent {
    let message = format!("the channel to the owner broke ({reason}); see nasctl status");
    MoveEvent { kind: Some(Kind::Outcome(Outcome { message, ..Outcome::default() })) }
}
