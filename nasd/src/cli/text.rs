//! Colours, tables and numbers as text. Pure; owns alignment and what may reach a terminal.

use std::fmt::Write as _;

/// Colours, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint(pub bool);

impl Paint {
    /// Colours only on a terminal that can, and never when `NO_COLOR` is set and not empty.
    #[must_use]
    pub fn choose(terminal: bool, no_color: Option<&str>, term: Option<&str>) -> Self {
        Self(terminal && no_color.is_none_or(str::is_empty) && term != Some("dumb"))
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// For names.
    #[must_use]
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    /// For what is well.
    #[must_use]
    pub fn good(self, text: &str) -> String {
        self.wrap("32", text)
    }

    /// For what deserves a look.
    #[must_use]
    pub fn warn(self, text: &str) -> String {
        self.wrap("33", text)
    }

    /// For what is wrong.
    #[must_use]
    pub fn bad(self, text: &str) -> String {
        self.wrap("1;31", text)
    }
}

/// Text from elsewhere without control characters: it must not steer the terminal.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// As [`clean`], with line ends left as they are.
#[must_use]
pub fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

/// `2023-11-14 22:13:20.123`, in UTC: the nodes' time zones may differ.
#[must_use]
pub fn utc(unix_ms: u64) -> String {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (mut year, mut day) = (1970_u64, days);
    while day >= year_length(year) && year < 10_000 {
        day -= year_length(year);
        year += 1;
    }
    let february = year_length(year) - 337;
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    let day = day + 1;
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{:03}", ms % 1000)
}

fn year_length(year: u64) -> u64 {
    let leap = (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    if leap { 366 } else { 365 }
}

/// Rows in columns, each as wide as its widest cell, two blanks apart, every line after `indent`.
#[must_use]
pub fn table(indent: &str, rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = indent.to_owned();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Microseconds as an operator reads them: `0.4 ms`, `312 ms`, `1.55 s`.
#[must_use]
pub fn span_us(us: u64) -> String {
    match us {
        0..10_000 => format!("{}.{} ms", us / 1000, us % 1000 / 100),
        10_000..1_000_000 => format!("{} ms", us / 1000),
        _ => format!("{}.{:02} s", us / 1_000_000, us % 1_000_000 / 10_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_only_where_wanted() {
        assert!(Paint::choose(true, None, Some("xterm")).0);
        assert!(Paint::choose(true, Some(""), None).0);
        assert!(!Paint::choose(false, None, Some("xterm")).0);
        assert!(!Paint::choose(true, Some("1"), Some("xterm")).0);
        assert!(!Paint::choose(true, None, Some("dumb")).0);
        assert_eq!(Paint(true).good("x"), "\u{1b}[32mx\u{1b}[0m");
        assert_eq!(Paint(false).bad("x"), "x");
    }

    #[test]
    fn spans_round_down() {
        let shown: Vec<_> = [0, 420, 9_999, 10_000, 312_400, 1_555_000].map(span_us).into();
        assert_eq!(shown, ["0.0 ms", "0.4 ms", "9.9 ms", "10 ms", "312 ms", "1.55 s"]);
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        let shown: Vec<_> =
            [0, 1_700_000_000_123, 951_782_400_000, 951_868_800_000, 1_735_689_599_999]
                .map(utc)
                .into();
        let expected = [
            "1970-01-01 00:00:00.000",
            "2023-11-14 22:13:20.123",
            "2000-02-29 00:00:00.000",
            "2000-03-01 00:00:00.000",
            "2024-12-31 23:59:59.999",
        ];
        assert_eq!(shown, expected);
        assert!(utc(u64::MAX).starts_with("10000-"), "no number takes long");
    }

    #[test]
    fn columns_align_by_characters_and_text_is_tame() {
        let rows = [["a→b", "x"], ["c", "y"]].map(|r| r.map(str::to_owned).to_vec());
        assert_eq!(table("  ", &rows), "  a→b  x\n  c    y\n");
        assert_eq!(clean("a\u{1b}[2Jb\nc"), "a [2Jb c");
    }
}
