//! The agent's program. So far only the probe helper, which the agent starts itself.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hvagent::probe::helper::{Helper, Target};

/// Watches NFS mounts, sanlock and libvirt while storage moves.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
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
        Command::ProbeHelper { device, mount } => {
            probe_helper(Target { mount, device, direct: true })
        }
    }
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
