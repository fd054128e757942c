//! How a session to one service is opened: directly to the agent if that works, otherwise through the hub's relay.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Instant;

use rustls::AlertDescription;
use rustls::ClientConfig;

use super::application;
use super::direct;
use super::direct::DirectPath;
use super::session::Session;
use super::traffic::TrafficCounters;
use crate::api::Hub;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::fingerprint::Fingerprint;
use crate::model::name::Name;
use crate::model::text::one_line;
use crate::net::address::HubUrl;
use crate::net::duplex::Duplex;
use crate::net::stop::Stop;
use crate::os::lock::locked;
use crate::tls;
use crate::tls::TlsConnection;
use crate::tls::identity::Identity;
use crate::tls::trust;
use crate::wire::api::AskSession;
use crate::wire::api::SessionGrant;

/// Decides whether the agent that the hub names is the right one: before anything is sent to it, and again with `true` when
/// it has proved to be that agent.
pub type AgentCheck = Box<dyn Fn(&SessionGrant, bool) -> Result<()> + Send + Sync>;

/// Opens sessions to one service.
pub struct SessionOpener {
    hub: Arc<Hub>,
    identity: Identity,
    /// For the agent of the last session that was granted: TLS resumes a session only with the same settings.
    tls: Mutex<Option<(Fingerprint, Arc<ClientConfig>)>>,
    ask: AskSession,
    /// The name that the service must have; `None` accepts the name that the hub gives.
    expected: Option<Name>,
    agent_check: AgentCheck,
    pub direct: DirectPath,
}

impl SessionOpener {
    pub fn new(hub: Arc<Hub>, identity: Identity, ask: AskSession, agent_check: AgentCheck) -> Self {
        Self {
            hub,
            identity,
            tls: Mutex::default(),
            ask,
            expected: None,
            agent_check,
            direct: DirectPath::default(),
        }
    }

    /// Sessions may go to the agent itself, where it says how.
    pub fn may_be_direct(self) -> Self {
        Self { direct: DirectPath::allowed(), ..self }
    }

    /// The agent must serve the service of this name, even if the hub names another.
    pub fn expected(self, name: &Name) -> Self {
        Self { expected: Some(name.clone()), ..self }
    }

    /// Asks the hub for a session and starts it with the agent: directly if that works, else through the relay.
    pub fn open(&self, traffic: &Arc<TrafficCounters>, deadline: Instant, stop: &Stop) -> Result<Session> {
        if let Some(address) = self.direct.working() {
            match self.open_direct(&[address], traffic, deadline, stop) {
                Ok(session) => return Ok(session),
                Err(error) => self.direct.failed(&error),
            }
        }
        let (granted, at) = self.ask(false, deadline)?;
        let ticket =
            granted.relay.as_ref().ok_or_else(|| Error::new("The hub gave no ticket for its relay"))?;
        // The relay answers when the agent has come to it, too.
        let relay = self.hub.relay(&at, &ticket.relay, &ticket.ticket, deadline);
        let relay = relay.map_err(|error| self.why_not_met(error, &granted.session, &at, deadline))?;
        let _cut = stop.attach(&relay.socket).ok_or_else(Error::stopped)?;
        let established = self.handshake(&granted, relay, deadline)?;
        log::debug!("session {} to {} by the relay of {at}", granted.session, granted.name);
        self.start(&granted, established, traffic, stop)
    }

    /// Opens a session to the agent at the first of these addresses where it answers, and remembers which that is.
    pub fn open_direct(
        &self,
        addresses: &[SocketAddr],
        traffic: &Arc<TrafficCounters>,
        deadline: Instant,
        stop: &Stop,
    ) -> Result<Session> {
        let (granted, _) = self.ask(true, deadline)?;
        let prove = |connection, deadline| self.handshake(&granted, connection, deadline);
        let (established, address) = direct::reach_agent(addresses, stop, prove)?;
        log::debug!("session {} to {} directly, at {address}", granted.session, granted.name);
        let mut session = self.start(&granted, established, traffic, stop)?;
        session.is_direct = true;
        self.direct.works(address);
        Ok(session)
    }

