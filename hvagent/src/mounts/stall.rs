//! Stalls of a mount and failovers of its server, told from transport counters alone.
//!
//! A pure machine: `step(now, reading)` gives events. Rules kept: S10 (counters are all it needs)
//! and S12 (an unreadable sample neither begins nor ends a stall).
//!
//! `sends - recvs` is *not* the number of unanswered requests. What a lost connection swallowed and
//! what the client answered to the server's callbacks stays in the difference for ever. So the
//! difference is compared with its own **floor**: the least it was whenever answers moved, over the
//! last 30 to 60 s of this connection. Where the kernel gives the number of waiting requests
//! (`pending_q_len`), that number decides and the floor is not asked. Requests sent since the last
//! answer are unanswered whatever the floor is.
//!
//! Limits without that number (kernels before 5.14): a stall in which all slots were busy all the
//! time before and nothing new is sent shows only with the client's next lease renewal, and begins
//! there; and an answer to a callback counts as a waiting request until that renewal.

use std::collections::BTreeMap;
use std::time::Duration;

use super::mountstats::TcpTransport;
use crate::core::Now;

/// Half of the time over which a floor is remembered: longer than the pause between two lease
/// renewals of an idle client (two thirds of a lease; 10 s with the lease of 15 s that nasd sets).
const FLOOR_HALF: Duration = Duration::from_secs(30);

/// How long answers must be frozen before it is called a stall. Ordinary requests on a loaded
/// server take tenths of a second; hvagent takes 2 s for a sign of an unplanned failover.
pub const DEFAULT_THRESHOLD: Duration = Duration::from_millis(500);

/// What was read of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading {
    /// The counters of its transports, in the kernel's order.
    Counters {
        /// One for each connection (`nconnect`).
        transports: Vec<TcpTransport>,
        /// Requests that wait for an answer, these transports together; `None` where the kernel
        /// does not say.
        pending: Option<u64>,
    },
    /// Not readable or not understood: nothing is known.
    Unknown,
    /// The mount is not there any more.
    Gone,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// No answer for longer than the threshold while at least one request waits.
    Stalled {
        /// When it began.
        since: Now,
    },
    /// Answers flow again.
    Ended(Report),
    /// A new connection was made: the server's side broke the old one. A failover, or a restart.
    Reconnected {
        /// How many connections more than in the last sample.
        connections: u64,
        /// When it was seen.
        at: Now,
    },
    /// Counters went backwards: another mount is in the same place. What was running is forgotten.
    Restarted,
}

/// One stall that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// First sample at which the request that then waited was seen.
    pub begin: Now,
    /// First sample at which an answer was seen again, or at which the mount was gone.
    pub end: Now,
    /// Longest pause between two samples around both ends: the length is right to this much.
    pub resolution: Duration,
    /// Whether a new connection was made in it.
    pub reconnected: bool,
}

impl Report {
    /// How long it lasted, right to [`Report::resolution`].
    #[must_use]
    pub fn length(&self) -> Duration {
        self.end.saturating_sub(self.begin)
    }
}

/// Least difference of the last 30 to 60 s, in two halves.
#[derive(Debug, Clone, Copy)]
struct Floor {
    half_since: Now,
    before: u64,
    present: u64,
}

impl Floor {
    fn new(now: Now, value: u64) -> Self {
        Self { half_since: now, before: value, present: value }
    }

    fn least(&self) -> u64 {
        self.before.min(self.present)
    }

    fn note(&mut self, now: Now, value: u64) {
        if now.saturating_sub(self.half_since) >= FLOOR_HALF {
            *self = Self { half_since: now, before: self.present, present: value };
        }
        self.present = self.present.min(value);
    }
}

/// One transport between two samples.
#[derive(Debug, Clone)]
struct Line {
    last: TcpTransport,
    /// `sends` when answers last moved.
    sends_then: u64,
    /// `None` from a reconnection until its first answer.
    floor: Option<Floor>,
    /// Since when a request waits, as far as samples tell, while answers are frozen.
    waiting: Option<Now>,
    /// The kernel's number in the last sample.
    known: Option<u64>,
}

impl Line {
    fn new(now: Now, first: TcpTransport) -> Self {
        let floor = Some(Floor::new(now, excess(&first)));
        Self { last: first, sends_then: first.sends, floor, waiting: None, known: None }
    }

    fn backwards(&self, next: &TcpTransport) -> bool {
        let l = &self.last;
        next.sends < l.sends || next.recvs < l.recvs || next.connects < l.connects
    }

    /// Takes the next sample; `pending` decides where it is given. Gives the number of new connections.
    fn take(&mut self, now: Now, next: TcpTransport, pending: Option<u64>) -> u64 {
        let connections = next.connects - self.last.connects;
        if connections > 0 {
            self.floor = None;
        }
        if next.recvs > self.last.recvs {
            self.answered(now, &next);
        }
        self.last = next;
        if self.outstanding(pending) {
            self.waiting.get_or_insert(now);
        } else if pending == Some(0) {
            // Nothing else ends a wait but an answer: what is not seen any more may still be there.
            self.waiting = None;
        }
        self.known = pending;
        connections
    }

    fn answered(&mut self, now: Now, next: &TcpTransport) {
        self.waiting = None;
        self.sends_then = next.sends;
        match self.floor.as_mut() {
            Some(floor) => floor.note(now, excess(next)),
            None => self.floor = Some(Floor::new(now, excess(next))),
        }
    }

