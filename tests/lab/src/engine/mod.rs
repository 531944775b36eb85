//! What nodes run on.

mod qemu;
mod uml;

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::error::LabError;
use crate::image::Image;
use crate::spec::{Node, Role};

/// What nodes run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// User-Mode Linux: an ordinary program, native speed, one CPU per node.
    Uml,
    /// QEMU with Debian's stock kernel; with KVM where that works, else about 20 times slower.
    Qemu,
}

impl Engine {
    /// As it is typed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uml => "uml",
            Self::Qemu => "qemu",
        }
    }

    /// The asked one, or the best that works here.
    ///
    /// # Errors
    /// [`LabError::NoEngine`].
    pub fn choose(asked: Option<Self>, image: &Image) -> Result<Self, LabError> {
        match asked {
            Some(engine) => Ok(engine),
            None => Ok(if uml::works(image) { Self::Uml } else { Self::Qemu }),
        }
    }

    /// Name of the device of a node's disk: `a` root, `b` and `c` data, `d` payload.
    #[must_use]
    pub fn disk(self, letter: char) -> String {
        match self {
            Self::Uml => format!("/dev/ubd{letter}"),
            Self::Qemu => format!("/dev/vd{letter}"),
        }
    }

    /// Name of a node's interface in the lab's network.
    #[must_use]
    pub const fn interface(self) -> &'static str {
        match self {
            Self::Uml => "vec0",
            Self::Qemu => "eth0",
        }
    }

    /// Name of a node's interface in the management network.
    #[must_use]
    pub const fn management_interface(self) -> &'static str {
        match self {
            Self::Uml => "vec1",
            Self::Qemu => "eth1",
        }
    }

    /// How many times longer than under User-Mode Linux things may take.
    #[must_use]
    pub const fn patience(self) -> u32 {
        match self {
            Self::Uml => 1,
            Self::Qemu => 8,
        }
    }

    /// The command that starts a node; its standard output is the console.
    ///
    /// # Errors
    /// If files for it cannot be made.
    pub fn command(self, machine: &Machine<'_>) -> Result<Command, LabError> {
        match self {
            Self::Uml => Ok(uml::command(machine)),
            Self::Qemu => qemu::command(machine),
        }
    }
}

/// Everything an engine needs to start a node.
pub struct Machine<'a> {
    /// The lab's image.
    pub image: &'a Image,
    /// The node.
    pub node: &'a Node,
    /// Folder for the lab's big files; in memory.
    pub work: &'a Path,
}

impl Machine<'_> {
    /// The disk with our programs, shared by all nodes.
    fn payload(&self) -> PathBuf {
        self.work.join("payload.ext4")
    }

    /// A node's own disk.
    pub fn own(&self, what: &str) -> PathBuf {
        self.work.join(format!("{}.{what}", self.node.name))
    }

    /// The data disks, which only NAS nodes have.
    pub fn data(&self) -> Vec<PathBuf> {
        match self.node.role {
            Role::Nas => vec![self.own("b"), self.own("c")],
            Role::Hypervisor => Vec::new(),
        }
    }

    /// Kernel parameters that are the same on all engines.
    fn parameters(&self) -> Vec<String> {
        let node = format!("lab.node={}", self.node.name);
        let fixed = ["rw", "quiet", "net.ifnames=0", "systemd.show_status=0", "selinux=0"];
        fixed.map(str::to_owned).into_iter().chain([node, "panic=0".to_owned()]).collect()
    }
}

/// Makes KVM's probe public to the status.
pub fn kvm_works(image: &Image) -> bool {
    qemu::kvm_works(image)
}
