//! What is exported to whom, and the kernel caches that ask for it.
//!
//! nasd answers the caches itself: an answer makes the kernel resolve a path on the volume, and
//! only the process that may touch the volume may cause that. Model: a plain directory is the
//! NFSv4 root of the service (`fsid=0`, read-only, shows nothing but exports); below it each
//! export is the root of a mounted file system, known by a UUID that is the same on both nodes.
//! Clients mount `ADDRESS:/NAME`.
//!
//! Keeps S5 (caches are filled before the server is reachable; nothing is withdrawn while it is)
//! and S6 (same handles on both nodes).

mod channel;
mod lines;
mod model;
mod qword;

use std::io;
use std::path::PathBuf;

pub use channel::{Answerer, AnswererStatus, flush};
pub use lines::{FsidKey, Request};
pub use model::{Cidr, Export, ExportTable, FsUuid};

/// What is wrong with exports, and so what is true now.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Not an address with a prefix length.
    #[error("{text:?} is not an address range such as 192.0.2.0/24 or 2001:db8::/32")]
    BadCidr {
        /// The text.
        text: String,
    },
    /// Not a UUID.
    #[error("{text:?} is not a UUID of 32 hexadecimal digits")]
    BadUuid {
        /// The text.
        text: String,
    },
    /// An export is not a direct child of the service's root directory.
    #[error("export {} does not lie directly below {}", path.display(), root.display())]
    NotBelowRoot {
        /// The export.
        path: PathBuf,
        /// The service's root directory.
        root: PathBuf,
    },
    /// Two exports share a path or a UUID.
    #[error("export {} repeats the path or UUID of another", path.display())]
    Repeated {
        /// The second of them.
        path: PathBuf,
    },
    /// A path cannot be given to the kernel (not absolute, over-long, or with a NUL).
    #[error("path {} cannot be exported: it must be absolute and short", path.display())]
    BadPath {
        /// The path.
        path: PathBuf,
    },
    /// A cache channel could not be opened, read or written.
    #[error("export cache {}: {source}", file.display())]
    Channel {
        /// The channel.
        file: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel refused an entry: the export is not in its cache. EINVAL: the file system
    /// cannot be exported; ENOENT: the path or the client's domain does not exist.
    #[error("kernel refused cache entry {line:?}: {source}")]
    Refused {
        /// What was written.
        line: String,
        /// The system's answer.
        source: io::Error,
    },
}
