//! `nasd-fence-peer` against nasd's own socket: many at once, a nasd that restarts, every wrong record
//! (I8, S9, S10).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nasd::core::record::{NodeName, Record};
use nasd::drive::fence::{Records, Source, serve};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

fn nodes() -> (NodeName, NodeName) {
    (NodeName::from("a"), NodeName::from("b"))
}

/// Both are current, a serves.
fn serving() -> Record {
    let (a, b) = nodes();
    Record::first(BTreeSet::from([a.clone(), b]), BTreeMap::new()).start(&a).unwrap()
}

fn alone() -> Record {
    let (a, b) = nodes();
    serving().exclude(&a, &b).unwrap()
}

fn helper(dir: &Path, limit_ms: u32) -> Child {
    Command::new(env!("CARGO_BIN_EXE_nasd-fence-peer"))
        .env_clear()
        .env("NASD_FENCE_SOCKET", dir.join("fence.sock"))
        .env("NASD_FENCE_TIMEOUT_MS", limit_ms.to_string())
        .env("NASD_FENCE_KMSG", "/dev/null")
        .args(["fence-peer", "r0"])
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn nasd(dir: &Path, record: &watch::Sender<Option<Record>>) -> JoinHandle<()> {
    let (a, b) = nodes();
    let source = Source { record: record.subscribe(), seen: Arc::default() };
    let sources: Records = BTreeMap::from([("r0".to_owned(), source)]);
    let path = dir.join("fence.sock");
    let (task_path, socket) = (path.clone(), path);
    let task = tokio::spawn(async move {
        serve(&task_path, a, b, sources).await.unwrap();
    });
    for _ in 0..200 {
        if std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            return task;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no socket");
}

async fn code(mut child: Child) -> Option<i32> {
    let ended = tokio::time::timeout(Duration::from_secs(30), child.wait()).await;
    ended.expect("the helper ends").unwrap().code()
}

#[tokio::test]
async fn s10_many_helpers_are_let_go_by_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let record = watch::channel(Some(serving())).0;
    let nasd = nasd(dir.path(), &record).await;
    let helpers: Vec<_> = (0..6).map(|_| helper(dir.path(), 30_000)).collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    record.send_replace(Some(alone()));
    for helper in helpers {
        assert_eq!(code(helper).await, Some(4));
    }
    nasd.abort();
}

#[tokio::test]
async fn s9_a_nasd_that_restarts_answers_those_who_wait() {
    let dir = tempfile::tempdir().unwrap();
    let record = watch::channel(Some(serving())).0;
    let first = nasd(dir.path(), &record).await;
    let mut waiting = helper(dir.path(), 30_000);
    tokio::time::sleep(Duration::from_millis(300)).await;
    first.abort();
    drop(first.await);
    // What the process would take with it: the open questions end.
    drop(record);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(waiting.try_wait().unwrap().is_none(), "it goes on asking");
    let unknown = watch::channel(None).0;
    let second = nasd(dir.path(), &unknown).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(waiting.try_wait().unwrap().is_none(), "a nasd without a record says nothing");
    unknown.send_replace(Some(alone()));
    assert_eq!(code(waiting).await, Some(4));
    second.abort();
}

#[tokio::test]
async fn i8_no_other_record_ever_lets_a_helper_go() {
    let (a, b) = nodes();
    let taken = serving().take(&b).unwrap();
    for (what, wrong) in [
        ("unknown", None),
        ("both current", Some(serving())),
        ("taken by the peer", Some(taken.clone())),
        ("stopped", Some(Record::first(BTreeSet::from([a.clone()]), BTreeMap::new()))),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let record = watch::channel(wrong).0;
        let nasd = nasd(dir.path(), &record).await;
        assert_eq!(code(helper(dir.path(), 700)).await, Some(1), "{what}");
        nasd.abort();
    }
}
