//! The connections to the hub's one port. The first byte of a connection decides: 0x16 is TLS and the API, a letter is the
//! plain relay upgrade. Behind a proxy that terminates TLS, everything comes in the clear.

use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use rustls::ServerConfig;

use super::access;
use super::api_call::Origin;
use super::ca;
use super::control_channel;
use super::core::Core;
use super::endpoints;
use super::endpoints::Admission;
use super::refusal::Refusal;
use super::relay;
use super::unauthenticated::READ_TIMEOUT;
use super::unauthenticated::UnauthenticatedPeer;
use crate::http::message::BODY_LIMIT;
use crate::http::message::Request;
use crate::http::reply::Reply;
use crate::model::version;
use crate::net::connect::set_deadline;
use crate::net::duplex::Duplex;
use crate::net::http_server::HttpConnection;
use crate::net::http_server::RequestFailure;
use crate::net::places::Place;
use crate::tls;
use crate::wire::control::CONTROL_UPGRADE;
use crate::wire::control::RELAY_UPGRADE;
use crate::wire::tls_record::TLS_HANDSHAKE;

/// How long a list waits until the key's long answer before it has been read.
const LONG_ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// An answer up to this length fits into the system's buffers, so it does not stay in ours.
const SHORT_ANSWER: usize = 16 * 1024;
/// The body of a request without a key: a label, or a code and a key.
const KEYLESS_BODY_LIMIT: usize = 4 * 1024;
/// The first byte of every HTTP method.
pub const METHOD_LETTERS: std::ops::RangeInclusive<u8> = b'A'..=b'Z';

pub struct HubListener {
    pub core: Arc<Core>,
    pub tls: ServerConfig,
}

/// What comes after a request.
enum AfterCall {
    Next,
    Close,
    Relay(Request),
    ControlChannel(Request, Origin, Admission),
}

/// By what right a connection is open.
struct Standing<'c> {
    /// Until it has shown a key.
    peer: Option<UnauthenticatedPeer<'c>>,
    /// After that.
    place: Option<Place<'c>>,
}

impl<'c> Standing<'c> {
    /// Whether the connection may stay for another request: it has shown a valid key, which has a place for it. Otherwise
    /// it goes on counting as one without a key, and ends as soon.
    fn may_stay(&mut self, core: &'c Core, key: Option<&String>) -> bool {
        let Some(key) = key else { return false };
        if self.place.is_none() {
            self.place = core.places.connections.take(key.clone(), Duration::ZERO);
        }
        if self.place.is_some() {
            self.peer = None;
        }
        self.place.is_some()
    }
}

impl HubListener {
    pub fn serve(&self, stream: &Arc<TcpStream>) {
        if let Err(error) = self.try_serve(stream) {
            log::debug!("a connection ended: {error}");
        }
    }

    /// Counts the peer's network, reads the first byte without consuming it, and serves what that byte announces. One
    /// deadline covers everything up to the end of the first request.
    fn try_serve(&self, stream: &Arc<TcpStream>) -> io::Result<()> {
        let address = stream.peer_addr()?.ip().to_canonical();
        let by_proxy = self.core.settings.proxies.iter().any(|proxy| proxy.contains(address));
        let peer = self.core.peers.admit(stream, (!by_proxy).then_some(address));
        let deadline = peer.since + READ_TIMEOUT;
        let plain = Duplex::plain(Arc::clone(stream));
        set_deadline(stream, deadline)?;
        let mut first = [0];
        if stream.peek(&mut first)? == 0 {
            return Ok(());
        }
        let origin = Origin { address, over_tls: first[0] == TLS_HANDSHAKE, by_proxy };
        match first[0] {
            TLS_HANDSHAKE => {
                let config = ca::server_config(&self.core.ca, &self.tls, stream.local_addr()?.ip());
                let established = tls::server(&config, plain, deadline, tls::BUFFER_UNKNOWN)?;
                self.converse(established.into_duplex(), origin, peer);
            }
            byte if METHOD_LETTERS.contains(&byte) => self.converse(plain, origin, peer),
            // A peer that speaks neither TLS nor HTTP would not understand an answer.
            _ => self.core.refusals.count(&Refusal::Garbage),
        }
        Ok(())
    }

    /// Answers one request after another, until one turns the connection into a relay or a control channel. A peer without
    /// a valid key gets one answer.
    fn converse(&self, stream: Duplex, origin: Origin, peer: UnauthenticatedPeer<'_>) {
        let mut conversation = HttpConnection::new(stream, peer.since + READ_TIMEOUT);
        let mut standing = Standing { peer: Some(peer), place: None };
        loop {
            match self.exchange(&mut conversation, origin, &mut standing) {
                Ok(AfterCall::Next) => {}
                Ok(AfterCall::Close) => return conversation.close(),
                Ok(AfterCall::Relay(request)) => return self.relay(conversation, &request, standing.peer),
                Ok(AfterCall::ControlChannel(request, origin, admission)) => {
                    drop(standing);
                    return self.control_channel(conversation, admission, &request, origin);
                }
                Err(RequestFailure::ClientGone) => return,
                Err(RequestFailure::Refuse { status, what, hint }) => {
                    return self.refuse(conversation, Refusal::BadRequest { status, what, hint });
                }
            }
        }
    }

