//! The agent's program: the service, the operator's commands, and the probe helper that the agent starts
//! itself.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hvagent::cli::{check, status};
use hvagent::config::{self, Config};
use hvagent::drive::run;
use hvagent::probe::helper::{Helper, Target};
use tracing_subscriber::EnvFilter;

/// Watches NFS mounts, sanlock and libvirt while storage moves.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the agent, until it is told to end.
    #[command(
        after_help = "Exit codes: 0 ended as asked, 1 could not run, 2 configuration refused."
    )]
    Run {
        /// Configuration file.
        #[arg(long, default_value = config::FILE)]
        config: PathBuf,
        /// The agent's socket.
        #[arg(long, default_value = hvagent::api::SOCKET)]
        socket: PathBuf,
        /// What the nasds told last of their services.
        #[arg(long, default_value = config::kept::FILE)]
        services: PathBuf,
    },
    /// Shows mounts, phases, margins, stalls and who answers.
    Status(status::StatusArgs),
    /// Accepts the problems that were found on a mount after a move: migrations may begin again.
    Accept(status::AcceptArgs),
    /// Checks this host, or whether a guest can migrate to another.
    Check(check::CheckArgs),
    /// Probes one mount, told through standard input. Started by the agent, of no use by hand.
    #[command(hide = true)]
    ProbeHelper {
        /// Device of the file system that is expected there, as mountinfo shows it.
        #[arg(long, value_parser = device)]
        device: (u32, u32),
        /// The mount point.
        mount: PathBuf,
    },
}

fn device(text: &str) -> Result<(u32, u32), String> {
    let numbers = text
        .split_once(':')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    numbers.ok_or_else(|| "a device is MAJOR:MINOR, such as 0:52".to_owned())
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { config, socket, services } => {
            serve(&config, run::Paths { socket, kept: services, ..run::Paths::default() })
        }
        Command::Status(args) => status::run(&args),
        Command::Accept(args) => status::accept(&args),
        Command::Check(args) => check::run(&args),
        Command::ProbeHelper { device, mount } => {
            probe_helper(Target { mount, device, direct: true })
        }
    }
}

fn serve(config: &std::path::Path, paths: run::Paths) -> ExitCode {
    log();
    let config = match Config::load(config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("hvagent: {error}");
            return ExitCode::from(2);
        }
    };
    // One thread decides; those that may wait have their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.map_err(run::RunError::System).and_then(|runtime| {
        let ended = runtime.block_on(run::run(config, paths));
        // A look-up that hangs must not keep the program.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// To standard error; the journal adds the time. Level from `NASD_LOG`, `info` by default.
fn log() {
    let filter = EnvFilter::try_from_env("NASD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .init();
}

fn probe_helper(target: Target) -> ExitCode {
    let input = std::io::stdin().lock();
    match Helper::new(target).serve(input, std::io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hvagent probe-helper: {error}");
            ExitCode::FAILURE
        }
    }
}
