//! The event stream: joins the group, then dumps, then follows.
//!
//! Keeps S12: after a loss (overrun, a gap in the kernel's counter, a message that cannot be read)
//! the picture is thrown away and read anew, and the reader is told.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::client::OpenError;
use crate::commands::TransportError;
use crate::enums::NotifyKind;
use crate::model::{Applied, Event, Model, Object, ObjectKey};
use crate::socket::{Genl, datagram, readable};
use crate::wire::message::{self, Frame, Message};
use crate::wire::nests;
use crate::wire::request::Requests;

/// Wanted receive buffer: a burst of state changes on many resources must fit.
const BUFFER: usize = 4 << 20;
/// A dump that has not ended by then has failed.
const DUMP_DEADLINE: Duration = Duration::from_secs(5);
/// How long a missing number may stay missing while nothing else comes. The kernel takes the number
/// of a helper event outside its ordering lock, so neighbours may come swapped.
const GAP_PATIENCE: Duration = Duration::from_millis(50);
/// How many later messages a missing number may lag behind.
const GAP_MESSAGES: u32 = 8;

/// Why the picture was read anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncReason {
    /// For the first time.
    Start,
    /// The socket's buffer overran.
    Overrun,
    /// Numbers of the kernel's counter are missing.
    Gap,
    /// A message could not be read.
    Unreadable,
    /// A resource has a new name.
    Rename,
    /// The socket or a dump had failed before.
    Failure,
}

/// What the reader is told. The picture itself is [`Events::model`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// The picture has been read anew; everything may be different.
    Synced(SyncReason),
    /// An object changed, appeared or is gone.
    Changed {
        /// The resource.
        resource: String,
        /// The object.
        object: ObjectKey,
        /// What happened to it.
        kind: NotifyKind,
        /// More of the same change follow: conclusions should wait for the last one.
        continues: bool,
    },
    /// The kernel calls a helper.
    HelperCalled {
        /// The resource.
        resource: String,
        /// Which helper, for example `fence-peer`.
        name: String,
    },
    /// A helper has ended.
    HelperEnded {
        /// The resource.
        resource: String,
        /// Which helper.
        name: String,
        /// Its exit code; 255 if it was killed or could not be started.
        exit_code: u8,
    },
}

/// Notices lost numbers, tolerates swapped ones. Pure.
#[derive(Debug, Default)]
struct Counter {
    newest: Option<u32>,
    missing: BTreeSet<u32>,
    waited: u32,
    overflow: bool,
}

impl Counter {
    fn observe(&mut self, seq: u32) {
        if !self.missing.is_empty() {
            self.waited += 1;
        }
        let Some(newest) = self.newest else {
            self.newest = Some(seq);
            return;
        };
        let ahead = seq.wrapping_sub(newest);
        if ahead == 0 || ahead > u32::MAX / 2 {
            self.missing.remove(&seq);
        } else if ahead > GAP_MESSAGES {
            self.overflow = true;
        } else {
            self.missing.extend((1..ahead).map(|step| newest.wrapping_add(step)));
            self.newest = Some(seq);
        }
        if self.missing.is_empty() {
            self.waited = 0;
        }
    }

    fn has_gap(&self) -> bool {
        self.overflow || !self.missing.is_empty()
    }

    fn has_lost(&self) -> bool {
        self.overflow || self.waited > GAP_MESSAGES
    }
}

/// Where the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Reading the dump with this number.
    Dumping { seq: u32, until: Instant },
    /// The picture is whole.
    Live,
    /// Something failed: open anew.
    Broken,
}

/// A stream of notifications, with the picture that they add up to.
#[derive(Debug)]
pub struct Events {
    genl: Genl,
    model: Model,
    counter: Counter,
    phase: Phase,
    reason: SyncReason,
    waiting: VecDeque<Notification>,
}

