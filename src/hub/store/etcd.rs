//! The registry in etcd: a key for each record, a transaction for each change, and this hub's copy.
//!
//! A transaction names the revision of every key that it touches as this hub knows it, so a decision made on
//! an old copy is refused, brings the copy up to date, and is made again. The copy goes forward only: what a
//! commit showed ahead of the watch is not undone when the watch tells of what was before.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;

use super::Outcome;
use super::Store;
use super::gateway::EtcdAt;
use super::gateway::Gateway;
use super::gateway::decoded;
use super::gateway::encoded;
use super::gateway::number;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::hub::core::locked;
use crate::model::record::Change;
use crate::model::record::Online;
use crate::model::record::Record;
use crate::model::record::Table;
use crate::model::registry::Registry;
use crate::net::stop::Stop;
use crate::os::files::Lock;

/// All that a fleet keeps is below this.
pub const FRONT: &str = "/connect/v1/";
const BEHIND: &str = "/connect/v10";
/// Changes of one transaction; a share has two keys, and etcd takes 128 steps.
pub const CHUNK: usize = 50;
/// Records that are read at once; the largest have about 30 KB.
const PAGE: usize = 250;
/// A watch that is silent for longer is opened anew: its connection may have died without a word.
const QUIET: Duration = Duration::from_secs(20);

pub struct Etcd {
    gateway: Gateway,
    replica: Arc<Replica>,
    /// The data folder's, which holds the audit log.
    _lock: Option<Lock>,
}

/// This hub's copy.
pub struct Replica {
    registry: Arc<Mutex<Registry>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The revision at which each key was changed last.
    versions: HashMap<String, u64>,
    /// Keys that a commit or a reading has shown at a revision that the watch has not reached.
    ahead: HashMap<String, u64>,
    /// Services that etcd says are online at this hub.
    mine: BTreeSet<String>,
    /// Up to here the watch has told everything.
    seen: u64,
    /// What presence hangs on; `None` while there is none.
    lease: Option<String>,
    is_away: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Commit,
    Reading,
    Watch,
}

/// One key, and what shall stand there.
struct Step {
    key: String,
    value: Option<String>,
    /// The revision that the key must have; none for one that must not be there.
    version: u64,
    is_presence: bool,
}

impl Etcd {
    pub fn open(
        at: &EtcdAt,
        lock: Option<Lock>,
        registry: &Arc<Mutex<Registry>>,
        stop: &Stop,
    ) -> Result<(Self, Gateway)> {
        let replica = Arc::new(Replica { registry: Arc::clone(registry), known: Mutex::default() });
        let mut gateway = Gateway::new(at, stop)?;
        replica.reload(&mut gateway)?;
        let another = gateway.another();
        Ok((Self { gateway, replica, _lock: lock }, another))
    }

    pub fn replica(&self) -> Arc<Replica> {
        Arc::clone(&self.replica)
    }
}

impl Store for Etcd {
    fn commit(&mut self, changes: Vec<Change>) -> Result<Outcome> {
        if self.replica.is_away() {
            return Err(Error::new("etcd does not answer").kind(Kind::Unreachable));
        }
        for some in changes.chunks(CHUNK) {
            let steps = self.replica.steps(some)?;
            let committed = self.replica.transact(&mut self.gateway, &steps);
            let is_done = committed.inspect_err(|error| {
                if error.kind == Kind::Unreachable {
                    self.replica.say_away(true);
                }
            })?;
            if !is_done {
                return Ok(Outcome::Overtaken);
            }
        }
        Ok(Outcome::Done)
    }
}

impl Replica {
    pub fn is_away(&self) -> bool {
        locked(&self.known).is_away
    }

