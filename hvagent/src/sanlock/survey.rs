//! Everything the daemon was asked in one round.

use std::time::Duration;

use nasd_sanlock::{
    Client, Daemon, Detail, Host, Lockspace, Renewal, RenewalHistory, Result, Status,
};

use super::lease::Lease;
use crate::core::Now;

/// One round of answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The moment before the first question.
    pub taken: Now,
    /// The daemon's settings.
    pub daemon: Daemon,
    /// The lockspaces of this host.
    pub spaces: Vec<Space>,
    /// Lockspaces that the list names and the status does not: the answer was incomplete, or they
    /// came or went in between. Nothing is known of them.
    pub untold: Vec<String>,
}

/// One lockspace. What could not be had is an error's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// As status tells it.
    pub lockspace: Lockspace,
    /// Its hosts.
    pub hosts: std::result::Result<Vec<Host>, String>,
    /// Its remembered renewals.
    pub history: std::result::Result<RenewalHistory, String>,
}

impl Survey {
    /// Asks the daemon. Blocks, for two limits of the client and two more per lockspace at most.
    /// `taken` is the moment of the call. An error means that nothing is known of any lease.
    pub fn take(client: &Client, taken: Now) -> Result<Self> {
        let status = client.status(Detail::Lockspaces)?;
        let listed = client.lockspaces()?.into_iter().map(|listed| listed.name).collect();
        let details = |lockspace: Lockspace| {
            let hosts = client.hosts(&lockspace.name).map_err(|error| error.to_string());
            let history = client.renewals(&lockspace.name).map_err(|error| error.to_string());
            Space { lockspace, hosts, history }
        };
        Ok(Self::assemble(status, listed, taken, details))
    }

    fn assemble(
        status: Status,
        mut untold: Vec<String>,
        taken: Now,
        details: impl FnMut(Lockspace) -> Space,
    ) -> Self {
        untold.retain(|name| status.lockspaces.iter().all(|space| space.name != *name));
        let spaces = status.lockspaces.into_iter().map(details).collect();
        Self { taken, daemon: status.daemon, spaces, untold }
    }

    /// The names of all lockspaces, whatever is known of them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let told = self.spaces.iter().map(|space| space.lockspace.name.as_str());
        told.chain(self.untold.iter().map(String::as_str))
    }

    /// This host's lease in that lockspace, if it holds one.
    #[must_use]
    pub fn lease(&self, space: &Space) -> Option<Lease> {
        Lease::told(&self.daemon, &space.lockspace, self.taken)
    }

    /// The smallest margin of all lockspaces at `now`. `None` when there is no lockspace; zero when
    /// the margin of any is not known (S12).
    #[must_use]
    pub fn margin(&self, now: Now) -> Option<Duration> {
        let of = |space| self.lease(space).map_or(Duration::ZERO, |lease| lease.margin(now));
        let untold = self.untold.first().map(|_| Duration::ZERO);
        self.spaces.iter().map(of).chain(untold).min()
    }

    /// Until the latest of the renewals that are due next: a storage move that begins just after it
    /// has the most time. `None` when there is no lease.
    #[must_use]
    pub fn next_renewal(&self, now: Now) -> Option<Duration> {
        let leases = self.spaces.iter().filter_map(|space| self.lease(space));
        leases.map(|lease| lease.next_renewal(now)).max()
    }
}

/// The longest stall of the lockspace's storage that a history shows: how much later than usual a renewal
/// came, or how long its accesses took. Zero for a history of fewer than two.
#[must_use]
pub fn longest_stall(history: &RenewalHistory) -> Duration {
    let Some(io_timeout) = history.io_timeout else { return Duration::ZERO };
    // Two seconds for the daemon's rhythm and rounding.
    let normal = u64::from(io_timeout).saturating_mul(2).saturating_add(2);
    let stall = |pair: &[Renewal]| match pair {
        [before, after] => {
            let apart = after.timestamp.saturating_sub(before.timestamp);
            Duration::from_secs(apart.saturating_sub(normal)).max(access(after))
        }
        _ => Duration::ZERO,
    };
    history.renewals.windows(2).map(stall).max().unwrap_or_default()
}

fn access(renewal: &Renewal) -> Duration {
    let read = Duration::from_millis(renewal.read_ms.into());
    read + Duration::from_millis(renewal.write_ms.into())
}

#[cfg(test)]
pub(super) mod samples {
    use nasd_sanlock::{Disk, HostState, Outcome, Stage};

    use super::*;

    pub(crate) const NAME: &str = "__LIBVIRT__DISKS__";

    pub(crate) fn lockspace(name: &str) -> Lockspace {
        Lockspace {
            name: name.to_owned(),
            host_id: 1,
            disk: Disk { path: format!("/leases/{name}"), offset: 0 },
            stage: Stage::Joined,
            io_timeout: 10,
            dead: false,
            killing: false,
            corrupt: None,
            last_result: Outcome::OK,
            last_attempt: 990,
            last_success: 990,
        }
    }

