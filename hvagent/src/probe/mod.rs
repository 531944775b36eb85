//! Probes of a mount, in a helper process that may hang and be lost.
//!
//! The agent itself never touches a mount. One helper per mount (`hvagent probe-helper`) does, and
//! answers over its standard output; it may sleep in the kernel for as long as the storage is away,
//! and nobody waits for it, not even for its death (S10).
//!
//! `protocol` is what is said, `helper` the other side, `keeper` decides when to ask, to kill and to
//! replace, and `process` runs what the keeper decides. `null_rpc` asks the server past all mounts.

pub mod helper;
pub mod keeper;
pub mod null_rpc;
pub mod process;
pub mod protocol;
