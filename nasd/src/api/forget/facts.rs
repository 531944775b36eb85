//! What both nodes know of a host now: its NFS clients at each service, and its agent.
//!
//! Owns no judgement. What could not be learned says why (S12); every question has a deadline (S8).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;
use nasd_nfsd::control::ClientInfo;
use nasd_proto::ForgetHostRequest;
use serde::{Deserialize, Serialize};

use crate::agents::status::KnownHost;
use crate::api::control::Services;
use crate::api::recover::Heard;
use crate::io::{Answer, Op, ServerStatus};
use crate::peer::server::Entry;

/// Time for nasd-io, which answers from memory and the kernel's control files.
const SERVER: Duration = Duration::from_secs(2);

/// A client of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its owner string, for people.
    pub owner: String,
    /// Its owner string as the kernel has it; it stays on its node.
    #[serde(skip)]
    pub name: Vec<u8>,
    /// The host name in it, where it is Linux' owner string.
    pub host: Option<String>,
    /// Where it speaks from, as far as known.
    pub address: Option<IpAddr>,
    /// The kernel's word, as `confirmed` or `courtesy`.
    pub status: String,
    /// Seconds since it last renewed its lease; absent: not known.
    pub renewed_s: Option<i64>,
}

impl Client {
    /// Known to be silent for longer than a lease.
    #[must_use]
    pub fn is_silent(&self, lease_s: u32) -> bool {
        self.renewed_s.is_some_and(|s| s > i64::from(lease_s))
    }
}

impl From<ClientInfo> for Client {
    fn from(info: ClientInfo) -> Self {
        let owner = String::from_utf8_lossy(&info.name).into_owned();
        Self {
            host: host_in(&owner).map(str::to_owned),
            address: info.address.map(|a| a.ip().to_canonical()),
            status: info.status,
            renewed_s: info.renewed_s,
            name: info.name,
            owner,
        }
    }
}

/// `Linux NFSv4.x HOST` or `Linux NFSv4.x UNIQUIFIER/HOST` (`nfs4_init_uniform_client_string`). A host name has no
/// slash; a uniquifier may.
fn host_in(owner: &str) -> Option<&str> {
    let (minor, rest) = owner.strip_prefix("Linux NFSv4.")?.split_once(' ')?;
    let host = rest.rsplit('/').next().unwrap_or(rest);
    (minor.parse::<u8>().is_ok() && !host.is_empty()).then_some(host)
}

/// One service's server on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Server {
    /// The node does not serve it now.
    Elsewhere,
    /// It may serve it; the text says what is not known.
    Unknown(String),
    /// It serves it.
    Here {
        /// The lease, seconds.
        lease_s: u32,
        /// The longest grace, seconds.
        grace_s: u32,
        /// Grace runs.
        in_grace: bool,
        /// Its gate has not been open for a lease: records of clients are not removed (S6).
        removals_ignored: bool,
        /// Its clients.
        clients: Vec<Client>,
    },
}

/// Everything that one node knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// The node.
    pub node: String,
    /// Hosts whose agents it has heard; absent: its task for them does not answer.
    pub agents: Option<Vec<KnownHost>>,
    /// By service.
    pub services: BTreeMap<String, Server>,
}

impl NodeFacts {
    /// Asks this node's own parts.
    pub async fn gather(services: &Services) -> Self {
        let asked =
            services.by_name.iter().map(async |(name, entry)| (name.clone(), server(entry).await));
        let (agents, servers) = tokio::join!(services.agents.known(), join_all(asked));
        Self { node: services.me.0.clone(), agents, services: servers.into_iter().collect() }
    }
}

/// Everything that a request is judged by. `details_json` of the reply is this.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Facts {
    /// The host, as the operator calls it.
    pub host: String,
    /// The node that was asked.
    pub here: NodeFacts,
    /// The other node's name.
    pub peer: String,
    /// What the other node knows.
    pub there: Heard<NodeFacts>,
}

impl Facts {
    /// Asks both nodes.
    pub async fn gather(services: &Services, host: &str) -> Self {
        let ask = ForgetHostRequest { host: host.to_owned(), explain: true, ..Default::default() };
        let (here, there) =
            tokio::join!(NodeFacts::gather(services), services.link.forget_host(ask));
        let there = there.map_err(|e| format!("its nasd does not answer: {}", e.message()));
        let read = |reply: nasd_proto::RecoverReply| {
            serde_json::from_str(&reply.details_json)
                .map_err(|e| format!("its answer cannot be read: {e}"))
        };
        let peer = services.peer.0.clone();
        Self { host: host.to_owned(), here, peer, there: there.and_then(read).into() }
    }

