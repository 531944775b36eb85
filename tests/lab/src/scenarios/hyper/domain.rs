//! The nested guest: its definition, its start, its migrations, and the account that is kept of it from outside.

use std::thread;
use std::time::{Duration, Instant};

use super::super::Ctx;
use super::super::bed::{Bed, NAS, REST, Svc, VMS, in_vain};
use super::super::recovery::{PROMPT, until};
use super::events::{self, Seen};
use super::hosts::{self, Sanlock};
use crate::blocks::{WriterId, wall_ns};
use crate::client::Job;
use crate::error::LabError;
use crate::guest::console::{ADDRESS, Console};
use crate::guest::ledger::Change;
use crate::guest::{BLOCK_SIZE, BLOCKS, PAUSE_VARIABLE, WRITER_VARIABLE, disk_name};
use crate::report::{GuestReport, Migrations, Percentiles, Window};

/// Port of the lab program for the guest's lines.
const PORT: u16 = 7900;
/// Until a guest writes: an emulated machine inside User-Mode Linux boots in seconds.
const BOOT: Duration = Duration::from_secs(120);
/// Limit for one migration; alone it takes about ten seconds.
pub const MIGRATION: Duration = Duration::from_secs(240);
/// Until the guest writes again after whatever was done to it.
const WRITES: Duration = Duration::from_secs(60);
/// Writes that show that a guest runs.
const SOME: u64 = 5;
/// Pause of the guest after each write, ms.
const PAUSE_MS: u32 = 20;

/// The guest's definition, on a hypervisor.
const DEFINITION: &str = "/etc/lab/guest.xml";

/// Where the guest may run; what other hypervisors there are may be without power.
pub const HOSTS: [&str; 2] = ["hv1", "hv2"];

/// The other hypervisor.
#[must_use]
pub fn other(hv: &str) -> &'static str {
    if hv == "hv1" { "hv2" } else { "hv1" }
}

/// A guest, the bed below it, and what was seen of both.
pub struct Hyper {
    /// Services; no writers but the guest.
    pub bed: Bed,
    console: Console,
    name: String,
    /// Its definition.
    xml: String,
    /// By the hypervisor that is listened to.
    events: Vec<(String, Job)>,
    done: Migrations,
    windows: Vec<Window>,
    /// How often the guest was started.
    starts: u64,
    /// How often of those on another host than before.
    elsewhere: u64,
}

/// What became of a migration.
#[derive(Clone, Debug)]
pub struct Migrated {
    /// Whether `virsh` says so.
    pub ok: bool,
    /// What else it said.
    pub words: String,
    /// From the command to its end.
    pub took: Duration,
    /// The same by the wall clock.
    pub window: Window,
}

/// libvirt asks QEMU for each of some 600 properties of a processor, one by one, at each start and each arrival; QEMU
/// reads what it is asked byte by byte, with 20 system calls for each, which takes a minute in User-Mode Linux. Without
/// this capability libvirt asks for two properties instead.
const QUICK: &str =
    "<qemu:capabilities><qemu:del capability='cpu-unavailable-features'/></qemu:capabilities>";

fn domain(ctx: &Ctx, name: &str, service: Svc, disk: &str) -> String {
    let pause = PAUSE_MS * ctx.lab.engine().patience();
    format!(
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>{name}</name><uuid>6e617364-6775-4573-8000-000000000001</uuid>\
         <memory unit='MiB'>96</memory><vcpu>1</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type><kernel>/lab/guest/vmlinuz</kernel>\
         <initrd>/lab/guest/initrd</initrd>\
         <cmdline>console=ttyS0 quiet panic=-1 mitigations=off nokaslr {WRITER_VARIABLE}={name} {PAUSE_VARIABLE}={pause}</cmdline></os>\
         <features><acpi/></features>\
         <cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>\
         <on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
         <disk type='file' device='disk'>\
         <driver name='qemu' type='raw' cache='none' error_policy='stop' rerror_policy='stop'/>\
         <source file='/mnt/{}/{disk}'/><target dev='vda' bus='virtio'/></disk>\
         <serial type='file'><source path='/run/{name}.console'/></serial>\
         <channel type='tcp'><source mode='connect' host='{ADDRESS}' service='{PORT}'/>\
         <protocol type='raw'/><target type='virtio' name='lab'/></channel>\
         <controller type='usb' model='none'/><memballoon model='none'/></devices>{QUICK}</domain>\n",
        service.name
    )
}