    fn ask(&self, direct: bool, deadline: Instant) -> Result<(SessionGrant, HubUrl)> {
        let asked = self.hub.until(deadline).ask_session(&AskSession { direct, ..self.ask.clone() })?;
        (self.agent_check)(&asked.0, false)?;
        Ok(asked)
    }

    fn start(
        &self,
        granted: &SessionGrant,
        established: TlsConnection,
        traffic: &Arc<TrafficCounters>,
        stop: &Stop,
    ) -> Result<Session> {
        (self.agent_check)(granted, true)?;
        let _ = traffic.negotiated.set(established.negotiated.clone());
        Session::start(established, None, Arc::clone(traffic), stop).or_say(|| "Cannot start a session")
    }

    /// Asks the hub why the relay did not open.
    fn why_not_met(&self, error: Error, session: &str, at: &HubUrl, deadline: Instant) -> Error {
        if error.kind != ErrorKind::Unreachable {
            return error;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Error::new("The machine that offers it does not answer")
                .hint("Run connect status there")
                .kind(ErrorKind::Unreachable);
        }
        match self.hub.with_timeout(left).declined(at, session) {
            Ok(Some(reason)) => Error::new(format!("The agent declined: {}", one_line(&reason)))
                .kind(ErrorKind::Refused(503))
                .with_code("declined"),
            Err(refused) if matches!(refused.kind, ErrorKind::Refused(_)) => refused,
            _ => error,
        }
    }

    fn settings_for(&self, agent: Fingerprint) -> Result<Arc<ClientConfig>> {
        let mut known = locked(&self.tls);
        if let Some((_, tls)) = known.as_ref().filter(|(of, _)| *of == agent) {
            return Ok(Arc::clone(tls));
        }
        let tls = trust::session_client(&self.identity, agent)?;
        *known = Some((agent, Arc::clone(&tls)));
        Ok(tls)
    }

    /// Succeeds only with the agent that the hub named, and only if that agent serves the service that is meant.
    fn handshake(
        &self,
        granted: &SessionGrant,
        connection: Duplex,
        deadline: Instant,
    ) -> Result<TlsConnection> {
        let service = self.expected.as_ref().unwrap_or(&granted.name);
        let meant = application(granted.agent_fingerprint, service, &granted.session);
        let mut tls = ClientConfig::clone(&*self.settings_for(granted.agent_fingerprint)?);
        tls.alpn_protocols = vec![meant.clone()];
        // rustls stores resumption data under this name. It proves nothing; the fingerprint does.
        let name = format!("{}.agent", granted.agent_fingerprint.pin());
        let established = tls::client(&Arc::new(tls), &name, connection, deadline).map_err(|error| {
            match tls_error(&error) {
                Some(rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
                    another_service(service)
                }
                Some(rustls::Error::InvalidCertificate(_)) => another_agent(service),
                _ => {
                    tls::nothing_in_common(&error, &format!("The agent of {service}")).unwrap_or_else(|| {
                        // Between here and the agent anybody may have said it, so its words are not shown.
                        let why = error.to_string();
                        Error::new(format!("The agent of {service} does not answer"))
                            .because(why.split(tls::SAID).next().unwrap_or_default())
                            .kind(ErrorKind::Unreachable)
                    })
                }
            }
        })?;
        if established.peer != Some(granted.agent_fingerprint) {
            return Err(another_agent(service));
        }
        if established.application != Some(meant) {
            return Err(another_service(service));
        }
        Ok(established)
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|why| why.downcast_ref())
}

fn another_agent(wanted: &Name) -> Error {
    Error::new(format!("Another agent answered for {wanted}"))
        .hint("Somebody may stand in between. Nothing was sent; ask the owner for a verified code")
}

fn another_service(wanted: &Name) -> Error {
    Error::new(format!("The hub connected us to a different service than {wanted}"))
        .hint("Nothing was sent to it. Ask the hub's admin")
}
