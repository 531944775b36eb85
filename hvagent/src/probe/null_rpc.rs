//! The NULL call of NFS 4 to a service's address: proves that a server listens and its threads run,
//! and nothing about the file system. Touches no mount, leaves no state at the server.
//!
//! Rule kept: S10; the whole exchange has one deadline. Only a complete, accepted answer to this
//! very call counts (S12).

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Where NFS 4 listens (RFC 7530, section 3.1).
pub const PORT: u16 = 2049;

/// The program NFS and its version 4, procedure NULL (RFC 7530; RFC 5531 for the words).
const PROGRAM: u32 = 100_003;
const VERSION: u32 = 4;
const NULL: u32 = 0;

/// Of the record mark: this is the last fragment.
const LAST: u32 = 0x8000_0000;

/// Longest answer that is read: six words, and a verifier of at most 400 bytes (RFC 5531).
const LONGEST: u32 = 424;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum NullError {
    /// Nothing came in time.
    #[error("{0} did not answer within {1:?}: its NFS server is silent or cannot be reached")]
    Late(SocketAddr, Duration),
    /// The connection was refused or broke.
    #[error("{0} cannot be talked to ({1}): look at its address, its NFS server and the network")]
    Broken(SocketAddr, #[source] std::io::Error),
    /// It answers, and not as an NFS 4 server does.
    #[error("{0} answers, but not as an NFS 4 server ({1}): another service listens there")]
    Foreign(SocketAddr, &'static str),
}

/// Calls, and gives how long it took.
///
/// # Errors
/// No connection, no answer in time, or an answer that is none.
pub async fn ask(to: SocketAddr, xid: u32, deadline: Duration) -> Result<Duration, NullError> {
    let begin = Instant::now();
    match tokio::time::timeout(deadline, exchange(to, xid)).await {
        Err(_) => Err(NullError::Late(to, deadline)),
        Ok(Err(error)) => Err(NullError::Broken(to, error)),
        Ok(Ok(answer)) => match check(&answer, xid) {
            Ok(()) => Ok(begin.elapsed()),
            Err(what) => Err(NullError::Foreign(to, what)),
        },
    }
}

async fn exchange(to: SocketAddr, xid: u32) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(&call(xid)).await?;
    let mark = stream.read_u32().await?;
    let length = usize::try_from((mark & !LAST).min(LONGEST)).unwrap_or(0);
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).await?;
    // A fragment that is not the last, or too long, is no answer to NULL.
    if mark & LAST == 0 || mark & !LAST > LONGEST {
        answer.clear();
    }
    Ok(answer)
}

/// Record mark and call, without credentials.
#[must_use]
fn call(xid: u32) -> Vec<u8> {
    let words = [LAST | 40, xid, 0, 2, PROGRAM, VERSION, NULL, 0, 0, 0, 0];
    words.iter().flat_map(|w| w.to_be_bytes()).collect()
}

/// Whether an answer, without its mark, accepts the call.
fn check(answer: &[u8], xid: u32) -> Result<(), &'static str> {
    let word = |at: usize| {
        let bytes = answer.get(at..at.checked_add(4)?)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    if word(0) != Some(xid) {
        return Err("another call's number");
    }
    if word(4) != Some(1) || word(8) != Some(0) {
        return Err("the call is denied");
    }
    let verifier = word(16).and_then(|n| usize::try_from(n).ok()).ok_or("cut short")?;
    let status = verifier.checked_next_multiple_of(4).and_then(|n| n.checked_add(20));
    match status.and_then(word) {
        Some(0) => Ok(()),
        Some(_) => Err("program or version is not there"),
        None => Err("cut short"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    fn words(all: &[u32]) -> Vec<u8> {
        all.iter().flat_map(|w| w.to_be_bytes()).collect()
    }

    /// A server that takes one call and says `answer`; with `None` it says nothing.
    async fn server(answer: Option<Vec<u8>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = [0; 44];
            stream.read_exact(&mut question).await.unwrap();
            assert_eq!(question.to_vec(), call(7));
            match answer {
                Some(answer) => stream.write_all(&answer).await.unwrap(),
                None => tokio::time::sleep(Duration::from_secs(60)).await,
            }
        });
        address
    }

    async fn asked(answer: Option<Vec<u8>>) -> Result<Duration, NullError> {
        let deadline = if answer.is_some() { 10_000 } else { 100 };
        ask(server(answer).await, 7, Duration::from_millis(deadline)).await
    }

    #[test]
    fn the_call_has_eleven_words() {
        let call = call(0x0102_0304);
        assert_eq!(call.len(), 44);
        assert_eq!(call[..8], [0x80, 0, 0, 40, 1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn an_accepted_call_is_an_answer() {
        let plain = words(&[LAST | 24, 7, 1, 0, 0, 0, 0]);
        assert!(asked(Some(plain)).await.is_ok());
        let verifier = words(&[LAST | 32, 7, 1, 0, 6, 5, 1, 2, 0]);
        assert!(asked(Some(verifier)).await.is_ok());
    }

    #[tokio::test]
    async fn everything_else_is_none() {
        for answer in [
            words(&[LAST | 24, 8, 1, 0, 0, 0, 0]),
            words(&[LAST | 24, 7, 1, 1, 0, 0, 0]),
            words(&[LAST | 24, 7, 1, 0, 0, 0, 2]),
            words(&[LAST | 24, 7, 1, 0, 0, 400, 0]),
            words(&[24, 7, 1, 0, 0, 0, 0]),
            words(&[LAST]),
        ] {
            assert!(matches!(asked(Some(answer)).await, Err(NullError::Foreign(..))));
        }
        let cut = words(&[LAST | 24, 7]);
        assert!(matches!(asked(Some(cut)).await, Err(NullError::Broken(..))));
        let long = [words(&[u32::MAX, 7, 1, 0, 0, 0, 0]), vec![0; 1000]].concat();
        assert!(matches!(asked(Some(long)).await, Err(NullError::Foreign(..))));
    }

    #[tokio::test]
    async fn s10_silence_has_an_end() {
        assert!(matches!(asked(None).await, Err(NullError::Late(..))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(answer in proptest::collection::vec(any::<u8>(), 0..100), xid in any::<u32>()) {
            let _ = check(&answer, xid);
        }

        #[test]
        fn only_ours_is_accepted(xid in any::<u32>(), other in any::<u32>()) {
            let answer = words(&[other, 1, 0, 0, 0, 0]);
            prop_assert_eq!(check(&answer, xid).is_ok(), xid == other);
        }
    }
}
