//! Owns the one error type of this crate: each variant says what is true now and what to do.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// Why a call on the network did not do what was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NetError {
    /// The kernel refused for lack of a privilege; nothing was changed.
    #[error("not permitted to {action} in namespace {namespace}; run with {needs}")]
    NotPermitted {
        /// Namespace the call was for.
        namespace: String,
        /// What was tried.
        action: &'static str,
        /// Capability that is missing.
        needs: &'static str,
    },
    /// The name cannot be a file name below `/run/netns`.
    #[error("{name:?} cannot name a namespace; use letters, digits, '-', '_' and '.'")]
    BadNamespaceName {
        /// The name given.
        name: String,
    },
    /// No namespace has that name.
    #[error("namespace {name} does not exist; create it first")]
    NamespaceMissing {
        /// The name asked for.
        name: String,
    },
    /// The file is there, but is no network namespace.
    #[error("{path} is not a network namespace; remove it or choose another name", path = .path.display())]
    NotANamespace {
        /// The file looked at.
        path: PathBuf,
    },
    /// A step in making, entering or removing a namespace failed.
    #[error("namespace {name}: could not {action}: {source}")]
    Namespace {
        /// Name of the namespace.
        name: String,
        /// The step.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Code that ran inside the namespace panicked; its effects are unknown.
    #[error("a task in namespace {name} panicked; see the log, then restart the daemon")]
    TaskPanicked {
        /// Name of the namespace.
        name: String,
    },
    /// The worker thread has ended; nothing was started.
    #[error("the worker of namespace {namespace} has ended; start a new one")]
    WorkerGone {
        /// Name of the namespace.
        namespace: String,
    },
    /// No answer in time. The kernel may still carry the request out: read back before deciding.
    #[error(
        "namespace {namespace}: no answer within {limit:?} to \"{action}\"; its outcome is unknown, read the state back"
    )]
    Timeout {
        /// Name of the namespace.
        namespace: String,
        /// What was asked.
        action: &'static str,
        /// The limit that passed.
        limit: Duration,
    },
    /// The interface name is empty, too long, or has characters the kernel refuses.
    #[error("{name:?} cannot name an interface; use 1 to 15 bytes without '/', ':' and blanks")]
    BadInterfaceName {
        /// The name given.
        name: String,
    },
    /// The interface is not there.
    #[error(
        "no interface {interface} in namespace {namespace}; check its name in the configuration"
    )]
    InterfaceMissing {
        /// Namespace looked in.
        namespace: String,
        /// Interface looked for.
        interface: String,
    },
    /// An interface of that name exists and is something else; it was left alone.
    #[error(
        "interface {interface} in namespace {namespace} has {property} {found}, wanted {wanted}; delete it or choose another name"
    )]
    ForeignInterface {
        /// Namespace looked in.
        namespace: String,
        /// The interface.
        interface: String,
        /// Which property differs.
        property: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// The kernel refused a request about links, addresses, routes, filters or sockets.
    #[error("namespace {namespace}: could not {action} {object}: {source}")]
    Refused {
        /// Name of the namespace.
        namespace: String,
        /// What was asked.
        action: &'static str,
        /// What it was asked about.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel's answer makes no sense; nothing is concluded from it.
    #[error(
        "namespace {namespace}: unreadable answer to \"{action}\" ({what}); report this kernel version"
    )]
    Malformed {
        /// Name of the namespace.
        namespace: String,
        /// What was asked.
        action: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A kernel setting could not be written.
    #[error("namespace {namespace}: could not set {path} to {value}: {source}", path = .path.display())]
    Sysctl {
        /// Name of the namespace.
        namespace: String,
        /// File below `/proc/sys`.
        path: PathBuf,
        /// Value wanted.
        value: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The prefix is longer than the address has bits.
    #[error("{address}/{prefix} is no address; the prefix is at most 32 (IPv4) or 128 (IPv6)")]
    BadPrefix {
        /// The address.
        address: IpAddr,
        /// The prefix given.
        prefix: u8,
    },
    /// Address lifetimes the kernel would refuse.
    #[error(
        "lifetime valid {valid} s, preferred {preferred} s: valid must be above 0 and not below preferred"
    )]
    BadLifetime {
        /// Seconds until the kernel removes the address.
        valid: u32,
        /// Seconds until it stops being chosen as a source.
        preferred: u32,
    },
    /// The address that was to be refreshed is not there (any more).
    #[error(
        "{address} is not on {interface} in namespace {namespace}; it has run out or was deleted, so the right must be proved anew"
    )]
    AddressMissing {
        /// Namespace looked in.
        namespace: String,
        /// Interface looked on.
        interface: String,
        /// The address.
        address: IpAddr,
    },
    /// The two ends are of different address families.
    #[error("{first} and {second} are not of the same address family")]
    FamilyMismatch {
        /// One end.
        first: IpAddr,
        /// The other end.
        second: IpAddr,
    },
    /// No such connection (any more).
    #[error("no connection {local} - {peer} in namespace {namespace}; nothing to destroy")]
    NoSuchConnection {
        /// Namespace looked in.
        namespace: String,
        /// Our end.
        local: SocketAddr,
        /// The peer's end.
        peer: SocketAddr,
    },
    /// This kernel cannot do it.
    #[error("this kernel lacks {feature}; {remedy}")]
    Unsupported {
        /// What is missing.
        feature: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A bpf(2) call failed.
    #[error(
        "could not {action}: {source}; the gate needs CAP_BPF, CAP_NET_ADMIN and CONFIG_BPF_SYSCALL"
    )]
    Bpf {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The pin path is not inside a BPF file system and nasd will not mount one there.
    #[error("{path} is not on a BPF file system; choose a path below /sys/fs/bpf, or mount one", path = .path.display())]
    NotBpffs {
        /// The pin path.
        path: PathBuf,
    },
    /// A step on the pin's path failed.
    #[error("could not {action} {path}: {source}", path = .path.display())]
    Pin {
        /// What was tried.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something else is pinned there; it was left alone.
    #[error("{path} pins something that is not a gate ({what}); remove it or choose another path", path = .path.display())]
    ForeignPin {
        /// The pin path.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Something else sits where the gate belongs; the interface is NOT gated.
    #[error(
        "interface {interface} in namespace {namespace} carries a foreign {found} where the gate belongs; delete it (tc filter/qdisc del)"
    )]
    ForeignFilter {
        /// Namespace of the interface.
        namespace: String,
        /// The interface.
        interface: String,
        /// What was found.
        found: String,
    },
    /// After attaching, the filters read back are not ours; the interface is NOT gated.
    #[error(
        "interface {interface} in namespace {namespace}: the gate does not read back after attaching; keep the link down"
    )]
    GateUnverified {
        /// Namespace of the interface.
        namespace: String,
        /// The interface.
        interface: String,
    },
}
