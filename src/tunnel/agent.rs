//! The agent: a machine that exposes services through a hub, and what its threads share.
//!
//! `agent/control_channel.rs` talks with the hub; `agent/serving.rs` serves the sessions that the hub offers.

mod control_channel;
mod serving;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use rustls::ServerConfig;

use super::direct_listener::DirectListener;
use super::served::ServedLog;
use super::traffic::TrafficCounters;
use crate::api::Hub;
use crate::error::Error;
use crate::error::Result;
use crate::model::fair_share::FairShare;
use crate::model::name::Name;
use crate::model::service::Protocol;
use crate::model::target::Target;
use crate::net::channel::ChannelSender;
use crate::net::serve::Server;
use crate::net::stop::Stop;
use crate::net::threads::ThreadGroup;
use crate::os::lock::locked;
use crate::state::home::Home;
use crate::tls::identity::Identity;
use crate::tls::succession::replaced_by;
use crate::tls::trust;
use crate::wire::control::ToHub;

/// Sessions served at once. Each costs two threads and up to three descriptors.
const AGENT_SESSION_LIMIT: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    pub name: Name,
    pub target: Target,
    pub protocol: Protocol,
}

#[derive(Debug)]
pub enum AgentEvent {
    /// The hub knows the service; the id is the same after every reconnection.
    Exposed {
        name: Name,
        service: String,
        tunnel_port: Option<u16>,
    },
    Refused {
        name: Name,
        error: Error,
    },
    /// The hub offers the next secret of this machine's key, sealed.
    NextKey {
        sealed: String,
    },
    /// The control channel is gone. The agent keeps reconnecting.
    Lost(Error),
    /// The agent has reconnected.
    Back,
}

pub type OnAgentEvent = Box<dyn Fn(AgentEvent) + Send + Sync>;

/// How this agent identifies itself to the hub and to joiners.
pub struct AgentProfile {
    pub id: String,
    pub label: String,
    pub identity: Identity,
    /// Its own word for the share that its services belong to.
    pub share: Option<String>,
    /// Where it keeps what it knows of the hub.
    pub home: Home,
    /// Where it listens for joiners that come without the relay, if it does.
    pub direct: Option<SocketAddr>,
}

pub struct RunningAgent {
    inner: Arc<AgentInner>,
    _direct: Option<Server>,
}

struct AgentInner {
    hub: Arc<Hub>,
    id: String,
    label: String,
    share: Option<String>,
    /// The one in use and the one that it has replaced, for sessions that were granted before.
    identities: Mutex<Vec<OwnIdentity>>,
    home: Home,
    served: Option<Arc<ServedLog>>,
    exposures: Mutex<Exposures>,
    on_event: OnAgentEvent,
    threads: ThreadGroup,
    serving: Mutex<FairShare<Stop>>,
    /// How often a hub has said that it is about to end.
    drains: AtomicUsize,
    direct: Option<DirectListener>,
    stop: Stop,
}

struct OwnIdentity {
    identity: Identity,
    tls: Arc<ServerConfig>,
}

impl OwnIdentity {
    fn new(identity: Identity) -> Result<Self> {
        Ok(Self { tls: trust::session_server(&identity)?, identity })
    }
}

#[derive(Default)]
struct Exposures {
    all: Vec<ExposedService>,
    /// The control channel, while there is one.
    channel: Option<ChannelSender>,
}

#[derive(Clone)]
struct ExposedService {
    exposure: Exposure,
    traffic: Arc<TrafficCounters>,
    /// The id from the hub, once it knows the service.
    service: Option<String>,
}

impl RunningAgent {
    pub fn start(hub: Arc<Hub>, profile: AgentProfile, on_event: OnAgentEvent, stop: &Stop) -> Result<Self> {
        let stop = stop.child();
        let (direct, listener) = profile.direct.map(DirectListener::bind).transpose()?.unzip();
        let served = ServedLog::open(&profile.home, &profile.id);
        let served = served.inspect_err(|error| log::warn!("what is served is not recorded: {error}"));
        let inner = Arc::new(AgentInner {
            hub,
            id: profile.id,
            label: profile.label,
            share: profile.share,
            identities: Mutex::new(vec![OwnIdentity::new(profile.identity)?]),
            home: profile.home,
            served: served.ok().map(Arc::new),
            exposures: Mutex::default(),
            on_event,
            threads: ThreadGroup::default(),
            serving: Mutex::new(FairShare::new(AGENT_SESSION_LIMIT)),
            drains: AtomicUsize::new(0),
            direct,
            stop,
        });
        let direct = listener.map(|listener| inner.listen_directly(listener)).transpose()?;
        let own = Arc::clone(&inner);
        inner.threads.spawn("agent", move || own.run())?;
        Ok(Self { inner, _direct: direct })
    }

    /// Where it listens for direct sessions.
    pub fn direct_address(&self) -> Option<SocketAddr> {
        self.inner.direct.as_ref().map(DirectListener::address)
    }

    pub fn expose(&self, exposure: Exposure) {
        let mut exposures = locked(&self.inner.exposures);
        if let Some(channel) = &exposures.channel {
            channel.send(&expose_message(&exposure));
        }
        exposures.all.push(ExposedService { exposure, traffic: Arc::default(), service: None });
    }

    pub fn withdraw(&self, name: &Name) {
        let mut exposures = locked(&self.inner.exposures);
        exposures.all.retain(|one| one.exposure.name != *name);
        if let Some(channel) = &exposures.channel {
            channel.send(&ToHub::Withdraw { name: name.clone() });
        }
    }

    pub fn hub(&self) -> &Hub {
        &self.inner.hub
    }

    /// Registers at the hub again, which shows it the key that is in use now.
    pub fn register(&self) -> Result<()> {
        self.inner.register(&self.inner.hub)
    }

    /// Answers as the successor of its identity from now on, where the hub has told the joiner so. False if it is none.
    pub fn use_identity(&self, identity: Identity) -> Result<bool> {
        let mut identities = locked(&self.inner.identities);
        let replaced = replaced_by(identity.fingerprint, &identity.chain);
        let is_successor = replaced.contains(&identities[0].identity.fingerprint); // There is always one.
        if is_successor {
            identities.insert(0, OwnIdentity::new(identity)?);
            identities.truncate(2);
        }
        Ok(is_successor)
    }

    /// All exposed services, with the traffic of each.
    pub fn traffic(&self) -> Vec<(Exposure, Arc<TrafficCounters>)> {
        let exposures = locked(&self.inner.exposures);
        exposures.all.iter().map(|one| (one.exposure.clone(), Arc::clone(&one.traffic))).collect()
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        self.inner.stop.stop();
        self.inner.threads.join(|| ());
    }
}

fn expose_message(exposure: &Exposure) -> ToHub {
    ToHub::Expose { name: exposure.name.clone(), port: exposure.target.port, protocol: exposure.protocol }
}

impl AgentInner {
    fn register(&self, hub: &Hub) -> Result<()> {
        let identity = locked(&self.identities)[0].identity.clone(); // There is always one.
        hub.register(&self.id, &self.label, &identity).map(drop)
    }
}
