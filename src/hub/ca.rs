//! The hub's own certificate authority, and a leaf certificate for each name or address that clients use.

use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::date_time_ymd;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;

use super::code_key::CodeKey;
use super::store::CaPem;
use super::store::Gateway;
use super::store::ReplacedRoot;
use super::store::load_ca;
use super::store::load_or_put_ca;
use super::store::replace_ca;
use super::store::write_ca;
use crate::error::Error;
use crate::error::Result;
use crate::model::fingerprint::Pin;
use crate::model::time::Time;
use crate::os::lock::locked;
use crate::os::secret;
use crate::tls::authority;
use crate::tls::authority::Authority;
use crate::tls::authority::AuthorityProfile;
use crate::tls::authority::CertificateByName;
use crate::tls::provider::peer_provider;
use crate::tls::trust;
use crate::wire::api::CaCertificate;
use crate::wire::api::ReplacedCa;

const HUB_CA_PROFILE: AuthorityProfile = AuthorityProfile {
    title: "the hub's CA",
    root,
    leaf,
    when_damaged: "Restore it from a backup. Without it every client needs a new key: move the certs folder away and start again",
};

/// In the leaf by which a hub tries what a client would believe.
const PROBE_NAME: &str = "localhost";

pub struct Ca {
    current: Mutex<Arc<LoadedCa>>,
    /// Locked for a whole rotation: of two at once, the second would replace a root that clients already follow.
    place: Mutex<CaPlace>,
    /// Names that are in every leaf, for clients that use an address which the hub cannot see.
    names: Vec<String>,
}

struct LoadedCa {
    authority: Authority,
    stored: CaPem,
}

/// Where the CA is kept.
pub enum CaPlace {
    /// The hub's data folder.
    Folder(PathBuf),
    /// The etcd of the fleet. Its first hub makes the CA.
    Fleet(Gateway),
}

impl CaPlace {
    /// The CA there, and whether it is new: `make` is called if there is none.
    fn load_or_put(
        &mut self,
        code_key_id: &str,
        make: impl FnOnce() -> Result<CaPem>,
    ) -> Result<(CaPem, bool)> {
        let folder = match self {
            Self::Fleet(gateway) => return load_or_put_ca(gateway, make),
            Self::Folder(folder) => folder,
        };
        if let Some(stored) = load_ca(folder, code_key_id.to_owned())? {
            return Ok((stored, false));
        }
        let made = make()?;
        write_ca(folder, &made)?;
        Ok((made, true))
    }

    /// False if another hub of the fleet was first.
    fn replace(&mut self, old: &CaPem, new: &CaPem) -> Result<bool> {
        match self {
            Self::Fleet(gateway) => replace_ca(gateway, old, new),
            Self::Folder(folder) => write_ca(folder, new).map(|()| true),
        }
    }
}

impl LoadedCa {
    fn new(stored: CaPem, is_new: bool, now: Time) -> Result<Self> {
        let at = [Path::new("The hub's CA"); 2];
        let certificate = stored.certificate.as_bytes();
        let mut authority = Authority::of(&stored.key, certificate, at, HUB_CA_PROFILE, is_new)?;
        if let Some(replaced) = stored.replaced.as_ref().filter(|replaced| now < replaced.until) {
            authority.cross_signed = replaced.chain();
        }
        Ok(Self { authority, stored })
    }

    fn pin(&self) -> Pin {
        secret::sha256(&self.authority.certificate).pin()
    }

    /// The root that this one has replaced, while clients may still trust only that.
    fn replaced(&self) -> Option<&ReplacedRoot> {
        self.stored.replaced.as_ref().filter(|_| !self.authority.cross_signed.is_empty())
    }

    /// Whether a client that has the pin of this root would follow to that one.
    fn has_signed(&self, new: &Self) -> bool {
        let Some(leaf) = new.authority.leaf(PROBE_NAME, &[]) else { return false };
        let mut chain = vec![leaf.cert[0].clone()]; // A leaf's chain begins with the leaf.
        chain.extend(new.stored.replaced.iter().flat_map(ReplacedRoot::chain));
        chain.push(new.authority.certificate.clone());
        trust::newer_root(&chain, self.pin(), PROBE_NAME) == Some(new.pin())
    }
}

impl ReplacedRoot {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        let both = [&self.cross_signed, &self.certificate];
        both.into_iter().filter_map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).ok()).collect()
    }
}

impl Ca {
    /// Loads the CA, or makes it.
    pub fn open(mut place: CaPlace, names: Vec<String>, code_key: &CodeKey, now: Time) -> Result<Self> {
        let make = || {
            let (key, certificate) = Authority::make(&HUB_CA_PROFILE, None)?;
            Ok(CaPem { key, certificate, code_key_id: code_key.id(), replaced: None })
        };
        let (stored, is_new) = place.load_or_put(&code_key.id(), make)?;
        // Etcd says which code key the fleet has, so a hub that was not given it does not start.
        if stored.code_key_id != code_key.id() {
            return Err(Error::new("This hub does not have the code key of its fleet").hint(
                "Copy code.key from another hub's data folder into this one's, or name it: --code-key-file FILE",
            ));
        }
        let current = Mutex::new(Arc::new(LoadedCa::new(stored, is_new, now)?));
        Ok(Self { current, place: Mutex::new(place), names })
    }

