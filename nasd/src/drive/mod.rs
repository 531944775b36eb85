//! The half of nasd that acts: executes what `core` decided, tells it what happened.
//!
//! One task per service owns the service's state ([`task`]); [`hands`] reach the kernel, nasd-io, the
//! coordinator and the peer. No thread of nasd touches a volume (S9): that is nasd-io's job.

pub mod drbd;
pub mod failpoint;
pub mod fence;
pub mod handover;
pub mod hands;
pub mod moves;
pub mod network;
pub mod right;
pub mod start;
pub mod steps;
pub mod task;
