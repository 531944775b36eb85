//! What the agent answers on its socket: its status, and whether a guest's operation may begin.
//!
//! Keeps S11: an operation waits for every mount that one of its disks lies on.

use std::path::Path;
use std::time::Duration;

use super::agent::Agent;
use super::input::Output;
use super::tell::ms64;
use super::track::{Track, phase_name};
use crate::api;
use crate::core::Now;
use crate::core::phase::{Operation, Phase, Verdict};

impl Agent {
    /// Everything that is known.
    #[must_use]
    pub fn status(&self, now: Now) -> api::Status {
        api::Status {
            host: self.settings.host.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            up_s: now.as_secs(),
            nasds: self.nasds(now),
            libvirt: match &self.libvirt {
                None => Some("not asked yet".to_owned()),
                Some(answer) => answer.clone().err(),
            },
            mounts: self.tracks.values().map(|track| self.mount_status(now, track)).collect(),
            other_mounts: self.others.clone(),
            problems: self.problems(now),
        }
    }

    /// One line for the service manager.
    #[must_use]
    pub fn summary(&self, now: Now) -> String {
        let up = self.nodes.values().filter(|node| node.up.is_ok()).count();
        let rest = self.tracks.values().filter(|t| t.machine.phase() == Phase::Normal).count();
        let mounts = self.tracks.len();
        // In steps, so that the line does not change with every tick.
        let margins = self.tracks.keys().filter_map(|point| self.leases.margin(point, now));
        let margin = margins.min().map(|m| format!(", margin {} s", m.as_secs() / 10 * 10));
        let nodes = self.nodes.len();
        let margin = margin.unwrap_or_default();
        format!("{rest} of {mounts} mounts at rest, {up} of {nodes} nasds answer{margin}")
    }

    fn nasds(&self, now: Now) -> Vec<api::NasdStatus> {
        let of = |(name, node): (&String, &super::agent::Node)| api::NasdStatus {
            name: name.clone(),
            down: node.up.clone().err(),
            for_s: now.saturating_sub(node.since).as_secs(),
        };
        self.nodes.iter().map(of).collect()
    }

    fn mount_status(&self, now: Now, track: &Track) -> api::MountStatus {
        api::MountStatus {
            service: track.service.clone(),
            mount: track.point.clone(),
            phase: phase_name(track.machine.phase()).to_owned(),
            for_ms: ms64(now.saturating_sub(track.machine.since())),
            move_id: track.machine.move_id(),
            held: track.held,
            stalled_ms: track.stalled_for(now).map(ms64),
            margin_ms: self.leases.margin(&track.point, now).map(ms64),
            next_renewal_ms: self.leases.next_renewal(&track.point, now).map(ms64),
            guests: track.census.0,
            migrations: track.census.1,
            last_stalls: stalls(track),
            problems: track.problems(now),
        }
    }

    fn problems(&self, now: Now) -> Vec<String> {
        let mut problems: Vec<String> = Vec::new();
        let blind = self.blind.as_ref().map(|why| format!("the mounts cannot be seen: {why}"));
        problems.extend(blind);
        problems.extend(self.misread.iter().cloned());
        problems.extend(self.unheard.iter().cloned());
        if self.services.is_empty() {
            let words = "no service is known: name them in the configuration, or wait for a nasd";
            problems.push(words.to_owned());
        }
        let silent = !self.nodes.is_empty() && self.nodes.values().all(|node| node.up.is_err());
        if silent {
            let words = "no nasd answers: moves are seen only when the storage stalls";
            problems.push(words.to_owned());
        }
        problems.extend(self.leases.problems(now));
        problems
    }

    /// Answers the hook, and remembers which arrivals it holds back.
    pub fn asked(&mut self, now: Now, hook: &api::Hook) -> (api::Verdict, Vec<Output>) {
        let verdict = self.gate(now, hook);
        let waits = matches!(verdict, api::Verdict::Wait { .. });
        // libvirt asks twice for one that arrives: as a migration, and once more as a start.
        let arrives = matches!(hook.operation, api::Operation::Migrate | api::Operation::Start);
        let uuid = hook.uuid.as_deref().filter(|_| arrives);
        if let Some(uuid) = uuid {
            let uuid = uuid.to_ascii_lowercase();
            let on = |point: &Path| hook.disks.iter().any(|disk| disk.starts_with(point));
            for track in self.tracks.values_mut().filter(|track| on(&track.point)) {
                track.arrivals.asked(now, &uuid, waits);
            }
        }
        (verdict, self.finish(now))
    }

    /// Whether an operation may begin: the answer of the mount that says least.
    #[must_use]
    pub fn gate(&self, now: Now, hook: &api::Hook) -> api::Verdict {
        let on = |point: &Path| hook.disks.iter().any(|disk| disk.starts_with(point));
        let mounts = self.tracks.values().filter(|track| on(&track.point));
        let verdicts = mounts.map(|track| verdict(now, track, operation(hook.operation)));
        verdicts.max_by_key(strictness).unwrap_or(api::Verdict::Allow)
    }
}

fn stalls(track: &Track) -> Vec<api::StallStatus> {
    let Some(cost) = &track.cost else { return Vec::new() };
    let of = |guest: &str, stall: Duration| api::StallStatus {
        guest: guest.to_owned(),
        stall_ms: ms64(stall),
        move_id: cost.id,
    };
    let guests = cost.guests.iter().map(|guest| of(&guest.guest, guest.stall));
    std::iter::once(of("", cost.stall)).chain(guests).collect()
}

fn strictness(verdict: &api::Verdict) -> (u8, u64) {
    match verdict {
        api::Verdict::Allow => (0, 0),
        api::Verdict::Wait { wait_ms, .. } => (1, *wait_ms),
        api::Verdict::Refuse { .. } => (2, 0),
    }
}

fn verdict(now: Now, track: &Track, operation: Operation) -> api::Verdict {
    let reason = |phase| {
        let (mount, phase) = (track.point.display(), phase_name(phase));
        format!("storage below {mount} (service {}) is {phase}", track.service)
    };
    match track.machine.gate(now, operation) {
        Verdict::Permit => api::Verdict::Allow,
        Verdict::Delay { until, because } => api::Verdict::Wait {
            wait_ms: ms64(until.saturating_sub(now)).max(1),
            reason: reason(because),
        },
        Verdict::Refuse { because } => api::Verdict::Refuse { reason: reason(because) },
    }
}

fn operation(asked: api::Operation) -> Operation {
    match asked {
        api::Operation::Migrate => Operation::Migrate,
        api::Operation::Start => Operation::Start,
        api::Operation::Resume => Operation::Resume,
        api::Operation::Pause => Operation::Pause,
        api::Operation::BlockJob => Operation::BlockJob,
    }
}
