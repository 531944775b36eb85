//! The machine: `step(now, event)` gives effects. No clock, no I/O.

use super::{Answer, Cause, Effect, Event, MoveId, NotReady, Now, Phase, Probing, Timing};

/// An announcement that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Announcement {
    id: MoveId,
    until: Now,
}

/// The machine of one mount.
#[derive(Debug, Clone)]
pub struct Machine {
    timing: Timing,
    phase: Phase,
    since: Now,
    announced: Option<Announcement>,
    /// The move under way, where nasd has named one.
    current: Option<MoveId>,
    /// nasd has said that it cuts: from then on an end of a stall proves nothing, as the old server
    /// may have given its last answers after the word.
    cut: bool,
    /// Since when the storage may be believed: only probes asked later count.
    evidence: Option<Now>,
    /// The newest move that is over.
    finished: Option<MoveId>,
    problems: Vec<String>,
    held_since: Option<Now>,
    /// Up to when everything has been looked at. The next verification begins there, so that nothing
    /// is overlooked when one failover follows another before the first was verified.
    looked_until: Now,
}

impl Machine {
    /// At rest.
    #[must_use]
    pub fn new(now: Now, timing: Timing) -> Self {
        Self {
            timing,
            phase: Phase::Normal,
            since: now,
            announced: None,
            current: None,
            cut: false,
            evidence: None,
            finished: None,
            problems: Vec::new(),
            held_since: None,
            looked_until: now,
        }
    }

    /// The phase after the last step.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Since when that phase.
    #[must_use]
    pub fn since(&self) -> Now {
        self.since
    }

    /// The move that the phase belongs to, where nasd has named one.
    #[must_use]
    pub fn move_id(&self) -> Option<MoveId> {
        self.current.or(self.announced.map(|a| a.id))
    }

