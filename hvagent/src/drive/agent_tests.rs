//! Moves from the first word to the last, scripted: what is told, ordered, held and let go.

use nasd_proto as v1;
use v1::agent_message::Kind as Said;
use v1::agent_news::Kind as News;
use v1::move_news::What as Move;

use super::*;
use crate::api::{Hook, Operation, Verdict};
use crate::mounts::host::Files;
use crate::mounts::mountinfo;
use crate::mounts::mountstats::TcpTransport;

const VM: &str = "/vm";

/// The agent with a clock, a mount and hands that answer well.
struct Host {
    agent: Agent,
    now: Now,
    /// `sends`, `recvs`, `connects` of the mount's transport.
    counters: (u64, u64, u64),
    mounted: bool,
    readiness: Readiness,
    /// The hands do not answer.
    mute: bool,
    /// Probes are answered well.
    answering: bool,
    /// What the prober was told last.
    probing: Probing,
    used: bool,
    told: Vec<Said>,
    orders: Vec<Order>,
    phases: Vec<String>,
    inhibited: bool,
    pace: Pace,
}

fn config() -> Config {
    Config::parse("test", "[[service]]\nname = \"vms\"\naddresses = [\"192.0.2.50\"]\n").unwrap()
}

impl Host {
    fn new() -> Self {
        Self::with(config(), Kept::new())
    }

    fn with(config: Config, kept: Kept) -> Self {
        let settings = Settings { host: "hv1".into(), config, kept, timing: Timing::default() };
        let mut host = Self {
            agent: Agent::new(Now::ZERO, settings),
            now: Now::ZERO,
            counters: (10, 10, 1),
            mounted: true,
            readiness: Readiness { ready: true, guests: 1, ..Readiness::default() },
            mute: false,
            answering: true,
            probing: Probing::Rest,
            used: true,
            told: vec![],
            orders: vec![],
            phases: vec![],
            inhibited: false,
            pace: Pace::Rest,
        };
        host.run(2_000);
        host
    }

    fn look(&self) -> Look {
        let line = b"9 1 0:52 / /vm rw - nfs4 192.0.2.50:/vm rw,vers=4.2,hard,addr=192.0.2.50\n";
        let mount = mountinfo::parse(line).entries.remove(0);
        let (sends, recvs, connects) = self.counters;
        let transport = TcpTransport {
            local_port: 900,
            connects,
            idle_s: 0,
            sends,
            recvs,
            bad_xids: 0,
            backlog_sum: 0,
            max_slots: None,
        };
        let pending = Some(sends - recvs);
        let reading = stall::Reading::Counters { transports: vec![transport], pending };
        let mounts = vec![Looked { mount, stats: None, reading }];
        Look { mounts: if self.mounted { mounts } else { vec![] }, problems: vec![] }
    }

    fn hear(&mut self, input: Input) {
        let outputs = self.agent.step(self.now, input);
        self.act(outputs);
    }

    fn act(&mut self, outputs: Vec<Output>) {
        let mut orders = Vec::new();
        for output in outputs {
            match output {
                Output::Tell(kind) => self.told.push(kind),
                Output::Probe(_, keeper::Input::Probing(probing)) => self.probing = probing,
                Output::Probe(_, keeper::Input::Used(used)) => self.used = used,
                Output::Inhibit(held) => self.inhibited = held,
                Output::Pace(pace) => self.pace = pace,
                Output::State(state) => {
                    let phase = state.mounts.first().map(|m| m.phase.clone()).unwrap_or_default();
                    if self.phases.last() != Some(&phase) {
                        self.phases.push(phase);
                    }
                }
                Output::Order(order) => {
                    self.orders.push(order.clone());
                    orders.push(order);
                }
                _ => {}
            }
        }
        // The hands answer later, as in life.
        for order in orders.into_iter().filter(|_| !self.mute).collect::<Vec<_>>() {
            self.obey(order);
        }
    }

    fn obey(&mut self, order: Order) {
        let heard = match order {
            Order::Hold(mount) => Heard::Held(mount),
            Order::Release(mount) => Heard::Released(mount, true),
            Order::Ready { mount, id, .. } => Heard::Ready(mount, id, self.readiness.clone()),
            Order::Verify { mount, asked } => Heard::Verified(mount, asked, vec![]),
            Order::Stalls { mount, stall } => {
                Heard::Stalls(mount, vec![GuestStall { guest: "vm1".into(), stall }])
            }
            _ => return,
        };
        self.hear(Input::Heard(heard));
    }

