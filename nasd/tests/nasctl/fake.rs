//! A nasd that plays a script on a socket of its own, and nasctl run against it.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use nasd_proto::control_server::{Control, ControlServer};
use nasd_proto::{
    AbortMoveReply, AbortMoveRequest, ForgetHostRequest, HistoryReply, HistoryRequest, HoldReply,
    HoldRequest, MoveEvent, NodeUnreachable, RecoverReply, RecoverRequest, StatusReply,
    StatusRequest, SwitchoverRequest, TakeoverRequest,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

type Events = Pin<Box<dyn Stream<Item = Result<MoveEvent, Status>> + Send>>;

/// A nasd that plays a script.
#[derive(Clone, Default)]
pub struct Fake {
    pub nodes: Vec<String>,
    pub unreachable: Vec<NodeUnreachable>,
    /// Events of a switchover; `Err` breaks the stream.
    pub script: Vec<Result<MoveEvent, Status>>,
    /// Refuse the call itself.
    pub refuse: Option<Status>,
    /// Never end the stream.
    pub hang: bool,
    pub aborted: bool,
    pub asked: Arc<Mutex<Vec<SwitchoverRequest>>>,
    /// Every other request, as its debug text.
    pub heard: Arc<Mutex<Vec<String>>>,
    pub history: Vec<String>,
    /// The sentence that confirms a recovery; empty: not possible now.
    pub sentence: String,
    /// A host is forgotten; otherwise it was found to live meanwhile.
    pub forgets: bool,
}

impl Fake {
    fn hear(&self, request: &impl std::fmt::Debug) {
        self.heard.lock().unwrap().push(format!("{request:?}"));
    }

    fn play(&self) -> Result<Response<Events>, Status> {
        if let Some(status) = &self.refuse {
            return Err(status.clone());
        }
        let script = tokio_stream::iter(self.script.clone());
        if self.hang {
            return Ok(Response::new(Box::pin(script.chain(tokio_stream::pending()))));
        }
        Ok(Response::new(Box::pin(script)))
    }
}

#[tonic::async_trait]
impl Control for Fake {
    type SwitchoverStream = Events;

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        assert!(!request.into_inner().local_only, "the peer must be asked as well");
        let (node_json, unreachable) = (self.nodes.clone(), self.unreachable.clone());
        Ok(Response::new(StatusReply { node_json, unreachable }))
    }

    async fn switchover(
        &self,
        request: Request<SwitchoverRequest>,
    ) -> Result<Response<Events>, Status> {
        self.asked.lock().unwrap().push(request.into_inner());
        self.play()
    }

    type TakeoverStream = Events;

    async fn takeover(
        &self,
        request: Request<TakeoverRequest>,
    ) -> Result<Response<Events>, Status> {
        self.hear(&request.into_inner());
        self.play()
    }

    async fn hold(&self, request: Request<HoldRequest>) -> Result<Response<HoldReply>, Status> {
        let request = request.into_inner();
        self.hear(&request);
        if let Some(status) = &self.refuse {
            return Err(status.clone());
        }
        let message = "vms is held\nhome: no record".to_owned();
        Ok(Response::new(HoldReply { done: request.service == "vms", message }))
    }

    async fn history(
        &self,
        request: Request<HistoryRequest>,
    ) -> Result<Response<HistoryReply>, Status> {
        self.hear(&request.into_inner());
        let (entry_json, unreachable) = (self.history.clone(), self.unreachable.clone());
        Ok(Response::new(HistoryReply { entry_json, unreachable }))
    }

    async fn recover(
        &self,
        request: Request<RecoverRequest>,
    ) -> Result<Response<RecoverReply>, Status> {
        let request = request.into_inner();
        self.hear(&request);
        if request.explain {
            return Ok(Response::new(RecoverReply {
                done: false,
                message: "what may be lost\n  everything\n".into(),
                confirmation: self.sentence.clone(),
                details_json: r#"{"service":"vms"}"#.into(),
            }));
        }
        if let Some(status) = &self.refuse {
            return Err(status.clone());
        }
        let message = "nasd opens vms here".into();
        Ok(Response::new(RecoverReply { done: true, message, ..RecoverReply::default() }))
    }

    async fn forget_host(
        &self,
        request: Request<ForgetHostRequest>,
    ) -> Result<Response<RecoverReply>, Status> {
        let request = request.into_inner();
        self.hear(&request);
        let confirmation = self.sentence.clone();
        if request.explain {
            let message = "what is true now\n  vms on nas1: silent\n".into();
            let details_json = r#"{"host":"hv3"}"#.into();
            return Ok(Response::new(RecoverReply {
                done: false,
                message,
                confirmation,
                details_json,
            }));
        }
        if let Some(status) = &self.refuse {
            return Err(status.clone());
        }
        let done = self.forgets;
        let message = if done { "vms: 1 client(s) expired" } else { "hv3 lives" }.into();
        Ok(Response::new(RecoverReply { done, message, ..RecoverReply::default() }))
    }

    async fn abort_move(
        &self,
        _: Request<AbortMoveRequest>,
    ) -> Result<Response<AbortMoveReply>, Status> {
        let message = if self.aborted { "nas1 serves on" } else { "nothing is under way" };
        Ok(Response::new(AbortMoveReply { aborted: self.aborted, message: message.into() }))
    }
}

/// Runs the fake on a socket in a directory of its own, for as long as the value lives.
pub struct Server {
    dir: TempDir,
    pub asked: Arc<Mutex<Vec<SwitchoverRequest>>>,
    heard: Arc<Mutex<Vec<String>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    pub fn start(fake: Fake) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (asked, heard) = (fake.asked.clone(), fake.heard.clone());
        let listener = {
            let _inside = runtime.enter();
            tokio::net::UnixListener::bind(dir.path().join("s")).unwrap()
        };
        let serve = tonic::transport::Server::builder()
            .add_service(ControlServer::new(fake))
            .serve_with_incoming(UnixListenerStream::new(listener));
        runtime.spawn(serve);
        Self { dir, asked, heard, _runtime: runtime }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    pub fn run(&self, args: &[&str]) -> Output {
        nasctl(&self.socket(), args).output().unwrap()
    }
}

pub fn nasctl(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nasctl"));
    command.arg("--socket").arg(socket).args(args);
    command
}

pub fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub fn json_lines(output: &Output) -> Vec<Value> {
    out(output).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}
