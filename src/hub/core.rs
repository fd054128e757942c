//! The parts of a running hub, and the few procedures that need several of them.
//!
//! The table in `endpoints.rs` gives most endpoints only the parts that they need.

use std::net::Shutdown;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::time::Duration;
use std::time::Instant;

use super::agent_channels::AgentChannel;
use super::agent_channels::AgentChannels;
use super::audit;
use super::audit::Actor;
use super::audit::Audit;
use super::audit_forward::AuditTarget;
use super::ca::Ca;
use super::ca::CaPlace;
use super::code_key::CodeKey;
use super::fleet::Fleet;
use super::places::KeyPlaces;
use super::readiness::Readiness;
use super::records::Records;
use super::refusal::Refusal;
use super::refusal::counts::RefusalCounts;
use super::sessions::RelayEnd;
use super::sessions::Sessions;
use super::store;
use super::store::EtcdConfig;
use super::tunnel_ports::TunnelPorts;
use super::unauthenticated::UnauthenticatedPeers;
use super::unauthenticated::connection_limit;
use crate::error::Result;
use crate::model::address_block::AddressBlock;
use crate::model::fingerprint::Pin;
use crate::model::hub_records::Change;
use crate::model::hub_records::ChannelId;
use crate::model::hub_records::Record;
use crate::model::hub_records::Table;
use crate::model::hub_session::HubSession;
use crate::model::limiter::Limiter;
use crate::model::sessions::DeclinedSession;
use crate::net::stop::Stop;
use crate::os::clock;
use crate::os::lock::locked;
use crate::os::secret;
use crate::state::identity;
use crate::wire::control::ToAgent;

/// Agents hear by then that the hub drains. After that a fleet's hub cuts their channels.
const DRAIN_NOTICE: Duration = Duration::from_secs(1);
/// What is kept of the reason that an agent gives for not coming.
const DECLINE_REASON_LIMIT: usize = 200;
/// What an agent's sessions are told when its control channel ends.
const AGENT_LEFT: &str = "it has left";

#[derive(Default)]
pub struct HubSettings {
    pub data: PathBuf,
    /// Names and addresses that clients use for this hub, in addition to those that it sees itself.
    pub names: Vec<String>,
    /// Proxies in front of the hub that terminate TLS; none otherwise. Clients then use https for the relay too, and
    /// the client's address is in a header.
    pub proxies: Vec<AddressBlock>,
    /// For keys that are made before such a hub starts.
    pub is_behind_proxy: bool,
    pub tunnel_ports: Option<RangeInclusive<u16>>,
    /// The etcd that this hub shares with others; `None` for its own disk.
    pub store: Option<EtcdConfig>,
    /// Where each line of the audit log is sent to.
    pub audit_to: Option<AuditTarget>,
    /// The file with the code key; `None` for the one in the data folder.
    pub code_key_file: Option<PathBuf>,
    /// All sessions go through the relay, even if both ends could connect directly.
    pub no_direct: bool,
}

pub struct ListeningHub {
    pub address: SocketAddr,
    pub url: String,
}

/// Everything that a running hub shares between its connections.
pub struct Core {
    pub settings: HubSettings,
    pub ca: Arc<Ca>,
    pub code_key: CodeKey,
    pub records: Records,
    pub audit: Audit,
    pub readiness: Readiness,
    pub refusals: RefusalCounts,
    /// Failed tries, for the limits in `endpoints.rs` and `access.rs`. Each hub of a fleet counts by itself.
    pub tries: Mutex<Limiter>,
    pub peers: UnauthenticatedPeers,
    pub channels: AgentChannels,
    pub places: KeyPlaces,
    pub sessions: Sessions,
    pub tunnel_ports: TunnelPorts,
    pub fleet: Option<Arc<Fleet>>,
    /// The key of the hub's own command line; new at each start.
    pub local_token: String,
    /// Once it listens.
    pub listening: OnceLock<ListeningHub>,
    /// Held from a look at the root until it is written and told: the last one to do so has the newest.
    pub following_ca: Mutex<()>,
    pub started: Instant,
    /// What recovery found, for the operator.
    pub note: Option<String>,
    pub stop: Stop,
}

