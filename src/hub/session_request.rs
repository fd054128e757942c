//! `POST /v1/sessions`: by what right a session is asked for, where its agent is, and what both sides are told.

use serde_json::json;

use super::access;
use super::agent_channels::AgentChannel;
use super::api_call::ApiCall;
use super::api_call::clean_label;
use super::api_call::ok;
use super::carry;
use super::core::Core;
use super::refusal::Refusal;
use super::share_join;
use crate::http::reply::Reply;
use crate::model::access::Action;
use crate::model::hub_records::Agent;
use crate::model::hub_records::ChannelId;
use crate::model::hub_session::AgentSide;
use crate::model::hub_session::HubSession;
use crate::model::hub_session::RemoteSession;
use crate::model::service::Service;
use crate::model::sessions::SessionOutcome;
use crate::model::sessions::SessionSide;
use crate::os::secret;
use crate::wire::api::AskSession;
use crate::wire::api::RelayTicket;
use crate::wire::api::SessionGrant;
use crate::wire::control::SessionOffer;
use crate::wire::control::ToAgent;

/// What a caller asks for, as far as it is known.
struct SessionRequest {
    ask: AskSession,
    /// The service's name, and its agent's id.
    service: String,
    agent: String,
    /// The share by whose right it asks.
    share: Option<String>,
    path: &'static str,
}

pub fn open_session(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    let ask: AskSession = call.body()?;
    let path = if ask.direct { "direct" } else { "relay" };
    let service = clean_label(&ask.service);
    let mut request = SessionRequest { ask, service, agent: String::new(), share: None, path };
    let opened = try_open(core, call, &mut request);
    // A caller that has to ask another hub is not refused.
    if let Err(refusal) = &opened
        && !matches!(refusal, Refusal::AgentAtOtherHub { .. })
    {
        let details = [
            ("agent", request.agent.as_str()),
            ("service", &request.service),
            ("share", request.share.as_deref().unwrap_or_default()),
            ("path", request.path),
            ("reason", refusal.code()),
        ];
        core.audit.say("session.refused", call.actor(), &details);
    }
    opened
}

fn try_open(core: &Core, call: &ApiCall<'_>, request: &mut SessionRequest) -> Result<Reply, Refusal> {
    if core.readiness.drain().is_some() {
        return Err(Refusal::Draining);
    }
    let service = asked_for(core, call, request)?;
    (request.service, request.agent) = (service.name.to_string(), service.agent_id.clone());
    match agent_of(core, &service)? {
        AgentLocation::Here(agent) => open_here(core, call, request, service, agent),
        AgentLocation::At(hub) if request.ask.carry => {
            request.path = "fleet";
            open_elsewhere(core, call, &request.ask, &service, hub)
        }
        AgentLocation::At(hub) => Err(Refusal::AgentAtOtherHub { service: service.name, hub }),
    }
}

/// Why a session has not come about, for the caller that asked for it. The relay does not say it: in the clear its joiner
/// believes nothing.
pub fn session_state(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    let id = call.parts[0];
    let outcome = core.sessions.table().outcome(id, call.principal.id());
    let declined = match outcome {
        SessionOutcome::Declined(reason) => Some(reason),
        SessionOutcome::Elsewhere(remote) => carry::declined(core, call, &remote, id),
        SessionOutcome::Unknown => None,
    };
    ok(200, &json!({ "declined": declined }))
}

/// Tells the agent, and gives the joiner its ticket.
fn open_here(
    core: &Core,
    call: &ApiCall<'_>,
    request: &SessionRequest,
    service: Service,
    here: AgentHere,
) -> Result<Reply, Refusal> {
    let SessionRequest { ask, share, .. } = request;
    let AgentHere { agent, channel_id, channel } = here;
    let id = secret::id("ses");
    let is_direct = ask.direct;
    if is_direct && core.settings.no_direct {
        return Err(Refusal::DirectForbidden);
    }
    let ticket_at = |relay: String| RelayTicket { ticket: secret::secret(), relay };
    let (joiners, agents) = if is_direct {
        (None, None)
    } else {
        (Some(ticket_at(call.relay_address()?)), Some(ticket_at(channel.relay.clone())))
    };
    let max_of_share = share.as_ref().and_then(|share| {
        core.records.registry().share(share, call.now).and_then(|share| share.info.max_sessions)
    });
    let session = HubSession {
        id: id.clone(),
        service: service.name.to_string(),
        agent_id: agent.id.clone(),
        caller: call.principal.clone(),
        address: call.origin.address,
        peer: ask.fingerprint,
        share: share.clone(),
        max_of_share,
        agent: AgentSide::Here { channel: channel_id, key: channel.key.clone() },
        tls: String::new(),
        is_direct,
    };
    let sides = [(SessionSide::Joiner, &joiners), (SessionSide::Agent, &agents)];
    let tickets = sides.iter().filter_map(|(side, own)| Some((*side, own.as_ref()?.ticket.as_str())));
    grant(core, call, session, &tickets.collect::<Vec<_>>())?;
    let open = ToAgent::Open(SessionOffer {
        session: id.clone(),
        service: service.id.clone(),
        principal: secret::derived_id("who", &[&agent.id, call.principal.liable_key()]),
        peer: ask.fingerprint,
        agent: agent.fingerprint,
        relay: agents,
    });
    if !channel.outgoing.send(&open) {
        core.sessions.table().remove(&id);
        return Err(Refusal::Offline(Box::new(service)));
    }
    ok(
        200,
        &SessionGrant {
            session: id,
            relay: joiners,
            service: service.id,
            name: service.name,
            target_port: service.target_port,
            protocol: service.protocol,
            agent_id: agent.id,
            agent_label: agent.label,
            agent_fingerprint: agent.fingerprint,
            agent_chain: agent.chain,
        },
    )
}

