//! The netlink socket: finding the family, sending a request, reading its answer.
//!
//! Keeps S12: an answer that is late, missing or unreadable is an error, never a success. The kernel
//! executes a request inside `sendmsg`; nothing here can shorten that, so nothing here may be called
//! on a thread that others wait for (see [`crate::CommandQueue`]).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::abi::Abi;
use crate::client::OpenError;
use crate::commands::TransportError;
use crate::wire::DecodeError;
use crate::wire::attr::{Attrs, Writer};
use crate::wire::message::{self, DUMP, Envelope, Frame, Message, REQUEST, user_header};
use crate::wire::request::Request;

/// How long an answer may take *after* the kernel has executed the request. It is in the socket's
/// buffer by then; this only guards against a kernel that never answers.
const REPLY_DEADLINE: Duration = Duration::from_secs(5);

/// The numbers of the controller family (`linux/genetlink.h`).
mod ctrl {
    pub const FAMILY: u16 = 0x10;
    pub const GET_FAMILY: u8 = 3;
    pub const VERSION: u8 = 1;
    pub const FAMILY_ID: u16 = 1;
    pub const FAMILY_NAME: u16 = 2;
    pub const FAMILY_VERSION: u16 = 3;
    pub const HEADER_SIZE: u16 = 4;
    pub const GROUPS: u16 = 7;
    pub const GROUP_NAME: u16 = 1;
    pub const GROUP_ID: u16 = 2;
}

/// The family as the controller describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Family {
    pub id: u16,
    pub abi: Abi,
    /// The multicast group `events`.
    pub events: u32,
}

impl Family {
    /// Reads the controller's answer; a version or a header that we do not know is refused (S12).
    pub(crate) fn decode(attrs: &[u8]) -> Result<Self, OpenError> {
        let attrs = Attrs::parse(attrs)?;
        let number = |kind| attrs.get(kind).and_then(|attr| attr.u32());
        let id = attrs.get(ctrl::FAMILY_ID).and_then(|attr| attr.u16());
        let version = number(ctrl::FAMILY_VERSION).unwrap_or(0);
        let header = number(ctrl::HEADER_SIZE).unwrap_or(0);
        let abi = Abi::from_family_version(version)
            .filter(|_| usize::try_from(header) == Ok(message::USER))
            .ok_or(OpenError::UnknownInterface { version, header })?;
        let id = id.ok_or(OpenError::NoFamilyId)?;
        let events = Self::group(&attrs)?.ok_or(OpenError::NoEventsGroup)?;
        Ok(Self { id, abi, events })
    }

    fn group(attrs: &Attrs<'_>) -> Result<Option<u32>, OpenError> {
        let groups = attrs.nest(ctrl::GROUPS)?.unwrap_or_default();
        for group in groups.iter() {
            let group = Attrs::parse(group.data)?;
            if group.get(ctrl::GROUP_NAME).is_some_and(|name| name.text() == "events") {
                return Ok(group.get(ctrl::GROUP_ID).and_then(|id| id.u32()));
            }
        }
        Ok(None)
    }
}

/// A message with its attributes, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub cmd: u8,
    pub seq: u32,
    pub minor: Option<u32>,
    pub code: i32,
    pub attrs: Vec<u8>,
}

impl Answer {
    pub(crate) fn message(&self) -> Message<'_> {
        let Self { cmd, seq, minor, code, ref attrs } = *self;
        Message { cmd, seq, minor, code, attrs }
    }

    fn own(message: &Message<'_>) -> Self {
        let Message { cmd, seq, minor, code, attrs } = *message;
        Self { cmd, seq, minor, code, attrs: attrs.to_vec() }
    }
}

/// The way to DRBD; the tests have another one than the kernel's.
pub(crate) trait Transport: Send {
    /// The interface spoken.
    fn abi(&self) -> Abi;
    /// Executes a command and returns its answer, whatever the return code in it.
    fn request(&mut self, request: &Request) -> Result<Answer, TransportError>;
    /// Reads a dump to its end.
    fn dump(&mut self, request: &Request) -> Result<Vec<Answer>, TransportError>;
}

