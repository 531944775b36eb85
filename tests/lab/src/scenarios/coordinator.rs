//! A coordinator that is gone, full, old, or dies together with the owner: `etcd-down`,
//! `crash-etcd-leader-and-active`, `etcd-nospace`, `etcd-restored`. In steady state nobody needs it; what it says is
//! believed only when it is not older than what a node has seen (S12).

use std::thread;
use std::time::Duration;

use super::bed::{NAS, VMS};
use super::cuts::{begin, nightly};
use super::recovery::{PROMPT, WHOLE, demand_silence, one, other, packets_of, until};
use super::{Ctx, Scenario};
use crate::error::LabError;
use crate::fault::Fault;

/// No coordinator and no other fault.
pub const DOWN: Scenario =
    nightly("etcd-down", "all members of etcd stopped for 60 s: the service goes on", down);

/// Owner and leader die at once.
pub const LEADER: Scenario = nightly(
    "crash-etcd-leader-and-active",
    "the owner, which is etcd's leader as well, loses power: taken over after the election",
    leader,
);

/// Nothing can be written.
pub const NOSPACE: Scenario = nightly(
    "etcd-nospace",
    "etcd runs full: the service goes on, the status says that failover would fail",
    nospace,
);

/// An old snapshot comes back.
pub const RESTORED: Scenario = nightly(
    "etcd-restored",
    "etcd restored from before the last move: refused, the former owner stays silent",
    restored,
);

const MEMBERS: [&str; 3] = [NAS[0], NAS[1], "hv1"];
/// Stall when only the coordinator is gone, ms.
const UNDISTURBED: f64 = 500.0;
/// Stall of a takeover that must wait for etcd's election (2 s in the lab, up to twice that), ms.
const AFTER_ELECTION: f64 = 12_000.0;

fn everywhere(ctx: &Ctx, script: &str) -> Result<(), LabError> {
    for node in MEMBERS {
        ctx.lab.sh(node, script, ctx.patience(Duration::from_secs(30)))?;
    }
    Ok(())
}

/// Runs a script while no member runs, and waits until they agree again.
fn while_down(ctx: &Ctx, script: &str) -> Result<(), LabError> {
    everywhere(ctx, "systemctl stop lab-etcd")?;
    everywhere(ctx, script)?;
    everywhere(ctx, "systemctl --no-block start lab-etcd")?;
    ctx.lab.wait_etcd()
}

fn down(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let (served, window) = bed.strike(ctx, |ctx| {
        everywhere(ctx, "systemctl stop lab-etcd")?;
        thread::sleep(Duration::from_secs(60));
        Ok(())
    })?;
    ctx.demand(served == owner, "the owner goes on without a coordinator");
    let (after, back) = bed.window(ctx, |ctx| {
        everywhere(ctx, "systemctl --no-block start lab-etcd")?;
        bed.wait_whole(ctx, WHOLE)
    })?;
    ctx.demand(after == owner, "the owner keeps the service when the coordinator returns");
    bed.conclude(ctx, &[window, back])?;
    bed.bound_stall(ctx, "stall max", &[window, back], UNDISTURBED);
    Ok(())
}

/// Asks each member to hand the leadership to `node`: only the leader does it.
fn lead(ctx: &Ctx, node: &str) -> Result<bool, LabError> {
    let script = format!(
        "e='etcdctl --cacert=/etc/lab/pki/ca.pem --cert=/etc/lab/pki/node.pem --key=/etc/lab/pki/node.key'; \
         id=$($e --endpoints={all} member list | grep ', {node},' | cut -d, -f1); \
         for m in {each}; do $e --endpoints=$m move-leader $id 2>&1 && exit 0; done; exit 1",
        all = ctx.lab.etcd_endpoints().join(","),
        each = ctx.lab.etcd_endpoints().join(" "),
    );
    let out = ctx.lab.exec("hv1", &["sh", "-c", &script], ctx.patience(PROMPT))?;
    Ok(out.ok())
}

fn leader(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let mut windows = Vec::new();
    for _ in 0..3 {
        let owner = bed.wait_whole(ctx, WHOLE)?;
        let (served, window) = bed.strike(ctx, |ctx| {
            let led = lead(ctx, &owner)?;
            ctx.lab.fault(&Fault::PowerCut { node: owner.clone() })?;
            ctx.report.notes.push(format!("{owner} was made the leader: {led}"));
            Ok(())
        })?;
        ctx.demand(served != owner, "the other node has taken over");
        windows.push(window);
        bed.power_on(ctx, &owner)?;
    }
    bed.conclude(ctx, &windows)?;
    bed.bound_stall(ctx, "stall max", &windows, AFTER_ELECTION);
    Ok(())
}

