//! Which facts permit which recovery, and that only the exact sentence confirms it (S1, S3, S12).

use std::collections::{BTreeMap, BTreeSet};

use nasd_proto::recover_request::What;
use serde_json::json;

use super::facts::{Facts, Heard, Stored};
use super::plan::{Verdict, judge};
use super::{execute, refusal, text};
use crate::api::status::ServiceStatus;
use crate::core::record::{DataUuid, NodeName, Phase, Record};

fn status(stage: &str, role: &str, connection: &str, disk: &str) -> ServiceStatus {
    let document = json!({
        "service": "vms", "stage": stage, "addresses": [], "exports": [], "gate_open": false,
        "clients": [], "failover": [],
        "data_uuid": {"0": "0000000000000004"}, "uuid_history": {"0": ["0000000000000002"]},
        "drbd": {"resource": "r0", "role": role, "connection": connection, "peer_role": "Unknown",
            "disks": {"0": [disk, "DUnknown"]}, "violations": []},
    });
    serde_json::from_value(document).unwrap()
}

fn record(owner: &str, current: &[&str]) -> Record {
    Record {
        epoch: 12,
        phase: Phase::Serving { owner: owner.into() },
        current: current.iter().map(|n| NodeName::from(*n)).collect(),
        data_uuid: BTreeMap::from([(0, DataUuid::new(6))]),
        hold: None,
        generation: 4,
        accepts: None,
    }
}

/// nas1 owned the service, went on alone, and is gone; nas2 has old data.
fn lost() -> Facts {
    let seen = record("nas1", &["nas1"]);
    Facts {
        service: "vms".into(),
        resource: "r0".into(),
        node: "nas2".into(),
        peer: "nas1".into(),
        coordinator_kind: "etcd".into(),
        coordinator: Heard::Known(Some(Stored { record: seen.clone(), revision: 77 })),
        last_seen: Heard::Known(Some(seen)),
        here: Heard::Known(status("standby", "Secondary", "Connecting", "Consistent")),
        marked: false,
        left_ago_s: None,
        there: Heard::Unknown("its nasd does not answer: timed out".into()),
        sign: Some("nothing"),
    }
}

fn why_not(what: What, f: &Facts) -> String {
    match judge(what, f) {
        Verdict::No { why, .. } => why,
        Verdict::Ask { sentence, .. } => panic!("permitted: {sentence}"),
    }
}

fn here(f: &mut Facts) -> &mut ServiceStatus {
    match &mut f.here {
        Heard::Known(status) => status,
        Heard::Unknown(why) => panic!("{why}"),
    }
}

fn own_disk(f: &mut Facts, disk: &str) {
    let drbd = here(f).drbd.as_mut().unwrap();
    drbd.disks.insert(0, (disk.into(), "DUnknown".into()));
}

#[test]
fn s3_a_lost_owner_can_be_replaced_with_a_sentence_that_names_both() {
    let sentence = "open vms on nas2 and lose what only nas1 has".to_owned();
    assert_eq!(judge(What::OpenHere, &lost()), Verdict::Ask { sentence, force: false });
}

#[test]
fn s3_an_old_disk_needs_the_phrase_that_drbd_asks_for() {
    let mut f = lost();
    for disk in ["Outdated", "Inconsistent"] {
        own_disk(&mut f, disk);
        let sentence = "open vms on nas2 and lose data of r0".to_owned();
        assert_eq!(judge(What::OpenHere, &f), Verdict::Ask { sentence, force: true });
    }
    own_disk(&mut f, "UpToDate");
    f.marked = true;
    assert!(
        matches!(judge(What::OpenHere, &f), Verdict::Ask { force: true, .. }),
        "a disk that failed once"
    );
    for disk in ["Diskless", "Failed", "Negotiating", "Unknown(9)"] {
        own_disk(&mut f, disk);
        assert!(why_not(What::OpenHere, &f).contains(disk));
    }
}

#[test]
fn s3_nothing_is_done_without_the_exact_sentence() {
    let verdict = judge(What::OpenHere, &lost());
    assert_eq!(refusal(&verdict, verdict.sentence()), None);
    let sentence = verdict.sentence();
    for typed in [
        "",
        "yes",
        &sentence[1..],
        &sentence.to_uppercase(),
        &format!("{sentence} "),
        &sentence.replace("nas2", "nas1"),
        "open vms on nas2 and lose data of r0",
    ] {
        assert!(refusal(&verdict, typed).is_some(), "{typed:?}");
    }
    let no = Verdict::No { why: "it serves".into(), instead: "look".into() };
    assert_eq!(refusal(&no, ""), Some("it serves; look".into()), "an empty sentence is none");
}

