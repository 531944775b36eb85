//! `nasd-io`: the child of nasd that alone touches one service's volumes. See [`nasd::io`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use nasd::io::server::{Identity, Shared, serve};
use tracing_subscriber::EnvFilter;

/// Carries out nasd's requests on one service's volumes. Started by nasd.
#[derive(Debug, Parser)]
#[command(name = "nasd-io", version)]
struct Arguments {
    /// Service
    #[arg(long)]
    service: String,
    /// Its network namespace, as /run/netns/NAME
    #[arg(long)]
    netns: PathBuf,
    /// Unix socket to listen on
    #[arg(long)]
    socket: PathBuf,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let Arguments { service, netns, socket } = Arguments::parse();
    let shared = match Shared::new(Identity { service, netns }) {
        Ok(shared) => shared,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    match serve(&socket, shared) {
        Ok(never) => match never {},
        Err(error) => {
            tracing::error!(%error, "cannot listen");
            ExitCode::FAILURE
        }
    }
}
