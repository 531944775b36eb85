//! Watches a move or a takeover until nasd tells how it ended.
//!
//! Keeps S8 (a deadline on every wait) and S12: without an outcome from nasd the outcome is unknown.

use std::time::Duration;

use nasd_proto::move_event::Kind;
use nasd_proto::{AbortMoveRequest, MoveEvent, SwitchoverRequest, TakeoverRequest};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tonic::{Response, Status, Streaming};

use super::args::{Cli, SwitchoverArgs, TakeoverArgs};
use super::client::{CALL, connect, within};
use super::moves::{Ending, Timeline, Verb};
use super::run::{complain, operator, refuses};
use super::screen::Screen;
use super::{json, moves};

/// nasd's own limit for a move when `--timeout` is absent is below this.
const MOVE_LIMIT: Duration = Duration::from_secs(300);
/// The longest wait for hypervisors that can be configured, for when `--wait` is absent.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// What nasd may need beyond the move's limit to roll back and report.
const MOVE_SLACK: Duration = Duration::from_secs(60);

/// What is asked for, as far as telling about it is concerned.
struct Asked<'a> {
    service: &'a str,
    verb: Verb,
    json: bool,
    dry_run: bool,
}

/// `nasctl switchover`.
pub async fn switchover(cli: &Cli, args: &SwitchoverArgs) -> u8 {
    let (service, json, dry_run) = (args.service.as_str(), args.json, args.dry_run);
    let asked = Asked { service, verb: Verb::Move, json, dry_run };
    let mut teller = Teller::new(asked, !args.abort);
    let ending = if args.abort {
        abort(cli, args, &teller).await
    } else {
        begin_move(cli, args, &mut teller).await
    };
    teller.screen.settle();
    ending.code()
}

/// `nasctl takeover`.
pub async fn takeover(cli: &Cli, args: &TakeoverArgs) -> u8 {
    let (service, json) = (args.service.as_str(), args.json);
    let asked = Asked { service, verb: Verb::TakeOver, json, dry_run: false };
    let mut teller = Teller::new(asked, true);
    let ending = begin_takeover(cli, args, &mut teller).await;
    teller.screen.settle();
    ending.code()
}

async fn abort(cli: &Cli, args: &SwitchoverArgs, teller: &Teller<'_>) -> Ending {
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

async fn begin_move(cli: &Cli, args: &SwitchoverArgs, teller: &mut Teller<'_>) -> Ending {
    let limit = args.timeout.map_or(MOVE_LIMIT, |ms| Duration::from_millis(ms.into()));
    let limit = limit + args.wait.map_or(LONGEST_WAIT, |ms| Duration::from_millis(ms.into()));
    let mut client = match connect(&cli.socket).await {
        Ok(client) => client,
        Err(error) => return teller.end(Ending::Unreachable, &error.to_string()),
    };
    let request = SwitchoverRequest {
        service: args.service.clone(),
        to: args.to.clone().unwrap_or_default(),
        dry_run: args.dry_run,
        timeout_ms: args.timeout.unwrap_or(0),
        force: args.force,
        wait_ms: args.wait.unwrap_or(0),
    };
    watch(client.switchover(request), limit, teller).await
}

async fn begin_takeover(cli: &Cli, args: &TakeoverArgs, teller: &mut Teller<'_>) -> Ending {
    let mut client = match connect(&cli.socket).await {
        Ok(client) => client,
        Err(error) => return teller.end(Ending::Unreachable, &error.to_string()),
    };
    let (service, reason) = (args.service.clone(), args.reason.clone());
    let request = TakeoverRequest { service, by: operator(), reason };
    watch(client.takeover(request), MOVE_LIMIT, teller).await
}

async fn watch(
    call: impl Future<Output = Result<Response<Streaming<MoveEvent>>, Status>>,
    limit: Duration,
    teller: &mut Teller<'_>,
) -> Ending {
    let deadline = Instant::now() + limit + MOVE_SLACK;
    let watched = async {
        match timeout_at(deadline, call).await {
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
    asked: Asked<'a>,
    timeline: Timeline,
    refusals: usize,
}

impl<'a> Teller<'a> {
    fn new(asked: Asked<'a>, live: bool) -> Self {
        let screen = Screen::new(live && !asked.json);
        Self { screen, asked, timeline: Timeline::default(), refusals: 0 }
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
                let text = || moves::outcome(o, ending, self.asked.verb, self.asked.service, paint);
                self.write(|| json::outcome(o, ending), text);
                return Some(ending);
            }
        }
        None
    }

    /// The end that nasd did not report as an outcome.
    fn end(&self, ending: Ending, message: &str) -> Ending {
        self.unfinished();
        if self.asked.json {
            self.screen.print(&format!("{}\n", json::ended(ending, message)));
        } else {
            self.screen.settle();
        }
        match ending {
            Ending::Aborted if self.asked.json => {}
            Ending::Aborted => self.screen.print(&format!("aborted: {message}\n")),
            Ending::Unknown if self.asked.dry_run => {
                complain(&format!("{message}\n  a dry run changes nothing; try again"));
            }
            Ending::Unknown => complain(&format!(
                "outcome unknown: {message}\n  the {} may go on in nasd, nothing is undone; see where it is: nasctl status",
                self.asked.verb.noun()
            )),
            Ending::Unreachable => complain(message),
            _ => complain(&format!("{}: {message}", ending.name())),
        }
        ending
    }

    /// Names the steps that began and did not end.
    fn unfinished(&self) {
        let running = self.timeline.running();
        if !self.asked.json && !running.is_empty() {
            self.screen.print(&format!("  not finished: {}\n", running.join(", ")));
        }
    }

    fn write(&self, line: impl FnOnce() -> Value, text: impl FnOnce() -> String) {
        if self.asked.json {
            self.screen.print(&format!("{}\n", line()));
        } else {
            self.screen.print(&text());
        }
    }
}
