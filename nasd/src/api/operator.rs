//! Takeover, hold and history: an operator's requests that go to a service's task or to its history.
//!
//! Owns deadlines and texts (S8); the task decides. What an operator asks for is written into the
//! history with the operator's name, also when it was refused.

use std::time::Duration;

use futures_util::future::join_all;
use nasd_proto::{
    HistoryReply, HistoryRequest, HoldReply, HoldRequest, MoveEvent, NodeUnreachable,
    TakeoverRequest,
};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::control::Services;
use crate::drive::task::Command;
use crate::observe::history::{Entry, Told, merge};
use crate::peer::server::Entry as Service;

/// Time for a change of the record: a read, a compare-and-set, and the core's own time for both.
const CHANGE: Duration = Duration::from_secs(8);
/// Events of one service that are told at most; the two files hold about as many.
const MOST: usize = 10_000;

/// An operator's name and reason as they are kept: `root@nas1: replacing a disk`.
pub(super) fn named(by: &str, reason: &str) -> String {
    let by = if by.trim().is_empty() { "somebody" } else { by.trim() };
    if reason.trim().is_empty() { by.to_owned() } else { format!("{by}: {}", reason.trim()) }
}

impl Services {
    /// The service takes itself to this node; the caller hears steps and one outcome.
    ///
    /// # Errors
    /// An unknown service, or a task that has ended.
    pub async fn take_over(
        &self,
        request: &TakeoverRequest,
    ) -> Result<mpsc::Receiver<MoveEvent>, Status> {
        let entry = self.entry(&request.service)?;
        let asked = named(&request.by, &request.reason);
        let epoch = entry.hands.seen.borrow().epoch;
        entry.hands.history.note(Entry::now(&asked, "takeover", epoch, "asked", ""));
        let (listener, events) = mpsc::channel(256);
        let sent = entry.handle.send(Command::TakeOver(asked, listener)).await;
        sent.map_err(|_| Status::unavailable("the service's task has ended"))?;
        Ok(events)
    }

    /// Holds or releases one service, or all when none is named.
    ///
    /// # Errors
    /// An unknown service.
    pub async fn hold(&self, request: &HoldRequest) -> Result<HoldReply, Status> {
        let chosen: Vec<&Service> = if request.service.is_empty() {
            self.by_name.values().collect()
        } else {
            vec![self.entry(&request.service)?]
        };
        let (mut done, mut said) = (true, Vec::new());
        // At once: each may wait for the coordinator, and nasctl does not wait for their sum.
        let asked = chosen.iter().map(|entry| hold_one(entry, request));
        for (entry, result) in chosen.iter().zip(join_all(asked).await) {
            let name = &entry.hands.service.name;
            match result {
                Ok(()) if request.hold => said.push(format!("{name} is held")),
                Ok(()) => said.push(format!("{name} is not held any more")),
                Err(reason) => {
                    done = false;
                    said.push(format!("{name}: {reason}"));
                }
            }
        }
        Ok(HoldReply { done, message: said.join("\n") })
    }

    /// This node's events.
    ///
    /// # Errors
    /// An unknown service, or a file that cannot be read.
    pub async fn history_here(&self, request: &HistoryRequest) -> Result<Vec<Told>, Status> {
        let mut told = Vec::new();
        let limit = limit(request);
        for entry in self.by_name.values() {
            let service = entry.hands.service.name.clone();
            if !request.service.is_empty() && request.service != service {
                continue;
            }
            let history = entry.hands.history.clone();
            let read = tokio::task::spawn_blocking(move || history.read(limit)).await;
            let entries = read
                .map_err(|e| Status::internal(e.to_string()))?
                .map_err(|e| Status::internal(format!("the history of {service}: {e}")))?;
            let node = &self.me.0;
            told.extend(entries.into_iter().map(|entry| Told {
                node: node.clone(),
                service: service.clone(),
                entry,
            }));
        }
        Ok(merge(told, limit))
    }

