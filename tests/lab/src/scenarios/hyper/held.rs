//! Migrations that hvagent holds back: `agent-crash-in-hold` (limits are restored, the hook lets go), and
//! `migrate-in-grace` (delayed with a reason until the clients have reclaimed).

use std::thread;
use std::time::{Duration, Instant};

use super::super::bed::{FAIL_POINTS, NAS, VMS};
use super::super::recovery::{PROMPT, SERVED, WHOLE, until};
use super::super::{Ctx, Scenario, cuts};
use super::domain::{HOSTS, Hyper, Migration};
use super::hung::wait_phase;
use crate::error::LabError;
use crate::fault::Fault;
use crate::report::Window;

/// The agent dies while a migration is slowed down.
pub const CRASH: Scenario = cuts::nightly(
    "agent-crash-in-hold",
    "SIGKILL of hvagent while it holds a migration back: limits restored, the hook lets go in time",
    crash,
);

/// A migration in grace.
pub const GRACE: Scenario = Scenario {
    clients: 3,
    ..cuts::nightly(
        "migrate-in-grace",
        "a migration while a client has not reclaimed: delayed with a reason, not hung in switchover",
        in_grace,
    )
};

/// The hook's own limit for an agent that is gone, and time for a slow node.
const LETS_GO: f64 = 4000.0;
/// The limit of the guest's migrations as libvirt tells it.
const SPEED: &str = "virsh -q migrate-getspeed vm1";
const LIMITS: &str = "/var/lib/hvagent/limits.json";

fn crash(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, None)?;
    for hv in HOSTS {
        wait_phase(ctx, hv, "normal", SERVED)?;
    }
    let from = hyper.host();
    let before = speed(ctx, &from)?;
    // The announced move waits, and with it the hold.
    for nas in NAS {
        ctx.lab.push(nas, FAIL_POINTS, b"after-preflight hang:12000\n", 0o600)?;
    }
    let migration = Migration::begin(ctx, hyper.name(), &from)?;
    thread::sleep(Duration::from_millis(1500));
    let start_ns = crate::blocks::wall_ns();
    let argv = ["nasctl", "switchover", VMS.name, "--wait", "60", "--json"];
    let moving = ctx.lab.spawn("nas1", &argv)?;
    let held = until(ctx, "the migration to be held back", SERVED, || {
        let now = speed(ctx, &from).map_err(|e| e.to_string())?;
        if now == before { Err(now) } else { Ok(now) }
    })?;
    ctx.report.notes.push(format!("held at {held} MiB/s, before {before}"));
    ctx.lab.sh(&from, "pkill -KILL -x hvagent; sleep 1", ctx.patience(PROMPT))?;
    let moved = moving.wait(ctx.patience(WHOLE * 2))?;
    // After so long a pause the migration may be too near its end: then the move is given up before it cuts (S11).
    let settled = matches!(moved, 0 | 3);
    ctx.demand(settled, &format!("the move is made, or given up in time: exit {moved}"));
    ctx.report.notes.push(format!("the move: exit {moved}"));
    let migrated = migration.end(ctx)?;
    ctx.demand(migrated.ok, &format!("the migration is done: {}", migrated.words));
    hyper.count(&migrated);
    ctx.report.moves += 1;
    let window = Window { start_ns, end_ns: crate::blocks::wall_ns() };
    until(ctx, "the limits to be restored", WHOLE, || {
        let left = ctx.lab.sh(&from, &format!("cat {LIMITS} 2>/dev/null; true"), PROMPT);
        let left = left.map_err(|e| e.to_string())?;
        if left.contains("vm1") { Err(left) } else { Ok(()) }
    })?;
    hyper.settle(ctx)?;
    hook_lets_go(ctx, &from)?;
    hyper.conclude(ctx, &[window])
}

fn speed(ctx: &Ctx, hv: &str) -> Result<String, LabError> {
    ctx.lab.sh(hv, SPEED, ctx.patience(PROMPT)).map(|text| text.trim().to_owned())
}

