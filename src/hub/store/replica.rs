//! This hub's copy of what etcd holds, and how it learns.
//!
//! The copy goes forward only: what a commit showed ahead of the watch is not undone when the watch tells of
//! what was before.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;

use super::gateway::Gateway;
use super::gateway::decoded;
use super::gateway::encoded;
use super::gateway::number;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::hub_records::Change;
use crate::model::hub_records::Presence;
use crate::model::hub_records::Record;
use crate::model::hub_records::Table;
use crate::model::registry::Registry;
use crate::net::connect::is_timeout;
use crate::os::lock::locked;

/// All that a fleet keeps is below this.
pub const KEY_PREFIX: &str = "/connect/v1/";
pub const KEY_RANGE_END: &str = "/connect/v10";
/// Changes of one transaction; a share has two keys, and etcd takes 128 steps.
pub const TRANSACTION_CHANGES: usize = 50;
/// Records that are read at once; the largest have about 30 KB.
const PAGE_RECORDS: usize = 250;
/// A watch that is silent for longer is opened anew: its connection may have died without a word.
const WATCH_SILENCE_LIMIT: Duration = Duration::from_secs(20);

/// This hub's copy.
pub struct Replica {
    registry: Arc<Mutex<Registry>>,
    known: Mutex<ReplicaState>,
}

#[derive(Default)]
struct ReplicaState {
    /// The revision at which each key was changed last.
    versions: HashMap<String, u64>,
    /// Keys that a commit or a reading has shown at a revision that the watch has not reached.
    ahead: HashMap<String, u64>,
    /// Services that etcd says are online at this hub.
    mine: BTreeSet<String>,
    /// Up to here the watch has told everything.
    seen: u64,
    /// How often the copy has changed.
    changed: u64,
    /// What presence hangs on; `None` while there is none.
    lease: Option<String>,
    is_away: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ChangeSource {
    Commit,
    Reading,
    Watch,
}

/// One key, and what shall stand there.
pub struct KeyChange {
    pub key: String,
    pub value: Option<String>,
    /// The revision that the key must have; none for one that must not be there.
    pub version: u64,
    pub is_presence: bool,
}

impl Replica {
    pub fn of(registry: &Arc<Mutex<Registry>>) -> Self {
        Self { registry: Arc::clone(registry), known: Mutex::default() }
    }

    pub fn is_away(&self) -> bool {
        locked(&self.known).is_away
    }

    /// Returns what was said before.
    pub fn set_away(&self, is_away: bool) -> bool {
        std::mem::replace(&mut locked(&self.known).is_away, is_away)
    }

    /// From here on this is the hub at `url`. What it held in an earlier life is not here.
    pub fn become_hub(&self, url: &str) {
        let (mut known, mut registry) = (locked(&self.known), locked(&self.registry));
        url.clone_into(&mut registry.me);
        let earlier = registry.online().filter(|online| registry.is_here(online));
        for id in earlier.map(|online| online.id.clone()).collect::<Vec<_>>() {
            registry.apply(Change::drop(Table::Online, &id));
            known.mine.insert(id);
        }
    }

    pub fn mark(&self) -> u64 {
        locked(&self.known).changed
    }

    pub fn lease(&self) -> Option<String> {
        locked(&self.known).lease.clone()
    }

    pub fn set_lease(&self, lease: Option<String>) {
        locked(&self.known).lease = lease;
    }

    /// Whether etcd has this record, as far as we know.
    pub fn has(&self, table: Table, id: &str) -> bool {
        locked(&self.known).versions.contains_key(&key_of(table, id))
    }

    /// Services that are here and that etcd does not know of, and those it lists here that are not.
    pub fn differences(&self) -> (Vec<Presence>, Vec<String>) {
        let (known, registry) = (locked(&self.known), locked(&self.registry));
        let here = registry.online().filter(|online| registry.is_here(online));
        let missing = here.filter(|online| !known.mine.contains(&online.id)).cloned().collect();
        let is_here = |id: &str| registry.online_by_id(id).is_some_and(|online| registry.is_here(online));
        let surplus = known.mine.iter().filter(|id| !is_here(id)).cloned().collect();
        (missing, surplus)
    }

