//! What the kernel's log says of NFS: lost locks, servers that do not answer and do again.
//!
//! One read of `/dev/kmsg` is one record: `priority,sequence,microseconds,flags;text`. Only records
//! of facility 0 count: the kernel writes those, and no program can. A gap in the sequence numbers
//! is told, as a lost line could have been the one that matters (S12).

use std::time::Duration;

use super::escape;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// 0 (emergency) to 7 (debug).
    pub level: u8,
    /// 0: the kernel itself.
    pub facility: u32,
    /// Number of the record, without gaps.
    pub sequence: u64,
    /// Time since boot by the log's clock, which stands still while the host sleeps.
    pub at: Duration,
    /// The text, escapes undone, without the lines of keys and values that follow it.
    pub text: String,
}

/// What a record means for storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Locks were not given back by the server: reads and writes through them fail with EIO.
    LostLocks {
        /// The server, as it was given to mount.
        server: String,
        /// How many.
        count: u64,
    },
    /// The reclaim of one lock was refused; the count comes with [`Event::LostLocks`].
    ReclaimFailed,
    /// Requests have waited for the major timeout (`timeo`, `retrans`).
    NotResponding {
        /// The server, as it was given to mount.
        server: String,
        /// A soft mount: the request has failed, the guest has got an error.
        gave_up: bool,
    },
    /// It answers again.
    Responding {
        /// The server, as it was given to mount.
        server: String,
    },
}

/// Why a record is not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// No semicolon: no text.
    #[error("the record of the kernel log has no text: what it said is unknown")]
    NoText,
    /// A number is missing or is none.
    #[error("the {0} of the kernel log's record is not a number: what it said is unknown")]
    Number(&'static str),
}

/// One record, as one read gave it.
///
/// # Errors
/// It is not of the form that the kernel documents.
pub fn record(raw: &[u8]) -> Result<Record, Malformed> {
    let at = raw.iter().position(|b| *b == b';').ok_or(Malformed::NoText)?;
    let (prefix, text) = raw.split_at(at);
    let line = text.get(1..).unwrap_or_default().split(|b| *b == b'\n').next().unwrap_or_default();
    let prefix = String::from_utf8_lossy(prefix);
    let mut fields = prefix.split(',');
    let mut number = |what| {
        let field = fields.next().ok_or(Malformed::Number(what))?;
        field.trim().parse::<u64>().map_err(|_| Malformed::Number(what))
    };
    let priority = number("priority")?;
    Ok(Record {
        level: u8::try_from(priority & 7).unwrap_or(7),
        facility: u32::try_from(priority >> 3).map_err(|_| Malformed::Number("priority"))?,
        sequence: number("sequence")?,
        at: Duration::from_micros(number("time")?),
        text: String::from_utf8_lossy(&escape::hexadecimal(line)).into_owned(),
    })
}

/// What a record means; `None` for all others, and for whatever a program has written.
#[must_use]
pub fn event(record: &Record) -> Option<Event> {
    if record.facility != 0 {
        return None;
    }
    let text = record.text.trim();
    lost_locks(text).or_else(|| reclaim_failed(text)).or_else(|| answering(text))
}

/// `NFS: SERVER: lost N locks`; the server may be an IPv6 address.
fn lost_locks(text: &str) -> Option<Event> {
    let (server, count) = text.strip_prefix("NFS: ")?.rsplit_once(": lost ")?;
    let count = count.strip_suffix(" locks")?.parse().ok()?;
    Some(Event::LostLocks { server: server.to_owned(), count })
}

/// `NFS: FUNCTION: Lock reclaim failed!`.
fn reclaim_failed(text: &str) -> Option<Event> {
    let ours = text.starts_with("NFS: ") && text.contains("Lock reclaim failed");
    ours.then_some(Event::ReclaimFailed)
}

/// `nfs: server SERVER not responding, still trying`, `… timed out`, `nfs: server SERVER OK`.
fn answering(text: &str) -> Option<Event> {
    let rest = text.strip_prefix("nfs: server ")?;
    if let Some(server) = rest.strip_suffix(" OK") {
        return Some(Event::Responding { server: server.to_owned() });
    }
    let (server, how) = rest.rsplit_once(" not responding, ")?;
    let gave_up = match how {
        "still trying" => false,
        "timed out" => true,
        _ => return None,
    };
    Some(Event::NotResponding { server: server.to_owned(), gave_up })
}

