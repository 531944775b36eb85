//! The steps of the programs: what each changes, how long it takes, where it can hang.
//!
//! Owns "a step that was given up may still take effect": steps run in the kernel or in the volume
//! process, and their answers find their way to a later moment of nasd, or to nobody.

use nasd::core::machine::{RunId, StepContext};
use nasd::core::step::{DRAIN, Proof, Step, StepError};

use super::data::Marker;
use super::drbd::{Conn, Disk, Promotion};
use super::node::Server;
use super::{Do, GRACE, InKernel, MS, Time, World, micros};
use crate::hole::Planted;

type StepResult = Result<Option<u64>, StepError>;

fn refused(step: Step, reason: &str) -> StepError {
    StepError::Refused { step: step.name(), reason: reason.to_owned() }
}

/// Steps that nasd executes itself.
fn in_nasd(step: Step) -> bool {
    matches!(
        step,
        Step::CloseInbound | Step::Drain | Step::CloseOutbound | Step::OpenGate | Step::Tickle
    )
}

/// Steps of the volume process that exclude each other.
fn changes_volume(step: Step) -> bool {
    matches!(
        step,
        Step::Mount | Step::Unmount | Step::Marker | Step::StartThreads | Step::StopThreads
    )
}

/// Steps that wait for the volume's I/O.
fn needs_io(step: Step) -> bool {
    changes_volume(step) || step == Step::Sync
}

impl World {
    /// Usual time of a step.
    fn step_time(&mut self, n: usize, step: Step) -> Time {
        let (low, high) = match step {
            Step::Drain => (4, micros(DRAIN) / MS),
            Step::Mount => (20, 200),
            Step::Unmount | Step::Sync | Step::StopThreads => (5, 100),
            Step::StartThreads | Step::Probe => (10, 150),
            _ => (1, 20),
        };
        let usual = self.delay(low * MS, high * MS);
        if self.calm || !self.random.percent(self.weather.slow[n]) {
            return usual;
        }
        let deadline = micros(step.deadline());
        self.random.between(deadline / 2, deadline * 2)
    }

    pub(super) fn begin_step(&mut self, n: usize, run: RunId, step: Step, context: StepContext) {
        let life = self.nodes[n].nasd.life;
        if self.random.percent(self.weather.failing[n]) {
            self.ran(n, life, run, Err(refused(step, "bad luck")));
            return;
        }
        if in_nasd(step) {
            self.step_in_nasd(n, run, step, &context);
            return;
        }
        if changes_volume(step) {
            if let Some(other) = self.nodes[n].volume_busy {
                self.ran(n, life, run, Err(refused(step, &format!("{other} is under way"))));
                return;
            }
            self.nodes[n].volume_busy = Some(step);
        }
        let delay = self.step_time(n, step);
        self.kernel_later(n, delay, InKernel::Step { life, run, step, context });
    }

    fn step_in_nasd(&mut self, n: usize, run: RunId, step: Step, context: &StepContext) {
        let life = self.nodes[n].nasd.life;
        match step {
            Step::CloseInbound => self.shut_gate(n),
            Step::CloseOutbound => {
                self.shut_gate(n);
                self.nodes[n].addressed = false;
            }
            Step::OpenGate => {
                let until = self.now + micros(step.deadline()) - 500 * MS;
                self.await_right(n, run, context.epoch, until);
                return;
            }
            Step::Drain => {
                let delay = self.step_time(n, step);
                let done = nasd::core::machine::Event::Ran { run, result: Ok(None) };
                self.nasd_later(n, delay, Do::Feed(Box::new(done)));
                return;
            }
            _ => {}
        }
        self.ran(n, life, run, Ok(None));
    }

    /// The moment at which a step takes effect; hangs while the volume is frozen.
    pub(super) fn kernel_step(
        &mut self,
        n: usize,
        life: u32,
        run: RunId,
        step: Step,
        context: StepContext,
    ) {
        let uses = self.nodes[n].mounted || step == Step::Mount;
        let io = self.pair.completes_writes(n) && self.pair.has_data(n); // else suspend-io
        let stuck = self.pair.sides[n].primary && !io;
        if needs_io(step) && uses && stuck {
            self.kernel_later(n, 50 * MS, InKernel::Step { life, run, step, context });
            return;
        }
        if changes_volume(step) {
            self.nodes[n].volume_busy = None;
        }
        if step == Step::Promote {
            self.promote(n, life, run, &context);
            return;
        }
        let result = self.perform(n, step, &context);
        let text = result.as_ref().err().map(ToString::to_string);
        self.note(n, || {
            format!("  * {step}{}", text.map(|t| format!(": {t}")).unwrap_or_default())
        });
        if !self.calm && self.random.percent(self.weather.late_answers[n]) {
            let late = self.random.between(0, 2 * micros(step.deadline()));
            let event = nasd::core::machine::Event::Ran { run, result };
            self.later(late, super::Happening::Nasd(n, life, Do::Feed(Box::new(event))));
        } else {
            self.ran(n, life, run, result);
        }
    }

