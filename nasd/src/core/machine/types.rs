//! Events in, effects out, and the stages between: the vocabulary of the machine.

use std::time::Duration;

use crate::core::peer::{PeerBeat, Sign, Unfit};
use crate::core::record::{NodeName, Record};
use crate::core::step::{Proof, Step, StepError};
use crate::core::view::{DrbdView, Leftovers, Now};

/// Number of an effect that will be answered.
pub type RunId = u64;

/// A record with the revision that a compare-and-set compares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The coordinator's revision (etcd: `mod_revision`).
    pub revision: i64,
    /// The record.
    pub record: Record,
}

/// What a step needs besides its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepContext {
    /// Epoch of the record that allows the step.
    pub epoch: u64,
    /// The record's generation: the marker that is written gets a higher one.
    pub generation: u64,
    /// The marker on the volume must have at least this generation (S2): the record's, or a lower one
    /// that an operator has confirmed.
    pub accepts: u64,
    /// For [`Step::Promote`].
    pub proof: Option<Proof>,
}

/// Why the service opens here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Start of nasd, or of the service.
    Start,
    /// The other node handed over.
    HandOver,
    /// A move from here failed; the text says why.
    Rollback(String),
    /// Without the former owner's consent; the text says why.
    Takeover(String),
}

/// Where this node stands with the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Not decided yet: something must be heard first, or a failed opening waits for its next try.
    Waiting,
    /// The other node has the authority and nothing is left here.
    Standby,
    /// On the way through [`OPEN`].
    Opening {
        /// Index into [`OPEN`].
        at: usize,
        /// Why.
        why: Why,
    },
    /// Gate open.
    Serving,
    /// A planned move: the record is being moved, the target warmed. Clients notice nothing.
    Preparing {
        /// The target.
        to: NodeName,
    },
    /// On the way through [`CLOSE`] with a target waiting.
    Cutting {
        /// The target.
        to: NodeName,
        /// Index into [`CLOSE`].
        at: usize,
    },
    /// Demoted; the target opens.
    HandedOver {
        /// The target.
        to: NodeName,
        /// Since when.
        since: Now,
    },
    /// Demoted, and taking the authority back by a compare-and-set.
    Returning {
        /// Why the move failed.
        reason: String,
    },
    /// On the way through [`TAKE`](crate::core::step::TAKE), then its compare-and-set.
    TakingOver {
        /// Index into [`TAKE`](crate::core::step::TAKE).
        at: usize,
        /// Why.
        reason: String,
    },
    /// On the way through [`CLOSE`] because the service does not belong here.
    Closing {
        /// Index into [`CLOSE`].
        at: usize,
        /// Why.
        reason: String,
    },
}

