//! etcd: linearizable reads, compare on `mod_revision`, all endpoints, TLS, a deadline on every call.
//!
//! One connection per member. A call goes to the member that answered last and, when that one is
//! slow or fails, to the next beside it: the owner's member dies with the owner, and a taker must not
//! spend a deadline on it. That is safe for a compare-and-set as well: all copies compare the same
//! revision, so at most one of them lands, and no copy that comes late can (S8).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Error, Identity, KeyValue,
    ResponseHeader, TlsOptions, Txn, TxnOp, TxnOpResponse, TxnResponse, WatchOptions,
};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, FuturesUnordered};
use tokio::sync::mpsc;
use tonic::Code;

use super::{CasOutcome, Coordinator, CoordinatorError, Versioned, parse};
use crate::config::TlsPaths;
use crate::core::record::Record;

/// How long one member may keep us before the next is asked too: a few times what a write costs
/// (slowest of 145 writes/s in the lab: 0.12 s).
const PATIENCE: Duration = Duration::from_millis(250);
/// Limit of one attempt to connect.
const CONNECT: Duration = Duration::from_secs(1);
/// Interval and limit of HTTP/2 pings, which end a watch on a member that fell silent.
const PING: Duration = Duration::from_secs(2);

/// An etcd cluster.
pub struct Etcd {
    members: Vec<Client>,
    /// The member that answered last.
    best: AtomicUsize,
    /// The cluster that answered first, 0 before; never mixed with another (S12).
    cluster_id: AtomicU64,
    prefix: String,
    deadline: Duration,
}

/// Why no member answered.
struct Failure {
    reason: String,
    /// Every member asked said no; nothing was written and nothing is under way.
    definite: bool,
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
        let mut options = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(PING, PING)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(paths) = tls {
            options = options.with_tls(tls_options(paths)?);
        }
        let mut members = Vec::new();
        for endpoint in endpoints {
            let client = Client::connect([endpoint], Some(options.clone())).await;
            members.push(client.map_err(|e| CoordinatorError::SetUp { reason: e.to_string() })?);
        }
        let prefix = format!("/nasd/{cluster}/service");
        let (best, cluster_id) = (AtomicUsize::new(0), AtomicU64::new(0));
        Ok(Self { members, best, cluster_id, prefix, deadline })
    }

    fn key(&self, service: &str) -> String {
        format!("{}/{service}/record", self.prefix)
    }

    /// The first answer of any member, with the number of members that were asked for it.
    async fn ask<T, F: Future<Output = Result<T, Error>>>(
        &self,
        call: impl Fn(Client) -> F,
    ) -> Result<(T, usize), Failure> {
        let silent =
            Failure { reason: format!("no answer within {:?}", self.deadline), definite: false };
        tokio::time::timeout(self.deadline, self.ask_in_turn(call)).await.unwrap_or(Err(silent))
    }

    async fn ask_in_turn<T, F: Future<Output = Result<T, Error>>>(
        &self,
        call: impl Fn(Client) -> F,
    ) -> Result<(T, usize), Failure> {
        let (count, best) = (self.members.len(), self.best.load(Ordering::Relaxed));
        let mut waiting = (0..count).map(|i| (best + i) % count);
        let mut asked = 0;
        let mut running = FuturesUnordered::new();
        let mut failure = Failure { reason: "no endpoint".to_owned(), definite: true };
        loop {
            let more = waiting.next().and_then(|i| Some((i, self.members.get(i)?.clone())));
            let last = more.is_none();
            if let Some((i, member)) = more {
                asked += 1;
                let answer = call(member);
                running.push(async move { (i, answer.await) });
            }
            let patience = if last { self.deadline } else { PATIENCE };
            match tokio::time::timeout(patience, running.next()).await {
                Ok(Some((i, Ok(answer)))) => {
                    self.best.store(i, Ordering::Relaxed);
                    return Ok((answer, asked));
                }
                Ok(Some((_, Err(error)))) => {
                    failure.definite &= is_definite(&error);
                    failure.reason = error.to_string();
                }
                Ok(None) if last => return Err(failure),
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// An answer of another cluster than before is a no: a member was replaced or restored, or the
    /// endpoints do not belong together.
    fn same_cluster(&self, header: Option<&ResponseHeader>) -> Result<(), String> {
        let found = header.map_or(0, ResponseHeader::cluster_id);
        let known =
            self.cluster_id.compare_exchange(0, found, Ordering::Relaxed, Ordering::Relaxed);
        match known {
            Err(known) if known != found => Err(format!(
                "the answer is from etcd cluster {found:016x}, earlier ones were from {known:016x}; name only members of one cluster, and restart nasd after a restore"
            )),
            _ => Ok(()),
        }
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
        let (answer, asked) = self.ask(call).await.map_err(|f| match f.definite {
            true => CoordinatorError::Refused { reason: f.reason },
            false => CoordinatorError::OutcomeUnknown { reason: f.reason },
        })?;
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

/// Answers after which nothing can have been written: etcd checks them before it proposes. NOSPACE
/// arrives as `ResourceExhausted`. All else may have happened.
fn is_definite(error: &Error) -> bool {
    let Error::GRpcStatus(status) = error else { return false };
    let told = [Code::PermissionDenied, Code::Unauthenticated, Code::InvalidArgument];
    told.contains(&status.code())
        || (status.code() == Code::ResourceExhausted && status.message().contains("space exceeded"))
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
        let (answer, _) = self.ask(call).await.map_err(|f| match f.definite {
            true => CoordinatorError::Refused { reason: f.reason },
            false => CoordinatorError::Unreachable { after: self.deadline },
        })?;
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
}
