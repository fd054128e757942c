//! What every part of the hub shares: the registry with its store, the counters, who is here.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Shutdown;
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Instant;

use super::audit::Audit;
use super::audit::Details;
use super::ca::Ca;
use super::sessions::Sessions;
use super::store::Store;
use crate::error::Error;
use crate::error::Result;
use crate::model::limiter::Limiter;
use crate::model::record::Change;
use crate::model::record::Record;
use crate::model::registry::ChannelId;
use crate::model::registry::Registry;
use crate::model::version::Version;
use crate::net::channel::Outgoing;
use crate::os::clock;
use crate::os::files;
use crate::os::secret;
use crate::wire::message::error_body;
use crate::wire::reply::Reply;

/// Failed logins a minute from one address or with one key; then 429.
const LOGIN_FAILURES: u32 = 20;
/// Wrong share codes a minute by one key and from one address.
const WRONG_CODES: u32 = 10;
/// Device codes that one address may ask for while an asked one lives: it must leave room for the others.
const DEVICE_CODES: u32 = 10;
const DEVICE_WINDOW: u64 = 15 * 60;
/// Refusals a minute that one caller leaves in the audit log; a loop must not fill the disk.
const REFUSALS_TOLD: u32 = 20;
const WINDOW: u64 = 60;

pub struct Settings {
    pub data: PathBuf,
    /// Names and addresses by which clients come, beside those the hub sees itself.
    pub names: Vec<String>,
    /// TLS ends before us: clients use https for the relay too, and the client's address is in a header.
    pub behind_proxy: bool,
    pub tunnel_ports: Option<RangeInclusive<u16>>,
}

/// Opens a tunnel on a loopback port to one service; the hub's command brings it, since this room knows
/// nothing of tunnels. Dropping what it returns closes the tunnel.
pub type TunnelOpener = Box<dyn Fn(&str, u16) -> Result<Box<dyn Send>> + Send + Sync>;

pub struct Core {
    pub settings: Settings,
    pub ca: Arc<Ca>,
    pub audit: Audit,
    pub sessions: Sessions,
    pub counters: Counters,
    pub limits: Limits,
    /// What the hub's own command line calls itself with; new at each start.
    pub local_token: String,
    pub started: Instant,
    /// What recovery found, for the operator.
    pub note: Option<String>,
    registry: Mutex<Registry>,
    store: Mutex<Store>,
    channels: Mutex<HashMap<ChannelId, AgentChannel>>,
    tunnels: Mutex<BTreeMap<u16, Tunnel>>,
}

/// An agent's control channel, as those who want something of the agent see it.
#[derive(Clone)]
pub struct AgentChannel {
    pub outgoing: Outgoing,
    /// The relay by the address that this agent itself came by.
    pub relay: String,
    pub speaks: Version,
    /// The key it was opened with: when that dies, so does the channel.
    pub key: String,
    pub socket: Arc<TcpStream>,
}

struct Tunnel {
    service: String,
    /// Closed by being dropped. A port whose service is away keeps its place without one.
    open: Option<Box<dyn Send>>,
}

pub struct Limits {
    pub logins: Mutex<Limiter<String>>,
    pub codes: Mutex<Limiter<String>>,
    pub devices: Mutex<Limiter<IpAddr>>,
    told: Mutex<Limiter<String>>,
}

/// Refusals by reason; the rest is counted where it happens.
#[derive(Default)]
pub struct Counters {
    refusals: Mutex<BTreeMap<&'static str, u64>>,
}

impl Counters {
    pub fn refused(&self, reason: &'static str) {
        *locked(&self.refusals).entry(reason).or_default() += 1;
    }

    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        locked(&self.refusals).clone()
    }
}

