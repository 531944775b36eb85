//! Counters of NFS mounts out of `/proc/self/mountstats`: how old, how asked, how answered.
//!
//! Formats (fs/nfs/super.c, net/sunrpc/{stats,xprtsock}.c): `statvers=1.0` and `1.1`, RPC iostats
//! `1.0` (eight numbers an operation) and `1.1` (a ninth: errors). Later kernels append; what is
//! appended is ignored, what is missing is `None` or a problem. Reading never waits for a server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::mountinfo::{Source, is_nfs, source};
use super::{Parsed, escape};

/// Counters of one operation, since the mount (never reset).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpStats {
    /// Completed requests.
    pub ops: u64,
    /// Transmissions; more than [`OpStats::ops`] where some were sent again.
    pub transmissions: u64,
    /// Major timeouts.
    pub timeouts: u64,
    /// Bytes sent, headers included.
    pub sent: u64,
    /// Bytes received, headers included.
    pub received: u64,
    /// Milliseconds spent waiting to be sent, summed.
    pub queue_ms: u64,
    /// Milliseconds from sending to the answer, summed.
    pub rtt_ms: u64,
    /// Milliseconds from beginning to end, summed.
    pub execute_ms: u64,
    /// Requests that ended with an error; absent before iostats 1.1.
    pub errors: Option<u64>,
}

/// A TCP transport of a mount. Mounts of the same server share transports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpTransport {
    /// Local port; 0 where the kernel does not track it.
    pub local_port: u64,
    /// Connections made so far, the first included.
    pub connects: u64,
    /// Seconds without use; 0 while not connected.
    pub idle_s: i64,
    /// Requests sent, repeats and replies to the server's callbacks included.
    pub sends: u64,
    /// Answers received.
    pub recvs: u64,
    /// Answers to requests that nobody waits for.
    pub bad_xids: u64,
    /// Sum over all sends of the requests waiting for a slot at that moment.
    pub backlog_sum: u64,
    /// Most slots used at once; absent in `statvers=1.0`.
    pub max_slots: Option<u64>,
}

/// A transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// TCP: everything is known.
    Tcp(TcpTransport),
    /// Another kind (`udp`, `rdma`, `local`), which stalls cannot be told from.
    Other(String),
}

/// How requests are authenticated, as RPC flavour numbers (1 is AUTH_SYS).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Security {
    /// `flavor=`.
    pub flavor: u32,
    /// `pseudoflavor=`, where there is one.
    pub pseudoflavor: Option<u32>,
}

/// What mountstats says of one NFS mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountStats {
    /// Where it is.
    pub point: PathBuf,
    /// Where it comes from.
    pub source: Option<Source>,
    /// `statvers=`.
    pub version: Option<String>,
    /// The options, defaults included, unlike mountinfo's.
    pub options: Option<String>,
    /// Time since the mount; absent where the line is.
    pub age: Option<Duration>,
    /// The `sec:` line.
    pub security: Option<Security>,
    /// The lease that the server grants (`lease_time=`, NFS 4, newer kernels).
    pub lease: Option<Duration>,
    /// For how long the lease has been over, as the client reckons; zero while it is good.
    pub lease_over: Option<Duration>,
    /// NFS4ERR_DELAY and JUKEBOX answers (26th counter of `events:`).
    pub delays: Option<u64>,
    /// Version of the RPC part: `1.0` or `1.1`.
    pub rpc_version: Option<String>,
    /// The transports: several with `nconnect`.
    pub transports: Vec<Transport>,
    /// Per operation, by the kernel's name for it.
    pub ops: BTreeMap<String, OpStats>,
}

impl MountStats {
    /// The transports, if all are TCP and there is one at all.
    #[must_use]
    pub fn tcp(&self) -> Option<Vec<TcpTransport>> {
        let tcp: Option<Vec<_>> = self.transports.iter().map(Transport::tcp).collect();
        tcp.filter(|t| !t.is_empty())
    }
}

impl Transport {
    fn tcp(&self) -> Option<TcpTransport> {
        match self {
            Self::Tcp(t) => Some(*t),
            Self::Other(_) => None,
        }
    }
}

