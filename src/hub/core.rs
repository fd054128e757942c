//! What every part of the hub shares: the registry with its store, the counters, who is here.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::net::Shutdown;
use std::net::TcpStream;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;
use std::time::Instant;

use super::audit::Audit;
use super::audit::AuditDetails;
use super::ca::Ca;
use super::fleet::Fleet;
use super::sessions::Sessions;
use super::store;
use super::store::CommitOutcome;
use super::store::EtcdConfig;
use super::store::Store;
use super::tunnel_ports::TunnelPorts;
use crate::error::Error;
use crate::error::Result;
use crate::http::reply::Reply;
use crate::model::hub_records::Change;
use crate::model::hub_records::ChannelId;
use crate::model::hub_records::Record;
use crate::model::hub_records::Table;
use crate::model::hub_records::Tries;
use crate::model::limiter::Limiter;
use crate::model::registry::Registry;
use crate::model::time::Time;
use crate::model::version::Version;
use crate::net::channel::ChannelSender;
use crate::net::stop::Stop;
use crate::os::clock;
use crate::os::files;
use crate::os::lock::locked;
use crate::os::secret;

/// How many failed tries somebody has within a window of seconds. All hubs of a fleet count together.
pub struct Limit {
    name: &'static str,
    allowed: u32,
    window: u64,
}

/// From one address or with one key; then 429.
pub const LOGINS: Limit = Limit { name: "logins", allowed: 20, window: 60 };
/// Wrong share codes by one key and from one address.
pub const CODES: Limit = Limit { name: "codes", allowed: 10, window: 60 };
/// Device codes that one address may ask for while an asked one lives: it must leave room for the others.
pub const DEVICE_CODES: Limit = Limit { name: "devices", allowed: 10, window: 15 * 60 };
/// Failed tries a second that are written for the other hubs; in a flood of them each hub counts by itself.
const TRIES_SHARED: u32 = 50;
/// Refusals a minute that one caller leaves in the audit log; a loop must not fill the disk.
const REFUSALS_TOLD: u32 = 20;
const WINDOW: u64 = 60;
/// A change that others overtake again and again is given up after this long. The pause between two tries is
/// chance, so that none of them is always the slower one.
const DECISION_TIMEOUT: Duration = Duration::from_secs(5);
const OVERTAKEN_PAUSE: Duration = Duration::from_millis(5);

#[derive(Default)]
pub struct HubSettings {
    pub data: PathBuf,
    /// Names and addresses by which clients come, beside those the hub sees itself.
    pub names: Vec<String>,
    /// TLS ends before us: clients use https for the relay too, and the client's address is in a header.
    pub behind_proxy: bool,
    pub tunnel_ports: Option<RangeInclusive<u16>>,
    /// The etcd that this hub shares with others; `None` for its own disk.
    pub store: Option<EtcdConfig>,
}

pub struct Core {
    pub settings: HubSettings,
    pub ca: Arc<Ca>,
    pub audit: Audit,
    pub sessions: Sessions,
    pub fleet: Option<Arc<Fleet>>,
    /// What the hub's own command line calls itself with; new at each start.
    pub local_token: String,
    pub started: Instant,
    /// What recovery found, for the operator.
    pub note: Option<String>,
    pub stop: Stop,
    /// By reason; the rest is counted where it happens.
    refusals: Mutex<BTreeMap<&'static str, u64>>,
    registry: Arc<Mutex<Registry>>,
    store: Mutex<Box<dyn Store>>,
    told: Mutex<Limiter<String>>,
    tries_shared: Mutex<Limiter<()>>,
    channels: Mutex<HashMap<ChannelId, AgentChannel>>,
    pub tunnels: TunnelPorts,
}

/// An agent's control channel, as those who want something of the agent see it.
#[derive(Clone)]
pub struct AgentChannel {
    pub outgoing: ChannelSender,
    /// The relay by the address that this agent itself came by.
    pub relay: String,
    pub speaks: Version,
    /// The key it was opened with: when that dies, so does the channel.
    pub key: String,
    pub socket: Arc<TcpStream>,
}

