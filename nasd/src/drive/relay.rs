//! The record through the peer: for a node that is cut off from the coordinator but not from its peer.
//!
//! Keeps H6 (a frozen owner gets its change written) and S8: a relayed write compares the same revision
//! as this node's own, of which nobody may know what came; so at most one of them lands, and what is
//! there afterwards tells. Without a definite answer the outcome stays unknown.

use nasd_proto::{RelayReply, RelayRequest, relay_reply::Result as Relayed};
use tonic::Status;

use super::hands::Hands;
use super::task::{cas_result, versioned};
use crate::coordinator::{Coordinator, CoordinatorError, Versioned as Stored};
use crate::core::machine::{CasResult, Versioned};
use crate::core::record::{NodeName, Record};

type ReadResult = Result<Option<Stored>, CoordinatorError>;

/// This node's own write, and the peer's beside it when it is late or says nothing.
pub async fn write_beside(
    hands: &Hands,
    expected: Option<i64>,
    record: &Record,
    own: impl Future<Output = CasResult>,
) -> CasResult {
    let may = may_relay(hands, record);
    tokio::pin!(own);
    match tokio::time::timeout(hands.late(), &mut own).await {
        Ok(CasResult::Unknown) if may => write(hands, expected, record).await,
        Ok(result) => result,
        Err(_) if may => {
            let relayed = write(hands, expected, record);
            settle(expected, record, own, relayed).await
        }
        Err(_) => own.await,
    }
}

/// Asks the peer to write the record for this node.
pub async fn write(hands: &Hands, expected: Option<i64>, record: &Record) -> CasResult {
    let (Some(revision), Ok(text)) = (expected, serde_json::to_string(record)) else {
        return CasResult::Unknown;
    };
    let service = hands.service.name.clone();
    let request = RelayRequest { service, revision, record_json: text };
    tracing::warn!(revision, "the coordinator does not answer here; the peer is asked to write");
    match hands.peer_link.relay(request).await {
        Ok(reply) => result_of(&reply, revision, record),
        Err(error) => {
            tracing::warn!(%error, "the peer did not write the record for this node");
            CasResult::Unknown
        }
    }
}

/// This node's own read, and one through the peer beside it when it is late or fails.
pub async fn read_beside(hands: &Hands, own: impl Future<Output = ReadResult>) -> ReadResult {
    tokio::pin!(own);
    match tokio::time::timeout(hands.late(), &mut own).await {
        Ok(Err(error @ CoordinatorError::Unreachable { .. })) => read(hands).await.ok_or(error),
        Ok(result) => result,
        Err(_) => {
            let relayed = read(hands);
            tokio::pin!(relayed);
            tokio::select! {
                result = &mut own => match result {
                    Err(CoordinatorError::Unreachable { after }) => {
                        relayed.await.ok_or(CoordinatorError::Unreachable { after })
                    }
                    result => result,
                },
                relayed = &mut relayed => match relayed {
                    Some(read) => Ok(read),
                    None => own.await,
                },
            }
        }
    }
}

/// A linearizable read by the peer, begun after this call; `None`: no answer.
async fn read(hands: &Hands) -> Option<Option<Stored>> {
    let service = hands.service.name.clone();
    let request = RelayRequest { service, revision: 0, record_json: String::new() };
    told(&hands.peer_link.relay(request).await.ok()?)
}

/// Which changes are worth it: the exclusion of the peer, and any change of a frozen owner. All others
/// can wait for the coordinator.
fn may_relay(hands: &Hands, record: &Record) -> bool {
    let frozen = hands.drbd_view().frozen;
    let excludes = !record.current.contains(&hands.peer);
    record.authority() == Some(&hands.me) && (frozen || excludes)
}

/// Two copies of one write are under way: the first definite answer counts.
async fn settle(
    expected: Option<i64>,
    record: &Record,
    own: impl Future<Output = CasResult>,
    relayed: impl Future<Output = CasResult>,
) -> CasResult {
    let own = async { ours(own.await, expected, record) };
    tokio::pin!(own, relayed);
    let (first, own_is_left) = tokio::select! {
        result = &mut own => (result, false),
        result = &mut relayed => (result, true),
    };
    match (first, own_is_left) {
        (CasResult::Unknown, true) => own.await,
        (CasResult::Unknown, false) => relayed.await,
        (result, _) => result,
    }
}

