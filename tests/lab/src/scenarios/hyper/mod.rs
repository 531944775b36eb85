//! Scenarios with hypervisors: libvirt on `hv1` and `hv2`, and a nested guest whose disk is on the service.
//!
//! Shows S1, S6 and S11 from outside the guest: who runs it, which of its writes are there, how long it stood still.

mod domain;
mod events;
mod hosts;
mod migrate;
mod storm;
mod under;

pub use migrate::MIGRATE;
pub use storm::{BOTH, KILL};
pub use under::SWITCHOVER;
