//! Read-only client of the sanlock daemon's socket: status, lockspaces, hosts, renewal history.
//!
//! Owns the byte layout of the daemon's answers (`sanlock_sock.h` and `cmd.c` of sanlock 3.8.5 and of the sources after it;
//! the structures are those of a 64-bit C compiler, numbers in the byte order of this machine) and
//! the deadlines of every exchange. It can ask and never change: no other command exists here.
//!
//! Two things about the daemon decide how this client behaves. Its main loop, the one that checks
//! the leases, serves these commands itself on blocking sockets: a caller that sends half a request
//! or does not read the answer **stops the lease checks of the whole host**. So a request is one
//! write, the answer is read at once and without pause, only what is needed is asked for, and the
//! socket is closed by the deadline. And its socket has a backlog of five: a connect to a daemon
//! that hangs would wait for ever, so it is tried without waiting.
//!
//! Keeps S10 (nothing here waits longer than [`Client`]'s limit) and S12 (bytes that are not fully
//! understood, of another version, too short or too long are an error, never a default).

mod client;
mod decode;
mod error;
mod model;
mod stream;
mod text;
pub mod wire;

pub use client::{Client, Detail, SOCKET};
pub use decode::{hosts, lockspaces, renewals, status, version};
pub use error::{Error, Result};
pub use model::{
    Daemon, Disk, Holder, Host, HostState, Listed, Lockspace, Outcome, Renewal, RenewalHistory,
    Resource, Stage, Status, Version,
};
