//! The wire between the two nasds: one-way cuts, loss, delay, reordering.
//!
//! Owns what two nasds say to each other. DRBD's connection and the coordinator have their own links.

use std::time::Duration;

use nasd::core::machine::HandOverResult;
use nasd::core::peer::PeerBeat;

use super::coordinator::{Answer, Ask};

/// What one nasd says to the other. `ask` is the asker's number for the answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// A beat; asks for the right of an epoch with a life, if it wants it.
    Beat {
        /// Number for the answer.
        ask: u64,
        /// The sender's facts.
        beat: PeerBeat,
        /// The right that it asks for.
        right: Option<(u64, Duration)>,
    },
    /// The answer, with the answerer's own beat.
    BeatReply {
        /// Number of the question.
        ask: u64,
        /// The answerer's facts.
        beat: PeerBeat,
        /// It consents to the right that was asked for.
        consents: bool,
    },
    /// Get ready for a move.
    Prepare {
        /// Number for the answer.
        ask: u64,
    },
    /// Ready.
    PrepareReply {
        /// Number of the question.
        ask: u64,
    },
    /// This node has demoted: open.
    HandOver {
        /// Number for the answer.
        ask: u64,
        /// Epoch of the move.
        epoch: u64,
    },
    /// What came of it.
    HandOverReply {
        /// Number of the question.
        ask: u64,
        /// Verdict.
        result: HandOverResult,
    },
    /// This node cannot serve: take over.
    AskTakeover {
        /// Why.
        reason: String,
    },
    /// Ask the coordinator for me: I do not reach it.
    Relay {
        /// Number for the answer.
        ask: u64,
        /// What.
        what: Ask,
    },
    /// What it said; `None`: nothing.
    RelayReply {
        /// Number of the question.
        ask: u64,
        /// Its answer.
        answer: Option<Answer>,
    },
}

impl Message {
    /// Short form for the trace.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Beat { .. } => "beat",
            Self::BeatReply { .. } => "beat-reply",
            Self::Prepare { .. } => "prepare",
            Self::PrepareReply { .. } => "prepare-reply",
            Self::HandOver { .. } => "hand-over",
            Self::HandOverReply { .. } => "hand-over-reply",
            Self::AskTakeover { .. } => "ask-takeover",
            Self::Relay { .. } => "relay",
            Self::RelayReply { .. } => "relay-reply",
        }
    }

    /// Beats are too many to be told one by one.
    #[must_use]
    pub fn is_beat(&self) -> bool {
        matches!(self, Self::Beat { .. } | Self::BeatReply { .. })
    }
}

/// The wire.
#[derive(Debug, Clone)]
pub struct Net {
    /// Per sender: its packets arrive.
    pub open: [bool; 2],
    /// Percent of messages lost.
    pub loss: u64,
    /// Longest delay, µs.
    pub delay: u64,
}

impl Default for Net {
    fn default() -> Self {
        Self { open: [true; 2], loss: 0, delay: 2000 }
    }
}

impl Net {
    /// Packets go both ways.
    #[must_use]
    pub fn both_ways(&self) -> bool {
        self.open == [true; 2]
    }
}