    fn perform(&mut self, n: usize, step: Step, context: &StepContext) -> StepResult {
        match step {
            Step::StopThreads => self.nodes[n].server = None,
            Step::Sync | Step::Probe => {}
            Step::Unmount => {
                if self.nodes[n].server.is_some() {
                    return Err(refused(step, "busy: threads run"));
                }
                (self.nodes[n].mounted, self.nodes[n].spoiled) = (false, false);
            }
            Step::Demote => {
                if self.nodes[n].mounted {
                    return Err(refused(step, "busy: mounted"));
                }
                if self.nodes[n].promoting.is_some() {
                    return Err(refused(step, "another command is under way"));
                }
                self.pair.demote(n);
            }
            Step::Mount => {
                if !self.pair.sides[n].primary {
                    return Err(refused(step, "not Primary"));
                }
                if self.weather.no_mount[n].is_some() && !self.nodes[n].mounted {
                    return Err(refused(step, "the mount point is taken"));
                }
                self.nodes[n].mounted = true;
            }
            Step::Marker => return self.mark_opening(n, context),
            Step::StartThreads => self.start_threads(n)?,
            Step::TakeReady if self.nodes[n].mounted || self.weather.no_mount[n].is_some() => {
                return Err(refused(step, "the mount point is taken"));
            }
            Step::ForceDisconnect => self.disconnect_to_take(n)?,
            _ => {}
        }
        Ok(None)
    }

    /// S2: the marker must not be older than the record; then this opening's is written.
    fn mark_opening(&mut self, n: usize, context: &StepContext) -> StepResult {
        if !self.nodes[n].mounted {
            return Err(refused(Step::Marker, "not mounted"));
        }
        let found = self.pair.readable(n, 0).map(|c| c.marker).unwrap_or_default();
        if found.generation < context.generation || found.epoch > context.epoch {
            let reason = format!("marker {found:?} does not fit the record");
            return Err(StepError::WrongVolume { reason });
        }
        let generation = found.generation + 1;
        let marker = Marker { epoch: context.epoch, generation };
        if !self.pair.write_marker(n, marker) {
            return Err(refused(Step::Marker, "the volume did not take it"));
        }
        self.watch.data_changed = true;
        Ok(Some(generation))
    }

    /// Grace begins here; a server that runs is adopted as it is.
    fn start_threads(&mut self, n: usize) -> Result<(), StepError> {
        if !self.nodes[n].mounted {
            return Err(refused(Step::StartThreads, "not mounted"));
        }
        let now = self.now;
        let nothing = !self.clients.recorded;
        let fresh = Server { grace_until: now + GRACE, reclaimed: nothing, opened: false };
        let node = &mut self.nodes[n];
        node.server.get_or_insert(fresh);
        Ok(())
    }

    /// H1: by force, then verified.
    fn disconnect_to_take(&mut self, n: usize) -> Result<(), StepError> {
        let step = Step::ForceDisconnect;
        if self.planted == Some(Planted::H1) {
            if !self.pair.disconnect_gracefully(n) {
                return Err(refused(step, "the peer does not answer"));
            }
            return Ok(());
        }
        self.pair.disconnect_forced(n);
        let side = &self.pair.sides[n];
        let complete = side.volumes.iter().all(|v| v.disk >= Disk::Consistent);
        if side.conn == Conn::StandAlone && complete {
            return Ok(());
        }
        Err(refused(step, "not StandAlone with complete disks"))
    }

    // ---- promotion ---------------------------------------------------------------------------

    /// The evidence once more, then the kernel; without a connection the kernel runs the helper.
    fn promote(&mut self, n: usize, life: u32, run: RunId, context: &StepContext) {
        let view = self.pair.view(n);
        let gone = match context.proof {
            None => Some("the core gave no proof"),
            Some(Proof::AlreadyPrimary) if self.pair.sides[n].primary => None,
            Some(Proof::AlreadyPrimary) => Some("not Primary any more"),
            Some(Proof::Released) if view.released() => None,
            Some(Proof::Released) => Some("not connected to a Secondary any more"),
            Some(Proof::Frozen) if view.stand_alone => None,
            Some(Proof::Frozen) => Some("not StandAlone any more"),
            Some(Proof::SoleCurrent) => None,
        };
        if let Some(reason) = gone {
            let error = StepError::ProofGone { reason: reason.into() };
            self.ran(n, life, run, Err(error));
            return;
        }
        if self.nodes[n].promoting.is_some() {
            self.ran(n, life, run, Err(refused(Step::Promote, "another command is under way")));
            return;
        }
        self.promote_in_kernel(n, life, run, context.epoch, false);
    }

    pub(super) fn promote_in_kernel(
        &mut self,
        n: usize,
        life: u32,
        run: RunId,
        epoch: u64,
        fenced: bool,
    ) {
        let was = self.pair.sides[n].primary;
        match self.pair.promote(n, fenced) {
            Promotion::Done => {
                if !was {
                    self.note(n, || "  * PRIMARY".into());
                    crate::properties::promoted(self, n, epoch);
                }
                self.ran(n, life, run, Ok(None));
            }
            Promotion::Refused(reason) => {
                self.note(n, || format!("  * promotion refused: {reason}"));
                self.ran(n, life, run, Err(refused(Step::Promote, reason)));
            }
            Promotion::NeedsHelper => {
                self.nodes[n].promoting = Some((run, life, epoch));
                self.start_helper(n);
            }
        }
    }
}
