//! `sanlock-margin`: a move inside the margin of the guests' leases costs nothing; a stall beyond it is told before the
//! lease is lost, and after that the way back is told, which is then gone.

use std::time::{Duration, Instant};

use super::super::bed::VMS;
use super::super::recovery::{PROMPT, SERVED, WHOLE, until};
use super::super::{Ctx, Scenario, cuts};
use super::domain::Hyper;
use super::hung::{mount_of, wait_phase};
use crate::blocks::wall_ns;
use crate::error::LabError;
use crate::fault::Fault;
use crate::report::Window;

/// Leases of 16 s.
pub const MARGIN: Scenario = cuts::nightly(
    "sanlock-margin",
    "leases with io_timeout 2 s: a move inside the margin, then a stall beyond it, and the way back",
    margin,
);

/// Seconds of sanlock's `io_timeout`; a lease lasts eight times as long.
const IO_TIMEOUT: u32 = 2;
/// Until sanlock has ended the guests of a lost lockspace: 8 × [`IO_TIMEOUT`], then its grace of 40 s.
const ENDED: Duration = Duration::from_secs(120);
/// Joining a lockspace.
const JOINED: Duration = Duration::from_secs(90);

fn margin(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, Some(IO_TIMEOUT))?;
    for hv in ["hv1", "hv2"] {
        wait_phase(ctx, hv, "normal", SERVED)?;
    }
    let moved = hyper.bed.switchover(ctx, "nas1", VMS, &["--wait", "60"])?;
    ctx.report.moves += 1;
    let good = moved.code == 0 && moved.outcome() == "moved";
    ctx.demand(good, &format!("a move inside the margin: {}", moved.words()));
    hyper.bed.wait_served(ctx, VMS, SERVED)?;
    hyper.settle(ctx)?;
    let start_ns = wall_ns();
    beyond(ctx, &mut hyper)?;
    let inside: Vec<Window> = moved.window.into_iter().collect();
    hyper.conclude(ctx, &inside)?;
    let after = (wall_ns() - start_ns) / 1_000_000;
    ctx.report.extra.insert("lost and back ms".into(), after.into());
    Ok(())
}

fn beyond(ctx: &mut Ctx, hyper: &mut Hyper) -> Result<(), LabError> {
    let host = hyper.host();
    let begin = Instant::now();
    let ports = "2049".to_owned();
    ctx.lab.fault(&Fault::CutPorts { node: host.clone(), ports })?;
    ctx.report.moves += 1;
    let warning = until(ctx, "the agent to warn of the lease", SERVED, || {
        let all = problems(ctx, &host)?;
        let warns = |p: &&String| p.contains("margin") && !p.contains("lost (");
        all.iter().find(warns).cloned().ok_or_else(|| all.join("; "))
    })?;
    ctx.report.notes.push(format!("after {} ms: {warning}", begin.elapsed().as_millis()));
    let early = begin.elapsed() < Duration::from_secs(8 * u64::from(IO_TIMEOUT));
    ctx.demand(early, "the warning comes before the lease is lost");
    let lost = until(ctx, "the agent to tell of the lost lockspace", ENDED, || {
        let all = problems(ctx, &host)?;
        let told = |p: &&String| p.contains("lost (") || p.contains("gone now");
        all.iter().find(told).cloned().ok_or_else(|| all.join("; "))
    })?;
    ctx.report.notes.push(format!("after {} ms: {lost}", begin.elapsed().as_millis()));
    let remedy = lost.contains("restart the daemon that holds libvirt's lock driver");
    ctx.demand(remedy, "the way back is told");
    way_back(ctx, hyper, &host)
}

/// As the remedy says: storage, ended guests, lockspace, guests.
fn way_back(ctx: &mut Ctx, hyper: &mut Hyper, host: &str) -> Result<(), LabError> {
    until(ctx, "sanlock to have ended the guest", ENDED, || {
        succeeds(ctx, host, "! pgrep qemu-system")
    })?;
    ctx.lab.fault(&Fault::Heal)?;
    until(ctx, "the lost lockspace to be gone", ENDED, || {
        succeeds(ctx, host, "s=$(sanlock client status) && ! echo \"$s\" | grep '^s '")
    })?;
    until(ctx, "libvirt to join again", JOINED, || {
        succeeds(ctx, host, "systemctl restart libvirtd")
    })?;
    until(ctx, "the lockspace to be joined", JOINED, || {
        succeeds(ctx, host, "sanlock client status | grep '^s ' | grep -v ADD")
    })?;
    wait_phase(ctx, host, "normal", WHOLE)?;
    hyper.start_again(ctx, host)
}

fn succeeds(ctx: &Ctx, node: &str, script: &str) -> Result<(), String> {
    let out = ctx.lab.exec(node, &["sh", "-c", script], ctx.patience(PROMPT * 3));
    let out = out.map_err(|e| e.to_string())?;
    if out.ok() { Ok(()) } else { Err(format!("{} {}", out.stdout, out.stderr)) }
}

fn problems(ctx: &Ctx, hv: &str) -> Result<Vec<String>, String> {
    let (status, mount, _) = mount_of(ctx, hv)?;
    let of = |v: &serde_json::Value| {
        let all = v["problems"].as_array().cloned().unwrap_or_default();
        all.iter().filter_map(|p| p.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    Ok([of(&status), of(&mount)].concat())
}
