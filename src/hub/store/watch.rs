//! Reads what etcd holds into the copy, and then follows every change.

use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;

use super::gateway::Gateway;
use super::gateway::decoded;
use super::gateway::encoded;
use super::gateway::number;
use super::replica::ETCD_KEYS_FROM;
use super::replica::ETCD_KEYS_UNTIL;
use super::replica::KeyEvent;
use super::replica::Replica;
use crate::error::Error;
use crate::error::Result;
use crate::net::connect::is_timeout;
use crate::net::stop::Stop;

/// Records that are read at once; the largest have about 30 KB.
const PAGE_RECORDS: usize = 250;
/// A watch that is silent for longer is opened again: its connection may have died without a sign.
const WATCH_SILENCE_LIMIT: Duration = Duration::from_secs(20);
/// A watch that failed is opened again after this long.
const WATCH_RETRY_DELAY: Duration = Duration::from_millis(200);

/// Why a watch is over.
enum WatchEnd {
    /// The next one goes on from there.
    Closed,
    /// It has missed more than etcd remembers, so everything is to be read again.
    Missed,
}

/// Keeps the copy fresh until `stop`.
pub fn keep_fresh(replica: &Replica, gateway: &mut Gateway, stop: &Stop) {
    while !stop.is_stopped() {
        let ended = match follow(replica, gateway) {
            Ok(WatchEnd::Closed) => continue,
            Ok(WatchEnd::Missed) => read_all(replica, gateway),
            Err(error) => Err(error),
        };
        ended.unwrap_or_else(|error| log::debug!("{error}"));
        stop.wait_for(WATCH_RETRY_DELAY);
    }
    replica.end_watch();
}

/// Reads everything, page by page, as it was at the revision of the first page.
pub fn read_all(replica: &Replica, gateway: &mut Gateway) -> Result<()> {
    let (mut found, mut from, mut revision) = (Vec::new(), ETCD_KEYS_FROM.as_bytes().to_vec(), 0);
    loop {
        let page = json!({ "key": encoded(&from), "range_end": encoded(ETCD_KEYS_UNTIL),
            "limit": PAGE_RECORDS.to_string(), "revision": revision.to_string() });
        let answer = gateway.call("/v3/kv/range", &page)?;
        if revision == 0 {
            revision = number(&answer["header"]["revision"]);
        }
        for kv in answer["kvs"].as_array().into_iter().flatten() {
            from = decoded(&kv["key"]);
            found.push(key_event(kv, true));
        }
        if answer["more"] != true {
            break;
        }
        // The first key after the last one of this page.
        from.push(0);
    }
    replica.apply_all(&found, revision);
    Ok(())
}

/// Follows what happens until the connection ends.
fn follow(replica: &Replica, gateway: &mut Gateway) -> Result<WatchEnd> {
    let from = replica.reached() + 1;
    let mut lines = gateway.watch(ETCD_KEYS_FROM, ETCD_KEYS_UNTIL, from)?;
    loop {
        let line = match lines.next(Instant::now() + WATCH_SILENCE_LIMIT) {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(WatchEnd::Closed),
            Err(error) if is_timeout(&error) => return Ok(WatchEnd::Closed),
            Err(error) => return Err(Error::new("The watch on etcd ended").because(error)),
        };
        let line: Value = serde_json::from_slice(&line).unwrap_or_default();
        let result = &line["result"];
        let (revision, is_created) = (number(&result["header"]["revision"]), result["created"] == true);
        // An etcd that is not at our revision yet was restored from a backup.
        let is_behind = is_created && revision + 1 < from;
        if !result.is_object() || result["canceled"] == true || is_behind {
            return Ok(WatchEnd::Missed);
        }
        let events = result["events"].as_array().into_iter().flatten();
        let events: Vec<KeyEvent> =
            events.map(|event| key_event(&event["kv"], event["type"] != "DELETE")).collect();
        // The answer to the request for a watch names a revision that its events have not come to yet.
        match events.last() {
            Some(last) => replica.apply(&events, last.revision),
            None if is_created => {}
            None => replica.apply(&[], revision),
        }
    }
}

fn key_event(kv: &Value, is_there: bool) -> KeyEvent {
    KeyEvent {
        key: String::from_utf8_lossy(&decoded(&kv["key"])).into_owned(),
        revision: number(&kv["mod_revision"]),
        value: is_there.then(|| decoded(&kv["value"])),
    }
}
