//! What happened, for people: time, node, event.
//!
//! Owns the text of a replay. Written only when somebody will read it; a search runs without.

use std::fmt;

/// The lines of one run.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    lines: Option<Vec<Line>>,
}

#[derive(Debug, Clone)]
struct Line {
    at: u64,
    node: Option<usize>,
    text: String,
}

impl Trace {
    /// One that keeps everything.
    #[must_use]
    pub fn kept() -> Self {
        Self { lines: Some(Vec::new()) }
    }

    /// Adds a line; the text is made only if it is kept.
    pub fn add(&mut self, at: u64, node: Option<usize>, text: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(Line { at, node, text: text() });
        }
    }

    /// Whether lines are kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.lines.is_some()
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.lines.iter().flatten() {
            let (s, ms) = (line.at / 1_000_000, line.at / 1000 % 1000);
            let who = line.node.map_or("-", crate::world::name_of);
            writeln!(f, "{s:>4}.{ms:03} {who} {}", line.text)?;
        }
        Ok(())
    }
}
