//! How a move is told: pre-flight, timeline, result. Pure. Owns the exit codes of all commands (S12:
//! whatever is not clearly a result is [`Ending::Unknown`]).

use std::fmt::Write as _;

use nasd_proto::outcome::Result as Wire;
use nasd_proto::{Finding, Outcome, Preflight, Step};

use super::hypervisors;
use super::text::{Paint, clean, span_us, table};
use crate::agents::status;

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// `switchover`.
    Move,
    /// `takeover`.
    TakeOver,
}

impl Verb {
    /// As a thing that goes on.
    #[must_use]
    pub fn noun(self) -> &'static str {
        match self {
            Self::Move => "move",
            Self::TakeOver => "takeover",
        }
    }

    /// When it is done.
    fn done(self) -> &'static str {
        match self {
            Self::Move => "moved",
            Self::TakeOver => "taken over",
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The target serves.
    Moved,
    /// A dry run: the pre-flight refuses nothing.
    WouldMove,
    /// `--abort`: the move was aborted.
    Aborted,
    /// The pre-flight, or nasd before it, refused: nothing changed.
    Refused,
    /// `--abort`: there was nothing that could be aborted.
    NotAborted,
    /// The old owner serves.
    RolledBack,
    /// Nobody serves.
    Failed,
    /// What is neither a move nor a takeover was done.
    Done,
    /// The sentence that confirms it was not given: nothing changed.
    NotConfirmed,
    /// nasctl does not know.
    Unknown,
    /// nasd was never reached.
    Unreachable,
}

impl Ending {
    /// Reads the outcome; `refusals` is how many findings of the pre-flight refuse.
    #[must_use]
    pub fn of(outcome: &Outcome, refusals: usize) -> Self {
        match Wire::try_from(outcome.result) {
            Ok(Wire::Moved) => Self::Moved,
            Ok(Wire::DryRun) if refusals == 0 => Self::WouldMove,
            Ok(Wire::DryRun | Wire::Refused) => Self::Refused,
            Ok(Wire::RolledBack) => Self::RolledBack,
            Ok(Wire::Failed) => Self::Failed,
            Ok(Wire::Unknown) | Err(_) => Self::Unknown,
        }
    }

    /// The exit code, as `--help` documents it.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Moved | Self::WouldMove | Self::Aborted | Self::Done => 0,
            Self::Refused | Self::NotAborted | Self::NotConfirmed => 1,
            Self::RolledBack => 3,
            Self::Failed => 4,
            Self::Unknown | Self::Unreachable => 5,
        }
    }

    /// The word in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Moved => "moved",
            Self::WouldMove => "dry-run",
            Self::Aborted => "aborted",
            Self::Refused => "refused",
            Self::NotAborted => "not-aborted",
            Self::RolledBack => "rolled-back",
            Self::Failed => "failed",
            Self::Done => "done",
            Self::NotConfirmed => "not-confirmed",
            Self::Unknown => "unknown",
            Self::Unreachable => "unreachable",
        }
    }
}

/// The pre-flight: refusals first, then warnings, then the predicted stall.
#[must_use]
pub fn preflight(p: &Preflight, paint: Paint) -> String {
    let (service, from, to) = (clean(&p.service), clean(&p.from), clean(&p.to));
    let mut out = format!("{}: {from} → {to}\n\npre-flight\n", paint.bold(&service));
    let (refusals, warnings): (Vec<_>, Vec<_>) = p.findings.iter().partition(|f| f.refuses);
    for finding in &refusals {
        out.push_str(&told(finding, &paint.bad("refusal")));
    }
    for finding in &warnings {
        // What needs no remedy is told, not warned of.
        let kind =
            if finding.remedy.is_empty() { "note".to_owned() } else { paint.warn("warning") };
        out.push_str(&told(finding, &kind));
    }
    if p.findings.is_empty() {
        let _ = writeln!(out, "  {}", paint.good("nothing against it"));
    }
    if p.predicted_stall_ms > 0 {
        let _ = writeln!(out, "  predicted stall: {} ms", p.predicted_stall_ms);
    }
    out
}

