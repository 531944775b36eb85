//! Executing the core's effects: each in a task of its own, answered by an event.
//!
//! Keeps S10: the service's task never waits for any of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Command, ServiceTask};
use crate::core::machine::{Effect, Event, RunId};
use crate::core::step::Step;
use crate::core::view::Now;
use crate::drive::handover::{self, HandOverNews};
use crate::drive::power_fence::Fenced;
use crate::drive::{chores, moves, seek, self_fence};

impl ServiceTask {
    pub(super) fn execute(&mut self, effect: Effect) {
        match effect {
            Effect::Run { run, step, context } => {
                if step.name() == "close-inbound" {
                    self.tally.silent_since = Some(Instant::now());
                }
                // From here on a takeover that is not done has changed something.
                self.tally.cut = match step {
                    Step::TakeReady => false,
                    Step::ForceDisconnect => true,
                    _ => self.tally.cut,
                };
                let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
                tokio::spawn(async move {
                    let result = hands.run(step, context).await;
                    drop(tell.send(Command::Event(Event::Ran { run, result })).await);
                });
            }
            Effect::Read => {
                let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
                tokio::spawn(async move {
                    let event = hands.read_record().await;
                    drop(tell.send(Command::Event(event)).await);
                });
            }
            Effect::Cas { run, expected, record } => {
                let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
                let widens = self.machine.widens();
                tokio::spawn(async move {
                    let result = hands.write_record(expected, record, widens).await;
                    drop(tell.send(Command::Event(Event::Cas { run, result })).await);
                });
            }
            Effect::Warm { run, epoch, .. } => {
                let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
                tokio::spawn(async move {
                    let result = moves::warm(&hands, epoch).await;
                    drop(tell.send(Command::Event(Event::Warmed { run, result })).await);
                });
            }
            Effect::HandOver { run, epoch, .. } => self.call_target(run, epoch),
            Effect::MoveEnded(end) => self.move_ended(end),
            Effect::OpeningEnded(result) => self.opening_ended(result),
            other => self.execute_failover(other),
        }
    }

    fn call_target(&mut self, run: u64, epoch: u64) {
        let silent_for = self.tally.silent_since.map_or(Duration::ZERO, |t| t.elapsed());
        self.tally.silent_before = silent_for;
        self.tally.silent_since = Some(Instant::now());
        let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
        tokio::spawn(async move {
            let news = |news: HandOverNews| {
                let tell = tell.clone();
                async move {
                    let command = match news {
                        HandOverNews::Ended(result) => {
                            Command::Event(Event::HandOverEnded { run, result })
                        }
                        HandOverNews::Clients(clients) => Command::ClientsBack(epoch, clients),
                    };
                    drop(tell.send(command).await);
                }
            };
            handover::call(&hands, epoch, silent_for, news).await;
        });
    }

    fn execute_failover(&mut self, effect: Effect) {
        match effect {
            Effect::Wake { at } => self.wake(at),
            Effect::Seek { run } => self.seek(run),
            Effect::Chore { run, chore } => {
                let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
                tokio::spawn(async move {
                    let result = chores::run(&hands, chore).await;
                    tracing::info!(service = hands.service.name, ?chore, ?result, "chore");
                    drop(tell.send(Command::Event(Event::ChoreDone { run, result })).await);
                });
            }
            Effect::PowerFence { run } => self.power_fence(run),
            Effect::SelfFence { reason } => {
                self.note("self-fence", "done", &reason);
                self_fence::now(&reason);
            }
            Effect::AskTakeover { reason } => {
                self.note("ask-takeover", "asked", &reason);
                let hands = Arc::clone(&self.hands);
                tokio::spawn(async move { hands.ask_takeover(&reason).await });
            }
            Effect::TakeoverEnded(result) => self.takeover_ended(result),
            _ => {}
        }
    }

    fn power_fence(&self, run: RunId) {
        self.note("power-fence", "asked", "");
        let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
        tokio::spawn(async move {
            let result = hands.power_fence().await;
            tracing::warn!(service = hands.service.name, ?result, "power fence");
            let confirmed = matches!(result, Some(Fenced::Confirmed));
            drop(tell.send(Command::Event(Event::PowerFenced { run, confirmed })).await);
        });
    }

    fn wake(&self, at: Now) {
        let (tell, pause) = (self.me_tx.clone(), at.saturating_sub(self.now()));
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            drop(tell.send(Command::Event(Event::Tick)).await);
        });
    }

    fn seek(&self, run: RunId) {
        let (hands, tell) = (Arc::clone(&self.hands), self.me_tx.clone());
        tokio::spawn(async move {
            let sign = seek::seek(&hands).await;
            tracing::warn!(service = hands.service.name, ?sign, "looked for the silent peer");
            drop(tell.send(Command::Event(Event::Sought { run, sign })).await);
        });
    }
}
