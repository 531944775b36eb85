//! Decides when a mount's helper is asked, killed and replaced. Pure.
//!
//! Rules: at most one question is open. A helper that hangs while the storage is away is left
//! alone: its answer, or the next, is what tells that I/O is back, and its descriptor cannot be
//! opened anew before grace is over. It is killed when it hangs although the storage has answered
//! others for longer than its patience, or beyond all hope. Death is never waited for: a killed
//! helper may sleep in the kernel, and at most [`MOST_UNDEAD`] such are left behind (S10).

use std::collections::BTreeSet;
use std::time::Duration;

use super::protocol::{Outcome, Reply, Request, What};
use crate::core::Now;
use crate::core::phase::Probing;

/// Most helpers that are killed and not yet gone before no further one is started.
pub const MOST_UNDEAD: usize = 2;

/// Number of a helper process; each has its own.
pub type Generation = u64;

/// How long to wait for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two probes at rest.
    pub rest: Duration,
    /// Between an answer and the next question while storage moves.
    pub quick: Duration,
    /// Between two tries of what failed: a start, a hold.
    pub again: Duration,
    /// For a read, from when the storage answers others.
    pub read: Duration,
    /// For everything that opens, likewise: longer than any grace (105 s with nasd's numbers).
    pub open: Duration,
    /// For anything, whatever the storage does.
    pub hopeless: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            rest: Duration::from_secs(10),
            quick: Duration::from_millis(50),
            again: Duration::from_secs(1),
            read: Duration::from_secs(15),
            open: Duration::from_secs(180),
            hopeless: Duration::from_secs(1800),
        }
    }
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The phase asks for other probes.
    Probing(Probing),
    /// The descriptor is of no use: open it anew.
    Rehold,
    /// Guests run there, or the storage moves. Where neither is so nothing is kept open between two
    /// probes: the mount can be unmounted.
    Used(bool),
    /// The transports say since when the storage has answered; `None` while it does not.
    Answering(Option<Now>),
    /// A helper has said something; `None`: not of the protocol.
    Said(Generation, Option<Reply>),
    /// A helper is gone, or could not be started.
    Ended(Generation),
    /// Time has passed.
    Tick,
}

/// What must be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a helper.
    Start(Generation),
    /// Send it a question.
    Ask(Generation, Request),
    /// Kill it, and do not wait.
    Kill(Generation),
    /// Tell the phases.
    Report {
        /// What was asked.
        what: What,
        /// When.
        asked: Now,
        /// How it ended.
        outcome: Outcome,
    },
}

/// A question that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Open {
    id: u64,
    what: What,
    asked: Now,
}

/// The helper of now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Helper {
    generation: Generation,
    open: Option<Open>,
    holds: bool,
    prepared: bool,
    /// Alternates between reads and opens at rest.
    last: What,
    /// No question before.
    not_before: Now,
}

/// The keeper of one mount.
#[derive(Debug, Clone)]
pub struct Keeper {
    timing: Timing,
    probing: Probing,
    used: bool,
    answering: Option<Now>,
    helper: Option<Helper>,
    undead: BTreeSet<Generation>,
    generations: Generation,
    ids: u64,
    start_not_before: Now,
}

