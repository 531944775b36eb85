//! Runs the subcommands: asks nasd, shows the answers, ends with the documented exit code.
//!
//! Keeps S8 (a deadline on every wait) and S12: without an outcome from nasd the outcome is unknown.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nasd_proto::move_event::Kind;
use nasd_proto::{AbortMoveRequest, MoveEvent, StatusRequest, SwitchoverRequest};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Streaming};

use super::args::{Cli, Command, StatusArgs, SwitchoverArgs};
use super::client::{CALL, ClientError, connect, within};
use super::moves::{Ending, Timeline};
use super::screen::Screen;
use super::{json, moves, status};

/// nasd's own limit for a move when `--timeout` is absent is below this.
const MOVE_LIMIT: Duration = Duration::from_secs(300);
/// What nasd may need beyond the move's limit to roll back and report.
const MOVE_SLACK: Duration = Duration::from_secs(60);

const UNKNOWN_HELP: &str =
    "the move may go on in nasd, nothing is undone; see where it is: nasctl status";

/// `nasctl`'s main function.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let code = match (runtime.map_err(ClientError::Runtime), &cli.command) {
        (Ok(runtime), Command::Status(args)) => runtime.block_on(show_status(&cli, args)),
        (Ok(runtime), Command::Switchover(args)) => runtime.block_on(switchover(&cli, args)),
        (Err(error), _) => {
            complain(&error.to_string());
            Ending::Unreachable.code()
        }
    };
    ExitCode::from(code)
}

