//! Configuration as the kernel holds it, and the check of it that rule S1 rests on.
//!
//! `Frozen` is a proof only if the owner really freezes; whether it does depends on these options.
//! [`crate::ResourceStatus::s1_violations`] names each one that is not as it must be. An option that
//! cannot be read is a violation too (S12).

use std::fmt;
use std::time::Duration;

use crate::abi::Abi;
use crate::enums::{AfterSb, Fencing, OnIoError, OnNoData, Protocol};
use crate::status::{ConnKey, ResourceStatus};
use crate::wire::attr::Attrs;

/// Options of a resource (`res_opts`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceOptions {
    /// `on-no-data-accessible`.
    pub on_no_data: Option<OnNoData>,
    /// `auto-promote` (9): an open for writing promotes.
    pub auto_promote: Option<bool>,
    /// `quorum` (9).
    pub quorum: Option<Quorum>,
    /// `on-no-quorum` (9); the numbers are those of `on-no-data-accessible`.
    pub on_no_quorum: Option<OnNoData>,
    /// This node's id (9).
    pub node_id: Option<u32>,
}

/// `quorum` of DRBD 9: how many nodes must be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quorum {
    /// No quorum.
    Off,
    /// More than half.
    Majority,
    /// All nodes.
    All,
    /// This many nodes.
    Nodes(i32),
}

impl Quorum {
    fn from_wire(number: i32) -> Self {
        use crate::generated::v9;
        match number {
            0 => Self::Off,
            n if n.cast_unsigned() == v9::QOU_MAJORITY => Self::Majority,
            n if n.cast_unsigned() == v9::QOU_ALL => Self::All,
            n => Self::Nodes(n),
        }
    }
}

impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Majority => f.write_str("majority"),
            Self::All => f.write_str("all"),
            Self::Nodes(count) => write!(f, "{count}"),
        }
    }
}

/// Options of a volume's disk (`disk_conf`); known only while the disk is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskOptions {
    /// The backing device.
    pub backing_dev: Option<String>,
    /// The device with the metadata.
    pub meta_dev: Option<String>,
    /// `on-io-error`.
    pub on_io_error: Option<OnIoError>,
    /// `fencing` (8.4; 9 has it with the connection).
    pub fencing: Option<Fencing>,
    /// `disk-timeout`; zero: none, a disk may hang for ever (H11).
    pub disk_timeout: Option<Duration>,
}

/// Options of a connection (`net_conf`).
#[derive(Clone, Default, PartialEq, Eq)]
pub struct NetOptions {
    /// `protocol`.
    pub protocol: Option<Protocol>,
    /// `fencing` (9; 8.4 has it with the disk).
    pub fencing: Option<Fencing>,
    /// `rr-conflict`.
    pub rr_conflict: Option<AfterSb>,
    /// `after-sb-0pri`.
    pub after_sb_0pri: Option<AfterSb>,
    /// `after-sb-1pri`.
    pub after_sb_1pri: Option<AfterSb>,
    /// `after-sb-2pri`.
    pub after_sb_2pri: Option<AfterSb>,
    /// `allow-two-primaries`.
    pub allow_two_primaries: Option<bool>,
    /// `always-asbp`.
    pub always_asbp: Option<bool>,
    /// `connect-int`.
    pub connect_int: Option<Duration>,
    /// `timeout`: how long a peer may take to answer a request.
    pub timeout: Option<Duration>,
    /// `ping-int`: how long the line may be quiet.
    pub ping_int: Option<Duration>,
    /// `ping-timeout`.
    pub ping_timeout: Option<Duration>,
    /// `ko-count`: this many times `timeout` and the peer is expelled.
    pub ko_count: Option<u32>,
    /// The nest as the kernel sent it, for a later connect on 8.4 (may hold the shared secret).
    pub(crate) raw: Vec<u8>,
}

impl fmt::Debug for NetOptions {
    /// Without the raw nest, which may hold the shared secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetOptions")
            .field("protocol", &self.protocol)
            .field("fencing", &self.fencing)
            .field("rr_conflict", &self.rr_conflict)
            .field("after_sb", &(self.after_sb_0pri, self.after_sb_1pri, self.after_sb_2pri))
            .field("allow_two_primaries", &self.allow_two_primaries)
            .field("timeout", &self.timeout)
            .field("ping_int", &self.ping_int)
            .field("ping_timeout", &self.ping_timeout)
            .finish_non_exhaustive()
    }
}

/// DRBD counts several times in tenths of a second.
fn tenths(number: u32) -> Duration {
    Duration::from_millis(u64::from(number) * 100)
}

fn seconds(number: u32) -> Duration {
    Duration::from_secs(u64::from(number))
}

impl ResourceOptions {
    pub(crate) fn decode(abi: Abi, nest: &Attrs<'_>) -> Self {
        let t = abi.table();
        let policy = |attr: &crate::wire::attr::Attr<'_>| attr.u32().map(OnNoData::from_wire);
        Self {
            on_no_data: nest.get(t.on_no_data).and_then(policy),
            auto_promote: nest.opt(t.auto_promote).and_then(|attr| attr.flag()),
            quorum: nest.opt(t.quorum).and_then(|attr| attr.i32()).map(Quorum::from_wire),
            on_no_quorum: nest.opt(t.on_no_quorum).and_then(policy),
            node_id: nest.opt(t.node_id).and_then(|attr| attr.u32()),
        }
    }
}

