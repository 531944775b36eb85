//! The client against a daemon of our own, over a real socket.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod daemon;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use daemon::{Answer, Fake, NAME, PATH, answers, fake, full_status, renewal};
use nasd_sanlock::{Client, Detail, Error, HostState, Outcome, Stage};

const HEADER: usize = 32;
const NAMED: usize = 32 + 1104;
const LIMIT: Duration = Duration::from_secs(10);

fn client(fake: &Fake) -> Client {
    Client::new(&fake.socket, LIMIT)
}

#[test]
fn status_tells_daemon_processes_lockspaces_and_leases() {
    let fake = answers(HEADER, full_status());
    let status = client(&fake).status(Detail::Resources).unwrap();
    assert!(!status.daemon.use_watchdog);
    assert_eq!((status.daemon.io_timeout, status.daemon.monotime), (Some(10), 1217));
    assert_eq!(status.daemon.watchdog_fire_timeout, Some(60));
    let pids: Vec<_> = status.holders.iter().map(|holder| holder.pid).collect();
    assert_eq!(pids, [None, Some(4711)]);
    let lockspace = &status.lockspaces[0];
    assert_eq!((lockspace.name.as_str(), lockspace.host_id), (NAME, 1));
    assert_eq!((lockspace.disk.path.as_str(), lockspace.stage), (PATH, Stage::Joined));
    assert_eq!((lockspace.last_success, lockspace.last_result), (1201, Outcome::OK));
    assert!(!lockspace.dead && lockspace.corrupt.is_none());
    let lease = &status.resources[0];
    assert_eq!((lease.pid, lease.shared, lease.list.as_str()), (Some(4711), true, "held"));
    assert_eq!(lease.disks[0].offset, 1_048_576);
    assert_eq!(fake.request().len(), HEADER);
}

#[test]
fn the_packaged_daemon_tells_less() {
    let text = daemon::DAEMON.replace("io_timeout=10 watchdog_fire_timeout=60 ", "");
    let fake = answers(HEADER, Answer::header(5, 32, 0, 0).state(1, 0, 0, "hv1", &text));
    let told = client(&fake).status(Detail::Lockspaces).unwrap().daemon;
    assert_eq!((told.io_timeout, told.watchdog_fire_timeout, told.kill_grace), (None, None, 40));
}

#[test]
fn little_is_asked_for_by_default() {
    let fake = answers(HEADER, full_status());
    client(&fake).status(Detail::Lockspaces).unwrap();
    assert_eq!(fake.request()[24..28], 3_u32.to_ne_bytes(), "SANLK_STATE_LOCKSPACE");
}

#[test]
fn a_dead_lockspace_is_seen() {
    let text =
        daemon::LOCKSPACE.replace("space_dead=0 killing_pids=0", "space_dead=1 killing_pids=2");
    let text = text.replace("corrupt_result=0", "corrupt_result=-261");
    let answer = Answer::header(5, 32, 0, 0).state(1, 0, 0, "hv1", daemon::DAEMON);
    let answer = answer.state(3, 0, 1, NAME, &text).lockspace(NAME, 1, 0, PATH);
    let fake = answers(HEADER, answer);
    let lockspace = client(&fake).status(Detail::Lockspaces).unwrap().lockspaces.remove(0);
    assert!(lockspace.dead && lockspace.killing);
    assert!(lockspace.corrupt.unwrap().to_string().contains("not the one written last"));
}

#[test]
fn lockspaces_are_a_counted_list() {
    let answer = Answer::header(22, 32 + 2 * 1104, 0, 2);
    let fake = answers(HEADER, answer.lockspace("a", 1, 0, "/a").lockspace("b", 2, 2, "/b"));
    let listed = client(&fake).lockspaces().unwrap();
    assert_eq!((listed[0].name.as_str(), listed[0].stage), ("a", Stage::Joined));
    assert_eq!((listed[1].host_id, listed[1].stage), (2, Stage::Leaving));
}

#[test]
fn hosts_come_with_what_the_daemon_thinks_of_them() {
    let answer = Answer::header(23, 32 + 2 * 32, 0, 2).host(1, 1201, 10, 3).host(2, 88, 5, 5);
    let fake = answers(NAMED, answer);
    let hosts = client(&fake).hosts(NAME).unwrap();
    assert_eq!((hosts[0].id, hosts[0].state), (1, HostState::Live));
    assert_eq!((hosts[1].io_timeout, hosts[1].state), (5, HostState::Dead));
    let request = fake.request();
    assert_eq!(request.len(), NAMED, "header and body arrive as one piece");
}

