//! Commands against a scripted kernel.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::Run;
use crate::commands::{Command, CommandError, ConnectSpec, Force, OperatorConfirmed, Outcome};
use crate::enums::TimeoutType;
use crate::retcode::{Refusal, ReturnCode};
use crate::status::ConnKey;
use crate::testing::{EXISTS, Fake, Kernel};
use crate::wire::attr::{Attrs, Writer};
use crate::{Abi, TransportError};

fn run(fake: &Fake, command: &Command) -> Result<Outcome, CommandError> {
    run_as(fake, command, &AtomicBool::new(false))
}

fn run_as(fake: &Fake, command: &Command, abandoned: &AtomicBool) -> Result<Outcome, CommandError> {
    let mut transport = fake.clone();
    Run { transport: &mut transport, resource: "r0", abandoned }.command(command)
}

const SECONDARY: Command = Command::Secondary { patience: Duration::ZERO };

#[test]
fn promotion_is_by_volume_on_8_4_and_by_name_on_9() {
    let old = Fake::new(Abi::V84, &[1, 1]);
    assert!(!run(&old, &Command::Primary(Force::No)).unwrap().nothing_to_do);
    assert_eq!(old.asked(), [(14, Some(10)), (14, Some(11))]);

    let new = Fake::new(Abi::V9, &[2]);
    assert!(run(&new, &Command::Primary(Force::No)).unwrap().nothing_to_do);
    assert_eq!(new.asked(), [(14, None)]);
}

#[test]
fn s1_a_refused_volume_puts_the_earlier_ones_back() {
    let fake = Fake::new(Abi::V84, &[1, -2, 1]);
    let error = run(&fake, &Command::Primary(Force::No)).unwrap_err();
    assert_eq!(fake.asked(), [(14, Some(10)), (14, Some(11)), (15, Some(10))]);
    assert_eq!(error.refusal(), Some(&Refusal::NoUpToDateDisk));
    assert_eq!(error.code(), Some(ReturnCode(-2)));
    assert!(matches!(error, CommandError::Refused { volume: Some(1), .. }));
    assert!(!error.is_outcome_unknown());
}

#[test]
fn a_volume_that_was_primary_before_is_not_demoted() {
    let fake = Fake::new(Abi::V84, &[2, -7]);
    let error = run(&fake, &Command::Primary(Force::No)).unwrap_err();
    assert_eq!(fake.asked(), [(14, Some(10)), (14, Some(11))]);
    assert_eq!(error.refusal(), Some(&Refusal::PeerNotOutdated));
}

#[test]
fn what_could_not_be_put_back_is_told() {
    let fake = Fake::new(Abi::V84, &[1, -12, -7]);
    let error = run(&fake, &SECONDARY).unwrap_err();
    assert_eq!(fake.asked(), [(15, Some(10)), (15, Some(11)), (14, Some(10))]);
    let CommandError::Mixed { volume: 1, not_undone, .. } = &error else { panic!("{error}") };
    assert_eq!(not_undone, &[0]);
    assert!(error.is_outcome_unknown());
    assert_eq!(error.code(), Some(ReturnCode(-12)));
}

#[test]
fn demotion_is_patient_with_udev() {
    let fake = Fake::new(Abi::V9, &[-12, -12, -18, 1]);
    let command = Command::Secondary { patience: Duration::from_secs(5) };
    assert!(run(&fake, &command).is_ok());
    assert_eq!(fake.asked().len(), 4);
}

#[test]
fn demotion_without_patience_tells_the_openers() {
    let fake = Fake::new(Abi::V9, &[]);
    let text = "drbd10 opened by mount (pid 7)";
    fake.answers.lock().unwrap().push_back(Ok(Kernel::reply(15, -12, &["list", text])));
    let error = run(&fake, &SECONDARY).unwrap_err();
    let Some(Refusal::InUse { openers }) = error.refusal() else { panic!("{error}") };
    assert_eq!(openers[1], text);
}

#[test]
fn s8_nothing_is_repeated_when_the_caller_is_gone() {
    let fake = Fake::new(Abi::V9, &[-12]);
    let command = Command::Secondary { patience: Duration::from_secs(5) };
    assert_eq!(run_as(&fake, &command, &fake.gives_up).unwrap_err().code(), Some(ReturnCode(-12)));
    assert_eq!(fake.asked().len(), 1);
}