/// A loss against the other copy of the same write is none: what is there is what was to be written.
fn ours(result: CasResult, expected: Option<i64>, record: &Record) -> CasResult {
    match result {
        CasResult::Lost(Some(now)) if now.record == *record && Some(now.revision) > expected => {
            CasResult::Won { revision: now.revision }
        }
        result => result,
    }
}

/// The peer's word; whatever is not definite stays unknown.
fn result_of(reply: &RelayReply, expected: i64, record: &Record) -> CasResult {
    match reply.result() {
        Relayed::Won if reply.revision > expected => CasResult::Won { revision: reply.revision },
        Relayed::Won | Relayed::Unknown => CasResult::Unknown,
        Relayed::Lost => match told(reply) {
            Some(now) => ours(CasResult::Lost(now.map(versioned)), Some(expected), record),
            None => CasResult::Unknown,
        },
    }
}

/// What the peer says is there; `None`: it does not know, or what it says cannot be read.
fn told(reply: &RelayReply) -> Option<Option<Stored>> {
    if reply.result() != Relayed::Lost {
        return None;
    }
    if reply.record_json.is_empty() {
        return Some(None);
    }
    let record = serde_json::from_str(&reply.record_json).ok()?;
    (reply.revision > 0).then_some(Some(Stored { record, revision: reply.revision }))
}

// ---- the other side ----------------------------------------------------------------------------

/// Does for the peer what it asks, through this node's own way to the coordinator: reads, or writes a
/// record in which the *peer* has the authority, comparing the revision that it gave.
///
/// # Errors
/// `PERMISSION_DENIED` for any other record, `INVALID_ARGUMENT` for one that cannot be read.
pub async fn pass_on(
    store: &dyn Coordinator,
    asker: &NodeName,
    request: &RelayRequest,
) -> Result<RelayReply, Status> {
    if request.record_json.is_empty() {
        return Ok(reply_to_read(store.read(&request.service).await));
    }
    let record: Record = serde_json::from_str(&request.record_json)
        .map_err(|e| Status::invalid_argument(format!("no record: {e}")))?;
    if record.authority() != Some(asker) || request.revision <= 0 {
        return Err(Status::permission_denied(format!(
            "only a change of a service of {asker} is passed on, from a revision that {asker} has read"
        )));
    }
    let outcome = store.compare_and_set(&request.service, request.revision, &record).await;
    Ok(reply_to_write(cas_result(outcome)))
}

fn reply_to_read(read: ReadResult) -> RelayReply {
    match read {
        Ok(now) => lost(now.map(versioned)),
        Err(error) => {
            tracing::warn!(%error, "the record could not be read for the peer");
            RelayReply::default()
        }
    }
}

fn reply_to_write(result: CasResult) -> RelayReply {
    match result {
        CasResult::Won { revision } => {
            RelayReply { result: Relayed::Won.into(), revision, record_json: String::new() }
        }
        CasResult::Lost(now) => lost(now),
        CasResult::Unknown | CasResult::NotSent(_) => RelayReply::default(),
    }
}