    /// Time passes in steps of 100 ms: samples, and probes as they are asked for.
    fn run(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.now += Duration::from_millis(100);
            let look = self.look();
            self.hear(Input::Looked(Ok(look)));
            if self.answering && self.mounted {
                let what = match self.probing {
                    Probing::Rest | Probing::Opens => What::Open,
                    Probing::Reads => What::Read,
                };
                let report = process::Report { what, asked: self.now, outcome: Outcome::Good };
                self.hear(Input::Probed(VM.into(), report));
            }
        }
    }

    fn announce(&mut self, node: &str, id: u64) {
        let announce = v1::Announce {
            service: "vms".into(),
            move_id: id,
            lease_ms: 10_000,
            predicted_stall_ms: 500,
        };
        self.hear(Input::News(node.into(), News::Announce(announce)));
    }

    fn news(&mut self, node: &str, id: u64, what: Move) {
        let news = v1::MoveNews {
            service: "vms".into(),
            move_id: id,
            what: what.into(),
            ..Default::default()
        };
        self.hear(Input::News(node.into(), News::News(news)));
    }

    /// Requests wait, and nobody answers.
    fn silence(&mut self) {
        self.counters.0 += 3;
        self.answering = false;
    }

    /// The other node answers over a new connection.
    fn answers(&mut self) {
        self.counters.1 = self.counters.0;
        self.counters.2 += 1;
        self.answering = true;
    }

    fn readiness(&self) -> Vec<&v1::Readiness> {
        let mut found = Vec::new();
        for kind in &self.told {
            if let Said::Readiness(readiness) = kind {
                found.push(readiness);
            }
        }
        found
    }

    fn stalls(&self) -> Vec<(u64, String, u64)> {
        let of = |kind: &Said| match kind {
            Said::Stall(s) => Some((s.move_id, s.guest.clone(), s.stall_ms)),
            _ => None,
        };
        self.told.iter().filter_map(of).collect()
    }

    fn orders(&self, wanted: &Order) -> usize {
        self.orders.iter().filter(|order| *order == wanted).count()
    }

    fn gate(&self, disk: &str) -> Verdict {
        self.agent.gate(self.now, &arrival(disk))
    }

    fn phase(&self) -> &str {
        self.phases.last().map_or("", String::as_str)
    }
}

fn hold() -> Order {
    Order::Hold(VM.into())
}

fn release() -> Order {
    Order::Release(VM.into())
}

fn beginning() -> Readiness {
    let reasons = vec!["vm2: its migration is about to begin".into()];
    Readiness { reasons, unbegun: vec!["u-2".into()], ..Readiness::default() }
}

fn arrival(disk: &str) -> Hook {
    let (disks, uuid) = (vec![disk.into()], Some("U-1".to_owned()));
    Hook { operation: Operation::Migrate, domain: "vm1".into(), uuid, disks }
}

#[test]
fn a_planned_move_goes_through_all_its_phases() {
    let mut host = Host::new();
    assert_eq!((host.phase(), host.pace), ("normal", Pace::Rest));
    host.announce("nas1", 7);
    let told = host.readiness();
    assert!(told.len() == 1 && told[0].ready && told[0].move_id == 7, "{told:?}");
    assert!(host.inhibited && host.orders(&hold()) == 1);
    assert!(matches!(host.gate("/vm/1.raw"), Verdict::Wait { .. }), "S11");
    assert_eq!(host.gate("/local/1.raw"), Verdict::Allow);
    host.run(500);
    host.news("nas1", 7, Move::Cut);
    assert_eq!(host.pace, Pace::Busy);
    host.silence();
    host.run(800);
    assert_eq!(host.phase(), "moving");
    host.answers();
    host.run(100);
    host.news("nas2", 7, Move::Opened);
    host.run(500);
    let all = ["normal", "announced", "moving", "io-back", "opens-back", "verified", "normal"];
    assert_eq!(host.phases, all);
    assert_eq!(host.stalls(), [(7, String::new(), 800), (7, "vm1".into(), 800)]);
    assert!(!host.inhibited && host.pace == Pace::Rest);
    assert_eq!(host.gate("/vm/1.raw"), Verdict::Allow);
    assert_eq!(host.agent.status(host.now).mounts[0].last_stalls.len(), 2);
}

#[test]
fn a_mount_without_guests_can_be_unmounted_until_its_storage_moves() {
    let mut host = Host::new();
    host.hear(Input::Tick);
    assert!(host.used);
    host.readiness.guests = 0;
    host.now += REACH_AGAIN;
    host.hear(Input::Tick);
    assert!(!host.used);
    host.announce("nas1", 7);
    assert!(host.used);
    host.news("nas1", 7, Move::Withdrawn);
    assert!(!host.used);
}

