//! Owns floating addresses on an interface, with the lifetime after which the kernel removes them
//! by itself: the second belt of rule S4 (the first is [`crate::gate`]).
//!
//! - A refresh that comes late **re-creates** the address: the kernel treats "replace" of a missing
//!   address as "add" (`inet_rtm_newaddr`, `inet6_rtm_newaddr`). [`refresh`] looks first, but only
//!   the gate makes a late writer harmless (C3). The kernel also rounds: a lifetime of 2 s was seen
//!   to last up to 2.98 s.
//! - H8: deleting the first IPv4 address of a subnet takes the others of that subnet along unless
//!   `promote_secondaries` is set ([`crate::sysctl`]) or each address is a /32.
//! - H9: deleting an IPv6 address does not silence sockets that are connected from it; the egress
//!   side of the gate does.
//! - IPv6 addresses are added without duplicate detection, which would cost a second, and would
//!   fail on purpose-built duplicates of a MAC.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, CacheInfo,
};
use rtnetlink::{AddressMessageBuilder, Handle};
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::netlink::Place;
use crate::worker::{rt_errno, rt_error};
use crate::{NetError, NetnsWorker, Result, link};

/// An address and the length of its subnet's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IfAddr {
    /// The address.
    pub ip: IpAddr,
    /// Prefix length in bits.
    pub prefix: u8,
}

impl IfAddr {
    /// The address alone: /32 or /128.
    pub const fn host(ip: IpAddr) -> Self {
        Self { ip, prefix: if ip.is_ipv4() { 32 } else { 128 } }
    }

    pub(crate) fn check(self) -> Result<()> {
        let most = if self.ip.is_ipv4() { 32 } else { 128 };
        if self.prefix > most {
            return Err(NetError::BadPrefix { address: self.ip, prefix: self.prefix });
        }
        Ok(())
    }
}

impl fmt::Display for IfAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.prefix)
    }
}

/// How long the kernel keeps an address, in whole seconds from the moment it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    valid: u32,
    preferred: u32,
}

impl Lifetime {
    /// The kernel never removes it (`INFINITY_LIFE_TIME`).
    pub const FOREVER: Self = Self { valid: u32::MAX, preferred: u32::MAX };

    /// Removed after `valid` seconds, not chosen as a source after `preferred`.
    ///
    /// # Errors
    /// [`NetError::BadLifetime`] when `valid` is 0 or below `preferred`.
    pub fn new(valid: u32, preferred: u32) -> Result<Self> {
        if valid == 0 || preferred > valid {
            return Err(NetError::BadLifetime { valid, preferred });
        }
        Ok(Self { valid, preferred })
    }

    /// Seconds until the kernel removes the address.
    pub const fn valid(self) -> u32 {
        self.valid
    }

    /// Seconds until it stops being chosen as a source.
    pub const fn preferred(self) -> u32 {
        self.preferred
    }
}

/// An address as the kernel lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The address.
    pub address: IfAddr,
    /// What is left of its life.
    pub lifetime: Lifetime,
    /// Not the first of its subnet (IPv4).
    pub secondary: bool,
    /// Not usable yet, or found to be a duplicate (IPv6).
    pub tentative: bool,
}

/// Adds the address, or sets the lifetime of the one that is there.
///
/// # Errors
/// [`NetError::BadPrefix`], [`NetError::InterfaceMissing`], [`NetError::NotPermitted`],
/// [`NetError::Refused`], [`NetError::Timeout`].
pub fn add(
    worker: &NetnsWorker,
    interface: &str,
    address: IfAddr,
    lifetime: Lifetime,
    limit: Duration,
) -> Result<()> {
    address.check()?;
    let index = link::get(worker, interface, limit)?.index;
    let message = message(index, address, Some(lifetime));
    link::simple(worker, "add address", &address.to_string(), limit, async move |handle| {
        let mut request = handle.address().add(index, address.ip, address.prefix).replace();
        *request.message_mut() = message;
        request.execute().await
    })
}

