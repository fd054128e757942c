//! One service on a port of this machine: what was asked for, and how its tunnel is now.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::mpsc::Sender;
use std::time::Duration;

use serde_json::json;

use super::event::SupervisorEvent;
use crate::cli::call::Call;
use crate::cli::say::Say;
use crate::cli::tunnel_access::TunnelAccess;
use crate::cli::tunnel_access::TunnelObserver;
use crate::error::Error;
use crate::error::Result;
use crate::model::name::Name;
use crate::model::port_choice::candidates;
use crate::model::service::Protocol;
use crate::net::serve::BoundPort;
use crate::os::process;
use crate::state::home::Home;
use crate::state::ports;
use crate::state::routes;
use crate::state::routes::OwnRoute;
use crate::state::runs::OpenService;
use crate::tunnel::joiner::Tunnel;

/// A service that shall have a port on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelSpec {
    pub name: Name,
    /// What the hub is asked for: the service's id if it is known, else its name.
    pub service: String,
    /// The port that the user names; another one only if this is taken and `strict` is not set.
    pub asked: Option<u16>,
    /// The service's own port.
    pub original: u16,
    /// Fail rather than take another port than the first choice.
    pub strict: bool,
}

impl TunnelSpec {
    /// Whether a tunnel for `other` serves this one too. A port that nobody asked for may be any.
    pub fn is_met_by(&self, other: &Self) -> bool {
        self.name == other.name && self.asked == other.asked
    }

    pub fn first_choice(&self) -> u16 {
        self.asked.unwrap_or(self.original)
    }
}

pub struct LocalTunnel {
    pub spec: TunnelSpec,
    /// Why the service cannot be used now.
    pub trouble: Option<Error>,
    access: Arc<TunnelAccess>,
    home: Home,
    tunnel: Tunnel,
    has_been_up: bool,
    /// The tunnel's line in `active-routes.json`, which goes with this.
    route: Option<OwnRoute>,
    /// As the hub said with the first session.
    protocol: Arc<OnceLock<Protocol>>,
}

impl LocalTunnel {
    /// A tunnel that has no port yet: a service gets its port when it answers.
    pub fn new(
        call: &Call,
        access: &Arc<TunnelAccess>,
        spec: TunnelSpec,
        events: &Sender<SupervisorEvent>,
    ) -> Result<Self> {
        let protocol = Arc::new(OnceLock::new());
        let granted = Arc::clone(&protocol);
        let (name, events) = (spec.name.clone(), events.clone());
        let observer = TunnelObserver {
            on_event: Box::new(move |event| _ = events.send(SupervisorEvent::Tunnel(name.clone(), event))),
            on_protocol: Box::new(move |protocol| _ = granted.set(protocol)),
        };
        let tunnel = access.tunnel_to(&spec.service, Some(&spec.name), observer, &call.stop)?;
        Ok(Self {
            spec,
            trouble: None,
            access: Arc::clone(access),
            home: call.home.clone(),
            tunnel,
            has_been_up: false,
            route: None,
            protocol,
        })
    }

    pub fn is_up(&self) -> bool {
        self.tunnel.is_up()
    }

    pub fn negotiated(&self) -> Option<&String> {
        self.tunnel.negotiated()
    }

    /// Has the agent reach the target. The port is for `take_port`.
    pub fn check(&mut self, timeout: Duration) {
        self.trouble = self.tunnel.check_target(timeout).err();
    }

    /// From now on the tunnel's changes arrive as events.
    pub fn report_changes(&self) {
        self.tunnel.report_changes();
    }

    pub fn port(&self) -> Option<u16> {
        Some(self.tunnel.port).filter(|port| *port > 0)
    }

    /// Gives a service that answers its port. A port taken earlier could be the very one that the service itself is
    /// about to take, on a machine that is agent and joiner both.
    pub fn take_port(&mut self) {
        if self.port().is_some() || !self.is_up() {
            return;
        }
        let spec = &self.spec;
        let last = ports::last_alternative(&self.home, &self.access.scoped(&spec.name));
        let tries = if spec.strict { 1 } else { usize::MAX };
        match BoundPort::first_free(candidates(spec.asked, spec.original, last).take(tries)) {
            Some(bound) => self.trouble = self.tunnel.listen(bound).err(),
            // Once: finding the holder takes a walk through all processes, and every poll tries the port again.
            None if self.trouble.is_none() => self.trouble = Some(no_port(spec)),
            None => {}
        }
        self.has_been_up |= self.trouble.is_none();
    }

