//! The margin of the guests' leases: a move inside it costs nothing; a stall beyond it is told before the lease is lost,
//! and after that the way back is told. With a watchdog the host is reset then, and the guest may start elsewhere;
//! without one (`-w 0`) the way back is followed.

use std::thread;
use std::time::{Duration, Instant};

use super::super::bed::VMS;
use super::super::recovery::{PAUSE, PROMPT, SERVED, WHOLE, until};
use super::super::{Ctx, Scenario, cuts};
use super::domain::{HOSTS, Hyper, other};
use super::findings;
use super::hosts::{Leases, Sanlock};
use super::hung::{mount_of, wait_phase};
use crate::blocks::wall_ns;
use crate::error::LabError;
use crate::fault::Fault;
use crate::report::Window;

/// Leases of 16 s, and 10 s more until the host is reset.
pub const MARGIN: Scenario = cuts::nightly(
    "sanlock-margin",
    "leases with io_timeout 2 s, watchdog 10 s: a move inside the margin, then a stall beyond it",
    with_watchdog,
);

/// The same leases without a watchdog.
pub const WAY_BACK: Scenario = cuts::nightly(
    "sanlock-way-back",
    "the same leases without a watchdog: a stall beyond the margin, and the way back",
    without_watchdog,
);

/// Seconds of sanlock's `io_timeout`; a lease lasts eight times as long.
const IO_TIMEOUT: u32 = 2;
/// Seconds of the watchdog.
const FIRE: u32 = 10;
/// Until sanlock has ended the guests of a lost lockspace: 8 × [`IO_TIMEOUT`], then its grace of 40 s.
const ENDED: Duration = Duration::from_secs(120);
/// What `hvagent check` finds without a watchdog.
const OFF: &str = "sanlock-watchdog-off";
/// Joining a lockspace.
const JOINED: Duration = Duration::from_secs(90);
/// A lease lasts this long after its last renewal.
const LEASE: Duration = Duration::from_secs(8 * IO_TIMEOUT as u64);
/// After its lease's end a host is reset in [`FIRE`]; the rest is for its new start.
const RESET: Duration = Duration::from_secs(LEASE.as_secs() + FIRE as u64 + 20);

/// Once a host's lease and its watchdog have run out others take what it had: it must be silent by then, ms. It was
/// renewed last before the cut; the rest is the question that tells.
const SILENT: f64 = ((LEASE.as_secs() + FIRE as u64 + 2) * 1000) as f64;

fn with_watchdog(ctx: &mut Ctx) -> Result<(), LabError> {
    let leases = Leases { watchdog: Some(FIRE), ..Leases::of(IO_TIMEOUT) };
    let (mut hyper, inside) = moved_inside(ctx, Some(leases))?;
    let reset: Vec<_> = HOSTS.into_iter().filter(|hv| ctx.lab.reboots(hv) > 0).collect();
    ctx.demand(reset.is_empty(), &format!("a move inside the margin resets no host: {reset:?}"));
    findings::gone(ctx, None, OFF)?;
    let host = hyper.host();
    let begin = cut(ctx, &host)?;
    lost(ctx, &host, begin)?;
    reset_and_started_elsewhere(ctx, &mut hyper, &host, begin)?;
    hyper.settle(ctx)?;
    hyper.conclude(ctx, &inside)
}

fn without_watchdog(ctx: &mut Ctx) -> Result<(), LabError> {
    let (mut hyper, inside) = moved_inside(ctx, Some(Leases::of(IO_TIMEOUT)))?;
    findings::found(ctx, None, OFF)?;
    let start_ns = wall_ns();
    let host = hyper.host();
    let begin = cut(ctx, &host)?;
    lost(ctx, &host, begin)?;
    way_back(ctx, &mut hyper, &host)?;
    hyper.conclude(ctx, &inside)?;
    let after = (wall_ns() - start_ns) / 1_000_000;
    ctx.report.extra.insert("lost and back ms".into(), after.into());
    Ok(())
}

/// The guest, and a planned move below it.
fn moved_inside(ctx: &mut Ctx, leases: Sanlock) -> Result<(Hyper, Vec<Window>), LabError> {
    let hyper = Hyper::up(ctx, leases)?;
    for hv in HOSTS {
        wait_phase(ctx, hv, "normal", SERVED)?;
    }
    let moved = hyper.bed.switchover(ctx, "nas1", VMS, &["--wait", "45"])?;
    ctx.report.moves += 1;
    let good = moved.code == 0 && moved.outcome() == "moved";
    ctx.demand(good, &format!("a move inside the margin: {}", moved.words()));
    hyper.bed.wait_served(ctx, VMS, SERVED)?;
    hyper.settle(ctx)?;
    Ok((hyper, moved.window.into_iter().collect()))
}

