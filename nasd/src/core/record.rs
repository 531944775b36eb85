//! The service's record in the coordinator and the transitions that design section 4 allows.
//!
//! Owns the only code that builds a successor of a record. Keeps S1 (who may promote), S2 (who is
//! current) and "the epoch never falls". Each builder returns the *whole* new record; the caller
//! writes it with a compare-and-set on the revision it has read, and nothing is true before that
//! compare-and-set has been confirmed (S8, S12).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::ParseIntError;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Name of a NAS node as the configuration spells it (its host name).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(pub String);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for NodeName {
    fn from(name: &str) -> Self {
        Self(name.to_owned())
    }
}

/// A DRBD data-generation identifier without its primary bit (bit 0, `UUID_PRIMARY` in `drbd.h`).
///
/// Written as a hexadecimal string: JSON readers elsewhere round 64-bit numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DataUuid(u64);

impl DataUuid {
    /// Masks the primary bit off.
    #[must_use]
    pub fn new(raw: u64) -> Self {
        Self(raw & !1)
    }

    /// The identifier, bit 0 clear.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<DataUuid> for String {
    fn from(uuid: DataUuid) -> Self {
        format!("{:016x}", uuid.0)
    }
}

impl TryFrom<String> for DataUuid {
    type Error = ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16).map(Self::new)
    }
}

impl fmt::Display for DataUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Who holds the authority over a service, and what is under way (design section 2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum Phase {
    /// `owner` serves.
    Serving {
        /// The node that serves.
        owner: NodeName,
    },
    /// Planned move: the authority belongs to `to`. `from` may still go back by itself while it has
    /// not demoted; afterwards only by a compare-and-set.
    Moving {
        /// The node that gives the service away.
        from: NodeName,
        /// The node that receives it.
        to: NodeName,
    },
    /// `owner` takes over without the former owner's consent and has not opened yet.
    Taking {
        /// The node that takes the service.
        owner: NodeName,
    },
    /// Nobody serves: a new service, or one that an operator stopped.
    Stopped,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serving { owner } => write!(f, "serving({owner})"),
            Self::Moving { from, to } => write!(f, "moving({from}→{to})"),
            Self::Taking { owner } => write!(f, "taking({owner})"),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// One service's record: JSON, one key per service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Rises by one with every transfer of authority; never falls.
    pub epoch: u64,
    /// What is true now.
    pub phase: Phase,
    /// Nodes whose replica holds every acknowledged write (S2).
    pub current: BTreeSet<NodeName>,
    /// DRBD current UUID of each volume at the last transition that knew it.
    pub data_uuid: BTreeMap<u16, DataUuid>,
    /// Who holds the service: no automatic move or takeover while this is set (`nasctl hold`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<String>,
    /// Rises with every opening; the marker file on the volume carries the same number or, when
    /// `serving` has not been written back yet, a higher one.
    pub generation: u64,
    /// While `taking`: an operator has confirmed that a marker as old as this generation opens (S3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepts: Option<u64>,
}

/// A transition that design section 4 does not have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TransitionError {
    /// The record's phase does not lead there.
    #[error("{node} may not {what}: the record says {phase} in epoch {epoch}")]
    NotAllowed {
        /// Who asked.
        node: NodeName,
        /// What it wanted, as a verb.
        what: &'static str,
        /// The phase that the record has.
        phase: Phase,
        /// The record's epoch.
        epoch: u64,
    },
    /// A node outside `current` may never own the data (S2).
    #[error("{node} is not in the current set {{{}}}: its replica may miss acknowledged writes; let it resynchronise first", names(.current))]
    NotCurrent {
        /// The node that is not current.
        node: NodeName,
        /// The nodes that are.
        current: BTreeSet<NodeName>,
    },
    /// Somebody must hold every acknowledged write.
    #[error(
        "{node} alone holds every acknowledged write and cannot be excluded; it must take the service"
    )]
    LastCurrent {
        /// The node that would have been excluded.
        node: NodeName,
    },
}

fn names(set: &BTreeSet<NodeName>) -> String {
    set.iter().map(|n| n.0.as_str()).collect::<Vec<_>>().join(", ")
}

impl Record {
    /// The record of a service that has never served: both nodes hold the same (empty) data.
    #[must_use]
    pub fn first(current: BTreeSet<NodeName>, data_uuid: BTreeMap<u16, DataUuid>) -> Self {
        Self {
            epoch: 0,
            phase: Phase::Stopped,
            current,
            data_uuid,
            hold: None,
            generation: 0,
            accepts: None,
        }
    }

