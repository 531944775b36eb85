//! What is true now, as far as this node can find out: both nodes, both memories of the record.
//!
//! Owns no judgement. What could not be learned says why (S12); every question has a deadline (S8).

use std::fmt;
use std::path::Path;
use std::time::Duration;

use nasd_proto::StatusReply;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::api::control::Services;
use crate::api::status::{NodeStatus, ServiceStatus};
use crate::coordinator::Memory;
use crate::core::peer::Sign;
use crate::core::record::Record;
use crate::drive::mark::Mark;
use crate::drive::seek;
use crate::drive::start::STATE_DIR;
use crate::drive::task::Command;
use crate::observe::history::unix_ms;
use crate::peer::server::Entry;

/// Time for this node's own status: the task answers from memory, nasd-io and DRBD within this.
const OWN_STATUS: Duration = Duration::from_secs(5);

/// Something learned, or why not.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Heard<T> {
    /// It is so.
    Known(T),
    /// Nobody can tell; the text says why.
    Unknown(String),
}

impl<T> Heard<T> {
    /// The value, if there is one.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }
}

impl<T, E: fmt::Display> From<Result<T, E>> for Heard<T> {
    fn from(result: Result<T, E>) -> Self {
        result.map_or_else(|e| Self::Unknown(e.to_string()), Self::Known)
    }
}

/// A record with the revision that a compare-and-set compares.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stored {
    /// The record.
    pub record: Record,
    /// Its revision in the coordinator.
    pub revision: i64,
}

/// Everything that a recovery is judged by. `details_json` of the reply is this.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Facts {
    /// The service.
    pub service: String,
    /// Its DRBD resource.
    pub resource: String,
    /// This node.
    pub node: String,
    /// The other node.
    pub peer: String,
    /// `etcd` or `file`.
    pub coordinator_kind: String,
    /// What the coordinator says now.
    pub coordinator: Heard<Option<Stored>>,
    /// The last record on this node's own disk.
    pub last_seen: Heard<Option<Record>>,
    /// Seconds since this node was seen to leave the current set; absent: it has not, or nobody knows.
    pub left_ago_s: Option<u64>,
    /// The service on this node.
    pub here: Heard<ServiceStatus>,
    /// A disk of this node has failed once and has not been seen whole since.
    pub marked: bool,
    /// The service on the other node.
    pub there: Heard<ServiceStatus>,
    /// What a search for the other node found, when its nasd did not answer: `nothing`, `host-only`,
    /// `alive` or `unknown`.
    pub sign: Option<&'static str>,
}

impl Facts {
    /// Asks everybody.
    pub async fn gather(services: &Services, entry: &Entry) -> Self {
        let hands = &entry.hands;
        let name = &hands.service.name;
        let (here, there, read) = tokio::join!(
            own_status(entry),
            peers_status(services, name),
            hands.coordinator.read(name)
        );
        let sign = match &there {
            Heard::Known(_) => None,
            Heard::Unknown(_) => Some(word(seek::seek(hands).await)),
        };
        let mark = Mark::at(Path::new(STATE_DIR), name);
        // A thread that died has found no proof that there is no mark.
        let marked = tokio::task::spawn_blocking(move || mark.stands()).await.unwrap_or(true);
        let stored = read.map(|r| r.map(|v| Stored { record: v.record, revision: v.revision }));
        let memory = hands.last_seen.last().await;
        let known = memory.as_ref().ok().and_then(Option::as_ref);
        Self {
            left_ago_s: left_ago(&hands.me.0, known, unix_ms() / 1000),
            service: name.clone(),
            resource: hands.service.drbd.clone(),
            node: hands.me.0.clone(),
            peer: hands.peer.0.clone(),
            coordinator_kind: services.coordinator_kind.to_owned(),
            coordinator: stored.into(),
            last_seen: memory.map(|m| m.map(|m| m.record)).into(),
            here,
            marked,
            there,
            sign,
        }
    }

