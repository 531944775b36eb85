//! Whether an operator may force a recovery, and which sentence must be typed for it. Pure.
//!
//! Keeps S3: nothing here happens by itself, and the sentence names service and node. Keeps S1 as far
//! as a person can override it: never while the other node is seen to serve or to be Primary. Unknown
//! is never permission (S12) where the answer can be had; a node that is dead cannot answer, and
//! saying so is what the sentence is for.

use nasd_proto::recover_request::What;

use super::facts::{Facts, Heard};
use crate::api::status::{DrbdStatus, ServiceStatus};

/// What may be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// With this sentence, typed.
    Ask {
        /// Letter by letter.
        sentence: String,
        /// DRBD must be made to take an old or half-synchronised disk for good.
        force: bool,
    },
    /// Not now.
    No {
        /// Why not.
        why: String,
        /// What to do instead.
        instead: String,
    },
}

impl Verdict {
    fn no(why: impl Into<String>, instead: impl Into<String>) -> Self {
        Self::No { why: why.into(), instead: instead.into() }
    }

    /// The sentence; empty when nothing may be done.
    #[must_use]
    pub fn sentence(&self) -> &str {
        match self {
            Self::Ask { sentence, .. } => sentence,
            Self::No { .. } => "",
        }
    }
}

/// Judges a request by the facts.
#[must_use]
pub fn judge(what: What, f: &Facts) -> Verdict {
    match what {
        What::OpenHere => open_here(f),
        What::DiscardMine => discard_mine(f),
        What::EmergencyStart => emergency_start(f),
        What::Nothing => Verdict::no("nothing was asked for", "see nasctl --help"),
    }
}

/// What the operator types before DRBD is forced must end like this; the DRBD binding checks it.
#[must_use]
pub fn force_phrase(resource: &str) -> String {
    format!("lose data of {resource}")
}

fn open_here(f: &Facts) -> Verdict {
    let refusal = not_open_by_coordinator(f)
        .or_else(|| not_open_by_peer(f))
        .or_else(|| not_open_by_this_node(f));
    if let Some(refusal) = refusal {
        return refusal;
    }
    let (service, node, peer) = (&f.service, &f.node, &f.peer);
    let Some(drbd) = f.here.known().and_then(|s| s.drbd.as_ref()) else {
        return no_drbd(f);
    };
    let force = f.marked || drbd.disks.values().any(|(own, _)| !opens_without_force(own));
    let sentence = if force {
        format!("open {service} on {node} and {}", force_phrase(&f.resource))
    } else {
        format!("open {service} on {node} and lose what only {peer} has")
    };
    Verdict::Ask { sentence, force }
}

fn no_drbd(f: &Facts) -> Verdict {
    Verdict::no(
        format!("the state of DRBD on {} is not known", f.node),
        format!("see: drbdadm status {}", f.resource),
    )
}

/// A disk that DRBD promotes when its peer is fenced.
fn opens_without_force(disk: &str) -> bool {
    matches!(disk, "UpToDate" | "Consistent")
}

fn not_open_by_coordinator(f: &Facts) -> Option<Verdict> {
    if let Heard::Unknown(why) = &f.coordinator {
        return Some(Verdict::no(
            format!(
                "the record cannot be read from {} ({why}), and so not be changed",
                f.coordinator_kind
            ),
            format!(
                "bring a majority of its members back; if it is lost for good: nasctl emergency-start {}",
                f.service
            ),
        ));
    }
    if let Heard::Unknown(why) = &f.last_seen {
        return Some(Verdict::no(
            format!("this node's memory of the record cannot be used: {why}"),
            "nasd would believe no record; move that file away, then try again",
        ));
    }
    None
}

/// S1: the other node must not be seen to serve, nor to be able to.
fn not_open_by_peer(f: &Facts) -> Option<Verdict> {
    let (service, node, peer) = (&f.service, &f.node, &f.peer);
    if f.sign == Some("alive") {
        return Some(Verdict::no(
            format!("{peer} lives: it answers in the coordinator, and may serve {service}"),
            format!("repair the network between {node} and {peer}, or switch {peer} off"),
        ));
    }
    if let Some(there) = f.there.known() {
        if there.gate_open {
            let instead = format!("to move it: nasctl switchover {service} --to {node}");
            return Some(Verdict::no(format!("{peer} serves {service}"), instead));
        }
        let role = there.drbd.as_ref().map(|d| d.role.as_str());
        if role != Some("Secondary") {
            let role = role.unwrap_or("of unknown role");
            return Some(Verdict::no(
                format!("{} is {role} on {peer}, which may still write", f.resource),
                format!("see nasctl status on {peer}; it must be Secondary, or {peer} off"),
            ));
        }
        if there.drbd.as_ref().is_some_and(all_up_to_date) && !here_is_up_to_date(f) {
            return Some(Verdict::no(
                format!("{peer} is up and its disks are UpToDate; those here are not"),
                format!(
                    "let it resynchronise, or open it there: nasctl recover {service}, on {peer}"
                ),
            ));
        }
    }
    let here = f.here.known()?.drbd.as_ref()?;
    (here.peer_role == "Primary").then(|| {
        Verdict::no(
            format!("DRBD is connected, and {peer} is Primary"),
            format!("to move it: nasctl switchover {service} --to {node}"),
        )
    })
}