#[test]
fn s8_nothing_is_begun_when_the_caller_is_gone() {
    let fake = Fake::new(Abi::V9, &[]);
    let error = run_as(&fake, &SECONDARY, &AtomicBool::new(true)).unwrap_err();
    assert_eq!(error, CommandError::Abandoned { command: "secondary", volume: None });
    assert!(fake.asked().is_empty());
}

#[test]
fn s8_a_promotion_that_nobody_waits_for_is_put_back_a_demotion_goes_on() {
    let fake = Fake::new(Abi::V84, &[1, 1]);
    let error = run_as(&fake, &Command::Primary(Force::No), &fake.gives_up).unwrap_err();
    assert_eq!(error, CommandError::Abandoned { command: "primary", volume: Some(1) });
    assert_eq!(fake.asked(), [(14, Some(10)), (15, Some(10))]);

    let fake = Fake::new(Abi::V84, &[1, 1]);
    assert!(run_as(&fake, &SECONDARY, &fake.gives_up).is_ok());
    assert_eq!(fake.asked(), [(15, Some(10)), (15, Some(11))]);
}

#[test]
fn promotion_repeats_transients_but_no_refusals() {
    let fake = Fake::new(Abi::V9, &[-19, 1]);
    assert!(run(&fake, &Command::Primary(Force::No)).is_ok());
    for refusal in [-1, -2, -7, -12] {
        let fake = Fake::new(Abi::V9, &[refusal]);
        assert!(run(&fake, &Command::Primary(Force::No)).is_err());
        assert_eq!(fake.asked().len(), 1, "{refusal}");
    }
}

#[test]
fn s3_force_needs_a_confirmation_for_this_very_resource() {
    let typed = "lose data of r1";
    let confirmed = OperatorConfirmed::by_typed_text("ann", "r1", typed).unwrap();
    let fake = Fake::new(Abi::V9, &[]);
    let command = Command::Primary(Force::OperatorConfirmed(confirmed));
    let error = run(&fake, &command).unwrap_err();
    assert_eq!(error, CommandError::ConfirmedForAnother("r1".into()));
    assert!(fake.asked().is_empty());
    assert!(OperatorConfirmed::by_typed_text("ann", "r0", typed).is_err());
    assert!(OperatorConfirmed::by_typed_text(" ", "r1", typed).is_err());
}

fn force_sent(fake: &Fake, tag: u16) -> Vec<bool> {
    let asked = fake.asked.lock().unwrap();
    let flag = |attrs: &[u8]| {
        let nest = Attrs::parse(attrs).unwrap().nest(tag).unwrap().unwrap();
        nest.get(1).and_then(|attr| attr.flag())
    };
    asked.iter().map(|request| flag(&request.attrs).unwrap_or(false)).collect()
}

#[test]
fn s3_putting_back_never_forces() {
    let text = "lose data of r0";
    let confirmed = OperatorConfirmed::by_typed_text("ann", "r0", text).unwrap();
    let fake = Fake::new(Abi::V84, &[1, -2, 1]);
    let _ = run(&fake, &Command::Primary(Force::OperatorConfirmed(confirmed)));
    assert_eq!(force_sent(&fake, 6), [true, true, false]);
}

#[test]
fn h1_forced_and_graceful_disconnect_differ_by_the_flag() {
    for (abi, key) in [(Abi::V84, ConnKey::Only), (Abi::V9, ConnKey::Peer(1))] {
        for forced in [false, true] {
            let fake = Fake::new(abi, &[101]);
            run(&fake, &Command::Disconnect { key, forced }).unwrap();
            assert_eq!(force_sent(&fake, 12), [forced]);
        }
    }
}

#[test]
fn disconnect_of_what_is_disconnected_is_nothing_to_do() {
    let mut fake = Fake::new(Abi::V84, &[]);
    let kernel = Kernel(Abi::V84);
    fake.dumps.state.retain(|answer| answer.cmd != 36 && answer.cmd != 37);
    fake.dumps.connections.clear();
    let command = Command::Disconnect { key: ConnKey::Only, forced: true };
    assert!(run(&fake, &command).unwrap().nothing_to_do);

    // S12: connected, but without addresses, is not "nothing to do".
    fake.dumps.state.insert(1, kernel.connection(EXISTS, 9, 2));
    let strip = |answer: &mut crate::socket::Answer| {
        if answer.cmd == 36 {
            let context = Writer::default().text(2, "r0");
            let rest = Attrs::parse(&answer.attrs).unwrap();
            let mut attrs = Writer::default().nest(2, context);
            for attr in rest.iter().filter(|attr| attr.kind != 2) {
                attrs = attrs.bytes(attr.kind, attr.data);
            }
            answer.attrs = attrs.finish();
        }
    };
    fake.dumps.state.iter_mut().for_each(strip);
    let error = run(&fake, &command).unwrap_err();
    assert_eq!(error, CommandError::NoSuchConnection(ConnKey::Only));
}

