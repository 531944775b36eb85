//! The NFS server, judged by progress: unfit only when probes fail *and* nothing is completed.
//!
//! A probe alone can time out under load; counters alone stand still when nobody asks. A server
//! whose volume hangs is not accused: that is the volume's check.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nasd_net::sockets::{self, Traffic};
use nasd_net::{Netns, NetnsWorker};

use super::board::{Board, Check};
use super::judge::Finding;
use super::{Bounded, Term, suspended};
use crate::core::view::Now;
use crate::drive::hands::{Hands, lock};
use crate::drive::network::NFS_PORT;
use crate::io::{Answer, CallError, Op, Refusal};

/// Between two looks at the counters.
const PERIOD: Duration = Duration::from_secs(1);
/// Pauses before the next probe after none, one, two and more that failed in a row: soon again to
/// be sure, then seldom, for each that hangs may keep a thread of the server.
const PAUSES: [Duration; 4] = [
    Duration::from_secs(2),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(4),
];
/// So many failures in a row are needed: one can be chance.
const FAILURES: usize = 2;
/// For one probe.
const PROBE_LIMIT: Duration = Duration::from_secs(3);
/// For one reading of counters.
const READ: Duration = Duration::from_millis(800);
/// A canary that has been under way for so long makes the volume the suspect.
const VOLUME_SUSPECT: Duration = Duration::from_secs(2);

/// How the last probe ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probed {
    /// The server answered as it must.
    Answered,
    /// It did not.
    Failed(String),
    /// No probe could be made.
    Unknown,
}

/// Reads a probe's outcome. Only an answer *about the server* is one.
#[must_use]
pub fn probed<T>(outcome: Result<T, CallError>) -> Probed {
    match outcome {
        Ok(_) => Probed::Answered,
        Err(CallError::Refused { refusal, .. }) => match *refusal {
            Refusal::ProbeFailed { .. } | Refusal::ProbeMismatch { .. } => {
                Probed::Failed(refusal.to_string())
            }
            _ => Probed::Unknown,
        },
        Err(_) => Probed::Unknown,
    }
}

/// The progress of a server over looks.
#[derive(Debug, Default)]
pub struct Progress {
    operations: Option<u64>,
    acknowledged: BTreeMap<(std::net::SocketAddr, std::net::SocketAddr), u64>,
}

impl Progress {
    /// Takes a reading: whether anything was completed since the last one; unknown if nothing
    /// could be read. The probes' own connection is the loopback's and does not count.
    pub fn read(&mut self, operations: Option<u64>, traffic: Option<&[Traffic]>) -> Option<bool> {
        let moved = |old: Option<u64>, new: Option<u64>| Some(old? != new?);
        let by_operations = moved(std::mem::replace(&mut self.operations, operations), operations);
        let by_traffic = traffic.map(|traffic| self.read_traffic(traffic));
        match (by_operations, by_traffic) {
            (None, None) => None,
            (a, b) => Some(a == Some(true) || b == Some(true)),
        }
    }

    fn read_traffic(&mut self, traffic: &[Traffic]) -> bool {
        let of_clients = traffic.iter().filter(|t| !t.connection.peer.ip().is_loopback());
        let now: BTreeMap<_, _> = of_clients
            .filter_map(|t| Some(((t.connection.local, t.connection.peer), t.acknowledged?)))
            .collect();
        let rose = now.iter().any(|(id, n)| self.acknowledged.get(id).is_some_and(|old| n > old));
        self.acknowledged = now;
        rose
    }
}

/// Judges one look. `good` is when last a probe was answered or something completed.
#[must_use]
pub fn judge(probe: &Probed, moved: Option<bool>, volume_suspect: bool, good: Now) -> Finding {
    match (probe, moved) {
        (Probed::Answered, _) => Finding::Well,
        (Probed::Unknown, _) | (_, None | Some(true)) => Finding::Unknown,
        _ if volume_suspect => Finding::Unknown,
        (Probed::Failed(why), Some(false)) => Finding::Bad {
            since: good,
            why: format!("probes fail and no call is completed: {why}"),
        },
    }
}

/// What the prober leaves for the judging.
type LastProbe = Arc<Mutex<Probed>>;

