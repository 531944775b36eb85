//! Carries a confirmed forgetting out: the other node's part first, as it judges anew and may refuse, then this
//! node's. Each node acts only on the services that it serves. Every wait has a deadline (S8).

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use nasd_proto::{ForgetHostRequest, RecoverReply};
use tonic::{Code, Status};

use super::facts::Facts;
use super::plan::Found;
use super::text;
use crate::agents::NotForgotten;
use crate::api::control::Services;
use crate::api::recover::Attempt;
use crate::io::{Answer, CallError, Op, Refusal};

/// Time for one service's expiry: milliseconds, unless a call of the client hangs in execution.
const EXPIRE: Duration = Duration::from_secs(5);

/// Both nodes.
pub(super) async fn everywhere(
    services: &Services,
    facts: &Facts,
    found: &Found<'_>,
    request: &ForgetHostRequest,
) -> Attempt {
    let mut parts = Vec::new();
    if found.at(&facts.peer) {
        let names = found.names.iter().cloned().collect();
        let asked = ForgetHostRequest { names, explain: false, ..request.clone() };
        let part = of_peer(&facts.peer, services.link.forget_host(asked).await);
        if let Attempt::Refused(_) = part {
            return part;
        }
        parts.push(part);
    }
    parts.extend(here(services, found).await);
    match (sum(parts), text::not_told(facts)) {
        (Attempt::Done(done), Some(rest)) => {
            Attempt::Done(format!("{done}\nbut {rest}; run this again when {} answers", facts.peer))
        }
        (attempt, _) => attempt,
    }
}

/// This node: services first; the agent only if they know the host no more.
pub(super) async fn here(services: &Services, found: &Found<'_>) -> Vec<Attempt> {
    let me = services.me.0.as_str();
    let mut owners: BTreeMap<&str, Vec<Vec<u8>>> = BTreeMap::new();
    for c in found.clients.iter().filter(|c| c.node == me) {
        owners.entry(c.service).or_default().push(c.client.name.clone());
    }
    let asked = owners.into_iter().map(|(service, names)| expire(services, service, names));
    let mut parts = join_all(asked).await;
    if parts.iter().all(|part| matches!(part, Attempt::Done(_))) {
        for (_, agent) in found.agents.iter().filter(|(node, _)| *node == me) {
            parts.push(of_agent(me, &agent.host, services.agents.forget(&agent.host).await));
        }
    }
    parts
}

async fn expire(services: &Services, service: &str, names: Vec<Vec<u8>>) -> Attempt {
    let Ok(entry) = services.entry(service) else {
        return Attempt::Refused(format!("{service} is not configured here"));
    };
    let answer = entry.hands.io_call(Op::ExpireClients { names }, EXPIRE).await;
    of_service(service, answer)
}

fn of_service(service: &str, answer: Result<Answer, CallError>) -> Attempt {
    let error = match answer {
        Ok(Answer::Expired { clients }) => {
            return Attempt::Done(format!(
                "{service}: {clients} client(s) expired; no opens, no locks, no record are left"
            ));
        }
        Ok(_) => CallError::Unexpected { op: "expire_clients" },
        Err(error) => error,
    };
    let told = format!("{service}: {error}");
    match error.refusal() {
        None | Some(Refusal::Crashed { .. }) => Attempt::Unknown(told),
        // The first may be gone when the second fails.
        Some(Refusal::StillRecorded { .. } | Refusal::ServerStep { .. }) => Attempt::Failed(told),
        Some(Refusal::ClientLives { expired, .. }) if *expired > 0 => Attempt::Failed(told),
        Some(_) => Attempt::Refused(told),
    }
}

fn of_agent(me: &str, host: &str, outcome: Result<(), NotForgotten>) -> Attempt {
    match outcome {
        Ok(()) => {
            Attempt::Done(format!("planned moves from {me} wait for hvagent of {host} no more"))
        }
        Err(why @ NotForgotten::Answers { .. }) => Attempt::Refused(why.to_string()),
        Err(why @ NotForgotten::NotKnown { .. }) => Attempt::Unknown(why.to_string()),
    }
}

fn of_peer(peer: &str, answer: Result<RecoverReply, Status>) -> Attempt {
    let told = |message: &str| format!("{peer}: {message}");
    match answer {
        Ok(reply) if reply.done => Attempt::Done(told(&reply.message)),
        Ok(reply) => Attempt::Refused(told(&reply.message)),
        Err(status) => match status.code() {
            Code::Aborted => Attempt::Failed(told(status.message())),
            Code::InvalidArgument | Code::PermissionDenied | Code::Unimplemented => {
                Attempt::Refused(told(status.message()))
            }
            _ => Attempt::Unknown(told(&format!(
                "whether it has forgotten the host is not known ({})",
                status.message()
            ))),
        },
    }
}

/// All parts as one. Done is only what is done everywhere; refused only what changed nothing anywhere.
pub(super) fn sum(parts: Vec<Attempt>) -> Attempt {
    let any = |is: fn(&Attempt) -> bool| parts.iter().any(is);
    let unknown = any(|p| matches!(p, Attempt::Unknown(_)));
    let failed = any(|p| matches!(p, Attempt::Failed(_)));
    let refused = any(|p| matches!(p, Attempt::Refused(_)));
    let done = any(|p| matches!(p, Attempt::Done(_)));
    let lines: Vec<&str> = parts.iter().map(|p| p.told().1).collect();
    // It may have gone between two looks.
    let text = if lines.is_empty() { "it is known no more".into() } else { lines.join("\n") };
    match (unknown, failed, refused, done) {
        (true, ..) => Attempt::Unknown(text),
        (_, true, ..) | (_, _, true, true) => Attempt::Failed(text),
        (_, _, true, false) => Attempt::Refused(text),
        _ => Attempt::Done(text),
    }
}
