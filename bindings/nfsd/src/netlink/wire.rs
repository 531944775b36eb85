//! Messages and attributes, pure. Total: any bytes give a value or a [`DecodeError`].

/// Size of `struct nlmsghdr`.
const NL: usize = 16;
/// Size of `struct genlmsghdr`.
const GENL: usize = 4;
/// Size of `struct nlattr`.
const ATTR: usize = 4;
/// `NLA_TYPE_MASK`: the two top bits of an attribute's type are flags.
const TYPE_MASK: u16 = 0x3fff;
/// `NLA_F_NESTED`; kernels since 5.2 demand it on nests.
const NESTED: u16 = 0x8000;

/// `NLMSG_ERROR`, also an acknowledgement.
pub(super) const ERROR: u16 = 2;
/// `NLMSG_DONE`, the end of a dump.
pub(super) const DONE: u16 = 3;
/// `NLM_F_REQUEST`.
pub(super) const REQUEST: u16 = 1;
/// `NLM_F_ACK`.
pub(super) const ACK: u16 = 4;
/// `NLM_F_ROOT | NLM_F_MATCH`.
pub(super) const DUMP: u16 = 0x300;

/// Bytes that are no message of this family.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A length field does not fit into what was received.
    #[error("at byte {at} a length of {claimed} is claimed, {left} bytes are there")]
    Length {
        /// Offset in the message or nest.
        at: usize,
        /// What the field says.
        claimed: usize,
        /// What is there.
        left: usize,
    },
    /// An attribute is too short for its type, or of a kind that is not known.
    #[error("attribute {kind} has {length} bytes that make no sense")]
    Attribute {
        /// Its number.
        kind: u16,
        /// Length of its payload.
        length: usize,
    },
    /// An attribute that every kernel sends is not there.
    #[error("attribute {kind} is missing")]
    Missing {
        /// Its number.
        kind: u16,
    },
    /// The datagram was longer than the buffer.
    #[error("answer of {length} bytes does not fit")]
    Truncated {
        /// Its whole length.
        length: usize,
    },
}

const fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// One message of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) kind: u16,
    pub(super) seq: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Splits a datagram.
    pub(super) fn split(bytes: &'a [u8]) -> Result<Vec<Self>, DecodeError> {
        let mut frames = Vec::new();
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let claimed = u32_at(rest, 0).and_then(|l| usize::try_from(l).ok()).unwrap_or(0);
            let wrong = DecodeError::Length { at, claimed, left: rest.len() };
            let message = rest.get(..claimed).filter(|m| m.len() >= NL).ok_or(wrong.clone())?;
            let (kind, seq) = u16_at(message, 4).zip(u32_at(message, 8)).ok_or(wrong)?;
            frames.push(Frame { kind, seq, payload: &message[NL..] });
            at += align(claimed);
        }
        Ok(frames)
    }

    /// The attributes behind the generic header.
    pub(super) fn attributes(&self) -> &'a [u8] {
        self.payload.get(GENL..).unwrap_or_default()
    }

    /// Errno of an `NLMSG_ERROR` or `NLMSG_DONE`, 0 for success. Unreadable is `EIO`: a no.
    pub(super) fn errno(&self) -> i32 {
        match u32_at(self.payload, 0).map(u32::cast_signed) {
            Some(code) => code.checked_neg().filter(|errno| *errno >= 0).unwrap_or(libc::EIO),
            None if self.kind == DONE => 0,
            None => libc::EIO,
        }
    }
}

/// A whole request.
pub(super) fn message(kind: u16, flags: u16, seq: u32, cmd: u8, attrs: &[u8]) -> Vec<u8> {
    /// `NFSD_FAMILY_VERSION`; the controller ignores it.
    const VERSION: u8 = 1;
    let length = u32::try_from(NL + GENL + attrs.len()).unwrap_or(u32::MAX);
    let mut out = length.to_ne_bytes().to_vec();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&seq.to_ne_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[cmd, VERSION, 0, 0]);
    out.extend_from_slice(attrs);
    out
}

/// One attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attr<'a> {
    pub(super) kind: u16,
    pub(super) data: &'a [u8],
}

