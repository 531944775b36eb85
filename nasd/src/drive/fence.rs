//! The socket at which `nasd-fence-peer` asks on behalf of DRBD's kernel module.
//!
//! Keeps S10 (answered from a snapshot of the record, never waits for a promotion, and a kernel that
//! asks a hundred times costs as much as one that asks once) and design section 4: "outdated" only from
//! a *confirmed* record that this node owns and from which the peer is gone.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nasd_drbd::ResourceStatus;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};

use crate::core::record::{NodeName, Phase, Record};

/// Where the helper finds nasd.
pub const SOCKET: &str = "/run/nasd/fence.sock";
/// How long one question waits for the record to change; the helper then asks again.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time for the record to follow a link that went in the middle of a promotion; the kernel asks four
/// times, and all of it must end before long.
const PROMOTION_PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks for a link that came back; long enough for its loss to be seen first.
const LINK_PATIENCE: Duration = Duration::from_secs(1);
/// Time for a question to be sent, and for its answer to be taken.
const TALK: Duration = Duration::from_secs(5);
/// Longest question looked at: the verb and a resource name of 127 bytes.
const QUESTION_MAX: u64 = 160;
/// Questions that wait at the same time; more are told to ask again. Each service needs one, a
/// retriggered helper beside an old one makes two.
const WAITING_MAX: usize = 256;

/// What an answer is made of.
#[derive(Clone)]
pub struct Source {
    /// The record as the core has it: what it holds is confirmed.
    pub record: watch::Receiver<Option<Record>>,
    /// DRBD as last seen, to find a resource by the number of one of its devices.
    pub seen: Arc<Mutex<Option<ResourceStatus>>>,
}

/// The sources by DRBD resource.
pub type Records = BTreeMap<String, Source>;

/// What all questions share.
struct Desk {
    me: NodeName,
    peer: NodeName,
    sources: Records,
    /// How many ask about a resource now.
    asking: Mutex<BTreeMap<String, usize>>,
}

/// Answers for ever.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve(
    path: &Path,
    me: NodeName,
    peer: NodeName,
    sources: Records,
) -> std::io::Result<()> {
    if path.exists() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let desk = Arc::new(Desk { me, peer, sources, asking: Mutex::default() });
    let places = Arc::new(Semaphore::new(WAITING_MAX));
    loop {
        let mut stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, for example: the helper asks again.
                tracing::error!(%error, "fence-peer could not be answered");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (desk, place) = (Arc::clone(&desk), Arc::clone(&places).try_acquire_owned());
        tokio::spawn(async move {
            let answered = match place {
                Ok(_place) => desk.answer(&mut stream, PATIENCE).await,
                Err(_) => say(&mut stream, "wait").await,
            };
            if let Err(error) = answered {
                tracing::debug!(%error, "a fence-peer question ended without an answer");
            }
        });
    }
}

async fn say(stream: &mut UnixStream, word: &str) -> std::io::Result<()> {
    let line = format!("{word}\n");
    tokio::time::timeout(TALK, stream.write_all(line.as_bytes())).await?
}

impl Desk {
    /// One question, one word.
    async fn answer(&self, stream: &mut UnixStream, patience: Duration) -> std::io::Result<()> {
        let mut line = String::new();
        let mut reader = BufReader::new((&mut *stream).take(QUESTION_MAX));
        tokio::time::timeout(TALK, reader.read_line(&mut line)).await??;
        let name = line.trim().strip_prefix("fence-peer ").unwrap_or_default();
        let Some((resource, source)) = self.source(name) else {
            return say(stream, "unknown-resource").await;
        };
        let first = self.count(resource, 1);
        if first {
            tracing::warn!(resource, "DRBD lost its peer and asks whether it may go on");
        }
        let mut more = [0_u8; 1];
        let word = tokio::select! {
            word = self.word(source, patience) => Some(word),
            // The helper says nothing more: it was killed, or breaks off. Nobody reads an answer.
            _ = stream.read(&mut more) => None,
        };
        self.count(resource, -1);
        let Some(word) = word else { return Ok(()) };
        tracing::info!(resource, word, "fence-peer is answered");
        say(stream, word).await
    }

    async fn word(&self, source: &Source, patience: Duration) -> &'static str {
        let mut record = source.record.clone();
        let decided = |r: &Option<Record>| r.as_ref().is_some_and(|r| self.verdict(r).is_some());
        let shown = async {
            let shown = record.wait_for(decided).await.ok()?;
            shown.as_ref().and_then(|r| self.verdict(r))
        };
        let word = tokio::select! {
            shown = tokio::time::timeout(patience, shown) => shown.ok().flatten(),
            () = connected_again(source) => Some("connected-again"),
            () = only_promoting(source) => Some("not-decided"),
        };
        word.unwrap_or("wait")
    }

    /// A record that settles the question: for this node, or for the other one. A kernel command that
    /// waits for the helper (a promotion) holds up all others of its resource: a no must be told too.
    fn verdict(&self, record: &Record) -> Option<&'static str> {
        let moved = matches!(&record.phase,
            Phase::Serving { owner } | Phase::Taking { owner } if *owner == self.peer);
        if excluded(record, &self.me, &self.peer) {
            Some("outdated")
        } else {
            moved.then_some("the-peer-has-the-service")
        }
    }

    /// By name, or by the `minor-N` of one of its devices.
    fn source(&self, name: &str) -> Option<(&str, &Source)> {
        if let Some((name, source)) = self.sources.get_key_value(name) {
            return Some((name, source));
        }
        let minor: u32 = name.strip_prefix("minor-")?.parse().ok()?;
        let has = |source: &Source| {
            let seen = source.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.as_ref().is_some_and(|s| s.devices.values().any(|d| d.minor == minor))
        };
        self.sources.iter().find(|(_, s)| has(s)).map(|(name, source)| (name.as_str(), source))
    }

    /// Counts those who ask; whether this is the first of them.
    fn count(&self, resource: &str, change: isize) -> bool {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let number = asking.entry(resource.to_owned()).or_default();
        let before = *number;
        *number = before.saturating_add_signed(change);
        before == 0
    }
}

