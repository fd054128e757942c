//! A certificate authority of our own: loaded or made, and the leaves that it signs, remembered by name.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use rcgen::CertificateParams;
use rcgen::Issuer;
use rcgen::KeyPair;
use rcgen::date_time_ymd;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::ClientHello;
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;

use super::provider::provider;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::time::Time;
use crate::os::clock;
use crate::os::files;
use crate::os::lock::locked;

/// Names that are remembered with their leaf; a client that makes up more gets new leaves, no more memory.
const REMEMBERED_LEAVES: usize = 256;
const DAY: Duration = Duration::from_hours(24);
/// What scanners and browsers take: 90 days, of which the first has passed, for clients whose clock is slow.
const LEAF_DAYS: u32 = 90;
/// A leaf is minted again after a third of its life, so a hub or proxy that never restarts shows no old one.
pub const LEAF_RENEWAL: Duration = Duration::from_hours(24 * 30);

/// What tells one authority from another.
pub struct AuthorityProfile {
    /// `the hub's CA`, as messages call it.
    pub title: &'static str,
    /// Makes the CA's own certificate. Given the same key it must name the same subject.
    pub root: fn(&KeyPair) -> std::result::Result<CertificateParams, rcgen::Error>,
    pub leaf: fn(Vec<String>) -> std::result::Result<CertificateParams, rcgen::Error>,
    pub when_damaged: &'static str,
}

pub struct Authority {
    pub certificate: CertificateDer<'static>,
    /// The same, as it is stored.
    pub pem: String,
    /// While clients may trust only the root before: this one's key as that has signed it, and that root.
    pub cross_signed: Vec<CertificateDer<'static>>,
    /// Whether it was made just now.
    pub is_new: bool,
    profile: AuthorityProfile,
    issuer: Issuer<'static, KeyPair>,
    /// One key for all leaves: what tells them apart is the name.
    leaf_key: KeyPair,
    leaves: Mutex<HashMap<String, (Arc<CertifiedKey>, Time)>>,
}

impl Authority {
    /// Loads the CA from `folder`, or makes it. The key is private before the certificate exists.
    pub fn load_or_make(folder: &Path, profile: AuthorityProfile) -> Result<Self> {
        let (key_file, certificate_file) = (folder.join("ca.key"), folder.join("ca.crt"));
        let stored = files::read_text(&key_file)?;
        let key = stored.as_deref().map(KeyPair::from_pem).transpose();
        let (key, made) = Self::make(&profile, key.map_err(|error| damaged(&key_file, &profile, &error))?)?;
        if stored.is_none() {
            files::write(&key_file, key.as_bytes())?;
        }
        let stored = files::read(&certificate_file)?;
        if stored.is_none() {
            files::write(&certificate_file, made.as_bytes())?;
        }
        let is_new = stored.is_none();
        let certificate = stored.unwrap_or(made.into_bytes());
        Self::of(&key, &certificate, [&key_file, &certificate_file], profile, is_new)
    }

    /// From PEM that came from elsewhere; `at` are its names in messages.
    pub fn of(
        key: &str,
        certificate: &[u8],
        at: [&Path; 2],
        profile: AuthorityProfile,
        is_new: bool,
    ) -> Result<Self> {
        let cannot = || format!("Cannot make {}", profile.title);
        let key = KeyPair::from_pem(key).map_err(|error| damaged(at[0], &profile, &error))?;
        let pem = String::from_utf8_lossy(certificate).into_owned();
        let certificate =
            CertificateDer::from_pem_slice(certificate).map_err(|error| damaged(at[1], &profile, &error))?;
        // The stored certificate has the same name and key as these parameters; leaves are signed by them.
        let issuer = Issuer::new((profile.root)(&key).or_say(cannot)?, key);
        let leaf_key = new_key(cannot)?;
        let cross_signed = Vec::new();
        let leaves = Mutex::default();
        Ok(Self { certificate, pem, cross_signed, is_new, profile, issuer, leaf_key, leaves })
    }

    /// The certificate, as PEM, by which this CA says that the one with this key replaces it.
    pub fn cross_sign(&self, key: &str) -> Result<String> {
        let signed = KeyPair::from_pem(key)
            .and_then(|key| (self.profile.root)(&key)?.signed_by(&key, &self.issuer))
            .or_say(|| format!("Cannot sign {}", self.profile.title))?;
        Ok(signed.pem())
    }

    /// A key, new unless there is one, and its certificate, as PEM.
    pub fn make(profile: &AuthorityProfile, key: Option<KeyPair>) -> Result<(String, String)> {
        let cannot = || format!("Cannot make {}", profile.title);
        let key = key.map_or_else(|| new_key(cannot), Ok)?;
        let made = (profile.root)(&key).and_then(|params| params.self_signed(&key)).or_say(cannot)?;
        Ok((key.serialize_pem(), made.pem()))
    }

