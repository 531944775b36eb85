//! Taking over without the owner's consent, and everything that leads there (design section 6).
//!
//! Keeps S1 (`Frozen`: forced disconnect, verified, *then* the compare-and-set), S2 (who may), S4 (how
//! long it waits), H3 (what can fail comes first) and H4 (a hanging nasd is not a living one).

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::core::record::DataUuid;

/// After the end of a hanging owner's right, before its node is given up.
const HANG_MARGIN: Duration = Duration::from_millis(500);

impl Machine {
    /// Why this node may not take over now; `Ok`: it may.
    ///
    /// # Errors
    /// The reason in words.
    pub(super) fn may_take(&self, record: &Record) -> Result<(), String> {
        let beat = &self.peer_view.beat;
        let heard = self.peer_view.heard.is_some();
        // Consistent: complete as of its last connection, and the record says that nothing was written
        // without it; the kernel makes it UpToDate when the peer is fenced.
        let sound = self.drbd.local_consistent;
        let doubt = self.doubt(record).filter(|_| !self.holes.has(Hole::C2));
        let no = if let Some(by) = &record.hold {
            format!("held by {by} (nasctl unhold)")
        } else if !record.current.contains(&self.me) {
            let current: Vec<_> = record.current.iter().map(|n| n.0.as_str()).collect();
            format!(
                "the replica of {} may miss acknowledged writes; only {} has them all{}",
                self.me,
                current.join(", "),
                self.unfinished_resync()
            )
        } else if let Some(why) = doubt {
            why
        } else if let Some(Unfit { ailment: Ailment::Disk, why }) = &self.unfit {
            format!("{}: {why}", self.me)
        } else if self.drbd.role != Role::Secondary || !sound || self.drbd.resync {
            format!("a disk of {} is not UpToDate", self.me)
        } else if heard && beat.violations.as_ref().is_none_or(|v| !v.is_empty()) {
            format!(
                "the DRBD options of {} are not those that freeze it (see nasctl status)",
                self.peer
            )
        } else {
            return Ok(());
        };
        Err(no)
    }

