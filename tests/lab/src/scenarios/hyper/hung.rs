//! What hvagent depends on hangs: `libvirtd-hung` (SIGSTOP), `storage-dead-60s` (no answers of the server for a minute).
//! The agent must go on: it answers, follows the phases, costs nothing, and can be started anew (S10).

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::bed::VMS;
use super::super::recovery::{PROMPT, SERVED, WHOLE, until};
use super::super::{Ctx, Scenario, cuts};
use super::domain::Hyper;
use crate::blocks::wall_ns;
use crate::error::LabError;
use crate::fault::Fault;
use crate::report::Window;

/// libvirt hangs.
pub const LIBVIRT: Scenario = cuts::nightly(
    "libvirtd-hung",
    "libvirtd is stopped (SIGSTOP) during a move: the agent answers and reports the phases",
    libvirt,
);

/// The storage hangs.
pub const STORAGE: Scenario = cuts::nightly(
    "storage-dead-60s",
    "no answers of the NFS server for 60 s: no thread of the agent hangs, and it can be started anew",
    storage,
);

const ON: &str = "hv1";
/// The agent's answer, whatever hangs.
const ANSWER: f64 = 2000.0;
/// Time of a processor that the agent and its helpers may take while storage is dead, per cent. A build that is not
/// optimised takes some ten times as much.
const CPU: f64 = if cfg!(debug_assertions) { 20.0 } else { 5.0 };
const NFS: &str = "2049";

/// What the agent says of the service's mount on `hv1`, and how long that took in ms.
///
/// # Errors
/// In words.
pub fn mount_of(ctx: &Ctx, hv: &str) -> Result<(Value, Value, f64), String> {
    let begin = Instant::now();
    let argv = ["hvagent", "status", "--json"];
    let out = ctx.lab.exec(hv, &argv, ctx.patience(PROMPT)).map_err(|e| e.to_string())?;
    let took = begin.elapsed().as_secs_f64() * 1000.0;
    let status: Value =
        serde_json::from_str(&out.stdout).map_err(|e| format!("{e}: {}", out.stderr))?;
    let mounts = status["mounts"].as_array().cloned().unwrap_or_default();
    let mine = mounts.into_iter().find(|m| m["service"] == VMS.name);
    let mine = mine.ok_or_else(|| format!("no mount of {} in {status}", VMS.name))?;
    Ok((status, mine, took))
}

/// Waits until the agent says that its mount is in this phase.
///
/// # Errors
/// [`LabError::WaitedInVain`].
pub fn wait_phase(ctx: &Ctx, hv: &str, phase: &str, limit: Duration) -> Result<(), LabError> {
    until(ctx, &format!("{hv}'s mount to be {phase}"), limit, || {
        let (_, mount, _) = mount_of(ctx, hv)?;
        if mount["phase"] == phase { Ok(()) } else { Err(mount.to_string()) }
    })
}

/// The agent's phases of the last time, from its journal.
///
/// # Errors
/// When the node does not answer.
pub fn phases(ctx: &Ctx, hv: &str, lines: u32) -> Result<Vec<String>, LabError> {
    let script = format!(
        "journalctl -u hvagent -b -o cat | sed -n 's/.*phase=\"\\([a-z-]*\\)\".*/\\1/p' | tail -n {lines}"
    );
    let text = ctx.lab.sh(hv, &script, ctx.patience(PROMPT))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

fn libvirt(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, None)?;
    wait_phase(ctx, ON, "normal", SERVED)?;
    ctx.lab.sh(ON, "pkill -STOP -x libvirtd", ctx.patience(PROMPT))?;
    let told = until(ctx, "the agent to say that libvirt is silent", SERVED, || {
        let (status, _, took) = mount_of(ctx, ON)?;
        if status["libvirt"].is_null() { Err(status.to_string()) } else { Ok((status, took)) }
    })?;
    ctx.report.notes.push(format!("libvirt: {}", told.0["libvirt"]));
    ctx.bound("answer of the agent ms", Some(told.1), ANSWER);
    let moved = hyper.bed.switchover(ctx, "nas1", VMS, &["--force"])?;
    ctx.report.moves += 1;
    ctx.demand(moved.code == 0, &format!("the forced move succeeds: {}", moved.words()));
    // Guests cannot be looked at, so that the mount is not said to be well.
    let seen = until(ctx, "the agent to have followed the move", SERVED, || {
        let seen = phases(ctx, ON, 8).map_err(|e| e.to_string())?;
        let all = ["moving", "io-back", "opens-back"];
        if all.iter().all(|p| seen.iter().any(|s| s == p)) { Ok(seen) } else { Err(seen.join(" ")) }
    })?;
    ctx.report.notes.push(format!("phases: {}", seen.join(" ")));
    ctx.lab.sh(ON, "pkill -CONT -x libvirtd", ctx.patience(PROMPT))?;
    wait_phase(ctx, ON, "normal", WHOLE)?;
    hyper.settle(ctx)?;
    let windows: Vec<_> = moved.window.into_iter().collect();
    hyper.conclude(ctx, &windows)
}

