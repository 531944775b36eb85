//! The canary: a small durable write to each volume, by nasd-io, while the service is served.
//!
//! Keeps H7 (no thread of nasd touches a volume: nasd-io writes, on a thread per request, one per
//! volume at most) and judges a write that hangs by whose fault it can be: not the disk's while
//! DRBD is frozen, not this node's while only the peer's acknowledgement is missing, and not a
//! hang while the device still completes requests.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::board::{Board, Check};
use super::disk::{Facts, SharedFacts};
use super::judge::Finding;
use super::{Term, suspended};
use crate::core::view::Now;
use crate::drive::hands::{Hands, lock};
use crate::io::{CallError, Op, Refusal};

/// Between two canaries.
const PERIOD: Duration = Duration::from_secs(1);
/// After so many canaries that were written nasd-io looks after its own files on the volume.
const MEND: u32 = 10;
/// A canary that hangs longer is the volume's fault.
const HANGS: Duration = Duration::from_secs(5);
/// As [`HANGS`], where only the peer's acknowledgement is missing: longer than the peer needs to
/// judge its own disk and to say so in a beat, so that nothing is handed over to a hanging disk.
const PEER: Duration = Duration::from_secs(8);
/// As [`HANGS`], where other writes are completed: slow is no hang.
const SLOW: Duration = Duration::from_secs(20);
/// Facts older than this are none.
const FRESH: Duration = Duration::from_secs(3);
/// After this nasd stops waiting for the answer: the next canary is refused, with how long this
/// one has hung.
const GIVE_UP: Duration = Duration::from_secs(2);

/// Errors that say that the volume cannot be written, whoever tries: EIO, ENXIO, ENODEV, EROFS,
/// ESHUTDOWN, EUCLEAN. Others, as a full volume, are the same on the other node.
const BROKEN: [i32; 6] = [5, 6, 19, 30, 108, 117];

/// What an answer to a canary says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// Written.
    Written,
    /// The volume cannot be written.
    Broken(String),
    /// An earlier one has been under way for so long.
    Hangs(Duration),
    /// Nothing about the volume.
    Unknown(String),
}

/// Reads an answer.
#[must_use]
pub fn read<T>(answer: Result<T, CallError>) -> Answered {
    let error = match answer {
        Ok(_) => return Answered::Written,
        Err(error) => error,
    };
    match error.refusal() {
        Some(Refusal::System { step, error, .. })
            if error.errno.is_some_and(|e| BROKEN.contains(&e)) =>
        {
            Answered::Broken(format!("{step}: {error}"))
        }
        Some(Refusal::Occupied { op, since_ms }) if op == "canary" => {
            Answered::Hangs(Duration::from_millis(*since_ms))
        }
        None if matches!(error, CallError::Deadline { .. }) => Answered::Hangs(GIVE_UP),
        _ => Answered::Unknown(error.to_string()),
    }
}

/// How long a canary may hang, and what speaks for it.
#[must_use]
pub fn patience(now: Now, facts: Option<&Facts>) -> (Duration, &'static str) {
    let Some(facts) = facts.filter(|f| now.saturating_sub(f.at) <= FRESH) else {
        return (HANGS, "");
    };
    if facts.written_at.is_some_and(|at| now.saturating_sub(at) <= FRESH) {
        return (SLOW, ", though the device completes others");
    }
    let waits_in_drbd = facts.look.upper_pending.is_some_and(|n| n > 0);
    if facts.connected && waits_in_drbd && facts.look.disk_busy() == Some(false) {
        return (PEER, ", with nothing left to do for the local disk");
    }
    (HANGS, "")
}

/// Judges a canary that has hung since then.
#[must_use]
pub fn judge_hanging(now: Now, since: Now, facts: Option<&Facts>) -> Finding {
    let (limit, remark) = patience(now, facts);
    let hung = now.saturating_sub(since);
    if hung < limit {
        return Finding::Unknown;
    }
    Finding::Bad { since, why: format!("a write has hung for {} s{remark}", hung.as_secs()) }
}

/// One volume's canary.
pub(super) struct Canary {
    pub(super) hands: Arc<Hands>,
    pub(super) board: Arc<Board>,
    pub(super) facts: SharedFacts,
    pub(super) volume: u16,
    pub(super) target: PathBuf,
}

impl Canary {
    /// Watches for ever.
    pub(super) async fn watch(self) {
        let mut term = Term::default();
        let mut written: u32 = 0;
        loop {
            tokio::time::sleep(PERIOD).await;
            if term.serving(&self.hands, self.board.now()).is_none() {
                self.board.hanging(self.volume, None);
                self.post(Finding::Idle);
                self.post_broken(Finding::Idle);
                continue;
            }
            if !self.once(&mut term).await {
                continue;
            }
            written = (written + 1) % MEND;
            if written == 0 {
                self.hands.mend(&self.target).await;
            }
        }
    }

    fn post(&self, finding: Finding) {
        self.board.post(Check::Canary(self.volume), finding);
    }