impl Events {
    pub(crate) fn open() -> Result<Self, OpenError> {
        let genl = Genl::open()?;
        let model = Model::new(genl.family.abi);
        let mut events = Self {
            genl,
            model,
            counter: Counter::default(),
            phase: Phase::Broken,
            reason: SyncReason::Start,
            waiting: VecDeque::new(),
        };
        events.begin()?;
        Ok(events)
    }

    /// Joins first, then asks for the dump: nothing falls between.
    fn begin(&mut self) -> Result<(), OpenError> {
        self.genl.join(BUFFER)?;
        let abi = self.genl.family.abi;
        self.model = Model::new(abi);
        self.counter = Counter::default();
        let seq = self.genl.start_dump(&Requests::dump(abi.table().cmd_initial_state))?;
        self.phase = Phase::Dumping { seq, until: Instant::now() + DUMP_DEADLINE };
        Ok(())
    }

    fn resync(&mut self, reason: SyncReason) -> Result<(), OpenError> {
        self.reason = reason;
        self.phase = Phase::Broken;
        self.genl = Genl::open()?;
        self.begin()
    }

    /// The picture, or `None` while it is not whole (before the first [`Notification::Synced`], and
    /// from a loss to the next): then nothing is known (S12).
    #[must_use]
    pub fn model(&self) -> Option<&Model> {
        (self.phase == Phase::Live).then_some(&self.model)
    }

    /// The next notification; `None` when the time is over.
    ///
    /// # Errors
    /// The stream is broken (the module may be gone). The next call tries to open it anew.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Notification>, OpenError> {
        let deadline = Instant::now() + timeout;
        if self.phase == Phase::Broken {
            self.resync(SyncReason::Failure)?;
        }
        loop {
            if let Some(notification) = self.waiting.pop_front() {
                return Ok(Some(notification));
            }
            let result = self.step(deadline);
            match result {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => {
                    self.phase = Phase::Broken;
                    return Err(error);
                }
            }
        }
    }

    /// Reads one datagram, or acts on its absence. `false`: the caller's time is over.
    fn step(&mut self, deadline: Instant) -> Result<bool, OpenError> {
        let mut until = deadline;
        if let Phase::Dumping { until: end, .. } = self.phase {
            until = until.min(end);
        }
        if self.counter.has_gap() {
            until = until.min(Instant::now() + GAP_PATIENCE);
        }
        if readable(self.genl.socket(), until)? {
            self.read()?;
            return Ok(true);
        }
        if self.counter.has_gap() && until < deadline {
            self.resync(SyncReason::Gap)?;
            return Ok(true);
        }
        match self.phase {
            Phase::Dumping { until, .. } if Instant::now() >= until => {
                Err(TransportError::NoReply.into())
            }
            _ => Ok(Instant::now() < deadline),
        }
    }

    fn read(&mut self) -> Result<(), OpenError> {
        let raw = match datagram(self.genl.socket()) {
            Ok(raw) => raw,
            Err(TransportError::Socket(nix::libc::ENOBUFS)) => {
                return self.resync(SyncReason::Overrun);
            }
            Err(error) => return Err(error.into()),
        };
        for frame in Frame::split(&raw)? {
            self.frame(&frame)?;
            if self.counter.has_lost() {
                return self.resync(SyncReason::Gap);
            }
        }
        Ok(())
    }

    fn frame(&mut self, frame: &Frame<'_>) -> Result<(), OpenError> {
        let ours = matches!(self.phase, Phase::Dumping { seq, .. } if seq == frame.seq);
        match frame.kind {
            message::ERROR | message::DONE if ours && frame.errno() != 0 => {
                Err(TransportError::from_errno(frame.errno()).into())
            }
            message::DONE if ours && !self.model.is_complete() => {
                Err(TransportError::NoReply.into())
            }
            kind if kind == self.genl.family.id => self.message(frame),
            _ => Ok(()),
        }
    }

    fn message(&mut self, frame: &Frame<'_>) -> Result<(), OpenError> {
        let message = Message::parse(frame)?;
        match nests::event(self.genl.family.abi, &message) {
            Ok(Some(event)) if event.kind == NotifyKind::Rename => self.resync(SyncReason::Rename),
            Ok(Some(event)) => {
                self.enter(event);
                Ok(())
            }
            Ok(None) => Ok(()),
            // In a dump this would come again and again; in an event it is a loss.
            Err(error) if self.phase != Phase::Live => Err(error.into()),
            Err(_) => self.resync(SyncReason::Unreadable),
        }
    }

    fn enter(&mut self, event: Event) {
        // Dump entries carry our number, multicast the kernel's counter.
        if event.kind != NotifyKind::Exists {
            self.counter.observe(event.seq);
        }
        let applied = self.model.apply(&event);
        if applied == Applied::Complete {
            self.phase = Phase::Live;
            self.waiting.push_back(Notification::Synced(self.reason));
        }
        let told = applied == Applied::Updated && self.phase == Phase::Live;
        self.waiting.extend(notification(event, told));
    }
}

