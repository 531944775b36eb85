//! The service's NFS server: set up, started, watched, stopped.
//!
//! Order of a start: mounts checked, records loaded, settings, tracker ready, caches filled,
//! threads. Order of a stop: threads, caches, records. A start that fails at any step is undone.
//! Keeps S5 and S6.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nasd_nfsd::cld::{RecordSlot, Tracker};
use nasd_nfsd::control::{self, Server};
use nasd_nfsd::exports::{self, Answerer, Export, ExportTable};
use nasd_nfsd::netns::NetNs;
use nasd_nfsd::probe;
use nasd_nfsd::records::{RecordsError, Snapshot, Store};

use super::super::{Answer, Refusal, ServerStatus, Setup, StartReport, StepTime};
use super::volume::{check_mounted, elapsed_ms};

/// How long a `GraceStart` may wait for records. They are loaded before threads are started, so
/// this only bounds a mistake; the kernel holds a lock meanwhile that every server needs.
const HOLD: Duration = Duration::from_secs(2);
/// How long other upcalls wait for records: only when this process is new under a running server.
const PATIENCE: Duration = Duration::from_secs(10);
/// The tracker is ready at once unless its directory is missing.
const READY: Duration = Duration::from_secs(1);

/// How long the kernel may take to count the calls in execution.
const COUNTING: Duration = Duration::from_millis(50);

/// What to start.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) threads: u32,
    pub(super) exports: Vec<Export>,
    pub(super) records_mount: PathBuf,
    pub(super) allow_empty_new: bool,
    pub(super) known_clients: Vec<IpAddr>,
}

/// A server that is set up, whether it runs or not.
pub(super) struct Nfs {
    setup: Setup,
    server: Server,
    slot: Arc<RecordSlot>,
    tracker: Tracker,
    answerer: Answerer,
    exports: Mutex<Vec<Export>>,
}