#[test]
fn guests_are_resumed_before_they_are_looked_at() {
    let mut host = Host::new();
    host.news("nas1", 7, Move::Cut);
    host.silence();
    host.run(300);
    host.answers();
    host.run(500);
    let at = |wanted: fn(&Order) -> bool| host.orders.iter().position(wanted).unwrap();
    let resumed = at(|order| matches!(order, Order::Resume(_)));
    assert!(resumed < at(|order| matches!(order, Order::Verify { .. })));
}

#[test]
fn two_nasds_that_tell_the_same_tell_of_one_move() {
    let mut host = Host::new();
    for node in ["nas1", "nas2"] {
        host.announce(node, 7);
    }
    assert!(host.readiness().iter().all(|r| r.ready));
    host.news("nas1", 7, Move::Cut);
    host.news("nas2", 7, Move::Cut);
    host.silence();
    host.run(300);
    host.answers();
    host.run(100);
    host.news("nas1", 7, Move::Opened);
    host.run(500);
    host.news("nas2", 7, Move::Opened);
    host.run(500);
    assert_eq!(host.phase(), "normal");
    assert_eq!(host.phases.iter().filter(|p| *p == "moving").count(), 1);
    assert_eq!(host.stalls().len(), 2, "one report of the mount, one of the guest");
}

#[test]
fn a_withdrawn_move_leaves_nothing_behind() {
    let mut host = Host::new();
    host.announce("nas1", 7);
    host.news("nas1", 7, Move::Withdrawn);
    host.run(200);
    assert_eq!((host.phase(), host.inhibited), ("normal", false));
    assert_eq!(host.gate("/vm/1.raw"), Verdict::Allow);
    host.announce("nas2", 7);
    let told = host.readiness();
    assert!(!told.last().unwrap().ready, "late news of the same move: {told:?}");
}

#[test]
fn an_announcement_ends_by_itself() {
    let mut host = Host::new();
    host.announce("nas1", 7);
    host.run(9_000);
    assert_eq!(host.phase(), "announced");
    host.run(1_500);
    assert_eq!((host.phase(), host.inhibited), ("normal", false));
    assert_eq!(host.gate("/vm/1.raw"), Verdict::Allow);
}

#[test]
fn an_unplanned_stall_without_any_nasd_is_a_move() {
    let mut host = Host::new();
    host.silence();
    host.run(1_000);
    assert_eq!(host.phase(), "moving");
    assert!(host.inhibited && host.orders(&hold()) == 1);
    assert!(matches!(host.gate("/vm/1.raw"), Verdict::Wait { .. }));
    host.run(5_000);
    assert!(host.orders(&hold()) >= 3, "migrations that begin in a hold are held as well");
    host.answers();
    host.run(1_000);
    assert_eq!(host.phase(), "normal");
    let stalls = host.stalls();
    assert!(stalls[0].0 == 0 && stalls[0].2 == 6_000, "{stalls:?}");
}

#[test]
fn s12_hands_that_do_not_answer_are_no_yes() {
    let mut host = Host::new();
    host.mute = true;
    host.announce("nas1", 7);
    host.run(3_000);
    assert_eq!(host.readiness().len(), 0, "no answer is better than a wrong one");
    let unknown =
        Readiness { reasons: vec!["libvirt did not answer".into()], ..Readiness::default() };
    host.hear(Input::Heard(Heard::Ready(VM.into(), 7, unknown)));
    let told = host.readiness();
    assert!(told.len() == 1 && !told[0].ready && told[0].reasons[0].contains("libvirt"));
}

#[test]
fn readiness_is_told_again_when_it_changes() {
    let mut host = Host::new();
    host.readiness = Readiness {
        reasons: vec!["vm1 is about to switch over".into()],
        retry_after: Some(Duration::from_secs(2)),
        ..Readiness::default()
    };
    host.announce("nas1", 7);
    host.run(2_000);
    assert_eq!(host.readiness().len(), 1);
    assert_eq!(host.readiness()[0].retry_after_ms, 2_000);
    host.readiness = Readiness { ready: true, ..Readiness::default() };
    host.run(2_000);
    let told = host.readiness();
    assert!(told.len() == 2 && told[1].ready, "{told:?}");
    host.announce("nas1", 7);
    assert_eq!(host.readiness().len(), 3, "each announcement is answered");
}

