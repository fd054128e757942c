//! The lists of a workspace's services and agents, how an agent enters the list, and how both are removed.

use std::collections::HashMap;
use std::collections::HashSet;

use super::access;
use super::api_call::ApiCall;
use super::api_call::clean_label;
use super::api_call::ok;
use super::api_call::page;
use super::audit::Audit;
use super::core::Core;
use super::key_rotation;
use super::records::Records;
use super::refusal::Refusal;
use super::tunnel_ports::TunnelPorts;
use crate::http::reply::Reply;
use crate::model::fingerprint::Fingerprint;
use crate::model::hub_records::Agent;
use crate::model::hub_records::Change;
use crate::model::hub_records::Record;
use crate::model::hub_records::SEEN_INTERVAL;
use crate::model::hub_records::Table;
use crate::model::registry::Registry;
use crate::model::service::Service;
use crate::tls::succession;
use crate::wire::api::AgentInfo;
use crate::wire::api::NamedShare;
use crate::wire::api::RegisterAgent;
use crate::wire::api::RemoveService;
use crate::wire::api::ServiceInfo;
use crate::wire::api::Status;
use crate::wire::control::ToAgent;

/// Agents of one workspace, and of one key: more machines than share a key. The registry keeps all of them in memory.
const WORKSPACE_AGENTS: usize = 10_000;
const KEY_AGENTS: usize = 100;

/// Lists the workspace's services, or those of the one name that the caller gives.
pub fn services(call: &ApiCall<'_>, records: &Records, tunnel_ports: &TunnelPorts) -> Result<Reply, Refusal> {
    let wanted_name = call.request.parameter("name");
    // Read before the registry is locked: the two locks are never held together.
    let ports = tunnel_ports.by_service();
    let registry = records.registry();
    // What is registered for a share is nothing to see before that is made, and after its end.
    let is_live = |share: &String| registry.share(share, call.now).is_some();
    let wanted = registry.exposed().filter(|service| {
        call.sees_service(service)
            && wanted_name.is_none_or(|name| service.name.as_str() == name)
            && service.share.as_ref().is_none_or(is_live)
    });
    page(call, wanted, |service| &service.id, |service| service_info(&registry, &ports, service))
}

fn service_info(registry: &Registry, ports: &HashMap<String, u16>, service: &Service) -> ServiceInfo {
    ServiceInfo {
        id: service.id.clone(),
        name: service.name.clone(),
        target_port: service.target_port,
        tunnel_port: ports.get(&service.id).copied(),
        status: Status::of(registry.presence(&service.id).is_some()),
        protocol: service.protocol,
        agent_id: service.agent_id.clone(),
        agent_label: registry.agent(&service.agent_id).map(|agent| agent.label.clone()).unwrap_or_default(),
        created_at: service.created_at,
        share: service
            .share
            .as_ref()
            .and_then(|id| registry.any_share(id))
            .map(|share| NamedShare { id: share.info.id.clone(), name: share.info.name.clone() }),
    }
}

pub fn agents(call: &ApiCall<'_>, records: &Records) -> Result<Reply, Refusal> {
    let registry = records.registry();
    let visible = registry.agents().filter(|agent| call.sees(&agent.workspace));
    // Who does not see all services sees their agents and its own.
    let seen = registry.services().filter(|service| call.sees_service(service));
    let seen: HashSet<&str> = seen.map(|service| service.agent_id.as_str()).collect();
    let visible = visible.filter(|agent| {
        call.principal.sees_all() || agent.key == call.principal.id() || seen.contains(agent.id.as_str())
    });
    page(call, visible, |agent| &agent.id, |agent| agent_info(&registry, agent, call))
}

fn agent_info(registry: &Registry, agent: &Agent, call: &ApiCall<'_>) -> AgentInfo {
    let connected_at = registry.connected_since(&agent.id);
    AgentInfo {
        id: agent.id.clone(),
        label: agent.label.clone(),
        status: Status::of(connected_at.is_some()),
        fingerprint: agent.fingerprint,
        services: registry.services_of(&agent.id).filter(|service| call.sees_service(service)).count(),
        workspace: agent.workspace.clone(),
        key: agent.key.clone(),
        seen_at: agent.seen_at,
        connected_at,
        chain: agent.chain.clone(),
        hubs: Vec::new(),
    }
}