#[test]
fn hosts_of_a_lockspace_that_is_not_there_or_not_read_yet() {
    let fake = answers(NAMED, Answer::header(23, 32, -2, 0));
    assert!(matches!(client(&fake).hosts("x"), Err(Error::NoSuchLockspace { .. })));
    let fake = answers(NAMED, Answer::header(23, 32, -11, 0));
    assert!(matches!(client(&fake).hosts("x"), Err(Error::NotReadYet { .. })));
    let fake = answers(NAMED, Answer::header(23, 32, -12, 0));
    assert!(matches!(client(&fake).hosts("x"), Err(Error::Refused { code: -12, .. })));
}

#[test]
fn renewals_come_oldest_first() {
    let answer = Answer::header(34, 32, 0, 10).state(6, 0, 80, "", &renewal(80));
    let fake = answers(NAMED, answer.state(6, 0, 100, "", &renewal(100)));
    let history = client(&fake).renewals(NAME).unwrap();
    assert_eq!(history.io_timeout, Some(10));
    assert_eq!((history.renewals[0].timestamp, history.renewals[1].timestamp), (80, 100));
    assert_eq!((history.renewals[0].read_ms, history.renewals[0].next_timeouts), (3, 1));
}

#[test]
fn a_daemon_without_history_hangs_up_on_the_request() {
    // It reads the header only, so the kernel resets the connection behind its answer.
    let fake = fake(HEADER, |mut stream| {
        stream.write_all(&Answer::header(34, 32, 0, 0).0).unwrap();
    });
    let history = client(&fake).renewals(NAME).unwrap();
    assert_eq!((history.io_timeout, history.renewals.len()), (None, 0));
}

#[test]
fn the_version() {
    let fake = answers(HEADER, Answer::header(28, 32, 0, 0x0308_0500));
    assert_eq!(client(&fake).version().unwrap().to_string(), "3.8.5");
}

#[test]
fn s12_another_protocol_is_refused_with_its_number() {
    let mut answer = full_status();
    answer.0[4..8].copy_from_slice(&0x0002_0000_u32.to_ne_bytes());
    let fake = answers(HEADER, answer);
    let error = client(&fake).status(Detail::Lockspaces).unwrap_err();
    assert_eq!(
        error.to_string(),
        "sanlock speaks protocol 0x00020000, this program knows 0x00000001"
    );
}

#[test]
fn s12_lengths_that_cannot_be_are_refused() {
    let lists = [(32, 1), (32 + 1104, 2), (u32::MAX, 0x00ff_ffff), (31, 0)];
    for (length, count) in lists {
        let fake = answers(HEADER, Answer::header(22, length, 0, count));
        let error = client(&fake).lockspaces().unwrap_err();
        assert!(matches!(error, Error::BadLength { .. }), "{length} {count}: {error}");
    }
    let long = Answer::header(5, 32, 0, 0).state(1, 0, 0, "hv1", &"x".repeat(4096));
    let fake = answers(HEADER, long);
    assert!(matches!(client(&fake).status(Detail::Lockspaces), Err(Error::BadLength { .. })));
}

#[test]
fn s12_a_list_that_did_not_fit_is_no_list() {
    let fake = answers(HEADER, Answer::header(22, 32, -28, 2000));
    assert!(matches!(client(&fake).lockspaces(), Err(Error::Incomplete { count: 2000 })));
}

#[test]
fn s10_a_silent_daemon_costs_the_limit_and_no_more() {
    let hangs = fake(HEADER, |mut stream| {
        // Ends when the client has hung up.
        let _ = stream.read(&mut [0]);
    });
    let before = Instant::now();
    let error = Client::new(&hangs.socket, Duration::from_millis(200)).version().unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    assert!(before.elapsed() < LIMIT);
    hangs.request();
}

#[test]
fn s10_a_daemon_that_drips_is_no_way_round_the_limit() {
    let drips = fake(HEADER, |mut stream| {
        for byte in full_status().0 {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let error = Client::new(&drips.socket, Duration::from_millis(200)).status(Detail::Lockspaces);
    assert!(matches!(error, Err(Error::Deadline { .. })), "{error:?}");
}

#[test]
fn s10_a_full_backlog_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let socket = |flags| {
        let (family, kind) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM);
        rustix::net::socket_with(family, kind, flags, None).unwrap()
    };
    let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
    let listener = socket(rustix::net::SocketFlags::CLOEXEC);
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let waiting: Vec<_> = (0..3)
        .map(|_| socket(rustix::net::SocketFlags::NONBLOCK))
        .filter(|socket| rustix::net::connect(socket, &address).is_ok())
        .collect();
    assert!(!waiting.is_empty());
    let error = Client::new(&path, Duration::from_millis(100)).version().unwrap_err();
    assert!(matches!(error, Error::Deadline { doing: "connect", .. }), "{error}");
}

#[test]
fn no_daemon_says_what_to_do() {
    let error = Client::new("/nonexistent/sanlock.sock", LIMIT).version().unwrap_err();
    assert!(error.to_string().contains("sanlock.service"), "{error}");
}
