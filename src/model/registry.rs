//! Everything the hub knows: the records that its store keeps, and which agents are connected.
//!
//! An agent may have several control channels at once, one for each process that exposes something. A service
//! belongs to the channel that exposed it last, at this hub or another of the fleet. Only the end of that channel
//! takes the service offline; the late end of an older channel does not.

mod sweep;

use std::collections::BTreeMap;
use std::collections::HashMap;

use super::access::Principal;
use super::hub_records::Agent;
use super::hub_records::AuditHead;
use super::hub_records::ChainHead;
use super::hub_records::Change;
use super::hub_records::ChannelId;
use super::hub_records::Device;
use super::hub_records::FleetHub;
use super::hub_records::Key;
use super::hub_records::Presence;
use super::hub_records::Record;
use super::hub_records::Share;
use super::hub_records::Table;
use super::hub_records::UNSEEN_LIMIT;
use super::service::Service;
use super::time::Time;

/// The agent at the other end of a control channel.
#[derive(Clone, Debug)]
struct ChannelOwner {
    agent_id: String,
    since: Time,
}

#[derive(Debug, Default)]
pub struct Registry {
    keys: BTreeMap<String, Key>,
    agents: BTreeMap<String, Agent>,
    services: BTreeMap<String, Service>,
    shares: BTreeMap<String, Share>,
    devices: BTreeMap<String, Device>,
    audit_heads: BTreeMap<String, AuditHead>,
    key_by_hash: HashMap<String, String>,
    share_by_code: HashMap<String, String>,
    share_by_link: HashMap<String, String>,
    online: HashMap<String, Presence>,
    hubs: BTreeMap<String, FleetHub>,
    /// When keys were used at this hub.
    key_uses: HashMap<String, Time>,
    /// The same for the first secret of a key that has a next one.
    old_secret_uses: HashMap<String, Time>,
    /// This hub's own control channels.
    channels: BTreeMap<ChannelId, ChannelOwner>,
    /// The URL by which the fleet knows this hub; empty for a hub without a fleet.
    pub me: String,
}

