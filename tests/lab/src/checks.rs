//! The checks of the sources that come before the scenarios: formatting, lints, unit and property tests.
//!
//! Owns their commands and limits. They use the target folder of the running program, so that what one of them
//! builds the next need not build again. Every check ends within its limit (S8), with all that it has started.

use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::deps;
use crate::error::LabError;
use crate::payload;
use crate::process::{self, MARK};
use crate::progress::Step;
use crate::sys;

/// Last lines of a failed check that are shown; of a compiler's many complaints these suffice.
const SHOWN: usize = 300;
/// Lines before those that are shown at the most, of those that name a failed test. The others that passed
/// after it, in many test programs, may have said more than [`SHOWN`] lines.
const NAMED: usize = 100;

/// One check.
pub struct Check {
    /// As it is typed with `--only`.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// Subcommand of cargo, and what comes before the target folder.
    args: &'static [&'static str],
    /// What comes after it.
    tail: &'static [&'static str],
    /// Whether it builds, and so takes a target folder and the tools for building.
    builds: bool,
    /// Limit: several times what it takes from nothing on two cores.
    limit: Duration,
}

/// All checks, in the order in which they run: the quickest first.
pub const ALL: &[Check] = &[
    Check {
        name: "fmt",
        summary: "formatting",
        args: &["fmt", "--all"],
        tail: &["--check"],
        builds: false,
        limit: Duration::from_secs(120),
    },
    Check {
        name: "clippy",
        summary: "lints",
        args: &["clippy", "--quiet", "--workspace", "--all-targets"],
        tail: &["--", "-D", "warnings"],
        builds: true,
        limit: Duration::from_secs(1800),
    },
    Check {
        name: "tests",
        summary: "unit and property tests",
        args: &["test", "--workspace", "--no-fail-fast"],
        tail: &[],
        builds: true,
        limit: Duration::from_secs(1800),
    },
];

/// How a check ended.
#[derive(Debug)]
pub struct Verdict {
    /// Whether the sources passed.
    pub ok: bool,
    /// How long it took.
    pub took: Duration,
    /// For people; empty when there is nothing to add.
    pub detail: String,
}

impl Check {
    /// Runs it; shows what it said on standard error when it fails. A check that cannot run has failed (S12).
    #[must_use]
    pub fn run(&self) -> Verdict {
        let begin = Instant::now();
        let step = Step::begin(format!("cargo {}", self.args[0]));
        let said = self.ask();
        step.done();
        let took = begin.elapsed();
        match said {
            Ok(said) if said.ok => Verdict { ok: true, took, detail: counted(&said.stdout) },
            Ok(said) => {
                show(&format!("{}\n{}", said.stderr, said.stdout));
                Verdict { ok: false, took, detail: said.status }
            }
            Err(e) => Verdict { ok: false, took, detail: e.to_string() },
        }
    }

    fn ask(&self) -> Result<sys::Said, LabError> {
        if self.builds {
            deps::ensure(&[deps::BUILD])?;
        }
        let said = sys::ask(self.command(), self.limit);
        if said.is_err() {
            end_all();
        }
        said
    }

    fn command(&self) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.args(self.args);
        if self.builds {
            payload::same_output(&mut command);
        }
        command.args(self.tail).current_dir(payload::workspace()).env(MARK, mark());
        command
    }
}

/// Marks what the checks of this program start.
fn mark() -> String {
    format!("checks-{}", std::process::id())
}

/// Kills whatever a check has left running.
pub fn end_all() {
    for process in process::marked(&mark()) {
        process.kill();
    }
}

fn show(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", picked(text).join("\n"));
}

/// The last lines, and of those before them what names failed tests; as everything is here, the later ones.
fn picked(text: &str) -> Vec<&str> {
    let lines: Vec<_> = text.trim().lines().collect();
    let tail = lines.len().saturating_sub(SHOWN);
    let mut shown = naming(&lines[..tail]);
    shown.drain(..shown.len().saturating_sub(NAMED));
    if tail > 0 {
        shown.push("[…]");
    }
    shown.extend(&lines[tail..]);
    shown
}

