//! The operator's command; everything is in `nasd::cli`.

fn main() -> std::process::ExitCode {
    nasd::cli::main()
}
