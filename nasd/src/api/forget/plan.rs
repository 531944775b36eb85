//! Whether a host may be forgotten, by what both nodes know of it. Pure.
//!
//! The operator says that it is dead; nothing that nasd sees may speak against it. Unknown is never permission
//! (S12): a node that answers must know its own part. One that does not answer cannot act, and is told of.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::facts::{Client, Facts, NodeFacts, Server};
use crate::agents::status::KnownHost;

/// What speaks against it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}; {instead}")]
pub struct Objection {
    /// What is true now.
    pub why: String,
    /// What to do instead.
    pub instead: String,
}

impl Objection {
    fn new(why: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { why: why.into(), instead: instead.into() }
    }
}

/// A client of the host at one service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundClient<'a> {
    /// The node that serves it.
    pub node: &'a str,
    /// The service.
    pub service: &'a str,
    /// Its lease, seconds.
    pub lease_s: u32,
    /// The client.
    pub client: &'a Client,
}

/// What is known of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found<'a> {
    /// Its names: the operator's, and those in its owner strings.
    pub names: BTreeSet<String>,
    /// Its clients.
    pub clients: Vec<FoundClient<'a>>,
    /// Its agent, by the node that heard it.
    pub agents: Vec<(&'a str, &'a KnownHost)>,
    /// Agents that may be its own, under a shorter name as well: one that is heard speaks for it.
    pub witnesses: Vec<(&'a str, &'a KnownHost)>,
}

impl Found<'_> {
    /// Services that know it, or that its agent had mounted.
    #[must_use]
    pub fn services(&self) -> BTreeSet<&str> {
        let mounted = self.agents.iter().flat_map(|(_, a)| a.services.iter().map(String::as_str));
        self.clients.iter().map(|c| c.service).chain(mounted).collect()
    }

    /// Whether a node knows anything of it.
    #[must_use]
    pub fn at(&self, node: &str) -> bool {
        self.clients.iter().any(|c| c.node == node) || self.agents.iter().any(|(n, _)| *n == node)
    }
}

/// Looks for a host. `also` are names by which another node has found it; without them a short name stands for
/// the long one that begins with it, where nobody bears it exactly.
///
/// # Errors
/// The hosts that may be meant, when there are several.
pub fn find<'a>(
    host: &str,
    also: &[String],
    nodes: &[&'a NodeFacts],
) -> Result<Found<'a>, BTreeSet<String>> {
    let all: Vec<FoundClient<'a>> = nodes.iter().flat_map(|node| clients(node)).collect();
    let given: BTreeSet<&str> = also.iter().map(String::as_str).chain([host]).collect();
    let ip = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    let exact = |c: &&FoundClient<'_>| {
        let named = c.client.host.as_deref().is_some_and(|name| given.contains(name));
        named || (ip.is_some() && c.client.address == ip)
    };
    let short =
        |c: &&FoundClient<'_>| c.client.host.as_deref().is_some_and(|name| stands_for(host, name));
    let mut meant: Vec<_> = all.iter().filter(exact).collect();
    if meant.is_empty() && also.is_empty() {
        meant = all.iter().filter(short).collect();
    }
    let hosts: BTreeSet<String> = meant.iter().map(|c| called(c.client)).collect();
    if hosts.len() > 1 && also.is_empty() {
        return Err(hosts);
    }
    let found = meant.iter().filter_map(|c| c.client.host.clone());
    let names: BTreeSet<String> = given.iter().map(|n| (*n).to_owned()).chain(found).collect();
    let of_it = |c: &FoundClient<'_>| {
        c.client.host.as_ref().is_some_and(|name| names.contains(name)) || meant.contains(&c)
    };
    let clients = all.iter().filter(|c| of_it(c)).copied().collect();
    let agents = own_agents(nodes, &names)?;
    let witnesses = self::agents(nodes, &names, |a, b| stands_for(a, b) || stands_for(b, a));
    Ok(Found { names, clients, agents, witnesses })
}

fn clients(node: &NodeFacts) -> impl Iterator<Item = FoundClient<'_>> {
    node.services.iter().flat_map(move |(service, server)| {
        let (clients, lease_s) = match server {
            Server::Here { clients, lease_s, .. } => (clients.as_slice(), *lease_s),
            Server::Elsewhere | Server::Unknown(_) => (&[][..], 0),
        };
        clients.iter().map(move |client| FoundClient { node: &node.node, service, lease_s, client })
    })
}

/// The agents that bear one of the names; else the one that a name is short for.
///
/// # Errors
/// Their names, when there are several.
fn own_agents<'a>(
    nodes: &[&'a NodeFacts],
    names: &BTreeSet<String>,
) -> Result<Vec<(&'a str, &'a KnownHost)>, BTreeSet<String>> {
    let exact = agents(nodes, names, |a, b| a == b);
    if !exact.is_empty() {
        return Ok(exact);
    }
    let near = agents(nodes, names, stands_for);
    let hosts: BTreeSet<String> = near.iter().map(|(_, agent)| agent.host.clone()).collect();
    if hosts.len() > 1 { Err(hosts) } else { Ok(near) }
}