impl Hyper {
    /// The bed with one service, both hypervisors, and the guest that writes on `hv1`.
    ///
    /// # Errors
    /// Whatever does not come up in time.
    pub fn up(ctx: &mut Ctx, sanlock: Sanlock) -> Result<Self, LabError> {
        let bed = Bed::up(ctx, &[VMS])?;
        let begin = Instant::now();
        hosts::up(ctx, VMS, sanlock)?;
        note_seconds(ctx, "libvirt up", begin);
        let name = "vm1".to_owned();
        let writer: WriterId =
            name.parse().map_err(|e| in_vain("the guest's name", format!("{e}"), PROMPT))?;
        let console = ctx.lab.listen(writer, PORT)?;
        let events = hosts::listen(ctx)?;
        let hyper = Self {
            xml: domain(ctx, &name, VMS, &disk_name(&writer)),
            bed,
            console,
            name,
            events,
            done: Migrations::default(),
            windows: Vec::new(),
            starts: 1,
            elsewhere: 0,
        };
        hyper.start(ctx, "hv1", &disk_name(&writer))?;
        Ok(hyper)
    }

    fn start(&self, ctx: &mut Ctx, hv: &str, disk: &str) -> Result<(), LabError> {
        let bytes = BLOCKS * u64::from(BLOCK_SIZE);
        let begin = Instant::now();
        let truncate = format!("truncate -s {bytes} /mnt/{}/{disk}", VMS.name);
        ctx.lab.sh(hv, &truncate, ctx.patience(PROMPT))?;
        self.create(ctx, hv)?;
        note_seconds(ctx, "guest up", begin);
        Ok(())
    }

    fn create(&self, ctx: &Ctx, hv: &str) -> Result<(), LabError> {
        ctx.lab.push(hv, DEFINITION, self.xml.as_bytes(), 0o644)?;
        ctx.lab.check(hv, &["virsh", "-q", "create", DEFINITION], ctx.patience(BOOT))?;
        self.wait_writes(ctx, BOOT)
    }

    /// Starts the guest anew where it was, after it has ended.
    ///
    /// # Errors
    /// When it does not start, or does not write.
    pub fn start_again(&mut self, ctx: &Ctx, hv: &str) -> Result<(), LabError> {
        self.starts += 1;
        self.create(ctx, hv)
    }

    /// Begins to start the guest on a hypervisor where it never ran, again and again until its lease is free.
    ///
    /// # Errors
    /// When the node does not answer.
    pub fn begin_elsewhere(&self, ctx: &Ctx, hv: &str) -> Result<Job, LabError> {
        ctx.lab.push(hv, DEFINITION, self.xml.as_bytes(), 0o644)?;
        let again = "until virsh -q create \"$1\"; do sleep 1; done";
        ctx.lab.spawn(hv, &["timeout", "300", "sh", "-c", again, "sh", DEFINITION])
    }

    /// Waits until the guest that was begun writes; what libvirt told on the host that was `reset` is gone.
    ///
    /// # Errors
    /// When it does not start, or does not write.
    pub fn end_elsewhere(&mut self, ctx: &Ctx, starting: Job, reset: &str) -> Result<(), LabError> {
        self.starts += 1;
        self.elsewhere += 1;
        self.events.retain(|(hv, _)| hv != reset);
        let code = starting.wait(ctx.patience(BOOT))?;
        if code != 0 {
            return Err(in_vain("the guest to start elsewhere", starting.output()?, BOOT));
        }
        self.wait_writes(ctx, BOOT)
    }

    /// Waits until writes are told that were not told before this call.
    ///
    /// # Errors
    /// [`LabError::WaitedInVain`].
    pub fn wait_writes(&self, ctx: &Ctx, limit: Duration) -> Result<(), LabError> {
        let count = || self.console.look(|l| l.stats(true).acknowledged);
        let before = count();
        until(ctx, "the guest to write", limit, || {
            let more = count() - before;
            if more >= SOME { Ok(()) } else { Err(format!("{more} writes more")) }
        })
    }

