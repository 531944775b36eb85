//! The format of one block. All numbers little endian.
//!
//! ```text
//!  0  8  magic
//!  8  4  CRC-32 (IEEE) of the whole block with these four bytes taken as zero
//! 12  4  length of the block, bytes
//! 16 16  writer, padded with zeros
//! 32  4  file number
//! 36  4  zero
//! 40  8  offset in the file, bytes
//! 48  8  sequence number, rising per writer
//! 56  8  wall clock when it was made, ns
//! 64  …  filler: a generator seeded from bytes 12..64
//! ```
//!
//! The filler differs from one version of a block to the next in every sector, so a block made of two versions fails
//! its CRC, and the sector where the foreign part begins can be named.

use std::fmt;
use std::str::FromStr;

use super::BlocksError;

/// First eight bytes of each block.
pub const MAGIC: [u8; 8] = *b"NASDBLK1";
/// Bytes before the filler.
pub const HEADER_LEN: usize = 64;
/// Smallest block: one sector.
pub const MIN_BLOCK: u32 = 512;
/// Largest block.
pub const MAX_BLOCK: u32 = 1 << 20;
/// What a disk writes as a whole at the least, bytes.
const SECTOR: usize = 512;

/// Name of a writer: 1 to 16 letters, digits or underscores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriterId([u8; 16]);

impl WriterId {
    /// The bytes as they stand in a block.
    #[must_use]
    pub const fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// From the bytes of a block; `None` if they are no valid name.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        let used = bytes.iter().position(|b| *b == 0).unwrap_or(16);
        let name_ok = used > 0 && bytes[..used].iter().all(|b| valid_char(*b));
        (name_ok && bytes[used..].iter().all(|b| *b == 0)).then_some(Self(bytes))
    }
}

const fn valid_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

impl FromStr for WriterId {
    type Err = BlocksError;

    fn from_str(text: &str) -> Result<Self, BlocksError> {
        let bad = || BlocksError::BadWriterId { given: text.to_owned() };
        if text.len() > 16 {
            return Err(bad());
        }
        let mut bytes = [0_u8; 16];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Self::from_bytes(bytes).ok_or_else(bad)
    }
}

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let used = self.0.iter().position(|b| *b == 0).unwrap_or(16);
        f.write_str(&String::from_utf8_lossy(&self.0[..used]))
    }
}

/// Checks that a block size can be used with `O_DIRECT` and holds a header.
///
/// # Errors
/// [`BlocksError::BadBlockSize`] when it is no power of two from 512 to 1 MiB.
pub const fn valid_size(given: u32) -> Result<u32, BlocksError> {
    if given.is_power_of_two() && given >= MIN_BLOCK && given <= MAX_BLOCK {
        Ok(given)
    } else {
        Err(BlocksError::BadBlockSize { given })
    }
}

/// What a block says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Who wrote it.
    pub writer: WriterId,
    /// Into which of the writer's files.
    pub file: u32,
    /// At which byte of the file.
    pub offset: u64,
    /// Rises with each write of this writer.
    pub seq: u64,
    /// `CLOCK_REALTIME` when it was made, ns.
    pub wall_ns: u64,
}

/// What was found at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A whole block.
    Whole(Block),
    /// Only zeros: never written, or lost.
    Zero,
    /// Neither: parts of several versions, or no block at all.
    Torn {
        /// First 512-byte sector that does not belong to the header in front; 0 when there is no header.
        sector: usize,
        /// The sequence number in front, when a header is there.
        seq: Option<u64>,
    },
}

impl Block {
    /// Fills `out` (its length is the block size) with this block. A slice shorter than a header is left untouched.
    pub fn encode(&self, out: &mut [u8]) {
        if out.len() < HEADER_LEN {
            return;
        }
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].fill(0);
        let len = u32::try_from(out.len()).unwrap_or(u32::MAX);
        out[12..16].copy_from_slice(&len.to_le_bytes());
        out[16..32].copy_from_slice(&self.writer.bytes());
        out[32..36].copy_from_slice(&self.file.to_le_bytes());
        out[36..40].fill(0);
        out[40..48].copy_from_slice(&self.offset.to_le_bytes());
        out[48..56].copy_from_slice(&self.seq.to_le_bytes());
        out[56..64].copy_from_slice(&self.wall_ns.to_le_bytes());
        let mut filler = Filler::new(&out[12..HEADER_LEN]);
        for chunk in out[HEADER_LEN..].chunks_mut(8) {
            let word = filler.next_word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        let crc = block_crc(out);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads what is in `bytes` (its length is the block size).
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Content {
        if bytes.iter().all(|b| *b == 0) {
            return Content::Zero;
        }
        let Some(block) = Self::header(bytes) else {
            return Content::Torn { sector: 0, seq: None };
        };
        if u32_at(bytes, 8) == block_crc(bytes) && u32_at(bytes, 12) as usize == bytes.len() {
            return Content::Whole(block);
        }
        Content::Torn { sector: first_bad_sector(bytes), seq: Some(block.seq) }
    }

    fn header(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER_LEN || bytes[..8] != MAGIC || u32_at(bytes, 36) != 0 {
            return None;
        }
        let mut name = [0_u8; 16];
        name.copy_from_slice(&bytes[16..32]);
        Some(Self {
            writer: WriterId::from_bytes(name)?,
            file: u32_at(bytes, 32),
            offset: u64_at(bytes, 40),
            seq: u64_at(bytes, 48),
            wall_ns: u64_at(bytes, 56),
        })
    }
}

fn block_crc(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..8]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[12..]);
    hasher.finalize()
}

