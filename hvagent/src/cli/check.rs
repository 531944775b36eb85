//! `hvagent check`: takes the report, judges it, prints the findings.
//!
//! Owns the printed form and the exit codes. Text that came from elsewhere never steers the terminal.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::check::migrate::{Pair, target_unknown};
use crate::check::report::{HostReport, Known, MountPhase, Named, Services};
use crate::check::reports::{ByNasd, Reports};
use crate::check::{Sources, collect, judge_host, judge_migration, reach};
use crate::config::{self, Config, ConfigError};
use crate::core::finding::{Finding, Severity, worst};

/// For the running agent's answer.
const AGENT: Duration = Duration::from_secs(2);
/// The longest answer that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// What to check.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Exit codes:
  0  nothing found, or only what is worth knowing
  1  warnings
  2  errors: a guest may lose its disk, its locks or data, or cannot migrate
  3  could not check

Examples:
  hvagent check                            this host
  hvagent check --migrate vm1 --to hv2     may vm1, which runs here, migrate to hv2?
  hvagent check --json | jq -r '.findings[].code'")]
pub struct CheckArgs {
    /// Prints JSON: {host, migration, worst, findings: [{code, severity, subject, evidence, remedy}]}.
    #[arg(long)]
    pub json: bool,
    /// Checks whether this guest can migrate to the host named by --to.
    #[arg(long, value_name = "VM", requires = "to")]
    pub migrate: Option<String>,
    /// The other hypervisor, by the name in its agent's certificate.
    #[arg(long, value_name = "HOST", requires = "migrate")]
    pub to: Option<String>,
    /// Prints what was read of this host, as JSON, and judges nothing.
    #[arg(long, conflicts_with_all = ["json", "migrate"])]
    pub report: bool,
    /// The agent's configuration.
    #[arg(long, value_name = "FILE", default_value = config::FILE)]
    pub config: PathBuf,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Verdict {
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    migration: Option<Migration>,
    worst: Option<Severity>,
    findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
struct Migration {
    guest: String,
    to: String,
}

/// Why nothing could be checked.
#[derive(Debug, thiserror::Error)]
enum CannotCheck {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("the program cannot start: {0}")]
    Runtime(#[source] std::io::Error),
    #[error("the result cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// Runs the check and prints what it has found.
#[must_use]
pub fn run(args: &CheckArgs) -> ExitCode {
    match checked(args) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "hvagent check: {error}");
            ExitCode::from(3)
        }
    }
}

fn checked(args: &CheckArgs) -> Result<ExitCode, CannotCheck> {
    let config = config(&args.config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(CannotCheck::Runtime)?;
    let done = runtime.block_on(check(args, &config));
    // A resolver that hangs must not keep the program.
    runtime.shutdown_background();
    match done {
        Done::Report(report) => {
            print(&format!("{}\n", serde_json::to_string_pretty(&report)?));
            Ok(ExitCode::SUCCESS)
        }
        Done::Judged(verdict) => {
            let text = if args.json {
                format!("{}\n", serde_json::to_string_pretty(&verdict)?)
            } else {
                shown(&verdict, Paint::of_stdout())
            };
            print(&text);
            Ok(exit_code(verdict.worst))
        }
    }
}

/// The reader may be gone; the exit code still counts.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn exit_code(worst: Option<Severity>) -> ExitCode {
    ExitCode::from(match worst {
        None | Some(Severity::Info) => 0,
        Some(Severity::Warning) => 1,
        Some(Severity::Error) => 2,
    })
}

/// The configuration; a host without one is checked as well as it can be.
fn config(path: &Path) -> Result<Config, ConfigError> {
    match Config::load(path) {
        Err(ConfigError::Unreadable { error, .. })
            if error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(Config::default())
        }
        other => other,
    }
}

enum Done {
    Report(Box<HostReport>),
    Judged(Verdict),
}

async fn check(args: &CheckArgs, config: &Config) -> Done {
    let services = services(config, &config::kept::load(Path::new(config::kept::FILE)));
    let phases = phases(Path::new(crate::api::SOCKET)).await;
    let from = Sources::of_this_host(services, phases).await;
    let (Some(guest), Some(to)) = (&args.migrate, &args.to) else {
        let report = collect(&from).await;
        if args.report {
            return Done::Report(Box::new(report));
        }
        let findings = judge_host(&report);
        return Done::Judged(verdict(report.host, None, findings));
    };
    let reports = ByNasd { nasds: config.nasd.clone(), tls: config.tls.clone() };
    let (here, findings) = migration(guest, to, &from, &reports).await;
    let migration = Migration { guest: guest.clone(), to: to.clone() };
    Done::Judged(verdict(here, Some(migration), findings))
}

