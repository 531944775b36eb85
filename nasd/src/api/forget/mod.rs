//! Forgetting a hypervisor that is proven dead: its opens, its locks, its client records, its agent.
//!
//! Since Linux 5.19 a server keeps a silent client that has files open for up to a day, and its record with it:
//! each grace in that time lasts as long as it can, and no guest is started or migrated meanwhile. Nobody but a
//! person, or what has switched the host off, can know that it is dead; so a request is explained first, and
//! done only with the exact sentence, by facts gathered anew (S12). Every attempt is written into the history
//! of the services that it concerns.

mod execute;
mod facts;
mod plan;
mod text;

use std::collections::BTreeSet;

use nasd_proto::{ForgetHostRequest, RecoverReply};
use tonic::Status;

use self::facts::{Facts, NodeFacts};
use self::plan::{Found, Objection};
use super::control::Services;
use super::operator::named;
use super::recover::{Attempt, wrong_sentence};
use crate::observe::history::Entry;

/// The longest name of a host (RFC 1035, and Linux' own limit is lower).
const LONGEST: usize = 255;

impl Services {
    /// Explains what would be forgotten of a host, or forgets it, on both nodes.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for what cannot be a host's name; `ABORTED` when something was changed and it did not
    /// come to its end; `UNKNOWN` when it is not known whether it was.
    pub async fn forget_host(&self, request: ForgetHostRequest) -> Result<RecoverReply, Status> {
        let services = self.clone();
        to_its_end(async move { services.forget(&request).await }).await
    }

    /// This node's part, for the other one: its facts, or its own services and agents.
    ///
    /// # Errors
    /// As [`Services::forget_host`].
    pub async fn forget_host_here(
        &self,
        request: ForgetHostRequest,
    ) -> Result<RecoverReply, Status> {
        let services = self.clone();
        to_its_end(async move { services.forget_here(&request).await }).await
    }

    async fn forget(&self, request: &ForgetHostRequest) -> Result<RecoverReply, Status> {
        check(&request.host)?;
        let facts = Facts::gather(self, &request.host).await;
        let found = plan::find(&facts.host, &[], &facts.nodes());
        let objection = plan::judge(&facts, &found);
        let found = found.ok();
        let explained = RecoverReply {
            done: false,
            message: text::explain(&facts, found.as_ref(), objection.as_ref()),
            confirmation: if objection.is_none() {
                plan::sentence(&facts.host)
            } else {
                String::new()
            },
            details_json: serde_json::to_string(&facts).unwrap_or_default(),
        };
        if request.explain {
            return Ok(explained);
        }
        let found = found.unwrap_or_default();
        let attempt = match refusal(objection.as_ref(), &facts.host, &request.confirmed) {
            Some(why) => Attempt::Refused(why),
            None => execute::everywhere(self, &facts, &found, request).await,
        };
        self.note(&found, request, &attempt);
        attempt.reply(explained)
    }

    async fn forget_here(&self, request: &ForgetHostRequest) -> Result<RecoverReply, Status> {
        check(&request.host)?;
        let mine = NodeFacts::gather(self).await;
        if request.explain {
            let details_json =
                serde_json::to_string(&mine).map_err(|e| Status::internal(e.to_string()))?;
            return Ok(RecoverReply { details_json, ..RecoverReply::default() });
        }
        // With names from the other node nobody else can be meant.
        let found = plan::find(&request.host, &request.names, &[&mine]).unwrap_or_default();
        let objection = plan::objection(&request.host, &found, &[&mine]);
        let attempt = match refusal(objection.as_ref(), &request.host, &request.confirmed) {
            Some(why) => Attempt::Refused(why),
            None => execute::sum(execute::here(self, &found).await),
        };
        self.note(&found, request, &attempt);
        attempt.reply(RecoverReply::default())
    }

    fn note(&self, found: &Found<'_>, request: &ForgetHostRequest, attempt: &Attempt) {
        let (result, detail) = attempt.told();
        let by = named(&request.by, "");
        let (host, typed) = (&request.host, &request.confirmed);
        let services: BTreeSet<&str> = found.services();
        tracing::warn!(host, %by, ?services, result, detail, "a host is to be forgotten");
        let note = format!("{host}: {} [typed: {typed:?}]", detail.replace('\n', "; "));
        for entry in services.iter().filter_map(|service| self.by_name.get(*service)) {
            let epoch = entry.hands.seen.borrow().epoch;
            entry.hands.history.note(Entry::now(&by, "forget-host", epoch, result, &note));
        }
    }
}

/// Goes on when the asker is gone: what was begun is ended, and written down.
async fn to_its_end(
    work: impl Future<Output = Result<RecoverReply, Status>> + Send + 'static,
) -> Result<RecoverReply, Status> {
    let ended = tokio::spawn(work).await;
    ended.unwrap_or_else(|error| Err(Status::unknown(error.to_string())))
}

/// Nothing is done against what is known, nor without the exact sentence.
fn refusal(objection: Option<&Objection>, host: &str, typed: &str) -> Option<String> {
    let objection = objection.map(Objection::to_string);
    objection.or_else(|| wrong_sentence(&plan::sentence(host), typed))
}

fn check(host: &str) -> Result<(), Status> {
    let fits = (1..=LONGEST).contains(&host.len());
    if fits && host.bytes().all(|b| b.is_ascii_graphic() && b != b'/') {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("{host:?} cannot be a host's name or address")))
}

#[cfg(test)]
mod tests;
