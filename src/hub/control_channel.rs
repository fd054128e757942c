//! An agent's control channel, from its hello to its end: what the agent exposes, withdraws and declines.

use std::cell::Cell;
use std::net::Shutdown;
use std::time::Duration;
use std::time::Instant;

use super::access;
use super::agent_channels::AgentChannel;
use super::api_call::ApiCall;
use super::core::Core;
use super::refusal::Refusal;
use super::shares;
use crate::model::access::Principal;
use crate::model::hub_records::Change;
use crate::model::hub_records::ChannelId;
use crate::model::hub_records::Presence;
use crate::model::hub_records::Record;
use crate::model::hub_records::SEEN_INTERVAL;
use crate::model::hub_records::Table;
use crate::model::hub_session::AgentSide;
use crate::model::name::Name;
use crate::model::registry::Registry;
use crate::model::service::Protocol;
use crate::model::service::Service;
use crate::model::sessions::ReportOutcome;
use crate::model::sessions::ReportingAgent;
use crate::model::time::Time;
use crate::net::channel::MessageChannel;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::duplex::Duplex;
use crate::os::clock;
use crate::os::secret;
use crate::wire::control::DirectReport;
use crate::wire::control::ToAgent;
use crate::wire::control::ToHub;

/// Services of one workspace, and of one key. The registry keeps all of them in memory.
const WORKSPACE_SERVICES: usize = 10_000;
const KEY_SERVICES: usize = 1000;
/// How long an agent waits that exposes too fast.
const EXPOSE_PAUSE: Duration = Duration::from_secs(1);

/// An agent while its control channel lasts.
struct ConnectedAgent<'c> {
    core: &'c Core,
    channel: AgentChannel,
    channel_id: ChannelId,
    agent_id: String,
    /// The ID of the share to which its services belong.
    share: Option<String>,
    call: &'c ApiCall<'c>,
    /// It takes no answers any more. Only what it withdraws still counts.
    is_leaving: Cell<bool>,
}

/// Serves the channel until the agent leaves, falls silent or sends something invalid. `call` is the request that opened
/// it; `relay` is the relay's address for this agent.
///
/// The order: the hello names the agent, the key must be the one that registered it, the channel is registered, and then
/// the agent is welcomed and exposes its services. When the channel ends, the services that it still holds go offline.
pub fn serve(core: &Core, stream: Duplex, call: &ApiCall<'_>, relay: String) {
    let opened =
        MessageChannel::start(stream).inspect_err(|error| log::debug!("no control channel: {error}"));
    let Ok(mut channel) = opened else { return };
    let hello = channel.first::<ToHub>(Instant::now() + NETWORK_TIMEOUT);
    let Ok(ToHub::Hello { agent: agent_id, share }) = hello else { return };
    // The role allows exposing, but an agent belongs to the key that registered it.
    let key = call.principal.id();
    let is_own = core.records.registry().agent(&agent_id).is_some_and(|agent| agent.key == key);
    if !is_own {
        let details = [("agent", agent_id.as_str()), ("reason", Refusal::AgentOfAnotherKey.code())];
        core.audit.say("agent.refused", call.actor(), &details);
        return;
    }
    let Some(_place) = core.places.agent_channels.take(agent_id.clone(), Duration::ZERO) else {
        core.refusals.count(&Refusal::TooManyChannels);
        channel.outgoing().send(&ToAgent::Full);
        return;
    };
    let own = AgentChannel {
        outgoing: channel.outgoing(),
        relay,
        key: key.to_owned(),
        socket: channel.socket(),
        offered: String::new(),
    };
    let channel_id = core.agent_up(&agent_id, own.clone());
    let since = Instant::now();
    core.audit.say("agent.up", call.actor(), &[("agent", &agent_id)]);
    own.outgoing.send(&ToAgent::Welcome);
    own.outgoing.send(&ToAgent::Audit(core.audit.head()));
    let share = share.map(|word| shares::id_of(call, &agent_id, &word));
    let is_leaving = Cell::new(false);
    let agent = ConnectedAgent { core, channel: own, channel_id, agent_id, share, call, is_leaving };
    let end = loop {
        match channel.next::<ToHub>() {
            Ok(message) => {
                if !agent.handle(message) {
                    break "the store cannot be written".to_owned();
                }
            }
            Err(error) => break error.to_string(),
        }
    };
    log::debug!("a control channel ended: {end}");
    core.agent_down(channel_id);
    let duration = since.elapsed().as_millis().to_string();
    let details = [("agent", agent.agent_id.as_str()), ("reason", &end), ("durationMs", &duration)];
    core.audit.say("agent.down", call.actor(), &details);
}

