//! Owns the clock that rights and gates are counted in (rule S4).
//!
//! `CLOCK_MONOTONIC` in nanoseconds, the same clock as the kernel's `bpf_ktime_get_ns()`
//! (`ktime_get_mono_fast_ns`). `std::time::Instant` uses it too, but hides the number that the
//! gate's map needs. A process in a *time namespace* sees a shifted clock: nasd must not run in one.

use std::fmt;
use std::time::Duration;

/// A point of `CLOCK_MONOTONIC`, in nanoseconds since boot (time suspended not counted).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MonotonicInstant(u64);

impl MonotonicInstant {
    /// Reads the clock. Goes through libc: rustix's own vDSO lookup panics on User-Mode Linux,
    /// whose vDSO is a stub.
    pub fn now() -> Self {
        use nix::time::{ClockId, clock_gettime};
        // Cannot fail for this clock. Zero would read as "requested at boot": a right counted
        // from it is past (S12).
        let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return Self(0) };
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec()).unwrap_or(0);
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    /// The instant with this count of nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This instant plus `span`; stops at the largest instant instead of wrapping round.
    pub fn saturating_add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to this instant; zero when `earlier` is later.
    pub fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for MonotonicInstant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09} s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_forward_with_real_time() {
        let before = MonotonicInstant::now();
        std::thread::sleep(Duration::from_millis(20));
        let passed = MonotonicInstant::now().saturating_duration_since(before);
        assert!(passed >= Duration::from_millis(20) && passed < Duration::from_secs(10));
    }

    #[test]
    fn arithmetic_saturates() {
        let last = MonotonicInstant::from_nanos(u64::MAX);
        assert_eq!(last.saturating_add(Duration::MAX), last);
        let first = MonotonicInstant::from_nanos(0);
        assert_eq!(first.saturating_duration_since(last), Duration::ZERO);
    }
}
