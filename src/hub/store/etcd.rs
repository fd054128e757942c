//! The registry in an etcd that several hubs share: a key for each record, a transaction for each change.
//!
//! A transaction names the revision of every key that it touches as this hub's copy has it. So a decision that was
//! made on an old copy is refused, and is made again once the watch has brought the copy up to date.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use super::gateway::EtcdConfig;
use super::gateway::Gateway;
use super::gateway::decoded;
use super::gateway::encoded;
use super::gateway::number;
use super::interface::CaPem;
use super::interface::CommitOutcome;
use super::interface::Store;
use super::interface::StoreContents;
use super::replica::ETCD_KEYS_FROM;
use super::replica::ETCD_KEYS_UNTIL;
use super::replica::KeyChange;
use super::replica::Replica;
use super::watch;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::hub_records::Change;
use crate::model::registry::Registry;
use crate::net::stop::Stop;
use crate::net::threads::ThreadGroup;
use crate::os::files::FileLock;
use crate::os::lock::locked;

/// The key of a fleet's CA.
const CA_KEY: &str = "ca";
/// How long the watch may be behind a transaction before it is opened again: its connection may have died without
/// a sign.
const WATCH_LAG_LIMIT: Duration = Duration::from_secs(1);
/// How long it may be behind after that.
const WATCH_REOPEN_TIMEOUT: Duration = Duration::from_secs(3);

pub struct EtcdStore {
    gateway: Gateway,
    pub replica: Arc<Replica>,
    registry: Arc<Mutex<Registry>>,
    stop: Stop,
    threads: ThreadGroup,
    /// The data folder's, which holds the audit log.
    _lock: Option<FileLock>,
}

impl EtcdStore {
    /// Reads everything into `registry`, and keeps it fresh until this is dropped.
    pub fn open(
        config: &EtcdConfig,
        lock: Option<FileLock>,
        registry: &Arc<Mutex<Registry>>,
        stop: &Stop,
    ) -> Result<Self> {
        let stop = stop.child();
        let replica = Arc::new(Replica::of(registry));
        let mut gateway = Gateway::new(config, &stop)?;
        watch::read_all(&replica, &mut gateway)?;
        let store = Self {
            gateway,
            replica,
            registry: Arc::clone(registry),
            stop,
            threads: ThreadGroup::default(),
            _lock: lock,
        };
        let (replica, mut gateway, stop) = (Arc::clone(&store.replica), store.gateway(), store.stop.clone());
        store.threads.spawn("etcd-watch", move || watch::keep_fresh(&replica, &mut gateway, &stop))?;
        Ok(store)
    }

    /// A connection of its own to the same etcd.
    pub fn gateway(&self) -> Gateway {
        self.gateway.another()
    }

    /// One transaction: if every key has the revision that we know, apply all.
    fn transaction(&self, changes: &[KeyChange]) -> Value {
        let lease = self.replica.lease();
        let (mut compare, mut success) = (Vec::new(), Vec::new());
        for change in changes {
            let key = encoded(&change.key);
            compare.push(json!({ "key": key, "target": "MOD", "result": "EQUAL",
                "mod_revision": change.version.to_string() }));
            success.push(match &change.value {
                Some(value) if change.is_presence => {
                    json!({ "request_put": { "key": key, "value": encoded(value), "lease": lease } })
                }
                Some(value) => json!({ "request_put": { "key": key, "value": encoded(value) } }),
                None => json!({ "request_delete_range": { "key": key } }),
            });
        }
        json!({ "compare": compare, "success": success })
    }

    fn commit_all(&mut self, transactions: &[Vec<KeyChange>]) -> Result<CommitOutcome> {
        for changes in transactions {
            let answer = self.gateway.call("/v3/kv/txn", &self.transaction(changes));
            let answer = answer.inspect_err(|error| {
                if error.kind == ErrorKind::Unreachable {
                    self.replica.set_away(true);
                }
            })?;
            if answer["succeeded"] != true {
                self.await_watch(|timeout| self.replica.wait_for_difference(changes, timeout))?;
                return Ok(CommitOutcome::Overtaken);
            }
            // Dropping a key that is not there is no change, so the watch tells nothing of it.
            if changes.iter().any(|change| change.value.is_some() || change.version > 0) {
                let revision = number(&answer["header"]["revision"]);
                self.await_watch(|timeout| self.replica.wait_for_revision(revision, timeout))?;
            }
        }
        Ok(CommitOutcome::Done)
    }