/// Sets the lifetime of an address that must be there.
///
/// # Errors
/// [`NetError::AddressMissing`] when it has run out or was deleted; else as [`add`].
pub fn refresh(
    worker: &NetnsWorker,
    interface: &str,
    address: IfAddr,
    lifetime: Lifetime,
    limit: Duration,
) -> Result<()> {
    if !list(worker, interface, limit)?.iter().any(|listed| listed.address == address) {
        return Err(NetError::AddressMissing {
            namespace: worker.netns().name().into(),
            interface: interface.into(),
            address: address.ip,
        });
    }
    add(worker, interface, address, lifetime, limit)
}

/// Deletes the address; false when it was not there.
///
/// # Errors
/// As [`add`].
pub fn delete(
    worker: &NetnsWorker,
    interface: &str,
    address: IfAddr,
    limit: Duration,
) -> Result<bool> {
    address.check()?;
    let index = link::get(worker, interface, limit)?.index;
    let message = message(index, address, None);
    let (namespace, object) = (worker.netns().name().to_owned(), address.to_string());
    let action = "delete address";
    worker.route(action, limit, async move |handle| {
        match handle.address().del(message).execute().await {
            Ok(()) => Ok(true),
            Err(error) if rt_errno(&error) == Some(libc::EADDRNOTAVAIL) => Ok(false),
            Err(error) => {
                let place = Place { namespace: &namespace, action, object: &object, limit };
                Err(rt_error(error, &place))
            }
        }
    })
}

/// Lists the addresses of an interface, IPv4 first.
///
/// # Errors
/// As [`add`].
pub fn list(worker: &NetnsWorker, interface: &str, limit: Duration) -> Result<Vec<Listed>> {
    let index = link::get(worker, interface, limit)?.index;
    link::simple(worker, "list addresses of", interface, limit, async move |handle: Handle| {
        let mut listed: Vec<Listed> = handle
            .address()
            .get()
            .set_link_index_filter(index)
            .execute()
            .try_collect::<Vec<_>>()
            .await?
            .iter()
            .filter_map(read)
            .collect();
        listed.sort_by_key(|entry| entry.address.ip);
        Ok(listed)
    })
}

fn message(index: u32, address: IfAddr, lifetime: Option<Lifetime>) -> AddressMessage {
    let mut message = match address.ip {
        IpAddr::V4(ip) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(ip, address.prefix)
            .build(),
        IpAddr::V6(ip) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(index)
            .address(ip, address.prefix)
            .build(),
    };
    if address.ip.is_ipv6() {
        message.header.flags |= AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    if let Some(lifetime) = lifetime {
        let mut info = CacheInfo::default();
        info.ifa_valid = lifetime.valid;
        info.ifa_preferred = lifetime.preferred;
        message.attributes.push(AddressAttribute::CacheInfo(info));
    }
    message
}

fn read(message: &AddressMessage) -> Option<Listed> {
    let (mut local, mut address, mut lifetime) = (None, None, Lifetime::FOREVER);
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            AddressAttribute::CacheInfo(info) => {
                lifetime = Lifetime { valid: info.ifa_valid, preferred: info.ifa_preferred };
            }
            _ => {}
        }
    }
    Some(Listed {
        // On a point-to-point link "address" is the far end; "local" is always ours.
        address: IfAddr { ip: local.or(address)?, prefix: message.header.prefix_len },
        lifetime,
        // The same bit means "temporary" for IPv6.
        secondary: flags.contains(AddressFlags::Secondary)
            && local.or(address).is_some_and(|ip| ip.is_ipv4()),
        tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_asked_reads_back(ip in any::<IpAddr>(), bits in 0u8..=32, valid in 1u32.., index in any::<u32>()) {
            prop_assume!(!ip.is_multicast());
            let address = IfAddr { ip, prefix: bits };
            let lifetime = Lifetime::new(valid, valid / 2).unwrap();
            let listed = read(&message(index, address, Some(lifetime))).unwrap();
            prop_assert_eq!(listed.address, address);
            prop_assert_eq!(listed.lifetime, lifetime);
        }
    }

    #[test]
    fn senseless_lifetimes_are_refused() {
        assert!(Lifetime::new(0, 0).is_err());
        assert!(Lifetime::new(5, 6).is_err());
        assert!(Lifetime::new(5, 5).is_ok());
    }
}