#[test]
fn s11_an_arrival_that_waits_is_told_and_so_is_a_migration_that_waits_for_it() {
    let mut host = Host::new();
    host.readiness = beginning();
    host.announce("nas1", 7);
    let (verdict, outputs) = host.agent.asked(host.now, &arrival("/vm/1.raw"));
    assert!(matches!(verdict, Verdict::Wait { .. }));
    let told = outputs.iter().find_map(|output| match output {
        Output::Tell(Said::Readiness(readiness)) => Some(readiness),
        _ => None,
    });
    let told = told.expect("told at once");
    assert_eq!((told.held.as_slice(), told.ready), (["u-1".to_owned()].as_slice(), false));
    assert_eq!((told.unbegun.as_slice(), told.only_unbegun), (["u-2".to_owned()].as_slice(), true));
    host.run(4_000);
    let told = host.readiness();
    assert!(told.last().is_some_and(|last| last.held.is_empty()), "the hook asks no more");
}

#[test]
fn s12_another_reason_is_never_taken_for_a_migration_that_waits() {
    let mut host = Host::new();
    host.readiness = beginning();
    host.announce("nas1", 7);
    host.run(1_000);
    assert!(host.readiness().last().is_some_and(|told| told.only_unbegun));
    host.silence();
    host.run(8_000);
    let told = host.readiness();
    let last = told.last().unwrap();
    assert!(last.reasons[0].contains("not at rest"), "{last:?}");
    assert!(!last.only_unbegun && last.unbegun.is_empty(), "{last:?}");
}

#[test]
fn s12_mounts_that_cannot_be_seen_and_probes_that_hang_are_no_yes() {
    let mut host = Host::new();
    host.hear(Input::Looked(Err("no /proc".into())));
    host.announce("nas1", 7);
    assert!(!host.readiness()[0].ready);
    let mut host = Host::new();
    host.answering = false;
    host.run(70_000);
    host.announce("nas1", 7);
    assert!(host.readiness()[0].reasons[0].contains("no probe"), "{:?}", host.readiness());
}

#[test]
fn probes_that_hang_after_a_move_end_in_failure_and_a_late_answer_heals_it() {
    let mut host = Host::new();
    host.news("nas1", 7, Move::Cut);
    host.silence();
    host.run(121_000);
    assert_eq!(host.phase(), "failed");
    assert!(matches!(host.gate("/vm/1.raw"), Verdict::Refuse { .. }));
    assert!(!host.agent.status(host.now).mounts[0].problems.is_empty());
    host.answers();
    host.run(1_000);
    assert_eq!(host.phase(), "normal");
}

#[test]
fn lost_locks_fail_the_move_until_somebody_accepts_them() {
    let mut host = Host::new();
    host.news("nas1", 7, Move::Cut);
    host.silence();
    host.run(500);
    let server = "192.0.2.50".to_owned();
    host.hear(Input::Kernel(kmsg::Event::LostLocks { server, count: 2 }));
    host.answers();
    host.run(30_000);
    assert_eq!(host.phase(), "failed");
    assert!(!host.inhibited, "nothing is held back by what only a person can cure");
    assert!(matches!(host.gate("/vm/1.raw"), Verdict::Refuse { .. }));
    let (found, outputs) = host.agent.accept(host.now, Path::new(VM));
    assert!(found);
    host.act(outputs);
    host.run(200);
    assert_eq!((host.phase(), host.gate("/vm/1.raw")), ("normal", Verdict::Allow));
    assert!(!host.agent.accept(host.now, Path::new(VM)).0);
}

#[test]
fn a_mount_that_comes_late_hears_what_it_missed() {
    let mut host = Host::new();
    host.mounted = false;
    host.run(200);
    host.announce("nas1", 7);
    assert!(host.readiness()[0].ready, "nothing of the service is mounted here");
    host.mounted = true;
    host.run(200);
    assert_eq!(host.phase(), "announced");
    assert!(matches!(host.gate("/vm/1.raw"), Verdict::Wait { .. }));
}

#[test]
fn a_mount_that_goes_lets_go() {
    let mut host = Host::new();
    host.announce("nas1", 7);
    let before = host.orders(&release());
    host.mounted = false;
    host.run(200);
    assert_eq!(host.orders(&release()), before + 1);
    assert!(!host.inhibited && host.agent.held().is_empty());
}

