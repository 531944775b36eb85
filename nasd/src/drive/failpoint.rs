//! Fail points: places where a test can stop or kill nasd. Inert unless nasd was started with a
//! fail-point file (hidden option `--fail-points FILE`); the file is read at each point.
//!
//! A line is `POINT ACTION`, with `ACTION` one of `stop` (SIGSTOP, until SIGCONT), `kill` (SIGKILL)
//! or `hang:MS`. A point that has fired is removed from the file, so that a restarted nasd goes on.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::{Signal, raise};

static FILE: OnceLock<PathBuf> = OnceLock::new();

/// Arms the facility. Called once, from the command line.
pub fn arm(file: PathBuf) {
    tracing::warn!(file = %file.display(), "fail points are armed: this is a test set-up");
    let armed = FILE.set(file);
    drop(armed);
}

/// A named place in the code.
pub fn hit(point: &str) {
    let Some(file) = FILE.get() else { return };
    let Ok(text) = std::fs::read_to_string(file) else { return };
    let mut action = None;
    let rest: String = text
        .lines()
        .filter(|line| match line.split_once(' ') {
            Some((name, what)) if name == point && action.is_none() => {
                action = Some(what.trim().to_owned());
                false
            }
            _ => true,
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let Some(action) = action else { return };
    if std::fs::write(file, rest).is_ok() {
        fire(point, &action);
    }
}

fn fire(point: &str, action: &str) {
    tracing::warn!(point, action, "fail point");
    match action.split_once(':') {
        Some(("hang", ms)) => {
            let ms = ms.parse().unwrap_or(0);
            std::thread::sleep(Duration::from_millis(ms));
        }
        _ => {
            let signal = if action == "stop" { Signal::SIGSTOP } else { Signal::SIGKILL };
            if let Err(error) = raise(signal) {
                tracing::error!(%error, "the fail point could not fire");
            }
        }
    }
}
