//! What the core wants done is begun here; an effect that the core gains does not compile until the
//! world knows it (I17: there is none that forces anything).

use nasd::core::machine::{CasResult, Chore, Effect, Event, HandOverResult, RunId, Versioned};
use nasd::core::peer::Sign;
use nasd::core::record::Record;
use nasd::core::right::Grant;

use super::coordinator::{Answer, Ask};
use super::gate::Deadline;
use super::net::Message;
use super::node::Waiting;
use super::{Do, Happening, MS, S, World, micros, timing};
use crate::hole::Planted;
use crate::schedule::Fault;

impl World {
    pub(super) fn execute(&mut self, n: usize, effect: Effect) {
        match effect {
            Effect::Run { run, step, context } => {
                let delay = self.delay(100, MS);
                self.nasd_later(n, delay, Do::Begin(run, step, context));
            }
            Effect::Read => self.ask_coordinator(n, Ask::Read, Waiting::Read),
            Effect::Cas { run, expected, record } => {
                let widens = self.machine(n).widens();
                let waiting = Waiting::Cas { run, expected, record, widens };
                let ask = self.new_ask(n, waiting);
                self.nasd_later(n, 50, Do::Cas { run: ask, tries: 0 });
            }
            Effect::Warm { run, .. } => {
                let ask = self.new_ask(n, Waiting::Prepare { run });
                self.nasd_later(n, 5 * S, Do::GiveUp(ask));
                self.send(n, Message::Prepare { ask });
            }
            Effect::HandOver { run, epoch, .. } => {
                let ask = self.new_ask(n, Waiting::HandOver { run });
                self.nasd_later(n, 16 * S, Do::GiveUp(ask));
                self.send(n, Message::HandOver { ask, epoch });
            }
            Effect::Wake { at } => {
                let left = at.saturating_sub(self.machine_now(n));
                let delay = self.nodes[n].clock.true_span(micros(left)) + 1;
                self.feed_later(n, delay, Event::Tick);
            }
            Effect::Seek { run } => self.seek(n, run),
            Effect::PowerFence { run } => self.power_fence(n, run),
            Effect::Chore { run, chore } => {
                let delay = self.delay(MS, 20 * MS);
                self.nasd_later(n, delay, Do::Chore(run, chore));
            }
            Effect::SelfFence { .. } => self.self_fence(n),
            Effect::AskTakeover { reason } => self.send(n, Message::AskTakeover { reason }),
            Effect::OpeningEnded(result) => {
                let result = match result {
                    Ok(()) => HandOverResult::Opened,
                    Err(reason) => HandOverResult::Refused(reason),
                };
                if let Some(ask) = self.nodes[n].nasd.hand_over.take() {
                    self.send(n, Message::HandOverReply { ask, result });
                }
            }
            Effect::MoveEnded(_) | Effect::TakeoverEnded(_) => {}
        }
    }

    /// Sysrq `b`.
    fn self_fence(&mut self, n: usize) {
        crate::properties::self_fenced(self, n);
        let again = self.delay(2 * S, 10 * S);
        self.crash(n, again);
    }

    /// The fence agent cuts the peer's power, or cannot.
    fn power_fence(&mut self, n: usize, run: RunId) {
        crate::properties::power_fenced(self, n);
        let delay = self.delay(300 * MS, 3 * S);
        let confirmed = self.calm || self.random.percent(80);
        self.feed_later(n, delay, Event::PowerFenced { run, confirmed });
        if confirmed {
            let off = self.delay(2 * S, 10 * S);
            self.at(self.now + delay - 1, Happening::Fault(Fault::Crash(1 - n, off)));
        }
    }

    // ---- the record --------------------------------------------------------------------------

    /// As the drive does: before the peer becomes current, this node's right must have an end.
    pub(super) fn send_cas(&mut self, n: usize, ask: u64, tries: u32) {
        let Some(Waiting::Cas { expected, record, widens, .. }) =
            self.nodes[n].nasd.waiting.get(&ask)
        else {
            return;
        };
        let (expected, record, widens) = (*expected, record.clone(), *widens);
        if record.current.len() > 1 && self.nodes[n].gate.deadline == Deadline::Never {
            if tries < 50 {
                self.nasd_later(n, 20 * MS, Do::Cas { run: ask, tries: tries + 1 });
            } else {
                self.cas_done(n, ask, CasResult::NotSent("the right has no end".into()));
            }
            return;
        }
        if widens && expected.is_some() && !self.pair.view(n).both_current() {
            self.cas_done(n, ask, CasResult::NotSent("not in sync any more".into()));
            return;
        }
        let Some(waiting) = self.nodes[n].nasd.waiting.remove(&ask) else { return };
        self.ask_coordinator(n, Ask::Cas { expected, record }, waiting);
    }

