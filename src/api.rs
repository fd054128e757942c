//! The hub as its clients see it: typed calls over one kept-alive TLS connection, and the two upgrades.

use std::fmt;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use rustls::CertificateError::Expired;
use rustls::CertificateError::ExpiredContext;
use rustls::CertificateError::NotValidYet;
use rustls::CertificateError::NotValidYetContext;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::ResolvedSocketAddrs;
use ureq::unversioned::resolver::Resolver;
use ureq::unversioned::transport::Buffers;
use ureq::unversioned::transport::ConnectionDetails;
use ureq::unversioned::transport::Connector;
use ureq::unversioned::transport::LazyBuffers;
use ureq::unversioned::transport::NextTimeout;
use ureq::unversioned::transport::Transport;

use crate::error::Error;
use crate::error::Kind;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::code::Code;
use crate::model::fingerprint::Pin;
use crate::model::version;
use crate::model::version::End;
use crate::model::version::Version;
use crate::net::address::HubUrl;
use crate::net::connect::DEADLINE;
use crate::net::connect::dial_hub;
use crate::net::connect::is_timeout;
use crate::net::connect::set_deadline;
use crate::net::duplex::Duplex;
use crate::net::http;
use crate::net::http::Ask;
use crate::net::stop::Registration;
use crate::net::stop::Stop;
use crate::net::tls;
use crate::net::trust;
use crate::net::trust::HubTrust;
use crate::os::clock;
use crate::wire::api::AgentInfo;
use crate::wire::api::AskDevice;
use crate::wire::api::AskSession;
use crate::wire::api::DeviceAsked;
use crate::wire::api::DeviceState;
use crate::wire::api::Health;
use crate::wire::api::MakeShare;
use crate::wire::api::RegisterAgent;
use crate::wire::api::ServiceInfo;
use crate::wire::api::SessionGranted;
use crate::wire::api::ShareInfo;
use crate::wire::api::ShareMade;
use crate::wire::api::SharePreview;
use crate::wire::api::WhoAmI;
use crate::wire::control;
use crate::wire::message::one_line;

/// Lists of thousands of services are larger than any other answer.
const ANSWER_LIMIT: u64 = 16 * 1024 * 1024;
/// What ureq keeps for a head and a piece of body.
const BUFFER: usize = 16 * 1024;

/// A connection that rested longer is not used again: it may have died without a word, as when a laptop
/// slept, and the call would wait out its deadline.
const KEPT: Duration = Duration::from_secs(2);

pub struct Hub {
    pub url: HubUrl,
    key: Option<String>,
    dialer: Dialer,
    agent: ureq::Agent,
    patience: Duration,
}

impl Hub {
    /// Every connection it makes is cut by `stop`.
    pub fn new(url: HubUrl, trust: &HubTrust, key: Option<String>, stop: &Stop) -> Result<Self> {
        let dialer = Dialer { url, tls: trust::hub_client(trust)?, stop: stop.clone() };
        Ok(Self::with(dialer, key, DEADLINE))
    }

    /// The same hub for somebody who tries again and again: a try that meets silence must not hold up the
    /// next one, which may meet a hub that is back.
    pub fn for_retries(&self, patience: Duration) -> Self {
        Self::with(self.dialer.clone(), self.key.clone(), patience)
    }

    fn with(dialer: Dialer, key: Option<String>, patience: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(patience))
            .max_idle_age(KEPT)
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("connect/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = ureq::Agent::with_parts(config, dialer.clone(), NoResolver);
        Self { url: dialer.url.clone(), key, dialer, agent, patience }
    }

    pub fn health(&self) -> Result<Health> {
        self.call("GET", "/health", &[], None::<&()>)
    }

    pub fn whoami(&self) -> Result<WhoAmI> {
        self.call("GET", "/v1/whoami", &[], None::<&()>)
    }

    pub fn services(&self) -> Result<Vec<ServiceInfo>> {
        self.call("GET", "/v1/services", &[], None::<&()>)
    }

