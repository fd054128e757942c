//! Shares as their owner sees them: a code that opens a fixed set of services until it expires. The hub keeps
//! only the code's hash.

use std::time::Duration;

use super::access::link_key;
use super::api_call::ApiCall;
use super::api_call::clean_label;
use super::api_call::ok;
use super::api_call::page;
use super::core::Core;
use super::records::Records;
use super::refusal::Refusal;
use crate::http::reply::Reply;
use crate::model::access::Principal;
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
use crate::wire::share_api::MakeShare;
use crate::wire::share_api::NewShare;
use crate::wire::share_api::OwnShare;
use crate::wire::share_api::SHARED_SERVICES;
use crate::wire::share_api::ShareCode;

/// Shares of one workspace and of one key, in bytes; the registry keeps all of them in memory. A key has room for 1900
/// shares of one service, or for 280 of a hundred.
const WORKSPACE_SHARES: usize = 16 * 1024 * 1024;
const KEY_SHARES: usize = 1024 * 1024;
const SHARE_LIFETIME_LIMIT: Duration = Duration::from_hours(24 * 365);

/// The ID of a share for which its agent registers services before it is made. `word` is the agent's own word for it.
pub fn id_of(call: &ApiCall<'_>, agent: &str, word: &str) -> String {
    secret::derived_id("shr", &[call.workspace(), agent, word])
}

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
    let own_id = order.own.as_ref().map(|word| id_of(call, &order.agent, word));
    // Everything but the services, which depend on the registry. The code itself is stored nowhere.
    let draft = Share {
        code_hash: core.code_key.hash(call.workspace(), code.as_str()),
        link_hash: link_secret.as_ref().map(|secret| secret::hash(&link_key(secret))),
        join_secret: secret::secret(),
        workspace: call.workspace().to_owned(),
        key: call.principal.id().to_owned(),
        agent_id: order.agent,
        services: Vec::new(),
        info: ShareInfo {
            id: own_id.unwrap_or_else(|| secret::id("shr")),
            name: clean_label(&order.name),
            created_at: call.now,
            expires_at: call.now.plus(Duration::from_secs(order.expires_in_seconds)),
            max_joins: order.max_joins,
            max_sessions: order.max_sessions,
            join_count: 0,
            joins: Vec::new(),
        },
    };
    let made = core.records.change(|registry| {
        let agent = agent_of(&draft, registry, call)?;
        let chosen = chosen_services(registry, &draft, &order.services, &call.principal)?;
        let services = chosen.iter().map(|service| service.id.clone()).collect();
        let share = Share { services, ..draft.clone() };
        check_room(registry, &share)?;
        let made = NewShare {
            id: share.info.id.clone(),
            code: code.as_str().to_owned(),
            secret: link_secret.clone(),
            expires_at: share.info.expires_at,
            agent_fingerprint: agent.fingerprint,
            services: chosen,
        };
        Ok((vec![Change::Put(Record::Share(share))], made))
    })?;
    let names: Vec<&str> = made.services.iter().map(|service| service.name.as_str()).collect();
    let details = [("agent", draft.agent_id.as_str()), ("share", &made.id), ("services", &names.join(","))];
    core.audit.say("share.made", call.actor(), &details);
    ok(201, &made)
}

/// The checks that need only the request.
fn check(order: &MakeShare) -> Result<(), Refusal> {
    let lifetime = Duration::from_secs(order.expires_in_seconds);
    if order.services.is_empty() || order.services.len() > SHARED_SERVICES {
        Err(Refusal::BadShareServices)
    } else if lifetime.is_zero() || lifetime > SHARE_LIFETIME_LIMIT {
        Err(Refusal::BadShareLifetime)
    } else if order.max_joins == Some(0) || order.max_sessions == Some(0) {
        Err(Refusal::BadShareJoins)
    } else {
        Ok(())
    }
}

