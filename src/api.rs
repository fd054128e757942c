//! The hub as its clients see it: typed calls over one kept-alive TLS connection, and the two upgrades.

mod calling;
mod dialer;

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;

use calling::CallFailure;
use calling::to_json;
use dialer::Dialer;
use dialer::FleetHubs;
use dialer::NoResolver;

use crate::error::Error;
use crate::error::Result;
use crate::model::code::Code;
use crate::model::fingerprint::Pin;
use crate::model::hub_records::ShareInfo;
use crate::model::hub_trust::HubTrust;
use crate::model::version;
use crate::model::version::End;
use crate::model::version::Version;
use crate::net::address::HubUrl;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::duplex::Duplex;
use crate::net::http;
use crate::net::http::ClientRequest;
use crate::net::stop::Stop;
use crate::os::lock::locked;
use crate::os::secret;
use crate::tls::trust;
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
use crate::wire::api::ShareMade;
use crate::wire::api::SharePreview;
use crate::wire::api::WhoAmI;
use crate::wire::control;

/// May be said to several hubs: it says who the agent is.
const REGISTER_PATH: &str = "/v1/agents/register";

/// A connection that rested longer is not used again: it may have died without a word, as when a laptop
/// slept, and the call would wait out its deadline.
const IDLE_CONNECTION_AGE: Duration = Duration::from_secs(2);

/// A fleet has no more hubs than this; a list that is longer is cut.
const FLEET_LIMIT: usize = 32;

#[derive(Clone)]
pub struct Hub {
    /// The one that was asked for. Others of its fleet may stand in for it.
    pub url: HubUrl,
    /// Whether its certificate is its own, so that others by the same pin or CA are of its fleet.
    has_own_ca: bool,
    key: Option<String>,
    dialer: Dialer,
    agent: ureq::Agent,
    timeout: Duration,
}

