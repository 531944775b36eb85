//! Before the cut: the operator's request, the pre-flight's facts, warming the target.

use std::time::{Duration, Instant, SystemTime};

use nasd_proto::{
    CheckTargetRequest, Finding as ProtoFinding, MoveEvent, Outcome, Preflight, PrepareRequest,
    Step, move_event::Kind, outcome::Result as MoveResult,
};
use tokio::sync::mpsc;

use super::hands::Hands;
use super::marker::Sight;
use super::task::Command;
use crate::agents::{Ask, Said, Terms};
use crate::core::machine::Stage;
use crate::core::preflight::{Finding, OwnerFacts, judge_owner};
use crate::core::record::NodeName;

/// Default time from the first change to the demotion.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// What a move is expected to cost when none has been seen yet.
const FIRST_GUESS_MS: u64 = 400;
/// A `syncfs` pass that is shorter than this leaves little for the one inside the stall.
const SHORT_SYNC: Duration = Duration::from_millis(20);
/// Waiting for hypervisors is shown when it takes longer than this.
const SHOWN: Duration = Duration::from_millis(300);
/// After waiting longer than this the pre-flight is made anew.
const STALE: Duration = Duration::from_secs(1);
/// How long an announcement is kept up beyond the move's own limit: warming has limits of its own.
const KEEP: Duration = Duration::from_secs(60);

/// How long failback waits for hypervisors: half of the time that such a move has to the demotion
/// ([`crate::core::machine::AUTO_MOVE`]).
const FAILBACK_WAIT: Duration = Duration::from_secs(5);
/// The same for an owner that is not fit to serve: long enough for hosts that are ready.
const UNFIT_WAIT: Duration = Duration::from_secs(1);

/// An operator's request.
#[derive(Debug, Clone)]
pub struct Request {
    /// The target.
    pub to: NodeName,
    /// Stop after the pre-flight.
    pub dry_run: bool,
    /// From the first change to the demotion.
    pub timeout: Duration,
    /// Move though a hypervisor is not ready.
    pub force: bool,
    /// How long hypervisors are waited for.
    pub wait: Duration,
}

/// What the task knows when the request comes.
#[derive(Debug, Clone)]
pub struct Facts {
    /// This node's stage.
    pub stage: Stage,
    /// Milliseconds that the last move was silent.
    pub last_silent: Option<u64>,
}

/// What the pre-flight found on both nodes.
struct Checked {
    findings: Vec<ProtoFinding>,
    epoch: u64,
    predicted_ms: u32,
}

impl Checked {
    fn refuses(&self) -> bool {
        self.findings.iter().any(|f| f.refuses)
    }
}

/// Runs the pre-flight, then asks the hypervisors; if nothing refuses, the core hears of the move.
pub async fn preflight_and_begin(
    hands: &Hands,
    request: Request,
    facts: Facts,
    listener: mpsc::Sender<MoveEvent>,
    tell: &mpsc::Sender<Command>,
) {
    let mut checked = check(hands, &request, &facts).await;
    let (mut announced, mut step) = (false, None);
    if checked.refuses() || request.dry_run {
        let service = &hands.service.name;
        let found = hands.agents.look(service, checked.predicted_ms, request.force).await;
        checked.findings.extend(found.iter().map(proto));
    } else {
        let answer = ask_hypervisors(hands, &request, &checked, &listener).await;
        announced = !answer.refuses();
        if announced && answer.took > STALE {
            checked = check(hands, &request, &facts).await;
        }
        checked.findings.extend(answer.found.iter().map(proto));
        step = answer.step;
    }
    let (refused, epoch) = (checked.refuses(), checked.epoch);
    let preflight = Preflight {
        service: hands.service.name.clone(),
        from: hands.me.0.clone(),
        to: request.to.0.clone(),
        findings: checked.findings,
        predicted_stall_ms: checked.predicted_ms,
    };
    // Only who asked hears of the pre-flight; one that has gone away needs no answer.
    let _ = listener.try_send(MoveEvent { kind: Some(Kind::Preflight(preflight)) });
    if let Some(step) = step {
        let _ = listener.try_send(MoveEvent { kind: Some(Kind::Step(step)) });
    }
    if refused || request.dry_run {
        if announced {
            hands.agents.say(&hands.service.name, Said::Withdrawn { epoch });
        }
        let outcome = without_change(hands, refused, epoch);
        let _ = listener.try_send(MoveEvent { kind: Some(Kind::Outcome(outcome)) });
        return;
    }
    super::failpoint::pass("after-preflight").await;
    if tell.send(Command::Begin(request, listener)).await.is_err() {
        hands.agents.say(&hands.service.name, Said::Withdrawn { epoch });
    }
}

