//! The programs of this machine that the lab uses, and how it gets them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::error::LabError;
use crate::progress::Step;
use crate::sys;

/// A program and the Debian package it comes in.
type Need = (&'static str, &'static str);

/// For every lab.
pub const ALWAYS: &[Need] = &[
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("tcpdump", "tcpdump"),
    ("mke2fs", "e2fsprogs"),
    ("sysctl", "procps"),
    ("cpio", "cpio"),
];

/// For building the image.
pub const IMAGE: &[Need] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("patchelf", "patchelf"),
    ("dpkg-deb", "dpkg"),
    ("xz", "xz-utils"),
];

/// For building the programs that go into the nodes.
///
/// The coordinator's client compiles its schema, which includes the compiler's own; Debian keeps those in a package
/// of their own.
pub const BUILD: &[Need] = &[
    ("protoc", "protobuf-compiler"),
    ("/usr/include/google/protobuf/descriptor.proto", "libprotobuf-dev"),
    ("cc", "gcc"),
    ("strip", "binutils"),
];

/// For the engine `qemu`.
pub const QEMU: &[Need] = &[("qemu-system-x86_64", "qemu-system-x86"), ("qemu-img", "qemu-utils")];

/// For the probe of KVM.
pub const PROBE: &[Need] = &[("busybox", "busybox-static"), ("cpio", "cpio")];

/// Makes sure that these programs are there: installs them on Debian 12 and later, else tells which are missing.
///
/// # Errors
/// [`LabError::Missing`] where the lab cannot install, or apt's failure.
pub fn ensure(needs: &[&[Need]]) -> Result<(), LabError> {
    let mut packages: Vec<_> = missing(needs);
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    if !can_install() {
        let packages = packages.into_iter().map(str::to_owned).collect();
        return Err(LabError::Missing { packages });
    }
    let step = Step::begin(format!("Installing {}", packages.join(" ")));
    let limit = Duration::from_secs(600);
    // Stale lists are the usual reason for a failure, so they are refreshed first. If that fails, the old may do.
    let mut update = Command::new("apt-get");
    update.args(["-q", "update"]);
    let _ = sys::run(update, limit);
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    install.args(["-qy", "--no-install-recommends", "install"]).args(&packages);
    sys::run(install, limit)?;
    step.done();
    Ok(())
}

fn missing(needs: &[&[Need]]) -> Vec<&'static str> {
    let all = needs.iter().flat_map(|n| n.iter());
    all.filter(|(what, _)| !is_there(what)).map(|(_, package)| *package).collect()
}

/// A program of this name, or a file at this path.
fn is_there(what: &str) -> bool {
    if what.starts_with('/') { Path::new(what).exists() } else { sys::find(what).is_some() }
}

fn can_install() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let debian = release.lines().any(|l| l == "ID=debian");
    debian && nix::unistd::geteuid().is_root() && sys::find("apt-get").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_asked_for() {
        let needs: &[Need] = &[("sh", "dash"), ("no-such-program-here", "some-package")];
        assert_eq!(missing(&[needs, needs]), ["some-package", "some-package"]);
    }
}
