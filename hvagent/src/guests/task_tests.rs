//! The guests' task against a libvirt that notes what is asked of it and fails where it is told to.

use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::limiting::LEAST_DOWNTIME;
use super::*;
use crate::guests::samples::{migration, object, running};
use crate::libvirt::job::Job;
use crate::libvirt::state::DomainState;

const MOUNT: &str = "/vms";
const AT: fn(u64) -> Now = Duration::from_secs;
/// What libvirt has when nobody has limited anything.
const COMING: Coming = Coming { within: AT_30, outage: Duration::ZERO };
const AT_30: Duration = Duration::from_secs(30);
const UNLIMITED: u64 = 8_796_093_022_207;

#[derive(Debug, Default)]
struct Knobs {
    guests: BTreeMap<String, Told>,
    speeds: BTreeMap<String, u64>,
    downtimes: BTreeMap<String, Duration>,
    resumed: Vec<String>,
    calls: u32,
    hangs: bool,
    refuses_downtime: bool,
    /// A resume does not help: the guest is paused again at once.
    pauses_again: bool,
    /// The agent's file: must name a guest before its speed is changed.
    limits: PathBuf,
}

#[derive(Debug, Clone, Default)]
struct Fake(Arc<Mutex<Knobs>>);

impl Fake {
    fn with<T>(&self, then: impl FnOnce(&mut Knobs) -> T) -> T {
        then(&mut self.0.lock().unwrap())
    }

    fn answer<T>(
        &self,
        call: &'static str,
        then: impl FnOnce(&mut Knobs) -> Option<T>,
    ) -> Result<T> {
        self.with(|knobs| {
            knobs.calls += 1;
            let limit = Duration::from_secs(2);
            if knobs.hangs {
                return Err(Error::Deadline { service: "org.libvirt", call, limit });
            }
            then(knobs).ok_or_else(|| Error::Refused { call, message: "no".to_owned() })
        })
    }
}

fn name(path: &OwnedObjectPath) -> String {
    path.as_str().rsplit('_').next().unwrap().to_owned()
}

impl Hypervisor for Fake {
    async fn guests(&self) -> Result<Vec<OwnedObjectPath>> {
        self.answer("guests", |knobs| Some(knobs.guests.keys().map(|name| object(name)).collect()))
    }

    async fn guest(&self, path: &OwnedObjectPath) -> Result<Told> {
        self.answer("guest", |knobs| knobs.guests.get(&name(path)).cloned())
    }

    async fn state(&self, path: &OwnedObjectPath) -> Result<DomainState> {
        self.answer("state", |knobs| knobs.guests.get(&name(path)).map(|told| told.state))
    }

    async fn job(&self, path: &OwnedObjectPath) -> Result<Option<Job>> {
        let job = |knobs: &mut Knobs| knobs.guests.get(&name(path))?.job.clone().ok();
        self.answer("job", job)
    }

    async fn speed(&self, path: &OwnedObjectPath) -> Result<u64> {
        self.answer("speed", |k| Some(k.speeds.get(&name(path)).copied().unwrap_or(UNLIMITED)))
    }

    async fn set_speed(&self, path: &OwnedObjectPath, mib_per_second: u64) -> Result<()> {
        self.answer("set_speed", |knobs| {
            knobs.guests.get(&name(path))?;
            let on_disk = std::fs::read_to_string(&knobs.limits).unwrap_or_default();
            assert!(on_disk.contains(path.as_str()), "S9: its old limit must be on disk first");
            knobs.speeds.insert(name(path), mib_per_second);
            Some(())
        })
    }

    async fn set_downtime(&self, path: &OwnedObjectPath, downtime: Duration) -> Result<()> {
        self.answer("set_downtime", |knobs| {
            knobs.guests.get(&name(path))?;
            if knobs.refuses_downtime {
                return None;
            }
            knobs.downtimes.insert(name(path), downtime);
            Some(())
        })
    }

    async fn resume(&self, path: &OwnedObjectPath) -> Result<()> {
        self.answer("resume", |knobs| {
            knobs.resumed.push(name(path));
            let again = knobs.pauses_again;
            let told = knobs.guests.get_mut(&name(path))?;
            told.state = if again { told.state } else { DomainState::Running };
            Some(())
        })
    }

    async fn pools(&self) -> Result<BTreeMap<String, String>> {
        self.answer("pools", |_| Some(BTreeMap::new()))
    }

    fn restarted(&self) {}
}

