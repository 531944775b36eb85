//! What an agent says, cut to sizes that are kept and shown. Owns the limits.
//!
//! An agent is trusted with its own host only: whatever it sends costs nasd a bounded amount of memory and
//! steers no terminal.

use nasd_proto::{AgentState, MountState, Readiness, StallReport};

/// One message on the wire, bytes; a host report is the largest.
pub const MESSAGE: usize = 512 * 1024;
/// A host report, bytes.
pub const REPORT: usize = 256 * 1024;
/// Mounts of one host.
const MOUNTS: usize = 64;
/// Sentences in one list.
const SENTENCES: usize = 16;
/// Guests in one list.
const GUESTS: usize = 256;
/// Characters of a sentence or a path.
const TEXT: usize = 300;
/// Characters of a name.
const NAME: usize = 128;

/// A text without control characters, cut after `most` characters.
fn text(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A name: of a service, a guest, a phase, a version.
#[must_use]
pub fn name(name: &str) -> String {
    text(name, NAME)
}

fn sentences(all: &[String]) -> Vec<String> {
    all.iter().take(SENTENCES).map(|s| text(s, TEXT)).collect()
}

/// A host's mounts.
#[must_use]
pub fn state(state: &AgentState) -> Vec<MountState> {
    let mount = |m: &MountState| MountState {
        service: name(&m.service),
        mount: text(&m.mount, TEXT),
        phase: name(&m.phase),
        problems: sentences(&m.problems),
        ..*m
    };
    state.mounts.iter().take(MOUNTS).map(mount).collect()
}

/// An answer to an announcement.
#[must_use]
pub fn readiness(r: &Readiness) -> Readiness {
    let guests = |all: &[String]| all.iter().take(GUESTS).map(|g| name(g)).collect::<Vec<_>>();
    Readiness {
        service: name(&r.service),
        reasons: sentences(&r.reasons),
        unbegun: guests(&r.unbegun),
        // What was cut off is not known to be held.
        only_unbegun: r.only_unbegun && r.unbegun.len() <= GUESTS,
        held: guests(&r.held),
        ..*r
    }
}

/// A report of a stall.
#[must_use]
pub fn stall(s: &StallReport) -> StallReport {
    StallReport {
        service: name(&s.service),
        mount: text(&s.mount, TEXT),
        guest: name(&s.guest),
        ..*s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_comes_is_cut_and_tamed() {
        let long = "x\u{1b}".repeat(10_000);
        let mount = MountState {
            service: long.clone(),
            mount: long.clone(),
            phase: long.clone(),
            problems: vec![long.clone(); 100],
            guests: 3,
            ..MountState::default()
        };
        let kept = state(&AgentState { mounts: vec![mount; 1000] });
        assert_eq!((kept.len(), kept[0].problems.len(), kept[0].guests), (MOUNTS, SENTENCES, 3));
        let longest = kept[0].problems.iter().map(|p| p.chars().count()).max();
        assert_eq!(longest, Some(TEXT));
        assert!(!kept[0].service.contains('\u{1b}') && kept[0].service.len() == NAME);
        let told = readiness(&Readiness {
            reasons: vec![long.clone(); 99],
            unbegun: vec![long.clone(); 999],
            only_unbegun: true,
            ..Readiness::default()
        });
        assert_eq!(told.reasons.len(), SENTENCES);
        assert_eq!((told.unbegun.len(), told.only_unbegun), (GUESTS, false));
        let told = stall(&StallReport { guest: long, stall_ms: 7, ..StallReport::default() });
        assert_eq!((told.guest.len(), told.stall_ms), (NAME, 7));
    }
}
