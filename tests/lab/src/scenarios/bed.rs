//! The test bed of the scenarios with nasd: services up, share mounted, writers running; and what is
//! demanded of every one of them: no bad block, no error, no lost lock, exactly one owner.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Ctx;
use crate::blocks::WriterStats;
use crate::blocks::check::CheckReport;
use crate::client::{Job, Output};
use crate::error::LabError;
use crate::payload::BOOT_HOOK;
use crate::report::{BlockCounts, Window};

/// Both NAS nodes.
pub const NAS: [&str; 2] = ["nas1", "nas2"];
/// Where fail points are read in the lab (see `nasd --help-hidden`).
pub const FAIL_POINTS: &str = "/run/nasd-fail-points";
/// Quiet time around a move, so that windows of neighbours do not touch.
pub(super) const REST: Duration = Duration::from_millis(1500);

/// Exit code of a job that lived until SIGKILL (128 + 9, as a shell tells it).
const KILLED: i32 = 137;

/// One service of the bed.
#[derive(Clone, Copy, Debug)]
pub struct Svc {
    /// Name of the service and of its export.
    pub name: &'static str,
    /// DRBD resource.
    pub drbd: &'static str,
    /// Floating address.
    pub address: &'static str,
    /// Node that founds it.
    pub preferred: &'static str,
    /// Of several that open at once, the greater first; nasd's own default is 50.
    pub priority: u8,
}

/// The service of most scenarios.
pub const VMS: Svc =
    Svc { name: "vms", drbd: "r0", address: "10.77.0.101", preferred: "nas1", priority: 50 };
/// The second service.
pub const ISO: Svc =
    Svc { name: "iso", drbd: "r1", address: "10.77.0.102", preferred: "nas2", priority: 90 };

/// What `nasctl switchover --json` told.
#[derive(Debug, Default)]
pub struct Moved {
    /// Exit code.
    pub code: i32,
    /// All events, one JSON object each.
    pub events: Vec<Value>,
    /// Wall clock of the clients around the move.
    pub window: Option<Window>,
}

impl Moved {
    /// The last event.
    #[must_use]
    pub fn outcome(&self) -> &str {
        let last = self.events.last();
        last.and_then(|e| e["result"].as_str()).unwrap_or("nothing")
    }

    /// The outcome's message.
    #[must_use]
    pub fn message(&self) -> String {
        self.events.last().map_or_else(String::new, |e| e["message"].to_string())
    }

    /// Codes of the findings that refuse.
    #[must_use]
    pub fn refusals(&self) -> Vec<String> {
        let findings = self.events.iter().filter_map(|e| e["findings"].as_array()).flatten();
        findings
            .filter(|f| f["refuses"] == true)
            .filter_map(|f| f["code"].as_str().map(str::to_owned))
            .collect()
    }

    /// How it ended, in one line: for a refusal with what was seen.
    #[must_use]
    pub fn words(&self) -> String {
        let findings = self.events.iter().filter_map(|e| e["findings"].as_array()).flatten();
        let evidence = findings.filter(|f| f["refuses"] == true).map(|f| f["evidence"].to_string());
        let evidence: Vec<_> = evidence.collect();
        format!("{} {} {}", self.outcome(), self.message(), evidence.join("; "))
    }

    /// Durations of the steps in microseconds, by name.
    pub fn steps(&self) -> impl Iterator<Item = (&str, u64)> {
        self.events.iter().filter_map(|e| Some((e["name"].as_str()?, e["took_us"].as_u64()?)))
    }
}

/// A writer that runs on a hypervisor.
pub(super) struct Writer {
    pub(super) node: String,
    service: Svc,
    pub(super) id: String,
    job: Job,
}

/// Services, mounts and writers.
pub struct Bed {
    /// The services.
    pub services: Vec<Svc>,
    /// Pause of a writer after each write, ms. Longer for long scenarios: the writers' journals are in memory.
    pub pause_ms: u32,
    pub(super) writers: Vec<Writer>,
    /// Each keeps a file open that all others have open too, as sanlock does with its lockspace.
    holders: Vec<Job>,
    /// Statistics of writers that ended.
    pub stats: Vec<WriterStats>,
    logs: BTreeMap<&'static str, Vec<String>>,
}

