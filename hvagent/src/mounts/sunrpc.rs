//! Transports as `/sys/kernel/sunrpc` shows them (kernel 5.14 and later): addresses, states, queues.
//!
//! The files are made from memory and take no lock that a dead server could hold (S10). Nothing is
//! ever written here: writing to them would disconnect or redirect a mount. Values that the kernel
//! refuses while a transport is not connected are `None` (S12).

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::options;

/// Where the kernel keeps the tree.
pub const ROOT: &str = "/sys/kernel/sunrpc";

/// Longest text that is read from one file; the kernel writes at most one page.
const PAGE: u64 = 4096;

/// Words of `xprt_state`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct State {
    /// A connection stands.
    pub connected: bool,
    /// One is being made.
    pub connecting: bool,
    /// The server has closed its side.
    pub close_wait: bool,
    /// It is being closed.
    pub closing: bool,
    /// Taken out of use by an administrator.
    pub offline: bool,
    /// A request holds it for sending.
    pub locked: bool,
}

/// Numbers of `xprt_info`; the kernel gives them only while connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Info {
    /// Requests sent and not answered.
    pub pending: u64,
    /// Requests waiting to be sent.
    pub sending: u64,
    /// Requests waiting for a slot.
    pub backlog: u64,
    /// Local port; 0 for what is not TCP.
    pub local_port: Option<u16>,
    /// Port of the server; absent on older kernels.
    pub server_port: Option<u16>,
    /// The first transport of its switch.
    pub main: bool,
}

/// One transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysTransport {
    /// Number of the switch: the mounts' clients that share it share its transports.
    pub switch: u32,
    /// Number of the transport.
    pub id: u32,
    /// `tcp`, `udp`, `rdma`, `local`.
    pub kind: String,
    /// Address of the server.
    pub server: Option<IpAddr>,
    /// `None`: not readable or not understood.
    pub state: Option<State>,
    /// `None`: not connected, or not readable.
    pub info: Option<Info>,
}

/// All transports below `root` (see [`ROOT`]), by switch and number.
///
/// # Errors
/// The directory of the switches cannot be listed; «not found» means that the kernel is older than
/// 5.14 or that `sunrpc` is not loaded. A transport that vanishes meanwhile is left out.
pub fn read(root: &Path) -> std::io::Result<Vec<SysTransport>> {
    let mut out = Vec::new();
    for (switch, directory) in numbered(&root.join("xprt-switches"), "switch-")? {
        let Ok(switch) = switch.parse() else { continue };
        let transports = numbered(&directory, "xprt-").unwrap_or_default();
        out.extend(transports.iter().filter_map(|(name, at)| transport(switch, name, at)));
    }
    out.sort_by_key(|t| (t.switch, t.id));
    Ok(out)
}

/// Requests that wait for an answer of `server` on any TCP transport. `None` where that is not
/// known: no transport to it, or one whose numbers the kernel does not give (not connected).
#[must_use]
pub fn pending(transports: &[SysTransport], server: IpAddr) -> Option<u64> {
    let to = transports.iter().filter(|t| t.server == Some(server) && t.kind == "tcp");
    let each: Option<Vec<u64>> = to.map(|t| t.info.map(|i| i.pending)).collect();
    each.filter(|e| !e.is_empty()).map(|e| e.iter().fold(0_u64, |sum, n| sum.saturating_add(*n)))
}

fn numbered(directory: &Path, prefix: &str) -> std::io::Result<Vec<(String, PathBuf)>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(rest) = name.to_str().and_then(|n| n.strip_prefix(prefix)) {
            out.push((rest.to_owned(), entry.path()));
        }
    }
    Ok(out)
}

fn transport(switch: u32, name: &str, at: &Path) -> Option<SysTransport> {
    let (id, kind) = name.split_once('-')?;
    let file = |name: &str| text(&at.join(name));
    Some(SysTransport {
        switch,
        id: id.parse().ok()?,
        kind: kind.to_owned(),
        server: file("dstaddr").and_then(|t| options::address(t.trim())),
        state: file("xprt_state").and_then(|t| state(&t)),
        info: file("xprt_info").and_then(|t| info(&t)),
    })
}

/// The kernel ends some of these texts with a NUL after the line end.
fn text(file: &Path) -> Option<String> {
    let mut raw = Vec::new();
    std::fs::File::open(file).ok()?.take(PAGE).read_to_end(&mut raw).ok()?;
    let text = String::from_utf8(raw).ok()?;
    Some(text.trim_end_matches(['\0', '\n', ' ']).to_owned())
}

/// `state=LOCKED CONNECTED  BOUND …`: absent words leave blanks. `state=CLOSED` when none is set.
#[must_use]
pub fn state(text: &str) -> Option<State> {
    let words: Vec<&str> = text.trim().strip_prefix("state=")?.split_whitespace().collect();
    let has = |word| words.contains(&word);
    (!words.is_empty()).then(|| State {
        connected: has("CONNECTED"),
        connecting: has("CONNECTING"),
        close_wait: has("CLOSE_WAIT"),
        closing: has("CLOSING"),
        offline: has("OFFLINE"),
        locked: has("LOCKED"),
    })
}

