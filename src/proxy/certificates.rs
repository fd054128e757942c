//! The proxy's certificates: a CA whose constraints allow only this machine's own names, and a leaf for each name that a
//! client asks for. A wildcard would not do: no client accepts one directly under `localhost`.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CidrSubnet;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::GeneralSubtree;
use rcgen::IsCa;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::NameConstraints;
use rcgen::PublicKeyData;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;
use rustls::sign::SingleCertAndKey;

use crate::error::Error;
use crate::error::Result;
use crate::os::clock;
use crate::os::files;
use crate::os::secret;
use crate::tls::authority;
use crate::tls::authority::Authority;
use crate::tls::authority::AuthorityProfile;
use crate::tls::authority::CertificateByName;
use crate::tls::provider::provider;
use crate::tls::trust;

const CA_DAYS: u32 = 3650;
/// The longest common name of a certificate. Clients check the alternative names instead.
const COMMON_NAME: usize = 64;
/// Names in `server.crt`. More would make a certificate that is too large for some clients.
const NAMES: usize = 100;

const PROXY_CA_PROFILE: AuthorityProfile = AuthorityProfile {
    title: "the local CA",
    root,
    leaf,
    when_damaged: "Move the certs folder away and start again; then trust the new one: connect proxy trust",
};

/// What every client takes as ours: OID 2.5.29.30, critical.
const CRITICAL_NAME_CONSTRAINTS: [u8; 8] = [0x06, 0x03, 0x55, 0x1d, 0x1e, 0x01, 0x01, 0xff];
/// Names that our CA must not vouch for.
const FOREIGN_NAMES: [&str; 3] = ["example.com", "192.0.2.1", "2001:db8::1"];

/// An error unless `ca.crt` in this folder is the CA that we made: its key is ours, and it vouches for no other machine.
pub fn check_ca(folder: &Path) -> Result<()> {
    let authority = Authority::load_or_make(folder, PROXY_CA_PROFILE)?;
    let ca = &authority.certificate;
    let vouches = |name: &str| {
        let leaf = authority.leaf(name, &[]);
        leaf.is_some_and(|leaf| leaf.cert.first().is_some_and(|leaf| trust::vouches(ca, leaf, name)))
    };
    let is_critical =
        ca.windows(CRITICAL_NAME_CONSTRAINTS.len()).any(|bytes| bytes == CRITICAL_NAME_CONSTRAINTS);
    if is_critical && vouches("localhost") && !FOREIGN_NAMES.iter().any(|name| vouches(name)) {
        return Ok(());
    }
    Err(Error::new(format!("{} is not the CA that connect made", folder.join("ca.crt").display()))
        .hint("Nothing was trusted. Move the certs folder away, then: connect proxy trust"))
}

pub struct Certificates {
    pub config: Arc<ServerConfig>,
    /// Our own CA; none with `--cert`.
    own: Option<LocalAuthority>,
}

struct LocalAuthority {
    authority: Arc<Authority>,
    folder: PathBuf,
}

impl Certificates {
    /// Loads the CA in `folder`, or makes one.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        let authority = Arc::new(Authority::load_or_make(folder, PROXY_CA_PROFILE)?);
        let own = Arc::clone(&authority);
        let config =
            config_with(Arc::new(CertificateByName(move |name: Option<&str>| leaf_for(&own, name))))?;
        Ok(Self { config, own: Some(LocalAuthority { authority, folder: folder.to_owned() }) })
    }

    /// The user's own, for every name.
    pub fn of_files(certificate: &Path, key: &Path) -> Result<Self> {
        let read = |path: &Path| {
            let missing =
                || Error::new(format!("There is no {}", path.display())).hint("Check --cert and --key");
            // Unlike our own files, it may be a symbolic link.
            let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            files::read(&real)?.ok_or_else(missing)
        };
        let no_pem = |path: &Path, what: &str| {
            Error::new(format!("{} holds no {what} in PEM", path.display())).hint("Check --cert and --key")
        };
        let chain: std::result::Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(&read(certificate)?).collect();
        let chain =
            chain.ok().filter(|chain| !chain.is_empty()).ok_or_else(|| no_pem(certificate, "certificate"))?;
        let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| no_pem(key, "private key"))?;
        let certified = CertifiedKey::from_der(chain, secret, &provider()).map_err(|_| {
            Error::new(format!("{} and {} do not belong together", certificate.display(), key.display()))
                .hint("Give the key that the certificate was made for")
        })?;
        Ok(Self { config: config_with(Arc::new(SingleCertAndKey::from(certified)))?, own: None })
    }

    /// Whether this start made the CA; `None` without one.
    pub fn is_new(&self) -> Option<bool> {
        self.own.as_ref().map(|own| own.authority.is_new)
    }

    /// Writes `server.crt` and its key, for development servers that want to use the proxy's certificate themselves.
    pub fn write_server(&self, names: impl Iterator<Item = String>) -> Result<()> {
        let Some(own) = &self.own else { return Ok(()) };
        let mut all: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        all.extend(names.map(|name| format!("{name}.localhost")).take(NAMES));
        let (certificate, key) = own.authority.leaf_pem(all)?;
        files::write(&own.folder.join("server.key"), key.as_bytes())?;
        files::write(&own.folder.join("server.crt"), certificate.as_bytes())
    }
}

/// Our order of ciphers counts, not the client's. Clients put AES-256 first, which costs more, and these bytes do not
/// leave this machine.
fn config_with(resolver: Arc<dyn ResolvesServerCert>) -> Result<Arc<ServerConfig>> {
    let mut config = authority::server_config(resolver, provider())?;
    config.ignore_client_order = true;
    Ok(Arc::new(config))
}

/// The CA's certificate. Its name distinguishes one machine's CA from another's; it is made from the key, so it never
/// changes.
fn root(key: &KeyPair) -> std::result::Result<CertificateParams, rcgen::Error> {
    let mark = secret::sha256(key.der_bytes())
        .to_string()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(8)
        .collect::<String>();
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::OrganizationName, "Private Connect");
    params.distinguished_name.push(DnType::CommonName, format!("Private Connect local CA {mark}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Both names and addresses are constrained: with names alone, a client would accept a leaf for any address.
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![
            GeneralSubtree::DnsName("localhost".into()),
            GeneralSubtree::IpAddress(CidrSubnet::V4([127, 0, 0, 0], [255, 0, 0, 0])),
            GeneralSubtree::IpAddress(CidrSubnet::V6(std::net::Ipv6Addr::LOCALHOST.octets(), [255; 16])),
        ],
        excluded_subtrees: Vec::new(),
    });
    authority::valid_for(&mut params, CA_DAYS, clock::now());
    Ok(params)
}

fn leaf(names: Vec<String>) -> std::result::Result<CertificateParams, rcgen::Error> {
    let shown = names.first().filter(|name| name.len() <= COMMON_NAME).cloned();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::OrganizationName, "Private Connect");
    params.distinguished_name.push(DnType::CommonName, shown.as_deref().unwrap_or("localhost"));
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

/// The leaf for a name. A name outside `localhost` gets none, since no client would accept it.
fn leaf_for(authority: &Authority, asked: Option<&str>) -> Option<Arc<CertifiedKey>> {
    let name = asked.unwrap_or("localhost").trim_end_matches('.').to_ascii_lowercase();
    match name.strip_suffix("localhost") {
        Some("") => authority.leaf("localhost", &["127.0.0.1".into(), "::1".into()]),
        Some(front) if front.ends_with('.') => authority.leaf(&name, &[]),
        _ => None,
    }
}
