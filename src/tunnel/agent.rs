//! The agent's side: keeps a control channel to the hub, exposes services through it, and serves the sessions that the
//! hub offers on it. The agent dials only the targets that it exposes: the hub names a service, never an address.

use std::io;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use rustls::ServerConfig;

use super::application;
use super::direct_listener::DIRECT_HANDSHAKE_TIMEOUT;
use super::direct_listener::DIRECT_HANDSHAKES;
use super::direct_listener::DirectListener;
use super::direct_listener::ExpectedConnection;
use super::served::RecordedSession;
use super::served::ServedLog;
use super::served::SessionRecord;
use super::session::ServingEnd;
use super::session::Session;
use super::traffic::CarriedBytes;
use super::traffic::TrafficCounters;
use crate::api::Hub;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::model::backoff::Backoff;
use crate::model::fair_share::FairShare;
use crate::model::fair_share::ServedSession;
use crate::model::hub_records::AuditHead;
use crate::model::name::Name;
use crate::model::service::Protocol;
use crate::model::session_protocol::LOST_HUB_SECONDS;
use crate::model::target::Target;
use crate::model::text::one_line;
use crate::net::address::HubUrl;
use crate::net::channel::ChannelSender;
use crate::net::channel::MessageChannel;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::duplex::Duplex;
use crate::net::duplex::WriteLayer;
use crate::net::serve::ServeOptions;
use crate::net::serve::Server;
use crate::net::serve::each;
use crate::net::serve::shut;
use crate::net::stop::Stop;
use crate::net::threads::ThreadGroup;
use crate::os::lock::locked;
use crate::os::secret;
use crate::state::home::Home;
use crate::state::hub_heads;
use crate::tls;
use crate::tls::TlsConnection;
use crate::tls::identity::Identity;
use crate::tls::succession::replaced_by;
use crate::tls::trust;
use crate::wire::control::DirectReport;
use crate::wire::control::SessionOffer;
use crate::wire::control::ToAgent;
use crate::wire::control::ToHub;

/// Sessions served at once. Each costs two threads and up to three descriptors.
const AGENT_SESSION_LIMIT: usize = 4096;
/// A session that carries nothing and is not even pinged for this long has been left by its joiner, who pings every
/// five seconds.
const IDLE_TIMEOUT: Duration = Duration::from_mins(2);
/// An attempt to reconnect is given up after this long without an answer: the next may find that the hub is back.
const RECONNECT_TIMEOUT: Duration = Duration::from_millis(2500);
/// Without the hub nobody can end a direct session whose right has ended.
const LOST_HUB_TIMEOUT: Duration = Duration::from_secs(LOST_HUB_SECONDS);
/// Withdrawing the services may delay the end of the process by this much.
const WITHDRAW_TIMEOUT: Duration = Duration::from_millis(300);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposure {
    pub name: Name,
    pub target: Target,
    pub protocol: Protocol,
}

#[derive(Debug)]
pub enum AgentEvent {
    /// The hub knows the service; the id is the same after every reconnection.
    Exposed {
        name: Name,
        service: String,
        tunnel_port: Option<u16>,
    },
    Refused {
        name: Name,
        error: Error,
    },
    /// The hub offers the next secret of this machine's key, sealed.
    NextKey {
        sealed: String,
    },
    /// The control channel is gone. The agent keeps reconnecting.
    Lost(Error),
    /// The agent has reconnected.
    Back,
}

pub type OnAgentEvent = Box<dyn Fn(AgentEvent) + Send + Sync>;

/// How this agent identifies itself to the hub and to joiners.
pub struct AgentProfile {
    pub id: String,
    pub label: String,
    pub identity: Identity,
    /// Its own word for the share that its services belong to.
    pub share: Option<String>,
    /// Where it keeps what it knows of the hub.
    pub home: Home,
    /// Where it listens for joiners that come without the relay, if it does.
    pub direct: Option<SocketAddr>,
}

