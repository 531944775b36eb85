//! What is on the disks: which acknowledged writes a replica has, and the marker file.
//!
//! Owns sets of write numbers. A write goes to one volume and has a number of its own.

/// Volumes of the resource.
pub const VOLUMES: usize = 2;
/// Writes that one schedule can have.
pub const WRITES: u32 = 2048;

/// A set of write numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Writes([u64; WRITES as usize / 64]);

impl Default for Writes {
    fn default() -> Self {
        Self([0; WRITES as usize / 64])
    }
}

impl Writes {
    /// Adds a write; its number is below [`WRITES`].
    pub fn add(&mut self, number: u32) {
        self.0[(number / 64) as usize] |= 1 << (number % 64);
    }

    /// Adds all of another set.
    pub fn add_all(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine |= theirs;
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }

    /// The first of `wanted` that is not here. Asked most often of all: a plain loop, because tests
    /// run without optimisation.
    #[must_use]
    pub fn missing(&self, wanted: &Self) -> Option<u32> {
        let mut at = 0;
        while at < self.0.len() {
            let rest = wanted.0[at] & !self.0[at];
            if rest != 0 {
                return u32::try_from(at).ok().map(|at| at * 64 + rest.trailing_zeros());
            }
            at += 1;
        }
        None
    }
}

/// The marker file of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Marker {
    /// Epoch of the opening that wrote it.
    pub epoch: u64,
    /// Generation of the opening that wrote it; 0: no marker.
    pub generation: u64,
}

/// One volume's content on one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Content {
    /// Clients' writes.
    pub writes: Writes,
    /// The marker file.
    pub marker: Marker,
}
