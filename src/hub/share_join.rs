//! Shares as a joiner sees them.
//!
//! Unknown, expired and revoked codes get the same answer from the same path. Joining gives a token, which
//! sessions are asked for with, so that nobody opens one without being counted.

use super::access::guess_allowed;
use super::access::guess_failed;
use super::api_call::ApiCall;
use super::api_call::no_such_service;
use super::api_call::ok;
use super::shares::not_found;
use crate::http::reply::Reply;
use crate::model::access::Principal;
use crate::model::code::Code;
use crate::model::hub_records::Change;
use crate::model::hub_records::Record;
use crate::model::hub_records::Share;
use crate::model::service::Service;
use crate::os::clock;
use crate::os::secret;
use crate::wire::api::JoinableService;
use crate::wire::api::Membership;
use crate::wire::api::SharePreview;
use crate::wire::api::Status;

pub fn preview(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let share = find(call, call.parts[0])?;
    ok(200, &describe(call, &share, None)?)
}

pub fn join(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let (found, now) = (find(call, call.parts[0])?, clock::now());
    let who = match call.principal.label() {
        "" => call.principal.id(),
        label => label,
    };
    let share = call.core.change(|registry| {
        let share = registry.share(&found.id, now).ok_or_else(not_found)?;
        if !share.has_room() {
            return Err(Reply::error(
                409,
                "This share has been joined as often as it may be",
                "Ask for a new one: connect share",
            ));
        }
        let share = share.clone().joined(who, now);
        Ok((vec![Change::Put(Record::Share(share.clone()))], share))
    })?;
    call.core.audit.say(
        "share.joined",
        &[("share", &share.id), ("who", call.principal.id()), ("address", &call.origin.address.to_string())],
    );
    let number = share.join_count.to_string();
    let token = format!("{number}.{}", secret::sign(&share.join_secret, &number));
    ok(200, &describe(call, &share, Some(token))?)
}

/// The service that a member asks for, and the share that opens it.
pub fn service_of(
    call: &ApiCall<'_>,
    service: &str,
    membership: &Membership,
) -> Result<(Service, String), Reply> {
    let found = look_up(call, &membership.code).filter(|share| has_joined(share, &membership.token));
    let Some(share) = found else {
        // Others' guesses stop nobody who has joined; whoever has not is counted like any guess.
        find(call, &membership.code)?;
        guess_failed(call);
        return Err(Reply::error(403, "This share has not been joined", "Join it first: connect join CODE"));
    };
    let Some(shared) =
        share.services.iter().find(|shared| shared.id == service || shared.name.as_str() == service)
    else {
        call.core.audit_refusal(
            "share.refused",
            &[("who", call.principal.id()), ("share", &share.id), ("why", "service")],
        );
        return Err(no_such_service());
    };
    // A service that is gone for now is offline to the share, not unknown.
    let stored = call.core.registry().service(&shared.id).cloned();
    let service = stored.unwrap_or_else(|| Service {
        id: shared.id.clone(),
        name: shared.name.clone(),
        target_port: shared.target_port,
        protocol: shared.protocol,
        agent_id: share.agent_id.clone(),
        workspace: share.workspace.clone(),
        created_at: share.created_at,
    });
    Ok((service, share.id))
}

/// The live share of this code, for this workspace, and for a link only its own.
fn find(call: &ApiCall<'_>, code: &str) -> Result<Share, Reply> {
    guess_allowed(call)?;
    look_up(call, code).ok_or_else(|| {
        guess_failed(call);
        not_found()
    })
}

/// Whether this token was given to somebody who joined.
fn has_joined(share: &Share, token: &str) -> bool {
    token.split_once('.').is_some_and(|(number, signature)| {
        let counted = number.parse::<u32>().is_ok_and(|number| (1..=share.join_count).contains(&number));
        counted && secret::is_signed(&share.join_secret, number, signature)
    })
}

fn look_up(call: &ApiCall<'_>, code: &str) -> Option<Share> {
    let hash = secret::hash(Code::parse(code).as_ref().map_or("", Code::as_str));
    let share = call.core.registry().share_by_code(&hash, clock::now()).cloned();
    let mine = |share: &Share| match &call.principal {
        Principal::Link { share: own, .. } => share.id == *own,
        Principal::Key { workspace, .. } => share.workspace == *workspace,
        Principal::Local => true,
    };
    share.filter(mine)
}

fn describe(call: &ApiCall<'_>, share: &Share, token: Option<String>) -> Result<SharePreview, Reply> {
    let registry = call.core.registry();
    let agent = registry.agent(&share.agent_id).ok_or_else(not_found)?;
    let services = share.services.iter().map(|shared| JoinableService {
        id: shared.id.clone(),
        name: shared.name.clone(),
        target_port: shared.target_port,
        protocol: shared.protocol,
        status: Status::of(registry.presence(&shared.id).is_some()),
    });
    Ok(SharePreview {
        name: share.name.clone(),
        expires_at: share.expires_at,
        expires_in_seconds: share.expires_at.since(clock::now()).as_secs(),
        agent_id: agent.id.clone(),
        agent_label: agent.label.clone(),
        agent_fingerprint: agent.fingerprint,
        services: services.collect(),
        token,
        hubs: registry.hub_urls(),
    })
}
