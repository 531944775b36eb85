//! Parsers of what the control files say. Total: any text gives a value, never a panic.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The content of `versions`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionSet {
    tokens: Vec<(bool, String)>,
}

impl VersionSet {
    /// Reads `-2 +3 +4 -4.0 +4.1 …`; words without a sign are left out.
    pub fn parse(text: &str) -> Self {
        let sign = |word: &str| match word.split_at_checked(1) {
            Some(("+", version)) => Some((true, version.to_owned())),
            Some(("-", version)) => Some((false, version.to_owned())),
            _ => None,
        };
        VersionSet { tokens: text.split_whitespace().filter_map(sign).collect() }
    }

    fn state(&self, version: &str) -> Option<bool> {
        self.tokens.iter().find(|(_, v)| v == version).map(|(on, _)| *on)
    }

    /// Is `version` served? Minor version 0 is reported only when it is off
    /// (`nfsd_print_version_support`), so its absence beside `+4` means on.
    pub fn serves(&self, version: &str) -> bool {
        match version {
            "4.0" => self.state("4") == Some(true) && self.state("4.0") != Some(false),
            other => self.state(other) == Some(true),
        }
    }

    /// Exactly what nasd wants served.
    pub fn only_v41_and_v42(&self) -> bool {
        let wanted = self.serves("4") && self.serves("4.1") && self.serves("4.2");
        let on = self.tokens.iter().filter(|(on, _)| *on).count();
        wanted && on == 3 && !self.serves("4.0")
    }
}

/// `tcp 2049` lines of `portlist`.
pub(super) fn listeners(text: &str) -> Vec<(String, u16)> {
    let line = |line: &str| {
        let (transport, port) = line.trim().split_once(' ')?;
        Some((transport.to_owned(), port.trim().parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Counters of one thread pool (`svc_pool_stats_show`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolStats {
    /// Pool number.
    pub pool: u32,
    /// Messages that arrived.
    pub packets: u64,
    /// Times a connection had to wait for a thread.
    pub queued: u64,
    /// Times a thread was woken.
    pub woken: u64,
}

/// Lines of `pool_stats`; comments and broken lines are left out.
pub(super) fn pool_stats(text: &str) -> Vec<PoolStats> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some(PoolStats {
            pool: words.next()?.parse().ok()?,
            packets: words.next()?.parse().ok()?,
            queued: words.next()?.parse().ok()?,
            woken: words.next()?.parse().ok()?,
        })
    };
    text.lines().filter_map(line).collect()
}

/// Operations of NFSv4 that the probe of this crate uses itself (RFC 8881 section 16): GETATTR,
/// LOOKUP, PUTROOTFH, EXCHANGE_ID, CREATE_SESSION, DESTROY_SESSION, SEQUENCE, DESTROY_CLIENTID.
const OF_PROBES: [usize; 8] = [9, 15, 24, 42, 43, 44, 53, 57];

/// Operations completed by clients' work, from `/proc/net/rpc/nfsd` (`proc4ops`: a count, then
/// one number per operation). What a probe does itself is left out: a server on which only the
/// first half of each probe succeeds makes no progress. None: the line is not there or broken.
pub(super) fn operations(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("proc4ops "))?;
    let mut words = line.split_whitespace();
    let count: usize = words.next()?.parse().ok()?;
    let numbers: Vec<u64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
    if numbers.len() != count || numbers.is_empty() {
        return None;
    }
    let of_clients = numbers.iter().enumerate().filter(|(op, _)| !OF_PROBES.contains(op));
    Some(of_clients.fold(0, |sum, (_, number)| u64::wrapping_add(sum, *number)))
}

/// One client of the server (`client_info_show`). Unknown keys are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientInfo {
    /// The server's number for it.
    pub id: u64,
    /// Where it speaks from; absent where the kernel's text cannot be read.
    pub address: Option<SocketAddr>,
    /// `confirmed`, `unconfirmed`, `courtesy` or `expirable`.
    pub status: String,
    /// Its owner string (`co_ownerid`), unescaped.
    pub name: Vec<u8>,
    /// Minor version it uses.
    pub minor_version: Option<u32>,
    /// Seconds since it last renewed its lease.
    pub renewed_s: Option<i64>,
    /// State of the callback channel, as `UP`.
    pub callback_state: String,
}

impl ClientInfo {
    /// Reads the content of `clients/*/info`; no client id, no client.
    pub fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            let find = |line: &str| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim().into());
            text.lines().find_map(find) as Option<String>
        };
        let id = value("clientid")?;
        Some(ClientInfo {
            id: u64::from_str_radix(id.strip_prefix("0x")?, 16).ok()?,
            address: value("address").and_then(|v| v.trim_matches('"').parse().ok()),
            status: value("status").unwrap_or_default(),
            name: value("name").map(|v| unquote(&v)).unwrap_or_default(),
            minor_version: value("minor version").and_then(|v| v.parse().ok()),
            renewed_s: value("seconds from last renew").and_then(|v| v.parse().ok()),
            callback_state: value("callback state").unwrap_or_default(),
        })
    }

    /// Is it known to have renewed nothing for longer than a lease of so many seconds? Unknown is no (S12).
    #[must_use]
    pub fn is_silent(&self, lease_s: u32) -> bool {
        self.renewed_s.is_some_and(|s| s > i64::from(lease_s))
    }
}

