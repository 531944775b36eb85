//! How connections to other nasds and to etcd are made: with one limit for all of it.
//!
//! Keeps S8. tonic's own connector puts its limit on TCP only. A kernel that accepts for a program that is
//! stopped, or a node that dies just then, would hold the TLS handshake, and so the channel, for minutes.

use std::io;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// A channel that connects at its first use, and again whenever it is needed. The endpoint's
/// `connect_timeout` covers everything up to the end of the TLS handshake.
pub fn lazily(endpoint: &Endpoint) -> Channel {
    endpoint.connect_with_connector_lazy(tower::service_fn(connect))
}

async fn connect(to: Uri) -> io::Result<TokioIo<TcpStream>> {
    let (host, port) = place(&to).ok_or(io::ErrorKind::InvalidInput)?;
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(TokioIo::new(stream))
}

/// Host, without the brackets of an IPv6 address, and port; the scheme's port if none is named.
fn place(uri: &Uri) -> Option<(&str, u16)> {
    let host = uri.host()?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    Some((host, uri.port_u16().unwrap_or(usual)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_host_and_a_port() {
        let of = |uri: &'static str| {
            let uri = Uri::from_static(uri);
            place(&uri).map(|(host, port)| (host.to_owned(), port))
        };
        assert_eq!(of("https://10.77.0.11:2379"), Some(("10.77.0.11".into(), 2379)));
        assert_eq!(of("https://[fd77::11]:2379/"), Some(("fd77::11".into(), 2379)));
        assert_eq!(of("http://etcd3"), Some(("etcd3".into(), 80)));
        assert_eq!(of("https://etcd3"), Some(("etcd3".into(), 443)));
    }
}
