//! The hub's one port. The first byte of a connection decides: 0x16 is TLS and the API, a letter is the
//! plain relay upgrade. Behind a proxy that terminates TLS, everything comes in the clear.

use std::io;
use std::net::IpAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use rustls::ServerConfig;
use serde_json::json;

use super::api_call::Origin;
use super::ca;
use super::control_channel;
use super::core::Core;
use super::endpoints;
use super::membership;
use super::refusal::Refusal;
use super::relay;
use super::unauthenticated::UnauthenticatedPeer;
use super::unauthenticated::UnauthenticatedPeers;
use crate::error::Result;
use crate::http::message::Request;
use crate::http::reply::Reply;
use crate::model::version;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::set_deadline;
use crate::net::duplex::Duplex;
use crate::net::http_server;
use crate::net::http_server::HttpConnection;
use crate::net::http_server::RequestFailure;
use crate::net::serve::ServeOptions;
use crate::net::serve::Server;
use crate::net::serve::each;
use crate::net::serve::shut;
use crate::net::stop::Stop;
use crate::net::threads::ThreadGroup;
use crate::os::files;
use crate::os::limits;
use crate::tls;
use crate::wire::control::CONTROL_UPGRADE;
use crate::wire::control::RELAY_UPGRADE;
use crate::wire::tls_record::TLS_HANDSHAKE;

/// Connections at once: each session needs two, each agent one.
const CONNECTION_LIMIT: usize = 24_000;
/// File descriptors kept free for files, listeners and the hub's own tunnels; half of all if the system grants few.
/// Without a free one, the hub could neither accept a connection nor refuse it.
const RESERVED_DESCRIPTORS: usize = 64;
/// How often expired sessions are cut and expired records dropped: a revoked key ends within a second.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
/// The first byte of every HTTP method.
const METHOD_LETTERS: std::ops::RangeInclusive<u8> = b'A'..=b'Z';

/// A hub that serves until it is dropped.
pub struct RunningHub {
    core: Arc<Core>,
    server: Option<Server>,
    threads: ThreadGroup,
    member: Option<membership::FleetMembership>,
    stop: Stop,
    note: PathBuf,
}

struct HubListener {
    core: Arc<Core>,
    tls: ServerConfig,
    peers: UnauthenticatedPeers,
}

/// Serves until `stop`; in a fleet as the hub at `url`. While it runs, `hub.json` in the data folder says how the
/// hub's own command line reaches it.
///
/// The hub joins its fleet before it accepts connections, so that no agent finds a hub unknown to the others. It writes
/// `hub.json` last, when it can be reached.
pub fn start(core: &Arc<Core>, listener: TcpListener, url: &str, stop: &Stop) -> Result<RunningHub> {
    let stop = stop.child();
    let member = membership::join(core, url, &stop)?;
    let hub_listener = HubListener {
        tls: ca::base_config(&core.ca)?,
        core: Arc::clone(core),
        peers: UnauthenticatedPeers::default(),
    };
    let descriptors = limits::open_files();
    let refusing = Arc::clone(core);
    let options = ServeOptions {
        name: "hub",
        limit: CONNECTION_LIMIT.min(descriptors - RESERVED_DESCRIPTORS.min(descriptors / 2)).max(1),
        new_worker: each(move |stream, _| hub_listener.serve(&stream)),
        idle: None,
        cut: shut,
        turn_away: Box::new(move |stream| {
            http_server::turn_away(stream, &refusing.refusals.reply(Refusal::TooManyConnections));
        }),
    };
    let server = Server::start(listener, options, &stop)?;
    let (sweep_stop, sweeping) = (stop.clone(), Arc::clone(core));
    let threads = ThreadGroup::default();
    threads.spawn("hub-sweep", move || {
        while !sweep_stop.wait_for(SWEEP_INTERVAL) {
            sweeping.sweep();
        }
    })?;
    let note = core.settings.data.join("hub.json");
    let how = json!({ "address": server.address().to_string(), "pin": core.ca.pin().to_string(), "token": core.local_token });
    files::write(&note, how.to_string().as_bytes())?;
    Ok(RunningHub { core: Arc::clone(core), server: Some(server), threads, member, stop, note })
}

/// The hub leaves its fleet first, so that others take its agents over while it closes its connections.
impl Drop for RunningHub {
    fn drop(&mut self) {
        self.stop.stop();
        let _ = files::remove(&self.note);
        self.member = None;
        self.server = None;
        self.threads.join(|| ());
        self.core.tunnel_ports.close_all();
    }
}

impl HubListener {
    fn serve(&self, stream: &Arc<TcpStream>) {
        if let Err(error) = self.try_serve(stream) {
            log::debug!("a connection ended: {error}");
        }
    }

