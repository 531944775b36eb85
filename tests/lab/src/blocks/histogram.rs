//! Latencies in buckets of 1/16 of a power of two: constant memory, at most 6.25 % too high.

/// Buckets per power of two.
const STEPS: usize = 16;
/// Enough for every `u64`: values below 16 by themselves, then 60 powers of two.
const BUCKETS: usize = 61 * STEPS;

/// Counts of durations.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    min: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, min: u64::MAX, max: 0 }
    }
}

impl Histogram {
    /// Counts one duration, ns.
    pub fn add(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.min = self.min.min(ns);
        self.max = self.max.max(ns);
    }

    /// How many were counted.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// The shortest, exact, ns.
    #[must_use]
    pub fn min(&self) -> Option<u64> {
        (self.total > 0).then_some(self.min)
    }

    /// The longest, exact, ns.
    #[must_use]
    pub fn max(&self) -> Option<u64> {
        (self.total > 0).then_some(self.max)
    }

    /// The smallest bucket boundary that at least `percent` of the values do not exceed (nearest rank), ns.
    #[must_use]
    pub fn percentile(&self, percent: u32) -> Option<u64> {
        let rank = (u128::from(self.total) * u128::from(percent)).div_ceil(100).max(1);
        let mut seen = 0_u128;
        for (index, count) in self.counts.iter().enumerate() {
            seen += u128::from(*count);
            if seen >= rank {
                return Some(upper(index).clamp(self.min, self.max));
            }
        }
        None
    }
}

const fn bucket(ns: u64) -> usize {
    if ns < STEPS as u64 {
        return ns as usize;
    }
    let power = 63 - ns.leading_zeros() as usize;
    let step = (ns >> (power - 4)) as usize & (STEPS - 1);
    (power - 3) * STEPS + step
}

/// Largest value of a bucket.
const fn upper(index: usize) -> u64 {
    if index < STEPS {
        return index as u64;
    }
    let power = index / STEPS + 3;
    let low = (STEPS + index % STEPS) as u64;
    // Written so that the last bucket, whose end is u64::MAX, does not overflow.
    (low << (power - 4)) + ((1 << (power - 4)) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_value_is_in_the_bucket_that_covers_it(value in any::<u64>()) {
            let index = bucket(value);
            prop_assert!(upper(index) >= value);
            prop_assert!(index == 0 || upper(index - 1) < value);
            prop_assert!(upper(index) - value <= value / 16);
        }

        #[test]
        fn percentiles_are_near_the_exact_ones(mut values in prop::collection::vec(0_u64..1 << 40, 1..200)) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|v| histogram.add(*v));
            values.sort_unstable();
            for percent in [1, 50, 90, 100] {
                let exact = values[(values.len() * percent).div_ceil(100) - 1];
                let found = histogram.percentile(percent as u32).unwrap();
                prop_assert!(found >= exact && found - exact <= exact / 16, "{found} {exact}");
            }
            prop_assert_eq!(histogram.min(), values.first().copied());
            prop_assert_eq!(histogram.max(), values.last().copied());
        }
    }

    #[test]
    fn an_empty_one_has_no_answer() {
        assert_eq!(Histogram::default().percentile(50), None);
        assert_eq!(Histogram::default().max(), None);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }
}
