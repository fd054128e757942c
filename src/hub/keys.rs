//! API keys. An admin's key lists, makes and revokes the keys of its own workspace and of no other. The hub's own
//! command line manages the keys of all workspaces.

use std::time::Duration;

use super::access;
use super::api_call::ApiCall;
use super::api_call::clean_label;
use super::api_call::ok;
use super::api_call::page;
use super::audit::Audit;
use super::records::Records;
use super::refusal::Refusal;
use crate::http::reply::Reply;
use crate::model::access::Role;
use crate::model::fingerprint::Pin;
use crate::model::hub_records::Change;
use crate::model::hub_records::Key;
use crate::model::hub_records::KeyInfo;
use crate::model::hub_records::Record;
use crate::model::hub_records::Table;
use crate::model::name::Name;
use crate::model::time::Time;
use crate::os::secret;
use crate::wire::api::MakeKey;
use crate::wire::api::NewKey;
use crate::wire::api::RevokeKey;

/// More valid keys than any team has; the registry keeps all of them in memory.
const HUB_KEYS: usize = 10_000;
/// Expired and revoked keys that the list still shows. A loop that makes and revokes keys must not fill the memory.
const DEAD_KEYS: usize = 1000;

pub fn list(call: &ApiCall<'_>, records: &Records) -> Result<Reply, Refusal> {
    let registry = records.registry();
    let own = registry.keys().filter(|key| call.sees(&key.info.workspace));
    page(call, own, |key| &key.info.id, |key| &key.info)
}

/// The named workspace, or the caller's own if none is named. Refused if the caller may not manage its keys.
pub fn ruled_workspace(call: &ApiCall<'_>, named: Option<&str>, audit: &Audit) -> Result<String, Refusal> {
    let workspace = Name::parse(named.unwrap_or(call.workspace())).map_err(Refusal::BadWorkspace)?;
    if call.sees(workspace.as_str()) {
        return Ok(workspace.to_string());
    }
    let details = [("action", "OtherWorkspace"), ("reason", "the role does not allow it")];
    audit.say("role.refused", call.actor(), &details);
    Err(Refusal::OtherWorkspace)
}

pub fn make(
    call: &ApiCall<'_>,
    records: &Records,
    audit: &Audit,
    pin: Option<Pin>,
) -> Result<Reply, Refusal> {
    let order: MakeKey = call.body_if_any()?;
    if order.expires_in_seconds == Some(0) {
        return Err(Refusal::BadKeyLifetime);
    }
    let workspace = ruled_workspace(call, order.workspace.as_deref(), audit)?;
    let (secret, key) = new_key(&order, workspace, call.now);
    // Only this response contains the secret. The hub stores its hash.
    let made = NewKey { key: with_pin(secret, pin), info: key.info.clone() };
    records.change(|registry| {
        if registry.keys().filter(|key| key.info.is_live(call.now)).count() >= HUB_KEYS {
            return Err(Refusal::TooManyKeys);
        }
        let dead = || registry.keys().filter(|key| !key.info.is_live(call.now));
        let surplus = dead().min_by_key(|key| key.info.created_at).filter(|_| dead().count() >= DEAD_KEYS);
        let surplus = surplus.map(|key| Change::drop(Table::Key, &key.info.id));
        Ok((surplus.into_iter().chain([Change::Put(Record::Key(key.clone()))]).collect(), ()))
    })?;
    let details = [("key", made.info.id.as_str()), ("role", made.info.role.as_str())];
    audit.say("key.made", call.actor(), &details);
    ok(201, &made)
}

pub fn revoke(call: &ApiCall<'_>, records: &Records, audit: &Audit) -> Result<Reply, Refusal> {
    let id = call.parts[0];
    let order: RevokeKey = call.body_if_any()?;
    let removed = records.change(|registry| {
        let key = registry.key(id).filter(|key| call.sees(&key.info.workspace));
        let mut key = key.filter(|key| key.info.revoked_at.is_none()).ok_or(Refusal::NoSuchKey)?.clone();
        key.info.revoked_at = Some(call.now);
        // Without the option the next sweeps remove it all: a large hub does so in pieces.
        let made = if order.with_all_it_made { registry.made_by(id) } else { Vec::new() };
        let removed = made.len();
        Ok(([vec![Change::Put(Record::Key(key))], made].concat(), removed))
    })?;
    audit.say("key.revoked", call.actor(), &[("key", id), ("removed", &removed.to_string())]);
    Ok(Reply::empty(204))
}

/// A new key's secret, and the record that the hub keeps of it.
pub fn new_key(order: &MakeKey, workspace: String, now: Time) -> (String, Key) {
    let secret = access::new_key();
    let info = KeyInfo {
        id: secret::id("key"),
        role: order.role.unwrap_or(Role::Member),
        label: clean_label(order.label.as_deref().unwrap_or_default()),
        workspace,
        created_at: now,
        last_used_at: None,
        revoked_at: None,
        expires_at: order.expires_in_seconds.map(|seconds| now.plus(Duration::from_secs(seconds))),
    };
    let key = Key { hash: secret::hash(&secret), info };
    (secret, key)
}

/// The key as its owner gets it: with the pin by which clients recognise the hub.
pub fn with_pin(secret: String, pin: Option<Pin>) -> String {
    match pin {
        Some(pin) => format!("{secret}.{pin}"),
        None => secret,
    }
}