    /// The node that holds the authority, if any does.
    #[must_use]
    pub fn authority(&self) -> Option<&NodeName> {
        match &self.phase {
            Phase::Serving { owner } | Phase::Taking { owner } => Some(owner),
            Phase::Moving { to, .. } => Some(to),
            Phase::Stopped => None,
        }
    }

    /// Whether a node may (still) serve: it has the authority, or it gives it away and has not
    /// demoted, which only DRBD knows.
    #[must_use]
    pub fn may_serve(&self, node: &NodeName) -> bool {
        let leaves = matches!(&self.phase, Phase::Moving { from, .. } if from == node);
        self.authority() == Some(node) || leaves
    }

    /// `serving(A)` → `moving(A→B, e+1)`, by A, before the cut.
    ///
    /// # Errors
    /// When `from` does not serve or `to` is not current.
    pub fn begin_move(&self, from: &NodeName, to: &NodeName) -> Result<Self, TransitionError> {
        let serves = matches!(&self.phase, Phase::Serving { owner } if owner == from);
        if !serves || from == to {
            return Err(self.refused(from, "begin a move"));
        }
        self.must_be_current(to)?;
        let phase = Phase::Moving { from: from.clone(), to: to.clone() };
        Ok(Self { epoch: self.epoch + 1, phase, ..self.clone() })
    }

    /// `moving(A→B, e+1)` → `serving(B, e+1)`, by B, after opening.
    ///
    /// # Errors
    /// When the record is not a move to `me`.
    pub fn settle_move(
        &self,
        me: &NodeName,
        generation: u64,
        data_uuid: BTreeMap<u16, DataUuid>,
    ) -> Result<Self, TransitionError> {
        if !matches!(&self.phase, Phase::Moving { to, .. } if to == me) {
            return Err(self.refused(me, "settle a move"));
        }
        Ok(self.serving_since(me, self.epoch, generation, data_uuid))
    }

    /// `moving(A→B, e+1)` → `serving(A, e+2)`, by A: it comes back. Before A has demoted this only
    /// writes down what is true; afterwards A may promote only once it is confirmed (C1, C4).
    ///
    /// An owner that has lost its own disk may come back too: it serves the other one's data as long as
    /// it has not demoted, and a promotion asks for more than the authority.
    ///
    /// # Errors
    /// When the record is not a move away from `me`.
    pub fn return_from_move(&self, me: &NodeName) -> Result<Self, TransitionError> {
        if !matches!(&self.phase, Phase::Moving { from, .. } if from == me) {
            return Err(self.refused(me, "come back from a move"));
        }
        let phase = Phase::Serving { owner: me.clone() };
        Ok(Self { epoch: self.epoch + 1, phase, ..self.clone() })
    }

    /// As [`Record::return_from_move`], with the target lost: back, and alone (S2).
    ///
    /// # Errors
    /// When the record is not a move away from `me`.
    pub fn return_alone(&self, me: &NodeName) -> Result<Self, TransitionError> {
        let mut next = self.return_from_move(me)?;
        self.must_be_current(me)?;
        next.current = BTreeSet::from([me.clone()]);
        Ok(next)
    }

    /// `stopped` → `serving(me, e+1)`: the first start of a service, or after an operator's stop.
    ///
    /// # Errors
    /// When the service is not stopped, or `me` is not current.
    pub fn start(&self, me: &NodeName) -> Result<Self, TransitionError> {
        if self.phase != Phase::Stopped {
            return Err(self.refused(me, "start a service"));
        }
        self.must_be_current(me)?;
        let phase = Phase::Serving { owner: me.clone() };
        Ok(Self { epoch: self.epoch + 1, phase, ..self.clone() })
    }

    /// Anything that is not mine → `taking(me, e+1, {me})`: by a standby or target whose owner is gone,
    /// or by an owner that has demoted and whose target is gone.
    ///
    /// # Errors
    /// When `me` already has the service, nobody has it, or `me` is not current.
    pub fn take(&self, me: &NodeName) -> Result<Self, TransitionError> {
        let mine = match &self.phase {
            Phase::Serving { owner } | Phase::Taking { owner } => owner == me,
            Phase::Moving { .. } => false,
            Phase::Stopped => true,
        };
        if mine {
            return Err(self.refused(me, "take over"));
        }
        self.must_be_current(me)?;
        let phase = Phase::Taking { owner: me.clone() };
        let current = BTreeSet::from([me.clone()]);
        // What an operator has accepted was another node's replica.
        Ok(Self { epoch: self.epoch + 1, phase, current, accepts: None, ..self.clone() })
    }

