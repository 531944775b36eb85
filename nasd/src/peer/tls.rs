//! This node's certificate and the authority that both nodes trust.

use std::io;
use std::path::{Path, PathBuf};

use rustls_pki_types::{CertificateDer, ServerName};
use thiserror::Error;
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};
use tonic::{Request, Status};

use crate::config::TlsPaths;

/// A key file that cannot be used.
#[derive(Debug, Error)]
#[error("cannot read {path}: {source}; check [peer] in the configuration", path = path.display())]
pub struct TlsError {
    path: PathBuf,
    source: io::Error,
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError { path: path.to_owned(), source })
}

fn material(paths: &TlsPaths) -> Result<(Certificate, Identity), TlsError> {
    let ca = Certificate::from_pem(read(&paths.ca)?);
    let identity = Identity::from_pem(read(&paths.cert)?, read(&paths.key)?);
    Ok((ca, identity))
}

/// For calling the node with this name.
///
/// # Errors
/// When a file cannot be read.
pub fn client(paths: &TlsPaths, peer_name: &str) -> Result<ClientTlsConfig, TlsError> {
    let (ca, identity) = material(paths)?;
    Ok(ClientTlsConfig::new().ca_certificate(ca).identity(identity).domain_name(peer_name))
}

/// For answering: a client without a certificate of the same authority is refused.
///
/// # Errors
/// When a file cannot be read.
pub fn server(paths: &TlsPaths) -> Result<ServerTlsConfig, TlsError> {
    let (ca, identity) = material(paths)?;
    Ok(ServerTlsConfig::new().identity(identity).client_ca_root(ca))
}

/// Who calls: the certificate that the handshake has verified against our authority.
#[derive(Debug, Clone, Default)]
pub struct Bearer {
    certificate: Option<CertificateDer<'static>>,
}

impl Bearer {
    /// The caller of a request; one without a certificate is nobody.
    #[must_use]
    pub fn of<T>(request: &Request<T>) -> Self {
        let all = request.peer_certs();
        Self { certificate: all.and_then(|all| all.first().cloned()) }
    }

    /// Whether the certificate bears that name.
    #[must_use]
    pub fn is(&self, name: &str) -> bool {
        let Ok(name) = ServerName::try_from(name) else { return false };
        let certificate = self.certificate.as_ref().map(webpki::EndEntityCert::try_from);
        let Some(Ok(certificate)) = certificate else { return false };
        certificate.verify_is_valid_for_subject_name(&name).is_ok()
    }
}

/// Refuses a caller whose certificate is not the other node's: the authority that signs the nodes'
/// certificates may sign others as well.
///
/// # Errors
/// `PERMISSION_DENIED`, with what was expected.
pub fn admit(request: &Request<()>, node: &str) -> Result<(), Status> {
    if Bearer::of(request).is(node) {
        return Ok(());
    }
    Err(Status::permission_denied(format!(
        "only {node} may call here; its certificate must name it"
    )))
}

/// Keys for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// An authority, and a node's certificate that is good for a name and for loopback addresses.
    pub(crate) fn keys(dir: &Path, name: &str) -> TlsPaths {
        keys_of_all(dir, &[name]).remove(0)
    }

    /// One authority, and a certificate for each name.
    pub(crate) fn keys_of_all(dir: &Path, names: &[&str]) -> Vec<TlsPaths> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(params, key);
        let write = |file: String, text: String| {
            let path = dir.join(file);
            std::fs::write(&path, text).unwrap();
            path
        };
        let one = |name: &&str| {
            let all = vec![(*name).to_owned(), "127.0.0.1".to_owned()];
            let key = rcgen::KeyPair::generate().unwrap();
            let node =
                rcgen::CertificateParams::new(all).unwrap().signed_by(&key, &issuer).unwrap();
            TlsPaths {
                ca: write("ca.pem".into(), ca.clone()),
                cert: write(format!("{name}.pem"), node.pem()),
                key: write(format!("{name}.key"), key.serialize_pem()),
            }
        };
        names.iter().map(one).collect()
    }
}