    /// S2: what the metadata of this node's disks does not know of itself.
    fn doubt(&self, record: &Record) -> Option<String> {
        let told = |uuids: &BTreeMap<u16, DataUuid>| {
            let one = |(volume, uuid): (&u16, &DataUuid)| format!("{volume}: {uuid}");
            uuids.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        if self.marked {
            return Some(format!(
                "a disk of {} had failed and was not resynchronised since",
                self.me
            ));
        }
        let (mine, recorded) = (told(&self.drbd.data_uuid), told(&record.data_uuid));
        let why = format!("the data of {} ({mine}) does not descend from {recorded}", self.me);
        (!self.drbd.descends_from(&record.data_uuid)).then_some(why)
    }

    /// How far a resynchronisation that was cut off had come, and how long the rest would have taken.
    fn unfinished_resync(&self) -> String {
        let Some(((began, all), (ended, left))) = self.since.resync else { return String::new() };
        let (done, took) = (all.saturating_sub(left), ended.saturating_sub(began));
        let mib = left.div_ceil(1 << 20);
        let per_second =
            u64::try_from(u128::from(done) * 1000 / took.as_millis().max(1)).unwrap_or(0);
        if per_second == 0 {
            return format!("; its resynchronisation has {mib} MiB to go");
        }
        let rest = left.div_ceil(per_second);
        format!("; its resynchronisation has {mib} MiB to go, about {rest} s at the rate seen")
    }

    /// Why a failover to the standby would not work now; empty: it would. Judged on either node.
    #[must_use]
    pub fn failover_ready(&self, now: Now) -> Vec<String> {
        let Some(record) = self.record() else { return vec!["no record has been read".into()] };
        let mut why = Vec::new();
        if let Some(unreadable) = &self.unreadable {
            why.push(unreadable.clone());
        }
        if record.authority() == Some(&self.me) {
            let beat = &self.peer_view.beat;
            why.extend(record.hold.iter().map(|by| format!("held by {by} (nasctl unhold)")));
            if !record.current.contains(&self.peer) {
                why.push(format!("the replica on {} is not current", self.peer));
            }
            if !self.peer_is_fresh(now) {
                why.push(format!("nasd on {} is not heard", self.peer));
            }
            why.extend(beat.unfit.iter().map(|u| format!("{}: {}", self.peer, u.why)));
        } else if let Err(no) = self.may_take(record) {
            why.push(no);
        }
        why
    }

    /// On an idle node whose record belongs to the other one.
    pub(super) fn consider_takeover(&mut self, now: Now, record: &Record, out: &mut Vec<Effect>) {
        if now < self.not_before {
            return;
        }
        let may = self.may_take(record);
        if let Some(reason) = self.asked.take() {
            match may {
                Ok(()) => self.begin_take(now, reason, out),
                Err(no) => self.answer_asked(Err(no), out),
            }
            return;
        }
        let started = self.since.started.unwrap_or(now);
        let silent = self.peer_view.silent_for(now, started);
        let never = self.peer_view.heard.is_none();
        if silent < if never { self.timing.cold_wait } else { self.timing.silence } {
            return;
        }
        if let Err(no) = may {
            let ms = silent.as_millis();
            self.problem =
                Some(format!("{} is silent since {ms} ms; no takeover: {no}", self.peer));
            self.must_read |= now >= self.last_read + Duration::from_secs(1);
            return;
        }
        self.weigh(now, silent, out);
    }

    fn weigh(&mut self, now: Now, silent: Duration, out: &mut Vec<Effect>) {
        let fresh = self.side.sought.filter(|(at, _)| now < *at + SEEK_AGAIN * 2);
        let Some((_, sign)) = fresh else { return self.seek(now, out) };
        let ms = silent.as_millis();
        let peer = self.peer.clone();
        match sign {
            Sign::Nothing if self.drbd.connected && silent < self.timing.ttl * 3 / 4 => {
                self.wake(now, now + self.timing.heartbeat / 4, out);
            }
            Sign::Nothing => {
                self.begin_take(
                    now,
                    format!("{peer} is silent since {ms} ms and answers nowhere"),
                    out,
                );
            }
            Sign::HostOnly if self.holes.has(Hole::H4) => {}
            Sign::HostOnly if now >= self.peer_grant_end() + HANG_MARGIN => {
                self.begin_take(now, format!("nasd on {peer} hangs or is gone since {ms} ms"), out);
            }
            Sign::HostOnly => self.seek(now, out),
            Sign::Alive if self.gave_away_in_vain(now) => {
                let why = format!("{peer} lives, cannot be reached and has not opened the service");
                self.begin_take(now, why, out);
            }
            Sign::Alive if self.is_alone() && !self.drbd.connected => {
                let why =
                    format!("{peer} lives, but the data is here alone and {peer} cannot reach it");
                self.begin_take(now, why, out);
            }
            Sign::Alive => {
                self.problem = Some(format!(
                    "{peer} lives (it answers in the coordinator), but the path between the nodes is cut"
                ));
                self.seek(now, out);
            }
            Sign::Unknown => {
                self.problem = Some(format!(
                    "{peer} is silent since {ms} ms, and the coordinator does not answer: nothing is decided"
                ));
                self.seek(now, out);
            }
        }
    }

    /// This node has demoted for a move whose target is out of reach and has written nothing since. If the
    /// target has promoted it is frozen; the first compare-and-set decides (safety, section 3).
    fn gave_away_in_vain(&self, now: Now) -> bool {
        let mine = |r: &Record| matches!(&r.phase, Phase::Moving { from, .. } if *from == self.me);
        let patience = HAND_OVER_PATIENCE / 3;
        matches!(&self.stage, Stage::HandedOver { since, .. } if now >= *since + patience)
            && self.drbd.role == Role::Secondary
            && !self.drbd.connected
            && self.record().is_some_and(mine)
    }

    pub(super) fn seek(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.side.seek.is_some() || now < self.side.seek_not_before {
            return;
        }
        let run = self.next_run;
        self.next_run += 1;
        self.side.seek = Some((run, now + SEEK));
        out.push(Effect::Seek { run });
    }

    pub(super) fn begin_take(&mut self, now: Now, reason: String, out: &mut Vec<Effect>) {
        self.side.sought = None;
        self.problem = None;
        self.take_began = Some(now);
        let at = usize::from(self.holes.has(Hole::H3));
        self.stage = Stage::TakingOver { at, reason };
        self.run_step(now, TAKE[at], out);
    }

    /// The peer spoke again before anything was decided: nothing has happened yet, let it be.
    fn peer_came_back(&self) -> bool {
        let begun = self.take_began.unwrap_or_default();
        !self.asked_answer_due
            && self.peer_view.heard.is_some_and(|at| at > begun)
            && self.peer_view.beat.role != Role::Secondary
    }

    pub(super) fn continue_taking(
        &mut self,
        now: Now,
        at: usize,
        reason: &str,
        out: &mut Vec<Effect>,
    ) {
        if at == TAKE.len()
            && self.record().is_some_and(|r| {
                r.authority() == Some(&self.me) && !matches!(r.phase, Phase::Moving { .. })
            })
        {
            self.stage = Stage::Waiting; // taken already: on to the opening
            return;
        }
        if self.peer_came_back() {
            let why = format!("{} was heard again; {reason} is not so any more", self.peer);
            self.take_failed(now, why, out);
        } else if at < TAKE.len() {
            self.run_step(now, TAKE[at], out);
        } else if let Some(record) = self.record().cloned() {
            if let Err(no) = self.may_take(&record) {
                self.take_failed(now, no, out);
                return;
            }
            let next = record.take(&self.me);
            if let Err(error) = &next {
                self.take_failed(now, error.to_string(), out);
            } else {
                self.change(now, next, CAS, out);
            }
        }
    }

    /// Nothing was taken. DRBD may be disconnected by now: it connects again as a chore.
    pub(super) fn take_failed(&mut self, now: Now, why: String, out: &mut Vec<Effect>) {
        self.stage = Stage::Waiting;
        self.must_read = true;
        self.target_since = None;
        self.not_before = now + RETRY;
        self.problem = Some(format!("takeover not done: {why}"));
        self.answer_asked(Err(why), out);
    }

    pub(super) fn answer_asked(&mut self, result: Result<(), String>, out: &mut Vec<Effect>) {
        if std::mem::take(&mut self.asked_answer_due) {
            out.push(Effect::TakeoverEnded(result));
        }
    }

    /// The compare-and-set is confirmed: nobody else may write now. From here on it is an opening.
    pub(super) fn took(&mut self, now: Now, reason: String, out: &mut Vec<Effect>) {
        self.taken_at = Some(now);
        self.forget_fence();
        self.asked_answer_due = false;
        self.taking = Some(reason);
        self.target_since = None;
        self.not_before = now;
        self.stage = Stage::Waiting;
        if self.can_fence {
            let run = self.next_run;
            self.next_run += 1;
            self.side.power_fence = Some(run);
            out.push(Effect::PowerFence { run });
        }
    }

    /// A confirmation is worth nothing beyond the opening that it was asked for.
    pub(super) fn forget_fence(&mut self) {
        self.peer_is_off = false;
        self.side.power_fence = None;
    }

    /// `Fenced`: a node without power has no right. A fence that failed, or is late, changes nothing:
    /// the freeze proves, and the wait goes on.
    pub(super) fn power_fenced(&mut self, run: RunId, confirmed: bool) {
        if self.side.power_fence == Some(run) {
            self.side.power_fence = None;
            self.peer_is_off |= confirmed;
        }
    }

    /// The last moment at which a grant by this node's consent may end.
    fn peer_grant_end(&self) -> Now {
        let unknown = self.since.started.unwrap_or_default() + self.timing.long_ttl;
        self.granted_until.unwrap_or(unknown)
    }

    /// Judged anew each time: a former life's grants may be told by a beat that comes only now.
    pub(super) fn open_not_before(&self, now: Now) -> Now {
        if self.peer_is_off { Now::ZERO } else { self.wait_out(self.taken_at.unwrap_or(now)) }
    }

    /// S4: grants by this node's consent are known; grants by the record were asked for before the
    /// compare-and-set. Without a report of a working gate only the address' lifetime is left.
    pub(super) fn wait_out(&self, taken: Now) -> Now {
        let t = &self.timing;
        let by_record = taken + t.record_ttl;
        let end = self.peer_grant_end().max(by_record) + t.margin(t.ttl);
        match self.peer_view.beat.gate {
            GateReport::Unknown => end.max(taken + t.ttl + t.without_gate()),
            GateReport::Shut | GateReport::Open { .. } => end,
        }
    }

    /// This node has the authority and does not serve: after a start, a takeover, a failed opening.
    pub(super) fn decide_own(&mut self, now: Now, record: &Record, out: &mut Vec<Effect>) {
        let taking = matches!(record.phase, Phase::Taking { .. });
        if taking && self.taking.is_none() {
            // A former life took over, or a compare-and-set of this one landed late: the wait begins
            // anew, and what a fence agent confirmed for an earlier takeover says nothing of this one.
            self.taken_at = Some(now);
            self.forget_fence();
            self.taking = Some("the takeover of a former life goes on".into());
        }
        if self.ask_whoever_has_the_data(now, record, out) {
            return;
        }
        if self.cut_again(now, taking, out) {
            return;
        }
        // A peer that serves though the record does not say so: an operator's emergency start there.
        let idle =
            self.drbd.role == Role::Secondary && !self.drbd.connected && !self.peer_serves(now);
        let lone = self.since.disconnected.is_some_and(|at| now >= at + self.timing.lone_wait);
        let mine = record.current.contains(&self.me) && record.current.contains(&self.peer);
        if idle && lone && mine && self.whole_alone() && now >= self.not_before {
            self.change(now, record.exclude(&self.me, &self.peer), CAS, out);
            return;
        }
        let why = self.taking.clone().map_or(Why::Start, Why::Takeover);
        self.open_if_proved(now, why, out);
    }

    /// Taken, and yet connected to a Primary: a connection came up while the compare-and-set was under
    /// way. The former owner is out of `current`, so it freezes at the cut and stays frozen.
    fn cut_again(&mut self, now: Now, taking: bool, out: &mut Vec<Effect>) -> bool {
        let connected = self.drbd.connected && self.drbd.peer_role == Role::Primary;
        if !taking || !connected || self.drbd.role != Role::Secondary || now < self.not_before {
            return false;
        }
        let reason = self.taking.clone().unwrap_or_default();
        let at = TAKE.len() - 1;
        self.stage = Stage::TakingOver { at, reason };
        self.run_step(now, TAKE[at], out);
        true
    }

    /// One step of the opening; a taker waits and writes `serving` before its threads start: grace
    /// begins there, and must not run while a coordinator is waited for (S7).
    pub(super) fn continue_opening(&mut self, now: Now, at: usize, out: &mut Vec<Effect>) {
        let Some(record) = self.record().cloned() else { return };
        if !record.may_serve(&self.me) {
            let reason = format!("the record says {} in epoch {}", record.phase, record.epoch);
            self.close(now, reason, out);
            return;
        }
        if let Some(why) = self.spoiled.clone() {
            self.close(now, why, out);
            return;
        }
        let step = OPEN[at];
        let taking = matches!(record.phase, Phase::Taking { .. });
        let late = if self.holes.has(Hole::C7) { Step::OpenGate } else { Step::StartThreads };
        let opens = self.open_not_before(now);
        let spent = self.threads_since.is_some_and(|at| now >= at + GRACE_SPENT);
        if step == Step::OpenGate && spent && !self.holes.has(Hole::C7) {
            let why = "grace ran while the gate could not open; the server is started anew";
            self.close(now, why.into(), out);
        } else if taking && step == late && now < opens {
            self.wake(now, opens, out);
        } else if taking && step == late {
            let uuids = self.drbd.data_uuid.clone();
            let next = record.settle_take(&self.me, self.generation, uuids);
            if now >= self.not_before {
                self.change(now, next, CAS, out);
            }
        } else {
            self.run_step(now, step, out);
        }
    }

    pub(super) fn wake(&mut self, now: Now, at: Now, out: &mut Vec<Effect>) {
        let asked = self.side.wake.is_some_and(|w| w == at && now < w);
        if !asked {
            self.side.wake = Some(at);
            out.push(Effect::Wake { at });
        }
    }

    /// A move without a link: the old owner has demoted (its beat says so) and the target cannot prove
    /// it by DRBD, or the other way round. The first compare-and-set wins (safety, section 3).
    pub(super) fn take_if_link_lost(
        &mut self,
        now: Now,
        asked: bool,
        record: &Record,
        out: &mut Vec<Effect>,
    ) -> bool {
        if self.drbd.role != Role::Secondary {
            return false;
        }
        let cut = !self.drbd.connected;
        let idle_there = self.peer_is_fresh(now) && self.peer_view.beat.role == Role::Secondary;
        if cut && asked && idle_there && now >= self.not_before && self.may_take(record).is_ok() {
            self.begin_take(now, "the link was lost in the middle of a move".into(), out);
            return true;
        }
        self.consider_takeover(now, record, out);
        matches!(self.stage, Stage::TakingOver { .. })
    }

    /// Hole C1 only: what a claim without a compare-and-set would do.
    pub(super) fn come_back_unasked(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.drbd.local_up_to_date {
            self.stage = Stage::Opening { at: 0, why: Why::Rollback("hole C1".into()) };
            self.run_step(now, OPEN[0], out);
        }
    }
}