fn first_bad_sector(bytes: &[u8]) -> usize {
    let mut filler = Filler::new(&bytes[12..HEADER_LEN]);
    let mut at = HEADER_LEN;
    for chunk in bytes[HEADER_LEN..].chunks(8) {
        if chunk != &filler.next_word().to_le_bytes()[..chunk.len()] {
            return at / SECTOR;
        }
        at += chunk.len();
    }
    0
}

/// Little-endian `u32` at `at`; the callers have checked the length.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    raw.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(raw)
}

/// Little-endian `u64` at `at`; the callers have checked the length.
pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    raw.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(raw)
}

/// Steele, Lea and Flood's `SplitMix64` (OOPSLA 2014): any seed gives a sequence without short cycles.
pub(super) struct Filler(u64);

impl Filler {
    /// Seeds the generator so that each byte of `seed` matters.
    pub(super) fn new(seed: &[u8]) -> Self {
        let mut state = Self(0);
        for chunk in seed.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            state.0 = state.next_word() ^ u64::from_le_bytes(word);
        }
        state
    }

    /// The next eight bytes.
    pub(super) const fn next_word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn blocks() -> impl Strategy<Value = Block> {
        ("[A-Za-z0-9_]{1,16}", any::<u32>(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
            |(name, file, offset, seq, wall_ns)| Block {
                writer: name.parse().unwrap(),
                file,
                offset,
                seq,
                wall_ns,
            },
        )
    }

    fn encoded(block: &Block, size: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; size];
        block.encode(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn a_block_reads_back(block in blocks(), power in 9_u32..14) {
            let bytes = encoded(&block, 1 << power);
            prop_assert_eq!(Block::decode(&bytes), Content::Whole(block));
        }

        #[test]
        fn any_changed_bit_is_found(block in blocks(), at in 0_usize..4096, bit in 0_u8..8) {
            let mut bytes = encoded(&block, 4096);
            bytes[at] ^= 1 << bit;
            prop_assert!(!matches!(Block::decode(&bytes), Content::Whole(_)));
        }

        #[test]
        fn two_versions_are_torn_where_the_second_begins(
            block in blocks(), later in 1_u64..1000, cut in 1_usize..8,
        ) {
            let newer = Block { seq: block.seq.wrapping_add(later), ..block };
            let mut bytes = encoded(&newer, 4096);
            let old = encoded(&block, 4096);
            bytes[cut * SECTOR..].copy_from_slice(&old[cut * SECTOR..]);
            prop_assert_eq!(
                Block::decode(&bytes),
                Content::Torn { sector: cut, seq: Some(newer.seq) }
            );
        }

        #[test]
        fn noise_never_panics_and_is_never_whole(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
            prop_assert!(!matches!(Block::decode(&bytes), Content::Whole(_)));
        }
    }

    #[test]
    fn zeros_are_told_from_a_half_written_block() {
        assert_eq!(Block::decode(&[0; 4096]), Content::Zero);
        let block =
            Block { writer: "hv1".parse().unwrap(), file: 0, offset: 0, seq: 1, wall_ns: 2 };
        let mut bytes = encoded(&block, 4096);
        bytes[..512].fill(0);
        assert_eq!(Block::decode(&bytes), Content::Torn { sector: 0, seq: None });
    }

    #[test]
    fn writer_names_are_checked() {
        for bad in ["", "a-b", "a/b", "12345678901234567", "é"] {
            assert!(bad.parse::<WriterId>().is_err(), "{bad}");
        }
        assert_eq!("hv1_a".parse::<WriterId>().unwrap().to_string(), "hv1_a");
    }

    #[test]
    fn block_sizes_are_checked() {
        for bad in [0, 256, 513, 1 << 21] {
            assert!(valid_size(bad).is_err());
        }
        assert_eq!(valid_size(4096).unwrap(), 4096);
    }
}
