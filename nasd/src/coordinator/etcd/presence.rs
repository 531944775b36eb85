//! Whether a node's nasd lives, asked in the store: the asker puts a nonce under `seek/<node>`, that
//! node's nasd watches the key and puts the same nonce under `answer/<node>`.
//!
//! Nothing is written while nobody asks. Evidence only: nothing is permitted by it that the record and
//! the right do not permit (S4), and an answer to an older question is no answer (S12).

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{Client, Error, WatchOptions};

use super::{CoordinatorError, Etcd, Failure};

/// Time for the answer once the question is there: two writes of a healthy cluster and a watch
/// (each a few ms; the slowest of 145 writes/s in the lab: 0.12 s).
const ANSWER: Duration = Duration::from_millis(350);
/// Pause between two looks for it.
const LOOK: Duration = Duration::from_millis(20);
/// A search that ended so recently answers for another service's as well.
const SHARED: Duration = Duration::from_millis(100);
/// Pause before a broken watch is made again.
const AGAIN: Duration = Duration::from_millis(500);

/// The last search.
#[derive(Debug, Clone)]
pub(super) struct Sought {
    node: String,
    ended: Instant,
    found: bool,
}

/// The answers given last, shared by the watches on all members.
type Answered = Arc<Mutex<Vec<u8>>>;

impl Etcd {
    fn seek_key(&self, node: &str) -> String {
        format!("{}/seek/{node}", self.root)
    }

    fn answer_key(&self, node: &str) -> String {
        format!("{}/answer/{node}", self.root)
    }

    /// One search at a time: two nonces under one key would hide each other's answer.
    pub(super) async fn seek_shared(
        &self,
        node: &str,
        limit: Duration,
    ) -> Result<bool, CoordinatorError> {
        let search = async {
            let mut last = self.sought.lock().await;
            if let Some(s) = last.as_ref().filter(|s| s.node == node && s.ended.elapsed() < SHARED)
            {
                return Ok(s.found);
            }
            let found = self.seek_once(node).await?;
            *last = Some(Sought { node: node.to_owned(), ended: Instant::now(), found });
            Ok(found)
        };
        let late = Err(CoordinatorError::Unreachable { after: limit });
        tokio::time::timeout(limit, search).await.unwrap_or(late)
    }

    async fn seek_once(&self, node: &str) -> Result<bool, CoordinatorError> {
        let nonce = nonce();
        self.put(self.seek_key(node), nonce.clone()).await?;
        let until = Instant::now() + ANSWER;
        loop {
            // The last look begins when the time is over, not before.
            let last = Instant::now() >= until;
            if answers(self.get(self.answer_key(node)).await?.as_deref(), &nonce) {
                return Ok(true);
            }
            if last {
                return Ok(false);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(super) async fn put(&self, key: String, value: Vec<u8>) -> Result<(), CoordinatorError> {
        let call = |member: Client| {
            let (mut kv, key, value) = (member.kv_client(), key.clone(), value.clone());
            async move { kv.put(key, value, None).await }
        };
        let (answer, _) = self.ask(call).await.map_err(Failure::of_write)?;
        self.same_cluster(answer.header()).map_err(|reason| CoordinatorError::Refused { reason })
    }

    pub(super) async fn get(&self, key: String) -> Result<Option<Vec<u8>>, CoordinatorError> {
        let call = |member: Client| {
            let (mut kv, key) = (member.kv_client(), key.clone());
            async move { kv.get(key, None).await }
        };
        let (answer, _) = self.ask(call).await.map_err(|f| f.of_read(self.deadline))?;
        self.same_cluster(answer.header())
            .map_err(|reason| CoordinatorError::Refused { reason })?;
        Ok(answer.kvs().first().map(|kv| kv.value().to_vec()))
    }

    /// Answers for this node from now on. A watch on every member: one that falls silent must not make
    /// this node look dead.
    pub(super) fn answer_for(&self, me: &str) {
        let answered = Answered::default();
        for (place, member) in self.members.iter().enumerate() {
            let (store, me) = (self.clone(), me.to_owned());
            let (member, answered) = (member.clone(), Arc::clone(&answered));
            tokio::spawn(async move {
                loop {
                    if let Err(error) = store.answer_at(&member, place, &me, &answered).await {
                        tracing::debug!(%error, "a watch for searches broke; it is made anew");
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            });
        }
    }

    async fn answer_at(
        &self,
        member: &Client,
        place: usize,
        me: &str,
        done: &Answered,
    ) -> Result<(), Error> {
        let mut client = member.watch_client();
        let mut watch = client.watch(self.seek_key(me), Some(WatchOptions::new())).await?;
        while let Some(told) = watch.message().await? {
            for nonce in told.events().iter().filter_map(|e| e.kv()).map(|kv| kv.value().to_vec()) {
                if is_news(done, &nonce) {
                    tracing::info!("this node is looked for in the coordinator; it answers");
                    // The member that told us is alive: it takes the answer, without a detour.
                    self.best.store(place, Ordering::Relaxed);
                    if let Err(error) = self.put(self.answer_key(me), nonce).await {
                        tracing::warn!(%error, "a search for this node was not answered");
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether nobody has answered this one yet.
fn is_news(done: &Answered, nonce: &[u8]) -> bool {
    let mut last = done.lock().unwrap_or_else(PoisonError::into_inner);
    let news = last.as_slice() != nonce;
    if news {
        *last = nonce.to_vec();
    }
    news
}

/// Only the nonce that was put is an answer; an older one is what a dead node left.
fn answers(found: Option<&[u8]>, nonce: &[u8]) -> bool {
    found == Some(nonce) && !nonce.is_empty()
}

/// Never the same twice: the kernel's random identifier, or the time if it gives none.
fn nonce() -> Vec<u8> {
    let random = std::fs::read("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let at = nasd_net::MonotonicInstant::now().as_nanos().to_string();
    [random.trim_ascii(), b"-", at.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s12_an_answer_to_another_question_is_none() {
        let (mine, older) = (nonce(), nonce());
        assert_ne!(mine, older);
        assert!(answers(Some(&mine), &mine));
        assert!(!answers(Some(&older), &mine));
        assert!(!answers(None, &mine));
        assert!(!answers(Some(b""), b""));
    }

    #[test]
    fn a_question_is_answered_once_by_all_watches_together() {
        let done = Answered::default();
        assert!(is_news(&done, b"one"));
        assert!(!is_news(&done, b"one"));
        assert!(is_news(&done, b"two"));
    }
}
