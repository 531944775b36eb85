//! One look at the host: its NFS mounts with what the stall machine needs of each.
//!
//! Three files of memory-made text are read (mountinfo, mountstats, sunrpc's tree); none of them
//! waits for a server (S10). What one of them does not tell is [`Reading::Unknown`] (S12).

use std::path::{Path, PathBuf};

use super::mountinfo::{self, NfsMount};
use super::mountstats::{self, MountStats};
use super::stall::Reading;
use super::sunrpc::{self, SysTransport};
use super::{LineProblem, Parsed};

/// Where the kernel's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// `/proc/self/mountinfo`.
    pub mountinfo: PathBuf,
    /// `/proc/self/mountstats`.
    pub mountstats: PathBuf,
    /// `/sys/kernel/sunrpc`.
    pub sunrpc: PathBuf,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            mountinfo: "/proc/self/mountinfo".into(),
            mountstats: "/proc/self/mountstats".into(),
            sunrpc: sunrpc::ROOT.into(),
        }
    }
}

/// Why the host cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be read ({error}): this host's NFS mounts are unknown; run the agent as root, \
         with /proc mounted", file.display())]
pub struct Unreadable {
    /// Which file.
    pub file: PathBuf,
    /// Why.
    #[source]
    pub error: std::io::Error,
}

/// A mount with its counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// From mountinfo.
    pub mount: NfsMount,
    /// From mountstats; `None`: not there, or not understood.
    pub stats: Option<MountStats>,
    /// For the stall machine.
    pub reading: Reading,
}

/// One look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// All NFS mounts.
    pub mounts: Vec<Looked>,
    /// Lines that were not understood, by file: there may be more mounts than listed.
    pub problems: Vec<(PathBuf, LineProblem)>,
}

/// Looks once.
///
/// # Errors
/// mountinfo cannot be read: nothing is known. Without the two others the readings are unknown.
pub fn look(files: &Files) -> Result<Look, Unreadable> {
    let table = std::fs::read(&files.mountinfo)
        .map_err(|error| Unreadable { file: files.mountinfo.clone(), error })?;
    let infos = mountinfo::parse(&table);
    let stats = std::fs::read(&files.mountstats).map(|t| mountstats::parse(&t)).ok();
    let transports = sunrpc::read(&files.sunrpc).unwrap_or_default();
    Ok(join(files, infos, stats.unwrap_or_default(), &transports))
}

fn join(
    files: &Files,
    infos: Parsed<NfsMount>,
    stats: Parsed<MountStats>,
    transports: &[SysTransport],
) -> Look {
    let of = |file: &Path, problems: Vec<LineProblem>| {
        problems.into_iter().map(|p| (file.to_owned(), p)).collect::<Vec<_>>()
    };
    let counters_known = stats.problems.is_empty();
    let mut problems = of(&files.mountinfo, infos.problems);
    problems.extend(of(&files.mountstats, stats.problems));
    let looked = infos.entries.into_iter().map(|mount| {
        let stats = counters(&mount, &stats.entries).cloned();
        let known = stats.as_ref().filter(|_| counters_known);
        let reading = known.map_or(Reading::Unknown, |s| reading(&mount, s, transports));
        Looked { mount, stats, reading }
    });
    Look { mounts: looked.collect(), problems }
}

/// The counters of a mount. Of several in the same place the last one is seen by everybody.
fn counters<'a>(mount: &NfsMount, all: &'a [MountStats]) -> Option<&'a MountStats> {
    let here = |s: &&MountStats| s.point == mount.point && s.source.as_ref() == Some(&mount.source);
    all.iter().rfind(here)
}

fn reading(mount: &NfsMount, stats: &MountStats, all: &[SysTransport]) -> Reading {
    match stats.tcp() {
        Some(transports) => {
            let pending = pending(mount, transports.len(), all);
            Reading::Counters { transports, pending }
        }
        None => Reading::Unknown,
    }
}

