//! The agent's service: one task owns the [`Agent`], and everything around it hears and does.
//!
//! Keeps S10: the loop awaits nothing but its channels. The service manager's watchdog is fed from this loop
//! and by nobody else, so that it proves that the agent decides.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nasd_proto as v1;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use v1::agent_message::Kind;

use super::agent::{Agent, Settings};
use super::hands::Guests;
use super::input::{Heard, Input, Order, Output, Pace};
use super::{inhibit, late, orders, reports, sampler};
use crate::api::serve::{self, Asked, SocketError, json};
use crate::api::{Question, Reply};
use crate::config::{Config, Services, kept};
use crate::core::Now;
use crate::core::phase::Timing;
use crate::guests;
use crate::link;
use crate::mounts::host::Files;
use crate::probe::{keeper, process};

/// What may wait for the agent's task.
const INPUTS: usize = 256;
const ASKED: usize = 32;
const ORDERS: usize = 64;
const PROBES: usize = 16;
/// Between two ticks: deadlines of the phases are that coarse.
const TICK: Duration = Duration::from_millis(500);
/// libvirt's hook asks again within a second while it waits, and libvirt needs a moment after it.
const HOOK_WAITS: Duration = Duration::from_secs(3);
/// For letting migrations go when the agent is ended.
const LET_GO: Duration = Duration::from_secs(5);

/// Where things are; different in tests only.
#[derive(Debug, Clone)]
pub struct Paths {
    /// The socket.
    pub socket: PathBuf,
    /// What the nasds told last.
    pub kept: PathBuf,
    /// The kernel's tables.
    pub files: Files,
}

