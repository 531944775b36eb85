//! Messages as the kernel lays them out, and a kernel that answers from a script.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::abi::Abi;
use crate::commands::TransportError;
use crate::socket::{Answer, Transport};
use crate::wire::attr::Writer;
use crate::wire::request::Request;

/// Builds the kernel's messages for resource `r0` with literal numbers, not with our tables.
#[derive(Clone, Copy)]
pub(crate) struct Kernel(pub Abi);

pub(crate) const EXISTS: u32 = 0;
pub(crate) const CREATE: u32 = 1;
pub(crate) const CHANGE: u32 = 2;
pub(crate) const DESTROY: u32 = 3;

impl Kernel {
    /// Disk state UpToDate, as this interface numbers it.
    pub(crate) fn up_to_date(self) -> u32 {
        if self.0 == Abi::V84 { 8 } else { 9 }
    }

    fn answer(cmd: u8, minor: Option<u32>, attrs: Writer) -> Answer {
        Answer { cmd, seq: 0, minor, code: 101, attrs: attrs.finish() }
    }

    fn context(self, volume: Option<u32>, connection: bool) -> Writer {
        let mut inner = Writer::default();
        if let Some(volume) = volume {
            inner = inner.u32(1, volume);
        }
        inner = inner.text(2, "r0");
        if connection && self.0 == Abi::V9 {
            inner = inner.u32(6, 1).text(5, "nas2");
        } else if connection {
            inner = inner.bytes(3, &address(1)).bytes(4, &address(2));
        }
        Writer::default().nest(2, inner)
    }

    fn header(kind: u32) -> Writer {
        Writer::default().u32(1, kind)
    }

    pub(crate) fn resource(self, kind: u32, role: u32, susp_fen: bool) -> Answer {
        let info = Writer::default().u32(1, role).flag(2, false).flag(3, false).flag(4, susp_fen);
        let mut attrs = self.context(None, false).nest(23, Self::header(kind));
        if kind != DESTROY {
            attrs = attrs.nest(15, info);
        }
        Self::answer(34, None, attrs)
    }

    pub(crate) fn device(self, kind: u32, volume: u32, disk: u32) -> Answer {
        let stats = Writer::default()
            .bytes(1, &2048u64.to_ne_bytes())
            .bytes(12, &0xabcd_0001_u64.to_ne_bytes())
            .bytes(14, &[0x77u64.to_ne_bytes(), 0u64.to_ne_bytes()].concat());
        let mut attrs = self.context(Some(volume), false).nest(23, Self::header(kind));
        if kind != DESTROY {
            attrs = attrs.nest(16, Writer::default().u32(1, disk));
        }
        Self::answer(35, Some(10 + volume), attrs.nest(20, stats))
    }

    pub(crate) fn connection(self, kind: u32, state: u32, role: u32) -> Answer {
        let mut attrs = self.context(None, true).nest(23, Self::header(kind));
        if kind != DESTROY {
            attrs = attrs.nest(17, Writer::default().u32(1, state).u32(2, role));
        }
        Self::answer(36, None, attrs)
    }

    pub(crate) fn peer_device(self, kind: u32, volume: u32, repl: u32, disk: u32) -> Answer {
        let mut attrs = self.context(Some(volume), true).nest(23, Self::header(kind));
        if kind != DESTROY {
            attrs = attrs.nest(18, Writer::default().u32(1, repl).u32(2, disk));
        }
        let stats = Writer::default().bytes(5, &8u64.to_ne_bytes());
        Self::answer(37, None, attrs.nest(22, stats))
    }

    pub(crate) fn done(self) -> Answer {
        Self::answer(41, None, Writer::default().nest(23, Self::header(EXISTS)))
    }

    pub(crate) fn reply(cmd: u8, code: i32, texts: &[&str]) -> Answer {
        let attrs = texts
            .iter()
            .fold(Writer::default(), |attrs, text| attrs.nest(1, Writer::default().text(1, text)));
        Answer { code, ..Self::answer(cmd, None, attrs) }
    }