impl Core {
    /// `None` when a running hub has the data folder.
    pub fn open(settings: HubSettings, stop: &Stop) -> Result<Option<Self>> {
        let Some(opened) = store::open(&settings.data, settings.store.as_ref(), stop)? else {
            return Ok(None);
        };
        let certificates = settings.data.join("certs");
        let (ca, fleet) = match opened.shared {
            Some((replica, mut gateway)) => {
                let (ca, pem) = Ca::shared(&mut gateway, settings.names.clone())?;
                // For those who give it to clients with `--ca`.
                files::write(&settings.data.join("fleet-ca.crt"), pem.as_bytes())?;
                let fleet = Fleet::new(replica, gateway, &ca, settings.behind_proxy)?;
                (ca, Some(Arc::new(fleet)))
            }
            None => {
                files::private_dir(&certificates)?;
                (Ca::load_or_make(&certificates, settings.names.clone())?, None)
            }
        };
        Ok(Some(Self {
            ca: Arc::new(ca),
            audit: Audit::open(&settings.data)?,
            tunnels: TunnelPorts::new(settings.tunnel_ports.clone()),
            settings,
            sessions: Sessions::default(),
            fleet,
            local_token: secret::secret(),
            started: Instant::now(),
            note: opened.note,
            stop: stop.clone(),
            refusals: Mutex::default(),
            registry: opened.registry,
            store: Mutex::new(opened.store),
            told: Mutex::new(Limiter::new(REFUSALS_TOLD, WINDOW)),
            tries_shared: Mutex::new(Limiter::new(TRIES_SHARED, 1)),
            channels: Mutex::default(),
        }))
    }

