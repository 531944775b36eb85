//! `gate`: nasd is stopped between its check of the right and the refresh, and goes on ten seconds
//! later, cut off from everybody who could grant it a new right. A deadline that counts from the
//! request opens nothing (S4, C3): not one packet leaves from the service's address.

use std::thread;
use std::time::Duration;

use super::bed::{Bed, FAIL_POINTS, VMS, status};
use super::{Ctx, Scenario};
use crate::error::LabError;
use crate::fault::Fault;

/// See the module.
pub const SCENARIO: Scenario = Scenario {
    name: "gate",
    summary: "nasd stopped between check and refresh, continued 10 s later: not one packet leaves",
    engine: None,
    nightly: false,
    clients: 2,
    run,
};

const LIMIT: Duration = Duration::from_secs(10);

fn run(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = Bed::up(ctx, &[VMS])?;
    bed.write(ctx)?;
    // What is shown here is the gate alone: nobody takes over meanwhile.
    ctx.lab.sh("nas1", "nasctl hold vms --reason 'the gate alone is looked at'", LIMIT)?;
    ctx.lab.push("nas1", FAIL_POINTS, b"right-before-refresh stop\n", 0o600)?;
    wait_stopped(ctx)?;
    // The right that was granted before runs out by itself, without any user code.
    thread::sleep(ctx.patience(Duration::from_millis(2500)));
    let filter =
        format!("inbound and (src host {0} or (arp and arp[14:4] = 0x0a4d0065))", VMS.address);
    let capture = ctx.lab.capture("nas1", &filter)?;
    // NFS clients back off; this one never stops asking, so that an opening of a moment is seen.
    let asking = ctx.lab.spawn("hv2", &["ping", "-q", "-i", "0.1", "-w", "60", VMS.address])?;
    thread::sleep(Duration::from_secs(5));
    // Nobody may grant a new right: peer and etcd's majority are cut off, client hv2 is not.
    for node in ["nas2", "hv1"] {
        ctx.lab.fault(&Fault::Cut { a: "nas1".into(), b: node.into() })?;
    }
    thread::sleep(Duration::from_millis(2500));
    ctx.lab.sh("nas1", "pkill -CONT -x nasd", LIMIT)?;
    ctx.report.moves += 1;
    thread::sleep(Duration::from_secs(4));
    let seen = capture.end()?;
    asking.kill()?;
    ctx.demand(seen.lines.is_empty(), "not one packet leaves from the service's address");
    ctx.report.extra.insert("packets".into(), seen.lines.len().into());
    ctx.report.notes.extend(seen.lines.iter().take(5).cloned());
    ctx.lab.fault(&Fault::Heal)?;
    // It is still the owner: with a fresh right it serves again, and the clients go on.
    bed.wait_served(ctx, VMS, Duration::from_secs(40))?;
    clients_go_on(ctx)?;
    bed.stop_writing(ctx)?;
    bed.verify(ctx, &[])?;
    let open = status(ctx, "nas1", VMS).ok().flatten().is_some_and(|s| s["gate_open"] == true);
    ctx.demand(open, "the gate is open again for the owner");
    Ok(())
}

fn wait_stopped(ctx: &Ctx) -> Result<(), LabError> {
    let script = "for i in $(seq 100); do grep -q '^State:.*T' /proc/$(pgrep -x nasd)/status && exit 0; sleep 0.05; done; exit 1";
    ctx.lab.sh("nas1", script, ctx.patience(LIMIT)).map(drop)
}

fn clients_go_on(ctx: &Ctx) -> Result<(), LabError> {
    for hv in ["hv1", "hv2"] {
        let script = "timeout 40 sh -c 'echo alive > /mnt/vms/alive-$(hostname) && sync /mnt/vms/alive-$(hostname)'";
        ctx.lab.sh(hv, script, ctx.patience(Duration::from_secs(60)))?;
    }
    Ok(())
}