    /// The hypervisor that spoke last for the guest.
    #[must_use]
    pub fn host(&self) -> String {
        self.console.look(|l| l.host().unwrap_or("none").to_owned())
    }

    /// Migrates the guest to the other hypervisor, live, and counts it.
    ///
    /// # Errors
    /// When the node does not answer at all.
    pub fn migrate(&mut self, ctx: &Ctx) -> Result<Migrated, LabError> {
        let from = self.host();
        let migrated = Migration::begin(ctx, &self.name, &from)?.end(ctx)?;
        self.count(&migrated);
        Ok(migrated)
    }

    /// All changes of the guest's host so far.
    #[must_use]
    pub fn changes(&self) -> Vec<Change> {
        self.console.look(|l| l.changes().to_vec())
    }

    /// Name of the guest.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts a migration that has ended.
    pub fn count(&mut self, migrated: &Migrated) {
        if migrated.ok {
            self.done.done += 1;
            self.windows.push(migrated.window);
        } else {
            self.done.failed += 1;
        }
    }

    /// After the guest writes again and some rest: exactly one hypervisor runs the guest, and it is the one that
    /// speaks for it.
    ///
    /// # Errors
    /// When the guest does not write, or a node does not answer.
    pub fn settle(&self, ctx: &mut Ctx) -> Result<(), LabError> {
        self.wait_writes(ctx, WRITES)?;
        thread::sleep(REST);
        let host = self.host();
        let mut running = Vec::new();
        for hv in HOSTS {
            let out = ctx.lab.check(hv, &["virsh", "-q", "list"], ctx.patience(PROMPT * 3))?;
            running.extend(out.lines().any(|l| runs(l, &self.name)).then_some(hv.to_owned()));
        }
        ctx.demand(running == [host.clone()], &format!("only {host} runs the guest: {running:?}"));
        Ok(())
    }

    /// Ends the guest, checks its blocks, and fills in the report; stalls are those of the `windows`.
    ///
    /// # Errors
    /// When a node does not answer, or the check cannot be run.
    pub fn conclude(&mut self, ctx: &mut Ctx, windows: &[Window]) -> Result<(), LabError> {
        thread::sleep(REST);
        // What was on its way is told before the connection ends.
        let host = self.host();
        let stats = self.console.look(|l| l.stats(true));
        ctx.lab.check(&host, &["virsh", "-q", "destroy", &self.name], ctx.patience(PROMPT * 3))?;
        thread::sleep(REST);
        self.report(ctx, &stats, windows)?;
        self.adopt(ctx, stats)?;
        self.bed.verify(ctx, windows)?;
        self.demand_one_guest(ctx);
        Ok(())
    }

    fn report(
        &self,
        ctx: &mut Ctx,
        stats: &crate::blocks::WriterStats,
        windows: &[Window],
    ) -> Result<(), LabError> {
        let of = |windows: &[Window]| -> Percentiles {
            let all = crate::report::stalls(std::slice::from_ref(stats), windows);
            Percentiles::of(&all.iter().map(|s| s.ms).collect::<Vec<_>>())
        };
        let seen = self.events(ctx)?;
        let io_errors = stats.io_errors.count + seen.io_errors;
        ctx.report.guest =
            Some(GuestReport { stall_ms: of(windows), paused: seen.paused, io_errors });
        let downtime_ms = of(&self.windows);
        ctx.report.migrations = Some(Migrations { downtime_ms, ..self.done });
        if !self.windows.is_empty() {
            let own = serde_json::to_value(Percentiles::of(&seen.downtimes_ms));
            ctx.report.extra.insert("qemu_downtime_ms".into(), own.unwrap_or_default());
        }
        ctx.demand(seen.paused == 0, "the guest is never paused");
        ctx.demand(io_errors == 0, "no I/O error in the guest");
        Ok(())
    }

    /// Ends the listeners and counts what they heard.
    fn events(&self, ctx: &Ctx) -> Result<Seen, LabError> {
        let mut text = String::new();
        for (_, job) in &self.events {
            // It has ended where libvirt was restarted.
            let _ = job.signal(2);
            job.wait(ctx.patience(PROMPT))?;
            text += &job.output()?;
        }
        Ok(events::count(&text))
    }