fn agents<'a>(
    nodes: &[&'a NodeFacts],
    names: &BTreeSet<String>,
    of: impl Fn(&str, &str) -> bool,
) -> Vec<(&'a str, &'a KnownHost)> {
    let known = |node: &&'a NodeFacts| {
        let node: &'a NodeFacts = node;
        node.agents.iter().flatten().map(move |agent| (node.node.as_str(), agent))
    };
    let of_it = |(_, agent): &(&str, &KnownHost)| names.iter().any(|name| of(name, &agent.host));
    nodes.iter().flat_map(known).filter(of_it).collect()
}

/// A name stands for itself, and without a domain for one that begins with it.
fn stands_for(name: &str, full: &str) -> bool {
    name == full || full.split_once('.').is_some_and(|(label, _)| label == name)
}

/// What people call a client.
fn called(client: &Client) -> String {
    client.host.clone().unwrap_or_else(|| client.owner.clone())
}

/// Judges a request by what both nodes know; `None`: with [`sentence`], typed.
#[must_use]
pub fn judge(f: &Facts, found: &Result<Found<'_>, BTreeSet<String>>) -> Option<Objection> {
    let host = &f.host;
    let found = match found {
        Ok(found) => found,
        Err(several) => {
            let several: Vec<&str> = several.iter().map(String::as_str).collect();
            let why = format!("{host} may be {}", several.join(" or "));
            return Some(Objection::new(why, "name one of them in full"));
        }
    };
    let unknown = found.clients.is_empty() && found.agents.is_empty();
    objection(host, found, &f.nodes()).or_else(|| unknown.then(|| nobody(f)))
}

/// What the operator types.
#[must_use]
pub fn sentence(host: &str) -> String {
    format!("{host} is dead")
}

/// What speaks against it at these nodes.
#[must_use]
pub fn objection(host: &str, found: &Found<'_>, nodes: &[&NodeFacts]) -> Option<Objection> {
    let lives = found.witnesses.iter().find_map(|(node, agent)| agent_lives(node, agent));
    lives
        .or_else(|| found.clients.iter().find_map(|c| client_lives(host, c)))
        .or_else(|| nodes.iter().find_map(|node| not_known(host, node)))
        .or_else(|| nodes.iter().find_map(|node| not_yet(node)))
}

fn agent_lives(node: &str, agent: &KnownHost) -> Option<Objection> {
    agent.attached.then(|| {
        let ago = agent.heard_ms / 1000;
        Objection::new(
            format!("hvagent of {} spoke {ago} s ago: it lives ({node} hears it)", agent.host),
            "switch it off or fence it first; 15 s later it counts as silent",
        )
    })
}

fn client_lives(host: &str, c: &FoundClient<'_>) -> Option<Objection> {
    if c.client.is_silent(c.lease_s) {
        return None;
    }
    let (service, owner) = (c.service, &c.client.owner);
    Some(match c.client.renewed_s {
        Some(ago) => Objection::new(
            format!("{host} renewed its lease with {service} {ago} s ago: it lives ({owner})"),
            format!(
                "switch it off or fence it first; {} s after its last renewal it counts as silent",
                c.lease_s + 1
            ),
        ),
        None => Objection::new(
            format!("when {host} last renewed its lease with {service} is not known ({owner})"),
            "look again: nasctl forget-host only explains unless it is confirmed",
        ),
    })
}

fn not_known(host: &str, node: &NodeFacts) -> Option<Objection> {
    if node.agents.is_none() {
        return Some(Objection::new(
            format!(
                "whether hvagent of {host} lives is not known: nasd's task for the hypervisors on {} does not answer",
                node.node
            ),
            format!("try again; see the journal of nasd on {}", node.node),
        ));
    }
    node.services.iter().find_map(|(service, server)| {
        let Server::Unknown(why) = server else { return None };
        Some(Objection::new(
            format!("whether {service} knows {host} is not known on {}: {why}", node.node),
            "try again; see nasctl status",
        ))
    })
}

/// S6, S7: while clients may still be on their way, silence proves nothing, and no record goes.
fn not_yet(node: &NodeFacts) -> Option<Objection> {
    node.services.iter().find_map(|(service, server)| {
        let Server::Here { lease_s, grace_s, in_grace, removals_ignored, .. } = server else {
            return None;
        };
        let (why, wait_s) = match (in_grace, removals_ignored) {
            // The kernel goes on for up to two leases while somebody reclaims.
            (true, _) => ("is in grace, which ends by itself", (*grace_s).max(2 * lease_s)),
            (false, true) => ("has not been open for one lease", *lease_s),
            (false, false) => return None,
        };
        Some(Objection::new(
            format!("{service} on {} {why}", node.node),
            format!("try again in {wait_s} s at most"),
        ))
    })
}

fn nobody(f: &Facts) -> Objection {
    let nodes = f.nodes();
    let of_nasd = |c: &FoundClient<'_>| c.client.owner.starts_with("nasd-");
    let clients = nodes.iter().flat_map(|n| clients(n)).filter(|c| !of_nasd(c));
    let agents = nodes.iter().flat_map(|n| n.agents.iter().flatten()).map(|a| a.host.clone());
    let known: BTreeSet<String> = clients.map(|c| called(c.client)).chain(agents).collect();
    let known: Vec<String> = known.into_iter().collect();
    let list = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let why = format!("no client or agent is called {}; known are {list}", f.host);
    match f.there.known() {
        Some(_) => Objection::new(why, "give the name as listed, or the host's address"),
        None => Objection::new(
            why,
            format!("what {} knows is not known; give the name as listed, or run it there", f.peer),
        ),
    }
}
