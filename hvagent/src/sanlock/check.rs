//! Findings about sanlock, from one [`Survey`].

use std::time::Duration;

use nasd_sanlock::{Error, Host, HostState, Stage};

use super::lease::needed_io_timeout;
use super::remedy;
use super::survey::{Space, Survey, longest_stall};
use crate::core::Now;
use crate::core::finding::{Finding, Severity};

/// What this host should look like, and what was seen of its storage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// Lockspaces that must be joined.
    pub lockspaces: Vec<String>,
    /// Guests rely on leases (libvirt's `lock_manager` is sanlock).
    pub in_use: bool,
    /// The longest stall of the mounts that was seen or is to be expected.
    pub stall: Option<Duration>,
}

/// The finding when the daemon could not be asked. `None` where nobody relies on it.
#[must_use]
pub fn without_answer(error: &Error, expected: &Expected) -> Option<Finding> {
    if !expected.in_use && expected.lockspaces.is_empty() {
        return None;
    }
    let remedy = "find out why sanlock does not answer before storage is moved: until then no \
                  margin is known, and this host is not ready for a move";
    let evidence = error.to_string();
    Some(Finding::new(Severity::Error, "sanlock-no-answer", "sanlock", evidence, remedy))
}

/// Lockspaces that were joined before and are not there any more. A lockspace that was lost is only
/// seen as dead while processes of it live: then the daemon forgets it, and nothing but the earlier
/// survey tells that it was lost.
#[must_use]
pub fn gone(before: &Survey, after: &Survey) -> Vec<Finding> {
    let finding = |space: &Space| {
        let name = space.lockspace.name.as_str();
        let evidence = "joined before, gone now: lost and given up, or left by hand; guests that \
                        need it cannot start, resume or arrive";
        let remedy = remedy::recover(&space.lockspace);
        Finding::new(Severity::Error, "lockspace-gone", name, evidence, remedy)
    };
    let joined = |space: &&Space| space.lockspace.stage == Stage::Joined;
    let is_gone = |space: &&Space| !after.names().any(|name| name == space.lockspace.name);
    before.spaces.iter().filter(joined).filter(is_gone).map(finding).collect()
}

/// Everything that is to be said at `now`.
#[must_use]
pub fn check(survey: &Survey, expected: &Expected, now: Now) -> Vec<Finding> {
    let mut found: Vec<Finding> = watchdog(survey, expected).into_iter().collect();
    found.extend(missing(survey, expected));
    found.extend(survey.untold.iter().map(|name| untold(name)));
    for space in &survey.spaces {
        found.extend(life(space));
        found.extend(lease(survey, space, now));
        found.extend(io_timeout(space, expected));
        found.extend(peers(space));
    }
    found
}

fn watchdog(survey: &Survey, expected: &Expected) -> Option<Finding> {
    if survey.daemon.use_watchdog {
        return None;
    }
    let used = expected.in_use || !survey.spaces.is_empty();
    let severity = if used { Severity::Error } else { Severity::Warning };
    let evidence = "use_watchdog=0: a host that loses its lease and cannot end its guests goes on \
                    running, while the other hosts take its leases over";
    let remedy = "load a watchdog driver at boot (softdog if there is no hardware), take `-w 0` out \
                  of sanlock_opts in /etc/default/sanlock or sanlock's configuration, and restart \
                  wdmd and sanlock while no guest runs here";
    Some(Finding::new(severity, "sanlock-watchdog-off", "sanlock", evidence, remedy))
}

fn missing(survey: &Survey, expected: &Expected) -> impl Iterator<Item = Finding> {
    let known = |name: &str| survey.names().any(|known| known == name);
    let finding = |name: &String| {
        let evidence =
            "not joined on this host: guests that need it cannot start, resume or arrive";
        let remedy = remedy::join_by_name(name);
        Finding::new(Severity::Error, "lockspace-missing", name.as_str(), evidence, remedy)
    };
    expected.lockspaces.iter().filter(move |name| !known(name)).map(finding)
}

fn untold(name: &str) -> Finding {
    let evidence = "in the daemon's list, but its status does not tell of it";
    let remedy = "ask again; if it stays so, restart of sanlock is due (while no guest runs here)";
    Finding::new(Severity::Warning, "lockspace-unknown", name, evidence, remedy)
}

/// Lost, joining, leaving.
fn life(space: &Space) -> Option<Finding> {
    let lockspace = &space.lockspace;
    let finding = |severity, code, evidence: String, remedy: String| {
        Some(Finding::new(severity, code, lockspace.name.as_str(), evidence, remedy))
    };
    if lockspace.dead || lockspace.corrupt.is_some() {
        let evidence = dead(space);
        return finding(Severity::Error, "lockspace-dead", evidence, remedy::recover(lockspace));
    }
    let (evidence, remedy) = match lockspace.stage {
        Stage::Joined => return None,
        Stage::Joining => (
            "being joined; no lease is held yet",
            "wait: it takes 20 to 50 s, and up \
            to 200 s if this host was killed while it held the lease",
        ),
        Stage::Leaving => {
            ("being left", "wait until it is gone, then join it again if it is needed")
        }
    };
    finding(Severity::Warning, "lockspace-not-joined", evidence.to_owned(), remedy.to_owned())
}

