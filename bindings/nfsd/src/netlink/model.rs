//! What the family says and is told, pure. Attributes that are not known are ignored.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use super::wire::{Attr, DecodeError, Writer, attributes};

/// `NFSD_A_RPC_STATUS_*`.
mod rpc {
    pub(super) const XID: u16 = 1;
    pub(super) const FLAGS: u16 = 2;
    pub(super) const PROG: u16 = 3;
    pub(super) const VERSION: u16 = 4;
    pub(super) const PROC: u16 = 5;
    pub(super) const SERVICE_TIME: u16 = 6;
    pub(super) const SADDR4: u16 = 8;
    pub(super) const DADDR4: u16 = 9;
    pub(super) const SADDR6: u16 = 10;
    pub(super) const DADDR6: u16 = 11;
    pub(super) const SPORT: u16 = 12;
    pub(super) const DPORT: u16 = 13;
    pub(super) const COMPOUND_OPS: u16 = 14;
}

/// `NFSD_A_SERVER_*`.
mod server {
    pub(super) const THREADS: u16 = 1;
    pub(super) const GRACETIME: u16 = 2;
    pub(super) const LEASETIME: u16 = 3;
    pub(super) const SCOPE: u16 = 4;
}

/// `NFSD_A_SERVER_PROTO_VERSION` and the `NFSD_A_VERSION_*` inside.
mod version {
    pub(super) const NEST: u16 = 1;
    pub(super) const MAJOR: u16 = 1;
    pub(super) const MINOR: u16 = 2;
    pub(super) const ENABLED: u16 = 3;
}

/// `NFSD_A_SERVER_SOCK_ADDR` and the `NFSD_A_SOCK_*` inside.
mod sock {
    pub(super) const NEST: u16 = 1;
    pub(super) const ADDR: u16 = 1;
    pub(super) const TRANSPORT_NAME: u16 = 2;
}

/// A call that a thread is executing (`nfsd_genl_rpc_status_compose_msg`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningCall {
    /// The client's number for it.
    pub xid: u32,
    /// `rq_flags` of the kernel, for messages.
    pub flags: u32,
    /// RPC program, 100003 for NFS.
    pub program: u32,
    /// Version of the program.
    pub version: u8,
    /// Procedure; 1 is COMPOUND in version 4.
    pub procedure: u32,
    /// When it was taken up: microseconds of the monotonic clock (`rq_stime`).
    pub since_us: i64,
    /// The client.
    pub source: Option<SocketAddr>,
    /// The address it was sent to.
    pub destination: Option<SocketAddr>,
    /// Operation numbers of the COMPOUND (RFC 8881, section 16.2).
    pub operations: Vec<u32>,
}

/// Calls in execution.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Running {
    /// The calls.
    pub calls: Vec<RunningCall>,
    /// The kernel had no room to list more: there are at least as many as `calls`.
    pub more: bool,
}

/// Threads and times (`nfsd_nl_threads_get_doit`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Threads {
    /// Threads of each pool; all 0 without a server.
    pub pools: Vec<u32>,
    /// Grace in seconds.
    pub grace_s: u32,
    /// Lease in seconds.
    pub lease_s: u32,
    /// Server scope and owner; of the last start, so meaningless without threads.
    pub scope: String,
}

/// A change of threads (`nfsd_nl_threads_set_doit`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ThreadsChange {
    /// Threads wanted; 0 stops the server.
    pub count: u32,
    /// Grace in seconds, 10 to 3600; only while no thread runs.
    pub grace_s: Option<u32>,
    /// Lease in seconds, 10 to 3600; only while no thread runs.
    pub lease_s: Option<u32>,
    /// Scope; the caller's host name if absent. Only while no thread runs.
    pub scope: Option<String>,
}

/// A protocol version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// 2, 3 or 4.
    pub major: u32,
    /// Minor version, 0 below 4.
    pub minor: u32,
    /// Is it served?
    pub enabled: bool,
}

impl Version {
    /// What nasd serves; the kernel clears all others when these are set.
    pub const SERVED: [Version; 2] = [
        Version { major: 4, minor: 1, enabled: true },
        Version { major: 4, minor: 2, enabled: true },
    ];