struct Lab {
    directory: TempDir,
    fake: Fake,
    worker: Worker<Fake>,
}

fn settings(directory: &TempDir) -> Settings {
    Settings {
        limits: directory.path().join("limits.json"),
        places: Places {
            socket: directory.path().join("no-sanlock"),
            config: directory.path().join("qemu.conf"),
        },
        look_again: Duration::from_millis(1),
        ..Settings::default()
    }
}

fn worker(directory: &TempDir, fake: &Fake) -> Worker<Fake> {
    let settings = settings(directory);
    let (ledger, _) = Ledger::open(&settings.limits).unwrap();
    Worker::new(AT(0), fake.clone(), settings, ledger)
}

/// A host with these guests, whose disks are on the mount.
async fn lab(guests: Vec<(&str, Told)>) -> Lab {
    let (directory, fake) = (tempfile::tempdir().unwrap(), Fake::default());
    fake.with(|knobs| {
        knobs.limits = settings(&directory).limits;
        knobs.guests = guests.into_iter().map(|(name, told)| (name.to_owned(), told)).collect();
    });
    let mut worker = worker(&directory, &fake);
    worker.take(AT(0), Order::Tick).await;
    Lab { directory, fake, worker }
}

fn at_rest(name: &str) -> Told {
    running(name, &[&format!("{MOUNT}/{name}.raw")])
}

/// Would switch over inside the window if nobody slowed it down.
fn leaving(name: &str) -> Told {
    Told { job: Ok(Some(migration(1000, 100, 60))), ..at_rest(name) }
}

fn paused(name: &str, reason: i32) -> Told {
    Told { state: DomainState::of((3, reason)), ..at_rest(name) }
}

impl Lab {
    async fn hold(&mut self, now: u64) {
        let (done, _) = oneshot::channel();
        self.worker.take(AT(now), Order::Hold(MOUNT.into(), done)).await;
    }

    async fn release(&mut self, now: u64) {
        let (done, _) = oneshot::channel();
        self.worker.take(AT(now), Order::Release(MOUNT.into(), done)).await;
    }

    async fn ready(&mut self, now: u64) -> Readiness {
        let (reply, answer) = oneshot::channel();
        let order = Order::Ready(MOUNT.into(), COMING, reply);
        self.worker.take(AT(now), order).await;
        answer.await.unwrap()
    }

    async fn verify(&mut self, now: u64) -> Vec<String> {
        let (reply, answer) = oneshot::channel();
        self.worker.take(AT(now), Order::Verify(MOUNT.into(), reply)).await;
        answer.await.unwrap()
    }

    async fn phase(&mut self, phase: Phase) {
        self.worker.take(AT(0), Order::Phase(MOUNT.into(), phase)).await;
    }

    fn speed(&self, name: &str) -> Option<u64> {
        self.fake.with(|knobs| knobs.speeds.get(name).copied())
    }

    fn downtime(&self, name: &str) -> Option<Duration> {
        self.fake.with(|knobs| knobs.downtimes.get(name).copied())
    }

    fn resumed(&self) -> Vec<String> {
        self.fake.with(|knobs| knobs.resumed.clone())
    }

    /// The agent dies and is started anew.
    fn crash(&mut self) {
        self.worker = worker(&self.directory, &self.fake);
    }
}

#[tokio::test]
async fn s11_a_migration_is_slowed_down_and_the_limits_come_back() {
    let mut lab = lab(vec![("a", leaving("a")), ("b", at_rest("b"))]).await;
    assert!(!lab.ready(1).await.ready);
    lab.hold(1).await;
    assert_eq!((lab.speed("a"), lab.speed("b")), (Some(30), None));
    assert_eq!(lab.downtime("a"), Some(LEAST_DOWNTIME));
    let answer = lab.ready(2).await;
    assert!(answer.ready, "{:?}", answer.reasons);
    assert_eq!((answer.guests, answer.migrations), (2, 1));
    lab.release(9).await;
    assert_eq!(lab.speed("a"), Some(UNLIMITED));
    assert_eq!(lab.downtime("a"), Some(Duration::from_millis(300)));
    assert_eq!(lab.worker.ledger.all().count(), 0);
}

#[tokio::test]
async fn s11_a_held_migration_is_slowed_further_while_it_goes_on() {
    let mut lab = lab(vec![("a", leaving("a"))]).await;
    lab.hold(1).await;
    let less = Told { job: Ok(Some(migration(500, 30, 60))), ..at_rest("a") };
    lab.fake.with(|knobs| knobs.guests.insert("a".to_owned(), less));
    lab.worker.take(AT(2), Order::Tick).await;
    assert_eq!(lab.speed("a"), Some(15));
    lab.release(3).await;
    assert_eq!(lab.speed("a"), Some(UNLIMITED), "the first value is the old one");
}

