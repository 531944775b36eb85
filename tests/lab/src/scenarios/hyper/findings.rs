//! What `hvagent check` must find, with the remedy that helps: `pool-mismatch`, `wrong-address-mounted`, `soft-mount`,
//! `missing-lockspace`, `skewed-clock`. A guest runs on `hv1` all the time; what is broken is on `hv2`.

use std::time::Duration;

use serde_json::Value;

use super::super::bed::VMS;
use super::super::recovery::{PROMPT, WHOLE, until};
use super::super::{Ctx, Scenario, cuts};
use super::domain::Hyper;
use super::hosts::{Leases, Sanlock};
use crate::error::LabError;

/// The other hypervisor has another pool of the same name.
pub const POOL: Scenario = cuts::nightly(
    "pool-mismatch",
    "a pool is defined otherwise on the other hypervisor: found by hvagent check",
    |ctx| {
        find(
            ctx,
            &Wrong {
                sanlock: None,
                by_migration: true,
                code: "pool-mismatch",
                breaks: "virsh -q pool-dumpxml vms > /run/vms.xml; virsh -q pool-destroy vms; \
                     virsh -q pool-undefine vms; \
                     mount -t nfs4 -o vers=4.2,hard 10.77.0.101:/vms /mnt/vms || exit; \
                     sed 's#/vms#/other#' /run/vms.xml > /run/other.xml; \
                     virsh -q pool-define /run/other.xml",
                remedy: "virsh pool-define",
                mends: "virsh -q pool-undefine vms; virsh -q pool-define /run/vms.xml; \
                    virsh -q pool-start vms; virsh -q pool-autostart vms",
            },
        )
    },
);

/// Mounted through an address that does not move.
pub const ADDRESS: Scenario = cuts::nightly(
    "wrong-address-mounted",
    "the share is mounted through an address that does not move: found by hvagent check",
    wrong_address,
);

/// An error instead of patience.
pub const SOFT: Scenario = cuts::nightly(
    "soft-mount",
    "the share is mounted soft: found by hvagent check, and its remedy mends it",
    soft,
);

/// The other hypervisor could not take a lease.
pub const LOCKSPACE: Scenario = cuts::nightly(
    "missing-lockspace",
    "the other hypervisor has left sanlock's lockspace: found by hvagent check",
    |ctx| {
        find(
            ctx,
            &Wrong {
                sanlock: Some(Leases::of(2)),
                by_migration: true,
                code: "lockspace-missing",
                breaks: "sanlock client rem_lockspace -s \
                     \"$(sanlock client status | sed -n 's/^s //p' | cut -d' ' -f1)\"",
                remedy: "systemctl restart libvirtd",
                mends: "systemctl restart libvirtd",
            },
        )
    },
);

/// Clocks of two hosts.
pub const CLOCK: Scenario = cuts::nightly(
    "skewed-clock",
    "the other hypervisor's clock is 10 s ahead: found by hvagent check",
    |ctx| {
        find(
            ctx,
            &Wrong {
                sanlock: None,
                by_migration: true,
                code: "clock-skew",
                breaks: "date -s '+10 seconds'",
                remedy: "chronyc makestep",
                mends: "date -s '-10 seconds'",
            },
        )
    },
);

/// Where it is broken.
const BROKEN: &str = "hv2";
/// Until the other host's agent has told nasd of itself anew.
const TOLD: Duration = Duration::from_secs(120);

/// What is broken, and what must be found.
struct Wrong {
    sanlock: Sanlock,
    /// Found when a migration to that host is asked about on `hv1`; else by that host itself.
    by_migration: bool,
    code: &'static str,
    breaks: &'static str,
    /// A part of the remedy.
    remedy: &'static str,
    mends: &'static str,
}

fn find(ctx: &mut Ctx, wrong: &Wrong) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, wrong.sanlock)?;
    let guest = hyper.name().to_owned();
    let guest = wrong.by_migration.then_some(guest.as_str());
    gone(ctx, guest, wrong.code)?;
    ctx.lab.sh(BROKEN, wrong.breaks, ctx.patience(WHOLE))?;
    let finding = found(ctx, guest, wrong.code)?;
    demand_remedy(ctx, &finding, wrong.remedy);
    ctx.lab.sh(BROKEN, wrong.mends, ctx.patience(WHOLE))?;
    gone(ctx, guest, wrong.code)?;
    hyper.conclude(ctx, &[])
}