fn all_up_to_date(drbd: &DrbdStatus) -> bool {
    !drbd.disks.is_empty() && drbd.disks.values().all(|(own, _)| own == "UpToDate")
}

fn here_is_up_to_date(f: &Facts) -> bool {
    f.here.known().and_then(|s| s.drbd.as_ref()).is_some_and(all_up_to_date)
}

fn not_open_by_this_node(f: &Facts) -> Option<Verdict> {
    let (service, node) = (&f.service, &f.node);
    let here = match &f.here {
        Heard::Known(here) => here,
        Heard::Unknown(why) => {
            return Some(Verdict::no(
                format!("{node} does not know its own state: {why}"),
                "see: journalctl -u nasd",
            ));
        }
    };
    if !matches!(here.stage.as_str(), "standby" | "waiting") {
        return Some(Verdict::no(
            format!("{service} is {} on {node}", here.stage),
            "wait until that has ended, then look again: nasctl status",
        ));
    }
    if let Some(refusal) = takeover_would_do(f, here) {
        return Some(refusal);
    }
    let Some(drbd) = &here.drbd else { return Some(no_drbd(f)) };
    let unusable =
        |own: &str| !opens_without_force(own) && !matches!(own, "Outdated" | "Inconsistent");
    let bad = drbd.disks.iter().find(|(_, (own, _))| unusable(own));
    if drbd.disks.is_empty() || bad.is_some() {
        let what = bad.map_or_else(
            || format!("{} has no volume on {node}", f.resource),
            |(volume, (own, _))| format!("the disk of volume {volume} on {node} is {own}"),
        );
        return Some(Verdict::no(what, format!("attach it: drbdadm attach {}", f.resource)));
    }
    None
}

/// A current node loses nothing by taking over, so it must not be asked to risk anything. It is sent
/// there only while nothing stands against it: a takeover that nasd would refuse is no way out.
fn takeover_would_do(f: &Facts, here: &ServiceStatus) -> Option<Verdict> {
    let record = &f.coordinator.known()?.as_ref()?.record;
    let believed = here.record.as_ref() == Some(record);
    let others = record.authority().is_some_and(|a| a.0 != f.node);
    let current = record.current.iter().any(|n| n.0 == f.node);
    let held = record.hold.is_some(); // by an operator, who can let go
    let ready = here.failover.is_empty() || held;
    let first = if held { format!("nasctl unhold {}, then ", f.service) } else { String::new() };
    (believed && others && current && ready && here_is_up_to_date(f)).then(|| {
        Verdict::no(
            format!(
                "{} is current: it can take {} over without losing anything",
                f.node, f.service
            ),
            format!("{first}nasctl takeover {}", f.service),
        )
    })
}

fn discard_mine(f: &Facts) -> Verdict {
    let (service, node, peer) = (&f.service, &f.node, &f.peer);
    let Some(drbd) = f.here.known().and_then(|s| s.drbd.as_ref()) else {
        return no_drbd(f);
    };
    if drbd.role != "Secondary" {
        return Verdict::no(
            format!("{} is {} on {node}", f.resource, drbd.role),
            format!(
                "only a Secondary may throw its data away; run this on the other node, or move {service} first"
            ),
        );
    }
    if drbd.connection == "Connected" {
        return Verdict::no(
            "the replicas are connected: there is no split brain",
            "see nasctl status",
        );
    }
    let record = match &f.coordinator {
        Heard::Known(Some(stored)) => &stored.record,
        Heard::Known(None) => {
            return Verdict::no(
                "there is no record, so nobody knows whose data counts",
                "see nasctl status",
            );
        }
        Heard::Unknown(why) => {
            let why = format!("the record cannot be read from {} ({why})", f.coordinator_kind);
            return Verdict::no(why, "the record must say whose data counts; bring it back first");
        }
    };
    if record.authority().is_some_and(|a| a.0 == *node) {
        return Verdict::no(
            format!(
                "the record gives {service} to {node} ({}): its data is what counts",
                record.phase
            ),
            format!("on {peer}: nasctl split-brain {service} --discard-mine"),
        );
    }
    if !record.current.iter().any(|n| n.0 == *peer) {
        let why = format!("{peer} is not in the current set of the record either");
        return Verdict::no(
            why,
            format!("nasctl recover {service}, on the node whose data shall count"),
        );
    }
    match &f.there {
        Heard::Known(there) if there.drbd.as_ref().is_some_and(all_up_to_date) => Verdict::Ask {
            sentence: format!("discard what only {node} has of {service}"),
            force: true,
        },
        Heard::Known(_) => {
            let why =
                format!("the disks on {peer} are not all UpToDate: there is nothing to copy from");
            Verdict::no(why, format!("see on {peer}: drbdadm status {}", f.resource))
        }
        Heard::Unknown(why) => {
            let why = format!("whether {peer} holds good data is not known: {why}");
            Verdict::no(why, format!("start nasd on {peer} first"))
        }
    }
}

