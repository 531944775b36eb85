//! What this node knows of the other one without DRBD: its beats, and what a search for it found.
//!
//! Keeps S12: what no beat has said is unknown, and unknown permits nothing.

use std::time::Duration;

use super::view::{Now, Role};

/// The gate of the service on the other node, as that node reported it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GateReport {
    /// Not told.
    #[default]
    Unknown,
    /// Enforced, and shut.
    Shut,
    /// Enforced, and open; `None`: without end (sole-current owner).
    Open {
        /// Time left when the beat was sent.
        left: Option<Duration>,
    },
}

/// What one beat of the other nasd said about the service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerBeat {
    /// Epoch of the record that it has seen.
    pub epoch: u64,
    /// Its gate.
    pub gate: GateReport,
    /// DRBD's role there.
    pub role: Role,
    /// Its I/O is frozen.
    pub frozen: bool,
    /// DRBD options there that break S1; `None`: they could not be read.
    pub violations: Option<Vec<String>>,
    /// Whether it reaches the coordinator; `None`: not known.
    pub coordinator: Option<bool>,
    /// It is taking the service over: asked for, or because it hears nothing of this node.
    pub taking: bool,
    /// Why it could not serve, were it asked to; none: it could.
    pub unfit: Option<Unfit>,
}

/// What kind of illness makes a node unfit: it decides who lets go of whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ailment {
    /// This node's own disk hangs: everything that must reach it waits without end (H11).
    Disk,
    /// Writes through the whole stack hang or fail, here or on the way to the peer.
    Writes,
    /// Anything that does not hinder a move in good order.
    Other,
}

/// Why a node is unfit to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// What kind.
    pub ailment: Ailment,
    /// In words, with evidence and since when.
    pub why: String,
}

impl Unfit {
    /// Unfit, in words.
    #[must_use]
    pub fn new(ailment: Ailment, why: impl Into<String>) -> Self {
        Self { ailment, why: why.into() }
    }
}

/// The peer as heard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerView {
    /// When the last beat came.
    pub heard: Option<Now>,
    /// What it said.
    pub beat: PeerBeat,
}

impl PeerView {
    /// Since when there is silence: since the last beat, or since this node began to listen.
    #[must_use]
    pub fn silent_for(&self, now: Now, listening_since: Now) -> Duration {
        now.saturating_sub(self.heard.unwrap_or(listening_since))
    }
}

/// What a search for a silent peer found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// The coordinator answers, the peer does not answer in it, and its node does not answer on the
    /// wire: power, or every cable.
    Nothing,
    /// As above, but the node's kernel answers on the wire: only its nasd hangs or is gone.
    HostOnly,
    /// The peer answered in the coordinator: it lives, and only the path between the nodes is cut.
    Alive,
    /// The coordinator does not answer: nothing is known.
    Unknown,
}
