//! `nasd-io`: the child of nasd, one per service, that alone touches the service's volumes.
//!
//! A call on a frozen volume hangs in the kernel and cannot be killed; so no thread of nasd may
//! make one (S9). This process makes them, each request on a thread of its own, so that one that
//! hangs blocks no other. It outlives nasd: a new nasd connects to its socket and goes on. It is
//! also the NFS server's client tracker and the answerer of its export caches.
//!
//! Wire: one JSON object per line over a Unix socket; [`Request`] one way, [`Response`] the other.
//!
//! Keeps S5 (server only on verified mounts), S6 (records), S8 (deadlines, never a lazy unmount),
//! S9 and S10.

pub mod client;
mod protocol;
mod refusal;
pub mod server;

pub use client::{CallError, Client, LaunchError, Launcher};
pub use protocol::{
    Answer, Holder, HolderKind, Marker, MountPoint, Op, Outcome, Request, Response, ServerStatus,
    Setup, StartReport, StepTime, VERSION,
};
pub use refusal::{Refusal, SysError};
