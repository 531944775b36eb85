//! The options of an NFS mount as the kernel shows them: what is in force, not what was asked for.
//!
//! Unsaid stays unsaid: an option that is absent or malformed is `None`, never a default (S12).

use std::net::IpAddr;

/// Version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NfsVersion {
    /// 2, 3 or 4.
    pub major: u8,
    /// 0 for versions 2 and 3.
    pub minor: u8,
}

impl std::fmt::Display for NfsVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.major {
            4 => write!(f, "4.{}", self.minor),
            other => write!(f, "{other}"),
        }
    }
}

/// What happens to a request that is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Patience {
    /// Waits for ever: the only safe one for guests' disks.
    Hard,
    /// The kernel said nothing of it.
    Unsaid,
    /// Fails with ETIMEDOUT.
    SoftErr,
    /// Fails with EIO.
    Soft,
}

/// The options of one mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NfsOptions {
    /// `vers=`.
    pub version: Option<NfsVersion>,
    /// `hard`, `soft` or `softerr`; the least patient where several are shown.
    pub patience: Patience,
    /// Attributes may be revalidated from the cache when the server is silent (`softreval`).
    pub softreval: bool,
    /// `ro`.
    pub read_only: bool,
    /// `proto=`: tcp, tcp6, rdma, udp.
    pub transport: Option<String>,
    /// `addr=`: the server as the transport sees it, without an IPv6 zone.
    pub address: Option<IpAddr>,
    /// `port=`; absent means 2049 for version 4.
    pub port: Option<u16>,
    /// `timeo=`, tenths of a second.
    pub timeo_ds: Option<u32>,
    /// `retrans=`.
    pub retrans: Option<u32>,
    /// `nconnect=`; absent means one connection.
    pub nconnect: Option<u32>,
    /// `local_lock=`: none, flock, posix, all. Anything but none keeps locks from the server.
    pub local_lock: Option<String>,
    /// `nolock` (versions 2 and 3).
    pub nolock: bool,
    /// `sec=`.
    pub security: Option<String>,
    /// All of them, in the kernel's order.
    pub all: Vec<(String, Option<String>)>,
}

impl NfsOptions {
    /// Of a comma-separated list. Never fails: what is not understood is unsaid.
    #[must_use]
    pub fn parse(list: &str) -> Self {
        let all: Vec<_> = list.split(',').filter(|o| !o.is_empty()).map(pair).collect();
        let value = |key: &str| single(&all, key);
        let given = |key: &str| all.iter().any(|(k, v)| k == key && v.is_none());
        Self {
            version: value("vers").and_then(version),
            patience: patience(&given),
            softreval: given("softreval"),
            read_only: given("ro"),
            transport: value("proto").map(str::to_owned),
            address: value("addr").and_then(address),
            port: number(value("port")),
            timeo_ds: number(value("timeo")),
            retrans: number(value("retrans")),
            nconnect: number(value("nconnect")),
            local_lock: value("local_lock").map(str::to_owned),
            nolock: given("nolock"),
            security: value("sec").map(str::to_owned),
            all,
        }
    }

    /// When the kernel gives up on a connection and says «not responding»: `timeo` once and once
    /// for every retransmission, as for TCP the waiting time grows by `timeo` each time.
    #[must_use]
    pub fn major_timeout(&self) -> Option<std::time::Duration> {
        let tries = u64::from(self.retrans?).saturating_add(1);
        let tenths = u64::from(self.timeo_ds?).checked_mul(tries)?;
        Some(std::time::Duration::from_millis(tenths.checked_mul(100)?))
    }
}

/// An address as the kernel prints it, perhaps with a zone (`fe80::1%eth0`).
#[must_use]
pub fn address(text: &str) -> Option<IpAddr> {
    text.split('%').next().unwrap_or(text).parse().ok()
}

fn pair(option: &str) -> (String, Option<String>) {
    match option.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
        None => (option.to_owned(), None),
    }
}

