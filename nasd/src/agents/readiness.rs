//! Whether hypervisors are ready for a planned move: from what they said to findings. Pure.
//!
//! Keeps S12: silence, an answer to another move and an answer that has not come are no consent. Owns the
//! names of these findings and when the waiting ends.

use std::collections::BTreeSet;
use std::time::Duration;

use nasd_proto::{MountState, Readiness};

use crate::core::preflight::Finding;
use crate::core::view::Now;

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The service that is to move.
    pub service: &'a str,
    /// The node that asks.
    pub node: &'a str,
    /// Now.
    pub now: Now,
    /// Until when answers are waited for.
    pub deadline: Now,
    /// When the asking began.
    pub began: Now,
    /// Move all the same.
    pub force: bool,
    /// The stall that is to be expected, milliseconds.
    pub predicted_stall_ms: u32,
}

/// One host that the move concerns.
#[derive(Debug, Clone, Copy)]
pub struct Standing<'a> {
    /// Its name.
    pub host: &'a str,
    /// It does not answer, for so long.
    pub silent: Option<Duration>,
    /// How long ago it said anything.
    pub heard: Duration,
    /// Its answer to this announcement, if it has given one.
    pub said: Option<&'a Readiness>,
}

/// The result, as soon as there is one: nothing that refuses means that the move may begin.
#[must_use]
pub fn judge(
    q: &Question<'_>,
    standings: &[Standing<'_>],
    absent: &[&str],
) -> Option<Vec<Finding>> {
    let held = held(standings);
    let mut found: Vec<_> = standings.iter().filter_map(|s| against(q, s, &held)).collect();
    found.extend(absent.iter().map(|host| required(q, host)));
    let over = q.now >= q.deadline;
    let unanswered = standings.iter().any(|s| s.silent.is_none() && s.said.is_none());
    let in_vain = standings.iter().any(|s| too_late(q, s, &held));
    let ended = found.is_empty() || over || (!unanswered && (q.force || in_vain));
    ended.then(|| soften(found, q.force))
}

/// With force nothing refuses.
fn soften(mut found: Vec<Finding>, force: bool) -> Vec<Finding> {
    for finding in &mut found {
        finding.refuses &= !force;
    }
    found
}

/// An agent that holds arrivals back says so every second; 5 s after it has fallen silent libvirt's hook lets them in.
const HELD: Duration = Duration::from_secs(4);

/// Guests whose arrival is held back by a host that answers.
fn held<'a>(standings: &[Standing<'a>]) -> BTreeSet<&'a str> {
    let fresh = |s: &&Standing<'_>| s.silent.is_none() && s.heard <= HELD;
    let answers = standings.iter().filter(fresh).filter_map(|s| s.said);
    answers.flat_map(|said| said.held.iter().map(String::as_str)).collect()
}

/// Ready, or not for migrations only that have sent nothing yet and cannot: their destinations hold them back.
fn consents(said: &Readiness, held: &BTreeSet<&str>) -> bool {
    let waits = |guest: &String| held.contains(guest.as_str());
    said.ready || (said.only_unbegun && !said.unbegun.is_empty() && said.unbegun.iter().all(waits))
}

/// It says itself that it will not be ready in time.
fn too_late(q: &Question<'_>, s: &Standing<'_>, held: &BTreeSet<&str>) -> bool {
    let left = q.deadline.saturating_sub(q.now);
    let late =
        |r: &Readiness| !consents(r, held) && Duration::from_millis(r.retry_after_ms.into()) > left;
    s.silent.is_none() && s.said.is_some_and(late)
}

fn against(q: &Question<'_>, s: &Standing<'_>, held: &BTreeSet<&str>) -> Option<Finding> {
    if let Some(silent) = s.silent {
        return Some(silence(q, s.host, silent));
    }
    match s.said {
        Some(said) if consents(said, held) => margin(q, s.host, said.margin_ms),
        Some(said) => Some(not_ready(s.host, refusal(s.host, said))),
        None => {
            let waited = seconds(q.now.saturating_sub(q.began));
            Some(not_ready(s.host, format!("{} has not answered within {waited}", s.host)))
        }
    }
}