impl Attr<'_> {
    /// The error for this attribute.
    pub(super) fn bad(&self) -> DecodeError {
        DecodeError::Attribute { kind: self.kind, length: self.data.len() }
    }

    /// Exactly as many bytes as the type has.
    pub(super) fn array<const N: usize>(&self) -> Result<[u8; N], DecodeError> {
        self.data.try_into().map_err(|_| self.bad())
    }

    pub(super) fn u32(&self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(super) fn u16(&self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_ne_bytes)
    }

    /// Up to the terminating zero; what is not UTF-8 is an error, not replaced.
    pub(super) fn text(&self) -> Result<String, DecodeError> {
        let end = self.data.iter().position(|&b| b == 0).unwrap_or(self.data.len());
        String::from_utf8(self.data[..end].to_vec()).map_err(|_| self.bad())
    }
}

/// Splits a run of attributes. Trailing padding shorter than a header is allowed.
pub(super) fn attributes(bytes: &[u8]) -> Result<Vec<Attr<'_>>, DecodeError> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(rest) = bytes.get(at..) {
        let Some((length, kind)) = u16_at(rest, 0).zip(u16_at(rest, 2)) else { break };
        let claimed = usize::from(length);
        let data =
            rest.get(ATTR..claimed).ok_or(DecodeError::Length { at, claimed, left: rest.len() })?;
        found.push(Attr { kind: kind & TYPE_MASK, data });
        at += align(claimed);
    }
    Ok(found)
}

/// Builds a run of attributes.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    fn put(mut self, raw_kind: u16, data: &[u8]) -> Self {
        let length = u16::try_from(data.len() + ATTR).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&raw_kind.to_ne_bytes());
        self.0.extend_from_slice(data.get(..usize::from(length) - ATTR).unwrap_or(data));
        self.0.resize(align(self.0.len()), 0);
        self
    }

    pub(super) fn bytes(self, kind: u16, data: &[u8]) -> Self {
        self.put(kind, data)
    }

    pub(super) fn u32(self, kind: u16, value: u32) -> Self {
        self.put(kind, &value.to_ne_bytes())
    }

    pub(super) fn u32_if(self, kind: u16, value: Option<u32>) -> Self {
        match value {
            Some(value) => self.u32(kind, value),
            None => self,
        }
    }

    /// With a terminating zero, as `NLA_NUL_STRING` wants.
    pub(super) fn text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    pub(super) fn nest(self, kind: u16, inner: Writer) -> Self {
        self.put(kind | NESTED, &inner.0)
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in vec(any::<u8>(), 0..400)) {
            let _ = attributes(&bytes);
            for frame in Frame::split(&bytes).unwrap_or_default() {
                let _ = (frame.errno(), attributes(frame.attributes()));
            }
        }

        #[test]
        fn what_is_written_is_read(list in vec((1u16..50, vec(any::<u8>(), 0..40)), 0..10)) {
            let written = list.iter().fold(Writer::default(), |w, (k, d)| w.bytes(*k, d)).finish();
            let raw = [message(30, DUMP, 7, 1, &written), message(3, 0, 7, 0, &[])].concat();
            let frames = Frame::split(&raw).unwrap();
            prop_assert_eq!((frames.len(), frames[0].kind, frames[0].seq), (2, 30, 7));
            let read = attributes(frames[0].attributes()).unwrap();
            let read: Vec<_> = read.iter().map(|a| (a.kind, a.data.to_vec())).collect();
            prop_assert_eq!(read, list);
        }

        #[test]
        fn a_cut_message_is_an_error(cut in 1usize..40) {
            let whole = message(30, 0, 1, 1, &Writer::default().text(1, "nineteen characters").finish());
            let short = &whole[..whole.len() - cut];
            prop_assert!(Frame::split(short).is_err());
        }
    }

    #[test]
    fn s12_unreadable_end_is_a_no() {
        fn end(kind: u16, payload: &[u8]) -> i32 {
            Frame { kind, seq: 1, payload }.errno()
        }
        assert_eq!(end(ERROR, &[]), libc::EIO);
        assert_eq!(end(DONE, &[]), 0);
        assert_eq!(end(ERROR, &(-16i32).to_ne_bytes()), libc::EBUSY);
        assert_eq!(end(ERROR, &5i32.to_ne_bytes()), libc::EIO);
        assert_eq!(end(ERROR, &i32::MIN.to_ne_bytes()), libc::EIO);
    }
}
