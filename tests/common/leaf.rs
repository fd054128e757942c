//! A server with a certificate that the proxy's own CA signed, for a name that it may or may not vouch for.

use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls::ServerConnection;
use rustls::StreamOwned;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;

use crate::common::Home;
use crate::common::service;

const DAY: Duration = Duration::from_hours(24);
const CA: &str = "Private Connect local CA ";

/// A certificate and its key, as whoever has stolen the CA's key would make them.
pub fn stolen_leaf(certs: &Path, name: &str) -> (String, String) {
    let read = |file: &str| std::fs::read_to_string(certs.join(file)).unwrap();
    let ca_key = KeyPair::from_pem(&read("ca.key")).unwrap();
    let ca = CertificateDer::from_pem_slice(read("ca.crt").as_bytes()).unwrap();
    // The issuer's name has to be that of the CA, whose last part comes from its key.
    let at = ca.windows(CA.len()).position(|bytes| bytes == CA.as_bytes()).unwrap() + CA.len();
    let mark = str::from_utf8(&ca[at..at + 8]).unwrap();
    let mut issuer = CertificateParams::new(Vec::new()).unwrap();
    issuer.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    issuer.distinguished_name.push(DnType::OrganizationName, "Private Connect");
    issuer.distinguished_name.push(DnType::CommonName, format!("{CA}{mark}"));
    let issuer = Issuer::new(issuer, ca_key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // Browsers take no leaf that lives longer.
    params.not_before =
        rcgen::date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - DAY;
    params.not_after = params.not_before + DAY * 300;
    (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
}

/// Answers every request with a page.
pub fn leaf_server(home: &Home, name: &str) -> u16 {
    let certs = home.file("certs");
    let (leaf, key) = stolen_leaf(&certs, name);
    let ca = std::fs::read(certs.join("ca.crt")).unwrap();
    let chain = [leaf.as_bytes(), &ca].map(|pem| CertificateDer::from_pem_slice(pem).unwrap());
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(builder.with_no_client_auth().with_single_cert(chain.to_vec(), key).unwrap());
    service(move |stream| {
        let mut tls = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        let _ = tls.read(&mut [0; 4096]).and_then(|_| {
            tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\nConnection: close\r\n\r\nleaf")
        });
        tls.conn.send_close_notify();
        let _ = tls.flush();
    })
}
