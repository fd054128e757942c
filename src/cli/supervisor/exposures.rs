//! The services that one command exposes: `expose` has one, `share` and `dev` several, the daemon those of the config.
//!
//! The command says which services are desired. `reconcile` withdraws what is not desired any more, starts an agent as
//! soon as there is something to expose, and offers what is new. The agent's events (`exposures/hub_events.rs`) say
//! how each offer went.

mod hub_events;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

use super::event::SupervisorEvent;
use crate::api::Hub;
use crate::cli::call::Call;
use crate::cli::call::not_configured;
use crate::cli::logs;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::net::connect::dial;
use crate::os::files;
use crate::os::files::FileStamp;
use crate::state::identity;
use crate::state::runs::OpenService;
use crate::tunnel::agent::AgentProfile;
use crate::tunnel::agent::Exposure;
use crate::tunnel::agent::RunningAgent;
use crate::tunnel::direct_listener::ANY_ADDRESS;

/// A target that takes longer to accept a connection is reported as not answering.
const TARGET_TIMEOUT: Duration = Duration::from_secs(2);
/// What was refused is tried again after this long. Somebody has to act first, so sooner would only fill the hub's log.
const REFUSED_RETRY: Duration = Duration::from_secs(20);

/// Longer than any process of this machine takes to read a new identity.
const IDENTITY_GRACE: Duration = Duration::from_secs(1);

pub struct ExposureSet<'c> {
    call: &'c Call,
    events: Sender<SupervisorEvent>,
    /// Where to register. Without one it is the hub of the config, looked up each time that the agent starts: after a
    /// rejected key another login may follow.
    pub hub: Option<Arc<Hub>>,
    /// Our own word for the share that the services belong to. Without one they take names of the workspace.
    pub share: Option<String>,
    /// Whether a refusal is said and tried again later. Otherwise it is the error that ends the command.
    pub retries: bool,
    desired: BTreeMap<Name, Exposure>,
    /// What the agent was told to expose.
    offers: BTreeMap<Name, Offer>,
    refused: BTreeMap<Name, RetryLater>,
    agent: Option<RunningAgent>,
    /// Counts the agents, to tell their events apart.
    agent_number: u64,
    /// Why there is no agent.
    no_agent: Option<RetryLater>,
    /// The identity file as the agent has read it.
    identity_stamp: FileStamp,
    /// When to tell the hub of a new identity. All processes of this machine must have read it before joiners are told.
    announce_at: Option<Instant>,
    /// Why the hub cannot be used, while it is away.
    outage: Option<String>,
}

struct Offer {
    exposure: Exposure,
    /// Once the hub knows the service.
    registration: Option<HubRegistration>,
    /// Two processes of this machine would take the name from each other. A share has its names for itself.
    _lock: Option<files::FileLock>,
}

#[derive(Clone)]
pub struct HubRegistration {
    /// The hub's ID.
    pub service: String,
    pub tunnel_port: Option<u16>,
}

struct RetryLater {
    reason: String,
    at: Instant,
}

/// A service that the hub knows.
pub struct RegisteredService {
    pub exposure: Exposure,
    pub registration: HubRegistration,
    pub answers: bool,
}

impl RetryLater {
    fn new(reason: String) -> Self {
        Self { reason, at: Instant::now() + REFUSED_RETRY }
    }

    fn is_waiting(&self) -> bool {
        Instant::now() < self.at
    }
}

impl<'c> ExposureSet<'c> {
    pub fn new(call: &'c Call, events: Sender<SupervisorEvent>) -> Self {
        Self {
            call,
            events,
            hub: None,
            share: None,
            retries: false,
            desired: BTreeMap::new(),
            offers: BTreeMap::new(),
            refused: BTreeMap::new(),
            agent: None,
            agent_number: 0,
            no_agent: None,
            identity_stamp: identity::stamp(&call.home),
            announce_at: None,
            outage: None,
        }
    }

    pub fn set_desired(&mut self, exposures: impl IntoIterator<Item = Exposure>) {
        self.desired = exposures.into_iter().map(|exposure| (exposure.name.clone(), exposure)).collect();
        self.refused.retain(|name, _| self.desired.contains_key(name));
        self.no_agent = None;
    }

    pub fn reconcile(&mut self) -> Result<()> {
        self.withdraw_undesired();
        if let Err(error) = self.start_agent() {
            self.delay_agent(error)?;
        }
        self.follow_identity();
        self.offer_new()
    }