    fn await_watch(&self, has_come: impl Fn(Duration) -> bool) -> Result<()> {
        if has_come(WATCH_LAG_LIMIT) {
            return Ok(());
        }
        self.gateway.cut_watch();
        if has_come(WATCH_REOPEN_TIMEOUT) {
            return Ok(());
        }
        Err(Error::new("etcd does not tell what it has changed").kind(ErrorKind::Unreachable))
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.stop.stop();
        self.threads.join(|| ());
    }
}

impl Store for EtcdStore {
    fn mark(&self) -> u64 {
        self.replica.mark()
    }

    fn load(&mut self) -> Result<StoreContents> {
        let records = locked(&self.registry).records().collect();
        let ca = match load_ca(&mut self.gateway)? {
            Some(stored) => Some(read_ca(&stored)?),
            None => None,
        };
        Ok(StoreContents { records, ca })
    }

    fn commit(&mut self, changes: Vec<Change>, mark: u64) -> Result<CommitOutcome> {
        if self.replica.is_away() {
            return Err(Error::new("etcd does not answer").kind(ErrorKind::Unreachable));
        }
        let Some(transactions) = self.replica.begin_commit(&changes, mark)? else {
            return Ok(CommitOutcome::Overtaken);
        };
        let outcome = self.commit_all(&transactions);
        self.replica.end_commit();
        outcome
    }

    fn replace(&mut self, contents: &StoreContents) -> Result<()> {
        let all = json!({ "key": encoded(ETCD_KEYS_FROM), "range_end": encoded(ETCD_KEYS_UNTIL) });
        let dropped = self.gateway.call("/v3/kv/deleterange", &all)?;
        if number(&dropped["deleted"]) > 0 {
            let revision = number(&dropped["header"]["revision"]);
            self.await_watch(|timeout| self.replica.wait_for_revision(revision, timeout))?;
        }
        let puts = contents.records.iter().cloned().map(Change::Put).collect();
        if self.commit(puts, self.mark())? == CommitOutcome::Overtaken {
            return Err(Error::new("A hub is changing this etcd at the same time").hint("Stop it first"));
        }
        if let Some(ca) = &contents.ca {
            load_or_put_ca(&mut self.gateway, || Ok(ca.clone()))?;
        }
        Ok(())
    }
}

/// The CA of a fleet, and whether it is new: the first hub makes it.
pub fn load_or_put_ca(gateway: &mut Gateway, make: impl FnOnce() -> Result<CaPem>) -> Result<(CaPem, bool)> {
    if let Some(stored) = load_ca(gateway)? {
        return Ok((read_ca(&stored)?, false));
    }
    let (made, key) = (make()?, encoded(format!("{ETCD_KEYS_FROM}{CA_KEY}")));
    let body = json!({ "compare": [{ "key": key, "target": "MOD", "result": "EQUAL", "mod_revision": "0" }],
        "success": [{ "request_put": { "key": key, "value": encoded(text(&made)?) } }] });
    if gateway.call("/v3/kv/txn", &body)?["succeeded"] == true {
        return Ok((made, true));
    }
    // Another hub began the fleet at the same moment.
    let stored = load_ca(gateway)?;
    let stored = stored.ok_or_else(|| Error::new("The fleet's CA has gone from etcd; try again"))?;
    Ok((read_ca(&stored)?, false))
}

/// Puts another CA in the place of this one. False if another hub was first.
pub fn replace_ca(gateway: &mut Gateway, old: &CaPem, new: &CaPem) -> Result<bool> {
    let key = encoded(format!("{ETCD_KEYS_FROM}{CA_KEY}"));
    let body = json!({ "compare": [{ "key": key, "target": "VALUE", "result": "EQUAL", "value": encoded(text(old)?) }],
        "success": [{ "request_put": { "key": key, "value": encoded(text(new)?) } }] });
    Ok(gateway.call("/v3/kv/txn", &body)?["succeeded"] == true)
}

fn text(ca: &CaPem) -> Result<String> {
    serde_json::to_string(ca).or_say(|| "Cannot write the fleet's CA")
}

fn load_ca(gateway: &mut Gateway) -> Result<Option<Vec<u8>>> {
    let key = encoded(format!("{ETCD_KEYS_FROM}{CA_KEY}"));
    let answer = gateway.call("/v3/kv/range", &json!({ "key": key }))?;
    let found = &answer["kvs"][0];
    Ok(found.is_object().then(|| decoded(&found["value"])))
}

fn read_ca(stored: &[u8]) -> Result<CaPem> {
    serde_json::from_slice(stored).or_say(|| "The fleet's CA in etcd is damaged")
}
