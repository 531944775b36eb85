//! The small typed values of the configuration: durations, CIDR addresses, MAC addresses, file
//! system ids and names.
//!
//! Pure. Everything stable across the two nodes (S6) is derived here from names alone, never from
//! the machine: two nodes with the same file compute the same scope, MAC and fsid.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Longest cluster or service name. Scope = `cluster.service` must fit a node name (64, `uts(7)`).
pub const NAME_MAX: usize = 31;

/// Longest interface name: `IFNAMSIZ` (16) less the terminating zero, `linux/if.h`.
pub const INTERFACE_MAX: usize = 15;

macro_rules! serialize_as_text {
    ($($t:ty),*) => {$(
        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
    )*};
}
serialize_as_text!(Cidr, Mac, Fsid, ClientMatch);

/// Why a text is no [`Cidr`], [`Mac`], [`Fsid`] or duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ValueError {
    /// Not an IPv4 or IPv6 address.
    #[error("not an IP address")]
    Address,
    /// The prefix length is missing.
    #[error("the prefix length is missing")]
    NoPrefix,
    /// The prefix length is not a number of the family's range.
    #[error("the prefix length is out of range")]
    Prefix,
    /// No number, or no unit out of `ms`, `s`, `m`, `h`.
    #[error("not a number followed by ms, s, m or h")]
    Duration,
    /// Not six hexadecimal octets.
    #[error("not six hexadecimal octets separated by ':'")]
    Mac,
    /// The group bit is set: no interface can have this address.
    #[error("a group address")]
    GroupMac,
    /// Not a UUID in the usual 8-4-4-4-12 form.
    #[error("not a UUID in 8-4-4-4-12 form")]
    Uuid,
    /// The nil UUID: fsid 0 marks the NFSv4 pseudo root (`exports(5)`).
    #[error("the nil UUID, which marks the NFSv4 pseudo root")]
    NilUuid,
}

/// An address with its prefix length, as `10.77.0.101/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// `None` when the prefix exceeds the family's length.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let max = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= max).then_some(Self { address, prefix })
    }

    /// The address as written, host part included.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The prefix length in bits.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// True for a host address that uses the whole length.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.prefix == if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// The network: host bits zeroed.
    #[must_use]
    pub fn network(&self) -> IpAddr {
        mask(self.address, self.prefix)
    }

    /// The IPv4 broadcast address of the network; `None` for IPv6, /31 and /32.
    #[must_use]
    pub fn broadcast(&self) -> Option<Ipv4Addr> {
        match self.network() {
            IpAddr::V4(net) if self.prefix < 31 => {
                Some(Ipv4Addr::from_bits(net.to_bits() | (u32::MAX >> self.prefix)))
            }
            _ => None,
        }
    }

    /// Whether `other` lies in the network.
    #[must_use]
    pub fn contains(&self, other: IpAddr) -> bool {
        other.is_ipv4() == self.address.is_ipv4() && mask(other, self.prefix) == self.network()
    }
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(a) => {
            let bits = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(a.to_bits() & bits).into()
        }
        IpAddr::V6(a) => {
            let bits = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            Ipv6Addr::from_bits(a.to_bits() & bits).into()
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let Some((address, prefix)) = text.split_once('/') else {
            let known = text.parse::<IpAddr>();
            return Err(known.map_or(ValueError::Address, |_| ValueError::NoPrefix));
        };
        let address = address.parse().map_err(|_| ValueError::Address)?;
        let prefix = decimal(prefix).and_then(|p| u8::try_from(p).ok());
        prefix.and_then(|p| Self::new(address, p)).ok_or(ValueError::Prefix)
    }
}

/// Digits only: `u64::from_str` would take a sign.
fn decimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Whom an export admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientMatch {
    /// `*`: everybody who reaches the address.
    Anybody,
    /// One network or one address.
    Network(Cidr),
}

impl ClientMatch {
    /// Whether a client with this address is admitted.
    #[must_use]
    pub fn admits(&self, client: IpAddr) -> bool {
        match self {
            Self::Anybody => true,
            Self::Network(net) => net.contains(client),
        }
    }
}

impl fmt::Display for ClientMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anybody => f.write_str("*"),
            Self::Network(net) if net.is_single() => write!(f, "{}", net.address()),
            Self::Network(net) => write!(f, "{net}"),
        }
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address both nodes give to a service's interface when the file names none: locally
    /// administered, unicast (IEEE 802: bit 1 set, bit 0 clear of the first octet).
    #[must_use]
    pub fn derived(scope: &str) -> Self {
        let h = tagged_hash("mac", &[scope]);
        Self([(h[0] & 0xfc) | 0x02, h[1], h[2], h[3], h[4], h[5]])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2).ok_or(ValueError::Mac)?;
            *octet = hex(part).ok_or(ValueError::Mac)?;
        }
        match parts.next() {
            Some(_) => Err(ValueError::Mac),
            None if octets == [0; 6] => Err(ValueError::Mac),
            None if octets[0] & 1 == 1 => Err(ValueError::GroupMac),
            None => Ok(Self(octets)),
        }
    }
}

fn hex(pair: &str) -> Option<u8> {
    pair.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u8::from_str_radix(pair, 16).ok()).flatten()
}

/// An export's file system id: what a filehandle names, so equal on both nodes (S6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fsid(pub [u8; 16]);

impl Fsid {
    /// The id of an export for which the file names none: a version 8 UUID (RFC 9562 section 5.8)
    /// over cluster, service and export path.
    #[must_use]
    pub fn derived(cluster: &str, service: &str, export: &str) -> Self {
        let h = tagged_hash("fsid", &[cluster, service, export]);
        let mut id = [0; 16];
        id.copy_from_slice(&h[..16]);
        id[6] = (id[6] & 0x0f) | 0x80;
        id[8] = (id[8] & 0x3f) | 0x80;
        Self(id)
    }
}