    /// Takes over an identity that has replaced the agent's own one. Sessions go on.
    fn follow_identity(&mut self) {
        let stamp = identity::stamp(&self.call.home);
        let Some(agent) = &self.agent else { return };
        if self.identity_stamp != stamp {
            self.identity_stamp = stamp;
            match self.call.identity().and_then(|identity| agent.use_identity(identity)) {
                Ok(is_successor) => self.announce_at = is_successor.then(|| Instant::now() + IDENTITY_GRACE),
                Err(error) => self.call.say.warn(&format!("{error}; the identity stays as it is")),
            }
        }
        if self.announce_at.is_some_and(|at| Instant::now() >= at) {
            self.announce_at = agent.register().is_err().then(|| Instant::now() + REFUSED_RETRY);
            if self.announce_at.is_none() {
                self.call.say.event(&json!({ "event": "identityRotated" }));
                logs::note_exposure(self.call, "INFO", "The hub knows this machine's new identity");
            }
        }
    }

    fn withdraw_undesired(&mut self) {
        let is_undesired = |(name, offer): (&Name, &Offer)| {
            (self.desired.get(name) != Some(&offer.exposure)).then(|| name.clone())
        };
        let undesired: Vec<Name> = self.offers.iter().filter_map(is_undesired).collect();
        for name in undesired {
            self.withdraw(&name);
            self.call.say.line(&format!("[ok] {name} is not exposed any more"));
            logs::note_exposure(self.call, "INFO", &format!("{name} is not exposed any more"));
            self.call.say.event(&json!({ "event": "withdrawn", "name": name }));
        }
    }

    fn withdraw(&mut self, name: &Name) {
        self.offers.remove(name);
        if let Some(agent) = &self.agent {
            agent.withdraw(name);
        }
    }

    fn start_agent(&mut self) -> Result<()> {
        let must_wait = self.no_agent.as_ref().is_some_and(RetryLater::is_waiting);
        if self.agent.is_some() || self.desired.is_empty() || must_wait {
            return Ok(());
        }
        let hub = self.hub.clone().map_or_else(|| self.call.hub(), Ok)?;
        let config = self.call.config()?;
        let profile = AgentProfile {
            id: config.agent_id.clone().ok_or_else(not_configured)?,
            label: config.label.clone().unwrap_or_default(),
            identity: self.call.identity()?,
            share: self.share.clone(),
            home: self.call.home.clone(),
            direct: direct_address(self.call)?.or_else(|| self.saved_direct_address(config.direct)),
        };
        self.identity_stamp = identity::stamp(&self.call.home);
        self.agent_number += 1;
        let (number, events) = (self.agent_number, self.events.clone());
        let on_event = Box::new(move |event| _ = events.send(SupervisorEvent::Agent(number, event)));
        self.agent = Some(RunningAgent::start(hub, profile, on_event, &self.call.stop)?);
        self.no_agent = None;
        Ok(())
    }

    /// The port in the config is the daemon's. Other processes take a free one next to it.
    fn saved_direct_address(&self, saved: Option<SocketAddr>) -> Option<SocketAddr> {
        let port = |at: SocketAddr| if self.retries { at.port() } else { 0 };
        saved.map(|at| SocketAddr::new(at.ip(), port(at)))
    }

    /// Ends the agent and forgets what it was told, for another login.
    pub fn stop_agent(&mut self) {
        self.agent = None;
        self.agent_number += 1;
        self.offers.clear();
        self.refused.clear();
        self.outage = None;
    }

    fn delay_agent(&mut self, error: Error) -> Result<()> {
        if !self.retries {
            return Err(error);
        }
        let reason = error.to_string();
        if self.no_agent.as_ref().is_none_or(|known| known.reason != reason) {
            let hint = error.hint.map(|hint| format!(". {hint}")).unwrap_or_default();
            self.call.say.warn(&format!("{reason}{hint}"));
        }
        self.no_agent = Some(RetryLater::new(reason));
        Ok(())
    }

    fn offer_new(&mut self) -> Result<()> {
        let is_new = |exposure: &&Exposure| {
            let must_wait = self.refused.get(&exposure.name).is_some_and(RetryLater::is_waiting);
            !must_wait && !self.offers.contains_key(&exposure.name)
        };
        let new: Vec<Exposure> = self.desired.values().filter(is_new).cloned().collect();
        for exposure in new {
            let Some(agent) = &self.agent else { return Ok(()) };
            match self.lock(&exposure.name) {
                Ok(lock) => {
                    agent.expose(exposure.clone());
                    let offer = Offer { exposure: exposure.clone(), registration: None, _lock: lock };
                    self.offers.insert(exposure.name, offer);
                }
                Err(error) => self.refuse(&exposure.name, error)?,
            }
        }
        Ok(())
    }

