//! What sanlock's last answer means for each mount: margin, next renewal, and what must be said.
//!
//! Keeps S12: once a lease has been seen here, a sanlock that does not answer means that no margin is known,
//! and no move is welcome.

use std::path::Path;
use std::time::Duration;

use crate::core::Now;
use crate::core::finding::{Finding, Severity};
use crate::sanlock::{Expected, Outlook, Space, Survey, check, gone};

/// An answer older than this says nothing any more.
const STALE: Duration = Duration::from_secs(60);

/// The last answers.
#[derive(Debug, Clone, Default)]
pub struct Leases {
    expected: Expected,
    last: Option<Survey>,
    silent: Option<String>,
    gone: Vec<Finding>,
}

impl Leases {
    /// Before the first answer. Those lockspaces must be joined.
    #[must_use]
    pub fn new(lockspaces: Vec<String>) -> Self {
        let expected = Expected { in_use: !lockspaces.is_empty(), lockspaces, stall: None };
        Self { expected, ..Self::default() }
    }

    /// Takes an answer, or that there is none.
    pub fn take(&mut self, answer: Result<Option<Survey>, String>) {
        match answer {
            Ok(Some(survey)) => self.survey(survey),
            Ok(None) if !self.expected.in_use => self.silent = None,
            Ok(None) => self.silent = Some("nobody listens on sanlock's socket".to_owned()),
            Err(why) => self.silent = Some(why),
        }
    }

    fn survey(&mut self, survey: Survey) {
        if let Some(before) = &self.last {
            let lost = gone(before, &survey);
            self.gone.retain(|f| !survey.names().any(|name| name == f.subject));
            self.gone.retain(|f| lost.iter().all(|l| l.subject != f.subject));
            self.gone.extend(lost);
        }
        self.expected.in_use |= survey.names().next().is_some();
        self.silent = None;
        self.last = Some(survey);
    }

    /// The longest stall that was seen of a mount: what `io_timeout` must survive.
    pub fn stalled(&mut self, stall: Duration) {
        self.expected.stall = self.expected.stall.max(Some(stall));
    }

    fn on<'a>(&'a self, mount: &'a Path) -> impl Iterator<Item = &'a Space> {
        let spaces = self.last.iter().flat_map(|survey| &survey.spaces);
        spaces.filter(move |space| Path::new(&space.lockspace.disk.path).starts_with(mount))
    }

    /// What a stall of that mount may last; `None`: no lease is there. Zero: not known, or lost.
    #[must_use]
    pub fn margin(&self, mount: &Path, now: Now) -> Option<Duration> {
        let survey = self.last.as_ref()?;
        let of = |s: &Space| survey.lease(s).map_or(Duration::ZERO, |lease| lease.margin(now));
        self.on(mount).map(of).min()
    }

    /// Until the next renewal there.
    #[must_use]
    pub fn next_renewal(&self, mount: &Path, now: Now) -> Option<Duration> {
        let survey = self.last.as_ref()?;
        let lease = |space| survey.lease(space);
        self.on(mount).filter_map(lease).map(|lease| lease.next_renewal(now)).max()
    }

    /// Why a move of that mount with such an outage should not begin now, and when it might.
    #[must_use]
    pub fn objections(
        &self,
        mount: &Path,
        outage: Duration,
        now: Now,
    ) -> Vec<(String, Option<Duration>)> {
        let old = self.last.as_ref().is_some_and(|s| now.saturating_sub(s.taken) > STALE);
        if self.expected.in_use && (self.silent.is_some() || self.last.is_none() || old) {
            let why = self.silent.as_deref().unwrap_or("it has not been heard for too long");
            let words = format!("sanlock does not answer, so no margin is known: {why}");
            return vec![(words, None)];
        }
        self.on(mount).filter_map(|space| self.objection(space, outage, now)).collect()
    }

    fn objection(
        &self,
        space: &Space,
        outage: Duration,
        now: Now,
    ) -> Option<(String, Option<Duration>)> {
        let name = &space.lockspace.name;
        let Some(lease) = self.last.as_ref().and_then(|survey| survey.lease(space)) else {
            return Some((format!("lockspace {name} has no lease whose age is known"), None));
        };
        let margin = lease.margin(now).as_secs();
        match lease.outlook(outage, now) {
            Outlook::Survives { .. } => None,
            Outlook::AfterRenewal { wait } => {
                let words = format!(
                    "the lease in {name} has {margin} s left, less than the move \
                                     may last; after its next renewal it suffices"
                );
                Some((words, Some(wait)))
            }
            Outlook::RunningOut => Some((
                format!("the lease in {name} is running out: {margin} s left, renewals stall"),
                None,
            )),
            Outlook::Lost { needed_io_timeout } => {
                let outage = outage.as_secs();
                let words = format!(
                    "a stall of {outage} s would cost the guests of {name} their \
                                     lease; io_timeout {needed_io_timeout} would survive it"
                );
                Some((words, None))
            }
        }
    }

    /// Lockspaces of that mount whose lease is lost: their guests are being killed.
    #[must_use]
    pub fn lost(&self, mount: &Path) -> Vec<String> {
        let dead = |s: &&Space| s.lockspace.dead || s.lockspace.corrupt.is_some();
        let words = |s: &Space| format!("the lease in lockspace {} is lost", s.lockspace.name);
        self.on(mount).filter(dead).map(words).collect()
    }

    /// Everything to be said, without mere information.
    #[must_use]
    pub fn problems(&self, now: Now) -> Vec<String> {
        let silent = self.silent.as_ref().filter(|_| self.expected.in_use);
        let silent = silent.map(|why| format!("sanlock does not answer: {why}"));
        let checked = self.last.iter().flat_map(|survey| check(survey, &self.expected, now));
        let told = checked.chain(self.gone.iter().cloned());
        let told = told.filter(|finding| finding.severity >= Severity::Warning);
        let words = |f: Finding| format!("{}: {}; {}", f.subject, f.evidence, f.remedy);
        silent.into_iter().chain(told.map(words)).collect()
    }
}
