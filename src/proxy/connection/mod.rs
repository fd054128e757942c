//! A client's connection: one request after the other is read, checked and answered, until one of them ends it.
//!
//! The parts of `ProxyClient` are in the files of this folder, in the order in which a request meets them: `client`
//! (the client's end), `check` (whether and where a request goes), `forward` with `upload` and `response` (an exchange
//! with a service), `connect` (what leaves HTTP at once) and `status_page` (the proxy's own page).

pub mod client;
pub mod current_request;

mod check;
mod connect;
mod forward;
mod response;
mod status_page;

mod upload;

use std::io;
use std::time::Duration;
use std::time::Instant;

use super::context::ProxyContext;
use super::idle_upstreams::IdleUpstreams;
use super::open_clients::OpenClient;
use super::recent_requests::FinishedRequest;
use super::refusal;
use super::trouble::Trouble;
use crate::http::head::HEAD_LIMIT;
use crate::http::head::parse_request;
use crate::http::reply::Reply;
use crate::net::connect::clear_deadline;
use crate::net::connect::is_timeout;
use crate::net::duplex::Duplex;
use crate::net::relay;
use check::RequestAction;
use check::check;
use client::ClientStream;
use client::accept_tls;
use current_request::CurrentRequest;
use response::PassedResponse;

/// A head must be complete this long after its first byte: a person types faster, and a browser sends it at once.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without a request is closed after this time. Browsers close theirs after five minutes, too.
const CLIENT_KEEP_ALIVE_TIMEOUT: Duration = Duration::from_mins(5);

pub struct ProxyClient<'p> {
    pub context: &'p ProxyContext,
    pub slot: OpenClient<'p>,
    pub idle: &'p mut IdleUpstreams,
    pub client: ClientStream,
    /// Not of another user of this machine.
    pub is_welcome: bool,
    pub request: CurrentRequest,
}

/// What happens to the connection after a request.
pub enum AfterRequest {
    KeepAlive,
    Close,
    /// Close, but first read and drop what the client still sends: otherwise a reset could overtake our answer.
    Linger,
    /// Go on inside TLS, which the client begins.
    StartTls,
    /// HTTP is over: copy bytes to and from this connection.
    Relay(Duplex),
}