    /// The keys that these changes touch, in pieces for a transaction each; `None` when the copy is not any more
    /// what they were decided on.
    pub fn steps(&self, changes: &[Change], mark: u64) -> Result<Option<Vec<Vec<KeyChange>>>> {
        let (known, registry) = (locked(&self.known), locked(&self.registry));
        if known.changed != mark {
            return Ok(None);
        }
        let claims = |change: &Change| matches!(change, Change::Put(record) if record.table().is_presence());
        if known.lease.is_none() && changes.iter().any(claims) {
            return Err(Error::new("This hub has no lease in etcd").kind(ErrorKind::Unreachable));
        }
        let pieces = changes.chunks(TRANSACTION_CHANGES);
        let steps = |some: &[Change]| some.iter().flat_map(|one| known.steps_of(one, &registry)).collect();
        Ok(Some(pieces.map(steps).collect()))
    }

    /// What a transaction has shown; false when it was refused.
    pub fn learn_answer(&self, steps: &[KeyChange], answer: &Value) -> bool {
        let revision = number(&answer["header"]["revision"]);
        let is_done = answer["succeeded"] == true;
        let mut known = locked(&self.known);
        for (index, step) in steps.iter().enumerate() {
            if is_done {
                let value = step.value.as_deref().map(str::as_bytes);
                self.learn(&mut known, &step.key, (revision, value), ChangeSource::Commit);
                continue;
            }
            let kv = &answer["responses"][index]["response_range"]["kvs"][0];
            let value = kv.is_object().then(|| decoded(&kv["value"]));
            let at = if value.is_some() { number(&kv["mod_revision"]) } else { revision };
            self.learn(&mut known, &step.key, (at, value.as_deref()), ChangeSource::Reading);
        }
        is_done
    }

    /// A key was changed, at a revision to a value. What is older than what we know is passed over.
    fn learn(
        &self,
        known: &mut ReplicaState,
        key: &str,
        (revision, value): (u64, Option<&[u8]>),
        source: ChangeSource,
    ) {
        if source == ChangeSource::Watch {
            if known.ahead.get(key).is_some_and(|ahead| *ahead >= revision) {
                return;
            }
        } else if revision <= known.seen || known.ahead.get(key).is_some_and(|ahead| *ahead >= revision) {
            return;
        } else {
            known.ahead.insert(key.to_owned(), revision);
        }
        known.changed += 1;
        match value {
            Some(_) => drop(known.versions.insert(key.to_owned(), revision)),
            None => drop(known.versions.remove(key)),
        }
        let Some((table, id)) = record_of(key) else { return };
        let mut registry = locked(&self.registry);
        let Some(value) = value else {
            known.mine.remove(id);
            // A lease that ended says nothing of the agents that are here: they are claimed again.
            let is_here = table == Table::Online
                && source != ChangeSource::Commit
                && registry.online_by_id(id).is_some_and(|online| registry.is_here(online));
            if !is_here {
                registry.apply(Change::drop(table, id));
            }
            return;
        };
        let Ok(record) = serde_json::from_slice::<Record>(value) else {
            log::warn!("{key} in etcd is not readable to this version of connect");
            return;
        };
        if let Record::Online(online) = &record {
            known.mine.remove(id);
            if registry.is_here(online) {
                known.mine.insert(id.to_owned());
                if !registry.has_channel(online.channel) {
                    return;
                }
            }
        }
        if record.table() == table && record.id() == id {
            registry.apply(Change::Put(record));
        }
    }

    /// Reads everything.
    pub fn reload(&self, gateway: &mut Gateway) -> Result<()> {
        let (mut found, mut from, mut revision) = (Vec::new(), KEY_PREFIX.as_bytes().to_vec(), 0);
        loop {
            let body = json!({ "key": encoded(&from), "range_end": encoded(KEY_RANGE_END), "limit": PAGE_RECORDS.to_string(),
                "revision": revision.to_string() });
            let answer = gateway.call("/v3/kv/range", &body)?;
            if revision == 0 {
                revision = number(&answer["header"]["revision"]);
            }
            for kv in answer["kvs"].as_array().into_iter().flatten() {
                from = decoded(&kv["key"]);
                let key = String::from_utf8_lossy(&from).into_owned();
                found.push((key, number(&kv["mod_revision"]), decoded(&kv["value"])));
            }
            from.push(0);
            if answer["more"] != true {
                break;
            }
        }
        let mut known = locked(&self.known);
        // An etcd that was restored from a backup counts from there again.
        let is_restored = revision < known.seen;
        if is_restored {
            known.ahead.clear();
        }
        let there: HashSet<&str> = found.iter().map(|(key, ..)| key.as_str()).collect();
        let gone: Vec<String> =
            known.versions.keys().filter(|key| !there.contains(key.as_str())).cloned().collect();
        for key in gone {
            self.learn(&mut known, &key, (revision, None), ChangeSource::Watch);
        }
        for (key, at, value) in &found {
            if is_restored || known.versions.get(key) != Some(at) {
                self.learn(&mut known, key, (*at, Some(value)), ChangeSource::Watch);
            }
        }
        known.seen = revision;
        known.ahead.retain(|_, ahead| *ahead > revision);
        Ok(())
    }

