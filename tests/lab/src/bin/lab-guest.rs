//! `lab-guest`: `init` of the nested guest. When it ends, the guest's kernel panics, and its hypervisor ends the guest.

use std::process::ExitCode;

fn main() -> ExitCode {
    match lab::guest::program::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("lab-guest: {e}");
            ExitCode::FAILURE
        }
    }
}