/// Threads of the agent itself in uninterruptible sleep, and its time of a processor and its helpers' so far, ms.
const THREADS: &str = "\
main=$(systemctl show -P MainPID hvagent)
for t in /proc/$main/task/*/stat; do sed 's/.*) //' $t | cut -d' ' -f1; done | grep -c D
hz=$(getconf CLK_TCK); sum=0
for p in $(cat /sys/fs/cgroup/system.slice/hvagent.service/cgroup.procs); do
    set -- $(sed 's/.*) //' /proc/$p/stat 2>/dev/null); sum=$((sum + ${12:-0} + ${13:-0}))
done
echo $((sum * 1000 / hz))";

fn threads(ctx: &Ctx) -> Result<(u64, f64), LabError> {
    let text = ctx.lab.sh(ON, THREADS, ctx.patience(PROMPT))?;
    let mut numbers = text.split_whitespace().map(|n| n.parse::<u64>().unwrap_or(u64::MAX));
    let (hung, cpu) = (numbers.next().unwrap_or(u64::MAX), numbers.next().unwrap_or(u64::MAX));
    Ok((hung, cpu as f64))
}

fn storage(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, None)?;
    wait_phase(ctx, ON, "normal", SERVED)?;
    let start_ns = wall_ns();
    ctx.lab.fault(&Fault::CutPorts { node: ON.to_owned(), ports: NFS.to_owned() })?;
    ctx.report.moves += 1;
    dead(ctx)?;
    ctx.lab.fault(&Fault::Heal)?;
    hyper.wait_writes(ctx, WHOLE)?;
    let window = Window { start_ns, end_ns: wall_ns() };
    wait_phase(ctx, ON, "normal", WHOLE)?;
    hyper.settle(ctx)?;
    hyper.conclude(ctx, &[window])
}

/// The minute without storage.
fn dead(ctx: &mut Ctx) -> Result<(), LabError> {
    let begin = Instant::now();
    wait_phase(ctx, ON, "moving", SERVED)?;
    let (_, before) = threads(ctx)?;
    let since = Instant::now();
    let (mut slowest, mut hung) = (0.0_f64, 0);
    while since.elapsed() < Duration::from_secs(25) {
        let (_, _, took) = mount_of(ctx, ON)
            .map_err(|e| super::super::bed::in_vain("the agent's status", e, PROMPT))?;
        slowest = slowest.max(took);
        hung = hung.max(threads(ctx)?.0);
        thread::sleep(Duration::from_secs(1));
    }
    let per_cent = (threads(ctx)?.1 - before) / since.elapsed().as_secs_f64() / 10.0;
    ctx.bound("slowest answer of the agent ms", Some(slowest), ANSWER);
    ctx.bound("processor %", Some(per_cent), CPU);
    ctx.report.extra.insert("processor %".into(), ((per_cent * 100.0).round() / 100.0).into());
    ctx.demand(
        hung == 0,
        &format!("no thread of the agent sleeps in the kernel for storage: {hung}"),
    );
    let restart = Instant::now();
    ctx.lab.sh(ON, "systemctl restart hvagent", ctx.patience(PROMPT * 2))?;
    let took = restart.elapsed().as_secs_f64() * 1000.0;
    ctx.bound("restart of the agent ms", Some(took), 10_000.0);
    until(ctx, "the restarted agent to answer", PROMPT, || mount_of(ctx, ON).map(drop))?;
    thread::sleep(Duration::from_secs(60).saturating_sub(begin.elapsed()));
    Ok(())
}
