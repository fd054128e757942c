//! Shares as a joiner sees them.
//!
//! Unknown, expired and revoked codes get the same answer on the same path, so an answer does not reveal whether a code
//! ever existed. Joining gives a token, which sessions require: nobody opens one without being counted.

use super::access;
use super::api_call::ApiCall;
use super::api_call::ok;
use super::core::Core;
use super::refusal::Refusal;
use crate::http::reply::Reply;
use crate::model::access::Principal;
use crate::model::code::Code;
use crate::model::hub_records::Change;
use crate::model::hub_records::Record;
use crate::model::hub_records::Share;
use crate::model::limiter::network_of;
use crate::model::registry::Registry;
use crate::model::service::Service;
use crate::os::secret;
use crate::wire::api::Membership;
use crate::wire::api::Status;
use crate::wire::share_api::JoinableService;
use crate::wire::share_api::ShareCode;
use crate::wire::share_api::SharePreview;

pub fn preview(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    let hash = hash_of(core, call, &call.body::<ShareCode>()?.code);
    let registry = core.records.registry();
    let share = find(call, &registry, &hash)?;
    ok(200, &describe(call, &registry, share, None)?)
}

/// Joins a share. One change checks that the share has room and counts the join; then the token is issued.
pub fn join(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    let hash = hash_of(core, call, &call.body::<ShareCode>()?.code);
    // A wrong code counts at once, however long the store's lock is held.
    find(call, &core.records.registry(), &hash)?;
    access::pace(core, &access::JOINS, call, &network_of(call.origin.address).to_string())?;
    let who = match call.principal.label() {
        "" => call.principal.id(),
        label => label,
    };
    let share = core.records.change(|registry| {
        let mut share = find(call, registry, &hash)?.clone();
        if !share.info.has_room() {
            return Err(Refusal::ShareFull);
        }
        share.info.add_join(who, call.now);
        Ok((vec![Change::Put(Record::Share(share.clone()))], share))
    })?;
    core.audit.say("share.joined", call.actor(), &[("agent", &share.agent_id), ("share", &share.info.id)]);
    // The number says which join this was. The signature proves that the hub counted it.
    let number = share.info.join_count.to_string();
    let token = format!("{number}.{}", secret::sign(&share.join_secret, &number));
    ok(200, &describe(call, &core.records.registry(), &share, Some(token))?)
}

/// The share that a joiner has joined.
pub fn joined<'r>(
    core: &Core,
    call: &ApiCall<'_>,
    registry: &'r Registry,
    membership: &Membership,
) -> Result<&'r Share, Refusal> {
    let share = find(call, registry, &hash_of(core, call, &membership.code))?;
    if has_joined(share, &membership.token) { Ok(share) } else { Err(Refusal::ShareNotJoined) }
}

/// The hash of a code in the caller's workspace, so a caller finds only the shares of its own. Text that cannot be a code
/// is hashed as well, so that it takes the same time.
fn hash_of(core: &Core, call: &ApiCall<'_>, code: &str) -> String {
    core.code_key.hash(call.workspace(), Code::parse(code).as_ref().map_or("", Code::as_str))
}

/// The live share whose code has this hash. A link finds only its own.
fn find<'r>(call: &ApiCall<'_>, registry: &'r Registry, hash: &str) -> Result<&'r Share, Refusal> {
    let share = registry.share_by_code(hash, call.now).filter(|share| match &call.principal {
        Principal::Link { share: own, .. } => share.info.id == *own,
        Principal::Key { .. } | Principal::Local => true,
    });
    let is_hidden = |share: &&Share| {
        visible(call, registry, share).next().is_none() && registry.services_in(share).next().is_some()
    };
    share.filter(|share| !is_hidden(share)).ok_or(Refusal::ShareNotFound)
}

/// What the share opens to this caller: within the limits of its key.
pub fn visible<'r>(
    call: &ApiCall<'_>,
    registry: &'r Registry,
    share: &Share,
) -> impl Iterator<Item = &'r Service> {
    registry.services_in(share).filter(|service| call.principal.may_use(&service.name))
}

/// Whether this hub issued the token for one of the share's joins.
fn has_joined(share: &Share, token: &str) -> bool {
    let Some((number, signature)) = token.split_once('.') else { return false };
    let is_counted = number.parse::<u32>().is_ok_and(|number| (1..=share.info.join_count).contains(&number));
    is_counted && secret::is_signed(&share.join_secret, number, signature)
}

fn describe(
    call: &ApiCall<'_>,
    registry: &Registry,
    share: &Share,
    token: Option<String>,
) -> Result<SharePreview, Refusal> {
    let agent = registry.agent(&share.agent_id).ok_or(Refusal::ShareNotFound)?;
    let services = visible(call, registry, share).map(|service| JoinableService {
        service: service.shared(),
        status: Status::of(registry.presence(&service.id).is_some()),
    });
    Ok(SharePreview {
        name: share.info.name.clone(),
        expires_at: share.info.expires_at,
        expires_in_seconds: share.info.expires_at.since(call.now).as_secs(),
        agent_id: agent.id.clone(),
        agent_label: agent.label.clone(),
        agent_fingerprint: agent.fingerprint,
        agent_chain: agent.chain.clone(),
        services: services.collect(),
        token,
        hubs: registry.hub_urls(),
    })
}
