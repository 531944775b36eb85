//! The contract of every coordinator: file, and real etcd where its program is installed.
//!
//! Proves S8 (one winner per revision, an unknown outcome is told as such and settled by a read) and
//! S12 (no answer is never an answer). Where etcd is absent its tests say so and end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use nasd::coordinator::{CasOutcome, Coordinator, CoordinatorError, Etcd, FileStore};
use nasd::core::record::{NodeName, Record};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const DEADLINE: Duration = Duration::from_secs(2);
/// For a cluster to elect on a loaded machine.
const ELECTION: Duration = Duration::from_secs(20);

fn node(name: &str) -> NodeName {
    NodeName::from(name)
}

fn first() -> Record {
    Record::first(BTreeSet::from([node("a"), node("b")]), BTreeMap::new())
}

async fn created(store: &dyn Coordinator, service: &str) -> i64 {
    match store.create(service, &first()).await.unwrap() {
        CasOutcome::Won { revision } => revision,
        lost @ CasOutcome::Lost { .. } => panic!("an empty store takes the first record: {lost:?}"),
    }
}

/// What both kinds of store promise.
async fn contract(store: Arc<dyn Coordinator>) {
    assert_eq!(store.read("vms").await.unwrap(), None);
    let revision = created(&*store, "vms").await;
    let read = store.read("vms").await.unwrap().unwrap();
    assert_eq!((read.revision, read.record), (revision, first()));
    assert!(matches!(
        store.create("vms", &first()).await.unwrap(),
        CasOutcome::Lost { now: Some(_) }
    ));

    let next = first().start(&node("a")).unwrap();
    let CasOutcome::Won { revision: second } =
        store.compare_and_set("vms", revision, &next).await.unwrap()
    else {
        panic!("the revision was the newest");
    };
    assert!(second > revision, "revisions rise");
    match store.compare_and_set("vms", revision, &first()).await.unwrap() {
        CasOutcome::Lost { now: Some(now) } => {
            assert_eq!((now.revision, now.record), (second, next))
        }
        other => panic!("an old revision never wins: {other:?}"),
    }
    let absent = store.compare_and_set("iso", revision, &first()).await.unwrap();
    assert_eq!(absent, CasOutcome::Lost { now: None }, "no key, no win");
    unchanged_content_still_moves_the_revision(&*store).await;
    one_winner_of_many(store).await;
}

/// Hole C5: a removal is always written, and must supersede whatever raced with it.
async fn unchanged_content_still_moves_the_revision(store: &dyn Coordinator) {
    let revision = created(store, "same").await;
    let again = store.compare_and_set("same", revision, &first()).await.unwrap();
    assert!(matches!(again, CasOutcome::Won { revision: r } if r > revision), "{again:?}");
}

async fn one_winner_of_many(store: Arc<dyn Coordinator>) {
    let revision = created(&*store, "race").await;
    let tasks = (0..8).map(|i| {
        let (store, mut record) = (store.clone(), first());
        record.generation = i;
        tokio::spawn(async move { (i, store.compare_and_set("race", revision, &record).await) })
    });
    let mut winners = Vec::new();
    for task in tasks.collect::<Vec<_>>() {
        if let (i, Ok(CasOutcome::Won { .. })) = task.await.unwrap() {
            winners.push(i);
        }
    }
    assert_eq!(winners.len(), 1, "one revision, one winner: {winners:?}");
    let stored = store.read("race").await.unwrap().unwrap();
    assert_eq!(stored.record.generation, winners[0]);
}

