//! Questions and answers of the three cache channels, as lines.
//!
//! Questions: `ip_map_request`, `svc_export_request`, `expkey_request`; answers: `ip_map_parse`,
//! `svc_export_parse`, `expkey_parse`. The same in Linux 6.1, 6.12 and 7.2.
//!
//! The fourth channel, `auth.unix.gid`, is not opened on purpose: without a reader the kernel
//! uses the groups the client sent, at once; with one it asks for each user, and 6.1 takes an
//! empty answer for "no groups".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use std::os::unix::ffi::OsStrExt;

use super::qword;

/// How a file handle names its file system (`enum nfsd_fsid`); only kinds that nasd hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsidKey {
    /// `FSID_NUM`, 4 bytes in host order; 0 is the NFSv4 root.
    Number(u32),
    /// `FSID_UUID16`: the root of a file system known by its UUID.
    Uuid([u8; 16]),
    /// Any other kind: never ours.
    Other(u32),
}

/// A question of the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Which domain does this client address belong to?
    Address {
        /// `nfsd`, or another RPC program's class.
        class: Vec<u8>,
        /// The client.
        address: IpAddr,
    },
    /// What may the domain do with this path?
    Export {
        /// The domain.
        domain: Vec<u8>,
        /// The path, as the kernel sees it.
        path: Vec<u8>,
    },
    /// Which path is this file system at, for the domain?
    FileSystem {
        /// The domain.
        domain: Vec<u8>,
        /// Kind as a number, for the answer.
        kind: u32,
        /// Bytes of the key, for the answer.
        raw: Vec<u8>,
        /// The key, read.
        key: FsidKey,
    },
}

const FSID_NUM: u32 = 1;
const FSID_UUID16: u32 = 6;

impl Request {
    /// A line of `auth.unix.ip`.
    pub fn parse_address(line: &[u8]) -> Option<Self> {
        let [class, address] = <[Vec<u8>; 2]>::try_from(qword::split(line)).ok()?;
        let text = std::str::from_utf8(&address).ok()?;
        Some(Request::Address { class, address: parse_ip(text)? })
    }

    /// A line of `nfsd.export`.
    pub fn parse_export(line: &[u8]) -> Option<Self> {
        let [domain, path] = <[Vec<u8>; 2]>::try_from(qword::split(line)).ok()?;
        Some(Request::Export { domain, path })
    }

    /// A line of `nfsd.fh`.
    pub fn parse_file_system(line: &[u8]) -> Option<Self> {
        let [domain, kind, raw] = <[Vec<u8>; 3]>::try_from(qword::split(line)).ok()?;
        let kind = std::str::from_utf8(&kind).ok()?.parse().ok()?;
        let key = fsid_key(kind, &raw);
        Some(Request::FileSystem { domain, kind, raw, key })
    }
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    let v4 = || text.parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    v4().or_else(|| text.parse::<Ipv6Addr>().ok().map(|a| a.to_canonical()))
}

fn fsid_key(kind: u32, raw: &[u8]) -> FsidKey {
    let number = || Some(FsidKey::Number(u32::from_ne_bytes(raw.try_into().ok()?)));
    let uuid = || Some(FsidKey::Uuid(raw.try_into().ok()?));
    let key = match kind {
        FSID_NUM => number(),
        FSID_UUID16 => uuid(),
        _ => None,
    };
    key.unwrap_or(FsidKey::Other(kind))
}

/// Kind and bytes of a key, as they stand in a line.
pub(super) fn key_parts(key: FsidKey) -> (u32, Vec<u8>) {
    match key {
        FsidKey::Number(number) => (FSID_NUM, number.to_ne_bytes().to_vec()),
        FsidKey::Uuid(uuid) => (FSID_UUID16, uuid.to_vec()),
        FsidKey::Other(kind) => (kind, Vec::new()),
    }
}

/// How an export is entered in the kernel's cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) flags: u32,
    pub(super) anon_uid: u32,
    pub(super) anon_gid: u32,
    pub(super) uuid: Option<[u8; 16]>,
}

fn word(line: &mut Vec<u8>, value: impl std::fmt::Display) {
    qword::add(line, value.to_string().as_bytes());
}

fn finish(mut line: Vec<u8>) -> Vec<u8> {
    line.push(b'\n');
    line
}

/// `class address expiry [domain]`; without a domain the client is refused.
pub(super) fn answer_address(
    class: &[u8],
    address: IpAddr,
    expiry: u64,
    domain: Option<&str>,
) -> Vec<u8> {
    let mut line = Vec::new();
    qword::add(&mut line, class);
    word(&mut line, address);
    word(&mut line, expiry);
    if let Some(domain) = domain {
        qword::add(&mut line, domain.as_bytes());
    }
    finish(line)
}

