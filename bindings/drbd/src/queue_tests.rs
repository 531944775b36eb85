//! The queue over a transport that takes its time.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::{CommandQueue, Shared};
use crate::Abi;
use crate::commands::{Command, CommandError, TransportError};
use crate::socket::{Answer, Transport};
use crate::testing::Fake;
use crate::wire::request::Request;

/// Holds every command until told to go on.
struct Slow {
    fake: Fake,
    go: Receiver<()>,
}

impl Transport for Slow {
    fn abi(&self) -> Abi {
        self.fake.abi
    }

    fn request(&mut self, request: &Request) -> Result<Answer, TransportError> {
        self.go.recv().expect("the test lets the command go");
        self.fake.request(request)
    }

    fn dump(&mut self, request: &Request) -> Result<Vec<Answer>, TransportError> {
        self.fake.dump(request)
    }
}

fn slow(codes: &[i32]) -> (CommandQueue, Sender<()>) {
    let (send, go) = channel();
    let mut slow = Some(Slow { fake: Fake::new(Abi::V9, codes), go });
    let open = move || {
        let slow = slow.take().expect("opened once");
        Ok(Box::new(slow) as Box<dyn Transport>)
    };
    (CommandQueue::with("r0", Box::new(open)).unwrap(), send)
}

const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(20);

fn idle(queue: &CommandQueue) {
    let until = Instant::now() + LONG;
    while queue.running().is_some() {
        assert!(Instant::now() < until, "the command has not ended");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn s8_the_caller_is_released_at_its_deadline_and_the_queue_stays_busy() {
    let (queue, go) = slow(&[1, 1]);
    let error = queue.secondary(Duration::ZERO, SHORT).unwrap_err();
    assert!(matches!(error, CommandError::StillRunning { command: "secondary", .. }));
    let error = queue.disconnect_forced(crate::ConnKey::Peer(1), SHORT).unwrap_err();
    assert!(matches!(error, CommandError::Busy { running: "secondary", .. }));
    go.send(()).unwrap();
    idle(&queue);
    let (name, result) = queue.last_result().unwrap();
    assert_eq!((name, result.is_ok()), ("secondary", true));
    go.send(()).unwrap();
    assert!(queue.secondary(Duration::ZERO, LONG).is_ok());
}

#[test]
fn a_pending_command_may_be_waited_for_again() {
    let (queue, go) = slow(&[-2]);
    let pending = queue.begin(Command::Primary(crate::Force::No)).unwrap();
    assert!(matches!(pending.wait(SHORT), Err(CommandError::StillRunning { .. })));
    go.send(()).unwrap();
    assert_eq!(pending.wait(LONG).unwrap_err().code(), Some(crate::ReturnCode(-2)));
    assert_eq!(queue.running(), None, "the next command may follow at once");
}

#[test]
fn s10_dropping_the_queue_does_not_wait() {
    let (queue, go) = slow(&[1]);
    let pending = queue.begin(Command::Outdate).unwrap();
    let began = Instant::now();
    drop((queue, pending));
    assert!(began.elapsed() < LONG / 2);
    drop(go);
}

#[test]
fn after_a_failed_socket_the_next_command_opens_another() {
    let broken = Fake::new(Abi::V9, &[]);
    broken.answers.lock().unwrap().push_back(Err(TransportError::NoReply));
    let mut stock = vec![Fake::new(Abi::V9, &[1]), broken];
    let open = move || Ok(Box::new(stock.pop().unwrap()) as Box<dyn Transport>);
    let queue = CommandQueue::with("r0", Box::new(open)).unwrap();
    assert!(queue.secondary(Duration::ZERO, LONG).unwrap_err().is_outcome_unknown());
    assert!(queue.secondary(Duration::ZERO, LONG).is_ok());
}

#[test]
fn an_absent_module_is_told() {
    let open = || Err(crate::OpenError::ModuleAbsent);
    let queue = CommandQueue::with("r0", Box::new(open)).unwrap();
    let error = queue.outdate(LONG).unwrap_err();
    let cause = TransportError::ModuleAbsent;
    assert_eq!(error, CommandError::Transport { command: "outdate", cause });
}

#[test]
fn a_poisoned_state_is_still_readable() {
    let shared = Shared::default();
    let other = shared.clone();
    let died = std::thread::spawn(move || {
        let _held = other.lock();
        panic!("on purpose");
    });
    assert!(died.join().is_err());
    assert!(shared.lock().running.is_none());
}
