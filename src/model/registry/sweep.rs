//! What a sweep of the registry changes: records that count for nothing any more are dropped, and what is in use is noted.

use std::collections::HashSet;
use std::time::Duration;

use super::Registry;
use crate::model::hub_records::Agent;
use crate::model::hub_records::Change;
use crate::model::hub_records::KEY_USE_INTERVAL;
use crate::model::hub_records::KeyInfo;
use crate::model::hub_records::Record;
use crate::model::hub_records::SEEN_INTERVAL;
use crate::model::hub_records::Table;
use crate::model::hub_records::UNSEEN_LIMIT;
use crate::model::service::Service;
use crate::model::time::Time;

/// Changes of one sweep. Removing 10,000 records at once would delay the changes of others by seconds.
const SWEEP_CHANGES: usize = 200;
/// The services of a share are registered before the share is made. This is longer than a client waits in between.
const SHARE_MADE_LIMIT: Duration = Duration::from_mins(1);

impl Registry {
    /// The changes that drop records which count for nothing any more, and those that note what is online here as seen. A
    /// decision that has become old is refused by the store: an agent that comes back has changed the record.
    pub fn overdue(&self, now: Time) -> Vec<Change> {
        let shares = self.shares.values().filter(|share| !self.share_is_live(share, now));
        let devices = self.devices.values().filter(|device| now >= device.expires_at);
        let open: HashSet<&str> = self.open_services(now).collect();
        let services = self.services.values().filter(|service| {
            !self.service_counts(service, now)
                || (service.withdrawn && !open.contains(service.id.as_str()))
                || self.has_lost_its_share(service, now)
        });
        let agents = self.agents.values().filter(|agent| !self.agent_counts(agent, now));
        // The list of keys shows a dead key for a while.
        let is_over = |at: &Time| now.since(*at) >= UNSEEN_LIMIT;
        let ends = |info: &KeyInfo| [info.expires_at, info.revoked_at].into_iter().flatten();
        let keys = self.keys.values().filter(|key| ends(&key.info).any(|at| is_over(&at)));
        let shares = shares.map(|share| Change::drop(Table::Share, &share.info.id));
        let devices = devices.map(|device| Change::drop(Table::Device, &device.code_hash));
        let services = services.map(|service| Change::drop(Table::Service, &service.id));
        let agents = agents.map(|agent| Change::drop(Table::Agent, &agent.id));
        let keys = keys.map(|key| Change::drop(Table::Key, &key.info.id));
        let all = shares.chain(devices).chain(services).chain(agents).chain(keys);
        all.chain(self.seen_again(now)).take(SWEEP_CHANGES).collect()
    }

    /// The IDs of the services that shares open.
    pub fn open_services(&self, now: Time) -> impl Iterator<Item = &str> {
        let live = self.shares.values().filter(move |share| self.share_is_live(share, now));
        live.flat_map(|share| share.services.iter().map(String::as_str))
    }

    /// The service was registered for a share alone, and that has ended or was never made.
    fn has_lost_its_share(&self, service: &Service, now: Time) -> bool {
        let is_gone = |share: &String| self.share(share, now).is_none();
        service.share.as_ref().is_some_and(is_gone) && now.since(service.created_at) >= SHARE_MADE_LIMIT
    }

    fn seen_again(&self, now: Time) -> impl Iterator<Item = Change> + '_ {
        let is_old = move |seen_at: Time| now.since(seen_at) >= SEEN_INTERVAL;
        let here = self.channels.values().filter_map(|channel| self.agents.get(&channel.agent_id));
        let online = self.online.values().filter(|online| self.is_here(online));
        let online = online.filter_map(|online| self.services.get(&online.service));
        let agents = here
            .filter(move |agent| is_old(agent.seen_at))
            .map(move |agent| Record::Agent(Agent { seen_at: now, ..agent.clone() }));
        let services = online
            .filter(move |service| is_old(service.seen_at))
            .map(move |service| Record::Service(Service { seen_at: now, ..service.clone() }));
        agents.chain(services).chain(self.keys_used_again()).map(Change::Put)
    }

    fn keys_used_again(&self) -> impl Iterator<Item = Record> + '_ {
        self.key_uses.iter().filter_map(|(id, used)| {
            let mut key = self.keys.get(id)?.clone();
            let is_new = key.info.last_used_at.is_none_or(|at| used.since(at) >= KEY_USE_INTERVAL);
            key.info.last_used_at = Some(*used);
            is_new.then_some(Record::Key(key))
        })
    }

    /// Notes in memory that a key was used; the next sweep writes it down if the last time is long ago.
    pub fn note_key_use(&mut self, id: &str, by_old_secret: bool, now: Time) {
        if by_old_secret {
            self.old_secret_uses.insert(id.to_owned(), now);
        }
        self.key_uses.insert(id.to_owned(), now);
    }

    /// When the secret that a rotation replaces was used at this hub last.
    pub fn old_secret_used_at(&self, id: &str) -> Option<Time> {
        self.old_secret_uses.get(id).copied()
    }
}
