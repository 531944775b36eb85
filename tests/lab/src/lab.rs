//! A lab: nodes that run, and what can be done with them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::Serialize;

use crate::blocks::WriterId;
use crate::capture::Capture;
use crate::client::{Client, Job, Output};
use crate::deps;
use crate::engine::{self, Engine, Machine};
use crate::error::LabError;
use crate::fault::Fault;
use crate::guest::console::Console;
use crate::image::{self, Image};
use crate::netns::Namespace;
use crate::payload;
use crate::process::{self, MARK, ProcessId};
use crate::progress::Step;
use crate::spec::{Node, Role, Spec, check_name};
use crate::state::{self, NodeState, State};
use crate::supervise;
use crate::sys;

/// Size of each data disk, bytes. They take memory as they are written.
const DATA_DISK: u64 = 512 << 20;

/// Limit for a node's boot under User-Mode Linux, with other labs and compilers beside it.
const BOOT: Duration = Duration::from_secs(90);

/// Limit for etcd's members to agree on a leader.
const ETCD: Duration = Duration::from_secs(60);

/// Limit for one call of `etcdctl`.
const ETCDCTL: Duration = Duration::from_secs(15);

/// Between two looks of [`wait_for`].
const PAUSE: Duration = Duration::from_millis(100);

/// Makes the names of captures' files unique.
static CAPTURES: AtomicU64 = AtomicU64::new(0);

/// A running lab. Taken down when dropped, unless [`Lab::keep`] was called or it was [opened](Lab::open).
#[derive(Debug)]
pub struct Lab {
    state: State,
    image: Image,
    namespace: Namespace,
    keep: bool,
}

/// How a node is, as `lab status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Address in the lab's network.
    pub address: String,
    /// Address in the management network.
    pub management: String,
    /// `off`, `frozen`, `ready`, `silent` (runs, but its agent does not answer) or `died`.
    pub state: &'static str,
    /// Number of its process on this machine.
    pub pid: Option<i32>,
    /// File with its console's output.
    pub console: PathBuf,
}

impl Lab {
    /// Brings a lab up: all nodes answer when this returns. What is missing (programs, image) is made first.
    ///
    /// # Errors
    /// Whatever stands in the way. Nothing of the lab is left then, but the consoles' files.
    pub fn up(spec: &Spec) -> Result<Self, LabError> {
        spec.check()?;
        if !nix::unistd::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        if state::dir(&spec.name).exists() || Namespace::of(&spec.name).exists() {
            return Err(LabError::Exists { name: spec.name.clone() });
        }
        deps::ensure(&[deps::ALWAYS])?;
        let image = Image::get()?;
        let engine = Engine::choose(spec.engine, &image)?;
        if engine == Engine::Qemu {
            deps::ensure(&[deps::QEMU])?;
        }
        if spec.build {
            payload::build()?;
        }
        let node = |node| NodeState { node, process: None };
        let nodes = spec.nodes().into_iter().map(node).collect();
        let dir = Some(image.dir().to_owned());
        let state = State { name: spec.name.clone(), engine, image: dir, nodes };
        // From here on, dropping it cleans up.
        let mut lab = Self { state, image, namespace: Namespace::of(&spec.name), keep: false };
        lab.state.save()?;
        lab.prepare()?;
        lab.boot()?;
        Ok(lab)
    }

    /// A lab that an earlier call has brought up and kept.
    ///
    /// # Errors
    /// [`LabError::Unknown`], [`LabError::BadState`].
    pub fn open(name: &str) -> Result<Self, LabError> {
        check_name(name)?;
        let state = State::load(name)?;
        let image = state.image.clone().map_or_else(Image::get, |dir| Ok(Image::at(dir)))?;
        Ok(Self { state, image, namespace: Namespace::of(name), keep: true })
    }

    /// Leaves the lab running when this is dropped.
    pub fn keep(mut self) {
        self.keep = true;
    }

