//! Envelopes: `nlmsghdr` 16 | `genlmsghdr` 4 | DRBD's header 8 | attributes.

use super::DecodeError;
use super::attr::align;

/// Size of `struct nlmsghdr`.
const NL: usize = 16;
/// Size of `struct genlmsghdr`.
const GENL: usize = 4;
/// Size of DRBD's user header: minor and flags/return code.
pub(crate) const USER: usize = 8;

/// `nlmsg_type` of an error or acknowledgement (`NLMSG_ERROR`).
pub(crate) const ERROR: u16 = 2;
/// `nlmsg_type` at the end of a dump (`NLMSG_DONE`).
pub(crate) const DONE: u16 = 3;
/// `NLM_F_REQUEST`.
pub(crate) const REQUEST: u16 = 1;
/// `NLM_F_ROOT | NLM_F_MATCH`.
pub(crate) const DUMP: u16 = 0x300;
/// The header's minor when the object is no device.
pub(crate) const NO_MINOR: u32 = u32::MAX;

/// One message of a datagram, split at its netlink header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub kind: u16,
    pub seq: u32,
    pub payload: &'a [u8],
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl<'a> Frame<'a> {
    /// Splits a datagram into its messages.
    pub(crate) fn split(buffer: &'a [u8]) -> Result<Vec<Self>, DecodeError> {
        let mut frames = Vec::new();
        let mut at = 0;
        while at < buffer.len() {
            let rest = &buffer[at..];
            let (frame, used) = Self::first(rest).map_err(|error| match error {
                DecodeError::Length { claimed, left, .. } => {
                    DecodeError::Length { at, claimed, left }
                }
                other => other,
            })?;
            frames.push(frame);
            at += align(used);
        }
        Ok(frames)
    }

    fn first(rest: &'a [u8]) -> Result<(Self, usize), DecodeError> {
        let short = DecodeError::Short(rest.len());
        let length = u32_at(rest, 0).ok_or(short.clone())?;
        let kind = u16_at(rest, 4).ok_or(short.clone())?;
        let seq = u32_at(rest, 8).ok_or(short)?;
        let claimed = usize::try_from(length).unwrap_or(usize::MAX);
        let left = rest.len();
        let payload = rest.get(NL..claimed).ok_or(DecodeError::Length { at: 0, claimed, left })?;
        Ok((Self { kind, seq, payload }, claimed))
    }

    /// The errno of an `NLMSG_ERROR` or `NLMSG_DONE` (positive; 0 is success); anything unreadable
    /// is `EIO`, which is a no.
    pub(crate) fn errno(&self) -> i32 {
        const EIO: i32 = 5;
        match u32_at(self.payload, 0) {
            Some(raw) => raw.cast_signed().checked_neg().filter(|errno| *errno >= 0).unwrap_or(EIO),
            None if self.kind == DONE => 0,
            None => EIO,
        }
    }
}

/// A message of DRBD's family, attributes still encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub cmd: u8,
    pub seq: u32,
    /// The device, or `None` if the object is none.
    pub minor: Option<u32>,
    /// Return code of replies (see [`crate::ReturnCode`]).
    pub code: i32,
    pub attrs: &'a [u8],
}

impl<'a> Message<'a> {
    pub(crate) fn parse(frame: &Frame<'a>) -> Result<Self, DecodeError> {
        let short = DecodeError::Short(frame.payload.len());
        let cmd = *frame.payload.first().ok_or(short.clone())?;
        let minor = u32_at(frame.payload, GENL).ok_or(short.clone())?;
        let code = u32_at(frame.payload, GENL + 4).ok_or(short.clone())?.cast_signed();
        let attrs = frame.payload.get(GENL + USER..).ok_or(short)?;
        let minor = (minor != NO_MINOR).then_some(minor);
        Ok(Self { cmd, seq: frame.seq, minor, code, attrs })
    }
}

/// What goes into the headers of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Envelope {
    pub family: u16,
    pub flags: u16,
    pub seq: u32,
    pub cmd: u8,
    pub version: u8,
}

