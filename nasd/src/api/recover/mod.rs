//! Recovery by an operator: what cannot be undone and is never done by nasd itself (S3).
//!
//! A request is explained first; it is carried out only with the exact sentence that the explanation
//! names, judged by facts gathered anew. Every attempt is written into the history.

mod execute;
mod facts;
mod plan;
mod text;

use nasd_proto::recover_request::What;
use nasd_proto::{RecoverReply, RecoverRequest};
use tonic::Status;

pub(super) use self::facts::Heard;

use self::facts::Facts;
use self::plan::Verdict;
use super::control::Services;
use super::operator::named;
use crate::observe::history::Entry;

/// How an attempt ended that was begun.
#[derive(Debug)]
pub(super) enum Attempt {
    /// Done; what follows.
    Done(String),
    /// Nothing was changed.
    Refused(String),
    /// Something was changed, and it did not come to its end.
    Failed(String),
    /// Nobody knows whether something was changed.
    Unknown(String),
}

impl Attempt {
    /// As the history keeps it.
    pub(super) fn told(&self) -> (&'static str, &str) {
        match self {
            Self::Done(text) => ("done", text),
            Self::Refused(text) => ("refused", text),
            Self::Failed(text) => ("failed", text),
            Self::Unknown(text) => ("unknown", text),
        }
    }

    /// As it is answered, beside what was explained.
    pub(super) fn reply(self, explained: RecoverReply) -> Result<RecoverReply, Status> {
        match self {
            Self::Done(message) => Ok(RecoverReply { done: true, message, ..explained }),
            Self::Refused(message) => Ok(RecoverReply { message, ..explained }),
            Self::Failed(message) => Err(Status::aborted(message)),
            Self::Unknown(message) => Err(Status::unknown(message)),
        }
    }
}

impl Services {
    /// Explains a recovery, or carries it out.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` or `NOT_FOUND` for a request that makes no sense; `ABORTED` when something
    /// was changed and did not come to its end; `UNKNOWN` when it is not known whether it was.
    pub async fn recover(&self, request: &RecoverRequest) -> Result<RecoverReply, Status> {
        let entry = self.entry(&request.service)?;
        let what = request.what();
        if what == What::Nothing {
            return Err(Status::invalid_argument("the request does not say what to recover"));
        }
        let facts = Facts::gather(self, entry).await;
        let verdict = plan::judge(what, &facts);
        let details_json = serde_json::to_string(&facts).unwrap_or_default();
        let explained = |message: String| RecoverReply {
            done: false,
            message,
            confirmation: verdict.sentence().to_owned(),
            details_json: details_json.clone(),
        };
        if request.explain {
            return Ok(explained(text::explain(what, &facts, &verdict)));
        }
        let attempt = match refusal(&verdict, &request.confirmed) {
            Some(why) => Attempt::Refused(why),
            None => execute::execute(entry, what, &facts, &verdict, request).await,
        };
        let (result, detail) = attempt.told();
        let (by, epoch) = (named(&request.by, ""), facts.newest().0);
        let note = format!("{detail} [typed: {:?}]", request.confirmed);
        tracing::warn!(service = facts.service, %by, name = verb(what), result, detail, "operator's recovery");
        entry.hands.history.note(Entry::now(&by, verb(what), epoch, result, &note));
        attempt.reply(explained(String::new()))
    }
}

/// What it is called in the history and on the command line.
fn verb(what: What) -> &'static str {
    match what {
        What::OpenHere => "recover",
        What::DiscardMine => "split-brain",
        What::EmergencyStart => "emergency-start",
        What::Nothing => "nothing",
    }
}

/// Nothing is done without the exact sentence.
fn refusal(verdict: &Verdict, typed: &str) -> Option<String> {
    match verdict {
        Verdict::No { why, instead } => Some(format!("{why}; {instead}")),
        Verdict::Ask { sentence, .. } => wrong_sentence(sentence, typed),
    }
}

/// Why what was typed confirms nothing.
pub(super) fn wrong_sentence(sentence: &str, typed: &str) -> Option<String> {
    let why = || format!("the sentence is not the one that confirms this, which is: {sentence}");
    (sentence != typed).then(why)
}

#[cfg(test)]
mod tests;
