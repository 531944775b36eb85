//! What the agent hears of nasds and tells them: news in, state, readiness and stall reports out.
//!
//! Keeps S12: a mount that has not answered makes the host not ready, and a message that is not understood
//! changes nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nasd_proto as v1;
use v1::agent_message::Kind as Said;
use v1::agent_news::Kind as News;
use v1::move_news::What;

use super::agent::Agent;
use super::input::Output;
use super::moves::Move;
use super::track::{Track, phase_name};
use crate::config::Services;
use crate::core::Now;
use crate::core::phase::{Event, Phase};

/// Between two answers while arrivals are held back.
const HELD_AGAIN: Duration = Duration::from_secs(1);

impl Agent {
    pub(super) fn news(&mut self, now: Now, node: &str, news: News) {
        match news {
            News::Welcome(welcome) => self.welcomed(node, services(welcome)),
            News::Announce(announce) => self.announce(now, &announce),
            News::News(news) => self.move_news(now, &news),
        }
    }

    fn announce(&mut self, now: Now, announce: &v1::Announce) {
        let (service, id) = (&announce.service, announce.move_id);
        let lease = ms(announce.lease_ms).min(self.settings.timing.longest_lease);
        let outage = ms(announce.predicted_stall_ms);
        let until = now.saturating_add(lease);
        if let Err(known) = self.moves.announced(service, id, until, outage) {
            let reason = format!("move {id} is older than what this host knows ({known})");
            self.out.push(Output::Tell(Said::Readiness(v1::Readiness {
                service: service.clone(),
                move_id: id,
                reasons: vec![reason],
                ..v1::Readiness::default()
            })));
            return;
        }
        for mount in self.mounts_of(service) {
            self.event(now, &mount, Event::Announced { id, lease });
        }
        self.ask_ready();
    }

    fn move_news(&mut self, now: Now, news: &v1::MoveNews) {
        let (service, id) = (&news.service, news.move_id);
        let event = match What::try_from(news.what) {
            Ok(What::Cut) => {
                self.moves.cut(service, id, now);
                Event::CutBegun { id }
            }
            Ok(What::Opened) => {
                self.moves.over(service, id);
                Event::ServiceOpened { id }
            }
            Ok(What::Withdrawn) => {
                self.moves.over(service, id);
                Event::Withdrawn { id }
            }
            Ok(What::Unknown) | Err(_) => {
                tracing::warn!(service, id, what = news.what, "news of a move is not understood");
                return;
            }
        };
        for mount in self.mounts_of(service) {
            self.event(now, &mount, event.clone());
        }
    }

    fn mounts_of(&self, service: &str) -> Vec<PathBuf> {
        let of = self.tracks.values().filter(|track| track.service == service);
        of.map(|track| track.point.clone()).collect()
    }

    /// Each answer that is owed and known, where it differs from the last one.
    pub(super) fn tell_readiness(&mut self, now: Now) {
        let mut moves = std::mem::take(&mut self.moves);
        for (service, one) in moves.all_waiting() {
            let Some(readiness) = self.readiness(now, service, one) else { continue };
            let told = one.answered.as_ref();
            // Who holds arrivals back says so again and again: nasd believes it for seconds only.
            let again =
                !readiness.held.is_empty() && now.saturating_sub(one.answered_at) >= HELD_AGAIN;
            if again
                || told.is_none_or(|told| {
                    let said = |r: &v1::Readiness| (r.ready, r.reasons.clone(), r.held.clone());
                    said(told) != said(&readiness)
                })
            {
                one.answered = Some(readiness.clone());
                one.answered_at = now;
                self.out.push(Output::Tell(Said::Readiness(readiness)));
            }
        }
        self.moves = moves;
    }

    /// `None`: not all hands have answered yet.
    fn readiness(&self, now: Now, service: &str, one: &Move) -> Option<v1::Readiness> {
        let mut reasons: Vec<String> = Vec::new();
        let mut retry: Option<Duration> = Some(Duration::ZERO);
        let mut object = |reason: String, after: Option<Duration>| {
            reasons.push(reason);
            retry = retry.zip(after).map(|(a, b)| a.max(b));
        };
        if let Some(why) = &self.blind {
            object(format!("this host's mounts cannot be seen: {why}"), None);
        }
        let mut margin: Option<Duration> = None;
        let (mut unbegun, mut held) = (Vec::new(), Vec::new());
        for track in self.tracks.values().filter(|track| track.service == service) {
            let (objections, of_them_unbegun) = self.objections(now, track, one)?;
            for (reason, after) in objections {
                object(format!("{}: {reason}", track.point.display()), after);
            }
            unbegun.extend(of_them_unbegun);
            held.extend(track.arrivals.waiting(now));
            let here = self.leases.margin(&track.point, now);
            margin = margin.into_iter().chain(here).min();
        }
        Some(v1::Readiness {
            service: service.to_owned(),
            move_id: one.id,
            ready: reasons.is_empty(),
            retry_after_ms: retry.filter(|_| !reasons.is_empty()).map_or(0, ms32),
            only_unbegun: reasons.len() == unbegun.len() && !unbegun.is_empty(),
            reasons,
            margin_ms: margin.map(ms64),
            unbegun,
            held,
        })
    }

