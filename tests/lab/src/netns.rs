//! The network of a lab: a namespace with two bridges, a tap per node on each, and what cuts them.
//!
//! Nothing is made in the machine's own namespace.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::error::LabError;
use crate::spec::Node;
use crate::sys::{self, SHORT};

/// Bridge of the lab's network. Faults happen here.
const LAB_BRIDGE: &str = "lab";

/// Bridge of the management network. Faults never happen here.
const MANAGEMENT_BRIDGE: &str = "mgmt";

/// The lab program's own address in the management network.
const MANAGEMENT_ADDRESS: &str = "10.78.0.1/24";

/// The namespace of a lab.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// That of the lab of this name, whether it exists or not.
    pub fn of(lab: &str) -> Self {
        Self { name: format!("nasdlab-{lab}") }
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Whether it exists.
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Runs `work` on a thread of its own that has entered the namespace. Sockets and processes made there stay
    /// in it.
    ///
    /// # Errors
    /// Those of `work`, and [`LabError::Io`] if the namespace cannot be entered.
    pub fn enter<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T, LabError> + Send,
    ) -> Result<T, LabError> {
        let path = self.path();
        let inside = || {
            let file = File::open(&path).map_err(LabError::io("open namespace", &path))?;
            setns(file, CloneFlags::CLONE_NEWNET)
                .map_err(|e| LabError::io("enter namespace", &path)(e.into()))?;
            work()
        };
        thread::scope(|scope| {
            let thread = scope.spawn(inside);
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String, LabError> {
        let mut command = Command::new(program);
        command.args(args);
        self.enter(move || sys::run(command, SHORT))
    }

    fn ip(&self, args: &[&str]) -> Result<(), LabError> {
        self.run("ip", args).map(drop)
    }

    /// Makes the namespace, the bridges, the taps and the empty table of cuts.
    ///
    /// # Errors
    /// Those of the programs that do it.
    pub fn create(&self, nodes: &[Node]) -> Result<(), LabError> {
        sys::quick("ip", &["netns", "add", &self.name])?;
        self.ip(&["link", "set", "lo", "up"])?;
        for bridge in [LAB_BRIDGE, MANAGEMENT_BRIDGE] {
            // Snooping would need a querier; without one it loses neighbour discovery after minutes.
            self.ip(&["link", "add", bridge, "type", "bridge", "mcast_snooping", "0"])?;
            // The lab's bridge must not take part in the lab's network by itself.
            let key = format!("net.ipv6.conf.{bridge}.disable_ipv6=1");
            self.run("sysctl", &["-q", "-w", &key])?;
            self.ip(&["link", "set", bridge, "up"])?;
        }
        self.ip(&["addr", "add", MANAGEMENT_ADDRESS, "dev", MANAGEMENT_BRIDGE])?;
        for node in nodes {
            self.tap(&node.tap(), LAB_BRIDGE)?;
            self.tap(&node.management_tap(), MANAGEMENT_BRIDGE)?;
            self.neighbour(node)?;
        }
        self.heal()
    }

    /// Spares the lab program the wait for an ARP that fails while the node boots.
    fn neighbour(&self, node: &Node) -> Result<(), LabError> {
        let (address, mac) = (node.management().to_string(), node.management_mac());
        let fixed = ["dev", MANAGEMENT_BRIDGE, "nud", "permanent"];
        self.ip(&[&["neigh", "add", &address, "lladdr", &mac][..], &fixed].concat())
    }

    fn tap(&self, name: &str, bridge: &str) -> Result<(), LabError> {
        self.ip(&["tuntap", "add", "dev", name, "mode", "tap"])?;
        self.run("sysctl", &["-q", "-w", &format!("net.ipv6.conf.{name}.disable_ipv6=1")])?;
        self.ip(&["link", "set", name, "master", bridge, "up"])
    }

    /// Removes the namespace and all in it. Nothing happens if there is none.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn destroy(&self) -> Result<(), LabError> {
        if self.exists() {
            sys::quick("ip", &["netns", "del", &self.name])?;
        }
        Ok(())
    }

    /// Plugs or unplugs a node's cable to the lab's network, at the bridge. (A tap that has been down once is dead
    /// to User-Mode Linux for ever.) The node still sees a carrier.
    ///
    /// # Errors
    /// Those of the program that does it.
    pub fn link(&self, node: &Node, up: bool) -> Result<(), LabError> {
        // States of the spanning tree protocol: 0 disabled, 3 forwarding.
        let state = if up { "3" } else { "0" };
        self.run("bridge", &["link", "set", "dev", &node.tap(), "state", state]).map(drop)
    }

    /// Drops all frames from one node to another, whatever addresses they carry: a node's floating addresses have
    /// hardware addresses of their own.
    ///
    /// # Errors
    /// Those of the program that does it.
    pub fn cut(&self, from: &Node, to: &Node) -> Result<(), LabError> {
        let (from, to) = (from.tap(), to.tap());
        self.drop_frames(&["iifname", &from, "oifname", &to])
    }

    /// Drops a node's TCP from and to these ports.
    ///
    /// # Errors
    /// Those of the program that does it.
    pub fn cut_ports(&self, node: &Node, ports: &str) -> Result<(), LabError> {
        let tap = node.tap();
        for side in ["iifname", "oifname"] {
            for end in ["sport", "dport"] {
                self.drop_frames(&[side, &tap, "tcp", end, ports])?;
            }
        }
        Ok(())
    }

    /// Drops IPv4 between a node and an address.
    ///
    /// # Errors
    /// Those of the program that does it.
    pub fn cut_address(&self, node: &Node, address: Ipv4Addr) -> Result<(), LabError> {
        let (tap, address) = (node.tap(), address.to_string());
        self.drop_frames(&["iifname", &tap, "ip", "daddr", &address])?;
        self.drop_frames(&["oifname", &tap, "ip", "saddr", &address])
    }

    fn drop_frames(&self, matched: &[&str]) -> Result<(), LabError> {
        let rule = ["add", "rule", "bridge", "lab", "cuts"];
        self.run("nft", &[&rule, matched, &["counter", "drop"]].concat()).map(drop)
    }

    /// Removes all cuts.
    ///
    /// # Errors
    /// Those of the program that does it.
    pub fn heal(&self) -> Result<(), LabError> {
        // Adding before deleting makes the deletion succeed when there was none; it is one transaction.
        let script = "add table bridge lab; delete table bridge lab; add table bridge lab; \
                      add chain bridge lab cuts { type filter hook forward priority 0; }";
        self.run("nft", &[script]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;
    use crate::spec::Spec;

    /// A datagram from one namespace to another arrives.
    fn passes(from: (&Namespace, &Node), to: (&Namespace, &Node)) -> bool {
        let bind = |(ns, node): (&Namespace, &Node)| {
            let address = (node.address(), 7);
            ns.enter(|| UdpSocket::bind(address).map_err(LabError::io("bind", "a socket"))).unwrap()
        };
        let (sender, receiver) = (bind(from), bind(to));
        receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        sender.send_to(b"x", (to.1.address(), 7)).unwrap();
        receiver.recv(&mut [0; 4]).is_ok()
    }

    /// Frames are dropped in one direction only, and pass again after healing. Two more namespaces take the place
    /// of nodes: a veth pair behind each tap's name.
    #[test]
    fn cuts_are_one_way_and_heal() {
        if !nix::unistd::geteuid().is_root() || sys::find("nft").is_none() {
            eprintln!("skipped: needs root and nft");
            return;
        }
        let name = |i| format!("t{}-{i}", std::process::id());
        let ns = Namespace::of(&name(0));
        let ends = [Namespace::of(&name(1)), Namespace::of(&name(2))];
        let tried = std::panic::catch_unwind(|| try_cuts(&ns, &ends));
        for n in ends.iter().chain([&ns]) {
            n.destroy().unwrap();
        }
        tried.unwrap().unwrap();
    }

    fn try_cuts(ns: &Namespace, ends: &[Namespace; 2]) -> Result<(), LabError> {
        let nodes = Spec::new("x").nodes();
        ns.create(&[])?;
        for (node, end) in nodes.iter().zip(ends) {
            sys::quick("ip", &["netns", "add", &end.name])?;
            let tap = node.tap();
            let veth = ["link", "add", &tap, "type", "veth", "peer", "name", "e0", "netns"];
            ns.ip(&[&veth[..], &[&end.name]].concat())?;
            ns.ip(&["link", "set", &tap, "master", LAB_BRIDGE, "up"])?;
            end.ip(&["addr", "add", &format!("{}/24", node.address()), "dev", "e0"])?;
            end.ip(&["link", "set", "e0", "up"])?;
        }
        let (one, two) = ((&ends[0], &nodes[0]), (&ends[1], &nodes[1]));
        // A carrier takes a moment, and so does the first ARP.
        assert!((0..20).any(|_| passes(one, two)), "the bridge forwards");
        assert!(passes(two, one), "in both directions");
        ns.cut(&nodes[1], &nodes[0])?;
        assert!(!passes(two, one), "this direction is cut");
        assert!(passes(one, two), "and the other is not");
        ns.heal()?;
        assert!(passes(two, one), "healed");
        ns.link(&nodes[0], false)?;
        assert!(!passes(two, one), "unplugged");
        ns.link(&nodes[0], true)?;
        assert!((0..20).any(|_| passes(two, one)), "plugged in");
        Ok(())
    }
}
