//! nasd, the daemon: reads its configuration, then runs until told to end.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nasd::config::Config;
use nasd::drive::{failpoint, start};
use nasd::observe;

/// Moves NFS services with their DRBD volumes between two NAS nodes.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Exit codes: 0 ended as asked, 1 could not run, 2 configuration refused."
)]
struct Args {
    /// Configuration file.
    #[arg(long, default_value = "/etc/nasd/nasd.toml")]
    config: PathBuf,
    /// Check the configuration and this host against it, change nothing, and exit.
    #[arg(long)]
    check_config: bool,
    /// Test facility: a file with fail points.
    #[arg(long, hide = true)]
    fail_points: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    observe::init_tracing();
    if let Some(file) = args.fail_points {
        failpoint::arm(file);
    }
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => return refused(miette::Report::new(error)),
    };
    if let Err(error) = nasd::config::host::check(&config) {
        return refused(miette::Report::new(error));
    }
    if args.check_config {
        println!("{}: good; {} service(s)", args.config.display(), config.services.len());
        return ExitCode::SUCCESS;
    }
    match start::run(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "nasd cannot run");
            ExitCode::FAILURE
        }
    }
}

fn refused(report: miette::Report) -> ExitCode {
    eprintln!("{report:?}");
    ExitCode::from(2)
}