/// A watcher is told of a change (best effort means late, not never, while all is well).
async fn watch_tells(store: &dyn Coordinator) {
    let revision = created(store, "watched").await;
    let mut changes = store.watch("watched");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let next = first().start(&node("a")).unwrap();
    store.compare_and_set("watched", revision, &next).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(5), changes.next()).await;
    assert_eq!(told.expect("told within 5 s"), Some(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s8_file_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(FileStore::new(dir.path().join("records.json")));
    contract(store.clone()).await;
    watch_tells(&*store).await;
}

/// A process of ours, killed by its id when the test ends in whatever way.
struct Member {
    child: Child,
    name: String,
}

impl Member {
    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A cluster of three on this machine; `None`, with a word, where etcd is not installed.
fn cluster(dir: &Path) -> Option<(Vec<Member>, Vec<String>)> {
    cluster_with(dir, ["127.0.0.1"; 3], &[])
}

/// The same, each member's clients at an address of its own, with more arguments.
fn cluster_with(dir: &Path, at: [&str; 3], more: &[&str]) -> Option<(Vec<Member>, Vec<String>)> {
    let ports: Vec<(u16, u16)> = (0..3).map(|_| (free_port(), free_port())).collect();
    let peer = |i: usize| format!("http://127.0.0.1:{}", ports[i].1);
    let client = |i: usize| format!("http://{}:{}", at[i], ports[i].0);
    let initial = (0..3).map(|i| format!("m{i}={}", peer(i))).collect::<Vec<_>>().join(",");
    let mut members = Vec::new();
    for i in 0..3 {
        let child = Command::new("etcd")
            .args(["--name", &format!("m{i}"), "--data-dir"])
            .arg(dir.join(format!("m{i}")))
            .args(["--listen-client-urls", &client(i), "--advertise-client-urls", &client(i)])
            .args(["--listen-peer-urls", &peer(i), "--initial-advertise-peer-urls", &peer(i)])
            .args(["--initial-cluster", &initial])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match child {
            Ok(child) => members.push(Member { child, name: format!("m{i}") }),
            Err(error) => {
                println!("SKIPPED: etcd cannot be started here ({error}); the lab covers it");
                return None;
            }
        }
    }
    Some((members, (0..3).map(client).collect()))
}

async fn ready(endpoints: &[String]) -> Etcd {
    let store = Etcd::new("test", endpoints, None, DEADLINE).await.unwrap();
    let until = Instant::now() + ELECTION;
    while let Err(error) = store.read("none").await {
        assert!(Instant::now() < until, "no leader within {ELECTION:?}: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    store
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s8_etcd_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_members, endpoints)) = cluster(dir.path()) else { return };
    let store = Arc::new(ready(&endpoints).await);
    contract(store.clone()).await;
    watch_tells(&*store).await;
}

/// Two of three hang: nothing is answered, and every call ends at its deadline. When they go on, the
/// write whose outcome was unknown is either there or not, and a read tells which; both attempts
/// compared the same revision, so at most one of them landed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s8_s12_without_a_majority_nothing_is_told_as_true() {
    let dir = tempfile::tempdir().unwrap();
    let Some((members, endpoints)) = cluster(dir.path()) else { return };
    let store = ready(&endpoints).await;
    let revision = created(&store, "vms").await;
    members[..2].iter().for_each(|m| m.signal(Signal::SIGSTOP));
    let started = Instant::now();
    assert!(store.read("vms").await.is_err(), "a read without a majority must not answer");
    let next = first().start(&node("a")).unwrap();
    let written = store.compare_and_set("vms", revision, &next).await;
    assert!(matches!(written, Err(CoordinatorError::OutcomeUnknown { .. })), "{written:?}");
    assert!(started.elapsed() < 2 * DEADLINE + Duration::from_secs(1), "deadlines hold");
    members[..2].iter().for_each(|m| m.signal(Signal::SIGCONT));
    let store = ready(&endpoints).await;
    let again = store.compare_and_set("vms", revision, &next).await.unwrap();
    let now = store.read("vms").await.unwrap().unwrap();
    assert_eq!(now.record, next, "landed late or written again: {again:?}");
    if let CasOutcome::Lost { now: Some(found) } = again {
        assert_eq!(found.record, next, "only our own write can have been first");
    }
}

/// The owner's member dies with the owner: the taker's calls must not wait for it. The member hangs
/// with its connections open, as a machine does whose power is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_silent_member_of_three_costs_no_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let Some((members, endpoints)) = cluster(dir.path()) else { return };
    for (silent, member) in members.iter().enumerate() {
        // The silent one is the one that is asked first.
        let mut order = endpoints.clone();
        order.rotate_left(silent);
        let store = ready(&order).await;
        for _ in 0..12 {
            store.read("none").await.unwrap();
        }
        member.signal(Signal::SIGSTOP);
        // The silent one may have led: the election is etcd's time, not the client's, and is over
        // when a client of the other two alone is answered.
        let live: Vec<String> = endpoints
            .iter()
            .enumerate()
            .filter(|(i, _)| *i != silent)
            .map(|(_, e)| e.clone())
            .collect();
        ready(&live).await;
        let mut slowest = Duration::ZERO;
        let mut failed = 0;
        for _ in 0..12 {
            let started = Instant::now();
            failed += usize::from(store.read("none").await.is_err());
            slowest = slowest.max(started.elapsed());
        }
        println!(
            "{} silent (endpoint {silent}): {failed} of 12 reads failed, slowest {slowest:?}",
            member.name
        );
        member.signal(Signal::SIGCONT);
        assert_eq!(failed, 0, "reads fail while a majority is up");
        assert!(slowest < DEADLINE / 2, "a silent member costs {slowest:?}");
    }
}

