//! The agents on hypervisors, as nasd sees them (design section 7).
//!
//! Owns who is attached, what each host said last, the announcement of a planned move and what is told of a
//! move. [`book`] decides, pure; [`task`] is the one task that owns the book; [`server`] speaks gRPC. Keeps
//! S11 (no move begins while a guest's switchover may land in it, and every announcement ends by itself),
//! S12 (who does not answer is not ready) and S8: nothing here is ever waited for inside a stall.

pub mod book;
mod hosts;
mod number;
mod readiness;
pub mod server;
mod services;
pub mod status;
mod tame;
pub mod task;

pub use number::MoveId;
pub use services::{Said, Terms};
pub use task::{Agents, Ask, NotForgotten};

/// Numbers a stream of an agent; never used twice in a life of nasd.
pub type StreamId = u64;
