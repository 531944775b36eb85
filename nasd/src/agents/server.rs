//! The gRPC service that agents attend, beside the peers' on the same port.
//!
//! Owns who may: a certificate must bear the host's name, and no NAS node's. Every wait has a deadline, every
//! message a size (S8); what an agent says goes to the one task that owns the book.

use std::sync::Arc;
use std::time::Duration;

use nasd_proto::agent_message::Kind;
use nasd_proto::agent_news::Kind as NewsKind;
use nasd_proto::agents_server::{Agents as Served, AgentsServer};
use nasd_proto::{
    AgentHello, AgentMessage, AgentNews, HostReportReply, HostReportRequest, Welcome,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::task::{Agents, Attaching, UNREAD};
use super::{StreamId, tame};
use crate::peer::tls::Bearer;

/// Time for the first message.
const HELLO: Duration = Duration::from_secs(10);

/// Says what this node serves, at the moment.
pub type Greeting = Arc<dyn Fn() -> Welcome + Send + Sync>;

/// The service.
pub struct AgentsService {
    /// The task.
    pub agents: Agents,
    /// The NAS nodes: nobody attends under their names, or with their certificates.
    pub nodes: [String; 2],
    /// The first message of every stream.
    pub greeting: Greeting,
}

impl AgentsService {
    /// For a server, with the limit on the size of messages.
    #[must_use]
    pub fn served(self) -> AgentsServer<Self> {
        AgentsServer::new(self).max_decoding_message_size(tame::MESSAGE)
    }

    /// The host that may attend: the one that the hello names, if the certificate says so too.
    fn host(&self, bearer: &Bearer, hello: &AgentHello) -> Result<String, Status> {
        let host = hello.host.as_str();
        if self.nodes.iter().any(|node| node == host || bearer.is(node)) {
            return Err(Status::permission_denied(format!(
                "{host}: a NAS node's name or certificate is not an agent's; give hvagent a certificate with its host's name"
            )));
        }
        if !bearer.is(host) {
            return Err(Status::permission_denied(format!(
                "the certificate does not name the host {host:?}; let both be the same"
            )));
        }
        Ok(host.to_owned())
    }

    async fn may_ask(&self, bearer: &Bearer) -> bool {
        let node = self.nodes.iter().any(|node| bearer.is(node));
        node || self.agents.attached().await.iter().any(|host| bearer.is(host))
    }
}

#[tonic::async_trait]
impl Served for AgentsService {
    type AttendStream = ReceiverStream<Result<AgentNews, Status>>;

    async fn attend(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::AttendStream>, Status> {
        let bearer = Bearer::of(&request);
        let mut messages = request.into_inner();
        let hello = first(&mut messages).await?;
        let host = self.host(&bearer, &hello)?;
        let (outbox, unread) = mpsc::channel(UNREAD);
        let welcome = AgentNews { kind: Some(NewsKind::Welcome((self.greeting)())) };
        let (alive, over) = oneshot::channel();
        // The channel is new: there is room.
        let _ = outbox.try_send(Ok(welcome));
        let attaching = Attaching { host: host.clone(), version: hello.version, outbox, alive };
        let stream = self.agents.attach(attaching).await.ok_or_else(|| {
            Status::resource_exhausted(format!(
                "there is no place for {host}: too many agents are attached, or nasd is overloaded"
            ))
        })?;
        tokio::spawn(listen(self.agents.clone(), stream, host, messages, over));
        Ok(Response::new(ReceiverStream::new(unread)))
    }

    async fn host_report(
        &self,
        request: Request<HostReportRequest>,
    ) -> Result<Response<HostReportReply>, Status> {
        if !self.may_ask(&Bearer::of(&request)).await {
            return Err(Status::permission_denied(
                "only a NAS node, or a host whose agent is attached, may ask; start hvagent there",
            ));
        }
        let report = self.agents.report(&request.into_inner().host).await;
        report
            .map(Response::new)
            .ok_or_else(|| Status::unavailable("nasd is overloaded; ask again"))
    }
}

async fn first(messages: &mut Streaming<AgentMessage>) -> Result<AgentHello, Status> {
    let first = tokio::time::timeout(HELLO, messages.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no hello came"))??;
    match first.and_then(|m| m.kind) {
        Some(Kind::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message must be a hello")),
    }
}

/// Reads until the stream ends, or nasd has given it up.
async fn listen(
    agents: Agents,
    stream: StreamId,
    host: String,
    mut messages: Streaming<AgentMessage>,
    mut over: oneshot::Receiver<()>,
) {
    let why = loop {
        let message = tokio::select! {
            _ = &mut over => break "given up".to_owned(),
            message = messages.message() => message,
        };
        match message {
            Ok(Some(AgentMessage { kind: Some(kind) })) => {
                if !agents.heard(stream, kind).await {
                    break "nasd ends".to_owned();
                }
            }
            // Of a newer agent, perhaps.
            Ok(Some(AgentMessage { kind: None })) => {}
            Ok(None) => break "ended".to_owned(),
            Err(error) => break error.message().to_owned(),
        }
    };
    tracing::info!(host, why, "agent detached");
    agents.detach(stream).await;
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
