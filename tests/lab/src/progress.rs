//! What the lab program shows while it works: spinners on a terminal, plain lines elsewhere, nothing with `--json`.

use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

static QUIET: AtomicBool = AtomicBool::new(false);

/// Shows no more progress from now on.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// A step that is going on.
pub struct Step {
    what: String,
    begin: Instant,
    bar: Option<ProgressBar>,
    loud: bool,
}

impl Step {
    /// Begins a step; `what` is a phrase such as "Building the image".
    pub fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        let loud = !QUIET.load(Ordering::Relaxed);
        let bar = (loud && stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{spinner:.cyan} {msg} {elapsed:.dim}");
            let bar = ProgressBar::new_spinner();
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_message(what.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        if loud && bar.is_none() {
            eprintln!("{what} …");
        }
        Self { what, begin: Instant::now(), bar, loud }
    }

    /// Shows what the step is at.
    pub fn note(&self, note: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {note}", self.what));
        }
    }

    /// Ends the step well; the time it took.
    pub fn done(self) -> Duration {
        let took = self.begin.elapsed();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.loud {
            eprintln!("{}: {:.1} s", self.what, took.as_secs_f64());
        }
        took
    }
}
