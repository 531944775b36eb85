//! When a check's findings make the node unfit, and when it is fit again. Pure.
//!
//! Keeps two things: health never flaps (a check must fail for its whole window and be well for
//! longer to clear), and what is not known is neither good nor bad (S12): it begins no verdict and
//! ends none.

use std::time::Duration;

use crate::core::view::Now;

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// As it must be.
    Well,
    /// Not as it must be.
    Bad {
        /// Since when, as far as known; not later than the look.
        since: Now,
        /// The evidence.
        why: String,
    },
    /// It could not be seen.
    Unknown,
    /// There is nothing to check in this stage.
    Idle,
}

/// How long findings must last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Bad for so long: unfit.
    pub fail: Duration,
    /// Well (or idle) for so long: fit again.
    pub clear: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Well,
    Suspect { since: Now },
    Unfit { since: Now, why: String, well_since: Option<Now> },
}

/// One check over time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judge {
    window: Window,
    floor: Now,
    state: State,
}

impl Judge {
    /// Nothing found yet.
    #[must_use]
    pub fn new(window: Window) -> Self {
        Self { window, floor: Now::ZERO, state: State::Well }
    }

    /// Takes one finding.
    pub fn hear(&mut self, now: Now, finding: Finding) {
        match finding {
            Finding::Well | Finding::Idle => self.well(now),
            Finding::Bad { since, why } => self.bad(now, since.max(self.floor).min(now), why),
            Finding::Unknown => self.unknown(),
        }
    }

    /// Time passed in which nobody looked (this process, or its node, stood still): no suspicion
    /// reaches back beyond it.
    pub fn forget(&mut self, now: Now) {
        self.floor = now;
        self.unknown();
    }

    /// Since when it is unfit, and why.
    #[must_use]
    pub fn verdict(&self) -> Option<(Now, &str)> {
        match &self.state {
            State::Unfit { since, why, .. } => Some((*since, why)),
            _ => None,
        }
    }

    fn well(&mut self, now: Now) {
        match &mut self.state {
            State::Well => {}
            State::Suspect { .. } => self.state = State::Well,
            State::Unfit { well_since, .. } => {
                let since = *well_since.get_or_insert(now);
                if now.saturating_sub(since) >= self.window.clear {
                    self.state = State::Well;
                }
            }
        }
    }

    fn bad(&mut self, now: Now, since: Now, why: String) {
        let since = match &mut self.state {
            State::Well => since,
            State::Suspect { since: first } => since.min(*first),
            State::Unfit { well_since, .. } => {
                *well_since = None;
                return;
            }
        };
        self.state = if now.saturating_sub(since) >= self.window.fail {
            State::Unfit { since, why, well_since: None }
        } else {
            State::Suspect { since }
        };
    }

    fn unknown(&mut self) {
        match &mut self.state {
            State::Well => {}
            State::Suspect { .. } => self.state = State::Well,
            State::Unfit { well_since, .. } => *well_since = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOW: Window = Window { fail: Duration::from_secs(3), clear: Duration::from_secs(10) };

    fn at(seconds: u64) -> Now {
        Duration::from_secs(seconds)
    }

    fn bad(since: u64) -> Finding {
        Finding::Bad { since: at(since), why: "e".into() }
    }

    #[test]
    fn it_must_fail_for_the_whole_window() {
        let mut judge = Judge::new(WINDOW);
        judge.hear(at(10), bad(10));
        judge.hear(at(12), bad(12));
        assert_eq!(judge.verdict(), None);
        judge.hear(at(13), bad(13));
        assert_eq!(judge.verdict(), Some((at(10), "e")));
    }

    #[test]
    fn one_good_or_unknown_look_ends_a_suspicion() {
        for between in [Finding::Well, Finding::Idle, Finding::Unknown] {
            let mut judge = Judge::new(WINDOW);
            judge.hear(at(10), bad(10));
            judge.hear(at(11), between);
            judge.hear(at(13), bad(13));
            assert_eq!(judge.verdict(), None);
        }
    }

    #[test]
    fn it_clears_only_after_being_well_for_longer() {
        let mut judge = Judge::new(WINDOW);
        judge.hear(at(10), bad(7));
        assert!(judge.verdict().is_some());
        judge.hear(at(11), Finding::Well);
        judge.hear(at(20), Finding::Unknown);
        judge.hear(at(22), Finding::Well);
        judge.hear(at(31), Finding::Well);
        assert!(judge.verdict().is_some(), "unknown is no evidence of health");
        judge.hear(at(32), Finding::Well);
        assert_eq!(judge.verdict(), None);
    }

    #[test]
    fn a_pause_of_the_process_is_nobodys_fault() {
        let mut judge = Judge::new(WINDOW);
        judge.hear(at(10), bad(10));
        judge.forget(at(60));
        judge.hear(at(60), bad(11));
        assert_eq!(judge.verdict(), None);
        judge.hear(at(63), bad(11));
        assert_eq!(judge.verdict(), Some((at(60), "e")));
    }

    fn any_finding() -> impl Strategy<Value = u8> {
        0u8..4
    }

    proptest! {
        /// Against a plain reading of the rule over the whole history.
        #[test]
        fn verdicts_follow_from_the_history(looks in prop::collection::vec(any_finding(), 1..80)) {
            let mut judge = Judge::new(WINDOW);
            let (mut run_bad, mut run_well, mut unfit) = (0u64, 0u64, false);
            for (second, kind) in looks.into_iter().enumerate() {
                let now = at(second as u64);
                let finding = match kind {
                    0 => Finding::Well,
                    1 => Finding::Idle,
                    2 => Finding::Unknown,
                    _ => Finding::Bad { since: now, why: "e".into() },
                };
                let good = kind < 2;
                run_bad = if kind == 3 { run_bad + 1 } else { 0 };
                run_well = if good { run_well + 1 } else { 0 };
                // A run of n looks, one a second, spans n - 1 seconds.
                if !unfit && run_bad > 3 {
                    unfit = true;
                } else if unfit && run_well > 10 {
                    unfit = false;
                }
                judge.hear(now, finding);
                prop_assert_eq!(judge.verdict().is_some(), unfit);
            }
        }
    }
}