    /// Takes down whatever there is of the lab of this name, also after a crash of the program that made it.
    ///
    /// # Errors
    /// If something cannot be removed; the rest is.
    pub fn remove(name: &str) -> Result<(), LabError> {
        check_name(name)?;
        let known = State::load(name).map(|s| s.nodes).unwrap_or_default();
        let known = known.into_iter().filter_map(|n| n.process);
        let processes: Vec<_> = known.chain(process::marked(name)).collect();
        thread::scope(|scope| {
            for p in processes {
                scope.spawn(move || p.kill());
            }
        });
        let network = Namespace::of(name).destroy();
        for dir in [state::work(name), state::dir(name)] {
            match fs::remove_dir_all(&dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(LabError::io("remove", dir)(e));
                }
                _ => {}
            }
        }
        network
    }

    /// Takes the lab down.
    ///
    /// # Errors
    /// As [`Lab::remove`].
    pub fn down(mut self) -> Result<(), LabError> {
        self.keep = true;
        Self::remove(&self.state.name)
    }

    fn prepare(&self) -> Result<(), LabError> {
        let step = Step::begin("Preparing network and disks");
        self.namespace.create(&self.nodes().cloned().collect::<Vec<_>>())?;
        let work = state::work(&self.state.name);
        sys::make_dir(&work)?;
        let nodes: Vec<_> = self.nodes().cloned().collect();
        payload::make(&work.join("payload.ext4"), &self.image, self.state.engine, &nodes)?;
        if self.state.engine == Engine::Qemu && engine::kvm_works(&self.image) {
            sys::write(&work.join("kvm"), "", 0o644)?;
        }
        for node in &nodes {
            let machine = self.machine(node, &work);
            for disk in machine.data() {
                sys::sparse(&disk, DATA_DISK)?;
            }
            // The console of an earlier lab of this name would be misleading.
            let _ = fs::remove_file(self.console(&node.name));
        }
        step.done();
        Ok(())
    }

    fn machine<'a>(&'a self, node: &'a Node, work: &'a PathBuf) -> Machine<'a> {
        Machine { image: &self.image, node, work }
    }

    fn boot(&mut self) -> Result<(), LabError> {
        let names: Vec<_> = self.nodes().map(|n| n.name.clone()).collect();
        let step = Step::begin(format!("Booting {} ({})", names.join(" "), self.engine().name()));
        for name in &names {
            self.start(name)?;
        }
        let lab = &*self;
        thread::scope(|scope| {
            let waits: Vec<_> =
                names.iter().map(|n| scope.spawn(move || lab.wait_ready(n))).collect();
            let join = |w: thread::ScopedJoinHandle<'_, Result<(), LabError>>| {
                w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            waits.into_iter().map(join).collect::<Result<Vec<_>, _>>()
        })?;
        step.done();
        Ok(())
    }

    /// Starts a node's process.
    fn start(&mut self, name: &str) -> Result<(), LabError> {
        let node = self.node(name)?.clone();
        let work = state::work(&self.state.name);
        let machine = self.engine().command(&self.machine(&node, &work))?;
        // This very program, also when its file has been built anew meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg("supervise").arg(work.join("uml").join(name));
        command.arg(node.power_switch().to_string()).arg("--");
        command.arg(machine.get_program()).args(machine.get_args());
        let console = self.open_console(name)?;
        let errors = console.try_clone().map_err(LabError::io("use", self.console(name)))?;
        command.stdin(Stdio::null()).stdout(console).stderr(errors);
        command.env(MARK, &self.state.name).env("TMPDIR", &work).process_group(0);
        let child = self.namespace.enter(move || sys::spawn(&mut command))?;
        let process = i32::try_from(child.id()).ok().and_then(ProcessId::of);
        self.set_process(name, process)
    }

    fn open_console(&self, name: &str) -> Result<File, LabError> {
        let path = self.console(name);
        if let Some(dir) = path.parent() {
            sys::make_dir(dir)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.map_err(LabError::io("open", path))
    }

    fn set_process(&mut self, name: &str, process: Option<ProcessId>) -> Result<(), LabError> {
        for n in self.state.nodes.iter_mut().filter(|n| n.node.name == name) {
            n.process = process;
        }
        self.state.save()
    }

    /// Waits until a node's agent answers.
    ///
    /// # Errors
    /// [`LabError::NotReady`], [`LabError::Died`].
    pub fn wait_ready(&self, name: &str) -> Result<(), LabError> {
        let limit = BOOT * self.engine().patience();
        let end = Instant::now() + limit;
        let client = self.client(name)?;
        while Instant::now() < end {
            if client.ping(Duration::from_millis(300)) {
                return Ok(());
            }
            if !self.process(name)?.is_some_and(ProcessId::alive) {
                return Err(LabError::Died { node: name.into(), console: self.console(name) });
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(LabError::NotReady { node: name.to_owned(), limit, console: self.console(name) })
    }

    /// Name of the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// What its nodes run on.
    #[must_use]
    pub const fn engine(&self) -> Engine {
        self.state.engine
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.state.nodes.iter().map(|n| &n.node)
    }

    /// The hypervisors.
    pub fn hypervisors(&self) -> impl Iterator<Item = &Node> {
        self.nodes().filter(|n| n.role == Role::Hypervisor)
    }

    /// The node of this name.
    ///
    /// # Errors
    /// [`LabError::NoNode`].
    pub fn node(&self, name: &str) -> Result<&Node, LabError> {
        self.nodes().find(|n| n.name == name).ok_or_else(|| LabError::NoNode {
            node: name.to_owned(),
            known: self.nodes().map(|n| n.name.as_str()).collect::<Vec<_>>().join(" "),
        })
    }

    /// Folder of the consoles' files; it outlives the lab.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        image::cache_dir().join("console").join(&self.state.name)
    }

    /// File with a node's console; it outlives the lab.
    #[must_use]
    pub fn console(&self, node: &str) -> PathBuf {
        self.logs().join(format!("{node}.log"))
    }

    pub(crate) const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Begins to listen for the nested guest `writer` at this port of the lab program's own address.
    ///
    /// # Errors
    /// If the port is in use.
    pub fn listen(&self, writer: WriterId, port: u16) -> Result<Console, LabError> {
        let nodes: Vec<_> = self.nodes().cloned().collect();
        Console::listen(&self.namespace, &nodes, writer, port)
    }

    fn client(&self, node: &str) -> Result<Client, LabError> {
        Ok(Client::new(&self.namespace, self.node(node)?))
    }

    fn process(&self, name: &str) -> Result<Option<ProcessId>, LabError> {
        self.node(name)?;
        Ok(self.state.nodes.iter().find(|n| n.node.name == name).and_then(|n| n.process))
    }

    fn running(&self, name: &str) -> Result<ProcessId, LabError> {
        self.process(name)?.filter(|p| p.alive()).ok_or_else(|| LabError::WrongState {
            node: name.to_owned(),
            state: "off",
            advice: "power it on first",
        })
    }

    /// Runs a command in a node to its end. A command that overruns `limit` is killed.
    ///
    /// # Errors
    /// [`LabError::ExecTimeout`]; if the node does not answer; if the program does not exist. An exit code other
    /// than 0 is no error here, see [`Lab::check`].
    pub fn exec(&self, node: &str, argv: &[&str], limit: Duration) -> Result<Output, LabError> {
        self.client(node)?.exec(argv, limit)
    }

    /// As [`Lab::exec`], for a command that must succeed; its standard output.
    ///
    /// # Errors
    /// As [`Lab::exec`], and [`LabError::ExecFailed`].
    pub fn check(&self, node: &str, argv: &[&str], limit: Duration) -> Result<String, LabError> {
        let out = self.exec(node, argv, limit)?;
        if out.ok() {
            return Ok(out.stdout);
        }
        let (node, command) = (node.to_owned(), argv.join(" "));
        Err(LabError::ExecFailed { node, command, code: out.code, stderr: out.stderr })
    }

    /// As [`Lab::check`], for a line of shell.
    ///
    /// # Errors
    /// As [`Lab::check`].
    pub fn sh(&self, node: &str, script: &str, limit: Duration) -> Result<String, LabError> {
        self.check(node, &["sh", "-c", script], limit)
    }

    /// Starts a command in the background of a node.
    ///
    /// # Errors
    /// If the node does not answer, or the program does not exist.
    pub fn spawn(&self, node: &str, argv: &[&str]) -> Result<Job, LabError> {
        self.client(node)?.spawn(argv)
    }

    /// Writes a file in a node, replacing it in one step; missing folders are made.
    ///
    /// # Errors
    /// If the node does not answer, or cannot write there.
    pub fn push(&self, node: &str, path: &str, bytes: &[u8], mode: u32) -> Result<(), LabError> {
        self.client(node)?.push(path, bytes, mode)
    }

    /// Reads a file of a node.
    ///
    /// # Errors
    /// If the node does not answer, or cannot read it.
    pub fn pull(&self, node: &str, path: &str) -> Result<Vec<u8>, LabError> {
        self.client(node)?.pull(path)
    }

    /// Applies a fault, or ends one; it is in effect when this returns.
    ///
    /// # Errors
    /// If there is no such node, or it is in a state where the fault makes no sense.
    pub fn fault(&mut self, fault: &Fault) -> Result<(), LabError> {
        fault.apply(self)
    }

    pub(crate) fn power_off(&mut self, name: &str) -> Result<(), LabError> {
        self.running(name)?.kill();
        // One that its supervisor was just starting again has no parent now.
        for left in process::marked(self.name()).into_iter().filter(|p| p.has_argument(name)) {
            left.kill();
        }
        self.set_process(name, None)
    }

    /// Whether a node's machine runs, frozen or not.
    pub(crate) fn has_power(&self, name: &str) -> bool {
        let process = self.process(name).ok().flatten();
        process.is_some_and(|p| p.alive() && !p.is_childless())
    }

    /// Whether a node has power and is not frozen, and its agent answers at once.
    #[must_use]
    pub fn answers(&self, name: &str) -> bool {
        let runs = |p: ProcessId| p.alive() && !p.stopped_below();
        let process = self.process(name).ok().flatten();
        process.is_some_and(runs) && self.client(name).is_ok_and(|c| c.ping(Duration::from_secs(1)))
    }

    /// Whether a fence agent has switched a node off.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn switched_off(&self, name: &str) -> Result<bool, LabError> {
        Ok(self.process(name)?.is_some_and(|p| p.alive() && p.is_childless()))
    }

    /// How often a node has rebooted by itself since the lab was brought up.
    #[must_use]
    pub fn reboots(&self, name: &str) -> usize {
        let console = fs::read(self.console(name)).unwrap_or_default();
        String::from_utf8_lossy(&console).matches(supervise::STARTED_AGAIN).count()
    }

    pub(crate) fn power_on(&mut self, name: &str) -> Result<(), LabError> {
        if self.process(name)?.is_some_and(ProcessId::alive) {
            let (state, advice) = ("on", "cut its power first");
            return Err(LabError::WrongState { node: name.to_owned(), state, advice });
        }
        self.start(name)?;
        self.wait_ready(name)
    }

    pub(crate) fn signal(&self, name: &str, signal: Signal) -> Result<(), LabError> {
        self.running(name)?.signal_below(signal);
        Ok(())
    }

    /// Begins to take packets at a node's cable; `filter` as in pcap-filter(7), empty for all.
    ///
    /// # Errors
    /// If the capture does not begin.
    pub fn capture(&self, node: &str, filter: &str) -> Result<Capture, LabError> {
        let node = self.node(node)?;
        let serial = CAPTURES.fetch_add(1, Ordering::Relaxed);
        let file = format!("{}-{}-{serial}.pcap", node.name, std::process::id());
        let file = state::work(self.name()).join(file);
        Capture::begin(&self.namespace, self.name(), node, filter, file)
    }

    /// URIs of etcd's members.
    #[must_use]
    pub fn etcd_endpoints(&self) -> Vec<String> {
        let members = self.nodes().filter(|n| n.has_etcd());
        members.map(|n| format!("https://{}:2379", n.address())).collect()
    }

    /// Runs `etcdctl` in a node against all members; its standard output.
    ///
    /// # Errors
    /// As [`Lab::check`].
    pub fn etcdctl(&self, node: &str, args: &[&str]) -> Result<String, LabError> {
        let endpoints = format!("--endpoints={}", self.etcd_endpoints().join(","));
        let fixed = [
            "etcdctl",
            &endpoints,
            "--cacert=/etc/lab/pki/ca.pem",
            "--cert=/etc/lab/pki/node.pem",
            "--key=/etc/lab/pki/node.key",
        ];
        let argv = [&fixed[..], args].concat();
        self.check(node, &argv, ETCDCTL * self.engine().patience())
    }

    /// Waits until all members of etcd are healthy.
    ///
    /// # Errors
    /// [`LabError::WaitedInVain`].
    pub fn wait_etcd(&self) -> Result<(), LabError> {
        wait_for("etcd to be healthy", ETCD * self.engine().patience(), || {
            self.etcdctl("hv1", &["endpoint", "health"]).map(drop).map_err(|e| e.to_string())
        })
    }

    /// Keeps all nodes' journals and consoles in a folder of this `name`, for after the lab's end. Nodes that do not
    /// answer are passed over.
    pub fn keep_logs(&self, name: &str) -> PathBuf {
        let folder = self.logs().join(name);
        // Best effort, here and below: the scenario's own failure is what counts.
        let _ = fs::create_dir_all(&folder);
        for node in self.nodes() {
            let console = self.console(&node.name);
            let _ = fs::copy(&console, folder.join(console.file_name().unwrap_or_default()));
            let journal = ["journalctl", "--no-pager", "-b", "-o", "short-precise"];
            let limit = Duration::from_secs(10) * self.engine().patience();
            if let Ok(out) = self.exec(&node.name, &journal, limit) {
                let path = folder.join(&node.name).with_extension("journal");
                let _ = sys::write(&path, out.stdout, 0o644);
            }
        }
        folder
    }

    /// How all nodes are.
    #[must_use]
    pub fn status(&self) -> Vec<NodeStatus> {
        self.state.nodes.iter().map(|n| self.node_status(n)).collect()
    }

    fn node_status(&self, n: &NodeState) -> NodeStatus {
        let client = Client::new(&self.namespace, &n.node);
        let state = match n.process {
            None => "off",
            Some(p) if !p.alive() => "died",
            Some(p) if p.stopped_below() => "frozen",
            Some(_) if client.ping(Duration::from_secs(1)) => "ready",
            Some(_) => "silent",
        };
        NodeStatus {
            name: n.node.name.clone(),
            address: n.node.address().to_string(),
            management: n.node.management().to_string(),
            state,
            pid: n.process.filter(|p| p.alive()).map(|p| p.pid),
            console: self.console(&n.node.name),
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep
            && let Err(e) = Self::remove(&self.state.name)
        {
            eprintln!("lab: taking lab {} down: {e}", self.state.name);
        }
    }
}

/// Asks again and again until `seen` is `Ok`; an `Err` says what is there instead.
///
/// # Errors
/// [`LabError::WaitedInVain`] with the last answer, after `limit`.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut seen: impl FnMut() -> Result<T, String>,
) -> Result<T, LabError> {
    let end = Instant::now() + limit;
    loop {
        match seen() {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() >= end => {
                return Err(LabError::WaitedInVain { what: what.to_owned(), limit, last });
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