pub struct RunningAgent {
    inner: Arc<AgentInner>,
    _direct: Option<Server>,
}

struct AgentInner {
    hub: Arc<Hub>,
    id: String,
    label: String,
    share: Option<String>,
    /// The one in use and the one that it has replaced, for sessions that were granted before.
    identities: Mutex<Vec<OwnIdentity>>,
    home: Home,
    served: Option<Arc<ServedLog>>,
    exposures: Mutex<Exposures>,
    on_event: OnAgentEvent,
    threads: ThreadGroup,
    serving: Mutex<FairShare<Stop>>,
    /// How often a hub has said that it is about to end.
    drains: AtomicUsize,
    direct: Option<DirectListener>,
    stop: Stop,
}

struct OwnIdentity {
    identity: Identity,
    tls: Arc<ServerConfig>,
}

impl OwnIdentity {
    fn new(identity: Identity) -> Result<Self> {
        Ok(Self { tls: trust::session_server(&identity)?, identity })
    }
}

#[derive(Default)]
struct Exposures {
    all: Vec<ExposedService>,
    /// The control channel, while there is one.
    channel: Option<ChannelSender>,
}

#[derive(Clone)]
struct ExposedService {
    exposure: Exposure,
    traffic: Arc<TrafficCounters>,
    /// The id from the hub, once it knows the service.
    service: Option<String>,
}

impl RunningAgent {
    pub fn start(hub: Arc<Hub>, profile: AgentProfile, on_event: OnAgentEvent, stop: &Stop) -> Result<Self> {
        let stop = stop.child();
        let (direct, listener) = profile.direct.map(DirectListener::bind).transpose()?.unzip();
        let served = ServedLog::open(&profile.home, &profile.id);
        let served = served.inspect_err(|error| log::warn!("what is served is not recorded: {error}"));
        let inner = Arc::new(AgentInner {
            hub,
            id: profile.id,
            label: profile.label,
            share: profile.share,
            identities: Mutex::new(vec![OwnIdentity::new(profile.identity)?]),
            home: profile.home,
            served: served.ok().map(Arc::new),
            exposures: Mutex::default(),
            on_event,
            threads: ThreadGroup::default(),
            serving: Mutex::new(FairShare::new(AGENT_SESSION_LIMIT)),
            drains: AtomicUsize::new(0),
            direct,
            stop,
        });
        let direct = listener.map(|listener| inner.listen_directly(listener)).transpose()?;
        let own = Arc::clone(&inner);
        inner.threads.spawn("agent", move || own.run())?;
        Ok(Self { inner, _direct: direct })
    }

    /// Where it listens for direct sessions.
    pub fn direct_address(&self) -> Option<SocketAddr> {
        self.inner.direct.as_ref().map(DirectListener::address)
    }

    pub fn expose(&self, exposure: Exposure) {
        let mut exposures = locked(&self.inner.exposures);
        if let Some(channel) = &exposures.channel {
            channel.send(&expose_message(&exposure));
        }
        exposures.all.push(ExposedService { exposure, traffic: Arc::default(), service: None });
    }

    pub fn withdraw(&self, name: &Name) {
        let mut exposures = locked(&self.inner.exposures);
        exposures.all.retain(|one| one.exposure.name != *name);
        if let Some(channel) = &exposures.channel {
            channel.send(&ToHub::Withdraw { name: name.clone() });
        }
    }

    pub fn hub(&self) -> &Hub {
        &self.inner.hub
    }

    /// Registers at the hub again, which shows it the key that is in use now.
    pub fn register(&self) -> Result<()> {
        self.inner.register(&self.inner.hub)
    }

    /// Answers as the successor of its identity from now on, where the hub has told the joiner so. False if it is none.
    pub fn use_identity(&self, identity: Identity) -> Result<bool> {
        let mut identities = locked(&self.inner.identities);
        let replaced = replaced_by(identity.fingerprint, &identity.chain);
        let is_successor = replaced.contains(&identities[0].identity.fingerprint); // There is always one.
        if is_successor {
            identities.insert(0, OwnIdentity::new(identity)?);
            identities.truncate(2);
        }
        Ok(is_successor)
    }

