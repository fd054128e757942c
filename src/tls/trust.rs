//! Who is believed: the hub by its pin or by roots, the other end of a session by its fingerprint.

use std::path::Path;
use std::slice;
use std::sync::Arc;
use std::sync::Mutex;

use rustls::CertificateError;
use rustls::ClientConfig;
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::SignatureScheme;
use rustls::client::Resumption;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;
use rustls::server::danger::ClientCertVerified;
use rustls::server::danger::ClientCertVerifier;

use super::identity::Identity;
use super::provider::peer_provider;
use super::provider::provider;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::fingerprint::Fingerprint;
use crate::model::fingerprint::Pin;
use crate::model::hub_trust::HubTrust;
use crate::os::lock::locked;
use crate::os::secret;

/// Where systems keep the roots that their administrator chose.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The pin of the hub's root. It may change from one handshake to the next.
pub type KnownRoot = Arc<Mutex<Pin>>;

/// A client's settings, and the root that counts in its handshakes if the server is known by a pin.
#[derive(Clone)]
pub struct ClientTls {
    pub config: Arc<ClientConfig>,
    pub root: Option<KnownRoot>,
}

/// For the HTTP API and the control channel.
pub fn hub_client(trust: &HubTrust) -> Result<ClientTls> {
    let mut root = None;
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        HubTrust::Pin(pin) => {
            let known = root.insert(KnownRoot::new(Mutex::new(*pin)));
            Arc::new(CertificateCheck::Pin(Arc::clone(known)))
        }
        HubTrust::Roots(pem) => verifier_of(parse_roots(pem)?)?,
        HubTrust::Public => verifier_of(public_roots())?,
    };
    let mut config = client_checking(verifier, peer_provider())?;
    // A resumed session shows no certificate, so its client would not learn of a new root.
    config.resumption = Resumption::disabled();
    Ok(ClientTls { config: Arc::new(config), root })
}

/// For the joiner's end of a session. Anybody but the expected agent gets a hello and an alert, and sees no certificate of
/// ours. Whose it was is looked at again after the handshake.
pub fn session_client(identity: &Identity, agent: Fingerprint) -> Result<Arc<ClientConfig>> {
    let builder = ClientConfig::builder_with_provider(peer_provider())
        .with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = builder.or_say(|| "Cannot set up TLS")?.dangerous();
    let builder = builder.with_custom_certificate_verifier(Arc::new(CertificateCheck::Only(agent)));
    let config = builder.with_client_auth_cert(vec![identity.certificate.clone()], identity.key.clone_key());
    config.map(Arc::new).or_say(|| "Cannot use this machine's identity")
}

/// For the agent's end of a session: any certificate that proves its key. Whose it must be is looked at after the
/// handshake, where a resumed one is looked at too.
pub fn session_server(identity: &Identity) -> Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(peer_provider())
        .with_protocol_versions(&[&rustls::version::TLS13]);
    let builder = builder
        .or_say(|| "Cannot set up TLS")?
        .with_client_cert_verifier(Arc::new(CertificateCheck::Anyone(None)));
    let config = builder.with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key());
    config.map(Arc::new).or_say(|| "Cannot use this machine's identity")
}

/// Whether a client that trusts `ca` believes this leaf for `name`.
pub fn vouches(ca: &CertificateDer<'_>, leaf: &CertificateDer<'_>, name: &str) -> bool {
    is_proved_by(secret::sha256(ca).pin(), leaf, slice::from_ref(ca), name)
}

fn is_proved_by(pin: Pin, leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>], name: &str) -> bool {
    let check = CertificateCheck::Pin(KnownRoot::new(Mutex::new(pin)));
    ServerName::try_from(name.to_owned())
        .is_ok_and(|name| check.verify_server_cert(leaf, chain, &name, &[], UnixTime::now()).is_ok())
}

/// The pin of the last certificate of this chain if that is a root that has replaced the known one. The leaf is signed by one
/// key only: if it leads to both roots, the known one has signed the key of the new one.
///
/// Only for the chain of a finished handshake, or one that was made here. Before that anybody may have put it together from
/// what is public, with a root that has the right key but other bytes, and a client that saved its pin would refuse the hub.
pub fn newer_root(chain: &[CertificateDer<'_>], known: Pin, name: &str) -> Option<Pin> {
    let (leaf, others) = chain.split_first()?;
    let last = others.last()?;
    let pin = secret::sha256(last).pin();
    (pin != known && is_proved_by(known, leaf, others, name) && vouches(last, leaf, name)).then_some(pin)
}

pub fn read_roots(path: &Path) -> Result<HubTrust> {
    let hint = format!("Give --ca a PEM file, not {}", path.display());
    let pem = std::fs::read_to_string(path).or_say(|| format!("Cannot read the CA file {}", path.display()));
    let pem = pem.and_then(|pem| parse_roots(&pem).map(|_| pem)).map_err(|error| error.hint(hint))?;
    Ok(HubTrust::Roots(pem))
}

fn parse_roots(pem: &str) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(pem.as_bytes()).flatten();
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        return Err(Error::new("There is no certificate in the CA file"));
    }
    Ok(roots)
}

fn public_roots() -> RootCertStore {
    let named = std::env::var("SSL_CERT_FILE").ok();
    let files = named.iter().map(String::as_str).chain(SYSTEM_ROOTS);
    let system =
        files.filter_map(|path| std::fs::read_to_string(path).ok()).find_map(|pem| parse_roots(&pem).ok());
    system.unwrap_or_else(|| RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() })
}

