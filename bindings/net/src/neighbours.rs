//! Owns the question whether neighbours on the wire still answer: ARP requests and neighbour
//! solicitations from the service's own address, and the answers to them.
//!
//! Only an answer *to us* counts: a frame that a neighbour sends by itself proves one direction
//! and no more. The questions leave through the queueing layer, so the gate applies to them (S4):
//! without a right nothing is asked, and silence then proves nothing (S12).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use crate::frames::{
    ARP_FRAME, ARP_HEAD, BROADCAST, ETH_ARP, ETH_IPV6, ICMPV6, NA_FRAME, join, refused,
};
use crate::link::{self, MacAddr};
use crate::sys::packet;
use crate::tickle::checksum;
use crate::{Netns, Result};

const PROTOCOL_ARP: u16 = u16::from_be_bytes(ETH_ARP);
const PROTOCOL_IPV6: u16 = u16::from_be_bytes(ETH_IPV6);
/// Neighbour solicitation and advertisement (RFC 4861 sections 4.3 and 4.4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// The advertisement's flag that it answers a question.
const SOLICITED: u8 = 0x40;
/// Answers taken at one draining: what a flood on the wire may cost at most.
const DRAIN: usize = 256;

/// The request "who has `target`? tell `own`" (RFC 826).
pub fn arp_query(mac: MacAddr, own: Ipv4Addr, target: Ipv4Addr) -> [u8; ARP_FRAME] {
    let parts: [&[u8]; 9] = [
        &BROADCAST,
        &mac.0,
        &ETH_ARP,
        &ARP_HEAD,
        &[0, 1],
        &mac.0,
        &own.octets(),
        &[0; 6],
        &target.octets(),
    ];
    join(&parts)
}

/// The solicitation for `target`, to its solicited-node group (RFC 4291 section 2.7.1).
pub fn solicitation(mac: MacAddr, own: Ipv6Addr, target: Ipv6Addr) -> [u8; NA_FRAME] {
    let octets = target.octets();
    let [.., x, y, z] = octets;
    let group: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z];
    // Type, code, checksum, reserved, target, option 1 of 8 bytes.
    let mut icmp: [u8; 32] =
        join(&[&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0], &octets, &[1, 1], &mac.0]);
    let pseudo: [u8; 40] = join(&[&own.octets(), &group, &[0, 0, 0, 32], &[0, 0, 0, ICMPV6]]);
    let [high, low] = checksum(&[&pseudo, &icmp]).to_be_bytes();
    icmp[2] = high;
    icmp[3] = low;
    let head = [0x60, 0, 0, 0, 0, 32, ICMPV6, 255];
    let to = [0x33, 0x33, 0xff, x, y, z];
    join(&[&to, &mac.0, &ETH_IPV6, &head, &own.octets(), &group, &icmp])
}

/// Who says in this frame, to `mac`, that it is there.
pub fn answer_in(frame: &[u8], mac: MacAddr) -> Option<IpAddr> {
    match *frame.get(12..)?.first_chunk::<2>()? {
        ETH_ARP => arp_answer(frame, mac),
        ETH_IPV6 => advertisement(frame, mac),
        _ => None,
    }
}

fn arp_answer(frame: &[u8], mac: MacAddr) -> Option<IpAddr> {
    let is_reply = frame.get(14..20)? == ARP_HEAD && frame.get(20..22)? == [0, 2];
    let to_us = frame.get(32..38)? == mac.0;
    let sender = Ipv4Addr::from(*frame.get(28..)?.first_chunk::<4>()?);
    (is_reply && to_us).then_some(sender.into())
}

fn advertisement(frame: &[u8], mac: MacAddr) -> Option<IpAddr> {
    let to_us = frame.get(..6)? == mac.0;
    let is_icmp = *frame.get(20)? == ICMPV6 && *frame.get(21)? == 255;
    let is_answer = *frame.get(54)? == ADVERTISEMENT && *frame.get(58)? & SOLICITED != 0;
    let target = Ipv6Addr::from(*frame.get(62..)?.first_chunk::<16>()?);
    (to_us && is_icmp && is_answer).then_some(target.into())
}

/// Asks neighbours on one interface and collects their answers. Its sockets belong to the
/// namespace they were opened in; neither asking nor collecting waits.
#[derive(Debug)]
pub struct Prober {
    arp: OwnedFd,
    advertisements: Option<OwnedFd>,
    index: u32,
    mac: MacAddr,
    namespace: String,
    interface: String,
}

impl Prober {
    /// Opens packet sockets in the namespace (`CAP_NET_RAW`); the one for IPv6 only if asked for.
    ///
    /// # Errors
    /// As [`crate::frames::Announcer::open`].
    pub fn open(netns: &Netns, interface: &str, ipv6: bool) -> Result<Self> {
        let (index, mac) = link::identify(netns, interface)?;
        let (namespace, interface) = (netns.name().to_owned(), interface.to_owned());
        let open = || {
            let arp = listen(index, PROTOCOL_ARP, &ONLY_ARP_REPLIES)?;
            let advertisements =
                ipv6.then(|| listen(index, PROTOCOL_IPV6, &ONLY_ADVERTISEMENTS)).transpose()?;
            Ok((arp, advertisements))
        };
        match netns.run(open)? {
            Ok((arp, advertisements)) => {
                Ok(Self { arp, advertisements, index, mac, namespace, interface })
            }
            Err(source) => Err(refused(namespace, "listen for neighbours on", interface, source)),
        }
    }