/// `domain path expiry [flags anonuid anongid fsid [uuid UUID]]`; without flags: not exported.
pub(super) fn answer_export(
    domain: &[u8],
    path: &[u8],
    expiry: u64,
    terms: Option<&Terms>,
) -> Vec<u8> {
    let mut line = Vec::new();
    qword::add(&mut line, domain);
    qword::add(&mut line, path);
    word(&mut line, expiry);
    if let Some(terms) = terms {
        word(&mut line, terms.flags);
        // The kernel reads signed numbers (`get_int`).
        word(&mut line, terms.anon_uid.cast_signed());
        word(&mut line, terms.anon_gid.cast_signed());
        word(&mut line, 0);
        if let Some(uuid) = &terms.uuid {
            qword::add(&mut line, b"uuid");
            qword::add_hex(&mut line, uuid);
        }
    }
    finish(line)
}

/// `domain kind key expiry [path]`; without a path there is no such file system.
pub(super) fn answer_file_system(
    domain: &[u8],
    kind: u32,
    raw: &[u8],
    expiry: u64,
    path: Option<&Path>,
) -> Vec<u8> {
    let mut line = Vec::new();
    qword::add(&mut line, domain);
    word(&mut line, kind);
    qword::add_hex(&mut line, raw);
    word(&mut line, expiry);
    if let Some(path) = path {
        qword::add(&mut line, path.as_os_str().as_bytes());
    }
    finish(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn questions_as_the_kernel_asks_them() {
        assert_eq!(
            Request::parse_address(b"nfsd 192.0.2.7\n"),
            Some(Request::Address {
                class: b"nfsd".to_vec(),
                address: "192.0.2.7".parse().unwrap()
            })
        );
        // %pI6 prints every group in full.
        let v6 = Request::parse_address(b"nfsd 2001:0db8:0000:0000:0000:0000:0000:0007\n");
        assert!(matches!(v6, Some(Request::Address { address, .. })
            if address == "2001:db8::7".parse::<IpAddr>().unwrap()));
        assert_eq!(
            Request::parse_export(b"dom /srv/nasd/a\\040b\n"),
            Some(Request::Export { domain: b"dom".to_vec(), path: b"/srv/nasd/a b".to_vec() })
        );
    }

    #[test]
    fn file_system_keys() {
        let zero = Request::parse_file_system(b"dom 1 \\x00000000\n").unwrap();
        assert!(matches!(zero, Request::FileSystem { key: FsidKey::Number(0), kind: 1, .. }));
        let uuid = b"dom 6 \\x000102030405060708090a0b0c0d0e0f\n";
        let want: [u8; 16] = std::array::from_fn(|i| i as u8);
        assert!(matches!(Request::parse_file_system(uuid).unwrap(),
            Request::FileSystem { key: FsidKey::Uuid(u), kind: 6, .. } if u == want));
        let device = Request::parse_file_system(b"dom 0 \\x0011223344556677\n").unwrap();
        assert!(matches!(device, Request::FileSystem { key: FsidKey::Other(0), .. }));
    }

    #[test]
    fn answers_in_the_kernel_s_form() {
        let ip = "192.0.2.7".parse().unwrap();
        assert_eq!(answer_address(b"nfsd", ip, 99, Some("d1")), b"nfsd 192.0.2.7 99 d1 \n");
        assert_eq!(answer_address(b"nfsd", ip, 99, None), b"nfsd 192.0.2.7 99 \n");
        let terms =
            Terms { flags: 0x400, anon_uid: u32::MAX, anon_gid: 65534, uuid: Some([0xab; 16]) };
        assert_eq!(
            answer_export(b"d", b"/v", 9, Some(&terms)),
            format!("d /v 9 1024 -1 65534 0 uuid \\x{} \n", "ab".repeat(16)).into_bytes()
        );
        assert_eq!(answer_export(b"d", b"/v", 9, None), b"d /v 9 \n");
        assert_eq!(
            answer_file_system(b"d", 1, &[0; 4], 9, Some(Path::new("/r"))),
            b"d 1 \\x00000000 9 /r \n"
        );
        assert_eq!(answer_file_system(b"d", 1, &[0; 4], 9, None), b"d 1 \\x00000000 9 \n");
    }

    proptest! {
        #[test]
        fn no_line_panics(line in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Request::parse_address(&line);
            let _ = Request::parse_export(&line);
            let _ = Request::parse_file_system(&line);
        }
    }
}
