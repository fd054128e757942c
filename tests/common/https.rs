//! A client of the hub that is ours byte by byte: TLS that trusts the hub's CA file, raw requests, an agent
//! that speaks the control channel by hand, and relay ends.

use std::fs;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::SocketAddrV4;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::SockaddrIn;
use nix::sys::socket::bind;
use nix::sys::socket::connect;
use nix::sys::socket::socket;
use rustls::ClientConfig;
use rustls::ClientConnection;
use rustls::RootCertStore;
use rustls::StreamOwned;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use serde_json::json;

use super::Hub;
use super::PATIENCE;

pub type Tls = StreamOwned<ClientConnection, TcpStream>;

pub const FINGERPRINT: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
pub const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// A connection from a chosen loopback address, since the hub counts failures by address.
pub fn dial_from(source: Ipv4Addr, address: &str) -> io::Result<TcpStream> {
    let made = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    bind(made.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
    let to: SocketAddrV4 = address.parse().unwrap();
    connect(made.as_raw_fd(), &SockaddrIn::from(to))?;
    let stream = TcpStream::from(made);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub fn tls_over(stream: TcpStream, name: &str, ca: &str) -> Tls {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// Reads until the peer ends; what is no HTTP answer has the status 0.
    pub fn read(stream: &mut impl Read) -> Self {
        let mut bytes = Vec::new();
        let mut room = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut room) {
            bytes.extend_from_slice(&room[..count]);
        }
        Self::of(&bytes)
    }

    /// Reads the head only, and not a byte behind it.
    pub fn read_head(stream: &mut impl Read) -> Self {
        let (mut bytes, mut byte) = (Vec::new(), [0]);
        while !bytes.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
            bytes.push(byte[0]);
        }
        Self::of(&bytes)
    }

    fn of(bytes: &[u8]) -> Self {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or(0);
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn text(&self, name: &str) -> String {
        self.json()[name].as_str().unwrap_or_else(|| panic!("no {name} in {self:?}")).to_owned()
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// One request, as bytes; closes afterwards.
pub fn request(call: &str, host: &str, fields: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("{call} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in fields {
        text.extend([name, ": ", value, "\r\n"]);
    }
    if !fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("connection")) {
        text.push_str("Connection: close\r\n");
    }
    if !body.is_empty() {
        text.extend(["Content-Length: ", &body.len().to_string(), "\r\n"]);
    }
    format!("{text}\r\n{body}")
}

impl Hub {
    pub fn ca(&self) -> String {
        let file = |name: &str| fs::read_to_string(self.home.file(name));
        file("hub/fleet-ca.crt").or_else(|_| file("hub/certs/ca.crt")).unwrap()
    }

    pub fn tls(&self) -> Tls {
        self.from(LOOPBACK).tls()
    }

    /// `ask("GET /v1/services", key, "")`; an empty key is not sent.
    pub fn ask(&self, call: &str, key: &str, body: &str) -> Answer {
        self.from(LOOPBACK).ask(call, key, body)
    }

    /// `preview`, `join` or `revoke` by a share's code.
    pub fn share(&self, verb: &str, key: &str, code: &str) -> Answer {
        self.from(LOOPBACK).share(verb, key, code)
    }

    pub fn from(&self, source: Ipv4Addr) -> Client<'_> {
        Client { hub: self, source }
    }

    /// A key as `hub key create` makes it, with its id.
    pub fn new_key(&self, options: &[&str]) -> (String, String) {
        let args = [&["hub", "key", "create", "--json"], options].concat();
        let made = self.home.run(&args).ok().json();
        (made["key"].as_str().unwrap().to_owned(), made["id"].as_str().unwrap().to_owned())
    }

    /// A session's ticket for the joiner.
    pub fn ticket(&self, key: &str, service: &str) -> String {
        let body = json!({ "service": service, "fingerprint": FINGERPRINT }).to_string();
        self.ask("POST /v1/sessions", key, &body).text("ticket")
    }

    /// Goes to the relay with a ticket; the answer's head comes when both are there.
    pub fn relay(&self, ticket: &str) -> TcpStream {
        let mut stream = dial_from(LOOPBACK, &self.address).unwrap();
        let fields = [("Connection", "Upgrade"), ("Upgrade", "connect-relay/1"), ("x-ticket", ticket)];
        stream.write_all(request("GET /v1/relay", &self.address, &fields, "").as_bytes()).unwrap();
        stream
    }
}

/// Asks the hub from one loopback address.
pub struct Client<'h> {
    hub: &'h Hub,
    source: Ipv4Addr,
}

