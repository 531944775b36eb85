//! nasd: moves NFS services with their DRBD volumes, NFS server and addresses between two NAS nodes.
//!
//! `core` decides (pure), `drive` acts, `io` is the child that alone touches a volume (S9).

pub mod agents;
pub mod api;
pub mod cli;
pub mod config;
pub mod coordinator;
pub mod core;
pub mod drive;
pub mod io;
pub mod observe;
pub mod peer;
