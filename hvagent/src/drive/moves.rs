//! The moves that nasds have told of, one per service at most: what a mount that appears late must hear,
//! and to which announcements an answer is owed.

use std::collections::BTreeMap;
use std::time::Duration;

use nasd_proto::Readiness;

use crate::core::Now;
use crate::core::phase::{Event, MoveId};

/// A move that was cut and never told to be over is forgotten after this.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// One move.
#[derive(Debug, Clone, PartialEq)]
pub struct Move {
    /// Its number.
    pub id: MoveId,
    /// Until when it is announced or, once cut, remembered.
    pub until: Now,
    /// How long the storage may be silent.
    pub outage: Duration,
    /// It has begun.
    pub cut: bool,
    /// What was answered last.
    pub answered: Option<Readiness>,
    /// When.
    pub answered_at: Now,
}

/// By service.
#[derive(Debug, Default)]
pub struct Moves(BTreeMap<String, Move>);

impl Moves {
    /// An announcement, or one again: the answer is owed anew. `Err`: a newer move is known.
    pub fn announced(
        &mut self,
        service: &str,
        id: MoveId,
        until: Now,
        outage: Duration,
    ) -> Result<(), MoveId> {
        match self.0.get_mut(service) {
            Some(known) if known.id > id || (known.id == id && known.cut) => Err(known.id),
            Some(known) if known.id == id => {
                known.until = known.until.max(until);
                (known.outage, known.answered) = (outage, None);
                Ok(())
            }
            _ => {
                let one =
                    Move { id, until, outage, cut: false, answered: None, answered_at: Now::ZERO };
                self.0.insert(service.to_owned(), one);
                Ok(())
            }
        }
    }

    /// It has begun.
    pub fn cut(&mut self, service: &str, id: MoveId, now: Now) {
        let until = now.saturating_add(FORGOTTEN);
        let newer = self.0.get(service).is_some_and(|known| known.id > id);
        if !newer {
            let one = Move {
                id,
                until,
                outage: Duration::ZERO,
                cut: true,
                answered: None,
                answered_at: Now::ZERO,
            };
            self.0.insert(service.to_owned(), one);
        }
    }

    /// It is over, in one way or the other.
    pub fn over(&mut self, service: &str, id: MoveId) {
        if self.0.get(service).is_some_and(|known| known.id <= id) {
            self.0.remove(service);
        }
    }

    /// Forgets what has ended by itself.
    pub fn expire(&mut self, now: Now) {
        self.0.retain(|_, known| known.until > now);
    }

    /// The announced move of a service that has not begun.
    #[must_use]
    pub fn waiting(&self, service: &str) -> Option<&Move> {
        self.0.get(service).filter(|known| !known.cut)
    }

    /// All announced moves that have not begun, to note what is answered.
    pub fn all_waiting(&mut self) -> impl Iterator<Item = (&String, &mut Move)> {
        self.0.iter_mut().filter(|(_, known)| !known.cut)
    }

    /// What a mount of that service that is seen for the first time has missed.
    #[must_use]
    pub fn for_newcomer(&self, service: &str, now: Now) -> Vec<Event> {
        self.0.get(service).map_or_else(Vec::new, |known| match known.cut {
            true => vec![Event::CutBegun { id: known.id }],
            false => {
                vec![Event::Announced { id: known.id, lease: known.until.saturating_sub(now) }]
            }
        })
    }
}
