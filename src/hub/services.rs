//! Health, services, agents, and asking for a session.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use super::carry;
use super::core::AgentChannel;
use super::core::CODES;
use super::endpoints::Call;
use super::endpoints::ok;
use super::keys::clean_label;
use super::sessions::Credential;
use super::sessions::Pending;
use super::shares;
use crate::model::access::Action;
use crate::model::access::Principal;
use crate::model::limiter::network_of;
use crate::model::record::Agent;
use crate::model::record::Change;
use crate::model::record::Record;
use crate::model::record::Service;
use crate::model::registry::Registry;
use crate::model::version;
use crate::model::version::Version;
use crate::net::address::split_host_port;
use crate::os::clock;
use crate::os::secret;
use crate::wire::api::AgentInfo;
use crate::wire::api::AskSession;
use crate::wire::api::Health;
use crate::wire::api::RegisterAgent;
use crate::wire::api::ServiceInfo;
use crate::wire::api::SessionGranted;
use crate::wire::api::Status;
use crate::wire::api::WhoAmI;
use crate::wire::control::ToAgent;
use crate::wire::message::Request;
use crate::wire::message::error_body;
use crate::wire::reply::Reply;

/// Agents of one workspace; the registry keeps all of them in memory.
const AGENTS: usize = 10_000;

pub fn health(call: &Call<'_>) -> Result<Reply, Reply> {
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
pub fn metrics(call: &Call<'_>) -> Result<Reply, Reply> {
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
    for (reason, count) in core.counters.refusals() {
        let _ = writeln!(text, "connect_refusals_total{{reason=\"{reason}\"}} {count}");
    }
    Ok(Reply::text(200, text).field("content-type", "text/plain; version=0.0.4"))
}

pub fn whoami(call: &Call<'_>) -> Result<Reply, Reply> {
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
            hubs: hubs(call),
        },
    )
}

/// Where else this fleet can be reached.
pub fn hubs(call: &Call<'_>) -> Vec<String> {
    call.core.registry().hubs().map(|hub| hub.url.clone()).collect()
}