/// Asks the agent's hub, and gives the joiner a ticket of this one: it will carry the bytes.
fn open_elsewhere(
    core: &Core,
    call: &ApiCall<'_>,
    ask: &AskSession,
    service: &Service,
    hub: String,
) -> Result<Reply, Refusal> {
    let granted = carry::ask_session(core, call, ask, service, &hub)?;
    let RelayTicket { ticket, relay } = granted.relay.clone().ok_or(Refusal::OtherHubAway)?;
    let remote = RemoteSession { hub, relay, ticket };
    let near = RelayTicket { ticket: secret::secret(), relay: call.relay_address()? };
    let session = HubSession {
        id: granted.session.clone(),
        service: granted.name.to_string(),
        agent_id: granted.agent_id.clone(),
        caller: call.principal.clone(),
        address: call.origin.address,
        peer: ask.fingerprint,
        // The other hub ends the session with its share, and audits it.
        share: None,
        max_of_share: None,
        agent: AgentSide::Elsewhere(remote.clone()),
        tls: String::new(),
        is_direct: false,
    };
    core.audit.say_session("session.carried", &session, &[("to", &remote.hub)]);
    grant(core, call, session, &[(SessionSide::Joiner, &near.ticket)])?;
    ok(200, &SessionGrant { relay: Some(near), ..granted })
}

fn grant(
    core: &Core,
    call: &ApiCall<'_>,
    session: HubSession,
    tickets: &[(SessionSide, &str)],
) -> Result<(), Refusal> {
    let granted = core.sessions.table().grant(session, tickets, call.now);
    granted.map_err(|whose| Refusal::TooManySessions { whose })
}

/// The service that is meant. Notes the share by whose right it is asked for.
fn asked_for(core: &Core, call: &ApiCall<'_>, request: &mut SessionRequest) -> Result<Service, Refusal> {
    let registry = core.records.registry();
    let asked = &request.ask;
    if let Some(membership) = &asked.share {
        let share = share_join::joined(core, call, &registry, membership)?;
        request.share = Some(share.info.id.clone());
        let is_meant = |one: &&Service| one.id == asked.service || one.name.as_str() == asked.service;
        let service = share_join::visible(call, &registry, share).find(is_meant);
        return service.cloned().ok_or(Refusal::NoSuchService);
    }
    access::allow(&call.principal, Action::Reach)?;
    // A share's own service takes a share to reach it.
    let is_open = |service: &&Service| call.sees_service(service) && service.share.is_none();
    let by_id = registry.service(&asked.service).filter(is_open);
    let named = || registry.service_named(call.workspace(), &asked.service, call.now);
    let named = || named().filter(|service| call.sees_service(service));
    by_id.or_else(named).cloned().ok_or(Refusal::NoSuchService)
}

/// Where the agent of a service is: on a channel of this hub, or at the hub of that address.
#[allow(clippy::large_enum_variant)] // It is taken apart at once.
enum AgentLocation {
    Here(AgentHere),
    At(String),
}

struct AgentHere {
    agent: Agent,
    channel_id: ChannelId,
    channel: AgentChannel,
}

fn agent_of(core: &Core, service: &Service) -> Result<AgentLocation, Refusal> {
    let (online, agent, is_here) = {
        let registry = core.records.registry();
        let online = registry.presence(&service.id).cloned();
        let is_here = online.as_ref().is_some_and(|online| registry.is_here(online));
        (online, registry.agent(&service.agent_id).cloned(), is_here)
    };
    let offline = || Refusal::Offline(Box::new(service.clone()));
    let online = online.ok_or_else(offline)?;
    if !is_here {
        return Ok(AgentLocation::At(online.hub));
    }
    let channel_id = online.channel;
    let channel = core.channels.find(channel_id).ok_or_else(offline)?;
    let agent = agent.ok_or_else(offline)?;
    Ok(AgentLocation::Here(AgentHere { agent, channel_id, channel }))
}
