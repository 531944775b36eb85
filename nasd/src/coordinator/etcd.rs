//! etcd: linearizable reads, compare on `mod_revision`, all endpoints, TLS, a deadline on every call.

use std::time::Duration;

use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, Identity, KeyValue, TlsOptions, Txn,
    TxnOp, TxnOpResponse, WatchOptions,
};
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::mpsc;

use super::{CasOutcome, Coordinator, CoordinatorError, Versioned, parse};
use crate::config::TlsPaths;
use crate::core::record::Record;

/// An etcd cluster.
pub struct Etcd {
    client: Client,
    prefix: String,
    deadline: Duration,
}

impl Etcd {
    /// Prepares the connection to all endpoints; does not wait for them.
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
            .with_connect_timeout(Duration::from_secs(1))
            .with_keep_alive(Duration::from_secs(2), Duration::from_secs(2))
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(paths) = tls {
            options = options.with_tls(tls_options(paths)?);
        }
        let client = Client::connect(endpoints, Some(options))
            .await
            .map_err(|e| CoordinatorError::SetUp { reason: e.to_string() })?;
        Ok(Self { client, prefix: format!("/nasd/{cluster}/service"), deadline })
    }

    fn key(&self, service: &str) -> String {
        format!("{}/{service}/record", self.prefix)
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
        let mut client = self.client.kv_client();
        let unknown = |reason| CoordinatorError::OutcomeUnknown { reason };
        let answer = tokio::time::timeout(self.deadline, client.txn(txn))
            .await
            .map_err(|_| unknown(format!("no answer within {:?}", self.deadline)))?
            .map_err(|e| unknown(e.to_string()))?;
        if answer.succeeded() {
            let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            return Ok(CasOutcome::Won { revision });
        }
        let mut now = None;
        for op in answer.op_responses() {
            if let TxnOpResponse::Get(get) = op
                && let Some(kv) = get.kvs().first()
            {
                now = Some(versioned(&key, kv)?);
            }
        }
        Ok(CasOutcome::Lost { now })
    }
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
        let mut client = self.client.kv_client();
        let answer = tokio::time::timeout(self.deadline, client.get(key.clone(), None))
            .await
            .map_err(|_| CoordinatorError::Unreachable { after: self.deadline })?
            .map_err(|e| CoordinatorError::Refused { reason: e.to_string() })?;
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
        let (key, mut client) = (self.key(service), self.client.watch_client());
        let (tell, changes) = mpsc::channel(8);
        tokio::spawn(async move {
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