    /// The nodes that told what they know.
    #[must_use]
    pub fn nodes(&self) -> Vec<&NodeFacts> {
        std::iter::once(&self.here).chain(self.there.known()).collect()
    }
}

async fn server(entry: &Entry) -> Server {
    let hands = &entry.hands;
    let answer = match hands.io_call(Op::ServerStatus, SERVER).await {
        Ok(Answer::Status(status)) => Ok(*status),
        Ok(_) => Err("nasd-io answered with something else".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let (open, stage) = (hands.gate_left().is_some(), hands.seen.borrow().stage);
    let seconds = |d: Duration| u32::try_from(d.as_secs()).unwrap_or(u32::MAX);
    let (lease_s, grace_s) = (seconds(hands.service.lease), seconds(hands.service.grace));
    served(open, stage, answer, lease_s, grace_s)
}

/// A node that stands by with its gate shut does not serve, whatever its nasd-io says.
fn served(
    open: bool,
    stage: &str,
    answer: Result<ServerStatus, String>,
    lease_s: u32,
    grace_s: u32,
) -> Server {
    let standby = !open && matches!(stage, "standby" | "waiting");
    match answer {
        Ok(status) if status.threads > 0 && open => Server::Here {
            lease_s,
            grace_s,
            in_grace: !status.grace_over,
            removals_ignored: status.removals_ignored,
            clients: status.clients.into_iter().map(Client::from).collect(),
        },
        Ok(status) if status.threads > 0 => {
            Server::Unknown("its NFS server runs and its gate is shut".into())
        }
        Ok(_) if open => Server::Unknown("its gate is open and no NFS server runs".into()),
        Err(_) if standby => Server::Elsewhere,
        Ok(_) => Server::Elsewhere,
        Err(why) => Server::Unknown(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_found_in_linux_owner_strings_only() {
        for (owner, host) in [
            ("Linux NFSv4.2 hv3", Some("hv3")),
            ("Linux NFSv4.1 hv3.example.com", Some("hv3.example.com")),
            ("Linux NFSv4.2 7f2e/with/slash/hv3", Some("hv3")),
            ("Linux NFSv4.2 ", None),
            ("Linux NFSv4.x hv3", None),
            ("Linux NFSv4.2", None),
            ("nasd-pulse vms 7", None),
            ("VMware ESX hv3", None),
        ] {
            assert_eq!(host_in(owner), host, "{owner}");
        }
    }

    fn status(threads: u32) -> ServerStatus {
        let tracker = serde_json::to_value(nasd_nfsd::cld::TrackerStatus::default()).unwrap();
        let answerer = serde_json::to_value(nasd_nfsd::exports::AnswererStatus::default()).unwrap();
        serde_json::from_value(serde_json::json!({
            "threads": threads, "grace_over": true, "packets": 0, "clients": [], "recorded": 0,
            "reclaimed": 0, "awaited": 0, "records_loaded": true, "tracker": tracker,
            "answerer": answerer,
        }))
        .unwrap()
    }

    #[test]
    fn s12_a_service_is_elsewhere_only_where_that_is_known() {
        let seen = |open, stage, answer| served(open, stage, answer, 15, 90);
        let lost = || Err("nasd-io is gone".to_owned());
        assert_eq!(seen(false, "standby", lost()), Server::Elsewhere);
        assert_eq!(seen(false, "standby", Ok(status(0))), Server::Elsewhere);
        for unknown in [
            seen(true, "serving", lost()),
            seen(false, "opening", lost()),
            seen(false, "opening", Ok(status(8))),
            seen(true, "serving", Ok(status(0))),
        ] {
            assert!(matches!(unknown, Server::Unknown(_)), "{unknown:?}");
        }
        let here = seen(true, "serving", Ok(status(8)));
        let Server::Here { in_grace: false, removals_ignored, .. } = here else {
            panic!("{here:?}");
        };
        assert!(removals_ignored, "an older nasd-io does not tell");
    }
}
