//! Moves that must not happen: `switchover-busy`, `switchover-wrong-disk`.

use std::thread;
use std::time::Duration;

use super::bed::{Bed, FAIL_POINTS, VMS};
use super::recovery::until;
use super::{Ctx, Scenario};
use crate::error::LabError;

/// A process uses the volume.
pub const BUSY: Scenario = Scenario {
    name: "switchover-busy",
    summary: "a process holds the volume: refused in pre-flight; opened later: rolled back",
    engine: None,
    nightly: false,
    clients: 2,
    run: busy,
};

/// The target cannot or must not open.
pub const WRONG_DISK: Scenario = Scenario {
    name: "switchover-wrong-disk",
    summary: "target diskless, resyncing, mount point taken, other marker: never opens there",
    engine: None,
    nightly: false,
    clients: 2,
    run: wrong_disk,
};

/// Opens a file of the volume, says so, and keeps it.
const HOLD: &str = "exec 9</srv/nasd/vms/vms/.nasd/marker.json; touch /run/held; sleep 600";
const LIMIT: Duration = Duration::from_secs(15);

fn busy(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = Bed::up(ctx, &[VMS])?;
    bed.write(ctx)?;
    let job = ctx.lab.spawn("nas1", &["bash", "-c", HOLD])?;
    let held = "until test -e /run/held; do sleep 0.1; done";
    ctx.lab.sh("nas1", held, ctx.patience(LIMIT))?;
    let refused = bed.switchover(ctx, "nas1", VMS, &[])?;
    ctx.report.moves += 1;
    ctx.demand(refused.code == 1, "an open file refuses the move in pre-flight");
    ctx.demand(refused.refusals() == ["volume-busy"], "the refusal says volume-busy");
    let named = refused.events.iter().any(|e| e.to_string().contains("sleep ("));
    ctx.demand(named, "the refusal names the process");
    job.kill()?;
    job.wait(LIMIT)?;
    let window = opened_after_preflight(ctx, &bed)?;
    bed.stop_writing(ctx)?;
    bed.verify(ctx, &window)?;
    let owner = bed.wait_served(ctx, VMS, LIMIT)?;
    ctx.demand(owner == "nas1", "the service is on its old owner");
    let stalled = ctx.report.stall_ms.max.unwrap_or(f64::MAX);
    ctx.bound("stall of the rollback ms", Some(stalled), 6000.0);
    Ok(())
}

/// A fail point holds nasd between pre-flight and move while the file is opened.
fn opened_after_preflight(
    ctx: &mut Ctx,
    bed: &Bed,
) -> Result<Vec<crate::report::Window>, LabError> {
    ctx.lab.push("nas1", FAIL_POINTS, b"after-preflight hang:3000\n", 0o600)?;
    let job =
        ctx.lab.spawn("nas1", &["bash", "-c", &format!("{}; {HOLD}", fired("after-preflight"))])?;
    let moved = bed.switchover(ctx, "nas1", VMS, &[])?;
    ctx.report.moves += 1;
    ctx.demand(moved.code == 3, "a file opened after the pre-flight rolls the move back");
    ctx.demand(moved.message().contains("sleep ("), "the outcome names the process");
    ctx.report.notes.push(format!("rolled back: {}", moved.message()));
    job.kill()?;
    job.wait(LIMIT)?;
    Ok(moved.window.into_iter().collect())
}

fn wrong_disk(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = Bed::up(ctx, &[VMS])?;
    bed.write(ctx)?;
    let mut windows = damaged_files(ctx, &bed)?;
    let capture = ctx.lab.capture(
        "nas2",
        &format!("inbound and (src host {} or (arp and arp[14:4] = 0x0a4d0065))", VMS.address),
    )?;
    refused_after(
        ctx,
        &bed,
        "diskless",
        "drbdadm detach r0",
        &["target-disk", "target-not-current"],
    )?;
    resync(ctx, &bed)?;
    let foreign = "mkdir -p /srv/nasd/vms/vms && mount -t tmpfs none /srv/nasd/vms/vms";
    refused_after(ctx, &bed, "mount point taken", foreign, &["mountpoint-taken"])?;
    ctx.lab.sh("nas2", "umount /srv/nasd/vms/vms", LIMIT)?;
    windows.extend(other_marker(ctx, &bed)?);
    let seen = capture.end()?;
    ctx.demand(seen.lines.is_empty(), "the address never answers on the target");
    ctx.report.notes.extend(seen.lines.iter().take(5).cloned());
    bed.stop_writing(ctx)?;
    bed.verify(ctx, &windows)?;
    let owner = bed.wait_served(ctx, VMS, LIMIT)?;
    ctx.demand(owner == "nas1", "the service is on its old owner");
    Ok(())
}