/// The agent whose services the new share opens, if the caller may share them.
fn agent_of<'r>(draft: &Share, registry: &'r Registry, call: &ApiCall<'_>) -> Result<&'r Agent, Refusal> {
    let has_been_made = registry.any_share(&draft.info.id).is_some();
    if has_been_made || registry.share_by_code(&draft.code_hash, call.now).is_some() {
        return Err(Refusal::ShareCodeTaken);
    }
    let agent = registry.agent(&draft.agent_id).filter(|agent| agent.workspace == call.workspace());
    agent.filter(|agent| call.may_change(&agent.key)).ok_or(Refusal::AgentNotYours)
}

fn check_room(registry: &Registry, share: &Share) -> Result<(), Refusal> {
    let bytes = |is_counted: &dyn Fn(&Share) -> bool| {
        registry.shares().filter(|other| is_counted(other)).map(Share::bytes).sum::<usize>() + share.bytes()
    };
    if bytes(&|other| other.key == share.key) > KEY_SHARES {
        Err(Refusal::TooManyShares { of: "this key" })
    } else if bytes(&|other| other.workspace == share.workspace) > WORKSPACE_SHARES {
        Err(Refusal::TooManyShares { of: "this workspace" })
    } else {
        Ok(())
    }
}

/// The services of these names that the agent exposes: those that it registered for this share, and those of the workspace.
fn chosen_services(
    registry: &Registry,
    draft: &Share,
    names: &[Name],
    principal: &Principal,
) -> Result<Vec<SharedService>, Refusal> {
    let chosen = names.iter().map(|name| {
        let named = |share: Option<&str>| {
            registry.services_of(&draft.agent_id).find(|service| {
                !service.withdrawn && service.name == *name && service.share.as_deref() == share
            })
        };
        let service = named(Some(&draft.info.id)).or_else(|| named(None));
        let service = service.filter(|service| principal.may_use(&service.name));
        service.map(Service::shared).ok_or_else(|| Refusal::NotExposed(name.clone()))
    });
    chosen.collect()
}

pub fn list(call: &ApiCall<'_>, records: &Records) -> Result<Reply, Refusal> {
    let registry = records.registry();
    let own = registry.shares().filter(|share| {
        share.workspace == call.workspace()
            && call.may_change(&share.key)
            && registry.share_is_live(share, call.now)
    });
    let shown = |share| {
        let services = registry.services_in(share).map(Service::shared).collect();
        OwnShare { info: share.info.clone(), services }
    };
    page(call, own, |share| &share.info.id, shown)
}

/// Revokes a share by its code or, since the list does not show codes, by its ID or its name. A code comes first, so that
/// nobody protects a share by giving its code to another as a name.
pub fn revoke(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    let given = call.body::<ShareCode>()?.code;
    let hash = Code::parse(&given).map(|code| core.code_key.hash(call.workspace(), code.as_str()));
    let id = core.records.change(|registry| {
        let is_own = |share: &&Share| share.workspace == call.workspace() && call.may_change(&share.key);
        let by_code = hash.as_ref().ok().and_then(|hash| registry.share_by_code(hash, call.now));
        let by_id = || registry.share(&given.to_ascii_lowercase(), call.now);
        let named = registry
            .shares()
            .filter(is_own)
            .filter(|share| share.info.name == given && registry.share_is_live(share, call.now));
        let named: Vec<&Share> = named.collect();
        let id = match (by_code.or_else(by_id).filter(is_own), named.as_slice()) {
            (Some(one), _) | (None, &[one]) => one.info.id.clone(),
            (None, []) => return Err(Refusal::ShareNotFound),
            (None, _) => return Err(Refusal::ShareNameUnclear(named.len())),
        };
        let services =
            registry.services_of_share(&id).map(|service| Change::drop(Table::Service, &service.id));
        Ok((services.chain([Change::drop(Table::Share, &id)]).collect(), id))
    })?;
    core.cut_dead();
    core.audit.say("share.revoked", call.actor(), &[("share", &id)]);
    Ok(Reply::empty(204))
}
