//! What the agent decides: the storage phase of each mount and what may happen in it (S11, S12).
//!
//! Nothing here knows a clock, a process or a file: time comes in as an argument, and what must be
//! done goes out as a value.

use std::time::Duration;

pub mod finding;
pub mod phase;

/// A moment of the host's monotonic clock, as time since an origin that is fixed while the agent
/// runs. Only differences mean anything.
pub type Now = Duration;
