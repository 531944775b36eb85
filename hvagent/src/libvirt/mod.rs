//! What libvirt and systemd say of guests, jobs, pools and units, over D-Bus.
//!
//! Pure: [`breaker`] (when to stop asking), [`domain`] and [`pool`] (XML), [`state`] and [`job`] (numbers
//! to meanings, and what to do about a running migration). I/O: [`proxy`] (the interfaces), [`bridge`]
//! (libvirt-dbus with deadlines), [`events`] (its signals), [`systemd`] (units and inhibitors).
//!
//! Keeps S10: every call has a deadline, and a libvirt that hangs is soon not called any more, as
//! each hung call holds one of the bridge's few threads. Keeps S12: what libvirt does not say is
//! unknown.

pub mod breaker;
pub mod bridge;
pub mod domain;
mod error;
pub mod events;
#[cfg(test)]
mod fake;
pub mod job;
pub mod pool;
pub mod proxy;
pub mod state;
pub mod systemd;
mod value;
mod xml;

pub use error::{Error, Result};
