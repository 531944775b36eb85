//! One mount that a service serves: its machine, its stalls, and what else is known of it.

use std::path::PathBuf;
use std::time::Duration;

use super::arrivals::Arrivals;
use super::hands::{GuestStall, Readiness};
use crate::core::Now;
use crate::core::phase::{Cause, Machine, MoveId, NotReady, Phase, Timing};
use crate::mounts::host::Looked;
use crate::mounts::stall::{self, Watch};

/// A probe at rest is answered within seconds; after this without one nobody knows how the mount is.
const UNPROVEN: Duration = Duration::from_secs(60);

/// What the last stall cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// The move, if one was known.
    pub id: Option<MoveId>,
    /// The mount as a whole.
    pub stall: Duration,
    /// Its guests, as far as they were measured.
    pub guests: Vec<GuestStall>,
}

/// One mount.
#[derive(Debug)]
pub struct Track {
    /// Its service.
    pub service: String,
    /// Mount point.
    pub point: PathBuf,
    /// The server, as it was given to mount.
    pub server: String,
    /// Device of the file system.
    pub device: (u32, u32),
    /// The phases.
    pub machine: Machine,
    /// Sees stalls that are longer than the threshold.
    watch: Watch,
    /// Sees all of them: only believed while the mount is not at rest.
    meter: Watch,
    /// Longest stall since the mount was at rest.
    pub longest: Option<Duration>,
    /// When lost locks were reported, and in which words.
    pub lost_locks: Vec<(Now, String)>,
    /// Migrations are held back.
    pub held: bool,
    /// A hold was ordered and is not answered.
    pub holding: bool,
    /// A release that did not come through.
    pub release_again: bool,
    /// Readiness was asked and is not answered.
    pub asking: bool,
    /// The hands' last answer, for that move.
    pub hands: Option<(MoveId, Readiness)>,
    /// Guests whose arrival waits for this mount.
    pub arrivals: Arrivals,
    /// Guests and migrations, as counted last.
    pub census: (u32, u32),
    /// The prober was told that guests run there, or that storage moves; it takes that for granted at
    /// its start.
    pub used: bool,
    /// Why the machine did not take that announcement.
    pub refused: Option<(MoveId, NotReady)>,
    /// A verification is under way, and from when on it counts.
    pub verifying: Option<Now>,
    /// From when on the next verification counts.
    pub verify_since: Now,
    /// When the last one was asked.
    pub verified_at: Now,
    /// The last good probe.
    pub proven: Now,
    /// The last error of a probe since then.
    pub probe_error: Option<i32>,
    /// What the last stall cost.
    pub cost: Option<Cost>,
}

/// What a sample means for the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampledEvent {
    /// No answers.
    Stalled,
    /// Answers again.
    Ended,
    /// A new connection.
    Reconnected,
}

impl Track {
    /// A mount that was seen for the first time.
    #[must_use]
    pub fn new(now: Now, service: &str, looked: &Looked, timing: Timing, stall: Duration) -> Self {
        Self {
            service: service.to_owned(),
            point: looked.mount.point.clone(),
            server: looked.mount.source.server.clone(),
            device: looked.mount.device,
            machine: Machine::new(now, timing),
            watch: Watch::new(stall),
            meter: Watch::new(Duration::ZERO),
            longest: None,
            lost_locks: Vec::new(),
            held: false,
            holding: false,
            release_again: false,
            asking: false,
            hands: None,
            arrivals: Arrivals::default(),
            census: (0, 0),
            used: true,
            refused: None,
            verifying: None,
            verify_since: now,
            verified_at: now,
            proven: now,
            probe_error: None,
            cost: None,
        }
    }

    /// Takes a sample.
    pub fn sample(&mut self, now: Now, reading: &stall::Reading) -> Vec<SampledEvent> {
        let moving = self.machine.phase() != Phase::Normal;
        for event in self.meter.step(now, reading) {
            if let stall::Event::Ended(report) = event
                && (moving || self.watch.stalled_since().is_some())
            {
                self.longest = self.longest.max(Some(report.length()));
            }
        }
        let meaning = |event| match event {
            stall::Event::Stalled { .. } => Some(SampledEvent::Stalled),
            stall::Event::Ended(_) => Some(SampledEvent::Ended),
            stall::Event::Reconnected { .. } => Some(SampledEvent::Reconnected),
            stall::Event::Restarted => None,
        };
        self.watch.step(now, reading).into_iter().filter_map(meaning).collect()
    }

    /// For how long the mount has been stalled now, if it is.
    #[must_use]
    pub fn stalled_for(&self, now: Now) -> Option<Duration> {
        self.watch.stalled_since().map(|since| now.saturating_sub(since))
    }

    /// Since the last lost locks that verifications have not covered.
    #[must_use]
    pub fn locks_lost_since(&self, since: Now) -> Vec<String> {
        let after = self.lost_locks.iter().filter(|(at, _)| *at >= since);
        after.map(|(_, words)| words.clone()).collect()
    }

    /// No probe has been answered for too long.
    #[must_use]
    pub fn unproven(&self, now: Now) -> Option<Duration> {
        Some(now.saturating_sub(self.proven)).filter(|age| *age > UNPROVEN)
    }

    /// What is wrong, in words.
    #[must_use]
    pub fn problems(&self, now: Now) -> Vec<String> {
        let mut problems = self.machine.problems().to_vec();
        problems.extend(self.phase_problem().map(str::to_owned));
        if let Some(stalled) = self.stalled_for(now) {
            problems.push(format!("no answer of the server for {:.1} s", stalled.as_secs_f64()));
        }
        if let Some(age) = self.unproven(now) {
            problems.push(format!("no probe of the mount was answered for {} s", age.as_secs()));
        }
        if let Some(errno) = self.probe_error {
            problems.push(format!("the last probe of the mount failed with error {errno}"));
        }
        if self.release_again {
            problems.push("migrations are still held back: libvirt does not let go".to_owned());
        }
        problems
    }

    fn phase_problem(&self) -> Option<&'static str> {
        match self.machine.phase() {
            Phase::Failed(Cause::IoNotBack) => Some("the storage did not come back in time"),
            Phase::Failed(Cause::OpensNotBack) => {
                Some("files can be read and written, but not opened: grace does not end")
            }
            _ => None,
        }
    }
}

/// The phase's name on the wire and for people.
#[must_use]
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Normal => "normal",
        Phase::Announced => "announced",
        Phase::Moving => "moving",
        Phase::IoBack => "io-back",
        Phase::OpensBack => "opens-back",
        Phase::Verified => "verified",
        Phase::Failed(_) => "failed",
    }
}