/// The NFS mounts of a mountstats table.
#[must_use]
pub fn parse(table: &[u8]) -> Parsed<MountStats> {
    let mut out = Parsed::default();
    let mut open: Option<MountStats> = None;
    for (number, line) in table.split(|b| *b == b'\n').enumerate() {
        if line.starts_with(b"device ") || line.starts_with(b"no device ") {
            out.entries.extend(open.take());
            match head(line) {
                Ok(mount) => open = mount,
                Err(what) => out.problem(number + 1, what),
            }
        } else if let Some(mount) = open.as_mut()
            && let Err(what) = body(mount, &String::from_utf8_lossy(line))
        {
            out.problem(number + 1, what);
        }
    }
    out.entries.extend(open);
    out
}

/// `device SOURCE mounted on POINT with fstype TYPE statvers=1.1`; blanks in names are escaped.
fn head(line: &[u8]) -> Result<Option<MountStats>, &'static str> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let at = fields.windows(2).position(|w| w == [b"mounted".as_slice(), b"on"]);
    let on = at.ok_or("no mount point")? + 2;
    let words = fields.get(on + 1..on + 3) == Some(&[b"with".as_slice(), b"fstype"]);
    let fstype = fields.get(on + 3).filter(|_| words).ok_or("no file system type")?;
    if !is_nfs(fstype) {
        return Ok(None);
    }
    let version = fields.get(on + 4).and_then(|f| f.strip_prefix(b"statvers="));
    Ok(Some(MountStats {
        point: fields.get(on).map(|f| escape::path(f)).ok_or("no mount point")?,
        source: fields.get(1).and_then(|f| source(f)),
        version: version.map(escape::text),
        ..MountStats::default()
    }))
}

/// One of the indented lines below a head. Unknown ones are passed over.
fn body(mount: &mut MountStats, line: &str) -> Result<(), &'static str> {
    let Some((key, rest)) = line.trim().split_once(':') else {
        return Ok(());
    };
    let rest = rest.trim();
    match key {
        "opts" => mount.options = Some(rest.to_owned()),
        "age" => {
            mount.age = Some(Duration::from_secs(rest.parse().map_err(|_| "age")?));
        }
        "sec" => mount.security = Some(security(rest).ok_or("sec")?),
        "nfsv4" => lease(mount, rest),
        "events" => mount.delays = rest.split_whitespace().nth(25).and_then(|n| n.parse().ok()),
        "RPC iostats version" => {
            mount.rpc_version = rest.split_whitespace().next().map(str::to_owned);
        }
        "xprt" => mount.transports.push(transport(rest)?),
        "impl_id" | "caps" | "bytes" | "fsc" => {}
        name => operation(mount, name, rest)?,
    }
    Ok(())
}

fn keyed<'a>(list: &'a str, key: &str) -> Option<&'a str> {
    list.split(',').find_map(|o| o.trim().strip_prefix(key)?.strip_prefix('='))
}

fn security(list: &str) -> Option<Security> {
    let pseudoflavor = match keyed(list, "pseudoflavor") {
        Some(text) => Some(text.parse().ok()?),
        None => None,
    };
    Some(Security { flavor: keyed(list, "flavor")?.parse().ok()?, pseudoflavor })
}

fn lease(mount: &mut MountStats, list: &str) {
    let seconds = |key| keyed(list, key)?.parse().ok().map(Duration::from_secs);
    mount.lease = seconds("lease_time");
    mount.lease_over = seconds("lease_expired");
}

fn transport(rest: &str) -> Result<Transport, &'static str> {
    let mut fields = rest.split_whitespace();
    match fields.next().ok_or("xprt without a kind")? {
        "tcp" => tcp(&fields.collect::<Vec<_>>()).map(Transport::Tcp).ok_or("xprt: tcp"),
        other => Ok(Transport::Other(other.to_owned())),
    }
}

/// srcport, binds, connects, connect time, idle, sends, recvs, bad xids, requests, backlog, and
/// since `statvers=1.1` slots, sending, pending.
fn tcp(fields: &[&str]) -> Option<TcpTransport> {
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(TcpTransport {
        local_port: number(0)?,
        connects: number(2)?,
        idle_s: fields.get(4)?.parse().ok()?,
        sends: number(5)?,
        recvs: number(6)?,
        bad_xids: number(7)?,
        backlog_sum: number(9)?,
        max_slots: number(10),
    })
}