/// Registers an agent, or updates its label and key. All checks are made inside the change, so that two registrations
/// cannot pass them at the same time.
pub fn register(call: &ApiCall<'_>, records: &Records, audit: &Audit) -> Result<Reply, Refusal> {
    let order: RegisterAgent = call.body()?;
    if !is_agent_id(&order.id) {
        return Err(Refusal::BadAgentId);
    }
    let label = clean_label(&order.label);
    let replaced = succession::replaced_by(order.fingerprint, &order.chain);
    let (info, before) = records.change(|registry| {
        let known = registry.agent(&order.id);
        if let Some(known) = known {
            may_speak_for(known, &order, &replaced, call).inspect_err(|refusal| {
                let details = [("agent", known.id.as_str()), ("reason", refusal.code())];
                audit.say("agent.refused", call.actor(), &details);
            })?;
        }
        let is_new_of_key = known.is_none_or(|known| known.key != call.principal.id());
        let mut changes = if is_new_of_key { make_room(registry, call)? } else { Vec::new() };
        let is_seen = |known: &&Agent| call.now.since(known.seen_at) < SEEN_INTERVAL;
        let agent = Agent {
            id: order.id.clone(),
            label: label.clone(),
            fingerprint: order.fingerprint,
            chain: if replaced.is_empty() { String::new() } else { order.chain.clone() },
            workspace: call.workspace().to_owned(),
            key: call.principal.id().to_owned(),
            created_at: known.map_or(call.now, |known| known.created_at),
            seen_at: known.filter(is_seen).map_or(call.now, |known| known.seen_at),
        };
        let info = agent_info(registry, &agent, call);
        changes.extend(key_rotation::prove(registry, call, &agent.id));
        if known != Some(&agent) {
            changes.push(Change::Put(Record::Agent(agent)));
        }
        Ok((changes, (info, known.cloned())))
    })?;
    audit_registration(audit, &info, before.as_ref(), call);
    ok(200, &AgentInfo { hubs: records.registry().hub_urls(), ..info })
}

/// Checks the limits on agents. If the key has too many, the one of them that was away longest and exposes nothing is
/// removed: a key that is used by jobs, each on a machine that exists once, goes on working.
fn make_room(registry: &Registry, call: &ApiCall<'_>) -> Result<Vec<Change>, Refusal> {
    let in_workspace = registry.agents().filter(|agent| agent.workspace == call.workspace());
    if in_workspace.filter(|agent| registry.agent_counts(agent, call.now)).count() >= WORKSPACE_AGENTS {
        return Err(Refusal::TooManyAgents);
    }
    let own = || registry.agents_of_key(call.principal.id());
    if own().count() < KEY_AGENTS {
        return Ok(Vec::new());
    }
    let is_idle = |agent: &&Agent| {
        registry.connected_since(&agent.id).is_none() && registry.services_of(&agent.id).next().is_none()
    };
    let oldest = own().filter(is_idle).min_by_key(|agent| agent.seen_at);
    let oldest = oldest.ok_or(Refusal::TooManyAgentsOfKey { limit: KEY_AGENTS })?;
    Ok(vec![Change::drop(Table::Agent, &oldest.id)])
}

/// Removes an agent that is not connected, with the services that it has exposed.
pub fn remove_agent(call: &ApiCall<'_>, records: &Records, audit: &Audit) -> Result<Reply, Refusal> {
    let id = call.parts[0];
    records.change(|registry| {
        let agent = registry.agent(id).filter(|agent| call.sees(&agent.workspace));
        let agent = agent.ok_or(Refusal::NoSuchAgent)?;
        if registry.connected_since(id).is_some() {
            return Err(Refusal::AgentConnected { label: agent.label.clone(), key: agent.key.clone() });
        }
        let services = registry.services_of(id).map(|service| Change::drop(Table::Service, &service.id));
        Ok((services.chain([Change::drop(Table::Agent, id)]).collect(), ()))
    })?;
    audit.say("agent.removed", call.actor(), &[("agent", id)]);
    Ok(Reply::empty(204))
}

