//! Calls to a hub, still without types: at the hub used last or, while that one is away, at the next of its fleet.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::hub_connector::FleetHubs;
use super::hub_connector::HubConnector;
use super::hub_connector::unreachable_hub;
use super::ureq_transport::NoResolver;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::text::one_line;
use crate::model::version;
use crate::net::address::HubUrl;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::duplex::Duplex;
use crate::net::http_client::ANSWER_LIMIT;
use crate::net::http_client::ClientConnection;
use crate::net::http_client::ClientRequest;
use crate::net::http_client::refusal;
use crate::os::lock::locked;
use crate::tls::connector::Connector;
use crate::wire::api::NEXT_PAGE_FIELD;

/// It may go to several hubs: it says who the agent is.
pub const REGISTER_PATH: &str = "/v1/agents/register";

/// A connection that was idle for longer is not used again: it may have died unnoticed, as when a laptop slept, and
/// the call would wait out its deadline.
const IDLE_CONNECTION_AGE: Duration = Duration::from_secs(2);
/// A timeout of zero would mean to wait without end.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);

/// The time for the next of several hubs. One that is silent must leave some for the others.
pub fn share_of_time(deadline: Instant, hubs_left: usize) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    (left / u32::try_from(hubs_left).unwrap_or(1)).max(SHORTEST_TIMEOUT)
}

#[derive(Clone)]
pub struct HubClient {
    pub connector: HubConnector,
    /// Shared by the clones: a new secret counts for all of them.
    key: Arc<Mutex<Option<String>>>,
    /// For each hub that is called.
    pub timeout: Duration,
    /// For all hubs that a call tries, each of which then gets its share of what is left.
    pub deadline: Option<Instant>,
    agent: ureq::Agent,
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
        let hubs = Arc::new(Mutex::new(FleetHubs {
            list: urls,
            given,
            at: 0,
            negotiated: String::new(),
            saved: None,
        }));
        let connector = HubConnector { hubs, connector };
        let config = ureq::Agent::config_builder()
            .max_idle_age(IDLE_CONNECTION_AGE)
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("connect/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = ureq::Agent::with_parts(config, connector.clone(), NoResolver);
        let key = Arc::new(Mutex::new(key));
        Self { connector, key, timeout: NETWORK_TIMEOUT, deadline: None, agent }
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
        if let Some(saved) = self.connector.saved().and_then(|saved| saved.key) {
            self.use_key(saved);
        }
        self.key().as_ref() != refused
    }

    /// Calls the hub used last or, if that one is away, the next one. Returns which one answered.
    pub fn at_any_hub<T>(
        &self,
        may_repeat: bool,
        call: impl Fn(&Self, &HubUrl) -> std::result::Result<T, CallFailure>,
    ) -> Result<(T, HubUrl)> {
        let hubs = locked(&self.connector.hubs);
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
                    let mut hubs = locked(&self.connector.hubs);
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
        let HubRequest { method, path, body } = request;
        let mut head = ureq::http::Request::builder().method(*method).uri(format!("{url}{path}"));
        head = head.header(version::PROTOCOL_FIELD, version::PROTOCOL);
        if let Some(key) = self.key() {
            head = head.header("x-api-key", key);
        }
        let odd = |_| Error::new("The API key has characters that a key never has");
        let answered = match body {
            Some(body) => self.run(head.header("content-type", "application/json").body(*body).map_err(odd)?),
            None => self.run(head.body(()).map_err(odd)?),
        };
        let mut answer = answered.map_err(|error| call_failure(url, error))?;
        let status = answer.status().as_u16();
        let field =
            |name| answer.headers().get(name).map(|text| text.to_str().unwrap_or_default().to_owned());
        let (protocol, next) = (field(version::PROTOCOL_FIELD), field(NEXT_PAGE_FIELD));
        let read = answer.body_mut().with_config().limit(ANSWER_LIMIT as u64).read_to_vec();
        let body = read.map_err(|error| call_failure(url, error))?;
        Ok(HubAnswer { status, protocol, body, next })
    }

    fn run(
        &self,
        request: ureq::http::Request<impl ureq::AsSendBody>,
    ) -> std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error> {
        // A call that goes on at another hub has what is left of the time.
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(self.timeout, |left| left.min(self.timeout)).max(SHORTEST_TIMEOUT);
        let in_time = self.agent.configure_request(request).timeout_global(Some(timeout));
        self.agent.run(in_time.build())
    }

    /// A connection to this hub that speaks `protocol` from now on.
    pub fn upgrade(&self, url: &HubUrl, upgrade: &HubUpgrade<'_>, deadline: Instant) -> Result<Duplex> {
        let (connection, cut) = if upgrade.is_tls {
            self.connector.connect(url, deadline)?
        } else {
            self.connector.connect_plain(url, deadline)?
        };
        let request = ClientRequest {
            method: "GET",
            path: upgrade.path,
            host: &url.authority(),
            fields: &[upgrade.proof],
            body: None,
        };
        ClientConnection::new(connection, cut).upgrade(upgrade.protocol, &request, upgrade.is_tls, deadline)
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

fn call_failure(url: &HubUrl, error: ureq::Error) -> CallFailure {
    let why = match error {
        // The connector's own error: there was no connection.
        ureq::Error::Other(inner) => match inner.downcast::<Error>() {
            Ok(ours) => return CallFailure { error: *ours, nothing_done: true },
            Err(inner) => inner.to_string(),
        },
        ureq::Error::Timeout(_) => "it did not answer in time".to_owned(),
        error => error.to_string(),
    };
    CallFailure { error: unreachable_hub(url, why), nothing_done: false }
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