#[test]
fn connect_again_with_what_the_status_said() {
    let mut fake = Fake::new(Abi::V84, &[1]);
    let status = crate::client::read_one(&mut fake, "r0").unwrap();
    let spec = ConnectSpec::of(&status.connections[0]).unwrap();
    let spec = ConnectSpec::from_bytes(&spec.to_bytes()).unwrap();
    run(&fake, &Command::Connect(spec.clone())).unwrap();
    let attrs = fake.asked.lock().unwrap()[0].attrs.clone();
    let net = Attrs::parse(&attrs).unwrap();
    let net = net.nest(5).unwrap().unwrap();
    assert_eq!(net.get(1).unwrap().text(), "secret");
    assert!(net.get(25).is_none(), "discard-my-data is not repeated");
    assert!(!format!("{spec:?} {status:?}").contains("secret"));

    let other = Fake::new(Abi::V9, &[]);
    assert_eq!(run(&other, &Command::Connect(spec)), Err(CommandError::WrongAbi));
}

#[test]
fn outdate_goes_over_all_volumes() {
    let fake = Fake::new(Abi::V9, &[1, -6]);
    let error = run(&fake, &Command::Outdate).unwrap_err();
    assert_eq!(fake.asked(), [(25, Some(10)), (25, Some(11))]);
    assert!(matches!(error, CommandError::Refused { volume: Some(1), .. }));
    assert_eq!(error.refusal(), Some(&Refusal::ConnectedNotOutdated));
}

/// As seen on kernel 6.1: a connected UpToDate disk stays so, and the answer is "nothing to do".
#[test]
fn s12_outdate_believes_the_state_not_the_answer() {
    let mut fake = Fake::new(Abi::V84, &[2, 2, 1, 1]);
    let error = run(&fake, &Command::Outdate).unwrap_err();
    let disk = crate::DiskState::UpToDate;
    assert_eq!(error, CommandError::NoEffect { command: "outdate", volume: 0, disk });

    let kernel = Kernel(Abi::V84);
    let outdated = [kernel.device(EXISTS, 0, 5), kernel.device(EXISTS, 1, 5)];
    fake.dumps.state.splice(2..4, outdated);
    assert!(run(&fake, &Command::Outdate).is_ok());
}

#[test]
fn timeout_type_is_read_from_the_answer() {
    let fake = Fake::new(Abi::V84, &[]);
    let mut answer = Kernel::reply(26, 101, &[]);
    answer.attrs = Writer::default().nest(11, Writer::default().u32(1, 2)).finish();
    fake.answers.lock().unwrap().push_back(Ok(answer));
    let command = Command::TimeoutType(1, ConnKey::Only);
    let outcome = run(&fake, &command).unwrap();
    assert_eq!(outcome.timeout_type, Some(TimeoutType::PeerOutdated));

    let fake = Fake::new(Abi::V84, &[101]);
    assert!(run(&fake, &command).is_err(), "S12: no answer in the answer");
}

#[test]
fn absent_objects_are_told_and_nothing_is_sent() {
    let mut fake = Fake::new(Abi::V84, &[]);
    assert_eq!(run(&fake, &Command::Detach(9)), Err(CommandError::NoSuchVolume(9)));
    fake.dumps.state = vec![Kernel(Abi::V84).done()];
    assert_eq!(run(&fake, &SECONDARY), Err(CommandError::NoSuchResource("r0".into())));
    assert!(fake.asked().is_empty());
}

#[test]
fn a_lost_answer_leaves_the_outcome_unknown() {
    let fake = Fake::new(Abi::V9, &[]);
    fake.answers.lock().unwrap().push_back(Err(TransportError::NoReply));
    assert!(run(&fake, &SECONDARY).unwrap_err().is_outcome_unknown());
    fake.answers.lock().unwrap().push_back(Err(TransportError::NotPermitted));
    assert!(!run(&fake, &SECONDARY).unwrap_err().is_outcome_unknown());
}
