//! Owns a service's interface: a macvlan in bridge mode with a MAC of the service's own, equal on
//! both nodes, so that a client's neighbour entry stays valid across a move (facts: only the
//! switch has to learn).
//!
//! The macvlan is made **down**; install the gate before [`set_up`] (rules S4, S5).

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use rtnetlink::packet_route::link::MacVlanMode;
use rtnetlink::{LinkMacVlan, LinkUnspec};

use crate::netlink::{Failure, Netlink, Place, find, put, put_text, read_u32, text};
use crate::netns::NetnsId;
use crate::worker::{rt_errno, rt_error};
use crate::{NetError, NetnsWorker, Result};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_CARRIER: u16 = 33;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_MACVLAN_MODE: u16 = 1;
const MACVLAN_MODE_BRIDGE: u32 = 4;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const IFINFOMSG: usize = 16;
const IFF_UP: u32 = 1;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not six pairs of hexadecimal digits with colons between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an Ethernet address; write it as 02:12:34:56:78:9a")]
pub struct BadMacAddr;

impl FromStr for MacAddr {
    type Err = BadMacAddr;

    fn from_str(text: &str) -> std::result::Result<Self, BadMacAddr> {
        let mut out = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut out {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(BadMacAddr)?;
            let hex = part.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16).ok().filter(|_| hex).ok_or(BadMacAddr)?;
        }
        if parts.next().is_some() { Err(BadMacAddr) } else { Ok(Self(out)) }
    }
}

/// The MAC of a service, derived from its name: locally administered (`02:…`), the same on every
/// node and in every version of nasd. FNV-1a (64 bit) with a final mix.
pub fn service_mac(service: &str) -> MacAddr {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in b"nasd-service-mac\0".iter().chain(service.as_bytes()) {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    // FNV's high bits hardly depend on the last byte; fold them over each other.
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let [a, b, c, d, e, ..] = (hash ^ (hash >> 29)).to_be_bytes();
    MacAddr([0x02, a, b, c, d, e])
}

/// What the macvlan of a service should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacvlanSpec {
    /// Its name inside the service's namespace, at most 15 bytes.
    pub name: String,
    /// The storage interface in the host's namespace.
    pub parent: String,
    /// Its address, see [`service_mac`].
    pub mac: MacAddr,
}

/// What an interface is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Index in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, if it has one of six bytes.
    pub mac: Option<MacAddr>,
    /// Administratively up.
    pub up: bool,
    /// The wire answers; none when the kernel does not say. Always false while not up.
    pub carrier: Option<bool>,
    /// Driver kind, such as `macvlan` or `veth`; none for hardware.
    pub kind: Option<String>,
    macvlan_mode: Option<u32>,
    parent_index: Option<u32>,
    parent_netns: Option<u32>,
}

/// Whether an interface was made or found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// It was not there; made, down.
    Created,
    /// It was there and is as wanted; left in its up or down state.
    Found,
}

/// Refuses names the kernel would refuse (`dev_valid_name`), and `.`-paths below `/proc/sys`.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let bad = |byte: u8| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace();
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.bytes().any(bad) {
        return Err(NetError::BadInterfaceName { name: name.into() });
    }
    Ok(())
}

/// Describes an interface.
///
/// # Errors
/// [`NetError::InterfaceMissing`], [`NetError::BadInterfaceName`], [`NetError::Timeout`].
pub fn get(worker: &NetnsWorker, name: &str, limit: Duration) -> Result<LinkInfo> {
    check_name(name)?;
    let (wanted, namespace) = (name.to_owned(), worker.netns().name().to_owned());
    worker.call("look at interface", limit, move |until| {
        query(&wanted, until).map_err(|failure| {
            failure.at(&Place {
                namespace: &namespace,
                action: "look at interface",
                object: &wanted,
                limit,
            })
        })
    })
}

/// Whether the wire of an interface answers: evidence for H10.
///
/// # Errors
/// As [`get`].
pub fn carrier(worker: &NetnsWorker, name: &str, limit: Duration) -> Result<bool> {
    Ok(get(worker, name, limit)?.carrier.unwrap_or(false))
}

/// In the calling thread's namespace: asks for one interface by name.
pub(crate) fn query(name: &str, until: Instant) -> std::result::Result<LinkInfo, Failure> {
    let mut body = vec![0; IFINFOMSG];
    put_text(&mut body, IFLA_IFNAME, name);
    let mut netlink = Netlink::open(NETLINK_ROUTE).map_err(Failure::Kernel)?;
    let answer = netlink.request(RTM_GETLINK, 0, &body, until)?;
    answer
        .iter()
        .filter(|message| message.kind == RTM_NEWLINK)
        .find_map(|message| parse(&message.body))
        .ok_or(Failure::Garbled("no link in the answer"))
}

