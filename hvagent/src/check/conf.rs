//! libvirt's configuration files as text: only plain `name = value` lines are looked at.
//!
//! Rule kept: S12. A file that is not there means libvirt's defaults; one that cannot be read means
//! that nothing is known.

use std::collections::BTreeMap;
use std::path::Path;

/// The settings of a file, the last of each name, as libvirt takes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, String>);

impl Settings {
    /// Of a file's text. Lists and what is not understood are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let pair = |(name, value): (&str, &str)| {
            Some((name.trim().to_owned(), scalar(value.trim())?.to_owned()))
        };
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        Self(lines.filter_map(|line| line.split_once('=')).filter_map(pair).collect())
    }

    /// A setting as it is written, without quotes.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A setting that is a number.
    #[must_use]
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.get(name)?.parse().ok()
    }

    /// From a file; without one, no settings.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read(path: &Path) -> Result<Self, Unreadable> {
        match std::fs::read(path) {
            Ok(bytes) => Ok(Self::parse(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(Unreadable { path: path.display().to_string(), error }),
        }
    }
}

/// A file that is there and cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be read ({error}); run hvagent as root")]
pub struct Unreadable {
    /// Which.
    pub path: String,
    /// Why.
    #[source]
    pub error: std::io::Error,
}

/// A string without its quotes, or a number; a comment behind it is cut off.
fn scalar(value: &str) -> Option<&str> {
    match value.chars().next()? {
        quote @ ('"' | '\'') => value.get(1..)?.split_once(quote).map(|(inside, _)| inside),
        '[' => None,
        _ => value.split(['#', ' ', '\t']).next(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QEMU: &str = r#"
# lock_manager = "lockd"
#lock_manager = "lockd"
  lock_manager = "sanlock"   # leases
cgroup_controllers = [ "cpu", "devices" ]
migration_port_min = 49152
migration_port_min = 50000 # later wins
user = 'root'
broken
= 3
"#;

    #[test]
    fn settings_are_found_and_comments_are_not() {
        let settings = Settings::parse(QEMU);
        assert_eq!(settings.get("lock_manager"), Some("sanlock"));
        assert_eq!(settings.number::<u16>("migration_port_min"), Some(50_000));
        assert_eq!(settings.get("user"), Some("root"));
        assert_eq!(settings.get("cgroup_controllers"), None);
        assert_eq!(settings.number::<u16>("lock_manager"), None);
    }

    #[test]
    fn s12_no_file_is_the_default_and_an_unreadable_one_is_not() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Settings::read(&root.path().join("gone")).unwrap(), Settings::default());
        let error = Settings::read(root.path()).unwrap_err();
        assert!(error.to_string().contains("run hvagent as root"));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,200}") {
            let _ = Settings::parse(&text);
        }

        #[test]
        fn any_string_comes_back(value in "[^\"\\p{C}]{0,30}") {
            let settings = Settings::parse(&format!("a = \"{value}\"\nb = 1\n"));
            prop_assert_eq!(settings.get("a"), Some(value.as_str()));
            prop_assert_eq!(settings.get("b"), Some("1"));
        }
    }
}
