//! What the operator reads before a host is forgotten: what to do first, what is known of it, what follows. Pure.

use std::fmt::Write as _;

use super::facts::{Facts, Server};
use super::plan::{Found, FoundClient, Objection};
use crate::api::recover::Heard;

/// The whole explanation; lines end with `\n`.
#[must_use]
pub fn explain(f: &Facts, found: Option<&Found<'_>>, objection: Option<&Objection>) -> String {
    let mut out = String::new();
    if objection.is_none() {
        let first = format!(
            "switch {} off or fence it, and see that it is off: nasd takes your word for it",
            f.host
        );
        section(&mut out, "first", &[first]);
    }
    section(&mut out, "what is true now", &truth(f, found));
    match (objection, found) {
        (None, Some(found)) => {
            section(&mut out, "what may be lost", &losses(f));
            section(&mut out, "what will be done", &deeds(found));
        }
        (Some(Objection { why, instead }), _) => {
            section(&mut out, "not possible now", &[why.clone(), instead.clone()]);
        }
        (None, None) => {}
    }
    out
}

fn section(out: &mut String, head: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    if !out.is_empty() {
        out.push('\n');
    }
    let _ = writeln!(out, "{head}");
    for line in lines {
        let _ = writeln!(out, "  {line}");
    }
}

fn truth(f: &Facts, found: Option<&Found<'_>>) -> Vec<String> {
    let found = found.cloned().unwrap_or_default();
    let mut lines: Vec<String> = found.clients.iter().map(client).collect();
    lines.extend(found.agents.iter().map(|(node, agent)| {
        let (host, ago) = (&agent.host, agent.heard_ms / 1000);
        format!("hvagent of {host}: {node} heard it {ago} s ago")
    }));
    lines.extend(silent_altogether(f, &found));
    lines.extend(not_told(f));
    lines
}

fn client(c: &FoundClient<'_>) -> String {
    let from = c.client.address.map(|a| format!(" from {a}")).unwrap_or_default();
    let silent = match c.client.renewed_s {
        Some(s) => format!("renewed its lease {s} s ago"),
        None => "nobody knows when it renewed its lease".to_owned(),
    };
    let (service, node, owner, status) = (c.service, c.node, &c.client.owner, &c.client.status);
    format!("{service} on {node}: {owner:?}{from}, {status}, {silent}")
}

/// Then it is more likely the network than the host.
fn silent_altogether(f: &Facts, found: &Found<'_>) -> Vec<String> {
    let concerned = found.services();
    let mut lines = Vec::new();
    for (service, server) in f.nodes().into_iter().flat_map(|n| &n.services) {
        let Server::Here { clients, lease_s, .. } = server else { continue };
        let others = clients.iter().filter(|c| !found.clients.iter().any(|x| x.client == *c));
        let mut others = others.filter(|c| c.host.is_some()).peekable();
        if concerned.contains(service.as_str())
            && others.peek().is_some()
            && others.all(|c| c.is_silent(*lease_s))
        {
            lines.push(format!(
                "no client of {service} has renewed its lease: is it the network, and not {}?",
                f.host
            ));
        }
    }
    lines
}

/// What a node that does not answer may remember; none when both told.
#[must_use]
pub fn not_told(f: &Facts) -> Option<String> {
    let Heard::Unknown(why) = &f.there else { return None };
    let (host, peer) = (&f.host, &f.peer);
    let not_here = f.here.services.iter().filter(|(_, s)| !matches!(s, Server::Here { .. }));
    let services: Vec<&str> = not_here.map(|(name, _)| name.as_str()).collect();
    let what = if services.is_empty() {
        format!("planned moves from there may wait for hvagent of {host}")
    } else {
        format!("{}, not served here, may still remember {host}", services.join(", "))
    };
    Some(format!("{peer}: {why}; {what}"))
}

fn losses(f: &Facts) -> Vec<String> {
    let host = &f.host;
    vec![
        format!("if {host} lives after all: its guests lose their locks and opens, and could be"),
        "started twice, on it and elsewhere, with the same disks".into(),
    ]
}

fn deeds(found: &Found<'_>) -> Vec<String> {
    let services: std::collections::BTreeSet<&str> =
        found.clients.iter().map(|c| c.service).collect();
    let mut lines: Vec<String> = services
        .iter()
        .map(|s| format!("{s}: its opens and locks are released, and no later grace waits for it"))
        .collect();
    if !found.agents.is_empty() {
        lines.push("planned moves wait for its agent no more".into());
    }
    lines
}