fn notification(event: Event, told: bool) -> Option<Notification> {
    let Event { kind, continues, resource, object, .. } = event;
    match (object, kind) {
        (Object::Helper { name, .. }, NotifyKind::Call) => {
            Some(Notification::HelperCalled { resource, name })
        }
        (Object::Helper { name, status, .. }, NotifyKind::Response) => {
            let exit_code = exit_code(status);
            Some(Notification::HelperEnded { resource, name, exit_code })
        }
        (object, _) if told => {
            Some(Notification::Changed { resource, object: object.key()?, kind, continues })
        }
        _ => None,
    }
}

/// A wait status holds the exit code in bits 8 to 15 and a signal in bits 0 to 6; a negative value is
/// an errno (the helper was not started).
fn exit_code(status: u32) -> u8 {
    if status & 0x7f != 0 || status > 0xffff {
        return u8::MAX;
    }
    u8::try_from(status >> 8).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(numbers: &[u32]) -> Counter {
        let mut counter = Counter::default();
        numbers.iter().for_each(|seq| counter.observe(*seq));
        counter
    }

    #[test]
    fn numbers_in_order_are_no_loss() {
        assert!(!counted(&[56, 57, 58, 59]).has_gap());
        assert!(!counted(&[u32::MAX - 1, u32::MAX, 0, 1]).has_gap());
    }

    #[test]
    fn a_swap_is_no_loss() {
        assert!(!counted(&[56, 58, 57, 59]).has_gap());
        assert!(!counted(&[100, 99, 101]).has_gap(), "the first may come late");
        assert!(counted(&[56, 58]).has_gap(), "not yet known");
        assert!(!counted(&[56, 58]).has_lost());
    }

    #[test]
    fn a_number_that_stays_missing_is_a_loss() {
        let numbers: Vec<u32> = (10..30).filter(|seq| *seq != 12).collect();
        assert!(counted(&numbers).has_lost());
        assert!(counted(&[1, 1000]).has_lost());
    }

    #[test]
    fn exit_codes_of_helpers() {
        assert_eq!(exit_code(7 << 8), 7);
        assert_eq!(exit_code(0), 0);
        assert_eq!(exit_code(9), 255, "killed");
        assert_eq!(exit_code((-2i32).cast_unsigned()), 255, "not started");
    }

    #[test]
    fn helper_events_reach_the_reader_even_during_a_dump() {
        let object = Object::Helper { volume: None, name: "fence-peer".into(), status: 7 << 8 };
        let event = Event {
            seq: 1,
            kind: NotifyKind::Response,
            continues: false,
            resource: "r".into(),
            object,
        };
        let want = Notification::HelperEnded {
            resource: "r".into(),
            name: "fence-peer".into(),
            exit_code: 7,
        };
        assert_eq!(notification(event, false), Some(want));
    }
}
