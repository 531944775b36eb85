//! `faults`: each fault does to the lab what it says, and only that.

use std::thread;
use std::time::{Duration, Instant};

use super::{Ctx, Scenario};
use crate::error::LabError;
use crate::fault::Fault;

/// See the module.
pub const SCENARIO: Scenario = Scenario {
    name: "faults",
    summary: "power cuts, freezes, pulled cables and cuts do what they say, and only that",
    engine: None,
    nightly: false,
    clients: 1,
    run,
};

const LIMIT: Duration = Duration::from_secs(10);

fn run(ctx: &mut Ctx) -> Result<(), LabError> {
    network(ctx)?;
    power(ctx)?;
    reboot(ctx)?;
    freeze(ctx)?;
    hung_command(ctx)?;
    capture(ctx)
}

fn pings(ctx: &Ctx, from: &str, to: &str) -> Result<bool, LabError> {
    let limit = ctx.patience(LIMIT);
    ctx.lab.exec(from, &["ping", "-4", "-c2", "-i0.3", "-W1", to], limit).map(|o| o.ok())
}

/// `faulty` must not see each other while the fault lasts, `whole` must.
fn partition(
    ctx: &mut Ctx,
    fault: &Fault,
    faulty: [&str; 2],
    whole: [&str; 2],
) -> Result<(), LabError> {
    ctx.lab.fault(fault)?;
    let (cut, rest) = (pings(ctx, faulty[0], faulty[1])?, pings(ctx, whole[0], whole[1])?);
    ctx.demand(!cut, &format!("{fault:?} stops {faulty:?}"));
    ctx.demand(rest, &format!("{fault:?} leaves {whole:?} alone"));
    ctx.lab.fault(&Fault::Heal)?;
    let healed = pings(ctx, faulty[0], faulty[1])?;
    ctx.demand(healed, &format!("healed after {fault:?}"));
    Ok(())
}

fn network(ctx: &mut Ctx) -> Result<(), LabError> {
    let cut = Fault::Cut { a: "nas1".into(), b: "nas2".into() };
    partition(ctx, &cut, ["nas1", "nas2"], ["nas1", "hv1"])?;
    let down = Fault::LinkDown { node: "nas2".into() };
    partition(ctx, &down, ["nas1", "nas2"], ["nas1", "hv1"])?;
    let address = ctx.lab.node("nas2")?.address();
    let cut = Fault::CutAddress { node: "nas1".into(), address };
    partition(ctx, &cut, ["nas1", "nas2"], ["nas1", "hv1"])?;
    ports(ctx)?;
    one_way(ctx)
}

/// Only these ports are cut, and only at this node.
fn ports(ctx: &mut Ctx) -> Result<(), LabError> {
    ctx.lab.wait_etcd()?;
    let connects = |ctx: &Ctx, from: &str| {
        let script = "timeout 2 bash -c 'exec 3<>/dev/tcp/nas2/2379'";
        ctx.lab.exec(from, &["sh", "-c", script], ctx.patience(LIMIT)).map(|o| o.ok())
    };
    let before = connects(ctx, "nas1")?;
    ctx.lab.fault(&Fault::CutPorts { node: "nas1".into(), ports: "2379-2380".into() })?;
    let (cut, rest) = (connects(ctx, "nas1")?, connects(ctx, "hv1")?);
    let others = pings(ctx, "nas1", "nas2")?;
    ctx.lab.fault(&Fault::Heal)?;
    ctx.demand(before && !cut, "a port that is cut is out of reach");
    ctx.demand(rest && others, "a cut port leaves other nodes and everything else alone");
    Ok(())
}

/// Counts at the receiver's own cable what still arrives in each direction.
fn one_way(ctx: &mut Ctx) -> Result<(), LabError> {
    let (from, to) = ("nas1".to_owned(), "nas2".to_owned());
    ctx.lab.fault(&Fault::CutOneWay { from, to })?;
    let arrived = |ctx: &Ctx, receiver: &str, sender: &str| -> Result<usize, LabError> {
        let filter = format!("ether src {}", ctx.lab.node(sender)?.mac());
        let capture = ctx.lab.capture(receiver, &filter)?;
        pings(ctx, sender, receiver)?;
        Ok(capture.end()?.lines.len())
    };
    let (forth, back) = (arrived(ctx, "nas2", "nas1")?, arrived(ctx, "nas1", "nas2")?);
    ctx.demand(forth == 0, "nothing passes in the direction that is cut");
    ctx.demand(back > 0, "frames pass in the other direction");
    ctx.lab.fault(&Fault::Heal)
}