    /// All exposed services, with the traffic of each.
    pub fn traffic(&self) -> Vec<(Exposure, Arc<TrafficCounters>)> {
        let exposures = locked(&self.inner.exposures);
        exposures.all.iter().map(|one| (one.exposure.clone(), Arc::clone(&one.traffic))).collect()
    }
}

impl Drop for RunningAgent {
    fn drop(&mut self) {
        self.inner.stop.stop();
        self.inner.threads.join(|| ());
    }
}

fn expose_message(exposure: &Exposure) -> ToHub {
    ToHub::Expose { name: exposure.name.clone(), port: exposure.target.port, protocol: exposure.protocol }
}

impl AgentInner {
    /// The agent's thread: connects, listens until the channel is lost, waits, and begins again.
    fn run(self: &Arc<Self>) {
        let retrying = self.hub.with_timeout(RECONNECT_TIMEOUT);
        let mut backoff = Backoff::default();
        // The kind of the last loss reported, so that each kind is reported once.
        let mut reported = None;
        let mut lost_at = Instant::now();
        while !self.stop.is_stopped() {
            let began = Instant::now();
            let hub = if reported.is_some() { &retrying } else { &*self.hub };
            let connected = self.connect(hub);
            // The time of a failed attempt counts as waiting; the time of a channel that was open does not.
            let is_up = connected.is_ok();
            let waited = if connected.is_err() { began.elapsed() } else { Duration::ZERO };
            let ended = connected.and_then(|(mut channel, at)| {
                backoff.reset();
                if reported.take().is_some() {
                    (self.on_event)(AgentEvent::Back);
                }
                self.listen(&mut channel, &at)
            });
            locked(&self.exposures).channel = None;
            if self.stop.is_stopped() {
                return;
            }
            let error = ended.err().unwrap_or_else(|| Error::new("The hub ended the control channel"));
            if is_up {
                lost_at = Instant::now();
            }
            if !error.may_pass() || lost_at.elapsed() >= LOST_HUB_TIMEOUT {
                self.direct.iter().for_each(DirectListener::end_all);
            }
            // One report for each outage. A second one only for an error that retrying cannot help, like a revoked key or
            // a different hub at that address.
            if reported.is_none() || (!error.may_pass() && reported != Some(error.kind)) {
                reported = Some(error.kind);
                (self.on_event)(AgentEvent::Lost(error));
            }
            self.stop.wait_for(backoff.next(secret::number()).saturating_sub(waited));
        }
    }

    fn register(&self, hub: &Hub) -> Result<()> {
        let identity = locked(&self.identities)[0].identity.clone(); // There is always one.
        hub.register(&self.id, &self.label, &identity).map(drop)
    }

    /// Registers, opens the control channel, and exposes all services again: after a loss the hub may have forgotten
    /// them.
    fn connect(&self, hub: &Hub) -> Result<(MessageChannel, HubUrl)> {
        self.register(hub)?;
        let (stream, at) = hub.control()?;
        let mut channel = MessageChannel::start(stream).or_say(|| "Cannot use the control channel")?;
        let cut = self.stop.attach(&channel.socket()).ok_or_else(Error::stopped)?;
        let outgoing = channel.outgoing();
        outgoing.send(&ToHub::Hello { agent: self.id.clone(), share: self.share.clone() });
        match channel.first::<ToAgent>(Instant::now() + NETWORK_TIMEOUT) {
            Ok(ToAgent::Welcome) => {}
            Ok(ToAgent::Full) => {
                return Err(Error::new("Too many processes of this machine expose services")
                    .hint("Let one expose several: connect expose NAME PORT --keep")
                    .kind(ErrorKind::Refused(503)));
            }
            Ok(_) => return Err(Error::new("The hub does not speak the control protocol")),
            Err(error) => return Err(connection_lost(error)),
        }
        // From here on a stop must leave the channel open, to withdraw what it exposes.
        drop(cut);
        let mut exposures = locked(&self.exposures);
        for one in &exposures.all {
            outgoing.send(&expose_message(&one.exposure));
        }
        exposures.channel = Some(outgoing);
        drop(exposures);
        self.direct.iter().for_each(DirectListener::report_again);
        self.send_reports();
        Ok((channel, at))
    }