    fn post_broken(&self, finding: Finding) {
        self.board.post(Check::Errors(self.volume), finding);
    }

    /// One canary; whether it was written. Nothing before `term`'s floor counts.
    async fn once(&self, term: &mut Term) -> bool {
        let sent = self.board.now();
        let op = Op::Canary { target: self.target.clone() };
        let answer = read(self.hands.io_call(op, GIVE_UP).await);
        let hung = if let Answered::Hangs(hung) = &answer { Some(*hung) } else { None };
        self.board.hanging(self.volume, hung);
        let written = answer == Answered::Written;
        match answer {
            Answered::Written => {
                self.post(Finding::Well);
                self.post_broken(Finding::Well);
            }
            Answered::Broken(why) => {
                self.post(Finding::Well); // it did not hang: a move in good order can still be made
                self.post_broken(Finding::Bad { since: sent, why });
            }
            Answered::Hangs(hung) => self.judge(self.board.now().saturating_sub(hung), term),
            Answered::Unknown(why) => {
                tracing::debug!(volume = self.volume, why, "the canary tells nothing");
                self.post(Finding::Unknown);
            }
        }
        written
    }

    fn judge(&self, since: Now, term: &mut Term) {
        let now = self.board.now();
        if suspended(&self.hands) {
            term.raise(now);
        }
        let Some(floor) = term.serving(&self.hands, now) else {
            self.post_broken(Finding::Idle);
            return self.post(Finding::Idle);
        };
        let facts = lock(&self.facts).get(&self.volume).copied();
        self.post(judge_hanging(now, since.max(floor), facts.as_ref()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drive::health::disk::Look;
    use crate::io::SysError;

    fn at(seconds: u64) -> Now {
        Duration::from_secs(seconds)
    }

    fn refused(refusal: Refusal) -> Answered {
        read::<()>(Err(CallError::Refused { op: "canary", refusal: Box::new(refusal) }))
    }

    fn system(errno: i32) -> Answered {
        let error = SysError { errno: Some(errno), text: "e".into() };
        refused(Refusal::System { step: "writing the canary".into(), path: "/v".into(), error })
    }

    #[test]
    fn errors_of_the_volume_are_told_from_others() {
        for errno in [5, 6, 19, 30, 108, 117] {
            assert_eq!(system(errno), Answered::Broken("writing the canary: e".into()));
        }
        // A full volume, or a quota, is full on the other node as well.
        for errno in [28, 122, 13, 2] {
            assert!(matches!(system(errno), Answered::Unknown(_)), "{errno}");
        }
        let occupied = |op: &str| refused(Refusal::Occupied { op: op.into(), since_ms: 7000 });
        assert_eq!(occupied("canary"), Answered::Hangs(at(7)));
        assert!(matches!(occupied("unmount"), Answered::Unknown(_)), "the volume is being let go");
        let deadline = CallError::Deadline { op: "canary", after: GIVE_UP };
        assert_eq!(read::<()>(Err(deadline)), Answered::Hangs(GIVE_UP));
        let gone = CallError::Gone { op: "canary" };
        assert!(matches!(read::<()>(Err(gone)), Answered::Unknown(_)), "nasd-io, not the volume");
        assert_eq!(read(Ok(())), Answered::Written);
    }

    fn facts(upper: u32, lower: u32, connected: bool, written_at: Option<Now>) -> Facts {
        let look = Look {
            attached: true,
            upper_pending: Some(upper),
            lower_pending: Some(lower),
            ..Look::default()
        };
        Facts { at: at(99), look, connected, written_at }
    }

    #[test]
    fn a_hang_is_judged_by_whose_fault_it_can_be() {
        let limit = |facts: Option<Facts>| patience(at(100), facts.as_ref()).0;
        assert_eq!(limit(None), HANGS);
        assert_eq!(limit(Some(facts(1, 1, true, None))), HANGS, "the local disk has it");
        assert_eq!(limit(Some(facts(1, 0, true, None))), PEER, "the peer has it");
        assert_eq!(limit(Some(facts(1, 0, false, None))), HANGS, "there is no peer");
        assert_eq!(limit(Some(facts(0, 0, true, None))), HANGS, "the file system has it");
        assert_eq!(limit(Some(facts(9, 9, true, Some(at(98))))), SLOW, "others are completed");
        assert_eq!(limit(Some(facts(9, 9, true, Some(at(90))))), HANGS, "none for long");
        let old = Facts { at: at(90), ..facts(1, 0, true, None) };
        assert_eq!(limit(Some(old)), HANGS, "old facts excuse nothing");
    }

    #[test]
    fn a_short_hang_is_no_evidence_either_way() {
        assert_eq!(judge_hanging(at(104), at(100), None), Finding::Unknown);
        let Finding::Bad { since, why } = judge_hanging(at(105), at(100), None) else {
            panic!("a long hang is bad")
        };
        assert_eq!((since, why.as_str()), (at(100), "a write has hung for 5 s"));
    }
}
