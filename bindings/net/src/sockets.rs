//! Owns the listing of TCP connections to a local port, by `sock_diag` (sock_diag(7)): who must be
//! tickled after a move, and whose replies still arrive.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::netlink::{self, Failure, Netlink, Place, find, read_u16};
use crate::tickle::canonical;
use crate::{NetError, NetnsWorker, Result};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const TCP: u8 = 6;
const ESTABLISHED: u32 = 1 << 1;
/// Destroying takes a connection in any state but `TCP_LISTEN` (10).
const CONNECTED: u32 = 0xfff & !(1 << 10);
/// Offset of `struct inet_diag_sockid` in `struct inet_diag_msg`.
const ID: usize = 4;
/// Length of `struct inet_diag_msg`; attributes follow.
const HEAD: usize = 72;
/// The attribute with `struct tcp_info`, and the bit that asks for it.
const INET_DIAG_INFO: u16 = 2;
const WITH_INFO: u8 = 1 << (INET_DIAG_INFO - 1);
/// Offset of `tcpi_bytes_acked` in `struct tcp_info` (Linux 4.1 and later).
const BYTES_ACKED: usize = 120;

/// One TCP connection, seen from the service. Mapped IPv4 addresses are written as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Connection {
    /// The service's end.
    pub local: SocketAddr,
    /// The client's end.
    pub peer: SocketAddr,
}

/// Established connections whose local port is `port`, IPv4 and IPv6, sorted. The kernel walks
/// its table without a lock: a connection made or ended during the call may or may not be listed.
///
/// # Errors
/// [`NetError::Refused`] (`ENOENT`: the kernel has no `inet_diag`), [`NetError::Timeout`],
/// [`NetError::Malformed`].
pub fn established(worker: &NetnsWorker, port: u16, limit: Duration) -> Result<Vec<Connection>> {
    let namespace = worker.netns().name().to_owned();
    let action = "list connections of port";
    worker.call(action, limit, move |until| {
        let found = dump(port, ESTABLISHED, 0, until).map_err(|failure| {
            let object = port.to_string();
            failure.at(&Place { namespace: &namespace, action, object: &object, limit })
        })?;
        let mut all: Vec<_> = found.into_iter().map(|entry| entry.connection).collect();
        all.sort_unstable();
        all.dedup();
        Ok(all)
    })
}

/// A connection with how much of what the service sent has been acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Which.
    pub connection: Connection,
    /// Bytes that the client's kernel has acknowledged since it connected: the proof that a reply
    /// was sent *and* arrived. None where the kernel does not count.
    pub acknowledged: Option<u64>,
}

/// As [`established`], with the bytes acknowledged on each connection.
///
/// # Errors
/// As [`established`].
pub fn traffic(worker: &NetnsWorker, port: u16, limit: Duration) -> Result<Vec<Traffic>> {
    let namespace = worker.netns().name().to_owned();
    let action = "list traffic of port";
    worker.call(action, limit, move |until| {
        let found = dump(port, ESTABLISHED, WITH_INFO, until).map_err(|failure| {
            let object = port.to_string();
            failure.at(&Place { namespace: &namespace, action, object: &object, limit })
        })?;
        let of = |entry: Entry| Traffic {
            connection: entry.connection,
            acknowledged: entry.acknowledged,
        };
        Ok(found.into_iter().map(of).collect())
    })
}

/// Aborts a connection; its peer gets a reset **if it can be reached**: use it only while the
/// gate is shut (S5). Not needed after a normal cut, where the address goes first.
///
/// # Errors
/// [`NetError::Unsupported`] without `CONFIG_INET_DIAG_DESTROY`, [`NetError::NoSuchConnection`],
/// [`NetError::NotPermitted`], [`NetError::Timeout`].
pub fn destroy(worker: &NetnsWorker, connection: Connection, limit: Duration) -> Result<()> {
    let Connection { local, peer } = connection;
    let namespace = worker.netns().name().to_owned();
    let action = "destroy connection";
    worker.call(action, limit, move |until| {
        abort(connection, until).map_err(|failure| match failure.errno() {
            Some(libc::EOPNOTSUPP) => NetError::Unsupported {
                feature: "INET_DIAG_DESTROY",
                remedy: "delete the address instead, knfsd then drops its connections",
            },
            Some(libc::ENOENT) => {
                NetError::NoSuchConnection { namespace: namespace.clone(), local, peer }
            }
            _ => {
                let object = peer.to_string();
                failure.at(&Place { namespace: &namespace, action, object: &object, limit })
            }
        })
    })
}

/// A listed socket: its ends, and how the kernel names it.
struct Entry {
    connection: Connection,
    family: u8,
    id: [u8; 48],
    acknowledged: Option<u64>,
}