impl Keeper {
    /// Without a helper; the first [`Input::Tick`] starts one.
    #[must_use]
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
            probing: Probing::Rest,
            used: true,
            answering: None,
            helper: None,
            undead: BTreeSet::new(),
            generations: 0,
            ids: 0,
            start_not_before: Now::ZERO,
        }
    }

    /// Since when a question has been open, if one is.
    #[must_use]
    pub fn waiting_since(&self) -> Option<(What, Now)> {
        self.helper?.open.map(|o| (o.what, o.asked))
    }

    /// How many killed helpers still sleep in the kernel.
    #[must_use]
    pub fn undead(&self) -> usize {
        self.undead.len()
    }

    /// When [`Input::Tick`] is due at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Now> {
        let Some(helper) = &self.helper else {
            return (self.undead.len() < MOST_UNDEAD).then_some(self.start_not_before);
        };
        Some(match helper.open {
            Some(open) => self.end_of_patience(open),
            None => helper.not_before,
        })
    }

    /// Takes what has happened.
    pub fn step(&mut self, now: Now, input: Input) -> Vec<Action> {
        let mut actions: Vec<_> = self.take(now, input).into_iter().collect();
        actions.extend(self.lose_patience(now));
        actions.extend(self.start(now));
        actions.extend(self.ask(now));
        actions
    }

    fn take(&mut self, now: Now, input: Input) -> Option<Action> {
        match input {
            Input::Probing(probing) => self.change(now, probing),
            Input::Rehold => {
                if let Some(helper) = self.helper.as_mut() {
                    helper.holds = false;
                    helper.not_before = now;
                }
            }
            Input::Used(used) => self.use_changed(now, used),
            Input::Answering(since) => self.answering = since,
            Input::Said(generation, reply) => return self.said(now, generation, reply),
            Input::Ended(generation) => self.ended(now, generation),
            Input::Tick => {}
        }
        None
    }

    fn change(&mut self, now: Now, probing: Probing) {
        if self.probing != probing {
            self.probing = probing;
            if let Some(helper) = self.helper.as_mut() {
                helper.not_before = helper.not_before.min(now);
            }
        }
    }

    fn use_changed(&mut self, now: Now, used: bool) {
        if std::mem::replace(&mut self.used, used) != used
            && let Some(helper) = self.helper.as_mut()
        {
            helper.not_before = helper.not_before.min(now);
        }
    }

    fn ended(&mut self, now: Now, generation: Generation) {
        self.undead.remove(&generation);
        if self.helper.is_some_and(|h| h.generation == generation) {
            self.helper = None;
            self.start_not_before = now.saturating_add(self.timing.again);
        }
    }

    /// Only the helper of now counts, and only with the answer to its open question.
    fn said(&mut self, now: Now, generation: Generation, reply: Option<Reply>) -> Option<Action> {
        let timing = self.timing;
        let helper = self.helper.as_mut().filter(|h| h.generation == generation)?;
        let (Some(open), Some(reply)) = (helper.open, reply) else {
            return self.kill(now);
        };
        if reply.id != open.id {
            return self.kill(now);
        }
        let good = reply.outcome == Outcome::Good;
        helper.open = None;
        let pause = match (open.what, good, self.probing) {
            (What::Prepare | What::Hold | What::Drop, true, _) => Duration::ZERO,
            (_, false, _) => timing.again,
            (_, true, Probing::Rest) => timing.rest,
            (_, true, Probing::Reads | Probing::Opens) => timing.quick,
        };
        helper.not_before = now.saturating_add(pause);
        match open.what {
            // A share that is read-only for us may still have the file.
            What::Prepare => helper.prepared = true,
            What::Hold => helper.holds = good,
            What::Drop => helper.holds = false,
            What::Read | What::Open => helper.last = open.what,
            What::Visit => {}
        }
        Some(Action::Report { what: open.what, asked: open.asked, outcome: reply.outcome })
    }

    fn kill(&mut self, now: Now) -> Option<Action> {
        let helper = self.helper.take()?;
        self.undead.insert(helper.generation);
        self.start_not_before = now.saturating_add(self.timing.again);
        Some(Action::Kill(helper.generation))
    }

    fn end_of_patience(&self, open: Open) -> Now {
        let hopeless = open.asked.saturating_add(self.timing.hopeless);
        let patience = match open.what {
            What::Read | What::Drop => self.timing.read,
            What::Prepare | What::Hold | What::Open | What::Visit => self.timing.open,
        };
        let answering = self.answering.map(|a| a.max(open.asked).saturating_add(patience));
        answering.map_or(hopeless, |end| end.min(hopeless))
    }

    fn lose_patience(&mut self, now: Now) -> Option<Action> {
        let open = self.helper?.open?;
        if now < self.end_of_patience(open) { None } else { self.kill(now) }
    }

    fn start(&mut self, now: Now) -> Option<Action> {
        let full = self.undead.len() >= MOST_UNDEAD;
        if self.helper.is_some() || full || now < self.start_not_before {
            return None;
        }
        self.generations = self.generations.saturating_add(1);
        let generation = self.generations;
        self.helper = Some(Helper {
            generation,
            open: None,
            holds: false,
            prepared: false,
            last: What::Open,
            not_before: now,
        });
        Some(Action::Start(generation))
    }

    fn ask(&mut self, now: Now) -> Option<Action> {
        let (probing, used) = (self.probing, self.used);
        let helper = self.helper.as_mut()?;
        if helper.open.is_some() || now < helper.not_before {
            return None;
        }
        let what = next(helper, probing, used);
        self.ids = self.ids.saturating_add(1);
        helper.open = Some(Open { id: self.ids, what, asked: now });
        Some(Action::Ask(helper.generation, Request { id: self.ids, what }))
    }
}

/// The file is made at rest only: making one waits for grace, and the read does not.
fn next(helper: &Helper, probing: Probing, used: bool) -> What {
    match (helper.holds, helper.prepared, probing) {
        (true, _, Probing::Rest) if !used => What::Drop,
        (false, true, Probing::Rest) if !used => What::Visit,
        (false, false, Probing::Rest) => What::Prepare,
        (false, _, _) => What::Hold,
        (true, _, Probing::Reads) => What::Read,
        (true, _, Probing::Opens) => What::Open,
        (true, _, Probing::Rest) if helper.last == What::Read => What::Open,
        (true, _, Probing::Rest) => What::Read,
    }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
