//! What a client asks for: requests are heard one after the other, judged, and answered or passed on.

use std::io;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::connection::Connection;
use super::connection::Next;
use super::connection::Visit;
use super::context::ProxyContext;
use super::current_request::CurrentRequest;
use super::page;
use super::refusal;
use super::route_table::ProxyRoute;
use super::switch;
use crate::http::bad_message::BadHead;
use crate::http::body::request_body;
use crate::http::forward::ClientInfo;
use crate::http::forward::RequestForwarding;
use crate::http::forward::has_been_here;
use crate::http::forward::is_upgrade;
use crate::http::forward::write_request;
use crate::http::head::HEAD_LIMIT;
use crate::http::head::RequestHead;
use crate::http::head::parse_request;
use crate::http::host::Host;
use crate::http::host::HostKind;
use crate::http::host::HostName;
use crate::http::host::host_of;
use crate::http::host::is_local_origin;
use crate::http::reply::Reply;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::is_timeout;
use crate::net::duplex::Duplex;
use crate::tls;

/// A head has this long from its first byte on: a person types faster, and a browser sends it at once.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// A connection that rests so long is closed; browsers give up theirs after five minutes, too.
const REST: Duration = Duration::from_mins(5);

/// What a request is for.
enum Decision {
    Say(Reply),
    Page,
    Forward(Arc<ProxyRoute>),
    Connect(Arc<ProxyRoute>),
    Dial(String, u16),
}

pub fn serve(visit: Visit<'_>, stream: Duplex, secure: bool) -> io::Result<()> {
    let mut it = Connection::new(visit, stream, secure)?;
    loop {
        match it.next() {
            Next::Again => {}
            Next::Close => return Ok(()),
            Next::Linger => {
                it.client.linger();
                return Ok(());
            }
            Next::Secure => {
                let within = in_tls(it.context, it.take_over())?;
                it = Connection::new(it.into_visit(), within, true)?;
            }
        }
    }
}

/// The same connection inside TLS, which ends here.
pub fn in_tls(context: &ProxyContext, below: Duplex) -> io::Result<Duplex> {
    let certificates = context.certificates().map_err(io::Error::other)?;
    Ok(tls::server(&certificates.config, below, Instant::now() + NETWORK_TIMEOUT)?.into_duplex())
}

impl Connection<'_> {
    fn next(&mut self) -> Next {
        let decision = match self.hear() {
            Ok(Ok(decision)) => decision,
            Ok(Err(reply)) => return self.refuse(&reply),
            Err(next) => return next,
        };
        self.entry.works();
        match decision {
            Decision::Say(reply) => self.say(&reply),
            Decision::Page => page::serve(self),
            Decision::Forward(route) => self.forward(&route),
            Decision::Connect(route) => switch::connect(self, &route),
            Decision::Dial(host, port) => switch::dial(self, &host, port),
        }
    }

    /// Reads until a head is whole, and judges it. The inner error is said before the connection closes.
    fn hear(&mut self) -> Result<Result<Decision, Reply>, Next> {
        let waits_since = Instant::now();
        self.entry.rests(waits_since);
        let mut first_byte = (!self.client.inbox.is_empty()).then_some(waits_since);
        loop {
            if !self.client.inbox.is_empty() {
                match parse_request(self.client.inbox.unread()) {
                    Ok(Some(request)) => {
                        let length = request.length;
                        self.onward.clear();
                        let judge =
                            Judge { context: self.context, sender: &self.sender, secure: self.secure };
                        let decision = judge.decide(&request, &mut self.asked, &mut self.onward);
                        self.client.inbox.consume(length);
                        return Ok(decision.map_err(refusal::bad_head));
                    }
                    Ok(None) => {}
                    Err(bad) => return Ok(Err(refusal::bad_head(bad))),
                }
            }
            let client = &mut self.client;
            match client.inbox.fill(&mut client.reader, HEAD_LIMIT) {
                Ok(0) => return Err(Next::Close),
                Ok(_) => {}
                Err(error) if is_timeout(&error) => {}
                Err(_) => return Err(Next::Close),
            }
            match first_byte {
                Some(first) if first.elapsed() > HEAD_PATIENCE => return Ok(Err(refusal::timed_out())),
                None if !self.client.inbox.is_empty() => first_byte = Some(Instant::now()),
                None if waits_since.elapsed() > REST => return Err(Next::Close),
                _ => {}
            }
        }
    }
}

/// What a head is judged by.
struct Judge<'a> {
    context: &'a ProxyContext,
    sender: &'a ClientInfo,
    secure: bool,
}

impl Judge<'_> {
    /// If the request goes on, it is written anew into `onward`. An error closes the connection.
    fn decide(
        &self,
        request: &RequestHead<'_>,
        asked: &mut CurrentRequest,
        onward: &mut Vec<u8>,
    ) -> Result<Decision, BadHead> {
        let context = self.context;
        let body = request_body(request)?;
        let host = host_of(request)?.ok_or(BadHead::NoHost)?;
        asked.note(request, body);
        if request.method == "CONNECT" {
            return Ok(self.decide_connect(request, &host, asked));
        }
        let place = host.kind();
        if place == HostKind::Outside {
            return Ok(Decision::Say(refusal::elsewhere(context)));
        }
        if context.settings.secure && !self.secure {
            return Ok(Decision::Say(refusal::use_https(request, &host)));
        }
        let HostKind::Service(name) = place else { return Ok(Decision::Page) };
        asked.service.push_str(&name);
        if has_been_here(request, &context.via) {
            return Ok(Decision::Say(refusal::looped()));
        }
        if is_upgrade(request) && !self.may_upgrade(request) {
            return Ok(Decision::Say(refusal::foreign_origin()));
        }
        let Some(route) = context.table.find(&name) else {
            return Ok(Decision::Say(refusal::not_found(context, &name, request)));
        };
        let rewritten = context.rewritten_host(&route);
        let way = RequestForwarding {
            client: self.sender,
            body,
            host: host.text,
            rewrite_host: rewritten.as_deref(),
        };
        write_request(request, &way, onward)?;
        Ok(Decision::Forward(route))
    }

    /// Same-origin rules do not hold for a `WebSocket`, so a hostile page could open one to any service. Clients
    /// that are no browsers send no Origin.
    fn may_upgrade(&self, request: &RequestHead<'_>) -> bool {
        let mut origins = request.fields.all("origin");
        origins.all(|origin| is_local_origin(origin) || self.context.allows_origin(origin))
    }

    /// To known services only: anything else would be an open door to the network.
    fn decide_connect(
        &self,
        request: &RequestHead<'_>,
        host: &Host<'_>,
        asked: &mut CurrentRequest,
    ) -> Decision {
        let context = self.context;
        if let HostKind::Service(name) = host.kind() {
            asked.service.push_str(&name);
            return match context.table.find(&name) {
                Some(_) if has_been_here(request, &context.via) => Decision::Say(refusal::looped()),
                Some(route) => Decision::Connect(route),
                None => Decision::Say(refusal::not_found(context, &name, request)),
            };
        }
        let port = host.port.unwrap_or(443);
        let outside = match host.name {
            HostName::Dns(name) => name.to_owned(),
            HostName::V4(address) => address.to_string(),
            HostName::V6(address) => address.to_string(),
        };
        if context.allows_connect(&outside, port) {
            return Decision::Dial(outside, port);
        }
        let hint = "CONNECT reaches known services only; to open another host: connect proxy start --connect-allow HOST:PORT";
        Decision::Say(Reply::error(404, "Host not found", hint))
    }
}