/// Undoes `seq_quote_mem`: quotes around, `\xHH` for bytes that are not printable.
fn unquote(text: &str) -> Vec<u8> {
    let bytes = text.strip_prefix('"').unwrap_or(text).as_bytes();
    let bytes = bytes.strip_suffix(b"\"").unwrap_or(bytes);
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        match hex_escape(rest) {
            Some(byte) => {
                out.push(byte);
                rest = rest.get(4..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

fn hex_escape(bytes: &[u8]) -> Option<u8> {
    let digits = bytes.strip_prefix(b"\\x")?.get(..2)?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_as_kernels_print_them() {
        assert!(VersionSet::parse("-2 -3 +4 -4.0 +4.1 +4.2\n").only_v41_and_v42());
        assert!(VersionSet::parse("-3 +4 -4.0 +4.1 +4.2\n").only_v41_and_v42());
        for bad in [
            "-3 +4 +4.1 +4.2",
            "+3 +4 -4.0 +4.1 +4.2",
            "-3 +4 -4.0 -4.1 +4.2",
            "-3 -4 -4.0 -4.1 -4.2",
            "-3 +4 -4.0 +4.1 +4.2 +4.3",
            "",
        ] {
            assert!(!VersionSet::parse(bad).only_v41_and_v42(), "{bad}");
        }
    }

    #[test]
    fn listener_lines() {
        assert_eq!(listeners("tcp 2049\ntcp 2049\n"), vec![("tcp".to_owned(), 2049); 2]);
        assert!(listeners("tcp\nudp x\n\n").is_empty());
    }

    #[test]
    fn pool_lines_of_both_kernels() {
        let text = "# pool packets-arrived sockets-enqueued threads-woken threads-timedout\n\
                    0 12 3 9 0\n";
        assert_eq!(pool_stats(text), [PoolStats { pool: 0, packets: 12, queued: 3, woken: 9 }]);
    }

    #[test]
    fn operations_of_clients_are_summed_without_those_of_probes() {
        let line = |at: &[(usize, u64)]| {
            let mut numbers = vec![0; 76];
            at.iter().for_each(|(op, n)| numbers[*op] = *n);
            let words: Vec<String> = numbers.iter().map(ToString::to_string).collect();
            format!("rc 0 1 2\nio 5 6\nproc4 2 1 9\nproc4ops 76 {}\n", words.join(" "))
        };
        // WRITE 38, COMMIT 5; SEQUENCE 53 and LOOKUP 15 are a probe's as well.
        assert_eq!(operations(&line(&[(38, 7), (5, 2), (53, 100), (15, 50)])), Some(9));
        assert_eq!(operations(&line(&[])), Some(0));
    }

    #[test]
    fn broken_or_missing_counters_are_unknown() {
        for text in
            ["", "rc 0 1\n", "proc4ops\n", "proc4ops 2 1\n", "proc4ops 2 1 x\n", "proc4ops 0\n"]
        {
            assert_eq!(operations(text), None, "{text:?}");
        }
    }

    #[test]
    fn client_info_of_6_12() {
        let text = "clientid: 0x65f0c1d200000003\naddress: \"192.0.2.7:884\"\n\
            status: confirmed\nseconds from last renew: 4\n\
            name: \"Linux NFSv4.2 hv1\\x22\"\nminor version: 2\n\
            Implementation domain: \"kernel.org\"\n\
            Implementation name: \"name: x\"\nImplementation time: [0, 0]\n\
            callback state: UP\ncallback address: \"192.0.2.7:0\"\nadmin-revoked states: 0\n";
        let info = ClientInfo::parse(text).unwrap();
        assert_eq!(info.id, 0x65f0_c1d2_0000_0003);
        assert_eq!(info.address, Some("192.0.2.7:884".parse().unwrap()));
        assert_eq!(info.name, b"Linux NFSv4.2 hv1\"");
        assert_eq!((info.minor_version, info.renewed_s), (Some(2), Some(4)));
        assert_eq!((info.status.as_str(), info.callback_state.as_str()), ("confirmed", "UP"));
    }

    #[test]
    fn client_with_ipv6_address_and_missing_keys() {
        let info = ClientInfo::parse("clientid: 0x1\naddress: \"[2001:db8::7]:884\"\n").unwrap();
        assert_eq!(info.address, Some("[2001:db8::7]:884".parse().unwrap()));
        assert_eq!(info.minor_version, None);
        assert_eq!(ClientInfo::parse("address: \"192.0.2.7:884\"\n"), None);
    }

    /// How the kernel quotes (`seq_escape_mem` with `ESCAPE_HEX | ESCAPE_NAP`).
    fn quote(name: &[u8]) -> String {
        let escape = |b: &u8| match b {
            b'"' | b'\\' => format!("\\x{b:02x}"),
            b' '..=b'~' => char::from(*b).to_string(),
            _ => format!("\\x{b:02x}"),
        };
        format!("\"{}\"", name.iter().map(escape).collect::<String>())
    }

    proptest! {
        #[test]
        fn any_name_survives_quoting(name in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(unquote(&quote(&name)), name);
        }

        #[test]
        fn no_text_panics(text in ".*\n?.*") {
            let _ = (ClientInfo::parse(&text), pool_stats(&text), listeners(&text));
            let _ = VersionSet::parse(&text).only_v41_and_v42();
            let _ = unquote(&text);
        }
    }
}