    pub fn refused(&self, reason: &'static str) {
        *locked(&self.refusals).entry(reason).or_default() += 1;
    }

    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        locked(&self.refusals).clone()
    }

    /// Seconds until these may try again; `None` when they may now.
    pub fn blocked(&self, limit: &Limit, who: &[String], now: Time) -> Option<u64> {
        let registry = self.registry();
        let tries = who.iter().filter_map(|who| registry.tries(&format!("{}/{who}", limit.name), now));
        tries.filter(|tries| tries.count >= limit.allowed).map(|tries| tries.until.since(now).as_secs()).max()
    }

    /// Counts a failed try of each of these.
    pub fn failed(&self, limit: &Limit, who: &[String], now: Time) {
        let one_more = |registry: &Registry| {
            let counted = who.iter().map(|who| {
                let who = format!("{}/{who}", limit.name);
                let until = now.plus(Duration::from_secs(limit.window));
                let before = registry.tries(&who, now).cloned();
                let tries = before.unwrap_or(Tries { who, count: 0, until });
                Change::Put(Record::Tries(Tries { count: tries.count.saturating_add(1), ..tries }))
            });
            counted.collect::<Vec<_>>()
        };
        // For a hub alone they last in memory only: there whoever guesses side by side must not wait for the disk, or
        // all of them would be answered before the first one counts.
        if self.fleet.is_some() && locked(&self.tries_shared).allows(&(), now) {
            self.change_anyhow(one_more);
        } else {
            self.change_here(one_more);
        }
    }

    /// Audits what somebody known was refused, named first in `details`; not more often than a person would try.
    pub fn audit_refusal(&self, event: &str, details: AuditDetails<'_>) {
        let who = details.first().map(|(_, who)| (*who).to_owned()).unwrap_or_default();
        let is_told = locked(&self.told).allows(&who, clock::now());
        if is_told {
            self.audit.say(event, details);
        }
    }

    /// For reading, and for what is true though no store knows it yet. Held for moments, never over I/O.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        locked(&self.registry)
    }

    /// Decides on the registry as it is and writes the changes; only then they are seen. If another hub was
    /// first, decides again. Those who change queue here, on the store's own lock; readers wait for nobody.
    pub fn change<T>(
        &self,
        mut decide: impl FnMut(&Registry) -> std::result::Result<(Vec<Change>, T), Reply>,
    ) -> std::result::Result<T, Reply> {
        let mut store = locked(&self.store);
        let deadline = Instant::now() + DECISION_TIMEOUT;
        while Instant::now() < deadline {
            let mark = store.mark();
            let (changes, value) = decide(&self.registry())?;
            if changes.is_empty() {
                return Ok(value);
            }
            match store.commit(changes, mark) {
                Ok(CommitOutcome::Done) => return Ok(value),
                // What the other one did may still be on its way here.
                Ok(CommitOutcome::Overtaken) => {
                    self.stop.wait_for(OVERTAKEN_PAUSE * (secret::number() % 100) / 100);
                }
                Err(error) => return Err(self.cannot_write(&error)),
            }
        }
        Err(self.cannot_write(&Error::new("other hubs were faster each time")))
    }

    /// Changes what is true here, whether the store hears of it or not.
    fn change_anyhow(&self, decide: impl Fn(&Registry) -> Vec<Change>) {
        if self.change(|registry| Ok((decide(registry), ()))).is_err() {
            self.change_here(decide);
        }
    }

    fn change_here(&self, decide: impl Fn(&Registry) -> Vec<Change>) {
        let mut registry = self.registry();
        decide(&registry).into_iter().for_each(|change| registry.apply(change));
    }

    fn cannot_write(&self, error: &Error) -> Reply {
        log::error!("a change was refused: {error}");
        self.refused("store");
        let (what, hint) = match self.fleet {
            None => {
                ("The hub cannot write to its data folder", "Tell whoever runs the hub; nothing was changed")
            }
            Some(_) => (
                "The hub cannot reach the store of its fleet, so nothing can be changed now",
                "Try again in a moment; what runs goes on",
            ),
        };
        Reply::error(503, what, hint)
    }

    pub fn add_channel(&self, agent_id: &str, channel: AgentChannel) -> ChannelId {
        let id = ChannelId(u64::from_ne_bytes(secret::bytes()));
        self.registry().open_channel(id, agent_id, clock::now());
        locked(&self.channels).insert(id, channel);
        id
    }

    /// Has every agent look for another hub.
    pub fn let_agents_go(&self) {
        let channels: Vec<_> = locked(&self.channels).values().cloned().collect();
        channels.iter().for_each(|channel| drop(channel.socket.shutdown(Shutdown::Both)));
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

    /// Cuts what has expired, and drops expired records.
    pub fn sweep(&self) {
        let now = clock::now();
        self.cut_dead();
        if self.registry().expired(now).is_empty() {
            return;
        }
        let dropped = self.change(|registry| Ok((registry.expired(now), ())));
        if dropped.is_err() {
            log::debug!("expired records stay until the store can be written");
        }
    }

    pub fn remove_channel(&self, id: ChannelId) {
        locked(&self.channels).remove(&id);
        self.registry().close_channel(id);
        self.sessions.agent_left(id);
        self.take_offline(id, |_| true);
        // Also of what another hub has taken over.
        self.tunnels.ports().keys().for_each(|service| self.close_tunnel(service, true));
    }

    /// Takes those services offline that this channel still holds: they are not here any more.
    pub fn take_offline(&self, channel: ChannelId, which: impl Fn(&str) -> bool) {
        self.change_anyhow(|registry| {
            let held = registry.held_by(channel).into_iter().filter(|online| which(&online.service));
            held.map(|online| Change::drop(Table::Online, &online.id)).collect()
        });
    }

    pub fn close_tunnel(&self, service: &str, keep_port: bool) {
        self.tunnels.close(service, keep_port, || {
            let registry = self.registry();
            registry.presence(service).is_none_or(|online| !registry.is_here(online))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn a_failed_try_counts_at_once_whoever_writes_to_the_disk() {
        let data = std::env::temp_dir().join(format!("connect-core-{}", secret::secret()));
        let settings = HubSettings { data: data.clone(), ..HubSettings::default() };
        let core = Arc::new(Core::open(settings, &Stop::new()).unwrap().unwrap());
        let (now, who) = (clock::now(), ["somebody".to_owned()]);
        let writing = locked(&core.store);
        let (own, (tell, told)) = (Arc::clone(&core), mpsc::channel());
        let failing = thread::spawn(move || {
            (0..CODES.allowed).for_each(|_| own.failed(&CODES, &["somebody".to_owned()], now));
            let _ = tell.send(());
        });
        let counted = told.recv_timeout(Duration::from_secs(5)).is_ok();
        drop(writing);
        failing.join().unwrap();
        assert!(counted, "it waited for the one who writes");
        assert!(core.blocked(&CODES, &who, now).is_some());
        let _ = std::fs::remove_dir_all(data);
    }
}
