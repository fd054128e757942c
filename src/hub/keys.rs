//! API keys. An admin's key lists, makes and revokes the keys of its own workspace and of no other. The hub's own
//! command line manages the keys of all workspaces.

use std::time::Duration;

use super::access;
use super::api_call::ApiCall;
use super::api_call::clean_label;
use super::api_call::ok;
use super::api_call::page;
use super::audit::Actor;
use super::audit::Audit;
use super::records::Records;
use super::refusal::Refusal;
use crate::http::reply::Reply;
use crate::model::access::KeyLimits;
use crate::model::access::Role;
use crate::model::fingerprint::Pin;
use crate::model::hub_records::Change;
use crate::model::hub_records::Key;
use crate::model::hub_records::KeyInfo;
use crate::model::hub_records::Record;
use crate::model::hub_records::StoredSecret;
use crate::model::hub_records::Table;
use crate::model::name::Name;
use crate::model::registry::Registry;
use crate::model::time::Time;
use crate::os::secret;
use crate::tls::sealed;
use crate::wire::api::Enrol;
use crate::wire::api::KeyState;
use crate::wire::api::MakeKey;
use crate::wire::api::NewKey;
use crate::wire::api::RevokeKey;
use crate::wire::api::RotationState;

/// More valid keys than any team has; the registry keeps all of them in memory. A workspace gets at most half of what the
/// others leave, so that the admin of one cannot keep another from making keys.
const HUB_KEYS: usize = 10_000;
/// Expired and revoked keys that the list still shows. A loop that makes and revokes keys must not fill the memory.
const DEAD_KEYS: usize = 1000;
/// Names, and addresses, that one key may be limited to. The registry keeps them in memory.
const LIMIT_ENTRIES: usize = 32;
/// How long a key with uses enrols machines if nothing else is said.
const ENROLMENT: Duration = Duration::from_hours(24);

pub fn list(call: &ApiCall<'_>, records: &Records) -> Result<Reply, Refusal> {
    let registry = records.registry();
    let own = registry.keys().filter(|key| call.sees(&key.info.workspace));
    page(call, own, |key| &key.info.id, |key| state(&registry, key, call.now))
}

/// The key as it is listed, with those who still use its first secret.
fn state(registry: &Registry, key: &Key, now: Time) -> KeyState {
    let rotation = key.rotation.as_ref().filter(|rotation| now < rotation.ends_at);
    let rotation = rotation.map(|rotation| RotationState {
        ends_at: rotation.ends_at,
        waits_for: registry.agents_to_rotate(key, now).into_iter().map(|agent| agent.label.clone()).collect(),
        old_used_at: registry.old_secret_used_at(&key.info.id),
    });
    KeyState { info: key.info.clone(), rotation }
}

/// The named workspace, or the caller's own if none is named. Refused if the caller may not manage its keys.
pub fn ruled_workspace(call: &ApiCall<'_>, named: Option<&str>) -> Result<String, Refusal> {
    let workspace = Name::parse(named.unwrap_or(call.workspace())).map_err(Refusal::BadWorkspace)?;
    if call.sees(workspace.as_str()) { Ok(workspace.to_string()) } else { Err(Refusal::OtherWorkspace) }
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
    check_limits(&order)?;
    let workspace = ruled_workspace(call, order.workspace.as_deref())?;
    let (secret, key) = new_key(&order, workspace, call.now);
    // Only this response contains the secret. The hub stores its hash.
    let made = NewKey { key: with_pin(secret, pin), info: key.info.clone() };
    records.change(|registry| Ok((added(registry, &key, call.now)?, ())))?;
    audit_made(audit, call.actor(), &key.info);
    ok(201, &made)
}

/// The changes that add a key. The oldest dead one goes if there are too many of these.
pub fn added(registry: &Registry, key: &Key, now: Time) -> Result<Vec<Change>, Refusal> {
    let live = || registry.keys().filter(|key| key.info.is_live(now));
    let own = live().filter(|other| other.info.workspace == key.info.workspace).count();
    if own + live().count() >= HUB_KEYS {
        return Err(Refusal::TooManyKeys);
    }
    let dead = || registry.keys().filter(|key| !key.info.is_live(now));
    let surplus = dead().min_by_key(|key| key.info.created_at).filter(|_| dead().count() >= DEAD_KEYS);
    let surplus = surplus.map(|key| Change::drop(Table::Key, &key.info.id));
    Ok(surplus.into_iter().chain([Change::Put(Record::Key(key.clone()))]).collect())
}

pub fn audit_made(audit: &Audit, actor: Actor<'_>, made: &KeyInfo) {
    let limits = made.limits.in_words();
    let details = [("key", made.id.as_str()), ("role", made.role.as_str()), ("limits", &limits)];
    audit.say("key.made", actor, &details);
}

/// Refuses limits that would limit nothing, or everything.
fn check_limits(order: &MakeKey) -> Result<(), Refusal> {
    let fits = |count: Option<usize>| count.is_none_or(|count| (1..=LIMIT_ENTRIES).contains(&count));
    let uses_names = !matches!(order.role, Some(Role::Admin | Role::Metrics));
    let is_good = (uses_names || order.only.is_none())
        && fits(order.only.as_ref().map(Vec::len))
        && fits(order.from.as_ref().map(Vec::len))
        && order.uses != Some(0);
    if is_good { Ok(()) } else { Err(Refusal::BadKeyLimits) }
}