fn config(ctx: &Ctx, services: &[Svc], extra: &Extra) -> String {
    let endpoints = ctx.lab.etcd_endpoints().iter().map(|e| format!("{e:?}")).collect::<Vec<_>>();
    let pki = "ca = \"/etc/lab/pki/ca.pem\", cert = \"/etc/lab/pki/node.pem\", key = \"/etc/lab/pki/node.key\"";
    let slow = ctx.lab.engine().patience() > 1;
    let deadline = if slow { ", deadline = \"5s\"" } else { "" };
    let mut text = format!(
        "[cluster]\nname = \"lab\"\ncoordinator = {{ etcd = {{ endpoints = [{}], {pki}{deadline} }} }}\n\n",
        endpoints.join(", ")
    );
    for node in ctx.lab.nodes().filter(|n| NAS.contains(&n.name.as_str())) {
        text += &format!(
            "[[node]]\nname = \"{}\"\naddress = \"{}:7410\"\n\n",
            node.name,
            node.address()
        );
        if extra.fence {
            let port = node.power_switch().port();
            text += &format!(
                "[node.fence]\nagent = \"{FENCE_AGENT}\"\ntimeout = \"5s\"\nparameters = {{ port = {port} }}\n\n"
            );
        }
    }
    text += &format!("[peer]\n{}\n\n", pki.replace(", ", "\n"));
    if slow {
        text += "[right]\nttl = \"6s\"\nheartbeat = \"1s\"\nvalid_lft = \"20s\"\n\n";
    }
    for s in services {
        text += &format!(
            "[[service]]\nname = \"{}\"\ndrbd = \"{}\"\ninterface = \"{}\"\naddresses = [\"{}/24\"]\n\
             preferred = \"{}\"\npriority = {}\nunsafe_write_cache = true\n\n  [[service.filesystem]]\n  volume = 0\n  \
             fstype = \"ext4\"\n  export = \"/{}\"\n  clients = [\"10.77.0.0/24\"]\n  no_root_squash = true\n\n",
            s.name,
            s.drbd,
            ctx.lab.engine().interface(),
            s.address,
            s.preferred,
            s.priority,
            s.name
        );
    }
    text
}

/// What only some scenarios need.
#[derive(Default)]
pub struct Extra {
    /// A script that each NAS node runs before its data disks are used first, and again in each boot.
    pub hook: &'static str,
    /// Nodes can switch each other off.
    pub fence: bool,
}

/// A fence agent as the standard ones are: parameters on standard input, 2 as the status of a node that is off.
const FENCE_AGENT: &str = "/usr/sbin/fence_lab";
const AGENT: &str = "\
#!/bin/bash
while IFS= read -r line; do
    case $line in action=*) action=${line#*=} ;; port=*) port=${line#*=} ;; esac
done
exec 3<>\"/dev/tcp/10.78.0.1/$port\" || exit 1
echo \"$action\" >&3
read -r -t 10 answer <&3
case $action:$answer in off:done | on:done | status:on) exit 0 ;; status:off) exit 2 ;; esac
echo \"the power switch says '$answer'\" >&2
exit 1
";

/// Starts nasd now and in each boot; on the disk before a power cut can come.
const ENABLE: &str =
    "systemctl daemon-reload && systemctl enable nasd && sync && systemctl --no-block start nasd";

const DROP_IN: &str = "[Service]\nExecStart=\nExecStart=/usr/sbin/nasd --fail-points /run/nasd-fail-points\nEnvironment=NASD_LOG=info\n";

impl Bed {
    /// Initialises DRBD, configures and starts nasd on both nodes, waits until each service serves,
    /// and mounts it on every hypervisor.
    ///
    /// # Errors
    /// Whatever does not come up in time.
    pub fn up(ctx: &mut Ctx, services: &[Svc]) -> Result<Self, LabError> {
        Self::up_with(ctx, services, &Extra::default())
    }

