//! What the status document tells of hypervisors. Owns names and units of these fields.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use nasd_proto::HostStall;

use super::hosts::{Host, Hosts};
use crate::core::view::Now;

/// Hypervisors of one service, as one node knows them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Hypervisors {
    /// Hosts that have the service mounted, or had when they were heard last.
    pub hosts: Vec<Hypervisor>,
    /// What the last move cost, as hosts have measured it.
    pub stalls: Vec<Stall>,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hypervisor {
    /// Its name.
    pub host: String,
    /// Its agent is attached to this node and has spoken within the last 15 s.
    pub attached: bool,
    /// Milliseconds since it last spoke.
    pub heard_ms: u64,
    /// The agent's version.
    #[serde(default)]
    pub version: String,
    /// Its mounts of the service.
    pub mounts: Vec<Mount>,
}

/// One host, whatever it has mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownHost {
    /// Its name.
    pub host: String,
    /// Its agent is attached to this node and has spoken within the last 15 s.
    pub attached: bool,
    /// Milliseconds since it last spoke.
    pub heard_ms: u64,
    /// Services that it has mounted, or had when it was heard last.
    pub services: Vec<String>,
}

/// One mount of the service on a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    /// Mount point.
    pub mount: String,
    /// `normal`, `announced`, `moving`, `io-back`, `opens-back`, `verified` or `failed-…`, in the agent's words.
    pub phase: String,
    /// Number of the move that the phase belongs to; 0: none.
    pub move_id: u64,
    /// Milliseconds that a stall may last before a guest loses its lease; absent: no leases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin_ms: Option<u64>,
    /// Running guests with a disk there.
    pub guests: u32,
    /// Migrations that run.
    pub migrations: u32,
    /// Problems in words; empty: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// What the last move cost one guest, or one mount as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stall {
    /// The host that has measured it.
    pub host: String,
    /// Number of the move; 0: the host knew of none.
    pub move_id: u64,
    /// Mount point.
    pub mount: String,
    /// The guest; absent: the mount as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
    /// Milliseconds.
    pub stall_ms: u64,
    /// Unix time of its end, milliseconds.
    pub ended_unix_ms: u64,
}

/// A report in this document's form.
#[must_use]
pub fn stall(told: &HostStall) -> Stall {
    let report = told.stall.clone().unwrap_or_default();
    Stall {
        host: told.host.clone(),
        move_id: report.move_id,
        mount: report.mount,
        guest: (!report.guest.is_empty()).then_some(report.guest),
        stall_ms: report.stall_ms,
        ended_unix_ms: report.ended_unix_ms,
    }
}

fn heard_ms(host: &Host, now: Now) -> u64 {
    u64::try_from(now.saturating_sub(host.spoke).as_millis()).unwrap_or(u64::MAX)
}

/// What is known of one host.
pub(super) fn known(name: &str, host: &Host, now: Now) -> KnownHost {
    let mounted = host.mounts.iter().flatten().map(|m| m.service.clone());
    let services: BTreeSet<String> = mounted.collect();
    KnownHost {
        host: name.to_owned(),
        attached: host.answers(now),
        heard_ms: heard_ms(host, now),
        services: services.into_iter().collect(),
    }
}

/// What is known of one service.
pub(super) fn of_service(
    service: &str,
    now: Now,
    hosts: &Hosts,
    stalls: &[HostStall],
) -> Hypervisors {
    let seen = hosts.concerned(service, now).map(|(host, known)| Hypervisor {
        host: host.to_owned(),
        attached: known.answers(now),
        heard_ms: heard_ms(known, now),
        version: known.version.clone(),
        mounts: known.mounts_of(service).map(mount).collect(),
    });
    Hypervisors { hosts: seen.collect(), stalls: stalls.iter().map(stall).collect() }
}

fn mount(m: &nasd_proto::MountState) -> Mount {
    Mount {
        mount: m.mount.clone(),
        phase: m.phase.clone(),
        move_id: m.move_id,
        margin_ms: m.margin_ms,
        guests: m.guests,
        migrations: m.migrations,
        problems: m.problems.clone(),
    }
}