    /// Returns what was said before.
    pub fn say_away(&self, is_away: bool) -> bool {
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
    pub fn differences(&self) -> (Vec<Online>, Vec<String>) {
        let (known, registry) = (locked(&self.known), locked(&self.registry));
        let here = registry.online().filter(|online| registry.is_here(online));
        let missing = here.filter(|online| !known.mine.contains(&online.id)).cloned().collect();
        let is_here = |id: &str| registry.online_by_id(id).is_some_and(|online| registry.is_here(online));
        let surplus = known.mine.iter().filter(|id| !is_here(id)).cloned().collect();
        (missing, surplus)
    }

    /// The keys that these changes touch.
    fn steps(&self, changes: &[Change]) -> Result<Vec<Step>> {
        let (known, registry) = (locked(&self.known), locked(&self.registry));
        let version = |key: &str| known.versions.get(key).copied().unwrap_or(0);
        let mut steps = Vec::new();
        for change in changes {
            let (table, id) = change.key();
            let (key, is_presence) = (key_of(table, id), table.is_presence());
            // A code is a key of its own: of two hubs that make the same one, the second finds it there. Only
            // from a share that we know, and know to be over, it may be taken.
            let code = match change {
                Change::Put(Record::Share(share)) if version(&key) == 0 => {
                    let owner = registry.code_owner(&share.code_hash);
                    let key = code_key(&share.code_hash);
                    let version = owner.map_or(0, |_| version(&key));
                    Some(Step { key, value: Some(share.id.clone()), version, is_presence: false })
                }
                Change::Drop { table: Table::Share, id } => {
                    let share = registry.any_share(id);
                    let mine = share.filter(|share| registry.code_owner(&share.code_hash) == Some(id));
                    mine.map(|share| {
                        let key = code_key(&share.code_hash);
                        Step { version: version(&key), key, value: None, is_presence: false }
                    })
                }
                _ => None,
            };
            let value = match change {
                Change::Put(record) => Some(serde_json::to_string(record).unwrap_or_default()),
                Change::Drop { .. } => None,
            };
            steps.extend(code);
            steps.push(Step { version: version(&key), key, value, is_presence });
        }
        if known.lease.is_none() && steps.iter().any(|step| step.is_presence && step.value.is_some()) {
            return Err(Error::new("This hub has no lease in etcd").kind(Kind::Unreachable));
        }
        Ok(steps)
    }

    /// Does all steps if every key is as we know it; else reads how they are, and says false.
    fn transact(&self, gateway: &mut Gateway, steps: &[Step]) -> Result<bool> {
        let lease = self.lease();
        let compare = |step: &Step| {
            json!({ "key": encoded(&step.key), "target": "MOD", "result": "EQUAL",
                "mod_revision": step.version.to_string() })
        };
        let success = |step: &Step| {
            let key = encoded(&step.key);
            match &step.value {
                Some(value) if step.is_presence => {
                    json!({ "request_put": { "key": key, "value": encoded(value), "lease": lease } })
                }
                Some(value) => json!({ "request_put": { "key": key, "value": encoded(value) } }),
                None => json!({ "request_delete_range": { "key": key } }),
            }
        };
        let failure = |step: &Step| json!({ "request_range": { "key": encoded(&step.key) } });
        let body = json!({ "compare": steps.iter().map(compare).collect::<Vec<_>>(),
            "success": steps.iter().map(success).collect::<Vec<_>>(),
            "failure": steps.iter().map(failure).collect::<Vec<_>>() });
        let answer = gateway.call("/v3/kv/txn", &body)?;
        let revision = number(&answer["header"]["revision"]);
        let is_done = answer["succeeded"] == true;
        let mut known = locked(&self.known);
        for (index, step) in steps.iter().enumerate() {
            if is_done {
                let value = step.value.as_deref().map(str::as_bytes);
                self.learn(&mut known, &step.key, (revision, value), Source::Commit);
                continue;
            }
            let kv = &answer["responses"][index]["response_range"]["kvs"][0];
            let value = kv.is_object().then(|| decoded(&kv["value"]));
            let at = if value.is_some() { number(&kv["mod_revision"]) } else { revision };
            self.learn(&mut known, &step.key, (at, value.as_deref()), Source::Reading);
        }
        Ok(is_done)
    }

    /// A key was changed, at a revision to a value. What is older than what we know is passed over.
    fn learn(&self, known: &mut Known, key: &str, (revision, value): (u64, Option<&[u8]>), source: Source) {
        if source == Source::Watch {
            if known.ahead.get(key).is_some_and(|ahead| *ahead >= revision) {
                return;
            }
        } else if revision <= known.seen || known.ahead.get(key).is_some_and(|ahead| *ahead >= revision) {
            return;
        } else {
            known.ahead.insert(key.to_owned(), revision);
        }
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
                && source != Source::Commit
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
        let (mut found, mut from, mut revision) = (Vec::new(), FRONT.as_bytes().to_vec(), 0);
        loop {
            let body = json!({ "key": encoded(&from), "range_end": encoded(BEHIND), "limit": PAGE.to_string(),
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
            self.learn(&mut known, &key, (revision, None), Source::Watch);
        }
        for (key, at, value) in &found {
            if is_restored || known.versions.get(key) != Some(at) {
                self.learn(&mut known, key, (*at, Some(value)), Source::Watch);
            }
        }
        known.seen = revision;
        known.ahead.retain(|_, ahead| *ahead > revision);
        Ok(())
    }

    /// Follows what happens until the connection ends. False when too much was missed: then all is read anew.
    pub fn follow(&self, gateway: &mut Gateway) -> Result<bool> {
        let from = locked(&self.known).seen + 1;
        let (mut lines, _cuts) = gateway.watch(FRONT, BEHIND, from)?;
        loop {
            let line = match lines.next(Instant::now() + QUIET) {
                Ok(Some(line)) => line,
                Ok(None) => return Ok(true),
                Err(error) if crate::net::connect::is_timeout(&error) => return Ok(true),
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
                self.learn(&mut known, &key, (told, value.as_deref()), Source::Watch);
            }
            known.seen = known.seen.max(told);
            let seen = known.seen;
            known.ahead.retain(|_, ahead| *ahead > seen);
        }
    }

    pub fn find(gateway: &mut Gateway, key: &str) -> Result<Option<Vec<u8>>> {
        let answer = gateway.call("/v3/kv/range", &json!({ "key": encoded(format!("{FRONT}{key}")) }))?;
        let found = &answer["kvs"][0];
        Ok(found.is_object().then(|| decoded(&found["value"])))
    }

    /// What stands there, and whether it is `value`, which is put where nothing does.
    pub fn found_or_put(
        gateway: &mut Gateway,
        key: &str,
        value: impl FnOnce() -> Result<String>,
    ) -> Result<(Vec<u8>, bool)> {
        if let Some(found) = Self::find(gateway, key)? {
            return Ok((found, false));
        }
        let (value, name) = (value()?, encoded(format!("{FRONT}{key}")));
        let body = json!({ "compare": [{ "key": name, "target": "MOD", "result": "EQUAL", "mod_revision": "0" }],
            "success": [{ "request_put": { "key": name, "value": encoded(&value) } }] });
        if gateway.call("/v3/kv/txn", &body)?["succeeded"] == true {
            return Ok((value.into_bytes(), true));
        }
        let found = Self::find(gateway, key)?;
        found.map(|found| (found, false)).ok_or_else(|| Error::new("etcd changes under our hands"))
    }

    /// Drops all that a fleet keeps.
    pub fn clear(gateway: &mut Gateway) -> Result<()> {
        let all = json!({ "key": encoded(FRONT), "range_end": encoded(BEHIND) });
        gateway.call("/v3/kv/deleterange", &all).map(drop)
    }
}

fn key_of(table: Table, id: &str) -> String {
    let name = Table::ALL.iter().find(|(known, _)| *known == table).map_or("", |(_, name)| name);
    format!("{FRONT}{name}/{id}")
}

fn code_key(code_hash: &str) -> String {
    format!("{FRONT}code/{code_hash}")
}

fn record_of(key: &str) -> Option<(Table, &str)> {
    let (name, id) = key.strip_prefix(FRONT)?.split_once('/')?;
    Table::ALL.iter().find(|(_, known)| *known == name).map(|(table, _)| (*table, id))
}