    /// Handles the hub's messages until the channel is lost. On a stop, withdraws all services.
    fn listen(self: &Arc<Self>, channel: &mut MessageChannel, at: &HubUrl) -> Result<()> {
        let outgoing = channel.outgoing();
        let socket = channel.socket();
        // Only reading is cut: the services are withdrawn through the same channel below.
        let cut = self.stop.on_stop(move || {
            let _ = socket.shutdown(Shutdown::Read);
        });
        while cut.is_some() && !self.stop.is_stopped() {
            match channel.next::<ToAgent>() {
                Ok(message) => self.handle_message(message, &outgoing, at),
                Err(_) if self.stop.is_stopped() => break,
                Err(error) => return Err(connection_lost(error)),
            }
        }
        let _ = channel.socket().set_write_timeout(Some(WITHDRAW_TIMEOUT));
        self.direct.iter().for_each(|direct| direct.wait_until_over(WITHDRAW_TIMEOUT));
        self.send_reports();
        for one in &locked(&self.exposures).all {
            outgoing.send(&ToHub::Withdraw { name: one.exposure.name.clone() });
        }
        Ok(())
    }

    fn handle_message(self: &Arc<Self>, message: ToAgent, outgoing: &ChannelSender, at: &HubUrl) {
        match message {
            ToAgent::Welcome | ToAgent::Full | ToAgent::Unknown => {}
            ToAgent::Audit(audit) => self.witness(audit, at),
            ToAgent::Exposed { name, service, tunnel_port } => {
                self.service_exposed(name, service, tunnel_port);
            }
            ToAgent::Refused { name, reason, hint } => {
                let error = Error::new(one_line(&reason)).hint(one_line(&hint)).kind(ErrorKind::Refused(409));
                (self.on_event)(AgentEvent::Refused { name, error });
            }
            ToAgent::Draining => _ = self.drains.fetch_add(1, Ordering::Relaxed),
            ToAgent::Rotate { sealed } => (self.on_event)(AgentEvent::NextKey { sealed }),
            ToAgent::Close { session } => self.direct.iter().for_each(|direct| direct.end(&session)),
            ToAgent::Open(offer) => {
                if let Err(reason) = self.begin_session(&offer, outgoing, at) {
                    outgoing.send(&ToHub::Decline { session: offer.session, reason });
                }
            }
        }
    }

    /// Keeps the head of the hub's audit log. The log must never be shorter, or another one.
    fn witness(&self, audit: AuditHead, at: &HubUrl) {
        let hub = audit.hub.clone();
        if let Some(served) = &self.served {
            served.at_hub(&hub);
        }
        match hub_heads::keep(&self.home, &at.to_string(), audit) {
            Ok(true) => {}
            Ok(false) => {
                log::warn!("the audit log of {at} ({}) is not the one that it was", hub.escape_debug());
            }
            Err(error) => log::debug!("the head of the hub's audit log is not kept: {error}"),
        }
    }

    fn service_exposed(&self, name: Name, service: String, tunnel_port: Option<u16>) {
        let mut exposures = locked(&self.exposures);
        let Some(one) = exposures.all.iter_mut().find(|one| one.exposure.name == name) else { return };
        one.service = Some(service.clone());
        drop(exposures);
        (self.on_event)(AgentEvent::Exposed { name, service, tunnel_port });
    }