impl DiskOptions {
    pub(crate) fn decode(abi: Abi, nest: &Attrs<'_>) -> Self {
        let t = abi.table();
        let number = |kind| nest.get(kind).and_then(|attr| attr.u32());
        Self {
            backing_dev: nest.get(t.backing_dev).map(|attr| attr.text()),
            meta_dev: nest.get(t.meta_dev).map(|attr| attr.text()),
            on_io_error: number(t.on_io_error).map(OnIoError::from_wire),
            fencing: t.disk_fencing.and_then(number).map(Fencing::from_wire),
            disk_timeout: number(t.disk_timeout).map(tenths),
        }
    }
}

impl NetOptions {
    pub(crate) fn decode(abi: Abi, raw: &[u8]) -> Result<Self, crate::wire::DecodeError> {
        let t = abi.table();
        let nest = Attrs::parse(raw)?;
        let number = |kind| nest.get(kind).and_then(|attr| attr.u32());
        let policy = |kind| number(kind).map(AfterSb::from_wire);
        let flag = |kind| nest.get(kind).and_then(|attr| attr.flag());
        Ok(Self {
            protocol: number(t.wire_protocol).map(Protocol::from_wire),
            fencing: t.net_fencing.and_then(number).map(Fencing::from_wire),
            rr_conflict: policy(t.rr_conflict),
            after_sb_0pri: policy(t.after_sb_0p),
            after_sb_1pri: policy(t.after_sb_1p),
            after_sb_2pri: policy(t.after_sb_2p),
            allow_two_primaries: flag(t.two_primaries),
            always_asbp: flag(t.always_asbp),
            connect_int: number(t.connect_int).map(seconds),
            timeout: number(t.timeout).map(tenths),
            ping_int: number(t.ping_int).map(seconds),
            ping_timeout: number(t.ping_timeo).map(tenths),
            ko_count: number(t.ko_count),
            raw: raw.to_vec(),
        })
    }
}

/// Where an option belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The whole resource.
    Resource,
    /// A volume's disk.
    Volume(u16),
    /// A connection.
    Connection(ConnKey),
}

/// An option that is not as rule S1 needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S1Violation {
    /// Where.
    pub scope: Scope,
    /// The option's name in `drbd.conf`.
    pub name: &'static str,
    /// The value that it must have, as in `drbd.conf`.
    pub expected: &'static str,
    /// The value in the kernel; `None`: it could not be read, which is a violation as well.
    pub actual: Option<String>,
}

impl fmt::Display for S1Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let actual = self.actual.as_deref().unwrap_or("not readable");
        write!(f, "{} is {actual}, must be {}", self.name, self.expected)
    }
}

/// Collects violations of one scope.
struct Check<'a> {
    scope: Scope,
    found: &'a mut Vec<S1Violation>,
}

impl Check<'_> {
    fn must<T: PartialEq + fmt::Display>(
        &mut self,
        name: &'static str,
        expected: &'static str,
        value: Option<T>,
        want: T,
    ) {
        if value.as_ref() == Some(&want) {
            return;
        }
        let actual = value.map(|value| value.to_string());
        self.found.push(S1Violation { scope: self.scope.clone(), name, expected, actual });
    }

    fn must_not(&mut self, name: &'static str, value: Option<bool>) {
        let text = |on: bool| if on { "yes" } else { "no" };
        self.must(name, "no", value.map(text), "no");
    }
}

/// See [`ResourceStatus::s1_violations`].
pub(crate) fn s1_violations(status: &ResourceStatus) -> Vec<S1Violation> {
    let mut found = Vec::new();
    resource_rules(status, &mut Check { scope: Scope::Resource, found: &mut found });
    if status.abi == Abi::V84 {
        // The option belongs to the attached disk; without one every write needs the peer's anyway.
        let attached =
            |device: &&crate::status::Device| device.disk != crate::enums::DiskState::Diskless;
        for (volume, device) in status.devices.iter().filter(|(_, d)| attached(d)) {
            let mut check = Check { scope: Scope::Volume(*volume), found: &mut found };
            let fencing = device.options.as_ref().and_then(|options| options.fencing);
            check.must("fencing", "resource-and-stonith", fencing, Fencing::ResourceAndStonith);
        }
    }
    for connection in &status.connections {
        let scope = Scope::Connection(connection.key);
        let options = connection.options.clone().unwrap_or_default();
        net_rules(status.abi, &options, &mut Check { scope, found: &mut found });
    }
    found
}

fn resource_rules(status: &ResourceStatus, check: &mut Check<'_>) {
    let options = status.options.clone().unwrap_or_default();
    check.must("on-no-data-accessible", "suspend-io", options.on_no_data, OnNoData::SuspendIo);
    if status.connections.is_empty() {
        check.must("connection", "configured", None, "configured");
    }
    if status.devices.is_empty() {
        check.must("volume", "configured", None, "configured");
    }
    if status.abi == Abi::V9 {
        check.must_not("auto-promote", options.auto_promote);
        // Mixed quorum and fencing has not been tested (safety, way out 8 of `Frozen`).
        check.must("quorum", "off", options.quorum, Quorum::Off);
    }
}

fn net_rules(abi: Abi, options: &NetOptions, check: &mut Check<'_>) {
    check.must("protocol", "C", options.protocol, Protocol::C);
    if abi == Abi::V9 {
        let want = Fencing::ResourceAndStonith;
        check.must("fencing", "resource-and-stonith", options.fencing, want);
    }
    let policies = [
        ("rr-conflict", options.rr_conflict),
        ("after-sb-0pri", options.after_sb_0pri),
        ("after-sb-1pri", options.after_sb_1pri),
        ("after-sb-2pri", options.after_sb_2pri),
    ];
    for (name, value) in policies {
        check.must(name, "disconnect", value, AfterSb::Disconnect);
    }
    check.must_not("allow-two-primaries", options.allow_two_primaries);
    check.must_not("always-asbp", options.always_asbp);
}
