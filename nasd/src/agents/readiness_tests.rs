//! Every way in which hypervisors stand against a move, and when the waiting ends.

use super::*;

fn s(seconds: u64) -> Now {
    Duration::from_secs(seconds)
}

fn question(now: u64, force: bool) -> Question<'static> {
    Question {
        service: "vms",
        node: "nas1",
        now: s(now),
        deadline: s(15),
        began: s(0),
        force,
        predicted_stall_ms: 400,
    }
}

fn ready(margin_ms: Option<u64>) -> Readiness {
    Readiness { ready: true, margin_ms, ..Readiness::default() }
}

fn busy(retry_after_ms: u32) -> Readiness {
    Readiness { reasons: vec!["web1 is migrating".into()], retry_after_ms, ..Readiness::default() }
}

fn standing<'a>(host: &'a str, said: Option<&'a Readiness>) -> Standing<'a> {
    Standing { host, silent: None, heard: Duration::ZERO, said }
}

fn codes(found: Option<Vec<Finding>>) -> Option<Vec<(&'static str, bool)>> {
    found.map(|all| all.iter().map(|f| (f.code, f.refuses)).collect())
}

fn asked(
    now: u64,
    force: bool,
    all: &[Standing<'_>],
    absent: &[&str],
) -> Option<Vec<(&'static str, bool)>> {
    codes(judge(&question(now, force), all, absent))
}

#[test]
fn without_hypervisors_nothing_is_waited_for() {
    assert_eq!(asked(0, false, &[], &[]), Some(vec![]));
}

#[test]
fn all_must_be_ready_and_then_the_move_begins_at_once() {
    let (yes, later) = (ready(None), busy(0));
    let one = [standing("hv1", Some(&yes)), standing("hv2", Some(&later))];
    assert_eq!(asked(1, false, &one, &[]), None, "it may yet become ready");
    assert_eq!(asked(15, false, &one, &[]), Some(vec![("hypervisor-not-ready", true)]));
    let both = [standing("hv1", Some(&yes)), standing("hv2", Some(&yes))];
    assert_eq!(asked(1, false, &both, &[]), Some(vec![]));
    assert_eq!(asked(16, false, &both, &[]), Some(vec![]), "ready is ready, late or not");
}

fn beginning(guests: &[&str]) -> Readiness {
    let unbegun = guests.iter().map(|&g| g.to_owned()).collect();
    Readiness { unbegun, only_unbegun: true, ..busy(1000) }
}

#[test]
fn s11_a_migration_that_its_destination_holds_back_is_no_obstacle() {
    let holds = |guests: &[&str]| Readiness {
        held: guests.iter().map(|&g| g.to_owned()).collect(),
        ..ready(None)
    };
    let of = |source: &Readiness, destination: &Readiness| {
        asked(1, false, &[standing("hv1", Some(source)), standing("hv2", Some(destination))], &[])
    };
    assert_eq!(of(&beginning(&["a", "b"]), &holds(&["b", "a"])), Some(vec![]));
    assert_eq!(of(&beginning(&["a", "b"]), &holds(&["a"])), None, "one may be sending by now");
    let more = Readiness { only_unbegun: false, ..beginning(&["a"]) };
    assert_eq!(of(&more, &holds(&["a"])), None, "there are other reasons");
    assert_eq!(of(&Readiness { unbegun: vec![], ..beginning(&[]) }, &holds(&["a"])), None);
    let (source, destination) = (beginning(&["a"]), holds(&["a"]));
    let silent = Standing { silent: Some(s(20)), ..standing("hv2", Some(&destination)) };
    let found = asked(15, false, &[standing("hv1", Some(&source)), silent], &[]).unwrap();
    let quiet = Standing { heard: s(5), ..standing("hv2", Some(&destination)) };
    let all = [standing("hv1", Some(&source)), quiet];
    assert_eq!(asked(1, false, &all, &[]), None, "S12: its hook may have let the guest in by now");
    assert_eq!(found.len(), 2, "S12: a host that is silent holds nothing back: {found:?}");
}

#[test]
fn s12_no_answer_is_not_ready_at_the_deadline() {
    let one = [standing("hv1", None)];
    assert_eq!(asked(14, false, &one, &[]), None);
    let found = judge(&question(15, false), &one, &[]).unwrap();
    assert_eq!(codes(Some(found.clone())), Some(vec![("hypervisor-not-ready", true)]));
    assert_eq!(found[0].evidence, "hv1 has not answered within 15.0 s");
    assert!(found[0].remedy.contains("--wait") && found[0].remedy.contains("--force"));
}

#[test]
fn s12_a_silent_host_refuses_whatever_it_said_before() {
    let yes = ready(None);
    let silent = [Standing { host: "hv1", silent: Some(s(40)), heard: s(40), said: Some(&yes) }];
    assert_eq!(asked(3, false, &silent, &[]), None, "it may come back");
    assert_eq!(asked(15, false, &silent, &[]), Some(vec![("hypervisor-silent", true)]));
    let found = judge(&question(15, false), &silent, &[]).unwrap();
    assert_eq!(found[0].evidence, "hv1 had vms mounted, and nas1 has not heard of it for 40.0 s");
}

#[test]
fn a_required_host_that_is_not_attached_refuses() {
    assert_eq!(asked(3, false, &[], &["hv9"]), None, "it may attach");
    assert_eq!(asked(15, false, &[], &["hv9"]), Some(vec![("hypervisor-absent", true)]));
    assert_eq!(asked(3, true, &[], &["hv9"]), Some(vec![("hypervisor-absent", false)]));
}

#[test]
fn a_margin_below_the_predicted_stall_refuses_though_the_agent_is_ready() {
    for (margin, refuses) in
        [(Some(399), true), (Some(400), true), (Some(401), false), (None, false)]
    {
        let said = ready(margin);
        let found = asked(15, false, &[standing("hv1", Some(&said))], &[]).unwrap();
        assert_eq!(!found.is_empty(), refuses, "{margin:?}");
    }
}

#[test]
fn one_that_says_it_will_not_be_ready_in_time_ends_the_waiting_when_all_have_answered() {
    let (long, short, yes) = (busy(13_001), busy(13_000), ready(None));
    let waiting = [standing("hv1", Some(&long)), standing("hv2", None)];
    assert_eq!(asked(2, false, &waiting, &[]), None, "hv2's answer belongs into the report");
    let vain = [standing("hv1", Some(&long)), standing("hv2", Some(&yes))];
    assert_eq!(asked(2, false, &vain, &[]), Some(vec![("hypervisor-not-ready", true)]));
    assert_eq!(asked(2, false, &[standing("hv1", Some(&short))], &[]), None, "just in time");
    let found = judge(&question(2, false), &vain, &[]).unwrap();
    assert_eq!(found[0].evidence, "hv1 is not ready: web1 is migrating (perhaps in 13.0 s)");
}

#[test]
fn force_warns_and_goes_on_as_soon_as_all_have_answered() {
    let no = busy(0);
    let waiting = [standing("hv1", Some(&no)), standing("hv2", None)];
    assert_eq!(asked(1, true, &waiting, &[]), None, "those who hear of it may still prepare");
    let warned = Some(vec![("hypervisor-not-ready", false), ("hypervisor-not-ready", false)]);
    assert_eq!(asked(15, true, &waiting, &[]), warned);
    let dead = Standing { host: "hv2", silent: Some(s(20)), heard: s(20), said: None };
    let answered = [standing("hv1", Some(&no)), dead];
    let warned = Some(vec![("hypervisor-not-ready", false), ("hypervisor-silent", false)]);
    assert_eq!(asked(1, true, &answered, &[]), warned);
}

#[test]
fn a_dry_run_tells_what_is_there_and_refuses_what_is_not_at_rest() {
    let mount = |phase: &str, margin_ms| MountState {
        mount: "/vms".into(),
        phase: phase.into(),
        margin_ms,
        guests: 3,
        ..MountState::default()
    };
    let look = |m: &MountState, force| look(&question(0, force), "hv1", None, Some(&[m]));
    let well = look(&mount("normal", Some(42_500)), false);
    assert_eq!(codes(Some(well.clone())), Some(vec![("hypervisor", false)]));
    assert_eq!(well[0].evidence, "hv1: /vms is normal, 3 guests, 0 migrations, margin 42.5 s");
    assert!(well[0].remedy.is_empty());
    for phase in ["announced", "moving", "io-back", "opens-back", "verified", "failed-io", ""] {
        let found = codes(Some(look(&mount(phase, None), false)));
        assert_eq!(found, Some(vec![("hypervisor-not-ready", true)]), "{phase}");
    }
    let forced = codes(Some(look(&mount("moving", None), true)));
    assert_eq!(forced, Some(vec![("hypervisor-not-ready", false)]));
    let thin = codes(Some(look(&mount("normal", Some(100)), false)));
    assert_eq!(thin, Some(vec![("hypervisor", false), ("hypervisor-margin", true)]));
    let ill = MountState { problems: vec!["no watchdog".into()], ..mount("normal", None) };
    let found = codes(Some(look(&ill, false)));
    assert_eq!(found, Some(vec![("hypervisor", false), ("hypervisor-problem", false)]));
    let silent = super::look(&question(0, false), "hv1", Some(s(16)), Some(&[]));
    assert_eq!(codes(Some(silent)), Some(vec![("hypervisor-silent", true)]));
    let untold = super::look(&question(0, false), "hv1", None, None);
    assert_eq!(codes(Some(untold)), Some(vec![("hypervisor-not-ready", true)]));
}
