//! The hypervisor's side of a storage move: what the mounts, the guests and their leases are
//! doing, told without ever touching storage from the agent's own threads.
//!
//! `core` decides and knows neither clock nor I/O; `mounts`, `sanlock` and `libvirt` read what the
//! host says about itself; `probe` is the only part that touches a mount, in a process that may be
//! lost. Rules kept here: S10 (never hangs), S11 (no switchover of a guest in a storage move) and
//! S12 (a missing answer is a no).

pub mod api;
pub mod check;
pub mod cli;
pub mod config;
pub mod core;
pub mod drive;
pub mod guests;
pub mod libvirt;
pub mod link;
pub mod mounts;
pub mod probe;
pub mod sanlock;
