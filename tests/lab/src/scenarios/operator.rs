//! What only an operator may do, and only with the exact sentence (S3): `operator-recovers` opens an old replica,
//! ends the split brain that comes of it, and starts the service without a coordinator.

use std::time::Duration;

use serde_json::Value;

use super::Ctx;
use super::Scenario;
use super::bed::{Bed, Extra, VMS};
use super::cuts::nightly;
use super::recovery::{PROMPT, SERVED, WHOLE, one, other, power, serves, until};
use crate::error::LabError;
use crate::report::Window;

/// All three of nasctl's commands that ask for a sentence.
pub const RECOVERS: Scenario = nightly(
    "operator-recovers",
    "recover, split-brain and emergency-start, each with a wrong and with the right sentence",
    recovers,
);

/// nasctl's own deadlines are longer than any other command's.
const TYPED: Duration = Duration::from_secs(100);
/// How long a node is watched that must wait for an operator.
const WAITS: Duration = Duration::from_secs(12);
/// A file that only the lost node has.
const LOST: &str = "/mnt/vms/only-there";

fn recovers(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = Bed::up_with(ctx, &[VMS], &Extra::default())?;
    bed.pause_ms = 10;
    let lost = bed.wait_whole(ctx, Duration::from_secs(30))?;
    let stale = other(&lost);
    open_the_old_replica(ctx, &bed, &lost, stale)?;
    // From here on nothing may be lost again.
    bed.write(ctx)?;
    let ((), parted) = bed.window(ctx, |ctx| end_the_split_brain(ctx, &bed, &lost, stale))?;
    let started = start_without_coordinator(ctx, &bed)?;
    bed.conclude(ctx, &[parted, started])
}

/// Writes reach one node only, which is lost; the other one is opened by an operator.
fn open_the_old_replica(ctx: &mut Ctx, bed: &Bed, lost: &str, stale: &str) -> Result<(), LabError> {
    power(ctx, false, stale)?;
    until(ctx, "the owner to go on alone", SERVED, || {
        let seen = one(ctx, lost, VMS)?;
        let alone = seen["record"]["current"].as_array().is_some_and(|c| c.len() == 1);
        if serves(&seen) && alone { Ok(()) } else { Err(seen["record"].to_string()) }
    })?;
    ctx.lab.sh("hv1", &format!("echo x > {LOST} && sync -f {LOST}"), ctx.patience(SERVED))?;
    power(ctx, false, lost)?;
    power(ctx, true, stale)?;
    let said = bed.must_not_serve(ctx, stale, WAITS)?;
    ctx.report.notes.push(said);
    let sentence = only_with_the_sentence(ctx, stale, &["recover", VMS.name])?;
    ctx.report.moves += 1;
    bed.wait_serves(ctx, stale, VMS, SERVED)?;
    ctx.report.notes.push(format!("recovered with: {sentence}"));
    let gone = format!("sleep 4; test ! -e {LOST}");
    let out = ctx.lab.exec("hv1", &["sh", "-c", &gone], ctx.patience(SERVED))?;
    ctx.demand(out.ok(), "what only the lost node had is not there");
    Ok(())
}

/// The lost node returns with data of its own: it must not serve, nor be overwritten unasked.
fn end_the_split_brain(ctx: &mut Ctx, bed: &Bed, lost: &str, kept: &str) -> Result<(), LabError> {
    power(ctx, true, lost)?;
    let said = bed.must_not_serve(ctx, lost, WAITS)?;
    ctx.report.notes.push(said);
    let told = typed(ctx, lost, &["split-brain", VMS.name], None)?;
    ctx.demand(told.code == 1, "split-brain without --discard-mine changes nothing");
    ctx.report.notes.push(told.text.replace('\n', " | "));
    only_with_the_sentence(ctx, lost, &["split-brain", VMS.name, "--discard-mine"])?;
    // As the command's message says, where the other side no longer waits for its peer.
    let connected = || one(ctx, kept, VMS).map(|s| s["drbd"]["connection"].to_string());
    if connected().is_ok_and(|c| c.contains("StandAlone")) {
        ctx.report.notes.push(format!("drbdadm connect typed on {kept}"));
        ctx.lab.sh(kept, "drbdadm connect r0", ctx.patience(PROMPT))?;
    }
    let owner = bed.wait_whole(ctx, WHOLE)?;
    ctx.demand(owner == kept, "the owner goes on while the other takes its data");
    Ok(())
}