fn told(finding: &Finding, kind: &str) -> String {
    let mut out = format!("  {kind}  {}\n", clean(&finding.code));
    for (label, text) in [("evidence", &finding.evidence), ("remedy  ", &finding.remedy)] {
        if !text.is_empty() {
            let _ = writeln!(out, "    {label}  {}", clean(text));
        }
    }
    out
}

/// The steps that have been seen: where the timeline begins, and what has begun but not ended.
#[derive(Debug, Default)]
pub struct Timeline {
    origin_ns: Option<u64>,
    open: Vec<(String, String)>,
    steps: usize,
}

impl Timeline {
    /// Takes a step in; a finished one comes back as a line.
    pub fn see(&mut self, step: &Step) -> Option<String> {
        self.steps += 1;
        let origin = *self.origin_ns.get_or_insert(step.started_unix_ns);
        let key = (step.node.clone(), step.name.clone());
        self.open.retain(|k| *k != key);
        if !step.done {
            self.open.push(key);
            return None;
        }
        Some(line(step, origin))
    }

    /// `node name` of what runs now, newest last.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        self.open.iter().map(|(node, name)| format!("{} {}", clean(node), clean(name))).collect()
    }

    /// Whether any step has been seen, so that something may have changed.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.steps > 0
    }
}

/// `  +0.013 s  nas1  cut  12.3 ms  detail`. Nodes' clocks may differ, so the offset may be negative.
fn line(step: &Step, origin_ns: u64) -> String {
    let sign = if step.started_unix_ns < origin_ns { '-' } else { '+' };
    let ms = step.started_unix_ns.abs_diff(origin_ns) / 1_000_000;
    let at = format!("{sign}{}.{:03} s", ms / 1000, ms % 1000);
    let (node, name, took) = (clean(&step.node), clean(&step.name), span_us(step.took_us));
    let text = format!("  {at:>10}  {node:<10}  {name:<24}  {took:>8}  {}", clean(&step.detail));
    text.trim_end().to_owned()
}

/// The result: what is true now, and each client's stall.
#[must_use]
pub fn outcome(o: &Outcome, ending: Ending, verb: Verb, service: &str, paint: Paint) -> String {
    let service = paint.bold(&clean(service));
    let owner = clean(&o.owner);
    let head = match ending {
        Ending::Moved => {
            let silent = span_us(o.silent_us);
            let word = paint.good(verb.done());
            format!("{word}: {owner} serves {service}, epoch {}, silent for {silent}", o.epoch)
        }
        Ending::WouldMove => format!("{}: {service} would move", paint.good("dry run")),
        Ending::Refused => format!("{}: {service} was not touched", paint.bad("refused")),
        Ending::RolledBack => {
            let silent = span_us(o.silent_us);
            let word = paint.warn("rolled back");
            format!(
                "{word}: {owner} serves {service} again, epoch {}, silent for {silent}",
                o.epoch
            )
        }
        Ending::Failed => format!("{}: nobody serves {service}", paint.bad("failed")),
        _ => format!("{}: look at `nasctl status`", paint.bad("outcome unknown")),
    };
    let mut out = format!("{head}\n");
    if !o.message.is_empty() {
        let _ = writeln!(out, "  {}", clean(&o.message));
    }
    if !o.clients.is_empty() {
        out.push('\n');
        out.push_str(&stalls(o));
    }
    if !o.stalls.is_empty() {
        let told: Vec<_> = o.stalls.iter().map(status::stall).collect();
        out.push_str("\nmeasured on the hypervisors\n");
        out.push_str(&hypervisors::stalls("  ", &told));
    }
    out
}

