//! `crash-during-switchover`: power cuts and link losses in the middle of a planned move: the table of what then must
//! happen is in the facts on safety, section 3. Whatever the step, one node serves afterwards and nothing is lost.

use std::thread;
use std::time::Duration;

use super::bed::{Bed, FAIL_POINTS, VMS};
use super::recovery::{PROMPT, SERVED, WHOLE, other, until};
use super::{Ctx, Scenario};
use crate::error::LabError;
use crate::fault::Fault;
use crate::report::Window;

/// Every step, either victim, and the links.
pub const ALL: Scenario = Scenario {
    name: "crash-during-switchover",
    summary: "power cut of either node at each step of a planned move, and link loss: one serves afterwards",
    engine: None,
    nightly: true,
    clients: 2,
    run: all,
};

/// The most telling of them.
pub const SOME: Scenario = Scenario {
    name: "crash-during-switchover-short",
    summary: "power cut of either node at 4 steps of a planned move, link loss after the demotion",
    engine: None,
    nightly: false,
    clients: 2,
    run: some,
};

/// Steps of the old owner, in their order.
const OWNER: [&str; 8] = [
    "warm",
    "close-inbound",
    "drain",
    "close-outbound",
    "threads-0",
    "sync",
    "umount",
    "secondary",
];
/// Steps of the target.
const TARGET: [&str; 7] = ["primary", "mount", "marker", "threads", "probe", "open-gate", "tickle"];

/// What happens while the step's nasd stands still behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    /// The node of the step loses its power.
    Here,
    /// The other node loses its power; the step's nasd goes on.
    There,
    /// The nodes lose each other; the step's nasd goes on.
    Link,
}

/// Stall over all that, ms: a failover, or a takeover that must first find that the move failed.
const STALL_MAX: f64 = 30_000.0;

fn all(ctx: &mut Ctx) -> Result<(), LabError> {
    let at = |steps: &[&'static str], owner: bool| -> Vec<(&'static str, bool, Blow)> {
        let blows = |s: &&'static str| [(*s, owner, Blow::Here), (*s, owner, Blow::There)];
        steps.iter().flat_map(blows).collect()
    };
    let links = ["close-outbound", "umount", "secondary"].map(|s| (s, true, Blow::Link));
    let cases = [at(&OWNER, true), at(&TARGET, false), links.to_vec()].concat();
    crashes(ctx, &[&cases[..], &[("primary", false, Blow::Link)]].concat())
}

fn some(ctx: &mut Ctx) -> Result<(), LabError> {
    crashes(
        ctx,
        &[
            ("umount", true, Blow::Here),
            ("secondary", true, Blow::Here),
            ("secondary", true, Blow::There),
            ("primary", false, Blow::Here),
            ("threads", false, Blow::There),
            ("secondary", true, Blow::Link),
        ],
    )
}

fn crashes(ctx: &mut Ctx, cases: &[(&'static str, bool, Blow)]) -> Result<(), LabError> {
    let mut bed = Bed::up(ctx, &[VMS])?;
    bed.pause_ms = 10;
    bed.wait_whole(ctx, Duration::from_secs(30))?;
    bed.write(ctx)?;
    let mut windows = Vec::new();
    for (step, of_owner, blow) in cases {
        windows.push(crash(ctx, &bed, step, *of_owner, *blow)?);
    }
    bed.conclude(ctx, &windows)?;
    bed.bound_stall(ctx, "stall max", &windows, STALL_MAX);
    Ok(())
}

fn crash(
    ctx: &mut Ctx,
    bed: &Bed,
    step: &str,
    of_owner: bool,
    blow: Blow,
) -> Result<Window, LabError> {
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let node = if of_owner { owner.as_str() } else { other(&owner) }.to_owned();
    let victim = if blow == Blow::There { other(&node).to_owned() } else { node.clone() };
    let what = format!("{blow:?} behind {step} of {node}");
    let asked = other(&victim);
    let (served, window) = bed.strike(ctx, |ctx| {
        ctx.lab.push(&node, FAIL_POINTS, format!("step:{step} stop\n").as_bytes(), 0o600)?;
        let _watching = ctx.lab.spawn(asked, &["nasctl", "switchover", VMS.name, "--json"])?;
        wait_stopped(ctx, &node)?;
        strike(ctx, &node, &victim, blow)
    })?;
    ctx.report.notes.push(format!("{what}: {served} serves"));
    if blow == Blow::Link {
        thread::sleep(Duration::from_secs(3));
        ctx.lab.fault(&Fault::Heal)?;
    } else {
        ctx.demand(served != victim, &format!("{what}: the node without power does not serve"));
        ctx.lab.fault(&Fault::PowerOn { node: victim })?;
    }
    bed.wait_whole(ctx, WHOLE)?;
    bed.wait_writing(ctx, SERVED)?;
    Ok(window)
}

fn strike(ctx: &mut Ctx, node: &str, victim: &str, blow: Blow) -> Result<(), LabError> {
    if blow == Blow::Link {
        ctx.lab.fault(&Fault::Cut { a: node.to_owned(), b: other(node).to_owned() })?;
    } else {
        ctx.lab.fault(&Fault::PowerCut { node: victim.to_owned() })?;
    }
    if blow != Blow::Here {
        ctx.lab.sh(node, "pkill -CONT -x nasd", PROMPT)?;
    }
    Ok(())
}

/// Waits until the fail point has stopped the nasd of a node.
pub fn wait_stopped(ctx: &Ctx, node: &str) -> Result<(), LabError> {
    let script = "grep -q '^State:.*T' /proc/$(pgrep -x -o nasd)/status";
    until(ctx, &format!("nasd of {node} to stop at its fail point"), SERVED, || {
        match ctx.lab.exec(node, &["sh", "-c", script], PROMPT) {
            Ok(out) if out.ok() => Ok(()),
            Ok(_) => Err("it runs".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    })
}