/// Lines of `key=number`.
#[must_use]
pub fn info(text: &str) -> Option<Info> {
    let number = |key: &str| {
        let value = text.lines().find_map(|l| l.trim().strip_prefix(key)?.strip_prefix('='))?;
        value.trim().parse::<u64>().ok()
    };
    let port = |key| number(key).and_then(|n| u16::try_from(n).ok()).filter(|p| *p != 0);
    Some(Info {
        pending: number("pending_q_len")?,
        sending: number("sending_q_len")?,
        backlog: number("backlog_q_len")?,
        local_port: port("src_port"),
        server_port: port("dst_port"),
        main: number("main_xprt") == Some(1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INFO: &str = "last_used=4295123456\ncur_cong=0\ncong_win=256\nmax_num_slots=65536\n\
        min_num_slots=2\nnum_reqs=6\nbinding_q_len=0\nsending_q_len=1\npending_q_len=4\n\
        backlog_q_len=2\nmain_xprt=1\nsrc_port=812\ntasks_queuelen=7\ndst_port=2049\n\0";

    fn tree(entries: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in entries {
            let file = root.path().join("xprt-switches").join(path);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, content).unwrap();
        }
        root
    }

    #[test]
    fn a_tree_is_read() {
        let root = tree(&[
            ("switch-1/xprt-3-tcp/dstaddr", "192.0.2.50\n\0"),
            ("switch-1/xprt-3-tcp/xprt_state", "state= CONNECTED   BOUND       \n\0"),
            ("switch-1/xprt-3-tcp/xprt_info", INFO),
            ("switch-1/xprt-4-tcp/dstaddr", "fd00::50\n"),
            ("switch-1/xprt-4-tcp/xprt_state", "state=LOCKED  CONNECTING  BOUND       \n"),
            ("switch-1/xprt_switch_info", "num_xprts=2\n"),
            ("switch-0/xprt-0-local/dstaddr", "/var/run/gssproxy.sock\n"),
            ("switch-x/xprt-9-tcp/dstaddr", "192.0.2.9\n"),
        ]);
        let all = read(root.path()).unwrap();
        let ids: Vec<_> = all.iter().map(|t| (t.switch, t.id)).collect();
        assert_eq!(ids, [(0, 0), (1, 3), (1, 4)]);
        assert_eq!((all[0].kind.as_str(), all[0].server), ("local", None));
        assert!(all[1].state.unwrap().connected);
        assert_eq!(all[1].info.unwrap().server_port, Some(2049));
        let second = all[2].state.unwrap();
        assert!(second.connecting && second.locked && !second.connected);
        assert_eq!(all[2].info, None);
    }

    #[test]
    fn waiting_requests_are_known_only_when_every_transport_tells() {
        let root = tree(&[
            ("switch-1/xprt-3-tcp/dstaddr", "192.0.2.50\n"),
            ("switch-1/xprt-3-tcp/xprt_info", INFO),
            ("switch-2/xprt-4-tcp/dstaddr", "192.0.2.51\n"),
        ]);
        let all = read(root.path()).unwrap();
        assert_eq!(pending(&all, "192.0.2.50".parse().unwrap()), Some(4));
        assert_eq!(pending(&all, "192.0.2.51".parse().unwrap()), None, "not connected");
        assert_eq!(pending(&all, "192.0.2.52".parse().unwrap()), None, "no transport");
    }

    #[test]
    fn a_kernel_without_the_tree_is_told() {
        let root = tempfile::tempdir().unwrap();
        let error = read(root.path()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    }

    #[test]
    fn states() {
        assert_eq!(state("state=CLOSED"), Some(State::default()));
        assert_eq!(state("state="), None);
        assert_eq!(state("CONNECTED"), None);
        assert!(!state("state=  CONNECTING   ").unwrap().connected);
    }

    #[test]
    fn numbers() {
        let i = info(INFO).unwrap();
        assert_eq!((i.pending, i.sending, i.backlog), (4, 1, 2));
        assert_eq!((i.local_port, i.main), (Some(812), true));
        assert_eq!(info("pending_q_len=1\nsending_q_len=0\n"), None, "a number is missing");
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,300}") {
            let _ = state(&text);
            let _ = info(&text);
        }

        #[test]
        fn numbers_come_back(pending in any::<u64>(), backlog in any::<u64>()) {
            let text = format!("sending_q_len=0\npending_q_len={pending}\nbacklog_q_len={backlog}\n");
            let i = info(&text).unwrap();
            prop_assert_eq!((i.pending, i.backlog), (pending, backlog));
        }
    }
}
