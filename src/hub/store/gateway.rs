//! etcd by its JSON gateway: one call at a time over a kept-alive connection, and the watch, which does not end.
//!
//! Every call has a deadline. All connections of one gateway use the same endpoint; one that does not answer moves all
//! of them on to the next in the list, the watch included.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::json;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::host_port::HostPort;
use crate::model::hub_trust::HubTrust;
use crate::net::http_client::ClientConnection;
use crate::net::http_client::ClientRequest;
use crate::net::http_client::ResponseLines;
use crate::net::stop::Stop;
use crate::os::lock::locked;
use crate::tls;
use crate::tls::connector::Connector;
use crate::tls::trust;

/// One call at one endpoint; a slower one counts as dead.
const ETCD_CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// etcd makes checking a password slow on purpose.
const ETCD_LOGIN_TIMEOUT: Duration = Duration::from_secs(5);
const ETCD_DEFAULT_PORT: u16 = 2379;

/// Where an etcd is, and who we are to it.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    pub endpoints: Vec<EtcdEndpoint>,
    /// How an https endpoint proves who it is.
    pub trust: HubTrust,
    pub login: Option<(String, String)>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct EtcdEndpoint {
    tls: bool,
    at: HostPort,
}

impl EtcdEndpoint {
    /// Reads `http://host:2379`.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once("://")?;
        let at = HostPort::parse(rest.trim_end_matches('/'), ETCD_DEFAULT_PORT)?;
        matches!(scheme, "http" | "https").then(|| Self { tls: scheme == "https", at })
    }
}

/// What all connections to one etcd share.
struct GatewayShared {
    config: EtcdConfig,
    connector: Connector,
    in_use: Mutex<EndpointInUse>,
    token: Mutex<Option<String>>,
}

/// The endpoint that all calls go to. The first to find it dead moves everybody on.
struct EndpointInUse {
    number: usize,
    /// Cuts the watches there.
    stop: Stop,
}

pub struct Gateway {
    shared: Arc<GatewayShared>,
    idle: Option<IdleConnection>,
}

struct IdleConnection {
    endpoint: usize,
    connection: ClientConnection,
}

#[derive(Clone, Copy)]
struct EtcdCall<'a> {
    path: &'a str,
    token: Option<&'a str>,
    body: &'a Value,
    timeout: Duration,
}

/// What went wrong with one call at one endpoint.
enum AttemptError {
    /// This endpoint does not answer; another may.
    Unreachable(Error),
    /// The token is no longer valid.
    TokenRejected,
    Refused(Error),
}

impl Gateway {
    pub fn new(config: &EtcdConfig, stop: &Stop) -> Result<Self> {
        let tls = trust::hub_client(&config.trust)?;
        Ok(Self {
            shared: Arc::new(GatewayShared {
                config: config.clone(),
                connector: Connector { tls, by_environment: false, stop: stop.clone() },
                in_use: Mutex::new(EndpointInUse { number: 0, stop: stop.child() }),
                token: Mutex::default(),
            }),
            idle: None,
        })
    }

