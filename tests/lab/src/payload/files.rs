//! The files that make a node of the image this node of this lab.

use std::fmt::Write as _;

use crate::engine::Engine;
use crate::spec::{Node, Role};
use crate::wire::PORT;

/// DRBD's resources: name, minor, letter of the disk below, port.
pub const RESOURCES: [(&str, u8, char, u16); 2] = [("r0", 0, 'b', 7788), ("r1", 1, 'c', 7789)];

/// A script that a scenario may leave on a NAS node's own disk: run in each boot, after the node's files are there and
/// before anything uses the data disks.
pub const BOOT_HOOK: &str = "/etc/lab/boot";

/// The script that sets the node up, as early in its boot as possible.
pub fn setup(engine: Engine, node: &Node) -> String {
    let (lab, management) = (engine.interface(), engine.management_interface());
    let (a4, a6, am) = (node.address(), node.address6(), node.management());
    let mut text = format!(
        "set -eu\n\
         echo {name} > /proc/sys/kernel/hostname\n\
         cp -a --no-preserve=ownership /lab/node/{name}/root/. /\n\
         n=0\n\
         until [ -e /sys/class/net/{lab} ] && [ -e /sys/class/net/{management} ]; do\n\
             n=$((n + 1)); [ $n -lt 600 ] || exit 1; sleep 0.1\n\
         done\n\
         ip -batch - <<'END'\n\
         link set lo up\n\
         link set {lab} up\n\
         addr add {a4}/24 dev {lab}\n\
         addr add {a6}/64 dev {lab} nodad\n\
         link set {management} up\n\
         addr add {am}/24 dev {management}\n\
         END\n\
         systemctl --no-block start lab-agent.service\n",
        name = node.name,
    );
    if node.has_etcd() {
        text += "systemctl --no-block start lab-etcd.service\n";
    }
    if node.role == Role::Nas {
        text += "modprobe drbd\n";
        let _ = writeln!(text, "[ ! -e {BOOT_HOOK} ] || sh {BOOT_HOOK}");
    }
    text
}

/// The node's files, with paths below its root.
pub fn of(engine: Engine, node: &Node, nodes: &[Node]) -> Vec<(String, String)> {
    let mut files = vec![
        ("etc/hostname".into(), format!("{}\n", node.name)),
        ("etc/hosts".into(), hosts(nodes)),
        ("etc/systemd/system/lab-agent.service".into(), agent(node)),
    ];
    if node.has_etcd() {
        files.push(("etc/systemd/system/lab-etcd.service".into(), ETCD_UNIT.into()));
        files.push(("etc/lab/etcd.env".into(), etcd(node, nodes)));
    }
    if node.role == Role::Nas {
        files.push(("etc/drbd.d/global_common.conf".into(), DRBD_GLOBAL.into()));
        for resource in RESOURCES {
            let path = format!("etc/drbd.d/{}.res", resource.0);
            files.push((path, drbd(engine, resource, nodes)));
        }
    }
    files
}

fn hosts(nodes: &[Node]) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost\n".to_owned();
    for n in nodes {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} {name}\n{} {name}", n.address(), n.address6(), name = n.name);
    }
    text
}

fn agent(node: &Node) -> String {
    format!(
        "[Unit]\nDescription=Agent of the lab\nDefaultDependencies=no\n\n[Service]\n\
         ExecStart=/lab/bin/lab-agent {}:{PORT}\nRestart=always\nRestartSec=0.2\nKillMode=process\n\
         OOMScoreAdjust=-1000\nLimitNOFILE=65536\nTasksMax=infinity\n",
        node.management()
    )
}

const ETCD_UNIT: &str = "\
[Unit]
Description=etcd of the lab
DefaultDependencies=no
StartLimitIntervalSec=0

[Service]
Type=notify
EnvironmentFile=/etc/lab/etcd.env
ExecStart=/usr/bin/etcd
Restart=always
RestartSec=0.5
TimeoutStartSec=infinity
LimitNOFILE=65536
";

/// Data stays on the node's own disk, which is in the memory of this machine: a member that came back from a power
/// cut without what it had promised would break its promises.
fn etcd(node: &Node, nodes: &[Node]) -> String {
    let members = nodes.iter().filter(|n| n.has_etcd());
    let peer = |n: &Node| format!("{}=https://{}:2380", n.name, n.address());
    let cluster = members.map(peer).collect::<Vec<_>>().join(",");
    let (name, address) = (&node.name, node.address());
    let mut text = format!(
        "ETCD_NAME={name}\nETCD_DATA_DIR=/var/lib/etcd/lab\n\
         ETCD_LISTEN_PEER_URLS=https://{address}:2380\n\
         ETCD_LISTEN_CLIENT_URLS=https://{address}:2379,https://127.0.0.1:2379\n\
         ETCD_ADVERTISE_CLIENT_URLS=https://{address}:2379\n\
         ETCD_INITIAL_ADVERTISE_PEER_URLS=https://{address}:2380\n\
         ETCD_INITIAL_CLUSTER={cluster}\nETCD_INITIAL_CLUSTER_STATE=new\n\
         ETCD_INITIAL_CLUSTER_TOKEN=lab\nETCD_HEARTBEAT_INTERVAL=200\nETCD_ELECTION_TIMEOUT=2000\n\
         ETCD_LOG_LEVEL=warn\n"
    );
    for kind in ["", "PEER_"] {
        let _ = write!(
            text,
            "ETCD_{kind}CERT_FILE=/etc/lab/pki/node.pem\nETCD_{kind}KEY_FILE=/etc/lab/pki/node.key\n\
             ETCD_{kind}TRUSTED_CA_FILE=/etc/lab/pki/ca.pem\nETCD_{kind}CLIENT_CERT_AUTH=true\n"
        );
    }
    text
}

/// Every option that nasd asks for, and times that notice a silent peer within 1.5 s: until then an owner's writes
/// wait for a standby that has lost its power. DRBD wants `timeout` (tenths of a second) below the other two.
const DRBD_GLOBAL: &str = "\
global { usage-count no; }
common {
    options { on-no-data-accessible suspend-io; }
    net {
        protocol C;
        timeout 9;
        ping-int 1;
        ping-timeout 5;
        connect-int 1;
        rr-conflict disconnect;
        after-sb-0pri disconnect;
        after-sb-1pri disconnect;
        after-sb-2pri disconnect;
    }
    disk {
        fencing resource-and-stonith;
        on-io-error detach;
        c-plan-ahead 0;
        c-min-rate 0;
        resync-rate 200M;
    }
    handlers { fence-peer /usr/lib/nasd/nasd-fence-peer; }
}
";

fn drbd(
    engine: Engine,
    (name, minor, letter, port): (&str, u8, char, u16),
    nodes: &[Node],
) -> String {
    let disk = engine.disk(letter);
    let mut text =
        format!("resource {name} {{\n    device minor {minor};\n    meta-disk internal;\n");
    for n in nodes.iter().filter(|n| n.role == Role::Nas) {
        let (host, address) = (&n.name, n.address());
        let _ = writeln!(text, "    on {host} {{ disk {disk}; address ipv4 {address}:{port}; }}");
    }
    text + "}\n"
}