impl Client<'_> {
    pub fn tls(&self) -> Tls {
        tls_over(dial_from(self.source, &self.hub.address).unwrap(), "127.0.0.1", &self.hub.ca())
    }

    pub fn ask(&self, call: &str, key: &str, body: &str) -> Answer {
        let fields = [("x-api-key", key)];
        self.ask_with(call, if key.is_empty() { &[] } else { &fields }, body)
    }

    pub fn share(&self, verb: &str, key: &str, code: &str) -> Answer {
        self.ask(&format!("POST /v1/shares/{verb}"), key, &json!({ "code": code }).to_string())
    }

    pub fn ask_with(&self, call: &str, fields: &[(&str, &str)], body: &str) -> Answer {
        let mut stream = self.tls();
        stream.write_all(request(call, &self.hub.address, fields, body).as_bytes()).unwrap();
        Answer::read(&mut stream)
    }
}

/// An agent that does only what the test says.
pub struct RawAgent {
    lines: BufReader<Tls>,
}

impl RawAgent {
    /// Registers `id` and opens its control channel.
    pub fn up(hub: &Hub, key: &str, id: &str) -> Self {
        let body = json!({ "id": id, "label": id, "fingerprint": FINGERPRINT }).to_string();
        let registered = hub.ask("POST /v1/agents/register", key, &body);
        assert_eq!(registered.status, 200, "{registered:?}");
        let (mut agent, answer) = Self::connect(hub, key);
        assert_eq!(answer.status, 101, "{answer:?}");
        agent.send(&json!({ "type": "hello", "agent": id, "version": "test" }));
        assert_eq!(agent.next().unwrap()["type"], "welcome");
        agent
    }

    pub fn connect(hub: &Hub, key: &str) -> (Self, Answer) {
        let mut stream = hub.tls();
        let fields = [("x-api-key", key), ("Connection", "Upgrade"), ("Upgrade", "connect-control/1")];
        stream.write_all(request("GET /v1/agent", &hub.address, &fields, "").as_bytes()).unwrap();
        let answer = Answer::read_head(&mut stream);
        (Self { lines: BufReader::new(stream) }, answer)
    }

    pub fn send(&mut self, message: &Value) {
        self.send_raw(&message.to_string());
    }

    pub fn send_raw(&mut self, line: &str) {
        let _ = self.lines.get_mut().write_all(format!("{line}\n").as_bytes());
    }

    /// The next message that is not about the audit log; `None` when the hub has ended the channel.
    pub fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            match self.lines.read_line(&mut line) {
                Ok(1..) if line.trim().is_empty() || line.contains(r#""type":"audit""#) => {}
                Ok(1..) => return serde_json::from_str(&line).ok(),
                _ => return None,
            }
        }
    }

    /// Exposes and returns the service's id.
    pub fn expose(&mut self, name: &str) -> String {
        self.send(&json!({ "type": "expose", "name": name, "port": 5432, "protocol": "tcp" }));
        let told = self.next().unwrap();
        assert_eq!(told["type"], "exposed", "{told}");
        told["service"].as_str().unwrap().to_owned()
    }

    /// The ticket of the session that the hub announces next.
    pub fn ticket(&mut self) -> String {
        let told = self.next().unwrap();
        assert_eq!(told["type"], "open", "{told}");
        told["ticket"].as_str().unwrap().to_owned()
    }
}
