//! What the operator reads before deciding: what is true, what may be lost, what to do by hand. Pure.
//!
//! Calm, complete and short: every line is a fact of [`Facts`] or a consequence of one.

use std::fmt::Write as _;

use nasd_proto::recover_request::What;

use super::execute;
use super::facts::{Facts, Heard};
use super::plan::Verdict;
use crate::api::status::ServiceStatus;
use crate::core::record::{DataUuid, Record};

/// The whole explanation; lines end with `\n`.
#[must_use]
pub fn explain(what: What, f: &Facts, verdict: &Verdict) -> String {
    let mut out = truth(f);
    section(&mut out, "what may be lost", &losses(what, f));
    if what == What::EmergencyStart && f.coordinator.known().is_none() {
        section(&mut out, "by hand", &by_hand(f));
    }
    match verdict {
        Verdict::Ask { force, .. } => {
            section(&mut out, "what will be done", &deeds(what, f, *force))
        }
        Verdict::No { why, instead } => {
            section(&mut out, "not possible now", &[why.clone(), instead.clone()]);
        }
    }
    out
}

fn section(out: &mut String, head: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(out, "\n{head}");
    for line in lines {
        let _ = writeln!(out, "  {line}");
    }
}

fn truth(f: &Facts) -> String {
    let mut rows = vec![("record".to_owned(), stored(f))];
    match &f.last_seen {
        Heard::Known(Some(seen)) if Some(seen) != stored_record(f) => {
            rows.push(("seen last".into(), format!("{} (on this node's disk)", record(seen))));
        }
        Heard::Known(_) => {}
        Heard::Unknown(why) => rows.push(("seen last".into(), format!("not known: {why}"))),
    }
    rows.extend(node(&f.node, &f.here, None));
    if f.marked {
        let failed = "a disk here has failed, and has not been seen whole since";
        rows.push((String::new(), failed.to_owned()));
    }
    rows.extend(node(&f.peer, &f.there, f.sign));
    rows.extend(generations(f).into_iter().map(|line| (String::new(), line)));
    let width = rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
    let mut out = "what is true now\n".to_owned();
    for (label, line) in rows {
        let _ = writeln!(out, "  {label:<width$}  {line}");
    }
    out
}

fn stored_record(f: &Facts) -> Option<&Record> {
    f.coordinator.known()?.as_ref().map(|s| &s.record)
}

fn stored(f: &Facts) -> String {
    match &f.coordinator {
        Heard::Known(Some(s)) => record(&s.record),
        Heard::Known(None) => format!("none: {} has no record of this service", f.coordinator_kind),
        Heard::Unknown(why) => format!("not known: {why}"),
    }
}

fn record(r: &Record) -> String {
    let current: Vec<&str> = r.current.iter().map(|n| n.0.as_str()).collect();
    let hold = r.hold.as_ref().map(|by| format!(", held by {by}")).unwrap_or_default();
    let (epoch, generation, phase) = (r.epoch, r.generation, &r.phase);
    format!("epoch {epoch}, generation {generation}, {phase}, current {}{hold}", current.join(" "))
}

/// One node: its stage, its replica, the generations of its volumes.
fn node(
    name: &str,
    status: &Heard<ServiceStatus>,
    sign: Option<&'static str>,
) -> Vec<(String, String)> {
    let status = match status {
        Heard::Known(status) => status,
        Heard::Unknown(why) => {
            let also = match sign {
                Some("nothing") => "; no sign of it in the coordinator or on the wire",
                Some("host-only") => "; its kernel answers on the wire, so it is not switched off",
                Some("alive") => "; it answers in the coordinator",
                _ => "",
            };
            return vec![(name.to_owned(), format!("{why}{also}"))];
        }
    };
    let gate = if status.gate_open { "gate open" } else { "gate shut" };
    let mut first = format!("{}, {gate}", status.stage);
    if let Some(drbd) = &status.drbd {
        let disks: Vec<String> =
            drbd.disks.iter().map(|(v, (own, peer))| format!("{v}:{own}/{peer}")).collect();
        let (role, connection) = (&drbd.role, &drbd.connection);
        let _ = write!(first, ", {role}, {connection}, disks {}", disks.join(" "));
    } else {
        first.push_str(", DRBD not known");
    }
    let mut rows = vec![(name.to_owned(), first)];
    for (volume, uuid) in &status.data_uuid {
        let past = status.uuid_history.get(volume).map(Vec::as_slice).unwrap_or_default();
        let past: Vec<String> = past.iter().take(2).map(ToString::to_string).collect();
        let before = if past.is_empty() {
            String::new()
        } else {
            format!(", before that {}", past.join(" "))
        };
        rows.push((String::new(), format!("volume {volume}: data {uuid}{before}")));
    }
    if let Some(problem) = &status.problem {
        rows.push((String::new(), problem.clone()));
    }
    rows
}