    /// Serves a session in a thread of its own. An error is the reason for declining it, for the joiner.
    fn begin_session(
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
        let drains = || self.drains.load(Ordering::Relaxed);
        let begun = drains();
        let deadline = Instant::now() + NETWORK_TIMEOUT;
        let ticket = offer.relay.as_ref().ok_or_else(|| Error::new("It has no ticket"))?;
        let below = self.hub.relay(at, &ticket.relay, &ticket.ticket, deadline)?;
        // Before the first byte: whatever comes of it, the hub knows of this session too.
        let record = self.record(exposed, offer, at, "relay");
        let Some(_cut) = stop.attach(&below.socket) else { return Ok(()) };
        let established = self.handshake(exposed, offer, below, deadline)?;
        if established.peer != Some(offer.peer) {
            return Err(another_joiner(exposed));
        }
        self.say_secured(offer, &established);
        let mut session = exposed.start(established, record, stop)?;
        if let Some(direct) = &self.direct {
            let _ = session.say_addresses(&direct.reachable_at());
        }
        session.serve(IDLE_TIMEOUT, || drains() != begun);
        Ok(())
    }

    fn record(
        &self,
        exposed: &ExposedService,
        offer: &SessionOffer,
        at: &HubUrl,
        path: &'static str,
    ) -> Option<SessionRecord> {
        let recorded = RecordedSession {
            session: &offer.session,
            service: &exposed.exposure.name,
            peer: offer.peer,
            url: at.to_string(),
            path,
        };
        self.served.as_ref().map(|served| served.begin(&recorded))
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
        let established = tls::server(&Arc::new(tls), below, deadline, tls::BUFFER_BUSY)
            .or_say(|| "The joiner does not answer")?;
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

    fn listen_directly(self: &Arc<Self>, listener: TcpListener) -> Result<Server> {
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
        let deadline = Instant::now() + DIRECT_HANDSHAKE_TIMEOUT;
        let peer = socket.peer_addr().or_say(|| "It has left")?.ip();
        let place = direct.admit(peer).ok_or_else(|| Error::new("Too many connect at the same time"))?;
        let heard = direct.hear(socket, deadline);
        let ExpectedConnection { offer, connection } =
            heard.ok_or_else(|| Error::new("Nobody expects it"))?;
        let exposed = self.exposed(&offer.service).ok_or_else(|| Error::new("Its service is withdrawn"))?;
        let mut established = self.handshake(&exposed, &offer, connection, deadline)?;
        if !direct.take(&Self::application_of(&exposed, &offer), established.peer) {
            let _ = established.writer.finish();
            return Err(another_joiner(&exposed));
        }
        drop(place);
        self.say_secured(&offer, &established);
        let stop = self.stop.child();
        self.admit(&offer, &stop).map_err(Error::new)?;
        let began = Instant::now();
        let drains = || self.drains.load(Ordering::Relaxed);
        let begun = drains();
        let record = self.record(&exposed, &offer, &self.hub.url, "direct");
        let ended = exposed.start(established, record, &stop).map(|session| {
            direct.begin(&offer.session, &stop);
            self.send_reports();
            session.serve(IDLE_TIMEOUT, || drains() != begun)
        });
        locked(&self.serving).remove(&offer.session);
        let CarriedBytes { to_agent, to_joiner } = ended?;
        let duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        direct.over(DirectReport { session: offer.session, is_over: true, duration_ms, to_agent, to_joiner });
        self.send_reports();
        Ok(())
    }

    /// Tells the hub of the direct sessions, unless it is away.
    fn send_reports(&self) {
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

fn another_joiner(exposed: &ExposedService) -> Error {
    let name = &exposed.exposure.name;
    log::warn!("refused: the joiner of a session to {name} is not the one the hub named");
    Error::new("Another joiner answered")
}

fn connection_lost(error: io::Error) -> Error {
    Error::new("The connection to the hub was lost").because(error).kind(ErrorKind::Unreachable)
}
