//! Makes hypervisors of `hv1` and `hv2`: libvirt with its D-Bus bridge, a pool of the same definition on both, and,
//! where it is asked for, sanlock as lock manager.
//!
//! libvirt is reached by its sockets, as Debian ships it; migrations go over plain TCP. Nothing is switched on in the
//! image: nodes of other scenarios do not pay for it.

use std::time::Duration;

use super::super::Ctx;
use super::super::bed::{NAS, Svc};
use super::super::recovery::PROMPT;
use super::domain::HOSTS;
use crate::client::Job;
use crate::error::LabError;
use crate::spec::Node;

/// libvirt asks the emulator for its abilities at its first start.
const FIRST_START: Duration = Duration::from_secs(120);

/// How guests' leases are kept; `None`: libvirt's guests have none.
pub type Sanlock = Option<Leases>;

/// Settings of sanlock's.
#[derive(Clone, Copy, Debug)]
pub struct Leases {
    /// Its `io_timeout`, seconds; a lease lasts eight times as long.
    pub io_timeout: u32,
    /// Seconds from the watchdog's last ping to the host's reset; `None`: `-w 0`, sanlock goes without.
    pub watchdog: Option<u32>,
}

impl Leases {
    /// Without a watchdog.
    #[must_use]
    pub const fn of(io_timeout: u32) -> Self {
        Self { io_timeout, watchdog: None }
    }

    /// Options of the daemon, its own configuration, and what starts it.
    fn daemon(self) -> (&'static str, String, &'static str) {
        match self.watchdog {
            None => ("sanlock_opts=\"-w 0\"\n", String::new(), WITHOUT_WATCHDOG),
            Some(seconds) => {
                let conf = format!("watchdog_fire_timeout = {seconds}\n");
                ("sanlock_opts=\"-w 1\"\n", conf, WITH_WATCHDOG)
            }
        }
    }
}

const WITHOUT_WATCHDOG: &str = "systemctl mask -q --runtime wdmd; systemctl start sanlock\n";
/// wdmd looks for a device at its start and opens it when sanlock asks for it. One that may be closed again: wdmd closes
/// what it tries.
const WITH_WATCHDOG: &str = "modprobe softdog nowayout=0; systemctl start wdmd sanlock\n";

/// All guests' disks are root's: the export does not squash it, and nothing is to change owners over NFS.
const QEMU_CONF: &str = "\
user = \"root\"
group = \"root\"
dynamic_ownership = 0
remember_owner = 0
security_driver = \"none\"
namespaces = []
cgroup_controllers = []
stdio_handler = \"file\"
";

/// Nodes of one image have no identity of their own, and libvirt refuses to migrate to itself.
fn libvirtd_conf(node: &Node) -> String {
    format!(
        "auth_tcp = \"none\"\nauth_unix_rw = \"none\"\n\
         host_uuid = \"6e617364-6c61-4062-8000-0000000000{:02}\"\n",
        node.id
    )
}

/// The service as a pool of libvirt's; mounted already, with the options that matter.
fn pool(service: Svc) -> String {
    format!(
        "<pool type='netfs'><name>{0}</name><uuid>6e617364-706f-4f6c-8000-000000000001</uuid>\
         <source><host name='{1}'/><dir path='/{0}'/><format type='nfs'/></source>\
         <target><path>/mnt/{0}</path></target></pool>\n",
        service.name, service.address
    )
}

fn sanlock_conf(node: &Node, service: Svc, io_timeout: u32) -> String {
    format!(
        "auto_disk_leases = 1\nrequire_lease_for_disks = 1\nhost_id = {}\n\
         disk_lease_dir = \"/mnt/{}/leases\"\nio_timeout = {io_timeout}\n\
         user = \"sanlock\"\ngroup = \"sanlock\"\n",
        // 1 and 2: the number of a sector in the lockspace.
        node.id.saturating_sub(20),
        service.name
    )
}

