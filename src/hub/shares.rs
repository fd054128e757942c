//! Shares as their owner sees them: a code that opens a fixed set of services until it expires. It is stored
//! hashed.

use std::time::Duration;

use super::access::guess_allowed;
use super::access::guess_failed;
use super::access::link_key;
use super::api_call::ApiCall;
use super::api_call::clean_label;
use super::api_call::ok;
use crate::http::reply::Reply;
use crate::model::access::Principal;
use crate::model::access::Role;
use crate::model::code::Code;
use crate::model::fingerprint::Fingerprint;
use crate::model::hub_records::Agent;
use crate::model::hub_records::Change;
use crate::model::hub_records::Record;
use crate::model::hub_records::Share;
use crate::model::hub_records::SharedService;
use crate::model::hub_records::Table;
use crate::model::registry::Registry;
use crate::os::clock;
use crate::os::secret;
use crate::wire::api::MakeShare;
use crate::wire::api::SHARED_SERVICES;
use crate::wire::api::ShareInfo;
use crate::wire::api::ShareMade;

/// Shares in one workspace.
const WORKSPACE_SHARES: usize = 10_000;
const SHARE_LIFETIME_LIMIT: Duration = Duration::from_hours(24 * 365);

pub fn make(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let asked: MakeShare = call.body()?;
    let code = match &asked.code {
        Some(text) => {
            Code::parse(text).map_err(|bad| bad_request(bad.reason(), "Choose 6 to 32 letters and digits"))?
        }
        None => Code::make(|| secret::bytes::<1>()[0]),
    };
    check(&asked)?;
    // That a code is taken says that it exists, so choosing codes is limited like guessing them.
    guess_allowed(call)?;
    let link_secret = asked.link.then(secret::secret);
    let made = call.core.change(|registry| {
        let (share, fingerprint) = new_share(call, registry, &asked, &code, link_secret.as_deref())?;
        Ok((vec![Change::Put(Record::Share(share.clone()))], (share, fingerprint)))
    });
    let (share, fingerprint) = made.inspect_err(|reply| {
        if *reply == taken() {
            guess_failed(call);
        }
    })?;
    call.core.audit.say("share.made", &[("share", &share.id), ("by", call.principal.id())]);
    ok(
        201,
        &ShareMade {
            id: share.id,
            code: code.as_str().to_owned(),
            secret: link_secret,
            expires_at: share.expires_at,
            agent_fingerprint: fingerprint,
            services: share.services,
        },
    )
}

/// What can be said of the request without looking at what there is.
fn check(asked: &MakeShare) -> Result<(), Reply> {
    let life = Duration::from_secs(asked.expires_in_seconds);
    if asked.services.is_empty() || asked.services.len() > SHARED_SERVICES {
        let hint = "Expose something first: connect expose NAME PORT";
        Err(bad_request("A share has 1 to 100 services", hint))
    } else if life.is_zero() || life > SHARE_LIFETIME_LIMIT {
        Err(bad_request("A share lives between a second and a year", "Try --expires 24h"))
    } else if asked.max_joins == Some(0) {
        let hint = "Leave --max-joins out, or give 1 or more";
        Err(bad_request("A share that nobody may join is of no use", hint))
    } else {
        Ok(())
    }
}

