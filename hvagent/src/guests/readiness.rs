//! Whether a mount's guests let the storage move, and if not, why and until when.
//!
//! Pure. Ready means: no migration's switchover can fall into the move, and no lease runs out in it.
//! Whatever is not known is a reason (S12); each reason is a sentence for nasd's operator.

use std::path::Path;
use std::time::Duration;

use super::holds::{self, Policy};
use super::inventory::{Guest, Inventory};
use super::leases::Leases;
use crate::core::Now;
use crate::drive::hands::Readiness;

/// Ask again then, where nothing better is known.
const LATER: Duration = Duration::from_secs(2);
/// A renewal begins up to that much after it is due, and is done a moment later.
const RENEWAL: Duration = Duration::from_secs(2);

/// What the answer depends on.
#[derive(Debug)]
pub struct View<'a> {
    /// The guests.
    pub inventory: &'a Inventory,
    /// The limits in MiB/s that were set, by the guest's object.
    pub limited: &'a std::collections::BTreeMap<String, u64>,
    /// Guests whose migrations are waited for, by the guest's object.
    pub let_go: &'a std::collections::BTreeSet<String>,
    /// The leases.
    pub leases: &'a Leases,
    /// How migrations are judged, and the stall that is expected.
    pub policy: Policy,
    /// A lease must last longer than the stall by so much.
    pub safety: Duration,
    /// Limits could not be put on disk: why.
    pub disk: Option<&'a str>,
}

/// Gathers reasons, and the latest time at which one of them may be gone.
#[derive(Default)]
struct Reasons {
    words: Vec<String>,
    unbegun: Vec<String>,
    retry_after: Option<Duration>,
}

impl Reasons {
    fn add(&mut self, words: String, retry_after: Option<Duration>) {
        self.words.push(words);
        self.retry_after = self.retry_after.max(retry_after);
    }
}

/// The answer for one mount.
#[must_use]
pub fn judge(view: &View<'_>, mount: &Path, now: Now) -> Readiness {
    let mut reasons = Reasons::default();
    let inventory = view.inventory;
    let guests: Vec<&Guest> = inventory.on(mount).collect();
    let strays = inventory.strays(mount).count();
    if let Some(doubt) = inventory.doubt_about(mount, now) {
        reasons.add(doubt, Some(LATER));
    }
    for qemu in inventory.strays(mount) {
        let words = format!("{} runs, and libvirt has not told of it", qemu.guest);
        reasons.add(words, Some(LATER));
    }
    for guest in &guests {
        migration(view, guest, &mut reasons);
    }
    lease(view, &mut reasons);
    let migrations = guests.iter().filter(|guest| guest.is_migrating()).count();
    Readiness {
        ready: reasons.words.is_empty(),
        reasons: reasons.words,
        unbegun: reasons.unbegun,
        retry_after: reasons.retry_after,
        migrations: u32::try_from(migrations).unwrap_or(u32::MAX),
        guests: u32::try_from(guests.len() + strays).unwrap_or(u32::MAX),
    }
}

fn migration(view: &View<'_>, guest: &Guest, reasons: &mut Reasons) {
    let Some(told) = &guest.told else {
        let words = format!("nothing is known of {} yet", guest.name());
        return reasons.add(words, Some(LATER));
    };
    if view.let_go.contains(guest.path.as_str()) && guest.is_migrating() {
        let words = format!("{}: its migration is near its end and let finish", guest.name());
        return reasons.add(words, Some(LATER));
    }
    let job = told.job.as_ref().map(Option::as_ref).map_err(|_| ());
    let limited = view.limited.get(guest.path.as_str()).copied();
    let decision = holds::decide(job, told.state, limited, &view.policy);
    let Some(block) = decision.block else { return };
    let stuck = view.disk.filter(|_| decision.limit.is_some());
    let more = stuck.map(|why| format!(" ({why})")).unwrap_or_default();
    reasons.unbegun.extend(block.unbegun.then(|| told.domain.uuid.to_ascii_lowercase()));
    reasons.add(format!("{}: {}{more}", guest.name(), block.why), Some(block.retry_after));
}

