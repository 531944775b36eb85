//! The holes of the table "what must not happen" that can be put back, in the core or in the world.
//!
//! Owns the switch's names and which property each hole breaks.

use std::fmt;
use std::str::FromStr;

use nasd::core::hole::{Hole, Holes};

/// One hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Planted {
    /// A rule of the core is left out.
    Core(Hole),
    /// The gate's deadline is counted from when it is written.
    C3,
    /// The taker disconnects without force.
    H1,
    /// A frozen owner's change is not relayed by its peer.
    H6,
    /// A thread of nasd blocks on the frozen volume.
    H7,
}

/// All of them, by name.
pub const ALL: [(&str, Planted); 13] = [
    ("c1", Planted::Core(Hole::C1)),
    ("c2", Planted::Core(Hole::C2)),
    ("c3", Planted::C3),
    ("c4", Planted::Core(Hole::C4)),
    ("c5", Planted::Core(Hole::C5)),
    ("c7", Planted::Core(Hole::C7)),
    ("h1", Planted::H1),
    ("h2", Planted::Core(Hole::H2)),
    ("h3", Planted::Core(Hole::H3)),
    ("h4", Planted::Core(Hole::H4)),
    ("h5", Planted::Core(Hole::H5)),
    ("h6", Planted::H6),
    ("h7", Planted::H7),
];

impl Planted {
    /// What the machines of a world get.
    #[must_use]
    pub fn holes(self) -> Holes {
        match self {
            Self::Core(hole) => Holes::planted(hole),
            _ => Holes::default(),
        }
    }
}

impl fmt::Display for Planted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ALL.iter().find(|(_, p)| p == self).map_or("?", |(name, _)| name))
    }
}

impl FromStr for Planted {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let wanted = name.to_lowercase();
        let found = ALL.iter().find(|(n, _)| *n == wanted);
        let known = || ALL.map(|(n, _)| n).join(", ");
        found.map(|(_, p)| *p).ok_or_else(|| format!("{name} is no hole; there are {}", known()))
    }
}
