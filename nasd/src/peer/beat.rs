//! What a beat says: the wire's form in the core's words, and which beats are believed.
//!
//! Keeps S12: what a beat does not say is unknown, and one that is older than another already heard
//! is not heard at all.

use std::sync::LazyLock;
use std::time::Duration;

use nasd_net::MonotonicInstant;
use nasd_proto::{Ailment as WireAilment, Role as WireRole, ServiceBeat};

use crate::core::peer::{Ailment, GateReport, PeerBeat, Unfit};
use crate::core::view::Role;

/// Boots that are over, by their identifiers; a beat of theirs may still be on its way.
const REMEMBERED: usize = 8;

/// Without end, on the wire.
pub const ENDLESS: u64 = u64::MAX;

/// This boot of this node; empty if the kernel does not tell, which is a boot like any other.
#[must_use]
pub fn boot_id() -> &'static str {
    static ID: LazyLock<String> = LazyLock::new(|| {
        let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        read.map(|id| id.trim().to_owned()).unwrap_or_default()
    });
    &ID
}

/// The number of a beat made now: nanoseconds since boot, so that it rises over restarts of nasd too.
#[must_use]
pub fn sequence() -> u64 {
    MonotonicInstant::now().as_nanos()
}

/// Tells young beats from late ones: by the boot, then by the sequence.
#[derive(Debug, Default)]
pub struct Ear {
    boot: Option<String>,
    last: u64,
    over: Vec<String>,
}

impl Ear {
    /// Whether a beat is the youngest heard so far; it is remembered then.
    pub fn accept(&mut self, boot: &str, sequence: u64) -> bool {
        if self.boot.as_deref() == Some(boot) {
            let younger = sequence > self.last;
            self.last = self.last.max(sequence);
            return younger;
        }
        if self.over.iter().any(|b| b == boot) {
            return false;
        }
        if let Some(old) = self.boot.replace(boot.to_owned()) {
            self.over.push(old);
            if self.over.len() > REMEMBERED {
                self.over.remove(0);
            }
        }
        self.last = sequence;
        true
    }

    /// Whether none younger was heard so far. The youngest one comes once over each path, and is as good
    /// the second time.
    pub fn is_latest(&mut self, boot: &str, sequence: u64) -> bool {
        let again = self.boot.as_deref() == Some(boot) && self.last == sequence;
        self.accept(boot, sequence) || again
    }
}

/// A beat in the core's words.
#[must_use]
pub fn heard(beat: &ServiceBeat) -> PeerBeat {
    PeerBeat {
        epoch: beat.epoch,
        gate: gate(beat),
        role: match beat.role() {
            WireRole::Primary => Role::Primary,
            WireRole::Secondary => Role::Secondary,
            WireRole::Unknown => Role::Unknown,
        },
        frozen: beat.frozen,
        violations: beat.attested.then(|| beat.drbd_violations.clone()),
        coordinator: beat.coordinator,
        taking: beat.stage == "taking-over",
        unfit: (!beat.unfit.is_empty()).then(|| Unfit::new(ailment(beat), beat.unfit.clone())),
    }
}

fn ailment(beat: &ServiceBeat) -> Ailment {
    match beat.ailment() {
        WireAilment::Disk => Ailment::Disk,
        WireAilment::Writes => Ailment::Writes,
        WireAilment::Other => Ailment::Other,
    }
}

/// An ailment on the wire.
#[must_use]
pub fn wire_ailment(ailment: Ailment) -> WireAilment {
    match ailment {
        Ailment::Disk => WireAilment::Disk,
        Ailment::Writes => WireAilment::Writes,
        Ailment::Other => WireAilment::Other,
    }
}

fn gate(beat: &ServiceBeat) -> GateReport {
    match (beat.gate_enforced, beat.gate_open) {
        (false, _) => GateReport::Unknown,
        (true, false) => GateReport::Shut,
        (true, true) => {
            let left = (beat.gate_left_ms != ENDLESS).then_some(beat.gate_left_ms);
            GateReport::Open { left: left.map(Duration::from_millis) }
        }
    }
}