#[test]
fn s1_never_while_the_other_node_serves_or_might() {
    let mut f = lost();
    f.sign = Some("alive");
    assert!(why_not(What::OpenHere, &f).contains("nas1 lives"));
    let mut there = status("serving", "Primary", "Connecting", "UpToDate");
    there.gate_open = true;
    f = Facts { there: Heard::Known(there.clone()), sign: None, ..lost() };
    assert_eq!(why_not(What::OpenHere, &f), "nas1 serves vms");
    there.gate_open = false;
    f.there = Heard::Known(there.clone());
    assert!(why_not(What::OpenHere, &f).contains("is Primary on nas1"));
    there.drbd = None;
    f.there = Heard::Known(there);
    assert!(why_not(What::OpenHere, &f).contains("unknown role"), "S12");
    f = lost();
    here(&mut f).drbd.as_mut().unwrap().peer_role = "Primary".into();
    assert!(why_not(What::OpenHere, &f).contains("nas1 is Primary"));
}

#[test]
fn s2_good_data_elsewhere_is_not_thrown_away() {
    let good = status("waiting", "Secondary", "Connecting", "UpToDate");
    let f = Facts { there: Heard::Known(good), sign: None, ..lost() };
    assert!(why_not(What::OpenHere, &f).contains("nas1 is up and its disks are UpToDate"));
}

/// nas1 is gone, and nas2 has everything.
fn both_current() -> Facts {
    let mut f = lost();
    let both = record("nas1", &["nas1", "nas2"]);
    own_disk(&mut f, "UpToDate");
    here(&mut f).record = Some(both.clone());
    f.coordinator = Heard::Known(Some(Stored { record: both, revision: 9 }));
    f
}

#[test]
fn a_current_node_is_sent_to_takeover() {
    let mut f = both_current();
    assert!(why_not(What::OpenHere, &f).contains("without losing anything"));
    let mut held = both_current();
    let hold = |r: &Record| r.held(Some("kim".into()));
    let stored = Stored { record: hold(&record("nas1", &["nas1", "nas2"])), revision: 9 };
    here(&mut held).record = Some(stored.record.clone());
    here(&mut held).failover = vec!["held by kim".into()];
    held.coordinator = Heard::Known(Some(stored));
    assert!(matches!(judge(What::OpenHere, &held), Verdict::No { instead, .. }
        if instead.contains("nasctl unhold vms, then nasctl takeover")));
    // Not so when nasd does not believe that record: a restored etcd.
    here(&mut f).record = Some(Record { epoch: 14, ..record("nas2", &["nas2"]) });
    assert!(matches!(judge(What::OpenHere, &f), Verdict::Ask { .. }));
}

#[test]
fn nobody_is_sent_to_a_takeover_that_would_be_refused() {
    let mut f = both_current();
    for no in ["a disk of nas2 had failed", "etcd writes nothing"] {
        here(&mut f).failover = vec![no.to_owned()];
        let sentence = "open vms on nas2 and lose what only nas1 has".to_owned();
        assert_eq!(judge(What::OpenHere, &f), Verdict::Ask { sentence, force: false }, "{no}");
    }
    here(&mut f).failover = crate::api::status::failover_unknown();
    assert!(
        matches!(judge(What::OpenHere, &f), Verdict::Ask { .. }),
        "not told is not ready (S12)"
    );
    here(&mut f).failover.clear();
    assert!(why_not(What::OpenHere, &f).contains("without losing anything"));
}

#[test]
fn s12_what_must_be_known_and_is_not_refuses() {
    let silent = || Heard::Unknown("timed out".to_owned());
    let f = Facts { coordinator: Heard::Unknown("timed out".into()), ..lost() };
    assert!(why_not(What::OpenHere, &f).contains("cannot be read from etcd (timed out)"));
    let f = Facts { last_seen: Heard::Unknown("damaged".into()), ..lost() };
    assert!(why_not(What::OpenHere, &f).contains("memory"));
    assert!(why_not(What::OpenHere, &Facts { here: silent(), ..lost() }).contains("own state"));
    let mut f = lost();
    here(&mut f).drbd = None;
    assert!(why_not(What::OpenHere, &f).contains("not known"));
    let mut f = lost();
    here(&mut f).stage = "opening".into();
    assert!(why_not(What::OpenHere, &f).contains("vms is opening"));
}

