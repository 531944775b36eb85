//! What can be wrong with the file, each with its remedy.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

/// Why there is no configuration. Nothing was started.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{} cannot be read ({error}); write it, or name another one with --config", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: std::io::Error,
    },
    /// It has faults.
    #[error("{name} is refused{}", told(faults))]
    Faults {
        /// The file's name.
        name: String,
        /// All that were found.
        faults: Vec<Fault>,
    },
}

fn told(faults: &[Fault]) -> String {
    faults.iter().map(|fault| format!("\n  {fault}")).collect()
}

/// A problem at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// 1-based.
    pub line: usize,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}; {}", self.line, self.problem, self.problem.remedy())
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// Not TOML, an unknown or missing key, a wrong type; the parser's words.
    #[error("{message}")]
    Shape {
        /// The words.
        message: String,
    },
    /// A nasd is named and no keys are.
    #[error("[[nasd]] without [peer]: links are made over TLS only")]
    NoPeer,
    /// A name with characters or a length that is not taken.
    #[error("{value:?} cannot name a {what}")]
    Name {
        /// What it was to name.
        what: &'static str,
        /// The name.
        value: String,
    },
    /// A value that must be unique.
    #[error("{what} {value:?} is there twice")]
    Twice {
        /// What kind of value.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// Not an address and a port.
    #[error("address = {value:?} is not an IP address with a port")]
    Address {
        /// The text.
        value: String,
    },
    /// Not an address.
    #[error("{value:?} is not an IP address")]
    Ip {
        /// The text.
        value: String,
    },
    /// A service without addresses has no mounts.
    #[error("service {service:?} has no addresses")]
    NoAddresses {
        /// The service.
        service: String,
    },
    /// A relative path means something else for each process.
    #[error("{key} = {value:?} is not an absolute path")]
    Path {
        /// The key.
        key: &'static str,
        /// The path.
        value: String,
    },
    /// Not a duration.
    #[error("{key} = {value:?} is not a duration")]
    Duration {
        /// The key.
        key: &'static str,
        /// The text.
        value: String,
    },
    /// Outside its bounds.
    #[error("{key} = {value} ms is outside {min_ms} ms to {max_ms} ms")]
    Range {
        /// The key.
        key: &'static str,
        /// Milliseconds.
        value: u64,
        /// Least allowed.
        min_ms: u64,
        /// Most allowed.
        max_ms: u64,
    },
}

impl Problem {
    /// What the administrator can do.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Shape { .. } => "correct the line".to_owned(),
            Self::NoPeer => "add [peer] with ca, cert and key".to_owned(),
            Self::Name { .. } => "use 1 to 64 letters, digits, '-', '_' and '.'".to_owned(),
            Self::Twice { .. } => "remove one of them".to_owned(),
            Self::Address { .. } => "write it as \"10.77.0.11:7410\"".to_owned(),
            Self::Ip { .. } => "write it as \"10.77.0.50\", without a prefix length".to_owned(),
            Self::NoAddresses { .. } => {
                "name its floating addresses, or leave the service out: nasd tells them".to_owned()
            }
            Self::Path { .. } => "write the whole path from /".to_owned(),
            Self::Duration { .. } => "write it as \"5s\" or \"200ms\"".to_owned(),
            Self::Range { min_ms, max_ms, .. } => {
                format!("choose a value from {min_ms}ms to {max_ms}ms")
            }
        }
    }
}