fn emergency_start(f: &Facts) -> Verdict {
    if f.coordinator.known().is_some() {
        return Verdict::no(
            format!("{} answers, so nothing has to be started without it", f.coordinator_kind),
            format!(
                "nasctl status says what keeps {0}; if it is lost: nasctl recover {0}",
                f.service
            ),
        );
    }
    let refusal = no_emergency_by_record(f).or_else(|| no_emergency_by_peer(f));
    if let Some(refusal) = refusal.or_else(|| no_emergency_by_this_node(f)) {
        return refusal;
    }
    let (service, node, peer) = (&f.service, &f.node, &f.peer);
    Verdict::Ask {
        sentence: format!("start {service} on {node} and keep {peer} off"),
        force: false,
    }
}

fn no_emergency_by_record(f: &Facts) -> Option<Verdict> {
    let last = match &f.last_seen {
        Heard::Known(Some(last)) => last,
        Heard::Known(None) => {
            let why = format!("{} has never seen a record of {}", f.node, f.service);
            return Some(Verdict::no(why, "bring the coordinator back first"));
        }
        Heard::Unknown(why) => {
            let why = format!("this node's memory of the record cannot be used: {why}");
            return Some(Verdict::no(why, "bring the coordinator back first"));
        }
    };
    let current: Vec<&str> = last.current.iter().map(|n| n.0.as_str()).collect();
    (!current.contains(&f.node.as_str())).then(|| {
        let current = current.join(" and ");
        Verdict::no(
            format!(
                "the replica of {} may miss acknowledged writes: only {current} has them all",
                f.node
            ),
            format!("nasctl emergency-start {}, on {current}", f.service),
        )
    })
}

/// S1: without a coordinator the other node's silence is all there is.
fn no_emergency_by_peer(f: &Facts) -> Option<Verdict> {
    let (service, peer) = (&f.service, &f.peer);
    if f.there.known().is_some() || f.sign == Some("alive") {
        return Some(Verdict::no(
            format!(
                "nasd on {peer} answers: both nodes live, and each must know what the other does"
            ),
            format!(
                "bring the coordinator back; to give {peer} up: switch it off, then again: nasctl emergency-start {service}"
            ),
        ));
    }
    let drbd = f.here.known()?.drbd.as_ref()?;
    (drbd.connection == "Connected" && drbd.peer_role != "Secondary").then(|| {
        Verdict::no(
            format!("DRBD is connected, and {peer} is {}", drbd.peer_role),
            format!("it may write; switch {peer} off first"),
        )
    })
}

fn no_emergency_by_this_node(f: &Facts) -> Option<Verdict> {
    let (service, node) = (&f.service, &f.node);
    let here = match &f.here {
        Heard::Known(here) => here,
        Heard::Unknown(why) => {
            let why = format!("{node} does not know its own state: {why}");
            return Some(Verdict::no(why, "see: journalctl -u nasd"));
        }
    };
    if here.gate_open {
        let why = format!("{service} is served by {node}, and goes on");
        return Some(Verdict::no(why, "see nasctl status"));
    }
    let idle = ["standby", "waiting", "serving", "handed-over", "returning"];
    if !idle.contains(&here.stage.as_str()) || here.emergency.is_some() {
        return Some(Verdict::no(
            format!("{service} is {} on {node}", here.stage),
            "wait until that has ended, then look again: nasctl status",
        ));
    }
    if f.marked {
        return Some(Verdict::no(
            format!("a disk of {node} has failed, and has not been seen whole since"),
            "bring the coordinator back first",
        ));
    }
    let Some(drbd) = &here.drbd else { return Some(no_drbd(f)) };
    let bad = drbd.disks.iter().find(|(_, (own, _))| !opens_without_force(own));
    (drbd.disks.is_empty() || bad.is_some()).then(|| {
        let what = bad.map_or_else(
            || format!("{} has no volume on {node}", f.resource),
            |(volume, (own, _))| format!("the disk of volume {volume} on {node} is {own}"),
        );
        Verdict::no(what, format!("see: drbdadm status {}", f.resource))
    })
}