    fn outstanding(&self, pending: Option<u64>) -> bool {
        if let Some(pending) = pending {
            return pending > 0;
        }
        // The kernel stops telling when the connection breaks: what waited just before still does.
        if self.known.is_some_and(|n| n > 0) {
            return true;
        }
        let above = self.floor.is_some_and(|f| excess(&self.last) > f.least());
        above || self.last.sends > self.sends_then
    }
}

fn excess(t: &TcpTransport) -> u64 {
    t.sends.saturating_sub(t.recvs)
}

/// A stall under way.
#[derive(Debug, Clone, Copy)]
struct Stall {
    since: Now,
    resolution: Duration,
    reconnected: bool,
    told: bool,
}

/// The machine of one mount.
#[derive(Debug, Clone)]
pub struct Watch {
    threshold: Duration,
    lines: BTreeMap<usize, Line>,
    stall: Option<Stall>,
    sampled: Option<Now>,
}

impl Watch {
    /// For a mount that has not been looked at yet.
    #[must_use]
    pub fn new(threshold: Duration) -> Self {
        Self { threshold, lines: BTreeMap::new(), stall: None, sampled: None }
    }

    /// Since when the mount has been stalled, if it is, longer than the threshold.
    #[must_use]
    pub fn stalled_since(&self) -> Option<Now> {
        self.stall.filter(|s| s.told).map(|s| s.since)
    }

    /// Takes what was read at `now`. Times must not go backwards; one that does counts as the last.
    pub fn step(&mut self, now: Now, reading: &Reading) -> Vec<Event> {
        let now = self.sampled.map_or(now, |last| last.max(now));
        match reading {
            Reading::Unknown => Vec::new(),
            Reading::Gone => self.gone(now),
            Reading::Counters { transports, pending } => self.counters(now, transports, *pending),
        }
    }

    fn gone(&mut self, now: Now) -> Vec<Event> {
        let ended = self.stall.take().filter(|s| s.told).map(|s| ended(s, now, Duration::ZERO));
        *self = Self::new(self.threshold);
        ended.into_iter().collect()
    }

    fn counters(&mut self, now: Now, next: &[TcpTransport], pending: Option<u64>) -> Vec<Event> {
        let mut events = Vec::new();
        if self.is_other(next) {
            events.extend(self.gone(now));
            events.push(Event::Restarted);
        }
        // The sum over several connections does not say which of them waits, unless it is zero.
        let decisive = pending.filter(|p| *p == 0 || next.len() == 1);
        let connections = self.take(now, next, decisive);
        if connections > 0 {
            events.push(Event::Reconnected { connections, at: now });
            self.stall = self.stall.map(|s| Stall { reconnected: true, ..s });
        }
        events.extend(self.judge(now));
        self.sampled = Some(now);
        events
    }

    /// Fewer transports, or counters that fell: not the mount that was here.
    fn is_other(&self, next: &[TcpTransport]) -> bool {
        next.len() < self.lines.len()
            || self.lines.values().zip(next).any(|(line, next)| line.backwards(next))
    }

    fn take(&mut self, now: Now, next: &[TcpTransport], pending: Option<u64>) -> u64 {
        let mut connections = 0_u64;
        for (at, transport) in next.iter().enumerate() {
            match self.lines.get_mut(&at) {
                Some(line) => {
                    let more = line.take(now, *transport, pending);
                    connections = connections.saturating_add(more);
                }
                None => {
                    self.lines.insert(at, Line::new(now, *transport));
                }
            }
        }
        connections
    }

    /// Begins, tells or ends a stall: the mount waits as long as any of its transports does.
    fn judge(&mut self, now: Now) -> Vec<Event> {
        let gap = self.sampled.map_or(Duration::ZERO, |last| now.saturating_sub(last));
        let waiting = self.lines.values().filter_map(|l| l.waiting).min();
        // Under load there is always a request that waits: what matters is since when.
        let over = |s: &Stall| waiting.is_none_or(|since| since >= now && since > s.since);
        let past = self.stall.filter(over);
        if past.is_some() || self.stall.is_none_or(|s| !s.told) {
            self.stall = waiting.map(|since| match self.stall {
                Some(s) if s.since == since => s,
                _ => Stall::new(since, gap),
            });
        }
        let report = past.filter(|s| s.told).map(|s| ended(s, now, gap));
        report.into_iter().chain(self.tell(now)).collect()
    }

    fn tell(&mut self, now: Now) -> Option<Event> {
        let threshold = self.threshold;
        let stall = self.stall.as_mut()?;
        let due = !stall.told && now.saturating_sub(stall.since) >= threshold;
        stall.told |= due;
        due.then_some(Event::Stalled { since: stall.since })
    }
}

fn ended(s: Stall, now: Now, gap: Duration) -> Event {
    Event::Ended(Report {
        begin: s.since,
        end: now,
        resolution: s.resolution.max(gap),
        reconnected: s.reconnected,
    })
}

impl Stall {
    fn new(since: Now, resolution: Duration) -> Self {
        Self { since, resolution, reconnected: false, told: false }
    }
}

#[cfg(test)]
#[path = "stall_tests.rs"]
mod tests;
