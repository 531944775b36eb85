//! What cannot be undone: explained first, done only with the exact sentence (S3).
//!
//! Owns the question. The sentence is compared here and again by nasd, which alone knows it: a typo, an
//! empty line, no terminal, an end of input all mean no (S12).

use std::io::{self, BufRead, IsTerminal, Write};
use std::time::Duration;

use nasd_proto::control_client::ControlClient;
use nasd_proto::recover_request::What;
use nasd_proto::{ForgetHostRequest, RecoverReply, RecoverRequest};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::args::{Cli, ConfirmArgs, ForgetHostArgs, SplitBrainArgs, TypedArgs};
use super::client::{ClientError, connect, within};
use super::moves::Ending;
use super::run::{answer, complain, operator};
use super::screen::Screen;
use super::{json, text};

/// nasd asks both nodes and looks for a silent one before it explains.
const EXPLAIN: Duration = Duration::from_secs(25);
/// As above, then a compare-and-set and a promotion with its fence helper.
const EXECUTE: Duration = Duration::from_secs(75);

/// What is asked for.
enum Asked<'a> {
    Recovery { service: &'a str, what: What },
    Forgetting { host: &'a str },
}

type Answer = Result<Result<Response<RecoverReply>, Status>, ClientError>;

impl Asked<'_> {
    /// With what was typed; without it, to be explained.
    async fn send(&self, client: &mut ControlClient<Channel>, typed: Option<String>) -> Answer {
        let limit = if typed.is_none() { EXPLAIN } else { EXECUTE };
        let (by, explain) = (operator(), typed.is_none());
        let confirmed = typed.unwrap_or_default();
        match self {
            Self::Recovery { service, what } => {
                let (service, what) = ((*service).to_owned(), (*what).into());
                let request = RecoverRequest { service, what, by, confirmed, explain };
                within(limit, client.recover(request)).await
            }
            Self::Forgetting { host } => {
                let (host, names) = ((*host).to_owned(), Vec::new());
                let request = ForgetHostRequest { host, by, confirmed, explain, names };
                within(limit, client.forget_host(request)).await
            }
        }
    }
}

/// `nasctl recover`.
pub async fn recover(cli: &Cli, args: &ConfirmArgs) -> u8 {
    let asked = Asked::Recovery { service: &args.service, what: What::OpenHere };
    run(cli, &args.typed, asked, true).await
}

/// `nasctl emergency-start`.
pub async fn emergency_start(cli: &Cli, args: &ConfirmArgs) -> u8 {
    let asked = Asked::Recovery { service: &args.service, what: What::EmergencyStart };
    run(cli, &args.typed, asked, true).await
}

/// `nasctl split-brain`; without `--discard-mine` it only explains.
pub async fn split_brain(cli: &Cli, args: &SplitBrainArgs) -> u8 {
    let confirm = &args.confirm;
    let asked = Asked::Recovery { service: &confirm.service, what: What::DiscardMine };
    run(cli, &confirm.typed, asked, args.discard_mine).await
}

/// `nasctl forget-host`.
pub async fn forget_host(cli: &Cli, args: &ForgetHostArgs) -> u8 {
    run(cli, &args.typed, Asked::Forgetting { host: &args.host }, true).await
}

async fn run(cli: &Cli, args: &TypedArgs, asked: Asked<'_>, go_on: bool) -> u8 {
    let (ending, message) = match attempt(cli, args, &asked, go_on).await {
        Ok(done) => done,
        Err(failed) => failed,
    };
    tell(args.json, ending, &message);
    ending.code()
}

fn tell(as_json: bool, ending: Ending, message: &str) {
    let screen = Screen::new(false);
    let message = text::clean_lines(message);
    match ending {
        _ if as_json => screen.print(&format!("{}\n", json::told(ending, &message))),
        Ending::Done => screen.print(&format!("{}: {message}\n", screen.paint.good("done"))),
        Ending::Unreachable => complain(&message),
        Ending::Unknown => complain(&format!("outcome unknown: {message}\n  see: nasctl status")),
        _ => complain(&format!("{}: {message}", ending.name().replace('-', " "))),
    }
}

type Told = (Ending, String);

async fn attempt(
    cli: &Cli,
    args: &TypedArgs,
    asked: &Asked<'_>,
    go_on: bool,
) -> Result<Told, Told> {
    let mut client =
        connect(&cli.socket).await.map_err(|e| (Ending::Unreachable, e.to_string()))?;
    let explained = answer(asked.send(&mut client, None).await)
        // Explaining changes nothing, so whatever went wrong, nothing was done.
        .map_err(|(ending, why)| match ending {
            Ending::Refused => (ending, why),
            _ => (Ending::Unreachable, format!("{why}\n  nothing was changed")),
        })?
        .into_inner();
    show(args, &explained);
    let sentence = explained.confirmation.as_str();
    if sentence.is_empty() {
        return Ok((Ending::Refused, "nothing was changed".into()));
    }
    if !go_on {
        let why = "nothing was changed; to do it: add --discard-mine";
        return Ok((Ending::NotConfirmed, why.into()));
    }
    let typed = match &args.confirm {
        Some(given) => given.clone(),
        None => ask(args.json)?,
    };
    if typed != sentence {
        let why = format!("the sentence is: {sentence}; nothing was changed");
        return Ok((Ending::NotConfirmed, why));
    }
    execute(&mut client, asked, typed).await
}

async fn execute(
    client: &mut ControlClient<Channel>,
    asked: &Asked<'_>,
    typed: String,
) -> Result<Told, Told> {
    let answered = tokio::select! {
        answered = asked.send(client, Some(typed)) => answered,
        _ = tokio::signal::ctrl_c() => {
            return Ok((Ending::Unknown, "interrupted; what was begun goes on in nasd".into()));
        }
    };
    let reply = answer(answered)?.into_inner();
    let ending = if reply.done { Ending::Done } else { Ending::Refused };
    Ok((ending, reply.message))
}

fn show(args: &TypedArgs, reply: &RecoverReply) {
    let screen = Screen::new(false);
    if args.json {
        let facts: Value = serde_json::from_str(&reply.details_json).unwrap_or(Value::Null);
        let line = json!({"event": "explanation", "text": reply.message,
            "confirmation": reply.confirmation, "facts": facts});
        screen.print(&format!("{line}\n"));
        return;
    }
    screen.print(&format!("{}\n\n", text::clean_lines(&reply.message).trim_end()));
    if !reply.confirmation.is_empty() {
        let sentence = screen.paint.bold(&text::clean(&reply.confirmation));
        screen.print(&format!("to confirm, type\n  {sentence}\n"));
    }
}

/// Reads the sentence from a terminal. Its line end is not part of it; everything else is.
fn ask(as_json: bool) -> Result<String, Told> {
    if as_json || !io::stdin().is_terminal() {
        let why = "nothing was changed; in a script, give the sentence with --confirm";
        return Err((Ending::NotConfirmed, why.into()));
    }
    let mut out = io::stdout().lock();
    // Without a screen there is nobody to answer; the read below then ends.
    let _ = write!(out, "> ").and_then(|()| out.flush());
    let mut line = String::new();
    match io::stdin().lock().read_line(&mut line) {
        Ok(_) => Ok(line.trim_end_matches(['\n', '\r']).to_owned()),
        Err(e) => Err((Ending::NotConfirmed, format!("nothing was changed; no input: {e}"))),
    }
}