    /// Asks once. Both addresses must be of one family, and `own` on the interface.
    ///
    /// # Errors
    /// [`crate::NetError::Refused`] (`ENETDOWN`: the interface is down; `ENOBUFS`: the gate dropped it;
    /// `EAFNOSUPPORT`: two families).
    pub fn ask(&self, own: IpAddr, target: IpAddr) -> Result<()> {
        let sent = match (own, target) {
            (IpAddr::V4(own), IpAddr::V4(target)) => {
                packet::send(&self.arp, self.index, &arp_query(self.mac, own, target))
            }
            (IpAddr::V6(own), IpAddr::V6(target)) => {
                packet::send(&self.arp, self.index, &solicitation(self.mac, own, target))
            }
            _ => Err(std::io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        };
        sent.map_err(|source| {
            refused(self.namespace.clone(), "ask a neighbour on", self.interface.clone(), source)
        })
    }

    /// Who has answered since the last call. Never waits.
    #[must_use]
    pub fn answers(&self) -> Vec<IpAddr> {
        let mut all = Vec::new();
        for socket in std::iter::once(&self.arp).chain(&self.advertisements) {
            let mut buffer = [0; 256];
            for _ in 0..DRAIN {
                let Ok(length) = nix::unistd::read(socket, &mut buffer) else { break };
                all.extend(answer_in(buffer.get(..length).unwrap_or_default(), self.mac));
            }
        }
        all
    }
}

/// Bound only behind its filter, so that nothing else ever waits in it.
fn listen(index: u32, protocol: u16, program: &[libc::sock_filter]) -> std::io::Result<OwnedFd> {
    let socket = packet::open(0)?;
    packet::filter(&socket, program)?;
    packet::bind(&socket, index, protocol)?;
    Ok(socket)
}

/// Load the half word at 20 (operation); 2: whole frame; else nothing.
const ONLY_ARP_REPLIES: [libc::sock_filter; 4] =
    [load_half(20), if_equal(2, 0, 1), give(0xffff), give(0)];

/// Next header at 20 ICMPv6 and type at 54 advertisement: whole frame; else nothing. Without it
/// the socket would see every packet of NFS over IPv6.
const ONLY_ADVERTISEMENTS: [libc::sock_filter; 6] = [
    load_byte(20),
    if_equal(ICMPV6 as u32, 0, 3),
    load_byte(54),
    if_equal(ADVERTISEMENT as u32, 0, 1),
    give(0xffff),
    give(0),
];

const fn instruction(code: u32, yes: u8, no: u8, operand: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: yes, jf: no, k: operand }
}

const fn load_half(at: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, at)
}

const fn load_byte(at: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at)
}

const fn if_equal(value: u32, yes: u8, no: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, value)
}

const fn give(bytes: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: MacAddr = MacAddr([2, 1, 2, 3, 4, 5]);

    fn arp_reply_to(mac: MacAddr, from: Ipv4Addr) -> [u8; ARP_FRAME] {
        let peer = [2, 9, 9, 9, 9, 9];
        join(&[
            &mac.0,
            &peer,
            &ETH_ARP,
            &ARP_HEAD,
            &[0, 2],
            &peer,
            &from.octets(),
            &mac.0,
            &[10, 0, 0, 1],
        ])
    }

    fn advertisement_to(mac: MacAddr, from: Ipv6Addr, flags: u8) -> Vec<u8> {
        let mut frame = crate::frames::unsolicited_na(MacAddr([2, 9, 9, 9, 9, 9]), from).to_vec();
        frame[..6].copy_from_slice(&mac.0);
        frame[58] = flags;
        frame
    }

    #[test]
    fn a_question_is_as_the_rfc_draws_it() {
        let frame = arp_query(MAC, Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 2));
        let wanted = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 1, 2, 3, 4, 5, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2,
            1, 2, 3, 4, 5, 10, 0, 0, 9, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2,
        ];
        assert_eq!(frame, wanted);
    }

    #[test]
    fn only_answers_to_us_count() {
        let ip = Ipv4Addr::new(10, 0, 0, 2);
        let answer = arp_reply_to(MAC, ip);
        assert_eq!(answer_in(&answer, MAC), Some(ip.into()));
        assert_eq!(answer_in(&answer, MacAddr([2, 0, 0, 0, 0, 1])), None);
        // Somebody asks; that proves one direction only.
        assert_eq!(answer_in(&arp_query(MAC, ip, ip), MAC), None);
        let six: Ipv6Addr = "fd77::2".parse().unwrap();
        assert_eq!(answer_in(&advertisement_to(MAC, six, 0x60), MAC), Some(six.into()));
        assert_eq!(answer_in(&advertisement_to(MAC, six, 0x20), MAC), None);
        assert_eq!(answer_in(&advertisement_to(MacAddr([9; 6]), six, 0x60), MAC), None);
    }

    proptest! {
        #[test]
        fn solicitations_carry_a_right_checksum(own in any::<Ipv6Addr>(), to in any::<Ipv6Addr>()) {
            let frame = solicitation(MAC, own, to);
            let mut pseudo = frame[22..54].to_vec();
            pseudo.extend([0, 0, 0, 32, 0, 0, 0, ICMPV6]);
            prop_assert_eq!(checksum(&[&pseudo, &frame[54..]]), 0);
            prop_assert_eq!(&frame[62..78], &to.octets()[..]);
            prop_assert_eq!(&frame[3..6], &to.octets()[13..]);
            prop_assert_eq!((frame[54], frame[78]), (SOLICITATION, 1));
        }

        #[test]
        fn no_bytes_panic(frame in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = answer_in(&frame, MAC);
        }
    }
}
