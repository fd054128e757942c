//! Who is asking. Every refusal looks the same and costs the same, whatever was wrong with the key.

use std::net::IpAddr;

use super::api_call::ApiCall;
use super::core::CODES;
use super::core::Core;
use super::core::LOGINS;
use crate::http::message::Request;
use crate::http::reply::Reply;
use crate::model::access::Action;
use crate::model::access::Principal;
use crate::model::limiter::network_of;
use crate::os::clock;
use crate::os::secret;

/// Share links carry secrets of this kind in the place of a key.
const LINK_PREFIX: &str = "pl_";
const KEY_PREFIX: &str = "pc_";
/// Longer than any key of ours.
const KEY_LENGTH_LIMIT: usize = 256;

/// Believes the key, or says why not.
pub fn authenticate(core: &Core, given: &str, address: IpAddr) -> Result<Principal, Reply> {
    if given.is_empty() {
        let reply = Reply::error(
            401,
            "An API key is needed",
            "Send it as x-api-key; make one with: connect hub key create",
        );
        core.refused("no-key");
        return Err(reply);
    }
    let hash =
        secret::hash(given.get(..KEY_LENGTH_LIMIT).unwrap_or(given).split('.').next().unwrap_or_default());
    // A good key is let in whatever others did from its address: a machine that repeats a revoked key must
    // not lock out its neighbours, and nobody guesses 128 bits within a limit or without one.
    if let Some(principal) = believe(core, given, &hash) {
        return Ok(principal);
    }
    let (now, who) = (clock::now(), [network_of(address).to_string(), hash[..16].to_owned()]);
    if let Some(seconds) = core.blocked(&LOGINS, &who, now) {
        core.refused("too-many-logins");
        return Err(too_many(seconds));
    }
    core.failed(&LOGINS, &who, now);
    core.refused("bad-key");
    core.audit.say("key.refused", &[("address", &who[0])]);
    Err(Reply::error(
        401,
        "This API key is not valid here",
        "It may be revoked or expired; ask for a new one: connect hub key create",
    ))
}

fn believe(core: &Core, given: &str, hash: &str) -> Option<Principal> {
    let now = clock::now();
    let registry = core.registry();
    if given.starts_with(KEY_PREFIX) {
        let key = registry.key_by_hash(hash, now)?;
        return Some(Principal::Key {
            id: key.id.clone(),
            label: key.label.clone(),
            role: key.role,
            workspace: key.workspace.clone(),
        });
    }
    if given.starts_with(LINK_PREFIX) {
        let share = registry.share_by_link(hash, now)?;
        return Some(Principal::Link { share: share.id.clone(), workspace: share.workspace.clone() });
    }
    (secret::hash(&core.local_token) == hash).then_some(Principal::Local)
}

/// Whether it comes from the hub's own machine, by whoever reads its data folder.
pub fn is_local(core: &Core, request: &Request) -> bool {
    secret::hash(request.key()) == secret::hash(&core.local_token)
}

pub fn allow(core: &Core, principal: &Principal, action: Action) -> Result<(), Reply> {
    if principal.may(action) {
        return Ok(());
    }
    core.refused("role");
    core.audit_refusal("role.refused", &[("who", principal.id()), ("action", &format!("{action:?}"))]);
    let hint = match action {
        Action::Administer => "Ask for a key with --role admin",
        _ => "Ask for a key with --role member",
    };
    Err(Reply::error(403, "This key may not do that", hint))
}

pub fn too_many(seconds: u64) -> Reply {
    let hint = format!("Try again in {seconds} seconds");
    Reply::error(429, "Too many failed tries", &hint).field("retry-after", seconds.to_string())
}

/// What to hash for a new key or link; the prefix is part of it.
pub fn new_key() -> String {
    format!("{KEY_PREFIX}{}", secret::secret())
}

pub fn link_key(link_secret: &str) -> String {
    format!("{LINK_PREFIX}{link_secret}")
}

/// Says when there were too many wrong share codes before.
pub fn guess_allowed(call: &ApiCall<'_>) -> Result<(), Reply> {
    call.core.blocked(&CODES, &guess_keys(call), clock::now()).map_or(Ok(()), |seconds| {
        call.core.refused("too-many-codes");
        Err(too_many(seconds))
    })
}

/// Counts a wrong share code and audits it.
pub fn guess_failed(call: &ApiCall<'_>) {
    call.core.failed(&CODES, &guess_keys(call), clock::now());
    call.core.refused("share");
    call.core
        .audit
        .say("share.refused", &[("who", call.principal.id()), ("address", &call.origin.address.to_string())]);
}

fn guess_keys(call: &ApiCall<'_>) -> [String; 2] {
    [call.principal.id().to_owned(), network_of(call.origin.address).to_string()]
}
