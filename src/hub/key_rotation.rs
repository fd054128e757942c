//! A key's next secret: made here, handed to its agents over their control channels, and in the place of the first one as
//! soon as all of them have used it, or when the overlap is over.
//!
//! The store has the next secret only as a hash, and sealed for the holders of the first one. So a hub can hand it to an
//! agent that comes later, at any hub of the fleet, and knows it itself only in the moment when it is made.

use std::time::Duration;

use super::access;
use super::api_call::ApiCall;
use super::api_call::ok;
use super::audit::Actor;
use super::core::Core;
use super::keys;
use super::refusal::Refusal;
use crate::http::reply::Reply;
use crate::model::hub_records::Change;
use crate::model::hub_records::KeyRotation;
use crate::model::hub_records::Record;
use crate::model::registry::Registry;
use crate::model::time::Time;
use crate::tls::sealed;
use crate::wire::api::NewKey;
use crate::wire::api::RotationOrder;

/// A machine that is on every day has come by within this time.
const DEFAULT_OVERLAP: u64 = 24 * 3600;

pub fn rotate(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    let id = call.parts[0];
    let order: RotationOrder = call.body_if_any()?;
    let ends_at = call.now.plus(Duration::from_secs(order.overlap_seconds.unwrap_or(DEFAULT_OVERLAP)));
    let secret = access::new_key();
    let next = keys::stored(&secret);
    let info = core.records.change(|registry| {
        let key = registry.key(id).filter(|key| call.sees(&key.info.workspace) && key.info.is_live(call.now));
        let mut key = key.ok_or(Refusal::NoSuchKey)?.clone();
        if key.is_rotation_over(call.now) {
            key = key.rotated();
        } else if let Some(rotation) = &key.rotation {
            return Err(Refusal::KeyRotates { until: rotation.ends_at });
        }
        let sealed = sealed::seal(&key.secret.public_key, &secret).unwrap_or_default();
        key.rotation = Some(KeyRotation { secret: next.clone(), sealed, ends_at, proved: Vec::new() });
        let key = if ends_at == call.now { key.rotated() } else { key };
        let info = key.info.clone();
        Ok((vec![Change::Put(Record::Key(key))], info))
    })?;
    core.audit.say("key.rotating", call.actor(), &[("key", id), ("until", &ends_at.to_string())]);
    ok(200, &NewKey { key: keys::with_pin(secret, core.key_pin()), info })
}

/// The next secret, sealed, if the caller has shown the one that it replaces.
pub fn offer(core: &Core, call: &ApiCall<'_>) -> Option<String> {
    let registry = core.records.registry();
    let key = registry.key(call.principal.id())?;
    let is_old = key.is_replaced(&access::secret_hash(call.request.key()));
    key.rotation.as_ref().filter(|_| is_old).map(|rotation| rotation.sealed.clone())
}

/// The change that notes that the caller's agent has used the next secret; none if it has shown the first one.
pub fn prove(registry: &Registry, call: &ApiCall<'_>, agent: &str) -> Option<Change> {
    let mut key = registry.key(call.principal.id())?.clone();
    let is_old = key.is_replaced(&access::secret_hash(call.request.key()));
    let rotation =
        key.rotation.as_mut().filter(|rotation| !is_old && !rotation.proved.iter().any(|id| id == agent))?;
    // Somebody who registers one agent after another must not make the record grow.
    rotation.proved.retain(|id| registry.agent(id).is_some_and(|agent| agent.key == key.info.id));
    rotation.proved.push(agent.to_owned());
    Some(Change::Put(Record::Key(key)))
}

/// Tells the agents on this hub's channels of next secrets, each once, and ends the rotations that are over.
pub fn sweep(core: &Core, now: Time) {
    let mut over = Vec::new();
    {
        let registry = core.records.registry();
        for key in registry.keys() {
            let Some(rotation) = &key.rotation else { continue };
            core.channels.offer_secret(&key.info.id, &rotation.sealed);
            let is_proved = !rotation.proved.is_empty() && registry.agents_to_rotate(key, now).is_empty();
            if is_proved || key.is_rotation_over(now) {
                over.push((key.info.id.clone(), if is_proved { "proved" } else { "overlap" }));
            }
        }
    }
    for (id, why) in over {
        // In a fleet each hub tries, and the first one has done it.
        let ended = core.records.change(|registry| {
            let key = registry.key(&id).filter(|key| key.rotation.is_some());
            Ok((key.map(|key| Change::Put(Record::Key(key.rotated()))).into_iter().collect(), key.is_some()))
        });
        if ended.is_ok_and(|has_ended| has_ended) {
            core.audit.say("key.rotated", Actor::HUB, &[("key", &id), ("reason", why)]);
        }
    }
}