    /// The leaf for `name` and the `others` that shall stand in it as well.
    pub fn leaf(&self, name: &str, others: &[String]) -> Option<Arc<CertifiedKey>> {
        self.leaf_at(name, others, clock::now())
    }

    fn leaf_at(&self, name: &str, others: &[String], now: Time) -> Option<Arc<CertifiedKey>> {
        let known = locked(&self.leaves).get(name).cloned();
        if let Some((leaf, made)) = known
            && (made.unix()..made.unix() + LEAF_RENEWAL.as_secs()).contains(&now.unix())
        {
            return Some(leaf);
        }
        let leaf = self.certified(name, others, now);
        let leaf = leaf.inspect_err(|error| log::debug!("no certificate for a name: {error}")).ok()?;
        let mut leaves = locked(&self.leaves);
        if leaves.len() >= REMEMBERED_LEAVES {
            leaves.clear();
        }
        leaves.insert(name.to_owned(), (Arc::clone(&leaf), now));
        Some(leaf)
    }

    fn certified(&self, name: &str, others: &[String], now: Time) -> Result<Arc<CertifiedKey>> {
        let mut names = vec![name.to_owned()];
        names.extend(others.iter().filter(|known| *known != name).cloned());
        let mut chain = vec![self.sign(names, now)?.der().clone()];
        // Before the root: some clients follow the first certificate that fits.
        chain.extend(self.cross_signed.iter().chain([&self.certificate]).cloned());
        let key = PrivateKeyDer::Pkcs8(self.leaf_key.serialize_der().into());
        let certified = CertifiedKey::from_der(chain, key, &provider());
        certified.map(Arc::new).or_say(|| "Cannot mint a certificate")
    }

    /// A leaf for all `names`, and its key, as PEM.
    pub fn leaf_pem(&self, names: Vec<String>) -> Result<(String, String)> {
        Ok((self.sign(names, clock::now())?.pem(), self.leaf_key.serialize_pem()))
    }

    fn sign(&self, names: Vec<String>, now: Time) -> Result<rcgen::Certificate> {
        let leaf = (self.profile.leaf)(names).and_then(|mut params| {
            valid_for(&mut params, LEAF_DAYS, now);
            params.signed_by(&self.leaf_key, &self.issuer)
        });
        leaf.or_say(|| "Cannot mint a certificate")
    }
}

/// Valid from yesterday on, for clients whose clock is slow.
pub fn valid_for(params: &mut CertificateParams, days: u32, now: Time) {
    params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_secs(now.unix()) - DAY;
    params.not_after = params.not_before + DAY * days;
}

fn damaged(path: &Path, profile: &AuthorityProfile, error: &dyn fmt::Display) -> Error {
    Error::new(format!("{} is damaged: {error}", path.display())).hint(profile.when_damaged)
}

fn new_key<S: Into<String>>(cannot: impl FnOnce() -> S) -> Result<KeyPair> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).or_say(cannot)
}

/// Chooses the certificate by the name that a client asks for, if it asks for one.
pub struct CertificateByName<F>(pub F);

impl<F> fmt::Debug for CertificateByName<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateByName")
    }
}

impl<F: Fn(Option<&str>) -> Option<Arc<CertifiedKey>> + Send + Sync> ResolvesServerCert
    for CertificateByName<F>
{
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        (self.0)(hello.server_name())
    }
}

/// TLS 1.3, no client certificates, HTTP/1.1.
pub fn server_config(
    resolver: Arc<dyn ResolvesServerCert>,
    provider: Arc<CryptoProvider>,
) -> Result<ServerConfig> {
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config =
        builder.or_say(|| "Cannot set up TLS")?.with_no_client_auth().with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // What a session is resumed by stays with the client. Kept here, 256 of them would be scattered between the buffers of a
    // burst, and keep these from the system; and a stranger's burst would push out everybody else's.
    config.ticketer = Ticketer::new().or_say(|| "Cannot set up TLS")?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::secret;

    #[test]
    fn a_leaf_is_kept_for_a_month_and_renewed_then() {
        let profile = AuthorityProfile {
            title: "a CA",
            root: |_| CertificateParams::new(Vec::new()),
            leaf: CertificateParams::new,
            when_damaged: "",
        };
        let folder = std::env::temp_dir().join(secret::id("connect-mint"));
        let authority = Authority::load_or_make(&folder, profile).unwrap();
        let now = clock::now();
        let at = |days: u64| {
            let later = now.plus(Duration::from_hours(24 * days));
            authority.leaf_at("a.localhost", &[], later).unwrap()
        };
        let first = at(0);
        assert!(Arc::ptr_eq(&first, &at(29)));
        let renewed = at(31);
        assert!(!Arc::ptr_eq(&first, &renewed) && Arc::ptr_eq(&renewed, &at(32)));
        // A clock that was put back may have been wrong before.
        assert!(!Arc::ptr_eq(&renewed, &at(0)));
    }
}
