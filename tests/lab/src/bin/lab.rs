//! `lab`: real nodes on one machine. See `lab --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lab::cli::main()
}
