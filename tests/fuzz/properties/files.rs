//! Files: the project's, the state folder's, the hub's journal.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::cuts::Cuts;
use crate::model::fingerprint::Fingerprint;
use crate::model::hub_records::Change;
use crate::model::hub_records::Record;
use crate::model::registry::Registry;
use crate::model::route;
use crate::model::route::Route;
use crate::wire::journal;
use crate::wire::journal::JournalEntry;
use crate::wire::journal::Snapshot;
use crate::wire::pconnect;

/// A project says the same when it is written as JSON, and names no service twice.
pub fn pconnect(bytes: &[u8], _: Cuts) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(project) = pconnect::parse(text) else { return };
    let names: BTreeSet<_> = project.services.iter().map(|service| &service.name).collect();
    assert_eq!(names.len(), project.services.len());
    assert!(project.services.iter().all(|service| service.port != Some(0)));
    let needed = |service: &pconnect::NeededService| json!({ "name": service.name, "port": service.port, "protocol": service.protocol });
    let services: Vec<_> = project.services.iter().map(needed).collect();
    let expose = project.expose.iter().map(|(name, target)| (name.as_str(), target.to_string()));
    let expose: BTreeMap<_, _> = expose.collect();
    let written = json!({ "hub": project.hub, "services": services, "expose": expose }).to_string();
    // YAML knows fewer characters than JSON does; all of them it knows escaped.
    let escaped = |c: char| {
        if c.is_ascii_graphic() || c == ' ' { c.to_string() } else { format!("\\U{:08x}", u32::from(c)) }
    };
    let written: String = written.chars().map(escaped).collect();
    assert_eq!(pconnect::parse(&written), Ok(project), "{written}");
}

/// What a state file says is written and read as the same again.
pub fn state(bytes: &[u8], _: Cuts) {
    if let Ok(text) = str::from_utf8(bytes)
        && let Some(routes) = route::entries(text)
    {
        let written = serde_json::to_string_pretty(&routes).expect("routes can be written");
        assert!(routes.iter().all(|entry| Route::read(entry).is_err() || entry["localPort"] != 0));
        assert_eq!(route::entries(&written), Some(routes));
    }
    same_again::<BTreeMap<String, Fingerprint>>(bytes);
    same_again::<BTreeMap<String, u16>>(bytes);
    same_again::<Vec<Change>>(bytes);
    if let Ok(snapshot) = serde_json::from_slice::<Snapshot>(bytes) {
        same_again::<Snapshot>(bytes);
        let mut registry = Registry::default();
        snapshot.records.into_iter().for_each(|record| registry.apply(Change::Put(record)));
        let records: Vec<Record> = registry.records().collect();
        let mut copy = Registry::default();
        records.iter().for_each(|record| copy.apply(Change::Put(record.clone())));
        assert!(copy.records().eq(records));
    }
}

fn same_again<T: Serialize + DeserializeOwned + Debug + PartialEq>(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<T>(bytes) else { return };
    let written = serde_json::to_vec_pretty(&value).expect("it can be written");
    assert_eq!(serde_json::from_slice::<T>(&written).expect("valid again"), value);
}

/// A journal is recovered up to its last whole line, or refused; never is a line passed over. The checksums of lines
/// that begin with eight question marks are put right first, since no fuzzer guesses them.
pub fn journal(bytes: &[u8], cuts: Cuts) {
    let bytes = put_right(bytes);
    for after in [0, 2, u64::MAX] {
        let whole = journal::read(&bytes, after, sum);
        for cut in cuts.of(&bytes).filter(|cut| *cut < bytes.len()) {
            let early = journal::read(&bytes[..cut], after, sum);
            match (&early, &whole) {
                (Ok((entries, length)), Ok((all, _))) => {
                    assert!(all.starts_with(entries) && *length <= cut as u64);
                    assert!(*length == 0 || bytes[usize::try_from(*length).expect("short") - 1] == b'\n');
                }
                (Ok(_), Err(line)) => assert!(*line >= bytes[..cut].split(|byte| *byte == b'\n').count()),
                (Err(line), later) => assert_eq!(later.as_ref().err(), Some(line), "damage stays damage"),
            }
        }
        if let Ok((entries, _)) = whole {
            assert!(entries.windows(2).all(|pair| pair[0].n + 1 == pair[1].n));
            assert!(entries.first().is_none_or(|first| first.n == after + 1));
            let written: Vec<u8> =
                entries.iter().flat_map(|entry| journal::write(entry, sum).expect("valid")).collect();
            assert_eq!(journal::read(&written, after, sum), Ok((entries, written.len() as u64)));
            replayed(&bytes, after);
        }
    }
}

/// Any prefix of the changes makes a registry; none is too odd to be applied.
fn replayed(bytes: &[u8], after: u64) {
    let (entries, _) = journal::read(bytes, after, sum).expect("read a moment ago");
    let mut registry = Registry::default();
    let changes = entries.into_iter().flat_map(|JournalEntry { changes, .. }| changes);
    changes.for_each(|change| registry.apply(change));
}

fn put_right(bytes: &[u8]) -> Vec<u8> {
    let line = |line: &[u8]| match line.strip_prefix(b"???????? ") {
        Some(json) => {
            let bare = json.strip_suffix(b"\n").unwrap_or(json);
            [sum(bare).as_bytes(), b" ", json].concat()
        }
        None => line.to_vec(),
    };
    bytes.split_inclusive(|byte| *byte == b'\n').flat_map(line).collect()
}

fn sum(json: &[u8]) -> String {
    let sum = json.iter().fold(1_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    format!("{sum:08x}")
}
