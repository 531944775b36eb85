//! The command line of `lab`.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use serde_json::{Value, json};

use crate::checks::{self, Check};
use crate::engine::Engine;
use crate::error::LabError;
use crate::fault::Fault;
use crate::lab::Lab;
use crate::progress;
use crate::round::{self, Count, Played, TEST_SLACK};
use crate::scenarios::{self, Scenario};
use crate::spec::Spec;
use crate::state;
use crate::supervise;
use crate::sys;

/// Limit for `lab ssh` when none is given.
const DEFAULT_LIMIT_S: u64 = 60;

/// Real NAS nodes and hypervisors on one machine.
///
/// A lab is two NAS nodes (nas1, nas2) with DRBD disks and hypervisors (hv1, hv2, …), joined by a network
/// 10.77.0.0/24 in a network namespace of its own, and an etcd on nas1, nas2 and hv1. Needs root. The first start
/// builds an image (minutes); later starts take seconds.
#[derive(Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version)]
struct Cli {
    /// Name of the lab; several can run side by side.
    #[arg(long, global = true, default_value = "default")]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct How {
    /// What nodes run on [default: uml if it works here, else qemu].
    #[arg(long)]
    engine: Option<Engine>,
    /// Use the programs of the last build.
    #[arg(long)]
    no_build: bool,
}

#[derive(Args)]
struct Play {
    #[command(flatten)]
    how: How,
    /// Leave the lab running afterwards.
    #[arg(long)]
    keep: bool,
    /// Also write the report to this file, as JSON; to standard output instead of the text if it is `-`.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Args)]
struct Tests {
    /// Those of the night, too.
    #[arg(long)]
    all: bool,
    /// Only these checks (fmt, clippy, tests) and scenarios, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// Scenarios only.
    #[arg(long)]
    skip_checks: bool,
    #[command(flatten)]
    play: Play,
}

#[derive(Args)]
struct Json {
    /// Print the result as JSON, and no progress.
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a lab up; returns when all nodes answer.
    Up {
        #[command(flatten)]
        how: How,
        /// Number of hypervisors.
        #[arg(long, default_value_t = 2)]
        clients: usize,
        /// Also wait for etcd, and make DRBD's resources.
        #[arg(long)]
        full: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Take a lab down, or what a crash has left of it.
    Down {
        /// All labs of this machine.
        #[arg(long)]
        all: bool,
    },
    /// Show nodes and their states.
    Status(Json),
    /// Run a command in a node; without one, read commands line by line.
    Ssh {
        /// The node.
        node: String,
        /// Limit, seconds; the command is killed then.
        #[arg(long, default_value_t = DEFAULT_LIMIT_S)]
        limit: u64,
        #[command(flatten)]
        json: Json,
        /// Program and arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Show a node's console and journal.
    Logs {
        /// The node.
        node: String,
    },
    /// Inject a fault, or end one.
    #[command(subcommand)]
    Fault(Fault),
    /// Keep a node powered over its own reboots; used by the lab itself.
    #[command(hide = true)]
    Supervise {
        /// Removed before each start.
        scratch: PathBuf,
        /// Where its power switch listens.
        switch: SocketAddr,
        /// Program and arguments of the node.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// List the scenarios.
    List(Json),
    /// Run one scenario in a lab of its own.
    Run {
        /// Its name.
        scenario: String,
        /// Seed of its random choices; 0 if not given. With the same one it makes the same choices.
        seed: Option<u64>,
        /// How long it injects faults, minutes, where that is a choice.
        #[arg(long)]
        minutes: Option<u32>,
        #[command(flatten)]
        play: Play,
    },
    /// Run the demonstration.
    Demo(Play),
    /// Check the sources and run all scenarios that every change must pass.
    ///
    /// All of them run, even if one fails; one that cannot run has failed. The last line counts them. Time bounds are
    /// five times those of `run`: the machine may be busy with other things.
    Test(Tests),
}

/// Exit code 0: done and good; 1: a scenario failed; 2: the lab could not do it. `ssh` exits as its command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.wants_quiet() {
        progress::be_quiet();
    }
    if let Some(name) = cli.transient() {
        clean_up_when_interrupted(name);
    }
    match cli.run() {
        Ok(code) => code,
        Err(e) => {
            eprintln!("lab: {e}");
            ExitCode::from(2)
        }
    }
}

/// Takes the lab down when the user or the machine ends this program. To be called before any other thread is made:
/// the signals are blocked in all of them. Programs that are started get them unblocked, by the standard library.
fn clean_up_when_interrupted(name: String) {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    if signals.thread_block().is_err() {
        return;
    }
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            eprintln!("lab: {signal}: taking lab {name} down");
            checks::end_all();
            if let Err(e) = Lab::remove(&name) {
                eprintln!("lab: {e}");
            }
            std::process::exit(128 + signal as i32);
        }
    });
}

