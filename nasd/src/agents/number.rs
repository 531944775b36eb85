//! Numbers of moves, as agents know them: what is newer has the higher number, on both nodes.
//!
//! The upper half is the epoch of the record that the move writes, so that a move is newer than every one
//! before it, whichever node made that. The lower half is the second of the announcement: one that was
//! refused changes no record, and agents rightly take no number again that is over for them.

/// Number of a move; 0 is none.
pub type MoveId = u64;

/// Bits of the lower half.
const LOWER: u32 = 32;

/// Gives numbers out, each higher than those before.
#[derive(Debug, Default)]
pub struct Numbers {
    last: u32,
}

impl Numbers {
    /// A number for a move that writes a record of `epoch`; `unix_s` is the time in seconds.
    pub fn next(&mut self, epoch: u64, unix_s: u64) -> MoveId {
        let second = u32::try_from(unix_s).unwrap_or(u32::MAX);
        self.last = second.max(self.last.saturating_add(1));
        of_epoch(epoch) | u64::from(self.last)
    }
}

/// The number of an opening in `epoch` that nobody announced: higher than all of earlier epochs.
#[must_use]
pub fn of_epoch(epoch: u64) -> MoveId {
    epoch.min(u64::from(u32::MAX)) << LOWER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_rise_with_the_epoch_and_within_it() {
        let (mut here, mut there) = (Numbers::default(), Numbers::default());
        let first = here.next(7, 1000);
        let again = here.next(7, 1000);
        assert!(again > first, "a refused announcement is not announced again under its number");
        assert!(there.next(8, 10) > again, "the other node's clock does not matter");
        assert!(of_epoch(8) > again && of_epoch(8) < there.next(8, 10));
        assert!(here.next(u64::MAX, u64::MAX) > here.next(8, 0), "no number overflows");
    }
}
