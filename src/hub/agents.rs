//! An agent's control channel, from its hello to its end.

use std::time::Instant;

use super::core::AgentChannel;
use super::core::Core;
use super::tunnel_ports::TunnelOpener;
use crate::model::access::Principal;
use crate::model::hub_records::Change;
use crate::model::hub_records::ChannelId;
use crate::model::hub_records::Presence;
use crate::model::hub_records::Record;
use crate::model::hub_records::Table;
use crate::model::hub_records::online_id;
use crate::model::name::Name;
use crate::model::registry::Registry;
use crate::model::service::Protocol;
use crate::model::service::Service;
use crate::model::version::Version;
use crate::net::channel::MessageChannel;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::duplex::Duplex;
use crate::os::clock;
use crate::os::secret;
use crate::wire::control::CHANNEL_SERVICE_LIMIT;
use crate::wire::control::ToAgent;
use crate::wire::control::ToHub;

/// Services of one workspace; the registry keeps all of them in memory.
const WORKSPACE_SERVICES: usize = 10_000;

struct AgentConnection<'c> {
    core: &'c Core,
    opener: Option<&'c TunnelOpener>,
    channel: AgentChannel,
    id: ChannelId,
    agent: String,
    workspace: String,
}

/// How an agent came.
pub struct AgentHello {
    pub principal: Principal,
    /// The relay by the address that it came by.
    pub relay: String,
    pub speaks: Version,
}

/// Serves the channel until the agent is gone, silent, or speaks garbage.
pub fn serve(core: &Core, stream: Duplex, arrival: AgentHello, opener: Option<&TunnelOpener>) {
    let AgentHello { principal, relay, speaks } = arrival;
    let Ok(mut channel) =
        MessageChannel::start(stream).inspect_err(|error| log::debug!("no control channel: {error}"))
    else {
        return;
    };
    let hello = channel.first::<ToHub>(Instant::now() + NETWORK_TIMEOUT);
    let Ok(ToHub::Hello { agent, .. }) = hello else { return };
    let known = core.registry().agent(&agent).is_some_and(|known| known.key == principal.id());
    if !known {
        core.audit_refusal("agent.refused", &[("by", principal.id()), ("agent", &agent)]);
        return;
    }
    let own = AgentChannel {
        outgoing: channel.outgoing(),
        relay,
        speaks,
        key: principal.id().to_owned(),
        socket: channel.socket(),
    };
    let id = core.add_channel(&agent, own.clone());
    core.audit.say("agent.up", &[("agent", &agent), ("by", principal.id())]);
    own.outgoing.send(&ToAgent::Welcome { version: env!("CARGO_PKG_VERSION").into() });
    let workspace = principal.workspace().to_owned();
    let served = AgentConnection { core, opener, channel: own, id, agent, workspace };
    let ended = loop {
        match channel.next::<ToHub>() {
            Ok(message) => {
                if !served.heard(message) {
                    break "the store cannot be written".to_owned();
                }
            }
            Err(error) => break error.to_string(),
        }
    };
    log::debug!("a control channel ended: {ended}");
    core.remove_channel(id);
    core.audit.say("agent.down", &[("agent", &served.agent)]);
}

impl AgentConnection<'_> {
    /// False when the channel must end, so that the agent comes again.
    fn heard(&self, message: ToHub) -> bool {
        match message {
            ToHub::Hello { .. } | ToHub::Unknown => {}
            ToHub::Expose { name, port, protocol } => return self.expose(name, port, protocol),
            ToHub::Withdraw { service } => self.withdraw(&service),
            ToHub::Decline { session, reason } => {
                self.core.sessions.decline(&session, self.id, &reason);
            }
        }
        true
    }

    fn expose(&self, name: Name, target_port: u16, protocol: Protocol) -> bool {
        let id = secret::derived_id("svc", &[&self.workspace, &self.agent, name.as_str()]);
        let now = clock::now();
        let online = |registry: &Registry| Presence {
            id: online_id(&self.workspace, &name),
            service: id.clone(),
            agent_id: self.agent.clone(),
            hub: registry.me.clone(),
            channel: self.id,
            since: registry.connected_since(&self.agent).unwrap_or(now),
        };
        let stored = self.core.change(|registry| {
            if let Some(objection) = self.objection(registry, &name) {
                return Ok((Vec::new(), Some(objection)));
            }
            let known = registry.service(&id);
            let service = Service {
                id: id.clone(),
                name: name.clone(),
                target_port,
                protocol,
                agent_id: self.agent.clone(),
                workspace: self.workspace.clone(),
                created_at: known.map_or(now, |known| known.created_at),
            };
            let same = known == Some(&service);
            let service = (!same).then_some(Change::Put(Record::Service(service)));
            Ok((service.into_iter().chain([Change::Put(Record::Online(online(registry)))]).collect(), None))
        });
        match stored {
            Ok(None) => {}
            Ok(Some((reason, hint))) => {
                return self.channel.outgoing.send(&ToAgent::Refused { name, reason, hint });
            }
            Err(_) => {
                // The agent is here, whether the fleet's store hears of it now or later.
                let mut registry = self.core.registry();
                let known = registry.service(&id).is_some() && self.objection(&registry, &name).is_none();
                if !known {
                    return false;
                }
                let online = online(&registry);
                registry.apply(Change::Put(Record::Online(online)));
            }
        }
        let tunnel_port = self.opener.and_then(|opener| self.core.tunnels.open(&id, opener));
        self.channel.outgoing.send(&ToAgent::Exposed { name, service: id, tunnel_port })
    }

    /// Why this name cannot be had, and what to do.
    fn objection(&self, registry: &Registry, name: &Name) -> Option<(String, String)> {
        let online = registry.online_by_id(&online_id(&self.workspace, name));
        if let Some(other) = online.filter(|online| online.agent_id != self.agent) {
            let label = registry.agent(&other.agent_id).map(|agent| agent.label.clone()).unwrap_or_default();
            return Some((format!("{name} is already exposed by {label}"), "Choose another name".into()));
        }
        if registry.services_of(&self.agent).any(|own| own.name == *name) {
            return None;
        }
        if registry.service_count_of(&self.agent) >= CHANNEL_SERVICE_LIMIT {
            let hint = format!("At most {CHANNEL_SERVICE_LIMIT}; expose the rest from another agent");
            return Some(("This agent exposes too many services".into(), hint));
        }
        (registry.services(&self.workspace).count() >= WORKSPACE_SERVICES).then(|| {
            let hint = format!(
                "At most {WORKSPACE_SERVICES}; a service that is gone for good leaves when its agent ends"
            );
            ("This workspace has too many services".into(), hint)
        })
    }

    fn withdraw(&self, service: &str) {
        let held = self.core.registry().held_by(self.id);
        if !held.iter().any(|online| online.service == service) {
            return;
        }
        self.core.take_offline(self.id, |id| id == service);
        self.core.close_tunnel(service, false);
        let dropped = self.core.change(|registry| {
            // Another process of this agent may have exposed it in the meantime.
            let gone = registry.presence(service).is_none() && registry.service(service).is_some();
            Ok((if gone { vec![Change::drop(Table::Service, service)] } else { Vec::new() }, ()))
        });
        if dropped.is_err() {
            log::debug!("{service} stays listed as offline until the store can be written");
        }
    }
}
