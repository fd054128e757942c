//! Authentication and roles: whom a key belongs to, and whether its role allows the call.
//!
//! Every invalid key gets the same refusal after the same work, so the answer does not reveal why it is invalid.

use std::net::IpAddr;

use super::api_call::ApiCall;
use super::audit::Actor;
use super::core::Core;
use super::refusal::Refusal;
use crate::http::message::Request;
use crate::model::access::Action;
use crate::model::access::Principal;
use crate::model::hub_records::KeyInfo;
use crate::model::limiter::RateLimit;
use crate::model::limiter::network_of;
use crate::model::time::Time;
use crate::os::clock;
use crate::os::lock::locked;
use crate::os::secret;

/// Prefix of the secret in a share link, which is sent in the place of an API key.
const LINK_PREFIX: &str = "pl_";
const API_KEY_PREFIX: &str = "pc_";
/// Stands in the place of a workspace, of which it cannot be the name.
const VOUCHED: &str = "vouched for";
/// Longer than any key of ours.
const KEY_LENGTH_LIMIT: usize = 256;
/// Wrong keys from one network, and tries of one wrong key.
const LOGINS: RateLimit = RateLimit { name: "too-many-logins", allowed: 20, window: 60 };
/// Changes of one key or link: 20 a second, after the burst of a full key that comes back, whose 100 agents register, open
/// their channels and expose 1000 services.
pub const CHANGES: RateLimit = RateLimit { name: "too-many-changes", allowed: 1200, window: 60 };
/// Joins of one key or link from one network: more at once than a link may have sessions, and then 5 a second.
pub const JOINS: RateLimit = RateLimit { name: "too-many-joins", allowed: 300, window: 60 };
/// Sessions that one key or link asks for: more at once than it may have, and then 20 a second. Each is two lines of an audit
/// log that is never shortened.
pub const SESSION_REQUESTS: RateLimit =
    RateLimit { name: "too-many-session-requests", allowed: 6000, window: 300 };

/// A call before its sender is known.
pub struct UnknownCall<'c> {
    pub key: &'c str,
    pub address: IpAddr,
    /// What the sender's role must allow; `None` if every role may make the call.
    pub action: Option<Action>,
    /// The call, and the event that its refusal is, for the audit log.
    pub name: String,
    pub refused: &'static str,
}

/// The principal that makes the call, if it may make it from there. The key is checked before the role, so that a caller
/// without a key learns nothing about roles.
pub fn admit(core: &Core, call: &UnknownCall<'_>, now: Time) -> Result<Principal, Refusal> {
    let principal = authenticate(core, call.key, call.address, now)?;
    let allowed = from_there(core, &principal, call, now)
        .and_then(|()| call.action.map_or(Ok(()), |action| allow(&principal, action)));
    let actor = Actor::of(&principal, call.address);
    allowed.inspect_err(|refusal| core.audit.say_refused(call.refused, actor, &call.name, refusal))?;
    Ok(principal)
}

/// The principal that the key belongs to. A wrong key counts twice: for its sender's network and for itself.
fn authenticate(core: &Core, key: &str, address: IpAddr, now: Time) -> Result<Principal, Refusal> {
    if key.is_empty() {
        return Err(Refusal::NoKey);
    }
    let hash = secret_hash(key);
    // The key is looked up before the limit is checked, so a valid key always works: a machine that repeats a revoked
    // key must not lock out its neighbours. Nobody guesses 128 random bits, with or without a limit.
    if let Some(principal) = principal_of(core, key, &hash, now) {
        return Ok(principal);
    }
    let callers = [network_of(address).to_string(), hash[..16].to_owned()];
    let mut tries = locked(&core.tries);
    let refusal = match callers.iter().filter_map(|who| tries.blocked(&LOGINS, who, now)).max() {
        Some(seconds) => Refusal::TooManyTries { limit: &LOGINS, seconds },
        None => {
            callers.iter().for_each(|who| tries.count(&LOGINS, who, now));
            Refusal::BadKey
        }
    };
    drop(tries);
    let actor = Actor { id: "", label: "", address: Some(address) };
    core.audit.say("key.refused", actor, &[("reason", refusal.code())]);
    Err(refusal)
}

