//! A hub in the test's hand: TLS with a CA of its own whose pin stands in `key`, so that the real client
//! trusts it, and answers that the test writes byte by byte.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use rustls::ServerConfig;
use rustls::ServerConnection;
use rustls::StreamOwned;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use rustls::sign::SingleCertAndKey;

use super::PATIENCE;

pub type Stream = StreamOwned<ServerConnection, TcpStream>;

/// A CA, and a certificate for 127.0.0.1 and localhost that it signed.
#[derive(Clone)]
pub struct Certificates {
    pub ca: String,
    pub leaf: String,
    pub key: String,
    pub pin: String,
    /// What stands between the leaf and the CA.
    pub between: String,
}

const OWN_NAME: &str = "a root of the test";
const CA_NAME: &[u8] = b"connect hub CA ";

/// Of a hub's root; its last part is made of its key.
fn name_of(root: &str) -> String {
    let der = CertificateDer::from_pem_slice(root.as_bytes()).unwrap();
    let at = der.windows(CA_NAME.len()).position(|bytes| bytes == CA_NAME).unwrap();
    str::from_utf8(&der[at..at + CA_NAME.len() + 8]).unwrap().to_owned()
}

fn root(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Certificates {
    /// A root that says it has replaced a hub's. The key says so, under that root's name.
    pub fn after(hub_root: &str, signer: &str) -> Self {
        let issuer = Issuer::new(root(&name_of(hub_root)), KeyPair::from_pem(signer).unwrap());
        let key = KeyPair::generate().unwrap();
        let signed = root(OWN_NAME).signed_by(&key, &issuer).unwrap().pem();
        Self { between: format!("{signed}{hub_root}"), ..Self::of(OWN_NAME, key) }
    }

    /// What anybody may put together who has seen a hub's chain: its leaf, whose key he has not, and a root with the key of
    /// the hub's, but other bytes.
    pub fn put_together(hub_root: &str, hub_key: &str) -> Self {
        let seen = Self::of(&name_of(hub_root), KeyPair::from_pem(hub_key).unwrap());
        let key = KeyPair::generate().unwrap().serialize_pem();
        Self { key, between: hub_root.to_owned(), ..seen }
    }

    pub fn make() -> Self {
        Self::of(OWN_NAME, KeyPair::generate().unwrap())
    }

    fn of(name: &str, key: KeyPair) -> Self {
        let params = root(name);
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let leaf_key = KeyPair::generate().unwrap();
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let leaf = CertificateParams::new(names).unwrap().signed_by(&leaf_key, &issuer).unwrap();
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, ca.der());
        Self {
            ca: ca.pem(),
            leaf: leaf.pem(),
            key: leaf_key.serialize_pem(),
            pin: base32(&hash.as_ref()[..16]),
            between: String::new(),
        }
    }
}

fn base32(bytes: &[u8]) -> String {
    let (mut text, mut bits, mut held) = (String::new(), 0_u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            text.push(b"abcdefghijklmnopqrstuvwxyz234567"[(bits >> held & 31) as usize] as char);
        }
    }
    text.push(b"abcdefghijklmnopqrstuvwxyz234567"[(bits << (5 - held) & 31) as usize] as char);
    text
}

/// What a client asked: `GET /v1/services`, its fields in lower case, its body.
#[derive(Clone, Debug)]
pub struct Asked {
    pub call: String,
    pub head: String,
    pub body: String,
}

pub struct FakeHub {
    pub url: String,
    /// A key that carries this hub's pin.
    pub key: String,
    pub certificates: Certificates,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl FakeHub {
    /// `answer` writes whatever it likes; the connection ends when it returns.
    pub fn start(answer: impl Fn(&Asked, &mut Stream) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::with(Certificates::make(), answer)
    }

    /// With a certificate of this CA, as another host of a company has one.
    pub fn with(
        certificates: Certificates,
        answer: impl Fn(&Asked, &mut Stream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let chain = [&*certificates.leaf, &certificates.between, &certificates.ca].concat();
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(certificates.key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        // Whether the key is that of the leaf is not looked at here.
        let key = builder.crypto_provider().key_provider.load_private_key(key).unwrap();
        let shown = Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key)));
        let config = Arc::new(builder.with_no_client_auth().with_cert_resolver(shown));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let key = format!("pc_{}.{}", "a".repeat(26), certificates.pin);
        let (asked, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let own = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, answer, asked) = (Arc::clone(&config), Arc::clone(&answer), Arc::clone(&own));
                thread::spawn(move || serve(stream, config, &asked, &*answer));
            }
        });
        Self { url, key, certificates, asked }
    }

    /// Everything that clients have sent inside TLS, or in the clear with `PLAIN` before it.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    asked: &Mutex<Vec<Asked>>,
    answer: &dyn Fn(&Asked, &mut Stream) -> io::Result<()>,
) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let mut first = [0];
    if stream.peek(&mut first).is_ok_and(|count| count == 1) && first[0] != 0x16 {
        let mut stream = stream;
        if let Some(mut plain) = read_request(&mut stream) {
            plain.call.insert_str(0, "PLAIN ");
            asked.lock().unwrap().push(plain);
        }
        return;
    }
    let mut stream = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
    let Some(request) = read_request(&mut stream) else { return };
    asked.lock().unwrap().push(request.clone());
    if answer(&request, &mut stream).is_ok() {
        stream.conn.send_close_notify();
        let _ = stream.flush();
    }
}

fn read_request(stream: &mut impl Read) -> Option<Asked> {
    let (mut bytes, mut byte) = (Vec::new(), [0]);
    while !bytes.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        bytes.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let call = head.split(" HTTP/").next()?.to_owned();
    let head = head.to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Asked { call, head, body: String::from_utf8_lossy(&body).into_owned() })
}

pub fn json(stream: &mut impl Write, status: u16, body: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
        body.len()
    );
    stream.write_all(format!("{head}Connection: close\r\n\r\n{body}").as_bytes())
}

/// Answers what an agreeable hub answers; the rest is 404.
pub fn friendly(asked: &Asked, stream: &mut impl Write) -> io::Result<()> {
    let agent = r#"{"id":"agent_x","label":"x","status":"online","fingerprint":"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff","services":0,"connectedAt":null,"workspace":"default","key":"key_x","seenAt":"2026-01-01T00:00:00Z"}"#;
    match asked.call.as_str() {
        "GET /health" => json(stream, 200, r#"{"status":"ok","version":"1","uptimeSeconds":1}"#),
        "GET /v1/whoami" => {
            json(stream, 200, r#"{"id":"key_x","label":"x","role":"member","workspace":"default"}"#)
        }
        "GET /v1/services" => json(stream, 200, "[]"),
        "POST /v1/agents/register" => json(stream, 200, agent),
        _ => json(stream, 404, r#"{"error":"not here"}"#),
    }
}
