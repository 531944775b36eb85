//! Everything that can be wrong with the file by itself, each with its remedy.

use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;

use super::refusal::Remedy;
use super::values::{Cidr, ValueError, show_duration};

/// A fault of the configuration file. Nothing was started or changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// Not TOML, an unknown key, a missing key or a value of the wrong type. The message is the
    /// parser's own.
    #[error("{message}")]
    Shape {
        /// What the parser said.
        message: String,
    },
    /// A pair needs exactly two nodes.
    #[error("{found} [[node]] tables where there must be exactly two")]
    NodeCount {
        /// How many there are.
        found: usize,
    },
    /// A value that must be unique was used before.
    #[error("{what} {value:?} is already used on line {first}")]
    Duplicate {
        /// What kind of value.
        what: &'static str,
        /// The value.
        value: String,
        /// The line of its first use.
        first: usize,
    },
    /// A name with characters or a length that some interface would not take.
    #[error("{value:?} cannot be a {what}")]
    Name {
        /// What it was to name.
        what: &'static str,
        /// The name.
        value: String,
        /// The characters and length that are allowed.
        allowed: &'static str,
    },
    /// A value that does not parse.
    #[error("{key} = {value:?} is {source}")]
    Value {
        /// The key.
        key: &'static str,
        /// The text.
        value: String,
        /// An example of a good value.
        example: &'static str,
        /// Why it does not parse.
        source: ValueError,
    },
    /// A socket address that does not parse, is unspecified or has port 0.
    #[error("{key} {value:?} is not an IP address with a port")]
    NodeAddress {
        /// The key.
        key: &'static str,
        /// The text.
        value: String,
    },
    /// A second path over the address of the first fails with it.
    #[error("heartbeat is on {address} as address is: that is no second path")]
    SamePath {
        /// The node's address.
        address: IpAddr,
    },
    /// A second path leads to one node only.
    #[error("node {with} has a heartbeat address and node {without} has none")]
    OneSidedPath {
        /// The node that has one.
        with: String,
        /// The node that has none.
        without: String,
    },
    /// A parameter that a fence agent cannot be given, or that nasd gives itself.
    #[error(
        "fence parameter {name:?} must be a text, a number or a flag on one line, and not action"
    )]
    FenceParameter {
        /// Its name.
        name: String,
    },
    /// An address that no server can hold.
    #[error("{address} is {what}: no client can reach a service there")]
    Unusable {
        /// The address.
        address: IpAddr,
        /// What it is instead.
        what: &'static str,
    },
    /// A duration outside its range.
    #[error("{key} = {} is outside {} to {}", show_duration(*.value), show_duration(*.min), show_duration(*.max))]
    DurationRange {
        /// The key.
        key: &'static str,
        /// The value.
        value: Duration,
        /// Least allowed.
        min: Duration,
        /// Most allowed.
        max: Duration,
    },
    /// The kernel takes whole seconds here.
    #[error("{key} = {} is not a whole number of seconds, and the kernel takes nothing finer", show_duration(*.value))]
    WholeSeconds {
        /// The key.
        key: &'static str,
        /// The value.
        value: Duration,
    },
    /// A number outside its range.
    #[error("{key} = {value} is outside {min} to {max}")]
    NumberRange {
        /// The key.
        key: &'static str,
        /// The value.
        value: i64,
        /// Least allowed.
        min: i64,
        /// Most allowed.
        max: i64,
    },
    /// Clients would still be renewing when grace is over.
    #[error("grace {} is shorter than lease {}: clients could not reclaim in time", show_duration(*.grace), show_duration(*.lease))]
    GraceBelowLease {
        /// The grace period.
        grace: Duration,
        /// The lease time.
        lease: Duration,
    },
    /// No coordinator, or more than one.
    #[error("coordinator names {found} stores where there must be exactly one")]
    CoordinatorChoice {
        /// How many are named.
        found: usize,
    },
    /// The file coordinator knows one machine only (design section 4).
    #[error(
        "the file coordinator decides nothing between machines, and node {node} is on another one ({address})"
    )]
    FileElsewhere {
        /// The second node.
        node: String,
        /// Its address.
        address: IpAddr,
    },
    /// An etcd endpoint that cannot be used.
    #[error("etcd endpoint {value:?}: {why}")]
    Endpoint {
        /// The endpoint.
        value: String,
        /// Why not.
        why: &'static str,
    },
    /// Too few etcd members for a majority without the failed one.
    #[error("{found} etcd endpoints: with fewer than three members no failure leaves a majority")]
    FewEndpoints {
        /// How many are named.
        found: usize,
    },
    /// Of `ca`, `cert`, `key` some are given and some are not, or TLS is asked for without them.
    #[error("etcd over TLS needs ca, cert and key; {missing} is missing")]
    TlsPart {
        /// The first missing key.
        missing: &'static str,
    },
    /// A relative path means something else for each process.
    #[error("{key} = {value:?} is not an absolute path{}", .max.map(|m| format!(" of at most {m} bytes")).unwrap_or_default())]
    Path {
        /// The key.
        key: &'static str,
        /// The path.
        value: String,
        /// Longest path, where the kernel has a limit.
        max: Option<usize>,
    },
    /// A list that must not be empty.
    #[error("{what} is empty")]
    Empty {
        /// The list.
        what: &'static str,
    },
    /// Host names would need a resolver in the middle of a failover.
    #[error("client {value:?} is neither an address, a network nor \"*\"")]
    ClientName {
        /// The text.
        value: String,
    },
    /// An address with host bits where a network belongs.
    #[error("client {given} has host bits set")]
    HostBits {
        /// What was written.
        given: Cidr,
        /// The network it lies in.
        network: IpAddr,
    },
    /// A node that no `[[node]]` table defines.
    #[error("preferred = {value:?} is not one of the two nodes")]
    UnknownNode {
        /// The name.
        value: String,
    },
    /// A NAS node among the hypervisors.
    #[error("required names {value:?}, which is a NAS node: no agent attends under its name")]
    NodeAsAgent {
        /// The name.
        value: String,
    },
    /// The gateway cannot be reached from any of the service's addresses.
    #[error("{key} = {gateway} is not in the network of any of the service's addresses")]
    GatewayOutside {
        /// The key.
        key: &'static str,
        /// The gateway.
        gateway: IpAddr,
    },
    /// One export lies below another of the same service.
    #[error("export {inner:?} lies below export {outer:?} (line {first})")]
    Nested {
        /// The deeper path.
        inner: String,
        /// The shallower path.
        outer: String,
        /// The line of the other.
        first: usize,
    },
    /// A value out of a fixed list.
    #[error("{key} = {value:?} is not supported")]
    Choice {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// The values that are.
        allowed: &'static str,
    },
    /// A mount option that loses or hides data.
    #[error("mount option {option:?} is refused: {why}")]
    MountOption {
        /// The option.
        option: String,
        /// What it does.
        why: &'static str,
    },
    /// The second belt would close before the first.
    #[error("valid_lft {} is below ttl {} + 1 s: a served address could expire", show_duration(*.valid_lft), show_duration(*.ttl))]
    LifetimeBelowTtl {
        /// Kernel lifetime of the address.
        valid_lft: Duration,
        /// The right's TTL.
        ttl: Duration,
    },
    /// One lost heartbeat would close the gate.
    #[error("heartbeat {} is more than a third of ttl {}: single losses would close the gate", show_duration(*.heartbeat), show_duration(*.ttl))]
    HeartbeatAboveTtl {
        /// Heartbeat interval.
        heartbeat: Duration,
        /// The right's TTL.
        ttl: Duration,
    },
}

