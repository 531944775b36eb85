//! Carries a confirmed recovery out. Owns the only code in nasd that may lose data, and it is reached
//! only with a typed sentence that [`super::refusal`] has compared (S3).
//!
//! The record comes first (S1: whoever wins the compare-and-set has the authority), then DRBD; opening
//! is the core's, from the record. Every wait has a deadline (S8).

use std::collections::BTreeSet;
use std::time::Duration;

use nasd_drbd::{Drbd, Force, OperatorConfirmed};
use nasd_proto::RecoverRequest;
use nasd_proto::recover_request::What;

use super::Attempt;
use super::facts::{Facts, Stored};
use super::plan::{Verdict, force_phrase};
use crate::api::operator::named;
use crate::coordinator::{CasOutcome, CoordinatorError, EmergencyNote, Versioned};
use crate::core::machine::Event;
use crate::core::record::{NodeName, Phase, Record};
use crate::drive::task::Command;
use crate::peer::server::{Entry, ask};

/// Time for the forced promotion: the kernel runs the fence helper inside it, which waits until this
/// nasd has seen the new record.
const FORCE: Duration = Duration::from_secs(30);
/// Time for the core to have seen what was written.
const SEEN: Duration = Duration::from_secs(5);
/// Time for one `drbdadm` command.
const DRBDADM: Duration = Duration::from_secs(10);

pub(super) async fn execute(
    entry: &Entry,
    what: What,
    facts: &Facts,
    verdict: &Verdict,
    request: &RecoverRequest,
) -> Attempt {
    match (what, verdict) {
        (What::OpenHere, Verdict::Ask { force, .. }) => {
            open_here(entry, facts, *force, request).await
        }
        (What::DiscardMine, Verdict::Ask { .. }) => discard_mine(facts).await,
        (What::EmergencyStart, Verdict::Ask { .. }) => {
            emergency_start(entry, facts, &request.by).await
        }
        _ => Attempt::Refused("this version of nasd cannot do that; nothing was changed".into()),
    }
}

async fn open_here(entry: &Entry, facts: &Facts, force: bool, request: &RecoverRequest) -> Attempt {
    let confirmed = match (force, confirmation(facts, request)) {
        (false, _) => None,
        (true, Ok(confirmed)) => Some(confirmed),
        (true, Err(why)) => return Attempt::Refused(why),
    };
    let record = successor(facts);
    let epoch = record.epoch;
    if let Err(attempt) = write(entry, facts, record).await {
        return attempt;
    }
    let (service, node) = (&facts.service, &facts.node);
    // S4: the core counts its wait for the old owner's gate from the record; a promotion that came
    // first would look to it like a service that runs already. The fence helper is answered from it.
    let mut seen = entry.hands.record.subscribe();
    let shows = seen.wait_for(|r| r.as_ref().is_some_and(|r| r.epoch >= epoch));
    if !matches!(tokio::time::timeout(SEEN, shows).await, Ok(Ok(_))) {
        return Attempt::Failed(format!(
            "the record is taking({node}) in epoch {epoch}, but nasd does not go by it; see nasctl status"
        ));
    }
    if let Some(confirmed) = confirmed
        && let Err(why) = force_primary(&facts.resource, confirmed).await
    {
        return Attempt::Failed(format!(
            "the record is taking({node}) in epoch {epoch}, but DRBD did not take the disk: {why}; see drbdadm status {resource}, then by hand: drbdadm primary --force {resource}",
            resource = facts.resource
        ));
    }
    Attempt::Done(format!(
        "the record is taking({node}) in epoch {epoch}; nasd opens {service} here by itself, see nasctl status"
    ))
}

/// The DRBD binding wants its own part of the sentence, from what was typed.
fn confirmation(facts: &Facts, request: &RecoverRequest) -> Result<OperatorConfirmed, String> {
    let phrase = force_phrase(&facts.resource);
    let at = request.confirmed.len().checked_sub(phrase.len());
    let typed = at.and_then(|at| request.confirmed.get(at..)).unwrap_or_default();
    OperatorConfirmed::by_typed_text(&request.by, &facts.resource, typed).map_err(|e| e.to_string())
}

/// `{epoch+1, taking(me), current {me}}`, above everything that anybody remembers. The generations of
/// the data are those of this replica: they are what counts from now on.
pub(super) fn successor(facts: &Facts) -> Record {
    let me = NodeName(facts.node.clone());
    let (epoch, generation) = facts.newest();
    let here = facts.here.known();
    let stored = facts.coordinator.known().and_then(Option::as_ref).map(|s| &s.record);
    Record {
        epoch: epoch + 1,
        phase: Phase::Taking { owner: me.clone() },
        current: BTreeSet::from([me]),
        data_uuid: here.map(|s| s.data_uuid.clone()).unwrap_or_default(),
        hold: stored.and_then(|r| r.hold.clone()),
        generation,
        accepts: accepts(facts),
    }
}

/// The sentence says that what only the other node has is lost: a replica that had left the current set
/// opens however old its marker is. A volume without one is still foreign.
pub(super) fn accepts(facts: &Facts) -> Option<u64> {
    let stored = facts.coordinator.known().and_then(Option::as_ref).map(|s| &s.record);
    let known = stored.or_else(|| facts.last_seen.known()?.as_ref());
    let current = known.is_some_and(|r| r.current.iter().any(|n| n.0 == facts.node));
    (!current).then_some(1)
}

