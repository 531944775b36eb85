//! The service's place in the network: namespace, macvlan, addresses, frames.
//!
//! Keeps H8 (an address never drags its neighbours away: `promote_secondaries`) and the order of
//! standing up: the interface is made down, gated, and only then set up.

use std::net::IpAddr;
use std::time::Duration;

use nasd_net::addr::{self, IfAddr, Lifetime};
use nasd_net::frames::Announcer;
use nasd_net::gate::Gate;
use nasd_net::link::{self, MacAddr, MacvlanSpec};
use nasd_net::sockets::{self, Connection};
use nasd_net::tickle::{Payload, Tickler};
use nasd_net::{NetError, Netns, NetnsWorker, route};
use nasd_nfsd::exports::{Cidr as ExportCidr, FsUuid};

use crate::config::{ClientMatch, Fsid, ServiceConfig};

/// The port of every NFSv4 server (RFC 8881 section 2.9.3).
pub const NFS_PORT: u16 = 2049;
/// The service's interface in its namespace.
pub const INTERFACE: &str = "nfs0";
/// Time for one netlink call: about a hundred times what an idle kernel needs.
const CALL: Duration = Duration::from_millis(800);

/// One service's network.
pub struct Network {
    worker: NetnsWorker,
    announcer: Announcer,
    tickler: Tickler,
    addresses: Vec<IfAddr>,
}

impl Network {
    /// Makes or adopts namespace, interface and gate. Nothing is open afterwards that was not before.
    ///
    /// # Errors
    /// The step that failed, with its remedy.
    pub fn stand_up(service: &ServiceConfig) -> Result<(Self, Gate), NetError> {
        let limit = Duration::from_secs(5);
        let netns = Netns::create(&service.netns_name())?;
        let worker = NetnsWorker::start(&netns)?;
        let host = NetnsWorker::start(&Netns::current()?)?;
        let spec = MacvlanSpec {
            name: INTERFACE.into(),
            parent: service.interface.clone(),
            mac: MacAddr(service.mac().0),
        };
        link::ensure_macvlan(&host, &worker, &spec, limit)?;
        link::prepare(&worker, INTERFACE, limit)?;
        let pin = std::path::Path::new("/sys/fs/bpf/nasd").join(&service.name);
        let gate = Gate::install_or_adopt(&worker, INTERFACE, &pin, limit)?;
        link::set_up(&worker, "lo", limit)?;
        link::set_up(&worker, INTERFACE, limit)?;
        let addresses = service
            .addresses
            .iter()
            .map(|a| IfAddr { ip: a.address(), prefix: a.prefix() })
            .collect();
        let announcer = Announcer::open(&netns, INTERFACE)?;
        let tickler = Tickler::open(&netns)?;
        Ok((Self { worker, announcer, tickler, addresses }, gate))
    }

    /// Adds the addresses or renews their lifetime (the second belt of S4).
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn add_addresses(&self, lifetime: Duration) -> Result<(), NetError> {
        let seconds = u32::try_from(lifetime.as_secs().max(1)).unwrap_or(u32::MAX);
        let lifetime = Lifetime::new(seconds, seconds)?;
        for address in &self.addresses {
            addr::add(&self.worker, INTERFACE, *address, lifetime, CALL)?;
        }
        Ok(())
    }

    /// Default routes, for clients beyond the service's own network.
    ///
    /// # Errors
    /// When the kernel refuses one.
    pub fn add_routes(&self, service: &ServiceConfig) -> Result<(), NetError> {
        if let Some(gateway) = service.gateway {
            let gateway = route::Route::Default(IpAddr::V4(gateway));
            route::ensure(&self.worker, INTERFACE, gateway, CALL)?;
        }
        if let Some(gateway) = service.gateway6 {
            let gateway = route::Route::Default(IpAddr::V6(gateway));
            route::ensure(&self.worker, INTERFACE, gateway, CALL)?;
        }
        Ok(())
    }

    /// Deletes the addresses. Deleting them makes nfsd drop its connections without a packet, the
    /// gate being shut.
    ///
    /// # Errors
    /// The first that could not be deleted; the others were tried.
    pub fn delete_addresses(&self) -> Result<(), NetError> {
        let mut result = Ok(());
        for address in &self.addresses {
            if let Err(error) = addr::delete(&self.worker, INTERFACE, *address, CALL) {
                result = Err(error);
            }
        }
        result
    }

    /// Whether any of the addresses is there.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn addressed(&self) -> Result<bool, NetError> {
        let listed = addr::list(&self.worker, INTERFACE, CALL)?;
        Ok(listed.iter().any(|l| self.addresses.iter().any(|a| a.ip == l.address.ip)))
    }

    /// Gratuitous ARP and unsolicited neighbour advertisements for every address.
    ///
    /// # Errors
    /// When a frame cannot be sent.
    pub fn announce(&self) -> Result<(), NetError> {
        self.addresses.iter().try_for_each(|a| self.announcer.announce(a.ip))
    }

    /// Established connections to the NFS port at the floating addresses.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn connections(&self) -> Result<Vec<Connection>, NetError> {
        let mut all = sockets::established(&self.worker, NFS_PORT, CALL)?;
        all.retain(|c| self.addresses.iter().any(|a| a.ip == c.local.ip().to_canonical()));
        Ok(all)
    }

    /// Tickles the clients' old connections; failures are logged, nobody waits.
    pub fn tickle(&self, clients: &[Connection], with_payload: bool) {
        let payload = if with_payload { Payload::OneByte } else { Payload::Empty };
        for client in clients {
            if let Err(error) = self.tickler.send(client.local, client.peer, payload) {
                tracing::warn!(%error, "a client could not be tickled; it comes back by itself, later");
            }
        }
    }

    /// Those of the clients whose address has no connection here yet.
    #[must_use]
    pub fn not_connected(&self, clients: &[Connection]) -> Vec<Connection> {
        let here = self.connections().unwrap_or_default();
        let mut missing = clients.to_vec();
        missing.retain(|c| !here.iter().any(|h| h.peer.ip() == c.peer.ip()));
        missing
    }
}

/// The identifier of an export's file system in the server's form.
#[must_use]
pub fn uuid_of(fsid: Fsid) -> FsUuid {
    FsUuid(fsid.0)
}

/// A client rule in the server's form; `*` is both whole address families.
#[must_use]
pub fn cidrs_of(client: &ClientMatch) -> Vec<ExportCidr> {
    let whole = ["0.0.0.0/0", "::/0"];
    match client {
        ClientMatch::Anybody => whole.iter().filter_map(|t| t.parse().ok()).collect(),
        ClientMatch::Network(net) => net.to_string().parse().into_iter().collect(),
    }
}