/// Of the secret in a key. What follows the dot is the hub's pin, which is for clients. What follows the semicolon is of another hub.
pub fn secret_hash(key: &str) -> String {
    secret::hash(key.get(..KEY_LENGTH_LIMIT).unwrap_or(key).split(['.', ';']).next().unwrap_or_default())
}

/// Refuses a key that is used from where it may not be. Only a use that is allowed counts as one.
fn from_there(core: &Core, principal: &Principal, call: &UnknownCall<'_>, now: Time) -> Result<(), Refusal> {
    if let Principal::Key { id, limits, .. } = principal {
        if !limits.allows_address(call.address) {
            return Err(Refusal::KeyElsewhere { address: call.address });
        }
        let mut registry = core.records.registry();
        let is_old = registry.key(id).is_some_and(|key| key.is_replaced(&secret_hash(call.key)));
        registry.note_key_use(id, is_old, now);
    }
    Ok(())
}

/// The caller's key as this hub sends it to another of its fleet: with the caller's address, and a proof that one of the
/// fleet saw it. The other hub would else see our address.
pub fn vouched_key(core: &Core, call: &ApiCall<'_>) -> String {
    let seen = format!("{};{}", call.request.key(), call.origin.address);
    let proof = core.code_key.hash(VOUCHED, &seen);
    format!("{seen};{proof}")
}

/// The address that another hub of the fleet vouches for.
pub fn vouched_address(core: &Core, request: &Request) -> Option<IpAddr> {
    let (seen, proof) = request.key().rsplit_once(';')?;
    let is_proved = core.code_key.is_hash(proof, VOUCHED, seen);
    seen.rsplit_once(';')?.1.parse().ok().filter(|_| is_proved)
}

/// The prefix decides where the hash is looked up: among the API keys, or among the share links. The hub's own token
/// has no prefix.
fn principal_of(core: &Core, key: &str, hash: &str, now: Time) -> Option<Principal> {
    let registry = core.records.registry();
    if key.starts_with(API_KEY_PREFIX) {
        let KeyInfo { id, label, role, workspace, limits, .. } =
            registry.key_by_hash(hash, now)?.info.clone();
        return Some(Principal::Key { id, label, role, workspace, limits });
    }
    if key.starts_with(LINK_PREFIX) {
        let share = registry.share_by_link(hash, now)?;
        return Some(Principal::Link {
            share: share.info.id.clone(),
            key: share.key.clone(),
            workspace: share.workspace.clone(),
        });
    }
    (secret::hash(&core.local_token) == hash).then_some(Principal::Local)
}

/// Whether the request carries the hub's own token. Only a process that can read the data folder knows it.
pub fn is_local(core: &Core, request: &Request) -> bool {
    secret::hash(request.key()) == secret::hash(&core.local_token)
}

/// Refuses what the principal's role does not allow.
pub fn allow(principal: &Principal, action: Action) -> Result<(), Refusal> {
    if principal.may(action) {
        return Ok(());
    }
    Err(if principal.may(Action::Enrol) { Refusal::KeyOnlyEnrols } else { Refusal::Role(action) })
}

/// Refuses what the caller's key or link does too often, `from` one network or from anywhere. The hub's own command line
/// is not limited.
pub fn pace(core: &Core, limit: &'static RateLimit, call: &ApiCall<'_>, from: &str) -> Result<(), Refusal> {
    let who = format!("{} {from}", call.principal.id());
    if call.principal == Principal::Local || locked(&core.tries).take(limit, &who, clock::now()) {
        return Ok(());
    }
    // Within a second there are new tokens.
    Err(Refusal::TooManyTries { limit, seconds: 1 })
}

/// A new API key. The prefix is part of what is hashed.
pub fn new_key() -> String {
    format!("{API_KEY_PREFIX}{}", secret::secret())
}

/// The key in a share link, as clients send it and as it is hashed.
pub fn link_key(link_secret: &str) -> String {
    format!("{LINK_PREFIX}{link_secret}")
}