#[tokio::test]
async fn s11_a_migration_that_was_slowed_down_too_late_is_let_finish_and_waited_for() {
    let mut lab = lab(vec![("a", leaving("a"))]).await;
    lab.phase(Phase::Announced).await;
    lab.hold(1).await;
    let near = Told { job: Ok(Some(migration(9, 1, 0))), ..at_rest("a") };
    lab.fake.with(|knobs| knobs.guests.insert("a".to_owned(), near));
    lab.worker.take(AT(6), Order::Tick).await;
    assert_eq!(lab.speed("a"), Some(30), "nasd has not been told yet");
    assert!(!lab.ready(7).await.ready);
    lab.worker.take(AT(10), Order::Tick).await;
    assert_eq!(lab.speed("a"), Some(30), "nor for long");
    lab.worker.take(AT(11), Order::Tick).await;
    assert_eq!((lab.speed("a"), lab.worker.ledger.all().count()), (Some(UNLIMITED), 0));
    lab.worker.take(AT(12), Order::Tick).await;
    assert_eq!(lab.speed("a"), Some(UNLIMITED), "once is enough");
    // The speed that libvirt tells is still that of the limit: it would last for the whole window.
    let slow = Told { job: Ok(Some(migration(90, 1, 0))), ..at_rest("a") };
    lab.fake.with(|knobs| knobs.guests.insert("a".to_owned(), slow));
    let answer = lab.ready(12).await;
    assert!(answer.reasons[0].contains("let finish"), "{:?}", answer.reasons);
    lab.fake.with(|knobs| knobs.guests.insert("a".to_owned(), at_rest("a")));
    lab.worker.take(AT(13), Order::Tick).await;
    assert!(lab.ready(13).await.ready);
}

#[tokio::test]
async fn s11_a_held_migration_is_not_let_go_once_the_storage_was_cut_nor_while_it_can_be_held() {
    let mut lab = lab(vec![("a", leaving("a"))]).await;
    lab.phase(Phase::Announced).await;
    lab.hold(1).await;
    let more = Told { job: Ok(Some(migration(600, 30, 0))), ..at_rest("a") };
    lab.fake.with(|knobs| knobs.guests.insert("a".to_owned(), more));
    lab.ready(2).await;
    lab.worker.take(AT(13), Order::Tick).await;
    assert_eq!(lab.speed("a"), Some(26), "slowed down further");
    let near = Told { job: Ok(Some(migration(9, 1, 0))), ..at_rest("a") };
    lab.fake.with(|knobs| knobs.guests.insert("a".to_owned(), near));
    lab.ready(14).await;
    for phase in [Phase::IoBack, Phase::OpensBack] {
        lab.phase(phase).await;
        lab.worker.take(AT(30), Order::Tick).await;
        assert_ne!(lab.speed("a"), Some(UNLIMITED), "{phase:?}");
    }
}

#[tokio::test]
async fn s11_one_that_is_let_finish_is_waited_for_also_while_its_limit_cannot_be_taken_back() {
    let mut lab = lab(vec![("a", leaving("a"))]).await;
    lab.phase(Phase::Announced).await;
    lab.hold(1).await;
    let told = |left| Told { job: Ok(Some(migration(left, 1, 0))), ..at_rest("a") };
    lab.fake.with(|knobs| knobs.guests.insert("a".to_owned(), told(9)));
    lab.ready(2).await;
    lab.fake.with(|knobs| knobs.refuses_downtime = true);
    lab.worker.take(AT(6), Order::Tick).await;
    assert_eq!((lab.speed("a"), lab.worker.ledger.all().count()), (Some(UNLIMITED), 1));
    lab.fake.with(|knobs| knobs.guests.insert("a".to_owned(), told(90)));
    assert!(!lab.ready(7).await.ready, "it only looks slow");
    lab.fake.with(|knobs| knobs.refuses_downtime = false);
    lab.worker.take(AT(8), Order::Tick).await;
    assert_eq!((lab.speed("a"), lab.worker.ledger.all().count()), (Some(UNLIMITED), 0));
}

