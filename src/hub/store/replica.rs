//! This hub's copy of what etcd holds, in memory.
//!
//! Only the watch writes into it, in etcd's order: first everything that is there, then every change, this hub's
//! own ones too. A commit sends its transaction and waits until the watch has come to it.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::hub_records::Change;
use crate::model::hub_records::Presence;
use crate::model::hub_records::Record;
use crate::model::hub_records::Table;
use crate::model::registry::Registry;
use crate::os::lock::locked;

/// Everything that a fleet keeps has a key between these two.
pub const ETCD_KEYS_FROM: &str = "/connect/v1/";
pub const ETCD_KEYS_UNTIL: &str = "/connect/v10";
/// Changes of one transaction: a share has two keys, and etcd takes 128 steps.
const TRANSACTION_CHANGES: usize = 50;

pub struct Replica {
    registry: Arc<Mutex<Registry>>,
    state: Mutex<ReplicaState>,
    /// Signalled whenever the watch has brought something, or has ended.
    advanced: Condvar,
}

#[derive(Default)]
struct ReplicaState {
    /// The revision at which each key was changed last.
    versions: HashMap<String, u64>,
    /// The watch has told everything up to this revision.
    reached: u64,
    /// How often the copy has changed.
    mark: u64,
    /// Services that etcd says are online at this hub.
    listed_here: BTreeSet<String>,
    /// Keys that this hub's commit under way drops.
    own_drops: HashSet<String>,
    /// What presence hangs on; `None` while there is none.
    lease: Option<String>,
    is_away: bool,
    watch_has_ended: bool,
}

/// What etcd has at one key since a revision.
pub struct KeyEvent {
    pub key: String,
    pub revision: u64,
    /// `None` when the key was dropped.
    pub value: Option<Vec<u8>>,
}

/// One key, and what is to be there.
#[derive(Debug)]
pub struct KeyChange {
    pub key: String,
    pub value: Option<String>,
    /// The revision that the key must have; 0 if it must not be there.
    pub version: u64,
    pub is_presence: bool,
}

impl Replica {
    pub fn of(registry: &Arc<Mutex<Registry>>) -> Self {
        Self { registry: Arc::clone(registry), state: Mutex::default(), advanced: Condvar::new() }
    }

    pub fn is_away(&self) -> bool {
        locked(&self.state).is_away
    }

    /// Returns what it was before.
    pub fn set_away(&self, is_away: bool) -> bool {
        std::mem::replace(&mut locked(&self.state).is_away, is_away)
    }

    pub fn lease(&self) -> Option<String> {
        locked(&self.state).lease.clone()
    }

    pub fn set_lease(&self, lease: Option<String>) {
        locked(&self.state).lease = lease;
    }

    /// Another number whenever the copy has changed.
    pub fn mark(&self) -> u64 {
        locked(&self.state).mark
    }

    /// Up to which revision the watch has told everything.
    pub fn reached(&self) -> u64 {
        locked(&self.state).reached
    }

    /// From now on this is the hub at `url`. The services that it had in an earlier run are not here any more.
    pub fn become_hub(&self, url: &str) {
        let (mut state, mut registry) = (locked(&self.state), locked(&self.registry));
        url.clone_into(&mut registry.me);
        let earlier = registry.online().filter(|online| registry.is_here(online));
        for id in earlier.map(|online| online.id.clone()).collect::<Vec<_>>() {
            registry.apply(Change::drop(Table::Online, &id));
            state.listed_here.insert(id);
        }
    }

    /// Whether etcd has this record, as far as we know.
    pub fn has(&self, table: Table, id: &str) -> bool {
        locked(&self.state).versions.contains_key(&key_of(table, id))
    }

    /// Services that are here but not in etcd, and the ids of those that etcd lists here but are not.
    pub fn differences(&self) -> (Vec<Presence>, Vec<String>) {
        let (state, registry) = (locked(&self.state), locked(&self.registry));
        let here = registry.online().filter(|online| registry.is_here(online));
        let missing = here.filter(|online| !state.listed_here.contains(&online.id)).cloned().collect();
        let is_here = |id: &str| registry.online_by_id(id).is_some_and(|online| registry.is_here(online));
        let surplus = state.listed_here.iter().filter(|id| !is_here(id)).cloned().collect();
        (missing, surplus)
    }

