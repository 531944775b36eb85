//! Hands other than nasd's: `operator-meddles` (drbdadm behind its back), `helper-fails` (the kernel's helper dies,
//! hangs or is not there). Noticed, the record corrected, and no freeze for ever.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::bed::{NAS, VMS};
use super::cuts::{begin, nightly};
use super::recovery::{PROMPT, WHOLE, one, other, until};
use super::{Ctx, Scenario};
use crate::error::LabError;
use crate::fault::Fault;

/// An operator who knows drbdadm.
pub const OPERATOR: Scenario = nightly(
    "operator-meddles",
    "drbdadm and drbd.service behind nasd's back: noticed, record corrected, nobody stale serves",
    operator,
);

/// A helper that does not help.
pub const HELPER: Scenario = nightly(
    "helper-fails",
    "the fence helper is killed, stopped, cannot be executed: no freeze lasts for ever",
    helper,
);

/// What is typed, and whether at the owner.
const TYPED: [(&str, bool); 9] = [
    ("drbdadm disconnect r0", false),
    ("drbdadm detach r0", false),
    ("drbdadm adjust r0", false),
    ("systemctl unmask drbd; systemctl start drbd", false),
    ("drbdadm adjust r0", true),
    ("drbdadm resume-io r0", true),
    ("systemctl unmask drbd; systemctl start drbd", true),
    ("drbdadm disconnect r0", true),
    ("drbdadm detach r0", true),
];
/// Until nasd has noticed and the record is right.
const NOTICED: Duration = Duration::from_secs(40);
/// No freeze lasts longer, ms (design section 4), and what a stopped helper adds.
const FREEZE: f64 = 15_000.0;
/// The helper as DRBD calls it.
const HELPER_PATH: &str = "/usr/lib/nasd/nasd-fence-peer";

fn operator(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let mut windows = Vec::new();
    for (typed, at_owner) in TYPED {
        let owner = bed.wait_whole(ctx, WHOLE)?;
        let node = if at_owner { owner.as_str() } else { other(&owner) }.to_owned();
        let (served, window) = bed.strike(ctx, |ctx| {
            // It may refuse: that is as good.
            let out = ctx.lab.exec(&node, &["sh", "-c", typed], ctx.patience(WHOLE))?;
            ctx.report.notes.push(format!("{typed} on {node}: exit {}", out.code));
            Ok(())
        })?;
        wait_truth(ctx, typed)?;
        ctx.report.notes.push(format!("{owner} served, {served} serves"));
        windows.push(window);
        // The same operator undoes it.
        for nas in NAS {
            let service = typed.starts_with("systemctl");
            let undo = if service { "systemctl mask drbd" } else { "drbdadm adjust r0" };
            ctx.lab.exec(nas, &["sh", "-c", undo], ctx.patience(WHOLE))?;
        }
    }
    bed.wait_whole(ctx, WHOLE)?;
    bed.conclude(ctx, &windows)?;
    bed.bound_stall(ctx, "stall max", &windows, FREEZE);
    Ok(())
}

/// The record must come to name exactly the nodes that DRBD says hold everything.
fn wait_truth(ctx: &Ctx, typed: &str) -> Result<(), LabError> {
    until(ctx, &format!("the record to be right after {typed}"), NOTICED, || {
        let seen = [one(ctx, NAS[0], VMS)?, one(ctx, NAS[1], VMS)?];
        let owner = seen.iter().position(|s| s["stage"] == "serving").ok_or("nobody serves")?;
        let status = &seen[owner];
        let names = status["record"]["current"].as_array().cloned().unwrap_or_default();
        let recorded: BTreeSet<_> = names.iter().filter_map(Value::as_str).collect();
        let real = reality(status, NAS[owner]);
        if recorded == real { Ok(()) } else { Err(format!("recorded {recorded:?}, real {real:?}")) }
    })
}

/// Nodes whose disks are all UpToDate, as the owner's DRBD sees them.
fn reality(status: &Value, owner: &'static str) -> BTreeSet<&'static str> {
    let disks = status["drbd"]["disks"].as_object().cloned().unwrap_or_default();
    let good = |at: usize| !disks.is_empty() && disks.values().all(|d| d[at] == "UpToDate");
    let sides = [(0, owner), (1, other(owner))];
    sides.into_iter().filter(|(at, _)| good(*at)).map(|(_, node)| node).collect()
}

fn helper(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let mut windows = Vec::new();
    // Each works again at its second call, or, where there is none to run, a while later.
    let restore = format!("ln -sf /lab/bin/nasd-fence-peer {HELPER_PATH}");
    let once = |signal: &str| {
        format!(
            "rm -f {HELPER_PATH}; printf '#!/bin/sh\\n{restore}\\nkill -{signal} $$\\n' > {HELPER_PATH}; chmod 755 {HELPER_PATH}"
        )
    };
    let gone = format!("rm -f {HELPER_PATH}; (sleep 4; {restore}) </dev/null >/dev/null 2>&1 &");
    let ways = [("killed", once("KILL")), ("stopped", once("STOP")), ("not there", gone)];
    for (what, script) in ways {
        let owner = bed.wait_whole(ctx, WHOLE)?;
        let standby = other(&owner);
        let (served, window) = bed.strike(ctx, |ctx| {
            ctx.lab.sh(&owner, &script, PROMPT)?;
            ctx.lab.fault(&Fault::PowerCut { node: standby.to_owned() })
        })?;
        ctx.demand(served == owner, &format!("helper {what}: the owner goes on"));
        windows.push(window);
        ctx.lab.sh(&owner, &restore, PROMPT)?;
        bed.power_on(ctx, standby)?;
    }
    bed.conclude(ctx, &windows)?;
    bed.bound_stall(ctx, "stall max", &windows, FREEZE);
    Ok(())
}
