//! What the agent's task hears and what it has done: the only words between it and the I/O around it.

use std::path::PathBuf;
use std::time::Duration;

use nasd_proto as v1;

use super::hands::{Coming, GuestStall, Readiness};
use crate::config::kept::Kept;
use crate::core::Now;
use crate::core::phase::{MoveId, Phase};
use crate::mounts::host::Look;
use crate::mounts::kmsg;
use crate::probe::{keeper, process};
use crate::sanlock::Survey;

/// What has happened.
#[derive(Debug)]
pub enum Input {
    /// The sampler has looked; `Err`: it could not, and says why.
    Looked(Result<Look, String>),
    /// The kernel's log has said something about NFS.
    Kernel(kmsg::Event),
    /// Records of the kernel's log were lost, or it cannot be read.
    KernelUnheard(String),
    /// sanlock was asked; `Err`: no answer. `None` inside: nobody listens and nobody expects it.
    Leases(Result<Option<Survey>, String>),
    /// A probe of that mount has ended.
    Probed(PathBuf, process::Report),
    /// A nasd has said something.
    News(String, v1::agent_news::Kind),
    /// A link is up (`Ok`) or down, with the reason.
    Linked(String, Result<(), String>),
    /// The hands have answered.
    Heard(Heard),
    /// Time has passed.
    Tick,
}

/// What the hands are told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// See [`super::hands::Guests::hold`].
    Hold(PathBuf),
    /// See [`super::hands::Guests::release`].
    Release(PathBuf),
    /// See [`super::hands::Guests::ready`].
    Ready {
        /// The mount.
        mount: PathBuf,
        /// For which move; comes back.
        id: MoveId,
        /// When the move may begin, and what it costs.
        coming: Coming,
    },
    /// See [`super::hands::Guests::resume`].
    Resume(PathBuf),
    /// See [`super::hands::Guests::verify`].
    Verify {
        /// The mount.
        mount: PathBuf,
        /// When it was asked; comes back.
        asked: Now,
    },
    /// See [`super::hands::Guests::stalls`].
    Stalls {
        /// The mount.
        mount: PathBuf,
        /// How long the mount stood still.
        stall: Duration,
    },
    /// See [`super::hands::Guests::phase`].
    Phase(PathBuf, Phase),
    /// See [`super::hands::Guests::hook_waits`].
    HookWaits(Duration),
    /// See [`super::hands::Guests::mounts`].
    Mounts(Vec<PathBuf>),
    /// See [`super::hands::Guests::reachable`].
    Reachable,
}

/// What the hands answer; every order but `HookWaits`, `Mounts`, `Phase` and `Resume` has one, in time or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A hold was made, or did not end in time.
    Held(PathBuf),
    /// A release was made; `false`: it did not end in time and must be asked for again.
    Released(PathBuf, bool),
    /// Readiness for a move.
    Ready(PathBuf, MoveId, Readiness),
    /// A verification.
    Verified(PathBuf, Now, Vec<String>),
    /// The stalls of guests.
    Stalls(PathBuf, Vec<GuestStall>),
    /// Whether libvirt answers.
    Reachable(Result<(), String>),
}

/// How often the sampler looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Nothing is going on.
    Rest,
    /// A mount is not at rest.
    Busy,
}

/// What must be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Probe this mount, which has that device.
    StartProbe(PathBuf, (u32, u32)),
    /// Probe it no more.
    StopProbe(PathBuf),
    /// Tell its prober.
    Probe(PathBuf, keeper::Input),
    /// Tell the hands.
    Order(Order),
    /// Hold the host's shutdown back, or no more.
    Inhibit(bool),
    /// Tell the sampler.
    Pace(Pace),
    /// The state for all nasds, now and at each repetition.
    State(v1::AgentState),
    /// Tell all nasds once.
    Tell(v1::agent_message::Kind),
    /// Write down what the nasds said of their services.
    Keep(Kept),
}
