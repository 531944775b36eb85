//! Bytes of a generation file and of the state file.
//!
//! Generation file: a header of 24 bytes (magic, generation, CRC-32) and entries, each `kind u8,
//! name length u16, hash length u8, CRC-32 of these, name, hash, CRC-32 of all`, little endian.
//! The CRCs are seeded with generation and number of the entry, so an entry cannot be taken for
//! another; lengths have a CRC of their own, so that a wrong length cannot pass for a short file.
//!
//! A power cut may leave the last entry incomplete or zero: it was never acknowledged, it is cut
//! off. Anything else that does not check is damage, and damage stops the start (S12).

use super::{ClientRecord, RecordsError};

const MAGIC: &[u8; 12] = b"nasd-clients";
/// Magic, generation (u64), CRC-32.
pub(super) const HEADER_LEN: usize = 24;
const LENGTHS: usize = 4;
/// Kind and lengths with their CRC-32.
const ENTRY_HEAD: usize = LENGTHS + CRC_LEN;
const CRC_LEN: usize = 4;
/// `NFS4_OPAQUE_LIMIT`.
const NAME_MAX: usize = 1024;
/// `SHA256_DIGEST_SIZE`.
const HASH_MAX: usize = 32;

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// The client has state.
    Add(ClientRecord),
    /// The client is gone.
    Remove(ClientRecord),
}

/// What a generation file holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) entries: Vec<Entry>,
    /// Bytes that check; what follows is an append that a power cut interrupted.
    pub(super) good_len: usize,
}

/// Where and why a file does not check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damage {
    pub(super) offset: usize,
    pub(super) what: &'static str,
}

/// The header of generation `generation`: a file with nothing else *says* that it is empty.
pub(super) fn header(generation: u64) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(generation.to_le_bytes());
    out.extend(crc32fast::hash(&out).to_le_bytes());
    out
}

/// Is the client one that can be recorded?
pub(super) fn check(client: &ClientRecord) -> Result<(), RecordsError> {
    let (name, hash) = (client.name.len(), client.princhash.len());
    if (1..=NAME_MAX).contains(&name) && hash <= HASH_MAX {
        return Ok(());
    }
    Err(RecordsError::BadClient { name, hash })
}

/// Bytes of entry number `number`; the client must have passed [`check`].
pub(super) fn entry(generation: u64, number: usize, entry: &Entry) -> Vec<u8> {
    let (kind, client) = match entry {
        Entry::Add(client) => (1_u8, client),
        Entry::Remove(client) => (2, client),
    };
    let name_len = u16::try_from(client.name.len()).unwrap_or(u16::MAX).to_le_bytes();
    let hash_len = u8::try_from(client.princhash.len()).unwrap_or(u8::MAX);
    let mut out = vec![kind, name_len[0], name_len[1], hash_len];
    let crc = entry_crc(generation, number, &out);
    out.extend(crc.to_le_bytes());
    out.extend(&client.name);
    out.extend(&client.princhash);
    let crc = entry_crc(generation, number, &out);
    out.extend(crc.to_le_bytes());
    out
}

