//! One NFS server in one network namespace, steered through the files of the `nfsd` file system.
//!
//! The same files exist in Linux 6.1, 6.12 and 7.2 (`fs/nfsd/nfsctl.c`, `nfsd_fill_super`), so
//! they steer the server; the netlink family of newer kernels ([`crate::netlink`]) adds what they
//! cannot tell, the number of calls in execution. Order that the kernel imposes: versions,
//! lease and grace only while no server exists; a listener creates the server; threads start it;
//! `threads 0` destroys it *with its listeners*, which must be written again before the next start.
//!
//! Keeps S5: nothing here runs unless called, and no call unexports or expires clients, but [`Server::expire`],
//! which is for a client that is proven dead.

mod expire;
mod files;
mod mount;
mod parse;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::netlink::Client;
use crate::netns::NetNs;
use crate::{Error, Result, urgent};

pub use parse::{ClientInfo, PoolStats, VersionSet};

/// What the kernel is told to speak: 4.1 and 4.2 only.
///
/// `-4` clears every minor version, also ones this crate has never heard of; the two that
/// follow switch version 4 on again with just themselves (`__write_versions`).
const VERSIONS: &str = "-2 -3 -4 +4.1 +4.2\n";

/// Whether this node's kernel grants leases on files, which delegations are made of (`leases_enable` of
/// `fs/locks.c`).
pub const LEASES: &str = "/proc/sys/fs/leases-enable";

/// Switches delegations off, on the whole node; those that are out stay. `file` is [`LEASES`].
///
/// The kernel grants one with any reclaimed open (`nfs4_open_delegation`, `CLAIM_PREVIOUS`), also for a file
/// that another client is about to reclaim. It then recalls it; to return it, its holder must open what it has
/// open, which grace forbids; and the other's reclaim waits for that. Two hosts with one file open (sanlock's
/// lockspace) so lose the whole grace, and their locks at its end (S7).
///
/// # Errors
/// [`Error::Control`]; [`Error::Unreadable`] when the kernel keeps another value.
pub fn without_delegations(file: &Path) -> Result<()> {
    if files::read_number(file)? == 0 {
        return Ok(());
    }
    files::write(file, "0\n")?;
    match files::read(file)? {
        found if found.trim() == "0" => Ok(()),
        found => Err(files::unreadable(file, &found)),
    }
}

/// Settings of a server; all of them must be in force before it exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Lease in seconds; the kernel takes 10 to 3600.
    pub lease_s: u32,
    /// Grace in seconds; 10 to 3600, not below the previous server's lease.
    pub grace_s: u32,
    /// TCP port of the listener, 2049 unless tests need another.
    pub port: u16,
}

/// Handle on the server of one network namespace.
#[derive(Debug, Clone)]
pub struct Server {
    ns: NetNs,
    dir: PathBuf,
    pipefs: PathBuf,
    netlink: Client,
}

impl Server {
    /// Mounts the `nfsd` file system on `control_dir` and `rpc_pipefs` on `pipefs_dir`, both
    /// bound to `ns`. Idempotent; replaces a mount left by an earlier, deleted namespace.
    ///
    /// # Errors
    /// [`Error::ForeignMount`] when something else is mounted there: it is left alone.
    pub fn mount(ns: NetNs, control_dir: &Path, pipefs_dir: &Path) -> Result<Self> {
        ns.run("nfsd-mounts", || {
            mount::ensure(mount::PIPEFS, pipefs_dir)?;
            mount::ensure(mount::NFSD, control_dir)
        })?;
        let netlink = Client::new(ns.clone());
        Ok(Server { ns, dir: control_dir.into(), pipefs: pipefs_dir.into(), netlink })
    }

    /// Where the tracker pipe will appear.
    pub fn pipefs(&self) -> &Path {
        &self.pipefs
    }

    /// The namespace.
    pub fn netns(&self) -> &NetNs {
        &self.ns
    }

    /// The netlink family in this namespace, where the kernel has it.
    pub fn netlink(&self) -> &Client {
        &self.netlink
    }

