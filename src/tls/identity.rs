//! A self-signed certificate and its key: who an agent or joiner is, whatever the hub says. An identity that replaces another
//! is signed by that one instead, so that whoever knows the old one can accept the new one.

use std::sync::Arc;

use rcgen::Certificate;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::Issuer;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::fingerprint::Fingerprint;
use crate::os::secret;

/// The name in the certificate of an identity that replaces another.
pub const SUCCESSOR: &str = "successor.identity";
/// Identities that one chain names. Who has not looked for so many rotations must accept the new one by hand.
pub const CHAIN_LIMIT: usize = 8;
const CERTIFICATE_END: &str = "-----END CERTIFICATE-----\n";
const KEY_BEGIN: &str = "-----BEGIN PRIVATE KEY-----";

#[derive(Clone, Debug)]
pub struct Identity {
    pub certificate: CertificateDer<'static>,
    pub key: Arc<PrivateKeyDer<'static>>,
    pub fingerprint: Fingerprint,
    /// As PEM: its certificate, and those of the identities that it has replaced, the latest first.
    pub chain: String,
}

impl Identity {
    /// A new ECDSA P-256 identity, as the text that `parse` reads.
    pub fn generate(replaced: Option<&Self>) -> Result<String> {
        let cannot = || "Cannot make an identity";
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).or_say(cannot)?;
        let Some(replaced) = replaced else {
            let certificate = params(None).and_then(|params| params.self_signed(&key)).or_say(cannot)?;
            return Ok(format!("{}{}", certificate.pem(), key.serialize_pem()));
        };
        let before = replaced.chain.split_inclusive(CERTIFICATE_END).take(CHAIN_LIMIT - 1);
        let certificate = replaced.sign(SUCCESSOR, &key)?.pem();
        Ok(format!("{certificate}{}{}", before.collect::<String>(), key.serialize_pem()))
    }

    pub fn parse(pem: &[u8]) -> Result<Self> {
        let broken = || Error::new("It holds no certificate with its key");
        let certificate = CertificateDer::from_pem_slice(pem).map_err(|_| broken())?;
        let key = Arc::new(PrivateKeyDer::from_pem_slice(pem).map_err(|_| broken())?);
        let fingerprint = secret::sha256(&certificate);
        let text = String::from_utf8_lossy(pem);
        let chain = text.split(KEY_BEGIN).next().unwrap_or_default().to_owned();
        Ok(Self { certificate, key, fingerprint, chain })
    }

    /// A certificate by which this identity says that the holder of the key speaks for its agent. Both ends can check
    /// certificates anyway, so no other form of signature is needed. It names the key, so nobody else can use it.
    pub fn speaks_for(&self, agent: &str, key_hash: &str) -> Result<String> {
        let own = KeyPair::try_from(&*self.key).or_say(|| "Cannot use this machine's identity")?;
        Ok(self.sign(&statement(agent, key_hash), &own)?.pem())
    }

    fn sign(&self, name: &str, key: &KeyPair) -> Result<Certificate> {
        let cannot = || "Cannot use this machine's identity";
        let own = KeyPair::try_from(&*self.key).or_say(cannot)?;
        let issuer = Issuer::new(params(None).or_say(cannot)?, own);
        params(Some(name)).and_then(|params| params.signed_by(key, &issuer)).or_say(cannot)
    }
}

fn params(name: Option<&str>) -> std::result::Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(name.map(str::to_owned).into_iter().collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, "connect identity");
    Ok(params)
}

/// What an identity says of its agent and a key, as the name in a certificate.
pub fn statement(agent: &str, key_hash: &str) -> String {
    format!("{}.agent.identity", secret::sha256(format!("{agent} {key_hash}").as_bytes()).pin())
}
