//! Answers that are cut, changed or invented: errors, never a panic, never half a truth (S12).

mod daemon;

use daemon::{Answer, NAME, full_status, renewal};
use nasd_sanlock::{Error, hosts, lockspaces, renewals, status, version};
use proptest::prelude::*;

fn everything(bytes: &[u8]) {
    let _ = version(&mut &*bytes);
    let _ = status(&mut &*bytes);
    let _ = lockspaces(&mut &*bytes);
    let _ = hosts(&mut &*bytes, NAME);
    let _ = renewals(&mut &*bytes, NAME);
}

/// Where each record of [`full_status`] ends.
fn boundaries() -> Vec<usize> {
    let full = full_status().0;
    (0..=full.len()).filter(|end| status(&mut &full[..*end]).is_ok()).collect()
}

#[test]
fn s12_a_status_cut_anywhere_but_between_records_is_an_error() {
    let ends = boundaries();
    assert_eq!(
        ends.len(),
        6,
        "after the daemon, a worker, two processes, the lockspace, the lease: {ends:?}"
    );
    let full = full_status().0;
    for end in (0..full.len()).filter(|end| !ends.contains(end)) {
        let error = status(&mut &full[..end]).unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }), "{end}: {error}");
    }
}

#[test]
fn s12_a_history_cut_inside_a_record_is_an_error() {
    let full = Answer::header(34, 32, 0, 10).state(6, 0, 9, "", &renewal(9)).0;
    for end in 0..full.len() {
        let whole = renewals(&mut &full[..end], NAME).is_ok();
        assert_eq!(whole, end == 32, "{end}");
    }
}

#[test]
fn records_that_do_not_belong_are_refused() {
    let strange = Answer::header(5, 32, 0, 0).state(1, 0, 0, "hv1", daemon::DAEMON);
    let strange = strange.state(9, 0, 0, "", "").0;
    assert!(matches!(status(&mut &*strange), Err(Error::UnexpectedRecord { found: 9, .. })));
    let headless = Answer::header(5, 32, 0, 0).state(2, 1, 0, "x", daemon::CLIENT).0;
    assert!(status(&mut &*headless).is_err(), "the daemon's own record comes first");
}

#[test]
fn s12_a_host_name_cannot_forge_a_field() {
    let text = daemon::DAEMON.replace("4c4c4544-0042.hv1", "x use_watchdog=1");
    let forged = Answer::header(5, 32, 0, 0).state(1, 0, 0, "x", &text).0;
    let error = status(&mut &*forged).unwrap_err();
    assert!(matches!(error, Error::BadField { key: "use_watchdog", .. }), "{error}");
}

#[test]
fn a_lease_with_too_many_areas_is_refused_before_they_are_read() {
    let answer = Answer::header(5, 32, 0, 0).state(1, 0, 0, "hv1", daemon::DAEMON);
    let answer = answer.state(4, 1, 0, "r", daemon::RESOURCE).resource(NAME, "r", 0, &["/a"; 5]).0;
    assert!(matches!(status(&mut &*answer), Err(Error::BadLength { found: 5, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        everything(&bytes);
    }

    #[test]
    fn arbitrary_bytes_behind_a_good_header_never_panic(
        cmd in prop::sample::select(vec![5_u32, 22, 23, 28, 34]),
        data: i32,
        data2: u32,
        length: u32,
        bytes in prop::collection::vec(any::<u8>(), 0..4096),
    ) {
        everything(&Answer::header(cmd, length, data, data2).raw(&bytes).0);
    }

    #[test]
    fn changed_answers_never_panic(at: prop::sample::Index, byte: u8) {
        let mut bytes = full_status().0;
        let at = at.index(bytes.len());
        bytes[at] = byte;
        everything(&bytes);
    }
}
