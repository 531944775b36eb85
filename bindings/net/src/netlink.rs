//! Owns a small blocking netlink client with deadlines (rule S8), for what has no safe builder:
//! filters, socket listing, and link queries, which skip attributes they do not know, so that a
//! newer kernel cannot make a whole answer unreadable.
//!
//! Wire format: netlink(7), include/uapi/linux/netlink.h.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::NetError;

pub(crate) const ACK: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
const REQUEST: u16 = 0x1;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// Dumps come in pieces of at most 32 KiB (netlink_dump); twice that never truncates.
const RECEIVE: usize = 65_536;

/// One message of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
}

/// Why a request has no answer; [`Failure::at`] adds where.
#[derive(Debug)]
pub(crate) enum Failure {
    Kernel(io::Error),
    Late,
    Garbled(&'static str),
}

impl Failure {
    /// The errno when the kernel answered with one.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel(error) => error.raw_os_error(),
            _ => None,
        }
    }

    /// The public error: which namespace, what was asked, of what, within which limit.
    pub(crate) fn at(self, place: &Place<'_>) -> NetError {
        let (namespace, action) = (place.namespace.to_owned(), place.action);
        match self {
            Self::Kernel(source) => refused(place, source),
            Self::Late => NetError::Timeout { namespace, action, limit: place.limit },
            Self::Garbled(what) => NetError::Malformed { namespace, action, what },
        }
    }
}

/// Context of a request, for errors.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) action: &'static str,
    pub(crate) object: &'a str,
    pub(crate) limit: Duration,
}

/// Turns the kernel's errno into the public error.
pub(crate) fn refused(place: &Place<'_>, source: io::Error) -> NetError {
    let (namespace, action) = (place.namespace.to_owned(), place.action);
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            NetError::NotPermitted { namespace, action, needs: "CAP_NET_ADMIN" }
        }
        Some(libc::ENODEV) => {
            NetError::InterfaceMissing { namespace, interface: place.object.to_owned() }
        }
        _ => NetError::Refused { namespace, action, object: place.object.to_owned(), source },
    }
}

/// A netlink socket of the namespace it was opened in.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one request and gathers its answer until the acknowledgement or the dump's end.
    pub(crate) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        until: Instant,
    ) -> std::result::Result<Vec<Message>, Failure> {
        self.sequence = self.sequence.wrapping_add(1);
        let end = if flags & DUMP == DUMP { 0 } else { ACK };
        let bytes = encode(kind, REQUEST | flags | end, self.sequence, body);
        self.socket.send(&bytes, 0).map_err(Failure::Kernel)?;
        let mut gathered = Vec::new();
        loop {
            let datagram = self.receive(until)?;
            if take(&datagram, self.sequence, &mut gathered)? {
                return Ok(gathered);
            }
        }
    }

    fn receive(&self, until: Instant) -> std::result::Result<Vec<u8>, Failure> {
        loop {
            self.wait(until)?;
            let mut buffer = Vec::with_capacity(RECEIVE);
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => return Ok(buffer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Failure::Kernel(error)),
            }
        }
    }

    fn wait(&self, until: Instant) -> std::result::Result<(), Failure> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Late);
        }
        // Rounded up, else the last fraction of a millisecond would spin.
        let millis = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        let mut set = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut set, PollTimeout::from(millis)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(Failure::Kernel(errno.into())),
        }
    }
}

/// Frames a request.
fn encode(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0u32.to_ne_bytes());
    out.extend_from_slice(body);
    out
}

/// Takes the messages of one datagram; true when the answer is complete.
fn take(
    mut datagram: &[u8],
    sequence: u32,
    gathered: &mut Vec<Message>,
) -> std::result::Result<bool, Failure> {
    while datagram.len() >= HEADER {
        let length = read_u32(datagram, 0).unwrap_or(0) as usize;
        let kind = read_u16(datagram, 4).unwrap_or(0);
        if length < HEADER || length > datagram.len() {
            return Err(Failure::Garbled("message length"));
        }
        let (message, rest) = datagram.split_at(length);
        datagram = rest.get(align(length) - length..).unwrap_or_default();
        // A late answer to an earlier request that ran into its deadline.
        if read_u32(message, 8) != Some(sequence) {
            continue;
        }
        let body = message.get(HEADER..).unwrap_or_default();
        match kind {
            // A dump's end may carry no code on old kernels: that means success.
            NLMSG_DONE => return verdict(read_u32(body, 0).unwrap_or(0)),
            NLMSG_ERROR => {
                let code = read_u32(body, 0).ok_or(Failure::Garbled("error code"))?;
                return verdict(code);
            }
            _ => gathered.push(Message { kind, body: body.to_vec() }),
        }
    }
    Ok(false)
}

fn verdict(code: u32) -> std::result::Result<bool, Failure> {
    match code.cast_signed() {
        0 => Ok(true),
        errno => Err(Failure::Kernel(io::Error::from_raw_os_error(errno.saturating_neg()))),
    }
}

const fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// Reads a number at `at`, if it is there.
pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    let piece = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*piece))
}

/// Reads a number at `at`, if it is there.
pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    let piece = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_ne_bytes(*piece))
}

/// Appends one attribute, padded. Values are short here; 64 KiB is never reached.
pub(crate) fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(align(out.len()), 0);
}

/// Appends a text attribute with its terminating zero.
pub(crate) fn put_text(out: &mut Vec<u8>, kind: u16, value: &str) {
    let mut bytes = value.as_bytes().to_vec();
    bytes.push(0);
    put(out, kind, &bytes);
}

/// Walks attributes; stops at the first that does not fit.
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(read_u16(self.0, 0)?);
        // The two top bits say "nested" and "network byte order".
        let kind = read_u16(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The first attribute of that kind.
pub(crate) fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    Attributes(attributes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Text of an attribute, without its terminating zero.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn attributes_come_back(list in prop::collection::vec((0u16..0x3fff, prop::collection::vec(any::<u8>(), 0..40)), 0..8)) {
            let mut bytes = Vec::new();
            for (kind, value) in &list {
                put(&mut bytes, *kind, value);
            }
            prop_assert_eq!(bytes.len() % 4, 0);
            let back: Vec<_> = Attributes(&bytes).map(|(k, v)| (k, v.to_vec())).collect();
            prop_assert_eq!(back, list);
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Attributes(&bytes).count();
            let _ = take(&bytes, 7, &mut Vec::new());
            let _ = text(&bytes);
        }

        #[test]
        fn answers_to_other_requests_are_skipped(mine in any::<u32>(), other in any::<u32>()) {
            prop_assume!(mine != other);
            let mut bytes = encode(20, 0, other, &[1, 2, 3, 4]);
            bytes.extend(encode(20, 0, mine, &[5, 6, 7, 8]));
            bytes.extend(encode(NLMSG_DONE, 0, mine, &0u32.to_ne_bytes()));
            let mut got = Vec::new();
            prop_assert!(take(&bytes, mine, &mut got).unwrap());
            prop_assert_eq!(got, vec![Message { kind: 20, body: vec![5, 6, 7, 8] }]);
        }
    }

    #[test]
    fn an_errno_is_an_error() {
        let bytes = encode(NLMSG_ERROR, 0, 1, &(-libc::EEXIST).to_ne_bytes());
        assert_eq!(take(&bytes, 1, &mut Vec::new()).unwrap_err().errno(), Some(libc::EEXIST));
    }
}