    /// What the verification has found, in [`Cause::Unverified`].
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// When [`Event::Tick`] is due at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Now> {
        let hold = self.held_since.map(|h| h.saturating_add(self.timing.longest_hold));
        let announced = self.announced.map(|a| a.until);
        [self.end_of(self.phase), announced, hold].into_iter().flatten().min()
    }

    /// The phase as it is at `now`, for the gate: an announcement counts until it ends whatever else
    /// has happened, and a phase whose time is over has failed.
    pub(super) fn phase_at(&self, now: Now) -> Phase {
        let announced = self.announced.is_some_and(|a| a.until > now);
        let over = self.end_of(self.phase).is_some_and(|end| end <= now);
        match self.phase {
            Phase::Normal | Phase::Verified if announced => Phase::Announced,
            Phase::Announced if !announced => Phase::Normal,
            phase if over => late(phase).map_or(phase, Phase::Failed),
            phase => phase,
        }
    }

    /// When a phase ends by itself.
    pub(super) fn end_of(&self, phase: Phase) -> Option<Now> {
        let after = |length| Some(self.since.saturating_add(length));
        match phase {
            Phase::Announced => self.announced.map(|a| a.until),
            Phase::Moving => after(self.timing.io_back),
            Phase::IoBack => after(self.timing.opens_back),
            Phase::OpensBack => after(self.timing.verified),
            Phase::Normal | Phase::Verified | Phase::Failed(_) => None,
        }
    }

    /// Takes an event.
    pub fn step(&mut self, now: Now, event: Event) -> Vec<Effect> {
        let mut effects = self.expire(now);
        effects.extend(self.take(now, event));
        effects
    }

    fn take(&mut self, now: Now, event: Event) -> Vec<Effect> {
        match event {
            Event::Announced { id, lease } => self.announce(now, id, lease),
            Event::Withdrawn { id } => self.withdrawn(now, id),
            Event::CutBegun { id } => self.cut(now, id),
            Event::ServiceOpened { id } => self.opened(now, id),
            Event::Stalled => self.stalled(now),
            Event::StallEnded => self.stall_ended(now),
            Event::Reconnected => self.reconnected(now),
            Event::Read { asked, answer } => self.read(now, asked, answer),
            Event::FreshOpen { asked, answer } => self.opens(now, asked, answer),
            Event::Checked { asked, problems } => self.checked(now, asked, problems),
            Event::Settled => self.settled(now),
            Event::Accepted => self.accepted(now),
            Event::Tick => Vec::new(),
        }
    }

    /// Whatever ends because time has passed.
    fn expire(&mut self, now: Now) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.announced.is_some_and(|a| a.until <= now) {
            self.announced = None;
            if self.phase == Phase::Announced {
                effects.extend(self.rest(now));
            }
        }
        let over = self.end_of(self.phase).is_some_and(|end| end <= now);
        if let Some(cause) = late(self.phase).filter(|_| over) {
            effects.extend(self.failed(now, cause));
        }
        let longest = self.timing.longest_hold;
        if self.held_since.is_some_and(|h| now.saturating_sub(h) >= longest) {
            effects.extend(self.release());
        }
        effects
    }

    fn enter(&mut self, now: Now, phase: Phase) -> Effect {
        self.phase = phase;
        self.since = now;
        Effect::Tell(phase)
    }

    fn hold(&mut self, now: Now) -> Option<Effect> {
        let fresh = self.held_since.is_none();
        self.held_since.get_or_insert(now);
        fresh.then_some(Effect::Hold)
    }

    fn release(&mut self) -> Option<Effect> {
        self.held_since.take().map(|_| Effect::Release)
    }

    /// A move that is over, or older than one that is known.
    fn stale(&self, id: MoveId) -> Option<MoveId> {
        let newer = self.current.max(self.announced.map(|a| a.id)).filter(|known| id < *known);
        newer.or(self.finished.filter(|known| id <= *known))
    }

    fn announce(&mut self, now: Now, id: MoveId, lease: std::time::Duration) -> Vec<Effect> {
        let reply = |taken| Effect::Reply { id, taken };
        if let Some(known) = self.stale(id) {
            return vec![reply(Err(NotReady::Stale { id, known }))];
        }
        if lease.is_zero() {
            return vec![reply(Err(NotReady::Over { id }))];
        }
        if !matches!(self.phase, Phase::Normal | Phase::Announced) {
            return vec![reply(Err(NotReady::Busy(self.phase)))];
        }
        let until = now.saturating_add(lease.min(self.timing.longest_lease));
        self.announced = Some(Announcement { id, until });
        let mut effects: Vec<_> = self.hold(now).into_iter().collect();
        if self.phase == Phase::Normal {
            effects.push(self.enter(now, Phase::Announced));
        }
        effects.push(reply(Ok(())));
        effects
    }

    fn withdrawn(&mut self, now: Now, id: MoveId) -> Vec<Effect> {
        if self.announced.is_some_and(|a| a.id == id) {
            self.announced = None;
        }
        match self.phase {
            Phase::Announced if self.announced.is_none() => {
                self.finished = self.finished.max(Some(id));
                self.rest(now)
            }
            // Rolled back after the cut: the old owner serves again.
            Phase::Moving | Phase::Failed(_) if self.current == Some(id) => self.opened(now, id),
            _ => Vec::new(),
        }
    }

    fn cut(&mut self, now: Now, id: MoveId) -> Vec<Effect> {
        let again = self.cut && self.current == Some(id);
        if again || self.stale(id).is_some() {
            return Vec::new();
        }
        self.current = Some(id);
        self.cut = true;
        self.announced = self.announced.filter(|a| a.id > id);
        self.moving(now, None)
    }

    fn opened(&mut self, now: Now, id: MoveId) -> Vec<Effect> {
        if self.stale(id).is_some() {
            return Vec::new();
        }
        let known = self.current == Some(id);
        match self.phase {
            Phase::Moving | Phase::Failed(Cause::IoNotBack) => {
                self.current = Some(id);
                self.evidence = Some(now);
                vec![Effect::Probe(Probing::Reads)]
            }
            // Told twice.
            _ if known => Vec::new(),
            // The cut was missed: what the new server answers must be seen.
            _ => {
                self.current = Some(id);
                self.announced = self.announced.filter(|a| a.id > id);
                self.moving(now, Some(now))
            }
        }
    }

    fn stalled(&mut self, now: Now) -> Vec<Effect> {
        match self.phase {
            Phase::Moving | Phase::Failed(Cause::IoNotBack) => Vec::new(),
            _ => self.moving(now, None),
        }
    }

    fn stall_ended(&mut self, now: Now) -> Vec<Effect> {
        if !self.cut {
            self.believe(now);
        }
        Vec::new()
    }

    fn reconnected(&mut self, now: Now) -> Vec<Effect> {
        match self.phase {
            Phase::Moving | Phase::Failed(Cause::IoNotBack) => {
                self.believe(now);
                Vec::new()
            }
            _ => self.moving(now, Some(now)),
        }
    }

    /// From now on probes count, where they are waited for.
    fn believe(&mut self, now: Now) {
        if matches!(self.phase, Phase::Moving | Phase::Failed(Cause::IoNotBack)) {
            self.evidence = Some(now);
        }
    }

    fn moving(&mut self, now: Now, evidence: Option<Now>) -> Vec<Effect> {
        self.evidence = evidence;
        let mut effects: Vec<_> = self.hold(now).into_iter().collect();
        if self.phase != Phase::Moving {
            effects.push(self.enter(now, Phase::Moving));
        }
        effects.push(Effect::Probe(Probing::Reads));
        effects
    }

    fn counts(&self, asked: Now) -> bool {
        self.evidence.is_some_and(|since| asked >= since)
    }

    fn read(&mut self, now: Now, asked: Now, answer: Answer) -> Vec<Effect> {
        let waiting = matches!(self.phase, Phase::Moving | Phase::Failed(Cause::IoNotBack));
        match answer {
            Answer::Error(_) => vec![Effect::Rehold],
            Answer::Good if waiting && self.counts(asked) => {
                vec![self.enter(now, Phase::IoBack), Effect::Probe(Probing::Opens)]
            }
            Answer::Good => Vec::new(),
        }
    }

    fn opens(&mut self, now: Now, asked: Now, answer: Answer) -> Vec<Effect> {
        let waiting = matches!(self.phase, Phase::IoBack | Phase::Failed(Cause::OpensNotBack));
        if !waiting || answer != Answer::Good || !self.counts(asked) {
            return Vec::new();
        }
        self.problems.clear();
        vec![
            self.enter(now, Phase::OpensBack),
            Effect::Probe(Probing::Rest),
            Effect::Verify { since: self.looked_until },
            Effect::ResumeGuests,
        ]
    }

    fn checked(&mut self, now: Now, asked: Now, problems: Vec<String>) -> Vec<Effect> {
        let waiting = matches!(self.phase, Phase::OpensBack | Phase::Failed(Cause::Unverified));
        if !waiting || !self.counts(asked) {
            return Vec::new();
        }
        self.problems = problems;
        match self.problems.is_empty() {
            true => self.verified(now, asked),
            false => self.failed(now, Cause::Unverified),
        }
    }

    fn verified(&mut self, now: Now, looked_until: Now) -> Vec<Effect> {
        self.looked_until = looked_until;
        let mut effects = vec![self.enter(now, Phase::Verified)];
        // An announcement that still holds keeps its hold.
        effects.extend(if self.announced.is_none() { self.release() } else { None });
        effects.push(Effect::Settle);
        effects
    }

    fn failed(&mut self, now: Now, cause: Cause) -> Vec<Effect> {
        if cause == Cause::Unverified && self.problems.is_empty() {
            self.problems.push("the verification did not end in time".to_owned());
        }
        if self.phase == Phase::Failed(cause) {
            return Vec::new();
        }
        let mut effects = vec![self.enter(now, Phase::Failed(cause))];
        effects.extend(if cause == Cause::Unverified { self.release() } else { None });
        effects
    }

    fn settled(&mut self, now: Now) -> Vec<Effect> {
        if self.phase != Phase::Verified {
            return Vec::new();
        }
        self.finished = self.finished.max(self.current);
        self.rest(now)
    }

    fn accepted(&mut self, now: Now) -> Vec<Effect> {
        match self.phase {
            Phase::Failed(Cause::Unverified) => self.verified(now, now),
            _ => Vec::new(),
        }
    }

    /// At rest again, or announced where an announcement still holds.
    fn rest(&mut self, now: Now) -> Vec<Effect> {
        self.current = None;
        self.cut = false;
        self.evidence = None;
        self.problems.clear();
        if self.announced.is_some() {
            let held = self.hold(now);
            return held.into_iter().chain([self.enter(now, Phase::Announced)]).collect();
        }
        let mut effects = vec![self.enter(now, Phase::Normal)];
        effects.extend(self.release());
        effects
    }
}

/// What a phase becomes that has lasted too long.
fn late(phase: Phase) -> Option<Cause> {
    match phase {
        Phase::Moving => Some(Cause::IoNotBack),
        Phase::IoBack => Some(Cause::OpensNotBack),
        Phase::OpensBack => Some(Cause::Unverified),
        _ => None,
    }
}
