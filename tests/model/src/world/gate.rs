//! The gate in a node's kernel, and nasd's keeper of it.
//!
//! Owns the rule that the gate is open exactly while the node's own monotonic clock is below an
//! absolute deadline. The keeper mirrors the drive's: only what is armed for an epoch is refreshed,
//! and whatever was begun before a shutting is void.

use super::Time;

/// The deadline in the kernel's map, on the node's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Deadline {
    /// Open until this time; 0: shut.
    At(Time),
    /// Open without end.
    Never,
}

impl Deadline {
    /// Whether it lets packets through at that local time.
    #[must_use]
    pub fn allows(self, local: Time) -> bool {
        match self {
            Self::At(end) => local < end,
            Self::Never => true,
        }
    }
}

/// A right that was granted, with the deadline that it gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Right {
    /// For this epoch only.
    pub epoch: u64,
    /// Until then.
    pub deadline: Deadline,
    /// The life that it had from its request; for hole C3.
    pub life: Option<Time>,
}

/// What the core wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Epoch of the record.
    pub epoch: u64,
    /// Nobody else may take over.
    pub sole: bool,
}

/// The kernel's part: survives nasd.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gate {
    /// The map's value.
    pub deadline: Deadline,
}

/// nasd's part: dies with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Keeper {
    /// Rights of this epoch may refresh.
    pub armed: Option<u64>,
    /// How often the gate was shut.
    pub shuts: u64,
}

impl Gate {
    /// Shut.
    pub const SHUT: Self = Self { deadline: Deadline::At(0) };
}

impl Keeper {
    /// Opens for an epoch unless it was shut since the ticket was taken.
    pub fn open(&mut self, gate: &mut Gate, right: Right, ticket: u64) -> bool {
        if ticket != self.shuts {
            return false;
        }
        gate.deadline = right.deadline;
        self.armed = Some(right.epoch);
        true
    }

    /// Renews the deadline while armed for the right's epoch.
    pub fn refresh(&self, gate: &mut Gate, right: Right) -> bool {
        let may = self.armed == Some(right.epoch);
        if may {
            gate.deadline = right.deadline;
        }
        may
    }

    /// The node goes on in a later epoch of its own.
    pub fn go_on_in(&mut self, epoch: u64) {
        if self.armed.is_some() {
            self.armed = Some(epoch);
        }
    }

    /// Shuts.
    pub fn close(&mut self, gate: &mut Gate) {
        self.armed = None;
        self.shuts += 1;
        gate.deadline = Deadline::At(0);
    }
}
