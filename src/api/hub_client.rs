//! Calls to a hub, still without types: at the hub used last or, while that one is away, at the next of its fleet.

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use rustls::CertificateError::Expired;
use rustls::CertificateError::ExpiredContext;
use rustls::CertificateError::NotValidYet;
use rustls::CertificateError::NotValidYetContext;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::text::one_line;
use crate::model::version;
use crate::net::address::HUB_PORT;
use crate::net::address::HubUrl;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::duplex::Duplex;
use crate::net::http_client::ClientConnection;
use crate::net::http_client::ClientRequest;
use crate::net::http_client::refusal;
use crate::os::clock;
use crate::os::lock::locked;
use crate::tls;
use crate::tls::connector::Connector;
use crate::wire::api::NEXT_PAGE_FIELD;

/// It may go to several hubs: it says who the agent is.
pub const REGISTER_PATH: &str = "/v1/agents/register";

/// A connection that was idle for longer is not used again: it may have died unnoticed, as when a laptop slept, and
/// the call would wait out its deadline.
const IDLE_CONNECTION_AGE: Duration = Duration::from_secs(2);
/// A program makes fewer calls at once; the connections of a larger burst are closed.
const IDLE_CONNECTION_LIMIT: usize = 8;
/// With other hubs to go to, one that does not answer takes this part of the time.
const TIME_SHARE_PER_HUB: u32 = 3;

/// The time for the next of several hubs. One that is silent must leave some for the others.
pub fn share_of_time(deadline: Instant, hubs_left: usize) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left / u32::try_from(hubs_left).unwrap_or(1)
}

/// The hubs of a fleet, in the order in which they are tried.
pub struct FleetHubs {
    pub list: Vec<HubUrl>,
    /// The first ones were given by the user; the rest was learnt from a hub.
    pub given: usize,
    /// The one used last.
    pub at: usize,
    /// See `TlsConnection::negotiated`; of the last connection.
    pub negotiated: String,
}

pub type NewerKey = Arc<dyn Fn() -> Option<String> + Send + Sync>;

#[derive(Clone)]
pub struct HubClient {
    pub hubs: Arc<Mutex<FleetHubs>>,
    pub connector: Connector,
    /// Shared by the clones: a new secret counts for all of them.
    key: Arc<Mutex<Option<String>>>,
    /// Where a newer secret of the key may be, when a hub refuses the one at hand.
    pub newer_key: Option<NewerKey>,
    /// For each hub that is called.
    pub timeout: Duration,
    /// For all hubs that a call tries, each of which then gets its share of what is left.
    pub deadline: Option<Instant>,
    idle: Arc<Mutex<Vec<IdleHubConnection>>>,
}

/// A connection that waits for the next call.
struct IdleHubConnection {
    hub: HubUrl,
    since: Instant,
    connection: ClientConnection,
}

/// What is asked of whichever hub answers.
#[derive(Clone, Copy)]
pub struct HubRequest<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub body: Option<&'a [u8]>,
}

/// A hub's answer, whatever it says.
pub struct HubAnswer {
    pub status: u16,
    /// The number of its protocol, if it said one.
    protocol: Option<String>,
    pub body: Vec<u8>,
    /// Of a list that goes on: the ID after which its next page begins.
    pub next: Option<String>,
}

/// A hub that did not answer.
pub struct CallFailure {
    pub error: Error,
    /// The hub has certainly done nothing of what it was asked for.
    pub nothing_done: bool,
}

impl HubClient {
    pub fn new(urls: Vec<HubUrl>, connector: Connector, key: Option<String>) -> Self {
        let given = urls.len();
        let hubs = Arc::new(Mutex::new(FleetHubs { list: urls, given, at: 0, negotiated: String::new() }));
        let key = Arc::new(Mutex::new(key));
        Self {
            hubs,
            connector,
            key,
            newer_key: None,
            timeout: NETWORK_TIMEOUT,
            deadline: None,
            idle: Arc::default(),
        }
    }

    pub fn key(&self) -> Option<String> {
        locked(&self.key).clone()
    }

    pub fn use_key(&self, key: String) {
        *locked(&self.key) = Some(key);
    }

    /// Takes a newer secret of the key than the one that was `refused`. Another process of this machine may have saved it, and
    /// another thread of this one taken it.
    fn renew_key(&self, refused: Option<&String>) -> bool {
        if let Some(newer) = self.newer_key.as_ref().and_then(|newer| newer()) {
            self.use_key(newer);
        }
        self.key().as_ref() != refused
    }

