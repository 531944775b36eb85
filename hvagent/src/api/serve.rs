//! The socket: one question, one answer, and the connection ends. Rubbish gets an error and changes nothing.
//!
//! Keeps S10: a caller that says nothing is dropped after a while, and only so many may wait at a time.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::{LONGEST_LINE, Question, Reply};

/// For a question, and for its answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Callers at a time.
const CALLERS: usize = 16;
/// After a failed accept (no descriptors left).
const PAUSE: Duration = Duration::from_millis(200);

/// A question with the way back of its answer, which is one line of JSON.
pub type Asked = (Question, oneshot::Sender<String>);

/// Why nobody can ask.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent answers there.
    #[error("an agent already answers on {}: stop it first", .0.display())]
    Taken(PathBuf),
    /// It cannot be made.
    #[error("the socket {} cannot be made ({source}); run as root, with its directory there", path.display())]
    Unusable {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Listens there, for root and its group only; a socket that a dead agent left is replaced.
///
/// # Errors
/// Taken, or not to be made.
pub async fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    if matches!(timeout(LIMIT, UnixStream::connect(path)).await, Ok(Ok(_)) | Err(_)) {
        return Err(SocketError::Taken(path.to_owned()));
    }
    bind(path).map_err(|source| SocketError::Unusable { path: path.to_owned(), source })
}

fn bind(path: &Path) -> std::io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Answers until the agent is gone.
pub async fn run(listener: UnixListener, agent: mpsc::Sender<Asked>) {
    let callers = Arc::new(Semaphore::new(CALLERS));
    loop {
        let Ok(caller) = callers.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let agent = agent.clone();
        tokio::spawn(async move {
            attend(stream, agent).await;
            drop(caller);
        });
    }
}

async fn attend(mut stream: UnixStream, agent: mpsc::Sender<Asked>) {
    let Ok(Some(line)) = timeout(LIMIT, question(&mut stream)).await else { return };
    let mut answer = match serde_json::from_slice::<Question>(&line) {
        Ok(question) => timeout(LIMIT, ask(&agent, question)).await.ok().flatten(),
        Err(error) => Some(json(&Reply::Error(format!("not a question: {error}")))),
    }
    .unwrap_or_else(|| json(&Reply::Error("the agent is busy or ending".to_owned())));
    answer.push('\n');
    let _ = timeout(LIMIT, stream.write_all(answer.as_bytes())).await;
}

/// A line, or what came until the end; `None` where it is too long or broke.
async fn question(stream: &mut UnixStream) -> Option<Vec<u8>> {
    let limit = u64::try_from(LONGEST_LINE).ok()?;
    let mut line = Vec::new();
    let mut reader = BufReader::new(stream).take(limit);
    reader.read_until(b'\n', &mut line).await.ok()?;
    (!line.is_empty() && line.len() < LONGEST_LINE).then_some(line)
}

async fn ask(agent: &mpsc::Sender<Asked>, question: Question) -> Option<String> {
    let (back, answer) = oneshot::channel();
    agent.send((question, back)).await.ok()?;
    answer.await.ok()
}

/// As one line.
#[must_use]
pub fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Hook, Operation, Verdict};

    async fn said(path: &Path, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Answers every hook with a wait.
    async fn agent() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/socket");
        let listener = listen(&path).await.unwrap();
        let (ask, mut asked) = mpsc::channel::<Asked>(4);
        tokio::spawn(run(listener, ask));
        tokio::spawn(async move {
            while let Some((question, back)) = asked.recv().await {
                let verdict = Verdict::Wait { wait_ms: 7, reason: format!("{question:?}") };
                let _ = back.send(json(&verdict));
            }
        });
        (dir, path)
    }

    #[tokio::test]
    async fn a_question_is_answered() {
        let (_dir, path) = agent().await;
        let hook = Question::Hook(Hook {
            operation: Operation::Migrate,
            domain: "vm1".into(),
            uuid: None,
            disks: vec!["/vm/1.raw".into()],
        });
        let answer = said(&path, format!("{}\n", json(&hook)).as_bytes()).await;
        let verdict: Verdict = serde_json::from_str(&answer).unwrap();
        assert!(matches!(verdict, Verdict::Wait { wait_ms: 7, .. }));
        assert!(said(&path, b"{\"ask\":\"status\"}").await.contains("Status"), "no line end");
    }

    #[tokio::test]
    async fn rubbish_is_refused_and_nothing_breaks() {
        let (_dir, path) = agent().await;
        for rubbish in
            ["\n", "{}\n", "{\"ask\":\"reboot\"}\n", "{\"ask\":\"hook\"}\n", "\u{0}\u{7}\n"]
        {
            let answer = said(&path, rubbish.as_bytes()).await;
            assert!(answer.starts_with("{\"error\":"), "{rubbish:?} {answer:?}");
        }
        assert!(said(&path, b"{\"ask\":\"status\"}\n").await.contains("Status"));
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_kept() {
        let (_dir, path) = agent().await;
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let _ = stream.write_all(&vec![b'x'; LONGEST_LINE + 1]).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert_eq!(answer, b"");
        assert!(said(&path, b"{\"ask\":\"status\"}\n").await.contains("Status"));
    }

    #[tokio::test(start_paused = true)]
    async fn callers_who_say_nothing_do_not_lock_others_out() {
        let (_dir, path) = agent().await;
        let mut silent = Vec::new();
        for _ in 0..(2 * CALLERS) {
            silent.push(UnixStream::connect(&path).await.unwrap());
        }
        assert!(said(&path, b"{\"ask\":\"status\"}\n").await.contains("Status"));
    }

    #[tokio::test]
    async fn a_second_agent_is_refused_and_a_dead_ones_socket_replaced() {
        let (_dir, path) = agent().await;
        assert!(matches!(listen(&path).await, Err(SocketError::Taken(_))));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(listen(&path).await.unwrap());
        assert!(path.exists());
        listen(&path).await.unwrap();
    }
}