/// With an agent that does not answer, and with none.
fn hook_lets_go(ctx: &mut Ctx, hv: &str) -> Result<(), LabError> {
    let asks = "/usr/lib/nasd/hvagent-hook vm1 migrate begin - < /etc/lab/guest.xml";
    ctx.lab.sh("hv1", "cat /etc/lab/guest.xml > /run/guest.xml", ctx.patience(PROMPT))?;
    let xml = ctx.lab.pull("hv1", "/run/guest.xml")?;
    ctx.lab.push(hv, "/etc/lab/guest.xml", &xml, 0o644)?;
    let ways = [
        ("stopped", "systemctl kill -s STOP hvagent", "systemctl kill -s CONT hvagent"),
        ("gone", "systemctl stop hvagent", "systemctl start hvagent"),
    ];
    for (what, breaks, mends) in ways {
        ctx.lab.sh(hv, breaks, ctx.patience(PROMPT * 2))?;
        let begin = Instant::now();
        let out = ctx.lab.exec(hv, &["sh", "-c", asks], ctx.patience(PROMPT))?;
        let took = begin.elapsed().as_secs_f64() * 1000.0;
        ctx.demand(out.ok(), &format!("agent {what}: the hook lets go: {}", out.stderr));
        let asked = out.stderr.contains("goes on unchecked");
        ctx.demand(asked, &format!("agent {what}: the hook has asked in vain: {}", out.stderr));
        ctx.bound(&format!("hook with the agent {what} ms"), Some(took), LETS_GO);
        ctx.lab.sh(hv, mends, ctx.patience(PROMPT * 2))?;
    }
    Ok(())
}

/// A third client holds a file open and loses its power: the new server waits for it.
fn in_grace(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, None)?;
    for hv in HOSTS {
        wait_phase(ctx, hv, "normal", SERVED)?;
    }
    let open = "exec 9>>/mnt/vms/held-open; flock 9; sleep 600";
    let _open = ctx.lab.spawn("hv3", &["bash", "-c", open])?;
    thread::sleep(Duration::from_secs(2));
    ctx.lab.fault(&Fault::PowerCut { node: "hv3".to_owned() })?;
    let moved = hyper.bed.switchover(ctx, "nas1", VMS, &["--force"])?;
    ctx.report.moves += 1;
    ctx.demand(moved.code == 0, &format!("the move succeeds: {}", moved.words()));
    let to = super::domain::other(&hyper.host());
    let start_ns = crate::blocks::wall_ns();
    let migration = Migration::begin(ctx, hyper.name(), &hyper.host())?;
    let reason = until(ctx, "the migration to be delayed", SERVED, || {
        let (_, mount, _) = super::hung::mount_of(ctx, to)?;
        let waits = matches!(mount["phase"].as_str(), Some("io-back" | "moving"));
        if waits { Ok(mount["phase"].to_string()) } else { Err(mount.to_string()) }
    })?;
    ctx.report.notes.push(format!("while {to} is in {reason}"));
    let guest = hyper.name().to_owned();
    super::findings::found(ctx, Some(&guest), "storage-moving")?;
    let migrated = migration.end(ctx)?;
    ctx.report.notes.push(format!("the migration took {} ms", migrated.took.as_millis()));
    ctx.demand(migrated.ok, &format!("the migration is done: {}", migrated.words));
    hyper.count(&migrated);
    hyper.settle(ctx)?;
    let window = Window { start_ns, end_ns: crate::blocks::wall_ns() };
    ctx.lab.fault(&Fault::PowerOn { node: "hv3".to_owned() })?;
    hyper.conclude(ctx, &[window])?;
    let downtime = ctx.report.migrations.and_then(|m| m.downtime_ms.max);
    ctx.bound("migration's downtime max ms", downtime, 5000.0);
    Ok(())
}
