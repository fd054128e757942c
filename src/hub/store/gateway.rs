//! etcd by its JSON gateway: one call at a time over a kept connection, and the watch, which goes on.
//!
//! Every call ends by its deadline. The endpoints are gone through in order: one that does not answer makes
//! all who share it move on to the next, the watch included.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::ClientConfig;
use serde_json::Value;
use serde_json::json;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::hub_trust::HubTrust;
use crate::net::address::bracketed;
use crate::net::address::split_host_port;
use crate::net::connect::dial;
use crate::net::duplex::Duplex;
use crate::net::http;
use crate::net::http::ClientRequest;
use crate::net::http::ResponseLines;
use crate::net::stop::Registration;
use crate::net::stop::Stop;
use crate::os::lock::locked;
use crate::os::socket;
use crate::tls;
use crate::tls::trust;

/// One call at one endpoint takes no longer.
const ETCD_CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// etcd makes passwords slow to try.
const ETCD_LOGIN_TIMEOUT: Duration = Duration::from_secs(5);
const ETCD_DEFAULT_PORT: u16 = 2379;

/// Where an etcd is, and who we are to it.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    pub endpoints: Vec<EtcdEndpoint>,
    /// For https; without it the system's roots count.
    pub trust: HubTrust,
    pub login: Option<(String, String)>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct EtcdEndpoint {
    tls: bool,
    host: String,
    port: u16,
}

impl EtcdEndpoint {
    /// Reads `http://host:2379`.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once("://")?;
        let (host, port) = split_host_port(rest.trim_end_matches('/'), ETCD_DEFAULT_PORT)?;
        matches!(scheme, "http" | "https").then(|| Self { tls: scheme == "https", host, port })
    }

    fn authority(&self) -> String {
        format!("{}:{}", bracketed(&self.host), self.port)
    }
}

/// What all connections to one etcd share.
struct GatewayShared {
    at: EtcdConfig,
    tls: Arc<ClientConfig>,
    stop: Stop,
    place: Mutex<CurrentEndpoint>,
    token: Mutex<Option<String>>,
}

/// The endpoint that is used now. Whoever finds it dead moves everybody on.
struct CurrentEndpoint {
    number: usize,
    cut: Stop,
}

pub struct Gateway {
    access: Arc<GatewayShared>,
    kept: Option<GatewayConnection>,
}

struct GatewayConnection {
    number: usize,
    stream: Duplex,
    cut: Registration,
}

/// One try at one endpoint.
#[derive(Clone, Copy)]
struct Attempt {
    number: usize,
    deadline: Instant,
}

impl Attempt {
    fn with_timeout(self, timeout: Duration) -> Self {
        Self { deadline: Instant::now() + timeout, ..self }
    }
}

type AttemptResult<T> = std::result::Result<T, AttemptError>;

/// What went wrong with it.
enum AttemptError {
    /// This endpoint does not answer; another may.
    Unreachable(Error),
    /// The token is not good any more.
    TokenRejected,
    Refused(Error),
}

impl Gateway {
    pub fn new(at: &EtcdConfig, stop: &Stop) -> Result<Self> {
        let place = Mutex::new(CurrentEndpoint { number: 0, cut: Stop::new() });
        let (tls, at, stop) = (trust::hub_client(&at.trust)?, at.clone(), stop.clone());
        let access = Arc::new(GatewayShared { at, tls, stop, place, token: Mutex::default() });
        Ok(Self { access, kept: None })
    }

    /// Another connection to the same etcd.
    pub fn another(&self) -> Self {
        Self { access: Arc::clone(&self.access), kept: None }
    }

    /// The same, cut by another stop: for what is still to be said after the end.
    pub fn until(&self, stop: &Stop) -> Result<Self> {
        let number = locked(&self.access.place).number;
        let own = Self::new(&self.access.at, stop)?;
        locked(&own.access.place).number = number;
        (*locked(&own.access.token)).clone_from(&locked(&self.access.token));
        Ok(own)
    }

    pub fn call(&mut self, path: &str, body: &Value) -> Result<Value> {
        let mut result = Err(Error::new("There is no etcd"));
        for _ in 0..self.access.at.endpoints.len() {
            result = self.call_once(path, body);
            match &result {
                Err(error) if error.kind == ErrorKind::Unreachable => {}
                _ => return result,
            }
        }
        result
    }

    fn call_once(&mut self, path: &str, body: &Value) -> Result<Value> {
        let one = self.access.new_attempt();
        let ask = |own: &mut Self| {
            let token = own.token(one)?;
            own.exchange(one.with_timeout(ETCD_CALL_TIMEOUT), path, token.as_deref(), body)
        };
        let called = match ask(self) {
            Err(AttemptError::TokenRejected) => {
                *locked(&self.access.token) = None;
                ask(self)
            }
            called => called,
        };
        called.map_err(|trouble| self.access.give_up(one, trouble))
    }

    fn exchange(
        &mut self,
        one: Attempt,
        path: &str,
        token: Option<&str>,
        body: &Value,
    ) -> AttemptResult<Value> {
        let kept = self
            .kept
            .take()
            .filter(|kept| kept.number == one.number && socket::is_idle_and_open(&kept.stream.socket));
        let mut kept = kept.map_or_else(|| self.access.connect(one), Ok)?;
        let endpoint = &self.access.at.endpoints[one.number];
        let (answer, _) =
            endpoint.ask(path, token, body, |ask| http::exchange(&mut kept.stream, ask, one.deadline))?;
        let value: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        if answer.status != 200 {
            return Err(refused(endpoint, answer.status, &value));
        }
        self.kept = Some(kept);
        Ok(value)
    }