fn refusal(host: &str, said: &Readiness) -> String {
    let why =
        if said.reasons.is_empty() { "it gives no reason".into() } else { said.reasons.join("; ") };
    let retry = Duration::from_millis(said.retry_after_ms.into());
    let when =
        if retry.is_zero() { String::new() } else { format!(" (perhaps in {})", seconds(retry)) };
    format!("{host} is not ready: {why}{when}")
}

fn not_ready(host: &str, evidence: String) -> Finding {
    let remedy = format!(
        "look there (hvagent status on {host}), wait longer with --wait SECONDS, or move all the same with --force"
    );
    Finding::refusal("hypervisor-not-ready", evidence, remedy)
}

fn silence(q: &Question<'_>, host: &str, silent: Duration) -> Finding {
    Finding::refusal(
        "hypervisor-silent",
        format!(
            "{host} had {} mounted, and {} has not heard of it for {}",
            q.service,
            q.node,
            seconds(silent)
        ),
        format!(
            "start hvagent on {host}; a host that is off is forgotten after 5 min, and --force moves all the same"
        ),
    )
}

fn required(q: &Question<'_>, host: &str) -> Finding {
    Finding::refusal(
        "hypervisor-absent",
        format!(
            "{host} is required ([agents] required), and its agent is not attached to {}",
            q.node
        ),
        format!("start hvagent on {host}, or move all the same with --force"),
    )
}

fn margin(q: &Question<'_>, host: &str, margin_ms: Option<u64>) -> Option<Finding> {
    let margin = margin_ms.filter(|m| *m <= u64::from(q.predicted_stall_ms))?;
    Some(Finding::refusal(
        "hypervisor-margin",
        format!(
            "a guest on {host} loses its lease after a stall of {margin} ms, and {} ms are predicted",
            q.predicted_stall_ms
        ),
        format!(
            "try again after the next renewal (hvagent status on {host}), or raise sanlock's io_timeout"
        ),
    ))
}

/// What a dry run tells of one host, by its last word; nothing was announced.
#[must_use]
pub fn look(
    q: &Question<'_>,
    host: &str,
    silent: Option<Duration>,
    mounts: Option<&[&MountState]>,
) -> Vec<Finding> {
    let found = match (silent, mounts) {
        (Some(silent), _) => vec![silence(q, host, silent)],
        (None, None) => vec![not_ready(host, format!("{host} has not told its mounts yet"))],
        (None, Some(mounts)) => mounts.iter().flat_map(|m| look_at(q, host, m)).collect(),
    };
    soften(found, q.force)
}

/// Those that are required and not attached, for a dry run.
#[must_use]
pub fn look_for(q: &Question<'_>, absent: &[&str]) -> Vec<Finding> {
    soften(absent.iter().map(|host| required(q, host)).collect(), q.force)
}

fn look_at(q: &Question<'_>, host: &str, m: &MountState) -> Vec<Finding> {
    let mut found = Vec::new();
    let shown = describe(m);
    if m.phase == "normal" {
        found.push(Finding::warning("hypervisor", format!("{host}: {shown}"), ""));
    } else {
        found.push(not_ready(host, format!("{host} is not at rest: {shown}")));
    }
    found.extend(margin(q, host, m.margin_ms));
    let problem = |p: &String| {
        let remedy = format!("on {host}: hvagent check");
        Finding::warning("hypervisor-problem", format!("{host}, {}: {p}", m.mount), remedy)
    };
    found.extend(m.problems.iter().map(problem));
    found
}

fn describe(m: &MountState) -> String {
    let margin = match m.margin_ms {
        Some(ms) => format!("margin {}", seconds(Duration::from_millis(ms))),
        None => "no leases".to_owned(),
    };
    format!(
        "{} is {}, {} guests, {} migrations, {margin}",
        m.mount, m.phase, m.guests, m.migrations
    )
}

fn seconds(d: Duration) -> String {
    format!("{}.{} s", d.as_secs(), d.subsec_millis() / 100)
}

#[cfg(test)]
#[path = "readiness_tests.rs"]
mod tests;
