//! One generic-netlink socket: finds the family, sends, reads until the end or the deadline.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvmsg, sendto,
    socket,
};

use super::wire::{self, DecodeError, Frame, Writer, attributes};
use super::{Command, NetlinkError};

/// The controller of generic netlink (`linux/genetlink.h`).
mod ctrl {
    pub(super) const FAMILY: u16 = 0x10;
    pub(super) const GET_FAMILY: u8 = 3;
    pub(super) const FAMILY_ID: u16 = 1;
    pub(super) const FAMILY_NAME: u16 = 2;
    pub(super) const OPS: u16 = 6;
    pub(super) const OP_ID: u16 = 1;
}

/// Longest datagram taken. The kernel makes dumps as large as the reads it has seen, up to 32 KiB,
/// and a list of calls that does not fit is cut short: so all reads are large.
const DATAGRAM: usize = 64 * 1024;

/// The family as the controller describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Family {
    id: u16,
    commands: Vec<u32>,
}

impl Family {
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (mut id, mut commands) = (None, Vec::new());
        for attr in &attributes(bytes)? {
            match attr.kind {
                ctrl::FAMILY_ID => id = Some(attr.u16()?),
                ctrl::OPS => commands = Self::decode_commands(attr.data)?,
                _ => {}
            }
        }
        let id = id.ok_or(DecodeError::Missing { kind: ctrl::FAMILY_ID })?;
        Ok(Family { id, commands })
    }

    fn decode_commands(bytes: &[u8]) -> Result<Vec<u32>, DecodeError> {
        let mut commands = Vec::new();
        for op in &attributes(bytes)? {
            for attr in attributes(op.data)?.iter().filter(|a| a.kind == ctrl::OP_ID) {
                commands.push(attr.u32()?);
            }
        }
        Ok(commands)
    }
}

/// What a request brought: messages, and how it ended.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) bodies: Vec<Vec<u8>>,
    /// 0 is success.
    pub(super) errno: i32,
}

impl Reply {
    /// The one message of an answer; an error if the kernel refused.
    pub(super) fn single(self, command: Command) -> Result<Vec<u8>, NetlinkError> {
        let bodies = self.accepted(command)?;
        Ok(bodies.into_iter().next().unwrap_or_default())
    }

    pub(super) fn accepted(self, command: Command) -> Result<Vec<Vec<u8>>, NetlinkError> {
        match self.errno {
            0 => Ok(self.bodies),
            errno => Err(refused(command, errno)),
        }
    }
}

pub(super) fn refused(command: Command, errno: i32) -> NetlinkError {
    NetlinkError::Refused { command, source: io::Error::from_raw_os_error(errno) }
}

/// Until when, and the words for when it is too late.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    pub(super) at: Instant,
    pub(super) limit: Duration,
    pub(super) what: &'static str,
}

impl Deadline {
    pub(super) fn late(&self) -> NetlinkError {
        NetlinkError::Late { what: self.what, limit: self.limit }
    }

    pub(super) fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

/// A socket of the calling thread's network namespace.
#[derive(Debug)]
pub(super) struct Genl {
    fd: OwnedFd,
    seq: u32,
    family: Option<Family>,
    buffer: Vec<u8>,
}

impl Genl {
    /// Opens a socket; the family is looked up with the first request.
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkGeneric;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).map_err(system)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(system)?;
        Ok(Genl { fd, seq: 0, family: None, buffer: vec![0; DATAGRAM] })
    }

    /// Sends `command` and reads to its end. `flags` besides "request": [`wire::ACK`] or
    /// [`wire::DUMP`].
    pub(super) fn request(
        &mut self,
        command: Command,
        flags: u16,
        attrs: &[u8],
        deadline: &Deadline,
    ) -> Result<Reply, NetlinkError> {
        let family = self.family(deadline)?;
        if !family.commands.contains(&u32::from(command as u8)) {
            return Err(NetlinkError::NoCommand { command });
        }
        self.exchange(family.id, command as u8, flags, attrs, deadline)
    }

    fn family(&mut self, deadline: &Deadline) -> Result<Family, NetlinkError> {
        if let Some(family) = &self.family {
            return Ok(family.clone());
        }
        let name = Writer::default().text(ctrl::FAMILY_NAME, "nfsd").finish();
        let reply = self.exchange(ctrl::FAMILY, ctrl::GET_FAMILY, wire::ACK, &name, deadline)?;
        let family = match (reply.errno, reply.bodies.first()) {
            (libc::ENOENT, _) => return Err(NetlinkError::NoFamily),
            (0, Some(body)) => Family::decode(body)?,
            (0, None) => return Err(DecodeError::Missing { kind: ctrl::FAMILY_ID }.into()),
            (errno, _) => return Err(io::Error::from_raw_os_error(errno).into()),
        };
        self.family = Some(family.clone());
        Ok(family)
    }

    fn exchange(
        &mut self,
        kind: u16,
        cmd: u8,
        flags: u16,
        attrs: &[u8],
        deadline: &Deadline,
    ) -> Result<Reply, NetlinkError> {
        self.seq = self.seq.wrapping_add(1);
        let raw = wire::message(kind, wire::REQUEST | flags, self.seq, cmd, attrs);
        sendto(self.fd.as_raw_fd(), &raw, &NetlinkAddr::new(0, 0), MsgFlags::empty())
            .map_err(system)?;
        let mut reply = Reply::default();
        loop {
            wait(&self.fd, deadline)?;
            let Some(length) = self.receive()? else { continue };
            if take(&self.buffer[..length], kind, self.seq, &mut reply)? {
                return Ok(reply);
            }
        }
    }

    /// Length of one datagram of the kernel's; `None` for one of another process.
    fn receive(&mut self) -> Result<Option<usize>, NetlinkError> {
        // MSG_TRUNC makes the call return the whole length, also of what did not fit.
        let fd = self.fd.as_raw_fd();
        let flags = MsgFlags::MSG_TRUNC;
        let (length, from) = match receive_from(fd, &mut self.buffer, flags) {
            Ok(received) => received,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(errno) => return Err(system(errno)),
        };
        if length > self.buffer.len() {
            return Err(DecodeError::Truncated { length }.into());
        }
        Ok((from == Some(0)).then_some(length))
    }
}