impl Core {
    /// Opens the store, the CA and the audit log; `None` if a running hub uses the data folder. The store comes first: its
    /// lock shows whether another hub runs, and a fleet keeps its CA in it.
    pub fn open(settings: HubSettings, stop: &Stop) -> Result<Option<Self>> {
        let Some(opened) = store::open(&settings.data, settings.store.as_ref(), stop)? else {
            return Ok(None);
        };
        let code_key = CodeKey::load_or_make(&settings.data, settings.code_key_file.as_deref())?;
        let (place, fleet) = match opened.shared {
            Some((replica, gateway)) => {
                (CaPlace::Fleet(gateway.another()), Some(Arc::new(Fleet::new(replica, gateway))))
            }
            None => (CaPlace::Folder(settings.data.clone()), None),
        };
        let ca = Ca::open(place, settings.names.clone(), &code_key, clock::now())?;
        code_key.keep(&settings.data)?;
        // A restored hub goes on with the name that its backup has.
        let restored = if fleet.is_none() { locked(&opened.registry).only_audited_hub() } else { None };
        let hub = restored.map_or_else(|| hub_id(&settings.data), Ok)?;
        let known = locked(&opened.registry).audit_head(&hub);
        Ok(Some(Self {
            ca: Arc::new(ca),
            code_key,
            records: Records::new(opened.registry, opened.store, fleet.is_some(), stop),
            // Before the log is opened, which may repair it.
            readiness: Readiness::new(&audit::log_file(&settings.data)),
            audit: Audit::open(&settings.data, hub, known, settings.audit_to.as_ref())?,
            refusals: RefusalCounts::default(),
            tries: Mutex::default(),
            peers: UnauthenticatedPeers::new(connection_limit()),
            channels: AgentChannels::default(),
            places: KeyPlaces::default(),
            sessions: Sessions::default(),
            tunnel_ports: TunnelPorts::new(settings.tunnel_ports.clone(), &settings.data),
            settings,
            fleet,
            local_token: secret::secret(),
            listening: OnceLock::new(),
            following_ca: Mutex::default(),
            started: Instant::now(),
            note: opened.note,
            stop: stop.clone(),
        }))
    }

    /// The pin that a new key carries. Behind a proxy there is none, since clients see the proxy's certificate.
    pub fn key_pin(&self) -> Option<Pin> {
        let HubSettings { proxies, is_behind_proxy, .. } = &self.settings;
        (proxies.is_empty() && !is_behind_proxy).then(|| self.ca.pin())
    }

    /// Registers the control channel that an agent has opened.
    pub fn agent_up(&self, agent_id: &str, channel: AgentChannel) -> ChannelId {
        let id = ChannelId(u64::from_ne_bytes(secret::bytes()));
        self.records.registry().open_channel(id, agent_id, clock::now());
        self.channels.add(id, channel);
        id
    }

    /// An agent's control channel has ended: what it held goes offline, and its waiting sessions end.
    pub fn agent_down(&self, id: ChannelId) {
        self.channels.remove(id);
        self.records.registry().close_channel(id);
        let declined = self.sessions.table().decline_all(id, AGENT_LEFT, clock::now());
        declined.into_iter().for_each(|declined| self.declined(declined, AGENT_LEFT));
        self.take_offline(id, |_| true);
        // Also the tunnels of services that another hub has taken over.
        for service in self.tunnel_ports.by_service().keys() {
            self.close_tunnel(service, true);
        }
    }

    /// Takes offline those services of this channel that `which` selects, but none that another channel has taken over.
    pub fn take_offline(&self, channel: ChannelId, which: impl Fn(&str) -> bool) {
        self.records.change_anyway(|registry| {
            let held = registry.held_by(channel).into_iter().filter(|online| which(&online.service));
            held.map(|online| Change::drop(Table::Online, &online.id)).collect()
        });
    }

    /// Closes the service's tunnel port unless the service is online at this hub.
    pub fn close_tunnel(&self, service: &str, keep_port: bool) {
        self.tunnel_ports.close(service, keep_port, || {
            let registry = self.records.registry();
            registry.presence(service).is_none_or(|online| !registry.is_here(online))
        });
    }

    /// Keeps the head of the audit log in the store and tells it to the agents, so that a log that was shortened or rewritten
    /// is found out.
    pub fn keep_audit_head(&self) {
        let audit = self.audit.head();
        let kept = self.records.change(|registry| {
            let is_new = registry.audit_head(&audit.hub) != audit.head;
            Ok((is_new.then(|| Change::Put(Record::Audit(audit.clone()))).into_iter().collect(), is_new))
        });
        if !matches!(kept, Ok(false)) {
            self.channels.send_all(&ToAgent::Audit(audit));
        }
    }

