//! Migrations that libvirt's hook holds back here before they begin: their sources are told, by way of nasd.
//!
//! libvirt runs the hook at the destination before QEMU is started there; at the source the job exists
//! already, and nothing tells it from one that is about to send. Without this both would wait for each other:
//! the storage for the migration, the hook for the storage (S11).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::core::Now;

/// The hook asks again within a second while it waits; after this it is taken to be gone.
const GONE: Duration = Duration::from_secs(3);

/// Guests by uuid, and when the hook asked last.
#[derive(Debug, Clone, Default)]
pub struct Arrivals(BTreeMap<String, Now>);

impl Arrivals {
    /// The hook has asked, and was told to wait or not.
    pub fn asked(&mut self, now: Now, uuid: &str, waits: bool) {
        if waits {
            self.0.insert(uuid.to_owned(), now);
        } else {
            self.0.remove(uuid);
        }
        self.0.retain(|_, asked| now.saturating_sub(*asked) <= GONE);
    }

    /// Those that wait now.
    pub fn waiting(&self, now: Now) -> impl Iterator<Item = String> {
        let waits = move |asked: &Now| now.saturating_sub(*asked) <= GONE;
        self.0.iter().filter(move |(_, asked)| waits(asked)).map(|(uuid, _)| uuid.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: fn(u64) -> Now = Duration::from_millis;

    fn waiting(arrivals: &Arrivals, ms: u64) -> Vec<String> {
        arrivals.waiting(AT(ms)).collect()
    }

    #[test]
    fn s11_a_hook_that_asks_no_more_holds_nothing() {
        let mut arrivals = Arrivals::default();
        arrivals.asked(AT(0), "a", true);
        arrivals.asked(AT(2000), "b", true);
        assert_eq!(waiting(&arrivals, 3000), ["a", "b"]);
        assert_eq!(waiting(&arrivals, 3001), ["b"]);
        arrivals.asked(AT(3100), "b", false);
        assert_eq!(waiting(&arrivals, 3100), Vec::<String>::new());
    }
}
