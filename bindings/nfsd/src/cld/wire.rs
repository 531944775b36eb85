//! Messages on the tracker pipe: `struct cld_msg` and `struct cld_msg_v2`, packed, host byte
//! order (`include/uapi/linux/nfsd/cld.h`).
//!
//! Offsets: version 0, command 1, status 2, transaction id 4, union 8. The union holds a client
//! name (u16 length, 1024 bytes), in version 2 followed by a principal's hash (u8 length, 32
//! bytes); for `GetVersion` a version byte. The kernel takes answers only of the length that it
//! sent (`cld_pipe_downcall`), so an answer is the request with status and union replaced.

use crate::records::ClientRecord;

/// `NFS4_OPAQUE_LIMIT`.
const NAME_MAX: usize = 1024;
/// `SHA256_DIGEST_SIZE`.
const HASH_MAX: usize = 32;
const HEADER: usize = 8;
const NAME_AT: usize = HEADER + 2;
const HASH_AT: usize = NAME_AT + NAME_MAX;
/// `sizeof(struct cld_msg)`.
pub(super) const LEN_V1: usize = HASH_AT;
/// `sizeof(struct cld_msg_v2)`.
pub(super) const LEN_V2: usize = HASH_AT + 1 + HASH_MAX;
/// Highest version spoken here.
const VERSION: u8 = 2;

/// Why an upcall cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Neither of the two message sizes.
    #[error("a tracker message of {length} bytes has neither of the known sizes 1034 and 1067")]
    Length {
        /// Bytes read.
        length: usize,
    },
    /// A client name of 0 or more than 1024 bytes, or a hash of more than 32.
    #[error("a tracker message carries a client name of {name} and a hash of {hash} bytes")]
    Client {
        /// Stated length of the name.
        name: usize,
        /// Stated length of the hash.
        hash: usize,
    },
}

/// `enum cld_command`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Record this client.
    Create,
    /// Forget it.
    Remove,
    /// May it reclaim?
    Check,
    /// Grace is over.
    GraceDone,
    /// Grace begins, send the list.
    GraceStart,
    /// Which version is spoken?
    GetVersion,
    /// Something newer.
    Unknown(u8),
}

impl From<u8> for Command {
    fn from(byte: u8) -> Self {
        match byte {
            0 => Command::Create,
            1 => Command::Remove,
            2 => Command::Check,
            3 => Command::GraceDone,
            4 => Command::GraceStart,
            5 => Command::GetVersion,
            other => Command::Unknown(other),
        }
    }
}

/// One upcall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    raw: Vec<u8>,
}

/// What to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Done,
    /// Refused with this errno (positive).
    Failed(i32),
    /// Done; version 2 is spoken.
    Version,
}

impl Request {
    /// Checks size and, for commands that carry one, the client.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() != LEN_V1 && bytes.len() != LEN_V2 {
            return Err(WireError::Length { length: bytes.len() });
        }
        Ok(Request { raw: bytes.to_vec() })
    }

    fn byte(&self, at: usize) -> u8 {
        self.raw.get(at).copied().unwrap_or_default()
    }

    /// What is asked.
    pub fn command(&self) -> Command {
        Command::from(self.byte(1))
    }

    /// Transaction id.
    pub fn xid(&self) -> u32 {
        u32::from_ne_bytes([self.byte(4), self.byte(5), self.byte(6), self.byte(7)])
    }

    fn is_v2(&self) -> bool {
        self.raw.len() == LEN_V2
    }

    /// The client of Create, Remove and Check.
    pub fn client(&self) -> Result<ClientRecord, WireError> {
        let name = usize::from(u16::from_ne_bytes([self.byte(8), self.byte(9)]));
        let hash = if self.is_v2() { usize::from(self.byte(HASH_AT)) } else { 0 };
        let bad = WireError::Client { name, hash };
        if name == 0 || name > NAME_MAX || hash > HASH_MAX {
            return Err(bad);
        }
        let slice = |at: usize, len: usize| self.raw.get(at..at + len).map(<[u8]>::to_vec);
        Ok(ClientRecord {
            name: slice(NAME_AT, name).ok_or(bad)?,
            princhash: if hash == 0 { Vec::new() } else { slice(HASH_AT + 1, hash).ok_or(bad)? },
        })
    }

    fn with_status(&self, status: i32) -> Vec<u8> {
        let mut raw = self.raw.clone();
        let status = i16::try_from(status).unwrap_or(i16::MIN).to_ne_bytes();
        put(&mut raw, 2, &status);
        raw
    }

    /// The answer that ends this upcall.
    pub fn reply(&self, reply: Reply) -> Vec<u8> {
        match reply {
            Reply::Done => self.with_status(0),
            Reply::Failed(errno) => self.with_status(-errno),
            Reply::Version => {
                let mut raw = self.with_status(0);
                put(&mut raw, HEADER, &[VERSION]);
                raw
            }
        }
    }

    /// One client of the list that answers `GraceStart` (status `-EINPROGRESS`).
    ///
    /// # Errors
    /// A record that the kernel would refuse.
    pub fn progress(&self, client: &ClientRecord) -> Result<Vec<u8>, WireError> {
        let (name, hash) = (client.name.len(), client.princhash.len());
        let bad = WireError::Client { name, hash };
        if name == 0 || name > NAME_MAX || hash > HASH_MAX {
            return Err(bad);
        }
        let mut raw = self.with_status(-(nix::errno::Errno::EINPROGRESS as i32));
        if let Some(union) = raw.get_mut(HEADER..) {
            union.fill(0);
        }
        put(&mut raw, HEADER, &u16::try_from(name).map_err(|_| bad)?.to_ne_bytes());
        put(&mut raw, NAME_AT, &client.name);
        if self.is_v2() {
            put(&mut raw, HASH_AT, &[u8::try_from(hash).map_err(|_| bad)?]);
            put(&mut raw, HASH_AT + 1, &client.princhash);
        }
        Ok(raw)
    }
}

