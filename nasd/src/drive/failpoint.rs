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

/// A named place in the code. `hang` holds the thread that comes by, and on a node with one processor all of nasd.
pub fn hit(point: &str) {
    let Some(action) = take(point) else { return };
    match hang(&action) {
        Some(time) => std::thread::sleep(time),
        None => die(&action),
    }
}

/// A named place where `hang` holds the task that comes by, and nothing else of nasd.
pub async fn pass(point: &str) {
    let Some(action) = take(point) else { return };
    match hang(&action) {
        Some(time) => tokio::time::sleep(time).await,
        None => die(&action),
    }
}

/// The action of a point that is armed, which it is no more then.
fn take(point: &str) -> Option<String> {
    let file = FILE.get()?;
    let text = std::fs::read_to_string(file).ok()?;
    let (action, rest) = without(&text, point)?;
    std::fs::write(file, rest).ok()?;
    tracing::warn!(point, action, "fail point");
    Some(action)
}

/// The first action of the point, and the other lines.
fn without(text: &str, point: &str) -> Option<(String, String)> {
    let mut action = None;
    let rest = text
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
    action.map(|action| (action, rest))
}

fn hang(action: &str) -> Option<Duration> {
    let ms = action.strip_prefix("hang:")?;
    Some(Duration::from_millis(ms.parse().unwrap_or(0)))
}

fn die(action: &str) {
    let signal = if action == "stop" { Signal::SIGSTOP } else { Signal::SIGKILL };
    if let Err(error) = raise(signal) {
        tracing::error!(%error, "the fail point could not fire");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_fires_once_and_leaves_the_others() {
        let (action, rest) = without("a kill\nb hang:5\nb stop\n", "b").unwrap();
        assert_eq!((action.as_str(), rest.as_str()), ("hang:5", "a kill\nb stop\n"));
        assert_eq!(hang(&action), Some(Duration::from_millis(5)));
        assert_eq!(without(&rest, "c"), None);
    }
}
