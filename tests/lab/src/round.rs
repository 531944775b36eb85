//! A round of `lab test`: which scenarios run alone and which beside each other, and the count of what passed.
//!
//! Whatever happens to one of them, the others run, and it is counted (S12: what could not run has failed).

use std::collections::VecDeque;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::cli::line;
use crate::lab::Lab;
use crate::report::ScenarioReport;
use crate::scenarios::Scenario;
use crate::spec::Spec;

/// Time bounds are this much wider where the machine may be busy with other things.
pub const TEST_SLACK: f64 = 5.0;

/// Plays all of them, the first one alone.
pub fn play(
    chosen: Vec<&'static Scenario>,
    spec: &Spec,
    count: &mut Count,
    played: &mut impl FnMut(&mut Count, Played),
) {
    let (beside, alone) = in_turn(chosen);
    // The first one builds; once is enough, if it could be built.
    let mut built = !spec.build;
    for (number, scenario) in alone.into_iter().enumerate() {
        count.begin(scenario.name, scenario.summary);
        let one = attempt(scenario, &Spec { build: !built, ..spec.clone() });
        built |= !one.report.engine.is_empty();
        played(count, one);
        if number == 0 {
            side_by_side(&beside, &Spec { build: !built, ..spec.clone() }, count, played);
        }
    }
}

/// Those that may run beside each other, and those that run alone; at least one does, as the first.
fn in_turn(
    mut chosen: Vec<&'static Scenario>,
) -> (VecDeque<&'static Scenario>, Vec<&'static Scenario>) {
    let rest = chosen.split_off(chosen.len().min(1));
    let (beside, alone): (Vec<_>, Vec<_>) = rest.into_iter().partition(|s| s.is_untimed());
    chosen.extend(alone);
    (beside.into(), chosen)
}

/// One of many, played.
pub struct Played {
    /// Which.
    pub scenario: &'static Scenario,
    /// What it told.
    pub report: ScenarioReport,
    /// With its lab's way up and down.
    pub took: Duration,
}

/// Labs that run at the same time.
const LABS: usize = 2;

/// A lab's name has 24 characters at most.
fn beside_name(name: &str, number: usize) -> String {
    let short: String = name.chars().take(22).collect();
    format!("{short}-{number}")
}

/// Plays them in [`LABS`] labs at a time.
fn side_by_side(
    scenarios: &VecDeque<&'static Scenario>,
    spec: &Spec,
    count: &mut Count,
    played: &mut impl FnMut(&mut Count, Played),
) {
    let left = Mutex::new(scenarios.clone());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        for number in 0..LABS {
            let (tell, next) = (tell.clone(), &next);
            let spec = Spec { name: beside_name(&spec.name, number), ..spec.clone() };
            scope.spawn(move || {
                while let Some(scenario) = next() {
                    // Nobody listens any more: there is nobody to play for.
                    let begun = tell.send(Err(scenario)).is_ok();
                    if !begun || tell.send(Ok(attempt(scenario, &spec))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tell);
        for news in told {
            match news {
                Ok(one) => played(count, one),
                Err(scenario) => count.begin(scenario.name, scenario.summary),
            }
        }
    });
}

/// Plays one of many: whatever happens becomes a report, and nothing of its lab is left for the next.
fn attempt(scenario: &'static Scenario, spec: &Spec) -> Played {
    let begin = Instant::now();
    let failed = |note: String| ScenarioReport {
        scenario: scenario.name.to_owned(),
        notes: vec![note],
        ..ScenarioReport::default()
    };
    // A thread of its own: a scenario that panics must not keep the others from running.
    let played = thread::scope(|s| s.spawn(|| scenario.play(spec, false, TEST_SLACK)).join());
    let report = match played {
        Ok(Ok(report)) => return Played { scenario, report, took: begin.elapsed() },
        Ok(Err(e)) => failed(format!("could not run: {e}")),
        Err(_) => failed("panicked, see above".to_owned()),
    };
    if let Err(e) = Lab::remove(&spec.name) {
        eprintln!("lab: {e}");
    }
    Played { scenario, report, took: begin.elapsed() }
}

/// Counts checks and scenarios, and tells how they go.
#[derive(Default)]
pub struct Count {
    total: usize,
    begun: usize,
    passed: usize,
    failed: Vec<&'static str>,
}

impl Count {
    /// Nothing has run yet of so many.
    pub fn of(total: usize) -> Self {
        Self { total, ..Self::default() }
    }

    /// Tells that one begins.
    pub fn begin(&mut self, name: &str, summary: &str) {
        self.begun += 1;
        eprintln!("[{:>2}/{}] {name}: {summary}", self.begun, self.total);
    }

    /// Tells how one has ended.
    pub fn end(&mut self, name: &'static str, ok: bool, took: Duration, detail: &str) {
        if ok {
            self.passed += 1;
        } else {
            self.failed.push(name);
        }
        let verdict = if ok { "ok" } else { "FAILED" };
        let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
        eprintln!("        {name}: {verdict}, {:.1} s{detail}", took.as_secs_f64());
    }

    /// The closing line: alone, last, and on standard error only if the report has standard output for itself.
    /// Nothing was run: nothing has passed.
    pub fn close(&self, quiet: bool) -> ExitCode {
        if !self.failed.is_empty() {
            eprintln!("failed: {}", self.failed.join(" "));
        }
        let text = format!("{} passed, {} failed", self.passed, self.failed.len());
        if quiet {
            eprintln!("{text}");
        } else {
            line(&text);
        }
        if self.failed.is_empty() && self.passed > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenarios::ALL;
    use crate::spec::check_name;

    #[test]
    fn labs_beside_each_other_have_good_names_of_their_own() {
        for name in ["run-17", "a-name-of-24-characters-"] {
            let names = [0, 1].map(|number| beside_name(name, number));
            assert!(names.iter().all(|n| check_name(n).is_ok()) && names[0] != names[1]);
        }
    }

    #[test]
    fn the_first_runs_alone_and_nothing_is_lost() {
        let chosen: Vec<_> = ALL.iter().collect();
        let (beside, alone) = in_turn(chosen.clone());
        assert_eq!(alone[0].name, chosen[0].name);
        assert!(beside.len() >= LABS && beside.iter().all(|s| s.is_untimed()));
        assert!(alone[1..].iter().all(|s| !s.is_untimed()));
        assert_eq!(beside.len() + alone.len(), chosen.len());
        assert!(in_turn(Vec::new()).1.is_empty());
    }
}
