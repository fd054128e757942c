//! An agent's control channel, from its hello to its end.

use std::time::Instant;

use super::core::AgentChannel;
use super::core::Core;
use super::core::TunnelOpener;
use crate::model::access::Principal;
use crate::model::name::Name;
use crate::model::record::Change;
use crate::model::record::Protocol;
use crate::model::record::Record;
use crate::model::record::Service;
use crate::model::record::Table;
use crate::model::registry::ChannelId;
use crate::model::registry::Presence;
use crate::model::registry::Registry;
use crate::model::version::Version;
use crate::net::channel::Channel;
use crate::net::connect::DEADLINE;
use crate::net::duplex::Duplex;
use crate::os::clock;
use crate::os::secret;
use crate::wire::control::SERVICES_LIMIT;
use crate::wire::control::ToAgent;
use crate::wire::control::ToHub;

/// Services of one workspace; the registry keeps all of them in memory.
const SERVICES: usize = 10_000;

struct Served<'c> {
    core: &'c Core,
    opener: Option<&'c TunnelOpener>,
    channel: AgentChannel,
    id: ChannelId,
    agent: String,
    workspace: String,
}

/// How an agent came.
pub struct Arrival {
    pub principal: Principal,
    /// The relay by the address that it came by.
    pub relay: String,
    pub speaks: Version,
}

/// Serves the channel until the agent is gone, silent, or speaks garbage.
pub fn serve(core: &Core, stream: Duplex, arrival: Arrival, opener: Option<&TunnelOpener>) {
    let Arrival { principal, relay, speaks } = arrival;
    let Ok(mut channel) =
        Channel::start(stream).inspect_err(|error| log::debug!("no control channel: {error}"))
    else {
        return;
    };
    let hello = channel.first::<ToHub>(Instant::now() + DEADLINE);
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
    let served = Served { core, opener, channel: own, id, agent, workspace };
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

impl Served<'_> {
    /// False when the channel must end, so that the agent comes again.
    fn heard(&self, message: ToHub) -> bool {
        match message {
            ToHub::Hello { .. } | ToHub::Unknown => {}
            ToHub::Expose { name, port, protocol } => return self.expose(name, port, protocol),
            ToHub::Withdraw { service } => self.withdraw(&service),
            ToHub::Decline { session, reason } => {
                let mine = |service: &str| {
                    self.core.registry().service(service).is_some_and(|known| known.agent_id == self.agent)
                };
                self.core.sessions.decline(&session, mine, &reason);
            }
        }
        true
    }

    fn expose(&self, name: Name, target_port: u16, protocol: Protocol) -> bool {
        let refuse =
            |name, (reason, hint)| self.channel.outgoing.send(&ToAgent::Refused { name, reason, hint });
        if let Some(objection) = self.objection(&self.core.registry(), &name) {
            refuse(name, objection);
            return true;
        }
        let id = secret::derived_id("svc", &[&self.workspace, &self.agent, name.as_str()]);
        let stored = self.core.change(|registry| {
            let known = registry.service(&id);
            let service = Service {
                id: id.clone(),
                name: name.clone(),
                target_port,
                protocol,
                agent_id: self.agent.clone(),
                workspace: self.workspace.clone(),
                created_at: known.map_or_else(clock::now, |known| known.created_at),
            };
            let same = known == Some(&service);
            Ok((if same { Vec::new() } else { vec![Change::Put(Record::Service(service))] }, ()))
        });
        if stored.is_err() {
            return false;
        }
        // Online before its tunnel is opened: a channel that is just ending closes no tunnel that is in use.
        self.core.registry().bring_online(&id, Presence { channel: self.id, tunnel_port: None });
        let tunnel_port = self.opener.and_then(|opener| self.core.open_tunnel(&id, opener));
        {
            // Another agent may have brought the same name online in the meantime.
            let mut registry = self.core.registry();
            if let Some(objection) = self.objection(&registry, &name) {
                drop(registry);
                self.core.close_tunnel(&id, tunnel_port);
                refuse(name, objection);
                return true;
            }
            registry.bring_online(&id, Presence { channel: self.id, tunnel_port });
        }
        self.channel.outgoing.send(&ToAgent::Exposed { name, service: id, tunnel_port });
        true
    }

    /// Why this name cannot be had, and what to do.
    fn objection(&self, registry: &Registry, name: &Name) -> Option<(String, String)> {
        let other = registry
            .service_named(&self.workspace, name.as_str())
            .filter(|service| service.agent_id != self.agent);
        if let Some(other) = other.filter(|service| registry.presence(&service.id).is_some()) {
            let label = registry.agent(&other.agent_id).map(|agent| agent.label.clone()).unwrap_or_default();
            return Some((
                format!("{name} is already exposed by {label}"),
                "Choose another name with --name".into(),
            ));
        }
        if registry.services_of(&self.agent).any(|own| own.name == *name) {
            return None;
        }
        if registry.service_count_of(&self.agent) >= SERVICES_LIMIT {
            let hint = format!("At most {SERVICES_LIMIT}; expose the rest from another agent");
            return Some(("This agent exposes too many services".into(), hint));
        }
        (registry.services(&self.workspace).count() >= SERVICES).then(|| {
            let hint =
                format!("At most {SERVICES}; a service that is gone for good leaves when its agent ends");
            ("This workspace has too many services".into(), hint)
        })
    }

    fn withdraw(&self, service: &str) {
        let Some(presence) = self.core.registry().take_offline(service, self.id) else { return };
        self.core.close_tunnel(service, presence.tunnel_port);
        self.core.forget_tunnel(service);
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