fn new_share(
    call: &ApiCall<'_>,
    registry: &Registry,
    asked: &MakeShare,
    code: &Code,
    link_secret: Option<&str>,
) -> Result<(Share, Fingerprint), Reply> {
    let now = clock::now();
    if registry.share_by_code(&secret::hash(code.as_str()), now).is_some() {
        return Err(taken());
    }
    if registry.shares(call.workspace()).count() >= WORKSPACE_SHARES {
        let what = "There are too many shares in this workspace";
        return Err(Reply::error(409, what, "Revoke some: connect share list"));
    }
    let mine = |agent: &&Agent| agent.workspace == call.workspace() && may_share_for(call, &agent.key);
    let agent = registry.agent(&asked.agent).filter(mine).ok_or_else(|| {
        let hint = "Share from the machine that exposes the services";
        Reply::error(403, "This agent belongs to another key", hint)
    })?;
    let share = Share {
        id: secret::id("shr"),
        code_hash: secret::hash(code.as_str()),
        link_hash: link_secret.map(|secret| secret::hash(&link_key(secret))),
        join_secret: secret::secret(),
        name: clean_label(&asked.name),
        workspace: call.workspace().to_owned(),
        key: call.principal.id().to_owned(),
        agent_id: agent.id.clone(),
        services: chosen(registry, asked, &agent.id)?,
        created_at: now,
        expires_at: now.plus(Duration::from_secs(asked.expires_in_seconds)),
        max_joins: asked.max_joins,
        join_count: 0,
        joins: Vec::new(),
    };
    Ok((share, agent.fingerprint))
}

fn taken() -> Reply {
    Reply::error(
        409,
        "This code is taken",
        "Choose another with --code. If it is your own, left by a share that crashed: connect share revoke CODE",
    )
}

fn bad_request(what: &str, hint: &str) -> Reply {
    Reply::error(400, what, hint)
}

fn may_share_for(call: &ApiCall<'_>, key: &str) -> bool {
    match &call.principal {
        Principal::Key { id, role, .. } => id == key || *role == Role::Admin,
        Principal::Link { .. } => false,
        Principal::Local => true,
    }
}

fn chosen(registry: &Registry, asked: &MakeShare, agent: &str) -> Result<Vec<SharedService>, Reply> {
    let chosen = asked.services.iter().map(|name| {
        let mut services = registry.services_of(agent);
        let service = services.find(|service| service.name == *name);
        let service = service.ok_or_else(|| {
            Reply::error(
                404,
                &format!("This agent does not expose {name}"),
                &format!("Expose it first: connect expose {name} PORT"),
            )
        })?;
        Ok(SharedService {
            id: service.id.clone(),
            name: service.name.clone(),
            target_port: service.target_port,
            protocol: service.protocol,
        })
    });
    chosen.collect()
}

pub fn list(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let registry = call.core.registry();
    let now = clock::now();
    let visible = registry
        .shares(call.workspace())
        .filter(|share| registry.share_is_live(share, now) && may_share_for(call, &share.key));
    let mut shares: Vec<ShareInfo> = visible.map(info).collect();
    drop(registry);
    shares.sort_by_key(|share| share.created_at);
    ok(200, &shares)
}

fn info(share: &Share) -> ShareInfo {
    ShareInfo {
        id: share.id.clone(),
        name: share.name.clone(),
        services: share.services.clone(),
        created_at: share.created_at,
        expires_at: share.expires_at,
        max_joins: share.max_joins,
        join_count: share.join_count,
        joins: share.joins.clone(),
    }
}

/// By its code or, since the list does not show codes, by its id.
pub fn revoke(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let now = clock::now();
    let revoked = call.core.change(|registry| {
        let by_code = Code::parse(call.parts[0])
            .ok()
            .and_then(|code| registry.share_by_code(&secret::hash(code.as_str()), now));
        let share = by_code.or_else(|| registry.share(call.parts[0], now));
        let share = share
            .filter(|share| share.workspace == call.workspace() && may_share_for(call, &share.key))
            .ok_or_else(not_found)?;
        Ok((vec![Change::drop(Table::Share, &share.id)], share.id.clone()))
    });
    let id = match revoked {
        Ok(id) => id,
        Err(reply) if reply.status == 404 => {
            guess_allowed(call)?;
            guess_failed(call);
            return Err(reply);
        }
        Err(reply) => return Err(reply),
    };
    call.core.audit.say("share.revoked", &[("share", &id), ("by", call.principal.id())]);
    call.core.cut_dead();
    Ok(Reply::empty(204))
}

pub fn not_found() -> Reply {
    Reply::error(404, "Share not found or expired", "Check the code and try again.")
}