/// A socket of the `drbd` family.
#[derive(Debug)]
pub(crate) struct Genl {
    socket: Socket,
    pub family: Family,
    seq: u32,
}

fn socket_error(error: &std::io::Error) -> TransportError {
    TransportError::Socket(error.raw_os_error().unwrap_or(nix::libc::EIO))
}

/// Waits for something to read. `false`: the deadline passed.
pub(crate) fn readable(socket: &Socket, deadline: Instant) -> Result<bool, TransportError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that a wait of less than a millisecond does not spin.
        let timeout =
            PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) if Instant::now() >= deadline => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(TransportError::Socket(errno as i32)),
        }
    }
}

/// Longest datagram expected: the kernel caps those of a dump at 32 KiB.
const DATAGRAM: usize = 64 * 1024;

/// One datagram of the kernel; anything another process sent is empty.
pub(crate) fn datagram(socket: &Socket) -> Result<Vec<u8>, TransportError> {
    let mut raw = Vec::with_capacity(DATAGRAM);
    let flags = nix::libc::MSG_TRUNC;
    let (length, sender) =
        socket.recv_from(&mut raw, flags).map_err(|error| socket_error(&error))?;
    if length > raw.len() {
        return Err(DecodeError::Short(raw.len()).into());
    }
    Ok(if sender.port_number() == 0 { raw } else { Vec::new() })
}

impl Genl {
    /// Opens a socket and looks the family up.
    pub(crate) fn open() -> Result<Self, OpenError> {
        let mut socket = Socket::new(NETLINK_GENERIC).map_err(|error| socket_error(&error))?;
        socket.bind_auto().map_err(|error| socket_error(&error))?;
        let unknown = Family { id: ctrl::FAMILY, abi: Abi::V84, events: 0 };
        let mut genl = Self { socket, family: unknown, seq: 0 };
        genl.family = genl.look_up()?;
        Ok(genl)
    }

    fn look_up(&mut self) -> Result<Family, OpenError> {
        self.seq += 1;
        let envelope = Envelope {
            family: ctrl::FAMILY,
            flags: REQUEST,
            seq: self.seq,
            cmd: ctrl::GET_FAMILY,
            version: ctrl::VERSION,
        };
        let name = Writer::default().text(ctrl::FAMILY_NAME, "drbd").finish();
        self.send(&envelope.wrap(&[], &name))?;
        let deadline = Instant::now() + REPLY_DEADLINE;
        let mut found = None;
        while found.is_none() {
            self.receive(deadline, |frame| {
                if frame.kind == ctrl::FAMILY {
                    // Behind a genlmsghdr; the controller has no header of its own.
                    found = frame.payload.get(4..).map(Family::decode);
                }
                Ok(())
            })?;
        }
        found.unwrap_or(Err(OpenError::NoFamilyId))
    }

