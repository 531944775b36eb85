//! What a lab consists of: nodes, their addresses, their sizes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::engine::Engine;
use crate::error::LabError;

/// What a lab shall be.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Name; everything that the lab makes on this machine carries it.
    pub name: String,
    /// What the nodes run on; the best that works when `None`.
    pub engine: Option<Engine>,
    /// Hypervisors: 1 to 9.
    pub clients: usize,
    /// Build the workspace's programs first. Without it, those of the last build are used.
    pub build: bool,
    /// Seed of a scenario's random choices.
    pub seed: Option<u64>,
    /// How long a scenario injects faults, minutes, where that is a choice.
    pub minutes: Option<u32>,
}

impl Spec {
    /// Two NAS nodes and two hypervisors.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            engine: None,
            clients: 2,
            build: true,
            seed: None,
            minutes: None,
        }
    }

    /// Refuses what cannot become a lab.
    ///
    /// # Errors
    /// [`LabError::BadName`], [`LabError::BadClients`].
    pub fn check(&self) -> Result<(), LabError> {
        check_name(&self.name)?;
        if !(1..=9).contains(&self.clients) {
            return Err(LabError::BadClients { clients: self.clients });
        }
        Ok(())
    }

    /// The nodes: `nas1`, `nas2`, `hv1`, …
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        let nas = (1u8..=2).map(|i| Node::new(Role::Nas, i));
        let clients = u8::try_from(self.clients).unwrap_or(u8::MAX);
        nas.chain((1..=clients).map(|i| Node::new(Role::Hypervisor, i))).collect()
    }
}

/// Refuses names that do not fit into paths and namespace names.
///
/// # Errors
/// [`LabError::BadName`].
pub fn check_name(name: &str) -> Result<(), LabError> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 24 || !name.chars().all(good) {
        return Err(LabError::BadName { name: name.to_owned() });
    }
    Ok(())
}

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Serves NFS; has DRBD disks and runs etcd.
    Nas,
    /// Mounts; the first one runs etcd, too.
    Hypervisor,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Host name, and name of its tap device.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Last byte of its addresses, unique in the lab.
    pub id: u8,
}

impl Node {
    /// The `index`-th (from 1) of its role.
    #[must_use]
    pub fn new(role: Role, index: u8) -> Self {
        let (prefix, base) = match role {
            Role::Nas => ("nas", 10),
            Role::Hypervisor => ("hv", 20),
        };
        Self { name: format!("{prefix}{index}"), role, id: base + index }
    }

    /// In the lab's network, which faults touch.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.id)
    }

    /// The same in IPv6.
    #[must_use]
    pub fn address6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(self.id))
    }

    /// In the management network, which faults never touch.
    #[must_use]
    pub const fn management(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 78, 0, self.id)
    }

    /// Its power switch, at the lab program's own address in the management network.
    #[must_use]
    pub const fn power_switch(&self) -> SocketAddr {
        let port = 7800 + self.id as u16;
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 78, 0, 1)), port)
    }

    /// Hardware address of its interface in the lab's network.
    #[must_use]
    pub fn mac(&self) -> String {
        format!("52:54:00:77:00:{:02x}", self.id)
    }

    /// Hardware address of its interface in the management network.
    #[must_use]
    pub fn management_mac(&self) -> String {
        format!("52:54:00:78:00:{:02x}", self.id)
    }

    /// Tap device of the lab's network, inside the lab's namespace.
    #[must_use]
    pub fn tap(&self) -> String {
        self.name.clone()
    }

    /// Tap device of the management network, inside the lab's namespace.
    #[must_use]
    pub fn management_tap(&self) -> String {
        format!("{}-m", self.name)
    }

    /// Whether it runs a member of etcd.
    #[must_use]
    pub fn has_etcd(&self) -> bool {
        self.role == Role::Nas || self.name == "hv1"
    }

    /// Memory, MiB.
    #[must_use]
    pub const fn memory_mib(&self) -> u32 {
        match self.role {
            // Taken from this machine only as it is used. A nested guest and libvirt take 300.
            Role::Nas | Role::Hypervisor => 768,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn addresses_are_those_of_the_documentation() {
        let nodes = Spec::new("x").nodes();
        let names: Vec<_> = nodes.iter().map(|n| n.name.as_str()).collect();
        assert_eq!(names, ["nas1", "nas2", "hv1", "hv2"]);
        let ids: Vec<_> = nodes.iter().map(|n| n.address().octets()[3]).collect();
        assert_eq!(ids, [11, 12, 21, 22]);
    }

    #[test]
    fn nothing_is_shared_between_nodes() {
        let spec = Spec { clients: 9, ..Spec::new("x") };
        let mut seen = HashSet::new();
        for n in spec.nodes() {
            for s in [n.mac(), n.management_mac(), n.tap(), n.management_tap()] {
                assert!(s.len() <= 17, "{s}");
                assert!(seen.insert(s));
            }
            // Interface names end with a zero byte in 16.
            assert!(n.management_tap().len() < 16);
        }
    }

    #[test]
    fn bad_names_are_refused() {
        for bad in ["", "a/b", "A", "..", "0123456789012345678901234"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name("run-17").is_ok());
        assert!(Spec { clients: 0, ..Spec::new("x") }.check().is_err());
        assert!(Spec { clients: 10, ..Spec::new("x") }.check().is_err());
    }
}