/// Removes a service, by its ID or name, so that another agent may have the name. If an agent has it online and the caller
/// wants it even so, that agent is told.
pub fn remove_service(core: &Core, call: &ApiCall<'_>) -> Result<Reply, Refusal> {
    let order: RemoveService = call.body_if_any()?;
    let (service, online) = core.records.change(|registry| {
        let service = find(call, registry, call.parts[0])?;
        if !call.may_change(&service.key) {
            return Err(Refusal::ServiceOfAnotherKey(service.name.clone()));
        }
        let online = registry.presence(&service.id).cloned();
        if online.is_some() && !order.even_online {
            return Err(Refusal::StillOnline(service.name.clone()));
        }
        let mut changes = vec![Change::drop(Table::Service, &service.id)];
        changes.extend(online.as_ref().map(|online| Change::drop(Table::Online, &online.id)));
        Ok((changes, (service.clone(), online)))
    })?;
    if let Some(channel) = online.and_then(|online| core.channels.find(online.channel)) {
        let removed = core
            .refusals
            .text(&Refusal::TakenAway { name: service.name.clone(), by: call.principal.label().into() });
        channel.outgoing.send(&ToAgent::Refused {
            name: service.name.clone(),
            reason: removed.what,
            hint: removed.hint,
        });
    }
    core.close_tunnel(&service.id, false);
    let details = [("agent", service.agent_id.as_str()), ("service", service.name.as_str())];
    core.audit.say("service.removed", call.actor(), &details);
    Ok(Reply::empty(204))
}

/// The service with this ID or, if only one of the workspaces that the caller sees has it, this name.
fn find<'r>(call: &ApiCall<'_>, registry: &'r Registry, wanted: &str) -> Result<&'r Service, Refusal> {
    let by_id = registry.service(wanted).filter(|service| call.sees_service(service));
    let is_named = |service: &&Service| {
        service.name.as_str() == wanted && service.share.is_none() && call.sees_service(service)
    };
    let mut named = registry.exposed().filter(is_named);
    let only = named.next().filter(|_| named.next().is_none());
    by_id.or(only).ok_or(Refusal::NoSuchService)
}

/// Clients choose agent IDs, and the IDs appear in file names, logs and other users' lists. So only plain characters
/// are allowed.
fn is_agent_id(id: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (7..=64).contains(&id.len()) && id.starts_with("agent_") && id.bytes().all(is_plain)
}

/// An agent belongs to one identity, one key and one workspace. Its identity may say that another key of the workspace speaks
/// for it, and may have been replaced by one that it has signed.
fn may_speak_for(
    known: &Agent,
    order: &RegisterAgent,
    replaced: &[Fingerprint],
    call: &ApiCall<'_>,
) -> Result<(), Refusal> {
    let key_hash = access::secret_hash(call.request.key());
    let is_proved =
        || succession::is_spoken_for(order.fingerprint, &order.chain, &order.id, &key_hash, &order.proof);
    if known.workspace != call.workspace() || (known.key != call.principal.id() && !is_proved()) {
        Err(Refusal::AgentOfAnotherKey)
    } else if known.fingerprint != order.fingerprint && !replaced.contains(&known.fingerprint) {
        Err(Refusal::AgentIdentity)
    } else {
        Ok(())
    }
}

fn audit_registration(audit: &Audit, info: &AgentInfo, before: Option<&Agent>, call: &ApiCall<'_>) {
    let agent = ("agent", info.id.as_str());
    let Some(before) = before else {
        return audit.say("agent.registered", call.actor(), &[agent, ("machine", &info.label)]);
    };
    if before.key != info.key {
        audit.say("agent.taken-over", call.actor(), &[agent, ("from", &before.key)]);
    }
    if before.fingerprint != info.fingerprint {
        let [from, to] = [before.fingerprint, info.fingerprint].map(|identity| identity.pin().to_string());
        audit.say("agent.identity", call.actor(), &[agent, ("from", &from), ("to", &to)]);
    }
}