    pub(crate) fn status() -> Status {
        let daemon = Daemon {
            host_name: "hv1".to_owned(),
            use_watchdog: true,
            io_timeout: None,
            watchdog_fire_timeout: None,
            kill_grace: 40,
            monotime: 1000,
            version: "3.8.5".to_owned(),
        };
        let lockspaces = vec![lockspace(NAME)];
        Status { daemon, holders: Vec::new(), lockspaces, resources: Vec::new() }
    }

    pub(crate) fn renewal(timestamp: u64, read_ms: u32) -> Renewal {
        Renewal { timestamp, read_ms, write_ms: 5, next_timeouts: 0, next_errors: 0 }
    }

    /// A healthy host with one lockspace and one peer.
    pub(crate) fn survey() -> Survey {
        let host = |id, state| Host { id, generation: 1, timestamp: 7, io_timeout: 10, state };
        let hosts = Ok(vec![host(1, HostState::Live), host(2, HostState::Live)]);
        let renewals = vec![renewal(950, 3), renewal(970, 3), renewal(990, 3)];
        let history = RenewalHistory { io_timeout: Some(10), renewals };
        Survey::assemble(status(), vec![NAME.to_owned()], Duration::ZERO, |lockspace| Space {
            lockspace,
            hosts: hosts.clone(),
            history: Ok(history.clone()),
        })
    }
}

/// The fake daemon of the client's own tests.
#[cfg(test)]
#[path = "../../../bindings/sanlock/tests/daemon/mod.rs"]
mod daemon;

#[cfg(test)]
mod tests {
    use super::daemon::{Answer, LOCKSPACE, PATH, full_status};
    use super::samples::{NAME, renewal, survey};
    use super::*;

    #[test]
    fn a_round_of_questions_to_a_daemon() {
        let list = Answer::header(22, 32 + 2 * 1104, 0, 2);
        let list = list.lockspace(NAME, 1, 0, PATH).lockspace("new", 1, 1, "/new");
        let hosts = Answer::header(23, 32, -11, 0);
        let history = Answer::header(34, 32, 0, 10).state(6, 0, 9, "", &daemon::renewal(9));
        let fake = daemon::serves([full_status(), list, hosts, history]);
        let client = Client::new(&fake, Duration::from_secs(10));
        let survey = Survey::take(&client, Duration::from_secs(5)).unwrap();
        assert_eq!(
            (survey.taken, survey.untold.as_slice()),
            (Duration::from_secs(5), &["new".to_owned()][..])
        );
        let space = &survey.spaces[0];
        assert!(space.hosts.as_ref().unwrap_err().contains("not read"), "{space:?}");
        assert_eq!(space.history.as_ref().unwrap().renewals.len(), 1);
        assert!(LOCKSPACE.contains("renewal_last_success=1201"), "and monotime is 1217:");
        let margin = survey.lease(space).unwrap().margin(Duration::from_secs(5));
        assert_eq!(margin, Duration::from_secs(63));
    }

    #[test]
    fn the_worst_lockspace_gives_the_margin() {
        let mut survey = survey();
        assert_eq!(survey.margin(Duration::ZERO), Some(Duration::from_secs(69)));
        let mut other = survey.spaces[0].clone();
        other.lockspace.last_success = 960;
        survey.spaces.push(other);
        assert_eq!(survey.margin(Duration::ZERO), Some(Duration::from_secs(39)));
        assert_eq!(survey.next_renewal(Duration::ZERO), Some(Duration::from_secs(10)));
    }

    #[test]
    fn s12_an_unknown_lease_has_no_margin_left() {
        let mut survey = survey();
        survey.untold = vec!["other".to_owned()];
        assert_eq!(survey.margin(Duration::ZERO), Some(Duration::ZERO));
        survey.untold.clear();
        survey.spaces[0].lockspace.dead = true;
        assert_eq!(survey.margin(Duration::ZERO), Some(Duration::ZERO));
        survey.spaces.clear();
        assert_eq!(survey.margin(Duration::ZERO), None);
    }

    #[test]
    fn a_lockspace_that_status_does_not_tell_of_is_noticed() {
        let mut status = samples::status();
        status.lockspaces.clear();
        let listed = vec![NAME.to_owned()];
        let survey = Survey::assemble(status, listed, Duration::ZERO, |_| unreachable!());
        assert_eq!(survey.untold, [NAME]);
    }

    #[test]
    fn a_history_shows_stalls_by_late_renewals_and_slow_accesses() {
        let stall = |renewals| longest_stall(&RenewalHistory { io_timeout: Some(10), renewals });
        assert_eq!(stall(vec![]), Duration::ZERO);
        assert_eq!(stall(vec![renewal(10, 0), renewal(31, 3)]), Duration::from_millis(8));
        assert_eq!(stall(vec![renewal(10, 0), renewal(67, 3)]), Duration::from_secs(35));
        assert_eq!(stall(vec![renewal(10, 0), renewal(30, 9995)]), Duration::from_secs(10));
        assert_eq!(stall(vec![renewal(30, 0), renewal(10, 0)]), Duration::from_millis(5));
    }
}
