//! Holes that the model puts back, one at a time, to see whether it finds them (feature `holes`).
//!
//! Owns the switch only; without the feature nothing can be planted and every question is answered
//! with no at compile time. The ids are those of the table "What must not happen".

/// A rule left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hole {
    /// After its demotion the old owner comes back without a compare-and-set.
    C1,
    /// `current` follows connections only, not disks; no mark, no self-outdate.
    C2,
    /// As C1 at the demotion's deadline: a demotion that took effect late is rolled back.
    C4,
    /// A change of unknown outcome is not superseded by a write.
    C5,
    /// Threads (and with them grace) start before the wait.
    C7,
    /// Nothing watches the freeze: a helper that failed once is not run again.
    H2,
    /// The taker writes the record before it has checked that it could serve.
    H3,
    /// A connected DRBD counts as a sign of life for ever.
    H4,
    /// A sole-current owner's right expires like any other.
    H5,
}

/// Which hole is open in a machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Holes {
    #[cfg(feature = "holes")]
    planted: Option<Hole>,
}

impl Holes {
    /// Opens one.
    #[cfg(feature = "holes")]
    #[must_use]
    pub fn planted(hole: Hole) -> Self {
        Self { planted: Some(hole) }
    }

    /// Whether it is open.
    #[cfg(feature = "holes")]
    #[must_use]
    pub fn has(self, hole: Hole) -> bool {
        self.planted == Some(hole)
    }

    /// Never, in a program that is shipped.
    #[cfg(not(feature = "holes"))]
    #[must_use]
    pub const fn has(self, _hole: Hole) -> bool {
        false
    }
}