impl Registry {
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Put(record) => self.put(record),
            Change::Drop { table, id } => self.drop_record(table, &id),
        }
    }

    /// Enters a record in place of the one with the same ID. The old record's index entries are dropped first, since a hash
    /// may have changed.
    fn put(&mut self, record: Record) {
        self.drop_indexes(record.table(), record.id());
        match record {
            Record::Key(key) => {
                for hash in key.hashes() {
                    self.key_by_hash.insert(hash.clone(), key.info.id.clone());
                }
                self.keys.insert(key.info.id.clone(), key);
            }
            Record::Agent(agent) => _ = self.agents.insert(agent.id.clone(), agent),
            Record::Service(service) => _ = self.services.insert(service.id.clone(), service),
            Record::Share(share) => {
                // A store may list two shares with one code, in any order. The code is the later one's; the earlier
                // share had expired when the code was taken again.
                let owner = self.share_by_code.get(&share.code_hash).and_then(|id| self.shares.get(id));
                let age = |share: &Share| (share.info.created_at, share.info.expires_at);
                if owner.is_none_or(|owner| age(owner) <= age(&share)) {
                    self.share_by_code.insert(share.code_hash.clone(), share.info.id.clone());
                }
                if let Some(hash) = &share.link_hash {
                    self.share_by_link.insert(hash.clone(), share.info.id.clone());
                }
                self.shares.insert(share.info.id.clone(), share);
            }
            Record::Device(device) => _ = self.devices.insert(device.code_hash.clone(), device),
            Record::Audit(audit) => _ = self.audit_heads.insert(audit.hub.clone(), audit),
            Record::Online(online) => _ = self.online.insert(online.id.clone(), online),
            Record::Hub(hub) => _ = self.hubs.insert(hub.url.clone(), hub),
        }
    }

    fn drop_record(&mut self, table: Table, id: &str) {
        self.drop_indexes(table, id);
        match table {
            Table::Key => {
                self.keys.remove(id);
                self.key_uses.remove(id);
                self.old_secret_uses.remove(id);
            }
            Table::Agent => _ = self.agents.remove(id),
            Table::Service => _ = self.services.remove(id),
            Table::Share => _ = self.shares.remove(id),
            Table::Device => _ = self.devices.remove(id),
            Table::Audit => _ = self.audit_heads.remove(id),
            Table::Online => _ = self.online.remove(id),
            Table::Hub => _ = self.hubs.remove(id),
        }
    }

    fn drop_indexes(&mut self, table: Table, id: &str) {
        match table {
            Table::Key => {
                for hash in self.keys.get(id).into_iter().flat_map(Key::hashes) {
                    self.key_by_hash.remove(hash);
                }
            }
            Table::Share => {
                if let Some(share) = self.shares.get(id) {
                    // If the share had expired, another share may have its code by now.
                    if self.share_by_code.get(&share.code_hash).is_some_and(|owner| owner == id) {
                        self.share_by_code.remove(&share.code_hash);
                    }
                    if let Some(hash) = &share.link_hash {
                        self.share_by_link.remove(hash);
                    }
                }
            }
            _ => {}
        }
    }

    /// Every record that outlives the hub, in the order of a snapshot.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let keys = self.keys.values().cloned().map(Record::Key);
        let agents = self.agents.values().cloned().map(Record::Agent);
        let services = self.services.values().cloned().map(Record::Service);
        let shares = self.shares.values().cloned().map(Record::Share);
        let devices = self.devices.values().cloned().map(Record::Device);
        let audit_heads = self.audit_heads.values().cloned().map(Record::Audit);
        keys.chain(agents).chain(services).chain(shares).chain(devices).chain(audit_heads)
    }

    /// Whether the agent's key is valid and it was seen lately. Any other agent is as good as removed.
    pub fn agent_counts(&self, agent: &Agent, now: Time) -> bool {
        self.credential_is_live(&agent.key, now)
            && (now.since(agent.seen_at) < UNSEEN_LIMIT || self.connected_since(&agent.id).is_some())
    }

    /// The same for a service.
    pub fn service_counts(&self, service: &Service, now: Time) -> bool {
        self.credential_is_live(&service.key, now)
            && (now.since(service.seen_at) < UNSEEN_LIMIT || self.presence(&service.id).is_some())
    }

    /// Everything that was made with this key.
    pub fn made_by(&self, key: &str) -> Vec<Change> {
        let shares = self.shares.values().filter(|share| share.key == key);
        let agents = self.agents_of_key(key).map(|agent| Change::drop(Table::Agent, &agent.id));
        let services = self.services_of_key(key).map(|service| Change::drop(Table::Service, &service.id));
        let shares = shares.map(|share| Change::drop(Table::Share, &share.info.id));
        agents.chain(services).chain(shares).collect()
    }

    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.values()
    }

    pub fn key(&self, id: &str) -> Option<&Key> {
        self.keys.get(id)
    }

    /// The agents of this key that have not used its next secret yet.
    pub fn agents_to_rotate(&self, key: &Key, now: Time) -> Vec<&Agent> {
        let Some(rotation) = &key.rotation else { return Vec::new() };
        let own = self.agents_of_key(&key.info.id).filter(|agent| self.agent_counts(agent, now));
        own.filter(|agent| !rotation.proved.contains(&agent.id)).collect()
    }

    pub fn key_by_hash(&self, hash: &str, now: Time) -> Option<&Key> {
        let key = self.keys.get(self.key_by_hash.get(hash)?).filter(|key| key.info.is_live(now))?;
        Some(key).filter(|key| !(key.is_replaced(hash) && key.is_rotation_over(now)))
    }

    /// Whether the credential of a running session is still valid: a key, or the share of a link.
    pub fn credential_is_live(&self, id: &str, now: Time) -> bool {
        id == Principal::Local.id()
            || self.keys.get(id).is_some_and(|key| key.info.is_live(now))
            || self.share(id, now).is_some()
    }

    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.agents.values()
    }

    pub fn agents_of_key(&self, key: &str) -> impl Iterator<Item = &Agent> {
        self.agents.values().filter(move |agent| agent.key == key)
    }

    pub fn agent(&self, id: &str) -> Option<&Agent> {
        self.agents.get(id)
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// Without what was withdrawn.
    pub fn exposed(&self) -> impl Iterator<Item = &Service> {
        self.services().filter(|service| !service.withdrawn)
    }

    /// What the share opens.
    pub fn services_in(&self, share: &Share) -> impl Iterator<Item = &Service> {
        share.services.iter().filter_map(|id| self.services.get(id))
    }

    pub fn service(&self, id: &str) -> Option<&Service> {
        self.services.get(id)
    }

    /// The service of the workspace that has this name, online or not. The name is its agent's as long as the record
    /// counts.
    pub fn service_named(&self, workspace: &str, name: &str, now: Time) -> Option<&Service> {
        let is_named = |service: &&Service| {
            service.workspace == workspace && service.share.is_none() && service.name.as_str() == name
        };
        self.exposed().filter(is_named).find(|service| self.service_counts(service, now))
    }

    /// The services that were registered for this share alone.
    pub fn services_of_share(&self, share: &str) -> impl Iterator<Item = &Service> {
        self.services.values().filter(move |service| service.share.as_deref() == Some(share))
    }

    pub fn services_of(&self, agent_id: &str) -> impl Iterator<Item = &Service> {
        self.services.values().filter(move |service| service.agent_id == agent_id)
    }

    pub fn services_of_key(&self, key: &str) -> impl Iterator<Item = &Service> {
        self.services.values().filter(move |service| service.key == key)
    }

    pub fn shares(&self) -> impl Iterator<Item = &Share> {
        self.shares.values()
    }

    pub fn share(&self, id: &str, now: Time) -> Option<&Share> {
        self.shares.get(id).filter(|share| self.share_is_live(share, now))
    }

    /// A share ends with the key that made it. Otherwise shares made with a stolen key would survive its revocation.
    pub fn share_is_live(&self, share: &Share, now: Time) -> bool {
        let by_key = || self.keys.get(&share.key).is_some_and(|key| key.info.is_live(now));
        share.info.is_live(now) && (share.key == Principal::Local.id() || by_key())
    }

    pub fn share_by_code(&self, code_hash: &str, now: Time) -> Option<&Share> {
        self.share(self.share_by_code.get(code_hash)?, now)
    }

    /// The share that had this code last, expired or not.
    pub fn code_owner(&self, code_hash: &str) -> Option<&str> {
        self.share_by_code.get(code_hash).map(String::as_str)
    }

    pub fn any_share(&self, id: &str) -> Option<&Share> {
        self.shares.get(id)
    }

    pub fn share_by_link(&self, link_hash: &str, now: Time) -> Option<&Share> {
        self.share(self.share_by_link.get(link_hash)?, now)
    }

    /// The name in its log of the hub whose registry this is, unless others have used it too.
    pub fn only_audited_hub(&self) -> Option<String> {
        let mut hubs = self.audit_heads.keys();
        hubs.next().filter(|_| hubs.next().is_none()).cloned()
    }

    /// The head of this hub's audit log, as it was stored last.
    pub fn audit_head(&self, hub: &str) -> ChainHead {
        self.audit_heads.get(hub).map(|audit| audit.head.clone()).unwrap_or_default()
    }

    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    pub fn device(&self, code_hash: &str, now: Time) -> Option<&Device> {
        self.devices.get(code_hash).filter(|device| now < device.expires_at)
    }

    /// The URLs of the fleet's hubs. Empty for a hub without a fleet.
    pub fn hub_urls(&self) -> Vec<String> {
        self.hubs.values().map(|hub| hub.url.clone()).collect()
    }

    pub fn hubs(&self) -> impl Iterator<Item = &FleetHub> {
        self.hubs.values()
    }

    pub fn open_channel(&mut self, id: ChannelId, agent_id: &str, now: Time) {
        self.channels.insert(id, ChannelOwner { agent_id: agent_id.to_owned(), since: now });
    }

    pub fn close_channel(&mut self, channel: ChannelId) {
        self.channels.remove(&channel);
    }

    pub fn has_channel(&self, channel: ChannelId) -> bool {
        self.channels.contains_key(&channel)
    }

    /// Where the service is online.
    pub fn presence(&self, service_id: &str) -> Option<&Presence> {
        let service = self.services.get(service_id)?;
        let online = self.online.get(&service.online_id())?;
        Some(online).filter(|online| online.service == service_id)
    }

    pub fn online(&self) -> impl Iterator<Item = &Presence> {
        self.online.values()
    }

    pub fn online_by_id(&self, id: &str) -> Option<&Presence> {
        self.online.get(id)
    }

    pub fn is_here(&self, online: &Presence) -> bool {
        online.hub == self.me
    }

    /// The presences that this channel still holds, without those that another channel has taken over.
    pub fn held_by(&self, channel: ChannelId) -> Vec<Presence> {
        let held = self.online.values().filter(|online| self.is_here(online) && online.channel == channel);
        held.cloned().collect()
    }

    /// When the agent's oldest channel was opened. `None` if it has none.
    pub fn connected_since(&self, agent_id: &str) -> Option<Time> {
        let here = self.channels.values().filter(|channel| channel.agent_id == agent_id);
        let online = self.online.values().filter(|online| online.agent_id == agent_id);
        here.map(|channel| channel.since).chain(online.map(|online| online.since)).min()
    }

    pub fn channel_count(&self) -> usize {
        self.channels.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::hub_records::StoredSecret;
    use super::*;
    use crate::model::access::KeyLimits;
    use crate::model::access::Role;
    use crate::model::hub_records::KeyInfo;
    use crate::model::hub_records::KeyRotation;
    use crate::model::hub_records::SEEN_INTERVAL;
    use crate::model::hub_records::ShareInfo;
    use crate::model::name::Name;
    use crate::model::service::Protocol;

    fn now() -> Time {
        Time::from_unix(1000)
    }

    fn service(id: &str, agent: &str) -> Change {
        Change::Put(Record::Service(Service {
            id: id.into(),
            name: Name::parse("db").unwrap(),
            target_port: 5432,
            protocol: Protocol::Tcp,
            agent_id: agent.into(),
            workspace: "default".into(),
            share: None,
            key: Principal::Local.id().into(),
            withdrawn: false,
            created_at: now(),
            seen_at: now(),
        }))
    }

    fn online(service: &str, agent: &str, channel: u64) -> Change {
        Change::Put(Record::Online(Presence {
            id: "default.db".into(),
            service: service.into(),
            agent_id: agent.into(),
            hub: String::new(),
            channel: ChannelId(channel),
            since: now(),
        }))
    }

    fn stored(hash: &str) -> StoredSecret {
        StoredSecret { hash: hash.into(), public_key: String::new() }
    }

    fn key(id: &str, expires_at: Option<Time>) -> Key {
        let info = KeyInfo {
            id: id.into(),
            role: Role::Member,
            label: String::new(),
            workspace: "default".into(),
            created_at: now(),
            expires_at,
            limits: KeyLimits::default(),
            enrolled_by: None,
            last_used_at: None,
            revoked_at: None,
        };
        Key { secret: stored(id), rotation: None, info }
    }

    #[test]
    fn the_old_secret_of_a_key_ends_with_its_rotation() {
        let mut registry = Registry::default();
        let (secret, ends_at) = (stored("next"), Time::from_unix(1010));
        let rotation = KeyRotation { secret, sealed: String::new(), ends_at, proved: Vec::new() };
        registry.apply(Change::Put(Record::Key(Key { rotation: Some(rotation), ..key("old", None) })));
        let found = |hash: &str, second| registry.key_by_hash(hash, Time::from_unix(second)).is_some();
        assert!(found("old", 1009) && found("next", 1009));
        assert!(!found("old", 1010) && found("next", 1010));
    }

    #[test]
    fn a_late_end_of_an_old_channel_leaves_its_successor_alone() {
        let mut registry = Registry::default();
        registry.apply(service("svc_1", "agent_1"));
        registry.apply(online("svc_1", "agent_1", 1));
        registry.apply(online("svc_1", "agent_1", 2));
        assert_eq!(registry.held_by(ChannelId(1)), []);
        assert_eq!(registry.presence("svc_1").unwrap().channel, ChannelId(2));
        for held in registry.held_by(ChannelId(2)) {
            registry.apply(Change::drop(Table::Online, &held.id));
        }
        assert_eq!(registry.presence("svc_1"), None);
        assert_eq!(registry.connected_since("agent_1"), None);
    }

    #[test]
    fn what_a_dead_key_made_or_nobody_saw_for_a_month_is_overdue() {
        let mut registry = Registry::default();
        let made = |service_id: &str, key: &str| {
            let Change::Put(Record::Service(made)) = service(service_id, "agent_1") else { unreachable!() };
            Change::Put(Record::Service(Service { key: key.into(), name: Name::parse(key).unwrap(), ..made }))
        };
        registry.apply(Change::Put(Record::Key(key("lives", None))));
        registry.apply(Change::Put(Record::Key(key("expires", Some(now().plus(SEEN_INTERVAL))))));
        registry.apply(made("svc_1", "lives"));
        registry.apply(made("svc_2", "expires"));
        registry.apply(made("svc_3", "revoked"));
        let dropped = |time| registry.overdue(time);
        assert_eq!(dropped(now()), [Change::drop(Table::Service, "svc_3")]);
        let gone = ["svc_2", "svc_3"].map(|id| Change::drop(Table::Service, id));
        assert_eq!(dropped(now().plus(SEEN_INTERVAL)), gone);
        assert!(registry.service_named("default", "expires", now()).is_some());
        assert!(registry.service_named("default", "expires", now().plus(SEEN_INTERVAL)).is_none());
        let all = dropped(now().plus(UNSEEN_LIMIT + SEEN_INTERVAL));
        assert!(all.contains(&Change::drop(Table::Service, "svc_1")), "{all:?}");
        assert!(all.contains(&Change::drop(Table::Key, "expires")), "{all:?}");
        assert!(!all.contains(&Change::drop(Table::Key, "lives")), "{all:?}");
    }

    #[test]
    fn what_is_online_is_noted_as_seen_and_stays() {
        let mut registry = Registry::default();
        registry.apply(service("svc_1", "agent_1"));
        registry.apply(online("svc_1", "agent_1", 1));
        assert_eq!(registry.overdue(now()), []);
        for later in [SEEN_INTERVAL, UNSEEN_LIMIT] {
            let later = now().plus(later);
            let [Change::Put(Record::Service(seen))] = &registry.overdue(later)[..] else { panic!() };
            assert_eq!(seen.seen_at, later);
        }
    }

    #[test]
    fn what_another_hub_took_over_is_not_held_by_the_old_one() {
        let mut registry = Registry { me: "https://a".into(), ..Registry::default() };
        registry.apply(service("svc_1", "agent_1"));
        registry.apply(online("svc_1", "agent_1", 1));
        assert_eq!(registry.held_by(ChannelId(1)), []);
        assert!(!registry.is_here(registry.presence("svc_1").unwrap()));
    }

    #[test]
    fn a_code_that_an_expired_share_had_stays_with_its_new_owner() {
        let mut registry = Registry::default();
        let share = |id: &str, until: u64| Share {
            code_hash: "code".into(),
            link_hash: None,
            join_secret: String::new(),
            workspace: "default".into(),
            key: Principal::Local.id().into(),
            agent_id: "agent_1".into(),
            services: Vec::new(),
            info: ShareInfo {
                id: id.into(),
                name: String::new(),
                created_at: now(),
                expires_at: Time::from_unix(until),
                max_joins: None,
                max_sessions: None,
                join_count: 0,
                joins: Vec::new(),
            },
        };
        let [old, new] =
            [share("old", 1500), share("new", 2000)].map(|share| Change::Put(Record::Share(share)));
        for order in [[&old, &new], [&new, &old]] {
            order.into_iter().for_each(|change| registry.apply(change.clone()));
            registry.apply(Change::drop(Table::Share, "old"));
            assert_eq!(registry.share_by_code("code", now()).unwrap().info.id, "new");
        }
    }

    #[test]
    fn a_key_that_is_replaced_expired_or_dropped_opens_nothing() {
        let mut registry = Registry::default();
        let key = |hash: &str| Key {
            secret: stored(hash),
            rotation: None,
            info: KeyInfo {
                id: "key_1".into(),
                role: Role::Member,
                label: String::new(),
                workspace: "default".into(),
                created_at: now(),
                expires_at: Some(Time::from_unix(2000)),
                limits: KeyLimits::default(),
                enrolled_by: None,
                last_used_at: None,
                revoked_at: None,
            },
        };
        registry.apply(Change::Put(Record::Key(key("old"))));
        registry.apply(Change::Put(Record::Key(key("new"))));
        assert!(registry.key_by_hash("old", now()).is_none());
        assert!(registry.key_by_hash("new", now()).is_some());
        assert!(registry.key_by_hash("new", Time::from_unix(2000)).is_none());
        registry.apply(Change::drop(Table::Key, "key_1"));
        assert!(registry.key_by_hash("new", now()).is_none());
    }

    #[test]
    fn a_registry_made_from_its_own_records_is_the_same() {
        let mut registry = Registry::default();
        registry.apply(service("svc_1", "agent_1"));
        let mut copy = Registry::default();
        registry.records().for_each(|record| copy.apply(Change::Put(record)));
        assert_eq!(copy.records().collect::<Vec<_>>(), registry.records().collect::<Vec<_>>());
    }
}
