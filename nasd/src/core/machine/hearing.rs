//! What comes in from outside the programs: DRBD's state, the other nasd's beats, results of searches
//! and chores. Keeps the times since when something has been so.

use super::*;

impl Machine {
    pub(super) fn see_drbd(&mut self, now: Now, mut view: DrbdView) {
        self.keep_history(&mut view);
        // What the record said while all was well may be old: exclusion and inclusion do not raise the
        // epoch, so nobody's beat tells of them.
        self.must_read |= self.drbd.connected && !view.connected;
        let track = |since: &mut Option<Now>, holds: bool| {
            if holds {
                since.get_or_insert(now);
            } else {
                *since = None;
            }
        };
        let known = view.role != Role::Unknown;
        track(&mut self.since.frozen, view.frozen);
        track(&mut self.since.disconnected, known && !view.connected);
        track(&mut self.since.failed, known && view.local_failed);
        if let Some(bytes) = view.missing_bytes {
            // A number that is greater than the first one is of another beginning, or that one was of no
            // resynchronisation yet.
            let same = |first: u64| self.drbd.resync && bytes <= first;
            let begun = self.since.resync.filter(|(first, _)| same(first.1));
            let (first, last) = begun.unwrap_or(((now, bytes), (now, bytes)));
            // An event may carry an older number than the look before it.
            let last = if bytes <= last.1 { (now, bytes) } else { last };
            self.since.resync = Some((first, last));
        } else if view.local_up_to_date {
            self.since.resync = None;
        }
        self.since.sound_once |= view.local_consistent;
        self.drbd = view;
    }

    /// 8.4 forgets a peer's slots with its connection, the former generation of our data among them.
    /// As long as the current one is the same its past is too; and what followed it on a Primary, which
    /// is never resynchronised from elsewhere, descends from it. A generation that is not told (a disk's
    /// events may lag behind its connection's) is the last one that was.
    fn keep_history(&self, view: &mut DrbdView) {
        for (volume, was) in &self.drbd.data_uuid {
            let same = view.data_uuid.entry(*volume).or_insert(*was) == was;
            if !same && self.drbd.role != Role::Primary {
                continue;
            }
            let seen = view.uuid_history.entry(*volume).or_default();
            let past = self.drbd.uuid_history.get(volume).into_iter().flatten();
            let past = past.chain((!same).then_some(was));
            let lost: Vec<_> = past.filter(|u| !seen.contains(u)).copied().collect();
            seen.extend(lost);
        }
    }

    /// A beat: life, and facts. What it could not tell now but has told before stays known.
    pub(super) fn hear(&mut self, now: Now, mut beat: PeerBeat) {
        if beat.violations.is_none() {
            beat.violations = self.peer_view.beat.violations.take();
        }
        if self.granted_until.is_none() {
            self.granted_until = self.granted_before(now, beat.gate);
        }
        self.heard_epoch(beat.epoch);
        self.peer_view = PeerView { heard: Some(now), beat };
        self.side.sought = None;
        self.side.seek = None; // one that began before this beat tells nothing any more
    }

    /// After a restart: an upper bound of what this node's former life has granted, from the gate that
    /// the owner reports. A request on its way may add one more life.
    fn granted_before(&self, now: Now, gate: GateReport) -> Option<Now> {
        match gate {
            // An endless right is a sole-current owner's: it gets an end before anybody else becomes
            // current, and that end is told by a later beat.
            GateReport::Unknown | GateReport::Open { left: None } => None,
            GateReport::Shut => Some(now + self.timing.ttl),
            GateReport::Open { left: Some(left) } => Some(now + left + self.timing.ttl),
        }
    }

    pub(super) fn sought(&mut self, now: Now, run: RunId, sign: Sign) {
        if self.side.seek.is_some_and(|(r, _)| r == run) {
            self.side.seek = None;
            self.side.sought = Some((now, sign));
            self.side.seek_not_before = now + SEEK_AGAIN;
        }
    }

    pub(super) fn chore_done(&mut self, now: Now, run: RunId, result: Result<(), String>) {
        let Some((_, chore, _)) = self.side.chore.filter(|(r, _, _)| *r == run) else { return };
        self.side.chore = None;
        let connects = matches!(chore, Chore::Connect | Chore::Retrigger);
        self.side.chore_not_before = now + if connects { CONNECT_PAUSE } else { CHORE_PAUSE };
        match (chore, result) {
            (Chore::Mark(on), Ok(())) => self.marked = on,
            (Chore::Outdate, Ok(())) => self.side.outdated_in = self.record().map(|r| r.epoch),
            (_, Ok(())) => {}
            (chore, Err(why)) => {
                self.side.chore_failed.insert(chore, now);
                self.problem = Some(format!("{chore:?}: {why}"));
            }
        }
    }

    /// The peer's nasd was heard so lately that its word counts.
    pub(super) fn peer_is_fresh(&self, now: Now) -> bool {
        self.peer_view.heard.is_some_and(|at| now < at + self.timing.silence)
    }
}