    fn current(&self) -> Arc<LoadedCa> {
        Arc::clone(&locked(&self.current))
    }

    /// Makes a new root, whose key the present one signs; the key of that is gone then. False if another hub of the fleet was
    /// first, or while the root before is still valid: `until` now ends both.
    pub fn rotate(&self, until: Time, now: Time) -> Result<bool> {
        let mut place = locked(&self.place);
        let old = self.current();
        if old.replaced().is_some() && until > now {
            return Ok(false);
        }
        let (key, certificate) = Authority::make(&HUB_CA_PROFILE, None)?;
        let cross_signed = old.authority.cross_sign(&key)?;
        let replaced = ReplacedRoot { certificate: old.stored.certificate.clone(), cross_signed, until };
        let new = CaPem { key, certificate, replaced: Some(replaced), ..old.stored.clone() };
        let is_first = place.replace(&old.stored, &new)?;
        if is_first {
            *locked(&self.current) = Arc::new(LoadedCa::new(new, false, now)?);
        }
        Ok(is_first)
    }

    /// Takes over what another hub of the fleet has done, and drops a root whose time is over. Returns whether the roots have
    /// changed.
    pub fn refresh(&self, now: Time) -> Result<bool> {
        let mut place = locked(&self.place);
        let known = self.current();
        let stored = match &mut *place {
            CaPlace::Folder(_) => known.stored.clone(),
            CaPlace::Fleet(gateway) => load_or_put_ca(gateway, || Ok(known.stored.clone()))?.0,
        };
        let are_two = stored.replaced.as_ref().is_some_and(|replaced| now < replaced.until);
        if stored == known.stored && are_two == known.replaced().is_some() {
            return Ok(false);
        }
        let loaded = LoadedCa::new(stored, false, now)?;
        // Who can only write into etcd must not become the hub to which the others send keys.
        if loaded.pin() != known.pin() && !known.has_signed(&loaded) {
            return Err(Error::new(
                "this hub's root has not signed the one in etcd. If that is right, restart the hub",
            ));
        }
        *locked(&self.current) = Arc::new(loaded);
        Ok(true)
    }

    /// Whether this start made the CA.
    pub fn is_new(&self) -> bool {
        self.current().authority.is_new
    }

    pub fn pin(&self) -> Pin {
        self.current().pin()
    }

    /// The pin that every hub of the fleet can prove: it may not have the newest root yet.
    pub fn fleet_pin(&self) -> Pin {
        let current = self.current();
        let replaced = current.authority.cross_signed.last();
        replaced.map_or_else(|| current.pin(), |root| secret::sha256(root).pin())
    }

    /// The certificates that clients may trust, the present root first.
    pub fn certificates(&self) -> CaCertificate {
        let current = self.current();
        let replaced = current.replaced();
        let older = replaced.map(|replaced| replaced.certificate.as_str()).unwrap_or_default();
        CaCertificate {
            certificate: format!("{}{older}", current.authority.pem),
            pin: current.pin().to_string(),
            replaced: replaced
                .map(|replaced| ReplacedCa { pin: self.fleet_pin().to_string(), until: replaced.until }),
        }
    }

    fn leaf(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.current().authority.leaf(name, &self.names)
    }
}

/// The CA's own certificate. It has rcgen's default end, the year 4096: keys carry the CA's pin, so an expiry date would
/// make every key useless on one day.
fn root(key: &KeyPair) -> std::result::Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    // Two roots must differ in their names, or some clients take one for the other.
    let mark = &secret::sha256(key.public_key_raw()).to_string()[..8];
    params.distinguished_name.push(DnType::CommonName, format!("connect hub CA {mark}"));
    // It may sign the key of its successor, which signs leaves.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2024, 1, 1);
    Ok(params)
}

fn leaf(names: Vec<String>) -> std::result::Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "connect hub");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

/// The TLS settings for one connection. The leaf is for the server name that the client asks for, or without one for the
/// local address that it connected to.
pub fn server_config(ca: &Arc<Ca>, base: &ServerConfig, local: IpAddr) -> Arc<ServerConfig> {
    let mut config = base.clone();
    config.cert_resolver = leaf_for(ca, local);
    Arc::new(config)
}

/// The settings that all connections have in common; `server_config` copies them for each connection.
pub fn base_config(ca: &Arc<Ca>) -> Result<ServerConfig> {
    authority::server_config(leaf_for(ca, IpAddr::from([127, 0, 0, 1])), peer_provider())
}

fn leaf_for(ca: &Arc<Ca>, local: IpAddr) -> Arc<dyn ResolvesServerCert> {
    let ca = Arc::clone(ca);
    Arc::new(CertificateByName(move |name: Option<&str>| match name {
        Some(name) => ca.leaf(&name.to_ascii_lowercase()),
        None => ca.leaf(&local.to_canonical().to_string()),
    }))
}