fn parse(body: &[u8]) -> Option<LinkInfo> {
    let index = read_u32(body, 4)?;
    let flags = read_u32(body, 8)?;
    let attributes = body.get(IFINFOMSG..)?;
    let number = |kind| find(attributes, kind).and_then(|value| read_u32(value, 0));
    let info = find(attributes, IFLA_LINKINFO).unwrap_or_default();
    let data = find(info, IFLA_INFO_DATA).unwrap_or_default();
    Some(LinkInfo {
        index,
        name: text(find(attributes, IFLA_IFNAME)?),
        mac: find(attributes, IFLA_ADDRESS)
            .and_then(|value| <[u8; 6]>::try_from(value).ok())
            .map(MacAddr),
        up: flags & IFF_UP != 0,
        carrier: find(attributes, IFLA_CARRIER).and_then(<[u8]>::first).map(|byte| *byte != 0),
        kind: find(info, IFLA_INFO_KIND).map(text),
        macvlan_mode: find(data, IFLA_MACVLAN_MODE).and_then(|value| read_u32(value, 0)),
        parent_index: number(IFLA_LINK),
        parent_netns: number(IFLA_LINK_NETNSID),
    })
}

/// Makes the macvlan in the service's namespace, or verifies the one that is there. `host` works
/// in the namespace of the parent interface.
///
/// # Errors
/// [`NetError::InterfaceMissing`] for the parent, [`NetError::ForeignInterface`] when the name is
/// taken by something else, [`NetError::Refused`] (`EBUSY`: the parent is enslaved or carries an
/// ipvlan), [`NetError::Timeout`].
pub fn ensure_macvlan(
    host: &NetnsWorker,
    service: &NetnsWorker,
    spec: &MacvlanSpec,
    limit: Duration,
) -> Result<Ensured> {
    check_name(&spec.name)?;
    let parent = get(host, &spec.parent, limit)?;
    match get(service, &spec.name, limit) {
        Ok(found) => {
            verify(host, service, spec, &parent, &found, limit)?;
            return Ok(Ensured::Found);
        }
        Err(NetError::InterfaceMissing { .. }) => {}
        Err(error) => return Err(error),
    }
    create(host, service, spec, parent.index, limit)?;
    // Someone else may have made it in between: what counts is what is there now.
    let found = get(service, &spec.name, limit)?;
    verify(host, service, spec, &parent, &found, limit)?;
    Ok(Ensured::Created)
}

fn create(
    host: &NetnsWorker,
    service: &NetnsWorker,
    spec: &MacvlanSpec,
    parent: u32,
    limit: Duration,
) -> Result<()> {
    let message = LinkMacVlan::new(&spec.name, parent, MacVlanMode::Bridge)
        .address(spec.mac.0.to_vec())
        .setns_by_fd(service.netns().raw_fd())
        .build();
    let (namespace, name) = (host.netns().name().to_owned(), spec.name.clone());
    let action = "make macvlan";
    host.route(action, limit, async move |handle| {
        match handle.link().add(message).execute().await {
            Err(error) if rt_errno(&error) == Some(libc::EEXIST) => Ok(()),
            Err(error) => {
                let place = Place { namespace: &namespace, action, object: &name, limit };
                Err(rt_error(error, &place))
            }
            Ok(()) => Ok(()),
        }
    })
}

fn verify(
    host: &NetnsWorker,
    service: &NetnsWorker,
    spec: &MacvlanSpec,
    parent: &LinkInfo,
    found: &LinkInfo,
    limit: Duration,
) -> Result<()> {
    let differs = |property, found: String, wanted: String| {
        Err(NetError::ForeignInterface {
            namespace: service.netns().name().into(),
            interface: spec.name.clone(),
            property,
            found,
            wanted,
        })
    };
    let kind = found.kind.as_deref().unwrap_or("hardware");
    if kind != "macvlan" {
        return differs("kind", kind.into(), "macvlan".into());
    }
    if found.macvlan_mode != Some(MACVLAN_MODE_BRIDGE) {
        let mode = found.macvlan_mode.map_or("unknown".into(), |mode| mode.to_string());
        return differs("mode", mode, format!("{MACVLAN_MODE_BRIDGE} (bridge)"));
    }
    if found.mac != Some(spec.mac) {
        let mac = found.mac.map_or("none".into(), |mac| mac.to_string());
        return differs("address", mac, spec.mac.to_string());
    }
    if found.parent_index != Some(parent.index)
        || found.parent_netns != netns_number(host, service, limit)?
    {
        let index = found.parent_index.map_or("none".into(), |index| format!("number {index}"));
        return differs("parent", index, format!("{} (number {})", spec.parent, parent.index));
    }
    Ok(())
}

/// The number under which the service's namespace knows the host's; none when they are the same.
fn netns_number(host: &NetnsWorker, service: &NetnsWorker, limit: Duration) -> Result<Option<u32>> {
    let same: (NetnsId, NetnsId) = (host.netns().id()?, service.netns().id()?);
    if same.0 == same.1 {
        return Ok(None);
    }
    let mut body = vec![0; 4];
    put(&mut body, NETNSA_FD, &host.netns().raw_fd().to_ne_bytes());
    let namespace = service.netns().name().to_owned();
    let action = "look up the parent's namespace";
    service.call(action, limit, move |until| {
        let ask = || {
            let mut netlink = Netlink::open(NETLINK_ROUTE).map_err(Failure::Kernel)?;
            let answer = netlink.request(RTM_GETNSID, 0, &body, until)?;
            let message = answer.iter().find(|message| message.kind == RTM_NEWNSID);
            let attributes = message.and_then(|message| message.body.get(4..)).unwrap_or_default();
            Ok(find(attributes, NETNSA_NSID).and_then(|value| read_u32(value, 0)))
        };
        ask().map_err(|failure: Failure| {
            let object = "/proc/thread-self/ns/net";
            failure.at(&Place { namespace: &namespace, action, object, limit })
        })
    })
}