impl Stage {
    /// The name in status documents.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Standby => "standby",
            Self::Opening { .. } => "opening",
            Self::Serving => "serving",
            Self::Preparing { .. } => "preparing",
            Self::Cutting { .. } => "cutting",
            Self::HandedOver { .. } => "handed-over",
            Self::Returning { .. } => "returning",
            Self::Closing { .. } => "closing",
            Self::TakingOver { .. } => "taking-over",
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// nasd started and looked around. First event of a life.
    Started(Leftovers),
    /// The coordinator answered a read or a watch.
    Record(Option<Versioned>),
    /// A read failed or timed out: nothing is known (S12).
    RecordUnreadable(String),
    /// DRBD's state changed.
    Drbd(DrbdView),
    /// A step ended. `marker_generation` is set by [`Step::Marker`].
    Ran {
        /// Which effect.
        run: RunId,
        /// What came of it; for `Marker` the generation written.
        result: Result<Option<u64>, StepError>,
    },
    /// A compare-and-set ended.
    Cas {
        /// Which effect.
        run: RunId,
        /// What came of it.
        result: CasResult,
    },
    /// The target is warm, or says why it is not.
    Warmed {
        /// Which effect.
        run: RunId,
        /// The refusal in words.
        result: Result<(), String>,
    },
    /// The target answered the hand-over, or nothing is known.
    HandOverEnded {
        /// Which effect.
        run: RunId,
        /// What came of it.
        result: HandOverResult,
    },
    /// The other node demoted and hands over.
    HandOver {
        /// Epoch of the `moving` record.
        epoch: u64,
    },
    /// An operator wants the service moved; pre-flight has passed.
    Switchover {
        /// The target.
        to: NodeName,
        /// From now to the demotion.
        timeout: Duration,
    },
    /// An operator wants the move undone.
    Abort,
    /// The other nasd's beat (or its answer to ours).
    Peer(PeerBeat),
    /// The search for a silent peer ended.
    Sought {
        /// Which effect.
        run: RunId,
        /// What was found.
        sign: Sign,
    },
    /// A chore ended.
    ChoreDone {
        /// Which effect.
        run: RunId,
        /// What came of it, in words if it failed.
        result: Result<(), String>,
    },
    /// The gate was found shut while serving: a step given up long ago took effect late.
    GateShut,
    /// A file system met an error while serving, and the gate was shut at once so that no client hears
    /// of it. What serves next must have been mounted anew.
    Spoiled(String),
    /// The fence agent ended.
    PowerFenced {
        /// Which effect.
        run: RunId,
        /// The peer's power is off, read back. Anything else is a no.
        confirmed: bool,
    },
    /// This node's ability to serve, judged over time by the drive; `Some`: unfit, and why.
    Health(Option<Unfit>),
    /// Take the service over though the owner is not known to be dead: an operator asks, or the
    /// owner itself, which cannot serve and cannot let go in good order.
    TakeOver {
        /// Who asks, and why.
        reason: String,
    },
    /// No automatic action from now on (`Some`: who asked), or again.
    Hold(Option<String>),
    /// An operator starts the service here though the coordinator has no majority.
    Emergency {
        /// The last record on this node's disk.
        last: Record,
        /// Who typed it.
        by: String,
        /// It was begun by a former life of nasd and has not ended.
        resumed: bool,
    },
    /// Time passed.
    Tick,
}

/// Outcome of a compare-and-set.
#[derive(Debug, Clone, PartialEq)]
pub enum CasResult {
    /// Confirmed.
    Won {
        /// The new revision.
        revision: i64,
    },
    /// Somebody else wrote first; this is what is there now.
    Lost(Option<Versioned>),
    /// It was not sent: the evidence that it rests on was gone.
    NotSent(String),
    /// Nobody knows: a read must resolve it before anything is decided (S8).
    Unknown,
}

/// Outcome of a hand-over, as the old owner sees it.
#[derive(Debug, Clone, PartialEq)]
pub enum HandOverResult {
    /// The target serves.
    Opened,
    /// The target could not open and has closed again.
    Refused(String),
    /// The channel broke.
    Unknown,
}

/// What to do. Effects are executed in order; those with a `run` are answered by an event.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Execute a step under its deadline.
    Run {
        /// Number of the answer.
        run: RunId,
        /// Which step.
        step: Step,
        /// With what.
        context: StepContext,
    },
    /// Read the record (linearizable); answered by [`Event::Record`] or `RecordUnreadable`.
    Read,
    /// Write the record if its revision is still this one; `None` creates it.
    Cas {
        /// Number of the answer.
        run: RunId,
        /// The revision to compare.
        expected: Option<i64>,
        /// The whole new record.
        record: Record,
    },
    /// Write dirty pages back, prepare the target; clients notice nothing.
    Warm {
        /// Number of the answer.
        run: RunId,
        /// The target.
        to: NodeName,
        /// Epoch of the move.
        epoch: u64,
    },
    /// Tell the target to open.
    HandOver {
        /// Number of the answer.
        run: RunId,
        /// The target.
        to: NodeName,
        /// Epoch of the move.
        epoch: u64,
    },
    /// A move from here has ended.
    MoveEnded(MoveEnd),
    /// Feed a [`Event::Tick`] at this time: sooner than the next regular one.
    Wake {
        /// When.
        at: Now,
    },
    /// Look for the silent peer: ask in the coordinator, and knock at its node.
    Seek {
        /// Number of the answer.
        run: RunId,
    },
    /// Cut the peer's power by its fence agent: only ever after the compare-and-set that made the
    /// peer nobody's owner (H14).
    PowerFence {
        /// Number of the answer.
        run: RunId,
    },
    /// Something beside the programs, one at a time.
    Chore {
        /// Number of the answer.
        run: RunId,
        /// What.
        chore: Chore,
    },
    /// Stop this node at once, by sysrq `b`: it is Primary with frozen or unstoppable I/O and the
    /// record belongs to the other one.
    SelfFence {
        /// Why.
        reason: String,
    },
    /// Ask the other node to take over: this one cannot serve and cannot let go in good order.
    AskTakeover {
        /// Why.
        reason: String,
    },
    /// A takeover by this node has ended: open, or why not.
    TakeoverEnded(Result<(), String>),
    /// An opening after a hand-over has ended: the answer to the old owner.
    OpeningEnded(Result<(), String>),
}