/// Watches for ever.
pub(super) async fn watch(hands: Arc<Hands>, board: Arc<Board>) {
    let last: LastProbe = Arc::new(Mutex::new(Probed::Unknown));
    let probing = keep_probing(Arc::clone(&hands), Arc::clone(&board), Arc::clone(&last));
    let watch = Watch {
        hands,
        board,
        last,
        worker: None,
        bounded: Bounded::default(),
        term: Term::default(),
        progress: Progress::default(),
        good: Now::ZERO,
    };
    tokio::join!(probing, watch.keep_looking());
}

async fn keep_probing(hands: Arc<Hands>, board: Arc<Board>, last: LastProbe) {
    let (mut term, mut row) = (Term::default(), Row::default());
    loop {
        if term.serving(&hands, board.now()).is_none() {
            row = Row::default();
            *lock(&last) = Probed::Unknown;
            tokio::time::sleep(PERIOD).await;
            continue;
        }
        let outcome = probe(&hands).await;
        if outcome != Probed::Answered {
            tracing::debug!(service = hands.service.name, ?outcome, "NFS probe");
        }
        *lock(&last) = row.take(outcome);
        tokio::time::sleep(row.pause()).await;
    }
}

/// Probes that failed in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Row(usize);

impl Row {
    /// The outcome as it is judged.
    pub fn take(&mut self, outcome: Probed) -> Probed {
        match outcome {
            Probed::Failed(why) => {
                self.0 += 1;
                if self.0 >= FAILURES { Probed::Failed(why) } else { Probed::Unknown }
            }
            other => {
                self.0 = 0;
                other
            }
        }
    }

    /// Until the next probe.
    #[must_use]
    pub fn pause(self) -> Duration {
        let [.., last] = PAUSES;
        PAUSES.get(self.0).copied().unwrap_or(last)
    }
}

async fn probe(hands: &Hands) -> Probed {
    let Some(fs) = hands.service.filesystems.first() else { return Probed::Unknown };
    let export = fs.export.trim_start_matches('/').to_owned();
    let deadline_ms = u64::try_from(PROBE_LIMIT.as_millis()).unwrap_or(3000);
    // The time for the answer to come back is not the server's.
    let limit = PROBE_LIMIT + Duration::from_millis(500);
    probed(hands.io_call(Op::Pulse { export, deadline_ms }, limit).await)
}

struct Watch {
    hands: Arc<Hands>,
    board: Arc<Board>,
    last: LastProbe,
    worker: Option<Arc<NetnsWorker>>,
    bounded: Bounded,
    term: Term,
    progress: Progress,
    good: Now,
}

impl Watch {
    async fn keep_looking(mut self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let now = self.board.now();
        if suspended(&self.hands) {
            self.term.raise(now);
        }
        let Some(floor) = self.term.serving(&self.hands, now) else {
            self.progress = Progress::default();
            return self.board.post(Check::Server, Finding::Idle);
        };
        let operations = self.operations().await;
        let traffic = self.traffic().await;
        let moved = self.progress.read(operations, traffic.as_deref());
        let probe = lock(&self.last).clone();
        if probe == Probed::Answered || moved == Some(true) {
            self.good = now;
        }
        let suspect = suspended(&self.hands) || self.board.canary_hangs(VOLUME_SUSPECT);
        let finding = judge(&probe, moved, suspect, self.good.max(floor));
        self.board.post(Check::Server, finding);
    }

    async fn operations(&self) -> Option<u64> {
        match self.hands.io_call(Op::Progress, READ).await {
            Ok(Answer::Progress { operations }) => operations,
            other => {
                tracing::debug!(?other, "the server's counters are unknown");
                None
            }
        }
    }

