//! One service of a party: what is wanted, by what right, and how it is now.

use std::sync::Arc;
use std::sync::OnceLock;

use serde_json::json;

use super::call::Call;
use super::say::Say;
use crate::api::Hub;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::model::fingerprint::Fingerprint;
use crate::model::name::Name;
use crate::model::port_choice::candidates;
use crate::model::service::Protocol;
use crate::net::address::HubUrl;
use crate::net::serve::BoundPort;
use crate::state::home::Home;
use crate::state::ports;
use crate::state::routes;
use crate::state::routes::OwnRoute;
use crate::state::runs::OpenService;
use crate::tls::identity::Identity;
use crate::tunnel::joiner::Tunnel;
use crate::wire::api::Membership;

/// A service that is to be brought here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelSpec {
    pub name: Name,
    /// How the hub is asked for it: its id where it is known, else its name.
    pub service: String,
    pub port: u16,
    /// The port was chosen for this call, so the one of last time does not matter.
    pub chosen: bool,
    pub strict: bool,
}

/// By what right services are asked for, and whose agent must answer.
pub struct TunnelAccess {
    pub hub: Arc<Hub>,
    pub identity: Identity,
    pub share: Option<Membership>,
    /// The share's link is the only credential: both die together.
    pub by_link: bool,
    /// What stands before the service's name in `known_agents.json`.
    pub known_as: String,
    /// The agent that alone will do; without one the first is pinned.
    pub agent: Option<Fingerprint>,
}

/// One of them, as it is now.
pub struct LocalTunnel {
    pub wanted: TunnelSpec,
    pub tunnel: Option<Tunnel>,
    pub trouble: Option<Error>,
    /// It has been there at least once.
    pub seen: bool,
    /// Listed in `active-routes.json` for as long as this lives.
    pub route: Option<OwnRoute>,
    /// What is spoken there, as the hub says with the first session.
    pub protocol: Arc<OnceLock<Protocol>>,
}

impl LocalTunnel {
    pub fn port(&self) -> Option<u16> {
        self.tunnel.as_ref().map(|tunnel| tunnel.port).filter(|port| *port > 0)
    }

    /// A service that answers gets its port; before that it has none.
    pub fn take_port(&mut self, home: &Home, hub: &HubUrl) {
        let Some(tunnel) = self.tunnel.as_mut().filter(|tunnel| tunnel.port == 0 && tunnel.is_up()) else {
            return;
        };
        let wanted = &self.wanted;
        let last = || ports::last_time(home, &hub.to_string(), wanted.name.as_str());
        let last = if wanted.chosen { None } else { last() };
        let bound = BoundPort::first_free(candidates(wanted.port, last, wanted.strict));
        self.trouble = match bound {
            Some(bound) => tunnel.listen(bound).err(),
            None => Some(no_port(wanted)),
        };
        self.seen |= self.trouble.is_none();
    }

    /// Lists the tunnel as a route and remembers its port. A state folder that cannot be written costs the list,
    /// not the tunnel.
    pub fn list(&mut self, home: &Home, hub: &HubUrl) {
        let Some(port) = self.port().filter(|_| self.route.is_none()) else { return };
        let (name, protocol) = (self.wanted.name.as_str(), self.protocol.get().copied().unwrap_or_default());
        let remembered = ports::remember(home, &hub.to_string(), name, port);
        let listed = remembered.and_then(|()| routes::add(home, name, port, protocol));
        self.route = listed.inspect_err(|error| log::info!("{name} is not listed as a route: {error}")).ok();
    }

    /// `STAGING_DB_HOST`, `STAGING_DB_PORT` and `STAGING_DB_ADDR` for the service `staging-db`.
    pub fn environment(&self) -> Vec<(String, String)> {
        let Some(port) = self.port() else { return Vec::new() };
        let name = self.wanted.name.for_environment();
        vec![
            (format!("{name}_HOST"), "127.0.0.1".to_owned()),
            (format!("{name}_PORT"), port.to_string()),
            (format!("{name}_ADDR"), format!("127.0.0.1:{port}")),
        ]
    }

    /// What stands in its way, in words.
    pub fn why(&self) -> Option<String> {
        self.trouble.as_ref().map(ToString::to_string)
    }

    /// For `connect status`.
    pub fn open(&self) -> Option<OpenService> {
        let tunnel = self.tunnel.as_ref()?;
        Some(OpenService {
            name: self.wanted.name.to_string(),
            at: format!("localhost:{}", tunnel.port),
            up: self.trouble.is_none(),
            trouble: self.why(),
            sessions: tunnel.sessions(),
            bytes: tunnel.bytes(),
        })
    }

    pub fn say_up(&self, say: &Say, how: &str) {
        let (name, event) = (&self.wanted.name, if how == "is back" { "back" } else { "up" });
        say.event(&json!({ "event": event, "name": name, "localPort": self.port() }));
        say.line(&format!("[ok] {name} → {} {how}", self.shown()));
    }

    /// `localhost:5433 (was 5432)`
    pub fn shown(&self) -> String {
        match self.port() {
            Some(port) if port != self.wanted.port => format!("localhost:{port} (was {})", self.wanted.port),
            Some(port) => format!("localhost:{port}"),
            None => "no port".to_owned(),
        }
    }
}

impl TunnelAccess {
    /// That of this machine's own key.
    pub fn own(call: &Call, hub: Arc<Hub>) -> Result<Self> {
        let (identity, known_as) = (call.identity()?, hub.url.to_string());
        Ok(Self { hub, identity, share: None, by_link: false, known_as, agent: None })
    }

    /// What no waiting mends. A service that is unknown may still come; a share does not come back.
    pub fn the_end(&self, error: &Error) -> Option<Error> {
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

fn no_port(wanted: &TunnelSpec) -> Error {
    if wanted.strict {
        let hint = format!("Choose another: --port {}=PORT, or leave out --strict-ports", wanted.name);
        return Error::new(format!("Port {} in use", wanted.port)).hint(hint);
    }
    Error::new(format!("Port {} in use and no alternatives available", wanted.port))
        .hint(format!("Stop what holds it: lsof -ti:{0} | xargs kill, or choose another port", wanted.port))
}

pub fn another_agent() -> Error {
    Error::new("The agent is not the one that this code names")
        .hint("Somebody may stand in between. Nothing was sent; ask the owner of the share")
}
