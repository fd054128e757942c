//! A self-signed certificate and its key: who an agent or joiner is, whatever the hub says.

use std::sync::Arc;

use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::fingerprint::Fingerprint;
use crate::os::secret;

#[derive(Clone)]
pub struct Identity {
    pub certificate: CertificateDer<'static>,
    pub key: Arc<PrivateKeyDer<'static>>,
    pub fingerprint: Fingerprint,
}

impl Identity {
    /// A new ECDSA P-256 identity, as the text that `parse` reads.
    pub fn generate() -> Result<String> {
        let cannot = || "Cannot make an identity";
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).or_say(cannot)?;
        let mut params = CertificateParams::new(Vec::new()).or_say(cannot)?;
        params.distinguished_name.push(DnType::CommonName, "connect identity");
        let certificate = params.self_signed(&key).or_say(cannot)?;
        Ok(format!("{}{}", certificate.pem(), key.serialize_pem()))
    }

    pub fn parse(pem: &[u8]) -> Result<Self> {
        let broken = || Error::new("It holds no certificate with its key");
        let certificate = CertificateDer::from_pem_slice(pem).map_err(|_| broken())?;
        let key = Arc::new(PrivateKeyDer::from_pem_slice(pem).map_err(|_| broken())?);
        let fingerprint = secret::sha256(&certificate);
        Ok(Self { certificate, key, fingerprint })
    }
}
