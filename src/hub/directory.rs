//! Health, metrics, who am I, and the lists of services and agents.

use std::collections::HashMap;
use std::fmt::Write;

use super::api_call::ApiCall;
use super::api_call::clean_label;
use super::api_call::ok;
use crate::http::reply::Reply;
use crate::model::access::Principal;
use crate::model::hub_records::Agent;
use crate::model::hub_records::Change;
use crate::model::hub_records::Record;
use crate::model::registry::Registry;
use crate::model::service::Service;
use crate::os::clock;
use crate::wire::api::AgentInfo;
use crate::wire::api::Health;
use crate::wire::api::RegisterAgent;
use crate::wire::api::ServiceInfo;
use crate::wire::api::Status;
use crate::wire::api::WhoAmI;

/// Agents of one workspace; the registry keeps all of them in memory.
const WORKSPACE_AGENTS: usize = 10_000;

pub fn health(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    ok(
        200,
        &Health {
            status: "ok".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: call.core.started.elapsed().as_secs(),
            store: call
                .core
                .fleet
                .as_ref()
                .map(|fleet| if fleet.replica.is_away() { "away" } else { "ok" }.into()),
            time: Some(clock::now()),
        },
    )
}

#[allow(clippy::unnecessary_wraps)] // It is an endpoint like the others.
pub fn metrics(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let core = call.core;
    let (agents, services, online, hubs) = {
        let registry = core.registry();
        let hubs = registry.hubs().count();
        (registry.channel_count(), registry.service_count(), registry.online().count(), hubs)
    };
    let totals = core.sessions.totals();
    let mut text = String::new();
    let mut line = |name: &str, kind: &str, value: u64| {
        let _ = writeln!(text, "# TYPE connect_{name} {kind}\nconnect_{name} {value}");
    };
    line("uptime_seconds", "gauge", core.started.elapsed().as_secs());
    line("agents", "gauge", agents as u64);
    line("services", "gauge", services as u64);
    line("services_online", "gauge", online as u64);
    if let Some(fleet) = &core.fleet {
        line("hubs", "gauge", hubs as u64);
        line("store_up", "gauge", u64::from(!fleet.replica.is_away()));
    }
    line("sessions_open", "gauge", totals.open);
    line("sessions_total", "counter", totals.opened);
    let _ = writeln!(
        text,
        "# TYPE connect_bytes_total counter\nconnect_bytes_total{{direction=\"to_agent\"}} {}\nconnect_bytes_total{{direction=\"to_joiner\"}} {}",
        totals.to_agent, totals.to_joiner
    );
    let _ = writeln!(text, "# TYPE connect_refusals_total counter");
    for (reason, count) in core.refusals() {
        let _ = writeln!(text, "connect_refusals_total{{reason=\"{reason}\"}} {count}");
    }
    Ok(Reply::text(200, text).field("content-type", "text/plain; version=0.0.4"))
}

pub fn whoami(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let role = match &call.principal {
        Principal::Key { role, .. } => Some(*role),
        Principal::Link { .. } | Principal::Local => None,
    };
    ok(
        200,
        &WhoAmI {
            label: call.principal.label().into(),
            role,
            workspace: call.workspace().into(),
            hubs: call.core.registry().hub_urls(),
        },
    )
}

pub fn list(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let wanted = call.request.parameter("name");
    let ports = call.core.tunnels.ports();
    let registry = call.core.registry();
    let services = registry
        .services(call.workspace())
        .filter(|service| wanted.is_none_or(|name| service.name.as_str() == name));
    let mut services: Vec<ServiceInfo> =
        services.map(|service| describe(&registry, &ports, service)).collect();
    drop(registry);
    services.sort_by(|a, b| a.name.cmp(&b.name).then(a.created_at.cmp(&b.created_at)));
    ok(200, &services)
}

fn describe(registry: &Registry, ports: &HashMap<String, u16>, service: &Service) -> ServiceInfo {
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

pub fn agents(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let registry = call.core.registry();
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

pub fn register(call: &ApiCall<'_>) -> Result<Reply, Reply> {
    let asked: RegisterAgent = call.body()?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if !(7..=64).contains(&asked.id.len()) || !asked.id.starts_with("agent_") || !asked.id.bytes().all(plain)
    {
        return Err(Reply::error(
            400,
            "This is no agent id",
            "Agent ids look like agent_k3v7; connect up makes one",
        ));
    }
    let (label, now) = (clean_label(&asked.label), clock::now());
    let (info, is_new) = call.core.change(|registry| {
        let known = registry.agent(&asked.id);
        if let Some(known) = known {
            may_speak_for(registry, known, &asked, call)?;
        } else if registry.agents(call.workspace()).count() >= WORKSPACE_AGENTS {
            return Err(Reply::error(409, "There are too many agents in this workspace", ""));
        }
        let agent = Agent {
            id: asked.id.clone(),
            label: label.clone(),
            fingerprint: asked.fingerprint,
            workspace: call.workspace().to_owned(),
            key: call.principal.id().to_owned(),
            created_at: known.map_or(now, |known| known.created_at),
        };
        let info = agent_info(registry, &agent);
        let same = known == Some(&agent);
        let changes = if same { Vec::new() } else { vec![Change::Put(Record::Agent(agent))] };
        Ok((changes, (info, known.is_none())))
    })?;
    if is_new {
        call.core.audit.say(
            "agent.registered",
            &[("agent", &info.id), ("label", &info.label), ("by", call.principal.id())],
        );
    }
    ok(200, &AgentInfo { hubs: call.core.registry().hub_urls(), ..info })
}

/// An agent's id belongs to its identity, its workspace, and to the key that registered it for as long as
/// that key lives.
fn may_speak_for(
    registry: &Registry,
    known: &Agent,
    asked: &RegisterAgent,
    call: &ApiCall<'_>,
) -> Result<(), Reply> {
    let key_lives = registry.credential_is_live(&known.key, clock::now());
    if known.workspace != call.workspace() || (key_lives && known.key != call.principal.id()) {
        call.core.audit_refusal("agent.refused", &[("by", call.principal.id()), ("agent", &known.id)]);
        return Err(Reply::error(
            403,
            "This agent belongs to another key",
            "Give this machine an id of its own: connect logout, then connect up",
        ));
    }
    if known.fingerprint != asked.fingerprint {
        call.core.audit_refusal(
            "agent.refused",
            &[("by", call.principal.id()), ("agent", &known.id), ("why", "identity")],
        );
        return Err(Reply::error(
            409,
            "This agent has another identity",
            "Its identity.pem was replaced; start anew: connect logout, then connect up",
        ));
    }
    Ok(())
}