fn verifier_of(roots: RootCertStore) -> Result<Arc<WebPkiServerVerifier>> {
    let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
    built.or_say(|| "Cannot use these CA certificates")
}

/// Where an observed pin is noted.
pub type ObservedPin = Arc<Mutex<Option<Pin>>>;

/// Settings that believe anything and note the pin of the last certificate in the chain: for showing it to
/// the user before anything is sent.
pub fn observing_client() -> Result<(ClientTls, ObservedPin)> {
    let seen = ObservedPin::default();
    let check = Arc::new(CertificateCheck::Anyone(Some(Arc::clone(&seen))));
    Ok((ClientTls { config: Arc::new(client_checking(check, peer_provider())?), root: None }, seen))
}

/// Settings that believe anything, for a service whose way here is believed already.
pub fn unverified_client() -> Result<Arc<ClientConfig>> {
    client_checking(Arc::new(CertificateCheck::Anyone(None)), provider()).map(Arc::new)
}

fn client_checking(
    verifier: Arc<dyn ServerCertVerifier>,
    provider: Arc<CryptoProvider>,
) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().or_say(|| "Cannot set up TLS")?;
    let mut config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Whom a handshake believes. That the peer holds its certificate's key is proved in every case.
#[derive(Debug)]
enum CertificateCheck {
    /// A chain that holds the pinned CA and is signed by it.
    Pin(KnownRoot),
    /// The certificate with this fingerprint.
    Only(Fingerprint),
    /// Everyone: the caller compares the fingerprint, or shows the pin of the chain's last certificate.
    Anyone(Option<ObservedPin>),
}

impl ServerCertVerifier for CertificateCheck {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let pin = match self {
            Self::Pin(pin) => *locked(pin),
            Self::Only(peer) if secret::sha256(leaf) == *peer => {
                return Ok(ServerCertVerified::assertion());
            }
            Self::Only(_) => return Err(CertificateError::ApplicationVerificationFailure.into()),
            Self::Anyone(seen) => {
                if let Some(seen) = seen {
                    let pin = secret::sha256(chain.last().unwrap_or(leaf)).pin();
                    *locked(seen) = Some(pin);
                }
                return Ok(ServerCertVerified::assertion());
            }
        };
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca = chain.iter().find(|certificate| secret::sha256(certificate).pin() == pin).ok_or(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = verifier_of(roots).map_err(|error| rustls::Error::General(error.to_string()))?;
        // The pin says who the hub is. A wrong clock, here or there, must not lock anybody out, so the leaf's dates do not
        // count: it is checked again at a time at which it was valid.
        match verifier.verify_server_cert(leaf, chain, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::ExpiredContext { not_after: then, .. }
                | CertificateError::NotValidYetContext { not_before: then, .. },
            )) => verifier.verify_server_cert(leaf, chain, name, ocsp, then),
            checked => checked,
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The agent's end of a session, where `Anyone` is meant.
impl ClientCertVerifier for CertificateCheck {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::authority::Authority;
    use crate::tls::authority::AuthorityProfile;
    use rcgen::BasicConstraints;
    use rcgen::CertificateParams;
    use rcgen::DnType;
    use rcgen::IsCa;

    const PROFILE: AuthorityProfile = AuthorityProfile {
        title: "a CA",
        root: |key| {
            let mut params = CertificateParams::new(Vec::new())?;
            params
                .distinguished_name
                .push(DnType::CommonName, secret::sha256(key.public_key_raw()).to_string());
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
            Ok(params)
        },
        leaf: CertificateParams::new,
        when_damaged: "",
    };

    #[test]
    fn a_new_root_is_learnt_only_if_the_pinned_one_has_signed_its_key() {
        let authority = |key: &str, certificate: &str| {
            Authority::of(key, certificate.as_bytes(), [Path::new(""); 2], PROFILE, true).unwrap()
        };
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let [old, other] = [(); 2].map(|()| {
            let (key, certificate) = Authority::make(&PROFILE, None).unwrap();
            authority(&key, &certificate)
        });
        let (key, certificate) = Authority::make(&PROFILE, None).unwrap();
        let new = authority(&key, &certificate);
        let learnt = |leaf_of: &Authority, chain: &[&CertificateDer<'static>]| {
            let leaf = leaf_of.leaf("hub.test", &[]).unwrap().cert[0].clone();
            let chain: Vec<_> = [&leaf].into_iter().chain(chain.iter().copied()).cloned().collect();
            newer_root(&chain, secret::sha256(&old.certificate).pin(), "hub.test")
        };
        let signed = der(&old.cross_sign(&key).unwrap());
        assert_eq!(learnt(&old, &[&old.certificate]), None);
        let new_pin = secret::sha256(&new.certificate).pin();
        assert_eq!(learnt(&new, &[&signed, &old.certificate, &new.certificate]), Some(new_pin));
        // A stranger's root at the end of a good chain, and his leaf with all that is public of ours.
        assert_eq!(learnt(&old, &[&old.certificate, &other.certificate]), None);
        assert_eq!(learnt(&other, &[&signed, &old.certificate, &other.certificate]), None);
        assert_eq!(learnt(&new, &[&old.certificate, &new.certificate]), None, "the new key is not signed");
    }
}
