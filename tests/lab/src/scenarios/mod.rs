//! The scenarios, and what runs them.

mod bed;
mod boot;
mod cold;
mod coordinator;
mod crash;
mod cuts;
mod demo;
mod disks;
mod faults;
mod frozen;
mod gate;
mod hyper;
mod killed;
mod late;
mod meddling;
mod mid_move;
mod operator;
mod recovery;
mod refusals;
mod server;
mod soak;
mod switchover;

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
    /// Time bounds are multiplied by this: 1 for `lab run`, 5 for `lab test` on a noisy machine.
    pub slack: f64,
    /// Seed of random choices.
    pub seed: u64,
    /// How long faults are injected, minutes, where that is a choice; the scenario's own time when `None`.
    pub minutes: Option<u32>,
}

impl Ctx {
    /// Records a demand: when it is not met, the report says so and is no longer `ok`.
    pub fn demand(&mut self, met: bool, what: &str) {
        if !met {
            self.report.ok = false;
            self.report.notes.push(format!("not met: {what}"));
        }
    }

    /// A time bound: demanded with the slack, and printed with what was measured.
    pub fn bound(&mut self, what: &str, measured: Option<f64>, limit: f64) {
        let met = measured.is_some_and(|m| m <= limit * self.slack);
        self.report.bounds.insert(what.to_owned(), limit.into());
        self.demand(met, &format!("{what}: {measured:?} exceeds {limit} × {}", self.slack));
    }

    /// `limit` under User-Mode Linux; more on slower engines.
    #[must_use]
    pub fn patience(&self, limit: Duration) -> Duration {
        limit * self.lab.engine().patience()
    }
}

/// All scenarios, in the order of `lab test`.
pub const ALL: &[Scenario] = &[
    boot::SCENARIO,
    faults::SCENARIO,
    demo::SCENARIO,
    switchover::SWITCHOVER,
    switchover::TWO_SERVICES,
    refusals::BUSY,
    refusals::WRONG_DISK,
    killed::SCENARIO,
    gate::SCENARIO,
    crash::ACTIVE,
    crash::STANDBY,
    crash::TWO,
    frozen::NASD,
    frozen::NASD_SHORT,
    frozen::NODE,
    frozen::FENCED,
    cuts::REPLICATION,
    cuts::CLIENTS,
    cuts::ACTIVE,
    cuts::STANDBY,
    cuts::COORDINATOR,
    frozen::CRASH_LOOP,
    frozen::UPGRADE,
    cuts::CARRIER,
    cuts::RETURNS,
    mid_move::SOME,
    mid_move::ALL,
    cold::BOTH,
    cold::STALE,
    cold::DOUBLE,
    cold::RESYNC,
    coordinator::DOWN,
    coordinator::LEADER,
    coordinator::NOSPACE,
    coordinator::RESTORED,
    disks::STANDBY,
    disks::OWNER,
    disks::HANG,
    server::READONLY,
    server::STUCK,
    meddling::OPERATOR,
    meddling::HELPER,
    operator::RECOVERS,
    late::OPENING,
    late::CLIENTS,
    hyper::MIGRATE,
    hyper::SWITCHOVER,
    hyper::BOTH,
    hyper::KILL,
    hyper::GRACE,
    hyper::MARGIN,
    hyper::WAY_BACK,
    hyper::CRASH,
    hyper::LIBVIRT,
    hyper::STORAGE,
    hyper::POOL,
    hyper::ADDRESS,
    hyper::SOFT,
    hyper::LOCKSPACE,
    hyper::CLOCK,
    hyper::FORGET,
    hyper::REST,
    soak::SCENARIO,
    switchover::STOCK_KERNEL,
];

/// Those in which nothing is timed: they may run beside each other.
const UNTIMED: [&str; 9] = [
    "boot",
    "faults",
    "switchover-busy",
    "switchover-wrong-disk",
    "nasd-killed-at-each-step",
    "gate",
    "both-power-cut",
    "migrate-vm",
    "switchover-under-vm",
];

/// The scenario that `lab demo` runs.
pub const DEMO: &str = "demo";

/// The report for people; that of the demonstration leads with its timeline.
#[must_use]
pub fn to_text(report: &ScenarioReport) -> String {
    let mut rest = report.clone();
    demo::to_text(&mut rest) + &rest.to_text()
}

/// The scenario of this name.
///
/// # Errors
/// [`LabError::NoScenario`].
pub fn find(name: &str) -> Result<&'static Scenario, LabError> {
    let none = || LabError::NoScenario { name: name.to_owned() };
    ALL.iter().find(|s| s.name == name).ok_or_else(none)
}

impl Scenario {
    /// Whether nothing in it is timed, so that another one may run beside it.
    #[must_use]
    pub fn is_untimed(&self) -> bool {
        UNTIMED.contains(&self.name)
    }

    /// Whether it runs on the engine that the user asks for, if any.
    #[must_use]
    pub fn runs_on(&self, asked: Option<Engine>) -> bool {
        self.engine.is_none() || asked.is_none() || self.engine == asked
    }

    /// Time bounds are demanded times `slack`.
    ///
    /// Brings a lab up for it, runs it, takes the lab down unless it is to be kept. A scenario that cannot go on yields a report that is
    /// not `ok` and says why.
    ///
    /// # Errors
    /// If the lab does not come up.
    pub fn play(&self, spec: &Spec, keep: bool, slack: f64) -> Result<ScenarioReport, LabError> {
        let engine = self.engine.or(spec.engine);
        let clients = self.clients.max(1);
        let lab = Lab::up(&Spec { engine, clients, ..spec.clone() })?;
        let report = ScenarioReport {
            scenario: self.name.to_owned(),
            engine: lab.engine().name().to_owned(),
            ok: true,
            ..ScenarioReport::default()
        };
        let seed = spec.seed.unwrap_or_default();
        let mut ctx = Ctx { lab, report, slack, seed, minutes: spec.minutes };
        if let Err(e) = (self.run)(&mut ctx) {
            ctx.report.ok = false;
            ctx.report.notes.push(e.to_string());
        }
        if !ctx.report.ok {
            let kept = ctx.lab.keep_logs(self.name);
            ctx.report.notes.push(format!("consoles and journals: {}", kept.display()));
        }
        if keep {
            ctx.lab.keep();
        } else {
            ctx.lab.down()?;
        }
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
        assert!(UNTIMED.iter().all(|name| find(name).is_ok()));
        assert!(matches!(find("none"), Err(LabError::NoScenario { .. })));
    }
}
