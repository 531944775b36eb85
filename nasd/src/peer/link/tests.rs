//! Beats over paths of which one is dead, stalls or comes back.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use nasd_proto::peer_server::SERVICE_NAME;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::*;
use crate::core::record::NodeName;
use crate::peer::tls::testing::keys;

/// Answers every beat, and counts them.
#[derive(Clone, Default)]
struct Peer(Arc<AtomicU32>);

impl NamedService for Peer {
    const NAME: &'static str = SERVICE_NAME;
}

impl UnaryService<HeartbeatRequest> for Peer {
    type Response = HeartbeatReply;
    type Future = Ready<Result<tonic::Response<HeartbeatReply>, Status>>;

    fn call(&mut self, request: Request<HeartbeatRequest>) -> Self::Future {
        self.0.fetch_add(1, Ordering::SeqCst);
        let sequence = request.into_inner().sequence;
        ready(Ok(tonic::Response::new(HeartbeatReply { sequence, ..HeartbeatReply::default() })))
    }
}

impl Service<http::Request<tonic::body::Body>> for Peer {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let peer = self.clone();
        let codec = tonic_prost::ProstCodec::default();
        Box::pin(async move { Ok(Grpc::new(codec).unary(peer, request).await) })
    }
}

impl Peer {
    fn serve(&self, listener: TcpListener, keys: &TlsPaths) -> JoinHandle<()> {
        let server = Server::builder().tls_config(tls::server(keys).unwrap()).unwrap();
        let router = { server }.add_service(self.clone());
        tokio::spawn(async move {
            router.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
        })
    }

    fn count(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

/// As a kernel that accepts for a program that stands still, unless somebody serves on it.
async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn link(address: SocketAddr, heartbeat: Option<SocketAddr>, keys: &TlsPaths) -> Link {
    let peer = NodeConfig { name: NodeName::from("b"), address, heartbeat, fence: None };
    Link::new(&peer, keys).unwrap()
}

fn numbered(sequence: u64) -> HeartbeatRequest {
    HeartbeatRequest { sequence, ..HeartbeatRequest::default() }
}

/// Beats until one comes through; how long that one took.
async fn heard(link: &Link) -> Duration {
    for n in 0..20 {
        let began = Instant::now();
        if let Ok(reply) = link.heartbeat(numbered(n)).await {
            assert_eq!(reply.sequence, n);
            return began.elapsed();
        }
    }
    panic!("never heard")
}

/// The kernel of a stopped nasd accepts, and nobody shakes hands: beats end in time, and the
/// connection is given up for a new one.
#[tokio::test]
async fn s8_a_stalled_handshake_does_not_hold_the_channel() {
    let dir = tempfile::tempdir().unwrap();
    let (silent, address) = listener().await;
    let link = link(address, None, &keys(dir.path(), "b"));
    let beats = tokio::spawn(async move {
        let mut slowest = Duration::ZERO;
        for n in 0..5 {
            let began = Instant::now();
            assert!(link.heartbeat(numbered(n)).await.is_err());
            slowest = slowest.max(began.elapsed());
        }
        slowest
    });
    let (_first, _) = silent.accept().await.unwrap();
    let again = tokio::time::timeout(BEAT_CONNECT + 2 * HEARTBEAT, silent.accept()).await;
    assert!(again.is_ok(), "the first connection is still waited for");
    assert!(beats.await.unwrap() < HEARTBEAT * 2, "a beat ends in time");
}

#[tokio::test]
async fn a_peer_is_heard_while_either_path_delivers() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(dir.path(), "b");
    for second_is_dead in [true, false] {
        let ((silent, dead), (living, alive)) = (listener().await, listener().await);
        let peer = Peer::default();
        let _server = peer.serve(living, &keys);
        let (first, second) = if second_is_dead { (alive, dead) } else { (dead, alive) };
        let link = link(first, Some(second), &keys);
        heard(&link).await;
        for _ in 0..3 {
            assert!(heard(&link).await < HEARTBEAT / 2, "nobody waits for the dead path");
        }
        assert!(link.last_answer().is_some_and(|ago| ago < HEARTBEAT));
        drop(silent);
    }
}

/// Passes on what it reads, 50 ms later.
async fn late(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut chunk = vec![0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if to.write_all(&chunk[..count]).await.is_err() {
            return;
        }
    }
}

/// A path that came back is used again, although the other one answers every beat first.
#[tokio::test]
async fn a_slower_path_that_came_back_carries_beats_again() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(dir.path(), "b");
    let ((path, first), (living, second)) = (listener().await, listener().await);
    let (behind, far) = listener().await;
    let (there, back) = (Peer::default(), Peer::default());
    let _servers = (there.serve(living, &keys), back.serve(behind, &keys));
    let link = link(first, Some(second), &keys);
    heard(&link).await;
    let _wire = tokio::spawn(async move {
        while let Ok((near, _)) = path.accept().await {
            let (near, far) = (near.into_split(), TcpStream::connect(far).await.unwrap());
            let far = far.into_split();
            tokio::spawn(late(near.0, far.1));
            tokio::spawn(late(far.0, near.1));
        }
    });
    for n in 100..116 {
        link.heartbeat(numbered(n)).await.unwrap();
        // As often as nasd does by default.
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert!(there.count() >= 16);
    assert!(back.count() >= 4, "beats on the path that came back: {}", back.count());
}

#[tokio::test]
async fn without_any_path_a_beat_is_a_no() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(dir.path(), "b");
    let ((one, first), (other, second)) = (listener().await, listener().await);
    drop((one, other));
    let link = link(first, Some(second), &keys);
    assert!(link.heartbeat(numbered(1)).await.is_err());
    assert_eq!(link.last_answer(), None);
    assert!(link.silent_paths().is_empty(), "not yet");
    for path in &link.paths {
        path.silence.lock().unwrap().since = Instant::now().checked_sub(SILENT);
    }
    assert_eq!(link.silent_paths(), [first, second]);
    assert_eq!(link.addresses(), [first, second]);
}
