//! The hub's one port. The first byte of a connection decides: 0x16 is TLS and the API, a letter is the
//! plain relay upgrade. Behind a proxy that ends TLS, everything comes in the clear.

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

use super::access;
use super::agents;
use super::agents::AgentHello;
use super::api_call::Origin;
use super::api_call::other_upgrade;
use super::api_call::relay_address;
use super::api_call::spoken_by;
use super::ca;
use super::core::Core;
use super::endpoints;
use super::fleet;
use super::relay;
use super::tunnel_ports::TunnelOpener;
use super::unauthenticated::UnauthenticatedPeer;
use super::unauthenticated::UnauthenticatedPeers;
use crate::error::Result;
use crate::http::message::Request;
use crate::http::reply::Reply;
use crate::model::access::Action;
use crate::model::version;
use crate::model::version::End;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::set_deadline;
use crate::net::duplex::Duplex;
use crate::net::http;
use crate::net::http::HttpConnection;
use crate::net::http::RequestFailure;
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
/// Of the descriptors that the system grants, so many stay for files, listeners and the hub's own tunnels, or half of
/// them where there are few: without one a connection could be neither accepted nor told that there are too many.
const RESERVED_DESCRIPTORS: usize = 64;
/// What has expired is cut and dropped this often.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
/// The first byte of every method.
const METHOD_LETTERS: std::ops::RangeInclusive<u8> = b'A'..=b'Z';

pub struct RunningHub {
    listener: Arc<HubListener>,
    server: Option<Server>,
    threads: ThreadGroup,
    member: Option<fleet::FleetMembership>,
    stop: Stop,
    note: PathBuf,
}

struct HubListener {
    core: Arc<Core>,
    tls: ServerConfig,
    opener: Option<TunnelOpener>,
    peers: UnauthenticatedPeers,
}

/// Serves until `stop`, in a fleet as the hub at `url`. While it runs, `hub.json` in the data folder says how the hub's own command line
/// reaches it.
pub fn start(
    core: &Arc<Core>,
    listener: TcpListener,
    opener: Option<TunnelOpener>,
    url: &str,
    stop: &Stop,
) -> Result<RunningHub> {
    let stop = stop.child();
    let member = fleet::join(core, url, &stop)?;
    let hub_listener = Arc::new(HubListener {
        tls: ca::base_config(&core.ca)?,
        core: Arc::clone(core),
        opener,
        peers: UnauthenticatedPeers::default(),
    });
    let serving = Arc::clone(&hub_listener);
    let granted = limits::open_files();
    let service = ServeOptions {
        name: "hub",
        limit: CONNECTION_LIMIT.min(granted - RESERVED_DESCRIPTORS.min(granted / 2)).max(1),
        new_worker: each(move |stream, _| serving.serve(&stream)),
        idle: None,
        cut: shut,
        turn_away,
    };
    let server = Server::start(listener, service, &stop)?;
    let (own, sweeping) = (stop.clone(), Arc::clone(core));
    let threads = ThreadGroup::default();
    threads.spawn("hub-sweep", move || {
        while !own.wait_for(SWEEP_INTERVAL) {
            sweeping.sweep();
        }
    })?;
    let note = core.settings.data.join("hub.json");
    let how = json!({ "address": server.address().to_string(), "pin": core.ca.pin().to_string(), "token": core.local_token });
    files::write(&note, how.to_string().as_bytes())?;
    Ok(RunningHub { listener: hub_listener, server: Some(server), threads, member, stop, note })
}

impl Drop for RunningHub {
    fn drop(&mut self) {
        self.stop.stop();
        let _ = files::remove(&self.note);
        self.member = None;
        self.server = None;
        self.threads.join(|| ());
        self.listener.core.tunnels.close_all();
    }
}

/// The answer to one connection too many.
fn turn_away(stream: &TcpStream) {
    let reply = Reply::error(503, "The hub has too many connections", "Try again in a moment");
    http::turn_away(stream, &reply);
}

impl HubListener {
    fn serve(&self, stream: &Arc<TcpStream>) {
        if let Err(error) = self.try_serve(stream) {
            log::debug!("a connection ended: {error}");
        }
    }

