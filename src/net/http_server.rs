//! The server's side of HTTP/1.1, as the hub's API needs it: one message at a time, with its whole body.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use super::connect::is_timeout;
use super::connect::set_deadline;
use super::duplex::Duplex;
use super::http_stream::BodyFailure;
use super::http_stream::HttpStream;
use crate::http::bad_message::BadHead;
use crate::http::body::Body;
use crate::http::body::BodyWalker;
use crate::http::body::request_body;
use crate::http::head;
use crate::http::message::Request;
use crate::http::reply::Reply;
use crate::model::version;

/// Clients send a key, a few fields and a short path.
const API_HEAD_LIMIT: usize = 8 * 1024;
/// A client that sends its request too slowly gets an answer and is cut after this long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two requests a connection may be idle for longer.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(30);
/// How much of an unwanted request is read and dropped, and for how long.
const LINGER_BYTES: usize = 8 * 1024 * 1024;
const LINGER_TIMEOUT: Duration = Duration::from_secs(2);
const WHOLE_REQUEST_HINT: &str =
    "Send a whole HTTP/1.1 request; a head has at most 8 KiB, a body 64 KiB, without a key 4 KiB";

/// One client's connection.
pub struct HttpConnection {
    stream: HttpStream,
    /// The end of the current request.
    deadline: Instant,
    /// What has not been read of it.
    body: BodyWalker,
    answered: bool,
}

/// Why there is no request.
pub enum RequestFailure {
    /// The client has left, so no answer is needed.
    ClientGone,
    /// The client gets this answer; then the connection is closed.
    Refuse { status: u16, what: &'static str, hint: &'static str },
}

impl HttpConnection {
    /// The first request must have come by `deadline`.
    pub fn new(connection: Duplex, deadline: Instant) -> Self {
        let (stream, body) = (HttpStream::new(connection), BodyWalker::new(Body::None));
        Self { stream, deadline, body, answered: false }
    }

    /// The next request, without its body: who may send one depends on the head.
    pub fn next_head(&mut self) -> Result<Request, RequestFailure> {
        if self.answered {
            if self.stream.buffer.is_empty() {
                // A client that has had an answer may leave without sending anything.
                let read = self.stream.read_more(Instant::now() + KEEP_ALIVE_TIMEOUT);
                read.ok().filter(|count| *count > 0).ok_or(RequestFailure::ClientGone)?;
            }
            self.deadline = Instant::now() + REQUEST_TIMEOUT;
        }
        let (request, body) = self.read_head()?;
        self.body = BodyWalker::new(body);
        Ok(request)
    }

    /// Reads the body of the request.
    pub fn read_body(&mut self, request: &mut Request, limit: usize) -> Result<(), RequestFailure> {
        // A client that waits for `100 Continue` is not told to send a body that is refused anyway.
        if self.body.ahead().is_none_or(|length| length <= limit as u64)
            && !self.body.ended()
            && request.field("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
        {
            let _ = self.stream.connection.writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        request.body = self.stream.read_body(&mut self.body, limit, self.deadline)?;
        Ok(())
    }

    fn read_head(&mut self) -> Result<(Request, Body), RequestFailure> {
        loop {
            let length = self.stream.buffer.len();
            // Whether a head is too large does not depend on how it arrives.
            if let Some(head) = head::parse_request(&self.stream.buffer[..length.min(API_HEAD_LIMIT)])? {
                let body = request_body(&head)?;
                let request = Request::from_head(&head).ok_or(RequestFailure::Refuse {
                    status: 400,
                    what: "The request's target is not a path",
                    hint: "",
                })?;
                let length = head.length;
                self.stream.buffer.drain(..length);
                return Ok((request, body));
            }
            if length >= API_HEAD_LIMIT {
                return Err(BadHead::TooLarge.into());
            }
            if self.stream.read_more(self.deadline)? == 0 {
                return Err(RequestFailure::ClientGone);
            }
        }
    }

    pub fn answer(&mut self, reply: &Reply, keep_alive: bool, head_only: bool) -> io::Result<()> {
        let mut out = Vec::with_capacity(512 + reply.body.len());
        let reply = reply.clone().field(version::PROTOCOL_FIELD, version::PROTOCOL.to_string());
        reply.write_into(&mut out, keep_alive, head_only);
        self.answered = true;
        self.stream.write_all(&out, Instant::now() + REQUEST_TIMEOUT)
    }

    /// The connection itself, after a switch to another protocol.
    pub fn into_stream(self) -> Duplex {
        self.stream.into_duplex()
    }

    pub fn answer_and_close(mut self, reply: &Reply) {
        let _ = self.answer(reply, false, false);
        self.close();
    }

    /// Closes so that the last answer arrives. What the client still sends is read and dropped for a moment: closing a
    /// socket with unread bytes would reset the connection, and the answer could be lost.
    pub fn close(self) {
        // What was received and not used would be held for as long as this lasts.
        let Duplex { mut writer, socket, reader } = self.stream.connection;
        drop((reader, self.stream.buffer));
        if writer.finish().is_err() {
            return;
        }
        let deadline = Instant::now() + LINGER_TIMEOUT;
        let mut room = [0; 4096];
        let mut left = LINGER_BYTES;
        while left > 0 && set_deadline(&socket, deadline).is_ok() {
            match (&*socket).read(&mut room) {
                Ok(count @ 1..) => left = left.saturating_sub(count),
                _ => return,
            }
        }
    }
}

impl From<BadHead> for RequestFailure {
    fn from(bad: BadHead) -> Self {
        Self::Refuse { status: bad.status(), what: bad.reason(), hint: WHOLE_REQUEST_HINT }
    }
}

impl From<io::Error> for RequestFailure {
    fn from(error: io::Error) -> Self {
        if is_timeout(&error) {
            let hint = "Send a whole request within 10 seconds";
            return Self::Refuse { status: 408, what: "The request took too long", hint };
        }
        log::debug!("a request ended early: {error}");
        Self::ClientGone
    }
}

impl From<BodyFailure> for RequestFailure {
    fn from(failure: BodyFailure) -> Self {
        match failure {
            BodyFailure::Io(error) => error.into(),
            BodyFailure::Bad(bad) => {
                Self::Refuse { status: bad.status(), what: bad.reason(), hint: WHOLE_REQUEST_HINT }
            }
        }
    }
}

/// Refuses a connection: sends the reply in the clear, without waiting for anything.
pub fn turn_away(mut stream: &TcpStream, reply: &Reply) {
    let mut out = Vec::new();
    reply.write_into(&mut out, false, false);
    let _ = stream.set_nonblocking(true).and_then(|()| stream.write_all(&out));
}