/// DRBD's role on the wire.
#[must_use]
pub fn wire_role(role: Role) -> WireRole {
    match role {
        Role::Primary => WireRole::Primary,
        Role::Secondary => WireRole::Secondary,
        Role::Unknown => WireRole::Unknown,
    }
}

/// Milliseconds on the wire, rounded down: never more than is left.
#[must_use]
pub fn wire_ms(left: Duration) -> u64 {
    u64::try_from(left.as_millis()).unwrap_or(ENDLESS - 1)
}

/// The life of the grant that a beat asks for, if that may be granted: what the asker will count with
/// is what it has asked for, so that too much can only be refused, not shortened.
#[must_use]
pub fn asked_life(beat: &ServiceBeat, longest: Duration) -> Option<Duration> {
    let asked = Duration::from_millis(u64::from(beat.ttl_ms));
    (beat.wants_right && !asked.is_zero() && asked <= longest).then_some(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s12_a_late_beat_is_dropped() {
        let mut ear = Ear::default();
        assert!(ear.accept("one", 10));
        assert!(!ear.accept("one", 10), "the same again");
        assert!(!ear.accept("one", 9), "overtaken");
        assert!(ear.accept("one", 11));
        assert!(ear.accept("two", 3), "rebooted: counts from the start");
        assert!(!ear.accept("one", 99), "from before the reboot");
        assert!(ear.accept("two", 4));
    }

    #[test]
    fn s4_a_request_is_good_over_either_path_until_a_younger_one_came() {
        let mut ear = Ear::default();
        assert!(ear.is_latest("one", 10) && ear.is_latest("one", 10), "its copy");
        assert!(!ear.accept("one", 10), "heard only once");
        assert!(ear.is_latest("one", 11));
        assert!(!ear.is_latest("one", 10), "a copy that was overtaken");
        assert!(ear.is_latest("two", 11), "rebooted");
        assert!(!ear.is_latest("one", 11), "from before the reboot");
    }

    fn beat() -> ServiceBeat {
        ServiceBeat {
            gate_enforced: true,
            gate_open: true,
            gate_left_ms: 700,
            attested: true,
            wants_right: true,
            ttl_ms: 1500,
            ..ServiceBeat::default()
        }
    }

    #[test]
    fn s12_what_a_beat_does_not_say_is_unknown() {
        let nothing = heard(&ServiceBeat::default());
        assert_eq!(nothing, PeerBeat::default());
        let told = heard(&beat());
        let left = Some(Duration::from_millis(700));
        assert_eq!(told.gate, GateReport::Open { left });
        assert_eq!(told.violations, Some(Vec::new()));
        assert_eq!(told.unfit, None);
        let ill = ServiceBeat { unfit: "disk hangs".into(), ..beat() };
        let other = Unfit::new(Ailment::Other, "disk hangs");
        assert_eq!(heard(&ill).unfit, Some(other));
        let ill = ServiceBeat { ailment: WireAilment::Disk.into(), ..ill };
        assert_eq!(heard(&ill).unfit.map(|u| u.ailment), Some(Ailment::Disk));
        let endless = ServiceBeat { gate_left_ms: ENDLESS, ..beat() };
        assert_eq!(heard(&endless).gate, GateReport::Open { left: None });
        let unread = ServiceBeat { gate_enforced: false, ..beat() };
        assert_eq!(heard(&unread).gate, GateReport::Unknown);
    }

    #[test]
    fn s4_a_grant_has_the_life_that_was_asked_for_or_is_none() {
        let longest = Duration::from_secs(20);
        assert_eq!(asked_life(&beat(), longest), Some(Duration::from_millis(1500)));
        assert_eq!(asked_life(&ServiceBeat { ttl_ms: 20_000, ..beat() }, longest), Some(longest));
        assert_eq!(asked_life(&ServiceBeat { ttl_ms: 20_001, ..beat() }, longest), None);
        assert_eq!(asked_life(&ServiceBeat { ttl_ms: 0, ..beat() }, longest), None);
        assert_eq!(asked_life(&ServiceBeat { wants_right: false, ..beat() }, longest), None);
    }
}
