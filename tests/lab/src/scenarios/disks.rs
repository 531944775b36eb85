//! Disks that fail or hang, on either side: `disk-error-while-connected`, `owner-disk-error`, `disk-hang`. Each DRBD
//! disk lies on a device-mapper table of one line, which a script can replace or stop.

use std::thread;
use std::time::{Duration, Instant};

use super::bed::{Bed, Extra, NAS, VMS, leftovers};
use super::cuts::{begin_with, nightly};
use super::recovery::{PROMPT, SERVED, WHOLE, one, other, until};
use super::{Ctx, Scenario};
use crate::error::LabError;
use crate::fault::Fault;

/// The standby's disk fails; later it boots alone.
pub const STANDBY: Scenario = nightly(
    "disk-error-while-connected",
    "the standby's disk fails; the owner dies; the standby boots alone with its old disk: refuses",
    standby_error,
);

/// The owner's disk fails.
pub const OWNER: Scenario = nightly(
    "owner-disk-error",
    "the owner's disk fails: handed over in good order; repaired, it resynchronises and is current",
    owner_error,
);

/// A disk answers nothing any more.
pub const HANG: Scenario = nightly(
    "disk-hang",
    "the disk of the standby, then of the owner, hangs without an error: the service goes on",
    hang,
);

/// In each boot: a table over each data disk, and DRBD on top of it.
const TABLES: &str = "\
set -eu
modprobe dm-mod
for l in b c; do
    for d in /dev/ubd$l /dev/vd$l; do
        [ -b $d ] || continue
        dmsetup info lab-$l >/dev/null 2>&1 && continue
        dmsetup --noudevrules --noudevsync create lab-$l --table \"0 $(blockdev --getsz $d) linear $d 0\"
        # Its own node is there at once, whatever udev does.
        ln -sf /dev/dm-$(dmsetup info -c --noheadings -o minor lab-$l) /dev/mapper/lab-$l
    done