impl Remedy for Problem {
    fn code(&self) -> &'static str {
        match self {
            Self::Shape { .. } => "config.shape",
            Self::NodeCount { .. } => "config.node.count",
            Self::Duplicate { .. } => "config.duplicate",
            Self::Name { .. } => "config.name",
            Self::Value { .. } => "config.value",
            Self::NodeAddress { .. } => "config.node.address",
            Self::SamePath { .. } | Self::OneSidedPath { .. } => "config.node.heartbeat",
            Self::FenceParameter { .. } => "config.node.fence",
            Self::Unusable { .. } => "config.address.unusable",
            Self::DurationRange { .. } | Self::NumberRange { .. } => "config.range",
            Self::WholeSeconds { .. } => "config.whole_seconds",
            Self::GraceBelowLease { .. } => "config.grace",
            Self::CoordinatorChoice { .. } => "config.coordinator.choice",
            Self::FileElsewhere { .. } => "config.coordinator.file_elsewhere",
            Self::Endpoint { .. } | Self::FewEndpoints { .. } => "config.coordinator.endpoints",
            Self::TlsPart { .. } => "config.coordinator.tls",
            Self::Path { .. } => "config.path",
            Self::Empty { .. } => "config.empty",
            Self::ClientName { .. } => "config.clients.host_name",
            Self::HostBits { .. } => "config.clients.host_bits",
            Self::UnknownNode { .. } => "config.preferred",
            Self::NodeAsAgent { .. } => "config.agents.required",
            Self::GatewayOutside { .. } => "config.gateway",
            Self::Nested { .. } => "config.export.nested",
            Self::Choice { .. } => "config.choice",
            Self::MountOption { .. } => "config.mount_option",
            Self::LifetimeBelowTtl { .. } => "config.right.valid_lft",
            Self::HeartbeatAboveTtl { .. } => "config.right.heartbeat",
        }
    }

    fn remedy(&self) -> String {
        match self {
            Self::Shape { .. } => "correct the line; nasd.toml(5) lists every key".into(),
            Self::NodeCount { .. } => "name both NAS nodes, each once".into(),
            Self::Duplicate { what, .. } => format!("give each its own {what}"),
            Self::Name { allowed, .. } => format!("use {allowed}"),
            Self::Value { example, .. } => format!("write it as {example}"),
            Self::FenceParameter { .. } => {
                "write what the agent's manual page lists under STDIN PARAMETERS".into()
            }
            Self::NodeAddress { .. } => "write it as \"10.77.0.11:7410\"".into(),
            Self::SamePath { .. } => {
                "give the node's address on another network, as that of DRBD's own link, or leave it out".into()
            }
            Self::OneSidedPath { without, .. } => {
                format!("add heartbeat to {without}, or remove it from the other node")
            }
            Self::Unusable { .. } => "use a unicast address of the clients' network".into(),
            Self::DurationRange { min, max, .. } => {
                format!("choose a value from {} to {}", show_duration(*min), show_duration(*max))
            }
            Self::WholeSeconds { .. } => "round it up to whole seconds".into(),
            Self::NumberRange { min, max, .. } => format!("choose a value from {min} to {max}"),
            Self::GraceBelowLease { lease, .. } => {
                format!("set grace to {} or more (90s suits most)", show_duration(*lease))
            }
            Self::CoordinatorChoice { .. } => {
                "write either { etcd = { … } } or { file = { … } }".into()
            }
            Self::FileElsewhere { .. } => {
                "use etcd, or give both nodes an address of this machine (demonstrations only)"
                    .into()
            }
            Self::Endpoint { .. } => {
                "write it as \"https://10.77.0.11:2379\", not on a service's address".into()
            }
            Self::FewEndpoints { .. } => {
                "run etcd on both NAS nodes and on one more machine, and name all three".into()
            }
            Self::TlsPart { missing } => {
                format!("add {missing} = \"/path\", or use http:// in a lab")
            }
            Self::Path { .. } => "write the whole path from /".into(),
            Self::Empty { what } => format!("name at least one entry of {what}"),
            Self::ClientName { .. } => {
                "write the hypervisors' addresses or network, as 10.77.0.0/24".into()
            }
            Self::HostBits { given, network } => {
                format!(
                    "write {network}/{} for the network, or {} for the one client",
                    given.prefix(),
                    given.address()
                )
            }
            Self::UnknownNode { .. } => "use the name of a [[node]] table".into(),
            Self::NodeAsAgent { .. } => "name hypervisors only".into(),
            Self::GatewayOutside { .. } => "correct the gateway or the prefix lengths".into(),
            Self::Nested { .. } => "export them side by side, as /vms and /iso".into(),
            Self::Choice { allowed, .. } => format!("use {allowed}"),
            Self::MountOption { .. } => "remove the option".into(),
            Self::LifetimeBelowTtl { ttl, .. } => {
                format!("set valid_lft to {}s or more", ttl.as_secs_f64().ceil() as u64 + 1)
            }
            Self::HeartbeatAboveTtl { ttl, .. } => {
                format!("set heartbeat to {}ms or less", ttl.as_millis() / 3)
            }
        }
    }
}
