//! etcd: linearizable reads, compare on `mod_revision`, all endpoints, TLS, a deadline on every call.
//!
//! One connection per member. A call goes to the member that answered last and, when that one is
//! slow or fails, to the next beside it: the owner's member dies with the owner, and a taker must not
//! spend a deadline on it. That is safe for a compare-and-set as well: all copies compare the same
//! revision, so at most one of them lands, and no copy that comes late can (S8).
//!
//! Below: [`identity`] remembers which cluster this node belongs to (S12), [`pace`] how long a member may
//! take, [`presence`] asks whether a node's nasd still lives, [`upkeep`] keeps the leader away from the nodes that may die.

mod identity;
mod pace;
mod presence;
mod upkeep;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{
    Certificate, Channel, Client, Compare, CompareOp, ConnectOptions, Error, Identity, KeyValue,
    ResponseHeader, TlsOptions, Txn, TxnOp, TxnOpResponse, TxnResponse, WatchOptions,
};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, FuturesUnordered};
use tokio::sync::mpsc;
use tonic::Code;
use tonic::transport::Endpoint;

use self::identity::ClusterId;
use self::pace::Pace;
use self::upkeep::Condition;
use super::{CasOutcome, Coordinator, CoordinatorError, Versioned, parse};
use crate::config::TlsPaths;
use crate::core::record::Record;
use crate::peer::dial;

/// Limit of one attempt to connect, TLS included.
const CONNECT: Duration = Duration::from_secs(1);
/// Interval and limit of HTTP/2 pings, which end a watch on a member that fell silent.
const PING: Duration = Duration::from_secs(2);

/// An etcd cluster; clones share everything.
#[derive(Clone)]
pub struct Etcd {
    members: Vec<Client>,
    /// Their addresses as configured, in the same order.
    endpoints: Vec<String>,
    /// The member that answered last.
    best: Arc<AtomicUsize>,
    /// The cluster that answered first; never mixed with another (S12).
    cluster: Arc<ClusterId>,
    condition: Arc<Condition>,
    pace: Arc<Pace>,
    /// The search that ended last; one at a time.
    sought: Arc<tokio::sync::Mutex<Option<presence::Sought>>>,
    /// `/nasd/<cluster>`.
    root: String,
    deadline: Duration,
}

/// Why no member answered.
struct Failure {
    reason: String,
    /// Every member asked said no; nothing was written and nothing is under way.
    definite: bool,
    /// Its database is full.
    full: bool,
}

impl Failure {
    fn of_write(self) -> CoordinatorError {
        match (self.definite, self.full) {
            (true, true) => CoordinatorError::NoSpace { reason: self.reason },
            (true, false) => CoordinatorError::Refused { reason: self.reason },
            (false, _) => CoordinatorError::OutcomeUnknown { reason: self.reason },
        }
    }

    fn of_read(self, after: Duration) -> CoordinatorError {
        match self.definite {
            true => CoordinatorError::Refused { reason: self.reason },
            false => CoordinatorError::Unreachable { after },
        }
    }
}

impl Etcd {
    /// Prepares the connections to all endpoints; does not wait for them.
    ///
    /// # Errors
    /// Unreadable keys, unusable endpoints.
    pub async fn new(
        cluster: &str,
        endpoints: &[String],
        tls: Option<&TlsPaths>,
        deadline: Duration,
    ) -> Result<Self, CoordinatorError> {
        let tls = tls.map(tls_options).transpose()?;
        let mut members = Vec::new();
        for endpoint in endpoints {
            members.push(member(endpoint, tls.clone()).await?);
        }
        Ok(Self {
            members,
            endpoints: endpoints.to_vec(),
            best: Arc::default(),
            cluster: Arc::default(),
            condition: Arc::default(),
            pace: Arc::default(),
            sought: Arc::default(),
            root: format!("/nasd/{cluster}"),
            deadline,
        })
    }

    /// Remembers the cluster's identity in a file: another cluster is a no also after a restart.
    ///
    /// # Errors
    /// When the file is there and cannot be read: it says which cluster is the right one.
    pub fn remembering(mut self, file: PathBuf) -> Result<Self, CoordinatorError> {
        self.cluster = Arc::new(ClusterId::remembered(file)?);
        Ok(self)
    }

    fn key(&self, service: &str) -> String {
        format!("{}/service/{service}/record", self.root)
    }

