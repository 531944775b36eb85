//! Owns the kernel settings of a service's namespace.
//!
//! `/proc/sys/net` shows the namespace of the thread that opens the file, so they are written
//! from the worker's thread. Meanings: Documentation/networking/ip-sysctl.rst.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{NetError, NetnsWorker, Result};

/// IPv4 settings per interface.
///
/// `promote_secondaries`: deleting the first address of a subnet must not take the others along
/// (H8; 0 in a new namespace). `arp_ignore`/`arp_announce`: speak only for addresses of this
/// interface. `rp_filter` off: on-link routes look asymmetric to it.
const IPV4: [(&str, &str); 5] = [
    ("promote_secondaries", "1"),
    ("arp_ignore", "1"),
    ("arp_announce", "2"),
    ("rp_filter", "0"),
    ("accept_redirects", "0"),
];

/// IPv6 settings per interface: nothing learnt from the network, no duplicate detection (both
/// nodes carry the same MAC by design, and detection costs a second).
const IPV6: [(&str, &str); 5] = [
    ("accept_dad", "0"),
    ("dad_transmits", "0"),
    ("autoconf", "0"),
    ("accept_ra", "0"),
    ("accept_redirects", "0"),
];

/// Writes the settings for `all`, `default` and `interface`. IPv6 is skipped where the kernel has
/// none.
///
/// # Errors
/// [`NetError::Sysctl`] naming the file, [`NetError::Timeout`], [`NetError::WorkerGone`].
pub fn apply(worker: &NetnsWorker, interface: &str, limit: Duration) -> Result<()> {
    crate::link::check_name(interface)?;
    let namespace = worker.netns().name().to_owned();
    let interface = interface.to_owned();
    worker.call("set kernel settings", limit, move |_| {
        for scope in ["all", "default", interface.as_str()] {
            family(&namespace, Path::new("/proc/sys/net/ipv4/conf"), scope, &IPV4)?;
            family(&namespace, Path::new("/proc/sys/net/ipv6/conf"), scope, &IPV6)?;
        }
        Ok(())
    })
}

fn family(
    namespace: &str,
    base: &Path,
    scope: &str,
    settings: &[(&str, &'static str)],
) -> Result<()> {
    if !base.exists() {
        return Ok(());
    }
    for (key, value) in settings {
        let path: PathBuf = base.join(scope).join(key);
        fs::write(&path, value).map_err(|source| NetError::Sysctl {
            namespace: namespace.into(),
            path,
            value,
            source,
        })?;
    }
    Ok(())
}
