//! Runs the subcommands: asks nasd, shows the answers, ends with the documented exit code.
//!
//! Keeps S8 (a deadline on every wait) and S12: without an answer from nasd the outcome is unknown.

use std::process::ExitCode;

use clap::Parser;
use nasd_proto::{HistoryRequest, HoldRequest, StatusRequest};
use serde_json::Value;
use tonic::Code;

use super::args::{Cli, Command, HistoryArgs, HoldArgs, StatusArgs};
use super::client::{CALL, ClientError, connect, within};
use super::moves::Ending;
use super::screen::Screen;
use super::{confirm, history, json, status, text, watch};

/// `nasctl`'s main function.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let code = match runtime.map_err(ClientError::Runtime) {
        Ok(runtime) => runtime.block_on(run(&cli)),
        Err(error) => {
            complain(&error.to_string());
            Ending::Unreachable.code()
        }
    };
    ExitCode::from(code)
}

async fn run(cli: &Cli) -> u8 {
    match &cli.command {
        Command::Status(args) => show_status(cli, args).await,
        Command::Switchover(args) => watch::switchover(cli, args).await,
        Command::Takeover(args) => watch::takeover(cli, args).await,
        Command::Hold(args) => hold(cli, args, true).await,
        Command::Unhold(args) => hold(cli, args, false).await,
        Command::History(args) => show_history(cli, args).await,
        Command::Recover(args) => confirm::recover(cli, args).await,
        Command::EmergencyStart(args) => confirm::emergency_start(cli, args).await,
        Command::SplitBrain(args) => confirm::split_brain(cli, args).await,
        Command::ForgetHost(args) => confirm::forget_host(cli, args).await,
    }
}

/// Codes with which nasd says no before it has begun anything.
pub(super) fn refuses(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            | Code::AlreadyExists
    )
}

/// Who runs this, as the history keeps it: `root@nas1`, with the name from before `sudo`.
pub(super) fn operator() -> String {
    let var = |name| std::env::var(name).ok().filter(|v: &String| !v.is_empty());
    let user = var("SUDO_USER").or_else(|| var("USER")).or_else(|| var("LOGNAME"));
    let user = user.unwrap_or_else(|| format!("uid {}", nix::unistd::getuid()));
    let host = nix::unistd::gethostname().unwrap_or_default();
    format!("{user}@{}", host.to_string_lossy())
}

pub(super) fn complain(text: &str) {
    use std::io::Write as _;
    // Nobody may be reading stderr; the exit code still counts.
    let _ = writeln!(std::io::stderr(), "nasctl: {text}");
}

async fn show_status(cli: &Cli, args: &StatusArgs) -> u8 {
    let reply = match fetch_status(cli).await {
        Ok(reply) => reply,
        Err(error) => {
            complain(&error.to_string());
            return Ending::Unreachable.code();
        }
    };
    let screen = Screen::new(false);
    let service = args.service.as_deref();
    let document = json::status(&reply, service);
    let known = service.is_none() || any_service(&document);
    if args.json {
        screen.print(&format!("{document}\n"));
    } else if known {
        screen.print(&status::render(&document, screen.paint));
    }
    if !known {
        complain(&format!(
            "no node that answered knows a service {:?}",
            service.unwrap_or_default()
        ));
    }
    u8::from(!known)
}

async fn fetch_status(cli: &Cli) -> Result<nasd_proto::StatusReply, ClientError> {
    let mut client = connect(&cli.socket).await?;
    let request = StatusRequest { local_only: false };
    Ok(within(CALL, client.status(request)).await??.into_inner())
}

/// Whether a node has a service left in the filtered document.
fn any_service(document: &Value) -> bool {
    let nodes = document["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    nodes.iter().any(|n| n["services"].as_array().is_some_and(|s| !s.is_empty()))
}

async fn hold(cli: &Cli, args: &HoldArgs, hold: bool) -> u8 {
    let (ending, message) = match ask_hold(cli, args, hold).await {
        Ok(reply) if reply.done => (Ending::Done, reply.message),
        Ok(reply) => (Ending::NotConfirmed, reply.message),
        Err((ending, message)) => (ending, message),
    };
    if args.json {
        Screen::new(false).print(&format!("{}\n", json::told(ending, &message)));
    } else if ending == Ending::Done {
        Screen::new(false).print(&format!("{}\n", text::clean_lines(&message)));
    } else {
        complain(&text::clean_lines(&message));
    }
    ending.code()
}

async fn ask_hold(
    cli: &Cli,
    args: &HoldArgs,
    hold: bool,
) -> Result<nasd_proto::HoldReply, (Ending, String)> {
    let mut client =
        connect(&cli.socket).await.map_err(|e| (Ending::Unreachable, e.to_string()))?;
    let reason = args.reason.trim();
    let by = if reason.is_empty() { operator() } else { format!("{}: {reason}", operator()) };
    let service = args.service.clone().unwrap_or_default();
    let asked = within(CALL, client.hold(HoldRequest { service, hold, by })).await;
    Ok(answer(asked)?.into_inner())
}

/// An answer, or how it ended without one.
pub(super) fn answer<T>(
    asked: Result<Result<T, tonic::Status>, ClientError>,
) -> Result<T, (Ending, String)> {
    match asked {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(status)) if refuses(status.code()) => {
            Err((Ending::Refused, status.message().to_owned()))
        }
        Ok(Err(status)) if status.code() == Code::Aborted => {
            Err((Ending::Failed, status.message().to_owned()))
        }
        Ok(Err(status)) => Err((Ending::Unknown, status.message().to_owned())),
        Err(error) => Err((Ending::Unknown, error.to_string())),
    }
}

async fn show_history(cli: &Cli, args: &HistoryArgs) -> u8 {
    let reply = match fetch_history(cli, args).await {
        Ok(reply) => reply,
        Err((ending, message)) => {
            complain(&message);
            return ending.code();
        }
    };
    let screen = Screen::new(false);
    let shown =
        if args.json { history::lines(&reply) } else { history::render(&reply, screen.paint) };
    screen.print(&shown);
    0
}

async fn fetch_history(
    cli: &Cli,
    args: &HistoryArgs,
) -> Result<nasd_proto::HistoryReply, (Ending, String)> {
    let mut client =
        connect(&cli.socket).await.map_err(|e| (Ending::Unreachable, e.to_string()))?;
    let service = args.service.clone().unwrap_or_default();
    let request = HistoryRequest { service, local_only: false, limit: args.limit };
    Ok(answer(within(CALL, client.history(request)).await)?.into_inner())
}