    /// Anything but `stopped` → `taking(me, e+1, {me})`, in memory only: an operator's emergency start
    /// without a coordinator. It becomes true by a compare-and-set on this very record.
    ///
    /// # Errors
    /// When nobody has the service, or `me` is not current.
    pub fn emergency(&self, me: &NodeName) -> Result<Self, TransitionError> {
        if self.phase == Phase::Stopped {
            return Err(self.refused(me, "start in an emergency"));
        }
        self.must_be_current(me)?;
        let phase = Phase::Taking { owner: me.clone() };
        let current = BTreeSet::from([me.clone()]);
        let accepts = self.accepts.filter(|_| self.authority() == Some(me));
        Ok(Self { epoch: self.epoch + 1, phase, current, accepts, ..self.clone() })
    }

    /// The lowest generation that the marker on the volume of `me` may have (S2): the record's, or what
    /// an operator has confirmed for this opening.
    #[must_use]
    pub fn lowest_generation(&self, me: &NodeName) -> u64 {
        let taking = matches!(&self.phase, Phase::Taking { owner } if owner == me);
        self.accepts.filter(|_| taking).map_or(self.generation, |a| a.min(self.generation))
    }

    /// `taking(B)` → `serving(B)`, just before the gate opens.
    ///
    /// # Errors
    /// When `me` is not taking.
    pub fn settle_take(
        &self,
        me: &NodeName,
        generation: u64,
        data_uuid: BTreeMap<u16, DataUuid>,
    ) -> Result<Self, TransitionError> {
        if !matches!(&self.phase, Phase::Taking { owner } if owner == me) {
            return Err(self.refused(me, "settle a takeover"));
        }
        Ok(self.serving_since(me, self.epoch, generation, data_uuid))
    }

    /// The owner removes a node from the current set: peer or one of its disks lost (S2). Always
    /// written, even when the node is out already: a write that raced in must be superseded (C5).
    ///
    /// # Errors
    /// When `owner` does not hold the service, or nobody would be left who has the data (S2).
    pub fn exclude(&self, owner: &NodeName, lost: &NodeName) -> Result<Self, TransitionError> {
        if self.authority() != Some(owner) {
            return Err(self.refused(owner, "change the current set"));
        }
        let mut next = self.clone();
        next.current.remove(lost);
        if next.current.is_empty() {
            return Err(TransitionError::LastCurrent { node: lost.clone() });
        }
        Ok(next)
    }

    /// The owner adds a node again: it is UpToDate and Established (S2).
    ///
    /// # Errors
    /// When `owner` does not serve.
    pub fn include(&self, owner: &NodeName, back: &NodeName) -> Result<Self, TransitionError> {
        if !matches!(&self.phase, Phase::Serving { owner: o } if o == owner) {
            return Err(self.refused(owner, "change the current set"));
        }
        let mut next = self.clone();
        next.current.insert(back.clone());
        Ok(next)
    }

    /// `serving(me)` again with the generation and UUIDs of an opening that just happened.
    ///
    /// # Errors
    /// When `me` does not serve.
    pub fn reopened(
        &self,
        me: &NodeName,
        generation: u64,
        data_uuid: BTreeMap<u16, DataUuid>,
    ) -> Result<Self, TransitionError> {
        if !matches!(&self.phase, Phase::Serving { owner } if owner == me) {
            return Err(self.refused(me, "reopen"));
        }
        Ok(self.serving_since(me, self.epoch, generation, data_uuid))
    }

    /// The same with the UUIDs that the owner's disks have by now.
    ///
    /// # Errors
    /// When `owner` does not serve.
    pub fn with_data(
        &self,
        owner: &NodeName,
        data_uuid: BTreeMap<u16, DataUuid>,
    ) -> Result<Self, TransitionError> {
        if !matches!(&self.phase, Phase::Serving { owner: o } if o == owner) {
            return Err(self.refused(owner, "note the data's generation"));
        }
        Ok(Self { data_uuid, ..self.clone() })
    }

    /// Held by an operator, or released.
    #[must_use]
    pub fn held(&self, by: Option<String>) -> Self {
        Self { hold: by, ..self.clone() }
    }

