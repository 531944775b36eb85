//! Words of the cache channels: separated by blanks, bytes quoted in octal, or all in hex after
//! `\x` (`qword_add`, `qword_addhex` and `qword_get` of `net/sunrpc/cache.c`).

/// Appends a word and a blank. Only bytes that would end a word or begin a quote are quoted.
pub(super) fn add(line: &mut Vec<u8>, word: &[u8]) {
    for &byte in word {
        match byte {
            b'\\' | b' ' | b'\n' | b'\t' | 0 => {
                line.extend([b'\\', digit(byte >> 6), digit(byte >> 3), digit(byte)]);
            }
            _ => line.push(byte),
        }
    }
    line.push(b' ');
}

fn digit(bits: u8) -> u8 {
    b'0' + (bits & 7)
}

/// Appends a word in hex and a blank.
pub(super) fn add_hex(line: &mut Vec<u8>, word: &[u8]) {
    line.extend(b"\\x");
    line.extend(word.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()));
    line.push(b' ');
}

/// Splits a line into its words. Broken quotes are taken as they stand; nothing panics.
pub(super) fn split(line: &[u8]) -> Vec<Vec<u8>> {
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    line.split(|byte| *byte == b' ').filter(|word| !word.is_empty()).map(unquote).collect()
}

fn unquote(word: &[u8]) -> Vec<u8> {
    match word.strip_prefix(b"\\x") {
        Some(digits) => digits.chunks_exact(2).map_while(hex).collect(),
        None => unquote_octal(word),
    }
}

fn hex(pair: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()
}

fn unquote_octal(mut rest: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rest.len());
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, after) = octal(rest).unwrap_or((first, tail));
        out.push(byte);
        rest = after;
    }
    out
}

fn octal(bytes: &[u8]) -> Option<(u8, &[u8])> {
    let (&[b'\\', a, b, c], after) = bytes.split_first_chunk::<4>()? else { return None };
    let valid = (b'0'..=b'3').contains(&a) && [b, c].iter().all(|d| (b'0'..=b'7').contains(d));
    valid.then(|| (((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'), after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_as_the_kernel_writes_them() {
        let line = b"nasd-probe /srv/a\\040b 6 \\x00ff10\n";
        let words = split(line);
        assert_eq!(words[0], b"nasd-probe");
        assert_eq!(words[1], b"/srv/a b");
        assert_eq!(words[3], [0, 0xff, 0x10]);
    }

    #[test]
    fn quoted_as_the_kernel_reads_it() {
        let mut line = Vec::new();
        add(&mut line, b"/a b\\\n\t");
        add_hex(&mut line, &[1, 0xab]);
        assert_eq!(line, b"/a\\040b\\134\\012\\011 \\x01ab ");
    }

    proptest! {
        #[test]
        fn any_word_survives(words in prop::collection::vec(
            prop::collection::vec(any::<u8>(), 1..40), 0..5), hex: bool,
        ) {
            let mut line = Vec::new();
            for word in &words {
                if hex { add_hex(&mut line, word) } else { add(&mut line, word) }
            }
            line.push(b'\n');
            prop_assert_eq!(split(&line), words);
        }

        #[test]
        fn no_bytes_panic(line in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = split(&line);
        }
    }
}