/// A Secondary has no freeze to guard: its kernel asks for a promotion, and holds up every other
/// command of the resource while it waits. What may be promoted has its record before it is.
async fn only_promoting(source: &Source) {
    loop {
        tokio::time::sleep(PROMOTION_PATIENCE).await;
        let seen = source.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.as_ref().is_some_and(|s| s.role == nasd_drbd::Role::Secondary) {
            return;
        }
    }
}

/// The link is back: the kernel ignores the helper's word by then, and a promotion that waits for it
/// could go on without. What was seen before the question does not count.
async fn connected_again(source: &Source) {
    loop {
        tokio::time::sleep(LINK_PATIENCE).await;
        let seen = source.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let connected = |s: &ResourceStatus| {
            !s.connections.is_empty()
                && s.connections.iter().all(|c| c.state == nasd_drbd::ConnState::Connected)
        };
        if seen.as_ref().is_some_and(connected) {
            return;
        }
    }
}

/// I8: this node holds the authority and the peer is out of the current set.
pub(super) fn excluded(record: &Record, me: &NodeName, peer: &NodeName) -> bool {
    record.authority() == Some(me) && record.current.contains(me) && !record.current.contains(peer)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn nodes() -> (NodeName, NodeName) {
        (NodeName::from("a"), NodeName::from("b"))
    }

    fn serving() -> Record {
        let (a, b) = nodes();
        Record::first(BTreeSet::from([a.clone(), b]), BTreeMap::new()).start(&a).unwrap()
    }

    fn desk(record: &watch::Sender<Option<Record>>) -> Arc<Desk> {
        let (me, peer) = nodes();
        let source = Source { record: record.subscribe(), seen: Arc::default() };
        let sources = BTreeMap::from([("r0".to_owned(), source)]);
        Arc::new(Desk { me, peer, sources, asking: Mutex::default() })
    }

    /// Asks, and reads the whole answer in the background.
    async fn ask(desk: &Arc<Desk>, question: &str, patience: Duration) -> JoinHandle {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.write_all(format!("{question}\n").as_bytes()).await.unwrap();
        let desk = Arc::clone(desk);
        tokio::spawn(async move { desk.answer(&mut there, patience).await });
        tokio::spawn(async move {
            let mut answer = String::new();
            here.read_to_string(&mut answer).await.unwrap();
            answer
        })
    }

    type JoinHandle = tokio::task::JoinHandle<String>;

    #[test]
    fn i8_only_the_owner_without_its_peer_gets_a_yes() {
        let (a, b) = nodes();
        let serving = serving();
        assert!(!excluded(&serving, &a, &b), "the peer is still current");
        let sole = serving.exclude(&a, &b).unwrap();
        assert!(excluded(&sole, &a, &b));
        assert!(!excluded(&sole, &b, &a), "the other side never gets a yes from this record");
    }

    #[test]
    fn i8_a_taker_gets_a_yes_from_its_own_taking_alone() {
        let (a, b) = nodes();
        let taking = serving().take(&b).unwrap();
        assert!(excluded(&taking, &b, &a), "its promotion goes on");
        assert!(!excluded(&taking, &a, &b), "the former owner stays frozen");
    }

    #[tokio::test]
    async fn s10_all_who_ask_are_answered_as_soon_as_the_record_says_so() {
        let (a, b) = nodes();
        let record = watch::channel(Some(serving())).0;
        let desk = desk(&record);
        let mut waiting = Vec::new();
        for _ in 0..5 {
            waiting.push(ask(&desk, "fence-peer r0", PATIENCE).await);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(desk.asking.lock().unwrap()["r0"], 5);
        assert!(waiting.iter().all(|w| !w.is_finished()));
        record.send_replace(Some(serving().exclude(&a, &b).unwrap()));
        for asked in waiting {
            assert_eq!(asked.await.unwrap(), "outdated\n");
        }
        assert_eq!(desk.asking.lock().unwrap()["r0"], 0);
    }

    #[tokio::test]
    async fn s12_no_record_no_change_and_no_such_resource_are_no_yes() {
        let record = watch::channel(None).0;
        let desk = desk(&record);
        let short = Duration::from_millis(20);
        assert_eq!(ask(&desk, "fence-peer r0", short).await.await.unwrap(), "wait\n");
        for question in ["fence-peer r1", "fence-peer minor-7", "r0", ""] {
            let answer = ask(&desk, question, short).await.await.unwrap();
            assert_eq!(answer, "unknown-resource\n", "{question}");
        }
        drop(record);
        assert_eq!(ask(&desk, "fence-peer r0", PATIENCE).await.await.unwrap(), "wait\n");
    }

    #[tokio::test]
    async fn a_helper_that_goes_away_takes_its_question_with_it() {
        let record = watch::channel(Some(serving())).0;
        let desk = desk(&record);
        let (mut here, mut there) = UnixStream::pair().unwrap();
        here.write_all(b"fence-peer r0\n").await.unwrap();
        let asked = Arc::clone(&desk);
        let question = tokio::spawn(async move { asked.answer(&mut there, PATIENCE).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(here);
        tokio::time::timeout(TALK, question).await.unwrap().unwrap().unwrap();
        assert_eq!(desk.asking.lock().unwrap()["r0"], 0);
    }
}