/// Standard output may be closed early by a pager; that is no failure of the lab.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// A line on standard output, as `print`.
pub(crate) fn line(text: &str) {
    print(&format!("{text}\n"));
}

impl Cli {
    fn run(&self) -> Result<ExitCode, LabError> {
        match &self.command {
            Command::Up { how, clients, full, json } => self.up(how, *clients, *full, json),
            Command::Down { all } => self.down(*all),
            Command::Status(json) => {
                show_status(&Lab::open(&self.name)?, json);
                Ok(ExitCode::SUCCESS)
            }
            Command::Ssh { node, limit, json, command } => {
                self.ssh(node, command, Duration::from_secs(*limit), json)
            }
            Command::Logs { node } => self.logs(node),
            Command::Fault(fault) => {
                Lab::open(&self.name)?.fault(fault)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Supervise { scratch, switch, command } => {
                Ok(supervise::run(scratch, *switch, command))
            }
            Command::List(json) => Ok(list(json)),
            Command::Run { scenario, seed, minutes, play } => {
                let spec = Spec { seed: *seed, minutes: *minutes, ..self.play_spec(play) };
                self.play(scenarios::find(scenario)?, play, &spec, 1.0)
            }
            Command::Demo(play) => {
                let demo = scenarios::find(scenarios::DEMO)?;
                self.play(demo, play, &self.play_spec(play), TEST_SLACK)
            }
            Command::Test(tests) => self.test(tests),
        }
    }

    fn wants_quiet(&self) -> bool {
        match &self.command {
            Command::Up { json, .. } => json.json,
            Command::Run { play, .. } | Command::Demo(play) | Command::Test(Tests { play, .. }) => {
                play.json.as_ref().is_some_and(|f| f.as_os_str() == "-")
            }
            _ => false,
        }
    }

    /// Name of the lab that this command makes, if it makes one. One that exists already is not ours to take down.
    fn transient(&self) -> Option<String> {
        let name = match &self.command {
            Command::Up { .. } => self.name.clone(),
            Command::Run { .. } | Command::Demo(_) | Command::Test(_) => self.play_name(),
            _ => return None,
        };
        (!state::labs().contains(&name)).then_some(name)
    }

    fn up(&self, how: &How, clients: usize, full: bool, json: &Json) -> Result<ExitCode, LabError> {
        let spec =
            Spec { clients, engine: how.engine, build: !how.no_build, ..Spec::new(&self.name) };
        let lab = Lab::up(&spec)?;
        if full {
            let step = progress::Step::begin("Waiting for etcd");
            lab.wait_etcd()?;
            step.done();
            let step = progress::Step::begin("Making DRBD's resources");
            lab.drbd_init()?;
            step.done();
        }
        show_status(&lab, json);
        lab.keep();
        Ok(ExitCode::SUCCESS)
    }

    fn down(&self, all: bool) -> Result<ExitCode, LabError> {
        let names = if all { state::labs() } else { vec![self.name.clone()] };
        for name in names {
            Lab::remove(&name)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn ssh(
        &self,
        node: &str,
        command: &[String],
        limit: Duration,
        json: &Json,
    ) -> Result<ExitCode, LabError> {
        let lab = Lab::open(&self.name)?;
        lab.node(node)?;
        if command.is_empty() {
            return read_commands(&lab, node, limit);
        }
        let argv: Vec<_> = command.iter().map(String::as_str).collect();
        // One argument with spaces is a line of shell, as with ssh.
        let argv = match argv[..] {
            [script] if script.contains(' ') => vec!["sh", "-c", script],
            _ => argv,
        };
        let out = lab.exec(node, &argv, limit)?;
        if json.json {
            line(&json!(out).to_string());
        } else {
            print(&out.stdout);
            eprint!("{}", out.stderr);
        }
        Ok(ExitCode::from(u8::try_from(out.code).unwrap_or(255)))
    }

    fn logs(&self, node: &str) -> Result<ExitCode, LabError> {
        let lab = Lab::open(&self.name)?;
        let console = lab.console(lab.node(node)?.name.as_str());
        let text = std::fs::read(&console).map_err(LabError::io("read", &console))?;
        print(&String::from_utf8_lossy(&text));
        let limit = Duration::from_secs(20) * lab.engine().patience();
        match lab.exec(node, &["journalctl", "--no-pager", "-b", "-o", "short-precise"], limit) {
            Ok(out) => print(&format!("\n--- journal ---\n{}", out.stdout)),
            Err(e) => eprintln!("lab: no journal: {e}"),
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Runs of scenarios have labs of their own, so that a lab somebody works in is left alone.
    fn play_name(&self) -> String {
        if self.name == "default" {
            format!("run-{}", std::process::id())
        } else {
            self.name.clone()
        }
    }

    fn play_spec(&self, play: &Play) -> Spec {
        let name = self.play_name();
        Spec { engine: play.how.engine, build: !play.how.no_build, ..Spec::new(&name) }
    }

    fn play(
        &self,
        scenario: &Scenario,
        play: &Play,
        spec: &Spec,
        slack: f64,
    ) -> Result<ExitCode, LabError> {
        let report = scenario.play(spec, play.keep, slack)?;
        if !self.wants_quiet() {
            line(&scenarios::to_text(&report));
        }
        let code = if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        if let Some(file) = &play.json {
            save(file, &json!(report))?;
        }
        Ok(code)
    }

    /// Everything is run, then counted.
    fn test(&self, tests: &Tests) -> Result<ExitCode, LabError> {
        let (checks, chosen) = tests.chosen()?;
        let mut count = Count::of(checks.len() + chosen.len());
        let quiet = self.wants_quiet();
        for check in checks {
            count.begin(check.name, check.summary);
            let verdict = check.run();
            count.end(check.name, verdict.ok, verdict.took, &verdict.detail);
        }
        let spec = self.play_spec(&tests.play);
        let mut reports = Vec::new();
        let mut played = |count: &mut Count, p: Played| {
            if !quiet {
                print(&scenarios::to_text(&p.report));
            }
            count.end(p.scenario.name, p.report.ok, p.took, "");
            reports.push(p.report);
        };
        round::play(chosen, &spec, &mut count, &mut played);
        if let Some(file) = &tests.play.json {
            save(file, &json!(reports))?;
        }
        Ok(count.close(quiet))
    }
}

impl Tests {
    /// What is to be run.
    fn chosen(&self) -> Result<(Vec<&'static Check>, Vec<&'static Scenario>), LabError> {
        let only = &self.only;
        for name in only.iter().filter(|n| checks::ALL.iter().all(|c| c.name != **n)) {
            scenarios::find(name)?;
        }
        let asked = |name: &str| only.iter().any(|o| o == name);
        let check = |c: &&Check| !self.skip_checks && (only.is_empty() || asked(c.name));
        let scenario = |s: &&Scenario| {
            let due = if only.is_empty() { self.all || !s.nightly } else { asked(s.name) };
            due && s.runs_on(self.play.how.engine)
        };
        let scenarios = scenarios::ALL.iter().filter(scenario).collect();
        Ok((checks::ALL.iter().filter(check).collect(), scenarios))
    }
}

/// To a file, or to standard output if it is `-`.
fn save(file: &Path, reports: &Value) -> Result<(), LabError> {
    if file.as_os_str() == "-" {
        line(&reports.to_string());
        return Ok(());
    }
    sys::write(file, reports.to_string(), 0o644)
}

fn show_status(lab: &Lab, json: &Json) {
    let nodes = lab.status();
    if json.json {
        line(&json!({"name": lab.name(), "engine": lab.engine(), "nodes": nodes}).to_string());
        return;
    }
    line(&format!("lab {} ({})", lab.name(), lab.engine().name()));
    for n in nodes {
        let pid = n.pid.map_or_else(|| "-".to_owned(), |p| p.to_string());
        line(&format!("  {:5} {:7} {:12} pid {pid}", n.name, n.state, n.address));
    }
}

fn list(json: &Json) -> ExitCode {
    if json.json {
        let all = scenarios::ALL.iter().map(|s| {
            json!({"name": s.name, "summary": s.summary, "nightly": s.nightly, "engine": s.engine})
        });
        line(&json!(all.collect::<Vec<_>>()).to_string());
        return ExitCode::SUCCESS;
    }
    for s in scenarios::ALL {
        let engine = s.engine.map_or(String::new(), |e| format!(" [{} only]", e.name()));
        let nightly = if s.nightly { " [nightly]" } else { "" };
        line(&format!("{:24} {}{engine}{nightly}", s.name, s.summary));
    }
    ExitCode::SUCCESS
}

/// A very small shell: each line is run for itself.
fn read_commands(lab: &Lab, node: &str, limit: Duration) -> Result<ExitCode, LabError> {
    for text in std::io::stdin().lines() {
        let text = text.map_err(LabError::io("read", "standard input"))?;
        match lab.exec(node, &["sh", "-c", &text], limit) {
            Ok(out) => {
                print(&out.stdout);
                eprint!("{}", out.stderr);
            }
            Err(e) => eprintln!("lab: {e}"),
        }
    }
    Ok(ExitCode::SUCCESS)
}
