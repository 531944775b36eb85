//! Answers the other nasd. Owns no state: each call becomes a command to the service's task.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use nasd_proto::peer_server::Peer;
use nasd_proto::{
    AbortMoveReply, AbortMoveRequest, AskTakeoverReply, AskTakeoverRequest, CheckTargetReply,
    CheckTargetRequest, Finding, ForgetHostRequest, HandOverRequest, HeartbeatReply,
    HeartbeatRequest, HistoryReply, HistoryRequest, MoveEvent, PrepareReply, PrepareRequest,
    RecoverReply, RelayReply, RelayRequest, ServiceBeat, ServiceConsent, StatusReply,
    StatusRequest, SwitchoverRequest,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::beat;
use crate::agents::Said;
use crate::api::control::Services;
use crate::core::machine::Event;
use crate::core::preflight::{Finding as CoreFinding, violation};
use crate::drive::hands::Hands;
use crate::drive::task::{Command, HandOverCall, Handle, TargetFacts};
use crate::drive::{moves, relay};

/// Time for a task to answer from memory.
const ANSWER: Duration = Duration::from_millis(400);
/// Time for a task to consent: the asker waits about as long for the whole beat.
const CONSENT: Duration = Duration::from_millis(200);

/// One service as the servers reach it.
#[derive(Clone)]
pub struct Entry {
    /// Its task.
    pub handle: Handle,
    /// Its hands, for facts.
    pub hands: Arc<Hands>,
}

/// The peer's side of the channel.
pub struct PeerService {
    /// Services by name.
    pub services: Services,
}

/// A question to a task, with a deadline: a task that hangs says no (S12).
pub async fn ask<T>(
    handle: &Handle,
    make: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Option<T> {
    ask_within(ANSWER, handle, make).await
}

async fn ask_within<T>(
    limit: Duration,
    handle: &Handle,
    make: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Option<T> {
    let (tx, rx) = oneshot::channel();
    let asked = async {
        handle.send(make(tx)).await.ok()?;
        rx.await.ok()
    };
    tokio::time::timeout(limit, asked).await.ok().flatten()
}

impl PeerService {
    fn entry(&self, service: &str) -> Result<&Entry, Status> {
        self.services
            .by_name
            .get(service)
            .ok_or_else(|| Status::not_found(format!("no service {service} is configured here")))
    }

    /// One service's beat: heard, and answered with consent if that was asked for. A task that hangs
    /// costs [`CONSENT`] and says no.
    async fn answer(
        &self,
        told: &ServiceBeat,
        (boot_id, sequence): (&str, u64),
    ) -> Option<ServiceConsent> {
        let entry = self.entry(&told.service).ok()?;
        entry.hands.hear(&entry.handle, told, boot_id, sequence);
        let youngest = entry.hands.is_youngest_request(boot_id, sequence);
        let life = beat::asked_life(told, entry.hands.timing().long_ttl).filter(|_| youngest);
        let consent = match life {
            Some(ttl) => {
                let make = |reply| Command::Consent { epoch: told.epoch, ttl, reply };
                ask_within(CONSENT, &entry.handle, make).await
            }
            None => None,
        };
        Some(ServiceConsent {
            service: told.service.clone(),
            epoch: consent.map_or_else(|| entry.hands.seen.borrow().epoch, |c| c.epoch),
            consents: consent.is_some_and(|c| c.consents),
        })
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let request = request.into_inner();
        self.services.link.mark_heard();
        let from = (request.boot_id.as_str(), request.sequence);
        let answers = join_all(request.services.iter().map(|told| self.answer(told, from))).await;
        let services: Vec<_> = answers.into_iter().flatten().collect();
        // The number before the beats: they are at least as young as it says.
        let sequence = beat::sequence();
        let asked = services.iter().filter_map(|s| self.entry(&s.service).ok());
        let beats = asked.map(|entry| entry.hands.beat(None)).collect();
        Ok(Response::new(HeartbeatReply {
            node: self.services.me.0.clone(),
            services,
            beats,
            boot_id: beat::boot_id().to_owned(),
            sequence,
        }))
    }

    async fn check_target(
        &self,
        request: Request<CheckTargetRequest>,
    ) -> Result<Response<CheckTargetReply>, Status> {
        let request = request.into_inner();
        let entry = self.entry(&request.service)?;
        let facts = ask(&entry.handle, Command::CheckTarget).await;
        let findings = check_target(entry, &request, facts).await;
        let findings: Vec<Finding> = findings.iter().map(moves::proto).collect();
        Ok(Response::new(CheckTargetReply { findings, predicted_open_ms: 0 }))
    }

    async fn prepare(
        &self,
        request: Request<PrepareRequest>,
    ) -> Result<Response<PrepareReply>, Status> {
        let request = request.into_inner();
        let entry = self.entry(&request.service)?;
        entry.hands.remember_clients(&request.connections);
        entry.hands.keep_mirror(&request.client_records);
        if request.move_id != 0 {
            let (id, epoch) = (request.move_id, request.epoch);
            entry.hands.agents.say(&request.service, Said::Prepared { id, epoch });
        }
        let reason = prepare(entry, request.epoch).await.err().unwrap_or_default();
        Ok(Response::new(PrepareReply { ready: reason.is_empty(), reason }))
    }

    type HandOverStream = ReceiverStream<Result<MoveEvent, Status>>;

    async fn hand_over(
        &self,
        request: Request<HandOverRequest>,
    ) -> Result<Response<Self::HandOverStream>, Status> {
        let request = request.into_inner();
        let entry = self.entry(&request.service)?;
        let (listener, events) = mpsc::channel(64);
        let call = HandOverCall {
            epoch: request.epoch,
            connections: request.connections,
            silent_for: Duration::from_micros(request.silent_for_us),
            listener,
        };
        send(&entry.handle, Command::HandOver(call)).await?;
        Ok(Response::new(ok_stream(events)))
    }

    type StartMoveStream = ReceiverStream<Result<MoveEvent, Status>>;

    async fn start_move(
        &self,
        request: Request<SwitchoverRequest>,
    ) -> Result<Response<Self::StartMoveStream>, Status> {
        let request = request.into_inner();
        Ok(Response::new(ok_stream(self.services.begin_move(&request).await?)))
    }

    async fn abort_move(
        &self,
        request: Request<AbortMoveRequest>,
    ) -> Result<Response<AbortMoveReply>, Status> {
        self.services.abort_local(&request.into_inner().service).await.map(Response::new)
    }

    async fn ask_takeover(
        &self,
        request: Request<AskTakeoverRequest>,
    ) -> Result<Response<AskTakeoverReply>, Status> {
        let request = request.into_inner();
        let entry = self.entry(&request.service)?;
        let (asker, mine) = (&self.services.peer, entry.hands.seen.borrow().epoch);
        if mine > request.epoch {
            let message = format!("the record is of epoch {mine} already");
            return Ok(Response::new(AskTakeoverReply { accepted: false, message }));
        }
        let reason = format!("{asker} asks: {}", request.reason);
        let answer = ask(&entry.handle, |tx| Command::AskedTakeover(reason, tx)).await;
        let answer = answer.unwrap_or_else(|| Err("the service's task does not answer".into()));
        let (accepted, message) = (answer.is_ok(), answer.err().unwrap_or_default());
        Ok(Response::new(AskTakeoverReply { accepted, message }))
    }

    async fn relay(&self, request: Request<RelayRequest>) -> Result<Response<RelayReply>, Status> {
        let request = request.into_inner();
        let entry = self.entry(&request.service)?;
        let store = entry.hands.coordinator.as_ref();
        let reply = relay::pass_on(store, &self.services.peer, &request).await?;
        if !request.record_json.is_empty() {
            tracing::warn!(service = request.service, ?reply, "wrote the record for the peer");
            let (hands, handle) = (Arc::clone(&entry.hands), entry.handle.clone());
            // This node learns of it as of any other change; nobody waits for that.
            tokio::spawn(async move {
                drop(handle.send(Command::Event(hands.read_record().await)).await);
            });
        }
        Ok(Response::new(reply))
    }

    async fn history(
        &self,
        request: Request<HistoryRequest>,
    ) -> Result<Response<HistoryReply>, Status> {
        self.services.local_history(&request.into_inner()).await.map(Response::new)
    }

    async fn forget_host(
        &self,
        request: Request<ForgetHostRequest>,
    ) -> Result<Response<RecoverReply>, Status> {
        self.services.forget_host_here(request.into_inner()).await.map(Response::new)
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        let mine = self.services.status_here().await;
        let node_json =
            vec![serde_json::to_string(&mine).map_err(|e| Status::internal(e.to_string()))?];
        Ok(Response::new(StatusReply { node_json, unreachable: Vec::new() }))
    }
}

async fn send(handle: &Handle, command: Command) -> Result<(), Status> {
    handle.send(command).await.map_err(|_| Status::unavailable("the service's task has ended"))
}

/// Turns a channel into a gRPC stream.
pub fn ok_stream(
    mut events: mpsc::Receiver<MoveEvent>,
) -> ReceiverStream<Result<MoveEvent, Status>> {
    let (tx, rx) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if tx.send(Ok(event)).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(rx)
}

/// The target reads the record, so that it needs no coordinator inside the stall, and gets its NFS
/// server ready as far as that is possible without the volume.
async fn prepare(entry: &Entry, epoch: u64) -> Result<(), String> {
    let event = entry.hands.read_record().await;
    let known = matches!(&event, Event::Record(Some(v)) if v.record.epoch == epoch);
    if !known {
        return Err(match event {
            Event::RecordUnreadable(why) => why,
            _ => format!("the record read here is not of epoch {epoch}"),
        });
    }
    if entry.handle.send(Command::Event(event)).await.is_err() {
        return Err("the service's task has ended".into());
    }
    entry.hands.prepare_server(Duration::from_secs(5)).await
}

/// What would fail only when the service is silent already.
async fn no_server(hands: &Hands) -> Option<CoreFinding> {
    let why = hands.prepare_server(Duration::from_secs(5)).await.err()?;
    Some(CoreFinding::refusal(
        "target-server",
        format!("the NFS server on {} cannot be set up: {why}", hands.me),
        "mend that there; the journal of nasd has more",
    ))
}

async fn check_target(
    entry: &Entry,
    request: &CheckTargetRequest,
    facts: Option<TargetFacts>,
) -> Vec<CoreFinding> {
    let hands = &entry.hands;
    let mut found = Vec::new();
    if request.config_digest != hands.config_digest {
        found.push(CoreFinding::refusal(
            "config-differs",
            format!("the configuration of {} is not the one of {}", hands.me, hands.peer),
            "copy /etc/nasd/nasd.toml to both nodes and restart nasd",
        ));
    }
    match facts {
        Some(facts) if facts.stage == "standby" => found.extend(no_server(hands).await),
        Some(facts) => found.push(CoreFinding::refusal(
            "target-not-standby",
            format!("{} is {}: {}", hands.me, facts.stage, facts.problem.unwrap_or_default()),
            "see nasctl status; the target must be standby",
        )),
        None => found.push(CoreFinding::refusal(
            "target-hangs",
            format!("the service's task on {} does not answer", hands.me),
            "see the journal of nasd there",
        )),
    }
    for what in hands.foreign_mounts().await {
        found.push(CoreFinding::refusal(
            "mountpoint-taken",
            format!("on {}: {what}", hands.me),
            "unmount it; the service mounts its own volume there",
        ));
    }
    found.extend(hands.violations().await.iter().map(|v| violation(&hands.me, v)));
    let view = hands.drbd_view();
    if !view.local_up_to_date {
        found.push(CoreFinding::refusal(
            "target-disk",
            format!("a disk of {} is not UpToDate", hands.me),
            "attach the disk (drbdadm attach) and let it resynchronise",
        ));
    }
    if hands.gate_left().is_some() {
        found.push(CoreFinding::refusal(
            "target-gate-open",
            format!("the gate of {} is open", hands.me),
            "wait until it shuts by itself (its right's TTL)",
        ));
    }
    found
}
