//! The probe helper as a process: answers, hangs, dies, and is never waited for (S10).

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use hvagent::core::phase::Probing;
use hvagent::probe::keeper::{Input, Timing};
use hvagent::probe::process::{Launch, Report, run};
use hvagent::probe::protocol::{Outcome, What};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// Longer than anything here takes on a loaded machine.
const LONG: Duration = Duration::from_secs(30);

fn timing() -> Timing {
    let ms = Duration::from_millis;
    Timing {
        rest: ms(20),
        quick: ms(5),
        again: ms(20),
        read: ms(300),
        open: ms(300),
        hopeless: LONG,
    }
}

fn real(mount: &Path) -> Launch {
    let device = std::fs::metadata(mount).unwrap().dev();
    let device = (rustix::fs::major(device), rustix::fs::minor(device));
    Launch::helper(env!("CARGO_BIN_EXE_hvagent").into(), mount, device)
}

/// A program that notes its start and does as the script says.
fn script(dir: &Path, body: &str) -> Launch {
    let program = dir.join("helper.sh");
    let starts = dir.join("starts");
    let text = format!("#!/bin/sh\necho $$ >> {}\n{body}\n", starts.display());
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    Launch { program, arguments: vec![] }
}

fn starts(dir: &Path) -> usize {
    std::fs::read_to_string(dir.join("starts")).map_or(0, |t| t.lines().count())
}

struct Probe {
    origin: Instant,
    inputs: mpsc::Sender<Input>,
    reports: mpsc::Receiver<Report>,
    task: tokio::task::JoinHandle<()>,
}

fn probe(launch: Launch) -> Probe {
    let origin = Instant::now();
    let (inputs, commands) = mpsc::channel(8);
    let (out, reports) = mpsc::channel(8);
    let task = tokio::spawn(run(launch, timing(), origin, commands, out));
    Probe { origin, inputs, reports, task }
}

impl Probe {
    async fn wait_for(&mut self, what: What) -> Report {
        let found = async {
            loop {
                let report = self.reports.recv().await.expect("the runner is gone");
                if report.what == what {
                    return report;
                }
            }
        };
        timeout(LONG, found).await.expect("no report in time")
    }

    async fn say(&self, input: Input) {
        self.inputs.send(input).await.expect("the runner is gone");
    }

    /// Ends at once whatever the helper does.
    async fn end(self) {
        drop(self.inputs);
        timeout(Duration::from_secs(5), self.task).await.expect("it waited").unwrap();
    }
}

async fn until(mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, wait).await.expect("not in time");
}

#[tokio::test]
async fn reads_and_opens_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let mut p = probe(real(dir.path()));
    if p.wait_for(What::Hold).await.outcome == (Outcome::Error { errno: 22 }) {
        eprintln!("skipped: no O_DIRECT below {}", dir.path().display());
        return p.end().await;
    }
    assert_eq!(p.wait_for(What::Read).await.outcome, Outcome::Good);
    assert_eq!(p.wait_for(What::Open).await.outcome, Outcome::Good);
    p.say(Input::Probing(Probing::Reads)).await;
    let now = p.origin.elapsed();
    let mut read = p.wait_for(What::Read).await;
    while read.asked < now {
        read = p.wait_for(What::Read).await;
    }
    assert_eq!(read.outcome, Outcome::Good);
    p.end().await;
}

#[tokio::test]
async fn a_lost_mount_is_an_error_and_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut launch = real(dir.path());
    launch.arguments[2] = "0:1048575".into();
    let mut p = probe(launch);
    assert_eq!(p.wait_for(What::Hold).await.outcome, Outcome::Error { errno: 18 });
    p.end().await;
}

#[tokio::test]
async fn s10_a_helper_that_hangs_alone_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let p = probe(script(dir.path(), "exec sleep 600"));
    until(|| starts(dir.path()) == 1).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(starts(dir.path()), 1, "the storage is silent: it is left alone");
    p.say(Input::Answering(Some(p.origin.elapsed()))).await;
    until(|| starts(dir.path()) >= 2).await;
    p.end().await;
}

#[tokio::test]
async fn a_helper_that_talks_nonsense_or_dies_is_replaced() {
    for body in ["echo hello; exec sleep 600", "exit 3", "head -c 100000 /dev/zero; exec sleep 600"]
    {
        let dir = tempfile::tempdir().unwrap();
        let p = probe(script(dir.path(), body));
        until(|| starts(dir.path()) >= 3).await;
        p.end().await;
    }
}

#[tokio::test]
async fn s10_the_end_waits_for_no_helper_and_leaves_none() {
    let dir = tempfile::tempdir().unwrap();
    let p = probe(script(dir.path(), "exec sleep 600"));
    until(|| starts(dir.path()) == 1).await;
    let pid = std::fs::read_to_string(dir.path().join("starts")).unwrap();
    p.end().await;
    let status = format!("/proc/{}/stat", pid.trim());
    until(|| std::fs::read_to_string(&status).map_or(true, |t| t.contains(") Z "))).await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let launch = Launch { program: dir.path().join("helper.sh"), arguments: vec![] };
    let p = probe(launch);
    tokio::time::sleep(Duration::from_millis(100)).await;
    script(dir.path(), "exec sleep 600");
    until(|| starts(dir.path()) == 1).await;
    p.end().await;
}
