//! Assembles a running nasd from its configuration: one task per service, the event follower, the
//! servers. Order matters at a restart: what runs is adopted before anything is decided (S9).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nasd_proto::control_server::ControlServer;
use nasd_proto::peer_server::PeerServer;
use nasd_proto::{ServedHere, Welcome};
use thiserror::Error;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::transport::server::{Router, TcpIncoming};

use super::beat;
use super::drbd::{DrbdError, Resource};
use super::fence;
use super::follow::{self, Follower};
use super::hands::{Hands, Seen};
use super::leave::take_leave;
use super::network::Network;
use super::right::Keeper;
use super::task::{Command, Handle, ServiceTask, SharedCoordinator};
use super::turns::Turns;
use super::watchdog;
use crate::agents::Agents;
use crate::agents::book::Book;
use crate::agents::server::{AgentsService, Greeting};
use crate::api::control::{ControlService, Services};
use crate::config::{Config, CoordinatorConfig, NodeConfig, ServiceConfig};
use crate::coordinator::{self, CoordinatorError, LastSeen};
use crate::core::machine::{Event, Machine};
use crate::core::record::NodeName;
use crate::core::timing::Timing;
use crate::io::Launcher;
use crate::observe::history::History;
use crate::observe::timeline::Timeline;
use crate::peer::link::{Link, LinkError};
use crate::peer::server::{Entry, PeerService};
use crate::peer::tls::{self, TlsError};

/// Where nasd keeps what must survive a reboot.
pub const STATE_DIR: &str = "/var/lib/nasd";

/// Calls of one connection at a time: the peer has a few, an agent two.
const STREAMS: u32 = 128;

/// Between two attempts to listen on the second path.
const SECOND_PATH: Duration = Duration::from_secs(5);

