//! The command line of `nasctl`. Owns names, help texts and limits of the arguments.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

const STATUS_HELP: &str = "\
EXIT CODES
  0  at least one node answered
  1  no node that answered knows SERVICE
  2  usage
  5  nasd is unreachable

EXAMPLES
  nasctl status                 all services, both nodes
  nasctl status vms             one service
  nasctl status --json | jq -r '.nodes[].services[] | \"\\(.service) \\(.stage)\"'

--json prints one object: {\"nodes\": [node, …], \"unreachable\": [{\"node\", \"reason\"}, …]}.";

const SWITCHOVER_HELP: &str = "\
nasd carries the move out; nasctl only watches. Ctrl-C or a lost connection undoes nothing: look
with `nasctl status`, or go back with --abort while the old owner still holds the volume.

EXIT CODES
  0  moved (with --dry-run: would move; with --abort: aborted)
  1  refused by the pre-flight, nothing changed (with --abort: nothing aborted)
  2  usage
  3  rolled back: the old owner serves
  4  failed: nobody serves
  5  nasd is unreachable, or the outcome is unknown

EXAMPLES
  nasctl switchover vms --dry-run       what would refuse the move, and the predicted stall
  nasctl switchover vms                 to the other node
  nasctl switchover vms --to nas2       to nas2
  nasctl switchover vms --timeout 30    give up, and roll back, after 30 s
  nasctl switchover vms --abort         abort the move that is under way
  nasctl switchover vms --json | tail -n 1 | jq .result

--json prints one object per line, told apart by \"event\":
  preflight  service, from, to, findings [{code, refuses, evidence, remedy}], predicted_stall_ms
  step       node, name, started_unix_us, done, took_us, detail
  outcome    result, message, owner, epoch, silent_us, clients [{client, stall_us, reclaimed}],
             exit_code. Always the last line. result: moved, dry-run, refused, rolled-back, failed,
             unknown, unreachable, aborted or not-aborted.";

/// Shows and moves the NFS services of a NAS pair.
#[derive(Debug, Parser)]
#[command(name = "nasctl", version)]
pub struct Cli {
    /// nasd's control socket
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/nasd/control.sock")]
    pub socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what each node knows of the services
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
    /// Move a service to the other node while its clients keep running
    #[command(after_help = SWITCHOVER_HELP)]
    Switchover(SwitchoverArgs),
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this service
    pub service: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `switchover`.
#[derive(Debug, Args)]
pub struct SwitchoverArgs {
    /// The service to move
    pub service: String,
    /// The node to move it to; the other node if not given
    #[arg(long, value_name = "NODE")]
    pub to: Option<String>,
    /// Run the pre-flight only; changes nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Seconds after which nasd gives the move up (0.1 to 3600, nasd's default if not given)
    #[arg(long, value_name = "S", value_parser = parse_timeout)]
    pub timeout: Option<u32>,
    /// Abort the move of this service that is under way
    #[arg(long, conflicts_with_all = ["to", "dry_run", "timeout"])]
    pub abort: bool,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// Seconds as text → milliseconds. Zero would mean "default" on the wire, so it is not accepted.
fn parse_timeout(text: &str) -> Result<u32, String> {
    match text.parse::<f64>() {
        // The cast is exact enough: the range is checked, and a fraction of a millisecond is noise.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        Ok(s) if (0.1..=3600.0).contains(&s) => Ok((s * 1000.0).round() as u32),
        _ => Err("not a number of seconds from 0.1 to 3600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn timeouts_have_limits() {
        assert_eq!(parse_timeout("2.5"), Ok(2500));
        assert_eq!(parse_timeout("3600"), Ok(3_600_000));
        for bad in ["0", "-1", "3601", "nan", "inf", "1s", ""] {
            assert!(parse_timeout(bad).is_err(), "{bad}");
        }
    }
}