#[tokio::test]
async fn s11_a_limit_that_could_not_be_taken_back_whole_counts_no_more() {
    let mut lab = lab(vec![("a", leaving("a"))]).await;
    lab.hold(1).await;
    assert!(lab.ready(2).await.ready);
    let old = lab.worker.ledger.all().next().cloned().unwrap();
    lab.fake.with(|knobs| knobs.refuses_downtime = true);
    assert!(!lab.worker.put_back(&old).await);
    assert!(!lab.ready(2).await.ready, "its speed is the old one");
}

#[tokio::test]
async fn s10_what_is_known_does_not_age_while_a_hook_waits() {
    let mut lab = lab(vec![("a", at_rest("a"))]).await;
    for second in 1..100 {
        lab.worker.take(AT(second), Order::HookWaits(AT(3))).await;
        lab.worker.take(AT(second), Order::Tick).await;
        assert_eq!(lab.worker.inventory.doubt(AT(second)), None, "{second}");
    }
    for second in 100..130 {
        lab.worker.take(AT(second), Order::HookWaits(AT(3))).await;
    }
    assert!(lab.worker.inventory.doubt(AT(130)).is_some(), "no hook waits for so long");
}

#[tokio::test]
async fn s9_a_crash_between_writing_and_setting_leaves_what_the_next_agent_restores() {
    let mut lab = lab(vec![("a", leaving("a"))]).await;
    let noted = lab.worker.note(&object("a"), "a").await.unwrap();
    drop(noted);
    lab.crash();
    lab.worker.take(AT(1), Order::Tick).await;
    assert_eq!(lab.speed("a"), None, "nasd may announce that move anew");
    lab.worker.take(AT(6), Order::Tick).await;
    assert_eq!(lab.speed("a"), Some(UNLIMITED));
    assert_eq!(lab.worker.ledger.all().count(), 0);
}

#[tokio::test]
async fn s9_a_crash_in_a_hold_is_restored_unless_the_mount_is_held_again() {
    let mut lab = lab(vec![("a", leaving("a"))]).await;
    lab.hold(1).await;
    lab.crash();
    lab.worker.take(AT(1), Order::Tick).await;
    lab.hold(2).await;
    lab.worker.take(AT(6), Order::Tick).await;
    assert_eq!(lab.speed("a"), Some(30), "the hold goes on");
    lab.crash();
    lab.worker.take(AT(6), Order::Tick).await;
    assert_eq!((lab.speed("a"), lab.worker.ledger.all().count()), (Some(UNLIMITED), 0));
}

#[tokio::test]
async fn limits_of_a_guest_that_is_gone_are_dropped_but_not_while_nobody_knows() {
    let mut lab = lab(vec![("a", leaving("a"))]).await;
    lab.hold(1).await;
    lab.fake.with(|knobs| (knobs.guests.clear(), knobs.hangs = true));
    lab.release(2).await;
    assert_eq!(lab.worker.ledger.all().count(), 1, "libvirt hangs: nothing is known");
    lab.fake.with(|knobs| knobs.hangs = false);
    lab.worker.take(AT(8), Order::Tick).await;
    lab.worker.take(AT(40), Order::Tick).await;
    assert_eq!(lab.worker.ledger.all().count(), 0);
}

#[tokio::test]
async fn a_downtime_that_is_refused_matters_only_while_a_migration_runs() {
    let mut lab = lab(vec![("a", leaving("a"))]).await;
    lab.hold(1).await;
    lab.fake.with(|knobs| knobs.refuses_downtime = true);
    lab.release(2).await;
    assert_eq!(lab.worker.ledger.all().count(), 1);
    lab.fake.with(|knobs| knobs.guests.insert("a".to_owned(), at_rest("a")));
    lab.worker.take(AT(8), Order::Tick).await;
    assert_eq!(lab.worker.ledger.all().count(), 0, "libvirt resets it with the migration's end");
}

#[tokio::test]
async fn s12_without_a_disk_for_the_old_limits_nothing_is_changed() {
    let mut lab = lab(vec![("a", leaving("a"))]).await;
    std::fs::create_dir(lab.directory.path().join("limits.new")).unwrap();
    lab.hold(1).await;
    assert_eq!(lab.speed("a"), None);
    let answer = lab.ready(2).await;
    assert!(answer.reasons[0].contains("cannot be written"), "{:?}", answer.reasons);
}

#[tokio::test]
async fn s11_a_hold_that_nobody_ends_ends_by_itself() {
    let mut lab = lab(vec![("a", leaving("a"))]).await;
    lab.hold(1).await;
    lab.worker.take(AT(602), Order::Tick).await;
    assert_eq!((lab.speed("a"), lab.worker.is_busy()), (Some(UNLIMITED), false));
}