    fn objections(&self, now: Now, track: &Track, one: &Move) -> Option<Objections> {
        if let Some((_, why)) = track.refused.filter(|(id, _)| *id == one.id) {
            return Some((vec![(why.to_string(), None)], Vec::new()));
        }
        if track.machine.phase() != Phase::Announced {
            let phase = phase_name(track.machine.phase());
            let why = format!("the mount is not at rest ({phase})");
            return Some((vec![(why, None)], Vec::new()));
        }
        let (_, hands) = track.hands.as_ref().filter(|(id, _)| *id == one.id)?;
        let mut found = Vec::new();
        if !hands.ready {
            let told = hands.reasons.iter().map(|r| (r.clone(), hands.retry_after));
            found.extend(told);
            if found.is_empty() {
                found.push(("not ready, and no reason is known".to_owned(), hands.retry_after));
            }
        }
        found.extend(self.leases.objections(&track.point, one.outage, now));
        found.extend(unproven(now, track).map(|words| (words, None)));
        Some((found, hands.unbegun.clone()))
    }

    pub(super) fn state(&self, now: Now) -> v1::AgentState {
        let of = |track: &Track| self.mount_state(now, track);
        v1::AgentState { mounts: self.tracks.values().map(of).collect() }
    }

    fn mount_state(&self, now: Now, track: &Track) -> v1::MountState {
        let (guests, migrations) = track.census;
        v1::MountState {
            service: track.service.clone(),
            mount: track.point.display().to_string(),
            phase: phase_name(track.machine.phase()).to_owned(),
            move_id: track.machine.move_id().unwrap_or_default(),
            margin_ms: self.leases.margin(&track.point, now).map(ms64),
            guests,
            migrations,
            problems: track.problems(now),
        }
    }

    /// The stall of a mount and of its guests, to all nasds.
    pub(super) fn report(&mut self, mount: &Path) {
        let Some(track) = self.tracks.get(mount) else { return };
        let Some(cost) = &track.cost else { return };
        let report = |guest: &str, stall: Duration| {
            Output::Tell(Said::Stall(v1::StallReport {
                service: track.service.clone(),
                move_id: cost.id.unwrap_or_default(),
                mount: mount.display().to_string(),
                guest: guest.to_owned(),
                stall_ms: ms64(stall),
                // The core knows no calendar: the runner fills it in.
                ended_unix_ms: 0,
            }))
        };
        self.out.push(report("", cost.stall));
        self.out.extend(cost.guests.iter().map(|guest| report(&guest.guest, guest.stall)));
    }
}

/// Reasons and when they may be gone; and the guests (uuid) for each of whom one of the reasons is that its
/// migration has not begun to send.
type Objections = (Vec<(String, Option<Duration>)>, Vec<String>);

fn unproven(now: Now, track: &Track) -> Option<String> {
    let silent = track.unproven(now).map(|age| {
        format!("no probe was answered for {} s: the mount may be hanging", age.as_secs())
    });
    let failed = track.probe_error.map(|errno| format!("its last probe failed with error {errno}"));
    silent.or(failed)
}

fn services(welcome: v1::Welcome) -> Services {
    let addresses = |served: &v1::ServedHere| {
        served.addresses.iter().filter_map(|a| a.parse().ok()).collect::<Vec<_>>()
    };
    welcome.services.into_iter().map(|s| (s.service.clone(), addresses(&s))).collect()
}

/// Whether two states differ in more than running clocks.
pub(super) fn differs(a: &v1::AgentState, b: &v1::AgentState) -> bool {
    let still = |m: &v1::MountState| {
        let wrong = !m.problems.is_empty();
        (
            m.mount.clone(),
            m.service.clone(),
            m.phase.clone(),
            m.move_id,
            m.guests,
            m.migrations,
            wrong,
        )
    };
    !a.mounts.iter().map(still).eq(b.mounts.iter().map(still))
}

fn ms(value: u32) -> Duration {
    Duration::from_millis(value.into())
}

fn ms32(value: Duration) -> u32 {
    u32::try_from(value.as_millis()).unwrap_or(u32::MAX)
}

pub(super) fn ms64(value: Duration) -> u64 {
    u64::try_from(value.as_millis()).unwrap_or(u64::MAX)
}