    async fn traffic(&mut self) -> Option<Vec<Traffic>> {
        let (known, name) = (self.worker.clone(), self.hands.service.netns_name());
        let read = move || -> Result<_, nasd_net::NetError> {
            let worker = match known {
                Some(worker) => worker,
                None => Arc::new(NetnsWorker::start(&Netns::open(&name)?)?),
            };
            let traffic = sockets::traffic(&worker, NFS_PORT, READ)?;
            Ok((worker, traffic))
        };
        match self.bounded.run(READ * 2, read).await? {
            Ok((worker, traffic)) => {
                self.worker = Some(worker);
                Some(traffic)
            }
            Err(error) => {
                tracing::debug!(%error, "the connections' counters are unknown");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn traffic(peer: &str, acknowledged: Option<u64>) -> Traffic {
        let connection = sockets::Connection {
            local: "192.0.2.9:2049".parse().unwrap(),
            peer: peer.parse().unwrap(),
        };
        Traffic { connection, acknowledged }
    }

    #[test]
    fn progress_is_operations_or_replies_that_arrived() {
        let mut progress = Progress::default();
        let one = [traffic("192.0.2.1:800", Some(5)), traffic("127.0.0.1:900", Some(5))];
        assert_eq!(progress.read(None, None), None);
        assert_eq!(
            progress.read(Some(7), Some(&one)),
            Some(false),
            "a first reading tells nothing"
        );
        assert_eq!(progress.read(Some(8), Some(&one)), Some(true));
        assert_eq!(progress.read(None, Some(&one)), Some(false));
        let more = [traffic("192.0.2.1:800", Some(6)), traffic("127.0.0.1:900", Some(9))];
        assert_eq!(progress.read(None, Some(&more)), Some(true));
        let probe_only = [traffic("192.0.2.1:800", Some(6)), traffic("127.0.0.1:900", Some(99))];
        assert_eq!(progress.read(None, Some(&probe_only)), Some(false), "the probe's own");
        let new_client = [traffic("192.0.2.2:800", Some(1))];
        assert_eq!(progress.read(None, Some(&new_client)), Some(false));
        assert_eq!(progress.read(None, Some(&[])), Some(false), "nobody is connected");
    }

    #[test]
    fn unfit_needs_both_failing_probes_and_no_progress() {
        let failed = Probed::Failed("refused".into());
        let bad = |f: Finding| matches!(f, Finding::Bad { .. });
        assert!(bad(judge(&failed, Some(false), false, Now::ZERO)));
        assert_eq!(judge(&failed, Some(true), false, Now::ZERO), Finding::Unknown);
        assert_eq!(judge(&failed, None, false, Now::ZERO), Finding::Unknown);
        assert_eq!(judge(&failed, Some(false), true, Now::ZERO), Finding::Unknown);
        assert_eq!(judge(&Probed::Unknown, Some(false), false, Now::ZERO), Finding::Unknown);
        assert_eq!(judge(&Probed::Answered, Some(false), false, Now::ZERO), Finding::Well);
    }

    #[test]
    fn only_answers_about_the_server_count() {
        let refused = |refusal| CallError::Refused { op: "pulse", refusal: Box::new(refusal) };
        let failed = Refusal::ProbeFailed { text: "no answer".into() };
        assert!(matches!(probed::<()>(Err(refused(failed))), Probed::Failed(_)));
        for other in [
            refused(Refusal::NotSetUp),
            refused(Refusal::Occupied { op: "pulse".into(), since_ms: 1 }),
            CallError::Gone { op: "pulse" },
        ] {
            assert_eq!(probed::<()>(Err(other)), Probed::Unknown);
        }
    }

    #[test]
    fn one_failed_probe_is_chance() {
        let mut row = Row::default();
        let failed = || Probed::Failed("timed out".into());
        assert_eq!(row.take(failed()), Probed::Unknown);
        assert!(row.pause() < PAUSES[0], "sure soon");
        assert_eq!(row.take(failed()), failed());
        assert_eq!(row.take(failed()), failed());
        assert_eq!(row.pause(), PAUSES[3], "threads of the server are not used up");
        assert_eq!(row.take(Probed::Answered), Probed::Answered);
        assert_eq!(row.take(failed()), Probed::Unknown);
    }

    proptest! {
        #[test]
        fn a_rising_counter_is_always_progress(steps in prop::collection::vec(1u64..9, 1..30)) {
            let (mut progress, mut total) = (Progress::default(), 0u64);
            progress.read(None, Some(&[traffic("192.0.2.1:8", Some(0))]));
            for step in steps {
                total += step;
                let seen = progress.read(None, Some(&[traffic("192.0.2.1:8", Some(total))]));
                prop_assert_eq!(seen, Some(true));
            }
        }
    }
}