fn stalls(o: &Outcome) -> String {
    let mut rows = vec![["CLIENT", "STALL", "STATE"].map(str::to_owned).to_vec()];
    rows.extend(o.clients.iter().map(|c| {
        let state = if c.reclaimed { "reclaimed" } else { "not reclaimed" };
        vec![clean(&c.client), span_us(c.stall_us), state.to_owned()]
    }));
    table("  ", &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nasd_proto::ClientStall;

    fn finding(code: &str, refuses: bool) -> Finding {
        let (evidence, remedy) = ("/dev/drbd0: lvm[7]".into(), "stop it".into());
        Finding { code: code.into(), refuses, evidence, remedy }
    }

    #[test]
    fn preflight_tells_refusals_first() {
        let p = Preflight {
            service: "vms".into(),
            from: "nas1".into(),
            to: "nas2".into(),
            findings: vec![finding("write-cache", false), finding("foreign-openers", true)],
            predicted_stall_ms: 380,
        };
        let expected = "\
vms: nas1 → nas2

pre-flight
  refusal  foreign-openers
    evidence  /dev/drbd0: lvm[7]
    remedy    stop it
  warning  write-cache
    evidence  /dev/drbd0: lvm[7]
    remedy    stop it
  predicted stall: 380 ms
";
        assert_eq!(preflight(&p, Paint(false)), expected);
    }

    fn step(node: &str, name: &str, at_ms: u64, took_us: u64, done: bool) -> Step {
        let started_unix_ns = at_ms * 1_000_000;
        let (node, name) = (node.into(), name.into());
        Step { node, name, started_unix_ns, took_us, done, detail: String::new() }
    }

    #[test]
    fn the_timeline_counts_from_the_first_step_and_knows_what_runs() {
        let mut timeline = Timeline::default();
        assert!(!timeline.has_begun());
        assert_eq!(timeline.see(&step("nas1", "cut", 1000, 0, false)), None);
        assert_eq!(timeline.running(), ["nas1 cut"]);
        let done = timeline.see(&step("nas1", "cut", 1000, 12_300, true)).unwrap();
        assert_eq!(done, "    +0.000 s  nas1        cut                          12 ms");
        let early = timeline.see(&step("nas2", "open", 990, 1_200_000, true)).unwrap();
        assert_eq!(early, "    -0.010 s  nas2        open                        1.20 s");
        assert!(timeline.running().is_empty());
    }

    #[test]
    fn a_move_ends_with_every_clients_stall() {
        let client =
            |c: &str, stall_us, reclaimed| ClientStall { client: c.into(), stall_us, reclaimed };
        let o = Outcome {
            result: Wire::Moved.into(),
            owner: "nas2".into(),
            epoch: 12,
            silent_us: 312_000,
            clients: vec![client("10.0.0.21:893", 341_000, true), client("hv2", 1_200_000, false)],
            ..Outcome::default()
        };
        let expected = "\
moved: nas2 serves vms, epoch 12, silent for 312 ms

  CLIENT         STALL   STATE
  10.0.0.21:893  341 ms  reclaimed
  hv2            1.20 s  not reclaimed
";
        assert_eq!(outcome(&o, Ending::of(&o, 0), Verb::Move, "vms", Paint(false)), expected);
        let taken = outcome(&o, Ending::of(&o, 0), Verb::TakeOver, "vms", Paint(false));
        assert!(taken.starts_with("taken over: nas2 serves vms, epoch 12, silent for 312 ms\n"));
    }

    #[test]
    fn s12_codes_follow_results_and_doubt_is_5() {
        let code = |result: i32, refusals| {
            Ending::of(&Outcome { result, ..Outcome::default() }, refusals).code()
        };
        let codes: Vec<u8> = (0..=5).map(|r| code(r, 0)).collect();
        assert_eq!(codes, [5, 0, 1, 3, 4, 0]);
        assert_eq!(code(99, 0), 5);
        assert_eq!(code(Wire::DryRun.into(), 1), 1);
    }
}
