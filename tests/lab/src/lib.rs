//! The lab: real NAS and hypervisor nodes on one machine, and faults at will.
//!
//! Nodes are Debian systems under User-Mode Linux or QEMU, joined by bridges in a network namespace of the lab. A
//! scenario brings nodes up ([`Lab::up`]), runs commands in them ([`Lab::exec`], [`Lab::spawn`]), injects faults
//! ([`Lab::fault`]) and fills in a [`report::ScenarioReport`]. The lab keeps none of the rules S1…S12 itself; it is
//! where they are put to the test.

pub mod agent;
pub mod blocks;
pub mod cli;
pub mod guest;
pub mod report;
pub mod scenarios;

mod capture;
mod checks;
mod client;
mod deps;
mod drbd;
mod engine;
mod error;
mod fault;
mod image;
mod lab;
mod netns;
mod payload;
mod pki;
mod process;
mod progress;
mod round;
mod spec;
mod state;
mod supervise;
mod sys;
mod wire;

pub use capture::{Capture, Captured};
pub use client::{Job, Output};
pub use engine::Engine;
pub use error::LabError;
pub use fault::Fault;
pub use lab::{Lab, NodeStatus, wait_for};
pub use spec::{Node, Role, Spec};