    pub fn register(&self, agent: &RegisterAgent) -> Result<AgentInfo> {
        self.call("POST", "/v1/agents/register", &[], Some(agent))
    }

    pub fn ask_session(&self, ask: &AskSession) -> Result<SessionGranted> {
        self.call("POST", "/v1/sessions", &[], Some(ask))
    }

    pub fn ask_device(&self, label: &str) -> Result<DeviceAsked> {
        self.call("POST", "/v1/device", &[], Some(&AskDevice { label: label.to_owned() }))
    }

    pub fn device_state(&self, asked: &DeviceAsked) -> Result<DeviceState> {
        let path = format!("/v1/device/{}", asked.code);
        self.call("GET", &path, &[("x-device-secret", &asked.secret)], None::<&()>)
    }

    pub fn make_share(&self, share: &MakeShare) -> Result<ShareMade> {
        self.call("POST", "/v1/shares", &[], Some(share))
    }

    pub fn shares(&self) -> Result<Vec<ShareInfo>> {
        self.call("GET", "/v1/shares", &[], None::<&()>)
    }

    /// By its code or its id, which are plain letters and digits both.
    pub fn revoke_share(&self, code: &str) -> Result<()> {
        self.exchange("DELETE", &format!("/v1/shares/{code}"), &[], None).map(drop)
    }

    pub fn join_share(&self, code: &Code) -> Result<SharePreview> {
        self.call("POST", &format!("/v1/shares/{}/join", code.as_str()), &[], None::<&()>)
    }

    pub fn metrics(&self) -> Result<String> {
        self.exchange("GET", "/metrics", &[], None).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A call without a type of its own, for the hub's own command line. No content is `null`.
    pub fn any(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let bytes = self.exchange(method, path, &[], body.map(|body| body.to_string().into_bytes()))?;
        if bytes.is_empty() { Ok(Value::Null) } else { self.read(&bytes) }
    }

    /// The pin of the CA that the hub shows, believed by nobody yet. Nothing is sent to it.
    pub fn observe(&self) -> Result<Pin> {
        let (tls, seen) = trust::observer()?;
        let dialer = Dialer { tls, ..self.dialer.clone() };
        drop(dialer.dial(Instant::now() + DEADLINE)?);
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        seen.ok_or_else(|| Error::new("The hub showed no certificate"))
    }

    /// A connection on which the hub has proved that it is the hub.
    pub fn greet(&self) -> Result<()> {
        self.dialer.dial(Instant::now() + self.patience).map(drop)
    }

    /// The agent's control channel.
    pub fn control(&self) -> Result<Duplex> {
        let deadline = Instant::now() + self.patience;
        let key = self.key.clone().unwrap_or_default();
        let ask = Ask {
            method: "GET",
            path: "/v1/agent",
            host: &self.url.authority(),
            fields: &[("x-api-key", &key)],
            body: None,
        };
        let (stream, _cut) = self.dialer.dial(deadline)?;
        http::upgrade(stream, control::UPGRADE, &ask, deadline)
    }

    /// One half of a session. The relay is this same hub; what it names says only whether TLS ends before it.
    /// Were the address believed, a hub could have its clients connect to anything in their networks.
    pub fn relay(&self, relay: &str, ticket: &str, deadline: Instant) -> Result<Duplex> {
        let (stream, _cut) = match relay.split_once("://") {
            Some(("http", _)) => self.dialer.dial_plain(deadline)?,
            Some(("https", _)) => self.dialer.dial(deadline)?,
            _ => return Err(Error::new(format!("The hub named an odd relay: {}", relay.escape_debug()))),
        };
        let (fields, host) = ([("x-ticket", ticket)], self.url.authority());
        let ask = Ask { method: "GET", path: "/v1/relay", host: &host, fields: &fields, body: None };
        http::upgrade(stream, control::RELAY_UPGRADE, &ask, deadline)
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let body = body.map(serde_json::to_vec).transpose().or_say(|| "Cannot write the request")?;
        let bytes = self.exchange(method, path, fields, body)?;
        self.read(&bytes)
    }

    fn read<T: DeserializeOwned>(&self, bytes: &[u8]) -> Result<T> {
        serde_json::from_slice(bytes).map_err(|error| {
            Error::new(format!("{} does not answer as a hub does", self.url))
                .because(one_line(&error.to_string()))
                .hint("Check the address given with --hub")
        })
    }

    fn exchange(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: Option<Vec<u8>>,
    ) -> Result<Vec<u8>> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        request = request.header(version::FIELD, version::OURS.to_string());
        if let Some(key) = &self.key {
            request = request.header("x-api-key", key);
        }
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let odd = || "The API key has characters that a key never has";
        let answered = match body {
            Some(body) => {
                let request = request.header("content-type", "application/json").body(body).or_say(odd)?;
                self.agent.run(request)
            }
            None => self.agent.run(request.body(()).or_say(odd)?),
        };
        let mut answer = answered.map_err(|error| self.trouble(error))?;
        let status = answer.status().as_u16();
        let speaks = answer.headers().get(version::FIELD).map(|said| said.to_str().unwrap_or_default());
        if let Some((what, hint)) = between_us("The hub", "the hub's machine", Version::said(speaks)) {
            return Err(Error::new(what).hint(hint));
        }
        let read = answer.body_mut().with_config().limit(ANSWER_LIMIT).read_to_vec();
        let bytes = read.map_err(|error| self.trouble(error))?;
        if (200..300).contains(&status) { Ok(bytes) } else { Err(explain(status, &bytes)) }
    }

