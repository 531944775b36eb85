//! The escapes of the kernel's text files: `\040` for a blank in mount tables, `\x20` in kmsg.
//!
//! Works on bytes: a path need not be UTF-8. What is not a complete escape is kept as it is.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Undoes `\ooo` (three octal digits, at most `\377`) as procfs writes blanks, tabs, line ends,
/// backslashes and, on newer kernels, `#`.
#[must_use]
pub fn octal(field: &[u8]) -> Vec<u8> {
    undo(field, |rest| match rest {
        [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
            Some(((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), 3))
        }
        _ => None,
    })
}

/// Undoes `\xhh` as `/dev/kmsg` writes what is not printable.
#[must_use]
pub fn hexadecimal(text: &[u8]) -> Vec<u8> {
    undo(text, |rest| match rest {
        [b'x', high, low, ..] => Some((nibble(*high)? << 4 | nibble(*low)?, 3)),
        _ => None,
    })
}

/// [`octal`] of a field that is a path.
#[must_use]
pub fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(octal(field)))
}

/// [`octal`] of a field that is text; what is not UTF-8 is replaced.
#[must_use]
pub fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&octal(field)).into_owned()
}

fn undo(input: &[u8], one: impl Fn(&[u8]) -> Option<(u8, usize)>) -> Vec<u8> {
    let mut out = Vec::with_capacity(input.len());
    let mut rest = input;
    while let Some((first, after)) = rest.split_first() {
        match if *first == b'\\' { one(after) } else { None } {
            Some((byte, used)) => {
                out.push(byte);
                rest = after.get(used..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn blanks_and_backslashes_come_back() {
        assert_eq!(path(b"/srv/vm\\040disks\\134a"), PathBuf::from("/srv/vm disks\\a"));
        assert_eq!(octal(b"\\011\\012\\043"), b"\t\n#");
        assert_eq!(hexadecimal(b"a\\x09b\\x5cc"), b"a\tb\\c");
    }

    #[test]
    fn what_is_no_escape_stays() {
        assert_eq!(octal(b"\\04"), b"\\04");
        assert_eq!(octal(b"\\480\\"), b"\\480\\");
        assert_eq!(octal(b"\\777"), b"\\777");
        assert_eq!(hexadecimal(b"\\x4\\xg0"), b"\\x4\\xg0");
    }

    /// As `seq_escape` does with the set that mount tables use.
    fn escaped(raw: &[u8]) -> Vec<u8> {
        raw.iter()
            .flat_map(|b| match b {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{b:03o}").into_bytes(),
                other => vec![*other],
            })
            .collect()
    }

    proptest! {
        #[test]
        fn escaping_and_undoing_gives_the_same(raw in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(octal(&escaped(&raw)), raw);
        }

        #[test]
        fn nothing_panics_and_nothing_grows(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(octal(&raw).len() <= raw.len());
            prop_assert!(hexadecimal(&raw).len() <= raw.len());
        }
    }
}