    /// What proves to etcd who we are; `None` where nobody asks.
    fn token(&mut self, one: Attempt) -> AttemptResult<Option<String>> {
        let Some((name, password)) = &self.access.at.login else { return Ok(None) };
        if let Some(token) = locked(&self.access.token).clone() {
            return Ok(Some(token));
        }
        let body = json!({ "name": name, "password": password });
        let answer =
            match self.exchange(one.with_timeout(ETCD_LOGIN_TIMEOUT), "/v3/auth/authenticate", None, &body) {
                Err(AttemptError::TokenRejected | AttemptError::Refused(_)) => {
                    return Err(AttemptError::Refused(not_accepted()));
                }
                answer => answer?,
            };
        let token = answer["token"].as_str().map(str::to_owned);
        locked(&self.access.token).clone_from(&token);
        Ok(token)
    }

    /// Everything that happens from `revision` on to keys from `front` up to `end`, until the cuts are dropped.
    pub fn watch(
        &mut self,
        front: &str,
        end: &str,
        revision: u64,
    ) -> Result<(ResponseLines, [Registration; 2])> {
        let one = self.access.new_attempt();
        let body = json!({ "create_request": { "key": encoded(front), "range_end": encoded(end),
            "start_revision": revision.to_string(), "progress_notify": true } });
        self.try_watch(one, &body).map_err(|trouble| self.access.give_up(one, trouble))
    }

    fn try_watch(&mut self, one: Attempt, body: &Value) -> AttemptResult<(ResponseLines, [Registration; 2])> {
        let (token, one) = (self.token(one)?, one.with_timeout(ETCD_CALL_TIMEOUT));
        let moved = locked(&self.access.place).cut.clone();
        let GatewayConnection { stream, cut, .. } = self.access.connect(one)?;
        let moved = moved.attach(&stream.socket).ok_or_else(|| AttemptError::Refused(Error::stopped()))?;
        let endpoint = &self.access.at.endpoints[one.number];
        let (status, lines) = endpoint
            .ask("/v3/watch", token.as_deref(), body, |ask| ResponseLines::ask(stream, ask, one.deadline))?;
        if status == 200 { Ok((lines, [cut, moved])) } else { Err(refused(endpoint, status, &Value::Null)) }
    }
}

impl EtcdEndpoint {
    fn ask<T>(
        &self,
        path: &str,
        token: Option<&str>,
        body: &Value,
        send: impl FnOnce(&ClientRequest<'_>) -> std::io::Result<T>,
    ) -> AttemptResult<T> {
        let (host, body) = (self.authority(), body.to_string());
        let fields: Vec<_> = token.iter().map(|token| ("Authorization", *token)).collect();
        send(&ClientRequest {
            method: "POST",
            path,
            host: &host,
            fields: &fields,
            body: Some(body.as_bytes()),
        })
        .map_err(|error| AttemptError::Unreachable(away(self, error)))
    }
}

impl GatewayShared {
    fn new_attempt(&self) -> Attempt {
        Attempt { number: locked(&self.place).number, deadline: Instant::now() + ETCD_CALL_TIMEOUT }
    }

    fn connect(&self, one: Attempt) -> AttemptResult<GatewayConnection> {
        let endpoint = &self.at.endpoints[one.number];
        let dialled = dial(&endpoint.host, endpoint.port, one.deadline, &self.stop);
        let socket = dialled.map_err(|error| AttemptError::Unreachable(away(endpoint, error)))?;
        let cut = self.stop.attach(&socket).ok_or_else(|| AttemptError::Refused(Error::stopped()))?;
        let mut stream = Duplex::plain(socket);
        if endpoint.tls {
            let established = tls::client(&self.tls, &endpoint.host, stream, one.deadline);
            stream =
                established.map_err(|error| AttemptError::Unreachable(away(endpoint, error)))?.into_duplex();
        }
        Ok(GatewayConnection { number: one.number, stream, cut })
    }

    /// After an endpoint that does not answer everybody goes on to the next, unless somebody has gone already.
    fn give_up(&self, one: Attempt, trouble: AttemptError) -> Error {
        match trouble {
            AttemptError::Refused(error) => error,
            AttemptError::TokenRejected => {
                *locked(&self.token) = None;
                not_accepted()
            }
            AttemptError::Unreachable(error) => {
                let mut place = locked(&self.place);
                if place.number == one.number {
                    place.number = (one.number + 1) % self.at.endpoints.len();
                    std::mem::take(&mut place.cut).stop();
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

fn away(endpoint: &EtcdEndpoint, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::new(format!("etcd at {} does not answer", endpoint.authority()))
        .because(why)
        .hint("Check that it runs, and the address given with --store etcd=")
        .kind(ErrorKind::Unreachable)
}

fn refused(endpoint: &EtcdEndpoint, status: u16, answer: &Value) -> AttemptError {
    let why = words(answer);
    let error = Error::new(format!("etcd at {} refused", endpoint.authority())).because(why.clone());
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
