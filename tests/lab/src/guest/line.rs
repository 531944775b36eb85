//! What a guest says: lines of text that a reader can trust or drop, as a migration may cut one into two halves.
//!
//! ```text
//! @A 1048577 0 5d3f0c2b
//!  |    |    |    CRC-32 of everything before the last space
//!  |    |    errno of a failed write, else 0
//!  |    number of the write
//!  S first write of a run, A acknowledged, F failed
//! ```

use std::fmt;
use std::str::FromStr;

/// Longest line, bytes: two numbers of 20 digits, a sum and what is between them.
pub const MAX_LEN: usize = 64;

/// Kind of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// The guest has come up; its first write will have this number.
    Start,
    /// The write of this number was acknowledged.
    Acknowledged,
    /// The write of this number failed with this errno.
    Failed(i32),
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Number of the write.
    pub seq: u64,
    /// What became of it.
    pub word: Word,
}

/// Not a whole line of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a whole line of the guest")]
pub struct Damaged;

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, errno) = match self.word {
            Word::Start => ('S', 0),
            Word::Acknowledged => ('A', 0),
            Word::Failed(errno) => ('F', errno),
        };
        let text = format!("@{kind} {} {errno}", self.seq);
        write!(f, "{text} {:08x}", crc32fast::hash(text.as_bytes()))
    }
}

impl FromStr for Line {
    type Err = Damaged;

    fn from_str(text: &str) -> Result<Self, Damaged> {
        let (said, sum) = text.rsplit_once(' ').ok_or(Damaged)?;
        let sum = u32::from_str_radix(sum, 16).map_err(|_| Damaged)?;
        if sum != crc32fast::hash(said.as_bytes()) {
            return Err(Damaged);
        }
        let mut parts = said.split(' ');
        let (kind, seq, errno) = (parts.next(), parts.next(), parts.next());
        let seq = seq.and_then(|s| s.parse().ok()).ok_or(Damaged)?;
        let word = match kind {
            Some("@S") => Word::Start,
            Some("@A") => Word::Acknowledged,
            Some("@F") => Word::Failed(errno.and_then(|e| e.parse().ok()).ok_or(Damaged)?),
            _ => return Err(Damaged),
        };
        Ok(Self { seq, word })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines() -> impl Strategy<Value = Line> {
        let word = prop_oneof![
            Just(Word::Start),
            Just(Word::Acknowledged),
            any::<i32>().prop_map(Word::Failed)
        ];
        (any::<u64>(), word).prop_map(|(seq, word)| Line { seq, word })
    }

    proptest! {
        #[test]
        fn a_line_reads_back(line in lines()) {
            let text = line.to_string();
            prop_assert!(text.len() < MAX_LEN);
            prop_assert_eq!(text.parse(), Ok(line));
        }

        #[test]
        fn a_part_of_a_line_is_dropped(line in lines(), cut in 1_usize..64) {
            let text = line.to_string();
            let cut = cut.min(text.len() - 1);
            prop_assert_eq!(text[..cut].parse::<Line>(), Err(Damaged));
            prop_assert_eq!(text[cut..].parse::<Line>(), Err(Damaged));
        }

        #[test]
        fn noise_never_panics(text in "\\PC{0,80}") {
            prop_assert_eq!(text.parse::<Line>(), Err(Damaged));
        }
    }
}
