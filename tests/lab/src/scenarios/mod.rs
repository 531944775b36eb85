//! The scenarios, and what runs them.

mod boot;

use std::time::Duration;

use crate::engine::Engine;
use crate::error::LabError;
use crate::lab::Lab;
use crate::report::ScenarioReport;
use crate::spec::Spec;

/// One scenario.
pub struct Scenario {
    /// As it is typed.
    pub name: &'static str,
    /// One line for `lab list`.
    pub summary: &'static str,
    /// The only engine it runs on; any when `None`.
    pub engine: Option<Engine>,
    /// Too long for every run of `lab test`.
    pub nightly: bool,
    /// Hypervisors it needs.
    pub clients: usize,
    /// Runs it in a lab that has just been brought up, and fills in the report; `scenario` and `engine` are filled
    /// in already.
    pub run: fn(&mut Ctx) -> Result<(), LabError>,
}

/// What a scenario works with.
pub struct Ctx {
    /// The lab; all nodes answer.
    pub lab: Lab,
    /// The report; `ok` is true at the start.
    pub report: ScenarioReport,
}

impl Ctx {
    /// Records a demand: when it is not met, the report says so and is no longer `ok`.
    pub fn demand(&mut self, met: bool, what: &str) {
        if !met {
            self.report.ok = false;
            self.report.notes.push(format!("not met: {what}"));
        }
    }

    /// `limit` under User-Mode Linux; more on slower engines.
    #[must_use]
    pub fn patience(&self, limit: Duration) -> Duration {
        limit * self.lab.engine().patience()
    }
}

/// All scenarios, in the order of `lab test`.
pub const ALL: &[Scenario] = &[boot::SCENARIO];

/// The scenario that `lab demo` runs.
pub const DEMO: &str = "boot";

/// The scenario of this name.
///
/// # Errors
/// [`LabError::NoScenario`].
pub fn find(name: &str) -> Result<&'static Scenario, LabError> {
    let none = || LabError::NoScenario { name: name.to_owned() };
    ALL.iter().find(|s| s.name == name).ok_or_else(none)
}

impl Scenario {
    /// Brings a lab up for it, runs it, takes the lab down. A scenario that cannot go on yields a report that is
    /// not `ok` and says why.
    ///
    /// # Errors
    /// If the lab does not come up.
    pub fn play(&self, spec: &Spec) -> Result<ScenarioReport, LabError> {
        let engine = self.engine.or(spec.engine);
        let clients = self.clients.max(1);
        let lab = Lab::up(&Spec { engine, clients, ..spec.clone() })?;
        let report = ScenarioReport {
            scenario: self.name.to_owned(),
            engine: lab.engine().name().to_owned(),
            ok: true,
            ..ScenarioReport::default()
        };
        let mut ctx = Ctx { lab, report };
        if let Err(e) = (self.run)(&mut ctx) {
            ctx.report.ok = false;
            ctx.report.notes.push(e.to_string());
        }
        ctx.lab.down()?;
        Ok(ctx.report)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_the_demo_exists() {
        let names: HashSet<_> = ALL.iter().map(|s| s.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(find(DEMO).is_ok());
        assert!(matches!(find("none"), Err(LabError::NoScenario { .. })));
    }
}