fn entry_crc(generation: u64, number: usize, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&generation.to_le_bytes());
    hasher.update(&(number as u64).to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

/// Reads a whole generation file.
pub(super) fn parse(bytes: &[u8], generation: u64) -> Result<Log, Damage> {
    if bytes.get(..HEADER_LEN) != Some(header(generation).as_slice()) {
        return Err(Damage { offset: 0, what: "header of another generation, or none" });
    }
    let mut log = Log { entries: Vec::new(), good_len: HEADER_LEN };
    while let Some(rest) = bytes.get(log.good_len..).filter(|rest| !rest.is_empty()) {
        match next(rest, generation, log.entries.len()) {
            Next::Entry(entry, length) => {
                log.entries.push(entry);
                log.good_len += length;
            }
            Next::Interrupted => break,
            Next::Damaged(what) => return Err(Damage { offset: log.good_len, what }),
        }
    }
    Ok(log)
}

enum Next {
    Entry(Entry, usize),
    Interrupted,
    Damaged(&'static str),
}

fn next(rest: &[u8], generation: u64, number: usize) -> Next {
    if rest.iter().all(|byte| *byte == 0) {
        return Next::Interrupted;
    }
    let Some((head, tail)) = rest.split_first_chunk::<ENTRY_HEAD>() else {
        return Next::Interrupted;
    };
    let [kind, n0, n1, hash_len, crc @ ..] = *head;
    if crc != entry_crc(generation, number, &[kind, n0, n1, hash_len]).to_le_bytes() {
        return Next::Damaged("checksum of an entry's lengths");
    }
    let name_len = usize::from(u16::from_le_bytes([n0, n1]));
    let hash_len = usize::from(hash_len);
    if !matches!(kind, 1 | 2) || name_len == 0 || name_len > NAME_MAX || hash_len > HASH_MAX {
        return Next::Damaged("impossible entry");
    }
    let body_len = ENTRY_HEAD + name_len + hash_len;
    let (Some(body), Some(crc)) = (rest.get(..body_len), rest.get(body_len..body_len + CRC_LEN))
    else {
        return Next::Interrupted;
    };
    if crc != entry_crc(generation, number, body).to_le_bytes() {
        return Next::Damaged("checksum of an entry");
    }
    let (name, rest) = tail.split_at_checked(name_len).unwrap_or_default();
    let princhash = rest.get(..hash_len).unwrap_or_default().to_vec();
    let client = ClientRecord { name: name.to_vec(), princhash };
    let entry = if kind == 1 { Entry::Add(client) } else { Entry::Remove(client) };
    Next::Entry(entry, body_len + CRC_LEN)
}

/// Which generations count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) current: u64,
    pub(super) recovery: Option<u64>,
}

impl State {
    /// One line of text with its CRC-32.
    pub(super) fn encode(self) -> String {
        let recovery = self.recovery.map_or_else(|| "-".into(), |r| r.to_string());
        let body = format!("nasd-clients 1 current {} recovery {recovery}", self.current);
        format!("{body} crc {:08x}\n", crc32fast::hash(body.as_bytes()))
    }

    /// Reads what [`State::encode`] wrote; none for anything else.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let words: Vec<&str> = text.split(' ').collect();
        let &["nasd-clients", "1", "current", current, "recovery", recovery, "crc", _] =
            words.as_slice()
        else {
            return None;
        };
        let recovery = match recovery {
            "-" => None,
            number => Some(number.parse().ok()?),
        };
        let state = State { current: current.parse().ok()?, recovery };
        (state.encode() == text).then_some(state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client() -> impl Strategy<Value = ClientRecord> {
        (prop::collection::vec(any::<u8>(), 1..60), prop::collection::vec(any::<u8>(), 0..=32))
            .prop_map(|(name, princhash)| ClientRecord { name, princhash })
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let one = (any::<bool>(), client())
            .prop_map(|(add, c)| if add { Entry::Add(c) } else { Entry::Remove(c) });
        prop::collection::vec(one, 0..8)
    }

    /// The file and the length after the header and after each entry.
    fn file(generation: u64, entries: &[Entry]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = header(generation);
        let mut ends = vec![bytes.len()];
        for (number, e) in entries.iter().enumerate() {
            bytes.extend(entry(generation, number, e));
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    #[test]
    fn header_has_the_stated_length() {
        assert_eq!(header(7).len(), HEADER_LEN);
    }

    #[test]
    fn header_alone_is_empty_and_no_header_is_damage() {
        assert_eq!(parse(&header(7), 7).unwrap().entries, []);
        assert!(parse(&header(7), 8).is_err());
        assert!(parse(b"", 7).is_err());
        assert!(parse(&header(7)[..HEADER_LEN - 1], 7).is_err());
    }

    proptest! {
        #[test]
        fn power_cut_at_any_byte_keeps_every_complete_entry(
            list in entries(), cut: prop::sample::Index, zeros in 0_usize..40,
        ) {
            let (bytes, ends) = file(3, &list);
            let cut = HEADER_LEN + cut.index(bytes.len() - HEADER_LEN + 1);
            let whole = ends.iter().filter(|end| **end <= cut).count() - 1;
            let log = parse(&bytes[..cut], 3).unwrap();
            prop_assert_eq!(&log.entries, &list[..whole]);
            prop_assert_eq!(log.good_len, ends[whole]);
            // A file system may have grown the file with zeros and not yet written the entry.
            let mut grown = bytes[..ends[whole]].to_vec();
            grown.extend(vec![0; zeros]);
            prop_assert_eq!(parse(&grown, 3).unwrap().entries, &list[..whole]);
        }

        #[test]
        fn one_changed_bit_is_always_seen(
            list in entries(), at: prop::sample::Index, bit in 0_u8..8,
        ) {
            let (mut bytes, _) = file(3, &list);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(parse(&bytes, 3).is_err());
        }

        #[test]
        fn state_reads_back_and_a_changed_byte_does_not(
            current: u64, recovery: Option<u64>, at: prop::sample::Index, byte: u8,
        ) {
            let state = State { current, recovery };
            let mut text = state.encode().into_bytes();
            prop_assert_eq!(State::decode(&text), Some(state));
            let at = at.index(text.len());
            if text[at] != byte {
                text[at] = byte;
                prop_assert_eq!(State::decode(&text), None);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut file = header(1);
            file.extend(&bytes);
            let _ = (parse(&file, 1), parse(&bytes, 1), State::decode(&bytes));
        }
    }
}
