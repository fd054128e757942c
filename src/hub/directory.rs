//! The lists of a workspace's services and agents, and how an agent enters the list.

use std::collections::HashMap;

use super::api_call::ApiCall;
use super::api_call::clean_label;
use super::api_call::ok;
use super::audit::Audit;
use super::records::Records;
use super::refusal::Refusal;
use super::tunnel_ports::TunnelPorts;
use crate::http::reply::Reply;
use crate::model::hub_records::Agent;
use crate::model::hub_records::Change;
use crate::model::hub_records::Record;
use crate::model::registry::Registry;
use crate::model::service::Service;
use crate::wire::api::AgentInfo;
use crate::wire::api::RegisterAgent;
use crate::wire::api::ServiceInfo;
use crate::wire::api::Status;

/// Agents of one workspace; the registry keeps all of them in memory.
const WORKSPACE_AGENTS: usize = 10_000;

/// Lists the workspace's services by name, or those of the one name that the caller gives.
pub fn services(call: &ApiCall<'_>, records: &Records, tunnel_ports: &TunnelPorts) -> Result<Reply, Refusal> {
    let wanted_name = call.request.parameter("name");
    // Read before the registry is locked: the two locks are never held together.
    let ports = tunnel_ports.by_service();
    let registry = records.registry();
    let wanted = registry
        .services(call.workspace())
        .filter(|service| wanted_name.is_none_or(|name| service.name.as_str() == name));
    let mut services: Vec<ServiceInfo> =
        wanted.map(|service| service_info(&registry, &ports, service)).collect();
    drop(registry);
    services.sort_by(|a, b| a.name.cmp(&b.name).then(a.created_at.cmp(&b.created_at)));
    ok(200, &services)
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
    }
}

pub fn agents(call: &ApiCall<'_>, records: &Records) -> Result<Reply, Refusal> {
    let registry = records.registry();
    let agents: Vec<AgentInfo> =
        registry.agents(call.workspace()).map(|agent| agent_info(&registry, agent)).collect();
    drop(registry);
    ok(200, &agents)
}

fn agent_info(registry: &Registry, agent: &Agent) -> AgentInfo {
    let connected_at = registry.connected_since(&agent.id);
    AgentInfo {
        id: agent.id.clone(),
        label: agent.label.clone(),
        status: Status::of(connected_at.is_some()),
        fingerprint: agent.fingerprint,
        services: registry.service_count_of(&agent.id),
        connected_at,
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
    let (info, is_new) = records.change(|registry| {
        let known = registry.agent(&order.id);
        if let Some(known) = known {
            may_speak_for(registry, known, &order, call)
                .inspect_err(|refusal| audit_refused_agent(audit, refusal, known, call))?;
        } else if registry.agents(call.workspace()).count() >= WORKSPACE_AGENTS {
            return Err(Refusal::TooManyAgents);
        }
        let agent = Agent {
            id: order.id.clone(),
            label: label.clone(),
            fingerprint: order.fingerprint,
            workspace: call.workspace().to_owned(),
            key: call.principal.id().to_owned(),
            created_at: known.map_or(call.now, |known| known.created_at),
        };
        let info = agent_info(registry, &agent);
        let is_same = known == Some(&agent);
        let changes = if is_same { Vec::new() } else { vec![Change::Put(Record::Agent(agent))] };
        Ok((changes, (info, known.is_none())))
    })?;
    if is_new {
        let details = [("agent", info.id.as_str()), ("label", &info.label), ("by", call.principal.id())];
        audit.say("agent.registered", &details);
    }
    ok(200, &AgentInfo { hubs: records.registry().hub_urls(), ..info })
}

/// Clients choose agent IDs, and the IDs appear in file names, logs and other users' lists. So only plain characters
/// are allowed.
fn is_agent_id(id: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (7..=64).contains(&id.len()) && id.starts_with("agent_") && id.bytes().all(is_plain)
}

/// An agent ID belongs to one identity and one workspace. While the key that registered it is valid, no other key may
/// use it.
fn may_speak_for(
    registry: &Registry,
    known: &Agent,
    order: &RegisterAgent,
    call: &ApiCall<'_>,
) -> Result<(), Refusal> {
    let key_lives = registry.credential_is_live(&known.key, call.now);
    if known.workspace != call.workspace() || (key_lives && known.key != call.principal.id()) {
        Err(Refusal::AgentOfAnotherKey)
    } else if known.fingerprint != order.fingerprint {
        Err(Refusal::AgentIdentity)
    } else {
        Ok(())
    }
}

fn audit_refused_agent(audit: &Audit, refusal: &Refusal, known: &Agent, call: &ApiCall<'_>) {
    let why = if matches!(refusal, Refusal::AgentIdentity) { "identity" } else { "key" };
    let details = [("by", call.principal.id()), ("agent", known.id.as_str()), ("why", why)];
    audit.say_refusal("agent.refused", &details);
}
