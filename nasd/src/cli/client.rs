//! The connection to nasd's control socket. Owns deadlines (S8) and the errors that say what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use nasd_proto::control_client::ControlClient;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

/// Deadline for the connection: nasd accepts at once or is stuck.
pub const CONNECT: Duration = Duration::from_secs(2);
/// Deadline for a call that answers once (nasd itself asks its peer within this).
pub const CALL: Duration = Duration::from_secs(10);

/// Why nasctl has no answer, and what to do.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No socket, or nobody listens on it.
    #[error(
        "nasd does not run on this machine: {}: {source}\n  see: systemctl status nasd\n  start it: systemctl start nasd",
        .socket.display()
    )]
    NotRunning {
        /// The socket that was tried.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket is there, but not for us.
    #[error("{}: {source}\n  run nasctl as root", .socket.display())]
    Forbidden {
        /// The socket that was tried.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// nasd holds the socket and does not answer.
    #[error(
        "nasd did not answer within {} s: it is stuck\n  see: systemctl status nasd; journalctl -u nasd -n 50",
        .after.as_secs()
    )]
    Silent {
        /// The deadline that passed.
        after: Duration,
    },
    /// Something answered, but not as nasd does.
    #[error(
        "no nasd of a matching version answers on the socket: {0}\n  see: systemctl status nasd"
    )]
    Foreign(#[from] tonic::transport::Error),
    /// nasd answered with an error.
    #[error("nasd refused: {}\n  see: journalctl -u nasd -n 50", .0.message())]
    Refused(#[from] Box<tonic::Status>),
    /// nasctl itself could not start.
    #[error("nasctl cannot start: {0}")]
    Runtime(#[source] io::Error),
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        Self::Refused(Box::new(status))
    }
}

/// Connects to nasd. The channel never reconnects: a new nasd knows nothing of our call.
///
/// # Errors
/// When nothing listens, access is denied, or [`CONNECT`] has passed.
pub async fn connect(socket: &Path) -> Result<ControlClient<Channel>, ClientError> {
    let stream = within(CONNECT, UnixStream::connect(socket)).await?;
    let stream = stream.map_err(|source| no_socket(socket, source))?;
    let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    // The name is never looked up; HTTP/2 wants one.
    let endpoint = Endpoint::from_static("http://nasd").connect_timeout(CONNECT);
    Ok(ControlClient::new(within(CONNECT, endpoint.connect_with_connector(connector)).await??))
}

/// Awaits `future` at most for `limit`.
///
/// # Errors
/// [`ClientError::Silent`] when the limit has passed.
pub async fn within<F: Future>(limit: Duration, future: F) -> Result<F::Output, ClientError> {
    timeout(limit, future).await.map_err(|_| ClientError::Silent { after: limit })
}

fn no_socket(socket: &Path, source: io::Error) -> ClientError {
    let socket = socket.to_owned();
    match source.kind() {
        io::ErrorKind::PermissionDenied => ClientError::Forbidden { socket, source },
        _ => ClientError::NotRunning { socket, source },
    }
}
