//! Scenarios with hypervisors: libvirt on `hv1` and `hv2`, and a nested guest whose disk is on the service.
//!
//! Shows S1, S6 and S11 from outside the guest: who runs it, which of its writes are there, how long it stood still.

mod dead;
mod domain;
mod events;
mod findings;
mod held;
mod hosts;
mod hung;
mod margin;
mod migrate;
mod rest;
mod storm;
mod under;

pub use dead::FORGET;
pub use findings::{ADDRESS, CLOCK, LOCKSPACE, POOL, SOFT};
pub use held::{CRASH, GRACE};
pub use hung::{LIBVIRT, STORAGE};
pub use margin::{MARGIN, WAY_BACK};
pub use migrate::MIGRATE;
pub use rest::REST;
pub use storm::{BOTH, KILL};
pub use under::SWITCHOVER;
