//! The hub as its clients see it: typed calls over one kept-alive TLS connection, and the two upgrades.

mod dialer;

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use dialer::Dialer;
use dialer::Hubs;
use dialer::NoResolver;
use dialer::unreachable_hub;

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
use crate::net::duplex::Duplex;
use crate::net::http;
use crate::net::http::Ask;
use crate::net::stop::Stop;
use crate::net::trust;
use crate::net::trust::HubTrust;
use crate::os::lock::locked;
use crate::os::secret;
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
/// May be said to several hubs: it says who the agent is.
const REGISTER: &str = "/v1/agents/register";

/// A connection that rested longer is not used again: it may have died without a word, as when a laptop
/// slept, and the call would wait out its deadline.
const KEPT: Duration = Duration::from_secs(2);

/// A fleet has no more hubs than this; a list that is longer is cut.
const HUBS: usize = 32;

pub struct Hub {
    /// The one that was asked for. Others of its fleet may stand in for it.
    pub url: HubUrl,
    /// Whether its certificate is its own, so that others by the same pin or CA are of its fleet.
    knows_fleet: bool,
    key: Option<String>,
    dialer: Dialer,
    agent: ureq::Agent,
    patience: Duration,
}

impl Hub {
    /// The first of `urls` is the one that is meant, the rest are used while it is away. Every connection is
    /// cut by `stop`.
    pub fn new(urls: Vec<HubUrl>, trust: &HubTrust, key: Option<String>, stop: &Stop) -> Result<Self> {
        let url = urls.first().cloned().ok_or_else(|| Error::usage("There is no hub"))?;
        let given = urls.len();
        let hubs = Arc::new(Mutex::new(Hubs { list: urls, given, at: 0 }));
        let dialer = Dialer { hubs, tls: trust::hub_client(trust)?, stop: stop.clone() };
        Ok(Self::with(dialer, url, *trust != HubTrust::Public, key, DEADLINE))
    }

    /// The same hub for somebody who tries again and again: a try that meets silence must not hold up the
    /// next one, which may meet a hub that is back.
    pub fn for_retries(&self, patience: Duration) -> Self {
        Self::with(self.dialer.clone(), self.url.clone(), self.knows_fleet, self.key.clone(), patience)
    }

    fn with(dialer: Dialer, url: HubUrl, knows_fleet: bool, key: Option<String>, patience: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(patience))
            .max_idle_age(KEPT)
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("connect/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = ureq::Agent::with_parts(config, dialer.clone(), NoResolver);
        Self { url, knows_fleet, key, dialer, agent, patience }
    }

    /// The hubs of the fleet, as far as they are known, the one that is meant first.
    pub fn fleet(&self) -> Vec<HubUrl> {
        self.dialer.hubs().list.clone()
    }

    /// A hub says where else its fleet is. Each has to prove the pin before it is believed.
    fn learn(&self, urls: &[String]) {
        if !self.knows_fleet || urls.is_empty() {
            return;
        }
        let mut hubs = self.dialer.hubs();
        let now = hubs.list[hubs.at].clone();
        let given = hubs.given;
        hubs.list.truncate(given);
        // Each from another place on, or all the clients of a hub that dies would fall upon the same one.
        let first = secret::number() as usize % urls.len();
        for url in urls.iter().cycle().skip(first).take(urls.len().min(HUBS)) {
            if let Ok(url) = HubUrl::parse(url)
                && !hubs.list.contains(&url)
            {
                hubs.list.push(url);
            }
        }
        hubs.at = hubs.list.iter().position(|url| *url == now).unwrap_or(0);
    }

    pub fn health(&self) -> Result<Health> {
        self.call("GET", "/health", &[], None::<&()>)
    }

    pub fn whoami(&self) -> Result<WhoAmI> {
        let whoami: WhoAmI = self.call("GET", "/v1/whoami", &[], None::<&()>)?;
        self.learn(&whoami.hubs);
        Ok(whoami)
    }

    pub fn services(&self) -> Result<Vec<ServiceInfo>> {
        self.call("GET", "/v1/services", &[], None::<&()>)
    }

    pub fn register(&self, agent: &RegisterAgent) -> Result<AgentInfo> {
        let agent: AgentInfo = self.call("POST", REGISTER, &[], Some(agent))?;
        self.learn(&agent.hubs);
        Ok(agent)
    }

