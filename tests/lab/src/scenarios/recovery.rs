//! What the scenarios of failover have in common: a fault, the wait until somebody serves, until the clients write
//! again and until both nodes are whole; packets of a node that must be silent; and the verdict of it all.
//!
//! Shows S1, S2 and S4 from outside: it asks the nodes and their cables, never the record alone.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Ctx;
use super::bed::{Bed, NAS, Svc, VMS, clock, in_vain, status};
use crate::blocks::WriterStats;
use crate::capture::Capture;
use crate::error::LabError;
use crate::fault::Fault;
use crate::report::{Percentiles, Window};

/// Lets nasd go on a moment after the command has been answered: a nasd that finds its service taken restarts its
/// node at once, and nobody would answer any more.
pub const GO_ON: &str = "(sleep 0.3; pkill -CONT -x nasd) > /dev/null 2>&1 < /dev/null &";
/// For a command in a node that does not wait for anything.
pub const PROMPT: Duration = Duration::from_secs(10);
/// Until somebody serves after a fault.
pub const SERVED: Duration = Duration::from_secs(60);
/// Until a node has booted, has resynchronised and could take over.
pub const WHOLE: Duration = Duration::from_secs(90);
/// Between two windows.
const APART: Duration = Duration::from_millis(500);
/// Rest between two questions.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
/// Ports of DRBD's resources.
const DRBD_PORTS: &str = "7788-7789";
/// Ports of etcd, for clients and for members.
const ETCD_PORTS: &str = "2379-2380";

/// The other NAS node.
#[must_use]
pub fn other(node: &str) -> &'static str {
    if node == NAS[0] { NAS[1] } else { NAS[0] }
}

/// Gives a node its power, or takes it away.
///
/// # Errors
/// Those of the fault.
pub fn power(ctx: &mut Ctx, on: bool, node: &str) -> Result<(), LabError> {
    let node = node.to_owned();
    ctx.lab.fault(&if on { Fault::PowerOn { node } } else { Fault::PowerCut { node } })
}

