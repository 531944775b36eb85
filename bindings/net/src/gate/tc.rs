//! Owns the attachment of the gate's programs: clsact and two filters, by traffic-control netlink.
//!
//! Numbers: include/uapi/linux/{pkt_sched,pkt_cls,rtnetlink}.h.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use netlink_sys::protocols::NETLINK_ROUTE;

use super::Side;
use crate::netlink::{self, Failure, Netlink, find, put, put_text, read_u32, text};

const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;
const TCMSG: usize = 20;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
const ETH_P_ALL: u16 = 3;
/// First in line: nothing may accept a packet before the gate has seen it.
const PREFERENCE: u32 = 1;
const HANDLE: u32 = 1;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const DIRECT_ACTION: u32 = 1;

/// What stands in the gate's place on one side.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// A direct-action BPF filter, first in line; whether it is ours its id tells.
    Program(u32),
    Foreign(String),
}

/// A traffic-control conversation about one interface.
pub(super) struct Control {
    netlink: Netlink,
    index: u32,
    until: Instant,
}

type Outcome<T> = std::result::Result<T, Failure>;

impl Control {
    /// Opens it in the calling thread's namespace.
    pub(super) fn open(index: u32, until: Instant) -> Outcome<Self> {
        let netlink = Netlink::open(NETLINK_ROUTE).map_err(Failure::Kernel)?;
        Ok(Self { netlink, index, until })
    }

    /// Makes clsact; gives the kind of another queueing discipline in its place.
    pub(super) fn ensure_clsact(&mut self) -> Outcome<Option<String>> {
        let mut body = message(self.index, CLSACT_HANDLE, TC_H_CLSACT, 0);
        put_text(&mut body, TCA_KIND, "clsact");
        let flags = netlink::CREATE | netlink::EXCL;
        match self.netlink.request(RTM_NEWQDISC, flags, &body, self.until) {
            Err(failure) if failure.errno() == Some(libc::EEXIST) => self.other_than_clsact(),
            other => other.map(|_| None),
        }
    }

    /// "ingress" shares clsact's handle, but has no egress side.
    fn other_than_clsact(&mut self) -> Outcome<Option<String>> {
        let body = message(self.index, 0, 0, 0);
        let answer = self.netlink.request(RTM_GETQDISC, netlink::DUMP, &body, self.until)?;
        let kinds = answer.iter().filter_map(|entry| {
            let ours = read_u32(&entry.body, 4) == Some(self.index)
                && read_u32(&entry.body, 12) == Some(TC_H_CLSACT);
            find(entry.body.get(TCMSG..)?, TCA_KIND).filter(|_| ours).map(text)
        });
        Ok(kinds.into_iter().find(|kind| kind != "clsact"))
    }

    /// What stands first in line on that side.
    pub(super) fn inspect(&mut self, side: Side) -> Outcome<Found> {
        let body = message(self.index, 0, parent(side), 0);
        let answer = match self.netlink.request(RTM_GETTFILTER, netlink::DUMP, &body, self.until) {
            // No clsact, no filters.
            Err(failure) if failure.errno() == Some(libc::EINVAL) => return Ok(Found::Nothing),
            other => other?,
        };
        let entries = answer
            .iter()
            .filter(|entry| entry.kind == RTM_NEWTFILTER)
            .filter_map(|entry| describe(&entry.body));
        Ok(judge(entries))
    }