    /// As [`Bed::up`], with more.
    ///
    /// # Errors
    /// As [`Bed::up`].
    pub fn up_with(ctx: &mut Ctx, services: &[Svc], extra: &Extra) -> Result<Self, LabError> {
        ctx.lab.wait_etcd()?;
        for nas in NAS {
            ctx.lab.push(nas, FENCE_AGENT, AGENT.as_bytes(), 0o755)?;
        }
        for nas in NAS.iter().filter(|_| !extra.hook.is_empty()) {
            ctx.lab.push(nas, BOOT_HOOK, extra.hook.as_bytes(), 0o755)?;
            ctx.lab.sh(nas, &format!("sh {BOOT_HOOK}"), ctx.patience(Duration::from_secs(20)))?;
        }
        ctx.lab.drbd_init()?;
        let text = config(ctx, services, extra);
        let limit = ctx.patience(Duration::from_secs(20));
        for nas in NAS {
            ctx.lab.push(nas, "/etc/nasd/nasd.toml", text.as_bytes(), 0o644)?;
            let path = "/etc/systemd/system/nasd.service.d/lab.conf";
            ctx.lab.push(nas, path, DROP_IN.as_bytes(), 0o644)?;
            ctx.lab.sh(nas, ENABLE, limit)?;
        }
        let bed = Self {
            services: services.to_vec(),
            pause_ms: if ctx.lab.engine().patience() > 1 { 50 } else { 2 },
            writers: Vec::new(),
            holders: Vec::new(),
            stats: Vec::new(),
            logs: BTreeMap::new(),
        };
        for service in services {
            bed.wait_served(ctx, *service, Duration::from_secs(60))?;
            bed.mount(ctx, *service)?;
        }
        Ok(bed)
    }

    fn mount(&self, ctx: &Ctx, service: Svc) -> Result<(), LabError> {
        let script = format!(
            "modprobe nfsv4; mkdir -p /mnt/{0} && mount -t nfs4 -o vers=4.2,hard {1}:/{0} /mnt/{0}",
            service.name, service.address
        );
        for hv in hypervisors(ctx) {
            ctx.lab.sh(&hv, &script, ctx.patience(Duration::from_secs(30)))?;
        }
        Ok(())
    }

    /// Waits until exactly one node serves and the record says so; its name.
    ///
    /// # Errors
    /// When it does not happen in time; with what was seen last.
    pub fn wait_served(
        &self,
        ctx: &Ctx,
        service: Svc,
        limit: Duration,
    ) -> Result<String, LabError> {
        let end = Instant::now() + ctx.patience(limit);
        let mut seen = String::new();
        while Instant::now() < end {
            match serving(ctx, service) {
                Ok(Some(owner)) => return Ok(owner),
                Ok(None) => {}
                Err(error) => seen = error,
            }
            thread::sleep(Duration::from_millis(200));
        }
        Err(in_vain(&format!("{} to be served", service.name), seen, limit))
    }

    /// Starts a writer with locks on every hypervisor for every service, and a process that keeps a file of all of
    /// them open.
    ///
    /// # Errors
    /// When a writer does not get ready.
    pub fn write(&mut self, ctx: &Ctx) -> Result<(), LabError> {
        let round = self.stats.len() + self.writers.len();
        for service in self.services.clone() {
            for hv in hypervisors(ctx) {
                let id = format!("{hv}{}{round}", service.name);
                let writer = start_writer(ctx, &hv, service, &id, self.pause_ms)?;
                self.writers.push(writer);
                let hold =
                    format!("exec 9<>/mnt/{}/open-everywhere; exec sleep 86400", service.name);
                self.holders.push(ctx.lab.spawn(&hv, &["bash", "-c", &hold])?);
            }
        }
        thread::sleep(REST);
        Ok(())
    }

    /// Ends the writers and collects their statistics and journals.
    ///
    /// # Errors
    /// When a writer does not end.
    pub fn stop_writing(&mut self, ctx: &Ctx) -> Result<(), LabError> {
        thread::sleep(REST);
        for holder in std::mem::take(&mut self.holders) {
            holder.kill()?;
            let code = holder.wait(ctx.patience(Duration::from_secs(30)))?;
            if code != KILLED {
                let last = format!("exit {code} {}", holder.output().unwrap_or_default());
                return Err(in_vain("a file to be kept open by all hypervisors", last, REST));
            }
        }
        for writer in std::mem::take(&mut self.writers) {
            writer.job.signal(15)?;
            writer.job.wait(ctx.patience(Duration::from_secs(30)))?;
            let text = ctx.lab.pull(&writer.node, &format!("/run/{}.json", writer.id))?;
            let stats = serde_json::from_slice(&text).map_err(|e| {
                in_vain(&format!("statistics of {}", writer.id), e.to_string(), REST)
            })?;
            self.stats.push(stats);
            let log = format!("/run/{}.log", writer.id);
            let bytes = ctx.lab.pull(&writer.node, &log)?;
            for nas in NAS.iter().filter(|n| ctx.lab.answers(n)) {
                ctx.lab.push(nas, &log, &bytes, 0o600)?;
            }
            self.logs.entry(writer.service.name).or_default().push(log);
        }
        Ok(())
    }