fn put(raw: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = raw.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An upcall as the kernel builds it.
    pub(crate) fn upcall(cmd: u8, xid: u32, client: Option<&ClientRecord>, v2: bool) -> Vec<u8> {
        let mut raw = vec![0; if v2 { LEN_V2 } else { LEN_V1 }];
        raw[0] = if v2 { 2 } else { 1 };
        raw[1] = cmd;
        raw[4..8].copy_from_slice(&xid.to_ne_bytes());
        if let Some(c) = client {
            raw[8..10].copy_from_slice(&(c.name.len() as u16).to_ne_bytes());
            raw[10..10 + c.name.len()].copy_from_slice(&c.name);
            if v2 {
                raw[1034] = c.princhash.len() as u8;
                raw[1035..1035 + c.princhash.len()].copy_from_slice(&c.princhash);
            }
        }
        raw
    }

    #[test]
    fn sizes_are_those_of_the_kernel_header() {
        assert_eq!((LEN_V1, LEN_V2), (1034, 1067));
    }

    #[test]
    fn version_answer_keeps_id_and_length() {
        let request = Request::parse(&upcall(5, 0x1234_5678, None, false)).unwrap();
        assert_eq!(request.command(), Command::GetVersion);
        let answer = request.reply(Reply::Version);
        assert_eq!(answer.len(), 1034);
        assert_eq!(answer[4..8], 0x1234_5678_u32.to_ne_bytes());
        assert_eq!((answer[8], &answer[2..4]), (2, &[0, 0][..]));
    }

    #[test]
    fn failure_carries_negative_errno() {
        let request = Request::parse(&upcall(99, 1, None, true)).unwrap();
        assert_eq!(request.command(), Command::Unknown(99));
        let answer = request.reply(Reply::Failed(95));
        assert_eq!(i16::from_ne_bytes([answer[2], answer[3]]), -95);
    }

    #[test]
    fn client_lengths_out_of_range_are_refused() {
        let mut raw = upcall(0, 1, None, true);
        assert!(Request::parse(&raw).unwrap().client().is_err());
        raw[8..10].copy_from_slice(&1025_u16.to_ne_bytes());
        assert!(Request::parse(&raw).unwrap().client().is_err());
        raw[8..10].copy_from_slice(&4_u16.to_ne_bytes());
        assert!(Request::parse(&raw).unwrap().client().is_ok());
        raw[1034] = 33;
        assert_eq!(
            Request::parse(&raw).unwrap().client(),
            Err(WireError::Client { name: 4, hash: 33 })
        );
    }

    fn record() -> impl Strategy<Value = ClientRecord> {
        (prop::collection::vec(any::<u8>(), 1..=1024), prop::collection::vec(any::<u8>(), 0..=32))
            .prop_map(|(name, princhash)| ClientRecord { name, princhash })
    }

    proptest! {
        #[test]
        fn client_is_read_as_the_kernel_wrote_it(c in record(), xid: u32) {
            let request = Request::parse(&upcall(0, xid, Some(&c), true)).unwrap();
            prop_assert_eq!(request.client().unwrap(), c.clone());
            prop_assert_eq!(request.xid(), xid);
            let old = Request::parse(&upcall(0, xid, Some(&c), false)).unwrap();
            prop_assert_eq!(old.client().unwrap().name, c.name);
        }

        #[test]
        fn progress_message_reads_back_as_the_client(c in record(), xid: u32) {
            let request = Request::parse(&upcall(4, xid, None, true)).unwrap();
            let message = request.progress(&c).unwrap();
            prop_assert_eq!(i16::from_ne_bytes([message[2], message[3]]), -115);
            prop_assert_eq!(message[1], 4);
            prop_assert_eq!(Request::parse(&message).unwrap().client().unwrap(), c);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..1200)) {
            if let Ok(request) = Request::parse(&bytes) {
                let _ = (request.client(), request.command(), request.xid());
            }
        }
    }
}