    fn trouble(&self, error: ureq::Error) -> Error {
        match error {
            ureq::Error::Other(inner) => match inner.downcast::<Error>() {
                Ok(ours) => *ours,
                Err(inner) => unreachable_hub(&self.url, inner.to_string()),
            },
            ureq::Error::Timeout(_) => unreachable_hub(&self.url, "it did not answer in time".to_owned()),
            error => unreachable_hub(&self.url, error.to_string()),
        }
    }
}

/// What stands between this connect and another end.
pub fn between_us(called: &str, at: &str, speaks: Version) -> Option<(String, String)> {
    let own = End { called: "this connect", at: "this machine", speaks: version::OURS };
    version::objection(&End { called, at, speaks }, &own)
}

fn unreachable_hub(url: &HubUrl, why: String) -> Error {
    Error::new(format!("Cannot reach the hub {url}"))
        .because(why)
        .hint("Check the address, and on its machine that it runs: connect hub status")
        .kind(Kind::Unreachable)
}

/// What a refusal means for the person who got it.
fn explain(status: u16, body: &[u8]) -> Error {
    let error = http::refusal(status, body);
    match (status, &error.hint) {
        (401, None) => error.hint("Run: connect up --hub URL --api-key KEY"),
        _ => error,
    }
}

/// Makes TLS connections to one hub; for ureq, and for the upgrades.
#[derive(Clone)]
struct Dialer {
    url: HubUrl,
    tls: Arc<ClientConfig>,
    stop: Stop,
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dialer({})", self.url)
    }
}

impl Dialer {
    fn dial_plain(&self, deadline: Instant) -> Result<(Duplex, Registration)> {
        let socket = dial_hub(&self.url.host, self.url.port, deadline, &self.stop).map_err(|error| {
            let hint = error.hint.clone();
            let error = unreachable_hub(&self.url, error.to_string());
            if let Some(hint) = hint { error.hint(hint) } else { error }
        })?;
        let cut = self.stop.attach(&socket).ok_or_else(|| Error::new("Stopped").kind(Kind::Interrupted))?;
        Ok((Duplex::plain(socket), cut))
    }

    fn dial(&self, deadline: Instant) -> Result<(Duplex, Registration)> {
        let (below, cut) = self.dial_plain(deadline)?;
        let host = &self.url.host;
        let name = ServerName::try_from(host.clone()).or_say(|| format!("{host} cannot be a host's name"))?;
        let established =
            tls::client(&self.tls, name, below, deadline).map_err(|error| self.distrust(&error))?;
        Ok((established.into_duplex(), cut))
    }

