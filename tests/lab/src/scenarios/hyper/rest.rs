//! `agent-at-rest`: what hvagent costs a hypervisor on which a guest runs and nothing else happens.

use std::thread;
use std::time::{Duration, Instant};

use super::super::recovery::{PROMPT, SERVED};
use super::super::{Ctx, Scenario, cuts};
use super::domain::Hyper;
use super::hosts::Leases;
use super::hung::wait_phase;
use crate::error::LabError;

/// A minute.
pub const REST: Scenario = cuts::nightly(
    "agent-at-rest",
    "memory and processor time of hvagent and its helpers during a minute of rest",
    rest,
);

const ON: &str = "hv1";
const MINUTE: Duration = Duration::from_secs(60);
/// MiB resident of an optimised build. One that is not has some 50 MB of code, of which more is looked at.
const RESIDENT: f64 = if cfg!(debug_assertions) { 32.0 } else { 20.0 };
/// Per cent of a processor; the goal is 0.5, and a test allows ten times that: a system call costs User-Mode Linux
/// some twenty times as much as a real kernel.
const CPU: f64 = if cfg!(debug_assertions) { 20.0 } else { 5.0 };

/// KiB resident, of it anonymous, and ms of processor time of the agent; then KiB resident of its helpers.
const COST: &str = "\
main=$(systemctl show -P MainPID hvagent); hz=$(getconf CLK_TCK)
of() { sed -n \"s/^$2:[^0-9]*\\([0-9]*\\).*/\\1/p\" /proc/$1/status; }
sum=0; helpers=0
for p in $(cat /sys/fs/cgroup/system.slice/hvagent.service/cgroup.procs); do
    set -- $(sed 's/.*) //' /proc/$p/stat 2>/dev/null); sum=$((sum + ${12:-0} + ${13:-0}))
    [ $p = $main ] || helpers=$((helpers + $(of $p RssAnon)))
done
echo $(of $main VmRSS) $(of $main RssAnon) $((sum * 1000 / hz)) $helpers";

fn cost(ctx: &Ctx) -> Result<[f64; 4], LabError> {
    let text = ctx.lab.sh(ON, COST, ctx.patience(PROMPT))?;
    let mut numbers = text.split_whitespace().map(|n| n.parse().unwrap_or(f64::MAX));
    Ok(std::array::from_fn(|_| numbers.next().unwrap_or(f64::MAX)))
}

fn rest(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, Some(Leases::of(10)))?;
    wait_phase(ctx, ON, "normal", SERVED)?;
    // What its start costs is not rest.
    thread::sleep(MINUTE / 3);
    let ([_, _, before, _], begin) = (cost(ctx)?, Instant::now());
    thread::sleep(MINUTE);
    let [resident, anonymous, after, helpers] = cost(ctx)?;
    let cpu = (after - before) / begin.elapsed().as_secs_f64() / 10.0;
    let rounded = |n: f64| (n * 100.0).round() / 100.0;
    for (name, value) in [
        ("resident MiB", resident / 1024.0),
        ("of it anonymous MiB", anonymous / 1024.0),
        ("helpers' anonymous MiB", helpers / 1024.0),
        ("processor %", cpu),
    ] {
        ctx.report.extra.insert(name.into(), rounded(value).into());
    }
    ctx.bound("resident MiB", Some(resident / 1024.0), RESIDENT);
    ctx.bound("processor %", Some(cpu), CPU);
    hyper.conclude(ctx, &[])
}
