//! Before the cut: the operator's request, the pre-flight's facts, warming the target.

use std::time::{Duration, Instant, SystemTime};

use nasd_proto::{
    CheckTargetRequest, Finding as ProtoFinding, MoveEvent, Outcome, Preflight, PrepareRequest,
    move_event::Kind, outcome::Result as MoveResult,
};
use tokio::sync::mpsc;

use super::hands::Hands;
use super::task::Command;
use crate::core::machine::Stage;
use crate::core::preflight::{Finding, OwnerFacts, judge_owner};
use crate::core::record::NodeName;

/// Default time from the first change to the demotion.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// What a move is expected to cost when none has been seen yet.
const FIRST_GUESS_MS: u64 = 400;
/// A `syncfs` pass that is shorter than this leaves little for the one inside the stall.
const SHORT_SYNC: Duration = Duration::from_millis(20);

/// An operator's request.
#[derive(Debug, Clone)]
pub struct Request {
    /// The target.
    pub to: NodeName,
    /// Stop after the pre-flight.
    pub dry_run: bool,
    /// From the first change to the demotion.
    pub timeout: Duration,
}

/// What the task knows when the request comes.
#[derive(Debug, Clone)]
pub struct Facts {
    /// This node's stage.
    pub stage: Stage,
    /// Milliseconds that the last move was silent.
    pub last_silent: Option<u64>,
}

/// Runs the pre-flight; if nothing refuses, the core hears of the move.
pub async fn preflight_and_begin(
    hands: &Hands,
    request: Request,
    facts: Facts,
    listener: mpsc::Sender<MoveEvent>,
    tell: &mpsc::Sender<Command>,
) {
    let (mut findings, epoch) = owner_findings(hands, &request, &facts).await;
    let mut predicted = facts.last_silent.unwrap_or(FIRST_GUESS_MS);
    match target_findings(hands, epoch).await {
        Ok((remote, open_ms)) => {
            predicted = predicted.max(u64::from(open_ms));
            findings.extend(remote);
        }
        Err(finding) => findings.push(proto(&finding)),
    }
    let refused = findings.iter().any(|f| f.refuses);
    let preflight = Preflight {
        service: hands.service.name.clone(),
        from: hands.me.0.clone(),
        to: request.to.0.clone(),
        findings,
        predicted_stall_ms: u32::try_from(predicted).unwrap_or(u32::MAX),
    };
    // Only who asked hears of the pre-flight; one that has gone away needs no answer.
    let _ = listener.try_send(MoveEvent { kind: Some(Kind::Preflight(preflight)) });
    if refused || request.dry_run {
        let outcome = without_change(hands, refused, epoch);
        let _ = listener.try_send(MoveEvent { kind: Some(Kind::Outcome(outcome)) });
        return;
    }
    super::failpoint::hit("after-preflight");
    drop(tell.send(Command::Begin(request, listener)).await);
}

fn without_change(hands: &Hands, refused: bool, epoch: u64) -> Outcome {
    let (result, message) = if refused {
        (MoveResult::Refused, "pre-flight refused; nothing was changed")
    } else {
        (MoveResult::DryRun, "the move would be made; nothing was changed")
    };
    Outcome {
        result: result.into(),
        message: message.to_owned(),
        owner: hands.me.0.clone(),
        epoch,
        silent_us: 0,
        clients: Vec::new(),
    }
}

async fn owner_findings(
    hands: &Hands,
    request: &Request,
    facts: &Facts,
) -> (Vec<ProtoFinding>, u64) {
    let record = hands.fresh_record().await;
    let drbd = hands.drbd_view();
    let violations = hands.violations().await;
    let holders = hands.holders().await;
    let found = judge_owner(&OwnerFacts {
        me: &hands.me,
        to: &request.to,
        stage: &facts.stage,
        record: record.as_ref(),
        drbd: &drbd,
        violations: &violations,
        holders: holders.as_deref(),
    });
    (found.iter().map(proto).collect(), record.map_or(0, |r| r.epoch))
}

async fn target_findings(hands: &Hands, epoch: u64) -> Result<(Vec<ProtoFinding>, u32), Finding> {
    let request = CheckTargetRequest {
        service: hands.service.name.clone(),
        config_digest: hands.config_digest.clone(),
        epoch,
    };
    match hands.peer_link.check_target(request).await {
        Ok(reply) => Ok((reply.findings, reply.predicted_open_ms)),
        Err(error) => Err(Finding::refusal(
            "target-unreachable",
            format!("nasd on {} does not answer: {error}", hands.peer),
            "start nasd there, or check the network between the nodes",
        )),
    }
}

/// A finding for the wire.
#[must_use]
pub fn proto(finding: &Finding) -> ProtoFinding {
    ProtoFinding {
        code: finding.code.to_owned(),
        refuses: finding.refuses,
        evidence: finding.evidence.clone(),
        remedy: finding.remedy.clone(),
    }
}

/// `syncfs` until a pass is short, while the target gets ready; nothing is cut yet.
///
/// # Errors
/// The reason in words, when the target is not ready or the volume cannot be written back.
pub async fn warm(hands: &Hands, epoch: u64) -> Result<(), String> {
    let (began, start) = (SystemTime::now(), Instant::now());
    hands.refresh_connections().await;
    let request = PrepareRequest {
        service: hands.service.name.clone(),
        epoch,
        connections: hands.known_endpoints(),
        client_records: hands.client_records().await,
    };
    let (synced, prepared) = tokio::join!(write_back(hands), hands.peer_link.prepare(request));
    let passes = synced?;
    let reply = prepared.map_err(|e| format!("the target did not answer: {e}"))?;
    if !reply.ready {
        return Err(format!("the target is not ready: {}", reply.reason));
    }
    let detail = format!("{passes} syncfs passes");
    hands.timeline.step(&hands.me.0, "warm", began, start.elapsed(), detail);
    super::failpoint::hit("step:warm");
    Ok(())
}

async fn write_back(hands: &Hands) -> Result<u32, String> {
    for pass in 1..=20 {
        let took = hands.sync_all().await.map_err(|e| e.to_string())?;
        if took < SHORT_SYNC {
            return Ok(pass);
        }
    }
    Ok(20)
}