/// Takes the storage away from one hypervisor whose lease is young, and waits for the warning.
fn cut(ctx: &mut Ctx, host: &str) -> Result<Instant, LabError> {
    let warns = |p: &&String| p.contains("margin") && !p.contains("lost (");
    until(ctx, "the lease to be renewed in time", SERVED, || {
        let all = problems(ctx, host)?;
        all.iter().find(warns).map_or(Ok(()), |warning| Err(warning.clone()))
    })?;
    let begin = Instant::now();
    ctx.lab.fault(&Fault::CutPorts { node: host.to_owned(), ports: "2049".to_owned() })?;
    ctx.report.moves += 1;
    let warning = until(ctx, "the agent to warn of the lease", SERVED, || {
        let all = problems(ctx, host)?;
        all.iter().find(warns).cloned().ok_or_else(|| all.join("; "))
    })?;
    ctx.report.notes.push(format!("after {} ms: {warning}", begin.elapsed().as_millis()));
    ctx.demand(begin.elapsed() < LEASE, "the warning comes before the lease is lost");
    Ok(begin)
}

fn lost(ctx: &mut Ctx, host: &str, begin: Instant) -> Result<(), LabError> {
    let lost = until(ctx, "the agent to tell of the lost lockspace", ENDED, || {
        let all = problems(ctx, host)?;
        let told = |p: &&String| p.contains("lost (") || p.contains("gone now");
        all.iter().find(told).cloned().ok_or_else(|| all.join("; "))
    })?;
    ctx.report.notes.push(format!("after {} ms: {lost}", begin.elapsed().as_millis()));
    ctx.demand(lost.contains("systemctl restart libvirtd"), "the way back is told");
    Ok(())
}

/// The other host gets the lease when the watchdog has fired here, not before.
fn reset_and_started_elsewhere(
    ctx: &mut Ctx,
    hyper: &mut Hyper,
    host: &str,
    begin: Instant,
) -> Result<(), LabError> {
    let to = other(host);
    // The dead host's opens and locks keep it from starting longer than its lease does: the NFS server looks for silent
    // clients for the first time when one whole grace has passed since its start, even if grace was over much sooner.
    let starting = hyper.begin_elsewhere(ctx, to)?;
    // User-Mode Linux takes some seconds from its reset to its new start; it has been silent all the while.
    let mut alive = begin.elapsed();
    while ctx.lab.reboots(host) == 0 && begin.elapsed() < RESET {
        if ctx.lab.answers(host) {
            alive = begin.elapsed();
        }
        thread::sleep(PAUSE);
    }
    let early = hyper.host() == to;
    let reset = ctx.lab.reboots(host) == 1;
    ctx.demand(reset, &format!("the watchdog resets {host} in {} s", RESET.as_secs()));
    ctx.report.notes.push(format!("after {} ms: the last sign of {host}", alive.as_millis()));
    ctx.bound("last sign of the host ms", Some(alive.as_secs_f64() * 1000.0), SILENT);
    ctx.demand(!early, &format!("the guest does not run on {to} before {host} is reset"));
    hyper.end_elsewhere(ctx, starting, host)?;
    ctx.report.notes.push(format!("after {} ms: {to} runs it", begin.elapsed().as_millis()));
    ctx.lab.wait_ready(host)?;
    ctx.lab.fault(&Fault::Heal)?;
    ctx.lab.sh(host, "systemctl start libvirtd.socket", ctx.patience(PROMPT)).map(drop)
}

/// As the remedy says: storage, ended guests, lockspace, guests.
fn way_back(ctx: &mut Ctx, hyper: &mut Hyper, host: &str) -> Result<(), LabError> {
    // A process that was killed waits for the storage where it gives its locks back: with SIGKILL pending it runs no
    // guest any more.
    until(ctx, "sanlock to have ended the guest", ENDED, || {
        let dead = "for p in $(pgrep qemu-system); do \
                    grep -Eq '^State:.Z|^ShdPnd:.*[13579bdf]..$' /proc/$p/status || \
                    { grep -E 'State|ShdPnd' /proc/$p/status; exit 1; }; done";
        succeeds(ctx, host, dead)
    })?;
    ctx.lab.fault(&Fault::Heal)?;
    until(ctx, "the dead process to be gone", ENDED, || {
        succeeds(ctx, host, "! pgrep qemu-system")
    })?;
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
