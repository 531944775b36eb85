//! The half of nasd that acts: executes what `core` decided, tells it what happened.
//!
//! One task per service owns the service's state ([`task`]); [`hands`] reach the kernel, nasd-io, the
//! coordinator and the peer. No thread of nasd touches a volume (S9): that is nasd-io's job.

pub mod beat;
pub mod chores;
pub mod connection;
pub mod drbd;
pub mod failpoint;
pub mod fence;
pub mod follow;
pub mod handler;
pub mod handover;
pub mod hands;
pub mod health;
pub mod leave;
pub mod mark;
pub mod marker;
pub mod moves;
pub mod network;
pub mod power_fence;
pub mod relay;
pub mod right;
pub mod seek;
pub mod self_fence;
pub mod start;
pub mod steps;
pub mod systemd;
pub mod take;
pub mod task;
pub mod turns;
pub mod watchdog;
