//! The hub as its clients see it, another hub included: typed calls over kept-alive TLS connections, and the two
//! upgrades.

pub mod hub_client;
mod hub_connector;
mod sessions;
mod ureq_transport;

use std::time::Duration;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use hub_client::HubClient;
use hub_client::HubRequest;
use hub_client::REGISTER_PATH;
use hub_client::from_json;
use hub_client::to_json;
use hub_connector::HubConnector;

pub use hub_connector::LoginSecrets;
pub use hub_connector::SavedLogin;

use crate::error::Error;
use crate::error::Result;
use crate::model::code::Code;
use crate::model::fingerprint::Pin;
use crate::model::hub_trust::HubTrust;
use crate::net::address::HubUrl;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::stop::Stop;
use crate::os::lock::locked;
use crate::os::secret;
use crate::tls::connector::Connector;
use crate::tls::identity::Identity;
use crate::tls::trust;
use crate::wire::api::AgentInfo;
use crate::wire::api::AskDevice;
use crate::wire::api::AskDeviceState;
use crate::wire::api::CaCertificate;
use crate::wire::api::DeviceCode;
use crate::wire::api::DeviceState;
use crate::wire::api::Enrol;
use crate::wire::api::Health;
use crate::wire::api::NewKey;
use crate::wire::api::RegisterAgent;
use crate::wire::api::RemoveService;
use crate::wire::api::ServiceInfo;
use crate::wire::api::WhoAmI;
use crate::wire::share_api::MakeShare;
use crate::wire::share_api::NewShare;
use crate::wire::share_api::OwnShare;
use crate::wire::share_api::ShareCode;
use crate::wire::share_api::SharePreview;

/// No list of a hub is longer; only a hostile one goes on.
const LIST_LIMIT: usize = 100_000;
/// A fleet has no more hubs than this; a longer list is cut.
const FLEET_LIMIT: usize = 32;

#[derive(Clone)]
pub struct Hub {
    /// The one that was asked for. Others of its fleet may stand in for it.
    pub url: HubUrl,
    /// Whether it is recognised by a pin. Only then can others prove that they are of its fleet: a CA may have signed for
    /// any host of a company.
    has_pin: bool,
    client: HubClient,
}

impl Hub {
    /// The first of `urls` is the one that is meant; the others are used while it is away. `stop` cuts every
    /// connection.
    pub fn new(urls: Vec<HubUrl>, trust: &HubTrust, key: Option<String>, stop: &Stop) -> Result<Self> {
        let url = urls.first().cloned().ok_or_else(|| Error::usage("There is no hub"))?;
        let connector =
            Connector { tls: trust::hub_client(trust)?, by_environment: true, stop: stop.clone() };
        let client = HubClient::new(urls, connector, key);
        Ok(Self { url, has_pin: matches!(trust, HubTrust::Pin(_)), client })
    }

    /// Another hub of the fleet, as a hub calls it: directly, and no other one instead. Never by public names: a hub that
    /// somebody wrote into etcd would be sent the joiners' keys.
    pub fn of_fleet(url: HubUrl, pin: Pin, key: Option<String>, stop: &Stop) -> Result<Self> {
        let tls = trust::hub_client(&HubTrust::Pin(pin))?;
        let connector = Connector { tls, by_environment: false, stop: stop.clone() };
        Ok(Self { client: HubClient::new(vec![url.clone()], connector, key), url, has_pin: true })
    }

