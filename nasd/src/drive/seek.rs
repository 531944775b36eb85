//! The search for a silent peer: in the coordinator, and at its node's door.
//!
//! Keeps S12: only a coordinator that answers, and a peer that does not answer *there*, are evidence
//! that it is gone. A kernel that refuses the connection is alive all the same.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::TcpStream;

use super::hands::Hands;
use crate::coordinator::CoordinatorError;
use crate::core::peer::Sign;

/// Time for the whole search in the coordinator; about 250 ms are used when it is healthy.
const LIMIT: Duration = Duration::from_millis(1500);
/// Time for the node's kernel to answer a connection: some tens of times what a local network needs.
const KNOCK: Duration = Duration::from_millis(200);

/// Looks for the peer.
pub async fn seek(hands: &Hands) -> Sign {
    let (answered, lives) = tokio::join!(
        hands.coordinator.seek(&hands.peer.0, LIMIT),
        knock_at_any(hands.peer_link.addresses(), KNOCK),
    );
    if let Err(error) = &answered {
        tracing::warn!(%error, peer = %hands.peer, "the silent peer cannot be looked for");
    }
    sign(&answered, lives)
}

fn sign(answered: &Result<bool, CoordinatorError>, lives: bool) -> Sign {
    match (answered, lives) {
        (Err(_), _) => Sign::Unknown,
        (Ok(true), _) => Sign::Alive,
        (Ok(false), true) => Sign::HostOnly,
        (Ok(false), false) => Sign::Nothing,
    }
}

/// Whether the node's kernel answers at one of its addresses.
async fn knock_at_any(addresses: Vec<SocketAddr>, limit: Duration) -> bool {
    join_all(addresses.into_iter().map(|a| knock(a, limit))).await.contains(&true)
}

/// Whether a kernel answers there: it accepts, or it refuses.
async fn knock(address: SocketAddr, limit: Duration) -> bool {
    match tokio::time::timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s12_only_an_answering_coordinator_is_evidence_of_absence() {
        let late = || Err(CoordinatorError::Unreachable { after: LIMIT });
        assert_eq!(sign(&late(), false), Sign::Unknown);
        assert_eq!(sign(&late(), true), Sign::Unknown);
        assert_eq!(sign(&Ok(true), false), Sign::Alive);
        assert_eq!(sign(&Ok(false), true), Sign::HostOnly);
        assert_eq!(sign(&Ok(false), false), Sign::Nothing);
    }

    #[tokio::test]
    async fn a_kernel_that_accepts_or_refuses_lives() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(knock(address, KNOCK).await, "accepted");
        drop(listener);
        assert!(knock(address, KNOCK).await, "refused");
    }

    /// A listener whose queue is full lets further connections wait, as a dead node does.
    #[tokio::test]
    async fn a_node_that_says_nothing_does_not_live() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = socket.listen(0).unwrap();
        let address = silent.local_addr().unwrap();
        let mut waiting = Vec::new();
        for _ in 0..2 {
            let fill = tokio::time::timeout(KNOCK, TcpStream::connect(address)).await;
            waiting.extend(fill.ok().and_then(Result::ok));
        }
        assert!(!knock(address, KNOCK).await, "{} in the queue", waiting.len());
    }
}