    /// Are just 4.1 and 4.2 served?
    pub fn only_v41_and_v42(versions: &[Version]) -> bool {
        let served = |v: &&Version| v.enabled;
        let all_ours = versions.iter().filter(served).all(|v| Self::SERVED.contains(v));
        all_ours && Self::SERVED.iter().all(|v| versions.contains(v))
    }
}

/// A socket on which the server waits for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// `tcp`, `udp` or `rdma`.
    pub transport: String,
    /// Where.
    pub address: SocketAddr,
}

/// Either family's address, and the port; both in network order.
#[derive(Default)]
struct End {
    ip: Option<IpAddr>,
    port: u16,
}

impl End {
    fn v4(&mut self, attr: &Attr<'_>) -> Result<(), DecodeError> {
        self.ip = Some(IpAddr::V4(Ipv4Addr::from(attr.array::<4>()?)));
        Ok(())
    }

    fn v6(&mut self, attr: &Attr<'_>) -> Result<(), DecodeError> {
        self.ip = Some(IpAddr::V6(Ipv6Addr::from(attr.array::<16>()?)));
        Ok(())
    }

    fn port(&mut self, attr: &Attr<'_>) -> Result<(), DecodeError> {
        self.port = u16::from_be_bytes(attr.array()?);
        Ok(())
    }

    fn address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.ip?, self.port))
    }
}

impl RunningCall {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut call = RunningCall {
            xid: 0,
            flags: 0,
            program: 0,
            version: 0,
            procedure: 0,
            since_us: 0,
            source: None,
            destination: None,
            operations: Vec::new(),
        };
        let (mut from, mut to, mut seen) = (End::default(), End::default(), false);
        for attr in &attributes(bytes)? {
            match attr.kind {
                rpc::XID => {
                    (call.xid, seen) = (u32::from_be_bytes(attr.array()?), true);
                }
                rpc::FLAGS => call.flags = attr.u32()?,
                rpc::PROG => call.program = attr.u32()?,
                rpc::VERSION => [call.version] = attr.array()?,
                rpc::PROC => call.procedure = attr.u32()?,
                rpc::SERVICE_TIME => call.since_us = i64::from_ne_bytes(attr.array()?),
                rpc::SADDR4 => from.v4(attr)?,
                rpc::DADDR4 => to.v4(attr)?,
                rpc::SADDR6 => from.v6(attr)?,
                rpc::DADDR6 => to.v6(attr)?,
                rpc::SPORT => from.port(attr)?,
                rpc::DPORT => to.port(attr)?,
                rpc::COMPOUND_OPS => call.operations.push(attr.u32()?),
                _ => {}
            }
        }
        (call.source, call.destination) = (from.address(), to.address());
        if seen { Ok(call) } else { Err(DecodeError::Missing { kind: rpc::XID }) }
    }
}

impl Threads {
    /// All threads of all pools.
    pub fn count(&self) -> u32 {
        self.pools.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (mut pools, mut grace, mut lease, mut scope) = (Vec::new(), None, None, None);
        for attr in &attributes(bytes)? {
            match attr.kind {
                server::THREADS => pools.push(attr.u32()?),
                server::GRACETIME => grace = Some(attr.u32()?),
                server::LEASETIME => lease = Some(attr.u32()?),
                server::SCOPE => scope = Some(attr.text()?),
                _ => {}
            }
        }
        if pools.is_empty() {
            return Err(DecodeError::Missing { kind: server::THREADS });
        }
        let grace_s = grace.ok_or(DecodeError::Missing { kind: server::GRACETIME })?;
        let lease_s = lease.ok_or(DecodeError::Missing { kind: server::LEASETIME })?;
        let scope = scope.ok_or(DecodeError::Missing { kind: server::SCOPE })?;
        Ok(Threads { pools, grace_s, lease_s, scope })
    }
}

impl ThreadsChange {
    pub(super) fn encode(&self) -> Vec<u8> {
        let numbers = Writer::default()
            .u32(server::THREADS, self.count)
            .u32_if(server::GRACETIME, self.grace_s)
            .u32_if(server::LEASETIME, self.lease_s);
        match &self.scope {
            Some(scope) => numbers.text(server::SCOPE, scope),
            None => numbers,
        }
        .finish()
    }
}