    /// The first answer of any member, with the number of members that were asked for it.
    async fn ask<T, F: Future<Output = Result<T, Error>>>(
        &self,
        call: impl Fn(Client) -> F,
    ) -> Result<(T, usize), Failure> {
        let reason = format!("no answer within {:?}", self.deadline);
        let silent = Failure { reason, definite: false, full: false };
        let answer = tokio::time::timeout(self.deadline, self.ask_in_turn(call)).await;
        let answer = answer.unwrap_or(Err(silent));
        self.condition.note(answer.as_ref().err());
        answer
    }

    async fn ask_in_turn<T, F: Future<Output = Result<T, Error>>>(
        &self,
        call: impl Fn(Client) -> F,
    ) -> Result<(T, usize), Failure> {
        let (count, best) = (self.members.len(), self.best.load(Ordering::Relaxed));
        let mut waiting = (0..count).map(|i| (best + i) % count);
        let mut asked = 0;
        let mut running = FuturesUnordered::new();
        let reason = "no endpoint".to_owned();
        let mut failure = Failure { reason, definite: true, full: false };
        let patience = self.pace.patience(self.deadline);
        loop {
            let more = waiting.next().and_then(|i| Some((i, self.members.get(i)?.clone())));
            let last = more.is_none();
            if let Some((i, member)) = more {
                asked += 1;
                let (answer, begun) = (call(member), Instant::now());
                running.push(async move { (i, answer.await, begun.elapsed()) });
            }
            let patience = if last { self.deadline } else { patience };
            match tokio::time::timeout(patience, running.next()).await {
                Ok(Some((i, Ok(answer), took))) => {
                    self.best.store(i, Ordering::Relaxed);
                    self.pace.note(took);
                    return Ok((answer, asked));
                }
                Ok(Some((_, Err(error), _))) => {
                    failure.definite &= is_definite(&error);
                    failure.full |= is_full(&error);
                    failure.reason = error.to_string();
                }
                Ok(None) if last => return Err(failure),
                Ok(None) | Err(_) => {}
            }
        }
    }

    fn same_cluster(&self, header: Option<&ResponseHeader>) -> Result<(), String> {
        self.cluster.check(header.map_or(0, ResponseHeader::cluster_id))
    }

    /// One transaction: put if the compare holds, else read what is there.
    async fn transact(
        &self,
        key: String,
        compare: Compare,
        record: &Record,
    ) -> Result<CasOutcome, CoordinatorError> {
        let text = serde_json::to_vec(record)
            .map_err(|e| CoordinatorError::SetUp { reason: e.to_string() })?;
        let txn = Txn::new()
            .when([compare])
            .and_then([TxnOp::put(key.clone(), text, None)])
            .or_else([TxnOp::get(key.clone(), None)]);
        let call = |member: Client| {
            let (mut kv, txn) = (member.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        };
        let (answer, asked) = self.ask(call).await.map_err(Failure::of_write)?;
        // Another cluster's "won" is worth nothing, and what ours did is not known.
        self.same_cluster(answer.header())
            .map_err(|reason| CoordinatorError::OutcomeUnknown { reason })?;
        Ok(match outcome(&key, &answer)? {
            // Our own first copy was the winner, and this the answer to a later one.
            CasOutcome::Lost { now: Some(now) } if asked > 1 && now.record == *record => {
                CasOutcome::Won { revision: now.revision }
            }
            outcome => outcome,
        })
    }
}

/// The client of one member. The channel is made here and not by etcd-client, whose limit of an attempt
/// to connect leaves TLS out (see [`dial`]).
async fn member(endpoint: &str, tls: Option<TlsOptions>) -> Result<Client, CoordinatorError> {
    let set_up = |reason: String| CoordinatorError::SetUp { reason };
    let unusable = |e: tonic::transport::Error| set_up(format!("{endpoint}: {e}"));
    let mut channel = Endpoint::from_shared(endpoint.to_owned())
        .map_err(unusable)?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .keep_alive_while_idle(true);
    if let Some(tls) = tls {
        channel = channel.tls_config(tls).map_err(unusable)?;
    }
    let options = ConnectOptions::new().with_require_leader(true);
    let client = Client::from_channel(Channel::Tonic(dial::lazily(&channel)), Some(options)).await;
    client.map_err(|e| set_up(e.to_string()))
}

fn outcome(key: &str, answer: &TxnResponse) -> Result<CasOutcome, CoordinatorError> {
    if answer.succeeded() {
        let revision = answer.header().map_or(0, ResponseHeader::revision);
        return Ok(CasOutcome::Won { revision });
    }
    let mut now = None;
    for op in answer.op_responses() {
        if let TxnOpResponse::Get(get) = op
            && let Some(kv) = get.kvs().first()
        {
            now = Some(versioned(key, kv)?);
        }
    }
    Ok(CasOutcome::Lost { now })
}

/// Answers after which nothing can have been written: etcd checks them before it proposes. All else
/// may have happened.
fn is_definite(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return false };
    let told = [Code::PermissionDenied, Code::Unauthenticated, Code::InvalidArgument];
    told.contains(&status.code()) || is_full(error)
}