/// Exchanges a use of the caller's key for a key of its machine: with the same role and limits, and no end of its own.
pub fn enrol(
    call: &ApiCall<'_>,
    records: &Records,
    audit: &Audit,
    pin: Option<Pin>,
) -> Result<Reply, Refusal> {
    let by = call.principal.id();
    let KeyInfo { role, workspace, limits, .. } =
        records.registry().key(by).ok_or(Refusal::KeyUsedUp)?.info.clone();
    let order = MakeKey {
        role: Some(role),
        label: Some(call.body::<Enrol>()?.label),
        only: Some(limits.only),
        from: Some(limits.from),
        ..MakeKey::default()
    };
    let (secret, mut key) = new_key(&order, workspace, call.now);
    key.info.enrolled_by = Some(by.to_owned());
    records.change(|registry| {
        let enrolling = registry.key(by).filter(|key| key.info.is_live(call.now));
        let mut enrolling = enrolling.cloned().ok_or(Refusal::KeyUsedUp)?;
        let left = &mut enrolling.info.limits.uses_left;
        *left = Some(left.and_then(|left| left.checked_sub(1)).ok_or(Refusal::KeyUsedUp)?);
        let mut changes = added(registry, &key, call.now)?;
        changes.push(Change::Put(Record::Key(enrolling)));
        Ok((changes, ()))
    })?;
    audit_made(audit, call.actor(), &key.info);
    ok(201, &NewKey { key: with_pin(secret, pin), info: key.info })
}

pub fn revoke(call: &ApiCall<'_>, records: &Records, audit: &Audit) -> Result<Reply, Refusal> {
    let id = call.parts[0];
    let order: RevokeKey = call.body_if_any()?;
    let removed = records.change(|registry| {
        let key = registry.key(id).filter(|key| call.sees(&key.info.workspace));
        let key = key.filter(|key| key.info.revoked_at.is_none()).ok_or(Refusal::NoSuchKey)?;
        let is_enrolled = |key: &&Key| key.info.enrolled_by.as_deref() == Some(id);
        let enrolled = registry.keys().filter(is_enrolled).filter(|key| key.info.revoked_at.is_none());
        let enrolled = enrolled.filter(|_| order.with_all_it_made);
        let (mut changes, mut removed) = (Vec::new(), 0);
        for key in [key].into_iter().chain(enrolled) {
            // Without the option the next sweeps remove it all: a large hub does so in pieces.
            let made = if order.with_all_it_made { registry.made_by(&key.info.id) } else { Vec::new() };
            removed += made.len();
            changes.extend(made);
            let info = KeyInfo { revoked_at: Some(call.now), ..key.info.clone() };
            changes.push(Change::Put(Record::Key(Key { info, ..key.clone() })));
        }
        Ok((changes, removed))
    })?;
    audit.say("key.revoked", call.actor(), &[("key", id), ("removed", &removed.to_string())]);
    Ok(Reply::empty(204))
}

/// A new key's secret, and the record that the hub keeps of it.
pub fn new_key(order: &MakeKey, workspace: String, now: Time) -> (String, Key) {
    let secret = access::new_key();
    let life = order.expires_in_seconds.map(Duration::from_secs).or(order.uses.map(|_| ENROLMENT));
    let limits = KeyLimits {
        only: order.only.clone().unwrap_or_default(),
        from: order.from.clone().unwrap_or_default(),
        uses_left: order.uses,
    };
    let info = KeyInfo {
        id: secret::id("key"),
        role: order.role.unwrap_or(Role::Member),
        label: clean_label(order.label.as_deref().unwrap_or_default()),
        workspace,
        created_at: now,
        last_used_at: None,
        revoked_at: None,
        expires_at: life.map(|life| now.plus(life)),
        limits,
        enrolled_by: None,
    };
    let key = Key { secret: stored(&secret), rotation: None, info };
    (secret, key)
}

pub fn stored(secret: &str) -> StoredSecret {
    StoredSecret { hash: secret::hash(secret), public_key: sealed::public_key(secret) }
}

/// The key as its owner gets it: with the pin by which clients recognise the hub.
pub fn with_pin(secret: String, pin: Option<Pin>) -> String {
    pin.map(|pin| format!("{secret}.{pin}")).unwrap_or(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_leaves_keys_for_the_others() {
        let now = Time::from_unix(1000);
        let of = |workspace: &str| new_key(&MakeKey::default(), workspace.to_owned(), now).1;
        let (mut registry, like) = (Registry::default(), of("one"));
        for number in 0..HUB_KEYS / 2 {
            let info = KeyInfo { id: number.to_string(), ..like.info.clone() };
            registry.apply(Change::Put(Record::Key(Key { info, ..like.clone() })));
        }
        assert!(matches!(added(&registry, &of("one"), now), Err(Refusal::TooManyKeys)));
        assert!(added(&registry, &of("two"), now).is_ok());
    }
}