/// `seek` on a cluster: the other node's nasd answers its own name only, while it runs, and quickly;
/// what it answered earlier is no answer once it is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s12_a_node_is_found_only_while_it_answers() {
    let dir = tempfile::tempdir().unwrap();
    let Some((members, endpoints)) = cluster(dir.path()) else { return };
    let asker = ready(&endpoints).await;
    let limit = Duration::from_millis(1500);
    let began = Instant::now();
    assert!(!asker.seek("b", limit).await.unwrap(), "nobody answers for b");
    println!("nobody there: {:?}", began.elapsed());
    assert!(began.elapsed() < limit / 2, "{:?} on a healthy cluster", began.elapsed());

    let other = node_elsewhere("b", &endpoints);
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..3 {
        let began = Instant::now();
        assert!(asker.seek("b", limit).await.unwrap(), "b answers");
        println!("found after {:?}", began.elapsed());
        assert!(!asker.seek("a", limit).await.unwrap(), "b does not answer for a");
    }
    // Searches of several services at once are one search.
    let (one, two) = tokio::join!(asker.seek("b", limit), asker.seek("b", limit));
    assert!(one.unwrap() && two.unwrap());

    // A member that hangs hides nobody: the node is asked and answers through the others.
    let led = leader(&endpoints).await.expect("a leader");
    let silent = &members[(led + 1) % 3];
    silent.signal(Signal::SIGSTOP);
    tokio::time::sleep(Duration::from_millis(150)).await;
    let began = Instant::now();
    assert!(asker.seek("b", limit).await.unwrap(), "b answers through two members");
    println!("found with one member silent after {:?}", began.elapsed());
    silent.signal(Signal::SIGCONT);

    other.shutdown_background();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!asker.seek("b", limit).await.unwrap(), "an old answer is none");

    members[..2].iter().for_each(|m| m.signal(Signal::SIGSTOP));
    // Longer than a search's result is shared.
    tokio::time::sleep(Duration::from_millis(150)).await;
    let began = Instant::now();
    assert!(asker.seek("b", limit).await.is_err(), "no majority, no evidence");
    assert!(began.elapsed() < limit + Duration::from_millis(300), "{:?}", began.elapsed());
    members[..2].iter().for_each(|m| m.signal(Signal::SIGCONT));
}

/// Another node's nasd, as far as the coordinator sees it; it dies with the runtime.
fn node_elsewhere(name: &str, endpoints: &[String]) -> tokio::runtime::Runtime {
    let builder =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = builder.unwrap();
    let (name, endpoints) = (name.to_owned(), endpoints.to_vec());
    runtime.spawn(async move {
        let store = Etcd::new("test", &endpoints, None, DEADLINE).await.unwrap();
        // No member is on a NAS node here: the leader stays where it is.
        let here = "192.0.2.1".parse().unwrap();
        store.attend(&name, here, &[here]);
        std::future::pending::<()>().await;
    });
    runtime
}