/// The requests that wait on a mount's own transports. sunrpc's tree does not say whose they are:
/// where the server has others too, only zero is sure.
fn pending(mount: &NfsMount, own: usize, all: &[SysTransport]) -> Option<u64> {
    let address = mount.address()?;
    let to_server = all.iter().filter(|t| t.server == Some(address) && t.kind == "tcp").count();
    sunrpc::pending(all, address).filter(|n| *n == 0 || to_server == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "\
212 27 0:52 / /vm rw - nfs4 192.0.2.50:/vm rw,vers=4.2,hard,proto=tcp,addr=192.0.2.50
213 27 0:53 / /iso rw - nfs4 192.0.2.60:/iso rw,vers=4.2,hard,proto=tcp,addr=192.0.2.60
";
    const STATS: &str = "\
device proc mounted on /proc with fstype proc
device 192.0.2.50:/vm mounted on /vm with fstype nfs4 statvers=1.1
\txprt:\ttcp 0 0 1 0 0 107 103 0 0 0 0 0 0
device 192.0.2.60:/iso mounted on /iso with fstype nfs4 statvers=1.1
\txprt:\trdma 0 0 1 0 0 107 103 0 0 0 0 0 0
";

    fn host(stats: Option<&str>, transports: &[(&str, &str)]) -> Look {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::write(at("info"), INFO).unwrap();
        if let Some(stats) = stats {
            std::fs::write(at("stats"), stats).unwrap();
        }
        for (number, (server, waiting)) in transports.iter().enumerate() {
            let dir = at(&format!("rpc/xprt-switches/switch-{number}/xprt-{number}-tcp"));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("dstaddr"), server).unwrap();
            let info = format!("sending_q_len=0\nbacklog_q_len=0\npending_q_len={waiting}\n");
            std::fs::write(dir.join("xprt_info"), info).unwrap();
        }
        let (mountinfo, mountstats, sunrpc) = (at("info"), at("stats"), at("rpc"));
        look(&Files { mountinfo, mountstats, sunrpc }).unwrap()
    }

    fn waiting(look: &Look) -> Option<u64> {
        match &look.mounts[0].reading {
            Reading::Counters { transports, pending } => {
                assert_eq!((transports[0].sends, transports[0].recvs), (107, 103));
                *pending
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn mounts_counters_and_waiting_requests_are_joined() {
        let look = host(Some(STATS), &[("192.0.2.50\n", "4"), ("192.0.2.60\n", "9")]);
        assert_eq!(waiting(&look), Some(4));
        assert_eq!(look.mounts[1].reading, Reading::Unknown, "not TCP");
        assert!(look.mounts[1].stats.is_some());
        assert_eq!(look.problems, vec![]);
    }

    #[test]
    fn others_requests_are_not_ours() {
        assert_eq!(waiting(&host(Some(STATS), &[("192.0.2.50", "4"), ("192.0.2.50", "0")])), None);
        assert_eq!(
            waiting(&host(Some(STATS), &[("192.0.2.50", "0"), ("192.0.2.50", "0")])),
            Some(0)
        );
        assert_eq!(waiting(&host(Some(STATS), &[])), None, "an older kernel");
    }

    #[test]
    fn what_is_not_there_is_unknown() {
        let look = host(None, &[]);
        assert_eq!(look.mounts[0].reading, Reading::Unknown);
        let broken = STATS.replace("103 0", "x 0");
        let look = host(Some(&broken), &[]);
        assert_eq!(look.mounts[0].reading, Reading::Unknown, "a mount without its transport");
        assert_eq!(look.problems.len(), 1);
    }

    #[test]
    fn no_table_is_an_error_that_says_so() {
        let gone = PathBuf::from("/nonexistent/mountinfo");
        let error = look(&Files { mountinfo: gone, ..Files::default() }).unwrap_err();
        assert!(error.to_string().contains("are unknown"));
    }

    #[test]
    fn this_host_can_be_looked_at() {
        let look = look(&Files::default()).unwrap();
        assert_eq!(look.problems, vec![]);
    }
}