/// The findings on a migration, and this host's name.
async fn migration(
    guest: &str,
    to: &str,
    from: &Sources,
    reports: &impl Reports,
) -> (String, Vec<Finding>) {
    let received = reports.of(to).await;
    let here = collect(from).await;
    let findings = match received {
        Err(error) => vec![target_unknown(to, &error.to_string())],
        Ok(received) => {
            // This host's clock was read at the end of its report, which is now.
            let age = received.age.saturating_add(received.at.elapsed());
            let reach = reach::reach(&received.report).await;
            let pair = Pair { here: &here, there: &received.report, age, reach: &reach };
            judge_migration(guest, pair)
        }
    };
    (here.host, findings)
}

fn verdict(host: String, migration: Option<Migration>, findings: Vec<Finding>) -> Verdict {
    Verdict { host, migration, worst: worst(&findings), findings }
}

/// The services of the configuration, then those that nasd told last.
fn services(config: &Config, kept: &config::kept::Kept) -> Services {
    let mut floating = config.services.clone();
    for (service, addresses) in kept.values().flatten() {
        floating.entry(service.clone()).or_insert_with(|| addresses.clone());
    }
    let node =
        |nasd: &config::Nasd| Named { name: nasd.name.clone(), addresses: vec![nasd.address.ip()] };
    let service = |(name, addresses)| Named { name, addresses };
    Services {
        floating: floating.into_iter().map(service).collect(),
        nodes: config.nasd.iter().map(node).collect(),
    }
}

/// The phases, from the running agent.
async fn phases(socket: &Path) -> Known<Vec<MountPhase>> {
    match tokio::time::timeout(AGENT, asked(socket)).await {
        Ok(Ok(line)) => understood(&line),
        Ok(Err(error)) => {
            Known::Unknown(format!("the agent cannot be asked ({error}): does hvagent run?"))
        }
        Err(_) => Known::Unknown(format!("the agent did not answer within {AGENT:?}")),
    }
}

async fn asked(socket: &Path) -> std::io::Result<String> {
    let (read, mut write) = UnixStream::connect(socket).await?.into_split();
    write.write_all(b"{\"ask\":\"status\"}\n").await?;
    let mut line = String::new();
    BufReader::new(read.take(LONGEST)).read_line(&mut line).await?;
    Ok(line)
}

/// The part of the agent's status that is needed here.
fn understood(line: &str) -> Known<Vec<MountPhase>> {
    #[derive(serde::Deserialize)]
    struct Status {
        mounts: Vec<MountPhase>,
    }
    match serde_json::from_str::<Status>(line) {
        Ok(status) => Known::Known(status.mounts),
        Err(error) => Known::Unknown(format!("the agent's answer is not understood ({error})")),
    }
}

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn of_stdout() -> Self {
        let var = |name| std::env::var(name).ok();
        let quiet = var("NO_COLOR").is_some_and(|v| !v.is_empty())
            || var("TERM").as_deref() == Some("dumb");
        Self(std::io::stdout().is_terminal() && !quiet)
    }

    fn of(self, severity: Severity, text: &str) -> String {
        let colour = match severity {
            Severity::Error => "1;31",
            Severity::Warning => "33",
            Severity::Info => "36",
        };
        if self.0 { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

/// Without control characters.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The printed form: grouped by severity, remedies on lines of their own.
fn shown(verdict: &Verdict, paint: Paint) -> String {
    let what = match &verdict.migration {
        Some(Migration { guest, to }) => format!("{guest}: {} -> {to}", verdict.host),
        None => verdict.host.clone(),
    };
    let mut out = format!("{}: {}\n", clean(&what), counts(&verdict.findings));
    for (severity, title) in [
        (Severity::Error, "errors"),
        (Severity::Warning, "warnings"),
        (Severity::Info, "worth knowing"),
    ] {
        let of: Vec<_> = verdict.findings.iter().filter(|f| f.severity == severity).collect();
        if !of.is_empty() {
            out.push_str(&format!("\n{}\n", paint.of(severity, title)));
            out.push_str(&group(&of, paint));
        }
    }
    out
}

fn group(findings: &[&Finding], paint: Paint) -> String {
    let width = findings.iter().map(|f| f.code.chars().count()).max().unwrap_or(0);
    let one = |f: &&Finding| {
        let pad = " ".repeat(width.saturating_sub(f.code.chars().count()));
        let code = paint.of(f.severity, &clean(&f.code));
        let (subject, evidence, remedy) = (clean(&f.subject), clean(&f.evidence), clean(&f.remedy));
        format!("  {code}{pad}  {subject}\n      seen  {evidence}\n      do    {remedy}\n")
    };
    findings.iter().map(one).collect()
}

fn counts(findings: &[Finding]) -> String {
    let of = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let plural = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    match (of(Severity::Error), of(Severity::Warning)) {
        (0, 0) => "nothing wrong".to_owned(),
        (errors, 0) => plural(errors, "error"),
        (0, warnings) => plural(warnings, "warning"),
        (errors, warnings) => {
            format!("{}, {}", plural(errors, "error"), plural(warnings, "warning"))
        }
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