    fn cas_done(&mut self, n: usize, ask: u64, result: CasResult) {
        let waiting = self.nodes[n].nasd.waiting.remove(&ask);
        if let Some(Waiting::Cas { run, record, .. } | Waiting::Relayed { run, record }) = waiting {
            if let CasResult::Won { revision } = result {
                let won = Versioned { revision, record };
                let _ = self.nodes[n].judge_and_keep(Some(&won));
            }
            self.feed(n, Event::Cas { run, result });
        }
    }

    /// The coordinator's answer.
    pub(super) fn answered(&mut self, n: usize, ask: u64, answer: Answer) {
        if let Some(Waiting::ForPeer { ask: theirs }) = self.nodes[n].nasd.waiting.get(&ask) {
            let reply = Message::RelayReply { ask: *theirs, answer: Some(answer) };
            self.nodes[n].nasd.waiting.remove(&ask);
            self.send(n, reply);
            return;
        }
        match answer {
            Answer::Cas(result) => self.cas_done(n, ask, result),
            Answer::Read(read) => match self.nodes[n].nasd.waiting.remove(&ask) {
                Some(Waiting::Read | Waiting::RelayedRead) => self.read_done(n, read),
                Some(Waiting::RightRead { epoch, requested }) => {
                    let me = self.nodes[n].name.clone();
                    let believed = self.nodes[n].judge_and_keep(read.as_ref()).is_ok();
                    let names_me = |r: &Record| r.epoch == epoch && r.may_serve(&me);
                    if believed && read.is_some_and(|v| names_me(&v.record)) {
                        self.granted(n, Grant::Record, epoch, requested, timing().record_ttl);
                    }
                }
                Some(Waiting::Seek { run }) => {
                    let peer = 1 - n;
                    let there = self.coordinator.answers(peer) && self.nasd_runs(peer);
                    if there {
                        self.feed(n, Event::Sought { run, sign: Sign::Alive });
                    } else {
                        let delay = self.delay(200 * MS, 600 * MS);
                        self.nasd_later(n, delay, Do::Knock(run));
                    }
                }
                _ => {}
            },
        }
    }

    fn read_done(&mut self, n: usize, read: Option<Versioned>) {
        let event = match self.nodes[n].judge_and_keep(read.as_ref()) {
            Ok(()) => Event::Record(read),
            Err(reason) => Event::RecordUnreadable(reason),
        };
        self.feed(n, event);
    }

    /// No answer in time: unknown, never permission.
    pub(super) fn give_up(&mut self, n: usize, ask: u64) {
        let Some(waiting) = self.nodes[n].nasd.waiting.get(&ask).cloned() else { return };
        match waiting {
            Waiting::Cas { run, expected, record, .. } if self.may_relay(n, &record) => {
                self.nodes[n].nasd.waiting.remove(&ask);
                let relayed = Waiting::Relayed { run, record: record.clone() };
                self.relay(n, relayed, Ask::Cas { expected, record });
            }
            Waiting::Read if self.planted != Some(Planted::H6) => {
                self.nodes[n].nasd.waiting.remove(&ask);
                self.relay(n, Waiting::RelayedRead, Ask::Read);
            }
            Waiting::Cas { .. } | Waiting::Relayed { .. } => {
                self.cas_done(n, ask, CasResult::Unknown);
            }
            other => {
                self.nodes[n].nasd.waiting.remove(&ask);
                self.gave_up(n, other);
            }
        }
    }

