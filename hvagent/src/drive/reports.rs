//! The host's report for the checks of migrations from elsewhere, to all nasds once a minute.
//!
//! Taken by a task of its own, as libvirt and sanlock may be slow to answer; each look has its deadline (S10).

use std::time::Duration;

use nasd_proto as v1;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use v1::agent_message::Kind;

use crate::check::report::{MountPhase, Named, Services};
use crate::check::{HostReport, Known, Sources, collect};
use crate::config;

/// Between two reports.
const EVERY: Duration = Duration::from_secs(60);
/// The first, when mounts were seen.
const FIRST: Duration = Duration::from_secs(5);

/// What the reports need of the agent.
pub struct Reporter {
    /// The nodes, for their own addresses.
    pub nasd: Vec<config::Nasd>,
    /// The services as known last.
    pub services: watch::Receiver<config::Services>,
    /// The phases as told last.
    pub state: watch::Receiver<v1::AgentState>,
    /// To the nasds.
    pub queues: Vec<mpsc::Sender<Kind>>,
}

impl Reporter {
    /// Tells until the agent is gone.
    pub async fn run(self) {
        sleep(FIRST).await;
        while self.queues.iter().any(|queue| !queue.is_closed()) {
            match self.report().await.to_json() {
                Ok(json) => {
                    for queue in &self.queues {
                        // A link that is down needs no second report in its queue.
                        if queue.capacity() > queue.max_capacity() / 2 {
                            let _ = queue.try_send(Kind::HostReportJson(json.clone()));
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "the host's report cannot be written"),
            }
            sleep(EVERY).await;
        }
    }

    async fn report(&self) -> HostReport {
        let named = |(name, addresses): (&String, &Vec<_>)| Named {
            name: name.clone(),
            addresses: addresses.clone(),
        };
        let node =
            |n: &config::Nasd| Named { name: n.name.clone(), addresses: vec![n.address.ip()] };
        let services = Services {
            floating: self.services.borrow().iter().map(named).collect(),
            nodes: self.nasd.iter().map(node).collect(),
        };
        let phase =
            |m: &v1::MountState| MountPhase { mount: m.mount.clone(), phase: m.phase.clone() };
        let phases = self.state.borrow().mounts.iter().map(phase).collect();
        let sources = Sources::of_this_host(services, Known::Known(phases)).await;
        collect(&sources).await
    }
}