/// Names the step in which the binding failed.
pub(super) fn at(step: &'static str) -> impl Fn(nasd_nfsd::Error) -> Refusal {
    move |error| match error {
        nasd_nfsd::Error::ServerExists { .. } => Refusal::SetUpOtherwise,
        other => Refusal::ServerStep { step: step.into(), text: other.to_string() },
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Before each start: the setting is the node's, and somebody may have changed it.
fn no_delegations() -> Result<(), Refusal> {
    let file = Path::new(control::LEASES);
    control::without_delegations(file)
        .map_err(at("switching delegations off (sysctl fs.leases-enable=0 must work on this node)"))
}

fn records_refusal(error: RecordsError) -> Refusal {
    match error {
        RecordsError::Missing { dir } => Refusal::RecordsMissing { dir },
        other => Refusal::RecordsUnusable { text: other.to_string() },
    }
}

/// Measures steps.
struct Clock {
    steps: Vec<StepTime>,
    since: Instant,
}

impl Clock {
    fn new() -> Self {
        Clock { steps: Vec::new(), since: Instant::now() }
    }

    fn step(&mut self, step: &str) {
        let took_ms = elapsed_ms(self.since);
        tracing::debug!(step, took_ms, "server step");
        self.steps.push(StepTime { step: step.into(), took_ms });
        self.since = Instant::now();
    }
}

impl Nfs {
    /// Mounts the control file systems, starts tracker and answerer. Touches no volume.
    pub(super) fn new(ns: &NetNs, setup: Setup) -> Result<Self, Refusal> {
        let root = &setup.pseudo_root;
        std::fs::create_dir_all(root)
            .map_err(|e| Refusal::system("making the service's root directory", root, e))?;
        // Also where a server runs already: it grants no more.
        no_delegations()?;
        let server = Server::mount(ns.clone(), &setup.control_dir, &setup.pipefs_dir)
            .map_err(at("mounting the control files"))?;
        let slot = Arc::new(RecordSlot::new(HOLD, PATIENCE));
        let records = Arc::clone(&slot);
        let tracker =
            Tracker::spawn(server.pipefs(), records).map_err(at("starting the client tracker"))?;
        let answerer = Answerer::spawn(ns.clone()).map_err(at("opening the export caches"))?;
        let exports = Mutex::default();
        Ok(Nfs { setup, server, slot, tracker, answerer, exports })
    }

    pub(super) fn setup(&self) -> &Setup {
        &self.setup
    }

    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// Versions, lease, grace and listener. Not while threads run: they have theirs.
    pub(super) fn configure(&self) -> Result<(), Refusal> {
        no_delegations()?;
        let Setup { lease_s, grace_s, port, .. } = self.setup;
        let settings = control::Settings { lease_s, grace_s, port };
        self.server.configure(&settings).map_err(at("configuring the server"))
    }

    pub(super) fn is_running(&self) -> Result<bool, Refusal> {
        Ok(self.server.threads().map_err(at("reading the threads"))? > 0)
    }

    /// Is a file of a volume open here?
    pub(super) fn holds_records(&self) -> bool {
        self.slot.snapshot().is_some()
    }

    pub(super) fn snapshot(&self) -> Option<Snapshot> {
        self.slot.snapshot()
    }

    pub(super) fn mend_records(&self) -> Result<Option<String>, Refusal> {
        let unusable = |e: RecordsError| Refusal::RecordsUnusable { text: e.to_string() };
        Ok(self.slot.mend().map_err(unusable)?.map(|differed| differed.to_string()))
    }

    pub(super) fn ignore_removals(&self, ignore: bool) -> Result<Answer, Refusal> {
        if self.slot.ignore_removals(ignore) {
            return Ok(Answer::Done);
        }
        Err(Refusal::RecordsUnusable { text: RecordsError::NotLoaded.to_string() })
    }

    /// Are removals of records ignored?
    pub(super) fn keeps_all(&self) -> bool {
        self.slot.keeps_all()
    }

    pub(super) fn let_in(&self) -> Result<Answer, Refusal> {
        if self.slot.unseal() { Ok(Answer::Done) } else { Err(Refusal::GraceOver) }
    }

    fn set_exports(&self, exports: Vec<Export>) {
        *locked(&self.exports) = exports;
    }

    fn export(&self, name: &str) -> Option<Export> {
        let exports = locked(&self.exports);
        let path = self.setup.pseudo_root.join(name);
        exports.iter().find(|export| export.path == path).cloned()
    }

    /// Starts the server, or adopts one that runs.
    pub(super) fn start(&self, wish: Start) -> Result<StartReport, Refusal> {
        let mut clock = Clock::new();
        let adopted = self.is_running()?;
        let table = ExportTable::new(&self.setup.pseudo_root, wish.exports.clone())
            .map_err(|e| Refusal::BadExports { text: e.to_string() })?;
        check_mounted(&wish.records_mount)?;
        wish.exports.iter().try_for_each(|export| check_mounted(&export.path))?;
        clock.step("checks");
        self.load_records(&wish, adopted)?;
        clock.step("records");
        self.set_exports(wish.exports.clone());
        match self.bring_up(&wish, table, adopted, &mut clock) {
            Ok(report) => Ok(report),
            Err(refusal) => {
                if !adopted {
                    self.undo();
                }
                Err(refusal)
            }
        }
    }

    /// A running server's records stay loaded; all others are read from the volume.
    fn load_records(&self, wish: &Start, adopted: bool) -> Result<(), Refusal> {
        if adopted && self.holds_records() {
            return Ok(());
        }
        drop(self.slot.take());
        let store =
            Store::open(&wish.records_mount, wish.allow_empty_new).map_err(records_refusal)?;
        self.slot.put(store);
        Ok(())
    }

    fn bring_up(
        &self,
        wish: &Start,
        table: ExportTable,
        adopted: bool,
        clock: &mut Clock,
    ) -> Result<StartReport, Refusal> {
        let recorded_clients = self.snapshot().map_or(0, |s| s.recorded());
        self.answerer.set_table(Some(table));
        let cache_entries =
            self.answerer.prefill(&wish.known_clients).map_err(at("filling the export caches"))?;
        clock.step("caches");
        if adopted {
            self.tracking_must_live()?;
        } else {
            self.configure()?;
            clock.step("settings");
            self.start_threads(wish.threads, recorded_clients)?;
            clock.step("threads");
        }
        let grace_over = self.server.grace_over().map_err(at("reading grace"))?;
        let steps = std::mem::take(&mut clock.steps);
        Ok(StartReport { adopted, recorded_clients, in_grace: !grace_over, cache_entries, steps })
    }

    /// Threads, and proof that the kernel took our list: if it did not, every reclaim would be
    /// refused and the guests' locks lost.
    fn start_threads(&self, threads: u32, recorded: usize) -> Result<(), Refusal> {
        if !self.tracker.wait_ready(READY) {
            let text = "the tracker's directory is missing".into();
            return Err(Refusal::TrackingFailed { text });
        }
        let before = self.tracker.status();
        self.slot.seal();
        self.server
            .start_threads(threads, &self.setup.scope, self.tracker.cpu())
            .map_err(at("starting threads"))?;
        let after = self.tracker.status();
        let failed = |text: &str| Err(Refusal::TrackingFailed { text: text.into() });
        if after.failures != before.failures {
            return failed("an upcall had to be refused");
        }
        if after.grace_starts == before.grace_starts {
            return failed("it never asked for the list of clients");
        }
        // Nobody can have reclaimed: the gate is closed.
        let over = self.server.grace_over().map_err(at("reading grace"))?;
        if over && recorded > 0 {
            return failed("grace is over although clients are recorded");
        }
        Ok(())
    }

    /// The tracker's pipe exists exactly while the kernel uses the tracker.
    fn tracking_must_live(&self) -> Result<(), Refusal> {
        let until = Instant::now() + READY;
        while !self.tracker.status().pipe_open {
            if Instant::now() >= until {
                let text = "a running server has no tracker pipe: stop it".into();
                return Err(Refusal::TrackingFailed { text });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// A server that is set up otherwise is to take this one's place.
    pub(super) fn give_way(&self) -> Result<(), Refusal> {
        self.server.remove_listeners().map_err(at("removing the listener"))
    }

    fn undo(&self) {
        if let Err(refusal) = self.stop() {
            tracing::error!(%refusal, "a failed start could not be undone");
        }
    }

    /// Stops the server and lets go of the volumes. Idempotent.
    pub(super) fn stop(&self) -> Result<Vec<StepTime>, Refusal> {
        let mut clock = Clock::new();
        self.server.stop_threads().map_err(at("stopping threads"))?;
        clock.step("threads");
        self.answerer.set_table(None);
        exports::flush(self.server.netns()).map_err(at("emptying the export caches"))?;
        clock.step("caches");
        drop(self.slot.take());
        self.set_exports(Vec::new());
        clock.step("records");
        Ok(clock.steps)
    }

    /// A count that is not had is unknown, never zero (S12).
    fn in_flight(&self) -> Option<u32> {
        match self.server.in_flight(COUNTING) {
            Ok(count) => count.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
            Err(error) => {
                tracing::debug!(%error, "calls in execution are unknown");
                None
            }
        }
    }

    pub(super) fn status(&self) -> Result<ServerStatus, Refusal> {
        let server = &self.server;
        let threads = server.threads().map_err(at("reading the threads"))?;
        let running = threads > 0;
        let clients = if running { server.clients() } else { Ok(Vec::new()) };
        let pools = if running { server.pool_stats() } else { Ok(Vec::new()) };
        let snapshot = self.snapshot();
        Ok(ServerStatus {
            threads,
            grace_over: server.grace_over().map_err(at("reading grace"))?,
            packets: pools.map_err(at("reading the counters"))?.iter().map(|p| p.packets).sum(),
            in_flight: if running { self.in_flight() } else { None },
            clients: clients.map_err(at("reading the clients"))?,
            awaited: snapshot.as_ref().map_or(0, |s| s.recovery.len() - s.reclaimed()),
            recorded: snapshot.as_ref().map_or(0, Snapshot::recorded),
            reclaimed: snapshot.as_ref().map_or(0, Snapshot::reclaimed),
            records_loaded: snapshot.is_some(),
            removals_ignored: self.keeps_all(),
            tracker: self.tracker.status(),
            answerer: self.answerer.status(),
        })
    }

    /// Operations that clients' calls have completed.
    pub(super) fn progress(&self) -> Result<Answer, Refusal> {
        let operations = self.server.operations().map_err(at("reading the counters"))?;
        Ok(Answer::Progress { operations })
    }

    /// Looks an export up through the server and compares what is found.
    pub(super) fn probe(&self, name: &str, deadline: Duration) -> Result<Answer, Refusal> {
        let Some(export) = self.export(name) else {
            return Err(Refusal::ProbeFailed { text: format!("no export named {name:?}") });
        };
        self.look_up("nasd-probe", name, &export, deadline)
    }

    /// As [`Nfs::probe`]. A process that has not been told of the exports cannot judge the server:
    /// that is no failure of it.
    pub(super) fn pulse(&self, name: &str, deadline: Duration) -> Result<Answer, Refusal> {
        let export = self.export(name).ok_or(Refusal::NotSetUp)?;
        self.look_up("nasd-pulse", name, &export, deadline)
    }

    fn look_up(
        &self,
        owner: &str,
        name: &str,
        export: &Export,
        deadline: Duration,
    ) -> Result<Answer, Refusal> {
        let began = Instant::now();
        let target = probe::Target {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, self.setup.port)),
            export: name.into(),
            owner: format!("{owner} {} {}", self.setup.scope, std::process::id()),
            deadline,
        };
        let found = self
            .server
            .netns()
            .run("nfsd-probe", || Ok(probe::probe(&target)?))
            .map_err(|e| Refusal::ProbeFailed { text: e.to_string() })?;
        compare(&found, &self.setup.scope, export)?;
        Ok(Answer::Probed { took_ms: elapsed_ms(began) })
    }
}

/// `NF4DIR`.
const DIRECTORY: u32 = 2;

fn compare(found: &probe::Found, scope: &str, export: &Export) -> Result<(), Refusal> {
    let differs = |what: &str, found: String, wanted: String| {
        Err(Refusal::ProbeMismatch { what: what.into(), found, wanted })
    };
    if found.scope != scope.as_bytes() {
        return differs("scope", String::from_utf8_lossy(&found.scope).into(), scope.into());
    }
    if found.fsid != export.uuid.0 {
        let seen = exports::FsUuid(found.fsid).to_string();
        return differs("fsid", seen, export.uuid.to_string());
    }
    if found.kind != DIRECTORY {
        return differs("type", found.kind.to_string(), DIRECTORY.to_string());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export() -> Export {
        serde_json::from_value(serde_json::json!({
            "path": "/srv/nasd/s/vms", "uuid": "00112233-4455-6677-8899-aabbccddeeff",
            "clients": [],
        }))
        .unwrap()
    }

    #[test]
    fn s5_probe_must_find_this_server_and_this_volume() {
        let good = probe::Found { scope: b"s".to_vec(), fsid: export().uuid.0, kind: DIRECTORY };
        assert_eq!(compare(&good, "s", &export()), Ok(()));
        let what = |found: &probe::Found| match compare(found, "s", &export()) {
            Err(Refusal::ProbeMismatch { what, .. }) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(what(&probe::Found { scope: b"t".to_vec(), ..good.clone() }), "scope");
        assert_eq!(what(&probe::Found { fsid: [0; 16], ..good.clone() }), "fsid");
        assert_eq!(what(&probe::Found { kind: 1, ..good }), "type");
    }

    #[test]
    fn missing_records_keep_their_own_name() {
        let missing = RecordsError::Missing { dir: "/v/.nasd/clients".into() };
        assert!(matches!(records_refusal(missing), Refusal::RecordsMissing { .. }));
        assert!(matches!(records_refusal(RecordsError::Poisoned), Refusal::RecordsUnusable { .. }));
    }
}
