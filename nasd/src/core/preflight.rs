//! Pre-flight of a planned move: from gathered facts to findings with evidence and remedy.
//!
//! Owns the list of refusals. Has no effect whatever; a fact that could not be read refuses (S12).

use super::machine::Stage;
use super::record::{NodeName, Phase, Record};
use super::view::{DrbdView, Role};

/// One reason against (or a warning about) a move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Stable name for scripts.
    pub code: &'static str,
    /// Refuses the move; otherwise it only warns.
    pub refuses: bool,
    /// What was seen.
    pub evidence: String,
    /// What to do.
    pub remedy: String,
}

impl Finding {
    /// A finding that refuses the move.
    #[must_use]
    pub fn refusal(
        code: &'static str,
        evidence: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { code, refuses: true, evidence: evidence.into(), remedy: remedy.into() }
    }

    /// A finding that only warns.
    #[must_use]
    pub fn warning(
        code: &'static str,
        evidence: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { refuses: false, ..Self::refusal(code, evidence, remedy) }
    }
}

/// What the owner knows by itself.
#[derive(Debug, Clone)]
pub struct OwnerFacts<'a> {
    /// This node.
    pub me: &'a NodeName,
    /// The target.
    pub to: &'a NodeName,
    /// This node's stage.
    pub stage: &'a Stage,
    /// The record, freshly read; `None` when it could not be read.
    pub record: Option<&'a Record>,
    /// DRBD here.
    pub drbd: &'a DrbdView,
    /// Names of DRBD options that break S1, with expected and actual value.
    pub violations: &'a [String],
    /// Processes that hold a file of the volume, as `name (pid)`; `None`: could not be determined.
    pub holders: Option<&'a [String]>,
    /// Volumes whose marker would not be accepted at the next opening, with the way back.
    pub unfit_markers: &'a [String],
    /// Volumes whose marker could not be looked at.
    pub unknown_markers: &'a [String],
}

/// The owner's half of the pre-flight.
#[must_use]
pub fn judge_owner(facts: &OwnerFacts<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    judge_authority(facts, &mut found);
    judge_drbd(facts, &mut found);
    found.extend(facts.violations.iter().map(|v| violation(facts.me, v)));
    found.extend(facts.unfit_markers.iter().map(|m| wrong_marker(m)));
    found.extend(facts.unknown_markers.iter().map(|m| unknown_marker(m)));
    match facts.holders {
        None => found.push(Finding::refusal(
            "holders-unknown",
            "the processes that use the volume could not be listed",
            "see the journal of nasd on the owner; nasd-io may be hanging on the volume",
        )),
        Some([]) => {}
        Some(holders) => found.push(Finding::refusal(
            "volume-busy",
            format!("{} on {} use the volume", holders.join(", "), facts.me),
            "stop them, or let them leave the file system; it cannot be unmounted under them",
        )),
    }
    found
}

/// A DRBD option that breaks S1, as a finding.
#[must_use]
pub fn violation(node: &NodeName, what: &str) -> Finding {
    Finding::refusal(
        "drbd-options",
        format!("{what} on {node}"),
        "correct the resource file on both nodes and run drbdadm adjust",
    )
}

fn wrong_marker(what: &str) -> Finding {
    Finding::refusal(
        "wrong-marker",
        format!("the volume would not be opened again: {what}"),
        "mend it while the service runs: after a move or a failover neither node would open it",
    )
}

fn unknown_marker(what: &str) -> Finding {
    Finding::refusal(
        "marker-unknown",
        format!("the volume's marker could not be read: {what}"),
        "see the journal of nasd on the owner; nasd-io may be hanging on the volume",
    )
}

fn judge_authority(facts: &OwnerFacts<'_>, found: &mut Vec<Finding>) {
    let Some(record) = facts.record else {
        found.push(Finding::refusal(
            "no-record",
            "the record could not be read",
            "bring the coordinator back; a move changes the record before it cuts anything",
        ));
        return;
    };
    let serves = matches!(&record.phase, Phase::Serving { owner } if owner == facts.me);
    if !serves || *facts.stage != Stage::Serving {
        found.push(Finding::refusal(
            "not-serving",
            format!("{} is {}; the record says {}", facts.me, facts.stage.name(), record.phase),
            "wait until the service is settled (nasctl status), then try again",
        ));
    }
    if facts.to == facts.me {
        found.push(Finding::refusal(
            "already-there",
            format!("{} serves already", facts.me),
            "nothing to do",
        ));
    }
    if !record.current.contains(facts.to) {
        found.push(Finding::refusal(
            "target-not-current",
            format!("{} may miss acknowledged writes (it is not in the current set)", facts.to),
            "let DRBD connect and resynchronise; nasd adds the node by itself",
        ));
    }
}