    fn try_serve(&self, stream: &Arc<TcpStream>) -> io::Result<()> {
        let deadline = Instant::now() + NETWORK_TIMEOUT;
        let address = stream.peer_addr()?.ip().to_canonical();
        let peer = self.peers.receive(address);
        if peer.is_none() && !self.core.settings.behind_proxy {
            self.core.refused("too-many-from-one-address");
            turn_away(stream);
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
            _ => self.core.refused("garbage"),
        }
        Ok(())
    }

    fn converse(&self, stream: Duplex, origin: Origin, peer: Option<UnauthenticatedPeer<'_>>) {
        let mut conversation = HttpConnection::new(stream);
        let only_relay = !origin.over_tls && !self.core.settings.behind_proxy;
        loop {
            let request = match conversation.next_request() {
                Ok(request) => request,
                Err(RequestFailure::ClientGone) => return,
                Err(RequestFailure::Refuse(reply)) => {
                    self.core.refused("bad-request");
                    return conversation.answer_and_close(&reply);
                }
            };
            if let Some(reply) = self.other_protocol(&request) {
                return conversation.answer_and_close(&reply);
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
                self.tls_required(&request)
            } else {
                endpoints::answer(&self.core, &request, origin)
            };
            let keep_alive = request.keep_alive && !only_relay;
            if conversation.answer(&reply, keep_alive, request.method == "HEAD").is_err() || !keep_alive {
                return conversation.close();
            }
        }
    }

    /// A proxy before us says whom it speaks for. Only the last word of the last such field is its own; all
    /// before that, the client itself may have said.
    fn address_of(&self, origin: Origin, request: &Request) -> IpAddr {
        if origin.over_tls || !self.core.settings.behind_proxy {
            return origin.address;
        }
        let mut named =
            request.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for"));
        let last = named.next_back().and_then(|(_, list)| list.rsplit(',').next());
        last.and_then(|last| last.trim().parse().ok()).unwrap_or(origin.address)
    }

    fn relay(&self, conversation: HttpConnection, request: &Request, address: IpAddr) {
        let Err((reply, stream)) = relay::serve(&self.core, conversation.into_stream(), request) else {
            return;
        };
        let mut conversation = HttpConnection::new(stream);
        // Without a good ticket it is a peer again, and an orderly end takes a moment: one too many gets a short one.
        let peer = self.peers.receive(address);
        if peer.is_some() || self.core.settings.behind_proxy {
            conversation.answer_and_close(&reply);
        } else {
            let _ = conversation.answer(&reply, false, false);
        }
    }

    fn agent(
        &self,
        mut conversation: HttpConnection,
        request: &Request,
        origin: Origin,
        peer: Option<UnauthenticatedPeer<'_>>,
    ) {
        let known = endpoints::refuse_if_fenced(&self.core, request)
            .and_then(|()| access::authenticate(&self.core, request.key(), origin.address));
        let welcome = known.and_then(|principal| {
            access::allow(&self.core, &principal, Action::Expose)?;
            let relay = relay_address(request, origin.over_tls)?;
            Ok(AgentHello { principal, relay, speaks: spoken_by(request) })
        });
        match welcome {
            Ok(arrival) => {
                drop(peer);
                if conversation.answer(&Reply::switching(CONTROL_UPGRADE), true, false).is_ok() {
                    let opener = self.opener.as_ref();
                    agents::serve(&self.core, conversation.into_stream(), arrival, opener);
                }
            }
            Err(reply) => conversation.answer_and_close(&reply),
        }
    }

    /// A client that we would misunderstand is told which of us is to be updated.
    fn other_protocol(&self, request: &Request) -> Option<Reply> {
        let client = End { called: "your connect", at: "your machine", speaks: spoken_by(request) };
        let hub = End { called: "This hub", at: "the hub's machine", speaks: version::OURS };
        let (what, hint) = version::objection(&hub, &client)?;
        self.core.refused("protocol");
        Some(other_upgrade(&what, &hint))
    }

    fn tls_required(&self, request: &Request) -> Reply {
        self.core.refused("in-the-clear");
        let host = request.field("host").unwrap_or("this-hub");
        let hint = format!("Use https://{host}{}", request.path);
        Reply::error(426, "This hub speaks https", &hint)
            .field("upgrade", "TLS/1.3, HTTP/1.1")
            .field("connection", "Upgrade")
    }
}
