//! The service over TLS on a local socket: who may attend, what is refused, how streams end.

use std::net::SocketAddr;

use nasd_proto::agents_client::AgentsClient;
use nasd_proto::{AgentState, MountState, Readiness};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::Code;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};

use super::*;
use crate::agents::book::Book;
use crate::agents::{Ask, Terms};
use crate::config::TlsPaths;
use crate::peer::tls::{self, testing::keys_of_all};

const NAMES: &[&str] = &["nas1", "nas2", "hv1", "hv2"];

struct Lab {
    agents: Agents,
    address: SocketAddr,
    keys: Vec<TlsPaths>,
    _dir: TempDir,
}

/// nas1's server; `as_peer`: as if the service were the peers' own.
async fn lab(as_peer: bool) -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys_of_all(dir.path(), NAMES);
    let agents = Agents::start(Book::new("nas1".into(), ["vms".to_owned()], Vec::new()));
    let greeting: Greeting = Arc::new(|| Welcome { node: "nas1".into(), services: Vec::new() });
    let nodes = ["nas1".to_owned(), "nas2".to_owned()];
    let service = AgentsService { agents: agents.clone(), nodes, greeting };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = Server::builder().tls_config(tls::server(&keys[0]).unwrap()).unwrap();
    let router = if as_peer {
        let admit = |r: Request<()>| tls::admit(&r, "nas2").map(|()| r);
        server.add_service(AgentsServer::with_interceptor(service, admit))
    } else {
        server.add_service(service.served())
    };
    tokio::spawn(router.serve_with_incoming(TcpIncoming::from(listener)));
    Lab { agents, address, keys, _dir: dir }
}

impl Lab {
    /// A client with the certificate of that name.
    async fn client(&self, name: &str) -> AgentsClient<Channel> {
        let at = NAMES.iter().position(|n| *n == name).unwrap();
        let tls = tls::client(&self.keys[at], "nas1").unwrap();
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        AgentsClient::new(endpoint.tls_config(tls).unwrap().connect().await.unwrap())
    }

    /// The code with which a hello is refused.
    async fn refused(&self, certificate: &str, host: &str) -> Code {
        match attend(&mut self.client(certificate).await, hello(host)).await {
            Err(status) => status.code(),
            Ok(_) => Code::Ok,
        }
    }
}

fn hello(host: &str) -> Kind {
    Kind::Hello(AgentHello { host: host.into(), version: "1".into(), ..AgentHello::default() })
}

type Stream = (mpsc::Sender<AgentMessage>, Streaming<AgentNews>);

async fn attend(client: &mut AgentsClient<Channel>, first: Kind) -> Result<Stream, Status> {
    let (tx, rx) = mpsc::channel(16);
    tx.try_send(AgentMessage { kind: Some(first) }).unwrap();
    let news = client.attend(ReceiverStream::new(rx)).await?;
    Ok((tx, news.into_inner()))
}

async fn next(news: &mut Streaming<AgentNews>) -> Result<Option<NewsKind>, Status> {
    let next = tokio::time::timeout(Duration::from_secs(10), news.message()).await.unwrap();
    next.map(|news| news.and_then(|n| n.kind))
}