fn dump(
    port: u16,
    states: u32,
    extensions: u8,
    until: Instant,
) -> std::result::Result<Vec<Entry>, Failure> {
    let mut netlink = Netlink::open(NETLINK_SOCK_DIAG).map_err(Failure::Kernel)?;
    let mut all = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let body = request(family as u8, states, extensions, &any_peer(port));
        for message in netlink.request(SOCK_DIAG_BY_FAMILY, netlink::DUMP, &body, until)? {
            all.push(parse(&message.body).ok_or(Failure::Garbled("inet_diag_msg"))?);
        }
    }
    all.retain(|entry| entry.connection.local.port() == port);
    Ok(all)
}

/// Destroys by cookie. By addresses alone the kernel would fall back to the *listener* once the
/// connection is gone (`inet_lookup`), and shut the whole server.
fn abort(wanted: Connection, until: Instant) -> std::result::Result<(), Failure> {
    let wanted = Connection { local: canonical(wanted.local), peer: canonical(wanted.peer) };
    let entry = dump(wanted.local.port(), CONNECTED, 0, until)?
        .into_iter()
        .find(|entry| entry.connection == wanted)
        .ok_or_else(|| Failure::Kernel(io::Error::from_raw_os_error(libc::ENOENT)))?;
    let body = request(entry.family, CONNECTED, 0, &entry.id);
    let mut netlink = Netlink::open(NETLINK_SOCK_DIAG).map_err(Failure::Kernel)?;
    netlink.request(SOCK_DESTROY, 0, &body, until).map(drop)
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, states: u32, extensions: u8, id: &[u8; 48]) -> Vec<u8> {
    let mut out = vec![family, TCP, extensions, 0];
    out.extend_from_slice(&states.to_ne_bytes());
    out.extend_from_slice(id);
    out
}

/// `struct inet_diag_sockid` with the local port only.
fn any_peer(port: u16) -> [u8; 48] {
    let mut id = [0; 48];
    let [high, low] = port.to_be_bytes();
    (id[0], id[1]) = (high, low);
    id
}

fn parse(body: &[u8]) -> Option<Entry> {
    let family = *body.first()?;
    let id = *body.get(ID..)?.first_chunk::<48>()?;
    let end = |port_at: usize, ip_at: usize| {
        let port = u16::from_be(read_u16(&id, port_at)?);
        let ip: IpAddr = match i32::from(family) {
            libc::AF_INET => Ipv4Addr::from(*id.get(ip_at..)?.first_chunk::<4>()?).into(),
            libc::AF_INET6 => Ipv6Addr::from(*id.get(ip_at..)?.first_chunk::<16>()?).into(),
            _ => return None,
        };
        Some(canonical(SocketAddr::new(ip, port)))
    };
    let connection = Connection { local: end(0, 4)?, peer: end(2, 20)? };
    Some(Entry { connection, family, id, acknowledged: acknowledged(body) })
}

/// From the attribute behind the message, when it was asked for and is long enough.
fn acknowledged(body: &[u8]) -> Option<u64> {
    let info = find(body.get(HEAD..)?, INET_DIAG_INFO)?;
    Some(u64::from_ne_bytes(*info.get(BYTES_ACKED..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_the_kernel_lists_is_read(local in any::<SocketAddr>(), peer in any::<SocketAddr>()) {
            prop_assume!(local.is_ipv4() == peer.is_ipv4());
            let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.octets().to_vec(),
                IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            let mut body = vec![0; ID + 48 + 20];
            body[0] = family as u8;
            body[4..6].copy_from_slice(&local.port().to_be_bytes());
            body[6..8].copy_from_slice(&peer.port().to_be_bytes());
            for (at, ip) in [(8, local.ip()), (24, peer.ip())] {
                let ip = octets(ip);
                body[at..at + ip.len()].copy_from_slice(&ip);
            }
            let back = parse(&body).unwrap().connection;
            prop_assert_eq!((back.local.ip(), back.local.port()), (local.ip().to_canonical(), local.port()));
            prop_assert_eq!((back.peer.ip(), back.peer.port()), (peer.ip().to_canonical(), peer.port()));
        }

        #[test]
        fn acknowledged_bytes_are_read_where_the_kernel_tells_them(bytes in any::<u64>()) {
            let mut body = vec![0; HEAD];
            body[0] = libc::AF_INET as u8;
            prop_assert_eq!(parse(&body).unwrap().acknowledged, None);
            let mut info = [0; BYTES_ACKED + 24];
            info[BYTES_ACKED..BYTES_ACKED + 8].copy_from_slice(&bytes.to_ne_bytes());
            netlink::put(&mut body, INET_DIAG_INFO, &info);
            prop_assert_eq!(parse(&body).unwrap().acknowledged, Some(bytes));
        }

        #[test]
        fn foreign_bytes_are_survived(body in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&body);
        }
    }
}
