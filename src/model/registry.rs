//! Everything the hub knows: the records that its store keeps, and which agents are here now.
//!
//! Presence hangs on channels: an agent may have several control channels at once (one for each process
//! that exposes something), a service belongs to the channel that exposed it last, and only the end of
//! that very channel takes the service offline.

use std::collections::BTreeMap;
use std::collections::HashMap;

use super::access::Principal;
use super::record::Agent;
use super::record::Change;
use super::record::Device;
use super::record::Key;
use super::record::Record;
use super::record::Service;
use super::record::Share;
use super::record::Table;
use super::time::Time;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub u64);

#[derive(Clone, Debug)]
struct Channel {
    agent_id: String,
    since: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    pub channel: ChannelId,
    pub tunnel_port: Option<u16>,
}

#[derive(Debug, Default)]
pub struct Registry {
    keys: BTreeMap<String, Key>,
    agents: BTreeMap<String, Agent>,
    services: BTreeMap<String, Service>,
    shares: BTreeMap<String, Share>,
    devices: BTreeMap<String, Device>,
    key_by_hash: HashMap<String, String>,
    share_by_code: HashMap<String, String>,
    share_by_link: HashMap<String, String>,
    channels: BTreeMap<ChannelId, Channel>,
    online: HashMap<String, Presence>,
    last_channel: u64,
}