impl Envelope {
    /// A whole message; `user` is the family's own header.
    pub(crate) fn wrap(self, user: &[u8], attrs: &[u8]) -> Vec<u8> {
        let length = NL + GENL + user.len() + attrs.len();
        let mut message = Vec::with_capacity(length);
        message.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
        message.extend_from_slice(&self.family.to_ne_bytes());
        message.extend_from_slice(&self.flags.to_ne_bytes());
        message.extend_from_slice(&self.seq.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(&[self.cmd, self.version, 0, 0]);
        message.extend_from_slice(user);
        message.extend_from_slice(attrs);
        message
    }
}

/// DRBD's header of a request; the flag word is zero (no `SET_DEFAULTS`).
pub(crate) fn user_header(minor: Option<u32>) -> [u8; USER] {
    let mut header = [0; USER];
    header[..4].copy_from_slice(&minor.unwrap_or(NO_MINOR).to_ne_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ENVELOPE: Envelope =
        Envelope { family: 0x1c, flags: REQUEST | DUMP, seq: 7, cmd: 14, version: 1 };

    #[test]
    fn envelope_is_laid_out_as_the_kernel_reads_it() {
        let raw = ENVELOPE.wrap(&user_header(Some(3)), &[]);
        let mut golden = 28u32.to_ne_bytes().to_vec();
        golden.extend_from_slice(&0x1cu16.to_ne_bytes());
        golden.extend_from_slice(&0x301u16.to_ne_bytes());
        golden.extend_from_slice(&7u32.to_ne_bytes());
        golden.extend_from_slice(&[0, 0, 0, 0, 14, 1, 0, 0]);
        golden.extend_from_slice(&3u32.to_ne_bytes());
        golden.extend_from_slice(&[0; 4]);
        assert_eq!(raw, golden);
    }

    #[test]
    fn all_ones_is_no_minor_and_codes_are_signed() {
        let mut user = user_header(None);
        user[4..].copy_from_slice(&(-12i32).to_ne_bytes());
        let raw = ENVELOPE.wrap(&user, &[]);
        let frames = Frame::split(&raw).unwrap();
        let message = Message::parse(&frames[0]).unwrap();
        assert_eq!((message.minor, message.code, message.cmd), (None, -12, 14));
    }

    #[test]
    fn two_messages_in_a_datagram() {
        let mut raw = ENVELOPE.wrap(&user_header(Some(1)), &[]);
        raw.extend(ENVELOPE.wrap(&user_header(Some(2)), &[]));
        let minors: Vec<_> = Frame::split(&raw)
            .unwrap()
            .iter()
            .map(|frame| Message::parse(frame).unwrap().minor)
            .collect();
        assert_eq!(minors, [Some(1), Some(2)]);
    }

    #[test]
    fn errno_of_errors() {
        let of = |kind, value: &[u8]| Frame { kind, seq: 0, payload: value }.errno();
        assert_eq!(of(ERROR, &(-1i32).to_ne_bytes()), 1);
        assert_eq!(of(ERROR, &0i32.to_ne_bytes()), 0);
        assert_eq!(of(ERROR, &i32::MIN.to_ne_bytes()), 5);
        assert_eq!(of(ERROR, &7i32.to_ne_bytes()), 5);
        assert_eq!(of(ERROR, &[]), 5);
        assert_eq!(of(DONE, &[]), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(frames) = Frame::split(&raw) {
                for frame in &frames {
                    let _ = (frame.errno(), Message::parse(frame));
                }
            }
        }

        #[test]
        fn round_trip(minor in any::<u32>(), seq in any::<u32>(), cmd in any::<u8>(),
                      attrs in proptest::collection::vec(any::<u8>(), 0..64)) {
            let envelope = Envelope { seq, cmd, ..ENVELOPE };
            let minor = (minor != NO_MINOR).then_some(minor);
            let raw = envelope.wrap(&user_header(minor), &attrs);
            let frames = Frame::split(&raw).unwrap();
            let message = Message::parse(&frames[0]).unwrap();
            prop_assert_eq!(message, Message { cmd, seq, minor, code: 0, attrs: &attrs });
        }
    }
}