async fn check(hands: &Hands, request: &Request, facts: &Facts) -> Checked {
    let (mut findings, epoch) = owner_findings(hands, request, facts).await;
    let mut predicted = facts.last_silent.unwrap_or(FIRST_GUESS_MS);
    match target_findings(hands, epoch).await {
        Ok((remote, open_ms)) => {
            predicted = predicted.max(u64::from(open_ms));
            findings.extend(remote);
        }
        Err(finding) => findings.push(proto(&finding)),
    }
    Checked { findings, epoch, predicted_ms: u32::try_from(predicted).unwrap_or(u32::MAX) }
}

/// What the hypervisors answered to the announcement.
struct Answer {
    found: Vec<Finding>,
    took: Duration,
    /// Its line of the timeline, if it took long enough to be shown.
    step: Option<Step>,
}

impl Answer {
    fn refuses(&self) -> bool {
        self.found.iter().any(|f| f.refuses)
    }
}

/// Announces the move, and waits. Nothing is changed yet; the announcement ends by itself, too.
async fn ask_hypervisors(
    hands: &Hands,
    request: &Request,
    checked: &Checked,
    listener: &mpsc::Sender<MoveEvent>,
) -> Answer {
    let terms = Terms {
        epoch: checked.epoch.saturating_add(1),
        wait: request.wait,
        keep: request.timeout + KEEP,
        force: request.force,
        predicted_stall_ms: checked.predicted_ms,
    };
    let (began, start) = (SystemTime::now(), Instant::now());
    let since = began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut step = Step {
        node: hands.me.0.clone(),
        name: "hypervisors".to_owned(),
        started_unix_ns: u64::try_from(since.as_nanos()).unwrap_or(0),
        ..Step::default()
    };
    let asking = hands.agents.announce(Ask { service: hands.service.name.clone(), terms });
    tokio::pin!(asking);
    let at_once = tokio::time::timeout(SHOWN, &mut asking).await;
    let shown = at_once.is_err();
    let found = match at_once {
        Ok(found) => found,
        Err(_) => {
            let _ = listener.try_send(MoveEvent { kind: Some(Kind::Step(step.clone())) });
            asking.await
        }
    };
    let took = start.elapsed();
    step.took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    step.done = true;
    Answer { found, took, step: shown.then_some(step) }
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
        ..Outcome::default()
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
    let markers = match &record {
        Some(record) if facts.stage == Stage::Serving => hands.look_at_markers(record).await,
        _ => Sight::default(), // which refuses already
    };
    let found = judge_owner(&OwnerFacts {
        me: &hands.me,
        to: &request.to,
        stage: &facts.stage,
        record: record.as_ref(),
        drbd: &drbd,
        violations: &violations,
        holders: holders.as_deref(),
        unfit_markers: &markers.unfit,
        unknown_markers: &markers.unknown,
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
    announce_own_move(hands, epoch).await?;
    let (began, start) = (SystemTime::now(), Instant::now());
    hands.refresh_connections().await;
    let request = PrepareRequest {
        service: hands.service.name.clone(),
        epoch,
        connections: hands.known_endpoints(),
        client_records: hands.client_records().await,
        move_id: hands.agents.moving(&hands.service.name, epoch).await,
    };
    let (synced, prepared) = tokio::join!(write_back(hands), hands.peer_link.prepare(request));
    let passes = synced?;
    let reply = prepared.map_err(|e| format!("the target did not answer: {e}"))?;
    if !reply.ready {
        return Err(format!("the target is not ready: {}", reply.reason));
    }
    still_ready(hands).await?;
    let detail = format!("{passes} syncfs passes");
    hands.timeline.step(&hands.me.0, "warm", began, start.elapsed(), detail);
    super::failpoint::pass("step:warm").await;
    Ok(())
}

/// A move that no operator has asked for (failback, an unfit owner) is announced here, as late as others are
/// early (S11). Failback waits for another day where a hypervisor is not ready; an unfit owner does not.
async fn announce_own_move(hands: &Hands, epoch: u64) -> Result<(), String> {
    let service = &hands.service.name;
    if hands.agents.standing(service).await.is_some() {
        return Ok(());
    }
    // A gate that has shut by itself for an error of the volume comes before the judgement.
    let unfit = hands.health.borrow().is_some() || hands.gate_left().is_none();
    let wait = if unfit { UNFIT_WAIT } else { FAILBACK_WAIT };
    let predicted_stall_ms = u32::try_from(FIRST_GUESS_MS).unwrap_or(u32::MAX);
    let terms = Terms { epoch, wait, keep: KEEP, force: unfit, predicted_stall_ms };
    refused(&hands.agents.announce(Ask { service: service.clone(), terms }).await)
}

/// The last look before the cut: a migration may have begun since all were ready.
async fn still_ready(hands: &Hands) -> Result<(), String> {
    refused(&hands.agents.standing(&hands.service.name).await.unwrap_or_default())
}

fn refused(found: &[Finding]) -> Result<(), String> {
    let against: Vec<_> = found.iter().filter(|f| f.refuses).map(|f| f.evidence.as_str()).collect();
    if against.is_empty() { Ok(()) } else { Err(against.join("; ")) }
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
