//! The fixed-size pieces of the socket protocol. Numbers are `sanlock_sock.h` and `sanlock.h` of
//! 3.8.5; offsets are those of a 64-bit C compiler, asserted by the tests of this module.

use crate::error::{Error, Result};

/// `SM_MAGIC`.
pub const MAGIC: u32 = 0x0428_2010;
/// `SM_PROTO`. The upper half is the major number: the daemon refuses a newer one, as we do.
pub const PROTOCOL: u32 = 1;

/// `sizeof(struct sm_header)`.
pub const HEADER: usize = 32;
/// `sizeof(struct sanlk_state)`: 76 bytes and the padding that is sent with them.
pub const STATE: usize = 80;
/// `sizeof(struct sanlk_lockspace)`.
pub const LOCKSPACE: usize = 64 + DISK;
/// `sizeof(struct sanlk_host)`.
pub const HOST: usize = 32;
/// `sizeof(struct sanlk_resource)`, without its disks.
pub const RESOURCE: usize = 128;
/// `sizeof(struct sanlk_disk)`.
pub const DISK: usize = PATH + 16;

/// `SANLK_NAME_LEN`.
pub const NAME: usize = 48;
/// `SANLK_PATH_LEN`.
pub const PATH: usize = 1024;
/// `SANLK_STATE_MAXSTR`.
pub const MAX_TEXT: u32 = 4096;
/// `SANLK_MAX_DISKS`.
pub const MAX_DISKS: u32 = 4;
/// `LOG_DUMP_SIZE`: the buffer from which the daemon answers lists.
pub const MAX_LIST: usize = 1024 * 1024;

/// The commands this client can send, all of which only read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `SM_CMD_STATUS`
    Status = 5,
    /// `SM_CMD_GET_LOCKSPACES`
    GetLockspaces = 22,
    /// `SM_CMD_GET_HOSTS`
    GetHosts = 23,
    /// `SM_CMD_VERSION`
    Version = 28,
    /// `SM_CMD_RENEWAL`
    Renewal = 34,
}

impl Command {
    /// For messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::GetLockspaces => "lockspaces",
            Self::GetHosts => "hosts",
            Self::Version => "version",
            Self::Renewal => "renewal",
        }
    }
}

/// `struct sm_header` of an answer that passed the checks of [`Header::parse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Length of header and body; the streamed answers do not count their records in it.
    pub length: u32,
    /// A result: negative errno, or a code of the command.
    pub data: i32,
    /// A count or a number of the command.
    pub data2: u32,
}

impl Header {
    /// Checks magic, protocol and command before anything else is believed.
    pub fn parse(bytes: &[u8; HEADER], asked: Command) -> Result<Self> {
        let [magic, version, cmd, _, length, _, data, data2] = words(bytes);
        if magic != MAGIC {
            return Err(Error::NotSanlock { found: magic });
        }
        if version >> 16 != PROTOCOL >> 16 || version == 0 {
            return Err(Error::OtherVersion { found: version });
        }
        if cmd != asked as u32 {
            return Err(Error::OtherCommand { asked: asked as u32, found: cmd });
        }
        Ok(Self { length, data: data.cast_signed(), data2 })
    }
}

fn words(bytes: &[u8; HEADER]) -> [u32; 8] {
    let (chunks, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|at| chunks.get(at).map_or(0, |word| u32::from_ne_bytes(*word)))
}

/// A whole request: header, and the lockspace it is about if it is about one. `data` is the
/// command's own argument. Sent as one piece, see the crate's introduction.
pub fn request(command: Command, data: u32, lockspace: Option<&str>) -> Result<Vec<u8>> {
    let body = lockspace.map(name_only).transpose()?;
    let length = HEADER + body.as_ref().map_or(0, Vec::len);
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    let header = [MAGIC, PROTOCOL, command as u32, 0, length, 0, data, 0];
    let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend(body.into_iter().flatten());
    Ok(bytes)
}

/// A `struct sanlk_lockspace` that holds a name only.
fn name_only(name: &str) -> Result<Vec<u8>> {
    if name.is_empty() || name.len() > NAME || name.contains('\0') {
        return Err(Error::BadName { name: name.to_owned() });
    }
    let mut body = name.as_bytes().to_vec();
    body.resize(LOCKSPACE, 0);
    Ok(body)
}

/// Takes fields off the front of a structure whose size was checked by its type.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    /// The next bytes; fewer if the structure ends (which its type excludes).
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at_checked(count).unwrap_or((self.0, &[]));
        self.0 = rest;
        taken
    }

    pub(crate) fn skip(&mut self, count: usize) {
        self.take(count);
    }

    pub(crate) fn u32(&mut self) -> u32 {
        self.take(4).try_into().map_or(0, u32::from_ne_bytes)
    }

    pub(crate) fn u64(&mut self) -> u64 {
        self.take(8).try_into().map_or(0, u64::from_ne_bytes)
    }

    /// Text up to its first NUL, or all of it: sanlock fills names to the last byte.
    pub(crate) fn text(&mut self, size: usize) -> String {
        let bytes = self.take(size).split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_sizes_are_those_of_the_c_structures() {
        assert_eq!((LOCKSPACE, DISK, HOST, RESOURCE, STATE), (1104, 1040, 32, 128, 80));
    }

    #[test]
    fn a_request_is_one_piece_with_its_length_in_it() {
        let bytes = request(Command::Renewal, 0, Some("ls")).unwrap();
        assert_eq!(bytes.len(), HEADER + LOCKSPACE);
        assert_eq!(bytes[16..20], u32::try_from(HEADER + LOCKSPACE).unwrap().to_ne_bytes());
        assert_eq!(&bytes[HEADER..HEADER + 3], b"ls\0");
        assert_eq!(request(Command::Status, 3, None).unwrap().len(), HEADER);
    }

    #[test]
    fn names_that_cannot_be_are_not_sent() {
        let long = "x".repeat(NAME + 1);
        for name in ["", "a\0b", long.as_str()] {
            assert!(matches!(
                request(Command::GetHosts, 0, Some(name)),
                Err(Error::BadName { .. })
            ));
        }
        assert!(request(Command::GetHosts, 0, Some(&"x".repeat(NAME))).is_ok());
    }

    fn header(magic: u32, version: u32, cmd: u32) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        for (at, word) in [magic, version, cmd].into_iter().enumerate() {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn s12_foreign_headers_are_refused() {
        let parse =
            |magic, version, cmd| Header::parse(&header(magic, version, cmd), Command::Status);
        assert!(parse(MAGIC, 1, 5).is_ok());
        assert!(parse(MAGIC, 2, 5).is_ok(), "a newer minor is the same protocol");
        assert!(matches!(parse(0x1020_2804, 1, 5), Err(Error::NotSanlock { .. })));
        assert!(matches!(parse(MAGIC, 0x0001_0001, 5), Err(Error::OtherVersion { .. })));
        assert!(matches!(parse(MAGIC, 0, 5), Err(Error::OtherVersion { found: 0 })));
        assert!(matches!(parse(MAGIC, 1, 6), Err(Error::OtherCommand { asked: 5, found: 6 })));
    }

    proptest! {
        #[test]
        fn arbitrary_headers_do_not_panic(bytes: [u8; HEADER]) {
            let _ = Header::parse(&bytes, Command::Status);
        }
    }
}
