//! When to stop calling a service that hangs, and when to try it again.
//!
//! Pure: time comes in. Each call that was given up still holds one of the bridge's threads (four by
//! default) until it is answered, so what counts are the **outstanding** calls, not an average. A
//! hang ends by a late answer, by a probe that is answered, or by the service's restart.
//!
//! ```text
//!            `trip` calls outstanding                 rest over, room for one more
//!   closed ───────────────────────────────▶ open ──────────────────────────────────▶ half open
//!     ▲                                      ▲  ▲                                        │
//!     └── all late answers came, or restart ─┘  └── probe given up: rest doubles ────────┤
//!     └──────────────────────────── probe answered ──────────────────────────────────────┘
//! ```

use std::time::Duration;

use crate::core::Now;

/// The breaker's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// So many calls outstanding open it.
    pub trip: u32,
    /// No call at all, not even a probe, beyond so many outstanding.
    pub most: u32,
    /// First rest before a probe.
    pub rest: Duration,
    /// The longest rest; each failed probe doubles it up to that.
    pub longest_rest: Duration,
}

impl Default for Policy {
    /// For libvirt-dbus with its four threads: opens at two hung calls and leaves one thread free
    /// for others. Probes after 2 s, then ever more rarely down to once a minute.
    fn default() -> Self {
        let (rest, longest_rest) = (Duration::from_secs(2), Duration::from_secs(60));
        Self { trip: 2, most: 3, rest, longest_rest }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Now, rest: Duration },
    HalfOpen { probe: u64, rest: Duration },
}

/// The state for a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Calls are made.
    Closed,
    /// No calls are made.
    Open,
    /// One call is made, to see.
    HalfOpen,
}

/// Leave to make one call. Give it back with [`Breaker::answered`] or [`Breaker::given_up`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Ticket {
    number: u64,
    generation: u64,
}

/// A call must not be made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Calls whose answers are still out.
    pub outstanding: u32,
    /// When to ask again; a late answer may make it sooner.
    pub wait: Duration,
}

/// The state machine.
#[derive(Debug)]
pub struct Breaker {
    policy: Policy,
    state: State,
    outstanding: u32,
    next: u64,
    generation: u64,
}

impl Breaker {
    /// Closed.
    #[must_use]
    pub const fn new(policy: Policy) -> Self {
        Self { policy, state: State::Closed, outstanding: 0, next: 0, generation: 0 }
    }

    /// Asks for leave to make a call.
    pub fn ask(&mut self, now: Now) -> Result<Ticket, Refused> {
        match self.state {
            State::Closed => Ok(self.ticket()),
            State::HalfOpen { rest, .. } => Err(self.refused(rest)),
            State::Open { until, rest } if now < until => {
                Err(self.refused(until - now).at_most(rest))
            }
            State::Open { rest, .. } if self.outstanding >= self.policy.most => {
                Err(self.refused(rest))
            }
            State::Open { rest, .. } => {
                let ticket = self.ticket();
                self.state = State::HalfOpen { probe: ticket.number, rest };
                Ok(ticket)
            }
        }
    }

    /// The call was answered, with whatever. Also for a call that was never made after all.
    pub fn answered(&mut self, ticket: Ticket) {
        if self.is_probe(ticket) {
            self.state = State::Closed;
        }
    }

    /// The caller does not wait for the answer any longer.
    pub fn given_up(&mut self, ticket: Ticket, now: Now) {
        if ticket.generation != self.generation {
            return;
        }
        self.outstanding = self.outstanding.saturating_add(1);
        match self.state {
            State::HalfOpen { probe, rest } if probe == ticket.number => {
                self.open(now, rest.saturating_mul(2).min(self.policy.longest_rest));
            }
            State::Closed if self.outstanding >= self.policy.trip => {
                self.open(now, self.policy.rest)
            }
            _ => {}
        }
    }

    /// A call that was given up has been answered now, or its connection has ended.
    pub fn late_answer(&mut self, ticket: Ticket) {
        if ticket.generation != self.generation {
            return;
        }
        self.outstanding = self.outstanding.saturating_sub(1);
        if self.outstanding == 0 && matches!(self.state, State::Open { .. }) {
            self.state = State::Closed;
        }
    }

    /// The service was restarted: what was outstanding died with it.
    pub const fn restarted(&mut self) {
        self.state = State::Closed;
        self.outstanding = 0;
        self.generation = self.generation.wrapping_add(1);
    }

    /// For reports.
    #[must_use]
    pub const fn health(&self) -> Health {
        match self.state {
            State::Closed => Health::Closed,
            State::Open { .. } => Health::Open,
            State::HalfOpen { .. } => Health::HalfOpen,
        }
    }

    /// Calls given up and not answered since.
    #[must_use]
    pub const fn outstanding(&self) -> u32 {
        self.outstanding
    }

    fn open(&mut self, now: Now, rest: Duration) {
        self.state = State::Open { until: now.saturating_add(rest), rest };
    }

    const fn ticket(&mut self) -> Ticket {
        self.next = self.next.wrapping_add(1);
        Ticket { number: self.next, generation: self.generation }
    }

    fn is_probe(&self, ticket: Ticket) -> bool {
        let ours = ticket.generation == self.generation;
        ours && matches!(self.state, State::HalfOpen { probe, .. } if probe == ticket.number)
    }