const FILL: &str = "head -c 1000000 /dev/zero | tr '\\0' x > /run/fill; \
    for i in $(seq 40); do timeout 10 etcdctl $E put fill$i < /run/fill 2>&1 | grep -q 'space exceeded' && exit 0; done; exit 1";
const EMPTY: &str = "r=$(etcdctl $E put last x -w json | sed 's/.*\"revision\":\\([0-9]*\\).*/\\1/') || \
    r=$(etcdctl $E get last -w json | sed 's/.*\"revision\":\\([0-9]*\\).*/\\1/'); \
    etcdctl $E compact $r; etcdctl $E del --prefix fill; \
    r=$(etcdctl $E get last -w json | sed 's/.*\"revision\":\\([0-9]*\\).*/\\1/'); \
    etcdctl $E compact $r; etcdctl $E defrag; etcdctl $E alarm disarm; etcdctl $E alarm list";

fn with_etcdctl(ctx: &Ctx, script: &str) -> String {
    format!(
        "E='--endpoints={} --cacert=/etc/lab/pki/ca.pem --cert=/etc/lab/pki/node.pem --key=/etc/lab/pki/node.key'; {script}",
        ctx.lab.etcd_endpoints().join(",")
    )
}

fn nospace(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let owner = bed.wait_whole(ctx, WHOLE)?;
    while_down(ctx, "echo ETCD_QUOTA_BACKEND_BYTES=16000000 >> /etc/lab/etcd.env")?;
    bed.wait_whole(ctx, WHOLE)?;
    let long = ctx.patience(Duration::from_secs(120));
    let (told, window) = bed.window(ctx, |ctx| {
        ctx.lab.sh("hv1", &with_etcdctl(ctx, FILL), long)?;
        let told = until(ctx, "the status to say that failover would fail", WHOLE, || {
            let seen = one(ctx, other(&owner), VMS)?["failover"].clone();
            let refused = seen.as_array().is_some_and(|f| !f.is_empty());
            if refused { Ok(seen.to_string()) } else { Err(seen.to_string()) }
        });
        thread::sleep(Duration::from_secs(10));
        bed.wait_serves(ctx, &owner, VMS, PROMPT)?;
        bed.wait_writing(ctx, WHOLE)?;
        Ok(told)
    })?;
    ctx.report.moves += 1;
    match told {
        Ok(words) => ctx.report.notes.push(format!("full coordinator: {words}")),
        Err(e) => ctx.demand(false, &e.to_string()),
    }
    let emptied = ctx.lab.sh("hv1", &with_etcdctl(ctx, EMPTY), long)?;
    ctx.report.notes.push(format!("emptied: {}", emptied.trim().replace('\n', "; ")));
    let after = bed.wait_whole(ctx, WHOLE)?;
    ctx.demand(after == owner, "the owner keeps the service");
    bed.conclude(ctx, &[window])?;
    bed.bound_stall(ctx, "stall max", &[window], UNDISTURBED);
    Ok(())
}

/// Keeps the members' data under a name, or puts it back.
const KEEP: &str = "rm -rf /var/lib/etcd/NAME; cp -a /var/lib/etcd/lab /var/lib/etcd/NAME";
const PUT_BACK: &str = "rm -rf /var/lib/etcd/lab; cp -a /var/lib/etcd/NAME /var/lib/etcd/lab";

fn restored(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = begin(ctx)?;
    let former = bed.wait_whole(ctx, WHOLE)?;
    while_down(ctx, &KEEP.replace("NAME", "old"))?;
    bed.wait_whole(ctx, WHOLE)?;
    let moved = bed.switchover(ctx, &former, VMS, &[])?;
    ctx.report.moves += 1;
    ctx.demand(moved.code == 0, "the move succeeds");
    let owner = bed.wait_whole(ctx, WHOLE)?;
    let keep = KEEP.replace("NAME", "new");
    let capture = packets_of(ctx, &former)?;
    let (said, window) = bed.window(ctx, |ctx| {
        while_down(ctx, &format!("{keep}; {}", PUT_BACK.replace("NAME", "old")))?;
        let said = bed.must_not_serve(ctx, &former, Duration::from_secs(25))?;
        let owner = one(ctx, &owner, VMS).map(|s| format!("{} {}", s["stage"], s["problem"]));
        ctx.report.notes.push(format!("the owner under the old record: {owner:?}"));
        while_down(ctx, &PUT_BACK.replace("NAME", "new"))?;
        bed.wait_whole(ctx, WHOLE)?;
        bed.wait_writing(ctx, WHOLE)?;
        Ok(said)
    })?;
    ctx.report.notes.push(said);
    demand_silence(ctx, "former owner", capture)?;
    let after = bed.wait_whole(ctx, WHOLE)?;
    ctx.demand(after == owner, "the service stays where it was");
    bed.conclude(ctx, &[window])
}
