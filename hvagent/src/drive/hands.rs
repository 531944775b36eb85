//! What the agent has done to guests, by somebody who may hang.
//!
//! Keeps S10: the agent's task never calls a [`Guests`] itself. It sends orders to a task that owns one and
//! hears from it, and every call is made under a deadline; a call that overran is dropped, so an
//! implementation must keep what it has changed where it survives that (on the local disk), before the change.
//! Keeps S12: an answer that is not there in time is "not ready" or a problem, never "all is well".

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::core::phase::Phase;

/// Whether the guests of a mount let it move.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Readiness {
    /// A move may begin.
    pub ready: bool,
    /// Why not, in words for nasd's operator; empty where `ready`.
    pub reasons: Vec<String>,
    /// Guests (uuid) whose migration from here has not begun to send; each is one of the reasons.
    pub unbegun: Vec<String>,
    /// When it may be ready; `None`: unknown.
    pub retry_after: Option<Duration>,
    /// Migrations that run now, from or to here, with a disk on the mount.
    pub migrations: u32,
    /// Guests that run now with a disk on the mount.
    pub guests: u32,
}

/// A move that is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coming {
    /// When it may begin.
    pub within: Duration,
    /// The stall that its nasd predicts; zero: nothing is announced.
    pub outage: Duration,
}

/// What a stall cost a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStall {
    /// The guest's name.
    pub guest: String,
    /// How long its I/O stood still.
    pub stall: Duration,
}

/// The guests of this host whose disks are on a mount. Mounts are named by their mount points.
///
/// Every method may be dropped at any await: see the module's head.
#[async_trait]
pub trait Guests: Send {
    /// Holds migrations of the mount's guests back (lets finish, slows down, or aborts them). Called again
    /// while a hold goes on, for migrations that have begun since: doing nothing twice must be harmless.
    async fn hold(&mut self, mount: &Path);

    /// Restores what [`Guests::hold`] changed, and begins again what it aborted. Never called for what a crash
    /// left behind: an implementation finds that by itself, and waits for a move that is announced anew.
    async fn release(&mut self, mount: &Path);

    /// Whether that move may begin. Changes nothing.
    async fn ready(&mut self, mount: &Path, coming: Coming) -> Readiness;

    /// Resumes the guests that I/O errors on the mount have paused, never those a user paused, never one
    /// whose lease may be gone.
    async fn resume(&mut self, mount: &Path);

    /// Looks at the mount's guests after a move: problems in words, empty: all run.
    async fn verify(&mut self, mount: &Path) -> Vec<String>;

    /// What the last stall of the mount, which lasted as long as told, cost each guest. Guests that are not
    /// named were not measured.
    async fn stalls(&mut self, mount: &Path, stall: Duration) -> Vec<GuestStall>;

    /// The mount's phase has changed: nobody is resumed but after opens are back, and libvirt is not asked
    /// about guests of a silent mount.
    fn phase(&mut self, _mount: &Path, _phase: Phase) {}

    /// libvirt's hook waits for so long before a guest starts or arrives here. libvirt keeps that guest locked
    /// meanwhile, so that a list of all guests would hang: none is asked for.
    fn hook_waits(&mut self, _time: Duration) {}

    /// The mount points that matter have changed; looked at before the next call.
    fn mounts(&mut self, _points: &[PathBuf]) {}

    /// Whether libvirt answers; `Err` says in words why not.
    async fn reachable(&mut self) -> Result<(), String>;
}

/// A host without libvirt: nobody to hold back, and nobody to lose.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoGuests;

#[async_trait]
impl Guests for NoGuests {
    async fn hold(&mut self, _mount: &Path) {}

    async fn release(&mut self, _mount: &Path) {}

    async fn ready(&mut self, _mount: &Path, _coming: Coming) -> Readiness {
        Readiness { ready: true, ..Readiness::default() }
    }

    async fn resume(&mut self, _mount: &Path) {}

    async fn verify(&mut self, _mount: &Path) -> Vec<String> {
        Vec::new()
    }

    async fn stalls(&mut self, _mount: &Path, _stall: Duration) -> Vec<GuestStall> {
        Vec::new()
    }

    async fn reachable(&mut self) -> Result<(), String> {
        Err("this agent was started without libvirt".to_owned())
    }
}
