//! XDR (RFC 4506), as much as the probe needs. Decoding is total.

/// Longest opaque taken from a server.
const OPAQUE_MAX: usize = 4096;

/// Builds a message.
#[derive(Debug, Default, Clone)]
pub(super) struct Encoder(Vec<u8>);

impl Encoder {
    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    /// Bytes of a known multiple of four.
    pub(super) fn fixed(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Length, bytes, padding.
    pub(super) fn opaque(self, bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.u32(length).fixed(bytes)
    }

    /// Another message's bytes.
    pub(super) fn append(mut self, other: Encoder) -> Self {
        self.0.extend(other.0);
        self
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// As one record of a TCP stream (RFC 5531 section 11): last fragment, length, bytes.
    pub(super) fn record(self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        let mut out = (0x8000_0000 | length).to_be_bytes().to_vec();
        out.extend(self.0);
        out
    }
}

/// Reads a message from its front.
#[derive(Debug)]
pub(super) struct Decoder<'a>(&'a [u8]);

impl<'a> Decoder<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Decoder(bytes)
    }

    pub(super) fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest.get(N.next_multiple_of(4) - N..)?;
        Some(*bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.fixed::<4>().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.fixed::<8>().map(u64::from_be_bytes)
    }

    pub(super) fn opaque(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok().filter(|l| *l <= OPAQUE_MAX)?;
        let (bytes, _) = self.0.split_at_checked(length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..)?;
        Some(bytes)
    }

    /// What is left.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// A list of `u32` (bitmap4).
    pub(super) fn bitmap(&mut self) -> Option<Vec<u32>> {
        let count = self.u32().filter(|count| *count <= 8)?;
        (0..count).map(|_| self.u32()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn opaque_is_padded_and_record_marked() {
        let bytes = Encoder::default().opaque(b"abcde").record();
        assert_eq!(bytes, *b"\x80\0\0\x0c\0\0\0\x05abcde\0\0\0");
    }

    proptest! {
        #[test]
        fn reads_back(a: u32, b: u64, text in prop::collection::vec(any::<u8>(), 0..50)) {
            let bytes = Encoder::default().u32(a).opaque(&text).u64(b).fixed(&[1; 16]).record();
            let mut decoder = Decoder::new(&bytes[4..]);
            prop_assert_eq!(decoder.u32(), Some(a));
            prop_assert_eq!(decoder.opaque(), Some(&text[..]));
            prop_assert_eq!(decoder.u64(), Some(b));
            prop_assert_eq!(decoder.fixed::<16>(), Some([1; 16]));
            prop_assert_eq!(decoder.u32(), None);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let mut decoder = Decoder::new(&bytes);
            let _ = (decoder.opaque(), decoder.bitmap(), decoder.u64(), decoder.fixed::<5>());
        }
    }
}
