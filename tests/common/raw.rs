//! Ends of TLS that are not ours: a client of the hub's API that speaks rustls itself, and both ends of a
//! session as somebody in the middle would play them.
#![allow(dead_code)] // Each test file uses its part.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::ClientConnection;
use rustls::DigitallySignedStruct;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::ServerConnection;
use rustls::SignatureScheme;
use rustls::StreamOwned;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::danger::ServerCertVerified;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;

use super::Home;
use super::Hub;
use super::PATIENCE;

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A connection to the hub's API that believes the hub's own CA.
pub fn api(hub: &Hub) -> StreamOwned<ClientConnection, TcpStream> {
    let pem = fs::read(hub.home.file("hub/certs/ca.crt")).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let socket = TcpStream::connect(&hub.address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), socket)
}

/// One call; its status and JSON.
pub fn call(hub: &Hub, key: &str, line: &str, body: &str) -> (u16, Value) {
    let mut stream = api(hub);
    let request = format!(
        "{line} HTTP/1.1\r\nHost: {}\r\nx-api-key: {key}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        hub.address,
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

/// The API key with which a machine logged in.
pub fn key_of(home: &Home) -> String {
    let config: Value = serde_json::from_slice(&fs::read(home.file("config.json")).unwrap()).unwrap();
    config["apiKey"].as_str().unwrap().to_owned()
}

/// A relay upgrade with this ticket, as it goes over the wire.
pub fn relay_request(hub: &Hub, ticket: &str) -> String {
    format!(
        "GET /v1/relay HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: connect-relay/1\r\nx-ticket: {ticket}\r\n\r\n",
        hub.address
    )
}

/// Somebody with an identity of their own, known to nobody.
pub struct Stranger {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Stranger {
    pub fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["stranger.agent".into()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        Self { certificate: made.cert.der().clone(), key }
    }

    pub fn fingerprint(&self) -> String {
        let hash = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, &self.certificate);
        hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Plays the agent towards a joiner.
    pub fn as_agent(&self, socket: TcpStream) -> StreamOwned<ServerConnection, TcpStream> {
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let config = builder.unwrap().with_no_client_auth();
        let config = config.with_single_cert(vec![self.certificate.clone()], self.key.clone_key()).unwrap();
        StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), socket)
    }

    /// Plays the joiner of a session that the hub granted, towards its agent.
    pub fn as_joiner(&self, socket: TcpStream, granted: &Value) -> StreamOwned<ClientConnection, TcpStream> {
        let [agent, name, session] =
            ["agentFingerprint", "name", "session"].map(|field| granted[field].as_str().unwrap());
        let meant = format!("connect-service {agent} {name} {session}");
        let meant = ::aws_lc_rs::digest::digest(&::aws_lc_rs::digest::SHA256, meant.as_bytes());
        let meant: String = meant.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        self.as_joiner_of(socket, vec![meant.into_bytes()])
    }

    /// Plays a joiner that names this application, or none.
    pub fn as_joiner_of(
        &self,
        socket: TcpStream,
        application: Vec<Vec<u8>>,
    ) -> StreamOwned<ClientConnection, TcpStream> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.unwrap().dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
        let config = builder.with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key());
        let mut config = config.unwrap();
        config.alpn_protocols = application;
        let name = ServerName::try_from("any.agent").unwrap();
        StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), socket)
    }
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