/// The owner and two members of etcd die: nobody may serve until an operator says so; the coordinator, when it is
/// back, learns who serves.
fn start_without_coordinator(ctx: &mut Ctx, bed: &Bed) -> Result<Window, LabError> {
    let dead = bed.wait_whole(ctx, WHOLE)?;
    let survivor = other(&dead);
    let ((), window) = bed.window(ctx, |ctx| {
        ctx.lab.sh("hv1", "systemctl stop lab-etcd", ctx.patience(PROMPT))?;
        power(ctx, false, &dead)?;
        let said = bed.must_not_serve(ctx, survivor, WAITS)?;
        ctx.report.notes.push(said);
        let sentence = only_with_the_sentence(ctx, survivor, &["emergency-start", VMS.name])?;
        ctx.report.moves += 1;
        ctx.report.notes.push(format!("started with: {sentence}"));
        until(ctx, "the emergency start", SERVED, || opened(ctx, survivor))?;
        bed.wait_writing(ctx, SERVED)?;
        ctx.lab.sh("hv1", "systemctl --no-block start lab-etcd", ctx.patience(PROMPT))?;
        bed.wait_serves(ctx, survivor, VMS, SERVED)?;
        let owner = bed.power_on(ctx, &dead)?;
        ctx.demand(owner == survivor, "the coordinator confirms who was started");
        bed.wait_writing(ctx, SERVED)
    })?;
    Ok(window)
}

/// The gate is open, whatever the record says.
fn opened(ctx: &Ctx, node: &str) -> Result<(), String> {
    let seen = one(ctx, node, VMS)?;
    if seen["gate_open"] == true {
        return Ok(());
    }
    Err(format!("{} {} {}", seen["stage"], seen["problem"], seen["emergency"]))
}

/// What nasctl said to a command that asks for a sentence.
pub(super) struct Told {
    /// Its exit code.
    pub(super) code: i32,
    sentence: String,
    /// What was explained, and the last message.
    pub(super) text: String,
}

/// Such a command, with a sentence or without.
pub(super) fn typed(
    ctx: &Ctx,
    node: &str,
    command: &[&str],
    sentence: Option<&str>,
) -> Result<Told, LabError> {
    let mut argv = vec!["nasctl"];
    argv.extend(command);
    argv.push("--json");
    argv.extend(sentence.iter().flat_map(|s| ["--confirm", s]));
    let out = ctx.lab.exec(node, &argv, ctx.patience(TYPED))?;
    let lines: Vec<Value> =
        out.stdout.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let field = |name| lines.iter().filter_map(|l| l[name].as_str()).next_back().unwrap_or("");
    let text = format!("{}\n{}\n{}", field("text"), field("message"), out.stderr);
    Ok(Told { code: out.code, sentence: field("confirmation").to_owned(), text })
}

/// Asks for the sentence, mistypes it, then types it; the sentence.
pub(super) fn only_with_the_sentence(
    ctx: &mut Ctx,
    node: &str,
    command: &[&str],
) -> Result<String, LabError> {
    let what = command.join(" ");
    let sentence = until(ctx, &format!("{what} to be possible"), WHOLE, || {
        let told = typed(ctx, node, command, None).map_err(|e| e.to_string())?;
        if told.sentence.is_empty() { Err(told.text) } else { Ok(told.sentence) }
    })?;
    let wrong = typed(ctx, node, command, Some(&sentence.to_uppercase()))?;
    ctx.demand(wrong.code == 1, &format!("{what}: a mistyped sentence changes nothing"));
    let done = typed(ctx, node, command, Some(&sentence))?;
    ctx.demand(done.code == 0, &format!("{what}: {} {}", done.code, done.text));
    Ok(sentence)
}
