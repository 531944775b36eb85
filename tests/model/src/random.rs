//! A small pseudo-random generator, so that a seed means the same schedule everywhere and for ever.
//!
//! Owns nothing but its state. The algorithm is `splitmix64` (Steele, Lea, Flood 2014).

/// A generator; equal seeds give equal sequences.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed ^ 0x5851_f42d_4c95_7f2d);
        random.bits();
        random
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.bits() % (high - low + 1)
    }

    /// True `percent` times of a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.bits() % 100 < percent
    }

    /// One of the two nodes.
    pub fn node(&mut self) -> usize {
        usize::from(self.bits() & 1 == 1)
    }

    /// One of several.
    ///
    /// The list must not be empty.
    pub fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        let at = self.bits() % list.len() as u64;
        list[usize::try_from(at).unwrap_or(0)]
    }
}
