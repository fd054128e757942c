//! What a client asks for: requests are heard one after the other, judged, and answered or passed on.

use std::io;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::asked::Asked;
use super::connection::Connection;
use super::connection::Next;
use super::connection::Visit;
use super::front::Front;
use super::page;
use super::refusal;
use super::switch;
use super::table::Route;
use crate::http::body::request_body;
use crate::http::forward::Onward;
use crate::http::forward::Sender;
use crate::http::forward::has_been_here;
use crate::http::forward::is_upgrade;
use crate::http::forward::write_request;
use crate::http::head::BadHead;
use crate::http::head::HEAD_LIMIT;
use crate::http::head::RequestHead;
use crate::http::head::parse_request;
use crate::http::host::Host;
use crate::http::host::Name;
use crate::http::host::Place;
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
    Forward(Arc<Route>),
    Connect(Arc<Route>),
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
                let within = in_tls(it.front, it.take_over())?;
                it = Connection::new(it.into_visit(), within, true)?;
            }
        }
    }
}

/// The same connection inside TLS, which ends here.
pub fn in_tls(front: &Front, below: Duplex) -> io::Result<Duplex> {
    let certificates = front.certificates().map_err(io::Error::other)?;
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
                        let judge = Judge { front: self.front, sender: &self.sender, secure: self.secure };
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
    front: &'a Front,
    sender: &'a Sender,
    secure: bool,
}

impl Judge<'_> {
    /// If the request goes on, it is written anew into `onward`. An error closes the connection.
    fn decide(
        &self,
        request: &RequestHead<'_>,
        asked: &mut Asked,
        onward: &mut Vec<u8>,
    ) -> Result<Decision, BadHead> {
        let front = self.front;
        let body = request_body(request)?;
        let host = host_of(request)?.ok_or(BadHead::NoHost)?;
        asked.note(request, body);
        if request.method == "CONNECT" {
            return Ok(self.decide_connect(request, &host, asked));
        }
        let place = host.place();
        if place == Place::Elsewhere {
            return Ok(Decision::Say(refusal::elsewhere(front)));
        }
        if front.settings.secure && !self.secure {
            return Ok(Decision::Say(refusal::use_https(request, &host)));
        }
        let Place::Service(name) = place else { return Ok(Decision::Page) };
        asked.service.push_str(&name);
        if has_been_here(request, &front.via) {
            return Ok(Decision::Say(refusal::looped()));
        }
        if is_upgrade(request) && !self.may_upgrade(request) {
            return Ok(Decision::Say(refusal::foreign_origin()));
        }
        let Some(route) = front.table.find(&name) else {
            return Ok(Decision::Say(refusal::not_found(front, &name, request)));
        };
        let rewritten = front.rewritten_host(&route);
        let way = Onward { sender: self.sender, body, host: host.text, rewrite_host: rewritten.as_deref() };
        write_request(request, &way, onward)?;
        Ok(Decision::Forward(route))
    }

    /// Same-origin rules do not hold for a `WebSocket`, so a hostile page could open one to any service. Clients
    /// that are no browsers send no Origin.
    fn may_upgrade(&self, request: &RequestHead<'_>) -> bool {
        let mut origins = request.fields.all("origin");
        origins.all(|origin| is_local_origin(origin) || self.front.allows_origin(origin))
    }

    /// To known services only: anything else would be an open door to the network.
    fn decide_connect(&self, request: &RequestHead<'_>, host: &Host<'_>, asked: &mut Asked) -> Decision {
        let front = self.front;
        if let Place::Service(name) = host.place() {
            asked.service.push_str(&name);
            return match front.table.find(&name) {
                Some(_) if has_been_here(request, &front.via) => Decision::Say(refusal::looped()),
                Some(route) => Decision::Connect(route),
                None => Decision::Say(refusal::not_found(front, &name, request)),
            };
        }
        let port = host.port.unwrap_or(443);
        let outside = match host.name {
            Name::Dns(name) => name.to_owned(),
            Name::V4(address) => address.to_string(),
            Name::V6(address) => address.to_string(),
        };
        if front.allows_connect(&outside, port) {
            return Decision::Dial(outside, port);
        }
        let hint = "CONNECT reaches known services only; to open another host: connect proxy start --connect-allow HOST:PORT";
        Decision::Say(Reply::error(404, "Host not found", hint))
    }
}
