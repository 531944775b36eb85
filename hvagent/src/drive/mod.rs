//! Executes what `core` decides: one task owns the mounts' machines, and threads and tasks of their
//! own do whatever may hang (S10).

//!
//! `agent` (with `track`, `moves`, `leases`, `tell`, `answer`) is the state and decides; `run` owns it and
//! does what it says; `hands` is what is done to guests, `sampler` the threads that look at the host.

pub mod agent;
mod answer;
mod arrivals;
pub mod hands;
mod inhibit;
pub mod input;
mod late;
pub mod leases;
pub mod moves;
pub mod orders;
mod reports;
pub mod run;
pub mod sampler;
mod tell;
pub mod track;
