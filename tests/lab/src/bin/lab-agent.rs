//! `lab-agent ADDRESS:PORT`: does in a node what the lab program asks.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;

/// Does in a node what the lab program asks. Never run this outside a lab: it executes what it is told.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// Where to listen; the management address of the node.
    address: SocketAddr,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match lab::agent::serve(cli.address) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("lab-agent: cannot listen on {}: {e}", cli.address);
            ExitCode::FAILURE
        }
    }
}