    /// Counts the peer's network, reads the first byte without consuming it, and serves what that byte announces. One
    /// deadline covers the first byte and the TLS handshake.
    fn try_serve(&self, stream: &Arc<TcpStream>) -> io::Result<()> {
        let deadline = Instant::now() + NETWORK_TIMEOUT;
        let address = stream.peer_addr()?.ip().to_canonical();
        // Behind a proxy all connections have the proxy's address, so the limit would count everybody together.
        let peer = self.peers.admit(address);
        if peer.is_none() && !self.core.settings.behind_proxy {
            http_server::turn_away(stream, &self.core.refusals.reply(Refusal::TooManyFromOneAddress));
            return Ok(());
        }
        let plain = Duplex::plain(Arc::clone(stream));
        set_deadline(stream, deadline)?;
        let mut first = [0];
        if stream.peek(&mut first)? == 0 {
            return Ok(());
        }
        match first[0] {
            TLS_HANDSHAKE => {
                let config = ca::server_config(&self.core.ca, &self.tls, stream.local_addr()?.ip());
                let established = tls::server(&config, plain, deadline)?;
                self.converse(established.into_duplex(), Origin { address, over_tls: true }, peer);
            }
            byte if METHOD_LETTERS.contains(&byte) => {
                self.converse(plain, Origin { address, over_tls: false }, peer);
            }
            // A peer that speaks neither TLS nor HTTP would not understand an answer.
            _ => self.core.refusals.count(&Refusal::Garbage),
        }
        Ok(())
    }

    /// Answers one request after another, until one turns the connection into a relay or a control channel. Until then it
    /// counts as unauthenticated.
    ///
    /// The protocol's number is checked first. The relay comes before the rest because it is the only request that may
    /// arrive in the clear without a proxy.
    fn converse(&self, stream: Duplex, origin: Origin, peer: Option<UnauthenticatedPeer<'_>>) {
        let mut conversation = HttpConnection::new(stream);
        let only_relay = !origin.over_tls && !self.core.settings.behind_proxy;
        loop {
            let request = match conversation.next_request() {
                Ok(request) => request,
                Err(RequestFailure::ClientGone) => return,
                Err(RequestFailure::Refuse { status, what, hint }) => {
                    return self.refuse(conversation, Refusal::BadRequest { status, what, hint });
                }
            };
            if let Some(refusal) = other_protocol(&request) {
                return self.refuse(conversation, refusal);
            }
            if request.path == "/v1/relay" && request.method == "GET" && request.upgrades_to(RELAY_UPGRADE) {
                drop(peer);
                return self.relay(conversation, &request, origin.address);
            }
            let origin = Origin { address: self.address_of(origin, &request), ..origin };
            if request.path == "/v1/agent"
                && request.method == "GET"
                && request.upgrades_to(CONTROL_UPGRADE)
                && !only_relay
            {
                return self.agent(conversation, &request, origin, peer);
            }
            let reply = if only_relay {
                self.core.refusals.reply(tls_required(&request))
            } else {
                endpoints::answer(&self.core, &request, origin)
            };
            let keep_alive = request.keep_alive && !only_relay;
            if conversation.answer(&reply, keep_alive, request.method == "HEAD").is_err() || !keep_alive {
                return conversation.close();
            }
        }
    }

    fn refuse(&self, conversation: HttpConnection, refusal: Refusal) {
        conversation.answer_and_close(&self.core.refusals.reply(refusal));
    }

    /// The client's address. Behind a proxy it is in `X-Forwarded-For`, where only the last entry of the last field comes
    /// from the proxy. The client may have invented all entries before it.
    fn address_of(&self, origin: Origin, request: &Request) -> IpAddr {
        if origin.over_tls || !self.core.settings.behind_proxy {
            return origin.address;
        }
        let mut named =
            request.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for"));
        let last = named.next_back().and_then(|(_, list)| list.rsplit(',').next());
        last.and_then(|last| last.trim().parse().ok()).unwrap_or(origin.address)
    }

    /// Gives the connection to the relay. If its ticket is refused, the connection comes back and gets the refusal.
    fn relay(&self, conversation: HttpConnection, request: &Request, address: IpAddr) {
        let Err((refusal, stream)) = relay::serve(&self.core, conversation.into_stream(), request) else {
            return;
        };
        let mut conversation = HttpConnection::new(stream);
        // Only the status: in the clear, the joiner believes no words, and others could read them.
        let reply = Reply::empty(self.core.refusals.reply(refusal).status);
        // Without a valid ticket the peer counts as unauthenticated again. An orderly close waits a moment for the peer,
        // so a peer over the limit does not get one.
        let peer = self.peers.admit(address);
        if peer.is_some() || self.core.settings.behind_proxy {
            conversation.answer_and_close(&reply);
        } else {
            let _ = conversation.answer(&reply, false, false);
        }
    }

    /// Opens an agent's control channel: checks the key like that of any call, switches protocols, and serves the channel
    /// to its end.
    fn agent(
        &self,
        mut conversation: HttpConnection,
        request: &Request,
        origin: Origin,
        peer: Option<UnauthenticatedPeer<'_>>,
    ) {
        let admitted = endpoints::admit_agent(&self.core, request, origin)
            .and_then(|call| call.relay_address().map(|relay| (call, relay)));
        match admitted {
            Ok((call, relay)) => {
                drop(peer);
                if conversation.answer(&Reply::switching(CONTROL_UPGRADE), true, false).is_ok() {
                    control_channel::serve(&self.core, conversation.into_stream(), &call, relay);
                }
            }
            Err(refusal) => self.refuse(conversation, refusal),
        }
    }
}

/// Refuses a client of another protocol, and says which end must be updated.
fn other_protocol(request: &Request) -> Option<Refusal> {
    let objection = version::objection(None, request.field(version::PROTOCOL_FIELD));
    objection.map(|(what, hint)| Refusal::OtherProtocol { what, hint })
}

fn tls_required(request: &Request) -> Refusal {
    let host = request.field("host").unwrap_or("this-hub");
    Refusal::TlsRequired { url: format!("https://{host}{}", request.path) }
}
