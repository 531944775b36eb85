//! The `key=value` text of a status record.
//!
//! Keeps S12: a missing field, one that stands there twice (a host's name may hold spaces and equal
//! signs, and so forge one) and one whose value is not understood are errors.

use std::str::FromStr;

use crate::error::{Error, Result};

/// How much of a bad value a message may show.
const SHOWN: usize = 80;

/// The text of one record.
pub(crate) struct Text<'a> {
    record: &'static str,
    text: &'a str,
}

impl<'a> Text<'a> {
    /// The text of a record of that kind.
    pub(crate) const fn new(record: &'static str, text: &'a str) -> Self {
        Self { record, text }
    }

    /// The value of a field.
    pub(crate) fn get(&self, key: &'static str) -> Result<&'a str> {
        self.find(key)?.ok_or_else(|| self.bad(key, None))
    }

    /// The value of a field that not every version writes.
    fn find(&self, key: &'static str) -> Result<Option<&'a str>> {
        let mut values = self.text.split(' ').filter_map(|word| value_of(word, key));
        match (values.next(), values.next()) {
            (Some(one), Some(two)) => Err(self.bad(key, Some(&format!("{one} and {two}")))),
            (value, _) => Ok(value),
        }
    }

    /// The value of a field as a number.
    pub(crate) fn number<T: FromStr>(&self, key: &'static str) -> Result<T> {
        self.parsed(key, self.get(key)?)
    }

    /// The value of a field as a number; `None` where the daemon does not write it.
    pub(crate) fn number_if_told<T: FromStr>(&self, key: &'static str) -> Result<Option<T>> {
        self.find(key)?.map(|value| self.parsed(key, value)).transpose()
    }

    fn parsed<T: FromStr>(&self, key: &'static str, value: &str) -> Result<T> {
        value.parse().map_err(|_| self.bad(key, Some(value)))
    }

    /// The value of a field that is 0 or 1.
    pub(crate) fn flag(&self, key: &'static str) -> Result<bool> {
        match self.get(key)? {
            "0" => Ok(false),
            "1" => Ok(true),
            other => Err(self.bad(key, Some(other))),
        }
    }

    /// An error about a field.
    pub(crate) fn bad(&self, key: &'static str, found: Option<&str>) -> Error {
        let found = found.map(|value| value.chars().take(SHOWN).collect());
        Error::BadField { record: self.record, key, found }
    }
}

fn value_of<'a>(word: &'a str, key: &str) -> Option<&'a str> {
    word.strip_prefix(key)?.strip_prefix('=')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = Text::new("test", "last_io_timeout=9 io_timeout=10 on=1");
        assert_eq!(text.number::<u32>("io_timeout").unwrap(), 10);
        assert!(text.flag("on").unwrap());
        assert!(text.flag("io_timeout").is_err());
    }

    #[test]
    fn s12_missing_doubled_and_unreadable_fields_are_errors() {
        let text = Text::new("daemon", "our_host_name=x use_watchdog=1 use_watchdog=0 n=-1 m=");
        for key in ["gone", "use_watchdog", "n", "m"] {
            assert!(matches!(text.number::<u32>(key), Err(Error::BadField { .. })), "{key}");
        }
    }

    #[test]
    fn a_field_that_need_not_be_there_may_be_missing_and_no_more() {
        let text = Text::new("daemon", "a=1 b=x c=1 c=2");
        assert_eq!(text.number_if_told::<u32>("a").unwrap(), Some(1));
        assert_eq!(text.number_if_told::<u32>("gone").unwrap(), None);
        assert!(text.number_if_told::<u32>("b").is_err());
        assert!(text.number_if_told::<u32>("c").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(text: String) {
            let text = Text::new("any", &text);
            let _ = (text.get("a"), text.number::<i32>("a"), text.flag("a"));
        }
    }
}