/// Which cluster a node belongs to is kept: another one is a no, also for a nasd that starts anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s12_another_cluster_is_a_no_also_after_a_restart() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let Some((_first, endpoints)) = cluster(one.path()) else { return };
    let memory = one.path().join("etcd-cluster");
    let store = ready(&endpoints).await.remembering(memory.clone()).unwrap();
    let revision = created(&store, "vms").await;
    let kept = Instant::now() + Duration::from_secs(5);
    while !memory.exists() {
        assert!(Instant::now() < kept, "the identity is kept");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let again = ready(&endpoints).await.remembering(memory.clone()).unwrap();
    assert_eq!(again.read("vms").await.unwrap().unwrap().revision, revision);

    let Some((_second, others)) = cluster(two.path()) else { return };
    let foreign = ready(&others).await.remembering(memory.clone()).unwrap();
    let read = foreign.read("vms").await;
    assert!(
        matches!(&read, Err(CoordinatorError::Refused { reason }) if reason.contains("cluster")),
        "an empty foreign store is not an empty store: {read:?}"
    );
    let written = foreign.create("vms", &first()).await;
    assert!(written.is_err(), "nothing is true that another cluster confirms: {written:?}");
    assert!(foreign.seek("b", Duration::from_secs(1)).await.is_err(), "no evidence either");
}

/// The leader leaves the node on which nasd runs for a member that is on no NAS node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_does_not_stay_on_a_nas_node() {
    let dir = tempfile::tempdir().unwrap();
    // Two members count as the NAS nodes' by their address; all three run here.
    let Some((_members, endpoints)) =
        cluster_with(dir.path(), ["127.0.0.1", "127.0.0.2", "127.0.0.3"], &[])
    else {
        return;
    };
    ready(&endpoints).await;
    lead_at(&endpoints, 0).await;
    let ip = |i: u8| std::net::IpAddr::from([127, 0, 0, i]);
    let nas = [ip(1), ip(2)];
    let one = Etcd::new("test", &endpoints, None, DEADLINE).await.unwrap();
    let two = Etcd::new("test", &endpoints, None, DEADLINE).await.unwrap();
    one.attend("a", ip(1), &nas);
    two.attend("b", ip(2), &nas);
    let until = Instant::now() + Duration::from_secs(20);
    while leader(&endpoints).await != Some(2) {
        assert!(Instant::now() < until, "the leader is not on the third member");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(one.reach(), Some(true));
}

/// Makes that member lead, whichever does now.
async fn lead_at(endpoints: &[String], wanted: usize) {
    let now = leader(endpoints).await.expect("a leader");
    if now != wanted {
        let connect = |i: usize| etcd_client::Client::connect([&endpoints[i]], None);
        let status = connect(wanted).await.unwrap().maintenance_client().status().await.unwrap();
        let id = status.header().unwrap().member_id();
        connect(now).await.unwrap().maintenance_client().move_leader(id).await.unwrap();
    }
    assert_eq!(leader(endpoints).await, Some(wanted));
}

/// Index of the endpoint whose member leads.
async fn leader(endpoints: &[String]) -> Option<usize> {
    for (i, endpoint) in endpoints.iter().enumerate() {
        let client = etcd_client::Client::connect([endpoint], None).await.ok()?;
        let status = client.maintenance_client().status().await.ok()?;
        if status.header()?.member_id() == status.leader() {
            return Some(i);
        }
    }
    None
}

/// A full database: reads go on, writes are refused for what they are, and the reach is a no.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_database_is_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let small = ["--quota-backend-bytes", "4000000"];
    let Some((_members, endpoints)) = cluster_with(dir.path(), ["127.0.0.1"; 3], &small) else {
        return;
    };
    let store = ready(&endpoints).await;
    let revision = created(&store, "vms").await;
    let mut client = etcd_client::Client::connect(&endpoints, None).await.unwrap();
    for i in 0..20 {
        if client.put(format!("/fill/{i}"), vec![b'x'; 1_000_000], None).await.is_err() {
            break;
        }
    }
    let next = first().start(&node("a")).unwrap();
    let written = store.compare_and_set("vms", revision, &next).await;
    let Err(error @ CoordinatorError::NoSpace { .. }) = written else { panic!("{written:?}") };
    assert!(error.to_string().contains("alarm disarm"), "{error}");
    assert_eq!(store.read("vms").await.unwrap().unwrap().revision, revision, "reads go on");
    assert_eq!(store.reach(), Some(false), "no failover is possible");
    assert!(store.alarm().is_some());
}
