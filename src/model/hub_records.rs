//! The hub's records, and the two changes to them: put a record, or drop one. Both stores write exactly these changes.
//! Most records outlive a restart; presences and the hubs of a fleet last as long as their hub runs.
//!
//! A record that holds a secret's hash has its public part as a type of its own (`KeyInfo`, `ShareInfo`). The API
//! answers with that type, so a hash cannot get into an answer. On the disk both parts are one flat object.

use std::net::IpAddr;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use super::access::KeyLimits;
use super::access::Role;
use super::fingerprint::Fingerprint;
use super::service::Service;
use super::time::Time;

/// An agent or service that was not online for this long counts towards no limit, and is removed.
pub const UNSEEN_LIMIT: Duration = Duration::from_hours(30 * 24);
/// How exact `seen_at` is. While a record is online, it is written again this often.
pub const SEEN_INTERVAL: Duration = Duration::from_hours(24);
/// How often a key in use is written again, to show when it was used last.
pub const KEY_USE_INTERVAL: Duration = Duration::from_hours(1);

/// A share lists this many joins, the newest ones. Its counter counts all.
pub const JOINS_LISTED: usize = 20;
/// What a share and each of its services count for in the limits in bytes: about what they take on the disk.
const SHARE_BYTES: usize = 512;
const SHARED_SERVICE_BYTES: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    #[serde(flatten)]
    pub secret: StoredSecret,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<KeyRotation>,
    #[serde(flatten)]
    pub info: KeyInfo,
}

/// What the hub keeps of a key's secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredSecret {
    /// SHA-256 of the secret, which is random enough to need no salt.
    pub hash: String,
    /// Seals what only a holder of the secret may read. Empty in keys that cannot hand over their next secret.
    #[serde(default)]
    pub public_key: String,
}

/// The next secret of a key. Until it has replaced the first one, both are valid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRotation {
    pub secret: StoredSecret,
    /// The next secret itself, sealed for the holders of the first one.
    pub sealed: String,
    pub ends_at: Time,
    /// The IDs of the agents that have used the next secret.
    pub proved: Vec<String>,
}

/// The public part of a key, as the API lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyInfo {
    pub id: String,
    pub role: Role,
    pub label: String,
    pub workspace: String,
    pub created_at: Time,
    pub expires_at: Option<Time>,
    #[serde(flatten)]
    pub limits: KeyLimits,
    /// The key by whose use it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolled_by: Option<String>,
    /// As exact as `KEY_USE_INTERVAL`.
    #[serde(default)]
    pub last_used_at: Option<Time>,
    /// A revoked key stays in the list for a while.
    #[serde(default)]
    pub revoked_at: Option<Time>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    pub id: String,
    pub label: String,
    pub fingerprint: Fingerprint,
    pub workspace: String,
    /// The certificates by which its identity proves which ones it has replaced, as PEM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub chain: String,
    /// The key that registered it. Another key speaks for this agent only if its identity says so.
    pub key: String,
    pub created_at: Time,
    pub seen_at: Time,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    pub code_hash: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_hash: Option<String>,
    /// Signs the tokens that show who has joined.
    pub join_secret: String,
    pub workspace: String,
    /// The key that made it.
    pub key: String,
    pub agent_id: String,
    /// The IDs of what it opens. A service that its agent withdraws stays, offline, until no share opens it any more.
    pub services: Vec<String>,
    #[serde(flatten)]
    pub info: ShareInfo,
}

/// The public part of a share, as the API lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShareInfo {
    pub id: String,
    pub name: String,
    pub created_at: Time,
    pub expires_at: Time,
    pub max_joins: Option<u32>,
    /// Sessions at once.
    #[serde(default)]
    pub max_sessions: Option<u32>,
    #[serde(default)]
    pub join_count: u32,
    #[serde(default)]
    pub joins: Vec<JoinEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinEntry {
    pub who: String,
    pub at: Time,
}

/// A login whose code waits for an admin's approval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// Made under the hub's code key, like the hash of a share's code.
    pub code_hash: String,
    /// SHA-256 of a secret that only the waiting machine has, so that the code alone fetches no key.
    pub secret_hash: String,
    pub label: String,
    /// Where the machine asked from.
    pub address: IpAddr,
    pub asked_at: Time,
    pub expires_at: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved: Option<Approval>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    pub role: Role,
    pub workspace: String,
}

/// A service that is online. Its id is made of its name, so only one agent of the whole fleet can have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Presence {
    /// See `Service::online_id`.
    pub id: String,
    pub service: String,
    pub agent_id: String,
    /// The hub that holds the agent's control channel.
    pub hub: String,
    pub channel: ChannelId,
    pub since: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChannelId(pub u64);

/// The end of a chained log: how many lines it has had, and the hash of the last one. A log with fewer lines was shortened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainHead {
    pub count: u64,
    pub hash: String,
}

impl Default for ChainHead {
    fn default() -> Self {
        Self { count: 0, hash: "0".repeat(64) }
    }
}

