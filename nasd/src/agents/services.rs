//! What is told of one service's moves: the announcement that holds, the number of the move that is under
//! way, the last news, the stalls that hypervisors measured.
//!
//! Pure. Keeps S11: an announcement has an end of its own, whatever becomes of who asked for it.

use std::collections::BTreeMap;
use std::time::Duration;

use nasd_proto::move_news::What;
use nasd_proto::{Announce, HostStall, MoveNews, Readiness, StallReport};

use super::number::{self, MoveId, Numbers};
use crate::core::view::Now;

/// Life of one announcement on an agent, unless it is renewed.
pub const LEASE: Duration = Duration::from_secs(6);
/// Between two renewals: two may be lost.
const RENEWAL: Duration = Duration::from_secs(2);
/// How long the number of a prepared move is kept for its opening.
const PENDING: Duration = Duration::from_secs(120);
/// How long news is told again to agents that attach: their stream may have broken when it was new.
const FRESH: Duration = Duration::from_secs(60);
/// Stall reports of one move that are kept.
const STALLS: usize = 256;

/// What happened to a service, as its task tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// This node is the target of a move with that number, which writes a record of that epoch.
    Prepared {
        /// The number, as the owner has given it.
        id: MoveId,
        /// Epoch of the `moving` record.
        epoch: u64,
    },
    /// The owner's gate is about to close.
    Cut {
        /// Epoch of the record.
        epoch: u64,
    },
    /// This node serves.
    Opened {
        /// Epoch of the record.
        epoch: u64,
    },
    /// Nothing was cut, and nothing will be.
    Withdrawn {
        /// Epoch of the record.
        epoch: u64,
    },
    /// The other node serves; it tells of that itself.
    Gone,
}

/// An announcement.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// Its number.
    pub id: MoveId,
    /// When it was made.
    pub began: Now,
    /// Until when answers are waited for.
    pub deadline: Now,
    /// When it ends by itself.
    pub end: Now,
    /// Move all the same.
    pub force: bool,
    /// Milliseconds.
    pub predicted_stall_ms: u32,
    /// Answers to it, by host.
    pub answers: BTreeMap<String, Readiness>,
    renew_at: Now,
}

/// A move that is under way or prepared.
#[derive(Debug, Clone, Copy)]
struct Pending {
    id: MoveId,
    epoch: u64,
    since: Now,
}

/// One service.
#[derive(Debug, Default)]
pub struct Service {
    announced: Option<Announcement>,
    pending: Option<Pending>,
    last: Option<(Now, MoveNews)>,
    stalls_of: MoveId,
    stalls: Vec<HostStall>,
}

/// What an announcement is made of.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Epoch that the move would write.
    pub epoch: u64,
    /// How long answers are waited for.
    pub wait: Duration,
    /// How long after that the announcement is kept up at most, for the move to begin.
    pub keep: Duration,
    /// Move all the same.
    pub force: bool,
    /// Milliseconds.
    pub predicted_stall_ms: u32,
}

impl Service {
    /// Announces a move; `None` when one is announced already.
    pub fn announce(
        &mut self,
        now: Now,
        unix_s: u64,
        numbers: &mut Numbers,
        terms: &Terms,
    ) -> Option<MoveId> {
        if self.announced.is_some() {
            return None;
        }
        let id = numbers.next(terms.epoch, unix_s);
        let deadline = now + terms.wait;
        self.announced = Some(Announcement {
            id,
            began: now,
            deadline,
            end: deadline + terms.keep,
            force: terms.force,
            predicted_stall_ms: terms.predicted_stall_ms,
            answers: BTreeMap::new(),
            renew_at: now + RENEWAL,
        });
        Some(id)
    }

    /// The announcement that holds.
    #[must_use]
    pub fn announced(&self) -> Option<&Announcement> {
        self.announced.as_ref()
    }

    /// An answer; one to another announcement is none (S12).
    pub fn answered(&mut self, host: &str, said: Readiness) {
        if let Some(a) = self.announced.as_mut().filter(|a| a.id == said.move_id) {
            a.answers.insert(host.to_owned(), said);
        }
    }

    /// The host's agent may have started anew, and holds nothing then.
    pub fn forget_answer(&mut self, host: &str) {
        if let Some(a) = &mut self.announced {
            a.answers.remove(host);
        }
    }