#[test]
fn s12_the_new_record_is_above_everything_that_anybody_remembers() {
    let mut f = lost();
    f.last_seen = Heard::Known(Some(Record { generation: 9, ..record("nas1", &["nas1"]) }));
    here(&mut f).record = Some(Record { epoch: 20, ..record("nas1", &["nas1"]) });
    let next = execute::successor(&f);
    assert_eq!((next.epoch, next.generation), (21, 9));
    assert_eq!(next.phase, Phase::Taking { owner: "nas2".into() });
    assert_eq!(next.current, BTreeSet::from(["nas2".into()]));
    assert_eq!(next.data_uuid, BTreeMap::from([(0, DataUuid::new(4))]));
    let empty = Facts { coordinator: Heard::Known(None), ..lost() };
    assert_eq!(execute::successor(&empty).epoch, 13, "a coordinator that was lost");
}

/// Both have changed the data; the record says that nas1's counts.
fn parted() -> Facts {
    let good = status("serving", "Primary", "StandAlone", "UpToDate");
    Facts {
        here: Heard::Known(status("standby", "Secondary", "StandAlone", "UpToDate")),
        there: Heard::Known(good),
        sign: None,
        ..lost()
    }
}

#[test]
fn s3_changes_are_discarded_only_where_they_do_not_count() {
    let sentence = "discard what only nas2 has of vms".to_owned();
    assert_eq!(judge(What::DiscardMine, &parted()), Verdict::Ask { sentence, force: true });
    let mut f = parted();
    here(&mut f).drbd.as_mut().unwrap().role = "Primary".into();
    assert!(why_not(What::DiscardMine, &f).contains("r0 is Primary on nas2"));
    let mut f = parted();
    here(&mut f).drbd.as_mut().unwrap().connection = "Connected".into();
    assert!(why_not(What::DiscardMine, &f).contains("no split brain"));
    let stored = |r| Heard::Known(Some(Stored { record: r, revision: 1 }));
    let f = Facts { coordinator: stored(record("nas2", &["nas2"])), ..parted() };
    assert!(why_not(What::DiscardMine, &f).contains("its data is what counts"));
    let f = Facts { coordinator: stored(record("nas1", &["nas2"])), ..parted() };
    assert!(why_not(What::DiscardMine, &f).contains("not in the current set"));
    for (there, part) in [
        (Heard::Unknown("timed out".to_owned()), "is not known"),
        (
            Heard::Known(status("serving", "Primary", "StandAlone", "Inconsistent")),
            "not all UpToDate",
        ),
    ] {
        assert!(why_not(What::DiscardMine, &Facts { there, ..parted() }).contains(part));
    }
    let f = Facts { coordinator: Heard::Unknown("x".into()), ..parted() };
    assert!(why_not(What::DiscardMine, &f).contains("cannot be read"));
}

/// No majority; nas1, which served, does not answer; nas2 was current when the record was last seen.
fn struck() -> Facts {
    Facts {
        coordinator: Heard::Unknown("no answer".into()),
        last_seen: Heard::Known(Some(record("nas1", &["nas1", "nas2"]))),
        sign: Some("unknown"),
        ..lost()
    }
}

#[test]
fn s3_an_emergency_start_needs_a_sentence_that_names_both_nodes() {
    let sentence = "start vms on nas2 and keep nas1 off".to_owned();
    let verdict = judge(What::EmergencyStart, &struck());
    assert_eq!(verdict, Verdict::Ask { sentence, force: false });
    let mut frozen = struck();
    *here(&mut frozen) = status("serving", "Primary", "Connecting", "UpToDate");
    assert!(matches!(judge(What::EmergencyStart, &frozen), Verdict::Ask { .. }));
    let told = text::explain(What::EmergencyStart, &struck(), &verdict);
    for part in
        ["--force-new-cluster", "gone on alone since", "epoch 12", "if somebody has, nas2 closes"]
    {
        assert!(told.contains(part), "{part} is missing:\n{told}");
    }
}