pub fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    /// `None` when a running hub has the data folder.
    pub fn open(settings: Settings) -> Result<Option<Self>> {
        files::private_dir(&settings.data)?;
        let Some(opened) = Store::open(&settings.data)? else { return Ok(None) };
        let certificates = settings.data.join("certs");
        files::private_dir(&certificates)?;
        Ok(Some(Self {
            ca: Arc::new(Ca::load_or_make(&certificates, settings.names.clone())?),
            audit: Audit::open(&settings.data)?,
            settings,
            sessions: Sessions::default(),
            counters: Counters::default(),
            limits: Limits {
                logins: Mutex::new(Limiter::new(LOGIN_FAILURES, WINDOW)),
                codes: Mutex::new(Limiter::new(WRONG_CODES, WINDOW)),
                devices: Mutex::new(Limiter::new(DEVICE_CODES, DEVICE_WINDOW)),
                told: Mutex::new(Limiter::new(REFUSALS_TOLD, WINDOW)),
            },
            local_token: secret::secret(),
            started: Instant::now(),
            note: opened.note,
            registry: Mutex::new(opened.registry),
            store: Mutex::new(opened.store),
            channels: Mutex::default(),
            tunnels: Mutex::default(),
        }))
    }

    /// Audits what somebody known was refused, named first in `details`; not more often than a person would try.
    pub fn audit_refusal(&self, event: &str, details: Details<'_>) {
        let who = details.first().map(|(_, who)| (*who).to_owned()).unwrap_or_default();
        let now = clock::now();
        let mut told = locked(&self.limits.told);
        if told.blocked(&who, now).is_none() {
            told.failed(&who, now);
            drop(told);
            self.audit.say(event, details);
        }
    }

    /// For reading, and for presence, which no store keeps. Held for moments, never over I/O.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        locked(&self.registry)
    }

    /// Decides on the registry as it is, writes the changes, and only then lets them be seen. Those who
    /// change queue here, on the store's own lock; readers wait for nobody's disk.
    pub fn change<T>(
        &self,
        decide: impl FnOnce(&Registry) -> std::result::Result<(Vec<Change>, T), Reply>,
    ) -> std::result::Result<T, Reply> {
        let mut store = locked(&self.store);
        let (changes, value) = decide(&self.registry())?;
        if changes.is_empty() {
            return Ok(value);
        }
        store.commit(&changes).map_err(|error| self.cannot_write(&error))?;
        let records: Option<Vec<Record>> = {
            let mut registry = self.registry();
            changes.into_iter().for_each(|change| registry.apply(change));
            store.wants_snapshot().then(|| registry.records().collect())
        };
        if let Some(records) = records
            && let Err(error) = store.snapshot(records)
        {
            log::error!("the journal grows on: {error}");
        }
        Ok(value)
    }

    fn cannot_write(&self, error: &Error) -> Reply {
        log::error!("a change was refused: {error}");
        self.counters.refused("store");
        Reply::json(
            503,
            error_body(
                "The hub cannot write to its data folder",
                "Tell whoever runs the hub; nothing was changed",
            ),
        )
    }

    pub fn add_channel(&self, agent_id: &str, channel: AgentChannel) -> ChannelId {
        let id = self.registry().open_channel(agent_id, clock::now());
        locked(&self.channels).insert(id, channel);
        id
    }

    pub fn channel(&self, id: ChannelId) -> Option<AgentChannel> {
        locked(&self.channels).get(&id).cloned()
    }

    /// Cuts whatever lives by a key or share that is no longer good.
    pub fn cut_dead(&self) {
        let (registry, now) = (self.registry(), clock::now());
        let mut cut = self.sessions.dead(&registry, now);
        let channels = locked(&self.channels);
        let dead = channels.values().filter(|channel| !registry.credential_is_live(&channel.key, now));
        cut.extend(dead.map(|channel| Arc::clone(&channel.socket)));
        drop((registry, channels));
        cut.iter().for_each(|socket| drop(socket.shutdown(Shutdown::Both)));
    }

    pub fn remove_channel(&self, id: ChannelId) {
        locked(&self.channels).remove(&id);
        let gone = self.registry().close_channel(id);
        for (service, presence) in gone {
            self.close_tunnel(&service, presence.tunnel_port);
        }
    }

    /// Opens the service's tunnel port: the one it had before, else the first that is free.
    pub fn open_tunnel(&self, service: &str, opener: &TunnelOpener) -> Option<u16> {
        let range = self.settings.tunnel_ports.clone()?;
        let (before, taken): (Vec<u16>, Vec<u16>) = {
            let tunnels = locked(&self.tunnels);
            let before =
                tunnels.iter().filter(|(_, tunnel)| tunnel.service == service).map(|(port, _)| *port);
            (before.collect(), tunnels.keys().copied().collect())
        };
        if let [port] = before[..] {
            // A reconnecting agent finds its tunnel open.
            if locked(&self.tunnels).get(&port).is_some_and(|tunnel| tunnel.open.is_some()) {
                return Some(port);
            }
        }
        let free = range.filter(|port| !taken.contains(port));
        let (port, open) =
            before.iter().copied().chain(free).find_map(|port| Some((port, opener(service, port).ok()?)))?;
        locked(&self.tunnels).insert(port, Tunnel { service: service.to_owned(), open: Some(open) });
        Some(port)
    }

    /// Closes the tunnel of a service that is offline. Its port stays this service's until the range runs out of others.
    pub fn close_tunnel(&self, service: &str, port: Option<u16>) {
        let Some(port) = port else { return };
        let closing = {
            let mut tunnels = locked(&self.tunnels);
            // Another channel may have brought it online again in the meantime.
            let is_offline = self.registry().presence(service).is_none();
            tunnels
                .get_mut(&port)
                .filter(|tunnel| is_offline && tunnel.service == service)
                .and_then(|tunnel| tunnel.open.take())
        };
        drop(closing);
    }

    pub fn forget_tunnel(&self, service: &str) {
        let gone: Vec<Tunnel> = {
            let mut tunnels = locked(&self.tunnels);
            let is_offline = self.registry().presence(service).is_none();
            tunnels
                .extract_if(.., |_, tunnel| is_offline && tunnel.service == service)
                .map(|(_, tunnel)| tunnel)
                .collect()
        };
        drop(gone);
    }

    pub fn close_all_tunnels(&self) {
        let all = std::mem::take(&mut *locked(&self.tunnels));
        drop(all);
    }
}
