//! Owns the tickle: a bare TCP ACK from the floating address to a client whose connection died
//! with the old server.
//!
//! The client finds the sequence number wrong and answers with its right one (RFC 9293 section
//! 3.10.7.4); the new server's stack has no such connection and answers that with a reset, which
//! the client accepts; it reconnects at once. Without it the client waits for its next
//! retransmission, up to as long as the outage lasted.
//!
//! The client answers bare ACKs out of window only once per 500 ms and connection
//! (`tcp_invalid_ratelimit`), but always when they carry data: repeats carry one byte.
//!
//! Sent through raw IP sockets with our own header (raw(7)): the kernel finds the neighbour. The
//! address must be up and the gate open, else nothing leaves or comes back.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto,
    socket,
};

use crate::{NetError, Netns, Result};

const TCP: u8 = 6;
const TCP_HEADER: usize = 20;
const FLAG_ACK: u8 = 0x10;
/// Any value is right; not zero, so that a client that should accept it is not told to stop.
const WINDOW: u16 = 1024;
const HOP_LIMIT: u8 = 64;

/// What a tickle carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing: for the first one.
    Empty,
    /// One zero byte: for repeats, which the client would else ignore for 500 ms.
    OneByte,
}

impl Payload {
    const fn bytes(self) -> &'static [u8] {
        match self {
            Self::Empty => &[],
            Self::OneByte => &[0],
        }
    }
}