    /// Lists the tunnel as a route and remembers its port. If the state folder cannot be written, the tunnel works all
    /// the same.
    pub fn list_route(&mut self) {
        let Some(port) = self.port().filter(|_| self.route.is_none()) else { return };
        let name = self.spec.name.as_str();
        let protocol = self.protocol.get().copied().unwrap_or_default();
        // Only a port that nobody asked for is remembered, and only until the service's own is available.
        let alternative = (port != self.spec.original).then_some(port);
        let is_typed = alternative.is_some() && alternative == self.spec.asked;
        let service = self.access.scoped(&self.spec.name);
        let remembered = if is_typed { Ok(()) } else { ports::remember(&self.home, &service, alternative) };
        let share = self.access.share_name.as_deref();
        let listed = remembered.and_then(|()| routes::add(&self.home, name, port, protocol, share));
        self.route = listed.inspect_err(|error| log::info!("{name} is not listed as a route: {error}")).ok();
    }

    /// The service answers again, or for the first time.
    pub fn came_up(&mut self, say: &Say) {
        let returned = self.has_been_up;
        self.trouble = None;
        self.take_port();
        match &self.trouble {
            None => self.say_up(say, returned),
            Some(error) => say.warn(&format!("{} → failed: {error}", self.spec.name)),
        }
    }

    /// The service is gone for now; `is_told` if another one has gone for the same reason. An error means for good: there is nothing left to wait for.
    pub fn went_down(&mut self, say: &Say, error: Error, is_told: bool) -> Result<()> {
        if let Some(final_error) = self.access.final_error(&error) {
            return Err(final_error);
        }
        // An unreachable hub that then returns without the agent is one outage, reported once.
        if self.trouble.is_none() {
            let name = &self.spec.name;
            say.event(&json!({ "event": "down", "name": name, "reason": error.to_string() }));
            if !is_told {
                say.warn(&format!("{name} is away: {error}"));
            }
        }
        self.trouble = Some(error);
        Ok(())
    }

    pub fn say_up(&self, say: &Say, returned: bool) {
        let name = &self.spec.name;
        let (event, how) = if returned { ("back", "is back") } else { ("up", "is there now") };
        say.event(&json!({ "event": event, "name": name, "localPort": self.port() }));
        say.line(&format!("[ok] {name} → {} {how}", self.shown_address()));
    }

    /// The error to end with, if waiting for this service cannot help.
    pub fn final_error(&self) -> Option<Error> {
        self.trouble.as_ref().and_then(|error| self.access.final_error(error))
    }

    pub fn reason(&self) -> Option<String> {
        self.trouble.as_ref().map(ToString::to_string)
    }

    /// `localhost:5433 (was 5432)`
    pub fn shown_address(&self) -> String {
        let first_choice = self.spec.first_choice();
        match self.port() {
            Some(port) if port != first_choice => format!("localhost:{port} (was {first_choice})"),
            Some(port) => format!("localhost:{port}"),
            None => "no port".to_owned(),
        }
    }

    /// `STAGING_DB_HOST`, `STAGING_DB_PORT` and `STAGING_DB_ADDR` for the service `staging-db`.
    pub fn environment(&self) -> Vec<(String, String)> {
        let Some(port) = self.port() else { return Vec::new() };
        let name = self.spec.name.for_environment();
        vec![
            (format!("{name}_HOST"), "127.0.0.1".to_owned()),
            (format!("{name}_PORT"), port.to_string()),
            (format!("{name}_ADDR"), format!("127.0.0.1:{port}")),
        ]
    }

    pub fn path(&self) -> String {
        self.tunnel.path()
    }

    /// For `connect status`.
    pub fn open_service(&self) -> OpenService {
        OpenService {
            name: self.spec.name.to_string(),
            at: format!("localhost:{}", self.tunnel.port),
            exposed: false,
            up: self.trouble.is_none(),
            trouble: self.reason(),
            path: Some(self.tunnel.path()),
            sessions: self.tunnel.sessions(),
            bytes: self.tunnel.bytes(),
        }
    }
}

fn no_port(spec: &TunnelSpec) -> Error {
    let port = spec.first_choice();
    if spec.strict {
        let lenient = if spec.asked.is_some() { "" } else { ", or leave out --strict-ports" };
        return Error::new(format!("Port {port} in use{}", process::shown_holder(port)))
            .with_code("port-in-use")
            .hint(format!("Stop what holds it, or choose another port{lenient}"));
    }
    Error::new(format!("Port {port} in use and no alternatives available"))
        .with_code("port-in-use")
        .hint(format!("Stop what holds it: lsof -ti:{port} | xargs kill, or choose another port"))
}
