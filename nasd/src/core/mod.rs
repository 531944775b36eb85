//! The pure half of nasd: decides, never acts. No clock, no I/O, no tokio (design section 8).
//!
//! [`machine::Machine::step`] takes the time and an event and answers with effects; `drive` executes
//! them one after the other and feeds their results back as events.

pub mod hole;
pub mod machine;
pub mod peer;
pub mod preflight;
pub mod record;
pub mod right;
pub mod step;
pub mod timing;
pub mod view;