    /// Begins a commit: the keys that these changes touch, in pieces for one transaction each. `None` when the copy
    /// has changed since the decision was made.
    pub fn begin_commit(&self, changes: &[Change], mark: u64) -> Result<Option<Vec<Vec<KeyChange>>>> {
        let (mut state, registry) = (locked(&self.state), locked(&self.registry));
        if state.mark != mark {
            return Ok(None);
        }
        let claims = |change: &Change| matches!(change, Change::Put(record) if record.table().is_presence());
        if state.lease.is_none() && changes.iter().any(claims) {
            return Err(Error::new("This hub has no lease in etcd").kind(ErrorKind::Unreachable));
        }
        let mut transactions = Vec::new();
        for piece in changes.chunks(TRANSACTION_CHANGES) {
            let keys = piece.iter().flat_map(|change| state.keys_of(change, &registry));
            transactions.push(keys.collect::<Vec<_>>());
        }
        let all = transactions.iter().flatten();
        state.own_drops = all.filter(|key| key.value.is_none()).map(|key| key.key.clone()).collect();
        Ok(Some(transactions))
    }

    pub fn end_commit(&self) {
        locked(&self.state).own_drops.clear();
    }

    /// Waits until the watch has told everything up to this revision. False if it does not in time.
    pub fn wait_for_revision(&self, revision: u64, timeout: Duration) -> bool {
        self.wait_until(timeout, |state| state.reached >= revision)
    }

    /// Waits until one of these keys is not as a refused transaction expected it.
    pub fn wait_for_difference(&self, expected: &[KeyChange], timeout: Duration) -> bool {
        self.wait_until(timeout, |state| expected.iter().any(|one| state.version(&one.key) != one.version))
    }

    fn wait_until(&self, timeout: Duration, has_come: impl Fn(&ReplicaState) -> bool) -> bool {
        let goes_on = |state: &mut ReplicaState| !state.watch_has_ended && !has_come(state);
        let waited = self.advanced.wait_timeout_while(locked(&self.state), timeout, goes_on);
        has_come(&waited.unwrap_or_else(PoisonError::into_inner).0)
    }

    /// The watch tells of nothing more, so nobody needs to wait for it.
    pub fn end_watch(&self) {
        locked(&self.state).watch_has_ended = true;
        self.advanced.notify_all();
    }

    /// Takes over everything that etcd holds at a revision.
    pub fn apply_all(&self, found: &[KeyEvent], revision: u64) {
        let mut state = locked(&self.state);
        // An etcd that was restored from a backup counts from there again.
        let is_restored = revision < state.reached;
        let there: HashSet<&str> = found.iter().map(|event| event.key.as_str()).collect();
        let gone: Vec<String> =
            state.versions.keys().filter(|key| !there.contains(key.as_str())).cloned().collect();
        for key in gone {
            self.apply_one(&mut state, &KeyEvent { key, revision, value: None });
        }
        for event in found {
            if is_restored || state.version(&event.key) != event.revision {
                self.apply_one(&mut state, event);
            }
        }
        state.reached = revision;
        self.advanced.notify_all();
    }

    /// Takes over the changes after which etcd was at a revision.
    pub fn apply(&self, events: &[KeyEvent], revision: u64) {
        let mut state = locked(&self.state);
        for event in events {
            self.apply_one(&mut state, event);
        }
        state.reached = state.reached.max(revision);
        self.advanced.notify_all();
    }

    fn apply_one(&self, state: &mut ReplicaState, event: &KeyEvent) {
        state.mark += 1;
        match event.value {
            Some(_) => state.versions.insert(event.key.clone(), event.revision),
            None => state.versions.remove(&event.key),
        };
        let Some((table, id)) = record_of(&event.key) else { return };
        let mut registry = locked(&self.registry);
        if table == Table::Online {
            state.listed_here.remove(id);
        }
        let Some(value) = &event.value else {
            // A lease that ended says nothing of the agents that are here: they are claimed again.
            let is_here = table == Table::Online
                && !state.own_drops.contains(&event.key)
                && registry.online_by_id(id).is_some_and(|online| registry.is_here(online));
            if !is_here {
                registry.apply(Change::drop(table, id));
            }
            return;
        };
        let Ok(record) = serde_json::from_slice::<Record>(value) else {
            log::warn!("{} in etcd is not readable to this version of connect", event.key);
            return;
        };
        if let Record::Online(online) = &record
            && registry.is_here(online)
        {
            state.listed_here.insert(id.to_owned());
            // The agent may have left in the meantime.
            if !registry.has_channel(online.channel) {
                return;
            }
        }
        if record.table() == table && record.id() == id {
            registry.apply(Change::Put(record));
        }
    }
}