/// Watches the sequence numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sequence {
    next: Option<u64>,
}

impl Sequence {
    /// Takes the next record's number; gives how many records were missed before it.
    pub fn take(&mut self, sequence: u64) -> u64 {
        let missed = self.next.map_or(0, |next| sequence.saturating_sub(next));
        self.next = Some(sequence.saturating_add(1).max(self.next.unwrap_or(0)));
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen(raw: &str) -> Option<Event> {
        event(&record(raw.as_bytes()).unwrap())
    }

    #[test]
    fn a_record_with_keys_and_escapes() {
        let raw =
            b"4,1422,98765432101,-;NFS: nas\\x09a: lost 3 locks\n SUBSYSTEM=nfs\n DEVICE=+x\n";
        let r = record(raw).unwrap();
        assert_eq!((r.level, r.facility, r.sequence), (4, 0, 1422));
        assert_eq!(r.at, Duration::from_micros(98_765_432_101));
        assert_eq!(r.text, "NFS: nas\ta: lost 3 locks");
    }

    #[test]
    fn newer_kernels_append_fields() {
        let r = record(b"5,7,10,-,caller=T412;nfs: server 192.0.2.50 OK\n").unwrap();
        assert_eq!(event(&r), Some(Event::Responding { server: "192.0.2.50".into() }));
    }

    #[test]
    fn lost_locks_are_seen() {
        let lost = |server: &str, count| Some(Event::LostLocks { server: server.into(), count });
        assert_eq!(seen("4,1,1,-;NFS: 192.0.2.50: lost 12 locks"), lost("192.0.2.50", 12));
        assert_eq!(seen("4,1,1,-;NFS: fd00::50: lost 1 locks"), lost("fd00::50", 1));
        assert_eq!(seen("4,1,1,-;NFS: x: lost many locks"), None);
        let refused = seen("3,1,1,-;NFS: nfs4_reclaim_open_state: Lock reclaim failed!");
        assert_eq!(refused, Some(Event::ReclaimFailed));
    }

    #[test]
    fn a_silent_server_is_seen() {
        let silent = |gave_up| Some(Event::NotResponding { server: "nas".into(), gave_up });
        assert_eq!(seen("5,1,1,-;nfs: server nas not responding, still trying"), silent(false));
        assert_eq!(seen("5,1,1,-;nfs: server nas not responding, timed out"), silent(true));
        assert_eq!(seen("5,1,1,-;lockd: server nas OK"), None);
        assert_eq!(seen("6,1,1,-;eth0: link up"), None);
    }

    #[test]
    fn what_a_program_wrote_does_not_count() {
        // Facility 1 (user) is the least that /dev/kmsg lets a program have.
        assert_eq!(seen("12,1,1,-;NFS: 192.0.2.50: lost 12 locks"), None);
    }

    #[test]
    fn gaps_are_counted() {
        let mut s = Sequence::default();
        assert_eq!([10, 11, 15, 16, 3].map(|n| s.take(n)), [0, 0, 3, 0, 0]);
        assert_eq!(s.take(u64::MAX), u64::MAX - 17);
        assert_eq!(s.take(u64::MAX), 0);
    }

    #[test]
    fn malformed_records() {
        assert_eq!(record(b""), Err(Malformed::NoText));
        assert_eq!(record(b"4,1;x"), Err(Malformed::Number("time")));
        assert_eq!(record(b"-4,1,1,-;x"), Err(Malformed::Number("priority")));
        assert_eq!(record(b"18446744073709551615,1,1,-;x"), Err(Malformed::Number("priority")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(r) = record(&raw) {
                let _ = event(&r);
            }
        }

        #[test]
        fn any_text_is_survived(text in ".{0,120}") {
            if let Ok(r) = record(format!("4,1,1,-;{text}").as_bytes()) {
                let _ = event(&r);
            }
        }

        #[test]
        fn any_server_comes_back(server in "[a-z0-9.:-]{1,40}", count in any::<u64>()) {
            let raw = format!("4,1,1,-;NFS: {server}: lost {count} locks");
            prop_assert_eq!(seen(&raw), Some(Event::LostLocks { server, count }));
        }
    }
}