pub fn list(call: &Call<'_>) -> Result<Reply, Reply> {
    let wanted = call.request.parameter("name");
    let ports = call.core.tunnel_ports();
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

pub fn agents(call: &Call<'_>) -> Result<Reply, Reply> {
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

pub fn register(call: &Call<'_>) -> Result<Reply, Reply> {
    let asked: RegisterAgent = call.body()?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if !(7..=64).contains(&asked.id.len()) || !asked.id.starts_with("agent_") || !asked.id.bytes().all(plain)
    {
        return Err(Reply::json(
            400,
            error_body("This is no agent id", "Agent ids look like agent_k3v7; connect up makes one"),
        ));
    }
    let (label, now) = (clean_label(&asked.label), clock::now());
    let (info, is_new) = call.core.change(|registry| {
        let known = registry.agent(&asked.id);
        if let Some(known) = known {
            may_speak_for(registry, known, &asked, call)?;
        } else if registry.agents(call.workspace()).count() >= AGENTS {
            return Err(Reply::json(409, error_body("There are too many agents in this workspace", "")));
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
    ok(200, &AgentInfo { hubs: hubs(call), ..info })
}

/// An agent's id belongs to its identity, its workspace, and to the key that registered it for as long as
/// that key lives.
fn may_speak_for(
    registry: &Registry,
    known: &Agent,
    asked: &RegisterAgent,
    call: &Call<'_>,
) -> Result<(), Reply> {
    let key_lives = registry.credential_is_live(&known.key, clock::now());
    if known.workspace != call.workspace() || (key_lives && known.key != call.principal.id()) {
        call.core.audit_refusal("agent.refused", &[("by", call.principal.id()), ("agent", &known.id)]);
        return Err(Reply::json(
            403,
            error_body(
                "This agent belongs to another key",
                "Give this machine an id of its own: connect logout, then connect up",
            ),
        ));
    }
    if known.fingerprint != asked.fingerprint {
        call.core.audit_refusal(
            "agent.refused",
            &[("by", call.principal.id()), ("agent", &known.id), ("why", "identity")],
        );
        return Err(Reply::json(
            409,
            error_body(
                "This agent has another identity",
                "Its identity.pem was replaced; start anew: connect logout, then connect up",
            ),
        ));
    }
    Ok(())
}

pub fn open_session(call: &Call<'_>) -> Result<Reply, Reply> {
    let asked: AskSession = call.body()?;
    let (service, share) = asked_for(call, &asked)?;
    let (channel, agent) = match whose(call, &service)? {
        Whose::Here(channel, agent) => (channel, agent),
        Whose::At(hub) if asked.carry => return carry::ask(call, &asked, &service, &hub),
        Whose::At(hub) => {
            let what = format!("The agent of {} is at another hub", service.name);
            let mut body = error_body(&what, &format!("Ask {hub}"));
            body["hub"] = hub.into();
            return Err(Reply::json(421, body));
        }
    };
    let (session, ticket, agents_ticket) = (secret::id("ses"), secret::secret(), secret::secret());
    let pending = Pending {
        session: session.clone(),
        service: service.id.clone(),
        credential: Credential {
            principal: call.principal.id().to_owned(),
            share,
            agent: channel.key.clone(),
        },
        joiner_ticket: ticket.clone(),
    };
    if !call.core.sessions.expect(pending, [&ticket, &agents_ticket], clock::now()) {
        call.core.counters.refused("too-many-tickets");
        let what = error_body("The hub has too many sessions waiting", "Try again in a moment");
        return Err(Reply::json(503, what));
    }
    let relay = relay_address(call.request, call.visit.over_tls)?;
    let open = ToAgent::Open {
        session: session.clone(),
        service: service.id.clone(),
        peer: asked.fingerprint,
        ticket: agents_ticket,
        relay: channel.relay.clone(),
        speaks: spoken_by(call.request),
    };
    if !channel.outgoing.send(&open) {
        return Err(offline(&service));
    }
    ok(
        200,
        &SessionGranted {
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

/// What the sender of a request speaks.
pub fn spoken_by(request: &Request) -> Version {
    Version::said(request.field(version::FIELD))
}

/// The service that is meant, and the share by whose right it is asked for.
fn asked_for(call: &Call<'_>, asked: &AskSession) -> Result<(Service, Option<String>), Reply> {
    if let Some(membership) = &asked.share {
        let (service, share) = shares::service_of(call, &asked.service, membership)?;
        return Ok((service, Some(share)));
    }
    super::access::allow(call.core, &call.principal, Action::Reach)?;
    let registry = call.core.registry();
    let by_id = registry.service(&asked.service).filter(|service| may_see(call, service));
    let named = || registry.service_named(call.workspace(), &asked.service);
    Ok((by_id.or_else(named).cloned().ok_or_else(no_such_service)?, None))
}

/// Where the agent behind a service is.
enum Whose {
    Here(AgentChannel, Agent),
    At(String),
}

fn whose(call: &Call<'_>, service: &Service) -> Result<Whose, Reply> {
    let (online, agent, me) = {
        let registry = call.core.registry();
        let agent = registry.agent(&service.agent_id).cloned();
        (registry.presence(&service.id).cloned(), agent, registry.me.clone())
    };
    if let Some(online) = &online
        && online.hub != me
    {
        return Ok(Whose::At(online.hub.clone()));
    }
    let channel = online.and_then(|online| call.core.channel(online.channel));
    channel.zip(agent).map(|(channel, agent)| Whose::Here(channel, agent)).ok_or_else(|| {
        call.core.counters.refused("offline");
        offline(service)
    })
}

pub fn offline(service: &Service) -> Reply {
    let hint = "Its agent is not connected; start it there: connect expose";
    Reply::json(503, error_body(&format!("{} is offline", service.name), hint))
}

fn may_see(call: &Call<'_>, service: &Service) -> bool {
    call.principal == Principal::Local || service.workspace == call.workspace()
}

pub fn no_such_service() -> Reply {
    Reply::json(404, error_body("There is no such service", "List them: connect services"))
}

/// The relay is this same hub, by the address that the client itself used. Who came by TLS of our own finds
/// it in the clear on the same port; who came through a proxy that ends TLS comes through it again.
pub fn relay_address(request: &Request, over_tls: bool) -> Result<String, Reply> {
    let host = request.field("host").unwrap_or_default();
    let scheme = if over_tls { "http" } else { "https" };
    match split_host_port(host, 443) {
        Some((name, port)) => Ok(format!("{scheme}://{}:{port}", crate::net::address::bracketed(&name))),
        None => Err(Reply::json(400, error_body("The Host header is not an address", ""))),
    }
}

/// Cuts what has expired, and drops expired records. Called twice a second.
pub fn sweep(core: &super::core::Core) {
    let now = clock::now();
    core.cut_dead();
    if core.registry().expired(now).is_empty() {
        return;
    }
    let dropped = core.change(|registry| Ok((registry.expired(now), ())));
    if dropped.is_err() {
        log::debug!("expired records stay until the store can be written");
    }
}

pub const SWEEP: Duration = Duration::from_millis(500);

/// Says when there were too many wrong share codes before.
pub fn guess_allowed(call: &Call<'_>) -> Result<(), Reply> {
    call.core.blocked(&CODES, &guess_keys(call), clock::now()).map_or(Ok(()), |seconds| {
        call.core.counters.refused("too-many-codes");
        Err(super::access::too_many(seconds))
    })
}

/// Counts a wrong share code and audits it.
pub fn guess_failed(call: &Call<'_>) {
    call.core.failed(&CODES, &guess_keys(call), clock::now());
    call.core.counters.refused("share");
    call.core
        .audit
        .say("share.refused", &[("who", call.principal.id()), ("address", &call.visit.address.to_string())]);
}

fn guess_keys(call: &Call<'_>) -> [String; 2] {
    [call.principal.id().to_owned(), network_of(call.visit.address).to_string()]
}