impl ReplicaState {
    fn version(&self, key: &str) -> u64 {
        self.versions.get(key).copied().unwrap_or(0)
    }

    fn key_change(&self, key: String, value: Option<String>, is_presence: bool) -> KeyChange {
        KeyChange { version: self.version(&key), key, value, is_presence }
    }

    /// A record has one key. A share has another one for its code: of two hubs that make the same code, the second
    /// one finds that key taken.
    fn keys_of(&self, change: &Change, registry: &Registry) -> Vec<KeyChange> {
        let (table, id) = change.key();
        let value = match change {
            Change::Put(record) => Some(serde_json::to_string(record).unwrap_or_default()),
            Change::Drop { .. } => None,
        };
        let record = self.key_change(key_of(table, id), value, table.is_presence());
        let code = match change {
            Change::Put(Record::Share(share)) if record.version == 0 => {
                let mut code =
                    self.key_change(code_key(&share.code_hash), Some(share.info.id.clone()), false);
                // It may be taken over only from a share that we know, and so know to be over.
                if registry.code_owner(&share.code_hash).is_none() {
                    code.version = 0;
                }
                Some(code)
            }
            Change::Drop { table: Table::Share, id } => {
                let share = registry.any_share(id);
                let owned = share.filter(|share| registry.code_owner(&share.code_hash) == Some(id));
                owned.map(|share| self.key_change(code_key(&share.code_hash), None, false))
            }
            _ => None,
        };
        code.into_iter().chain([record]).collect()
    }
}

fn key_of(table: Table, id: &str) -> String {
    let name = Table::ALL.iter().find(|(known, _)| *known == table).map_or("", |(_, name)| name);
    format!("{ETCD_KEYS_FROM}{name}/{id}")
}

fn code_key(code_hash: &str) -> String {
    format!("{ETCD_KEYS_FROM}code/{code_hash}")
}

