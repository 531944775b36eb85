//! The arithmetic of this host's lease.
//!
//! With N = `io_timeout`: renewed every 2N seconds, given up after 8N without a renewal (then every
//! process that uses the lockspace is killed, and there is no way back), all counted from R, the
//! timestamp of the last good renewal. Numbers from sanlock's `timeouts.c`, and from measurements of its
//! renewal thread: a stalled renewal completes one to two seconds after the storage answers again.

use std::time::Duration;

use nasd_sanlock::{Daemon, Lockspace, Stage};

use crate::core::Now;

/// From the storage's first answer to the renewal that was waiting for it.
const SETTLE: Duration = Duration::from_secs(2);
/// A renewal begins up to that much after it is due: the daemon looks once a second and then waits
/// half a second.
const LATE: Duration = Duration::from_millis(1500);
/// The daemon counts whole seconds, rounded down.
const ROUNDING: Duration = Duration::from_secs(1);
/// What a stall that begins at the worst moment loses of 6N: [`SETTLE`] and rounding.
const WORST: u64 = 3;

/// This host's lease in one lockspace, as told at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    io_timeout: Duration,
    /// At most so old, at `taken`.
    age: Duration,
    taken: Now,
}

/// What an outage of a given length would mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// The lease survives an outage that begins now, with that much to spare.
    Survives {
        /// Of the margin, at the end of the outage.
        spare: Duration,
    },
    /// It would not survive now, but would just after the next renewal.
    AfterRenewal {
        /// Until that renewal is due; look again then.
        wait: Duration,
    },
    /// The storage stalls already: the lease runs out, and only a renewal would help.
    RunningOut,
    /// No moment is good enough: guests would be killed.
    Lost {
        /// Seconds of `io_timeout` with which any moment would do.
        needed_io_timeout: u32,
    },
}

impl Lease {
    /// The lease as a status answer tells it. `taken` is the moment **before** the question was
    /// sent, so that the answer's way makes the lease older and not younger. `None` when no lease
    /// is held or its age is not known: then there is no margin either.
    #[must_use]
    pub fn told(daemon: &Daemon, lockspace: &Lockspace, taken: Now) -> Option<Self> {
        let held = lockspace.stage == Stage::Joined && lockspace.last_success > 0;
        let lost = lockspace.dead || lockspace.corrupt.is_some();
        if !held || lost {
            return None;
        }
        let seconds = daemon.monotime.checked_sub(lockspace.last_success)?;
        let age = Duration::from_secs(seconds).saturating_add(ROUNDING);
        Some(Self { io_timeout: Duration::from_secs(lockspace.io_timeout.into()), age, taken })
    }

    /// Time since the last renewal, rounded up.
    #[must_use]
    pub fn age(&self, now: Now) -> Duration {
        self.age.saturating_add(now.saturating_sub(self.taken))
    }

    /// Time left until the daemon gives the lockspace up: 8N less the age. Zero is lost or about to be.
    #[must_use]
    pub fn margin(&self, now: Now) -> Duration {
        self.io_timeout.saturating_mul(8).saturating_sub(self.age(now))
    }

    /// Until the next renewal is due; zero when it is due or overdue. It begins up to 1.5 s after.
    #[must_use]
    pub fn next_renewal(&self, now: Now) -> Duration {
        self.interval().saturating_add(ROUNDING).saturating_sub(self.age(now))
    }

    /// How long the renewal has been overdue, beyond what the daemon's rhythm and N seconds of
    /// storage access explain; zero when it is not.
    #[must_use]
    pub fn overdue(&self, now: Now) -> Duration {
        let normal = self.interval().saturating_add(LATE).saturating_add(self.io_timeout);
        self.age(now).saturating_sub(normal).saturating_sub(ROUNDING)
    }

    /// Whether the daemon logs warnings by now (6N): the lease is close to its end.
    #[must_use]
    pub fn is_short(&self, now: Now) -> bool {
        self.age(now) >= self.io_timeout.saturating_mul(6)
    }

    /// What an outage of that length would mean if it began at `now`.
    #[must_use]
    pub fn outlook(&self, outage: Duration, now: Now) -> Outlook {
        let needs = outage.saturating_add(SETTLE);
        if let Some(spare) = self.margin(now).checked_sub(needs).filter(|left| !left.is_zero()) {
            return Outlook::Survives { spare };
        }
        let fresh = self.io_timeout.saturating_mul(8).saturating_sub(ROUNDING);
        if self.is_short(now) {
            return Outlook::RunningOut;
        }
        if needs.saturating_add(LATE) < fresh {
            return Outlook::AfterRenewal { wait: self.next_renewal(now) };
        }
        Outlook::Lost { needed_io_timeout: needed_io_timeout(outage) }
    }

    fn interval(&self) -> Duration {
        self.io_timeout.saturating_mul(2)
    }
}

