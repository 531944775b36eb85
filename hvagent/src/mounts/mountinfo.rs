//! NFS mounts out of `/proc/self/mountinfo`: which server, through which address, how.
//!
//! The table is made by the kernel from memory; reading it never waits for a server (S10). A line
//! that is not understood may be an NFS mount and is reported, not skipped (S12).

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::options::NfsOptions;
use super::{Parsed, escape};

/// Where a mount comes from: `server:/path`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The server as it was given to mount: a name or an address, without brackets.
    pub server: String,
    /// The path on the server.
    pub path: PathBuf,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.server.contains(':') {
            true => write!(f, "[{}]:{}", self.server, self.path.display()),
            false => write!(f, "{}:{}", self.server, self.path.display()),
        }
    }
}

/// One NFS mount of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NfsMount {
    /// The kernel's number of the mount; used anew after an unmount.
    pub id: u32,
    /// Number of the mount that it hangs on.
    pub parent: u32,
    /// Major and minor of the anonymous device: mounts that share it share one superblock.
    pub device: (u32, u32),
    /// What of the file system is mounted: `/` unless it is a bind mount.
    pub root: PathBuf,
    /// Where it is.
    pub point: PathBuf,
    /// Where it comes from.
    pub source: Source,
    /// The options in force.
    pub options: NfsOptions,
    /// The mount point itself is read-only (`ro` there, or of the superblock).
    pub read_only: bool,
}

impl NfsMount {
    /// The address that the transport uses, or that the source names.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.options.address.or_else(|| super::options::address(&self.source.server))
    }

    /// Whether `file` lies on this mount, by its name alone: nothing is looked up, so symbolic
    /// links are not followed.
    #[must_use]
    pub fn holds(&self, file: &Path) -> bool {
        file.starts_with(&self.point)
    }
}

/// The mount that `file` lies on, by name: the deepest one, of those that are equally deep the
/// latest, which hides the others.
#[must_use]
pub fn holding<'a>(mounts: &'a [NfsMount], file: &Path) -> Option<&'a NfsMount> {
    let depth = |m: &NfsMount| m.point.components().count();
    mounts.iter().filter(|m| m.holds(file)).max_by_key(|m| depth(m))
}

/// The NFS mounts of a mountinfo table.
#[must_use]
pub fn parse(table: &[u8]) -> Parsed<NfsMount> {
    let mut out = Parsed::default();
    let lines = table.split(|b| *b == b'\n').enumerate();
    for (number, line) in lines.filter(|(_, l)| !l.is_empty()) {
        match entry(line) {
            Ok(Some(mount)) => out.entries.push(mount),
            Ok(None) => {}
            Err(what) => out.problem(number + 1, what),
        }
    }
    out
}

/// Whether a file-system type is NFS (not `nfsd`, the server's control file system).
#[must_use]
pub(super) fn is_nfs(fstype: &[u8]) -> bool {
    fstype == b"nfs" || fstype == b"nfs4"
}

fn entry(line: &[u8]) -> Result<Option<NfsMount>, &'static str> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    // Optional tags lie between the sixth field and a lone dash.
    let dash = fields.iter().skip(6).position(|f| *f == b"-").ok_or("no separator")? + 6;
    let fstype = fields.get(dash + 1).ok_or("no file system type")?;
    if !is_nfs(fstype) {
        return Ok(None);
    }
    mount(&fields, dash).map(Some)
}

fn mount(fields: &[&[u8]], dash: usize) -> Result<NfsMount, &'static str> {
    let field = |at: usize, what| fields.get(at).copied().ok_or(what);
    let own = String::from_utf8_lossy(field(5, "no mount options")?);
    let options =
        NfsOptions::parse(&String::from_utf8_lossy(field(dash + 3, "no superblock options")?));
    Ok(NfsMount {
        id: number(field(0, "no mount id")?).ok_or("mount id")?,
        parent: number(field(1, "no parent id")?).ok_or("parent id")?,
        device: device(field(2, "no device")?).ok_or("device")?,
        root: escape::path(field(3, "no root")?),
        point: escape::path(field(4, "no mount point")?),
        source: source(field(dash + 2, "no source")?).ok_or("source is not server:/path")?,
        read_only: options.read_only || own.split(',').any(|o| o == "ro"),
        options,
    })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn device(field: &[u8]) -> Option<(u32, u32)> {
    let colon = field.iter().position(|b| *b == b':')?;
    Some((number(field.get(..colon)?)?, number(field.get(colon + 1..)?)?))
}

