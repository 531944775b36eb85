//! `soak`: random faults, chosen by a seed, one after the other; all that is demanded anywhere is demanded here.

use std::thread;
use std::time::{Duration, Instant};

use super::bed::{Bed, NAS, VMS};
use super::recovery::{GO_ON, PROMPT, SERVED, WHOLE, cut_drbd, cut_etcd, other};
use super::{Ctx, Scenario};
use crate::error::LabError;
use crate::fault::Fault;
use crate::report::Window;

/// See the module.
pub const SCENARIO: Scenario = Scenario {
    name: "soak",
    summary: "random faults for 5 minutes (--minutes), chosen by a SEED: served after each, nothing lost",
    engine: None,
    nightly: false,
    clients: 2,
    run,
};

/// How long faults are injected unless told otherwise, minutes.
const MINUTES: u32 = 5;
/// Longest a fault lasts, ms.
const LONGEST: u64 = 8000;

/// SplitMix64: the same choices on every machine and in every build.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to `end`, without it; `end` is small, so the remainder's bias does not matter.
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

/// What can happen.
#[derive(Clone, Copy, Debug)]
enum Act {
    Power,
    Freeze,
    KillNasd,
    StopNasd,
    Isolate,
    CutPeers,
    CutDrbd,
    CutEtcd,
    Move,
}

const ACTS: [Act; 9] = [
    Act::Power,
    Act::Freeze,
    Act::KillNasd,
    Act::StopNasd,
    Act::Isolate,
    Act::CutPeers,
    Act::CutDrbd,
    Act::CutEtcd,
    Act::Move,
];

fn run(ctx: &mut Ctx) -> Result<(), LabError> {
    let mut bed = Bed::up(ctx, &[VMS])?;
    bed.pause_ms = 10;
    bed.wait_whole(ctx, Duration::from_secs(30))?;
    bed.write(ctx)?;
    let mut dice = Dice(ctx.seed);
    let end = Instant::now() + Duration::from_secs(60) * ctx.minutes.unwrap_or(MINUTES);
    let mut windows = Vec::new();
    ctx.report.extra.insert("seed".into(), ctx.seed.into());
    while Instant::now() < end {
        let act = ACTS[usize::try_from(dice.below(ACTS.len() as u64)).unwrap_or_default()];
        let node = NAS[usize::try_from(dice.below(2)).unwrap_or_default()];
        let time = Duration::from_millis(200 + dice.below(LONGEST));
        let owner = bed.wait_whole(ctx, WHOLE)?;
        let role = if owner == node { "owner" } else { "standby" };
        let text = format!("{act:?} of {node} ({role}), {} ms", time.as_millis());
        ctx.report.notes.push(text);
        windows.push(one(ctx, &bed, act, node, time)?);
    }
    bed.wait_whole(ctx, WHOLE)?;
    // The writers' journals are in memory: a soak of an hour is verified as a whole all the same.
    bed.conclude(ctx, &windows)
}

/// One fault and its end, until both nodes are whole again.
fn one(
    ctx: &mut Ctx,
    bed: &Bed,
    act: Act,
    node: &'static str,
    time: Duration,
) -> Result<Window, LabError> {
    ctx.report.moves += 1;
    let (_, window) = bed.window(ctx, |ctx| {
        begin(ctx, bed, act, node)?;
        thread::sleep(time);
        finish(ctx, act, node)?;
        bed.wait_whole(ctx, WHOLE)?;
        bed.wait_writing(ctx, SERVED)
    })?;
    Ok(window)
}

fn begin(ctx: &mut Ctx, bed: &Bed, act: Act, node: &str) -> Result<(), LabError> {
    let name = node.to_owned();
    match act {
        Act::Power => ctx.lab.fault(&Fault::PowerCut { node: name }),
        Act::Freeze => ctx.lab.fault(&Fault::Freeze { node: name }),
        Act::KillNasd => ctx.lab.sh(node, "pkill -9 -x nasd || true", PROMPT).map(drop),
        Act::StopNasd => ctx.lab.sh(node, "pkill -STOP -x nasd", PROMPT).map(drop),
        Act::Isolate => ctx.lab.fault(&Fault::LinkDown { node: name }),
        Act::CutPeers => ctx.lab.fault(&Fault::Cut { a: name, b: other(node).to_owned() }),
        Act::CutDrbd => ctx.lab.fault(&cut_drbd(node)),
        Act::CutEtcd => ctx.lab.fault(&cut_etcd(node)),
        // Whatever comes of it: moved, refused or rolled back.
        Act::Move => bed.switchover(ctx, node, VMS, &[]).map(drop),
    }
}

fn finish(ctx: &mut Ctx, act: Act, node: &str) -> Result<(), LabError> {
    let node = node.to_owned();
    match act {
        Act::Power => ctx.lab.fault(&Fault::PowerOn { node }),
        Act::Freeze => ctx.lab.fault(&Fault::Thaw { node }),
        // It may have been stopped with its node.
        Act::StopNasd => ctx.lab.sh(&node, GO_ON, PROMPT).map(drop),
        Act::Isolate | Act::CutPeers | Act::CutDrbd | Act::CutEtcd => ctx.lab.fault(&Fault::Heal),
        Act::KillNasd | Act::Move => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dice_match_the_published_sequence() {
        // The reference implementation's first outputs for the seed 1234567.
        let mut dice = Dice(1_234_567);
        assert_eq!(dice.next(), 6_457_827_717_110_365_317);
        assert_eq!(dice.next(), 3_203_168_211_198_807_973);
    }
}
