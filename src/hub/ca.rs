//! The hub's own certificate authority, and a leaf certificate for each name or address that clients use.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::date_time_ymd;
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;

use super::code_key::CodeKey;
use super::store::CaPem;
use super::store::Gateway;
use super::store::load_or_put_ca;
use crate::error::Error;
use crate::error::Result;
use crate::model::fingerprint::Pin;
use crate::os::secret;
use crate::tls::authority;
use crate::tls::authority::Authority;
use crate::tls::authority::AuthorityProfile;
use crate::tls::authority::CertificateByName;
use crate::tls::provider::peer_provider;

const HUB_CA_PROFILE: AuthorityProfile = AuthorityProfile {
    title: "the hub's CA",
    root,
    leaf,
    when_damaged: "Restore it from a backup. Without it every client needs a new key: move the certs folder away and start again",
};

pub struct Ca {
    authority: Authority,
    /// Names that are in every leaf, for clients that use an address which the hub cannot see.
    names: Vec<String>,
}

impl Ca {
    pub fn load_or_make(folder: &Path, names: Vec<String>) -> Result<Self> {
        Ok(Self { authority: Authority::load_or_make(folder, HUB_CA_PROFILE)?, names })
    }

    /// The CA that a fleet keeps in etcd. The first hub of the fleet makes it.
    /// Etcd says which code key the fleet has, so a hub that was not given it does not start.
    pub fn shared(gateway: &mut Gateway, names: Vec<String>, code_key: &CodeKey) -> Result<Self> {
        let make = || {
            let (key, certificate) = Authority::make(&HUB_CA_PROFILE, None)?;
            Ok(CaPem { key, certificate, code_key_id: code_key.id() })
        };
        let (CaPem { key, certificate, code_key_id }, is_new) = load_or_put_ca(gateway, make)?;
        if code_key_id != code_key.id() {
            return Err(Error::new("This hub does not have the code key of its fleet").hint(
                "Copy code.key from another hub's data folder into this one's, or name it: --code-key-file FILE",
            ));
        }
        let at = [Path::new("The fleet's CA in etcd"); 2];
        let authority = Authority::of(&key, certificate.as_bytes(), at, HUB_CA_PROFILE, is_new)?;
        Ok(Self { authority, names })
    }

    /// Whether this start made the CA.
    pub fn is_new(&self) -> bool {
        self.authority.is_new
    }

    pub fn pin(&self) -> Pin {
        secret::sha256(&self.authority.certificate).pin()
    }

    pub fn certificate_pem(&self) -> &str {
        &self.authority.pem
    }

    fn leaf(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        self.authority.leaf(name, &self.names)
    }
}

/// The CA's own certificate. It has rcgen's default end, the year 4096: keys carry the CA's pin, so an expiry date would
/// make every key useless on one day.
fn root(_: &KeyPair) -> std::result::Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "connect hub CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
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