done
sed -i 's#disk /dev/[a-z]*\\([bc]\\);#disk /dev/mapper/lab-\\1;#' /etc/drbd.d/*.res
";
/// The first service's disk answers every request with an error.
const FAIL: &str = "dmsetup suspend --nolockfs --noflush lab-b && \
    dmsetup load lab-b --table \"0 $(blockdev --getsz /dev/mapper/lab-b) error\" && dmsetup --noudevrules --noudevsync resume lab-b";
/// It answers nothing.
const HANG_NOW: &str = "dmsetup suspend --nolockfs --noflush lab-b";
/// It goes on.
const GO_ON: &str = "dmsetup --noudevrules --noudevsync resume lab-b";
/// A new table over the same disk.
const REPAIR: &str = "d=$(ls /dev/ubdb /dev/vdb 2>/dev/null | head -n1); dmsetup suspend --nolockfs --noflush lab-b; \
    dmsetup load lab-b --table \"0 $(blockdev --getsz $d) linear $d 0\" && dmsetup --noudevrules --noudevsync resume lab-b";

/// Stall when the standby's disk hangs, ms: it must be recognised and let go.
const HUNG_STANDBY: f64 = 15_000.0;
/// Stall when the owner's disk hangs, ms: as above, and a takeover from a node that cannot let go.
const HUNG_OWNER: f64 = 40_000.0;
/// Stall of a handing over in good order, ms.
const IN_ORDER: f64 = 5000.0;

fn begin(ctx: &mut Ctx) -> Result<Bed, LabError> {
    begin_with(ctx, &Extra { hook: TABLES, ..Extra::default() })
}

fn sh(ctx: &Ctx, node: &str, script: &str) -> Result<(), LabError> {
    ctx.lab.sh(node, script, ctx.patience(PROMPT)).map(drop)
}

/// Waits until the owner's record names only itself as current.
fn wait_alone(ctx: &Ctx, owner: &str) -> Result<(), LabError> {
    until(ctx, "the record to name one current node", Duration::from_secs(30), || {
        let seen = one(ctx, owner, VMS)?["record"]["current"].clone();
        let alone = seen.as_array().is_some_and(|c| c.len() == 1);
        if alone { Ok(()) } else { Err(seen.to_string()) }
    })
}

fn standby_error(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let standby = other(&owner);
    let (served, first) = bed.strike(ctx, |ctx| sh(ctx, standby, FAIL))?;
    ctx.demand(served == owner, "the owner goes on");
    wait_alone(ctx, &owner)?;
    // Writes that only the owner's disk gets.
    thread::sleep(Duration::from_secs(3));
    let (said, second) = bed.window(ctx, |ctx| {
        for node in [owner.as_str(), standby] {
            ctx.lab.fault(&Fault::PowerCut { node: node.to_owned() })?;
        }
        ctx.report.moves += 1;
        // Its disk is whole again, and old.
        ctx.lab.fault(&Fault::PowerOn { node: standby.to_owned() })?;
        let said = bed.must_not_serve(ctx, standby, Duration::from_secs(25))?;
        ctx.lab.fault(&Fault::PowerOn { node: owner.clone() })?;
        bed.wait_whole(ctx, WHOLE)?;
        bed.wait_writing(ctx, SERVED)?;
        Ok(said)
    })?;
    ctx.demand(!said.ends_with("null"), "the node that refuses says why");
    ctx.report.notes.push(said);
    bed.conclude(ctx, &[first, second])?;
    bed.bound_stall(ctx, "stall when the standby's disk fails", &[first], HUNG_STANDBY);
    Ok(())
}

fn owner_error(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let (_, window) = bed.window(ctx, |ctx| {
        sh(ctx, &owner, FAIL)?;
        ctx.report.moves += 1;
        bed.wait_serves(ctx, other(&owner), VMS, SERVED)?;
        bed.wait_writing(ctx, SERVED)
    })?;
    thread::sleep(Duration::from_secs(3));
    let left = leftovers(ctx, &owner, VMS)?;
    ctx.demand(left.is_empty(), &format!("nothing is left on the old owner, not [{left}]"));
    // What an administrator does: a new disk, attached.
    sh(ctx, &owner, REPAIR)?;
    sh(ctx, &owner, "drbdadm attach r0")?;
    let after = bed.wait_whole(ctx, WHOLE)?;
    ctx.demand(after != owner, "no failing back by itself");
    bed.conclude(ctx, &[window])?;
    bed.bound_stall(ctx, "stall of the handing over", &[window], IN_ORDER);
    Ok(())
}

fn hang(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let standby = other(&owner);
    let (served, first) = bed.strike(ctx, |ctx| sh(ctx, standby, HANG_NOW))?;
    ctx.demand(served == owner, "the standby's disk hangs: the owner goes on");
    wait_alone(ctx, &owner)?;
    sh(ctx, standby, GO_ON)?;
    bed.wait_whole(ctx, WHOLE)?;
    let begin = Instant::now();
    let (_, second) = bed.window(ctx, |ctx| {
        sh(ctx, &owner, HANG_NOW)?;
        ctx.report.moves += 1;
        bed.wait_serves(ctx, standby, VMS, SERVED)?;
        bed.wait_writing(ctx, SERVED)
    })?;
    let note = format!(
        "the owner's disk hangs: {standby} serves after {:.1} s",
        begin.elapsed().as_secs_f64()
    );
    ctx.report.notes.push(note);
    rejoin(ctx, &bed, &owner)?;
    bed.conclude(ctx, &[first, second])?;
    bed.bound_stall(ctx, "stall when the standby's disk hangs", &[first], HUNG_STANDBY);
    bed.bound_stall(ctx, "stall when the owner's disk hangs", &[second], HUNG_OWNER);
    Ok(())
}

/// The old owner stops itself, since it cannot let go: its boot makes a table that works. If it has let go instead,
/// its disk goes on here.
fn rejoin(ctx: &mut Ctx, bed: &Bed, owner: &str) -> Result<(), LabError> {
    let reboots = |ctx: &Ctx| NAS.iter().map(|n| ctx.lab.reboots(n)).sum::<usize>();
    thread::sleep(Duration::from_secs(15));
    if reboots(ctx) == 0 {
        sh(ctx, owner, GO_ON)?;
    }
    ctx.report.notes.push(format!("reboots: {}", reboots(ctx)));
    bed.wait_whole(ctx, WHOLE).map(drop)
}
