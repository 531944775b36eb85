//! Lockspaces, margins and renewals: how long the guests of this host survive a stall, judged from
//! what the sanlock daemon tells.
//!
//! Pure but for [`Survey::take`], which asks the daemon (blocking, with the client's deadline).
//! Keeps S12: a lease whose age is not known has no margin, and a daemon that does not answer is a
//! finding, never "all is well".

mod check;
mod lease;
mod remedy;
mod survey;

pub use check::{Expected, check, gone, without_answer};
pub use lease::{Lease, Outlook, needed_io_timeout};
pub use survey::{Space, Survey, longest_stall};