    fn serving_since(
        &self,
        me: &NodeName,
        epoch: u64,
        generation: u64,
        data_uuid: BTreeMap<u16, DataUuid>,
    ) -> Self {
        let generation = generation.max(self.generation);
        let phase = Phase::Serving { owner: me.clone() };
        Self { epoch, phase, data_uuid, generation, accepts: None, ..self.clone() }
    }

    fn must_be_current(&self, node: &NodeName) -> Result<(), TransitionError> {
        if self.current.contains(node) {
            return Ok(());
        }
        Err(TransitionError::NotCurrent { node: node.clone(), current: self.current.clone() })
    }

    fn refused(&self, node: &NodeName, what: &'static str) -> TransitionError {
        TransitionError::NotAllowed {
            node: node.clone(),
            what,
            phase: self.phase.clone(),
            epoch: self.epoch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: &str) -> NodeName {
        NodeName::from(n)
    }

    fn serving_a() -> Record {
        let both = BTreeSet::from([node("a"), node("b")]);
        Record::first(both, BTreeMap::from([(0, DataUuid::new(0x11))])).start(&node("a")).unwrap()
    }

    #[test]
    fn planned_move_transfers_authority_before_the_cut() {
        let moving = serving_a().begin_move(&node("a"), &node("b")).unwrap();
        assert_eq!(moving.epoch, 2);
        assert_eq!(moving.authority(), Some(&node("b")));
        let settled = moving.settle_move(&node("b"), 7, BTreeMap::new()).unwrap();
        assert_eq!((settled.epoch, settled.generation), (2, 7));
    }

    #[test]
    fn c1_return_and_settle_exclude_each_other_by_epoch() {
        let moving = serving_a().begin_move(&node("a"), &node("b")).unwrap();
        let back = moving.return_from_move(&node("a")).unwrap();
        assert_eq!(back.epoch, moving.epoch + 1);
        assert!(back.settle_move(&node("b"), 1, BTreeMap::new()).is_err());
    }

    #[test]
    fn s2_a_node_outside_current_gets_nothing() {
        let sole = serving_a().exclude(&node("a"), &node("b")).unwrap();
        let refused = sole.begin_move(&node("a"), &node("b")).unwrap_err();
        assert!(matches!(refused, TransitionError::NotCurrent { .. }), "{refused}");
        assert!(sole.take(&node("b")).is_err());
    }

    #[test]
    fn a_take_makes_the_taker_sole_current() {
        let taking = serving_a().take(&node("b")).unwrap();
        assert_eq!(taking.current, BTreeSet::from([node("b")]));
        assert!(taking.take(&node("a")).is_err(), "the former owner is not current any more");
    }

    #[test]
    fn s3_what_an_operator_accepts_counts_for_one_opening_of_that_node() {
        let (a, b) = (node("a"), node("b"));
        let taking = Record { accepts: Some(1), generation: 9, ..serving_a().take(&b).unwrap() };
        assert_eq!(taking.lowest_generation(&b), 1);
        assert_eq!(taking.lowest_generation(&a), 9);
        let settled = taking.settle_take(&b, 10, BTreeMap::new()).unwrap();
        assert_eq!((settled.accepts, settled.lowest_generation(&b)), (None, 10));
        let both = BTreeSet::from([a.clone(), b]);
        assert_eq!(Record { current: both, ..taking }.take(&a).unwrap().accepts, None);
    }

    #[test]
    fn s3_an_emergency_takes_only_what_may_be_taken() {
        let (a, b) = (node("a"), node("b"));
        for me in [&a, &b] {
            let taken = serving_a().emergency(me).unwrap();
            assert_eq!((taken.epoch, taken.authority()), (2, Some(me)));
            assert_eq!(taken.current, BTreeSet::from([me.clone()]));
        }
        assert!(serving_a().exclude(&a, &b).unwrap().emergency(&b).is_err());
        assert!(Record::first(BTreeSet::from([a.clone()]), BTreeMap::new()).emergency(&a).is_err());
    }

    #[test]
    fn json_is_strict_and_stable() {
        let record = serving_a();
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(
            text,
            r#"{"epoch":1,"phase":{"name":"serving","owner":"a"},"current":["a","b"],"data_uuid":{"0":"0000000000000010"},"generation":0}"#
        );
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
        assert!(serde_json::from_str::<Record>(&text.replace("\"epoch\"", "\"epoche\"")).is_err());
    }
}
