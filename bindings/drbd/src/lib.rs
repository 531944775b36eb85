//! A client of DRBD's generic-netlink interface, for in-tree 8.4 and LINBIT 9 alike.
//!
//! [`Drbd::open`] finds out at run time which one is loaded ([`Abi`]); [`Drbd::status`] reads all
//! resources, [`Drbd::events`] follows them, [`Drbd::commands`] gives a resource's [`CommandQueue`].
//! Everything blocks, on the caller's thread (reading) or on the queue's (commands); there is no
//! async runtime here, because the kernel executes a command inside the system call.
//!
//! The crate gives evidence, it decides nothing: whether a promotion is allowed is the caller's to
//! prove (rules S1 and S2). What it does keep: no command that loses data exists without an
//! operator's typed word (S3), every wait has a deadline (S8, S10), and what is unknown, late or
//! unreadable never counts as a yes (S12).
//!
//! The numbers of both interfaces are generated from kernel headers with bindgen over our own macro
//! shim (`shim/`, `build.rs`) and checked in; feature `regenerate` makes and compares them anew.
//! The code itself is safe Rust.

mod abi;
mod client;
mod commands;
mod enums;
mod events;
mod execute;
mod generated;
mod model;
mod options;
mod queue;
mod retcode;
mod socket;
mod status;
mod wire;

#[cfg(test)]
mod testing;

pub use abi::Abi;
pub use client::{Drbd, OpenError, StatusError};
pub use commands::{
    AttachSpec, Command, CommandError, ConfirmationError, ConnectSpec, Force, MetaIndex,
    OperatorConfirmed, Outcome, TransportError,
};
pub use enums::{
    AfterSb, ConnState, DiskState, Fencing, NotifyKind, OnIoError, OnNoData, Protocol, ReplState,
    Role, TimeoutType,
};
pub use events::{Events, Notification, SyncReason};
pub use model::{
    Applied, ConnectionInfo, DeviceInfo, DeviceStats, Event, Model, Object, ObjectKey,
    PeerDeviceInfo, PeerDeviceStats, ResourceInfo,
};
pub use options::{DiskOptions, NetOptions, Quorum, ResourceOptions, S1Violation, Scope};
pub use queue::{CommandQueue, CommandResult, Pending};
pub use retcode::{Refusal, ReturnCode};
pub use status::{ConnKey, Connection, Device, Endpoint, PeerDevice, ResourceStatus, Suspended};
pub use wire::DecodeError;