    /// Why a session has not ended by itself; empty if it has.
    pub fn cut_reason(&self, session: &HubSession) -> &'static str {
        if session.is_revoked(&self.records.registry(), clock::now()) {
            "its key or share is no longer valid"
        } else if self.stop.is_stopped() {
            "the hub stopped"
        } else {
            ""
        }
    }

    /// Cuts the sessions and control channels whose key or share is no longer valid. The sockets are collected under
    /// the locks and cut after them.
    pub fn cut_dead(&self) {
        let (registry, now) = (self.records.registry(), clock::now());
        let revoked = self.sessions.table().revoke(&registry, now);
        let dead_channels = self.channels.dead(&registry, now);
        drop(registry);
        // An agent that does not hear it is told again at the next sweep.
        for session in revoked.direct {
            if let Some(agent) = self.channels.find(session.channel) {
                agent.outgoing.send(&ToAgent::Close { session: session.id });
            }
        }
        for session in &revoked.lost {
            let details = [("outcome", "cut"), ("reason", "its agent did not come back")];
            self.audit.say_session("session.closed", session, &details);
        }
        for session in &revoked.unused {
            self.session_refused(session, &Refusal::PartnerMissing, "");
        }
        for socket in revoked.ends.iter().map(|end| &end.socket).chain(&dead_channels) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    pub fn check_readiness(&self) {
        let fleet = self.fleet.as_deref();
        self.readiness.check(&self.settings.data, &self.records, fleet, &self.audit);
    }

    /// Whether this hub sends everybody to the other hubs of its fleet.
    pub fn is_leaving(&self) -> bool {
        let Some(fleet) = &self.fleet else { return false };
        let drains = || self.readiness.drain().is_some() && self.records.registry().hubs().count() > 1;
        fleet.is_fenced() || self.stop.is_stopped() || drains()
    }

    /// Ends the hub when its last session has ended or the time for that is up. In a fleet its agents go to other hubs first.
    fn go_on_draining(&self) {
        let Some(drain) = self.readiness.drain() else { return };
        if drain.begun.elapsed() > DRAIN_NOTICE && self.is_leaving() {
            self.channels.cut_all();
        }
        if self.sessions.table().is_empty() || Instant::now() >= drain.until {
            self.stop.stop();
        }
    }

    pub fn session_opened(&self, session: &HubSession) {
        self.sessions.count_opened();
        self.audit.say_session("session.opened", session, &[]);
    }

    /// The agent that was told of the session on this channel does not come.
    pub fn decline(&self, session: &str, channel: ChannelId, reason: &str) {
        let reason: String = reason.chars().take(DECLINE_REASON_LIMIT).collect();
        let declined = self.sessions.table().decline(session, channel, &reason);
        declined.into_iter().for_each(|declined| self.declined(declined, &reason));
    }

    fn declined(&self, declined: DeclinedSession<Arc<RelayEnd>>, reason: &str) {
        if let Some(end) = declined.waiting {
            let _ = end.partner.try_send(None);
        }
        self.session_refused(&declined.session, &Refusal::Declined, reason);
    }

    /// A session that was granted has not come about. `words` are what its agent says, if it has declined.
    pub fn session_refused(&self, session: &HubSession, refusal: &Refusal, words: &str) {
        let details = [
            ("agent", session.agent_id.as_str()),
            ("service", &session.service),
            ("share", session.share.as_deref().unwrap_or_default()),
            ("path", session.path()),
            ("reason", refusal.code()),
            ("words", words),
        ];
        self.audit.say("session.refused", Actor::of(&session.caller, session.address), &details);
    }

    pub fn session_closed(&self, session: &HubSession, lasted: Duration, to_agent: u64, to_joiner: u64) {
        let reason = self.cut_reason(session);
        let details = [
            ("outcome", if reason.is_empty() { "ok" } else { "cut" }),
            ("reason", reason),
            ("durationMs", &lasted.as_millis().to_string()),
            ("toAgent", &to_agent.to_string()),
            ("toJoiner", &to_joiner.to_string()),
            ("tls", &session.tls),
        ];
        self.audit.say_session("session.closed", session, &details);
    }

    /// Cuts the connections of expired credentials, and removes records that count for nothing any more.
    pub fn sweep(&self) {
        let now = clock::now();
        self.audit.sweep();
        self.cut_dead();
        self.go_on_draining();
        if self.records.registry().overdue(now).is_empty() {
            return;
        }
        let dropped = self.records.change(|registry| Ok((registry.overdue(now), ())));
        if dropped.is_err() {
            log::debug!("records that are overdue stay until the store can be written");
        }
    }
}

/// The log ends with the hub, and its head is kept for the next start. A fleet's store may be away, and nobody waits for it.
impl Drop for Core {
    fn drop(&mut self) {
        self.audit.close();
        if self.fleet.is_none() || !self.stop.is_stopped() {
            self.keep_audit_head();
        }
    }
}

/// What this hub is called in audit logs. Each hub of a fleet has an identity of its own in its data folder.
fn hub_id(data: &Path) -> Result<String> {
    let identity = identity::load_or_make_in(data)?;
    Ok(secret::derived_id("hub", &[&identity.fingerprint.to_string()]))
}

#[cfg(test)]
mod tests {
    use super::super::endpoints::SHARE_CODES;
    use super::*;
    use std::sync::mpsc;
    use std::thread;

    #[test]
    fn a_failed_try_counts_at_once_whoever_writes_to_the_disk() {
        let data = std::env::temp_dir().join(format!("connect-core-{}", secret::secret()));
        let settings = HubSettings { data: data.clone(), ..HubSettings::default() };
        let core = Core::open(settings, &Stop::new()).unwrap().unwrap();
        let (count, counted) = mpsc::channel();
        let in_time = thread::scope(|scope| {
            // The store and the registry are locked while a change is decided.
            let decided = core.records.change(|_| {
                let count = count.clone();
                let tries = &core.tries;
                scope.spawn(move || {
                    for _ in 0..SHARE_CODES.allowed {
                        locked(tries).count(&SHARE_CODES, "somebody", clock::now());
                    }
                    let _ = count.send(());
                });
                Ok((Vec::new(), counted.recv_timeout(Duration::from_secs(5)).is_ok()))
            });
            decided.unwrap()
        });
        assert!(in_time, "it waited for the one who writes");
        assert!(locked(&core.tries).blocked(&SHARE_CODES, "somebody", clock::now()).is_some());
        let _ = std::fs::remove_dir_all(data);
    }
}