/// The internet checksum over parts, each of even length but the last (RFC 1071).
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            let high = pair.first().copied().unwrap_or(0);
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([high, low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The TCP segment, its checksum over `pseudo` filled in. Sequence and acknowledgement 0: wrong
/// for all but one connection in thousands, for which the next repeat or retransmission does it.
fn segment(source: u16, target: u16, payload: Payload, pseudo: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(TCP_HEADER + 1);
    out.extend_from_slice(&source.to_be_bytes());
    out.extend_from_slice(&target.to_be_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[5 << 4, FLAG_ACK]);
    out.extend_from_slice(&WINDOW.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(payload.bytes());
    let sum = checksum(&[pseudo, &out]);
    if let Some(field) = out.get_mut(16..18) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    out
}

/// A whole IPv4 packet from `local` (the service) to `peer` (the client).
pub fn tickle_v4(local: SocketAddrV4, peer: SocketAddrV4, payload: Payload) -> Vec<u8> {
    let length = TCP_HEADER + payload.bytes().len();
    let mut pseudo = Vec::with_capacity(12);
    pseudo.extend_from_slice(&local.ip().octets());
    pseudo.extend_from_slice(&peer.ip().octets());
    pseudo.extend_from_slice(&[0, TCP, 0, length as u8]);
    let tcp = segment(local.port(), peer.port(), payload, &pseudo);
    // Version and header length, total length, no fragments ("do not fragment").
    let mut out = vec![0x45, 0, 0, (20 + length) as u8, 0, 0, 0x40, 0, HOP_LIMIT, TCP, 0, 0];
    out.extend_from_slice(&local.ip().octets());
    out.extend_from_slice(&peer.ip().octets());
    let sum = checksum(&[&out]);
    if let Some(field) = out.get_mut(10..12) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    out.extend(tcp);
    out
}

/// A whole IPv6 packet from `local` (the service) to `peer` (the client).
pub fn tickle_v6(local: SocketAddrV6, peer: SocketAddrV6, payload: Payload) -> Vec<u8> {
    let length = TCP_HEADER + payload.bytes().len();
    let mut pseudo = Vec::with_capacity(40);
    pseudo.extend_from_slice(&local.ip().octets());
    pseudo.extend_from_slice(&peer.ip().octets());
    pseudo.extend_from_slice(&[0, 0, 0, length as u8, 0, 0, 0, TCP]);
    let tcp = segment(local.port(), peer.port(), payload, &pseudo);
    let mut out = vec![0x60, 0, 0, 0, 0, length as u8, TCP, HOP_LIMIT];
    out.extend_from_slice(&local.ip().octets());
    out.extend_from_slice(&peer.ip().octets());
    out.extend(tcp);
    out
}

/// Sends tickles out of one namespace, from any thread; sending never waits.
#[derive(Debug)]
pub struct Tickler {
    v4: OwnedFd,
    /// None where the kernel has no IPv6.
    v6: Option<OwnedFd>,
    namespace: String,
}

impl Tickler {
    /// Opens raw sockets in the namespace (`CAP_NET_RAW`). Do it ahead of the move.
    ///
    /// # Errors
    /// [`NetError::NotPermitted`], [`NetError::Refused`], [`NetError::Namespace`].
    pub fn open(netns: &Netns) -> Result<Self> {
        let namespace = netns.name().to_owned();
        let (v4, v6) = netns.run(|| (raw(AddressFamily::Inet), raw(AddressFamily::Inet6)))?;
        let fail = |source| refused(&namespace, "open a raw socket for", "tickles".into(), source);
        let v6 = match v6 {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            other => Some(other.map_err(fail)?),
        };
        Ok(Self { v4: v4.map_err(fail)?, v6, namespace })
    }

    /// Tickles the client `peer` of the service's end `local`. IPv4 addresses written as IPv6
    /// (mapped) are taken as IPv4.
    ///
    /// # Errors
    /// [`NetError::FamilyMismatch`], [`NetError::Unsupported`], [`NetError::Refused`]
    /// (`ENETUNREACH`: no route, add it again after the address; `EPERM`: a packet filter).
    pub fn send(&self, local: SocketAddr, peer: SocketAddr, payload: Payload) -> Result<()> {
        let (local, peer) = (canonical(local), canonical(peer));
        let sent = match (local, peer) {
            (SocketAddr::V4(local), SocketAddr::V4(peer)) => {
                let to = SockaddrIn::from(SocketAddrV4::new(*peer.ip(), 0));
                let packet = tickle_v4(local, peer, payload);
                sendto(self.v4.as_raw_fd(), &packet, &to, MsgFlags::MSG_DONTWAIT)
            }
            (SocketAddr::V6(local), SocketAddr::V6(peer)) => {
                let socket = self.v6.as_ref().ok_or(NetError::Unsupported {
                    feature: "IPv6",
                    remedy: "boot without ipv6.disable, or use an IPv4 floating address",
                })?;
                // A raw socket takes the port for a protocol number: it must be 0.
                let to = SocketAddrV6::new(*peer.ip(), 0, 0, peer.scope_id());
                let packet = tickle_v6(local, peer, payload);
                sendto(socket.as_raw_fd(), &packet, &SockaddrIn6::from(to), MsgFlags::MSG_DONTWAIT)
            }
            _ => return Err(NetError::FamilyMismatch { first: local.ip(), second: peer.ip() }),
        };
        sent.map(drop).map_err(|errno| {
            refused(&self.namespace, "send a tickle to", peer.to_string(), errno.into())
        })
    }
}

fn refused(namespace: &str, action: &'static str, object: String, source: io::Error) -> NetError {
    NetError::Refused { namespace: namespace.into(), action, object, source }
}

/// `IPPROTO_RAW` means: the caller writes the IP header (both families, `inet_create`,
/// `inet6_create`), and nothing is received.
fn raw(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(family, SockType::Raw, flags, SockProtocol::Raw).map_err(io::Error::from)
}

/// Writes a mapped IPv4 address as IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) if v6.ip().to_ipv4_mapped().is_some() => {
            SocketAddr::new(address.ip().to_canonical(), address.port())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn payload() -> impl Strategy<Value = Payload> {
        prop_oneof![Just(Payload::Empty), Just(Payload::OneByte)]
    }

    proptest! {
        #[test]
        fn v4_reads_back(local in any::<SocketAddrV4>(), peer in any::<SocketAddrV4>(), load in payload()) {
            let packet = tickle_v4(local, peer, load);
            let length = 20 + load.bytes().len();
            prop_assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
            prop_assert_eq!(packet.len(), 20 + length);
            prop_assert_eq!(checksum(&[&packet[..20]]), 0);
            let mut pseudo = packet[12..20].to_vec();
            pseudo.extend([0, 6, 0, length as u8]);
            prop_assert_eq!(checksum(&[&pseudo, &packet[20..]]), 0);
            prop_assert_eq!(&packet[12..16], &local.ip().octets()[..]);
            prop_assert_eq!(&packet[16..20], &peer.ip().octets()[..]);
            prop_assert_eq!(&packet[20..22], &local.port().to_be_bytes()[..]);
            prop_assert_eq!(&packet[22..24], &peer.port().to_be_bytes()[..]);
            prop_assert_eq!(packet[33], FLAG_ACK);
        }

        #[test]
        fn v6_reads_back(local in any::<SocketAddrV6>(), peer in any::<SocketAddrV6>(), load in payload()) {
            let packet = tickle_v6(local, peer, load);
            let length = 20 + load.bytes().len();
            prop_assert_eq!(packet.len(), 40 + length);
            let mut pseudo = packet[8..40].to_vec();
            pseudo.extend([0, 0, 0, length as u8, 0, 0, 0, 6]);
            prop_assert_eq!(checksum(&[&pseudo, &packet[40..]]), 0);
            prop_assert_eq!(&packet[40..42], &local.port().to_be_bytes()[..]);
            prop_assert_eq!((packet[6], packet[53]), (TCP, FLAG_ACK));
        }
    }

    #[test]
    fn the_checksum_of_rfc_1071_comes_out() {
        // The example of section 3: the sum is ddf2.
        assert_eq!(checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }

    #[test]
    fn mapped_addresses_become_ipv4() {
        let mapped: SocketAddr = "[::ffff:10.0.0.9]:2049".parse().unwrap();
        assert_eq!(canonical(mapped), "10.0.0.9:2049".parse().unwrap());
        let plain: SocketAddr = "[fd00::9]:2049".parse().unwrap();
        assert_eq!(canonical(plain), plain);
    }
}
