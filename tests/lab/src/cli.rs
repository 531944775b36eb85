//! The command line of `lab`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::engine::Engine;
use crate::error::LabError;
use crate::fault::Fault;
use crate::lab::Lab;
use crate::progress;
use crate::report::ScenarioReport;
use crate::scenarios;
use crate::spec::Spec;
use crate::state;
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
    /// Print results as JSON, and no progress.
    #[arg(long, global = true)]
    json_output: bool,
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
    },
    /// Take a lab down, or what a crash has left of it.
    Down {
        /// All labs of this machine.
        #[arg(long)]
        all: bool,
    },
    /// Show nodes and their states.
    Status,
    /// Run a command in a node; without one, read commands line by line.
    Ssh {
        /// The node.
        node: String,
        /// Limit, seconds; the command is killed then.
        #[arg(long, default_value_t = DEFAULT_LIMIT_S)]
        limit: u64,
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
    /// List the scenarios.
    List,
    /// Run one scenario in a lab of its own.
    Run {
        /// Its name.
        scenario: String,
        /// Write the report to this file, as JSON.
        #[arg(long)]
        json: Option<PathBuf>,
        #[command(flatten)]
        how: How,
    },
    /// Run the demonstration.
    Demo {
        #[command(flatten)]
        how: How,
    },
    /// Run all scenarios that every change must pass.
    Test {
        /// Those of the night, too.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        how: How,
    },
}

/// Exit code 0: done and good; 1: a scenario or a command in a node failed; 2: the lab could not do it.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.json_output {
        progress::be_quiet();
    }
    match cli.run() {
        Ok(code) => code,
        Err(e) => {
            eprintln!("lab: {e}");
            ExitCode::from(2)
        }
    }
}

/// Standard output may be closed early by a pager; that is no failure of the lab.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn line(text: &str) {
    print(&format!("{text}\n"));
}

impl Cli {
    fn run(&self) -> Result<ExitCode, LabError> {
        match &self.command {
            Command::Up { how, clients, full } => self.up(how, *clients, *full),
            Command::Down { all } => self.down(*all),
            Command::Status => self.status(),
            Command::Ssh { node, limit, command } => {
                self.ssh(node, command, Duration::from_secs(*limit))
            }
            Command::Logs { node } => self.logs(node),
            Command::Fault(fault) => {
                Lab::open(&self.name)?.fault(fault)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::List => Ok(self.list()),
            Command::Run { scenario, json, how } => self.scenario(scenario, json.as_ref(), how),
            Command::Demo { how } => self.scenario(scenarios::DEMO, None, how),
            Command::Test { all, how } => self.test(*all, how),
        }
    }

    fn up(&self, how: &How, clients: usize, full: bool) -> Result<ExitCode, LabError> {
        let spec = Spec { clients, engine: how.engine, build: !how.no_build, ..Spec::new(&self.name) };
        let lab = Lab::up(&spec)?;
        if full {
            let step = progress::Step::begin("Waiting for etcd");
            lab.wait_etcd()?;
            step.done();
            let step = progress::Step::begin("Making DRBD's resources");
            lab.drbd_init()?;
            step.done();
        }
        self.show_status(&lab);
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

    fn status(&self) -> Result<ExitCode, LabError> {
        self.show_status(&Lab::open(&self.name)?);
        Ok(ExitCode::SUCCESS)
    }

    fn show_status(&self, lab: &Lab) {
        let nodes = lab.status();
        if self.json_output {
            line(&json!({"name": lab.name(), "engine": lab.engine(), "nodes": nodes}).to_string());
            return;
        }
        line(&format!("lab {} ({})", lab.name(), lab.engine().name()));
        for n in nodes {
            let pid = n.pid.map_or_else(|| "-".to_owned(), |p| p.to_string());
            line(&format!("  {:5} {:7} {:12} pid {pid}", n.name, n.state, n.address));
        }
    }

    fn ssh(&self, node: &str, command: &[String], limit: Duration) -> Result<ExitCode, LabError> {
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
        if self.json_output {
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

    fn list(&self) -> ExitCode {
        if self.json_output {
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

    /// Runs of scenarios have labs of their own, so that a lab somebody works in is left alone.
    fn spec(&self, how: &How) -> Spec {
        let name = if self.name == "default" {
            format!("run-{}", std::process::id())
        } else {
            self.name.clone()
        };
        Spec { engine: how.engine, build: !how.no_build, ..Spec::new(&name) }
    }

    fn scenario(
        &self,
        name: &str,
        file: Option<&PathBuf>,
        how: &How,
    ) -> Result<ExitCode, LabError> {
        let report = scenarios::find(name)?.play(&self.spec(how))?;
        if let Some(file) = file {
            sys::write(file, json!(report).to_string(), 0o644)?;
        }
        self.show(&report);
        Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn show(&self, report: &ScenarioReport) {
        let text = report.to_text();
        line(&if self.json_output { json!(report).to_string() } else { text });
    }

    fn test(&self, all: bool, how: &How) -> Result<ExitCode, LabError> {
        let mut failed = Vec::new();
        let mut spec = self.spec(how);
        let chosen = scenarios::ALL.iter().filter(|s| all || !s.nightly);
        let wanted = |s: &&scenarios::Scenario| {
            s.engine.is_none() || how.engine.is_none() || s.engine == how.engine
        };
        for s in chosen.filter(wanted) {
            let report = s.play(&spec)?;
            self.show(&report);
            if !report.ok {
                failed.push(s.name);
            }
            // Built once is enough.
            spec.build = false;
        }
        if failed.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        eprintln!("lab: failed: {}", failed.join(" "));
        Ok(ExitCode::FAILURE)
    }
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