#[tokio::test]
async fn s10_a_silent_mount_s_guests_are_not_asked_about() {
    let mut lab = lab(vec![("a", leaving("a"))]).await;
    lab.hold(1).await;
    lab.phase(Phase::Moving).await;
    let before = lab.fake.with(|knobs| knobs.calls);
    lab.worker.take(AT(2), Order::Tick).await;
    lab.hold(2).await;
    assert_eq!(lab.fake.with(|knobs| knobs.calls), before);
}

#[tokio::test]
async fn s11_a_predicted_stall_counts_while_it_is_announced() {
    let mut lab = lab(vec![("a", at_rest("a"))]).await;
    let mount = Path::new(MOUNT);
    let own = lab.worker.policy(AT(1), mount).window.outage;
    for (predicted, counts) in [(own * 4, own * 4), (own / 2, own)] {
        let (reply, _) = oneshot::channel();
        let coming = Coming { outage: predicted, ..COMING };
        lab.worker.take(AT(1), Order::Ready(MOUNT.into(), coming, reply)).await;
        assert_eq!(lab.worker.policy(AT(1), mount).window.outage, counts);
    }
    lab.release(2).await;
    assert_eq!(lab.worker.policy(AT(2), mount).window.outage, own);
}

#[tokio::test]
async fn s10_a_hook_that_waits_keeps_the_list_of_guests_from_being_asked_for() {
    let mut lab = lab(vec![("a", at_rest("a"))]).await;
    lab.worker.take(AT(1), Order::HookWaits(AT(60))).await;
    let before = lab.fake.with(|knobs| knobs.calls);
    lab.worker.take(AT(35), Order::Tick).await;
    assert_eq!(lab.fake.with(|knobs| knobs.calls), before);
    lab.worker.take(AT(62), Order::Tick).await;
    assert!(lab.fake.with(|knobs| knobs.calls) > before);
}

#[tokio::test]
async fn s12_a_libvirt_that_hangs_is_not_ready_and_says_so() {
    let mut lab = lab(vec![("a", at_rest("a"))]).await;
    assert!(lab.ready(1).await.ready);
    lab.fake.with(|knobs| knobs.hangs = true);
    let answer = lab.ready(2).await;
    assert!(!answer.ready && answer.reasons[0].contains("did not answer"), "{:?}", answer.reasons);
    assert_eq!(answer.guests, 1, "what was known stays");
    let (reply, reachable) = oneshot::channel();
    lab.worker.take(AT(3), Order::Reachable(reply)).await;
    assert!(reachable.await.unwrap().is_err());
}

#[tokio::test]
async fn s12_a_host_of_which_nothing_is_known_is_not_well() {
    let mut lab = lab(vec![]).await;
    assert!(lab.verify(1).await.is_empty());
    lab.fake.with(|knobs| knobs.hangs = true);
    lab.crash();
    assert!(lab.verify(1).await[0].contains("nothing yet"));
    lab.worker.take(AT(2), Order::Seen(AT(2), vec![])).await;
    assert!(lab.verify(2).await.is_empty(), "no QEMU runs here at all");
}

#[tokio::test]
async fn a_guest_that_has_left_is_no_reason_to_wait() {
    let mut lab = lab(vec![("a", leaving("a"))]).await;
    lab.fake.with(|knobs| knobs.guests.clear());
    let answer = lab.ready(1).await;
    assert_eq!((answer.ready, answer.guests), (true, 0), "{:?}", answer.reasons);
}

#[tokio::test]
async fn a_libvirt_that_answers_again_is_believed_soon_though_the_mount_is_held() {
    let mut lab = lab(vec![("a", at_rest("a"))]).await;
    lab.fake.with(|knobs| knobs.hangs = true);
    lab.hold(1).await;
    for second in 2..9 {
        lab.worker.take(AT(second), Order::Tick).await;
    }
    lab.fake.with(|knobs| knobs.hangs = false);
    for second in 9..16 {
        lab.worker.take(AT(second), Order::Tick).await;
    }
    assert_eq!(lab.worker.inventory.doubt(AT(16)), None);
}

#[tokio::test]
async fn guests_paused_by_their_disk_go_on_and_no_others() {
    let guests = vec![("a", paused("a", 5)), ("b", paused("b", 1)), ("c", at_rest("c"))];
    let mut lab = lab(guests).await;
    lab.hold(1).await;
    lab.phase(Phase::OpensBack).await;
    assert_eq!(lab.verify(5).await, Vec::<String>::new());
    assert_eq!(lab.resumed(), ["a"]);
}