#[test]
fn a_release_that_failed_is_tried_again() {
    let mut host = Host::new();
    host.announce("nas1", 7);
    host.mute = true;
    host.news("nas1", 7, Move::Withdrawn);
    host.hear(Input::Heard(Heard::Released(VM.into(), false)));
    let before = host.orders(&release());
    host.run(5_000);
    assert!(host.orders(&release()) > before);
    assert_eq!(host.agent.held().len(), 1);
}

#[test]
fn services_are_learned_kept_and_overruled_by_the_file() {
    let welcome = |address: &str| {
        let served = v1::ServedHere {
            service: "vms".into(),
            addresses: vec![address.into(), "rubbish".into()],
            ..Default::default()
        };
        News::Welcome(v1::Welcome { node: "nas1".into(), services: vec![served] })
    };
    let mut host = Host::with(Config::default(), Kept::new());
    assert_eq!(host.agent.status(host.now).mounts.len(), 0);
    assert_eq!(host.agent.status(host.now).other_mounts, [PathBuf::from(VM)]);
    let news = Input::News("nas1".into(), welcome("192.0.2.50"));
    let kept = host.agent.step(host.now, news).into_iter().find_map(|output| match output {
        Output::Keep(kept) => Some(kept),
        _ => None,
    });
    host.run(200);
    assert_eq!(host.phase(), "normal");
    let again = Host::with(Config::default(), kept.unwrap());
    assert_eq!(again.phase(), "normal", "no nasd has answered, and the mount is watched");
    let mut host = Host::new();
    host.hear(Input::News("nas1".into(), welcome("192.0.2.99")));
    host.run(200);
    assert_eq!(host.phase(), "normal", "the file's address counts");
}

#[test]
fn news_that_are_not_understood_change_nothing() {
    let mut host = Host::new();
    let news = v1::MoveNews { service: "vms".into(), move_id: 7, what: 99, ..Default::default() };
    host.hear(Input::News("nas1".into(), News::News(news)));
    host.news("nas1", 8, Move::Unknown);
    let other =
        v1::Announce { service: "other".into(), move_id: 1, lease_ms: 1_000, ..Default::default() };
    host.hear(Input::News("nas1".into(), News::Announce(other)));
    host.run(200);
    assert_eq!((host.phase(), host.inhibited), ("normal", false));
}

#[test]
fn leases_that_would_run_out_make_the_host_not_ready() {
    let mut host = Host::new();
    host.hear(Input::Leases(Ok(Some(survey(host.now, 79)))));
    host.announce("nas1", 7);
    let told = host.readiness()[0];
    assert!(!told.ready && told.margin_ms.is_some_and(|margin| margin < 2_000), "{told:?}");
    let survey = survey(host.now, 1);
    host.hear(Input::Leases(Ok(Some(survey))));
    let told = host.readiness();
    assert!(told[1].ready && told[1].margin_ms.is_some_and(|margin| margin > 70_000), "{told:?}");
    host.hear(Input::Leases(Err("it hangs".into())));
    let told = host.readiness();
    assert!(!told[2].ready && told[2].reasons[0].contains("it hangs"), "S12: {told:?}");
}

/// sanlock with one lockspace on the mount, renewed so many seconds ago.
fn survey(taken: Now, age: u64) -> crate::sanlock::Survey {
    use nasd_sanlock::{Daemon, Disk, Lockspace, Outcome, RenewalHistory, Stage};
    let daemon = Daemon {
        host_name: "hv1".into(),
        use_watchdog: true,
        io_timeout: Some(10),
        watchdog_fire_timeout: Some(60),
        kill_grace: 40,
        monotime: 1_000,
        version: "3.9.5".into(),
    };
    let lockspace = Lockspace {
        name: "vms".into(),
        host_id: 1,
        disk: Disk { path: "/vm/lease".into(), offset: 0 },
        stage: Stage::Joined,
        io_timeout: 10,
        dead: false,
        killing: false,
        corrupt: None,
        last_result: Outcome::OK,
        last_attempt: 1_000 - age,
        last_success: 1_000 - age,
    };
    let history = Ok(RenewalHistory { io_timeout: Some(10), renewals: vec![] });
    let spaces = vec![crate::sanlock::Space { lockspace, hosts: Ok(vec![]), history }];
    crate::sanlock::Survey { taken, daemon, spaces, untold: vec![] }
}

#[test]
fn this_hosts_own_tables_are_taken() {
    let mut host = Host::new();
    let look = crate::mounts::host::look(&Files::default()).unwrap();
    host.hear(Input::Looked(Ok(look)));
    assert!(host.agent.status(host.now).problems.is_empty());
}
