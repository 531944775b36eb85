//! Where output goes: lines on stdout, and on a terminal one live line below them.
//!
//! Owns the terminal. A reader that goes away (`| head`) never ends a watch: the exit code still counts.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::text::Paint;

/// The operator's screen.
#[derive(Debug)]
pub struct Screen {
    /// The colours that stdout takes.
    pub paint: Paint,
    live: Option<ProgressBar>,
}

impl Screen {
    /// A screen for stdout; `live` asks for the live line, which only a terminal gets.
    #[must_use]
    pub fn new(live: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        let var = |name| std::env::var(name).ok();
        let paint = Paint::choose(terminal, var("NO_COLOR").as_deref(), var("TERM").as_deref());
        Self { paint, live: (live && terminal).then(spinner) }
    }

    /// Writes text that ends its own lines.
    pub fn print(&self, text: &str) {
        let write = || {
            let mut out = io::stdout().lock();
            // The reader may be gone; see the module's doc.
            let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        };
        match &self.live {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Shows what runs now.
    pub fn running(&self, what: &[String]) {
        if let Some(bar) = &self.live {
            bar.set_message(what.join(", "));
        }
    }

    /// Removes the live line.
    pub fn settle(&self) {
        if let Some(bar) = &self.live {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("  {spinner} {elapsed_precise} {wide_msg}");
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