    fn distrust(&self, error: &std::io::Error) -> Error {
        let certificate = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match certificate {
            Some(rustls::Error::InvalidCertificate(
                Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
            )) => Error::new(format!("The certificate of {} is not valid now", self.url))
                .because(format!("this machine's clock says {}", clock::now()))
                .hint("If that is not the time, set the clock: timedatectl set-ntp true. Otherwise restart the hub, which renews it"),
            Some(rustls::Error::InvalidCertificate(why)) => {
                Error::new(format!("{} did not prove that it is your hub", self.url))
                    .because(format!("{why}"))
                    .hint("Its certificate does not match the key's pin or your CA file. Ask for a new key (hub key create), or give --ca FILE")
            }
            _ => unreachable_hub(&self.url, error.to_string()),
        }
    }
}

impl Connector for Dialer {
    type Out = HubTransport;

    fn connect(
        &self,
        details: &ConnectionDetails,
        _: Option<()>,
    ) -> std::result::Result<Option<HubTransport>, ureq::Error> {
        let deadline = Instant::now() + (*details.timeout.after).min(DEADLINE);
        let (stream, cut) = self.dial(deadline).map_err(|error| ureq::Error::Other(Box::new(error)))?;
        Ok(Some(HubTransport {
            stream: Mutex::new(stream),
            buffers: LazyBuffers::new(BUFFER, BUFFER),
            _cut: cut,
        }))
    }
}

/// ureq wants its transports `Sync`, which a reader that holds decrypted bytes is not by itself; the
/// mutex is never contended.
struct HubTransport {
    stream: Mutex<Duplex>,
    buffers: LazyBuffers,
    _cut: Registration,
}

impl fmt::Debug for HubTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubTransport")
    }
}

impl HubTransport {
    fn stream(&mut self) -> &mut Duplex {
        self.stream.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

fn arm(socket: &TcpStream, timeout: &NextTimeout) -> std::result::Result<(), ureq::Error> {
    set_deadline(socket, Instant::now() + (*timeout.after).min(DEADLINE)).map_err(ureq::Error::Io)
}

fn timed(error: std::io::Error, timeout: &NextTimeout) -> ureq::Error {
    if is_timeout(&error) { ureq::Error::Timeout(timeout.reason) } else { ureq::Error::Io(error) }
}

impl Transport for HubTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(
        &mut self,
        amount: usize,
        timeout: NextTimeout,
    ) -> std::result::Result<(), ureq::Error> {
        let stream = self.stream.get_mut().unwrap_or_else(PoisonError::into_inner);
        arm(&stream.socket, &timeout)?;
        let output = &self.buffers.output()[..amount];
        stream.writer.write_all(output).map_err(|error| timed(error, &timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> std::result::Result<bool, ureq::Error> {
        let stream = self.stream.get_mut().unwrap_or_else(PoisonError::into_inner);
        arm(&stream.socket, &timeout)?;
        let room = self.buffers.input_append_buf();
        let read = stream.reader.read(room).map_err(|error| timed(error, &timeout))?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        // A kept connection that the hub has closed meanwhile is readable: its farewell is there.
        let socket = &self.stream().socket;
        let quiet = socket.set_nonblocking(true).and_then(|()| socket.peek(&mut [0]));
        let back = socket.set_nonblocking(false);
        back.is_ok() && quiet.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// The dialer resolves for itself, or lets the proxy do it.
#[derive(Debug)]
struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(
        &self,
        _: &Uri,
        _: &Config,
        _: NextTimeout,
    ) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        Ok(self.empty())
    }
}

/// How long a device code's owner waits between two looks.
pub fn poll_interval(asked: &DeviceAsked) -> Duration {
    Duration::from_secs(asked.interval_seconds.clamp(1, 30))
}
