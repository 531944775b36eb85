//! The guests in a storage move: who they are, what is held back, what is resumed, how long they stood
//! still.
//!
//! Pure: [`inventory`] (which guest is on which mount), [`holds`] (what to do about a migration),
//! [`readiness`], [`resume`], [`stall`]. I/O: [`proc`] (QEMU's processes, without libvirt), [`limits`]
//! (old limits on disk before they are changed), [`leases`], [`hypervisor`] (the part of libvirt that
//! is used), [`task`] (owns it all), [`handle`] (what the rest of the agent calls).
//!
//! Keeps S11: no switchover of a guest falls into a storage move, and every hold has an end. Keeps S10:
//! libvirt may hang at any call, and then what is known without it still counts. Keeps S12: what is
//! not known makes the storage not ready, and resumes no guest.

pub mod handle;
pub mod holds;
pub mod hypervisor;
pub mod inventory;
pub mod leases;
pub mod limits;
pub mod proc;
pub mod readiness;
pub mod resume;
mod rounds;
#[cfg(test)]
mod samples;
pub mod stall;
pub mod task;

pub use handle::{Handle, start};
pub use task::Settings;