fn dead(space: &Space) -> String {
    let lockspace = &space.lockspace;
    let killing = if lockspace.killing { "; its processes are being killed" } else { "" };
    let why = match lockspace.corrupt {
        Some(outcome) => outcome.to_string(),
        None => format!("no renewal for 8 x {} s", lockspace.io_timeout),
    };
    format!("lost ({why}){killing}; it does not come back by itself, even if the storage does")
}

/// A lease that is running out, or a renewal that is late.
fn lease(survey: &Survey, space: &Space, now: Now) -> Option<Finding> {
    let lease = survey.lease(space)?;
    let (age, margin) = (lease.age(now).as_secs(), lease.margin(now).as_secs());
    let last = space.lockspace.last_result;
    let evidence = format!("last renewal {age} s ago, margin {margin} s; last attempt: {last}");
    let (severity, code, remedy) = if lease.is_short(now) {
        (
            Severity::Error,
            "lease-running-out",
            "bring the storage back within the margin (fail back or finish the move); guests that \
             matter more than their uptime can be ended in good order",
        )
    } else if !lease.overdue(now).is_zero() || !last.is_ok() {
        (Severity::Warning, "lease-renewal-late", "look at the storage; do not begin a move now")
    } else {
        return None;
    };
    Some(Finding::new(severity, code, space.lockspace.name.as_str(), evidence, remedy))
}

/// `io_timeout` against the stalls that were seen.
fn io_timeout(space: &Space, expected: &Expected) -> Option<Finding> {
    let past = space.history.as_ref().map(longest_stall).unwrap_or_default();
    let (stall, source) = match expected.stall {
        Some(stall) if stall >= past => (stall, "the mounts"),
        _ => (past, "sanlock's renewal history"),
    };
    let (has, needed) = (space.lockspace.io_timeout, needed_io_timeout(stall));
    if needed <= has {
        return None;
    }
    let evidence = format!(
        "io_timeout={has} surely survives stalls of {} s, {source} showed one of {:.1} s",
        u64::from(has).saturating_mul(6).saturating_sub(3),
        stall.as_secs_f64()
    );
    let remedy = format!(
        "set io_timeout to {needed} or more on every host of the lockspace (libvirt: io_timeout in \
         qemu-sanlock.conf; else -o of sanlock's options) and join the lockspace again"
    );
    let name = space.lockspace.name.as_str();
    Some(Finding::new(Severity::Warning, "io-timeout-too-small", name, evidence, remedy))
}

fn peers(space: &Space) -> Vec<Finding> {
    match &space.hosts {
        Ok(hosts) => hosts.iter().filter_map(|host| peer(space, host)).collect(),
        Err(error) => {
            let remedy = "ask again after the next renewal";
            let name = space.lockspace.name.as_str();
            vec![Finding::new(Severity::Info, "hosts-unknown", name, error.as_str(), remedy)]
        }
    }
}

fn peer(space: &Space, host: &Host) -> Option<Finding> {
    let lockspace = &space.lockspace;
    if host.id == lockspace.host_id {
        return None;
    }
    let live = matches!(host.state, HostState::Live);
    let (severity, code, evidence, remedy) = match host.state {
        HostState::Failed | HostState::Dead => (
            Severity::Warning,
            "peer-lease-lost",
            format!("host {} does not renew its lease any more", host.id),
            "see to that host; nothing migrates there until it has joined again",
        ),
        _ if live && host.io_timeout != lockspace.io_timeout => (
            Severity::Warning,
            "io-timeout-differs",
            format!(
                "host {} has io_timeout={}, this one {}",
                host.id, host.io_timeout, lockspace.io_timeout
            ),
            "set the same value on all hosts and join the lockspace again",
        ),
        _ => return None,
    };
    Some(Finding::new(severity, code, lockspace.name.as_str(), evidence, remedy))
}

#[cfg(test)]
mod tests {
    use nasd_sanlock::Outcome;

    use super::*;
    use crate::sanlock::survey::samples::{NAME, renewal, survey};

    const NOW: Now = Duration::ZERO;

    fn expected() -> Expected {
        Expected { lockspaces: vec![NAME.to_owned()], in_use: true, stall: None }
    }

    fn codes(survey: &Survey, expected: &Expected, now: Now) -> Vec<String> {
        check(survey, expected, now).into_iter().map(|finding| finding.code).collect()
    }

    /// The findings after a change to a healthy host.
    fn after(change: impl FnOnce(&mut Survey)) -> Vec<Finding> {
        let mut survey = survey();
        change(&mut survey);
        check(&survey, &expected(), NOW)
    }