fn soft(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, None)?;
    let remount = "umount /mnt/vms && mount -t nfs4 -o vers=4.2,soft 10.77.0.101:/vms /mnt/vms";
    gone(ctx, None, "mount-soft")?;
    ctx.lab.sh(BROKEN, remount, ctx.patience(WHOLE))?;
    let finding = found(ctx, None, "mount-soft")?;
    demand_remedy(ctx, &finding, "umount /mnt/vms && mount -t nfs4 -o hard");
    let command = command(&finding);
    ctx.lab.sh(BROKEN, &command, ctx.patience(WHOLE))?;
    gone(ctx, None, "mount-soft")?;
    ctx.report.notes.push(format!("mended by: {command}"));
    hyper.conclude(ctx, &[])
}

/// An address that somebody has added to the server by hand, and that stays behind when the service moves. Where
/// the service is mounted rightly as well, the kernel uses that mount's connection and shows that address only.
fn wrong_address(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut hyper = Hyper::up(ctx, None)?;
    let owner = hyper.bed.wait_whole(ctx, WHOLE)?;
    let code = "mount-wrong-address";
    let guest = hyper.name().to_owned();
    gone(ctx, Some(&guest), code)?;
    let inside = format!("nsenter --net=/run/netns/nasd-{}", VMS.name);
    let device =
        format!("$({inside} ip -o -4 addr show to {}/32 | awk '{{print $2}}')", VMS.address);
    let address = |verb: &str| format!("{inside} ip addr {verb} 10.77.0.111/24 dev {device}");
    ctx.lab.sh(&owner, &address("add"), ctx.patience(PROMPT))?;
    let mount = "umount /mnt/vms && mount -t nfs4 -o vers=4.2,hard 10.77.0.111:/vms /mnt/vms";
    ctx.lab.sh(BROKEN, mount, ctx.patience(WHOLE))?;
    let finding = found(ctx, Some(&guest), code)?;
    demand_remedy(ctx, &finding, "10.77.0.101:/vms /mnt/vms");
    let command = command(&finding);
    ctx.lab.sh(BROKEN, &command, ctx.patience(WHOLE))?;
    gone(ctx, Some(&guest), code)?;
    ctx.report.notes.push(format!("mended by: {command}"));
    ctx.lab.sh(&owner, &address("del"), ctx.patience(PROMPT))?;
    hyper.conclude(ctx, &[])
}

/// What is found: for a migration of this guest from `hv1`, or for the broken host itself.
fn findings(ctx: &Ctx, guest: Option<&str>) -> Result<Vec<Value>, String> {
    let mut argv = vec!["hvagent", "check", "--json"];
    argv.extend(guest.iter().flat_map(|g| ["--migrate", *g, "--to", BROKEN]));
    let on = if guest.is_some() { "hv1" } else { BROKEN };
    let out = ctx.lab.exec(on, &argv, ctx.patience(WHOLE)).map_err(|e| e.to_string())?;
    let verdict: Value =
        serde_json::from_str(&out.stdout).map_err(|e| format!("{e}: {}", out.stderr))?;
    verdict["findings"].as_array().cloned().ok_or_else(|| format!("no findings in {verdict}"))
}

/// Waits until this is found, and notes the evidence.
///
/// # Errors
/// [`LabError::WaitedInVain`].
pub fn found(ctx: &mut Ctx, guest: Option<&str>, code: &str) -> Result<Value, LabError> {
    let finding = until(ctx, &format!("{code} to be found"), TOLD, || {
        let all = findings(ctx, guest)?;
        let one = all.iter().find(|f| f["code"] == code).cloned();
        one.ok_or_else(|| format!("{:?}", codes(&all)))
    })?;
    ctx.report.notes.push(format!("{}: {}", finding["code"], finding["evidence"]));
    Ok(finding)
}

pub(super) fn gone(ctx: &Ctx, guest: Option<&str>, code: &str) -> Result<(), LabError> {
    until(ctx, &format!("{code} not to be found"), TOLD, || {
        let all = findings(ctx, guest)?;
        let unknown = all.iter().any(|f| f["code"] == "target-unknown");
        let found = all.iter().any(|f| f["code"] == code);
        if found || unknown { Err(format!("{:?}", codes(&all))) } else { Ok(()) }
    })
}

fn codes(all: &[Value]) -> Vec<&str> {
    all.iter().filter_map(|f| f["code"].as_str()).collect()
}

fn demand_remedy(ctx: &mut Ctx, finding: &Value, part: &str) {
    let remedy = finding["remedy"].as_str().unwrap_or_default().to_owned();
    ctx.demand(remedy.contains(part), &format!("the remedy says {part:?}, not {remedy:?}"));
    ctx.report.notes.push(format!("remedy: {remedy}"));
}

/// The command in a remedy.
fn command(finding: &Value) -> String {
    let remedy = finding["remedy"].as_str().unwrap_or_default();
    remedy.split('`').nth(1).unwrap_or("false").to_owned()
}