fn lease(view: &View<'_>, reasons: &mut Reasons) {
    let (margin, next, lost) = match view.leases {
        Leases::NotUsed => return,
        Leases::Unknown(why) => {
            let words = format!("the leases of this host's guests are not known: {why}");
            return reasons.add(words, Some(LATER));
        }
        Leases::Known { margin, next_renewal, lost } => (margin, next_renewal, lost),
    };
    if let Some(name) = lost.first() {
        let words = format!("lockspace {name} is lost: see `hvagent check` for the way back");
        return reasons.add(words, None);
    }
    let needed = view.policy.window.outage.saturating_add(view.safety);
    if *margin <= needed {
        let words = format!(
            "a lease lasts {} s more, and a stall of up to {} s needs more than {} s",
            margin.as_secs(),
            view.policy.window.outage.as_secs(),
            needed.as_secs()
        );
        reasons.add(words, next.map(|due| due.saturating_add(RENEWAL)));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::guests::holds::Incoming;
    use crate::guests::inventory::Told;
    use crate::guests::proc::Qemu;
    use crate::guests::samples::{migration, object, running, told};
    use crate::libvirt::job::{Caution, Window};
    use crate::libvirt::state::DomainState;

    const NOW: Now = Duration::from_secs(100);

    struct Given {
        inventory: Inventory,
        limited: BTreeMap<String, u64>,
        let_go: BTreeSet<String>,
        leases: Leases,
    }

    impl Given {
        fn guests(all: Vec<(&str, Told)>) -> Self {
            let mut inventory = Inventory::default();
            let paths: Vec<_> = all.iter().map(|(name, _)| object(name)).collect();
            inventory.listed(NOW, &paths);
            for (name, told) in all {
                inventory.told(NOW, object(name), told);
            }
            let (limited, let_go) = Default::default();
            Self { inventory, limited, let_go, leases: Leases::NotUsed }
        }

        fn judge(&self) -> Readiness {
            let seconds = Duration::from_secs;
            let view = View {
                inventory: &self.inventory,
                limited: &self.limited,
                let_go: &self.let_go,
                leases: &self.leases,
                policy: Policy {
                    window: Window {
                        starts_in: seconds(0),
                        outage: seconds(5),
                        grace: seconds(15),
                    },
                    caution: Caution::default(),
                    incoming: Incoming::SourceDecides,
                },
                safety: seconds(5),
                disk: None,
            };
            judge(&view, Path::new("/vms"), NOW)
        }
    }

    fn moving(left: u64, speed: u64, dirty: u64) -> Told {
        let mut moving = told("a", DomainState::Running, Ok(Some(migration(left, speed, dirty))));
        moving.domain = running("a", &["/vms/a.raw"]).domain;
        moving
    }

    #[test]
    fn guests_at_rest_are_ready() {
        let answer = Given::guests(vec![("a", running("a", &["/vms/a.raw"]))]).judge();
        assert_eq!((answer.ready, answer.guests, answer.migrations), (true, 1, 0));
        assert!(Given::guests(vec![]).judge().ready);
    }

    #[test]
    fn s11_a_migration_that_would_switch_over_inside_is_not_ready_until_it_is_held() {
        let mut given = Given::guests(vec![("a", moving(1000, 100, 60))]);
        let answer = given.judge();
        assert_eq!((answer.ready, answer.migrations), (false, 1));
        assert_eq!(answer.reasons, ["a: its migration is being slowed down"]);
        given.limited.insert(object("a").as_str().to_owned(), 30);
        assert!(given.judge().ready);
    }

    #[test]
    fn s11_one_that_is_far_from_its_end_or_elsewhere_is_no_reason() {
        assert!(Given::guests(vec![("a", moving(100_000, 100, 60))]).judge().ready);
        let mut elsewhere = moving(1000, 100, 60);
        elsewhere.domain = running("a", &["/local/a.raw"]).domain;
        assert!(Given::guests(vec![("a", elsewhere)]).judge().ready);
    }

    #[test]
    fn s12_what_is_not_known_is_a_reason() {
        let mut untold = Given::guests(vec![]);
        untold.inventory.listed(NOW, &[object("a")]);
        assert!(untold.judge().reasons[0].contains("nothing is known"));
        let mut job = moving(1, 1, 1);
        job.job = Err("no answer".to_owned());
        assert!(!Given::guests(vec![("a", job)]).judge().ready);
        let mut hung = Given::guests(vec![("a", running("a", &["/vms/a.raw"]))]);
        hung.inventory.failed("it hangs".to_owned());
        assert!(hung.judge().reasons[0].contains("it hangs"));
    }

    #[test]
    fn a_silent_libvirt_without_guests_is_no_reason() {
        let mut given = Given::guests(vec![]);
        given.inventory.failed("it hangs".to_owned());
        assert!(!given.judge().ready, "nothing was seen in /proc either");
        given.inventory.processes(NOW, vec![]);
        assert!(given.judge().ready);
        let stray = Qemu {
            pid: 1,
            started: 1,
            guest: "b".to_owned(),
            uuid: None,
            files: vec!["/vms/b.raw".into()],
            written: None,
        };
        given.inventory.processes(NOW, vec![stray]);
        let answer = given.judge();
        assert_eq!((answer.ready, answer.guests), (false, 1));
    }

    #[test]
    fn a_lease_must_outlast_the_stall() {
        let mut given = Given::guests(vec![]);
        let known = |margin| Leases::Known {
            margin: Duration::from_secs(margin),
            next_renewal: Some(Duration::from_secs(3)),
            lost: vec![],
        };
        given.leases = known(11);
        assert!(given.judge().ready);
        given.leases = known(10);
        let answer = given.judge();
        assert_eq!((answer.ready, answer.retry_after), (false, Some(Duration::from_secs(5))));
        given.leases = Leases::Unknown("silent".to_owned());
        assert!(given.judge().reasons[0].contains("silent"));
        let lost = vec!["L".to_owned()];
        given.leases = Leases::Known { margin: Duration::from_secs(60), next_renewal: None, lost };
        assert!(given.judge().reasons[0].contains("lockspace L is lost"));
    }
}