    #[test]
    fn a_healthy_host_gives_nothing_to_say() {
        assert_eq!(check(&survey(), &expected(), NOW), []);
    }

    #[test]
    fn a_watchdog_that_is_off_is_an_error_where_leases_are_held() {
        let found = after(|survey| survey.daemon.use_watchdog = false);
        assert_eq!(
            (found[0].code.as_str(), found[0].severity),
            ("sanlock-watchdog-off", Severity::Error)
        );
        let mut bare = survey();
        bare.daemon.use_watchdog = false;
        bare.spaces.clear();
        assert_eq!(check(&bare, &Expected::default(), NOW)[0].severity, Severity::Warning);
    }

    #[test]
    fn an_io_timeout_that_is_too_small_names_the_value_that_would_do() {
        let mut expected = expected();
        expected.stall = Some(Duration::from_secs(90));
        let found = check(&survey(), &expected, NOW);
        assert_eq!(found[0].code, "io-timeout-too-small");
        assert!(found[0].remedy.contains("set io_timeout to 16 or more"), "{found:?}");
        assert!(found[0].evidence.contains("90.0 s"), "{found:?}");
        expected.stall = Some(Duration::from_secs(57));
        assert_eq!(check(&survey(), &expected, NOW), []);
    }

    #[test]
    fn the_renewal_history_shows_it_as_well() {
        let found = after(|survey| {
            let history = survey.spaces[0].history.as_mut().unwrap();
            history.renewals = vec![renewal(800, 3), renewal(882, 3)];
        });
        assert!(found[0].evidence.contains("renewal history showed one of 60.0 s"), "{found:?}");
    }

    #[test]
    fn a_dead_lockspace_comes_with_the_way_back() {
        let found = after(|survey| {
            survey.spaces[0].lockspace.dead = true;
            survey.spaces[0].lockspace.killing = true;
        });
        assert_eq!(
            (found[0].code.as_str(), found[0].severity),
            ("lockspace-dead", Severity::Error)
        );
        assert!(found[0].evidence.contains("being killed"));
        assert!(found[0].remedy.contains("libvirtd"), "{}", found[0].remedy);
        let corrupt = after(|survey| survey.spaces[0].lockspace.corrupt = Some(Outcome(-261)));
        assert_eq!(corrupt[0].code, "lockspace-dead");
    }

    #[test]
    fn a_lease_that_runs_out_is_told_before_it_is_lost() {
        let at = |seconds| codes(&survey(), &expected(), Duration::from_secs(seconds));
        assert!(at(10).is_empty());
        assert_eq!(at(30), ["lease-renewal-late"]);
        assert_eq!(at(55), ["lease-running-out"]);
        let found = after(|survey| survey.spaces[0].lockspace.last_result = Outcome(-202));
        assert!(found[0].evidence.contains("did not answer within io_timeout"), "{found:?}");
    }

    #[test]
    fn lockspaces_that_are_missing_or_on_their_way() {
        let found = after(|survey| survey.spaces.clear());
        assert_eq!(found[0].code, "lockspace-missing");
        let found = after(|survey| survey.spaces[0].lockspace.stage = Stage::Joining);
        assert_eq!(found[0].code, "lockspace-not-joined");
        let found = after(|survey| {
            survey.spaces.clear();
            survey.untold.push(NAME.to_owned());
        });
        assert_eq!(found.len(), 1, "unknown is not missing: {found:?}");
        assert_eq!(found[0].code, "lockspace-unknown");
    }

    #[test]
    fn a_lockspace_that_the_daemon_has_forgotten_is_remembered() {
        let (before, mut after) = (survey(), survey());
        assert_eq!(gone(&before, &after), []);
        after.spaces.clear();
        let found = gone(&before, &after);
        assert_eq!(found[0].code, "lockspace-gone");
        assert!(found[0].remedy.contains("libvirtd"), "{}", found[0].remedy);
        after.untold.push(NAME.to_owned());
        assert_eq!(gone(&before, &after), [], "unknown is not gone");
    }

    #[test]
    fn peers_that_failed_or_differ() {
        let change = |change: fn(&mut Host)| {
            after(|survey| change(&mut survey.spaces[0].hosts.as_mut().unwrap()[1]))
        };
        assert_eq!(change(|host| host.state = HostState::Dead)[0].code, "peer-lease-lost");
        assert_eq!(change(|host| host.io_timeout = 20)[0].code, "io-timeout-differs");
        assert_eq!(change(|host| host.state = HostState::Free), []);
        let found = after(|survey| survey.spaces[0].hosts = Err("not yet".to_owned()));
        assert_eq!(found[0].code, "hosts-unknown");
    }

    #[test]
    fn s12_a_silent_daemon_is_an_error_only_where_it_is_needed() {
        let error = Error::Deadline { doing: "connect", limit: Duration::from_secs(2) };
        let finding = without_answer(&error, &expected()).unwrap();
        assert_eq!(finding.severity, Severity::Error);
        assert_eq!(without_answer(&error, &Expected::default()), None);
    }
}