/// What had been synced is there after a power cut; what lived in memory is not.
fn power(ctx: &mut Ctx) -> Result<(), LabError> {
    let (node, limit) = ("nas2", ctx.patience(LIMIT));
    ctx.lab.sh(node, "echo kept > /root/synced; sync; echo lost > /run/volatile", limit)?;
    let old = ctx.lab.check(node, &["cat", "/proc/sys/kernel/random/boot_id"], limit)?;
    let begin = Instant::now();
    ctx.lab.fault(&Fault::PowerCut { node: node.into() })?;
    note(ctx, "power_cut_ms", begin);
    let reached = pings(ctx, "nas1", node)?;
    ctx.demand(!reached, "a node without power is silent");
    let begin = Instant::now();
    ctx.lab.fault(&Fault::PowerOn { node: node.into() })?;
    note(ctx, "power_on_ms", begin);
    let new = ctx.lab.check(node, &["cat", "/proc/sys/kernel/random/boot_id"], limit)?;
    ctx.demand(old != new, "power-on is a new boot");
    let synced = ctx.lab.pull(node, "/root/synced")?;
    ctx.demand(synced == b"kept\n", "synced data survive a power cut");
    ctx.demand(ctx.lab.pull(node, "/run/volatile").is_err(), "memory does not survive");
    Ok(())
}

/// A node that reboots by itself, however abruptly, comes back as after a power cut.
fn reboot(ctx: &mut Ctx) -> Result<(), LabError> {
    let (node, limit) = ("nas2", ctx.patience(LIMIT));
    let boot = |ctx: &Ctx| ctx.lab.check(node, &["cat", "/proc/sys/kernel/random/boot_id"], limit);
    let old = boot(ctx)?;
    ctx.lab.spawn(node, &["sh", "-c", "sleep 0.2; echo b > /proc/sysrq-trigger"])?;
    let begin = Instant::now();
    let again = loop {
        match boot(ctx) {
            Ok(new) if new != old => break true,
            _ if begin.elapsed() > ctx.patience(Duration::from_secs(40)) => break false,
            _ => thread::sleep(Duration::from_millis(200)),
        }
    };
    note(ctx, "reboot_ms", begin);
    ctx.demand(again, "a node that reboots by itself comes back");
    let reached = pings(ctx, "nas1", node)?;
    ctx.demand(reached, "and reaches the network");
    Ok(())
}

fn note(ctx: &mut Ctx, key: &str, begin: Instant) {
    let ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    ctx.report.extra.insert(key.to_owned(), ms.into());
}

/// A frozen node does nothing at all, and goes on afterwards where it was.
fn freeze(ctx: &mut Ctx) -> Result<(), LabError> {
    let node = "hv1";
    let script = "for i in $(seq 600); do echo $i; sleep 0.05; done";
    let job = ctx.lab.spawn(node, &["sh", "-c", script])?;
    ctx.lab.fault(&Fault::Freeze { node: node.into() })?;
    let reached = pings(ctx, "nas1", node)?;
    ctx.demand(!reached, "a frozen node is silent");
    thread::sleep(Duration::from_secs(1));
    ctx.lab.fault(&Fault::Thaw { node: node.into() })?;
    let before = job.output()?.lines().count();
    thread::sleep(Duration::from_secs(1));
    let after = job.output()?.lines().count();
    ctx.demand(after > before, "a thawed node goes on");
    job.kill()?;
    let code = job.wait(ctx.patience(LIMIT))?;
    ctx.demand(code == 137, "a killed job says so");
    Ok(())
}

fn hung_command(ctx: &mut Ctx) -> Result<(), LabError> {
    let limit = ctx.patience(Duration::from_millis(500));
    let answer = ctx.lab.exec("nas1", &["sleep", "1000"], limit);
    ctx.demand(matches!(answer, Err(LabError::ExecTimeout { .. })), "a hung command is told");
    let left = ctx.lab.exec("nas1", &["pgrep", "-x", "sleep"], ctx.patience(LIMIT))?;
    ctx.demand(!left.ok(), "a hung command is killed");
    Ok(())
}

fn capture(ctx: &mut Ctx) -> Result<(), LabError> {
    let capture = ctx.lab.capture("nas1", "icmp")?;
    let reached = pings(ctx, "hv1", "nas1")?;
    let seen = capture.end()?;
    ctx.demand(reached, "hv1 reaches nas1");
    let packets = seen.lines.len();
    ctx.demand(packets == 4, &format!("two pings are four packets at the cable, not {packets}"));
    Ok(())
}
