//! Shares as their owner sees them: a code that opens a fixed set of services until it expires. The hub keeps
//! only the code's hash.

use std::time::Duration;

use super::access::link_key;
use super::api_call::ApiCall;
use super::api_call::clean_label;
use super::api_call::ok;
use super::core::Core;
use super::records::Records;
use super::refusal::Refusal;
use crate::http::reply::Reply;
use crate::model::code::Code;
use crate::model::hub_records::Agent;
use crate::model::hub_records::Change;
use crate::model::hub_records::Record;
use crate::model::hub_records::Share;
use crate::model::hub_records::ShareInfo;
use crate::model::hub_records::Table;
use crate::model::name::Name;
use crate::model::registry::Registry;
use crate::model::service::Service;
use crate::model::service::SharedService;
use crate::os::secret;
use crate::wire::api::MakeShare;
use crate::wire::api::NewShare;
use crate::wire::api::SHARED_SERVICES;
use crate::wire::api::ShareCode;

/// Shares in one workspace; the registry keeps all of them in memory.
const WORKSPACE_SHARES: usize = 10_000;
const SHARE_LIFETIME_LIMIT: Duration = Duration::from_hours(24 * 365);

/// Makes a share. First comes what needs only the request: its checks, the code and the secrets. Whether the code is free,
/// the agent is the caller's and the services are exposed is decided inside the change.
pub fn make(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    let order: MakeShare = call.body()?;
    check(&order)?;
    let code = match &order.code {
        Some(text) => Code::parse(text).map_err(|bad| Refusal::BadShareCode { why: bad.reason() })?,
        None => Code::make(|| secret::bytes::<1>()[0]),
    };
    let link_secret = order.link.then(secret::secret);
    // Everything but the services, which depend on the registry. The code itself is stored nowhere.
    let draft = Share {
        code_hash: core.code_key.hash(call.workspace(), code.as_str()),
        link_hash: link_secret.as_ref().map(|secret| secret::hash(&link_key(secret))),
        join_secret: secret::secret(),
        workspace: call.workspace().to_owned(),
        key: call.principal.id().to_owned(),
        agent_id: order.agent,
        info: ShareInfo {
            id: secret::id("shr"),
            name: clean_label(&order.name),
            services: Vec::new(),
            created_at: call.now,
            expires_at: call.now.plus(Duration::from_secs(order.expires_in_seconds)),
            max_joins: order.max_joins,
            join_count: 0,
            joins: Vec::new(),
        },
    };
    let (info, agent_fingerprint) = core.records.change(|registry| {
        let agent = agent_of(&draft, registry, call)?;
        let mut share = draft.clone();
        share.info.services = chosen_services(registry, &agent.id, &order.services)?;
        let info = share.info.clone();
        Ok((vec![Change::Put(Record::Share(share))], (info, agent.fingerprint)))
    })?;
    core.audit.say("share.made", &[("share", &info.id), ("by", call.principal.id())]);
    let made = NewShare {
        id: info.id,
        code: code.as_str().to_owned(),
        secret: link_secret,
        expires_at: info.expires_at,
        agent_fingerprint,
        services: info.services,
    };
    ok(201, &made)
}

/// The checks that need only the request.
fn check(order: &MakeShare) -> Result<(), Refusal> {
    let lifetime = Duration::from_secs(order.expires_in_seconds);
    if order.services.is_empty() || order.services.len() > SHARED_SERVICES {
        Err(Refusal::BadShareServices)
    } else if lifetime.is_zero() || lifetime > SHARE_LIFETIME_LIMIT {
        Err(Refusal::BadShareLifetime)
    } else if order.max_joins == Some(0) {
        Err(Refusal::BadShareJoins)
    } else {
        Ok(())
    }
}

/// The agent whose services the new share opens, if the caller may share them and there is room for the share.
fn agent_of<'r>(draft: &Share, registry: &'r Registry, call: &ApiCall<'_>) -> Result<&'r Agent, Refusal> {
    if registry.share_by_code(&draft.code_hash, call.now).is_some() {
        return Err(Refusal::ShareCodeTaken);
    }
    if registry.shares(call.workspace()).count() >= WORKSPACE_SHARES {
        return Err(Refusal::TooManyShares);
    }
    let agent = registry.agent(&draft.agent_id).filter(|agent| agent.workspace == call.workspace());
    agent.filter(|agent| call.may_change(&agent.key)).ok_or(Refusal::AgentNotYours)
}

fn chosen_services(
    registry: &Registry,
    agent_id: &str,
    names: &[Name],
) -> Result<Vec<SharedService>, Refusal> {
    let chosen = names.iter().map(|name| {
        let service = registry.services_of(agent_id).find(|service| service.name == *name);
        service.map(Service::shared).ok_or_else(|| Refusal::NotExposed(name.clone()))
    });
    chosen.collect()
}

pub fn list(call: &ApiCall<'_>, records: &Records) -> Result<Reply, Refusal> {
    let registry = records.registry();
    let visible = registry
        .shares(call.workspace())
        .filter(|share| registry.share_is_live(share, call.now) && call.may_change(&share.key));
    let mut shares: Vec<ShareInfo> = visible.map(|share| share.info.clone()).collect();
    drop(registry);
    shares.sort_by_key(|share| share.created_at);
    ok(200, &shares)
}

/// Revokes a share by its code or, since the list does not show codes, by its ID.
pub fn revoke(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    let name = call.body::<ShareCode>()?.code;
    let hash = Code::parse(&name).map(|code| core.code_key.hash(call.workspace(), code.as_str()));
    let id = core.records.change(|registry| {
        let by_code = hash.as_ref().ok().and_then(|hash| registry.share_by_code(hash, call.now));
        let share = by_code.or_else(|| registry.share(&name, call.now));
        let own = share.filter(|share| share.workspace == call.workspace() && call.may_change(&share.key));
        let id = &own.ok_or(Refusal::ShareNotFound)?.info.id;
        Ok((vec![Change::drop(Table::Share, id)], id.clone()))
    })?;
    core.cut_dead();
    core.audit.say("share.revoked", &[("share", &id), ("by", call.principal.id())]);
    Ok(Reply::empty(204))
}