/// Starts libvirt and what it needs on both hypervisors, side by side.
///
/// # Errors
/// Whatever does not come up in time.
pub fn up(ctx: &Ctx, service: Svc, sanlock: Sanlock) -> Result<(), LabError> {
    if sanlock.is_some() {
        let script = format!("mkdir -p /mnt/{}/leases", service.name);
        ctx.lab.sh("hv1", &script, ctx.patience(PROMPT))?;
    }
    std::thread::scope(|scope| {
        let nodes: Vec<_> = ctx.lab.hypervisors().collect();
        let one = |node| scope.spawn(move || up_one(ctx, node, service, sanlock));
        let threads: Vec<_> = nodes.into_iter().map(one).collect();
        threads
            .into_iter()
            .try_for_each(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn up_one(ctx: &Ctx, node: &Node, service: Svc, sanlock: Sanlock) -> Result<(), LabError> {
    let push = |path: &str, text: &str| ctx.lab.push(&node.name, path, text.as_bytes(), 0o644);
    let mut qemu_conf = QEMU_CONF.to_owned();
    let mut joined = "";
    let mut start = "systemctl unmask -q systemd-logind\n".to_owned();
    if let Some(leases) = sanlock {
        qemu_conf += "lock_manager = \"sanlock\"\n";
        push("/etc/libvirt/qemu-sanlock.conf", &sanlock_conf(node, service, leases.io_timeout))?;
        let (options, conf, daemon) = leases.daemon();
        push("/etc/default/sanlock", options)?;
        push("/etc/sanlock/sanlock.conf", &conf)?;
        start += daemon;
        joined = JOINED;
    }
    push("/etc/libvirt/qemu.conf", &qemu_conf)?;
    push("/etc/libvirt/libvirtd.conf", &libvirtd_conf(node))?;
    push("/etc/lab/pool.xml", &pool(service))?;
    push("/etc/nasd/hvagent.toml", &agent_conf(ctx))?;
    start += "systemctl start virtlogd.socket libvirtd.socket libvirtd-ro.socket libvirtd-tcp.socket\n\
              virsh -q pool-define /etc/lab/pool.xml\n\
              virsh -q pool-start \"$1\"\n\
              virsh -q pool-autostart \"$1\"\n\
              busctl call org.libvirt /org/libvirt/QEMU org.freedesktop.DBus.Peer Ping\n";
    start += joined;
    let argv = ["sh", "-ec", &start, "sh", service.name];
    ctx.lab.sh(&node.name, INSTALL_AGENT, ctx.patience(PROMPT))?;
    ctx.lab.check(&node.name, &argv, ctx.patience(FIRST_START))?;
    ctx.lab.sh(&node.name, START_AGENT, ctx.patience(FIRST_START)).map(drop)
}

/// libvirt answers before its lockspace is joined, which takes a while; no guest starts until then. Where both hosts make
/// it in the same moment one of them may read an empty file, and libvirt joins at its own start only.
const JOINED: &str = "\
for i in $(seq 90); do
    all=$(sanlock client status | grep '^s ' || true)
    echo \"$all\" | grep -v ADD | grep -q . && exit 0
    case $i in 15|45) test -n \"$all\" || systemctl restart libvirtd;; esac
    sleep 1
done
sanlock client status; exit 1
";

/// hvagent where a package would install it, if it was built: its programs and its unit are in their places as
/// those of nasd are. The hook comes before libvirt, which looks for it at its own start only.
const INSTALL_AGENT: &str = "\
test -x /usr/sbin/hvagent || exit 0
mkdir -p /etc/libvirt/hooks
ln -sf /usr/lib/nasd/hvagent-hook /etc/libvirt/hooks/qemu
";

/// Starts it, if it was built.
const START_AGENT: &str = "test -x /usr/sbin/hvagent || exit 0; systemctl start hvagent";

/// The node's own certificate is that of its etcd.
fn agent_conf(ctx: &Ctx) -> String {
    let nas = ctx.lab.nodes().filter(|n| NAS.contains(&n.name.as_str()));
    let one = |n: &Node| {
        format!("[[nasd]]\nname = \"{}\"\naddress = \"{}:7410\"\n\n", n.name, n.address())
    };
    nas.map(one).collect::<String>()
        + "[peer]\nca = \"/etc/lab/pki/ca.pem\"\ncert = \"/etc/lab/pki/node.pem\"\n\
           key = \"/etc/lab/pki/node.key\"\n"
}

/// Listens to libvirt's events where the guest may run.
///
/// # Errors
/// If a node does not answer.
pub fn listen(ctx: &Ctx) -> Result<Vec<(String, Job)>, LabError> {
    let argv = ["stdbuf", "-oL", "virsh", "event", "--all", "--loop", "--timestamp"];
    HOSTS.iter().map(|hv| Ok(((*hv).to_owned(), ctx.lab.spawn(hv, &argv)?))).collect()
}