    /// Another connection to the same etcd.
    pub fn another(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), idle: None }
    }

    /// The same etcd, cut by another stop: for the calls that are still to be made at the end.
    pub fn until(&self, stop: &Stop) -> Result<Self> {
        let other = Self::new(&self.shared.config, stop)?;
        locked(&other.shared.in_use).number = locked(&self.shared.in_use).number;
        (*locked(&other.shared.token)).clone_from(&locked(&self.shared.token));
        Ok(other)
    }

    pub fn call(&mut self, path: &str, body: &Value) -> Result<Value> {
        let mut result = Err(Error::new("There is no etcd"));
        for _ in 0..self.shared.config.endpoints.len() {
            result = self.call_once(path, body);
            match &result {
                Err(error) if error.kind == ErrorKind::Unreachable => {}
                _ => return result,
            }
        }
        result
    }

    fn call_once(&mut self, path: &str, body: &Value) -> Result<Value> {
        let endpoint = locked(&self.shared.in_use).number;
        let mut called = self.call_at(endpoint, path, body);
        if matches!(called, Err(AttemptError::TokenRejected)) {
            *locked(&self.shared.token) = None;
            called = self.call_at(endpoint, path, body);
        }
        called.map_err(|error| self.shared.give_up(endpoint, error))
    }

    fn call_at(
        &mut self,
        endpoint: usize,
        path: &str,
        body: &Value,
    ) -> std::result::Result<Value, AttemptError> {
        let token = self.token(endpoint)?;
        let call = EtcdCall { path, token: token.as_deref(), body, timeout: ETCD_CALL_TIMEOUT };
        self.exchange(endpoint, call)
    }

    fn exchange(&mut self, endpoint: usize, call: EtcdCall<'_>) -> std::result::Result<Value, AttemptError> {
        let deadline = Instant::now() + call.timeout;
        let reusable = |idle: &IdleConnection| idle.endpoint == endpoint && idle.connection.is_idle();
        let mut connection = match self.idle.take().filter(reusable) {
            Some(idle) => idle.connection,
            None => self.shared.connect(endpoint, &self.shared.connector, deadline)?,
        };
        let at = &self.shared.config.endpoints[endpoint];
        let answered = call.send(at, |request| connection.exchange(request, deadline));
        let answer = answered.map_err(|error| unanswered(at, error))?;
        let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if answer.status != 200 {
            return Err(refused(at, answer.status, &value));
        }
        self.idle = Some(IdleConnection { endpoint, connection });
        Ok(value)
    }

    /// What proves to etcd who we are; `None` where it does not ask.
    fn token(&mut self, endpoint: usize) -> std::result::Result<Option<String>, AttemptError> {
        let Some((name, password)) = &self.shared.config.login else { return Ok(None) };
        if let Some(token) = locked(&self.shared.token).clone() {
            return Ok(Some(token));
        }
        let body = json!({ "name": name, "password": password });
        let path = "/v3/auth/authenticate";
        let login = EtcdCall { path, token: None, body: &body, timeout: ETCD_LOGIN_TIMEOUT };
        let answer = match self.exchange(endpoint, login) {
            Err(AttemptError::TokenRejected | AttemptError::Refused(_)) => {
                return Err(AttemptError::Refused(not_accepted()));
            }
            answer => answer?,
        };
        let token = answer["token"].as_str().map(str::to_owned);
        locked(&self.shared.token).clone_from(&token);
        Ok(token)
    }

    /// Everything that happens from `revision` on to the keys from `first` up to `end`.
    pub fn watch(&mut self, first: &str, end: &str, revision: u64) -> Result<ResponseLines> {
        let endpoint = locked(&self.shared.in_use).number;
        let body = json!({ "create_request": { "key": encoded(first), "range_end": encoded(end),
            "start_revision": revision.to_string(), "progress_notify": true } });
        self.watch_at(endpoint, &body).map_err(|error| self.shared.give_up(endpoint, error))
    }

    /// Ends the running watch, so that it is opened again.
    pub fn cut_watch(&self) {
        let next = self.shared.connector.stop.child();
        std::mem::replace(&mut locked(&self.shared.in_use).stop, next).stop();
    }

    fn watch_at(
        &mut self,
        endpoint: usize,
        body: &Value,
    ) -> std::result::Result<ResponseLines, AttemptError> {
        let stop = locked(&self.shared.in_use).stop.clone();
        let token = self.token(endpoint)?;
        let token = token.as_deref();
        let call = EtcdCall { path: "/v3/watch", token, body, timeout: ETCD_CALL_TIMEOUT };
        let deadline = Instant::now() + call.timeout;
        let connector = Connector { stop, ..self.shared.connector.clone() };
        let connection = self.shared.connect(endpoint, &connector, deadline)?;
        let at = &self.shared.config.endpoints[endpoint];
        let answered = call.send(at, |request| connection.into_lines(request, deadline));
        let (status, lines) = answered.map_err(|error| unanswered(at, error))?;
        if status == 200 { Ok(lines) } else { Err(refused(at, status, &Value::Null)) }
    }
}