    fn gave_up(&mut self, n: usize, waiting: Waiting) {
        match waiting {
            Waiting::Read | Waiting::RelayedRead => {
                self.feed(n, Event::RecordUnreadable("no answer".into()));
            }
            Waiting::ForPeer { ask } => self.send(n, Message::RelayReply { ask, answer: None }),
            Waiting::Beat { right: Some((epoch, _)), upgrade: false, .. } => {
                self.ask_record(n, epoch);
            }
            Waiting::Prepare { run } => {
                let result = Err("the target does not answer".into());
                self.feed(n, Event::Warmed { run, result });
            }
            Waiting::HandOver { run } => {
                let result = HandOverResult::Unknown;
                self.feed(n, Event::HandOverEnded { run, result });
            }
            Waiting::Seek { run } => {
                self.feed(n, Event::Sought { run, sign: Sign::Unknown });
            }
            _ => {}
        }
    }

    /// H6: which writes the peer is asked for, as in the drive.
    fn may_relay(&self, n: usize, record: &Record) -> bool {
        let me = &self.nodes[n].name;
        let excludes = !record.current.contains(&self.nodes[1 - n].name);
        let frozen = self.pair.sides[n].frozen;
        self.planted != Some(Planted::H6) && record.authority() == Some(me) && (frozen || excludes)
    }

    /// The peer asks the coordinator for this node.
    fn relay(&mut self, n: usize, waiting: Waiting, what: Ask) {
        let ask = self.new_ask(n, waiting);
        self.nasd_later(n, 1500 * MS, Do::GiveUp(ask));
        self.send(n, Message::Relay { ask, what });
    }

    // ---- the peer ----------------------------------------------------------------------------

    pub(super) fn hear(&mut self, n: usize, message: Message) {
        if !message.is_beat() {
            let what = message.name();
            self.note(n, || format!("  hears {what}"));
        }
        match message {
            Message::Beat { ask, beat, right } => self.hear_beat(n, ask, beat, right),
            Message::BeatReply { ask, beat, consents } => {
                self.beat_answered(n, ask, beat, consents);
            }
            Message::Prepare { ask } => {
                let delay_over = Message::PrepareReply { ask };
                self.send(n, delay_over);
            }
            Message::PrepareReply { ask } => {
                if let Some(Waiting::Prepare { run }) = self.nodes[n].nasd.waiting.remove(&ask) {
                    self.feed(n, Event::Warmed { run, result: Ok(()) });
                }
            }
            Message::HandOver { ask, epoch } => {
                self.nodes[n].nasd.hand_over = Some(ask);
                self.feed(n, Event::HandOver { epoch });
            }
            Message::HandOverReply { ask, result } => {
                if let Some(Waiting::HandOver { run }) = self.nodes[n].nasd.waiting.remove(&ask) {
                    self.feed(n, Event::HandOverEnded { run, result });
                }
            }
            Message::AskTakeover { reason } => self.feed(n, Event::TakeOver { reason }),
            Message::Relay { ask, what } => {
                self.ask_coordinator(n, what, Waiting::ForPeer { ask });
            }
            Message::RelayReply { ask, answer: Some(answer) } => self.answered(n, ask, answer),
            Message::RelayReply { ask, answer: None } => self.give_up(n, ask),
        }
    }

    /// The coordinator first (the peer must answer there), then a knock at its node.
    fn seek(&mut self, n: usize, run: RunId) {
        self.ask_coordinator(n, Ask::Read, Waiting::Seek { run });
    }

    pub(super) fn knock(&mut self, n: usize, run: RunId) {
        let answers = self.nodes[1 - n].up && self.net.both_ways();
        let sign = if answers { Sign::HostOnly } else { Sign::Nothing };
        self.feed(n, Event::Sought { run, sign });
    }

    // ---- beside the programs -----------------------------------------------------------------

    pub(super) fn chore(&mut self, n: usize, run: RunId, chore: Chore) {
        let busy = self.nodes[n].promoting.is_some();
        let result = match chore {
            Chore::Mark(on) => {
                self.nodes[n].marked = on;
                self.watch.data_changed = true;
                Ok(())
            }
            _ if busy => Err("a command of DRBD is under way".to_owned()),
            Chore::Connect => {
                self.pair.connect(n);
                Ok(())
            }
            Chore::Outdate if self.pair.outdate(n) => Ok(()),
            Chore::Outdate => Err("refused".to_owned()),
            Chore::DropPeer => {
                self.pair.disconnect_forced(n);
                Ok(())
            }
            Chore::Retrigger => {
                self.pair.disconnect_forced(n);
                self.pair.connect(n);
                Ok(())
            }
        };
        self.feed_later(n, MS, Event::ChoreDone { run, result });
    }
}
