//! Which paused guests the agent lets go on after a move, and which never.
//!
//! Pure. Only a guest that an error of its disk has paused, whose disk is on that mount, while opens
//! there are known to work: a resume under a lock manager opens its lease anew and would wait in
//! grace with everything of that guest locked. Never one that somebody has paused, never one whose
//! lease may be gone: another host may run it by now (S12).

use crate::core::phase::{Cause, Phase};
use crate::libvirt::state::{DomainState, Paused};

/// So often one guest is tried in one move.
pub const TRIES: u32 = 3;

/// What is known of the lease a guest needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Guests need none here.
    NotUsed,
    /// This host holds its lockspaces.
    Held,
    /// It has lost one, or is about to.
    Lost,
    /// Not known.
    Unknown,
}

/// Whether a guest is resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is not paused by an error of a disk: nothing to do.
    NotOurs,
    /// Do it.
    Resume,
    /// It stays paused, and an operator must know why.
    Stays(&'static str),
}

/// Decides on one guest.
#[must_use]
pub fn decide(state: DomainState, lease: Lease, phase: Phase, tries: u32) -> Outcome {
    match state {
        DomainState::Paused(Paused::IoError) => {}
        DomainState::Unknown => return Outcome::Stays("libvirt does not tell its state"),
        _ => return Outcome::NotOurs,
    }
    if !takes_opens(phase) {
        return Outcome::Stays("the storage is not known to take opens yet");
    }
    match lease {
        Lease::Lost => {
            return Outcome::Stays("this host has lost a lockspace: it may run elsewhere");
        }
        Lease::Unknown => return Outcome::Stays("its lease is not known: it may run elsewhere"),
        Lease::NotUsed | Lease::Held => {}
    }
    if tries >= TRIES {
        return Outcome::Stays("it was paused again each time: look at its disk's error");
    }
    Outcome::Resume
}

const fn takes_opens(phase: Phase) -> bool {
    matches!(phase, Phase::OpensBack | Phase::Verified | Phase::Failed(Cause::Unverified))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OURS: DomainState = DomainState::Paused(Paused::IoError);
    const PHASES: [Phase; 9] = [
        Phase::Normal,
        Phase::Announced,
        Phase::Moving,
        Phase::IoBack,
        Phase::OpensBack,
        Phase::Verified,
        Phase::Failed(Cause::IoNotBack),
        Phase::Failed(Cause::OpensNotBack),
        Phase::Failed(Cause::Unverified),
    ];

    #[test]
    fn a_guest_paused_by_its_disk_goes_on_once_opens_are_back() {
        for phase in PHASES {
            let outcome = decide(OURS, Lease::Held, phase, 0);
            let opens = [Phase::OpensBack, Phase::Verified, Phase::Failed(Cause::Unverified)];
            let expected = opens.contains(&phase);
            assert_eq!(outcome == Outcome::Resume, expected, "{phase:?}");
        }
        assert_eq!(decide(OURS, Lease::NotUsed, Phase::OpensBack, 2), Outcome::Resume);
    }

    #[test]
    fn s12_never_one_whose_lease_may_be_gone() {
        for lease in [Lease::Lost, Lease::Unknown] {
            assert!(matches!(decide(OURS, lease, Phase::OpensBack, 0), Outcome::Stays(_)));
        }
    }

    #[test]
    fn tries_have_an_end() {
        assert!(matches!(decide(OURS, Lease::Held, Phase::Verified, TRIES), Outcome::Stays(_)));
    }

    proptest! {
        #[test]
        fn s12_never_one_that_anything_else_has_paused(state: i32, reason: i32, at in 0_usize..9) {
            prop_assume!((state, reason) != (3, 5));
            let state = DomainState::of((state, reason));
            prop_assert_ne!(decide(state, Lease::Held, PHASES[at], 0), Outcome::Resume);
        }
    }
}
