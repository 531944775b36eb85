//! Owns the frames that announce an address after a move: gratuitous ARP in its two forms and the
//! unsolicited neighbour advertisement. Builders are pure; [`Announcer`] sends.
//!
//! The frames leave through the queueing layer, so the gate's egress side applies to them: an
//! announcement without a right goes nowhere (rules S4, S5).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use crate::link::{self, MacAddr};
use crate::sys::packet;
use crate::tickle::checksum;
use crate::{NetError, Netns, Result};

/// Ethernet header and ARP packet (RFC 826); drivers pad to 60.
pub const ARP_FRAME: usize = 42;
/// Ethernet, IPv6, ICMPv6 advertisement with one option (RFC 4861 section 4.4).
pub const NA_FRAME: usize = 86;

pub(crate) const BROADCAST: [u8; 6] = [0xff; 6];
pub(crate) const ETH_ARP: [u8; 2] = [0x08, 0x06];
pub(crate) const ETH_IPV6: [u8; 2] = [0x86, 0xdd];
/// Ethernet, IPv4, lengths 6 and 4.
pub(crate) const ARP_HEAD: [u8; 6] = [0, 1, 8, 0, 6, 4];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The Ethernet address of [`ALL_NODES`] (RFC 2464 section 7).
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
pub(crate) const ICMPV6: u8 = 58;

/// The ARP announcement: a request in which sender and target are the address (RFC 5227
/// section 2.3).
pub fn arp_request(mac: MacAddr, ip: Ipv4Addr) -> [u8; ARP_FRAME] {
    arp(1, mac, ip, [0; 6])
}

/// The reply form (RFC 5944 section 4.6): some stacks update their cache only on replies.
pub fn arp_reply(mac: MacAddr, ip: Ipv4Addr) -> [u8; ARP_FRAME] {
    arp(2, mac, ip, mac.0)
}

fn arp(operation: u8, mac: MacAddr, ip: Ipv4Addr, target: [u8; 6]) -> [u8; ARP_FRAME] {
    let parts: [&[u8]; 9] = [
        &BROADCAST,
        &mac.0,
        &ETH_ARP,
        &ARP_HEAD,
        &[0, operation],
        &mac.0,
        &ip.octets(),
        &target,
        &ip.octets(),
    ];
    join(&parts)
}

/// The unsolicited neighbour advertisement to all nodes, with the override flag (RFC 4861
/// sections 4.4 and 7.2.6).
pub fn unsolicited_na(mac: MacAddr, ip: Ipv6Addr) -> [u8; NA_FRAME] {
    // Type, code, checksum, flags (override), target, option 2 of 8 bytes.
    let mut icmp: [u8; 32] = join(&[&[136, 0, 0, 0, 0x20, 0, 0, 0], &ip.octets(), &[2, 1], &mac.0]);
    let pseudo: [u8; 40] =
        join(&[&ip.octets(), &ALL_NODES.octets(), &[0, 0, 0, 32], &[0, 0, 0, ICMPV6]]);
    let [high, low] = checksum(&[&pseudo, &icmp]).to_be_bytes();
    icmp[2] = high;
    icmp[3] = low;
    // Version 6, payload length, next header, hop limit 255 (receivers insist).
    let head = [0x60, 0, 0, 0, 0, 32, ICMPV6, 255];
    join(&[&ALL_NODES_MAC, &mac.0, &ETH_IPV6, &head, &ip.octets(), &ALL_NODES.octets(), &icmp])
}

/// Puts parts one behind the other; what does not fit is cut.
pub(crate) fn join<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut out = [0; N];
    for (to, from) in out.iter_mut().zip(parts.iter().flat_map(|part| part.iter())) {
        *to = *from;
    }
    out
}

/// Announces addresses on one interface. Its socket belongs to the namespace it was opened in:
/// it can be used from any thread, and sending never waits.
#[derive(Debug)]
pub struct Announcer {
    socket: OwnedFd,
    index: u32,
    mac: MacAddr,
    namespace: String,
    interface: String,
}

impl Announcer {
    /// Opens a packet socket in the namespace (`CAP_NET_RAW`). Do it ahead of the move.
    ///
    /// # Errors
    /// [`NetError::InterfaceMissing`], [`NetError::NotPermitted`], [`NetError::Refused`].
    pub fn open(netns: &Netns, interface: &str) -> Result<Self> {
        let (index, mac) = link::identify(netns, interface)?;
        let (namespace, interface) = (netns.name().to_owned(), interface.to_owned());
        match netns.run(|| packet::open(0))? {
            Ok(socket) => Ok(Self { socket, index, mac, namespace, interface }),
            Err(source) => Err(refused(namespace, "open a packet socket for", interface, source)),
        }
    }