    /// Calls the hub used last or, if that one is away, the next one. Returns which one answered.
    pub fn at_any_hub<T>(
        &self,
        may_repeat: bool,
        call: impl Fn(&Self, &HubUrl) -> std::result::Result<T, CallFailure>,
    ) -> Result<(T, HubUrl)> {
        let hubs = locked(&self.hubs);
        let list = hubs.list.clone();
        let first = hubs.at;
        drop(hubs);
        let mut first_failure = None;
        for step in 0..list.len() {
            let at = &list[(first + step) % list.len()];
            let mut client = self.clone();
            if let Some(deadline) = self.deadline {
                client.timeout = share_of_time(deadline, list.len() - step);
            }
            match call(&client, at) {
                Ok(done) => {
                    let mut hubs = locked(&self.hubs);
                    hubs.at = hubs.list.iter().position(|url| url == at).unwrap_or(0);
                    return Ok((done, at.clone()));
                }
                Err(CallFailure { error, nothing_done }) => {
                    // What this hub may have done must not be asked of another one too.
                    if !nothing_done && (!may_repeat || error.kind != ErrorKind::Unreachable) {
                        return Err(error);
                    }
                    log::debug!("{at}: {error}");
                    first_failure = first_failure.or(Some(error));
                }
            }
        }
        Err(first_failure.unwrap_or_else(|| Error::new("There is no hub")))
    }

    pub fn exchange(&self, request: &HubRequest<'_>) -> Result<HubAnswer> {
        let may_repeat = request.method == "GET" || request.path == REGISTER_PATH;
        Ok(self.at_any_hub(may_repeat, |client, url| client.exchange_at(url, request))?.0)
    }

    /// Calls this hub. One that speaks another protocol, or sends us to another hub, is a failure.
    pub fn exchange_at(
        &self,
        url: &HubUrl,
        request: &HubRequest<'_>,
    ) -> std::result::Result<HubAnswer, CallFailure> {
        let shown = self.key();
        let mut answer = self.exchange_raw(url, request)?;
        if answer.status == 401 && self.renew_key(shown.as_ref()) {
            answer = self.exchange_raw(url, request)?;
        }
        if let Some((what, hint)) = version::objection(answer.protocol.as_deref(), None) {
            return Err(Error::new(what).hint(hint).into());
        }
        let is_elsewhere =
            || serde_json::from_slice::<Value>(&answer.body).is_ok_and(|body| body["elsewhere"] == true);
        if answer.status == 503 && is_elsewhere() {
            return Err(CallFailure { error: explain(answer.status, &answer.body), nothing_done: true });
        }
        Ok(answer)
    }

    /// Calls this hub and returns what it answers, whatever that is.
    pub fn exchange_raw(
        &self,
        url: &HubUrl,
        request: &HubRequest<'_>,
    ) -> std::result::Result<HubAnswer, CallFailure> {
        let deadline = Instant::now() + self.timeout;
        // A call that goes on at another hub has what is left of the time.
        let deadline = self.deadline.map_or(deadline, |all| all.min(deadline));
        let mut connection = match self.take_idle(url) {
            Some(idle) => idle,
            None => self
                .connect(url, true, deadline)
                .map_err(|error| CallFailure { error, nothing_done: true })?,
        };
        let protocol = version::PROTOCOL.to_string();
        let mut fields = vec![(version::PROTOCOL_FIELD, protocol.as_str())];
        let key = self.key();
        fields.extend(key.as_deref().map(|key| ("x-api-key", key)));
        let HubRequest { method, path, body } = *request;
        let request = ClientRequest { method, path, host: &url.authority(), fields: &fields, body };
        let answer = connection.exchange(&request, deadline).map_err(|error| unanswered(url, error))?;
        if answer.keep_alive {
            self.keep_idle(url, connection);
        }
        let field = |name| answer.field(name).map(str::to_owned);
        let (protocol, next) = (field(version::PROTOCOL_FIELD), field(NEXT_PAGE_FIELD));
        Ok(HubAnswer { status: answer.status, protocol, next, body: answer.body })
    }

    fn take_idle(&self, url: &HubUrl) -> Option<ClientConnection> {
        let mut idle = locked(&self.idle);
        idle.retain(|idle| idle.since.elapsed() < IDLE_CONNECTION_AGE);
        let at = idle.iter().rposition(|idle| idle.hub == *url)?;
        let found = idle.swap_remove(at);
        drop(idle);
        Some(found.connection).filter(ClientConnection::is_idle)
    }