fn lost(now: Option<Versioned>) -> RelayReply {
    let Some(now) = now else {
        return RelayReply { result: Relayed::Lost.into(), ..RelayReply::default() };
    };
    match serde_json::to_string(&now.record) {
        Ok(record_json) => {
            RelayReply { result: Relayed::Lost.into(), revision: now.revision, record_json }
        }
        Err(_) => RelayReply::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::coordinator::{CasOutcome, FileStore};

    fn node(name: &str) -> NodeName {
        NodeName::from(name)
    }

    fn serving() -> Record {
        let both = BTreeSet::from([node("a"), node("b")]);
        Record::first(both, BTreeMap::new()).start(&node("a")).unwrap()
    }

    fn alone() -> Record {
        serving().exclude(&node("a"), &node("b")).unwrap()
    }

    async fn store(dir: &std::path::Path) -> (FileStore, i64) {
        let store = FileStore::new(dir.join("records.json"));
        match store.create("vms", &serving()).await.unwrap() {
            CasOutcome::Won { revision } => (store, revision),
            CasOutcome::Lost { .. } => panic!("it was empty"),
        }
    }

    fn request(revision: i64, record: &Record) -> RelayRequest {
        let record_json = serde_json::to_string(record).unwrap();
        RelayRequest { service: "vms".into(), revision, record_json }
    }

    #[tokio::test]
    async fn h6_the_exclusion_of_a_frozen_owner_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let (store, first) = store(dir.path()).await;
        let asked = request(first, &alone());
        let reply = pass_on(&store, &node("a"), &asked).await.unwrap();
        let CasResult::Won { revision } = result_of(&reply, first, &alone()) else {
            panic!("{reply:?}");
        };
        // S8: the same once more, as if the answer had been lost: the write stands, it is ours.
        let again = pass_on(&store, &node("a"), &asked).await.unwrap();
        assert_eq!(again.result(), Relayed::Lost);
        assert_eq!(result_of(&again, first, &alone()), CasResult::Won { revision });
        // Another change from the old revision lost.
        let taken = serving().take(&node("b")).unwrap();
        let late = pass_on(&store, &node("b"), &request(first, &taken)).await.unwrap();
        let now = Some(Versioned { revision, record: alone() });
        assert_eq!(result_of(&late, first, &taken), CasResult::Lost(now));
    }

    #[tokio::test]
    async fn only_the_askers_own_service_is_passed_on() {
        let dir = tempfile::tempdir().unwrap();
        let (store, first) = store(dir.path()).await;
        let refused = |asker: &str, asked: RelayRequest| {
            let (store, asker) = (&store, node(asker));
            async move { pass_on(store, &asker, &asked).await.unwrap_err().code() }
        };
        let denied = tonic::Code::PermissionDenied;
        assert_eq!(refused("b", request(first, &alone())).await, denied);
        assert_eq!(refused("a", request(0, &alone())).await, denied, "creates nothing");
        let rubbish = RelayRequest { record_json: "{}".into(), ..request(first, &alone()) };
        assert_eq!(refused("a", rubbish).await, tonic::Code::InvalidArgument);
        assert_eq!(store.read("vms").await.unwrap().unwrap().revision, first);
    }

    #[tokio::test]
    async fn a_read_is_passed_on_as_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (store, revision) = store(dir.path()).await;
        let ask = |service: &str| RelayRequest { service: service.into(), ..Default::default() };
        let reply = pass_on(&store, &node("a"), &ask("vms")).await.unwrap();
        assert_eq!(told(&reply), Some(Some(Stored { record: serving(), revision })));
        let none = pass_on(&store, &node("a"), &ask("iso")).await.unwrap();
        assert_eq!(told(&none), Some(None));
        std::fs::write(dir.path().join("records.json"), "broken").unwrap();
        let unknown = pass_on(&store, &node("a"), &ask("vms")).await.unwrap();
        assert_eq!(told(&unknown), None, "no answer is not an empty store");
    }

    #[test]
    fn s8_whatever_is_not_definite_stays_unknown() {
        let reply = |result: Relayed, revision, text: &str| RelayReply {
            result: result.into(),
            revision,
            record_json: text.to_owned(),
        };
        let unknown = |r: RelayReply| result_of(&r, 7, &alone()) == CasResult::Unknown;
        assert!(unknown(RelayReply::default()));
        assert!(unknown(reply(Relayed::Won, 7, "")), "a write raises the revision");
        assert!(unknown(reply(Relayed::Lost, 9, "{\"epoch\":")));
        assert!(unknown(reply(Relayed::Lost, 0, &serde_json::to_string(&alone()).unwrap())));
        let same = reply(Relayed::Lost, 7, &serde_json::to_string(&alone()).unwrap());
        assert!(
            matches!(result_of(&same, 7, &alone()), CasResult::Lost(Some(_))),
            "at the revision compared nothing was written"
        );
        let gone = reply(Relayed::Lost, 0, "");
        assert_eq!(result_of(&gone, 7, &alone()), CasResult::Lost(None));
    }

    #[tokio::test]
    async fn s8_of_two_copies_the_first_definite_answer_counts() {
        let won = || async { CasResult::Won { revision: 8 } };
        let unknown = || async { CasResult::Unknown };
        let never = std::future::pending::<CasResult>;
        let lost = || async { CasResult::Lost(Some(Versioned { revision: 8, record: alone() })) };
        let expected = CasResult::Won { revision: 8 };
        assert_eq!(settle(Some(7), &alone(), never(), won()).await, expected);
        assert_eq!(settle(Some(7), &alone(), won(), never()).await, expected);
        assert_eq!(settle(Some(7), &alone(), unknown(), won()).await, expected);
        assert_eq!(settle(Some(7), &alone(), lost(), never()).await, expected, "to its own copy");
        let neither = settle(Some(7), &alone(), unknown(), unknown()).await;
        assert_eq!(neither, CasResult::Unknown);
    }
}
