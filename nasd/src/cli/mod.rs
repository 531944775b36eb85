//! `nasctl`: the operator's command.
//!
//! Owns what an operator sees and the exit codes; decides nothing about a service. Keeps S8 (a
//! deadline on every wait) and S12: an answer that is missing, torn or unknown is reported as an
//! unknown outcome, never as success. Rendering is pure (`status`, `moves`,
//! `history`); `run`, `watch` and `confirm` talk to nasd.

pub mod args;
pub mod client;
pub mod confirm;
pub mod history;
mod hypervisors;
pub mod json;
pub mod moves;
pub mod run;
pub mod screen;
pub mod status;
pub mod text;
pub mod watch;

pub use run::main;
