//! Exports, the clients allowed to use them, and the answers that follow from both.
//!
//! A client's *domain* is the set of exports it may use, written as a bit mask in hex, so two
//! clients with the same rights share cache entries. The loopback address has a domain of its
//! own, read-only, for the probe.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::lines::{self, FsidKey, Request, Terms};
use super::{ExportError, qword};

// `include/uapi/linux/nfsd/export.h`
const READONLY: u32 = 0x1;
const INSECURE_PORT: u32 = 0x2;
const ROOTSQUASH: u32 = 0x4;
const ALLSQUASH: u32 = 0x8;
const ASYNC: u32 = 0x10;
const NOSUBTREECHECK: u32 = 0x400;
const FSID: u32 = 0x2000;
const V4ROOT: u32 = 0x1_0000;

/// An entry stays this long; the kernel asks again after half of it, in the background.
const KEEP_S: u64 = 10 * 365 * 24 * 3600;
/// A refusal stays this long.
const REFUSE_S: u64 = 300;
/// The kernel's line buffer is a page, quoting takes four bytes for one.
const PATH_MAX: usize = 900;
const PROBE: &str = "nasd-probe";

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Does the range hold this address? An IPv4 range never holds an IPv6 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (bits(self.address), bits(address.to_canonical())) {
            ((mine, width), (other, same)) if width == same => {
                self.prefix == 0 || (mine ^ other) >> (width - u32::from(self.prefix)) == 0
            }
            _ => false,
        }
    }
}

/// The address as a number, and its width.
fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

impl FromStr for Cidr {
    type Err = ExportError;

    fn from_str(text: &str) -> Result<Self, ExportError> {
        let read = || {
            let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
            let address: IpAddr = address.parse().ok()?;
            let width = u8::try_from(bits(address).1).ok()?;
            let prefix = if prefix.is_empty() { width } else { prefix.parse().ok()? };
            (prefix <= width).then_some(Cidr { address, prefix })
        };
        read().ok_or_else(|| ExportError::BadCidr { text: text.into() })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.prefix)
    }
}

impl TryFrom<String> for Cidr {
    type Error = ExportError;

    fn try_from(text: String) -> Result<Self, ExportError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> String {
        cidr.to_string()
    }
}

/// UUID by which clients know an exported file system; bytes in the order they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FsUuid(pub [u8; 16]);

impl FromStr for FsUuid {
    type Err = ExportError;

    fn from_str(text: &str) -> Result<Self, ExportError> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let value = (digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .then(|| u128::from_str_radix(&digits, 16).ok())
            .flatten();
        let bad = || ExportError::BadUuid { text: text.into() };
        value.map(|v| FsUuid(v.to_be_bytes())).ok_or_else(bad)
    }
}

impl fmt::Display for FsUuid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", u128::from_be_bytes(self.0));
        let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
        let parts = [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)];
        out.write_str(&parts.join("-"))
    }
}

impl TryFrom<String> for FsUuid {
    type Error = ExportError;

    fn try_from(text: String) -> Result<Self, ExportError> {
        text.parse()
    }
}

impl From<FsUuid> for String {
    fn from(uuid: FsUuid) -> String {
        uuid.to_string()
    }
}

/// One exported file system: a mount point directly below the service's root directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// Mount point.
    pub path: PathBuf,
    /// Same on both nodes, unlike any other export's.
    pub uuid: FsUuid,
    /// Who may use it.
    pub clients: Vec<Cidr>,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Acknowledge writes before they are stable. Breaks the promise that no acknowledged write
    /// is lost; for tests.
    #[serde(default, rename = "async")]
    pub asynchronous: bool,
    /// Map user 0 to the anonymous user.
    #[serde(default)]
    pub root_squash: bool,
    /// Map every user to the anonymous user.
    #[serde(default)]
    pub all_squash: bool,
    /// Take requests from ports above 1023.
    #[serde(default)]
    pub insecure_ports: bool,
    /// The anonymous user.
    #[serde(default = "nobody")]
    pub anon_uid: u32,
    /// The anonymous group.
    #[serde(default = "nobody")]
    pub anon_gid: u32,
}