/// How two generations of a volume stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kin {
    Same,
    /// The first descends from the second: it has all of it.
    Newer,
    Older,
    Parted,
}

fn kin(mine: DataUuid, past: &[DataUuid], theirs: DataUuid, their_past: &[DataUuid]) -> Kin {
    if mine == theirs {
        Kin::Same
    } else if past.contains(&theirs) {
        Kin::Newer
    } else if their_past.contains(&mine) {
        Kin::Older
    } else {
        Kin::Parted
    }
}

/// The replica here against the record's generation and against the other replica, volume by volume.
fn generations(f: &Facts) -> Vec<String> {
    let Some(here) = f.here.known() else { return Vec::new() };
    let (node, peer) = (&f.node, &f.peer);
    let past = |s: &ServiceStatus, v: u16| s.uuid_history.get(&v).cloned().unwrap_or_default();
    let mut out = Vec::new();
    for (volume, mine) in &here.data_uuid {
        let before = past(here, *volume);
        let recorded = stored_record(f).and_then(|r| r.data_uuid.get(volume).copied());
        if let Some(recorded) = recorded {
            let told = match kin(*mine, &before, recorded, &[]) {
                Kin::Same => "is of the generation that the record names",
                Kin::Newer => "descends from the generation that the record names",
                Kin::Older | Kin::Parted => {
                    "is NOT of the generation that the record names: it is older, or foreign"
                }
            };
            out.push(format!("volume {volume}: the replica on {node} {told} ({recorded})"));
        }
        let other =
            f.there.known().and_then(|s| Some((*s.data_uuid.get(volume)?, past(s, *volume))));
        if let Some((theirs, their_past)) = other {
            let told = match kin(*mine, &before, theirs, &their_past) {
                Kin::Same => format!("{node} and {peer} are of the same generation"),
                Kin::Newer => format!("{node} descends from {peer}: it has what {peer} has"),
                Kin::Older => {
                    format!("{peer} descends from {node}: it has what {node} has, and more")
                }
                Kin::Parted => {
                    format!("{node} and {peer} have parted: each may hold writes of its own")
                }
            };
            out.push(format!("volume {volume}: {told}"));
        }
    }
    out
}

fn losses(what: What, f: &Facts) -> Vec<String> {
    let (service, node, peer) = (&f.service, &f.node, &f.peer);
    match what {
        What::OpenHere | What::EmergencyStart => {
            let mut lines = Vec::new();
            let known = stored_record(f).or_else(|| f.last_seen.known()?.as_ref());
            match known {
                Some(r) if r.current.iter().any(|n| n.0 == *node) => lines.push(format!(
                    "{node} is in the current set of epoch {}: what was acknowledged until then is here",
                    r.epoch
                )),
                Some(_) => {
                    let ago = f.left_ago_s.map(|s| format!(", {} ago", span(s)));
                    lines.push(format!(
                        "every write that was acknowledged since {node} left the current set{}: only {peer} has those",
                        ago.unwrap_or_default()
                    ));
                }
                None => lines.push("nobody can say: no record is known".into()),
            }
            if what == What::EmergencyStart {
                lines.push(format!(
                    "had {peer} gone on alone since, {node} may not know of it: what was acknowledged there would be lost"
                ));
            }
            lines.push(if what == What::OpenHere && execute::accepts(f).is_some() {
                format!(
                    "the openings of {service} that the volume here does not know: the record counts {}, any older marker is accepted",
                    f.newest().1
                )
            } else {
                format!(
                    "had {peer} opened {service} again since, nasd here stops at the older marker on the volume"
                )
            });
            lines.push(
                "clients that held such data in memory may see older content, or errors".into(),
            );
            lines.push(format!(
                "should {peer} run and serve unseen, both nodes would write: switch it off first"
            ));
            lines
        }
        What::DiscardMine => vec![
            format!(
                "every write on {node} since the nodes parted; {service} goes on with the data of {peer}"
            ),
            format!("until the resynchronisation has ended, {peer} holds the only good replica"),
        ],
        What::Nothing => Vec::new(),
    }
}