fn refused_after(
    ctx: &mut Ctx,
    bed: &Bed,
    what: &str,
    script: &str,
    codes: &[&str],
) -> Result<(), LabError> {
    ctx.lab.sh("nas2", script, LIMIT)?;
    thread::sleep(Duration::from_millis(500));
    let moved = bed.switchover(ctx, "nas1", VMS, &[])?;
    ctx.report.moves += 1;
    let found = moved.refusals();
    ctx.demand(moved.code == 1, &format!("{what}: refused (exit {})", moved.code));
    let named = codes.iter().any(|c| found.iter().any(|f| f == c));
    ctx.demand(named, &format!("{what}: one of {codes:?} among {found:?}"));
    Ok(())
}

/// The disk comes back while the replication is slow: a resynchronisation runs.
fn resync(ctx: &mut Ctx, bed: &Bed) -> Result<(), LabError> {
    let slow = "drbdadm attach r0; drbdsetup disk-options 0 --resync-rate=10k --c-plan-ahead=0 --c-min-rate=0 || true";
    for nas in ["nas1", "nas2"] {
        ctx.lab.sh(nas, "drbdsetup disk-options 0 --resync-rate=100k --c-plan-ahead=0 --c-min-rate=1k 2>/dev/null || true", LIMIT)?;
    }
    let script = format!("{slow}; drbdadm invalidate r0 || true");
    refused_after(ctx, bed, "resync running", &script, &["resync-running"])?;
    for nas in ["nas1", "nas2"] {
        ctx.lab.sh(
            nas,
            "drbdsetup disk-options 0 --resync-rate=400M --c-plan-ahead=0 --c-min-rate=0",
            LIMIT,
        )?;
    }
    ctx.lab.drbd_wait("r0", "dstate", "UpToDate/UpToDate")?;
    bed.wait_served(ctx, VMS, Duration::from_secs(30)).map(drop)
}

const MARKER: &str = "/srv/nasd/vms/vms/.nasd/marker.json";
const RECORDS: &str = "/srv/nasd/vms/vms/.nasd/clients";
/// The owner looks after its files every ten canaries, each a second after the other.
const MENDED: Duration = Duration::from_secs(30);

/// Half a marker and no client records: the owner writes them anew while it serves, and the move finds them whole.
fn damaged_files(ctx: &mut Ctx, bed: &Bed) -> Result<Vec<crate::report::Window>, LabError> {
    let spoil = format!("sed -i 's/,.*//' {MARKER}; rm -r {RECORDS}");
    ctx.lab.sh("nas1", &spoil, LIMIT)?;
    let told = until(ctx, "the files to be written anew", MENDED, || {
        let history = ctx.lab.sh("nas1", "nasctl history vms | grep ' mend '; true", LIMIT);
        let history = history.map_err(|e| e.to_string())?;
        let both = history.contains("marker") && history.contains("client records");
        if both { Ok(history) } else { Err(history) }
    })?;
    ctx.report.notes.push(format!("damaged files: {}", told.trim()));
    let there = ctx.lab.sh("nas1", &format!("cat {MARKER}; ls {RECORDS}"), LIMIT)?;
    let whole = there.contains("\"generation\"") && there.contains("state");
    ctx.demand(whole, &format!("they are there again: {there}"));
    let mut windows = Vec::new();
    for back in [false, true] {
        let moved = bed.switchover(ctx, if back { "nas2" } else { "nas1" }, VMS, &[])?;
        ctx.report.moves += 1;
        ctx.demand(moved.code == 0, &format!("damaged files: moved (exit {})", moved.code));
        windows.extend(moved.window);
    }
    Ok(windows)
}

/// The volume's marker becomes another service's when the move has begun: the target mounts, sees it, closes; the old
/// owner too must then refuse until the marker is right again.
fn other_marker(ctx: &mut Ctx, bed: &Bed) -> Result<Vec<crate::report::Window>, LabError> {
    ctx.lab.push("nas1", FAIL_POINTS, b"step:warm hang:1500\n", 0o600)?;
    let swap = format!("cp -p {MARKER} /run/marker; sed -i 's/\"vms\"/\"other\"/' {MARKER}; sync");
    let back = format!(
        "for i in $(seq 3000); do grep -q '\"other\"' {MARKER} 2>/dev/null && test -n \"$(journalctl -u nasd | grep 'wrong volume')\" && break; sleep 0.05; done; cp -p /run/marker {MARKER}; sync"
    );
    let script = format!("{}; {swap}; {back}", fired("step:warm"));
    let fix = ctx.lab.spawn("nas1", &["bash", "-c", &script])?;
    let moved = bed.switchover(ctx, "nas1", VMS, &["--timeout", "20"])?;
    ctx.report.moves += 1;
    ctx.demand(moved.code > 1, "a volume with another marker is not opened");
    ctx.report.notes.push(format!("other marker: exit {} {}", moved.code, moved.message()));
    fix.wait(ctx.patience(Duration::from_secs(60)))?;
    bed.wait_served(ctx, VMS, Duration::from_secs(60))?;
    Ok(moved.window.into_iter().collect())
}

/// Waits for a fail point: one that has fired is gone from the file.
fn fired(point: &str) -> String {
    format!("while grep -q {point} {FAIL_POINTS}; do sleep 0.1; done")
}