fn nobody() -> u32 {
    65534
}

impl Export {
    fn terms(&self, probe: bool) -> Terms {
        let pick = |on: bool, flag: u32| if on { flag } else { 0 };
        let flags = NOSUBTREECHECK
            | pick(self.read_only || probe, READONLY)
            | pick(self.asynchronous, ASYNC)
            | pick(self.root_squash, ROOTSQUASH)
            | pick(self.all_squash, ALLSQUASH)
            | pick(self.insecure_ports || probe, INSECURE_PORT);
        let (anon_uid, anon_gid) = (self.anon_uid, self.anon_gid);
        Terms { flags, anon_uid, anon_gid, uuid: Some(self.uuid.0) }
    }
}

/// All exports of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportTable {
    root: PathBuf,
    exports: Vec<Export>,
}

impl ExportTable {
    /// Checks that the exports fit together below `root`, the service's root directory.
    pub fn new(root: &Path, exports: Vec<Export>) -> Result<Self, ExportError> {
        check_path(root)?;
        for (index, export) in exports.iter().enumerate() {
            let path = &export.path;
            check_path(path)?;
            if path.parent() != Some(root) {
                return Err(ExportError::NotBelowRoot { path: path.clone(), root: root.into() });
            }
            let before = exports.get(..index).unwrap_or_default();
            if before.iter().any(|e| e.path == *path || e.uuid == export.uuid) {
                return Err(ExportError::Repeated { path: path.clone() });
            }
        }
        Ok(ExportTable { root: root.into(), exports })
    }

    /// The exports.
    pub fn exports(&self) -> &[Export] {
        &self.exports
    }

    /// The service's root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Domain of a client; none when it may use nothing.
    pub fn domain_of(&self, address: IpAddr) -> Option<String> {
        let address = address.to_canonical();
        if address.is_loopback() {
            return Some(PROBE.into());
        }
        let mut mask = vec![0_u8; self.exports.len().div_ceil(8)];
        for (index, export) in self.exports.iter().enumerate() {
            if export.clients.iter().any(|range| range.contains(address))
                && let Some(byte) = mask.get_mut(index / 8)
            {
                *byte |= 1 << (index % 8);
            }
        }
        let hex: String = mask.iter().map(|byte| format!("{byte:02x}")).collect();
        mask.iter().any(|byte| *byte != 0).then(|| format!("nasd-{hex}"))
    }

