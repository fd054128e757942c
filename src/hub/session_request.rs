//! Granting a session: by what right it is asked for, and where the agent is.

use super::access;
use super::agent_channels::AgentChannel;
use super::api_call::ApiCall;
use super::api_call::ok;
use super::api_call::spoken_by;
use super::carry;
use super::core::Core;
use super::refusal::Refusal;
use super::sessions::Credential;
use super::sessions::GrantedSession;
use super::share_join;
use crate::http::reply::Reply;
use crate::model::access::Action;
use crate::model::access::Principal;
use crate::model::hub_records::Agent;
use crate::model::hub_records::ChannelId;
use crate::model::service::Service;
use crate::os::secret;
use crate::wire::api::AskSession;
use crate::wire::api::SessionGrant;
use crate::wire::control::ToAgent;

pub fn open_session(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    let asked: AskSession = call.body()?;
    let (service, share) = asked_for(core, call, &asked)?;
    let (id, channel, agent) = match whose(core, &service)? {
        AgentLocation::Here(id, channel, agent) => (id, channel, agent),
        AgentLocation::At(hub) if asked.carry => return carry::ask(core, call, &asked, &service, &hub),
        AgentLocation::At(hub) => {
            return Err(Refusal::AgentAtOtherHub { service: service.name, hub });
        }
    };
    let relay = call.relay_address()?;
    let (session, ticket, agents_ticket) = (secret::id("ses"), secret::secret(), secret::secret());
    let pending = GrantedSession {
        session: session.clone(),
        service: service.id.clone(),
        credential: Credential {
            principal: call.principal.id().to_owned(),
            share,
            agent: channel.key.clone(),
        },
        channel: id,
    };
    if !core.sessions.expect(pending, [&ticket, &agents_ticket], call.now) {
        return Err(Refusal::TooManySessionsWaiting);
    }
    let open = ToAgent::Open {
        session: session.clone(),
        service: service.id.clone(),
        peer: asked.fingerprint,
        ticket: agents_ticket,
        relay: channel.relay.clone(),
        speaks: spoken_by(call.request),
    };
    if !channel.outgoing.send(&open) {
        core.sessions.give_up(&session);
        return Err(Refusal::Offline(Box::new(service)));
    }
    ok(
        200,
        &SessionGrant {
            session,
            ticket,
            relay,
            service: service.id,
            name: service.name,
            target_port: service.target_port,
            protocol: service.protocol,
            agent_id: agent.id,
            agent_label: agent.label,
            agent_fingerprint: agent.fingerprint,
            agent_speaks: channel.speaks,
        },
    )
}

/// The service that is meant, and the share by whose right it is asked for.
fn asked_for(
    core: &Core,
    call: &ApiCall<'_>,
    asked: &AskSession,
) -> Result<(Service, Option<String>), Refusal> {
    if let Some(membership) = &asked.share {
        let (service, share) = share_join::service_of(core, call, &asked.service, membership)?;
        return Ok((service, Some(share)));
    }
    access::allow(&core.audit, &call.principal, Action::Reach)?;
    let registry = core.records.registry();
    let by_id = registry.service(&asked.service).filter(|service| may_see(call, service));
    let named = || registry.service_named(call.workspace(), &asked.service);
    Ok((by_id.or_else(named).cloned().ok_or(Refusal::NoSuchService)?, None))
}

/// Where the agent behind a service is.
enum AgentLocation {
    Here(ChannelId, AgentChannel, Agent),
    At(String),
}

fn whose(core: &Core, service: &Service) -> Result<AgentLocation, Refusal> {
    let (online, agent, me) = {
        let registry = core.records.registry();
        let agent = registry.agent(&service.agent_id).cloned();
        (registry.presence(&service.id).cloned(), agent, registry.me.clone())
    };
    if let Some(online) = &online
        && online.hub != me
    {
        return Ok(AgentLocation::At(online.hub.clone()));
    }
    let here = online.and_then(|online| Some((online.channel, core.channels.find(online.channel)?)));
    here.zip(agent)
        .map(|((id, channel), agent)| AgentLocation::Here(id, channel, agent))
        .ok_or_else(|| Refusal::Offline(Box::new(service.clone())))
}

fn may_see(call: &ApiCall<'_>, service: &Service) -> bool {
    call.principal == Principal::Local || service.workspace == call.workspace()
}
