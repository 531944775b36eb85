//! One link to one nasd: dial, hello, then its news in and this host's state out, for ever.
//!
//! Keeps S10: nothing waits for a link. What could not be sent waits in a short queue, and the state is
//! always the last one. A nasd that is silent is found out by keep-alives of the connection.

use std::net::SocketAddr;
use std::time::Duration;

use nasd_proto as v1;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use v1::agent_message::Kind;
use v1::agents_client::AgentsClient;

use crate::config::{Nasd, TlsPaths};
use crate::drive::input::Input;

mod dial;

pub use dial::{DialError, channel};

/// Pause before the first new attempt; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// For the answer to the first message. Keep-alives watch over the rest.
const ANSWER: Duration = Duration::from_secs(5);
/// Messages that wait while nothing is being sent.
pub const QUEUE: usize = 64;

/// Who dials whom.
#[derive(Debug, Clone)]
pub struct Link {
    /// The nasd.
    pub nasd: Nasd,
    /// Keys; `None` only in tests.
    pub tls: Option<TlsPaths>,
    /// What is said first.
    pub hello: v1::AgentHello,
    /// Between two tellings of an unchanged state.
    pub every: Duration,
}

/// What goes out.
pub struct Outgoing {
    /// The last state.
    pub state: watch::Receiver<v1::AgentState>,
    /// What is said once.
    pub queue: mpsc::Receiver<Kind>,
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody there, or the keys do not fit.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The call failed or was ended.
    #[error("{nasd} at {address} does not serve this host: {why}")]
    Ended {
        /// The node.
        nasd: String,
        /// Where.
        address: SocketAddr,
        /// Its words.
        why: String,
    },
}

/// Attends until the agent is gone.
pub async fn run(link: Link, mut outgoing: Outgoing, inbox: mpsc::Sender<Input>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let begin = Instant::now();
        let why = match attend(&link, &mut outgoing, &inbox).await {
            Ok(()) => return,
            Err(error) => error.to_string(),
        };
        let down = Input::Linked(link.nasd.name.clone(), Err(why));
        if inbox.send(down).await.is_err() {
            return;
        }
        // A link that held for a while was no failure of this attempt.
        if begin.elapsed() > LONGEST_PAUSE {
            pause = FIRST_PAUSE;
        }
        sleep(pause).await;
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

/// One connection. `Ok`: the agent is gone.
async fn attend(
    link: &Link,
    outgoing: &mut Outgoing,
    inbox: &mpsc::Sender<Input>,
) -> Result<(), LinkError> {
    let channel = channel(link.nasd.address, &link.nasd.name, link.tls.as_ref())?;
    let (say, said) = mpsc::channel(4);
    let ended = |why: String| LinkError::Ended {
        nasd: link.nasd.name.clone(),
        address: link.nasd.address,
        why,
    };
    // The first message is there before the call: nasd may answer only after it has read it.
    let hello = v1::AgentMessage { kind: Some(Kind::Hello(link.hello.clone())) };
    say.try_send(hello).map_err(|_| ended("no room for a greeting".to_owned()))?;
    let mut client = AgentsClient::new(channel);
    let call = client.attend(ReceiverStream::new(said));
    let answer = timeout(ANSWER, call).await;
    let late = |_| ended(format!("no answer within {} s", ANSWER.as_secs()));
    let answer = answer.map_err(late)?.map_err(|status| ended(words(&status)))?;
    let mut news = answer.into_inner();
    if inbox.send(Input::Linked(link.nasd.name.clone(), Ok(()))).await.is_err() {
        return Ok(());
    }
    outgoing.state.mark_changed();
    loop {
        let next = tokio::select! {
            message = news.message() => {
                let message = message.map_err(|status| ended(words(&status)))?;
                let Some(message) = message else { return Err(ended("it ended the call".into())) };
                let Some(kind) = message.kind else { continue };
                if inbox.send(Input::News(link.nasd.name.clone(), kind)).await.is_err() {
                    return Ok(());
                }
                continue;
            }
            kind = outgoing.queue.recv() => kind,
            changed = timeout(link.every, outgoing.state.changed()) => match changed {
                Ok(Err(_)) => None,
                _ => Some(Kind::State(outgoing.state.borrow_and_update().clone())),
            },
        };
        let Some(kind) = next else { return Ok(()) };
        let message = v1::AgentMessage { kind: Some(kind) };
        let sent = timeout(ANSWER, say.send(message)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return Err(ended("it does not take messages any more".into()));
        }
    }
}

/// A status with its innermost cause: tonic's own words hide it.
fn words(status: &tonic::Status) -> String {
    let mut words = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        words = error.to_string();
        cause = error.source();
    }
    if words.is_empty() { status.code().description().to_owned() } else { words }
}

#[cfg(test)]
mod tests;