/// `NAME: ops ntrans timeouts sent received queue rtt execute [errors]`.
fn operation(mount: &mut MountStats, name: &str, rest: &str) -> Result<(), &'static str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty()
        || !name.chars().all(plain)
        || !rest.starts_with(|c: char| c.is_ascii_digit())
    {
        return Ok(());
    }
    let numbers: Option<Vec<u64>> = rest.split_whitespace().map(|n| n.parse().ok()).collect();
    let stats = numbers.as_deref().and_then(op_stats).ok_or("numbers of an operation")?;
    mount.ops.insert(name.to_owned(), stats);
    Ok(())
}

fn op_stats(numbers: &[u64]) -> Option<OpStats> {
    let &[
        ops,
        transmissions,
        timeouts,
        sent,
        received,
        queue_ms,
        rtt_ms,
        execute_ms,
        ref more @ ..,
    ] = numbers
    else {
        return None;
    };
    Some(OpStats {
        ops,
        transmissions,
        timeouts,
        sent,
        received,
        queue_ms,
        rtt_ms,
        execute_ms,
        errors: more.first().copied(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NEW: &str = "\
device sysfs mounted on /sys with fstype sysfs
device /dev/vda1 mounted on / with fstype ext4
no device mounted on /odd with fstype autofs
device 192.0.2.50:/vm mounted on /var/lib/libvirt/my\\040images with fstype nfs4 statvers=1.1
\topts:\trw,vers=4.2,rsize=1048576,wsize=1048576,namlen=255,acregmin=3,acregmax=60,acdirmin=30,acdirmax=60,hard,proto=tcp,nconnect=2,timeo=50,retrans=2,sec=sys,clientaddr=192.0.2.11,local_lock=none
\tage:\t4711
\timpl_id:\tname='',domain='',date='0,0'
\tcaps:\tcaps=0xfffbc0b7,wtmult=512,dtsize=1048576,bsize=0,namlen=255
\tnfsv4:\tbm0=0xfdffbfff,bm1=0xf9be3e,bm2=0x68800,acl=0x3,sessions,pnfs=not configured,lease_time=15,lease_expired=0
\tsec:\tflavor=1,pseudoflavor=1
\tevents:\t21 311 0 2 14 3 331 90 0 12 0 88 0 3 9 1 0 6 0 0 88 0 0 0 0 7 0 
\tbytes:\t8192 409600 131072 1048576 139264 1458176 2 100 
\tRPC iostats version: 1.1  p/v: 100003/4 (nfs)
\txprt:\ttcp 0 0 3 0 1 1204 1201 0 1790 4 17 33 1200
\txprt:\ttcp 0 0 2 0 0 800 800 1 900 0 9 10 800
\tper-op statistics
\t        NULL: 2 2 0 88 48 0 1 1 0
\t        READ: 34 35 1 7276 142000 2 51 55 0
\t       WRITE: 356 360 4 1530000 62000 30 8100 8140 2
\t       CLONE: 0 0 0 0 0 0 0 0 0
\t    SEQUENCE: 300 300 0 45000 24000 5 90 99 0
\tRECLAIM_COMPLETE: 2 2 0 300 176 0 4 4 0

device tmpfs mounted on /run with fstype tmpfs
";

    const OLD: &str = "\
device nas:/old mounted on /mnt with fstype nfs statvers=1.0
\topts:\trw,vers=3,rsize=32768,wsize=32768,hard,proto=tcp,timeo=600,retrans=2
\tage:\t15
\tcaps:\tcaps=0x3fcf,wtmult=4096,dtsize=4096,bsize=0,namlen=255
\tsec:\tflavor=1
\tevents:\t1 2 3
\tbytes:\t0 0 0 0 0 0 0 0
\tRPC iostats version: 1.0  p/v: 100003/3 (nfs)
\txprt:\ttcp 892 1 18 0 -1 4273352751 4273352082 647 2458711903768 0
\tper-op statistics
\t        NULL: 0 0 0 0 0 0 0 0
\t     GETATTR: 17 18 1 100 200 3 4 5
\t          23: 1 1 0 1 1 0 0 0
";

    #[test]
    fn the_present_format() {
        let parsed = parse(NEW.as_bytes());
        assert_eq!(parsed.problems, vec![]);
        assert_eq!(parsed.entries.len(), 1);
        let m = &parsed.entries[0];
        assert_eq!(m.point, PathBuf::from("/var/lib/libvirt/my images"));
        assert_eq!(m.source.as_ref().unwrap().to_string(), "192.0.2.50:/vm");
        assert_eq!(m.version.as_deref(), Some("1.1"));
        assert_eq!(m.rpc_version.as_deref(), Some("1.1"));
        assert_eq!(m.age, Some(Duration::from_secs(4711)));
        assert_eq!(m.security, Some(Security { flavor: 1, pseudoflavor: Some(1) }));
        assert_eq!(m.lease, Some(Duration::from_secs(15)));
        assert_eq!(m.lease_over, Some(Duration::ZERO));
        assert_eq!(m.delays, Some(7));
        assert!(m.options.as_ref().unwrap().contains("nconnect=2"));
    }

    #[test]
    fn transports_one_by_one() {
        let m = parse(NEW.as_bytes()).entries.remove(0);
        let tcp = m.tcp().unwrap();
        assert_eq!(tcp.len(), 2);
        assert_eq!((tcp[0].connects, tcp[0].sends, tcp[0].recvs), (3, 1204, 1201));
        assert_eq!((tcp[0].backlog_sum, tcp[0].max_slots), (4, Some(17)));
        assert_eq!((tcp[1].bad_xids, tcp[1].idle_s), (1, 0));
    }

    #[test]
    fn operations() {
        let m = parse(NEW.as_bytes()).entries.remove(0);
        let write = m.ops["WRITE"];
        assert_eq!((write.ops, write.transmissions, write.timeouts), (356, 360, 4));
        assert_eq!((write.rtt_ms, write.execute_ms, write.errors), (8100, 8140, Some(2)));
        assert_eq!(m.ops["RECLAIM_COMPLETE"].ops, 2);
        assert_eq!(m.ops.len(), 6);
    }

    #[test]
    fn the_old_format_lacks_errors_and_slots() {
        let parsed = parse(OLD.as_bytes());
        assert_eq!(parsed.problems, vec![]);
        let m = &parsed.entries[0];
        let tcp = m.tcp().unwrap()[0];
        assert_eq!((tcp.local_port, tcp.connects, tcp.idle_s), (892, 18, -1));
        assert_eq!(tcp.max_slots, None);
        assert_eq!(m.ops["GETATTR"].errors, None);
        assert_eq!(m.ops["23"].ops, 1, "an operation without a name");
        assert_eq!((m.lease, m.delays), (None, None));
        assert_eq!(m.security, Some(Security { flavor: 1, pseudoflavor: None }));
    }

    #[test]
    fn another_transport_is_no_tcp() {
        let text = NEW.replace("tcp 0 0 2", "rdma 0 0 2");
        let m = parse(text.as_bytes()).entries.remove(0);
        assert_eq!(m.transports[1], Transport::Other("rdma".into()));
        assert_eq!(m.tcp(), None);
    }

    #[test]
    fn broken_numbers_are_told_and_hide_nothing_else() {
        let text =
            NEW.replace("tcp 0 0 3 0 1 1204", "tcp 0 0 3 0 1 x").replace("34 35 1", "34 35 y");
        let parsed = parse(text.as_bytes());
        let what: Vec<_> = parsed.problems.iter().map(|p| p.what).collect();
        assert_eq!(what, ["xprt: tcp", "numbers of an operation"]);
        assert_eq!(parsed.entries[0].transports.len(), 1);
        assert!(parsed.entries[0].ops.contains_key("WRITE"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(table in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&table);
        }

        #[test]
        fn a_damaged_table_is_survived(at in 0..NEW.len(), with in any::<u8>(), cut in 0..NEW.len()) {
            let mut table = NEW.as_bytes().to_vec();
            table[at] = with;
            let _ = parse(&table);
            let _ = parse(&table[..cut]);
        }

        #[test]
        fn counters_come_back(sends in any::<u64>(), recvs in any::<u64>(), connects in any::<u64>(),
                              idle in any::<i64>()) {
            let line = format!("tcp 0 0 {connects} 0 {idle} {sends} {recvs} 0 0 0 0 0 0 77 78");
            let Ok(Transport::Tcp(t)) = transport(&line) else {
                return Err(TestCaseError::fail("no tcp"));
            };
            prop_assert_eq!((t.sends, t.recvs, t.connects, t.idle_s), (sends, recvs, connects, idle));
        }
    }
}