/// Lines that name a failed test or test program, where a panic was and what it said, and the lists of failures.
fn naming<'a>(lines: &[&'a str]) -> Vec<&'a str> {
    let (mut found, mut listed, mut panicked) = (Vec::new(), false, false);
    for line in lines {
        listed = if listed { line.starts_with("    ") } else { line.trim() == "failures:" };
        let failed = line.starts_with("test ") && line.ends_with(" FAILED");
        let panics = line.contains("panicked at");
        if listed || failed || panics || panicked || line.starts_with("error: ") {
            found.push(*line);
        }
        panicked = panics;
    }
    found
}

/// Sums up the `test result:` lines of the test harness; empty without any.
fn counted(text: &str) -> String {
    let results: Vec<_> =
        text.lines().filter_map(|l| l.trim().strip_prefix("test result: ok. ")).collect();
    let number = |line: &&str| line.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    let sum: u64 = results.iter().filter_map(number).sum();
    if results.is_empty() { String::new() } else { format!("{sum} tests") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_all_test_programs_are_added() {
        let text = "running 2 tests\ntest result: ok. 2 passed; 0 failed; 0 ignored\n\n   Doc-tests lab\n\
                    test result: ok. 40 passed; 0 failed; 1 ignored";
        assert_eq!(counted(text), "42 tests");
        assert_eq!(counted("nothing"), "");
    }

    #[test]
    fn failed_tests_are_named_however_much_is_said_after_them() {
        let failing = "error: test failed, to rerun pass `-p core --lib`\n\nrunning 3 tests\n\
                       test one ... ok\ntest two ... FAILED\n\nfailures:\n\n---- two stdout ----\n\n\
                       thread 'two' (7) panicked at src/two.rs:1:2:\nleft is not right\nnote: run with\n\n\
                       failures:\n    two\n\ntest result: FAILED. 2 passed; 1 failed";
        let later: Vec<_> = (0..SHOWN).map(|n| format!("test later::t{n} ... ok")).collect();
        let named = [
            "error: test failed, to rerun pass `-p core --lib`",
            "test two ... FAILED",
            "failures:",
            "thread 'two' (7) panicked at src/two.rs:1:2:",
            "left is not right",
            "failures:",
            "    two",
            "[…]",
        ];
        let text = format!("{failing}\n{}\n", later.join("\n"));
        let shown = picked(&text);
        assert_eq!(shown[..named.len()], named);
        assert_eq!(shown[named.len()..], later);
    }

    #[test]
    fn little_is_shown_whole_and_much_is_bounded() {
        assert_eq!(picked("test a ... FAILED\n\nend\n"), ["test a ... FAILED", "", "end"]);
        let names: Vec<_> = (0..2 * SHOWN).map(|n| format!("test t{n} ... FAILED")).collect();
        let text = names.join("\n");
        let shown = picked(&text);
        assert_eq!(shown.len(), NAMED + 1 + SHOWN);
        assert_eq!(shown[0], names[SHOWN - NAMED], "the last ones before the tail");
        assert_eq!(shown[NAMED + 1..], names[SHOWN..]);
    }

    #[test]
    fn the_target_folder_comes_before_the_lints() {
        let clippy = ALL.iter().find(|c| c.name == "clippy").unwrap().command();
        let args: Vec<_> = clippy.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        let at = |what: &str| args.iter().position(|a| a == what).unwrap();
        assert!(at("--target-dir") < at("--"), "{args:?}");
        assert_eq!(args[args.len() - 3..], ["--", "-D", "warnings"]);
    }

    #[test]
    fn a_check_that_cannot_run_has_failed() {
        let check = Check {
            name: "none",
            summary: "",
            args: &["no-such-subcommand-of-cargo"],
            tail: &[],
            builds: false,
            limit: Duration::from_secs(60),
        };
        assert!(!check.run().ok);
    }
}