impl ConnectedAgent<'_> {
    /// Handles one message. False means that the channel must end; the agent then connects again.
    fn handle(&self, message: ToHub) -> bool {
        match message {
            ToHub::Hello { .. } | ToHub::Unknown => true,
            ToHub::Expose { .. } if self.is_leaving.get() => true,
            ToHub::Expose { name, port, protocol } => self.expose(name, port, protocol),
            ToHub::Withdraw { name } => {
                self.withdraw(&name);
                true
            }
            ToHub::Secured { session, tls } => {
                self.core.sessions.table().secured(&session, self.channel_id, &tls);
                true
            }
            ToHub::Decline { session, reason } => {
                self.core.decline(&session, self.channel_id, &reason);
                true
            }
            ToHub::Direct(report) => {
                self.direct_session(&report);
                true
            }
        }
    }

    /// The agent carries a session whose joiner came to it directly, or has carried it.
    fn direct_session(&self, report: &DirectReport) {
        let (core, id) = (self.core, &report.session);
        if report.is_over {
            let ended = core.sessions.table().end_direct(id, &self.agent_id);
            if let Some(session) = ended {
                core.sessions.count_direct(report.to_agent, report.to_joiner);
                let lasted = Duration::from_millis(report.duration_ms);
                core.session_closed(&session, lasted, report.to_agent, report.to_joiner);
            }
            return;
        }
        let side = AgentSide::Here { channel: self.channel_id, key: self.channel.key.clone() };
        let by = ReportingAgent { id: &self.agent_id, side };
        let registry = core.records.registry();
        let outcome = core.sessions.table().report(id, &by, &registry, clock::now());
        drop(registry);
        match outcome {
            ReportOutcome::Opened(session) => core.session_opened(&session),
            ReportOutcome::Confirmed => {}
            ReportOutcome::Unknown => _ = self.answer(&ToAgent::Close { session: id.clone() }),
        }
    }

    /// Exposes a service. The name and the limits are checked inside the change that stores the service and its presence,
    /// so no two agents get one name. Then the tunnel port is opened, and the agent is told. A refusal is a message to
    /// the agent and does not end the channel.
    fn expose(&self, name: Name, target_port: u16, protocol: Protocol) -> bool {
        // A refusal would end the service at its agent, which has done nothing wrong.
        while access::pace(self.core, &access::CHANGES, self.call, "").is_err() {
            let is_stopped = self.core.stop.wait_for(EXPOSE_PAUSE);
            if is_stopped || !self.core.records.registry().credential_is_live(&self.channel.key, clock::now())
            {
                return false;
            }
        }
        let id = self.service_id(&name);
        let now = clock::now();
        let service = |registry: &Registry| {
            let known = registry.service(&id);
            let is_seen = |known: &&Service| now.since(known.seen_at) < SEEN_INTERVAL;
            Service {
                id: id.clone(),
                name: name.clone(),
                target_port,
                protocol,
                agent_id: self.agent_id.clone(),
                workspace: self.call.workspace().to_owned(),
                share: self.share.clone(),
                key: self.channel.key.clone(),
                withdrawn: false,
                created_at: known.map_or(now, |known| known.created_at),
                seen_at: known.filter(is_seen).map_or(now, |known| known.seen_at),
            }
        };
        let presence = |registry: &Registry| Presence {
            id: service(registry).online_id(),
            service: id.clone(),
            agent_id: self.agent_id.clone(),
            hub: registry.me.clone(),
            channel: self.channel_id,
            since: registry.connected_since(&self.agent_id).unwrap_or(now),
        };
        // After a reconnect the service is stored already, so only its presence is written.
        let stored = self.core.records.change(|registry| {
            self.may_expose(registry, &id, &name, now)?;
            let service = service(registry);
            // Others that had the name count for nothing any more, or the agent would have been refused.
            let same_name =
                registry.exposed().filter(|other| other.online_id() == service.online_id() && other.id != id);
            let mut changes: Vec<Change> =
                same_name.map(|other| Change::drop(Table::Service, &other.id)).collect();
            if registry.service(&id) != Some(&service) {
                changes.push(Change::Put(Record::Service(service)));
            }
            changes.push(Change::Put(Record::Online(presence(registry))));
            Ok((changes, ()))
        });
        match stored {
            Ok(()) => {}
            Err(Refusal::StoreFailed | Refusal::FleetStoreAway) => {
                // The store cannot be written, but the agent is connected. A service that is stored already goes online
                // in this hub's memory; a new one is not accepted.
                let mut registry = self.core.records.registry();
                if registry.service(&id).is_none() || self.may_expose(&registry, &id, &name, now).is_err() {
                    return false;
                }
                let presence = presence(&registry);
                registry.apply(Change::Put(Record::Online(presence)));
            }
            Err(refusal) => {
                let (agent, service) = (self.agent_id.as_str(), name.as_str());
                let details = [("agent", agent), ("service", service), ("reason", refusal.code())];
                self.core.audit.say("service.refused", self.call.actor(), &details);
                let refusal = self.core.refusals.text(&refusal);
                let refused = ToAgent::Refused { name, reason: refusal.what, hint: refusal.hint };
                return self.answer(&refused);
            }
        }
        // Who has no key, but the hub's machine, is to join the share as everybody.
        let tunnel_port = self.share.is_none().then(|| self.core.tunnel_ports.open(&id)).flatten();
        self.answer(&ToAgent::Exposed { name, service: id, tunnel_port })
    }

    /// What the agent has sent before it left is still read: it may withdraw something.
    fn answer(&self, message: &ToAgent) -> bool {
        if !self.channel.outgoing.send(message) {
            self.is_leaving.set(true);
            let _ = self.channel.socket.shutdown(Shutdown::Both);
        }
        true
    }

    fn service_id(&self, name: &Name) -> String {
        let share = self.share.as_deref().unwrap_or_default();
        secret::derived_id("svc", &[self.call.workspace(), &self.agent_id, share, name.as_str()])
    }

    /// Whether this agent may have the name, and may expose one more service.
    fn may_expose(&self, registry: &Registry, id: &str, name: &Name, now: Time) -> Result<(), Refusal> {
        if let Principal::Key { limits, .. } = &self.call.principal
            && !limits.allows_name(name)
        {
            return Err(Refusal::NameOutside { name: name.clone(), limits: limits.in_words() });
        }
        let holder = registry.service_named(self.call.workspace(), name.as_str(), now);
        let is_anothers = |holder: &&Service| holder.agent_id != self.agent_id;
        // A share's names are its agent's own.
        if let Some(other) = holder.filter(is_anothers).filter(|_| self.share.is_none()) {
            let by = registry.agent(&other.agent_id).map(|agent| agent.label.clone()).unwrap_or_default();
            let (name, is_online) = (name.clone(), registry.presence(&other.id).is_some());
            return Err(if is_online {
                Refusal::NameTaken { name, by }
            } else {
                Refusal::NameKept { name, by }
            });
        }
        if let Some(known) = registry.service(id) {
            // An ID is a hash of what agents choose.
            return if known.agent_id == self.agent_id { Ok(()) } else { Err(Refusal::AgentNotYours) };
        }
        let counts = |service: &&Service| registry.service_counts(service, now);
        if registry.services_of_key(&self.channel.key).filter(counts).count() >= KEY_SERVICES {
            return Err(Refusal::TooManyServicesOfKey { limit: KEY_SERVICES });
        }
        let in_workspace = registry.services().filter(|service| service.workspace == self.call.workspace());
        if in_workspace.filter(counts).count() >= WORKSPACE_SERVICES {
            return Err(Refusal::TooManyServices { limit: WORKSPACE_SERVICES });
        }
        Ok(())
    }

    /// Takes a service offline for good: frees its tunnel port and removes it from the list.
    fn withdraw(&self, name: &Name) {
        let service = &self.service_id(name);
        // Only this lookup is paid for a name that is not held: nothing paces what is withdrawn.
        let registry = self.core.records.registry();
        let held = registry.presence(service).filter(|online| online.channel == self.channel_id);
        if !held.is_some_and(|online| registry.is_here(online)) {
            return;
        }
        drop(registry);
        self.core.take_offline(self.channel_id, |id| id == service.as_str());
        self.core.close_tunnel(service, false);
        let dropped = self.core.records.change(|registry| {
            // Another process of this agent may have exposed it in the meantime.
            let gone = registry.service(service).filter(|_| registry.presence(service).is_none());
            let is_open = registry.open_services(clock::now()).any(|open| open == service.as_str());
            let change = |gone: &Service| {
                if is_open {
                    Change::Put(Record::Service(Service { withdrawn: true, ..gone.clone() }))
                } else {
                    Change::drop(Table::Service, service)
                }
            };
            Ok((gone.map(change).into_iter().collect(), ()))
        });
        if dropped.is_err() {
            log::debug!("{service} stays listed as offline until the store can be written");
        }
    }
}
