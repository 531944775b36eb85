//! Addresses, frames, packet gate and socket listing for floating NFS services.
//!
//! Every service lives in a network namespace of its own, on a macvlan of the storage
//! interface. This crate makes that namespace and what is in it, and speaks to the kernel for
//! the moments of a move: gate, address, announcement, tickle.
//!
//! | module | owns | rule |
//! |---|---|---|
//! | [`netns`] | named namespaces, entering them | |
//! | [`worker`] | one thread per namespace, calls with a deadline | S8, S10 |
//! | [`link`], [`route`], [`sysctl`] | the macvlan and its surroundings | |
//! | [`addr`] | the floating address with a kernel lifetime | S4 (second belt) |
//! | [`gate`] | the right to serve, enforced in the packet path | S4, S5 |
//! | [`frames`] | gratuitous ARP, unsolicited neighbour advertisement | S5 |
//! | [`neighbours`] | do the neighbours on the wire still answer? | S12 |
//! | [`tickle`] | the bare ACK that makes a client's dead connection reset | |
//! | [`sockets`] | which clients are connected | |
//! | [`monotonic`] | the clock that the gate is compared with | S4 |
//!
//! **Order at standing-up:** namespace, [`link::ensure_macvlan`] (made *down*),
//! [`gate::Gate::install_or_adopt`] (closed), then [`link::set_up`]. Both nodes carry the same
//! MAC; an ungated standby would steal the switch's forwarding entry with its first frame.
//!
//! **Privileges.** Namespaces, `/proc/sys/net` and mounts need `CAP_SYS_ADMIN`; links, addresses,
//! routes and filters `CAP_NET_ADMIN`; packet and raw sockets `CAP_NET_RAW`; the gate's program
//! and map `CAP_BPF` and `CAP_NET_ADMIN`, and looking a program up by its id when adopting
//! `CAP_SYS_ADMIN`. A sandboxed unit must not have private mounts, else `/run/netns` and the
//! pinned map are invisible to others and lost at restart.

mod error;
mod netlink;
mod sys;

pub mod addr;
pub mod frames;
pub mod gate;
pub mod link;
pub mod monotonic;
pub mod neighbours;
pub mod netns;
pub mod route;
pub mod sockets;
pub mod sysctl;
pub mod tickle;
pub mod worker;

pub use error::NetError;
pub use monotonic::MonotonicInstant;
pub use netns::Netns;
pub use worker::NetnsWorker;

/// What every fallible call of this crate returns.
pub type Result<T> = std::result::Result<T, NetError>;
