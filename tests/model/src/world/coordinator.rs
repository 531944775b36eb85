//! The consensus store: linearizable, with revisions; sometimes slow, away, or restored from a backup.
//!
//! Owns the committed record. Every read and compare-and-set takes effect at one moment, which lies
//! between its request and its answer, or after the asker has given up.

use nasd::core::machine::{CasResult, Versioned};
use nasd::core::record::Record;

/// What is asked of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// A linearizable read.
    Read,
    /// A compare-and-set.
    Cas {
        /// The revision to compare; `None`: create.
        expected: Option<i64>,
        /// The whole new record.
        record: Record,
    },
}

/// What it answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// What is there.
    Read(Option<Versioned>),
    /// What came of a compare-and-set.
    Cas(CasResult),
}

/// The store.
#[derive(Debug, Clone)]
pub struct Coordinator {
    /// It has a majority.
    pub up: bool,
    /// Which node reaches it.
    pub reach: [bool; 2],
    /// Compare-and-sets may stay under way long after their askers gave up.
    pub sticky: bool,
    /// The next compare-and-set takes effect, and its answer is lost.
    pub lose_answer: bool,
    /// The next compare-and-set lands after its asker has given up.
    pub land_late: bool,
    /// What is committed.
    pub stored: Option<Versioned>,
    /// All records ever committed, oldest first.
    pub past: Vec<Record>,
    revision: i64,
    backup: Option<(Option<Versioned>, i64)>,
    /// A backup was restored over a younger record.
    pub restored: bool,
}

impl Default for Coordinator {
    fn default() -> Self {
        Self {
            up: true,
            reach: [true; 2],
            sticky: false,
            lose_answer: false,
            land_late: false,
            stored: None,
            past: Vec::new(),
            revision: 0,
            backup: None,
            restored: false,
        }
    }
}

impl Coordinator {
    /// Whether that node gets an answer.
    #[must_use]
    pub fn answers(&self, n: usize) -> bool {
        self.up && self.reach[n]
    }

    /// The committed record.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        self.stored.as_ref().map(|v| &v.record)
    }

    /// Takes effect now.
    pub fn take(&mut self, ask: Ask) -> Answer {
        match ask {
            Ask::Read => Answer::Read(self.stored.clone()),
            Ask::Cas { expected, record } => Answer::Cas(self.compare_and_set(expected, record)),
        }
    }

    fn compare_and_set(&mut self, expected: Option<i64>, record: Record) -> CasResult {
        if self.stored.as_ref().map(|v| v.revision) != expected {
            return CasResult::Lost(self.stored.clone());
        }
        self.revision += 1;
        let revision = self.revision;
        self.past.push(record.clone());
        self.stored = Some(Versioned { revision, record });
        CasResult::Won { revision }
    }

    /// Somebody takes a backup.
    pub fn back_up(&mut self) {
        self.backup = Some((self.stored.clone(), self.revision));
    }

    /// Somebody restores it.
    pub fn restore(&mut self) {
        if let Some((stored, revision)) = self.backup.clone() {
            self.restored |= revision != self.revision;
            (self.stored, self.revision) = (stored, revision);
        }
    }
}
