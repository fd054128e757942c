//! The hub's own certificate authority, and the leaf for each name or address by which clients come.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::date_time_ymd;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::ClientHello;
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;

use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::fingerprint::Pin;
use crate::net::trust::provider;
use crate::os::files;
use crate::os::secret;

/// Names that are remembered with their leaf; a client that makes up more gets new leaves, no more memory.
const LEAVES: usize = 256;
/// A leaf is minted anew after this long; it is valid for much longer.
const RENEWAL: Duration = Duration::from_hours(24 * 30);

pub struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// One key for all leaves: what tells them apart is the name.
    leaf_key: KeyPair,
    /// Names that stand in every leaf, for clients that come by an address the hub does not see.
    names: Vec<String>,
    leaves: Mutex<HashMap<String, (Arc<CertifiedKey>, Instant)>>,
}

impl Ca {
    /// Loads the CA from `folder`, or makes it. The key is private before the certificate exists.
    pub fn load_or_make(folder: &Path, names: Vec<String>) -> Result<Self> {
        let (key_file, certificate_file) = (folder.join("ca.key"), folder.join("ca.crt"));
        let key = match files::read_text(&key_file)? {
            Some(pem) => KeyPair::from_pem(&pem).map_err(|error| damaged(&key_file, error))?,
            None => {
                let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
                    .or_say(|| "Cannot make the hub's key")?;
                files::write(&key_file, key.serialize_pem().as_bytes())?;
                key
            }
        };
        let certificate = match files::read(&certificate_file)? {
            Some(pem) => {
                CertificateDer::from_pem_slice(&pem).map_err(|error| damaged(&certificate_file, error))?
            }
            None => {
                let made = ca_params()
                    .and_then(|params| params.self_signed(&key))
                    .or_say(|| "Cannot make the hub's CA")?;
                files::write(&certificate_file, made.pem().as_bytes())?;
                made.der().clone()
            }
        };
        // The stored certificate has the same name and key as these parameters; leaves are signed by them.
        let issuer = Issuer::new(ca_params().or_say(|| "Cannot use the hub's CA")?, key);
        let leaf_key =
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).or_say(|| "Cannot make the hub's key")?;
        Ok(Self { certificate, issuer, leaf_key, names, leaves: Mutex::default() })
    }

    pub fn pin(&self) -> Pin {
        secret::sha256(&self.certificate).pin()
    }

    fn leaf(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let known = self.leaves.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some((leaf, made)) = known
            && made.elapsed() < RENEWAL
        {
            return Some(leaf);
        }
        let leaf =
            self.mint(name).inspect_err(|error| log::debug!("no certificate for a name: {error}")).ok()?;
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if leaves.len() >= LEAVES {
            leaves.clear();
        }
        leaves.insert(name.to_owned(), (Arc::clone(&leaf), Instant::now()));
        Some(leaf)
    }

    fn mint(&self, name: &str) -> Result<Arc<CertifiedKey>> {
        let sorry = || "Cannot mint a certificate";
        let mut names = vec![name.to_owned()];
        names.extend(self.names.iter().filter(|known| *known != name).cloned());
        let mut params = CertificateParams::new(names).or_say(sorry)?;
        params.distinguished_name.push(DnType::CommonName, "connect hub");
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&self.leaf_key, &self.issuer).or_say(sorry)?;
        let key = PrivateKeyDer::from_pem_slice(self.leaf_key.serialize_pem().as_bytes());
        let key = key.map_err(|_| Error::new(sorry()))?;
        let key = provider().key_provider.load_private_key(key).or_say(sorry)?;
        Ok(Arc::new(CertifiedKey::new(vec![leaf.der().clone(), self.certificate.clone()], key)))
    }
}

/// Valid for as long as rcgen's default says (to the year 4096): a hub's CA is replaced with its pin, not by the calendar.
fn ca_params() -> std::result::Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "connect hub CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2024, 1, 1);
    Ok(params)
}

fn damaged(path: &Path, error: impl fmt::Display) -> Error {
    Error::new(format!("{} is damaged: {error}", path.display()))
        .hint("Restore it from a backup. Without it every client needs a new key: move the certs folder away and start again")
}

/// The TLS settings for one connection: the leaf is for the name that the client asked for, else for the
/// address by which it came.
pub fn server_config(ca: &Arc<Ca>, base: &ServerConfig, local: IpAddr) -> Arc<ServerConfig> {
    let mut config = base.clone();
    config.cert_resolver = Arc::new(LeafFor { ca: Arc::clone(ca), local });
    Arc::new(config)
}

pub fn base_config(ca: &Arc<Ca>) -> Result<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let resolver = LeafFor { ca: Arc::clone(ca), local: IpAddr::from([127, 0, 0, 1]) };
    let mut config =
        builder.or_say(|| "Cannot set up TLS")?.with_no_client_auth().with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

struct LeafFor {
    ca: Arc<Ca>,
    local: IpAddr,
}

impl fmt::Debug for LeafFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LeafFor({})", self.local)
    }
}

impl ResolvesServerCert for LeafFor {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match hello.server_name() {
            Some(name) => self.ca.leaf(&name.to_ascii_lowercase()),
            None => self.ca.leaf(&self.local.to_canonical().to_string()),
        }
    }
}