    /// The session, and the hub that granted it: where the agent is. If that one cannot be reached from here,
    /// the hub that named it carries the session there.
    pub fn ask_session(&self, ask: &AskSession) -> Result<(SessionGranted, HubUrl)> {
        let body = |ask: &AskSession| serde_json::to_vec(ask).or_say(|| "Cannot write the request");
        let asked = body(ask)?;
        let post =
            |url: &HubUrl, body: &[u8]| self.exchange_at(url, ("POST", "/v1/sessions"), &[], Some(body));
        let (mut answer, mut at) = self.somewhere(true, |url| post(url, &asked))?;
        if answer.status == 421 {
            let named: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let named = named["hub"].as_str().filter(|_| self.knows_fleet);
            let there = named.and_then(|url| HubUrl::parse(url).ok());
            let followed = there.and_then(|url| Some((post(&url, &asked).ok()?, url)));
            (answer, at) = match followed.filter(|(answer, _)| answer.status != 421) {
                Some(followed) => followed,
                None => {
                    let carried = body(&AskSession { carry: true, ..ask.clone() })?;
                    (post(&at, &carried).map_err(|missed| missed.error)?, at)
                }
            };
        }
        Ok((self.read(&answer.content()?)?, at))
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
        let path = format!("/v1/shares/{}/join", code.as_str());
        let share: SharePreview = self.call("POST", &path, &[], None::<&()>)?;
        self.learn(&share.hubs);
        Ok(share)
    }

