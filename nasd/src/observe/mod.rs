//! What is told to people: the timeline of a move, a service's history and tracing's set-up.

pub mod history;
pub mod timeline;

use tracing_subscriber::EnvFilter;

/// Log lines to standard error (journald adds the time); level from `NASD_LOG`, default `info`.
pub fn init_tracing() {
    let filter = EnvFilter::try_from_env("NASD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logged = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .try_init();
    drop(logged);
}