impl Version {
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (mut major, mut minor, mut enabled) = (None, 0, false);
        for attr in &attributes(bytes)? {
            match attr.kind {
                version::MAJOR => major = Some(attr.u32()?),
                version::MINOR => minor = attr.u32()?,
                version::ENABLED => enabled = true,
                _ => {}
            }
        }
        let major = major.ok_or(DecodeError::Missing { kind: version::MAJOR })?;
        Ok(Version { major, minor, enabled })
    }

    pub(super) fn decode_all(bytes: &[u8]) -> Result<Vec<Self>, DecodeError> {
        let nests = attributes(bytes)?;
        nests.iter().filter(|a| a.kind == version::NEST).map(|a| Self::decode(a.data)).collect()
    }

    fn encode(&self) -> Writer {
        let numbers =
            Writer::default().u32(version::MAJOR, self.major).u32(version::MINOR, self.minor);
        if self.enabled { numbers.bytes(version::ENABLED, &[]) } else { numbers }
    }

    pub(super) fn encode_all(versions: &[Self]) -> Vec<u8> {
        let put = |w: Writer, v: &Version| w.nest(version::NEST, v.encode());
        versions.iter().fold(Writer::default(), put).finish()
    }
}

/// Size of `struct sockaddr_storage`: what the kernel sends, and reads without further looks.
const STORAGE: usize = 128;

/// `struct sockaddr_in` or `sockaddr_in6`.
fn decode_address(attr: &Attr<'_>) -> Result<SocketAddr, DecodeError> {
    let chunk = |at: usize| attr.data.get(at..).ok_or_else(|| attr.bad());
    let bad = || attr.bad();
    let family = u16::from_ne_bytes(*chunk(0)?.first_chunk().ok_or_else(bad)?);
    let port = u16::from_be_bytes(*chunk(2)?.first_chunk().ok_or_else(bad)?);
    match i32::from(family) {
        libc::AF_INET => {
            let ip: [u8; 4] = *chunk(4)?.first_chunk().ok_or_else(bad)?;
            Ok(SocketAddr::from((ip, port)))
        }
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(*chunk(4)?.first_chunk().ok_or_else(bad)?);
            let ip: [u8; 16] = *chunk(8)?.first_chunk().ok_or_else(bad)?;
            let scope = u32::from_ne_bytes(*chunk(24)?.first_chunk().ok_or_else(bad)?);
            Ok(SocketAddrV6::new(ip.into(), port, flow, scope).into())
        }
        _ => Err(attr.bad()),
    }
}

fn encode_address(address: &SocketAddr) -> Vec<u8> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut out = u16::try_from(family).unwrap_or(0).to_ne_bytes().to_vec();
    out.extend_from_slice(&address.port().to_be_bytes());
    match address {
        SocketAddr::V4(v4) => out.extend_from_slice(&v4.ip().octets()),
        SocketAddr::V6(v6) => {
            out.extend_from_slice(&v6.flowinfo().to_be_bytes());
            out.extend_from_slice(&v6.ip().octets());
            out.extend_from_slice(&v6.scope_id().to_ne_bytes());
        }
    }
    out.resize(STORAGE, 0);
    out
}

impl Listener {
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (mut transport, mut address) = (None, None);
        for attr in &attributes(bytes)? {
            match attr.kind {
                sock::ADDR => address = Some(decode_address(attr)?),
                sock::TRANSPORT_NAME => transport = Some(attr.text()?),
                _ => {}
            }
        }
        let transport = transport.ok_or(DecodeError::Missing { kind: sock::TRANSPORT_NAME })?;
        let address = address.ok_or(DecodeError::Missing { kind: sock::ADDR })?;
        Ok(Listener { transport, address })
    }

    pub(super) fn decode_all(bytes: &[u8]) -> Result<Vec<Self>, DecodeError> {
        let nests = attributes(bytes)?;
        nests.iter().filter(|a| a.kind == sock::NEST).map(|a| Self::decode(a.data)).collect()
    }

    fn encode(&self) -> Writer {
        Writer::default()
            .bytes(sock::ADDR, &encode_address(&self.address))
            .text(sock::TRANSPORT_NAME, &self.transport)
    }

    pub(super) fn encode_all(listeners: &[Self]) -> Vec<u8> {
        let put = |w: Writer, l: &Listener| w.nest(sock::NEST, l.encode());
        listeners.iter().fold(Writer::default(), put).finish()
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
