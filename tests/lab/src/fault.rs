//! What can be done to nodes and to the network between them.

use clap::Subcommand;
use nix::sys::signal::Signal;

use crate::error::LabError;
use crate::lab::Lab;

/// A fault, or its end.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Fault {
    /// Take a node's power away: its process is killed, its disks stay as they are.
    PowerCut {
        /// The node.
        node: String,
    },
    /// Give a node its power back and wait until it answers.
    PowerOn {
        /// The node.
        node: String,
    },
    /// Stop a node as a whole, as a hypervisor's pause does.
    Freeze {
        /// The node.
        node: String,
    },
    /// Let a frozen node go on.
    Thaw {
        /// The node.
        node: String,
    },
    /// Unplug a node's cable to the lab's network.
    LinkDown {
        /// The node.
        node: String,
    },
    /// Plug it in again.
    LinkUp {
        /// The node.
        node: String,
    },
    /// Drop all frames between two nodes.
    Cut {
        /// One of them.
        a: String,
        /// The other.
        b: String,
    },
    /// Drop all frames from one node to another.
    CutOneWay {
        /// The sender.
        from: String,
        /// The receiver.
        to: String,
    },
    /// Drop a node's TCP from and to these ports, whoever listens there.
    CutPorts {
        /// The node.
        node: String,
        /// A port, or the first and the last as in `7788-7789`.
        ports: String,
    },
    /// Drop IPv4 between a node and one address; all other addresses it reaches.
    CutAddress {
        /// The node.
        node: String,
        /// The address.
        address: std::net::Ipv4Addr,
    },
    /// End all cuts and plug in all cables. Power and frozen nodes stay as they are.
    Heal,
}

impl Fault {
    /// Applies it; it is in effect when this returns.
    pub(crate) fn apply(&self, lab: &mut Lab) -> Result<(), LabError> {
        match self {
            Self::PowerCut { node } => lab.power_off(node),
            Self::PowerOn { node } => lab.power_on(node),
            Self::Freeze { node } => lab.signal(node, Signal::SIGSTOP),
            Self::Thaw { node } => lab.signal(node, Signal::SIGCONT),
            Self::LinkDown { node } => lab.namespace().link(lab.node(node)?, false),
            Self::LinkUp { node } => lab.namespace().link(lab.node(node)?, true),
            Self::Cut { a, b } => {
                let (a, b) = (lab.node(a)?, lab.node(b)?);
                lab.namespace().cut(a, b)?;
                lab.namespace().cut(b, a)
            }
            Self::CutOneWay { from, to } => lab.namespace().cut(lab.node(from)?, lab.node(to)?),
            Self::CutPorts { node, ports } => lab.namespace().cut_ports(lab.node(node)?, ports),
            Self::CutAddress { node, address } => {
                lab.namespace().cut_address(lab.node(node)?, *address)
            }
            Self::Heal => heal(lab),
        }
    }
}

fn heal(lab: &Lab) -> Result<(), LabError> {
    lab.namespace().heal()?;
    // The cable of a node without power has no end to plug in; its power brings it up.
    let mut powered = lab.nodes().filter(|node| lab.has_power(&node.name));
    powered.try_for_each(|node| lab.namespace().link(node, true))
}