    fn lock(&self, name: &Name) -> Result<Option<files::FileLock>> {
        if self.share.is_some() {
            return Ok(None);
        }
        let home = &self.call.home;
        files::private_dir(&home.file("run"))?;
        let lock = files::try_lock(&home.file(&format!("run/expose-{name}.lock")))?;
        lock.map(Some).ok_or_else(|| {
            Error::new(format!("{name} is already exposed by another process of this machine"))
                .hint("End that one first, or choose another name")
        })
    }

    fn refuse(&mut self, name: &Name, error: Error) -> Result<()> {
        if !self.retries {
            return Err(error);
        }
        self.withdraw(name);
        let reason = error.to_string();
        // Each retry is refused again. Only a new reason is worth a line.
        if self.refused.get(name).is_none_or(|known| known.reason != reason) {
            self.call.say.warn(&format!("{name} is not exposed: {reason}"));
            logs::note_exposure(self.call, "WARN", &format!("{name} is not exposed: {reason}"));
            self.call.say.event(&json!({ "event": "refused", "name": name, "reason": reason }));
        }
        self.refused.insert(name.clone(), RetryLater::new(reason));
        Ok(())
    }

    pub fn is_hub_away(&self) -> bool {
        self.outage.is_some()
    }

    /// The hub knows every desired service.
    pub fn is_registered(&self) -> bool {
        self.desired.keys().all(|name| self.registration(name).is_some())
    }

    /// Every desired service has been confirmed or refused, or the hub cannot be asked.
    pub fn is_settled(&self) -> bool {
        let is_answered = |name: &Name| self.registration(name).is_some() || self.refused.contains_key(name);
        self.no_agent.is_some() || self.is_hub_away() || self.desired.keys().all(is_answered)
    }

    fn registration(&self, name: &Name) -> Option<&HubRegistration> {
        self.offers.get(name)?.registration.as_ref()
    }

    /// What the hub knows now, and whether each target answers.
    pub fn registered(&self) -> Vec<RegisteredService> {
        let one = |offer: &Offer| {
            let registration = offer.registration.clone()?;
            let target = &offer.exposure.target;
            let deadline = Instant::now() + TARGET_TIMEOUT;
            Some(RegisteredService {
                exposure: offer.exposure.clone(),
                registration,
                answers: dial(&target.host, target.port, deadline, &self.call.stop).is_ok(),
            })
        };
        self.offers.values().filter_map(one).collect()
    }

    /// Where the agent listens for direct sessions.
    pub fn direct_address(&self) -> Option<SocketAddr> {
        self.agent.as_ref().and_then(RunningAgent::direct_address)
    }

    /// Every desired service, exposed or not.
    pub fn open_services(&self) -> Vec<OpenService> {
        let traffic = self.agent.iter().flat_map(RunningAgent::traffic);
        let traffic: BTreeMap<Name, _> =
            traffic.map(|(exposure, counters)| (exposure.name, counters)).collect();
        let one = |(name, exposure): (&Name, &Exposure)| {
            let delayed = self.refused.get(name).or(self.no_agent.as_ref());
            let trouble = delayed.map(|delayed| delayed.reason.clone()).or_else(|| self.outage.clone());
            let counters = traffic.get(name);
            let sessions = counters.map_or(0, |counters| counters.sessions.load(Ordering::Relaxed));
            OpenService {
                name: name.to_string(),
                at: exposure.target.to_string(),
                exposed: true,
                up: trouble.is_none() && self.registration(name).is_some(),
                trouble,
                path: None,
                sessions,
                bytes: counters.map_or(0, |counters| counters.bytes.load(Ordering::Relaxed)),
            }
        };
        self.desired.iter().map(one).collect()
    }
}

/// What `--direct` says.
pub fn direct_address(call: &Call) -> Result<Option<SocketAddr>> {
    match call.args.value("direct") {
        None => Ok(None),
        Some("") => Ok(Some(ANY_ADDRESS)),
        Some(text) => text.parse().map(Some).map_err(|_| {
            Error::misread(text, "is not an address with a port")
                .hint("Write it like --direct=0.0.0.0:7444, or only --direct")
        }),
    }
}

impl Drop for ExposureSet<'_> {
    fn drop(&mut self) {
        for (name, _) in self.offers.iter().filter(|(_, offer)| offer.registration.is_some()) {
            logs::note_exposure(self.call, "INFO", &format!("{name} is not exposed any more"));
        }
    }
}