fn complain(text: &str) {
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

async fn switchover(cli: &Cli, args: &SwitchoverArgs) -> u8 {
    let mut teller = Teller::new(args);
    let ending = if args.abort {
        abort(cli, args, &mut teller).await
    } else {
        watch(cli, args, &mut teller).await
    };
    teller.screen.settle();
    ending.code()
}

async fn abort(cli: &Cli, args: &SwitchoverArgs, teller: &mut Teller<'_>) -> Ending {
    let mut client = match connect(&cli.socket).await {
        Ok(client) => client,
        Err(error) => return teller.end(Ending::Unreachable, &error.to_string()),
    };
    let request = AbortMoveRequest { service: args.service.clone() };
    match within(CALL, client.abort_move(request)).await {
        Ok(Ok(reply)) => {
            let reply = reply.into_inner();
            let ending = if reply.aborted { Ending::Aborted } else { Ending::NotAborted };
            teller.end(ending, &reply.message)
        }
        Ok(Err(status)) if refuses(status.code()) => {
            teller.end(Ending::NotAborted, status.message())
        }
        Ok(Err(status)) => teller.end(Ending::Unknown, status.message()),
        Err(error) => teller.end(Ending::Unknown, &error.to_string()),
    }
}

/// Codes with which nasd says no before it has begun anything.
fn refuses(code: Code) -> bool {
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

async fn watch(cli: &Cli, args: &SwitchoverArgs, teller: &mut Teller<'_>) -> Ending {
    let limit = args.timeout.map_or(MOVE_LIMIT, |ms| Duration::from_millis(ms.into()));
    let deadline = Instant::now() + limit + MOVE_SLACK;
    let mut client = match connect(&cli.socket).await {
        Ok(client) => client,
        Err(error) => return teller.end(Ending::Unreachable, &error.to_string()),
    };
    let request = SwitchoverRequest {
        service: args.service.clone(),
        to: args.to.clone().unwrap_or_default(),
        dry_run: args.dry_run,
        timeout_ms: args.timeout.unwrap_or(0),
    };
    let watched = async {
        match timeout_at(deadline, client.switchover(request)).await {
            Ok(Ok(reply)) => follow(reply.into_inner(), deadline, teller).await,
            Ok(Err(status)) if refuses(status.code()) => Stop::Refused(status.message().to_owned()),
            Ok(Err(status)) => Stop::Broken(status.message().to_owned()),
            Err(_) => Stop::Broken("nasd did not answer in time".to_owned()),
        }
    };
    let stop = tokio::select! {
        stop = watched => stop,
        _ = tokio::signal::ctrl_c() => Stop::Broken("interrupted".to_owned()),
    };
    match stop {
        Stop::Outcome(ending) => ending,
        Stop::Refused(why) => teller.end(Ending::Refused, &why),
        Stop::Broken(why) => teller.end(Ending::Unknown, &why),
    }
}

/// Why nasctl stopped watching.
enum Stop {
    Outcome(Ending),
    Refused(String),
    Broken(String),
}

async fn follow(
    mut events: Streaming<MoveEvent>,
    deadline: Instant,
    teller: &mut Teller<'_>,
) -> Stop {
    loop {
        let kind = match timeout_at(deadline, events.message()).await {
            Ok(Ok(Some(event))) => event.kind,
            Ok(Ok(None)) => return Stop::Broken("nasd ended the report early".to_owned()),
            // After a step, even a code of refusal says nothing about what has changed.
            Ok(Err(s)) if refuses(s.code()) && !teller.timeline.has_begun() => {
                return Stop::Refused(s.message().to_owned());
            }
            Ok(Err(s)) => return Stop::Broken(format!("lost nasd: {}", s.message())),
            Err(_) => return Stop::Broken("nasd did not report an end in time".to_owned()),
        };
        match kind {
            Some(kind) => {
                if let Some(ending) = teller.tell(&kind) {
                    return Stop::Outcome(ending);
                }
            }
            // An event of a newer nasd; the outcome still comes.
            None => continue,
        }
    }
}

/// Tells a move as text or as JSON lines.
struct Teller<'a> {
    screen: Screen,
    args: &'a SwitchoverArgs,
    timeline: Timeline,
    refusals: usize,
}

impl<'a> Teller<'a> {
    fn new(args: &'a SwitchoverArgs) -> Self {
        let screen = Screen::new(!args.json && !args.abort);
        Self { screen, args, timeline: Timeline::default(), refusals: 0 }
    }

    fn tell(&mut self, kind: &Kind) -> Option<Ending> {
        let paint = self.screen.paint;
        match kind {
            Kind::Preflight(p) => {
                self.refusals += p.findings.iter().filter(|f| f.refuses).count();
                let text = || moves::preflight(p, paint) + "\n";
                self.write(|| json::preflight(p), text);
            }
            Kind::Step(s) => {
                let line = self.timeline.see(s);
                self.write(|| json::step(s), || line.map(|l| l + "\n").unwrap_or_default());
                self.screen.running(&self.timeline.running());
            }
            Kind::Outcome(o) => {
                let ending = Ending::of(o, self.refusals);
                self.unfinished();
                let text = || moves::outcome(o, ending, &self.args.service, paint);
                self.write(|| json::outcome(o, ending), text);
                return Some(ending);
            }
        }
        None
    }

    /// The end that nasd did not report as an outcome.
    fn end(&self, ending: Ending, message: &str) -> Ending {
        self.unfinished();
        if self.args.json {
            self.screen.print(&format!("{}\n", json::ended(ending, message)));
        } else {
            self.screen.settle();
        }
        match ending {
            Ending::Aborted if self.args.json => {}
            Ending::Aborted => self.screen.print(&format!("aborted: {message}\n")),
            Ending::Unknown if self.args.dry_run => {
                complain(&format!("{message}\n  a dry run changes nothing; try again"));
            }
            Ending::Unknown => complain(&format!("outcome unknown: {message}\n  {UNKNOWN_HELP}")),
            Ending::Unreachable => complain(message),
            _ => complain(&format!("{}: {message}", ending.name())),
        }
        ending
    }

    /// Names the steps that began and did not end.
    fn unfinished(&self) {
        let running = self.timeline.running();
        if !self.args.json && !running.is_empty() {
            self.screen.print(&format!("  not finished: {}\n", running.join(", ")));
        }
    }

    fn write(&self, line: impl FnOnce() -> Value, text: impl FnOnce() -> String) {
        if self.args.json {
            self.screen.print(&format!("{}\n", line()));
        } else {
            self.screen.print(&text());
        }
    }
}