impl fmt::Display for Fsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Fsid {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let lengths: Vec<usize> = text.split('-').map(str::len).collect();
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        if lengths != [8, 4, 4, 4, 12] || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ValueError::Uuid);
        }
        let bits = u128::from_str_radix(&digits, 16).map_err(|_| ValueError::Uuid)?;
        if bits == 0 { Err(ValueError::NilUuid) } else { Ok(Self(bits.to_be_bytes())) }
    }
}

/// SHA-256 over length-prefixed parts, so that no two lists of parts give the same input.
fn tagged_hash(tag: &str, parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in std::iter::once(&tag).chain(parts) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

/// Parses `1500ms`, `15s`, `2m`, `1h`.
///
/// # Errors
/// When there is no number, no unit, or the value does not fit 64 bits of milliseconds.
pub fn duration(text: &str) -> Result<Duration, ValueError> {
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or(ValueError::Duration)?;
    let (number, unit) = text.split_at(split);
    let number = decimal(number).ok_or(ValueError::Duration)?;
    let millis = match unit.trim_start() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(ValueError::Duration),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or(ValueError::Duration)
}

/// A duration in the unit a reader expects: `15s`, `1500ms`.
#[must_use]
pub fn show_duration(d: Duration) -> String {
    if d.subsec_millis() == 0 {
        format!("{}s", d.as_secs())
    } else {
        format!("{}ms", d.as_millis())
    }
}

/// Names of clusters and services: `a-z`, `0-9`, `-`, a letter first, at most [`NAME_MAX`]. They
/// become parts of paths, namespaces, coordinator keys and the scope.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    first
        && text.len() <= NAME_MAX
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// DRBD resource names and host names: letters, digits, `-`, `_`, `.`; no dot or dash first.
#[must_use]
pub fn is_word(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first
        && text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Interface names the kernel accepts (`dev_valid_name`): no `/`, no white space, not `.` or `..`.
#[must_use]
pub fn is_interface(text: &str) -> bool {
    let letters = text.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
    (1..=INTERFACE_MAX).contains(&text.len()) && letters && text != "." && text != ".."
}

/// Export paths: absolute, not `/`, normal components of letters, digits, `-`, `_`, `.` only, so
/// that they need no quoting in any kernel interface.
#[must_use]
pub fn is_export(text: &str) -> bool {
    let Some(rest) = text.strip_prefix('/') else { return false };
    text.len() <= 255 && rest.split('/').all(is_word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "15", "s", "-1s", "+1s", "1.5s", "15sec", "99999999999999999999s"] {
            assert_eq!(duration(bad), Err(ValueError::Duration), "{bad}");
        }
    }

    #[test]
    fn cidr_knows_its_network() {
        let c: Cidr = "10.77.0.101/24".parse().unwrap();
        assert_eq!(c.network(), "10.77.0.0".parse::<IpAddr>().unwrap());
        assert_eq!(c.broadcast(), Some(Ipv4Addr::new(10, 77, 0, 255)));
        assert!(c.contains("10.77.0.9".parse().unwrap()));
        assert!(!c.contains("10.78.0.9".parse().unwrap()));
        assert!(!c.contains("::1".parse().unwrap()));
        assert_eq!("10.0.0.1".parse::<Cidr>(), Err(ValueError::NoPrefix));
        assert_eq!("10.0.0.1/33".parse::<Cidr>(), Err(ValueError::Prefix));
        assert_eq!("0.0.0.0/0".parse::<Cidr>().unwrap().network(), IpAddr::from([0, 0, 0, 0]));
    }

    #[test]
    fn s6_derived_ids_are_fixed_for_ever() {
        // A change of these values would make every client's filehandles stale after an upgrade.
        let id = Fsid::derived("lab", "vms", "/vms").to_string();
        assert_eq!(id.as_bytes()[14], b'8', "version 8: {id}");
        assert_eq!(id, "74fae34e-1572-8f05-8a04-82dc1e1d5f09");
        assert_eq!(Mac::derived("lab.vms").to_string(), "2a:41:ae:0e:4d:dd");
        assert_ne!(Fsid::derived("a", "bc", "/x"), Fsid::derived("ab", "c", "/x"));
    }

    #[test]
    fn macs_and_uuids_are_strict() {
        assert_eq!("01:00:00:00:00:01".parse::<Mac>(), Err(ValueError::GroupMac));
        assert_eq!("02:00:00:00:00".parse::<Mac>(), Err(ValueError::Mac));
        assert_eq!(
            "00000000-0000-0000-0000-000000000000".parse::<Fsid>(),
            Err(ValueError::NilUuid)
        );
        assert_eq!("+0000000-0000-0000-0000-000000000001".parse::<Fsid>(), Err(ValueError::Uuid));
    }

    proptest! {
        #[test]
        fn fsid_round_trips(bytes in any::<[u8; 16]>()) {
            prop_assume!(bytes != [0; 16]);
            prop_assert_eq!(Fsid(bytes).to_string().parse::<Fsid>(), Ok(Fsid(bytes)));
        }

        #[test]
        fn cidr_round_trips_and_contains_itself(a in any::<IpAddr>(), p in 0u8..=128) {
            if let Some(c) = Cidr::new(a, p) {
                prop_assert!(c.contains(a) && c.contains(c.network()));
                prop_assert_eq!(c.to_string().parse::<Cidr>(), Ok(c));
            }
        }

        #[test]
        fn parsers_never_panic(text in ".{0,40}") {
            let _ = (duration(&text), text.parse::<Cidr>(), text.parse::<Mac>(), text.parse::<Fsid>());
        }
    }
}
