//! The client against a real daemon, where there is one: set `NASD_SANLOCK_SOCKET` to its socket and
//! run with `--ignored`. The daemon must have joined one lockspace and have renewed it once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use nasd_sanlock::{Client, Detail, Error, HostState, Outcome, Stage};

#[test]
#[ignore = "needs a sanlock daemon"]
fn a_real_daemon_is_understood() {
    let socket = std::env::var("NASD_SANLOCK_SOCKET").unwrap();
    let client = Client::new(socket, Duration::from_secs(5));
    let version = client.version().unwrap();
    for detail in [Detail::Lockspaces, Detail::Resources] {
        let status = client.status(detail).unwrap();
        assert_eq!(status.daemon.version, version.to_string());
        let space = &status.lockspaces[0];
        assert_eq!((space.stage, space.last_result), (Stage::Joined, Outcome::OK));
        let age = status.daemon.monotime - space.last_success;
        assert!(age <= u64::from(space.io_timeout) * 3, "{space:?}");
        assert!(space.disk.path.starts_with('/'), "{space:?}");
    }
    let listed = client.lockspaces().unwrap();
    let hosts = client.hosts(&listed[0].name).unwrap();
    let own = hosts.iter().find(|host| host.id == listed[0].host_id).unwrap();
    assert_eq!(own.state, HostState::Live);
    let history = client.renewals(&listed[0].name).unwrap();
    assert!(history.io_timeout.is_some() && !history.renewals.is_empty(), "{history:?}");
    assert!(history.renewals.is_sorted_by_key(|renewal| renewal.timestamp), "{history:?}");
    assert!(matches!(client.hosts("none"), Err(Error::NoSuchLockspace { .. })));
    assert!(matches!(client.renewals("none"), Err(Error::NoSuchLockspace { .. })));
}