    fn keep_idle(&self, url: &HubUrl, connection: ClientConnection) {
        let mut idle = locked(&self.idle);
        if idle.len() < IDLE_CONNECTION_LIMIT {
            idle.push(IdleHubConnection { hub: url.clone(), since: Instant::now(), connection });
        }
    }

    /// A connection to this hub; with TLS, the hub has proved who it is.
    pub fn connect(&self, url: &HubUrl, by_tls: bool, deadline: Instant) -> Result<ClientConnection> {
        let left = deadline.saturating_duration_since(Instant::now());
        let has_others = locked(&self.hubs).list.len() > 1;
        let share = if has_others { left / TIME_SHARE_PER_HUB } else { left };
        let connected = self.connector.connect_plain(&url.host_port(), Instant::now() + share);
        let (mut connection, cut) = connected
            .map_err(|error| unreachable_hub(url, error.to_string()).hint(error.hint.unwrap_or_default()))?;
        if by_tls {
            let secured = tls::client(&self.connector.tls, &url.host, connection, deadline);
            let secured = secured.map_err(|error| not_proved(url, error))?;
            locked(&self.hubs).negotiated.clone_from(&secured.negotiated);
            connection = secured.into_duplex();
        }
        Ok(ClientConnection::new(connection, cut))
    }

    /// A connection to this hub that speaks `protocol` from now on.
    pub fn upgrade(&self, url: &HubUrl, upgrade: &HubUpgrade<'_>, deadline: Instant) -> Result<Duplex> {
        let connection = self.connect(url, upgrade.is_tls, deadline)?;
        let request = ClientRequest {
            method: "GET",
            path: upgrade.path,
            host: &url.authority(),
            fields: &[upgrade.proof],
            body: None,
        };
        connection.upgrade(upgrade.protocol, &request, upgrade.is_tls, deadline)
    }
}

pub struct HubUpgrade<'a> {
    pub path: &'a str,
    pub protocol: &'a str,
    /// The field that says who may: a key or a ticket.
    pub proof: (&'a str, &'a str),
    pub is_tls: bool,
}

impl HubAnswer {
    pub fn content(self) -> Result<Vec<u8>> {
        if (200..300).contains(&self.status) { Ok(self.body) } else { Err(explain(self.status, &self.body)) }
    }
}

impl From<Error> for CallFailure {
    fn from(error: Error) -> Self {
        Self { error, nothing_done: false }
    }
}

fn not_proved(url: &HubUrl, error: io::Error) -> Error {
    let certificate = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match certificate {
        Some(rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        )) => Error::new(format!("The certificate of {url} is not valid now"))
            .because(format!("this machine's clock says {}", clock::now()))
            .hint("If that is not the time, set the clock: timedatectl set-ntp true. Otherwise restart the hub, which renews it"),
        Some(rustls::Error::InvalidCertificate(why)) => {
            Error::new(format!("{url} did not prove that it is your hub"))
                .because(format!("{why}"))
                .hint("Its certificate does not match the key's pin or your CA file. Ask for a new key (hub key create), or give --ca FILE")
        }
        _ => match tls::nothing_in_common(&error, &url.to_string()) {
            Some(nothing) => nothing,
            None => unreachable_hub(url, error),
        },
    }
}

fn unreachable_hub(url: &HubUrl, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let usual = if url.port == HUB_PORT {
        String::new()
    } else {
        format!(". A hub usually listens on port {HUB_PORT}")
    };
    Error::new(format!("Cannot reach the hub {url}"))
        .because(why)
        .hint(format!("Check the address, and on its machine that it runs: connect hub status{usual}"))
        .kind(ErrorKind::Unreachable)
}

fn unanswered(url: &HubUrl, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::InvalidInput => Error::new("This cannot be sent to the hub").because(error),
        _ => unreachable_hub(url, error),
    }
}

/// What a refusal means for the person who got it.
fn explain(status: u16, body: &[u8]) -> Error {
    let error = refusal(status, body);
    match (status, &error.hint) {
        (401, None) => error.hint("Run: connect up --hub URL --api-key KEY"),
        _ => error,
    }
}

pub fn to_json(body: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(body).or_say(|| "Cannot write the request")
}

/// The content of an answer of `hub`.
pub fn from_json<T: DeserializeOwned>(hub: &HubUrl, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        Error::new(format!("{hub} does not answer as a hub does"))
            .because(one_line(&error.to_string()))
            .hint("Check the address given with --hub")
    })
}
