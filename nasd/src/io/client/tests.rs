//! Tests of the client against a real nasd-io server on a socket of the test's own.

use super::*;
use crate::io::server::{Identity, Shared, serve};

const LONG: Duration = Duration::from_secs(5);
const NETNS: &str = "/proc/thread-self/ns/net";

/// A real server side, in a thread of this process.
fn serving(dir: &Path) -> PathBuf {
    let socket = dir.join("io.sock");
    let identity = Identity { service: "s".into(), netns: NETNS.into() };
    let shared = Shared::new(identity).unwrap();
    let path = socket.clone();
    std::thread::spawn(move || serve(&path, shared).unwrap());
    socket
}

async fn connected(socket: &Path) -> Client {
    for _ in 0..500 {
        if let Ok(client) = Client::connect(socket).await {
            return client;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("nobody listens");
}

#[tokio::test]
async fn calls_and_refusals_travel() {
    let dir = tempfile::tempdir().unwrap();
    let client = connected(&serving(dir.path())).await;
    assert!(!client.hello("s", Path::new(NETNS), LONG).await.unwrap());
    let stranger = client.hello("other", Path::new(NETNS), LONG).await.unwrap_err();
    assert!(matches!(stranger.refusal(), Some(Refusal::Stranger { .. })), "{stranger}");
    let target: PathBuf = dir.path().into();
    let state = client.call(Op::MountState { target: "/proc".into() }, LONG).await.unwrap();
    assert!(matches!(state, Answer::MountState { mount: Some(_) }));
    let canary = client.timed(Op::Canary { target: target.clone() }, LONG).await.unwrap_err();
    assert_eq!(canary.refusal(), Some(&Refusal::NotMounted { target }));
}

#[tokio::test]
async fn many_calls_at_once_get_their_own_answers() {
    let dir = tempfile::tempdir().unwrap();
    let client = connected(&serving(dir.path())).await;
    let calls = (0..40).map(|n| {
        let client = client.clone();
        let target = PathBuf::from(if n % 2 == 0 { "/proc" } else { "/nonexistent" });
        async move { (n, client.call(Op::MountState { target }, LONG).await.unwrap()) }
    });
    for (n, answer) in futures_util::future::join_all(calls).await {
        let Answer::MountState { mount } = answer else { panic!("{answer:?}") };
        assert_eq!(mount.is_some(), n % 2 == 0);
    }
}

/// A server side that takes requests and never answers the first.
async fn mute(socket: &Path) -> tokio::task::JoinHandle<()> {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        lines.next_line().await.unwrap();
        let second: Request =
            serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
        let response = Response { id: second.id, outcome: Outcome::Ok(Answer::Done) };
        let line = serde_json::to_string(&response).unwrap() + "\n";
        writer.write_all(line.as_bytes()).await.unwrap();
        lines.next_line().await.unwrap();
    })
}

#[tokio::test]
async fn s8_a_hanging_call_ends_at_its_deadline_and_blocks_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("io.sock");
    let side = mute(&socket).await;
    let client = connected(&socket).await;
    let short = Duration::from_millis(30);
    let hung = client.call(Op::ServerStop, short).await.unwrap_err();
    assert!(matches!(hung, CallError::Deadline { op: "server_stop", .. }), "{hung}");
    assert_eq!(client.call(Op::Exit, LONG).await.unwrap(), Answer::Done);
    let waiting = client.clone();
    let waiting = tokio::spawn(async move { waiting.call(Op::Records, LONG).await });
    side.await.unwrap();
    let gone = waiting.await.unwrap().unwrap_err();
    assert!(matches!(gone, CallError::Gone { op: "records" }), "{gone}");
    assert!(!client.is_connected());
    assert!(matches!(client.call(Op::Records, LONG).await, Err(CallError::Gone { .. })));
}

#[tokio::test]
async fn launcher_finds_the_living_process_and_names_what_fails() {
    let dir = tempfile::tempdir().unwrap();
    let launcher = Launcher {
        program: "/nonexistent/nasd-io".into(),
        socket: serving(dir.path()),
        service: "s".into(),
        netns: NETNS.into(),
    };
    drop(connected(&launcher.socket).await);
    launcher.connect(LONG).await.unwrap();
    let nowhere = Launcher { socket: dir.path().join("none"), ..launcher.clone() };
    assert!(matches!(nowhere.connect(LONG).await, Err(LaunchError::Start { .. })));
    let silent = Launcher { program: "/bin/true".into(), ..nowhere };
    let short = Duration::from_millis(50);
    assert!(matches!(silent.connect(short).await, Err(LaunchError::Silent { .. })));
}