impl Hub {
    /// The first of `urls` is the one that is meant, the rest are used while it is away. Every connection is
    /// cut by `stop`.
    pub fn new(urls: Vec<HubUrl>, trust: &HubTrust, key: Option<String>, stop: &Stop) -> Result<Self> {
        let url = urls.first().cloned().ok_or_else(|| Error::usage("There is no hub"))?;
        let given = urls.len();
        let hubs = Arc::new(Mutex::new(FleetHubs { list: urls, given, at: 0 }));
        let dialer = Dialer { hubs, tls: trust::hub_client(trust)?, stop: stop.clone() };
        let config = ureq::Agent::config_builder()
            .max_idle_age(IDLE_CONNECTION_AGE)
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .user_agent(concat!("connect/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = ureq::Agent::with_parts(config, dialer.clone(), NoResolver);
        Ok(Self { url, has_own_ca: *trust != HubTrust::Public, key, dialer, agent, timeout: NETWORK_TIMEOUT })
    }

    /// The same hub for somebody who has less time, like one who tries again and again: a try that meets silence must
    /// not hold up the next one, which may meet a hub that is back.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The hubs of the fleet, as far as they are known, the one that is meant first.
    pub fn known_hubs(&self) -> Vec<HubUrl> {
        locked(&self.dialer.hubs).list.clone()
    }

    /// A hub says where else its fleet is. Each has to prove the pin before it is believed.
    fn learn(&self, urls: &[String]) {
        if !self.has_own_ca || urls.is_empty() {
            return;
        }
        let mut hubs = locked(&self.dialer.hubs);
        let now = hubs.list[hubs.at].clone();
        let given = hubs.given;
        hubs.list.truncate(given);
        // Each from another place on, or all the clients of a hub that dies would fall upon the same one.
        let first = secret::number() as usize % urls.len();
        for url in urls.iter().cycle().skip(first).take(urls.len().min(FLEET_LIMIT)) {
            if let Ok(url) = HubUrl::parse(url)
                && !hubs.list.contains(&url)
            {
                hubs.list.push(url);
            }
        }
        hubs.at = hubs.list.iter().position(|url| *url == now).unwrap_or(0);
    }

    pub fn health(&self) -> Result<Health> {
        self.get("/health")
    }

    pub fn whoami(&self) -> Result<WhoAmI> {
        let whoami: WhoAmI = self.get("/v1/whoami")?;
        self.learn(&whoami.hubs);
        Ok(whoami)
    }

    pub fn services(&self) -> Result<Vec<ServiceInfo>> {
        self.get("/v1/services")
    }

    pub fn register(&self, agent: &RegisterAgent) -> Result<AgentInfo> {
        let agent: AgentInfo = self.post(REGISTER_PATH, agent)?;
        self.learn(&agent.hubs);
        Ok(agent)
    }

    /// The session, and the hub that granted it: where the agent is. If that one cannot be reached from here,
    /// the hub that named it carries the session there.
    pub fn ask_session(&self, ask: &AskSession) -> Result<(SessionGranted, HubUrl)> {
        let asked = to_json(ask)?;
        let post =
            |url: &HubUrl, body: &[u8]| self.exchange_at(url, ("POST", "/v1/sessions"), &[], Some(body));
        let (mut answer, mut at) = self.at_any_hub(true, |url| post(url, &asked))?;
        if answer.status == 421 {
            let named: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let named = named["hub"].as_str().filter(|_| self.has_own_ca);
            let there = named.and_then(|url| HubUrl::parse(url).ok());
            let followed = there.and_then(|url| Some((post(&url, &asked).ok()?, url)));
            (answer, at) = match followed.filter(|(answer, _)| answer.status != 421) {
                Some(followed) => followed,
                None => {
                    let carried = to_json(&AskSession { carry: true, ..ask.clone() })?;
                    (post(&at, &carried).map_err(|failure| failure.error)?, at)
                }
            };
        }
        Ok((self.read(&answer.content()?)?, at))
    }

    pub fn ask_device(&self, label: &str) -> Result<DeviceAsked> {
        self.post("/v1/device", &AskDevice { label: label.to_owned() })
    }

    pub fn device_state(&self, asked: &DeviceAsked) -> Result<DeviceState> {
        let path = format!("/v1/device/{}", asked.code);
        self.read(&self.exchange("GET", &path, &[("x-device-secret", &asked.secret)], None)?)
    }

    pub fn make_share(&self, share: &MakeShare) -> Result<ShareMade> {
        self.post("/v1/shares", share)
    }

    pub fn shares(&self) -> Result<Vec<ShareInfo>> {
        self.get("/v1/shares")
    }

    /// By its code or its id, which are plain letters and digits both.
    pub fn revoke_share(&self, code: &str) -> Result<()> {
        self.exchange("DELETE", &format!("/v1/shares/{code}"), &[], None).map(drop)
    }

    pub fn join_share(&self, code: &Code) -> Result<SharePreview> {
        let path = format!("/v1/shares/{}/join", code.as_str());
        let share: SharePreview = self.read(&self.exchange("POST", &path, &[], None)?)?;
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
    pub fn observed_pin(&self) -> Result<Pin> {
        let (tls, observed) = trust::observing_client()?;
        let dialer = Dialer { tls, ..self.dialer.clone() };
        drop(dialer.dial(&self.url, Instant::now() + NETWORK_TIMEOUT)?);
        let observed = locked(&observed).take();
        observed.ok_or_else(|| Error::new("The hub showed no certificate"))
    }

    /// A connection on which the hub has proved that it is the hub.
    pub fn check_identity(&self) -> Result<()> {
        self.dialer.dial(&self.url, Instant::now() + self.timeout).map(drop)
    }

    /// The agent's control channel, and the hub it leads to.
    pub fn control(&self) -> Result<(Duplex, HubUrl)> {
        let key = self.key.clone().unwrap_or_default();
        self.at_any_hub(true, |url| {
            let deadline = Instant::now() + self.timeout;
            let (fields, host) = ([("x-api-key", key.as_str())], url.authority());
            let ask =
                ClientRequest { method: "GET", path: "/v1/agent", host: &host, fields: &fields, body: None };
            let dialled = self.dialer.dial(url, deadline);
            let upgraded = dialled
                .and_then(|(stream, _cut)| http::upgrade(stream, control::CONTROL_UPGRADE, &ask, deadline));
            upgraded.map_err(|error| CallFailure { nothing_done: error.may_pass(), error })
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
        let ask =
            ClientRequest { method: "GET", path: "/v1/relay", host: &host, fields: &fields, body: None };
        http::upgrade(stream, control::RELAY_UPGRADE, &ask, deadline)
    }
}

/// An error when this connect and another end would misunderstand each other.
pub fn understand(called: &str, at: &str, speaks: Version) -> Result<()> {
    let own = End { called: "this connect", at: "this machine", speaks: version::OURS };
    let objection = version::objection(&End { called, at, speaks }, &own);
    objection.map_or(Ok(()), |(what, hint)| Err(Error::new(what).hint(hint)))
}

/// How long a device code's owner waits between two looks.
pub fn poll_interval(asked: &DeviceAsked) -> Duration {
    Duration::from_secs(asked.interval_seconds.clamp(1, 30))
}