    const fn refused(&self, wait: Duration) -> Refused {
        Refused { outstanding: self.outstanding, wait }
    }
}

impl Refused {
    /// A clock that jumped must not make anybody wait longer than a rest.
    fn at_most(self, rest: Duration) -> Self {
        Self { wait: self.wait.min(rest), ..self }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A breaker with two calls hanging since 10 s.
    fn tripped() -> (Breaker, [Ticket; 2]) {
        let mut breaker = Breaker::new(Policy::default());
        let tickets = [breaker.ask(s(8)).unwrap(), breaker.ask(s(8)).unwrap()];
        for ticket in tickets {
            breaker.given_up(ticket, s(10));
        }
        (breaker, tickets)
    }

    #[test]
    fn s10_hung_calls_open_it_and_only_one_probe_passes_after_a_rest() {
        let (mut breaker, _) = tripped();
        assert_eq!(breaker.ask(s(11)), Err(Refused { outstanding: 2, wait: s(1) }));
        let probe = breaker.ask(s(12)).unwrap();
        assert_eq!(breaker.health(), Health::HalfOpen);
        assert!(breaker.ask(s(12)).is_err(), "one at a time");
        breaker.answered(probe);
        assert_eq!(breaker.health(), Health::Closed);
    }

    #[test]
    fn s10_no_probe_takes_the_last_thread() {
        let (mut breaker, tickets) = tripped();
        let probe = breaker.ask(s(12)).unwrap();
        breaker.given_up(probe, s(14));
        assert_eq!(breaker.outstanding(), 3);
        assert!(breaker.ask(s(1000)).is_err(), "three of four threads hang: no more");
        breaker.late_answer(tickets[0]);
        assert!(breaker.ask(s(1000)).is_ok(), "one came back");
    }

    #[test]
    fn the_rest_doubles_with_each_failed_probe() {
        let (mut breaker, mut tickets) = tripped();
        let mut rests = Vec::new();
        let mut now = s(12);
        for _ in 0..7 {
            let probe = breaker.ask(now).unwrap();
            breaker.given_up(probe, now);
            breaker.late_answer(std::mem::replace(&mut tickets[0], probe));
            rests.push(breaker.ask(now).unwrap_err().wait.as_secs());
            now += s(60);
        }
        assert_eq!(rests, [4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn it_closes_when_everything_was_answered_late() {
        let (mut breaker, tickets) = tripped();
        breaker.late_answer(tickets[0]);
        assert_eq!(breaker.health(), Health::Open);
        breaker.late_answer(tickets[1]);
        assert_eq!(breaker.health(), Health::Closed);
    }

    #[test]
    fn a_restart_forgets_what_hung() {
        let (mut breaker, tickets) = tripped();
        breaker.restarted();
        assert_eq!((breaker.health(), breaker.outstanding()), (Health::Closed, 0));
        let new = breaker.ask(s(20)).unwrap();
        breaker.given_up(new, s(21));
        breaker.late_answer(tickets[0]);
        assert_eq!(breaker.outstanding(), 1, "an answer from before does not count");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ask,
        Answer(prop::sample::Index),
        GiveUp(prop::sample::Index),
        Late(prop::sample::Index),
        Restart,
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Ask),
            2 => any::<prop::sample::Index>().prop_map(Step::Answer),
            3 => any::<prop::sample::Index>().prop_map(Step::GiveUp),
            2 => any::<prop::sample::Index>().prop_map(Step::Late),
            1 => Just(Step::Restart),
            3 => (0_u64..90).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Whatever happens: the count is the true one, a breaker with `most` hung calls lets
        /// nobody through unless it is closed, and after a restart it always does.
        #[test]
        fn the_breaker_counts_right_and_never_locks_up(steps in prop::collection::vec(step(), 0..200)) {
            let mut breaker = Breaker::new(Policy::default());
            let (mut out, mut hung, mut now) = (Vec::new(), Vec::new(), s(0));
            for step in steps {
                match step {
                    Step::Ask => {
                        let closed = breaker.health() == Health::Closed;
                        if let Ok(ticket) = breaker.ask(now) {
                            prop_assert!(closed || hung.len() < 3);
                            out.push(ticket);
                        }
                    }
                    Step::Answer(at) if !out.is_empty() => {
                        breaker.answered(out.swap_remove(at.index(out.len())));
                    }
                    Step::GiveUp(at) if !out.is_empty() => {
                        let ticket = out.swap_remove(at.index(out.len()));
                        breaker.given_up(ticket, now);
                        hung.push(ticket);
                    }
                    Step::Late(at) if !hung.is_empty() => {
                        breaker.late_answer(hung.swap_remove(at.index(hung.len())));
                    }
                    Step::Restart => {
                        breaker.restarted();
                        out.clear();
                        hung.clear();
                        prop_assert_eq!(breaker.health(), Health::Closed);
                    }
                    Step::Pass(seconds) => now += s(seconds),
                    _ => {}
                }
                prop_assert_eq!(breaker.outstanding() as usize, hung.len());
            }
            // Once nothing hangs and nothing is under way, a rest later it lets a call through.
            for ticket in out { breaker.answered(ticket); }
            for ticket in hung { breaker.late_answer(ticket); }
            prop_assert!(breaker.ask(now + s(61)).is_ok());
        }
    }
}