/// The smallest `io_timeout` in seconds with which a stall of that length never costs the lease,
/// whenever it begins: ⌈(stall + 3) / 6⌉.
#[must_use]
pub fn needed_io_timeout(stall: Duration) -> u32 {
    let seconds = stall.as_secs().saturating_add(u64::from(stall.subsec_nanos() > 0));
    u32::try_from(seconds.saturating_add(WORST).div_ceil(6)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sanlock::survey::samples;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A lease of that age by the daemon's own count, told at 100 s of our clock.
    fn lease(io_timeout: u32, age: u64) -> Lease {
        let mut status = samples::status();
        status.daemon.monotime = 1000;
        status.lockspaces[0].io_timeout = io_timeout;
        status.lockspaces[0].last_success = 1000 - age;
        Lease::told(&status.daemon, &status.lockspaces[0], s(100)).unwrap()
    }

    #[test]
    fn the_margin_is_eight_io_timeouts_less_the_age_and_falls_with_time() {
        let lease = lease(10, 16);
        assert_eq!(lease.age(s(100)), s(17), "the daemon rounds down, we round up");
        assert_eq!(lease.margin(s(100)), s(63));
        assert_eq!(lease.margin(s(160)), s(3));
        assert_eq!(lease.margin(s(1000)), Duration::ZERO);
        assert_eq!(lease.margin(s(0)), s(63), "an earlier moment makes it no younger than told");
    }

    #[test]
    fn the_next_renewal_comes_two_io_timeouts_after_the_last() {
        assert_eq!(lease(10, 16).next_renewal(s(100)), s(4));
        assert_eq!(lease(10, 25).next_renewal(s(100)), Duration::ZERO);
        assert_eq!(lease(10, 20).overdue(s(100)), Duration::ZERO);
        assert_eq!(lease(10, 40).overdue(s(100)), Duration::from_millis(8500));
    }

    #[test]
    fn the_values_of_the_formula_are_those_of_the_tables() {
        assert_eq!([90, 45, 57, 58].map(|stall| needed_io_timeout(s(stall))), [16, 8, 10, 11]);
        assert_eq!(needed_io_timeout(Duration::from_millis(57_001)), 11);
        assert_eq!(needed_io_timeout(Duration::ZERO), 1);
        assert_eq!(needed_io_timeout(Duration::MAX), u32::MAX);
    }

    #[test]
    fn an_outage_is_weighed_before_it_begins() {
        let outlook = |age, outage| lease(10, age).outlook(s(outage), s(100));
        assert_eq!(outlook(5, 20), Outlook::Survives { spare: s(52) });
        assert_eq!(outlook(19, 60), Outlook::AfterRenewal { wait: s(1) });
        assert_eq!(outlook(5, 90), Outlook::Lost { needed_io_timeout: 16 });
        assert_eq!(outlook(70, 10), Outlook::RunningOut, "in a stall no renewal is near");
    }

    #[test]
    fn s12_no_lease_has_no_margin() {
        let status = samples::status();
        let told = |change: fn(&mut Lockspace)| {
            let mut lockspace = status.lockspaces[0].clone();
            change(&mut lockspace);
            Lease::told(&status.daemon, &lockspace, s(0))
        };
        assert!(told(|_| {}).is_some());
        assert!(told(|space| space.stage = Stage::Joining).is_none());
        assert!(told(|space| space.last_success = 0).is_none());
        assert!(told(|space| space.dead = true).is_none());
        assert!(told(|space| space.corrupt = Some(nasd_sanlock::Outcome(-261))).is_none());
        assert!(told(|space| space.last_success = u64::MAX).is_none(), "from the future");
    }

    proptest! {
        /// Any outage of no more than 6N - 3 s is survived, at whatever moment of a healthy rhythm
        /// it begins; this is what [`needed_io_timeout`] promises.
        #[test]
        fn the_promised_io_timeout_keeps_its_promise(stall in 1_u64..1000, part in 0.0_f64..1.0) {
            let io_timeout = needed_io_timeout(s(stall));
            let oldest = s(u64::from(io_timeout) * 2);
            let lease = Lease { io_timeout: s(io_timeout.into()), age: oldest.mul_f64(part), taken: s(0) };
            let survives = matches!(lease.outlook(s(stall), s(0)), Outlook::Survives { .. });
            prop_assert!(survives, "io_timeout {io_timeout} {lease:?}");
        }

        #[test]
        fn nothing_overflows(io: u32, success: u64, monotime: u64, outage: u64, now: u64) {
            let mut status = samples::status();
            status.daemon.monotime = monotime;
            status.lockspaces[0].io_timeout = io;
            status.lockspaces[0].last_success = success;
            if let Some(lease) = Lease::told(&status.daemon, &status.lockspaces[0], s(now / 2)) {
                let _ = (lease.margin(s(now)), lease.next_renewal(s(now)), lease.overdue(s(now)));
                let _ = lease.outlook(s(outage), s(now));
            }
        }
    }
}
