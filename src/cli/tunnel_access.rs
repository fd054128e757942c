//! By what right this machine opens tunnels: at which hub, as whom, by which share, and which agents may answer.
//!
//! Every tunnel is built here: those of `reach`, `join` and `dev`, those that the proxy opens for its requests, and the
//! hub's own tunnel ports.

use std::sync::Arc;

use super::call::Call;
use super::call::variable;
use super::say::Say;
use crate::api::Hub;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::fingerprint::Fingerprint;
use crate::model::name::Name;
use crate::model::service::Protocol;
use crate::net::stop::Stop;
use crate::os::peer_user;
use crate::os::secret;
use crate::state::agent_pins::AgentPins;
use crate::state::identity;
use crate::tls::identity::Identity;
use crate::tls::succession::replaced_by;
use crate::tunnel::joiner::OnJoinerEvent;
use crate::tunnel::joiner::PeerCheck;
use crate::tunnel::joiner::Tunnel;
use crate::tunnel::joiner::any_user;
use crate::tunnel::session_opener::SessionOpener;
use crate::wire::api::AskSession;
use crate::wire::api::Membership;
use crate::wire::api::SessionGrant;

pub struct TunnelAccess {
    pub hub: Arc<Hub>,
    pub identity: Identity,
    /// The share that opens the services. Without one, this machine's key does.
    pub share: Option<Membership>,
    /// As its owner calls it.
    pub share_name: Option<String>,
    /// The secret of the share's link is the only credential, so the hub rejects it once the share is gone.
    pub by_link: bool,
    pub agents: AcceptedAgents,
    /// Which local programs may connect to the ports.
    pub peer_check: PeerCheck,
    /// Whether sessions may go to the agent without the relay.
    pub may_be_direct: bool,
}

/// Which agent may answer for a service.
#[derive(Clone)]
pub enum AcceptedAgents {
    /// The one that the hub names. For the hub itself, whose registry says which it is.
    Any,
    /// The one that a link or a verified code names.
    Only(Fingerprint),
    /// The one that answered first, as `known_agents.json` remembers it.
    FirstSeen(AgentPins, Say),
}

/// What the owner of a tunnel learns about it. By default nothing.
pub struct TunnelObserver {
    pub on_event: OnJoinerEvent,
    /// Called with each session that the hub grants.
    pub on_protocol: Box<dyn Fn(Protocol) + Send + Sync>,
}

impl Default for TunnelObserver {
    fn default() -> Self {
        Self { on_event: Box::new(|_| ()), on_protocol: Box::new(|_| ()) }
    }
}

impl TunnelAccess {
    /// With this machine's own key.
    pub fn own(call: &Call, hub: Arc<Hub>, peer_check: PeerCheck) -> Result<Self> {
        let agents = AcceptedAgents::FirstSeen(call.agent_pins()?, call.say.clone());
        let identity = identity::load_or_temporary(&call.home)?;
        let may_be_direct = !call.args.flag("no-direct");
        Ok(Self {
            hub,
            identity,
            share: None,
            share_name: None,
            by_link: false,
            agents,
            peer_check,
            may_be_direct,
        })
    }

    /// The service with what it belongs to, as in `https://hub/db`. Two shares may have a service of one name each.
    pub fn scoped(&self, service: &Name) -> String {
        let share = self.share.as_ref().map(|share| format!("#{}", &secret::hash(&share.code)[..16]));
        format!("{}{}/{service}", self.hub.url, share.unwrap_or_default())
    }

    /// A tunnel to one service, by its name or its id. It has no port before `listen`, and nothing is sent before its
    /// first session. With `name` the agent must prove that it serves the service of this name, whatever the hub says.
    pub fn tunnel_to(
        &self,
        service: &str,
        name: Option<&Name>,
        observer: TunnelObserver,
        stop: &Stop,
    ) -> Result<Tunnel> {
        let mut ask = AskSession::of(service, self.identity.fingerprint);
        ask.share.clone_from(&self.share);
        let TunnelObserver { on_event, on_protocol } = observer;
        let agents = self.agents.clone();
        let (named, is_shared) = (name.cloned(), self.share.is_some());
        let check = move |granted: &SessionGrant, is_proven: bool| {
            on_protocol(granted.protocol);
            // Two shares may both have a `db`.
            let service = named.as_ref().unwrap_or(&granted.name).as_str();
            agents.check(if is_shared { &granted.agent_id } else { service }, granted, is_proven)
        };
        let mut opener =
            SessionOpener::new(Arc::clone(&self.hub), self.identity.clone(), ask, Box::new(check));
        if self.may_be_direct {
            opener = opener.may_be_direct();
        }
        if let Some(name) = name {
            opener = opener.expected(name);
        }
        Tunnel::new(opener, self.peer_check, on_event, stop)
    }

    /// The error to end with if waiting cannot help. An unknown service may still be exposed; a share does not come
    /// back, and neither does a key.
    pub fn final_error(&self, error: &Error) -> Option<Error> {
        match error.kind {
            ErrorKind::Refused(401) if !self.by_link => Some(
                Error::new("The hub no longer accepts this machine's key")
                    .hint("It was revoked or has expired: connect up --api-key KEY"),
            ),
            ErrorKind::Refused(401 | 404) if self.share.is_some() => Some(
                Error::new("The share was revoked or has expired")
                    .hint("Ask its owner for a new code: connect share"),
            ),
            _ => None,
        }
    }
}

/// Like `ssh -L`, a port is open to the machine's users, unless `--same-user` or its variable restricts it.
pub fn peer_check(call: &Call) -> Result<PeerCheck> {
    let by_variable = variable("CONNECT_SAME_USER").is_some_and(|value| value != "0");
    if !by_variable && !call.args.flag("same-user") {
        return Ok(any_user);
    }
    if peer_user::is_known_here() {
        return Ok(peer_user::same_user);
    }
    Err(Error::new("This system does not tell whose connection it is, so --same-user cannot be kept")
        .hint("Leave it out, or unset CONNECT_SAME_USER: then every user of this machine can use the ports"))
}

impl AcceptedAgents {
    /// The first agent is remembered once it `is_proven`: what a hub merely says must not stand in the way of the true one.
    /// An agent whose identity has replaced the accepted one, and was signed by it, is the same agent.
    fn check(&self, name: &str, granted: &SessionGrant, is_proven: bool) -> Result<()> {
        let agent = granted.agent_fingerprint;
        let replaced = replaced_by(agent, &granted.agent_chain);
        match self {
            Self::Only(named) if *named != agent && !replaced.contains(named) => Err(another_agent()),
            Self::Any | Self::Only(_) => Ok(()),
            Self::FirstSeen(pins, _) if !is_proven => pins.check(name, agent, &replaced).map(drop),
            Self::FirstSeen(pins, say) => {
                if pins.pin(name, agent, &replaced)? {
                    say.warn(&format!(
                        "The agent of {name} has a new identity, {}, signed by the one that was known",
                        agent.pin()
                    ));
                }
                Ok(())
            }
        }
    }
}

pub fn another_agent() -> Error {
    Error::new("The agent is not the one that this code names")
        .hint("Somebody may stand in between. Nothing was sent; ask the owner of the share")
}