async fn say(to: &mpsc::Sender<AgentMessage>, kind: Kind) {
    to.send(AgentMessage { kind: Some(kind) }).await.unwrap();
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let began = std::time::Instant::now();
    while !done().await {
        assert!(began.elapsed() < Duration::from_secs(10), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_agent_is_welcomed_asked_and_heard() {
    let lab = lab(false).await;
    let (to, mut news) = attend(&mut lab.client("hv1").await, hello("hv1")).await.unwrap();
    assert!(matches!(next(&mut news).await, Ok(Some(NewsKind::Welcome(w))) if w.node == "nas1"));
    let mount = MountState { service: "vms".into(), ..MountState::default() };
    say(&to, Kind::State(AgentState { mounts: vec![mount] })).await;
    let (wait, keep) = (Duration::from_secs(30), Duration::from_secs(60));
    let terms = Terms { epoch: 8, wait, keep, force: false, predicted_stall_ms: 0 };
    let agents = lab.agents.clone();
    let ask = Ask { service: "vms".into(), terms };
    let asking = tokio::spawn(async move { agents.announce(ask).await });
    let Ok(Some(NewsKind::Announce(announce))) = next(&mut news).await else { panic!("no move") };
    let said = Readiness {
        service: "vms".into(),
        move_id: announce.move_id,
        ready: true,
        ..Readiness::default()
    };
    say(&to, Kind::Readiness(said)).await;
    assert_eq!(asking.await.unwrap(), []);
    drop((to, news));
    until("the end of the stream is seen", async || lab.agents.attached().await.is_empty()).await;
}

#[tokio::test]
async fn only_a_certificate_with_the_hosts_own_name_attends() {
    let lab = lab(false).await;
    assert_eq!(lab.refused("hv1", "hv1").await, Code::Ok);
    assert_eq!(lab.refused("hv1", "hv2").await, Code::PermissionDenied);
    assert_eq!(lab.refused("hv1", "").await, Code::PermissionDenied);
    for (certificate, host) in
        [("nas2", "nas2"), ("nas2", "hv1"), ("hv1", "nas2"), ("nas1", "nas1")]
    {
        let code = lab.refused(certificate, host).await;
        assert_eq!(code, Code::PermissionDenied, "{host} with the certificate of {certificate}");
    }
}

#[tokio::test]
async fn an_agent_is_no_peer() {
    let lab = lab(true).await;
    assert_eq!(lab.refused("hv1", "hv1").await, Code::PermissionDenied);
    let asked = lab.client("hv1").await.host_report(HostReportRequest::default()).await;
    assert_eq!(asked.unwrap_err().code(), Code::PermissionDenied);
    let asked = lab.client("nas2").await.host_report(HostReportRequest::default()).await;
    assert!(asked.is_ok());
}

#[tokio::test]
async fn the_first_message_is_a_hello_and_none_is_too_long() {
    let lab = lab(false).await;
    let mut client = lab.client("hv1").await;
    let other = attend(&mut client, Kind::State(AgentState::default())).await;
    assert_eq!(other.unwrap_err().code(), Code::InvalidArgument);
    let (to, mut news) = attend(&mut client, hello("hv1")).await.unwrap();
    assert!(next(&mut news).await.is_ok());
    say(&to, Kind::HostReportJson("x".repeat(tame::MESSAGE + 1))).await;
    assert!(!matches!(next(&mut news).await, Ok(Some(_))), "the stream ends");
    until("detached", async || lab.agents.attached().await.is_empty()).await;
}

#[tokio::test]
async fn a_newer_stream_of_the_host_ends_the_older_one() {
    let lab = lab(false).await;
    let mut client = lab.client("hv1").await;
    let (_to, mut old) = attend(&mut client, hello("hv1")).await.unwrap();
    let (_to2, mut new) = attend(&mut client, hello("hv1")).await.unwrap();
    assert!(matches!(next(&mut old).await, Ok(Some(NewsKind::Welcome(_)))));
    assert!(matches!(next(&mut new).await, Ok(Some(NewsKind::Welcome(_)))));
    assert!(!matches!(next(&mut old).await, Ok(Some(_))));
    assert_eq!(lab.agents.attached().await, ["hv1"]);
}

#[tokio::test]
async fn a_report_is_told_to_nodes_and_to_attached_hosts_only() {
    let lab = lab(false).await;
    let (to, _news) = attend(&mut lab.client("hv1").await, hello("hv1")).await.unwrap();
    say(&to, Kind::HostReportJson("{\"cpu\":1}".into())).await;
    let ask = async |name: &str| {
        let request = HostReportRequest { host: "hv1".into() };
        lab.client(name).await.host_report(request).await.map(Response::into_inner)
    };
    until("heard", async || ask("nas2").await.is_ok_and(|r| !r.report_json.is_empty())).await;
    assert_eq!(ask("hv2").await.unwrap_err().code(), Code::PermissionDenied);
    let told = ask("hv1").await.unwrap();
    assert_eq!(
        (told.report_json.as_str(), told.hosts.as_slice()),
        ("{\"cpu\":1}", &["hv1".to_owned()][..])
    );
}