    /// Calls that threads execute now; at least so many where the kernel's list is cut short.
    /// `None`: this kernel cannot tell. 0 does not mean that every reply has been *sent* (see
    /// [`Client::running`]): give the replies a moment more (S5).
    ///
    /// # Errors
    /// [`Error::Netlink`] if the kernel has not answered within `limit` or not sensibly. As
    /// little as `None` it means that nothing runs (S12).
    pub fn in_flight(&self, limit: Duration) -> Result<Option<usize>> {
        match self.netlink.running(limit) {
            Ok(running) => Ok(Some(running.calls.len())),
            Err(error) if error.is_absent() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Versions, lease, grace and listener, in the only order that works. Writes what differs.
    ///
    /// # Errors
    /// [`Error::ServerExists`] when a value differs and a server exists already.
    pub fn configure(&self, settings: &Settings) -> Result<()> {
        self.set_versions()?;
        self.set_seconds("nfsv4leasetime", settings.lease_s)?;
        self.set_seconds("nfsv4gracetime", settings.grace_s)?;
        self.add_listener(settings.port)
    }

    /// Only 4.1 and 4.2; verified by reading back.
    pub fn set_versions(&self) -> Result<()> {
        let file = self.file("versions");
        if VersionSet::parse(&files::read(&file)?).only_v41_and_v42() {
            return Ok(());
        }
        files::write_setting(&file, VERSIONS)?;
        let found = files::read(&file)?;
        if VersionSet::parse(&found).only_v41_and_v42() {
            return Ok(());
        }
        Err(Error::WrongVersions { found })
    }

    fn set_seconds(&self, name: &str, seconds: u32) -> Result<()> {
        let file = self.file(name);
        if files::read_number(&file)? == seconds {
            return Ok(());
        }
        files::write_setting(&file, &format!("{seconds}\n"))
    }

    /// Adds a TCP listener on `port` for IPv4 and, where the kernel has it, IPv6.
    pub fn add_listener(&self, port: u16) -> Result<()> {
        if self.listeners()?.contains(&("tcp".into(), port)) {
            return Ok(());
        }
        files::write(&self.file("portlist"), &format!("tcp {port}\n"))
    }

    /// The listeners as (transport, port); one entry per address family.
    pub fn listeners(&self) -> Result<Vec<(String, u16)>> {
        Ok(parse::listeners(&files::read(&self.file("portlist"))?))
    }

    /// Starts `count` threads with `scope` as server scope and owner.
    ///
    /// The kernel takes both from the host name of the thread that writes (`nfsd_svc`), so a
    /// thread with a UTS namespace of its own does it; this works on every kernel.
    /// With `cpu` from [`crate::cld::Tracker::cpu`] it usually takes a few milliseconds, else
    /// at least 100: a wait in `nfsd4_cld_tracking_init` for a reader of the tracker pipe.
    pub fn start_threads(&self, count: u32, scope: &str, cpu: Option<usize>) -> Result<()> {
        check_scope(scope)?;
        let file = self.file("threads");
        self.ns.run("nfsd-start", || {
            if let Some(Err(error)) = cpu.map(urgent::bind_to) {
                tracing::info!(%error, "starting thread not bound to the tracker's processor");
            }
            files::take_hostname(scope)?;
            files::write(&file, &format!("{count}\n"))
        })?;
        match self.threads()? {
            found if found == count => Ok(()),
            found => Err(Error::Threads { wanted: count, found }),
        }
    }

    /// Stops every thread, closes the sockets, drops all NFSv4 state and flushes the export
    /// caches; also removes the listeners. Client records stay.
    ///
    /// Nothing is written when none run: kernels from 6.12 on would start the server first, grace
    /// and client list included (`nfsd_svc`), just to stop it.
    pub fn stop_threads(&self) -> Result<()> {
        if self.threads()? == 0 {
            return Ok(());
        }
        files::write(&self.file("threads"), "0\n")?;
        match self.threads()? {
            0 => Ok(()),
            found => Err(Error::Threads { wanted: 0, found }),
        }
    }

    /// Removes listeners of a server that was configured and not started, so that it can be
    /// configured otherwise. Slow: the kernel starts the server in passing.
    pub fn remove_listeners(&self) -> Result<()> {
        if self.listeners()?.is_empty() || self.threads()? > 0 {
            return Ok(());
        }
        files::write(&self.file("threads"), "0\n")
    }

    /// Threads that run now.
    pub fn threads(&self) -> Result<u32> {
        files::read_number(&self.file("threads"))
    }

    /// Is grace over? Means something only while threads run.
    pub fn grace_over(&self) -> Result<bool> {
        let file = self.file("v4_end_grace");
        let content = files::read(&file)?;
        match content.trim() {
            "Y" => Ok(true),
            "N" => Ok(false),
            _ => Err(files::unreadable(&file, &content)),
        }
    }

    /// Asks the kernel to end grace; clients that have not reclaimed lose their locks.
    ///
    /// Never while clients reclaim: 6.1.192 and 6.12.107 lack the fix for ending it twice at
    /// once. The end is asynchronous: poll [`Server::grace_over`].
    pub fn end_grace(&self) -> Result<()> {
        match files::write(&self.file("v4_end_grace"), "Y\n") {
            Err(Error::Control { source, .. }) if files::is_busy(&source) => {
                Err(Error::GraceNotRunning)
            }
            other => other,
        }
    }

    /// Counters per thread pool; `packets` moves while the server makes progress.
    pub fn pool_stats(&self) -> Result<Vec<PoolStats>> {
        Ok(parse::pool_stats(&files::read(&self.file("pool_stats"))?))
    }

    /// Operations that the server of this namespace has completed for clients; wraps. Moves while
    /// it makes progress, and does not move with this crate's own probes. None: this kernel does
    /// not count per namespace (before 6.9).
    ///
    /// # Errors
    /// When the namespace cannot be entered or the file not be read.
    pub fn operations(&self) -> Result<Option<u64>> {
        let text = self.ns.run("nfsd-counters", || {
            match files::read(&crate::netns::rpc_dir().join("nfsd")) {
                Err(Error::Control { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    Ok(None)
                }
                other => other.map(Some),
            }
        })?;
        Ok(text.and_then(|text| parse::operations(&text)))
    }
}

/// A scope is set as host name: 1 to 64 bytes (`__NEW_UTS_LEN`).
fn check_scope(scope: &str) -> Result<()> {
    let fits = (1..=64).contains(&scope.len());
    if fits && scope.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    Err(Error::BadScope { scope: scope.into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A directory that looks like the control file system, without its behaviour.
    pub(super) fn fake(dir: &Path) -> Server {
        let ns = NetNs::current().unwrap();
        let netlink = Client::new(ns.clone());
        Server { ns, dir: dir.into(), pipefs: dir.into(), netlink }
    }

    #[test]
    fn scope_must_fit_a_host_name() {
        assert!(check_scope("vms").is_ok());
        assert!(check_scope("").is_err());
        assert!(check_scope("with space").is_err());
        assert!(check_scope(&"x".repeat(65)).is_err());
    }

    #[test]
    fn a_setting_already_in_force_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nfsv4leasetime");
        fs::write(&file, "15\n").unwrap();
        let before = fs::metadata(&file).unwrap().modified().unwrap();
        fake(dir.path()).set_seconds("nfsv4leasetime", 15).unwrap();
        assert_eq!(before, fs::metadata(&file).unwrap().modified().unwrap());
        fake(dir.path()).set_seconds("nfsv4leasetime", 20).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "20\n");
    }

    #[test]
    fn delegations_are_switched_off_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("leases-enable");
        assert!(matches!(without_delegations(&file), Err(Error::Control { .. })), "S12");
        fs::write(&file, "1\n").unwrap();
        without_delegations(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "0\n");
        let before = fs::metadata(&file).unwrap().modified().unwrap();
        without_delegations(&file).unwrap();
        assert_eq!(before, fs::metadata(&file).unwrap().modified().unwrap());
        fs::write(&file, "yes").unwrap();
        assert!(matches!(without_delegations(&file), Err(Error::Unreadable { .. })));
    }

    #[test]
    fn versions_are_verified_after_writing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("versions");
        fs::write(&file, "+3 +4 +4.1 +4.2\n").unwrap();
        // A plain file echoes what was written; it is not a valid kernel answer because "-4"
        // stands in it, so verification must complain.
        assert!(matches!(
            fake(dir.path()).set_versions(),
            Err(Error::WrongVersions { found }) if found == VERSIONS
        ));
        fs::write(&file, "-2 -3 +4 -4.0 +4.1 +4.2\n").unwrap();
        fake(dir.path()).set_versions().unwrap();
    }

    #[test]
    fn grace_answer_other_than_y_or_n_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("v4_end_grace");
        for (content, want) in [("Y\n", Some(true)), ("N\n", Some(false)), ("\n", None)] {
            fs::write(&file, content).unwrap();
            assert_eq!(fake(dir.path()).grace_over().ok(), want);
        }
    }

    #[test]
    fn calls_are_counted_where_the_kernel_can_and_unknown_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let found = fake(dir.path()).in_flight(Duration::from_secs(5)).unwrap();
        // No server in this namespace: either no family, or no calls.
        assert!(matches!(found, None | Some(0)), "{found:?}");
    }

    #[test]
    fn start_takes_scope_as_host_name_of_its_own_thread_only() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("threads"), "0\n").unwrap();
        let before = nix::unistd::gethostname().unwrap();
        fake(dir.path()).start_threads(8, "scope-test", None).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("threads")).unwrap(), "8\n");
        assert_eq!(before, nix::unistd::gethostname().unwrap());
    }
}