/// nasd cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The host is not one of the configured nodes.
    #[error(
        "this host is called {hostname}, which is none of the configured nodes ({nodes}); correct [[node]] name or the host name"
    )]
    NotConfigured {
        /// What the kernel says.
        hostname: String,
        /// What the configuration says.
        nodes: String,
    },
    /// The peer channel.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Keys.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// DRBD.
    #[error(transparent)]
    Drbd(#[from] DrbdError),
    /// The coordinator's set-up (not its reach: that is waited for).
    #[error(transparent)]
    Coordinator(#[from] CoordinatorError),
    /// Namespace, interface or gate.
    #[error("the network of service {service} cannot be set up: {source}")]
    Network {
        /// The service.
        service: String,
        /// What failed.
        source: Box<nasd_net::NetError>,
    },
    /// A server ended.
    #[error("a server of nasd ended: {0}")]
    Server(#[from] tonic::transport::Error),
    /// Files and sockets.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> StartError {
    let what = what.into();
    move |source| StartError::Io { what, source }
}

/// What one service's parts share.
struct Common {
    me: NodeName,
    peer: NodeConfig,
    digest: String,
    coordinator: SharedCoordinator,
    link: Link,
    turns: Arc<Turns>,
    agents: Agents,
    io_program: PathBuf,
}

/// Runs nasd until one of its servers ends.
///
/// # Errors
/// [`StartError`].
pub async fn run(config: Config) -> Result<(), StartError> {
    let left_watchdog = watchdog::inherited();
    let hostname = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    let nodes = config.nodes.iter().map(|n| n.name.0.clone()).collect::<Vec<_>>().join(", ");
    let me =
        config.this_node(&hostname).ok_or(StartError::NotConfigured { hostname, nodes })?.clone();
    let peer = config.peer_of(&me.name).cloned().ok_or_else(|| StartError::NotConfigured {
        hostname: me.name.0.clone(),
        nodes: "no second node".into(),
    })?;
    let link = Link::new(&peer, &config.peer)?;
    let coordinator: SharedCoordinator = coordinator::open(&config, Path::new(STATE_DIR)).await?;
    let nas: Vec<_> = config.nodes.iter().map(|n| n.address.ip()).collect();
    coordinator.attend(&me.name.0, me.address.ip(), &nas);
    let common = Common {
        me: me.name.clone(),
        peer: peer.clone(),
        digest: config.digest(),
        coordinator,
        link: link.clone(),
        turns: Arc::default(),
        agents: start_agents(&config, &me),
        io_program: io_program(),
    };
    let (mut by_name, mut followers, mut records) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
    for service in &config.services {
        let (entry, follower) = start_service(&common, &config, service).await?;
        let source =
            fence::Source { record: entry.hands.record.subscribe(), seen: entry.hands.drbd.slot() };
        records.insert(service.drbd.clone(), source);
        by_name.insert(service.name.clone(), entry);
        followers.push(follower);
    }
    follow::follow(followers).map_err(io("start the DRBD event thread"))?;
    let services = Services {
        by_name: Arc::new(by_name),
        me: common.me.clone(),
        peer: peer.name.clone(),
        link,
        agents: common.agents,
        agents_wait: config.agents.wait,
        coordinator_kind: match config.coordinator {
            CoordinatorConfig::Etcd { .. } => "etcd",
            CoordinatorConfig::File { .. } => "file",
        },
        started: Instant::now(),
    };
    for entry in services.by_name.values().cloned() {
        // Each by itself: one service whose volume is frozen must not hold up the others' rights.
        tokio::spawn(async move {
            let left = entry.hands.leftovers().await;
            tracing::info!(service = entry.hands.service.name, ?left, "found");
            resume_emergency(&entry).await;
            drop(entry.handle.send(Command::Event(Event::Started(left))).await);
        });
    }
    guard(&config, left_watchdog, &services);
    serve(&config, &me, services, records).await
}

fn start_agents(config: &Config, me: &NodeConfig) -> Agents {
    let services = config.services.iter().map(|s| s.name.clone());
    Agents::start(Book::new(me.name.0.clone(), services, config.agents.required.clone()))
}

/// S9: an operator's emergency start outlives nasd. It comes before the leftovers, which make the core
/// decide.
async fn resume_emergency(entry: &Entry) {
    match entry.hands.last_seen.emergency().await {
        Ok(Some(note)) => {
            tracing::error!(service = entry.hands.service.name, ?note, "EMERGENCY start goes on");
            let event = Event::Emergency { last: note.base, by: note.by, resumed: true };
            drop(entry.handle.send(Command::Event(event)).await);
        }
        Ok(None) => {}
        Err(error) => tracing::error!(error, "whether an emergency start goes on is not known"),
    }
}

/// Behind everything that can fail at a start: a nasd that cannot run must not reset its node over
/// and over.
fn guard(config: &Config, left: Option<std::fs::File>, services: &Services) {
    match (&config.watchdog, left) {
        (Some(device), left) => {
            let tasks = services.by_name.values().map(|entry| entry.handle.clone()).collect();
            if let Err(error) = watchdog::start(device, left, tasks) {
                tracing::error!(%error, "no watchdog guards this node");
            }
        }
        (None, Some(left)) => watchdog::give_up(left),
        (None, None) => {}
    }
}

fn io_program() -> PathBuf {
    let beside = std::env::current_exe().ok().map(|p| p.with_file_name("nasd-io"));
    beside.filter(|p| p.exists()).unwrap_or_else(|| PathBuf::from("/usr/sbin/nasd-io"))
}

async fn start_service(
    common: &Common,
    config: &Config,
    service: &ServiceConfig,
) -> Result<(Entry, Follower), StartError> {
    std::fs::create_dir_all(service.run_dir())
        .map_err(io(format!("make {}", service.run_dir().display())))?;
    let resource = Arc::new(Resource::attach(&service.drbd).await?);
    let for_thread = service.clone();
    let stood = tokio::task::spawn_blocking(move || {
        let stood = Network::stand_up(&for_thread)?;
        stood.0.add_routes(&for_thread)?;
        Ok(stood)
    });
    let network_error =
        |source| StartError::Network { service: service.name.clone(), source: Box::new(source) };
    let (network, gate) = match stood.await {
        Ok(result) => result.map_err(network_error)?,
        Err(error) => return Err(io("set up the network")(std::io::Error::other(error))),
    };
    let (handle, inbox) = mpsc::channel(256);
    let (granted_tx, granted) = watch::channel(None);
    let (wish, wish_rx) = watch::channel(None);
    let hands = Arc::new(Hands {
        me: common.me.clone(),
        peer: common.peer.name.clone(),
        peer_fence: common.peer.fence.clone(),
        service: service.clone(),
        config_digest: common.digest.clone(),
        right: config.right,
        coordinator: Arc::clone(&common.coordinator),
        last_seen: LastSeen::at(Path::new(STATE_DIR), &service.name),
        peer_link: common.link.clone(),
        agents: common.agents.clone(),
        network: Arc::new(network),
        drbd: Arc::clone(&resource),
        keeper: Arc::new(Mutex::new(Keeper::new(gate))),
        wish,
        granted,
        timeline: Timeline::default(),
        history: History::open(Path::new(STATE_DIR), &service.name),
        launcher: Launcher {
            program: common.io_program.clone(),
            socket: service.run_dir().join("io.sock"),
            service: service.name.clone(),
            netns: PathBuf::from("/run/netns").join(service.netns_name()),
        },
        turns: Arc::clone(&common.turns),
        io: Arc::default(),
        mirror: Mutex::default(),
        clients: Mutex::default(),
        record: watch::channel(None).0,
        seen: watch::channel(Seen::default()).0,
        beats: beat::Beats::default(),
        health: watch::channel(None).0,
        addressed_at: Mutex::default(),
    });
    tokio::spawn(beat::keep(Arc::clone(&hands), handle.clone(), wish_rx, granted_tx));
    tokio::spawn(watch_record(Arc::clone(&hands), handle.clone()));
    tokio::spawn(super::health::watch(Arc::clone(&hands), handle.clone()));
    let founds = service.preferred.as_ref().unwrap_or(&config.nodes[0].name) == &common.me;
    let right = &config.right;
    let timing = Timing::new(right.ttl, right.heartbeat, right.valid_lft);
    let machine = Machine::new(common.me.clone(), common.peer.name.clone(), founds, timing);
    let machine = if common.peer.fence.is_some() { machine.with_power_fence() } else { machine };
    let home = service.preferred.as_ref() == Some(&common.peer.name);
    let machine = match service.failback_after.filter(|_| home) {
        Some(after) => machine.with_failback(after),
        None => machine,
    };
    tokio::spawn(ServiceTask::new(machine, Arc::clone(&hands), inbox, handle.clone()).run());
    let follower = Follower { resource, handle: handle.clone() };
    Ok((Entry { handle, hands }, follower))
}

/// The coordinator's watch is a hint to look: what counts is a linearizable read.
async fn watch_record(hands: Arc<Hands>, handle: Handle) {
    use futures_util::StreamExt;
    loop {
        let mut changes = hands.coordinator.watch(&hands.service.name);
        // What changed while nobody watched.
        let event = hands.read_record().await;
        if handle.send(Command::Event(event)).await.is_err() {
            return;
        }
        while changes.next().await.is_some() {
            let event = hands.read_record().await;
            if handle.send(Command::Event(event)).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn serve(
    config: &Config,
    me: &NodeConfig,
    services: Services,
    records: fence::Records,
) -> Result<(), StartError> {
    let socket = &config.control_socket;
    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir).map_err(io(format!("make {}", dir.display())))?;
    }
    if socket.exists() {
        std::fs::remove_file(socket).map_err(io(format!("remove the old {}", socket.display())))?;
    }
    let listener =
        UnixListener::bind(socket).map_err(io(format!("listen on {}", socket.display())))?;
    restrict(socket)?;
    let control = Server::builder()
        .add_service(ControlServer::new(ControlService { services: services.clone() }))
        .serve_with_incoming(UnixListenerStream::new(listener));
    let peer = peer_router(config, &services)?.serve(me.address);
    let second = serve_second_path(config, me, &services);
    let fence =
        fence::serve(Path::new(fence::SOCKET), services.me.clone(), services.peer.clone(), records);
    notify_ready();
    tracing::info!(node = %me.name, services = services.by_name.len(), "nasd runs");
    tokio::select! {
        result = control => result?,
        result = peer => result?,
        result = fence => result.map_err(io("answer fence-peer"))?,
        () = second => {}
        () = take_leave(&services) => {}
    }
    Ok(())
}

/// What answers the other nasd and the agents, on whichever address it calls.
fn peer_router(config: &Config, services: &Services) -> Result<Router, StartError> {
    let peer_name = services.peer.0.clone();
    let service = PeerServer::with_interceptor(
        PeerService { services: services.clone() },
        move |request: tonic::Request<()>| tls::admit(&request, &peer_name).map(|()| request),
    );
    let agents = AgentsService {
        agents: services.agents.clone(),
        nodes: [services.me.0.clone(), services.peer.0.clone()],
        greeting: greeting(services.clone()),
    };
    let server = Server::builder().tls_config(tls::server(&config.peer)?)?.tcp_nodelay(true);
    let mut server = server.max_concurrent_streams(Some(STREAMS));
    Ok(server.add_service(service).add_service(agents.served()))
}

/// What an agent hears first: this node's services, and which of them it serves now.
fn greeting(services: Services) -> Greeting {
    Arc::new(move || {
        let of = |entry: &Entry| {
            let seen = entry.hands.seen.borrow();
            let addresses = &entry.hands.service.addresses;
            ServedHere {
                service: entry.hands.service.name.clone(),
                addresses: addresses.iter().map(|a| a.address().to_string()).collect(),
                epoch: seen.epoch,
                serving: matches!(seen.stage, "serving" | "preparing"),
            }
        };
        let node = services.me.0.clone();
        Welcome { node, services: services.by_name.values().map(of).collect() }
    })
}

/// Never ends: a second network that is not there, or not there yet, must not stop a nasd that is heard on
/// the first.
async fn serve_second_path(config: &Config, me: &NodeConfig, services: &Services) {
    let Some(address) = me.heartbeat else { return std::future::pending().await };
    let mut told = String::new();
    loop {
        let ended = listen_at(address, config, services).await;
        let why = ended.map_or_else(|error| error.to_string(), |()| "it ended".to_owned());
        if why != told {
            tracing::warn!(%address, why, "the second path for beats is not open; it is tried again");
        }
        told = why;
        tokio::time::sleep(SECOND_PATH).await;
    }
}

async fn listen_at(
    address: SocketAddr,
    config: &Config,
    services: &Services,
) -> Result<(), StartError> {
    let listener = TcpListener::bind(address).await.map_err(io(format!("listen on {address}")))?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Ok(peer_router(config, services)?.serve_with_incoming(incoming).await?)
}

fn restrict(socket: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660))
        .map_err(io(format!("restrict {}", socket.display())))
}

fn notify_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "no service manager to tell");
    }
}
