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

--json prints one object: {\"nodes\": [node, …], \"unreachable\": [{\"node\", \"reason\"}, …]}. Each service of a
node has under \"hypervisors\" what that node hears of the agents:
  hosts   host, attached, heard_ms, version, mounts [{mount, phase, move_id, margin_ms, guests, migrations,
          problems}]. margin_ms: the stall after which a guest loses its lease; absent: no leases
  stalls  of the last move: host, move_id, mount, guest (absent: the whole mount), stall_ms, ended_unix_ms";

const SWITCHOVER_HELP: &str = "\
nasd carries the move out; nasctl only watches. Ctrl-C or a lost connection undoes nothing: look
with `nasctl status`, or go back with --abort while the old owner still holds the volume.

Before anything is changed, the agents (hvagent) of hypervisors that have the service mounted are told of the
move and must be ready; the wait for them ends after --wait. Without agents nothing is waited for. A dry run
announces nothing and tells what they said last.

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
  nasctl switchover vms --wait 60       give the hypervisors' migrations a minute to end
  nasctl switchover vms --force         move though a hypervisor is not ready: its guests may lose more
  nasctl switchover vms --abort         abort the move that is under way
  nasctl switchover vms --json | tail -n 1 | jq .result

--json prints one object per line, told apart by \"event\":
  preflight  service, from, to, findings [{code, refuses, evidence, remedy}], predicted_stall_ms
  step       node, name, started_unix_us, done, took_us, detail
  outcome    result, message, owner, epoch, silent_us, clients [{client, stall_us, reclaimed}],
             stalls [{host, move_id, mount, guest, stall_ms, ended_unix_ms}], exit_code. stalls: as told by
             hypervisors within 3 s of the move, guest absent: the whole mount. Always the last line. result: moved, dry-run, refused, rolled-back, failed,
             unknown, unreachable, aborted or not-aborted.";

const TAKEOVER_HELP: &str = "\
Run it on the node that shall take the service. Nothing that was acknowledged is lost: only a node in
the record's current set can take over. The owner is not asked; while it can still let go in good
order, `nasctl switchover` has the shorter stall. nasd does this by itself when the owner is dead.

EXIT CODES
  0  taken over: this node serves
  1  refused, nothing changed
  2  usage
  3  given up: the former owner serves
  4  failed: nobody serves
  5  nasd is unreachable, or the outcome is unknown

EXAMPLES
  nasctl takeover vms
  nasctl takeover vms --reason 'nas1 answers, but its nfsd does not'

--json prints the lines of `nasctl switchover --json`; the outcome of a takeover is \"moved\".";

const HOLD_HELP: &str = "\
While a service is held, nasd neither moves it nor takes it over, and refuses `nasctl takeover`; a
`nasctl switchover` is done. The hold is kept in the service's record: it survives restarts and counts on both nodes.

EXIT CODES
  0  done
  1  refused, or not confirmed yet for some service; the others are done
  2  usage
  5  nasd is unreachable, or the outcome is unknown

EXAMPLES
  nasctl hold vms --reason 'new disks in nas2'
  nasctl unhold --all";

const HISTORY_HELP: &str = "\
Both nodes' events in the order of their clocks, oldest first. Each node keeps its own events on its
own disk, between 3500 and 10,000 of each service. Unreadable lines are left out, and said to be.

EXIT CODES
  0  this node's events are shown
  1  nasd knows no such service
  2  usage
  5  nasd is unreachable

EXAMPLES
  nasctl history vms --limit 50
  nasctl history --json | jq 'select(.what == \"takeover\")'

--json prints one object per line: node, service, unix_ms, who, what, epoch, result, detail; and for a
node that did not answer {\"node\", \"unreachable\"}.";

const CONFIRMED_HELP: &str = "\
Says first what is true now and what may be lost, then asks for a sentence that names the service and
this node. Nothing is done without exactly that sentence. In a script it is given with --confirm;
without a terminal and without --confirm this only explains. Every attempt is kept in the history.

EXIT CODES
  0  done
  1  refused or not confirmed, nothing changed
  2  usage
  4  begun, and not completed; the message says what is true
  5  nasd is unreachable, or the outcome is unknown

--json prints two lines: {\"event\":\"explanation\", text, confirmation, facts} and {\"event\":\"outcome\",
result, message, exit_code}. result: done, refused, not-confirmed, failed, unknown or unreachable.";

const FORGET_HOST_HELP: &str = "\
Since Linux 5.19 the NFS server keeps a client that has died with files open for up to a day. Each move or
failover in that time has a grace of 90 s, in which no guest is started or migrated, and planned moves wait
for its agent for 5 minutes. This forgets it on both nodes: its opens and locks are released at once.

HOST is a hypervisor's host name, or its address. Says first what is known of it, then asks for a sentence.
Nothing is done without exactly that sentence, nor while the host is heard: one that was switched off counts
as silent when its lease has run out, 15 s by default. A host that comes back later is a new client. Every
attempt is kept in the history of the services that knew it.

If HOST lives after all, its guests lose their locks and opens, and could be started twice: switch it off or
fence it first. A script may call this only after a power-off that was CONFIRMED, not merely asked for.

EXIT CODES
  0  done; the message says if the other node did not answer and may still remember it
  1  refused or not confirmed, nothing changed
  2  usage
  4  begun, and not completed; the message says what is true
  5  nasd is unreachable, or the outcome is unknown

EXAMPLES
  nasctl forget-host hv3                            what is known of hv3; asks
  nasctl forget-host hv3 --confirm 'hv3 is dead'    in a fencing script, after the confirmed power-off
  timeout 120 sh -c \"until nasctl forget-host hv3 --confirm 'hv3 is dead'; do sleep 5; done\"

--json prints two lines: {\"event\":\"explanation\", text, confirmation, facts} and {\"event\":\"outcome\",
result, message, exit_code}. result: done, refused, not-confirmed, failed, unknown or unreachable.";

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
    /// Take a service to this node without asking its owner; loses nothing
    #[command(after_help = TAKEOVER_HELP)]
    Takeover(TakeoverArgs),
    /// No automatic move or takeover from now on
    #[command(after_help = HOLD_HELP)]
    Hold(HoldArgs),
    /// Automatic moves and takeovers again
    #[command(after_help = HOLD_HELP)]
    Unhold(HoldArgs),
    /// Show what happened
    #[command(after_help = HISTORY_HELP)]
    History(HistoryArgs),
    /// Open a service here though this node is not current: may lose data
    #[command(after_help = CONFIRMED_HELP)]
    Recover(ConfirmArgs),
    /// Start a service here while the coordinator has no majority: may lose data
    #[command(after_help = CONFIRMED_HELP)]
    EmergencyStart(ConfirmArgs),
    /// Throw this node's changes away after the nodes have parted
    #[command(after_help = CONFIRMED_HELP)]
    SplitBrain(SplitBrainArgs),
    /// Forget a hypervisor that is proven dead: its locks, its opens, its agent
    #[command(after_help = FORGET_HOST_HELP)]
    ForgetHost(ForgetHostArgs),
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
    /// Move though a hypervisor is not ready or does not answer
    #[arg(long)]
    pub force: bool,
    /// Seconds to wait until all hypervisors are ready (0.1 to 3600, as configured if not given)
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    pub wait: Option<u32>,
    /// Abort the move of this service that is under way
    #[arg(long, conflicts_with_all = ["to", "dry_run", "timeout", "force", "wait"])]
    pub abort: bool,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `takeover`.
#[derive(Debug, Args)]
pub struct TakeoverArgs {
    /// The service to take
    pub service: String,
    /// Why; kept in the history
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `hold` and `unhold`.
#[derive(Debug, Args)]
pub struct HoldArgs {
    /// The service
    #[arg(required_unless_present = "all")]
    pub service: Option<String>,
    /// Every service of this pair
    #[arg(long, conflicts_with = "service")]
    pub all: bool,
    /// Why; shown in the status and kept in the history
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Only this service
    pub service: Option<String>,
    /// Only the newest N events (0: all that are kept)
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: u32,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `forget-host`.
#[derive(Debug, Args)]
pub struct ForgetHostArgs {
    /// The hypervisor's host name, or its address
    pub host: String,
    /// Confirmation
    #[command(flatten)]
    pub typed: TypedArgs,
}

/// Arguments of what is done to a service with a typed sentence.
#[derive(Debug, Args)]
pub struct ConfirmArgs {
    /// The service
    pub service: String,
    /// Confirmation
    #[command(flatten)]
    pub typed: TypedArgs,
}

/// A sentence, and how to tell what came of it.
#[derive(Debug, Args)]
pub struct TypedArgs {
    /// The sentence that confirms it, letter by letter
    #[arg(long, value_name = "SENTENCE")]
    pub confirm: Option<String>,
    /// Print one JSON object per line
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `split-brain`.
#[derive(Debug, Args)]
pub struct SplitBrainArgs {
    /// Service and confirmation
    #[command(flatten)]
    pub confirm: ConfirmArgs,
    /// Do it, once confirmed; otherwise only explain
    #[arg(long)]
    pub discard_mine: bool,
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
    fn a_hold_is_of_one_service_or_of_all() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["nasctl"], args].concat());
        assert!(parse(&["hold", "vms", "--reason", "x"]).is_ok());
        assert!(parse(&["unhold", "--all"]).is_ok());
        assert!(parse(&["hold"]).is_err());
        assert!(parse(&["hold", "vms", "--all"]).is_err());
    }

    #[test]
    fn nothing_is_thrown_away_unasked() {
        let cli = Cli::try_parse_from(["nasctl", "split-brain", "vms", "--confirm", "x"]).unwrap();
        let Command::SplitBrain(args) = cli.command else { panic!("not parsed") };
        assert!(!args.discard_mine);
        assert_eq!(args.confirm.typed.confirm.as_deref(), Some("x"));
    }

    #[test]
    fn an_abort_takes_no_terms_of_a_move() {
        let parse =
            |args: &[&str]| Cli::try_parse_from([&["nasctl", "switchover", "vms"], args].concat());
        assert!(parse(&["--force", "--wait", "2.5", "--dry-run"]).is_ok());
        for bad in [&["--abort", "--force"][..], &["--abort", "--wait", "3"], &["--wait", "0"]] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
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