    /// The same hub for a caller with less time, like one that tries again and again: a try that meets silence must not
    /// delay the next one, which may meet a hub that is back.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        let mut hub = self.clone();
        hub.client.timeout = timeout;
        hub
    }

    /// The same hub; a call ends by the deadline, however many hubs of the fleet it tries.
    pub fn until(&self, deadline: Instant) -> Self {
        let mut hub = self.with_timeout(deadline.saturating_duration_since(Instant::now()));
        hub.client.deadline = Some(deadline);
        hub
    }

    /// What the last TLS connection to a hub agreed on.
    pub fn negotiated(&self) -> String {
        locked(&self.client.connector.hubs).negotiated.clone()
    }

    /// The same hub, with the pin that is saved there, and the key if the one at hand is refused.
    pub fn with_saved(self, saved: SavedLogin) -> Self {
        locked(&self.client.connector.hubs).saved = Some(saved);
        self
    }

    /// The pin by which the hub is recognised; another one than at first if its root was replaced.
    pub fn pin(&self) -> Option<Pin> {
        self.client.connector.connector.tls.root.as_ref().map(|root| *locked(root))
    }

    pub fn key(&self) -> String {
        self.client.key().unwrap_or_default()
    }

    /// From now on every call shows this key.
    pub fn use_key(&self, key: String) {
        self.client.use_key(key);
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        from_json(&self.url, &self.send("GET", path, None)?)
    }

    fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        from_json(&self.url, &self.send("POST", path, Some(&to_json(body)?))?)
    }

    fn send(&self, method: &str, path: &str, body: Option<&[u8]>) -> Result<Vec<u8>> {
        self.client.exchange(&HubRequest { method, path, body })?.content()
    }

    /// The hubs of the fleet, as far as they are known, the one that is meant first.
    pub fn known_hubs(&self) -> Vec<HubUrl> {
        locked(&self.client.connector.hubs).list.clone()
    }

    /// A hub says where else its fleet is. Each has to prove the pin before it is believed.
    fn learn(&self, urls: &[String]) {
        if !self.has_pin || urls.is_empty() {
            return;
        }
        let mut hubs = locked(&self.client.connector.hubs);
        let now = hubs.list[hubs.at].clone();
        let given = hubs.given;
        hubs.list.truncate(given);
        // Each client begins at another place, or all clients of a hub that dies would go to the same one.
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

    /// The certificate of the hub's CA, as PEM.
    pub fn ca_certificate(&self) -> Result<String> {
        Ok(self.get::<CaCertificate>("/v1/ca")?.certificate)
    }

    pub fn whoami(&self) -> Result<WhoAmI> {
        let whoami: WhoAmI = self.get("/v1/whoami")?;
        self.learn(&whoami.hubs);
        Ok(whoami)
    }

    /// A key of this machine's own, in exchange for a use of ours.
    pub fn enrol(&self, label: &str) -> Result<String> {
        Ok(self.post::<NewKey>("/v1/enrol", &Enrol { label: label.to_owned() })?.key)
    }

    /// A list, page by page to its end.
    pub fn list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let query = if after.is_empty() { String::new() } else { format!("?after={after}") };
            let page = format!("{path}{query}");
            let answer = self.client.exchange(&HubRequest { method: "GET", path: &page, body: None })?;
            let next = answer.next.clone();
            all.extend(from_json::<Vec<T>>(&self.url, &answer.content()?)?);
            match next {
                Some(id) if id > after && all.len() < LIST_LIMIT => after = id,
                _ => return Ok(all),
            }
        }
    }

    pub fn services(&self) -> Result<Vec<ServiceInfo>> {
        let mut services: Vec<ServiceInfo> = self.list("/v1/services")?;
        services.sort_by(|a, b| a.name.cmp(&b.name).then(a.created_at.cmp(&b.created_at)));
        Ok(services)
    }

    /// Without those of shares: they are reached by joining.
    pub fn workspace_services(&self) -> Result<Vec<ServiceInfo>> {
        let mut services = self.services()?;
        services.retain(|service| service.share.is_none());
        Ok(services)
    }

    /// By its name or ID.
    pub fn remove_service(&self, service: &str, even_online: bool) -> Result<()> {
        let order = to_json(&RemoveService { even_online })?;
        self.send("DELETE", &format!("/v1/services/{service}"), Some(&order)).map(drop)
    }

    pub fn agents(&self) -> Result<Vec<AgentInfo>> {
        self.list("/v1/agents")
    }

    /// Registers the agent. Its identity says that our key speaks for it.
    pub fn register(&self, id: &str, label: &str, identity: &Identity) -> Result<AgentInfo> {
        let key = self.key();
        let key_hash = secret::hash(key.split('.').next().unwrap_or_default());
        let agent = RegisterAgent {
            id: id.to_owned(),
            label: label.to_owned(),
            fingerprint: identity.fingerprint,
            chain: identity.chain.clone(),
            proof: identity.speaks_for(id, &key_hash)?,
        };
        let agent: AgentInfo = self.post(REGISTER_PATH, &agent)?;
        self.learn(&agent.hubs);
        Ok(agent)
    }

    pub fn ask_device(&self, label: &str) -> Result<DeviceCode> {
        self.post("/v1/device", &AskDevice { label: label.to_owned() })
    }

    pub fn device_state(&self, asked: &DeviceCode) -> Result<DeviceState> {
        let DeviceCode { code, secret, .. } = asked.clone();
        self.post("/v1/device/state", &AskDeviceState { code, secret })
    }

    pub fn make_share(&self, share: &MakeShare) -> Result<NewShare> {
        self.post("/v1/shares", share)
    }

    pub fn shares(&self) -> Result<Vec<OwnShare>> {
        let mut shares: Vec<OwnShare> = self.list("/v1/shares")?;
        shares.sort_by_key(|share| share.info.created_at);
        Ok(shares)
    }

    /// By its code or its ID.
    pub fn revoke_share(&self, code: &str) -> Result<()> {
        let body = to_json(&ShareCode { code: code.to_owned() })?;
        self.send("POST", "/v1/shares/revoke", Some(&body)).map(drop)
    }

    pub fn join_share(&self, code: &Code) -> Result<SharePreview> {
        let code = ShareCode { code: code.as_str().to_owned() };
        let share: SharePreview = self.post("/v1/shares/join", &code)?;
        self.learn(&share.hubs);
        Ok(share)
    }

    pub fn metrics(&self) -> Result<String> {
        self.send("GET", "/metrics", None).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// A call without a type of its own, for the hub's own command line. No content is `null`.
    pub fn any(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(ToString::to_string);
        let bytes = self.send(method, path, body.as_deref().map(str::as_bytes))?;
        if bytes.is_empty() { Ok(Value::Null) } else { from_json(&self.url, &bytes) }
    }

    /// The pin of the CA that the hub shows, which nothing has proved yet. Nothing is sent to the hub.
    pub fn observed_pin(&self) -> Result<Pin> {
        let (tls, observed) = trust::observing_client()?;
        let hubs = self.client.connector.clone();
        let observing = HubConnector { connector: Connector { tls, ..hubs.connector }, ..hubs };
        drop(observing.connect(&self.url, Instant::now() + NETWORK_TIMEOUT)?);
        let observed = locked(&observed).take();
        observed.ok_or_else(|| Error::new("The hub showed no certificate"))
    }

    /// Connects, which succeeds only if the hub proves that it is the hub.
    pub fn check_identity(&self, at: &HubUrl) -> Result<()> {
        self.client.connector.connect(at, Instant::now() + self.client.timeout).map(drop)
    }
}

/// How long to wait before asking again whether a device code was approved.
pub fn poll_interval(asked: &DeviceCode) -> Duration {
    Duration::from_secs(asked.interval_seconds.clamp(1, 30))
}