/// `server:/path`, `[fd00::1]:/path`, or, as the kernel shows some, `fd00::1:/path`.
pub(super) fn source(field: &[u8]) -> Option<Source> {
    let raw = escape::octal(field);
    let at = raw.windows(2).position(|w| w == b":/")?;
    let (server, path) = (raw.get(..at)?, raw.get(at + 1..)?);
    let server = String::from_utf8_lossy(server);
    let bare = server.strip_prefix('[').and_then(|s| s.strip_suffix(']')).unwrap_or(&server);
    if bare.is_empty() {
        return None;
    }
    use std::os::unix::ffi::OsStrExt;
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(path));
    Some(Source { server: bare.to_owned(), path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::options::Patience;
    use proptest::prelude::*;

    const TABLE: &[u8] = b"\
21 27 0:19 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
58 27 0:45 / /proc/fs/nfsd rw,relatime shared:31 - nfsd nfsd rw
212 27 0:52 / /var/lib/libvirt/images rw,relatime shared:118 - nfs4 192.0.2.50:/vm rw,vers=4.2,rsize=1048576,wsize=1048576,namlen=255,hard,proto=tcp,timeo=50,retrans=2,sec=sys,clientaddr=192.0.2.11,local_lock=none,addr=192.0.2.50
219 27 0:57 / /srv/my\\040disks ro,relatime - nfs nas1.example.net:/old\\134data rw,vers=3,rsize=65536,wsize=65536,namlen=255,soft,nolock,proto=tcp,timeo=600,retrans=2,sec=sys,mountaddr=192.0.2.1,mountvers=3,mountport=20048,mountproto=udp,local_lock=all,addr=192.0.2.1
230 212 0:52 /iso /var/lib/libvirt/images/iso rw,relatime shared:118 master:3 propagate_from:2 - nfs4 [fd00::50]:/vm/iso rw,vers=4.1,hard,proto=tcp6,addr=fd00::50
";

    #[test]
    fn the_nfs_mounts_are_found_and_the_control_file_system_is_not() {
        let parsed = parse(TABLE);
        assert_eq!(parsed.problems, vec![]);
        let points: Vec<_> = parsed.entries.iter().map(|m| m.point.to_str().unwrap()).collect();
        assert_eq!(
            points,
            ["/var/lib/libvirt/images", "/srv/my disks", "/var/lib/libvirt/images/iso"]
        );
    }

    #[test]
    fn a_mount_is_described() {
        let m = &parse(TABLE).entries[0];
        assert_eq!((m.id, m.parent, m.device), (212, 27, (0, 52)));
        assert_eq!(m.source.to_string(), "192.0.2.50:/vm");
        assert_eq!(m.address(), Some("192.0.2.50".parse().unwrap()));
        assert_eq!(m.options.patience, Patience::Hard);
        assert!(!m.read_only);
    }

    #[test]
    fn escapes_names_and_read_only() {
        let m = &parse(TABLE).entries[1];
        assert_eq!(m.source.server, "nas1.example.net");
        assert_eq!(m.source.path, PathBuf::from("/old\\data"));
        assert_eq!(m.options.patience, Patience::Soft);
        assert!(m.read_only, "the mount point is, though the superblock is not");
    }

    #[test]
    fn sources_with_ipv6_addresses() {
        let bracketed = parse(TABLE).entries[2].source.clone();
        assert_eq!(bracketed.server, "fd00::50");
        assert_eq!(bracketed.to_string(), "[fd00::50]:/vm/iso");
        assert_eq!(source(b"fd00::50:/vm/iso"), Some(bracketed));
        assert_eq!(source(b":/x"), None);
        assert_eq!(source(b"nfs"), None);
    }

    #[test]
    fn the_deepest_mount_holds_a_file() {
        let mounts = parse(TABLE).entries;
        let on = |p: &str| holding(&mounts, Path::new(p)).map(|m| m.id);
        assert_eq!(on("/var/lib/libvirt/images/a.qcow2"), Some(212));
        assert_eq!(on("/var/lib/libvirt/images/iso/d.iso"), Some(230));
        assert_eq!(on("/var/lib/libvirt/images-old/a"), None);
    }

    #[test]
    fn a_broken_line_hides_no_other_and_is_told() {
        let mut table = b"garbage\n212 27 0:52 / /x rw - nfs4 nosource rw\n".to_vec();
        table.extend_from_slice(TABLE);
        let parsed = parse(&table);
        assert_eq!(parsed.entries.len(), 3);
        let lines: Vec<_> = parsed.problems.iter().map(|p| p.line).collect();
        assert_eq!(lines, [1, 2]);
    }

    fn word() -> impl Strategy<Value = String> {
        "[a-zA-Z0-9/ \\\\#._-]{1,30}"
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(table in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&table);
        }

        #[test]
        fn a_damaged_table_is_survived(at in 0..TABLE.len(), with in any::<u8>(), cut in 0..TABLE.len()) {
            let mut table = TABLE.to_vec();
            table[at] = with;
            let _ = parse(&table);
            let _ = parse(&table[..cut]);
        }

        #[test]
        fn any_point_comes_back(point in word(), path in word()) {
            let esc = |s: &str| s.replace('\\', "\\134").replace(' ', "\\040").replace('#', "\\043");
            let line = format!("9 1 0:9 / /{} rw - nfs4 nas:/{} rw,vers=4.2\n", esc(&point), esc(&path));
            let parsed = parse(line.as_bytes());
            prop_assert_eq!(&parsed.entries[0].point, &PathBuf::from(format!("/{point}")));
            prop_assert_eq!(&parsed.entries[0].source.path, &PathBuf::from(format!("/{path}")));
        }
    }
}
