//! Everything that speaks to the kernel's NFS server, one instance per network namespace.
//!
//! Owns: the control files of the `nfsd` file system ([`control`]), the client-tracker pipe
//! ([`cld`]) with its store on the volume ([`records`]), the export-cache channels
//! ([`exports`]), the netlink family of newer kernels ([`netlink`]) and a tiny NFSv4.1 client that proves a server answers ([`probe`]).
//! No helper program runs: neither a tracker daemon nor a mount daemon is needed.
//!
//! Keeps S5 (nothing here unexports while clients can reach the server by itself), S6 (client
//! records travel with the data) and S12 (what cannot be parsed is an error, never a default).

pub mod cld;
pub mod control;
mod error;
pub mod exports;
pub mod netlink;
pub mod netns;
pub mod probe;
pub mod records;
mod urgent;

pub use error::{Error, Result};
