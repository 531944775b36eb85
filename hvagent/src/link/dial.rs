//! How a nasd is dialled: TLS with this host's certificate, one limit for TCP and handshake together.
//!
//! Keeps S8: tonic's own connector limits TCP only, and a node that dies in the handshake would hold the
//! attempt for minutes.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::config::TlsPaths;

/// For TCP and TLS.
const CONNECT: Duration = Duration::from_secs(3);
/// A nasd that is silent for the sum of both is gone.
const ALIVE_EVERY: Duration = Duration::from_secs(3);
const ALIVE_WITHIN: Duration = Duration::from_secs(3);

/// Why a nasd cannot be dialled at all.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// A key file.
    #[error("{} cannot be read ({source}); check [peer] in the configuration", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Keys that are none.
    #[error(
        "the keys of [peer] cannot be used ({0}); they must be PEM, and the key that of the certificate"
    )]
    Tls(String),
}

/// A channel that connects at its first use. The key files are read each time: they may be renewed.
///
/// # Errors
/// The keys cannot be used.
pub fn channel(
    address: SocketAddr,
    name: &str,
    tls: Option<&TlsPaths>,
) -> Result<Channel, DialError> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(|error| DialError::Tls(error.to_string()))?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(ALIVE_EVERY)
        .keep_alive_timeout(ALIVE_WITHIN)
        .keep_alive_while_idle(true);
    let endpoint = match tls {
        None => endpoint,
        Some(paths) => endpoint
            .tls_config(client(paths, name)?)
            .map_err(|error| DialError::Tls(error.to_string()))?,
    };
    let connect = move |_| async move {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok::<_, io::Error>(TokioIo::new(stream))
    };
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(connect)))
}

fn client(paths: &TlsPaths, name: &str) -> Result<ClientTlsConfig, DialError> {
    let ca = Certificate::from_pem(read(&paths.ca)?);
    let identity = Identity::from_pem(read(&paths.cert)?, read(&paths.key)?);
    Ok(ClientTlsConfig::new().ca_certificate(ca).identity(identity).domain_name(name))
}

fn read(path: &Path) -> Result<Vec<u8>, DialError> {
    std::fs::read(path).map_err(|source| DialError::Key { path: path.to_owned(), source })
}