    /// [`Services::history_here`] for the wire.
    ///
    /// # Errors
    /// As there.
    pub async fn local_history(&self, request: &HistoryRequest) -> Result<HistoryReply, Status> {
        if !request.service.is_empty() {
            self.entry(&request.service)?;
        }
        reply(self.history_here(request).await?, Vec::new())
    }

    /// Both nodes' events, by time; a node that does not answer is named.
    ///
    /// # Errors
    /// As [`Services::history_here`].
    pub async fn history(&self, request: &HistoryRequest) -> Result<HistoryReply, Status> {
        if request.local_only {
            return self.local_history(request).await;
        }
        if !request.service.is_empty() {
            self.entry(&request.service)?;
        }
        let mut told = self.history_here(request).await?;
        let mut unreachable = Vec::new();
        let ask = HistoryRequest { local_only: true, ..request.clone() };
        match self.link.history(ask).await {
            Ok(theirs) => {
                let (read, lost) = parse(&theirs.entry_json);
                told.extend(read);
                if lost > 0 {
                    let reason =
                        format!("{lost} of its events cannot be read; is it of this version?");
                    unreachable.push(NodeUnreachable { node: self.peer.0.clone(), reason });
                }
            }
            Err(error) => unreachable.push(NodeUnreachable {
                node: self.peer.0.clone(),
                reason: error.message().to_owned(),
            }),
        }
        reply(merge(told, limit(request)), unreachable)
    }
}

fn limit(request: &HistoryRequest) -> usize {
    match usize::try_from(request.limit) {
        Ok(limit) if limit > 0 => limit.min(MOST),
        _ => MOST,
    }
}

/// The readable lines, and how many were not.
fn parse(lines: &[String]) -> (Vec<Told>, usize) {
    let read: Vec<Told> = lines.iter().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let lost = lines.len() - read.len();
    (read, lost)
}

fn reply(told: Vec<Told>, unreachable: Vec<NodeUnreachable>) -> Result<HistoryReply, Status> {
    let lines: Result<Vec<String>, _> = told.iter().map(serde_json::to_string).collect();
    let entry_json = lines.map_err(|e| Status::internal(e.to_string()))?;
    Ok(HistoryReply { entry_json, unreachable })
}

async fn hold_one(entry: &Service, request: &HoldRequest) -> Result<(), String> {
    let by = named(&request.by, "");
    let (tx, rx) = oneshot::channel();
    let command = Command::Hold(request.hold.then(|| by.clone()), tx);
    let asked = async {
        let gone = || "the service's task has ended".to_owned();
        entry.handle.send(command).await.map_err(|_| gone())?;
        rx.await.map_err(|_| gone())?
    };
    let result = tokio::time::timeout(CHANGE, asked).await.unwrap_or_else(|_| {
        Err("whether it was written is not known yet; see nasctl status".to_owned())
    });
    let what = if request.hold { "hold" } else { "unhold" };
    let epoch = entry.hands.seen.borrow().epoch;
    let (word, detail) = match &result {
        Ok(()) => ("done", ""),
        Err(reason) => ("not-confirmed", reason.as_str()),
    };
    entry.hands.history.note(Entry::now(&by, what, epoch, word, detail));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_is_named_with_the_reason() {
        assert_eq!(named("root@nas1", " new disk "), "root@nas1: new disk");
        assert_eq!(named("root@nas1", ""), "root@nas1");
        assert_eq!(named(" ", "x"), "somebody: x");
    }

    #[test]
    fn s12_events_of_the_other_node_that_cannot_be_read_are_counted() {
        let good = serde_json::to_string(&Told {
            node: "nas2".into(),
            service: "vms".into(),
            entry: Entry::now("root", "hold", 1, "done", ""),
        });
        let (read, lost) = parse(&[good.unwrap(), "{".into()]);
        assert_eq!((read.len(), lost), (1, 1));
    }

    #[test]
    fn no_limit_means_what_the_files_hold() {
        let of = |n| limit(&HistoryRequest { limit: n, ..HistoryRequest::default() });
        assert_eq!((of(0), of(5), of(1_000_000)), (MOST, 5, MOST));
    }
}