    /// Hands the guest's journal to the bed, as if it were a writer's.
    fn adopt(&mut self, ctx: &Ctx, stats: crate::blocks::WriterStats) -> Result<(), LabError> {
        let (log, bytes) =
            (format!("/run/{}.log", self.name), self.console.look(|l| l.journal().to_vec()));
        for nas in NAS.iter().filter(|n| ctx.lab.answers(n)) {
            ctx.lab.push(nas, &log, &bytes, 0o600)?;
        }
        self.bed.adopt(VMS, stats, log);
        Ok(())
    }

    /// The host changed once per migration and per start elsewhere, no write was told twice, and
    /// the guest came up as often as it was started.
    fn demand_one_guest(&self, ctx: &mut Ctx) {
        let (changes, repeated, starts, damaged) = self
            .console
            .look(|l| (l.changes().len() as u64, l.repeated(), l.starts(), l.damaged()));
        let moved = self.done.done + self.elsewhere;
        ctx.demand(changes == moved, &format!("{moved} changes of the host, not {changes}"));
        ctx.demand(repeated == 0, &format!("no write is told twice, not {repeated}"));
        let started = self.starts;
        ctx.demand(starts == started, &format!("the guest came up {started} times, not {starts}"));
        ctx.report.extra.insert("guest lines damaged".into(), damaged.into());
    }
}

/// A migration that is on its way.
pub struct Migration {
    job: Job,
    start_ns: u64,
}

/// `virsh`, and the moment of its end in the last line.
const TIMED: &str = "virsh \"$@\"; code=$?; date +%s%N; exit $code";

impl Migration {
    /// Begins to migrate a guest away from `from`.
    ///
    /// # Errors
    /// When the node does not answer.
    pub fn begin(ctx: &Ctx, name: &str, from: &str) -> Result<Self, LabError> {
        let to = format!("qemu+tcp://{}/system", other(from));
        let argv = ["sh", "-c", TIMED, "virsh", "-q", "migrate", "--live", name, &to];
        let start_ns = wall_ns();
        Ok(Self { job: ctx.lab.spawn(from, &argv)?, start_ns })
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in [`MIGRATION`].
    pub fn end(self, ctx: &Ctx) -> Result<Migrated, LabError> {
        let code = self.job.wait(ctx.patience(MIGRATION))?;
        let said = self.job.output()?;
        let (words, end_ns) = timed(&said);
        let end_ns = end_ns.unwrap_or_else(wall_ns);
        let window = Window { start_ns: self.start_ns, end_ns };
        let took = Duration::from_nanos(end_ns.saturating_sub(self.start_ns));
        Ok(Migrated { ok: code == 0, words, took, window })
    }
}

/// What was said before the last line, and the moment that this names.
fn timed(said: &str) -> (String, Option<u64>) {
    let said = said.trim();
    let (words, last) = said.rsplit_once('\n').unwrap_or(("", said));
    match last.trim().parse() {
        Ok(ns) => (words.trim().to_owned(), Some(ns)),
        Err(_) => (said.to_owned(), None),
    }
}

/// Whether a line of `virsh list` says that the guest of this name runs.
fn runs(line: &str, name: &str) -> bool {
    let mut words = line.split_whitespace().skip(1);
    words.next() == Some(name) && words.next() == Some("running")
}

pub(super) fn note_seconds(ctx: &mut Ctx, what: &str, begin: Instant) {
    let seconds = (begin.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    ctx.report.extra.insert(format!("{what} s"), seconds.into());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_in_the_last_line() {
        assert_eq!(timed("17\n"), (String::new(), Some(17)));
        assert_eq!(timed("error: a\nb\n17\n"), ("error: a\nb".into(), Some(17)));
        assert_eq!(timed("error: a\nb"), ("error: a\nb".into(), None));
        assert_eq!(timed(""), (String::new(), None));
    }

    #[test]
    fn only_a_running_guest_of_that_name_runs() {
        assert!(runs(" 1    vm1    running", "vm1"));
        for line in [" 1    vm1    paused", " 1    vm10    running", " -    vm1    shut off", ""] {
            assert!(!runs(line, "vm1"), "{line}");
        }
    }
}