    /// Follows what happens until the connection ends. False when too much was missed: then all is read anew.
    pub fn follow(&self, gateway: &mut Gateway) -> Result<bool> {
        let from = locked(&self.known).seen + 1;
        let mut lines = gateway.watch(KEY_PREFIX, KEY_RANGE_END, from)?;
        loop {
            let line = match lines.next(Instant::now() + WATCH_SILENCE_LIMIT) {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(true),
                Err(error) if is_timeout(&error) => return Ok(true),
                Err(error) => return Err(Error::new("The watch on etcd ended").because(error)),
            };
            let line: Value = serde_json::from_slice(&line).unwrap_or_default();
            let result = &line["result"];
            let (revision, is_created) = (number(&result["header"]["revision"]), result["created"] == true);
            if !result.is_object() || result["canceled"] == true || (is_created && revision + 1 < from) {
                return Ok(false);
            }
            let mut known = locked(&self.known);
            let mut told = if is_created { 0 } else { revision };
            for event in result["events"].as_array().into_iter().flatten() {
                let kv = &event["kv"];
                told = number(&kv["mod_revision"]);
                let key = String::from_utf8_lossy(&decoded(&kv["key"])).into_owned();
                let value = (event["type"] != "DELETE").then(|| decoded(&kv["value"]));
                self.learn(&mut known, &key, (told, value.as_deref()), ChangeSource::Watch);
            }
            known.seen = known.seen.max(told);
            let seen = known.seen;
            known.ahead.retain(|_, ahead| *ahead > seen);
        }
    }
}

impl ReplicaState {
    fn step(&self, key: String, value: Option<String>, is_presence: bool) -> KeyChange {
        KeyChange { version: self.versions.get(&key).copied().unwrap_or(0), key, value, is_presence }
    }

    fn steps_of(&self, change: &Change, registry: &Registry) -> Vec<KeyChange> {
        let (table, id) = change.key();
        let value = match change {
            Change::Put(record) => Some(serde_json::to_string(record).unwrap_or_default()),
            Change::Drop { .. } => None,
        };
        let step = self.step(key_of(table, id), value, table.is_presence());
        // A code is a key of its own: of two hubs that make the same one, the second finds it there. Only from a
        // share that we know, and know to be over, it may be taken.
        let code = match change {
            Change::Put(Record::Share(share)) if step.version == 0 => {
                let code = self.step(code_key(&share.code_hash), Some(share.info.id.clone()), false);
                let is_known = registry.code_owner(&share.code_hash).is_some();
                Some(KeyChange { version: if is_known { code.version } else { 0 }, ..code })
            }
            Change::Drop { table: Table::Share, id } => {
                let share = registry.any_share(id);
                let mine = share.filter(|share| registry.code_owner(&share.code_hash) == Some(id));
                mine.map(|share| self.step(code_key(&share.code_hash), None, false))
            }
            _ => None,
        };
        code.into_iter().chain([step]).collect()
    }
}

fn key_of(table: Table, id: &str) -> String {
    let name = Table::ALL.iter().find(|(known, _)| *known == table).map_or("", |(_, name)| name);
    format!("{KEY_PREFIX}{name}/{id}")
}

fn code_key(code_hash: &str) -> String {
    format!("{KEY_PREFIX}code/{code_hash}")
}

fn record_of(key: &str) -> Option<(Table, &str)> {
    let (name, id) = key.strip_prefix(KEY_PREFIX)?.split_once('/')?;
    Table::ALL.iter().find(|(_, known)| *known == name).map(|(table, _)| (*table, id))
}
