//! Certificates of a lab: an authority of its own and one certificate per node, for etcd and for nasd.

use std::net::IpAddr;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::error::LabError;
use crate::spec::Node;

/// A lab's authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub certificate: String,
}

/// A node's certificate and key.
pub struct Identity {
    /// PEM.
    pub certificate: String,
    /// PEM, PKCS #8.
    pub key: String,
}

impl Authority {
    /// A new authority with a new key.
    ///
    /// # Errors
    /// [`LabError::Pki`].
    pub fn new() -> Result<Self, LabError> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, "nasd lab");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// A certificate for the node's name and all its addresses, good for both ends of a connection.
    ///
    /// # Errors
    /// [`LabError::Pki`].
    pub fn identity(&self, node: &Node) -> Result<Identity, LabError> {
        let names = vec![node.name.clone(), "localhost".to_owned()];
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, node.name.as_str());
        let addresses: [IpAddr; 4] = [
            node.address().into(),
            node.address6().into(),
            node.management().into(),
            IpAddr::from([127, 0, 0, 1]),
        ];
        params.subject_alt_names.extend(addresses.map(SanType::IpAddress));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Identity { certificate, key: key.serialize_pem() })
    }
}
