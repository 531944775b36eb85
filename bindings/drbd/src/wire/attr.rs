//! Netlink attributes: a total reader and a writer.
//!
//! The two top bits of a type are flags and are masked on read. On write, nests carry the flag
//! NLA_F_NESTED: kernels since 5.2 validate strictly and answer EINVAL without it (seen on 6.1).
//! DRBD's own "mandatory" flag, bit 14, is never written.

use super::DecodeError;

/// The bits of an attribute type that are the number; the rest are flags (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
/// The flag of nests (`NLA_F_NESTED`).
const NESTED: u16 = 0x8000;
/// Size of `struct nlattr`.
const HEADER: usize = 4;

/// Rounds up to the alignment of messages and attributes (4 bytes).
pub(crate) const fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

/// One attribute; the payload keeps its place in the message, so integers in it may be unaligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attr<'a> {
    pub kind: u16,
    pub data: &'a [u8],
}

impl<'a> Attr<'a> {
    pub(crate) fn u8(&self) -> Option<u8> {
        self.data.first().copied()
    }

    /// DRBD's booleans are a byte, not an empty attribute.
    pub(crate) fn flag(&self) -> Option<bool> {
        self.u8().map(|byte| byte != 0)
    }

    pub(crate) fn u16(&self) -> Option<u16> {
        Some(u16::from_ne_bytes(*self.data.first_chunk()?))
    }

    pub(crate) fn u32(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.data.first_chunk()?))
    }

    pub(crate) fn i32(&self) -> Option<i32> {
        self.u32().map(u32::cast_signed)
    }

    pub(crate) fn u64(&self) -> Option<u64> {
        Some(u64::from_ne_bytes(*self.data.first_chunk()?))
    }

    /// A string up to its terminating zero; bytes that are not UTF-8 are replaced.
    pub(crate) fn text(&self) -> String {
        let end = self.data.iter().position(|&byte| byte == 0).unwrap_or(self.data.len());
        String::from_utf8_lossy(&self.data[..end]).into_owned()
    }
}

/// A run of attributes, checked once: every later look-up is infallible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attrs<'a>(Vec<Attr<'a>>);

impl<'a> Attrs<'a> {
    /// Splits a buffer into attributes. Trailing padding shorter than a header is allowed.
    pub(crate) fn parse(buffer: &'a [u8]) -> Result<Self, DecodeError> {
        let mut found = Vec::new();
        let mut at = 0;
        while let Some(header) = buffer.get(at..).and_then(|rest| rest.first_chunk::<HEADER>()) {
            let claimed = usize::from(u16::from_ne_bytes([header[0], header[1]]));
            let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
            let left = buffer.len() - at;
            if claimed < HEADER || claimed > left {
                return Err(DecodeError::Length { at, claimed, left });
            }
            found.push(Attr { kind, data: &buffer[at + HEADER..at + claimed] });
            at += align(claimed);
        }
        Ok(Self(found))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Attr<'a>> {
        self.0.iter()
    }

    /// The last attribute of a kind: the kernel's parser keeps the last one too.
    pub(crate) fn get(&self, kind: u16) -> Option<&Attr<'a>> {
        self.0.iter().rev().find(|attr| attr.kind == kind)
    }

    /// The same for a field that one of the interfaces lacks.
    pub(crate) fn opt(&self, kind: Option<u16>) -> Option<&Attr<'a>> {
        self.get(kind?)
    }

    /// The attributes inside a nest; `None` if it is absent.
    pub(crate) fn nest(&self, kind: u16) -> Result<Option<Attrs<'a>>, DecodeError> {
        self.get(kind).map(|attr| Attrs::parse(attr.data)).transpose()
    }
}

/// Writes attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn bytes(self, kind: u16, data: &[u8]) -> Self {
        self.put(kind & TYPE_MASK, data)
    }

    fn put(mut self, raw_kind: u16, data: &[u8]) -> Self {
        debug_assert!(data.len() + HEADER <= usize::from(u16::MAX), "attribute too long");
        let length = u16::try_from(data.len() + HEADER).unwrap_or(u16::MAX);
        let data = &data[..usize::from(length) - HEADER];
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&raw_kind.to_ne_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn flag(self, kind: u16, value: bool) -> Self {
        self.bytes(kind, &[u8::from(value)])
    }

    /// A string with its terminating zero, as the kernel's policy (`NLA_NUL_STRING`) wants it.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut data = value.as_bytes().to_vec();
        data.push(0);
        self.bytes(kind, &data)
    }

    pub(crate) fn nest(self, kind: u16, inner: Writer) -> Self {
        self.put((kind & TYPE_MASK) | NESTED, &inner.0)
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn flags_in_the_type_are_masked() {
        let raw = [5, 0, 1, 0x40, 1, 0, 0, 0, 5, 0, 2, 0x80, 0, 0, 0, 0];
        let attrs = Attrs::parse(&raw).unwrap();
        assert_eq!(attrs.get(1).unwrap().flag(), Some(true));
        assert_eq!(attrs.get(2).unwrap().flag(), Some(false));
    }

    #[test]
    fn eight_byte_values_are_read_at_any_alignment() {
        let value = 0x1122_3344_5566_7788_u64;
        let raw = Writer::default().u32(9, 1).bytes(12, &value.to_ne_bytes()).finish();
        for shift in 0..8 {
            let mut moved = vec![0; shift];
            moved.extend_from_slice(&raw);
            let attrs = Attrs::parse(&moved[shift..]).unwrap();
            assert_eq!(attrs.get(12).unwrap().u64(), Some(value));
        }
    }

    #[test]
    fn lengths_that_lie_are_errors() {
        assert_eq!(
            Attrs::parse(&[3, 0, 1, 0]),
            Err(DecodeError::Length { at: 0, claimed: 3, left: 4 })
        );
        assert_eq!(
            Attrs::parse(&[9, 0, 1, 0, 1, 2, 3, 4]),
            Err(DecodeError::Length { at: 0, claimed: 9, left: 8 })
        );
    }

    #[test]
    fn short_payloads_are_no_numbers() {
        let raw = Writer::default().bytes(1, &[1, 2, 3]).bytes(2, &[]).finish();
        let attrs = Attrs::parse(&raw).unwrap();
        assert_eq!(attrs.get(1).unwrap().u32(), None);
        assert_eq!(attrs.get(2).unwrap().flag(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(attrs) = Attrs::parse(&raw) {
                for attr in attrs.iter() {
                    let _ = (attr.u8(), attr.u16(), attr.u32(), attr.u64(), attr.text());
                    let _ = attrs.nest(attr.kind);
                }
            }
        }

        #[test]
        fn round_trip(items in proptest::collection::vec(
            (0u16..0x4000, proptest::collection::vec(any::<u8>(), 0..40)), 0..12))
        {
            let mut writer = Writer::default();
            for (kind, data) in &items {
                writer = writer.bytes(*kind, data);
            }
            let raw = writer.finish();
            let read: Vec<_> = Attrs::parse(&raw).unwrap()
                .iter().map(|attr| (attr.kind, attr.data.to_vec())).collect();
            prop_assert_eq!(read, items);
        }
    }
}