/// Length and the sender's port, 0 for the kernel.
fn receive_from(
    fd: RawFd,
    buffer: &mut [u8],
    flags: MsgFlags,
) -> nix::Result<(usize, Option<u32>)> {
    let mut slices = [io::IoSliceMut::new(buffer)];
    let message = recvmsg::<NetlinkAddr>(fd, &mut slices, None, flags)?;
    Ok((message.bytes, message.address.map(|a| a.pid())))
}

fn system(errno: Errno) -> NetlinkError {
    NetlinkError::Socket(errno.into())
}

/// Takes the messages of a datagram; `true` at the end of the answer.
fn take(bytes: &[u8], kind: u16, seq: u32, reply: &mut Reply) -> Result<bool, DecodeError> {
    for frame in Frame::split(bytes)?.iter().filter(|frame| frame.seq == seq) {
        match frame.kind {
            wire::ERROR | wire::DONE => {
                reply.errno = frame.errno();
                return Ok(true);
            }
            found if found == kind => reply.bodies.push(frame.attributes().to_vec()),
            _ => {}
        }
    }
    Ok(false)
}

/// Waits for something to read.
fn wait(fd: &OwnedFd, deadline: &Deadline) -> Result<(), NetlinkError> {
    loop {
        // Rounded up, so that less than a millisecond does not spin.
        let left = deadline.left() + Duration::from_micros(999);
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) if deadline.left().is_zero() => return Err(deadline.late()),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(system(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn soon() -> Deadline {
        let limit = Duration::from_secs(5);
        Deadline { at: Instant::now() + limit, limit, what: "a test" }
    }

    #[test]
    fn the_family_is_described() {
        let op = |id| Writer::default().u32(ctrl::OP_ID, id).u32(2, 0xa);
        let bytes = Writer::default()
            .text(ctrl::FAMILY_NAME, "nfsd")
            .bytes(ctrl::FAMILY_ID, &0x21u16.to_ne_bytes())
            .nest(ctrl::OPS, Writer::default().nest(1, op(1)).nest(2, op(3)))
            .finish();
        assert_eq!(Family::decode(&bytes), Ok(Family { id: 0x21, commands: vec![1, 3] }));
        assert!(Family::decode(&[]).is_err());
    }

    /// The controller describes itself on every kernel: the whole way there and back.
    #[test]
    fn the_kernel_answers_the_controller() {
        let mut genl = Genl::open().unwrap();
        let name = Writer::default().text(ctrl::FAMILY_NAME, "nlctrl").finish();
        let reply =
            genl.exchange(ctrl::FAMILY, ctrl::GET_FAMILY, wire::ACK, &name, &soon()).unwrap();
        assert_eq!(reply.errno, 0);
        let family = Family::decode(&reply.bodies[0]).unwrap();
        assert_eq!(family.id, ctrl::FAMILY);
        assert!(family.commands.contains(&u32::from(ctrl::GET_FAMILY)));
    }

    #[test]
    fn s12_no_answer_is_late_and_not_empty() {
        let genl = Genl::open().unwrap();
        let limit = Duration::from_millis(20);
        let deadline = Deadline { at: Instant::now() + limit, limit, what: "nothing" };
        let began = Instant::now();
        assert!(matches!(wait(&genl.fd, &deadline), Err(NetlinkError::Late { .. })));
        assert!(began.elapsed() >= limit && began.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_list_cut_short_keeps_what_came() {
        let call = Writer::default().u32(1, 7).finish();
        let mut raw = wire::message(33, 0, 5, 1, &call);
        raw.extend(wire::message(33, 0, 4, 1, &call));
        let mut end = wire::message(wire::DONE, 0, 5, 0, &[]);
        end[16..20].copy_from_slice(&(-libc::ENOBUFS).to_ne_bytes());
        raw.extend(end);
        let mut reply = Reply::default();
        assert_eq!(take(&raw, 33, 5, &mut reply), Ok(true));
        // The message with another number belongs to an older request.
        assert_eq!((reply.bodies.len(), reply.errno), (1, libc::ENOBUFS));
    }

    proptest! {
        #[test]
        fn any_datagram_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = take(&bytes, 33, 1, &mut Reply::default());
            let _ = Family::decode(&bytes);
        }
    }
}
