//! Socket, connections, lines.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::super::{Op, Outcome, Refusal, Request, Response};
use super::Shared;

/// Longest request line. Exports of a service are a few kilobytes.
const LINE_MAX: u64 = 1 << 20;
/// A caller that does not take its answers for this long has lost them.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// Why the process cannot listen; it must end.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process of this service lives: two must never touch the same volume.
    #[error("another process listens on {}", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// The socket or its lock file cannot be made.
    #[error("cannot listen on {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Listens on `path` (mode 0600) until the process ends.
///
/// # Errors
/// [`ListenError::Taken`] while another process holds the lock beside the socket.
pub fn serve(path: &Path, shared: Shared) -> Result<std::convert::Infallible, ListenError> {
    let _lock = take_lock(path)?;
    let listener = bind(path).map_err(|source| ListenError::Io { path: path.into(), source })?;
    let shared = Arc::new(shared);
    loop {
        match listener.accept() {
            Ok((stream, _)) => connected(stream, Arc::clone(&shared)),
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn take_lock(path: &Path) -> Result<File, ListenError> {
    let lock = path.with_extension("lock");
    let io = |source| ListenError::Io { path: lock.clone(), source };
    let file = File::options().create(true).append(true).open(&lock).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(ListenError::Taken { path: path.into() }),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

/// Under the lock an old socket file is a dead one. The new one gets its mode before its name.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let aside = path.with_extension("new");
    for stale in [path, &aside] {
        if let Err(error) = fs::remove_file(stale)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
    }
    let listener = UnixListener::bind(&aside)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o600))?;
    fs::rename(&aside, path)?;
    Ok(listener)
}

fn connected(stream: UnixStream, shared: Arc<Shared>) {
    let spawned =
        thread::Builder::new().name("connection".into()).spawn(move || converse(stream, &shared));
    if let Err(error) = spawned {
        tracing::error!(%error, "no thread for a connection");
    }
}

fn converse(stream: UnixStream, shared: &Arc<Shared>) {
    let (Ok(writing), Ok(())) = (stream.try_clone(), stream.set_write_timeout(Some(WRITE_LIMIT)))
    else {
        return;
    };
    let writer = Arc::new(Mutex::new(writing));
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if line.last() != Some(&b'\n') => return,
            Ok(_) => take_line(&line, shared, &writer),
        }
    }
}

fn take_line(line: &[u8], shared: &Arc<Shared>, writer: &Arc<Mutex<UnixStream>>) {
    match serde_json::from_slice::<Request>(line) {
        Ok(request) => start(request, Arc::clone(shared), Arc::clone(writer)),
        Err(error) => {
            let text = error.to_string();
            tracing::warn!(%text, "request not understood");
            let id = request_id(line);
            answer(writer, id, Err(Refusal::NotUnderstood { text }));
        }
    }
}

/// The id of a request that is otherwise not understood; 0 if it has none.
fn request_id(line: &[u8]) -> u64 {
    let value = serde_json::from_slice::<serde_json::Value>(line).unwrap_or_default();
    value.get("id").and_then(serde_json::Value::as_u64).unwrap_or_default()
}

fn start(request: Request, shared: Arc<Shared>, writer: Arc<Mutex<UnixStream>>) {
    let (id, failed) = (request.id, Arc::clone(&writer));
    let work = move || {
        let name = request.op.name();
        let exiting = matches!(request.op, Op::Exit);
        let outcome = guarded(name, || shared.carry_out(request.op));
        if let Err(refusal) = &outcome {
            tracing::warn!(op = name, id, %refusal, "refused");
        }
        let done = outcome.is_ok();
        answer(&writer, id, outcome);
        if exiting && done {
            std::process::exit(0);
        }
    };
    if thread::Builder::new().name("request".into()).spawn(work).is_err() {
        answer(&failed, id, Err(Refusal::Overloaded));
    }
}

/// A defect must not leave the caller without an answer.
fn guarded(
    op: &str,
    work: impl FnOnce() -> Result<super::Answer, Refusal>,
) -> Result<super::Answer, Refusal> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| cause.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(Refusal::Crashed { op: op.into(), text })
    })
}

fn answer(writer: &Mutex<UnixStream>, id: u64, outcome: Result<super::Answer, Refusal>) {
    let outcome = outcome.map_or_else(Outcome::Error, Outcome::Ok);
    let Ok(mut line) = serde_json::to_vec(&Response { id, outcome }) else { return };
    line.push(b'\n');
    let mut stream = writer.lock().unwrap_or_else(PoisonError::into_inner);
    if let Err(error) = stream.write_all(&line) {
        tracing::warn!(%error, id, "answer not taken");
        // Half a line may be out: the connection is of no more use.
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("io.sock");
        let _held = take_lock(&socket).unwrap();
        assert!(matches!(take_lock(&socket), Err(ListenError::Taken { .. })));
    }

    #[test]
    fn socket_replaces_a_dead_one_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("io.sock");
        drop(bind(&socket).unwrap());
        let _listener = bind(&socket).unwrap();
        assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&socket).unwrap();
    }

    #[test]
    fn a_defect_becomes_an_answer() {
        let outcome = guarded("canary", || panic!("broken"));
        let Err(Refusal::Crashed { op, text }) = outcome else { panic!("{outcome:?}") };
        assert_eq!((op.as_str(), text.as_str()), ("canary", "broken"));
    }

    #[test]
    fn id_is_found_in_requests_that_make_no_sense() {
        assert_eq!(request_id(br#"{"id":9,"op":"fly"}"#), 9);
        assert_eq!(request_id(b"garbage"), 0);
    }
}