/// Sets an interface up. Do this only after the gate is in place.
///
/// # Errors
/// [`NetError::InterfaceMissing`], [`NetError::NotPermitted`], [`NetError::Timeout`].
pub fn set_up(worker: &NetnsWorker, name: &str, limit: Duration) -> Result<()> {
    change(worker, name, true, limit)
}

/// Sets an interface down. The kernel drops its routes and IPv6 addresses with it.
///
/// # Errors
/// As [`set_up`].
pub fn set_down(worker: &NetnsWorker, name: &str, limit: Duration) -> Result<()> {
    change(worker, name, false, limit)
}

fn change(worker: &NetnsWorker, name: &str, up: bool, limit: Duration) -> Result<()> {
    let index = get(worker, name, limit)?.index;
    let builder = LinkUnspec::new_with_index(index);
    let message = if up { builder.up() } else { builder.down() }.build();
    simple(worker, "change interface", name, limit, async move |handle| {
        handle.link().change(message).execute().await
    })
}

/// Deletes an interface; one that is not there is no error.
///
/// # Errors
/// [`NetError::Refused`], [`NetError::Timeout`].
pub fn delete(worker: &NetnsWorker, name: &str, limit: Duration) -> Result<()> {
    let index = match get(worker, name, limit) {
        Err(NetError::InterfaceMissing { .. }) => return Ok(()),
        found => found?.index,
    };
    simple(worker, "delete interface", name, limit, async move |handle| {
        handle.link().del(index).execute().await
    })
}

/// Sets `lo` up and writes the settings of [`crate::sysctl`] for `interface`.
///
/// # Errors
/// As [`set_up`] and [`crate::sysctl::apply`].
pub fn prepare(worker: &NetnsWorker, interface: &str, limit: Duration) -> Result<()> {
    // knfsd's svc_bind talks to a local portmapper at start: with lo down that takes seconds.
    set_up(worker, "lo", limit)?;
    crate::sysctl::apply(worker, interface, limit)
}

/// One rtnetlink request with the usual errors.
pub(crate) fn simple<T, F>(
    worker: &NetnsWorker,
    action: &'static str,
    object: &str,
    limit: Duration,
    task: F,
) -> Result<T>
where
    T: Send + 'static,
    F: AsyncFnOnce(rtnetlink::Handle) -> std::result::Result<T, rtnetlink::Error> + Send + 'static,
{
    let (namespace, object) = (worker.netns().name().to_owned(), object.to_owned());
    worker.route(action, limit, async move |handle| {
        task(handle).await.map_err(|error| {
            let place = Place { namespace: &namespace, action, object: &object, limit };
            rt_error(error, &place)
        })
    })
}

/// Index and MAC of an interface, asked inside `netns`.
pub(crate) fn identify(netns: &crate::Netns, name: &str) -> Result<(u32, MacAddr)> {
    check_name(name)?;
    let limit = Duration::from_secs(2);
    let found = netns.run(|| query(name, Instant::now() + limit))?.map_err(|failure| {
        let action = "look at interface";
        failure.at(&Place { namespace: netns.name(), action, object: name, limit })
    })?;
    let mac = found.mac.ok_or_else(|| NetError::Refused {
        namespace: netns.name().into(),
        action: "read the Ethernet address of",
        object: name.into(),
        source: io::ErrorKind::AddrNotAvailable.into(),
    })?;
    Ok((found.index, mac))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn service_macs_never_change_between_versions() {
        // Both nodes must agree even while one of them is being upgraded.
        assert_eq!(service_mac("vms"), service_mac("vms"));
        assert_ne!(service_mac("vms"), service_mac("vms2"));
        assert_eq!(service_mac("vms").to_string(), "02:57:03:b3:f6:6e");
    }

    proptest! {
        #[test]
        fn service_macs_are_local_unicast(name in ".*") {
            prop_assert_eq!(service_mac(&name).0[0], 0x02);
        }

        #[test]
        fn macs_read_back(bytes in any::<[u8; 6]>()) {
            prop_assert_eq!(MacAddr(bytes).to_string().parse(), Ok(MacAddr(bytes)));
        }

        #[test]
        fn foreign_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn foreign_text_is_refused_or_exact(text in "[0-9a-f:+ ]{0,18}") {
            if let Ok(mac) = text.parse::<MacAddr>() {
                prop_assert_eq!(mac.to_string(), text);
            }
        }
    }

    #[test]
    fn names_the_kernel_refuses_are_refused() {
        for name in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name("nasd0").is_ok());
    }
}
