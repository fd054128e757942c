//! Serves the sessions that the hub offers: through the relay, or from a joiner that comes to the agent's own listener. The
//! agent dials only the targets that it exposes: the hub names a service, never an address.

use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use rustls::ServerConfig;

use super::AGENT_SESSION_LIMIT;
use super::AgentInner;
use super::ExposedService;
use super::OwnIdentity;
use crate::error::Error;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::fair_share::ServedSession;
use crate::net::address::HubUrl;
use crate::net::channel::ChannelSender;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::duplex::Duplex;
use crate::net::duplex::WriteLayer;
use crate::net::serve::ServeOptions;
use crate::net::serve::Server;
use crate::net::serve::each;
use crate::net::serve::shut;
use crate::net::stop::Stop;
use crate::os::lock::locked;
use crate::tls;
use crate::tls::TlsConnection;
use crate::tunnel::application;
use crate::tunnel::direct_listener::DIRECT_HANDSHAKE_TIMEOUT;
use crate::tunnel::direct_listener::DIRECT_HANDSHAKES;
use crate::tunnel::direct_listener::ExpectedConnection;
use crate::tunnel::served::SessionRecord;
use crate::tunnel::session::ServingEnd;
use crate::tunnel::session::Session;
use crate::tunnel::traffic::CarriedBytes;
use crate::wire::control::DirectReport;
use crate::wire::control::SessionOffer;
use crate::wire::control::ToHub;

/// A session that carries nothing and is not even pinged for this long has been left by its joiner, who pings every
/// five seconds.
const IDLE_TIMEOUT: Duration = Duration::from_mins(2);

impl AgentInner {
    /// Serves a session in a thread of its own. An error is the reason for declining it, for the joiner.
    pub fn begin_session(
        self: &Arc<Self>,
        offer: &SessionOffer,
        outgoing: &ChannelSender,
        at: &HubUrl,
    ) -> std::result::Result<(), String> {
        let Some(exposed) = self.exposed(&offer.service) else {
            log::warn!(
                "refused: the hub asked for {}, which is not exposed here",
                offer.service.escape_debug()
            );
            return Err("the agent does not expose this service".into());
        };
        if offer.relay.is_none() {
            let name = Self::application_of(&exposed, offer);
            let is_expected = self.direct.as_ref().is_some_and(|direct| direct.expect(name, offer.clone()));
            return if is_expected { Ok(()) } else { Err("it does not listen for direct sessions".into()) };
        }
        let stop = self.stop.child();
        self.admit(offer, &stop)?;
        let own = Arc::clone(self);
        let outgoing = outgoing.clone();
        let at = at.clone();
        let accepted = offer.clone();
        let spawned = self.threads.spawn("session", move || {
            let served = own.serve(&exposed, &accepted, &at, &stop);
            locked(&own.serving).remove(&accepted.session);
            if let Err(error) = served {
                log::debug!("a session to {} failed: {error}", exposed.exposure.name);
                // The joiner need not wait any longer. If both ends had met, the hub ignores this.
                let reason = "it cannot come to the relay".to_owned();
                outgoing.send(&ToHub::Decline { session: accepted.session, reason });
            }
        });
        spawned.map_err(|error| {
            locked(&self.serving).remove(&offer.session);
            log::warn!("cannot serve a session: {error}");
            "the agent has no thread left".into()
        })
    }

    fn exposed(&self, service: &str) -> Option<ExposedService> {
        let is_meant = |one: &&ExposedService| one.service.as_deref() == Some(service);
        locked(&self.exposures).all.iter().find(is_meant).cloned()
    }

    /// Counts the session. An error says for the joiner why it has no place.
    fn admit(&self, offer: &SessionOffer, stop: &Stop) -> std::result::Result<(), String> {
        let new = ServedSession {
            id: offer.session.clone(),
            principal: offer.principal.clone(),
            end: stop.clone(),
        };
        let admitted = locked(&self.serving).admit(new);
        if let Some(ended) = admitted.map_err(|()| "it serves too many sessions already")? {
            ended.stop();
        }
        Ok(())
    }

    /// Meets the joiner at the relay and carries its connections until the session ends, or `stop` ends it.
    fn serve(&self, exposed: &ExposedService, offer: &SessionOffer, at: &HubUrl, stop: &Stop) -> Result<()> {
        let is_draining = self.drain_watch();
        let deadline = Instant::now() + NETWORK_TIMEOUT;
        let ticket = offer.relay.as_ref().ok_or_else(|| Error::new("It has no ticket"))?;
        let below = self.hub.relay(at, &ticket.relay, &ticket.ticket, deadline)?;
        // Before the first byte: whatever comes of it, the hub knows of this session too.
        let name = &exposed.exposure.name;
        let record = self.served.as_ref().map(|served| served.begin(offer, name, at, "relay"));
        let Some(_cut) = stop.attach(&below.socket) else { return Ok(()) };
        let established = self.handshake(exposed, offer, below, deadline)?;
        self.say_secured(offer, &established);
        let mut session = exposed.start(established, record, stop)?;
        if let Some(direct) = &self.direct {
            let _ = session.say_addresses(&direct.reachable_at());
        }
        session.serve(IDLE_TIMEOUT, is_draining);
        Ok(())
    }

