//! Changes as transactions in etcd: a key for each record.
//!
//! A transaction names the revision of every key that it touches as this hub's copy has it, so a decision made
//! on an old copy is refused, brings the copy up to date, and is made again.

use std::sync::Arc;
use std::sync::Mutex;

use serde_json::Value;
use serde_json::json;

use super::CommitOutcome;
use super::Store;
use super::gateway::EtcdConfig;
use super::gateway::Gateway;
use super::gateway::decoded;
use super::gateway::encoded;
use super::replica::KEY_PREFIX;
use super::replica::KEY_RANGE_END;
use super::replica::KeyChange;
use super::replica::Replica;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::hub_records::Change;
use crate::model::registry::Registry;
use crate::net::stop::Stop;
use crate::os::files::FileLock;

pub struct Etcd {
    gateway: Gateway,
    pub replica: Arc<Replica>,
    /// The data folder's, which holds the audit log.
    _lock: Option<FileLock>,
}

impl Etcd {
    pub fn open(
        at: &EtcdConfig,
        lock: Option<FileLock>,
        registry: &Arc<Mutex<Registry>>,
        stop: &Stop,
    ) -> Result<(Self, Gateway)> {
        let replica = Arc::new(Replica::of(registry));
        let mut gateway = Gateway::new(at, stop)?;
        replica.reload(&mut gateway)?;
        let another = gateway.another();
        Ok((Self { gateway, replica, _lock: lock }, another))
    }

    /// All steps if every key is as we know it; else how they are.
    fn transaction(&self, steps: &[KeyChange]) -> Value {
        let lease = self.replica.lease();
        let compare = |step: &KeyChange| {
            json!({ "key": encoded(&step.key), "target": "MOD", "result": "EQUAL",
                "mod_revision": step.version.to_string() })
        };
        let success = |step: &KeyChange| {
            let key = encoded(&step.key);
            match &step.value {
                Some(value) if step.is_presence => {
                    json!({ "request_put": { "key": key, "value": encoded(value), "lease": lease } })
                }
                Some(value) => json!({ "request_put": { "key": key, "value": encoded(value) } }),
                None => json!({ "request_delete_range": { "key": key } }),
            }
        };
        let failure = |step: &KeyChange| json!({ "request_range": { "key": encoded(&step.key) } });
        json!({ "compare": steps.iter().map(compare).collect::<Vec<_>>(),
            "success": steps.iter().map(success).collect::<Vec<_>>(),
            "failure": steps.iter().map(failure).collect::<Vec<_>>() })
    }
}

impl Store for Etcd {
    fn mark(&self) -> u64 {
        self.replica.mark()
    }

    fn commit(&mut self, changes: Vec<Change>, mark: u64) -> Result<CommitOutcome> {
        if self.replica.is_away() {
            return Err(Error::new("etcd does not answer").kind(ErrorKind::Unreachable));
        }
        let Some(transactions) = self.replica.steps(&changes, mark)? else {
            return Ok(CommitOutcome::Overtaken);
        };
        for steps in transactions {
            let answered = self.gateway.call("/v3/kv/txn", &self.transaction(&steps));
            let answer = answered.inspect_err(|error| {
                if error.kind == ErrorKind::Unreachable {
                    self.replica.set_away(true);
                }
            })?;
            if !self.replica.learn_answer(&steps, &answer) {
                return Ok(CommitOutcome::Overtaken);
            }
        }
        Ok(CommitOutcome::Done)
    }
}

pub fn find(gateway: &mut Gateway, key: &str) -> Result<Option<Vec<u8>>> {
    let answer = gateway.call("/v3/kv/range", &json!({ "key": encoded(format!("{KEY_PREFIX}{key}")) }))?;
    let found = &answer["kvs"][0];
    Ok(found.is_object().then(|| decoded(&found["value"])))
}

/// What stands there, and whether it is `value`, which is put where nothing does.
pub fn found_or_put(
    gateway: &mut Gateway,
    key: &str,
    value: impl FnOnce() -> Result<String>,
) -> Result<(Vec<u8>, bool)> {
    if let Some(found) = find(gateway, key)? {
        return Ok((found, false));
    }
    let (value, name) = (value()?, encoded(format!("{KEY_PREFIX}{key}")));
    let body = json!({ "compare": [{ "key": name, "target": "MOD", "result": "EQUAL", "mod_revision": "0" }],
        "success": [{ "request_put": { "key": name, "value": encoded(&value) } }] });
    if gateway.call("/v3/kv/txn", &body)?["succeeded"] == true {
        return Ok((value.into_bytes(), true));
    }
    let found = find(gateway, key)?;
    found.map(|found| (found, false)).ok_or_else(|| Error::new("etcd changes under our hands"))
}

/// Drops all that a fleet keeps.
pub fn clear(gateway: &mut Gateway) -> Result<()> {
    let all = json!({ "key": encoded(KEY_PREFIX), "range_end": encoded(KEY_RANGE_END) });
    gateway.call("/v3/kv/deleterange", &all).map(drop)
}
