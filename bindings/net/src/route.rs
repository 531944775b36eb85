//! Owns the routes of a service's namespace: an on-link subnet and an on-link default gateway.
//!
//! The kernel drops an interface's IPv4 routes when its last IPv4 address goes (`fib_disable_ip`)
//! and all of them when the interface goes down: call [`ensure`] again after each
//! [`crate::addr::add`], it replaces what is there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope};

use crate::addr::IfAddr;
use crate::{NetnsWorker, Result, link};

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Hosts that answer on the wire itself: needed beside a /32 or /128 address.
    OnLink(IfAddr),
    /// Everything else, through a router on the wire (in no need of a subnet containing it).
    Default(IpAddr),
}

/// Adds or replaces the route through `interface`.
///
/// # Errors
/// [`crate::NetError::Refused`] (`ENETDOWN`: set the interface up first), [`crate::NetError::InterfaceMissing`],
/// [`crate::NetError::BadPrefix`], [`crate::NetError::Timeout`].
pub fn ensure(worker: &NetnsWorker, interface: &str, route: Route, limit: Duration) -> Result<()> {
    let index = link::get(worker, interface, limit)?.index;
    let message = message(route, index)?;
    link::simple(worker, "add a route through", interface, limit, async move |handle| {
        handle.route().add(message).replace().execute().await
    })
}

fn message(route: Route, index: u32) -> Result<RouteMessage> {
    Ok(match route {
        Route::OnLink(net) => {
            net.check()?;
            match masked(net) {
                IpAddr::V4(base) => RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(base, net.prefix)
                    .scope(RouteScope::Link)
                    .output_interface(index)
                    .build(),
                IpAddr::V6(base) => RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(base, net.prefix)
                    .output_interface(index)
                    .build(),
            }
        }
        Route::Default(IpAddr::V4(gateway)) => RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .onlink()
            .build(),
        Route::Default(IpAddr::V6(gateway)) => RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .onlink()
            .build(),
    })
}

/// The network an address is in; the kernel refuses host bits in a destination.
fn masked(net: IfAddr) -> IpAddr {
    match net.ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(net.prefix)).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(net.prefix)).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NetError;

    #[test]
    fn host_bits_are_cleared() {
        let net = |text: &str, prefix| masked(IfAddr { ip: text.parse().unwrap(), prefix });
        assert_eq!(net("10.1.2.3", 24).to_string(), "10.1.2.0");
        assert_eq!(net("10.1.2.3", 0).to_string(), "0.0.0.0");
        assert_eq!(net("10.1.2.3", 32).to_string(), "10.1.2.3");
        assert_eq!(net("fd00::1:2", 64).to_string(), "fd00::");
        assert_eq!(net("fd00::1:2", 0).to_string(), "::");
    }

    #[test]
    fn a_long_prefix_is_refused() {
        let net = IfAddr { ip: "10.1.2.3".parse().unwrap(), prefix: 33 };
        assert!(matches!(message(Route::OnLink(net), 1), Err(NetError::BadPrefix { .. })));
    }
}