fn deeds(what: What, f: &Facts, force: bool) -> Vec<String> {
    let (service, node, peer) = (&f.service, &f.node, &f.peer);
    match what {
        What::OpenHere => {
            let epoch = f.newest().0 + 1;
            let mut lines = vec![format!(
                "the record becomes taking({node}) in epoch {epoch}, with {node} alone current"
            )];
            if force {
                lines.push(format!(
                    "DRBD is told to take the disks of {node} for good (primary --force {})",
                    f.resource
                ));
            }
            lines.push(format!(
                "nasd then opens {service} here, and {peer} resynchronises when it is back"
            ));
            lines
        }
        What::DiscardMine => vec![
            format!("drbdadm disconnect {}", f.resource),
            format!("drbdadm connect --discard-my-data {}", f.resource),
        ],
        What::EmergencyStart => {
            let epoch = f.last_seen.known().and_then(Option::as_ref).map_or(0, |r| r.epoch);
            vec![
                format!(
                    "{node} goes by the last record that it saw, epoch {epoch}, as if it had taken {service} over"
                ),
                "DRBD's connection is cut by force; nasd then opens as in a takeover".into(),
                "the right has no end, over restarts too: nobody else can be asked".into(),
                format!(
                    "when a majority is back: the record is written for {node} if nobody has changed it; if somebody has, {node} closes"
                ),
            ]
        }
        What::Nothing => Vec::new(),
    }
}

/// `47 s`, `12 min`, `3 h 12 min`, `2 days 3 h`.
fn span(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{minutes} min"),
        7200..172_800 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{} days {} h", hours / 24, hours % 24),
    }
}

/// A coordinator without a majority is made whole by its own means; nasd then goes on by itself.
fn by_hand(f: &Facts) -> Vec<String> {
    let (service, node, peer) = (&f.service, &f.node, &f.peer);
    vec![
        format!("1. if {service} is served somewhere, leave it: an owner that serves goes on"),
        "2. bring members of etcd back until two of three run; that is all in most cases".into(),
        format!(
            "3. if they are lost: switch {peer} off if it does not answer, then start one member that"
        ),
        "   has its data with --force-new-cluster, once; it keeps the records".into(),
        format!(
            "4. nasctl status on {node}: it opens by itself if it is current; if not: nasctl recover {service}"
        ),
        "5. add the other members again, one by one: etcdctl member add".into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time_are_short() {
        let told: Vec<_> = [47, 720, 11_520, 183_600].map(span).into();
        assert_eq!(told, ["47 s", "12 min", "3 h 12 min", "2 days 3 h"]);
    }

    #[test]
    fn s2_generations_are_compared_by_descent() {
        let u = DataUuid::new;
        assert_eq!(kin(u(4), &[], u(5), &[]), Kin::Same, "the primary bit is no difference");
        assert_eq!(kin(u(6), &[u(4)], u(4), &[]), Kin::Newer);
        assert_eq!(kin(u(4), &[], u(6), &[u(4)]), Kin::Older);
        assert_eq!(kin(u(6), &[u(4)], u(8), &[u(4)]), Kin::Parted);
    }
}