    /// The announcement for the wire, if it is due for renewal (or wanted now).
    pub fn announcement(&mut self, service: &str, now: Now, wanted: bool) -> Option<Announce> {
        let a = self.announced.as_mut().filter(|a| wanted || now >= a.renew_at)?;
        if !wanted {
            a.renew_at = now + RENEWAL;
        }
        let lease = LEASE.min(a.end.saturating_sub(now));
        Some(Announce {
            service: service.to_owned(),
            move_id: a.id,
            lease_ms: u32::try_from(lease.as_millis()).unwrap_or(u32::MAX),
            predicted_stall_ms: a.predicted_stall_ms,
        })
    }

    /// Whether the announcement has outlived its end.
    #[must_use]
    pub fn is_overdue(&self, now: Now) -> bool {
        self.announced.as_ref().is_some_and(|a| now >= a.end)
    }

    /// The number of the move that writes a record of `epoch`, from here on.
    pub fn moving(&mut self, now: Now, unix_s: u64, numbers: &mut Numbers, epoch: u64) -> MoveId {
        let announced = self.announced.as_ref().map(|a| a.id);
        let id = announced.unwrap_or_else(|| numbers.next(epoch, unix_s));
        self.pending = Some(Pending { id, epoch, since: now });
        id
    }

    /// Takes what happened; what agents are to hear of it.
    pub fn take(&mut self, service: &str, me: &str, now: Now, said: Said) -> Option<MoveNews> {
        let (what, id, epoch) = match said {
            Said::Prepared { id, epoch } => {
                self.pending = Some(Pending { id, epoch, since: now });
                return None;
            }
            Said::Gone => {
                (self.pending, self.announced) = (None, None);
                return None;
            }
            Said::Cut { epoch } => (What::Cut, self.known(now, epoch), epoch),
            Said::Opened { epoch } => (What::Opened, self.known(now, epoch), epoch),
            Said::Withdrawn { epoch } => (What::Withdrawn, self.known(now, epoch), epoch),
        };
        let announced = self.announced.take().map(|a| a.id);
        let pending = self.pending.filter(|_| what == What::Cut);
        let told = self.pending.is_some() || announced.is_some();
        self.pending = pending;
        // Who was told of nothing needs no withdrawal.
        if what == What::Withdrawn && !told {
            return None;
        }
        let id = id.or(announced).unwrap_or_else(|| number::of_epoch(epoch));
        let (service, owner) = (service.to_owned(), me.to_owned());
        let news = MoveNews { service, move_id: id, what: what.into(), owner, epoch };
        if what != What::Withdrawn {
            self.last = Some((now, news.clone()));
            self.count_stalls_of(id);
        }
        Some(news)
    }

    /// The number under which agents know what led to a record of this epoch: that of the prepared move, which
    /// may have been taken back by one more change of the record.
    fn known(&self, now: Now, epoch: u64) -> Option<MoveId> {
        let p = self.pending.filter(|p| now.saturating_sub(p.since) < PENDING)?;
        (epoch <= p.epoch.saturating_add(1)).then_some(p.id)
    }

    /// The last news, if it may have been missed.
    #[must_use]
    pub fn recent(&self, now: Now) -> Option<&MoveNews> {
        self.last.as_ref().filter(|(at, _)| now.saturating_sub(*at) < FRESH).map(|(_, news)| news)
    }

    fn count_stalls_of(&mut self, id: MoveId) {
        if id > self.stalls_of {
            self.stalls_of = id;
            self.stalls.clear();
        }
    }

    /// A host's report. One of an older move comes too late; one without a number is of the last.
    pub fn stalled(&mut self, host: &str, report: StallReport) {
        let id = if report.move_id == 0 { self.stalls_of } else { report.move_id };
        self.count_stalls_of(id);
        let same = |s: &HostStall| {
            let old = s.stall.as_ref();
            let of = old.is_some_and(|o| o.mount == report.mount && o.guest == report.guest);
            s.host == host && of
        };
        if id < self.stalls_of {
            return;
        }
        self.stalls.retain(|s| !same(s));
        if self.stalls.len() < STALLS {
            self.stalls.push(HostStall { host: host.to_owned(), stall: Some(report) });
        }
    }

    /// Reports of the last move, in the order of their coming.
    #[must_use]
    pub fn stalls(&self) -> &[HostStall] {
        &self.stalls
    }
}

#[cfg(test)]
#[path = "services_tests.rs"]
mod tests;