fn record_of(key: &str) -> Option<(Table, &str)> {
    let (name, id) = key.strip_prefix(ETCD_KEYS_FROM)?.split_once('/')?;
    Table::ALL.iter().find(|(_, known)| *known == name).map(|(table, _)| (*table, id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hub_records::ChannelId;
    use crate::model::hub_records::Device;
    use crate::model::time::Time;
    use std::thread;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(20);

    fn device(code: &str, label: &str) -> Record {
        Record::Device(Device {
            code_hash: code.into(),
            secret_hash: String::new(),
            address: std::net::IpAddr::from([192, 0, 2, 1]),
            asked_at: Time::from_unix(1),
            label: label.into(),
            expires_at: Time::from_unix(5000),
            approved: None,
        })
    }

    fn presence(channel: u64) -> Record {
        Record::Online(Presence {
            id: "default.db".into(),
            service: "svc".into(),
            agent_id: "agent".into(),
            hub: "https://here".into(),
            channel: ChannelId(channel),
            since: Time::from_unix(1000),
        })
    }

    fn put(record: &Record, revision: u64) -> KeyEvent {
        let value = Some(serde_json::to_vec(record).unwrap());
        KeyEvent { key: key_of(record.table(), record.id()), revision, value }
    }

    fn gone(record: &Record, revision: u64) -> KeyEvent {
        KeyEvent { value: None, ..put(record, revision) }
    }

    fn replica() -> (Replica, Arc<Mutex<Registry>>) {
        let registry = Arc::new(Mutex::new(Registry::default()));
        (Replica::of(&registry), registry)
    }

    /// A replica of the hub `https://here` with an agent on channel 1 and its service online.
    fn with_agent() -> (Replica, Arc<Mutex<Registry>>) {
        let (replica, registry) = replica();
        replica.become_hub("https://here");
        locked(&registry).open_channel(ChannelId(1), "agent", Time::from_unix(1000));
        replica.apply(&[put(&presence(1), 10)], 10);
        assert_eq!(locked(&registry).online().count(), 1);
        (replica, registry)
    }

    #[test]
    fn a_commit_names_the_revisions_of_the_copy_that_it_was_decided_on() {
        let (replica, _registry) = replica();
        replica.apply_all(&[put(&device("A", "old"), 7)], 9);
        let mark = replica.mark();
        let changes = [Change::Put(device("A", "new")), Change::Put(device("B", "new"))];
        let transactions = replica.begin_commit(&changes, mark).unwrap().unwrap();
        let versions: Vec<u64> = transactions[0].iter().map(|key| key.version).collect();
        assert_eq!(versions, [7, 0]);
        replica.apply(&[put(&device("B", "other"), 11)], 11);
        assert!(replica.begin_commit(&changes, mark).unwrap().is_none(), "the copy has changed since");
    }

    #[test]
    fn a_transaction_is_never_larger_than_etcd_takes() {
        let (replica, _registry) = replica();
        let changes: Vec<Change> = (0..120).map(|n| Change::Put(device(&n.to_string(), "label"))).collect();
        let transactions = replica.begin_commit(&changes, replica.mark()).unwrap().unwrap();
        assert_eq!(transactions.iter().map(Vec::len).collect::<Vec<_>>(), [50, 50, 20]);
    }

    #[test]
    fn a_commit_waits_for_the_watch_and_no_longer() {
        let (replica, registry) = replica();
        replica.apply_all(&[], 9);
        assert!(replica.wait_for_revision(9, SHORT));
        assert!(!replica.wait_for_revision(10, SHORT));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| replica.wait_for_revision(10, LONG));
            replica.apply(&[put(&device("A", "new"), 10)], 10);
            assert!(waiting.join().unwrap());
            assert_eq!(locked(&registry).devices().count(), 1);
            // A watch that has ended tells of nothing more.
            let waiting = scope.spawn(|| replica.wait_for_revision(11, LONG));
            replica.end_watch();
            assert!(!waiting.join().unwrap());
        });
    }

    #[test]
    fn a_refused_commit_waits_for_the_key_that_another_hub_has_changed() {
        let (replica, _registry) = replica();
        replica.apply_all(&[put(&device("A", "old"), 7)], 9);
        let changes = [Change::Put(device("A", "new"))];
        let expected = replica.begin_commit(&changes, replica.mark()).unwrap().unwrap().remove(0);
        replica.apply(&[put(&device("B", "other"), 10)], 10);
        assert!(!replica.wait_for_difference(&expected, SHORT));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| replica.wait_for_difference(&expected, LONG));
            replica.apply(&[gone(&device("A", "old"), 11)], 11);
            assert!(waiting.join().unwrap());
        });
    }

    #[test]
    fn a_lease_that_ended_leaves_the_agents_that_are_here_and_they_are_claimed_again() {
        let (replica, registry) = with_agent();
        replica.apply(&[gone(&presence(1), 11)], 11);
        assert_eq!(locked(&registry).online().count(), 1);
        let (missing, surplus) = replica.differences();
        assert_eq!((missing.len(), surplus.len()), (1, 0));
    }

    #[test]
    fn what_a_commit_of_this_hub_drops_is_gone_here_too() {
        let (replica, registry) = with_agent();
        let changes = [Change::drop(Table::Online, "default.db")];
        assert!(replica.begin_commit(&changes, replica.mark()).unwrap().is_some());
        replica.apply(&[gone(&presence(1), 11)], 11);
        replica.end_commit();
        assert_eq!(locked(&registry).online().count(), 0);
        let (missing, surplus) = replica.differences();
        assert_eq!((missing.len(), surplus.len()), (0, 0));
    }

    #[test]
    fn a_service_whose_agent_has_left_is_listed_in_etcd_and_not_online() {
        let (replica, registry) = with_agent();
        replica.apply(&[put(&presence(2), 12)], 12);
        assert_eq!(replica.differences().1, Vec::<String>::new(), "channel 1 holds it still");
        locked(&registry).apply(Change::drop(Table::Online, "default.db"));
        assert_eq!(replica.differences().1, ["default.db"]);
    }

    #[test]
    fn presence_needs_a_lease() {
        let (replica, _registry) = with_agent();
        let changes = [Change::Put(presence(1))];
        assert_eq!(replica.begin_commit(&changes, replica.mark()).unwrap_err().kind, ErrorKind::Unreachable);
        replica.set_lease(Some("1".into()));
        assert!(replica.begin_commit(&changes, replica.mark()).unwrap().is_some());
    }

    #[test]
    fn what_is_read_anew_drops_what_has_gone_and_follows_a_backup_back() {
        let (replica, registry) = replica();
        replica.apply_all(&[put(&device("A", "a"), 7), put(&device("B", "b"), 8)], 9);
        replica.apply_all(&[put(&device("A", "a"), 7)], 20);
        assert_eq!(locked(&registry).devices().count(), 1);
        // The same revision is another change in an etcd that counts from an earlier one again.
        replica.apply_all(&[put(&device("A", "restored"), 7)], 12);
        assert_eq!(locked(&registry).devices().next().unwrap().label, "restored");
        assert_eq!(replica.reached(), 12);
    }
}