/// Without a coordinator: kept on this node's disk first (S9), then the core does it, or says why not.
async fn emergency_start(entry: &Entry, facts: &Facts, by: &str) -> Attempt {
    let Some(base) = facts.last_seen.known().cloned().flatten() else {
        return Attempt::Refused("no record is known here".into());
    };
    let (hands, service, node) = (&entry.hands, &facts.service, &facts.node);
    let read = hands.read_record().await;
    if let Event::Record(_) = read {
        return Attempt::Refused("the coordinator answers again; nothing was done".into());
    }
    let by = named(by, "");
    let note = EmergencyNote { base: base.clone(), by: by.clone() };
    if let Err(why) = hands.last_seen.begin_emergency(&note).await {
        return Attempt::Refused(format!("it could not be kept on this node's disk: {why}"));
    }
    let event = Event::Emergency { last: base, by, resumed: false };
    let asked = async {
        entry.handle.send(Command::Event(read)).await.ok()?;
        entry.handle.send(Command::Event(event)).await.ok()?;
        // The task takes one thing after the other: when this is answered, the event has been heard.
        ask(&entry.handle, Command::CheckTarget).await
    };
    if !matches!(tokio::time::timeout(SEEN, asked).await, Ok(Some(_))) {
        return Attempt::Unknown("the service's task does not answer; see nasctl status".into());
    }
    let seen = hands.seen.borrow().clone();
    if seen.emergency.is_none() {
        hands.last_seen.end_emergency().await;
        let why = seen.emergency_end.unwrap_or_else(|| "nasd would not".into());
        return Attempt::Refused(format!("{why}; nothing was done"));
    }
    Attempt::Done(format!(
        "{service} starts on {node} without the coordinator, see nasctl status; keep {} off until a majority is back",
        facts.peer
    ))
}

async fn write(entry: &Entry, facts: &Facts, record: Record) -> Result<(), Attempt> {
    let hands = &entry.hands;
    let name = &facts.service;
    let answer = match facts.coordinator.known() {
        Some(Some(Stored { revision, .. })) => {
            hands.coordinator.compare_and_set(name, *revision, &record).await
        }
        Some(None) => hands.coordinator.create(name, &record).await,
        None => return Err(Attempt::Refused("the record is not known".into())),
    };
    let revision = written(answer)?;
    let stored = Versioned { record, revision };
    if let Err(error) = hands.last_seen.judge_and_store(Some(&stored)).await {
        tracing::error!(error, "the record could not be kept on this node's disk");
    }
    Ok(())
}

fn written(answer: Result<CasOutcome, CoordinatorError>) -> Result<i64, Attempt> {
    match answer {
        Ok(CasOutcome::Won { revision }) => Ok(revision),
        Ok(CasOutcome::Lost { .. }) => Err(Attempt::Refused(
            "the record has changed in between; nothing was done: look again".into(),
        )),
        Err(CoordinatorError::OutcomeUnknown { reason }) => Err(Attempt::Unknown(format!(
            "whether the record was written is not known ({reason}); see nasctl status"
        ))),
        Err(error) => Err(Attempt::Refused(error.to_string())),
    }
}

/// On a queue of its own, so that a promotion that hangs blocks nothing else here (S10); the kernel
/// itself takes one command of a resource at a time.
async fn force_primary(resource: &str, confirmed: OperatorConfirmed) -> Result<(), String> {
    let resource = resource.to_owned();
    let job = tokio::task::spawn_blocking(move || {
        let queue = Drbd::open().map_err(|e| e.to_string())?.commands(&resource);
        let queue = queue.map_err(|e| e.to_string())?;
        let done = queue.primary(Force::OperatorConfirmed(confirmed), FORCE);
        done.map(drop).map_err(|e| e.to_string())
    });
    job.await.map_err(|e| e.to_string())?
}

/// `drbdadm` owns DRBD's configuration, which the kernel has forgotten when the nodes have parted.
async fn discard_mine(facts: &Facts) -> Attempt {
    let resource = &facts.resource;
    // Fails when there is no connection to end; the next command tells what is true.
    let ended = drbdadm(&["disconnect", resource]).await;
    match drbdadm(&["connect", "--discard-my-data", resource]).await {
        Ok(()) => Attempt::Done(format!(
            "{} waits for {} and will take its data; if {} stays StandAlone there, on {}: drbdadm connect {resource}",
            facts.node, facts.peer, resource, facts.peer
        )),
        Err(why) => {
            let before = ended.err().map(|e| format!(" (disconnect: {e})")).unwrap_or_default();
            Attempt::Failed(format!(
                "drbdadm connect --discard-my-data {resource}: {why}{before}; no data was thrown away yet"
            ))
        }
    }
}

async fn drbdadm(args: &[&str]) -> Result<(), String> {
    let mut command = tokio::process::Command::new("drbdadm");
    command.args(args).kill_on_drop(true);
    let output = tokio::time::timeout(DRBDADM, command.output())
        .await
        .map_err(|_| format!("not done after {DRBDADM:?}"))?
        .map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "))
}