    /// Joins the events group and makes room for a burst; `bytes` is a wish.
    pub(crate) fn join(&self, bytes: usize) -> Result<(), TransportError> {
        if setsockopt(&self.socket, sockopt::RcvBufForce, &bytes).is_err() {
            // Without CAP_NET_ADMIN only up to net.core.rmem_max.
            let _ = setsockopt(&self.socket, sockopt::RcvBuf, &bytes);
        }
        self.socket.add_membership(self.family.events).map_err(|error| socket_error(&error))
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    fn envelope(&mut self, cmd: u8, flags: u16) -> Envelope {
        self.seq = self.seq.wrapping_add(1);
        let version = self.family.abi.family_version();
        Envelope { family: self.family.id, flags: REQUEST | flags, seq: self.seq, cmd, version }
    }

    fn send(&self, raw: &[u8]) -> Result<(), TransportError> {
        let kernel = SocketAddr::new(0, 0);
        self.socket.send_to(raw, &kernel, 0).map_err(|error| socket_error(&error))?;
        Ok(())
    }

    /// Sends a dump request without reading; returns its sequence number.
    pub(crate) fn start_dump(&mut self, request: &Request) -> Result<u32, TransportError> {
        let envelope = self.envelope(request.cmd, DUMP);
        self.send(&envelope.wrap(&user_header(request.minor), &request.attrs))?;
        Ok(envelope.seq)
    }

    /// One datagram from the kernel. Errors in it that belong to our last request end the wait.
    fn receive(
        &self,
        deadline: Instant,
        mut take: impl FnMut(&Frame<'_>) -> Result<(), TransportError>,
    ) -> Result<(), TransportError> {
        if !readable(&self.socket, deadline)? {
            return Err(TransportError::NoReply);
        }
        let raw = datagram(&self.socket)?;
        for frame in Frame::split(&raw)? {
            if frame.seq != self.seq {
                continue;
            }
            if frame.kind == message::ERROR && frame.errno() != 0 {
                return Err(TransportError::from_errno(frame.errno()));
            }
            take(&frame)?;
        }
        Ok(())
    }
}

impl Transport for Genl {
    fn abi(&self) -> Abi {
        self.family.abi
    }

    fn request(&mut self, request: &Request) -> Result<Answer, TransportError> {
        let envelope = self.envelope(request.cmd, 0);
        self.send(&envelope.wrap(&user_header(request.minor), &request.attrs))?;
        let deadline = Instant::now() + REPLY_DEADLINE;
        let (family, mut answer) = (self.family.id, None);
        while answer.is_none() {
            self.receive(deadline, |frame| {
                if frame.kind == family {
                    answer = Some(Answer::own(&Message::parse(frame)?));
                }
                Ok(())
            })?;
        }
        answer.filter(|answer| answer.cmd == request.cmd).ok_or(TransportError::NoReply)
    }

    fn dump(&mut self, request: &Request) -> Result<Vec<Answer>, TransportError> {
        self.start_dump(request)?;
        let deadline = Instant::now() + REPLY_DEADLINE;
        let (family, mut answers, mut done) = (self.family.id, Vec::new(), false);
        while !done {
            self.receive(deadline, |frame| {
                match frame.kind {
                    message::DONE if frame.errno() != 0 => {
                        return Err(TransportError::from_errno(frame.errno()));
                    }
                    message::DONE => done = true,
                    kind if kind == family => answers.push(Answer::own(&Message::parse(frame)?)),
                    _ => {}
                }
                Ok(())
            })?;
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn description(version: u32, header: u32) -> Vec<u8> {
        let group = Writer::default().u32(ctrl::GROUP_ID, 9).text(ctrl::GROUP_NAME, "events");
        let other = Writer::default().text(ctrl::GROUP_NAME, "other").u32(ctrl::GROUP_ID, 8);
        Writer::default()
            .text(ctrl::FAMILY_NAME, "drbd")
            .bytes(ctrl::FAMILY_ID, &0x1eu16.to_ne_bytes())
            .u32(ctrl::FAMILY_VERSION, version)
            .u32(ctrl::HEADER_SIZE, header)
            .nest(ctrl::GROUPS, Writer::default().nest(1, other).nest(2, group))
            .finish()
    }

    #[test]
    fn the_family_version_selects_the_abi() {
        let of = |version| Family::decode(&description(version, 8)).unwrap();
        assert_eq!(of(1), Family { id: 0x1e, abi: Abi::V84, events: 9 });
        assert_eq!(of(2).abi, Abi::V9);
    }

    #[test]
    fn s12_unknown_interfaces_are_refused() {
        for (version, header) in [(0, 8), (3, 8), (1, 0), (2, 12)] {
            let error = Family::decode(&description(version, header)).unwrap_err();
            assert_eq!(error, OpenError::UnknownInterface { version, header });
        }
    }

    proptest! {
        #[test]
        fn any_description_never_panics(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Family::decode(&raw);
        }
    }
}