    /// Exports that a domain may use.
    fn visible<'a>(&'a self, domain: &[u8]) -> impl Iterator<Item = &'a Export> + use<'a> {
        let mask = Mask::parse(domain);
        self.exports.iter().enumerate().filter(move |(i, _)| mask.has(*i)).map(|(_, e)| e)
    }

    fn root_terms(&self, probe: bool) -> Terms {
        let insecure = probe || self.exports.iter().any(|export| export.insecure_ports);
        let port = if insecure { INSECURE_PORT } else { 0 };
        let flags = READONLY | ROOTSQUASH | NOSUBTREECHECK | FSID | V4ROOT | port;
        Terms { flags, anon_uid: nobody(), anon_gid: nobody(), uuid: None }
    }

    fn export_terms(&self, domain: &[u8], path: &[u8]) -> Option<Terms> {
        let probe = domain == PROBE.as_bytes();
        let mut visible = self.visible(domain).peekable();
        visible.peek()?;
        if path == self.root.as_os_str().as_bytes() {
            return Some(self.root_terms(probe));
        }
        visible.find(|e| e.path.as_os_str().as_bytes() == path).map(|e| e.terms(probe))
    }

    fn path_of(&self, domain: &[u8], key: FsidKey) -> Option<&Path> {
        let mut visible = self.visible(domain).peekable();
        visible.peek()?;
        match key {
            FsidKey::Number(0) => Some(&self.root),
            FsidKey::Uuid(uuid) => visible.find(|e| e.uuid.0 == uuid).map(|e| e.path.as_path()),
            FsidKey::Number(_) | FsidKey::Other(_) => None,
        }
    }

    /// The line to write in answer; `now` in seconds since 1970.
    pub fn answer(&self, request: &Request, now: u64) -> Vec<u8> {
        let expiry = |known: bool| now + if known { KEEP_S } else { REFUSE_S };
        match request {
            Request::Address { class, address } => {
                let domain = self.domain_of(*address);
                lines::answer_address(class, *address, expiry(domain.is_some()), domain.as_deref())
            }
            Request::Export { domain, path } => {
                let terms = self.export_terms(domain, path);
                lines::answer_export(domain, path, expiry(terms.is_some()), terms.as_ref())
            }
            Request::FileSystem { domain, kind, raw, key } => {
                let path = self.path_of(domain, *key);
                lines::answer_file_system(domain, *kind, raw, expiry(path.is_some()), path)
            }
        }
    }

    /// Addresses worth entering ahead: the clients known, the loopback, and the first address
    /// of each range, which makes the kernel know the domain of that range.
    fn seeds(&self, known: &[IpAddr]) -> Vec<IpAddr> {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let ranges = self.exports.iter().flat_map(|e| e.clients.iter().map(|c| c.address));
        let all: BTreeSet<IpAddr> = loopback
            .into_iter()
            .chain(known.iter().map(IpAddr::to_canonical))
            .chain(ranges)
            .filter(|address| !address.is_unspecified())
            .collect();
        all.into_iter().filter(|address| self.domain_of(*address).is_some()).collect()
    }

    /// The questions that clients would cause, to be answered before anyone asks; addresses
    /// first, because they create the domains that the others name.
    pub fn prefill(&self, known: &[IpAddr]) -> Vec<Request> {
        let seeds = self.seeds(known);
        let domains: BTreeSet<String> =
            seeds.iter().filter_map(|address| self.domain_of(*address)).collect();
        let address =
            |address: &IpAddr| Request::Address { class: b"nfsd".to_vec(), address: *address };
        let mut out: Vec<Request> = seeds.iter().map(address).collect();
        for domain in domains {
            let domain = domain.into_bytes();
            out.extend(entries(&domain, &self.root, FsidKey::Number(0)));
            let visible = self.visible(&domain);
            out.extend(visible.flat_map(|e| entries(&domain, &e.path, FsidKey::Uuid(e.uuid.0))));
        }
        out
    }
}

fn entries(domain: &[u8], path: &Path, key: FsidKey) -> [Request; 2] {
    let (kind, raw) = lines::key_parts(key);
    let path = path.as_os_str().as_bytes().to_vec();
    [
        Request::Export { domain: domain.to_vec(), path },
        Request::FileSystem { domain: domain.to_vec(), kind, raw, key },
    ]
}

fn check_path(path: &Path) -> Result<(), ExportError> {
    let bytes = path.as_os_str().as_bytes();
    let mut quoted = Vec::new();
    qword::add(&mut quoted, bytes);
    if path.is_absolute() && quoted.len() <= PATH_MAX && !bytes.contains(&0) {
        return Ok(());
    }
    Err(ExportError::BadPath { path: path.into() })
}

/// The set that a domain's name spells.
enum Mask {
    All,
    Bits(Vec<u8>),
}

impl Mask {
    fn parse(domain: &[u8]) -> Self {
        if domain == PROBE.as_bytes() {
            return Mask::All;
        }
        let hex = domain.strip_prefix(b"nasd-").unwrap_or_default();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        Mask::Bits(hex.chunks_exact(2).map_while(byte).collect())
    }

    fn has(&self, index: usize) -> bool {
        match self {
            Mask::All => true,
            Mask::Bits(bytes) => {
                bytes.get(index / 8).is_some_and(|byte| byte & (1 << (index % 8)) != 0)
            }
        }
    }
}

#[cfg(test)]
mod tests;