/// The head of a hub's audit log, as the store and agents keep it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditHead {
    /// The hub's name in its log.
    pub hub: String,
    #[serde(flatten)]
    pub head: ChainHead,
    pub at: Time,
}

/// A running hub of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetHub {
    /// Its address for clients: `https://host:port`. No two hubs have the same one.
    pub url: String,
    /// Its address for the other hubs, where it shows its own certificate: not that of a proxy.
    pub direct: String,
    /// Identifies the process, so that a second hub with the same address is noticed.
    pub instance: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    Key(Key),
    Agent(Agent),
    Service(Service),
    Share(Share),
    Device(Device),
    Audit(AuditHead),
    Online(Presence),
    Hub(FleetHub),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    Key,
    Agent,
    Service,
    Share,
    Device,
    Audit,
    Online,
    Hub,
}

impl Table {
    pub const ALL: [(Self, &str); 8] = [
        (Self::Key, "key"),
        (Self::Agent, "agent"),
        (Self::Service, "service"),
        (Self::Share, "share"),
        (Self::Device, "device"),
        (Self::Audit, "audit"),
        (Self::Online, "online"),
        (Self::Hub, "hub"),
    ];

    /// Whether its records end with the hub that made them. All others are kept over a restart.
    pub fn is_presence(self) -> bool {
        matches!(self, Self::Online | Self::Hub)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(clippy::large_enum_variant)] // Changes are few and short-lived.
pub enum Change {
    Put(Record),
    Drop { table: Table, id: String },
}

impl Record {
    pub fn table(&self) -> Table {
        match self {
            Self::Key(_) => Table::Key,
            Self::Agent(_) => Table::Agent,
            Self::Service(_) => Table::Service,
            Self::Share(_) => Table::Share,
            Self::Device(_) => Table::Device,
            Self::Audit(_) => Table::Audit,
            Self::Online(_) => Table::Online,
            Self::Hub(_) => Table::Hub,
        }
    }

    pub fn id(&self) -> &str {
        match self {
            Self::Key(key) => &key.info.id,
            Self::Agent(agent) => &agent.id,
            Self::Service(service) => &service.id,
            Self::Share(share) => &share.info.id,
            Self::Device(device) => &device.code_hash,
            Self::Audit(audit) => &audit.hub,
            Self::Online(online) => &online.id,
            Self::Hub(hub) => &hub.url,
        }
    }
}

impl Change {
    pub fn drop(table: Table, id: &str) -> Self {
        Self::Drop { table, id: id.to_owned() }
    }

    /// The table and the key of the record that this changes.
    pub fn key(&self) -> (Table, &str) {
        match self {
            Self::Put(record) => (record.table(), record.id()),
            Self::Drop { table, id } => (*table, id),
        }
    }
}

impl Key {
    /// Whether the secret with this hash, which is one of the two, is the one that the rotation replaces.
    pub fn is_replaced(&self, hash: &str) -> bool {
        self.rotation.is_some() && hash == self.secret.hash
    }

    pub fn is_rotation_over(&self, now: Time) -> bool {
        self.rotation.as_ref().is_some_and(|rotation| now >= rotation.ends_at)
    }

    /// The key with its next secret only.
    pub fn rotated(&self) -> Self {
        let next = self.rotation.as_ref().map_or(&self.secret, |rotation| &rotation.secret);
        Self { secret: next.clone(), rotation: None, info: self.info.clone() }
    }

    /// By these the key is found.
    pub fn hashes(&self) -> impl Iterator<Item = &String> {
        let next = self.rotation.as_ref().map(|rotation| &rotation.secret.hash);
        [&self.secret.hash].into_iter().chain(next)
    }
}

impl KeyInfo {
    pub fn is_live(&self, now: Time) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|at| now < at)
    }
}

impl Share {
    pub fn bytes(&self) -> usize {
        SHARE_BYTES + self.info.name.len() + self.services.len() * SHARED_SERVICE_BYTES
    }
}

impl ShareInfo {
    pub fn is_live(&self, now: Time) -> bool {
        now < self.expires_at
    }

    pub fn has_room(&self) -> bool {
        self.max_joins.is_none_or(|max| self.join_count < max)
    }

    pub fn add_join(&mut self, who: &str, at: Time) {
        self.join_count = self.join_count.saturating_add(1);
        self.joins.push(JoinEntry { who: who.to_owned(), at });
        let surplus = self.joins.len().saturating_sub(JOINS_LISTED);
        self.joins.drain(..surplus);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_read_back_from_the_line_it_was_written_as() {
        let device = Device {
            code_hash: "00".into(),
            address: IpAddr::from([192, 0, 2, 1]),
            asked_at: Time::from_unix(1),
            secret_hash: "00".into(),
            label: "laptop".into(),
            expires_at: Time::from_unix(5),
            approved: None,
        };
        for change in [Change::Put(Record::Device(device)), Change::drop(Table::Share, "shr_1")] {
            let line = serde_json::to_string(&change).unwrap();
            assert_eq!(serde_json::from_str::<Change>(&line).unwrap(), change, "{line}");
        }
    }
}
