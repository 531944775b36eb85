//! A little world per test: a "switch" namespace with a bridge, a host namespace with the parent
//! interface, the service's namespace with the macvlan, and a client. Needs root.
#![allow(dead_code, clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use nasd_net::addr::{self, IfAddr, Lifetime};
use nasd_net::gate::Gate;
use nasd_net::link::{self, MacvlanSpec, service_mac};
use nasd_net::{Netns, NetnsWorker};

pub const LIMIT: Duration = Duration::from_secs(5);
pub const VIP: &str = "10.77.0.9";
pub const VIP6: &str = "fd77::9";
pub const CLIENT: &str = "10.77.0.2";
pub const CLIENT6: &str = "fd77::2";

/// Runs a tool in a namespace and says whether it succeeded.
pub fn tool(netns: &Netns, line: &str) -> bool {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    netns.enter_on_exec(&mut command);
    command.status().unwrap().success()
}

/// As [`tool`], and must succeed.
pub fn must(netns: &Netns, line: &str) {
    assert!(tool(netns, line), "{line}");
}

/// Output of a tool.
pub fn output(netns: &Netns, line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    netns.enter_on_exec(&mut command);
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

pub fn wait_for(what: &str, limit: Duration, mut check: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !check() {
        assert!(Instant::now() < until, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Two nodes' hosts and one client on one bridge.
pub struct World {
    names: Vec<String>,
    pub client: Netns,
    pub nodes: Vec<Node>,
    pub bpffs: tempfile::TempDir,
}

pub struct Node {
    pub host: NetnsWorker,
    pub service: NetnsWorker,
    pub spec: MacvlanSpec,
}

impl World {
    pub fn new(tag: &str, nodes: usize) -> Self {
        let name = |part: &str| format!("nt{}-{tag}-{part}", std::process::id());
        let mut names = Vec::new();
        let mut make = |part: &str| {
            names.push(name(part));
            Netns::create(&name(part)).unwrap()
        };
        let switch = make("sw");
        must(&switch, "ip link add br0 type bridge");
        must(&switch, "ip link set br0 up");
        let client = make("cl");
        plug(&switch, &client, &name("cl"), "c");
        must(&client, "ip link set lo up");
        must(&client, &format!("ip addr add {CLIENT}/24 dev eth0"));
        must(&client, &format!("ip addr add {CLIENT6}/64 dev eth0 nodad"));
        let nodes = (0..nodes)
            .map(|number| {
                let host = make(&format!("h{number}"));
                plug(&switch, &host, &name(&format!("h{number}")), &format!("h{number}"));
                let service = make(&format!("s{number}"));
                Node {
                    host: NetnsWorker::start(&host).unwrap(),
                    service: NetnsWorker::start(&service).unwrap(),
                    spec: MacvlanSpec {
                        name: "svc0".into(),
                        parent: "eth0".into(),
                        mac: service_mac("vms"),
                    },
                }
            })
            .collect();
        let bpffs = tempfile::tempdir().unwrap();
        let here = Netns::current().unwrap();
        must(&here, &format!("mount -t bpf bpf {}", bpffs.path().display()));
        Self { names, client, nodes, bpffs }
    }

    /// Stands a node up with its gate, shut, and no address.
    pub fn stand_up(&self, number: usize) -> Gate {
        let node = &self.nodes[number];
        link::ensure_macvlan(&node.host, &node.service, &node.spec, LIMIT).unwrap();
        link::prepare(&node.service, "svc0", LIMIT).unwrap();
        let gate = Gate::install_or_adopt(&node.service, "svc0", &self.pin(number), LIMIT).unwrap();
        link::set_up(&node.service, "svc0", LIMIT).unwrap();
        gate
    }

    pub fn pin(&self, number: usize) -> std::path::PathBuf {
        self.bpffs.path().join("nasd").join(format!("vms{number}"))
    }

    /// Puts both service addresses on.
    pub fn address(&self, number: usize) {
        for (ip, prefix) in [(VIP, 24), (VIP6, 64)] {
            let address = IfAddr { ip: ip.parse().unwrap(), prefix };
            addr::add(&self.nodes[number].service, "svc0", address, Lifetime::FOREVER, LIMIT)
                .unwrap();
        }
    }

    pub fn unaddress(&self, number: usize) {
        for (ip, prefix) in [(VIP, 24), (VIP6, 64)] {
            let address = IfAddr { ip: ip.parse().unwrap(), prefix };
            assert!(addr::delete(&self.nodes[number].service, "svc0", address, LIMIT).unwrap());
        }
    }

    /// The client asks for a port that nobody listens on, with empty neighbour tables, so that
    /// ARP is part of it: a refusal is an answer, silence is none.
    pub fn reachable(&self, ip: &str) -> bool {
        tool(&self.client, "ip neigh flush all");
        let to = SocketAddr::new(Self::ip(ip), 9);
        let ask = || TcpStream::connect_timeout(&to, Duration::from_millis(700));
        match self.client.run(ask).unwrap() {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        }
    }

    pub fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.bpffs.path()).status();
        for name in &self.names {
            let _ = Netns::remove(name);
        }
    }
}

/// A cable from the bridge to `eth0` of a namespace.
fn plug(switch: &Netns, to: &Netns, to_name: &str, port: &str) {
    must(switch, &format!("ip link add {port} type veth peer name eth0 netns {to_name}"));
    must(switch, &format!("ip link set {port} master br0 up"));
    must(to, "ip link set eth0 up");
}