/// The value of `key`, if all that are shown agree: two that differ say nothing.
fn single<'a>(all: &'a [(String, Option<String>)], key: &str) -> Option<&'a str> {
    let mut values = all.iter().filter(|(k, _)| k == key).map(|(_, v)| v.as_deref());
    let first = values.next()??;
    values.all(|v| v == Some(first)).then_some(first)
}

fn number<T: std::str::FromStr>(value: Option<&str>) -> Option<T> {
    value.and_then(|v| v.parse().ok())
}

fn patience(given: &impl Fn(&str) -> bool) -> Patience {
    match (given("soft"), given("softerr"), given("hard")) {
        (true, _, _) => Patience::Soft,
        (_, true, _) => Patience::SoftErr,
        (_, _, true) => Patience::Hard,
        _ => Patience::Unsaid,
    }
}

fn version(text: &str) -> Option<NfsVersion> {
    let (major, minor) = text.split_once('.').unwrap_or((text, "0"));
    Some(NfsVersion { major: major.parse().ok()?, minor: minor.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn a_usual_mount() {
        let o = NfsOptions::parse(
            "rw,vers=4.2,rsize=1048576,wsize=1048576,namlen=255,hard,proto=tcp,nconnect=2,timeo=50,\
             retrans=2,sec=sys,clientaddr=192.0.2.11,local_lock=none,addr=192.0.2.50",
        );
        assert_eq!(o.version, Some(NfsVersion { major: 4, minor: 2 }));
        assert_eq!(o.patience, Patience::Hard);
        assert_eq!(o.address, Some("192.0.2.50".parse().unwrap()));
        assert_eq!((o.timeo_ds, o.retrans, o.nconnect, o.port), (Some(50), Some(2), Some(2), None));
        assert_eq!(o.local_lock.as_deref(), Some("none"));
        assert_eq!(o.major_timeout(), Some(Duration::from_secs(15)));
        assert!(!o.read_only);
    }

    #[test]
    fn the_default_major_timeout_is_three_minutes() {
        let o = NfsOptions::parse("timeo=600,retrans=2");
        assert_eq!(o.major_timeout(), Some(Duration::from_secs(180)));
    }

    #[test]
    fn the_least_patient_counts_and_absence_is_no_promise() {
        assert_eq!(NfsOptions::parse("hard,soft").patience, Patience::Soft);
        assert_eq!(NfsOptions::parse("softerr,softreval").patience, Patience::SoftErr);
        assert_eq!(NfsOptions::parse("rw,vers=4.1").patience, Patience::Unsaid);
    }

    #[test]
    fn two_that_differ_say_nothing() {
        assert_eq!(NfsOptions::parse("vers=4.2,vers=3").version, None);
        assert_eq!(NfsOptions::parse("vers=4.1,vers=4.1").version.map(|v| v.minor), Some(1));
        assert_eq!(NfsOptions::parse("vers").version, None);
        assert_eq!(NfsOptions::parse("vers=4.x,addr=no,timeo=-1").version, None);
    }

    #[test]
    fn version_three_has_no_minor() {
        assert_eq!(NfsOptions::parse("vers=3").version.map(|v| v.to_string()), Some("3".into()));
        assert_eq!(
            NfsOptions::parse("vers=4.0").version.map(|v| v.to_string()),
            Some("4.0".into())
        );
    }

    #[test]
    fn a_zone_is_cut_off() {
        assert_eq!(address("fe80::1%eth0"), Some("fe80::1".parse().unwrap()));
        assert_eq!(address("fd00::50"), Some("fd00::50".parse().unwrap()));
        assert_eq!(address("nas"), None);
    }

    proptest! {
        #[test]
        fn anything_is_taken(list in ".{0,200}") {
            let o = NfsOptions::parse(&list);
            let _ = o.major_timeout();
            if !list.split(',').any(|w| w == "hard") {
                prop_assert_ne!(o.patience, Patience::Hard);
            }
        }
    }
}