impl Registry {
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Put(record) => self.put(record),
            Change::Drop { table, id } => self.drop_record(table, &id),
        }
    }

    fn put(&mut self, record: Record) {
        self.drop_indexes(record.table(), record.id());
        match record {
            Record::Key(key) => {
                self.key_by_hash.insert(key.hash.clone(), key.id.clone());
                self.keys.insert(key.id.clone(), key);
            }
            Record::Agent(agent) => drop(self.agents.insert(agent.id.clone(), agent)),
            Record::Service(service) => drop(self.services.insert(service.id.clone(), service)),
            Record::Share(share) => {
                self.share_by_code.insert(share.code_hash.clone(), share.id.clone());
                if let Some(hash) = &share.link_hash {
                    self.share_by_link.insert(hash.clone(), share.id.clone());
                }
                self.shares.insert(share.id.clone(), share);
            }
            Record::Device(device) => drop(self.devices.insert(device.code.clone(), device)),
        }
    }

    fn drop_record(&mut self, table: Table, id: &str) {
        self.drop_indexes(table, id);
        match table {
            Table::Key => drop(self.keys.remove(id)),
            Table::Agent => drop(self.agents.remove(id)),
            Table::Service => {
                self.services.remove(id);
                self.online.remove(id);
            }
            Table::Share => drop(self.shares.remove(id)),
            Table::Device => drop(self.devices.remove(id)),
        }
    }

    fn drop_indexes(&mut self, table: Table, id: &str) {
        match table {
            Table::Key => {
                if let Some(key) = self.keys.get(id) {
                    self.key_by_hash.remove(&key.hash);
                }
            }
            Table::Share => {
                if let Some(share) = self.shares.get(id) {
                    self.share_by_code.remove(&share.code_hash);
                    if let Some(hash) = &share.link_hash {
                        self.share_by_link.remove(hash);
                    }
                }
            }
            Table::Agent | Table::Service | Table::Device => {}
        }
    }

    /// Every record, in the order in which a snapshot lists them.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let keys = self.keys.values().cloned().map(Record::Key);
        let agents = self.agents.values().cloned().map(Record::Agent);
        let services = self.services.values().cloned().map(Record::Service);
        let shares = self.shares.values().cloned().map(Record::Share);
        let devices = self.devices.values().cloned().map(Record::Device);
        keys.chain(agents).chain(services).chain(shares).chain(devices)
    }

    /// What has outlived its time and may be dropped from the store.
    pub fn expired(&self, now: Time) -> Vec<Change> {
        let shares = self.shares.values().filter(|share| !self.share_is_live(share, now));
        let devices = self.devices.values().filter(|device| now >= device.expires_at);
        let shares = shares.map(|share| Change::drop(Table::Share, &share.id));
        shares.chain(devices.map(|device| Change::drop(Table::Device, &device.code))).collect()
    }

    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.keys.values()
    }

    pub fn key(&self, id: &str) -> Option<&Key> {
        self.keys.get(id)
    }

    pub fn key_by_hash(&self, hash: &str, now: Time) -> Option<&Key> {
        self.keys.get(self.key_by_hash.get(hash)?).filter(|key| key.is_live(now))
    }

    /// Whether a running session's credential still stands: a key, or the share of a link.
    pub fn credential_is_live(&self, id: &str, now: Time) -> bool {
        id == Principal::Local.id()
            || self.keys.get(id).is_some_and(|key| key.is_live(now))
            || self.share(id, now).is_some()
    }

    pub fn agents(&self, workspace: &str) -> impl Iterator<Item = &Agent> {
        self.agents.values().filter(move |agent| agent.workspace == workspace)
    }

    pub fn agent(&self, id: &str) -> Option<&Agent> {
        self.agents.get(id)
    }

    pub fn services(&self, workspace: &str) -> impl Iterator<Item = &Service> {
        self.services.values().filter(move |service| service.workspace == workspace)
    }

    pub fn service(&self, id: &str) -> Option<&Service> {
        self.services.get(id)
    }

    /// The service of that name; where two agents have had it, the one that is online.
    pub fn service_named(&self, workspace: &str, name: &str) -> Option<&Service> {
        let named = self.services(workspace).filter(|service| service.name.as_str() == name);
        named.max_by_key(|service| (self.online.contains_key(&service.id), service.created_at))
    }

    pub fn services_of(&self, agent_id: &str) -> impl Iterator<Item = &Service> {
        self.services.values().filter(move |service| service.agent_id == agent_id)
    }

    pub fn service_count_of(&self, agent_id: &str) -> usize {
        self.services.values().filter(|service| service.agent_id == agent_id).count()
    }

    pub fn shares(&self, workspace: &str) -> impl Iterator<Item = &Share> {
        self.shares.values().filter(move |share| share.workspace == workspace)
    }

    pub fn share(&self, id: &str, now: Time) -> Option<&Share> {
        self.shares.get(id).filter(|share| self.share_is_live(share, now))
    }

    /// A share dies with the key that made it, or a stolen key would go on opening doors after its end.
    pub fn share_is_live(&self, share: &Share, now: Time) -> bool {
        let by_key = || self.keys.get(&share.key).is_some_and(|key| key.is_live(now));
        share.is_live(now) && (share.key == Principal::Local.id() || by_key())
    }

    pub fn share_by_code(&self, code_hash: &str, now: Time) -> Option<&Share> {
        self.share(self.share_by_code.get(code_hash)?, now)
    }

    pub fn share_by_link(&self, link_hash: &str, now: Time) -> Option<&Share> {
        self.share(self.share_by_link.get(link_hash)?, now)
    }

    pub fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    pub fn device(&self, code: &str, now: Time) -> Option<&Device> {
        self.devices.get(code).filter(|device| now < device.expires_at)
    }

    pub fn open_channel(&mut self, agent_id: &str, now: Time) -> ChannelId {
        self.last_channel += 1;
        let id = ChannelId(self.last_channel);
        self.channels.insert(id, Channel { agent_id: agent_id.to_owned(), since: now });
        id
    }

    /// The service is online by this channel, whoever had it before.
    pub fn bring_online(&mut self, service_id: &str, presence: Presence) {
        self.online.insert(service_id.to_owned(), presence);
    }

    pub fn presence(&self, service_id: &str) -> Option<Presence> {
        self.online.get(service_id).copied()
    }

    /// Takes one service offline, if this channel is still the one that holds it.
    pub fn take_offline(&mut self, service_id: &str, channel: ChannelId) -> Option<Presence> {
        let held = self.online.get(service_id).filter(|presence| presence.channel == channel).copied();
        if held.is_some() {
            self.online.remove(service_id);
        }
        held
    }

    /// Ends a channel: what it still held goes offline, and nothing that another channel took over.
    pub fn close_channel(&mut self, channel: ChannelId) -> Vec<(String, Presence)> {
        self.channels.remove(&channel);
        let held = self.online.extract_if(|_, presence| presence.channel == channel);
        held.collect()
    }

    /// When the agent's oldest channel opened; `None` when it has none.
    pub fn connected_since(&self, agent_id: &str) -> Option<Time> {
        self.channels.values().find(|channel| channel.agent_id == agent_id).map(|channel| channel.since)
    }

    pub fn channel_count(&self) -> usize {
        self.channels.len()
    }

    pub fn online_count(&self) -> usize {
        self.online.len()
    }

    pub fn service_count(&self) -> usize {
        self.services.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::access::Role;
    use crate::model::name::Name;
    use crate::model::record::Protocol;

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
            created_at: now(),
        }))
    }

    fn presence(channel: ChannelId) -> Presence {
        Presence { channel, tunnel_port: None }
    }

    #[test]
    fn a_late_end_of_an_old_channel_leaves_its_successor_alone() {
        let mut registry = Registry::default();
        registry.apply(service("svc_1", "agent_1"));
        let (old, new) = (registry.open_channel("agent_1", now()), registry.open_channel("agent_1", now()));
        registry.bring_online("svc_1", presence(old));
        registry.bring_online("svc_1", presence(new));
        assert_eq!(registry.close_channel(old), []);
        assert_eq!(registry.take_offline("svc_1", old), None);
        assert_eq!(registry.presence("svc_1"), Some(presence(new)));
        assert_eq!(registry.close_channel(new), [("svc_1".to_owned(), presence(new))]);
        assert_eq!(registry.presence("svc_1"), None);
        assert_eq!(registry.connected_since("agent_1"), None);
    }

    #[test]
    fn of_two_services_with_one_name_the_one_online_is_meant() {
        let mut registry = Registry::default();
        registry.apply(service("svc_1", "agent_1"));
        registry.apply(service("svc_2", "agent_2"));
        for (agent, id) in [("agent_1", "svc_1"), ("agent_2", "svc_2")] {
            let channel = registry.open_channel(agent, now());
            registry.bring_online(id, presence(channel));
            assert_eq!(registry.service_named("default", "db").unwrap().id, id);
            registry.close_channel(channel);
        }
        assert!(registry.service_named("other", "db").is_none());
    }

    #[test]
    fn a_key_that_is_replaced_expired_or_dropped_opens_nothing() {
        let mut registry = Registry::default();
        let key = |hash: &str| Key {
            id: "key_1".into(),
            hash: hash.into(),
            role: Role::Member,
            label: String::new(),
            workspace: "default".into(),
            created_at: now(),
            expires_at: Some(Time::from_unix(2000)),
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