impl Default for Paths {
    fn default() -> Self {
        Self { socket: crate::api::SOCKET.into(), kept: kept::FILE.into(), files: Files::default() }
    }
}

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Nobody could ask it.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Old limits of migrations are unreadable.
    #[error(transparent)]
    Limits(#[from] crate::guests::limits::Error),
    /// The system has no room.
    #[error("the agent cannot start ({0}): the system lacks threads, descriptors or memory")]
    System(#[from] std::io::Error),
}

/// Everything that does what the agent says.
struct Runner {
    agent: Agent,
    origin: Instant,
    program: PathBuf,
    paths: Paths,
    inputs: mpsc::Sender<Input>,
    orders: mpsc::Sender<Order>,
    pace: std::sync::mpsc::Sender<Pace>,
    probes: BTreeMap<PathBuf, mpsc::Sender<keeper::Input>>,
    state: watch::Sender<v1::AgentState>,
    services: watch::Sender<Services>,
    links: BTreeMap<String, mpsc::Sender<Kind>>,
    inhibit: watch::Sender<bool>,
    status: String,
}

/// Runs until told to end.
///
/// # Errors
/// It could not start.
pub async fn run(config: Config, paths: Paths) -> Result<(), RunError> {
    let origin = Instant::now();
    let (inputs, mut heard) = mpsc::channel(INPUTS);
    let (ask, mut asked) = mpsc::channel(ASKED);
    let (mut ended, mut interrupted) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = serve::listen(&paths.socket).await?;
    let mut runner = Runner::start(config, paths, origin, inputs).await?;
    tokio::spawn(serve::run(listener, ask));
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    notify(&[NotifyState::Ready]);
    loop {
        tokio::select! {
            Some(input) = heard.recv() => runner.hear(input),
            Some(question) = asked.recv() => runner.answer(question),
            _ = ticks.tick() => runner.tick(),
            _ = ended.recv() => break,
            _ = interrupted.recv() => break,
        }
    }
    notify(&[NotifyState::Stopping]);
    runner.let_go(&mut heard).await;
    let _ = std::fs::remove_file(&runner.paths.socket);
    Ok(())
}

impl Runner {
    async fn start(
        config: Config,
        paths: Paths,
        origin: Instant,
        inputs: mpsc::Sender<Input>,
    ) -> Result<Self, RunError> {
        let (orders, ordered) = mpsc::channel(ORDERS);
        tokio::spawn(orders::run(hands().await?, ordered, inputs.clone()));
        let pace = sampler::mounts(paths.files.clone(), config.intervals, inputs.clone())?;
        sampler::kernel(inputs.clone())?;
        sampler::leases(origin, config.intervals.leases, inputs.clone())?;
        let (inhibit, wanted) = watch::channel(false);
        tokio::spawn(inhibit::run(wanted));
        let (state, told) = watch::channel(v1::AgentState::default());
        let links = links(&config, &told, &inputs);
        let nasd = config.nasd.clone();
        let host = config.host_name();
        let kept = kept::load(&paths.kept);
        let settings = Settings { host, config, kept, timing: Timing::default() };
        let agent = Agent::new(origin.elapsed(), settings);
        let (services, known) = watch::channel(agent.services().clone());
        if !links.is_empty() {
            let queues = links.values().cloned().collect();
            let reporter = reports::Reporter { nasd, services: known, state: told, queues };
            tokio::spawn(reporter.run());
        }
        Ok(Self {
            agent,
            origin,
            program: std::env::current_exe()?,
            paths,
            inputs,
            orders,
            pace,
            probes: BTreeMap::new(),
            state,
            services,
            links,
            inhibit,
            status: String::new(),
        })
    }

    fn now(&self) -> Now {
        self.origin.elapsed()
    }

    fn hear(&mut self, input: Input) {
        let outputs = self.agent.step(self.now(), input);
        self.act(outputs);
    }

    /// An order that cannot be given is answered at once, which may give further orders.
    fn act(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            if let Some(heard) = self.act_once(output) {
                // Through the channel, so that a full queue is no endless loop.
                let _ = self.inputs.try_send(Input::Heard(heard));
            }
        }
    }

    fn act_once(&mut self, output: Output) -> Option<Heard> {
        match output {
            Output::StartProbe(mount, device) => self.start_probe(&mount, device),
            Output::StopProbe(mount) => drop(self.probes.remove(&mount)),
            Output::Probe(mount, input) => {
                if let Some(probe) = self.probes.get(&mount)
                    && probe.try_send(input).is_err()
                {
                    tracing::warn!(mount = %mount.display(), "its prober does not listen");
                }
            }
            Output::Order(order) => {
                let refused = self.orders.try_send(order).err()?;
                return orders::refused(refused.into_inner());
            }
            Output::Inhibit(held) => drop(self.inhibit.send_replace(held)),
            Output::Pace(pace) => drop(self.pace.send(pace)),
            Output::State(state) => drop(self.state.send_replace(state)),
            Output::Tell(kind) => self.tell(&dated(kind)),
            Output::Keep(kept) => self.keep(&kept),
        }
        None
    }

    fn start_probe(&mut self, mount: &Path, device: (u32, u32)) {
        let (say, said) = mpsc::channel(PROBES);
        let (report, mut reports) = mpsc::channel(PROBES);
        let launch = process::Launch::helper(self.program.clone(), mount, device);
        let origin = tokio::time::Instant::from_std(self.origin);
        tokio::spawn(process::run(launch, keeper::Timing::default(), origin, said, report));
        let (inputs, point) = (self.inputs.clone(), mount.to_owned());
        tokio::spawn(async move {
            while let Some(report) = reports.recv().await {
                if inputs.send(Input::Probed(point.clone(), report)).await.is_err() {
                    return;
                }
            }
        });
        self.probes.insert(mount.to_owned(), say);
    }

    fn tell(&self, kind: &Kind) {
        for (nasd, queue) in &self.links {
            if queue.try_send(kind.clone()).is_err() {
                tracing::warn!(nasd, "a message to it is lost: too many wait");
            }
        }
    }

    /// A short write to the local disk, at most once for each change of a service.
    fn keep(&self, known: &kept::Kept) {
        self.services.send_replace(self.agent.services().clone());
        if let Err(error) = kept::store(&self.paths.kept, known) {
            tracing::warn!("{error}");
        }
    }

    fn answer(&mut self, (question, back): Asked) {
        let now = self.now();
        let answer = match question {
            Question::Status => json(&self.agent.status(now)),
            Question::Hook(hook) => {
                let (verdict, outputs) = self.agent.asked(now, &hook);
                self.act(outputs);
                tracing::debug!(domain = hook.domain, ?verdict, "asked by the hook");
                if matches!(verdict, crate::api::Verdict::Wait { .. }) {
                    // One that is lost is given again with the next question.
                    let _ = self.orders.try_send(Order::HookWaits(HOOK_WAITS));
                }
                json(&verdict)
            }
            Question::Accept { mount } => {
                let (found, outputs) = self.agent.accept(now, &mount);
                self.act(outputs);
                let none = "no such mount, or it has no problems that could be accepted";
                json(&if found { Reply::Done } else { Reply::Error(none.to_owned()) })
            }
        };
        let _ = back.send(answer);
    }

    fn tick(&mut self) {
        self.hear(Input::Tick);
        let status = self.agent.summary(self.now());
        if status == self.status {
            notify(&[NotifyState::Watchdog]);
        } else {
            notify(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    /// Migrations that are held back run on without the agent, unless it lets them go.
    async fn let_go(&mut self, heard: &mut mpsc::Receiver<Input>) {
        let mut open = self.agent.held();
        for mount in &open {
            let _ = self.orders.try_send(Order::Release(mount.clone()));
        }
        let answers = async {
            while !open.is_empty() {
                match heard.recv().await {
                    Some(Input::Heard(Heard::Released(mount, _))) => drop(open.remove(&mount)),
                    Some(_) => {}
                    None => return,
                }
            }
        };
        if timeout(LET_GO, answers).await.is_err() {
            tracing::warn!("migrations are still held back: the next agent restores their limits");
        }
    }
}

async fn hands() -> Result<Box<dyn Guests>, RunError> {
    let bus = late::bus().await;
    if let Err(error) = &bus {
        tracing::warn!(%error, "libvirt is tried again when it is needed");
    }
    let bus = bus.ok();
    let libvirt = bus.clone().map_or_else(late::Late::default, late::Late::over);
    Ok(Box::new(guests::start(libvirt, bus, guests::Settings::default())?))
}

fn links(
    config: &Config,
    state: &watch::Receiver<v1::AgentState>,
    inputs: &mpsc::Sender<Input>,
) -> BTreeMap<String, mpsc::Sender<Kind>> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let hello = v1::AgentHello {
        host: config.host_name(),
        boot_id: boot_id.trim().to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut links = BTreeMap::new();
    for nasd in &config.nasd {
        let (say, queue) = mpsc::channel(link::QUEUE);
        let link = link::Link {
            nasd: nasd.clone(),
            tls: config.tls.clone(),
            hello: hello.clone(),
            every: config.intervals.state,
        };
        let outgoing = link::Outgoing { state: state.clone(), queue };
        tokio::spawn(link::run(link, outgoing, inputs.clone()));
        links.insert(nasd.name.clone(), say);
    }
    links
}

/// The calendar's time, where the core left it out.
fn dated(mut kind: Kind) -> Kind {
    if let Kind::Stall(report) = &mut kind
        && let Ok(since) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)
    {
        report.ended_unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    }
    kind
}

/// Without a service manager nobody listens, and nothing is lost.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
