//! The wire format: attributes, messages, requests. Pure, safe, and total: any bytes decode to
//! something or to an error, never to a panic (S12: what cannot be parsed is a no).

pub(crate) mod attr;
pub(crate) mod message;
pub(crate) mod nests;
pub(crate) mod request;

/// Bytes of a netlink message that make no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A header claims more bytes than there are, or fewer than its own size.
    #[error("a netlink header at byte {at} claims {claimed} bytes where {left} are left")]
    Length {
        /// Offset of the header in the buffer given.
        at: usize,
        /// Length in the header.
        claimed: usize,
        /// Bytes from the header to the end.
        left: usize,
    },
    /// The message is too short for the headers its type must have.
    #[error("a message of {0} bytes is too short for its headers")]
    Short(usize),
    /// A field that every message of its kind carries is absent or has the wrong size.
    #[error("the kernel's message lacks {0}, or its size is wrong")]
    Missing(&'static str),
}