    /// The interface's Ethernet address, which is announced.
    pub const fn mac(&self) -> MacAddr {
        self.mac
    }

    /// Sends both ARP forms, or the advertisement. Repeat it: frames get lost while switches
    /// learn.
    ///
    /// # Errors
    /// [`NetError::Refused`] (`ENETDOWN`: the interface is down; `ENOBUFS`: the gate dropped it).
    pub fn announce(&self, ip: IpAddr) -> Result<()> {
        match ip {
            IpAddr::V4(ip) => {
                self.send(&arp_request(self.mac, ip))?;
                self.send(&arp_reply(self.mac, ip))
            }
            IpAddr::V6(ip) => self.send(&unsolicited_na(self.mac, ip)),
        }
    }

    /// Sends one complete Ethernet frame.
    ///
    /// # Errors
    /// As [`Announcer::announce`].
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        packet::send(&self.socket, self.index, frame).map_err(|source| {
            refused(self.namespace.clone(), "send a frame on", self.interface.clone(), source)
        })
    }
}

pub(crate) fn refused(
    namespace: String,
    action: &'static str,
    object: String,
    source: io::Error,
) -> NetError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            NetError::NotPermitted { namespace, action, needs: "CAP_NET_RAW" }
        }
        _ => NetError::Refused { namespace, action, object, source },
    }
}

/// A receiver of whole frames, for tests and probes of other modules of this crate's users.
#[derive(Debug)]
pub struct Capture {
    socket: OwnedFd,
}

impl Capture {
    /// Captures every frame, in and out, of one interface from now on.
    ///
    /// # Errors
    /// As [`Announcer::open`].
    pub fn open(netns: &Netns, interface: &str) -> Result<Self> {
        const ETH_P_ALL: u16 = 3;
        let (index, _) = link::identify(netns, interface)?;
        let open = || {
            let socket = packet::open(ETH_P_ALL)?;
            packet::bind(&socket, index, ETH_P_ALL)?;
            Ok(socket)
        };
        match netns.run(open)? {
            Ok(socket) => Ok(Self { socket }),
            Err(source) => {
                Err(refused(netns.name().into(), "capture on", interface.into(), source))
            }
        }
    }

    /// All frames that have arrived so far; never waits.
    pub fn drain(&self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 65_536];
        while let Ok(length) = nix::unistd::read(&self.socket, &mut buffer) {
            frames.push(buffer.get(..length).unwrap_or_default().to_vec());
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn arp_frames_are_as_the_rfc_draws_them() {
        let mac = MacAddr([2, 1, 2, 3, 4, 5]);
        let frame = arp_request(mac, Ipv4Addr::new(10, 0, 0, 9));
        let wanted = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 1, 2, 3, 4, 5, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2,
            1, 2, 3, 4, 5, 10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 10, 0, 0, 9,
        ];
        assert_eq!(frame, wanted);
        let reply = arp_reply(mac, Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!((reply[21], &reply[32..38]), (2, &mac.0[..]));
    }

    proptest! {
        #[test]
        fn advertisements_carry_a_right_checksum(mac in any::<[u8; 6]>(), ip in any::<Ipv6Addr>()) {
            let frame = unsolicited_na(MacAddr(mac), ip);
            let mut pseudo = frame[22..54].to_vec();
            pseudo.extend([0, 0, 0, 32, 0, 0, 0, 58]);
            // Summed with the checksum in place the result is zero (RFC 1071).
            prop_assert_eq!(checksum(&[&pseudo, &frame[54..]]), 0);
            prop_assert_eq!(&frame[62..78], &ip.octets()[..]);
            prop_assert_eq!(&frame[80..86], &mac[..]);
            prop_assert_eq!((frame[21], frame[54], frame[58]), (255, 136, 0x20));
        }

        #[test]
        fn arp_names_the_address_twice(mac in any::<[u8; 6]>(), ip in any::<Ipv4Addr>()) {
            for frame in [arp_request(MacAddr(mac), ip), arp_reply(MacAddr(mac), ip)] {
                prop_assert_eq!(&frame[6..12], &mac[..]);
                prop_assert_eq!(&frame[22..28], &mac[..]);
                prop_assert_eq!(&frame[28..32], &ip.octets()[..]);
                prop_assert_eq!(&frame[38..42], &ip.octets()[..]);
            }
        }
    }
}