/// What may be done beside the programs. Each is idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Chore {
    /// Let DRBD connect again (from `StandAlone`).
    Connect,
    /// Mark the local disks outdated: this replica is not current and must never open alone (S2).
    Outdate,
    /// Have the kernel run its fence helper again, by forced disconnect and connect (H2).
    Retrigger,
    /// Disconnect the peer by force: its disk hangs and holds back every write (H11).
    DropPeer,
    /// Write (true) or remove the durable mark of a failed local disk (S2).
    Mark(bool),
}

/// How a move ended, told to the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MoveEnd {
    /// The target serves.
    Moved,
    /// This node serves again.
    RolledBack(String),
    /// Nobody serves, or it is not known who does.
    Failed(String),
}

/// How much of the grace period (90 s unless configured) may have run before the gate opens. Clients that
/// come after its end cannot reclaim their locks (RFC 8881 section 8.4.2.1): the server starts anew.
pub const GRACE_SPENT: Duration = Duration::from_secs(20);
/// Time for warming the target.
pub const WARM: Duration = Duration::from_secs(20);
/// How long a demoted owner waits for its target before it takes the service back.
pub const HAND_OVER_PATIENCE: Duration = Duration::from_secs(15);
/// After how long a target opens by itself when the old owner has demoted but sent no hand-over.
pub const UNASKED_OPENING: Duration = Duration::from_secs(1);
/// Pause between two tries of an opening.
pub const RETRY: Duration = Duration::from_secs(1);
/// Between two reads while a write of unknown outcome may still land.
pub const UNSETTLED_READ: Duration = Duration::from_secs(1);
/// Pause after a read that failed.
pub const UNREADABLE_PAUSE: Duration = Duration::from_millis(300);
/// Time for a search for the silent peer.
pub const SEEK: Duration = Duration::from_secs(2);
/// Pause between two searches.
pub const SEEK_AGAIN: Duration = Duration::from_millis(500);
/// Time for a chore.
pub const CHORE: Duration = Duration::from_secs(5);
/// Pause after a chore, so that its effect can be seen before it is repeated.
pub const CHORE_PAUSE: Duration = Duration::from_secs(1);
/// How long a chore that failed leaves the turn to others.
pub const CHORE_RETRY: Duration = Duration::from_secs(10);
/// Pause after a connect, which may fail for reasons that last (split brain).
pub const CONNECT_PAUSE: Duration = Duration::from_secs(3);
/// How long a disk must have failed before that is marked: attaching passes through such states.
pub const FAILED_PATIENCE: Duration = Duration::from_millis(500);
/// Between two askings of the other node, and how long this one waits for it to act.
pub const ASK_PAUSE: Duration = Duration::from_secs(5);
/// How long an owner tries to open before it asks the other node to take the service.
pub const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// How long an answerless freeze is watched before the helper is run again (H2).
pub const FREEZE_PATIENCE: Duration = Duration::from_millis(2500);
/// How long a Primary without the authority may try to close in good order before it stops its node.
pub const CLOSE_PATIENCE: Duration = Duration::from_secs(15);
/// Between two automatic moves for this node's health.
pub const AUTO_MOVE_PAUSE: Duration = Duration::from_secs(60);
/// Pause after an automatic move of an unfit owner that was rolled back.
pub const AUTO_MOVE_RETRY: Duration = Duration::from_secs(2);
/// Time for an automatic move's way to the demotion.
pub const AUTO_MOVE: Duration = Duration::from_secs(10);
/// Time for any other compare-and-set.
pub const CAS: Duration = Duration::from_secs(3);