#[tokio::test]
async fn s12_nobody_is_resumed_before_opens_are_back() {
    let mut lab = lab(vec![("a", paused("a", 5))]).await;
    for phase in [Phase::Normal, Phase::Moving, Phase::IoBack] {
        lab.phase(phase).await;
        let problems = lab.verify(5).await;
        assert!(problems[0].contains("not known to take opens"), "{phase:?} {problems:?}");
    }
    assert_eq!(lab.resumed(), Vec::<String>::new());
    lab.phase(Phase::OpensBack).await;
    assert!(lab.verify(6).await.is_empty());
}

#[tokio::test]
async fn s12_nobody_is_resumed_whose_lease_may_be_gone() {
    let mut lab = lab(vec![("a", paused("a", 5))]).await;
    let sanlock = "lock_manager = \"sanlock\"\n";
    std::fs::write(lab.directory.path().join("qemu.conf"), sanlock).unwrap();
    lab.phase(Phase::OpensBack).await;
    let problems = lab.verify(5).await;
    assert!(problems[0].contains("its lease is not known"), "{problems:?}");
    assert_eq!(lab.resumed(), Vec::<String>::new());
    assert!(lab.ready(6).await.reasons[0].contains("leases"));
}

#[tokio::test]
async fn a_guest_that_is_paused_again_is_tried_three_times() {
    let mut lab = lab(vec![("a", paused("a", 5))]).await;
    lab.phase(Phase::OpensBack).await;
    lab.fake.with(|knobs| knobs.pauses_again = true);
    let problems = lab.verify(5).await;
    assert!(problems[0].contains("paused again each time"), "{problems:?}");
    assert_eq!(lab.resumed().len(), 3);
    lab.verify(6).await;
    assert_eq!(lab.resumed().len(), 3, "a second look in the same move tries no more");
}

#[tokio::test]
async fn s10_a_verification_does_not_wait_for_all_resumes() {
    let mut lab = lab(vec![("a", paused("a", 5))]).await;
    lab.phase(Phase::OpensBack).await;
    lab.worker.settings.look_again = Duration::from_secs(60);
    lab.worker.settings.verify = Duration::from_millis(200);
    assert!(lab.verify(5).await[0].contains("still being resumed"));
    assert_eq!(lab.resumed(), ["a"]);
}

#[tokio::test]
async fn a_guest_s_stall_is_measured_from_its_process() {
    let mut lab = lab(vec![("a", at_rest("a"))]).await;
    let seen = |ms: u64, bytes: u64| {
        let written = Some(crate::guests::proc::Counters { bytes, calls: 0 });
        let (guest, files) = ("a".to_owned(), vec![]);
        let qemu = Qemu { pid: 1, started: 1, guest, uuid: None, files, written };
        Order::Seen(Duration::from_millis(ms), vec![qemu])
    };
    for (ms, bytes) in [(0, 1), (500, 2), (1000, 3)] {
        lab.worker.take(AT(1), seen(ms, bytes)).await;
    }
    lab.hold(1).await;
    for (ms, bytes) in [(1200, 4), (1400, 4), (3400, 4), (3600, 5), (3800, 6)] {
        lab.worker.take(AT(3), seen(ms, bytes)).await;
    }
    let (reply, answer) = oneshot::channel();
    lab.worker.take(AT(4), Order::Stalls(MOUNT.into(), reply)).await;
    let expected = GuestStall { guest: "a".to_owned(), stall: Duration::from_millis(2400) };
    assert_eq!(answer.await.unwrap(), [expected]);
}

#[tokio::test]
async fn the_whole_of_it_starts_answers_and_ends_with_its_last_handle() {
    use crate::drive::hands::Guests;
    let Lab { directory, fake, .. } = lab(vec![("a", at_rest("a"))]).await;
    let mut handle = crate::guests::start(fake, None, settings(&directory)).unwrap();
    handle.mounts(&[MOUNT.into()]);
    handle.hold(Path::new(MOUNT)).await;
    let answer = handle.ready(Path::new(MOUNT), COMING).await;
    assert_eq!((answer.ready, answer.guests), (true, 1), "{:?}", answer.reasons);
    assert_eq!(handle.reachable().await, Ok(()));
    handle.release(Path::new(MOUNT)).await;
    assert!(handle.verify(Path::new(MOUNT)).await.is_empty());
}