    /// The highest epoch and generation that anybody remembers: a new record must be above them, or
    /// the nodes would not believe it.
    pub fn newest(&self) -> (u64, u64) {
        let stored = self.coordinator.known().and_then(Option::as_ref).map(|s| &s.record);
        let seen = self.last_seen.known().and_then(Option::as_ref);
        let told = |s: &'_ Heard<ServiceStatus>| s.known().and_then(|s| s.record.clone());
        let (here, there) = (told(&self.here), told(&self.there));
        let all = [stored, seen, here.as_ref(), there.as_ref()];
        all.into_iter().flatten().fold((0, 0), |(e, g), r| (e.max(r.epoch), g.max(r.generation)))
    }
}

fn word(sign: Sign) -> &'static str {
    match sign {
        Sign::Nothing => "nothing",
        Sign::HostOnly => "host-only",
        Sign::Alive => "alive",
        Sign::Unknown => "unknown",
    }
}

async fn own_status(entry: &Entry) -> Heard<ServiceStatus> {
    let (tx, rx) = oneshot::channel();
    let asked = async {
        entry.handle.send(Command::Status(tx)).await.ok()?;
        rx.await.ok()
    };
    match tokio::time::timeout(OWN_STATUS, asked).await {
        Ok(Some(status)) => Heard::Known(status),
        Ok(None) => Heard::Unknown("the service's task has ended; restart nasd".into()),
        Err(_) => Heard::Unknown(format!("the service's task did not answer in {OWN_STATUS:?}")),
    }
}

async fn peers_status(services: &Services, name: &str) -> Heard<ServiceStatus> {
    match services.link.status().await {
        Ok(reply) => service_in(&reply, name).into(),
        Err(error) => Heard::Unknown(format!("its nasd does not answer: {}", error.message())),
    }
}

fn service_in(reply: &StatusReply, name: &str) -> Result<ServiceStatus, String> {
    let text = reply.node_json.first().ok_or("its nasd sent no status")?;
    let node: NodeStatus =
        serde_json::from_str(text).map_err(|e| format!("its status cannot be read: {e}"))?;
    let found = node.services.into_iter().find(|s| s.service == name);
    found.ok_or_else(|| "its nasd did not tell of this service in time".into())
}

/// How long ago this node was seen to leave the current set, by its own clock.
fn left_ago(node: &str, memory: Option<&Memory>, now_s: u64) -> Option<u64> {
    let memory = memory.filter(|m| !m.record.current.iter().any(|n| n.0 == node))?;
    memory.current_since.map(|since| now_s.saturating_sub(since))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::core::record::NodeName;

    fn record(epoch: u64) -> Record {
        let both = BTreeSet::from([NodeName::from("nas1")]);
        Record { epoch, ..Record::first(both, BTreeMap::new()) }
    }

    #[test]
    fn the_time_counts_from_leaving_the_current_set() {
        let memory = Memory { record: record(7), current_since: Some(1000) };
        assert_eq!(left_ago("nas2", Some(&memory), 1060), Some(60));
        assert_eq!(left_ago("nas2", Some(&memory), 900), Some(0), "the clock was set back");
        assert_eq!(left_ago("nas1", Some(&memory), 1060), None, "it has not left");
        assert_eq!(left_ago("nas2", Some(&Memory { current_since: None, ..memory }), 9), None);
    }

    #[test]
    fn s12_a_node_that_leaves_the_service_out_tells_nothing() {
        let node = r#"{"node":"nas2","version":"1","uptime_s":1,"services":[],
            "coordinator":{"kind":"etcd","reachable":true},"peer":{"node":"nas1","reachable":true}}"#;
        let reply = StatusReply { node_json: vec![node.into()], unreachable: vec![] };
        assert!(service_in(&reply, "vms").unwrap_err().contains("did not tell"));
        assert!(service_in(&StatusReply::default(), "vms").is_err());
    }
}