    /// Options as rule S1 wants them.
    pub(crate) fn net_conf(self) -> Writer {
        let mut net = Writer::default().u32(6, 3).u32(8, 20).u32(9, 3);
        for policy in [17, 18, 19, 20] {
            net = net.u32(policy, 0);
        }
        net = net.flag(24, false).flag(27, false);
        if self.0 == Abi::V9 { net.u32(30, 2) } else { net.text(1, "secret").flag(25, true) }
    }

    /// The four dumps of a resource with two volumes, healthy and connected.
    pub(crate) fn healthy(self) -> Dumps {
        let resource = Writer::default().u32(2, 1);
        let resource =
            if self.0 == Abi::V9 { resource.flag(3, false).u32(11, 0) } else { resource };
        let mut disk = Writer::default().text(1, "/dev/vg/r0").u32(6, 2).u32(20, 0);
        if self.0 == Abi::V84 {
            disk = disk.u32(7, 2);
        }
        let disk_of = |volume| {
            let attrs = self.context(Some(volume), false).nest(3, disk.clone());
            Self::answer(31, Some(10 + volume), attrs)
        };
        let up = self.up_to_date();
        Dumps {
            resources: vec![Self::answer(30, None, self.context(None, false).nest(4, resource))],
            devices: vec![disk_of(0), disk_of(1)],
            connections: vec![Self::answer(
                32,
                None,
                self.context(None, true).nest(5, self.net_conf()),
            )],
            state: vec![
                self.resource(EXISTS, 2, false),
                self.connection(EXISTS, 9, 2),
                self.device(EXISTS, 0, up),
                self.device(EXISTS, 1, up),
                self.peer_device(EXISTS, 0, 10, up),
                self.peer_device(EXISTS, 1, 10, up),
                self.done(),
            ],
        }
    }
}

fn address(host: u8) -> Vec<u8> {
    let mut raw = 2u16.to_ne_bytes().to_vec();
    raw.extend_from_slice(&[0x1e, 0x6c, 10, 0, 0, host]);
    raw.resize(16, 0);
    raw
}

/// What the scripted kernel answers to dumps.
#[derive(Clone, Default)]
pub(crate) struct Dumps {
    pub resources: Vec<Answer>,
    pub devices: Vec<Answer>,
    pub connections: Vec<Answer>,
    pub state: Vec<Answer>,
}

/// Answers commands from a script and remembers them.
#[derive(Clone)]
pub(crate) struct Fake {
    pub abi: Abi,
    pub dumps: Dumps,
    pub answers: Arc<Mutex<VecDeque<Result<Answer, TransportError>>>>,
    pub asked: Arc<Mutex<Vec<Request>>>,
    /// Set when the first command comes: the caller gives up during it.
    pub gives_up: Arc<AtomicBool>,
}

impl Fake {
    pub(crate) fn new(abi: Abi, codes: &[i32]) -> Self {
        let answers = codes.iter().map(|code| Ok(Kernel::reply(0, *code, &[]))).collect();
        Self {
            abi,
            dumps: Kernel(abi).healthy(),
            answers: Arc::new(Mutex::new(answers)),
            asked: Arc::default(),
            gives_up: Arc::default(),
        }
    }

    /// Command and minor of every request.
    pub(crate) fn asked(&self) -> Vec<(u8, Option<u32>)> {
        self.asked.lock().unwrap().iter().map(|request| (request.cmd, request.minor)).collect()
    }
}

impl Transport for Fake {
    fn abi(&self) -> Abi {
        self.abi
    }

    fn request(&mut self, request: &Request) -> Result<Answer, TransportError> {
        self.gives_up.store(true, Ordering::Relaxed);
        self.asked.lock().unwrap().push(request.clone());
        self.answers.lock().unwrap().pop_front().expect("the script has an answer")
    }

    fn dump(&mut self, request: &Request) -> Result<Vec<Answer>, TransportError> {
        Ok(match request.cmd {
            30 => self.dumps.resources.clone(),
            31 => self.dumps.devices.clone(),
            32 => self.dumps.connections.clone(),
            38 => self.dumps.state.clone(),
            other => panic!("unexpected dump {other}"),
        })
    }
}