/// The NOSPACE alarm: writes are refused until somebody makes room and disarms it.
fn is_full(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status)
        if status.code() == Code::ResourceExhausted && status.message().contains("space exceeded"))
}

fn tls_options(paths: &TlsPaths) -> Result<TlsOptions, CoordinatorError> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|e| CoordinatorError::SetUp {
            reason: format!("cannot read {}: {e}", path.display()),
        })
    };
    let identity = Identity::from_pem(read(&paths.cert)?, read(&paths.key)?);
    Ok(TlsOptions::new().ca_certificate(Certificate::from_pem(read(&paths.ca)?)).identity(identity))
}

fn versioned(key: &str, kv: &KeyValue) -> Result<Versioned, CoordinatorError> {
    Ok(Versioned { record: parse(key, kv.value())?, revision: kv.mod_revision() })
}

#[tonic::async_trait]
impl Coordinator for Etcd {
    async fn read(&self, service: &str) -> Result<Option<Versioned>, CoordinatorError> {
        let key = self.key(service);
        let call = |member: Client| {
            let (mut kv, key) = (member.kv_client(), key.clone());
            async move { kv.get(key, None).await }
        };
        let (answer, _) = self.ask(call).await.map_err(|f| f.of_read(self.deadline))?;
        self.same_cluster(answer.header())
            .map_err(|reason| CoordinatorError::Refused { reason })?;
        answer.kvs().first().map(|kv| versioned(&key, kv)).transpose()
    }

    async fn create(&self, service: &str, record: &Record) -> Result<CasOutcome, CoordinatorError> {
        let key = self.key(service);
        let absent = Compare::create_revision(key.clone(), CompareOp::Equal, 0);
        self.transact(key, absent, record).await
    }

    async fn compare_and_set(
        &self,
        service: &str,
        revision: i64,
        record: &Record,
    ) -> Result<CasOutcome, CoordinatorError> {
        let key = self.key(service);
        let same = Compare::mod_revision(key.clone(), CompareOp::Equal, revision);
        self.transact(key, same, record).await
    }

    fn watch(&self, service: &str) -> BoxStream<'static, ()> {
        let (tell, changes) = mpsc::channel(8);
        let member = self.members.get(self.best.load(Ordering::Relaxed)).cloned();
        let key = self.key(service);
        tokio::spawn(async move {
            let Some(mut client) = member.map(|m| m.watch_client()) else { return };
            let options = WatchOptions::new();
            let Ok(mut watch) = client.watch(key, Some(options)).await else { return };
            while let Ok(Some(_)) = watch.message().await {
                if tell.send(()).await.is_err() {
                    return;
                }
            }
        });
        stream::unfold(changes, |mut rx| async move { rx.recv().await.map(|()| ((), rx)) }).boxed()
    }

    async fn seek(&self, node: &str, limit: Duration) -> Result<bool, CoordinatorError> {
        self.seek_shared(node, limit).await
    }

    fn attend(&self, me: &str, here: IpAddr, nas: &[IpAddr]) {
        self.answer_for(me);
        self.look_after(here, nas.to_vec());
    }

    fn reach(&self) -> Option<bool> {
        self.condition.reach()
    }

    fn alarm(&self) -> Option<String> {
        self.condition.alarm()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// The kernel of a member that is stopped accepts, and nobody shakes hands: the attempt to connect
    /// is given up for a new one, so that the member is found again soon after it goes on.
    #[tokio::test]
    async fn s8_a_stalled_handshake_does_not_hold_a_member() {
        let dir = tempfile::tempdir().unwrap();
        let keys = crate::peer::tls::testing::keys(dir.path(), "etcd");
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("https://{}", silent.local_addr().unwrap());
        let limit = Duration::from_millis(300);
        let store = Etcd::new("lab", &[endpoint], Some(&keys), limit).await.unwrap();
        let reads = tokio::spawn(async move {
            for _ in 0..10 {
                assert!(store.read("vms").await.is_err(), "no answer is no record");
            }
        });
        let (_first, _) = silent.accept().await.unwrap();
        let again = tokio::time::timeout(CONNECT * 2, silent.accept()).await;
        assert!(again.is_ok(), "the first connection is still waited for");
        reads.await.unwrap();
    }
}