#[test]
fn s12_an_emergency_start_is_refused_by_whatever_stands_against_it() {
    let what = What::EmergencyStart;
    assert!(why_not(what, &lost()).contains("etcd answers"));
    let f = Facts { last_seen: Heard::Known(Some(record("nas1", &["nas1"]))), ..struck() };
    assert!(why_not(what, &f).contains("may miss acknowledged writes"));
    let f = Facts { last_seen: Heard::Known(None), ..struck() };
    assert!(why_not(what, &f).contains("never seen"));
    let f = Facts { last_seen: Heard::Unknown("damaged".into()), ..struck() };
    assert!(why_not(what, &f).contains("memory"));
    let f = Facts {
        there: Heard::Known(status("standby", "Secondary", "Connected", "UpToDate")),
        ..struck()
    };
    assert!(why_not(what, &f).contains("nasd on nas1 answers"));
    assert!(why_not(what, &Facts { sign: Some("alive"), ..struck() }).contains("answers"));
    assert!(why_not(what, &Facts { marked: true, ..struck() }).contains("has failed"));
    assert!(
        why_not(what, &Facts { here: Heard::Unknown("?".into()), ..struck() })
            .contains("own state")
    );
    for disk in ["Outdated", "Inconsistent", "Diskless"] {
        let mut f = struck();
        own_disk(&mut f, disk);
        assert!(why_not(what, &f).contains(disk));
    }
    for role in ["Primary", "Unknown"] {
        let mut f = struck();
        let drbd = here(&mut f).drbd.as_mut().unwrap();
        (drbd.connection, drbd.peer_role) = ("Connected".into(), role.into());
        assert!(why_not(what, &f).contains(role));
    }
    let mut f = struck();
    here(&mut f).gate_open = true;
    assert!(why_not(what, &f).contains("served by nas2"));
    let mut f = struck();
    here(&mut f).stage = "opening".into();
    assert!(why_not(what, &f).contains("opening"));
    let mut f = struck();
    here(&mut f).drbd = None;
    assert!(why_not(what, &f).contains("not known"));
}

#[test]
fn s3_only_a_replica_that_had_left_the_current_set_may_be_older_than_an_opening() {
    assert_eq!(execute::successor(&lost()).accepts, Some(1));
    let stored = Stored { record: record("nas1", &["nas1", "nas2"]), revision: 1 };
    let f = Facts { coordinator: Heard::Known(Some(stored)), ..lost() };
    assert_eq!(execute::successor(&f).accepts, None, "its marker must fit");
    let f = Facts { coordinator: Heard::Known(None), ..lost() };
    assert_eq!(execute::successor(&f).accepts, Some(1), "by this node's memory");
}

#[test]
fn the_explanation_is_complete() {
    let mut f = Facts { left_ago_s: Some(11_520), ..lost() };
    own_disk(&mut f, "Outdated");
    let expected = "\
what is true now
  record  epoch 12, generation 4, serving(nas1), current nas1
  nas2    standby, gate shut, Secondary, Connecting, disks 0:Outdated/DUnknown
          volume 0: data 0000000000000004, before that 0000000000000002
  nas1    its nasd does not answer: timed out; no sign of it in the coordinator or on the wire
          volume 0: the replica on nas2 is NOT of the generation that the record names: it is older, or foreign (0000000000000006)

what may be lost
  every write that was acknowledged since nas2 left the current set, 3 h 12 min ago: only nas1 has those
  the openings of vms that the volume here does not know: the record counts 4, any older marker is accepted
  clients that held such data in memory may see older content, or errors
  should nas1 run and serve unseen, both nodes would write: switch it off first

what will be done
  the record becomes taking(nas2) in epoch 13, with nas2 alone current
  DRBD is told to take the disks of nas2 for good (primary --force r0)
  nasd then opens vms here, and nas1 resynchronises when it is back
";
    assert_eq!(text::explain(What::OpenHere, &f, &judge(What::OpenHere, &f)), expected);
    let told = text::explain(What::DiscardMine, &parted(), &judge(What::DiscardMine, &parted()));
    assert!(told.contains("nas2 and nas1 are of the same generation"), "{told}");
    assert!(told.contains("drbdadm connect --discard-my-data r0"), "{told}");
}