impl ProxyClient<'_> {
    pub fn serve(mut self) -> io::Result<()> {
        loop {
            match self.serve_request() {
                AfterRequest::KeepAlive => {}
                AfterRequest::Close => return Ok(()),
                AfterRequest::Linger => {
                    self.client.linger();
                    return Ok(());
                }
                AfterRequest::StartTls => {
                    let stream = accept_tls(self.context, self.client.into_duplex())?;
                    self.client = ClientStream::new(self.context, stream, true)?;
                }
                AfterRequest::Relay(service) => return self.relay(service),
            }
        }
    }

    fn serve_request(&mut self) -> AfterRequest {
        let action = match self.read_request() {
            Ok(Ok(action)) => action,
            Ok(Err(reply)) => return self.reject(&reply),
            Err(next) => return next,
        };
        self.slot.set_busy();
        match action {
            _ if !self.is_welcome => self.reply(&refusal::other_user()),
            RequestAction::Answer(reply) => self.reply(&reply),
            RequestAction::Refuse(trouble) => self.refuse(&trouble, !self.request.has_body()),
            RequestAction::StatusPage => self.status_page(),
            RequestAction::Forward(route) => self.forward(&route),
            RequestAction::Connect(route) => self.connect(&route),
            RequestAction::ConnectOutside(host, port) => self.connect_outside(&host, port),
        }
    }

    /// Reads until a head is complete, and checks it. The inner error is sent before the connection closes.
    fn read_request(&mut self) -> Result<Result<RequestAction, Reply>, AfterRequest> {
        let started = Instant::now();
        self.slot.set_idle(started);
        // A pipelined request has begun already.
        let mut first_byte = (!self.client.reader.is_empty()).then_some(started);
        loop {
            if !self.client.reader.is_empty() {
                match parse_request(self.client.reader.unread()) {
                    Ok(Some(request)) => {
                        let length = request.length;
                        let action = check(&request, &self.client.info, self.context, &mut self.request);
                        self.client.reader.consume(length);
                        return Ok(action.map_err(refusal::bad_head));
                    }
                    Ok(None) => {}
                    Err(bad) => return Ok(Err(refusal::bad_head(bad))),
                }
            }
            // The read returns after a while even without data, so the deadlines are checked.
            match self.client.reader.fill(HEAD_LIMIT) {
                Ok(1..) => {}
                Err(error) if is_timeout(&error) => {}
                Ok(0) | Err(_) => return Err(AfterRequest::Close),
            }
            match first_byte {
                Some(first) if first.elapsed() > HEAD_TIMEOUT => return Ok(Err(refusal::timed_out())),
                None if !self.client.reader.is_empty() => first_byte = Some(Instant::now()),
                None if started.elapsed() > CLIENT_KEEP_ALIVE_TIMEOUT => return Err(AfterRequest::Close),
                _ => {}
            }
        }
    }

    /// Answers a request that was understood, and records it.
    fn reply(&mut self, reply: &Reply) -> AfterRequest {
        self.record_with(reply.status, "", reply.body.len() as u64, &[]);
        self.reply_unrecorded(reply)
    }

    /// Answers without a record. If the request has a body, it has not been read, so the connection closes.
    fn reply_unrecorded(&mut self, reply: &Reply) -> AfterRequest {
        let keep_alive =
            self.request.keep_alive && !self.request.has_body() && !self.context.stop.is_stopped();
        self.write_reply(reply, keep_alive)
    }

    /// Answers a request that is not valid HTTP, and closes: it is unknown where the next request would begin.
    fn reject(&mut self, reply: &Reply) -> AfterRequest {
        self.context.record(&FinishedRequest {
            method: "-",
            service: "",
            target: "-",
            status: reply.status,
            began: Instant::now(),
            reason: "",
            bytes: 0,
            request_fields: &[],
            response_fields: &[],
        });
        self.write_reply(reply, false)
    }

    fn write_reply(&mut self, reply: &Reply, keep_alive: bool) -> AfterRequest {
        match self.client.writer.write_reply(reply, keep_alive, self.request.is_head()) {
            Err(_) => AfterRequest::Close,
            Ok(()) if keep_alive => AfterRequest::KeepAlive,
            Ok(()) => AfterRequest::Linger,
        }
    }

    /// Answers with a 502 or 504. `request_read`: the request's body has been read to its end, so the connection can be
    /// kept.
    fn refuse(&mut self, trouble: &Trouble, request_read: bool) -> AfterRequest {
        let CurrentRequest { service, outgoing, .. } = &self.request;
        let reply = refusal::gateway_failed(self.context, service, trouble, outgoing);
        self.record_with(reply.status, &trouble.reason, reply.body.len() as u64, &[]);
        self.write_reply(&reply, self.request.keep_alive && request_read)
    }

    fn record(&self, status: u16) {
        self.record_with(status, "", 0, &[]);
    }

    fn record_passed(&self, passed: &PassedResponse) {
        self.record_with(passed.status, "", passed.bytes, &passed.shown_fields);
    }

    fn record_with(&self, status: u16, reason: &str, bytes: u64, response_fields: &[(String, String)]) {
        let CurrentRequest { method, target, service, began, shown_fields, .. } = &self.request;
        self.context.record(&FinishedRequest {
            method,
            service,
            target,
            status,
            began: *began,
            reason,
            bytes,
            request_fields: shown_fields,
            response_fields,
        });
    }

    /// Copies in both directions until both have ended.
    fn relay(self, service: Duplex) -> io::Result<()> {
        let client = self.client.into_duplex();
        self.slot.set_busy();
        clear_deadline(&client.socket)?;
        clear_deadline(&service.socket)?;
        if let Some(_cut) = self.context.stop.attach(&service.socket) {
            relay::both_ways(client, service);
        }
        Ok(())
    }
}