    /// Reads one request and answers it, unless it asks for another protocol. The protocol version is checked first. The
    /// relay comes before the rest because it is the only request that may arrive in the clear without a proxy. The key
    /// is checked before the body is read.
    fn exchange<'c>(
        &'c self,
        conversation: &mut HttpConnection,
        origin: Origin,
        standing: &mut Standing<'c>,
    ) -> Result<AfterCall, RequestFailure> {
        let mut request = conversation.next_head()?;
        let is_get = request.method == "GET";
        let version = other_protocol(&request);
        if version.is_none() && is_get && request.path == "/v1/relay" && request.upgrades_to(RELAY_UPGRADE) {
            return Ok(AfterCall::Relay(request));
        }
        let vouched = access::vouched_address(&self.core, &request);
        let origin = Origin { address: vouched.unwrap_or_else(|| address_of(origin, &request)), ..origin };
        if let Some(peer) = standing.peer.as_ref().filter(|_| origin.by_proxy) {
            peer.belongs_to(origin.address);
        }
        let admitted = match version {
            Some(refusal) => Err(refusal),
            None if !origin.over_tls && !origin.by_proxy => Err(tls_required(&request)),
            None => endpoints::admit(&self.core, &request, origin),
        };
        let key = admitted.as_ref().ok().and_then(Admission::paying_key);
        let may_stay = standing.may_stay(&self.core, key.as_ref());
        let mut turn = None;
        let reply = match admitted {
            Ok(admission)
                if is_get && request.path == "/v1/agent" && request.upgrades_to(CONTROL_UPGRADE) =>
            {
                return Ok(AfterCall::ControlChannel(request, origin, admission));
            }
            Ok(admission) => {
                conversation
                    .read_body(&mut request, if may_stay { BODY_LIMIT } else { KEYLESS_BODY_LIMIT })?;
                let key = key.filter(|_| admission.is_list());
                turn = key.and_then(|key| self.core.places.long_answers.take(key, LONG_ANSWER_PATIENCE));
                if admission.is_list() && turn.is_none() {
                    self.core.refusals.reply(Refusal::TooManyLongAnswers)
                } else {
                    endpoints::answer(&self.core, &request, origin, admission)
                }
            }
            Err(refusal) => self.core.refusals.reply(refusal),
        };
        // Others need not wait until a short answer is written.
        let _turn = turn.filter(|_| reply.body.len() > SHORT_ANSWER);
        let keep_alive = may_stay && request.keep_alive;
        let answered = conversation.answer(&reply, keep_alive, request.method == "HEAD");
        answered.map_err(|_| RequestFailure::ClientGone)?;
        Ok(if keep_alive { AfterCall::Next } else { AfterCall::Close })
    }

    fn refuse(&self, conversation: HttpConnection, refusal: Refusal) {
        conversation.answer_and_close(&self.core.refusals.reply(refusal));
    }

    /// Gives the connection to the relay. If its ticket is refused, the connection comes back and gets the refusal.
    fn relay(
        &self,
        conversation: HttpConnection,
        request: &Request,
        mut peer: Option<UnauthenticatedPeer<'_>>,
    ) {
        let served = relay::serve(&self.core, conversation.into_stream(), request, || peer = None);
        if let Err((refusal, stream)) = served {
            // Only the status: in the clear, the joiner believes no words, and others could read them.
            let reply = Reply::empty(self.core.refusals.reply(refusal).status);
            HttpConnection::new(stream, Instant::now()).answer_and_close(&reply);
        }
    }

    /// Switches an agent's connection to its control channel, and serves the channel to its end.
    fn control_channel(
        &self,
        mut conversation: HttpConnection,
        admission: Admission,
        request: &Request,
        origin: Origin,
    ) {
        let key = admission.paying_key().unwrap_or_default();
        let place = self.core.places.channels.take(key, Duration::ZERO).ok_or(Refusal::TooManyChannels);
        let call = admission.call(request, origin);
        let paced = access::pace(&self.core, &access::CHANGES, &call, "");
        match paced.and(place).and_then(|place| Ok((place, call.relay_address()?))) {
            Ok((_place, relay)) => {
                if conversation.answer(&Reply::switching(CONTROL_UPGRADE), true, false).is_ok() {
                    control_channel::serve(&self.core, conversation.into_stream(), &call, relay);
                }
            }
            Err(refusal) => self.refuse(conversation, refusal),
        }
    }
}

/// The client's address. A proxy names it in `X-Forwarded-For`, where only the last entry of the last field comes from the
/// proxy. The client may have invented all entries before it.
fn address_of(origin: Origin, request: &Request) -> IpAddr {
    if origin.over_tls || !origin.by_proxy {
        return origin.address;
    }
    let mut named = request.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-for"));
    let last = named.next_back().and_then(|(_, list)| list.rsplit(',').next()).unwrap_or_default().trim();
    // Some proxies add the port, and then brackets to an IPv6 address.
    let with_port = || last.parse::<SocketAddr>().ok().map(|address| address.ip());
    let bare = last.strip_prefix('[').and_then(|last| last.strip_suffix(']')).unwrap_or(last);
    let address = bare.parse().ok().or_else(with_port).unwrap_or(origin.address);
    address.to_canonical()
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