    /// Takes a journal that lies on both NAS nodes, and its writer's statistics, as if the writer were one of the
    /// bed's own that has ended.
    pub(super) fn adopt(&mut self, service: Svc, stats: WriterStats, log: String) {
        self.stats.push(stats);
        self.logs.entry(service.name).or_default().push(log);
    }

    /// `nasctl switchover` on the owner's side or wherever `on` says; waits for its end.
    ///
    /// # Errors
    /// When the node does not answer at all.
    pub fn switchover(
        &self,
        ctx: &Ctx,
        on: &str,
        service: Svc,
        more: &[&str],
    ) -> Result<Moved, LabError> {
        let start_ns = clock(ctx)?;
        let mut argv = vec!["nasctl", "switchover", service.name, "--json"];
        argv.extend(more);
        let out = ctx.lab.exec(on, &argv, ctx.patience(Duration::from_secs(60)))?;
        thread::sleep(REST);
        let window = Some(Window { start_ns, end_ns: clock(ctx)? });
        Ok(moved(&out, window))
    }

    /// Reads all blocks back on the owner and fills the report; demands that all is well.
    ///
    /// # Errors
    /// When the check cannot be run.
    pub fn verify(&self, ctx: &mut Ctx, windows: &[Window]) -> Result<(), LabError> {
        for service in &self.services {
            let owner = self.wait_served(ctx, *service, Duration::from_secs(30))?;
            let Some(logs) = self.logs.get(service.name) else { continue };
            let dir = format!("/srv/nasd/{0}/{0}", service.name);
            let argv = ["lab-blocks", "check", "--dir", &dir, "--json", "--log", &logs.join(",")];
            let out = ctx.lab.exec(&owner, &argv, ctx.patience(Duration::from_secs(60)))?;
            let report: CheckReport = serde_json::from_str(&out.stdout)
                .map_err(|e| in_vain("the block check", format!("{e}: {}", out.stderr), REST))?;
            add(&mut ctx.report.blocks, &BlockCounts::from(&report));
        }
        ctx.report.add_clients(&self.stats, windows);
        let (bad, acknowledged) = (ctx.report.blocks.bad(), ctx.report.blocks.acknowledged);
        ctx.demand(bad == 0, "no lost, stale, torn or foreign block");
        ctx.demand(acknowledged > 0, "the writers wrote");
        self.demand_no_errors(ctx);
        self.one_owner(ctx)
    }

    fn demand_no_errors(&self, ctx: &mut Ctx) {
        let seen = self.stats.iter().flat_map(|s| s.io_errors.by_errno.keys());
        let seen: Vec<_> = seen.copied().collect();
        ctx.demand(seen.is_empty(), &format!("no client saw an I/O error, not {seen:?}"));
        let lost = self.stats.iter().map(|s| s.locks.lost.len()).sum::<usize>();
        ctx.demand(lost == 0, "no client lost a lock");
    }

    /// Exactly one node has address, mount and Primary role; the other has none of them.
    fn one_owner(&self, ctx: &mut Ctx) -> Result<(), LabError> {
        for service in &self.services {
            let owner = self.wait_served(ctx, *service, Duration::from_secs(30))?;
            for nas in NAS {
                if !ctx.lab.answers(nas) {
                    ctx.demand(false, &format!("{nas} is up at the end"));
                    continue;
                }
                let left = leftovers(ctx, nas, *service)?;
                let expected = if nas == owner { "address mount Primary" } else { "" };
                ctx.demand(
                    left == expected,
                    &format!("{nas} has [{expected}] of {}, not [{left}]", service.name),
                );
            }
        }
        Ok(())
    }
}

/// What a node has of a service: `address mount Primary`, or a part of it.
///
/// # Errors
/// When the node does not answer.
pub fn leftovers(ctx: &Ctx, nas: &str, service: Svc) -> Result<String, LabError> {
    let script = format!(
        "nsenter --net=/run/netns/nasd-{0} ip -o addr show 2>/dev/null | grep -q '{1}/' && printf 'address '; \
         grep -q ' /srv/nasd/{0}/' /proc/mounts && printf 'mount '; \
         drbdadm role {2} 2>/dev/null | grep -q '^Primary' && printf Primary; true",
        service.name, service.address, service.drbd
    );
    let out = ctx.lab.sh(nas, &script, ctx.patience(Duration::from_secs(10)))?;
    Ok(out.trim().to_owned())
}