/// Asks until `seen` is `Ok` and returns it; an `Err` says what is there instead.
///
/// # Errors
/// [`LabError::WaitedInVain`] with the last answer.
pub fn until<T>(
    ctx: &Ctx,
    what: &str,
    limit: Duration,
    mut seen: impl FnMut() -> Result<T, String>,
) -> Result<T, LabError> {
    let end = Instant::now() + ctx.patience(limit);
    loop {
        match seen() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= end => return Err(in_vain(what, last, limit)),
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

impl Bed {
    /// Applies faults and waits until somebody serves and all clients write again; who serves, and the window.
    ///
    /// # Errors
    /// Of the faults; when nobody serves, or a client does not write, in [`SERVED`].
    pub fn strike(
        &self,
        ctx: &mut Ctx,
        faults: impl FnOnce(&mut Ctx) -> Result<(), LabError>,
    ) -> Result<(String, Window), LabError> {
        let start_ns = clock(ctx)?;
        faults(ctx)?;
        ctx.report.moves += 1;
        let owner = self.wait_any(ctx, VMS, SERVED)?;
        self.wait_writing(ctx, SERVED)?;
        Ok((owner, ended(ctx, start_ns)?))
    }

    /// A time in which `work` is done and nothing is expected of the service.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn window<T>(
        &self,
        ctx: &mut Ctx,
        work: impl FnOnce(&mut Ctx) -> Result<T, LabError>,
    ) -> Result<(T, Window), LabError> {
        let start_ns = clock(ctx)?;
        let result = work(ctx)?;
        Ok((result, ended(ctx, start_ns)?))
    }

    /// Waits until this node serves by its own words, whatever the other one says.
    ///
    /// # Errors
    /// [`LabError::WaitedInVain`].
    pub fn wait_serves(
        &self,
        ctx: &Ctx,
        nas: &str,
        service: Svc,
        limit: Duration,
    ) -> Result<(), LabError> {
        until(ctx, &format!("{nas} to serve {}", service.name), limit, || {
            let seen = one(ctx, nas, service)?;
            if serves(&seen) { Ok(()) } else { Err(in_words(nas, &seen)) }
        })
    }

    /// Waits until one of the nodes that answer serves by its own words; its name.
    ///
    /// # Errors
    /// [`LabError::WaitedInVain`].
    pub fn wait_any(&self, ctx: &Ctx, service: Svc, limit: Duration) -> Result<String, LabError> {
        until(ctx, &format!("{} to be served by anyone", service.name), limit, || {
            let mut seen = String::new();
            for nas in NAS {
                match one(ctx, nas, service) {
                    Ok(status) if serves(&status) => return Ok(nas.to_owned()),
                    Ok(status) => seen += &in_words(nas, &status),
                    Err(error) => seen += &error,
                }
                seen += "; ";
            }
            Err(seen)
        })
    }

    /// Waits until every writer has completed writes that were begun after this call.
    ///
    /// # Errors
    /// [`LabError::WaitedInVain`] with the writer that has not.
    pub fn wait_writing(&self, ctx: &Ctx, limit: Duration) -> Result<(), LabError> {
        // Two files each, so up to two writes were on their way before.
        const OLD: u64 = 2;
        let begin = clock(ctx)?;
        for writer in &self.writers {
            let path = format!("/run/{}.json", writer.id);
            // Rewritten each second: what was written before is of no use.
            let after = |time: u64| -> Result<WriterStats, String> {
                let text = ctx.lab.pull(&writer.node, &path).map_err(|e| e.to_string())?;
                let stats: WriterStats =
                    serde_json::from_slice(&text).map_err(|e| e.to_string())?;
                if stats.now_ns > time { Ok(stats) } else { Err("old statistics".to_owned()) }
            };
            let before = until(ctx, "the writer's statistics", limit, || after(begin))?;
            until(ctx, &format!("{} to write", writer.id), limit, || {
                let now = after(before.now_ns)?;
                let waits = now.open_gaps.iter().any(|g| g.ms > 500.0);
                let more = now.acknowledged > before.acknowledged + OLD;
                if more && !waits { Ok(()) } else { Err(format!("{:?}", now.open_gaps)) }
            })?;
        }
        Ok(())
    }

    /// Waits until one node serves, both are current and connected, and each could take over from the other; who
    /// serves.
    ///
    /// # Errors
    /// [`LabError::WaitedInVain`].
    pub fn wait_whole(&self, ctx: &Ctx, limit: Duration) -> Result<String, LabError> {
        until(ctx, "both nodes to be whole", limit, || {
            let (first, second) = (one(ctx, NAS[0], VMS)?, one(ctx, NAS[1], VMS)?);
            let text = format!("{}; {}", in_words(NAS[0], &first), in_words(NAS[1], &second));
            match (serves(&first), serves(&second)) {
                (true, false) if whole(&first, &second) => Ok(NAS[0].to_owned()),
                (false, true) if whole(&second, &first) => Ok(NAS[1].to_owned()),
                _ => Err(text),
            }
        })
    }

    /// For `time`, the node must not serve; what it says of that at the end.
    ///
    /// # Errors
    /// When it does not answer at the end.
    pub fn must_not_serve(
        &self,
        ctx: &mut Ctx,
        nas: &str,
        time: Duration,
    ) -> Result<String, LabError> {
        let end = Instant::now() + time;
        let mut served = false;
        while Instant::now() < end {
            served |=
                one(ctx, nas, VMS).is_ok_and(|s| serves(&s) || s["drbd"]["role"] == "Primary");
            thread::sleep(PAUSE);
        }
        ctx.demand(!served, &format!("{nas} must not serve"));
        let seen = until(ctx, "the refusing node's status", PROMPT, || one(ctx, nas, VMS))?;
        Ok(format!("{nas} stays {}: {}", seen["stage"], seen["problem"]))
    }

    /// Ends the writers, verifies blocks, locks and owner, and notes the stalls of the windows under `name`.
    ///
    /// # Errors
    /// As [`Bed::verify`].
    pub fn conclude(&mut self, ctx: &mut Ctx, windows: &[Window]) -> Result<(), LabError> {
        self.stop_writing(ctx)?;
        self.verify(ctx, windows)?;
        let each = crate::report::stalls(&self.stats, windows);
        let each = each.iter().map(|s| format!("{}:{} {:.0}", s.window, s.writer, s.ms));
        ctx.report.extra.insert("stalls".into(), each.collect::<Vec<_>>().into());
        Ok(())
    }

    /// Stalls in these windows, ms, of all writers that have ended.
    #[must_use]
    pub fn stalls(&self, windows: &[Window]) -> Percentiles {
        let all = crate::report::stalls(&self.stats, windows);
        Percentiles::of(&all.iter().map(|s| s.ms).collect::<Vec<_>>())
    }

    /// Notes and bounds the longest stall of some windows.
    pub fn bound_stall(&self, ctx: &mut Ctx, what: &str, windows: &[Window], limit_ms: f64) {
        let max = self.stalls(windows).max;
        ctx.report.extra.insert(what.to_owned(), max.map(f64::round).into());
        ctx.bound(&format!("{what} ms"), max, limit_ms);
    }

    /// Power back, and both nodes whole again; who serves.
    ///
    /// # Errors
    /// When it does not boot, or the nodes do not become whole in [`WHOLE`].
    pub fn power_on(&self, ctx: &mut Ctx, nas: &str) -> Result<String, LabError> {
        ctx.lab.fault(&Fault::PowerOn { node: nas.to_owned() })?;
        self.wait_whole(ctx, WHOLE)
    }
}

/// The window that ends now, and a rest: the clocks of two clients differ by a little, and a gap that the next fault
/// makes must not touch this window.
fn ended(ctx: &Ctx, start_ns: u64) -> Result<Window, LabError> {
    let end_ns = clock(ctx)?;
    thread::sleep(APART);
    Ok(Window { start_ns, end_ns })
}

/// A node's own status, or why there is none.
///
/// # Errors
/// In words.
pub fn one(ctx: &Ctx, nas: &str, service: Svc) -> Result<Value, String> {
    if !ctx.lab.answers(nas) {
        return Err(format!("{nas} does not answer"));
    }
    status(ctx, nas, service)?.ok_or_else(|| format!("{nas} does not tell its own status"))
}

/// Whether a status says that its node serves, for clients and in the record.
#[must_use]
pub fn serves(status: &Value) -> bool {
    status["stage"] == "serving" && status["gate_open"] == true
}

fn in_words(nas: &str, s: &Value) -> String {
    format!(
        "{nas}: {} {} drbd {} {} {} current {} failover {}",
        s["stage"],
        s["problem"],
        s["drbd"]["role"],
        s["drbd"]["connection"],
        s["drbd"]["disks"],
        s["record"]["current"],
        s["failover"]
    )
}

fn whole(owner: &Value, standby: &Value) -> bool {
    let current = |s: &Value| s["record"]["current"].as_array().is_some_and(|c| c.len() == 2);
    let ready = |s: &Value| s["failover"].as_array().is_none_or(Vec::is_empty);
    let settled = owner["record"]["phase"]["name"] == "serving";
    let both = |f: &dyn Fn(&Value) -> bool| f(owner) && f(standby);
    settled && standby["stage"] == "standby" && both(&current) && both(&ready)
}

/// Packets of the service that leave this node's cable from now on.
///
/// # Errors
/// When the capture does not begin.
pub fn packets_of(ctx: &Ctx, nas: &str) -> Result<Capture, LabError> {
    let filter =
        format!("inbound and (src host {} or (arp and arp[14:4] = 0x0a4d0065))", VMS.address);
    ctx.lab.capture(nas, &filter)
}

/// Not one packet may have left.
///
/// # Errors
/// When the capture cannot be read.
pub fn demand_silence(ctx: &mut Ctx, what: &str, capture: Capture) -> Result<(), LabError> {
    let seen = capture.end()?;
    ctx.demand(seen.lines.is_empty(), &format!("{what}: not one packet of the service leaves"));
    ctx.report.extra.insert(format!("packets {what}"), seen.lines.len().into());
    ctx.report.notes.extend(seen.lines.iter().take(5).cloned());
    Ok(())
}

/// DRBD's connections of this node, and only these, are cut.
#[must_use]
pub fn cut_drbd(node: &str) -> Fault {
    Fault::CutPorts { node: node.to_owned(), ports: DRBD_PORTS.to_owned() }
}

/// The node reaches no member of etcd any more but its own, which is alone and so answers nothing.
#[must_use]
pub fn cut_etcd(node: &str) -> Fault {
    Fault::CutPorts { node: node.to_owned(), ports: ETCD_PORTS.to_owned() }
}