impl EtcdCall<'_> {
    fn send<T>(self, endpoint: &EtcdEndpoint, send: impl FnOnce(&ClientRequest<'_>) -> T) -> T {
        let authorization = self.token.map(|token| ("Authorization", token));
        send(&ClientRequest {
            method: "POST",
            path: self.path,
            host: &endpoint.at.to_string(),
            fields: authorization.as_slice(),
            body: Some(self.body.to_string().as_bytes()),
        })
    }
}

impl GatewayShared {
    fn connect(
        &self,
        endpoint: usize,
        connector: &Connector,
        deadline: Instant,
    ) -> std::result::Result<ClientConnection, AttemptError> {
        let endpoint = &self.config.endpoints[endpoint];
        let connected = connector.connect_plain(&endpoint.at, deadline);
        let (mut connection, cut) = connected.map_err(|error| unanswered(endpoint, error))?;
        if endpoint.tls {
            let secured = tls::client(&connector.tls.config, &endpoint.at.host, connection, deadline);
            connection = secured.map_err(|error| unanswered(endpoint, error))?.into_duplex();
        }
        Ok(ClientConnection::new(connection, cut))
    }

    /// After an endpoint did not answer everybody goes on to the next, unless somebody has moved on already.
    fn give_up(&self, endpoint: usize, error: AttemptError) -> Error {
        match error {
            AttemptError::Refused(error) => error,
            AttemptError::TokenRejected => {
                *locked(&self.token) = None;
                not_accepted()
            }
            AttemptError::Unreachable(error) => {
                let mut in_use = locked(&self.in_use);
                if in_use.number == endpoint {
                    in_use.number = (endpoint + 1) % self.config.endpoints.len();
                    std::mem::replace(&mut in_use.stop, self.connector.stop.child()).stop();
                }
                error
            }
        }
    }
}

fn not_accepted() -> Error {
    Error::new("etcd does not accept this user")
        .hint("Check --etcd-user and its password, in --etcd-password-file or CONNECT_ETCD_PASSWORD")
}

fn unanswered(
    endpoint: &EtcdEndpoint,
    why: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> AttemptError {
    AttemptError::Unreachable(
        Error::new(format!("etcd at {} does not answer", endpoint.at))
            .because(why)
            .hint("Check that it runs, and the address given with --store etcd=")
            .kind(ErrorKind::Unreachable),
    )
}

fn refused(endpoint: &EtcdEndpoint, status: u16, answer: &Value) -> AttemptError {
    let why = words(answer);
    let error = Error::new(format!("etcd at {} refused", endpoint.at)).because(why.clone());
    // An outdated token has several names, depending on what it is asked for.
    if status == 401 || why.contains("invalid auth token") || why.contains("revision of auth store") {
        AttemptError::TokenRejected
    } else if why.contains("user name is empty") {
        AttemptError::Refused(error.hint("It wants a user: --etcd-user NAME, and its password"))
    } else if why.contains("permission denied") {
        AttemptError::Refused(error.hint("Grant this user read and write on /connect/"))
    } else if status >= 500 {
        AttemptError::Unreachable(error.kind(ErrorKind::Unreachable))
    } else {
        AttemptError::Refused(error)
    }
}

fn words(answer: &Value) -> String {
    let text = |name: &str| answer[name].as_str().map(crate::model::text::one_line);
    text("error").or_else(|| text("message")).unwrap_or_else(|| "without a reason".into())
}

pub fn encoded(text: impl AsRef<[u8]>) -> String {
    STANDARD.encode(text)
}

pub fn decoded(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().unwrap_or_default()).unwrap_or_default()
}

/// etcd writes 64-bit numbers as text.
pub fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_default()
}