fn start_writer(
    ctx: &Ctx,
    hv: &str,
    service: Svc,
    id: &str,
    pause_ms: u32,
) -> Result<Writer, LabError> {
    let pause = pause_ms.to_string();
    let (dir, log) = (format!("/mnt/{}", service.name), format!("/run/{id}.log"));
    let stats = format!("/run/{id}.json");
    let argv = [
        "lab-blocks",
        "write",
        "--dir",
        &dir,
        "--writer",
        id,
        "--files",
        "2",
        "--blocks",
        "128",
        "--log",
        &log,
        "--stats",
        &stats,
        "--gap-ms",
        "20",
        "--pause-ms",
        &pause,
    ];
    let job = ctx.lab.spawn(hv, &argv)?;
    let end = Instant::now() + ctx.patience(Duration::from_secs(30));
    while Instant::now() < end {
        if let Ok(text) = ctx.lab.pull(hv, &stats)
            && let Ok(stats) = serde_json::from_slice::<WriterStats>(&text)
            && stats.ready
        {
            return Ok(Writer { node: hv.to_owned(), service, id: id.to_owned(), job });
        }
        thread::sleep(Duration::from_millis(100));
    }
    let last = job.output().unwrap_or_default();
    Err(in_vain(&format!("writer {id} to be ready"), last, Duration::from_secs(30)))
}

pub(super) fn hypervisors(ctx: &Ctx) -> Vec<String> {
    ctx.lab.hypervisors().map(|n| n.name.clone()).collect()
}

/// The clients' wall clock, ns.
pub(super) fn clock(ctx: &Ctx) -> Result<u64, LabError> {
    let text = ctx.lab.check("hv1", &["date", "+%s%N"], ctx.patience(Duration::from_secs(10)))?;
    Ok(text.trim().parse().unwrap_or(0))
}

/// Turns the output of `nasctl switchover --json` into events.
#[must_use]
pub fn moved(out: &Output, window: Option<Window>) -> Moved {
    let events = out.stdout.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    Moved { code: out.code, events, window }
}

pub(super) fn in_vain(what: &str, last: String, limit: Duration) -> LabError {
    LabError::WaitedInVain { what: what.to_owned(), limit, last }
}

fn add(sum: &mut BlockCounts, more: &BlockCounts) {
    sum.acknowledged += more.acknowledged;
    sum.lost += more.lost;
    sum.stale += more.stale;
    sum.torn += more.torn;
    sum.foreign += more.foreign;
}

/// The node that serves and is settled, if there is exactly one. A node that is off or frozen serves nothing; one
/// whose nasd does not answer is not passed over.
fn serving(ctx: &Ctx, service: Svc) -> Result<Option<String>, String> {
    let mut owners = Vec::new();
    let mut seen = String::new();
    for nas in NAS {
        if !ctx.lab.answers(nas) {
            seen += &format!("{nas}: does not answer ");
            continue;
        }
        let Some(status) = status(ctx, nas, service)? else { continue };
        seen += &format!("{nas}: {} {} ", status["stage"], status["problem"]);
        let settled = status["record"]["phase"]["name"] == "serving"
            && status["record"]["phase"]["owner"] == *nas;
        if status["stage"] == "serving" && status["gate_open"] == true && settled {
            owners.push(nas.to_owned());
        } else if status["stage"] != "standby" {
            return Err(seen);
        }
    }
    match owners.len() {
        1 => Ok(owners.pop()),
        _ => Err(seen),
    }
}

/// A node's own status of a service.
///
/// # Errors
/// In words, when it does not answer.
pub fn status(ctx: &Ctx, nas: &str, service: Svc) -> Result<Option<Value>, String> {
    let limit = ctx.patience(Duration::from_secs(10));
    let out =
        ctx.lab.exec(nas, &["nasctl", "status", "--json"], limit).map_err(|e| e.to_string())?;
    let document: Value =
        serde_json::from_str(&out.stdout).map_err(|_| format!("{nas}: {}", out.stderr))?;
    let nodes = document["nodes"].as_array().cloned().unwrap_or_default();
    let mine = nodes.into_iter().find(|n| n["node"] == *nas);
    Ok(mine.and_then(|n| {
        let services = n["services"].as_array().cloned().unwrap_or_default();
        services.into_iter().find(|s| s["service"] == service.name)
    }))
}