    /// Tells whether a hub has said since now that it is about to end. A session that begins meanwhile must know, too.
    fn drain_watch(&self) -> impl Fn() -> bool {
        let begun = self.drains.load(Ordering::Relaxed);
        move || self.drains.load(Ordering::Relaxed) != begun
    }

    fn application_of(exposed: &ExposedService, offer: &SessionOffer) -> Vec<u8> {
        application(offer.agent, &exposed.exposure.name, &offer.session)
    }

    fn handshake(
        &self,
        exposed: &ExposedService,
        offer: &SessionOffer,
        below: Duplex,
        deadline: Instant,
    ) -> Result<TlsConnection> {
        let meant = |own: &&OwnIdentity| own.identity.fingerprint == offer.agent;
        let tls = locked(&self.identities).iter().find(meant).map(|own| Arc::clone(&own.tls));
        let mut tls = ServerConfig::clone(&*tls.ok_or_else(|| Error::new("The hub named another identity"))?);
        tls.alpn_protocols = vec![Self::application_of(exposed, offer)];
        let mut established = tls::server(&Arc::new(tls), below, deadline, tls::BUFFER_BUSY)
            .or_say(|| "The joiner does not answer")?;
        if established.peer != Some(offer.peer) {
            let _ = established.writer.finish();
            let name = &exposed.exposure.name;
            log::warn!("refused: the joiner of a session to {name} is not the one the hub named");
            return Err(Error::new("Another joiner answered"));
        }
        // The TLS library lets a joiner pass that names no service.
        if established.application.is_none() {
            return Err(Error::new("The joiner names no service"));
        }
        Ok(established)
    }

    fn say_secured(&self, offer: &SessionOffer, established: &TlsConnection) {
        let (session, tls) = (offer.session.clone(), established.negotiated.clone());
        if let Some(channel) = &locked(&self.exposures).channel {
            channel.send(&ToHub::Secured { session, tls });
        }
    }

    pub fn listen_directly(self: &Arc<Self>, listener: TcpListener) -> Result<Server> {
        let own = Arc::clone(self);
        let serve = move |socket: Arc<TcpStream>| {
            if let Err(error) = own.serve_direct(&socket) {
                log::debug!("a direct session failed: {error}");
            }
        };
        let service = ServeOptions {
            name: "direct",
            limit: AGENT_SESSION_LIMIT + DIRECT_HANDSHAKES,
            new_worker: each(serve),
            idle: Some(DIRECT_HANDSHAKE_TIMEOUT),
            cut: shut,
            make_room: None,
            turn_away: Box::new(shut),
        };
        Server::start(listener, service, &self.stop)
    }

    /// A connection to the agent's own listener, from its first byte to its end.
    fn serve_direct(&self, socket: &Arc<TcpStream>) -> Result<()> {
        let Some(direct) = &self.direct else { return Ok(()) };
        let is_draining = self.drain_watch();
        let deadline = Instant::now() + DIRECT_HANDSHAKE_TIMEOUT;
        let peer = socket.peer_addr().or_say(|| "It has left")?.ip();
        let place = direct.admit(peer).ok_or_else(|| Error::new("Too many connect at the same time"))?;
        let heard = direct.hear(socket, deadline);
        let ExpectedConnection { offer, connection } =
            heard.ok_or_else(|| Error::new("Nobody expects it"))?;
        let exposed = self.exposed(&offer.service).ok_or_else(|| Error::new("Its service is withdrawn"))?;
        let established = self.handshake(&exposed, &offer, connection, deadline)?;
        if !direct.take(&Self::application_of(&exposed, &offer)) {
            return Err(Error::new("Its session has begun already"));
        }
        drop(place);
        self.say_secured(&offer, &established);
        let stop = self.stop.child();
        self.admit(&offer, &stop).map_err(Error::new)?;
        let began = Instant::now();
        let (name, at) = (&exposed.exposure.name, &self.hub.url);
        let record = self.served.as_ref().map(|served| served.begin(&offer, name, at, "direct"));
        let ended = exposed.start(established, record, &stop).map(|session| {
            direct.begin(&offer.session, &stop);
            self.send_reports();
            session.serve(IDLE_TIMEOUT, is_draining)
        });
        locked(&self.serving).remove(&offer.session);
        let CarriedBytes { to_agent, to_joiner } = ended?;
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        direct.over(DirectReport { session: offer.session, is_over: true, duration_ms, to_agent, to_joiner });
        self.send_reports();
        Ok(())
    }

    /// Tells the hub of the direct sessions, unless it is away.
    pub fn send_reports(&self) {
        let channel = locked(&self.exposures).channel.clone();
        if let (Some(direct), Some(channel)) = (&self.direct, channel) {
            for report in direct.take_reports() {
                channel.send(&ToHub::Direct(report));
            }
        }
    }
}

impl ExposedService {
    fn start(
        &self,
        established: TlsConnection,
        record: Option<SessionRecord>,
        stop: &Stop,
    ) -> Result<Session> {
        let serving = ServingEnd { target: self.exposure.target.clone(), record };
        let started = Session::start(established, Some(serving), Arc::clone(&self.traffic), stop);
        started.or_say(|| "Cannot start a session")
    }
}
