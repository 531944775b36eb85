//! Parsers for what the kernel tells about block devices in `/sys`. Pure; what cannot be read is
//! unknown, never zero (S12).

/// Counters of a block device (`Documentation/block/stat.rst`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoCounts {
    /// Reads, writes, discards and flushes that have ended, since the device exists; wraps.
    pub completed: u64,
    /// Those of them that were writes; wraps.
    pub written: u64,
    /// Requests handed to the driver that have not.
    pub in_flight: u64,
}

/// Fields of `stat` that count completed requests: reads, writes, discards (4.18), flushes (5.5).
const COMPLETED: [usize; 4] = [0, 4, 11, 15];
const WRITTEN: usize = 4;
const IN_FLIGHT: usize = 8;

/// From a device's `stat`.
#[must_use]
pub fn io_counts(text: &str) -> Option<IoCounts> {
    let numbers: Vec<u64> =
        text.split_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
    let (written, in_flight) = (*numbers.get(WRITTEN)?, *numbers.get(IN_FLIGHT)?);
    let counted = COMPLETED.iter().filter_map(|at| numbers.get(*at));
    let completed = counted.fold(0u64, |sum, n| sum.wrapping_add(*n));
    Some(IoCounts { completed, written, in_flight })
}

/// A lone number, as `errors_count` of ext4.
#[must_use]
pub fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// The device's name below `/sys` (`drbd0` of `/dev/drbd0`), if it is a plain one.
#[must_use]
pub fn device_name(source: &str) -> Option<&str> {
    let name = source.strip_prefix("/dev/")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
    (!name.is_empty() && name.bytes().all(plain)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counters_of_old_and_new_kernels() {
        let old = "  10 1 2 3 20 5 6 7 4 9 10\n";
        assert_eq!(io_counts(old), Some(IoCounts { completed: 30, written: 20, in_flight: 4 }));
        let new = "10 1 2 3 20 5 6 7 0 9 10 100 12 13 14 1000 16\n";
        assert_eq!(io_counts(new), Some(IoCounts { completed: 1130, written: 20, in_flight: 0 }));
    }

    #[test]
    fn short_or_foreign_text_is_unknown() {
        for text in ["", "1 2 3", "a b c d e f g h i", "-1 0 0 0 0 0 0 0 0 0 0"] {
            assert_eq!(io_counts(text), None, "{text:?}");
        }
        assert_eq!(number("3\n"), Some(3));
        assert_eq!((number(""), number("-1"), number("x")), (None, None, None));
    }

    #[test]
    fn only_plain_names_become_paths() {
        assert_eq!(device_name("/dev/drbd0"), Some("drbd0"));
        for bad in ["drbd0", "/dev/", "/dev/../x", "/dev/a/b", "tmpfs"] {
            assert_eq!(device_name(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = (io_counts(&text), number(&text), device_name(&text));
        }
    }
}
