//! What this host reports of itself, and what is wrong with it, alone and before a migration.
//!
//! `report` is the data; `collect` and `reach` read it with deadlines (S10); `host` and `migrate`
//! judge it and know neither clock nor I/O; `reports` brings another host's. Rule kept: S12. What
//! could not be looked at is told as unknown, in the report and as a finding.

pub mod caps;
pub mod clock;
pub mod collect;
pub mod conf;
mod fit;
pub mod host;
mod leases;
mod libvirt;
pub mod migrate;
pub mod proc;
pub mod reach;
pub mod remedy;
pub mod report;
pub mod reports;
#[cfg(test)]
mod samples;

pub use collect::{Sources, collect};
pub use host::judge_host;
pub use migrate::judge_migration;
pub use report::{HostReport, Known};