fn judge_drbd(facts: &OwnerFacts<'_>, found: &mut Vec<Finding>) {
    let drbd = facts.drbd;
    if !drbd.connected {
        found.push(Finding::refusal(
            "drbd-disconnected",
            "DRBD is not connected",
            "check the replication link (drbdadm status on both nodes)",
        ));
        return;
    }
    if drbd.resync {
        found.push(Finding::refusal(
            "resync-running",
            "a resynchronisation is running",
            "wait for it to end (nasctl status shows when)",
        ));
    }
    if !drbd.local_up_to_date {
        found.push(Finding::refusal(
            "owner-disk",
            format!("a disk of {} is not UpToDate", facts.me),
            "replace or re-attach the disk first",
        ));
    }
    if !drbd.peer_up_to_date {
        found.push(Finding::refusal(
            "target-disk",
            format!("a disk of {} is not UpToDate", facts.to),
            "attach the disk on the target (drbdadm attach) and let it resynchronise",
        ));
    }
    if drbd.peer_role == Role::Primary {
        found.push(Finding::refusal(
            "two-primaries",
            format!("{} is Primary as well", facts.to),
            "one node must be demoted by hand; see drbdadm status",
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn codes(stage: &Stage, drbd: &DrbdView, holders: Option<&[String]>) -> Vec<&'static str> {
        codes_with(stage, drbd, holders, &[], &[])
    }

    fn codes_with(
        stage: &Stage,
        drbd: &DrbdView,
        holders: Option<&[String]>,
        unfit_markers: &[String],
        unknown_markers: &[String],
    ) -> Vec<&'static str> {
        let (a, b) = (NodeName::from("a"), NodeName::from("b"));
        let both = BTreeSet::from([a.clone(), b.clone()]);
        let record = Record::first(both, BTreeMap::new()).start(&a).unwrap();
        let facts = OwnerFacts {
            me: &a,
            to: &b,
            stage,
            record: Some(&record),
            drbd,
            violations: &[],
            holders,
            unfit_markers,
            unknown_markers,
        };
        judge_owner(&facts).into_iter().map(|f| f.code).collect()
    }

    fn healthy() -> DrbdView {
        DrbdView {
            role: Role::Primary,
            connected: true,
            peer_role: Role::Secondary,
            local_up_to_date: true,
            peer_up_to_date: true,
            ..DrbdView::default()
        }
    }

    #[test]
    fn a_healthy_pair_has_no_finding() {
        assert!(codes(&Stage::Serving, &healthy(), Some(&[])).is_empty());
    }

    #[test]
    fn each_defect_has_its_own_name() {
        let busy = ["tail (7)".to_owned()];
        assert_eq!(codes(&Stage::Serving, &healthy(), Some(&busy)), ["volume-busy"]);
        assert_eq!(codes(&Stage::Serving, &healthy(), None), ["holders-unknown"]);
        assert_eq!(codes(&Stage::Waiting, &healthy(), Some(&[])), ["not-serving"]);
        let away = DrbdView { connected: false, ..healthy() };
        assert_eq!(codes(&Stage::Serving, &away, Some(&[])), ["drbd-disconnected"]);
        let diskless = DrbdView { peer_up_to_date: false, ..healthy() };
        assert_eq!(codes(&Stage::Serving, &diskless, Some(&[])), ["target-disk"]);
        let resync = DrbdView { resync: true, peer_up_to_date: false, ..healthy() };
        assert_eq!(codes(&Stage::Serving, &resync, Some(&[])), ["resync-running", "target-disk"]);
        let what = ["/srv/v: no marker".to_owned()];
        let with =
            |unfit, unknown| codes_with(&Stage::Serving, &healthy(), Some(&[]), unfit, unknown);
        assert_eq!(with(&what, &[]), ["wrong-marker"]);
        assert_eq!(with(&[], &what), ["marker-unknown"]);
    }
}
