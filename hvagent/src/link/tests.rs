//! Links against an in-process nasd: greeting, news, repetition, reconnection, and a nasd that hangs.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::Stream;
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use v1::agents_server::{Agents, AgentsServer};

use super::*;
use crate::config::Nasd as Node;

type News = Pin<Box<dyn Stream<Item = Result<v1::AgentNews, Status>> + Send>>;

/// Notes what is said, welcomes, and ends each call after so many messages.
#[derive(Clone)]
struct Nasd {
    heard: mpsc::Sender<Kind>,
    ends_after: usize,
    calls: Arc<Mutex<usize>>,
}

#[tonic::async_trait]
impl Agents for Nasd {
    type AttendStream = News;

    async fn attend(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<News>, Status> {
        *self.calls.lock().unwrap() += 1;
        let (heard, ends_after) = (self.heard.clone(), self.ends_after);
        let (say, said) = mpsc::channel(4);
        let welcome = v1::Welcome { node: "nas1".into(), services: vec![] };
        let kind = Some(v1::agent_news::Kind::Welcome(welcome));
        say.send(Ok(v1::AgentNews { kind })).await.unwrap();
        tokio::spawn(async move {
            let mut messages = request.into_inner().take(ends_after);
            while let Some(Ok(message)) = messages.next().await {
                let _ = heard.send(message.kind.unwrap()).await;
            }
            drop(say);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(said))))
    }

    async fn host_report(
        &self,
        _: Request<v1::HostReportRequest>,
    ) -> Result<Response<v1::HostReportReply>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// A nasd, what it hears, a link to it and what the link tells the agent.
struct Pair {
    heard: mpsc::Receiver<Kind>,
    calls: Arc<Mutex<usize>>,
    inbox: mpsc::Receiver<Input>,
    state: watch::Sender<v1::AgentState>,
    queue: mpsc::Sender<Kind>,
}

fn link(address: SocketAddr, tls: Option<TlsPaths>) -> Link {
    let hello = v1::AgentHello { host: "hv1".into(), boot_id: "b".into(), version: "1".into() };
    let nasd = Node { name: "nas1".into(), address };
    Link { nasd, tls, hello, every: Duration::from_millis(100) }
}

fn dial(link: Link) -> (mpsc::Receiver<Input>, watch::Sender<v1::AgentState>, mpsc::Sender<Kind>) {
    let (inputs, inbox) = mpsc::channel(64);
    let (state, told) = watch::channel(v1::AgentState::default());
    let (queue, queued) = mpsc::channel(QUEUE);
    tokio::spawn(run(link, Outgoing { state: told, queue: queued }, inputs));
    (inbox, state, queue)
}

async fn pair(ends_after: usize, keys: Option<(TlsPaths, ServerTlsConfig)>) -> Pair {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (told, heard) = mpsc::channel(64);
    let calls = Arc::new(Mutex::new(0));
    let nasd = Nasd { heard: told, ends_after, calls: Arc::clone(&calls) };
    let (paths, config) = keys.unzip();
    let mut server = Server::builder();
    if let Some(config) = config {
        server = server.tls_config(config).unwrap();
    }
    let server = server.add_service(AgentsServer::new(nasd));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let (inbox, state, queue) = dial(link(address, paths));
    Pair { heard, calls, inbox, state, queue }
}

async fn next<T>(from: &mut mpsc::Receiver<T>) -> T {
    timeout(Duration::from_secs(10), from.recv()).await.expect("in time").expect("not ended")
}

#[tokio::test]
async fn hello_comes_first_then_state_and_what_is_said_once() {
    let mut pair = pair(1_000, None).await;
    assert!(matches!(next(&mut pair.heard).await, Kind::Hello(h) if h.host == "hv1"));
    assert!(matches!(next(&mut pair.inbox).await, Input::Linked(n, Ok(())) if n == "nas1"));
    assert!(matches!(
        next(&mut pair.inbox).await,
        Input::News(_, v1::agent_news::Kind::Welcome(_))
    ));
    assert!(matches!(next(&mut pair.heard).await, Kind::State(s) if s.mounts.is_empty()));
    let mount = v1::MountState { mount: "/vm".into(), ..Default::default() };
    pair.state.send_replace(v1::AgentState { mounts: vec![mount] });
    pair.queue
        .send(Kind::Readiness(v1::Readiness { move_id: 7, ..Default::default() }))
        .await
        .unwrap();
    let mut seen = (false, 0);
    while !seen.0 || seen.1 < 3 {
        match next(&mut pair.heard).await {
            Kind::Readiness(r) => seen.0 = r.move_id == 7,
            Kind::State(s) => seen.1 += s.mounts.len(),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_nasd_that_ends_the_call_is_dialled_again_and_greeted_again() {
    let mut pair = pair(2, None).await;
    for _ in 0..2 {
        while !matches!(next(&mut pair.heard).await, Kind::Hello(_)) {}
        while !matches!(next(&mut pair.inbox).await, Input::Linked(_, Err(_))) {}
    }
    assert!(*pair.calls.lock().unwrap() >= 2);
}

#[tokio::test]
async fn nobody_there_is_told_with_its_reason_and_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (mut inbox, _state, _queue) = dial(link(address, None));
    for _ in 0..2 {
        let Input::Linked(_, Err(why)) = next(&mut inbox).await else { panic!("a link") };
        assert!(why.contains("refused") && why.contains("nas1"), "{why}");
    }
}

#[tokio::test]
async fn a_nasd_that_takes_the_connection_and_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut inbox, _state, _queue) = dial(link(listener.local_addr().unwrap(), None));
    let Input::Linked(_, Err(why)) = next(&mut inbox).await else { panic!("a link") };
    assert!(!why.is_empty(), "{why}");
}

/// An authority, and the files of a host and of a nasd with these names.
fn keys(dir: &std::path::Path, nasd: &str) -> (TlsPaths, ServerTlsConfig) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(params, key);
    let signed = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let write = |file: &str, text: &str| {
        let path = dir.join(file);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (host, host_key) = signed("hv1");
    let (node, node_key) = signed(nasd);
    let paths = TlsPaths {
        ca: write("ca.pem", &ca),
        cert: write("hv1.pem", &host),
        key: write("hv1.key", &host_key),
    };
    let server = ServerTlsConfig::new()
        .identity(Identity::from_pem(node, node_key))
        .client_ca_root(tonic::transport::Certificate::from_pem(ca));
    (paths, server)
}

#[tokio::test]
async fn both_sides_show_their_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = pair(1_000, Some(keys(dir.path(), "nas1"))).await;
    assert!(matches!(next(&mut pair.heard).await, Kind::Hello(_)));
}

#[tokio::test]
async fn a_nasd_of_another_name_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut pair = pair(1_000, Some(keys(dir.path(), "nas2"))).await;
    let Input::Linked(_, Err(why)) = next(&mut pair.inbox).await else { panic!("a link") };
    assert!(why.to_lowercase().contains("cert") || why.contains("name"), "{why}");
}

#[tokio::test]
async fn keys_that_are_not_there_are_told_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let (mut paths, _) = keys(dir.path(), "nas1");
    paths.key = "/nonexistent/key".into();
    let (mut inbox, _state, _queue) =
        dial(link(SocketAddr::from(([127, 0, 0, 1], 9)), Some(paths)));
    let Input::Linked(_, Err(why)) = next(&mut inbox).await else { panic!("a link") };
    assert!(why.contains("[peer]"), "{why}");
}