    /// Attaches `program`, replacing in one step what our place holds (`cls_bpf_change`).
    pub(super) fn attach(&mut self, side: Side, program: &OwnedFd, name: &str) -> Outcome<()> {
        let mut body = message(self.index, HANDLE, parent(side), place());
        put_text(&mut body, TCA_KIND, "bpf");
        let mut options = Vec::new();
        put(&mut options, TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
        put_text(&mut options, TCA_BPF_NAME, name);
        put(&mut options, TCA_BPF_FLAGS, &DIRECT_ACTION.to_ne_bytes());
        put(&mut body, TCA_OPTIONS, &options);
        let flags = netlink::CREATE | netlink::REPLACE;
        self.netlink.request(RTM_NEWTFILTER, flags, &body, self.until).map(drop)
    }

    /// Removes our filter; one that is not there is no failure.
    pub(super) fn detach(&mut self, side: Side) -> Outcome<()> {
        let mut body = message(self.index, HANDLE, parent(side), place());
        put_text(&mut body, TCA_KIND, "bpf");
        match self.netlink.request(RTM_DELTFILTER, 0, &body, self.until) {
            Err(failure) if matches!(failure.errno(), Some(libc::ENOENT | libc::EINVAL)) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// One filter of a dump.
#[derive(Clone, Debug)]
struct Entry {
    preference: u32,
    handle: u32,
    protocol: u16,
    kind: String,
    direct: bool,
    program: Option<u32>,
}

fn describe(body: &[u8]) -> Option<Entry> {
    let attributes = body.get(TCMSG..)?;
    let options = find(attributes, TCA_OPTIONS).unwrap_or_default();
    let info = read_u32(body, 16)?;
    let flags = find(options, TCA_BPF_FLAGS).and_then(|value| read_u32(value, 0)).unwrap_or(0);
    Some(Entry {
        preference: info >> 16,
        handle: read_u32(body, 8)?,
        protocol: u16::from_be((info & 0xffff) as u16),
        kind: find(attributes, TCA_KIND).map(text).unwrap_or_default(),
        direct: flags & DIRECT_ACTION != 0,
        program: find(options, TCA_BPF_ID).and_then(|value| read_u32(value, 0)),
    })
}

/// Judges a dump. Each preference is listed once with handle 0, for itself, before its filters.
fn judge(entries: impl Iterator<Item = Entry>) -> Found {
    let mut found = Found::Nothing;
    for entry in entries.filter(|entry| entry.preference <= PREFERENCE) {
        let foreign =
            || Found::Foreign(format!("{} filter at preference {}", entry.kind, entry.preference));
        if entry.kind != "bpf" || entry.protocol != ETH_P_ALL {
            return foreign();
        }
        match (entry.handle, entry.program) {
            (0, _) => {}
            (HANDLE, Some(program)) if entry.direct => found = Found::Program(program),
            _ => return foreign(),
        }
    }
    found
}

/// `struct tcmsg`.
fn message(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    for word in [0, index, handle, parent, info] {
        out.extend_from_slice(&u32::to_ne_bytes(word));
    }
    out
}

const fn parent(side: Side) -> u32 {
    match side {
        Side::Ingress => INGRESS,
        Side::Egress => EGRESS,
    }
}

/// Preference above, protocol in network byte order below.
const fn place() -> u32 {
    PREFERENCE << 16 | ETH_P_ALL.to_be() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ours() -> Entry {
        Entry {
            preference: PREFERENCE,
            handle: HANDLE,
            protocol: ETH_P_ALL,
            kind: "bpf".into(),
            direct: true,
            program: Some(7),
        }
    }

    #[test]
    fn only_a_filter_in_our_place_counts() {
        let head = Entry { handle: 0, program: None, direct: false, ..ours() };
        let later = Entry { preference: 2, kind: "u32".into(), ..ours() };
        assert_eq!(judge([head.clone(), ours(), later.clone()].into_iter()), Found::Program(7));
        assert_eq!(judge([later].into_iter()), Found::Nothing);
        assert_eq!(judge([head.clone()].into_iter()), Found::Nothing);
        for wrong in [
            Entry { handle: 2, ..ours() },
            Entry { direct: false, ..ours() },
            Entry { kind: "u32".into(), ..ours() },
            Entry { protocol: 0x0800, ..ours() },
        ] {
            let judged = judge([head.clone(), ours(), wrong.clone()].into_iter());
            assert!(matches!(judged, Found::Foreign(_)), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn foreign_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = describe(&bytes);
        }
    }
}