    pub fn metrics(&self) -> Result<String> {
        self.exchange("GET", "/metrics", &[], None).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A call without a type of its own, for the hub's own command line. No content is `null`.
    pub fn any(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(ToString::to_string);
        let bytes = self.exchange(method, path, &[], body.as_deref().map(str::as_bytes))?;
        if bytes.is_empty() { Ok(Value::Null) } else { self.read(&bytes) }
    }

    /// The pin of the CA that the hub shows, believed by nobody yet. Nothing is sent to it.
    pub fn observe(&self) -> Result<Pin> {
        let (tls, seen) = trust::observer()?;
        let dialer = Dialer { tls, ..self.dialer.clone() };
        drop(dialer.dial(&self.url, Instant::now() + DEADLINE)?);
        let seen = locked(&seen).take();
        seen.ok_or_else(|| Error::new("The hub showed no certificate"))
    }

    /// A connection on which the hub has proved that it is the hub.
    pub fn greet(&self) -> Result<()> {
        self.dialer.dial(&self.url, Instant::now() + self.patience).map(drop)
    }

    /// The agent's control channel, and the hub it leads to.
    pub fn control(&self) -> Result<(Duplex, HubUrl)> {
        let key = self.key.clone().unwrap_or_default();
        self.somewhere(true, |url| {
            let deadline = Instant::now() + self.patience;
            let (fields, host) = ([("x-api-key", key.as_str())], url.authority());
            let ask = Ask { method: "GET", path: "/v1/agent", host: &host, fields: &fields, body: None };
            let dialled = self.dialer.dial(url, deadline);
            let upgraded =
                dialled.and_then(|(stream, _cut)| http::upgrade(stream, control::UPGRADE, &ask, deadline));
            upgraded.map_err(|error| Missed { before: error.may_pass(), error })
        })
    }

    /// One half of a session, at the hub that granted or announced it; what it names says only whether TLS ends
    /// before it. Were the address believed, a hub could have its clients connect to anything in their networks.
    pub fn relay(&self, at: &HubUrl, relay: &str, ticket: &str, deadline: Instant) -> Result<Duplex> {
        let (stream, _cut) = match relay.split_once("://") {
            Some(("http", _)) => self.dialer.dial_plain(at, deadline)?,
            Some(("https", _)) => self.dialer.dial(at, deadline)?,
            _ => return Err(Error::new(format!("The hub named an odd relay: {}", relay.escape_debug()))),
        };
        let (fields, host) = ([("x-ticket", ticket)], at.authority());
        let ask = Ask { method: "GET", path: "/v1/relay", host: &host, fields: &fields, body: None };
        http::upgrade(stream, control::RELAY_UPGRADE, &ask, deadline)
    }

    /// At the hub used last or, while that one is away, at the next that is there.
    fn somewhere<T>(
        &self,
        may_repeat: bool,
        call: impl Fn(&HubUrl) -> std::result::Result<T, Missed>,
    ) -> Result<(T, HubUrl)> {
        let (list, first) = {
            let hubs = self.dialer.hubs();
            (hubs.list.clone(), hubs.at)
        };
        let mut missed = None;
        for step in 0..list.len() {
            let at = &list[(first + step) % list.len()];
            match call(at) {
                Ok(done) => {
                    let mut hubs = self.dialer.hubs();
                    hubs.at = hubs.list.iter().position(|url| url == at).unwrap_or(0);
                    return Ok((done, at.clone()));
                }
                Err(Missed { error, before }) => {
                    // What may have been heard is not said to another one too.
                    if !before && (!may_repeat || error.kind != Kind::Unreachable) {
                        return Err(error);
                    }
                    log::debug!("{at}: {error}");
                    missed = missed.or(Some(error));
                }
            }
        }
        Err(missed.unwrap_or_else(|| Error::new("There is no hub")))
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: Option<&impl Serialize>,
    ) -> Result<T> {
        let body = body.map(serde_json::to_vec).transpose().or_say(|| "Cannot write the request")?;
        let bytes = self.exchange(method, path, fields, body.as_deref())?;
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
        body: Option<&[u8]>,
    ) -> Result<Vec<u8>> {
        let may_repeat = method == "GET" || path == REGISTER;
        let call = |url: &HubUrl| self.exchange_at(url, (method, path), fields, body);
        self.somewhere(may_repeat, call)?.0.content()
    }

    fn exchange_at(
        &self,
        url: &HubUrl,
        (method, path): (&str, &str),
        fields: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> std::result::Result<Answered, Missed> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{url}{path}"));
        request = request.header(version::FIELD, version::OURS.to_string());
        if let Some(key) = &self.key {
            request = request.header("x-api-key", key);
        }
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let odd = |_| {
            let error = Error::new("The API key has characters that a key never has");
            Missed { error, before: false }
        };
        let answered = match body {
            Some(body) => {
                let request = request.header("content-type", "application/json").body(body).map_err(odd)?;
                self.agent.run(request)
            }
            None => self.agent.run(request.body(()).map_err(odd)?),
        };
        let mut answer = answered.map_err(|error| trouble(url, error))?;
        let status = answer.status().as_u16();
        let speaks = answer.headers().get(version::FIELD).map(|said| said.to_str().unwrap_or_default());
        if let Some((what, hint)) = between_us("The hub", "the hub's machine", Version::said(speaks)) {
            return Err(Missed { error: Error::new(what).hint(hint), before: false });
        }
        let read = answer.body_mut().with_config().limit(ANSWER_LIMIT).read_to_vec();
        let body = read.map_err(|error| trouble(url, error))?;
        let goes_on = || serde_json::from_slice::<Value>(&body).is_ok_and(|body| body["elsewhere"] == true);
        if status == 503 && goes_on() {
            return Err(Missed { error: explain(status, &body), before: true });
        }
        Ok(Answered { status, body })
    }
}

/// A hub's answer, whatever it says.
struct Answered {
    status: u16,
    body: Vec<u8>,
}

impl Answered {
    fn content(self) -> Result<Vec<u8>> {
        if (200..300).contains(&self.status) { Ok(self.body) } else { Err(explain(self.status, &self.body)) }
    }
}

/// A hub that was not there.
struct Missed {
    error: Error,
    /// It has surely done nothing of what it was asked for.
    before: bool,
}

fn trouble(url: &HubUrl, error: ureq::Error) -> Missed {
    let (error, before) = match error {
        ureq::Error::Other(inner) => match inner.downcast::<Error>() {
            Ok(ours) => (*ours, true),
            Err(inner) => (unreachable_hub(url, inner.to_string()), false),
        },
        ureq::Error::Timeout(_) => (unreachable_hub(url, "it did not answer in time".to_owned()), false),
        error => (unreachable_hub(url, error.to_string()), false),
    };
    Missed { error, before }
}

/// What stands between this connect and another end.
pub fn between_us(called: &str, at: &str, speaks: Version) -> Option<(String, String)> {
    let own = End { called: "this connect", at: "this machine", speaks: version::OURS };
    version::objection(&End { called, at, speaks }, &own)
}

/// What a refusal means for the person who got it.
fn explain(status: u16, body: &[u8]) -> Error {
    let error = http::refusal(status, body);
    match (status, &error.hint) {
        (401, None) => error.hint("Run: connect up --hub URL --api-key KEY"),
        _ => error,
    }
}

/// How long a device code's owner waits between two looks.
pub fn poll_interval(asked: &DeviceAsked) -> Duration {
    Duration::from_secs(asked.interval_seconds.clamp(1, 30))
}
