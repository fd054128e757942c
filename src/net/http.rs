//! HTTP/1.1 over a stream that is ours: the hub's API, its clients' upgrades. One message at a time, whole
//! bodies, every wait with a deadline.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use super::connect::clear_deadline;
use super::connect::is_timeout;
use super::connect::set_deadline;
use super::duplex::Duplex;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::http::bad_message::BadHead;
use crate::http::body::BodyWalker;
use crate::http::body::request_body;
use crate::http::body::response_body;
use crate::http::head;
use crate::http::message::BODY_LIMIT;
use crate::http::message::ErrorBody;
use crate::http::message::Request;
use crate::http::message::Response;
use crate::http::reply::Reply;
use crate::model::version;

/// A client that says nothing, or says it too slowly, is answered and let go after this long.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two requests a connection may rest longer.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(30);
/// Lists of thousands of services are larger than what a client may send.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;
const READ_SIZE: usize = 8 * 1024;
/// How much of an unwanted request is read away, and for how long.
const LINGER_BYTES: usize = 8 * 1024 * 1024;
const LINGER: Duration = Duration::from_secs(2);

/// The server's side of a connection.
pub struct HttpConnection {
    stream: Duplex,
    buffer: Vec<u8>,
    answered: bool,
}

/// Why there is no request.
pub enum RequestFailure {
    /// The client is gone, and nobody waits for an answer.
    ClientGone,
    /// Answer this status and close.
    Refuse { status: u16, what: &'static str, hint: &'static str },
}

impl HttpConnection {
    pub fn new(stream: Duplex) -> Self {
        Self { stream, buffer: Vec::new(), answered: false }
    }

    pub fn next_request(&mut self) -> std::result::Result<Request, RequestFailure> {
        let first = Instant::now() + if self.answered { KEEP_ALIVE_TIMEOUT } else { REQUEST_TIMEOUT };
        if self.buffer.is_empty() {
            match read_more(&mut self.stream, &mut self.buffer, first) {
                Ok(0) => return Err(RequestFailure::ClientGone),
                Err(_) if self.answered => return Err(RequestFailure::ClientGone),
                begun => begun?,
            };
        }
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let (mut request, body) = loop {
            if let Some(head) = head::parse_request(&self.buffer)? {
                let body = request_body(&head)?;
                let request = Request::from_head(&head);
                let odd = || RequestFailure::Refuse {
                    status: 400,
                    what: "The request's target is not a path",
                    hint: "",
                };
                let (request, length) = (request.ok_or_else(odd)?, head.length);
                self.buffer.drain(..length);
                break (request, body);
            }
            if read_more(&mut self.stream, &mut self.buffer, deadline)? == 0 {
                return Err(RequestFailure::ClientGone);
            }
        };
        let mut walker = BodyWalker::new(body);
        // A body that is refused all the same is not asked for.
        if walker.ahead().is_none_or(|length| length <= BODY_LIMIT as u64)
            && !walker.ended()
            && request.field("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
        {
            let _ = self.stream.writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        request.body = read_body(&mut self.stream, &mut self.buffer, &mut walker, BODY_LIMIT, deadline)?;
        Ok(request)
    }

    pub fn answer(&mut self, reply: &Reply, keep_alive: bool, head_only: bool) -> io::Result<()> {
        let mut out = Vec::with_capacity(512 + reply.body.len());
        let reply = reply.clone().field(version::FIELD, version::OURS.to_string());
        reply.write_into(&mut out, keep_alive, head_only);
        self.answered = true;
        set_deadline(&self.stream.socket, Instant::now() + REQUEST_TIMEOUT)?;
        self.stream.writer.write_all(&out)
    }

    /// The connection for whatever was agreed on; bytes that came behind the head are read first.
    pub fn into_stream(mut self) -> Duplex {
        self.stream.reader.push_back(self.buffer);
        self.stream
    }

    /// Says this last.
    pub fn answer_and_close(mut self, reply: &Reply) {
        let _ = self.answer(reply, false, false);
        self.close();
    }

    /// Ends the connection so that the last answer arrives: what the client still sends is read for a
    /// moment and dropped, since closing over unread bytes would reset it.
    pub fn close(mut self) {
        if self.stream.writer.finish().is_err() {
            return;
        }
        let deadline = Instant::now() + LINGER;
        let mut room = [0; 4096];
        let mut left = LINGER_BYTES;
        while left > 0 && set_deadline(&self.stream.socket, deadline).is_ok() {
            match (&*self.stream.socket).read(&mut room) {
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
            BodyFailure::Bad(status, reason) => {
                Self::Refuse { status, what: reason, hint: WHOLE_REQUEST_HINT }
            }
        }
    }
}

fn read_more(stream: &mut Duplex, buffer: &mut Vec<u8>, deadline: Instant) -> io::Result<usize> {
    set_deadline(&stream.socket, deadline)?;
    let at = buffer.len();
    buffer.resize(at + READ_SIZE, 0);
    let read = stream.reader.read(&mut buffer[at..]);
    buffer.truncate(at + read.as_ref().copied().unwrap_or(0));
    read
}

/// What helps against a request that cannot be read.
const WHOLE_REQUEST_HINT: &str =
    "Send a whole HTTP/1.1 request, with a head and a body of at most 64 KiB each";

enum BodyFailure {
    Io(io::Error),
    Bad(u16, &'static str),
}

fn read_body(
    stream: &mut Duplex,
    buffer: &mut Vec<u8>,
    walker: &mut BodyWalker,
    limit: usize,
    deadline: Instant,
) -> std::result::Result<Vec<u8>, BodyFailure> {
    let mut body = Vec::new();
    if walker.ahead().is_some_and(|length| length > limit as u64) {
        return Err(BodyFailure::Bad(413, "The body is too large"));
    }
    loop {
        let used = walker
            .collect(buffer, &mut body, limit)
            .map_err(|bad| BodyFailure::Bad(bad.status(), bad.reason()))?;
        buffer.drain(..used);
        if walker.ended() {
            return Ok(body);
        }
        if read_more(stream, buffer, deadline).map_err(BodyFailure::Io)? == 0 {
            let ended = walker.end_of_stream();
            return ended.map(|()| body).map_err(|_| BodyFailure::Io(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// Says in the clear, without waiting for anything, why a connection is not served.
pub fn turn_away(mut stream: &TcpStream, reply: &Reply) {
    let mut out = Vec::new();
    reply.write_into(&mut out, false, false);
    let _ = stream.set_nonblocking(true).and_then(|()| stream.write_all(&out));
}

/// What a client asks.
#[derive(Clone, Copy)]
pub struct ClientRequest<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub host: &'a str,
    pub fields: &'a [(&'a str, &'a str)],
    pub body: Option<&'a [u8]>,
}

/// Sends one request and reads its answer. Bytes behind the answer come back with it.
pub fn exchange(
    stream: &mut Duplex,
    ask: &ClientRequest<'_>,
    deadline: Instant,
) -> io::Result<(Response, Vec<u8>)> {
    let (mut answer, mut walker, mut buffer) = begin(stream, ask, deadline)?;
    let read = read_body(stream, &mut buffer, &mut walker, ANSWER_LIMIT, deadline);
    answer.body = read.map_err(|failure| match failure {
        BodyFailure::Io(error) => error,
        BodyFailure::Bad(_, reason) => invalid(reason),
    })?;
    Ok((answer, buffer))
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Sends one request and reads the head of its answer, and what came with it.
fn begin(
    stream: &mut Duplex,
    ask: &ClientRequest<'_>,
    deadline: Instant,
) -> io::Result<(Response, BodyWalker, Vec<u8>)> {
    let mut out = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", ask.method, ask.path, ask.host);
    for (name, value) in ask.fields {
        // A ticket is the hub's word and a key the user's; neither may begin a line of its own.
        if value.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the {name} is not plain text")));
        }
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = ask.body {
        out.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    out.push_str("\r\n");
    let mut out = out.into_bytes();
    out.extend_from_slice(ask.body.unwrap_or_default());
    set_deadline(&stream.socket, deadline)?;
    stream.writer.write_all(&out)?;
    let mut buffer = Vec::new();
    loop {
        if let Some(head) = head::parse_response(&buffer).map_err(|bad| invalid(bad.reason()))? {
            let answer = Response::from_head(&head);
            let body = response_body(ask.method, &head).map_err(|bad| invalid(bad.reason()))?;
            buffer.drain(..head.length);
            return Ok((answer, BodyWalker::new(body), buffer));
        }
        if read_more(stream, &mut buffer, deadline)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// An answer that goes on and on, read line by line.
pub struct ResponseLines {
    stream: Duplex,
    walker: BodyWalker,
    buffer: Vec<u8>,
    content: Vec<u8>,
}

impl ResponseLines {
    pub fn ask(mut stream: Duplex, ask: &ClientRequest<'_>, deadline: Instant) -> io::Result<(u16, Self)> {
        let (answer, walker, buffer) = begin(&mut stream, ask, deadline)?;
        Ok((answer.status, Self { stream, walker, buffer, content: Vec::new() }))
    }

    /// The next line, without its end; `None` when the answer has ended.
    pub fn next(&mut self, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            let collected = self.walker.collect(&self.buffer, &mut self.content, ANSWER_LIMIT);
            let used = collected.map_err(|bad| invalid(bad.reason()))?;
            self.buffer.drain(..used);
            if let Some(at) = self.content[searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.content.drain(..=searched + at);
                return Ok(Some(line.take(searched + at).collect()));
            }
            searched = self.content.len();
            if self.walker.ended() || read_more(&mut self.stream, &mut self.buffer, deadline)? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Turns a connection into what `protocol` says. A refusal comes back as the hub's own words.
pub fn upgrade(
    mut stream: Duplex,
    protocol: &str,
    ask: &ClientRequest<'_>,
    deadline: Instant,
) -> Result<Duplex> {
    let ours = version::OURS.to_string();
    let mut fields = vec![("Connection", "Upgrade"), ("Upgrade", protocol), (version::FIELD, ours.as_str())];
    fields.extend_from_slice(ask.fields);
    let exchanged = exchange(&mut stream, &ClientRequest { fields: &fields, ..*ask }, deadline);
    let (answer, behind) = exchanged
        .map_err(|error| Error::new("The hub does not answer").because(error).kind(ErrorKind::Unreachable))?;
    if answer.status != 101 {
        return Err(refusal(answer.status, &answer.body));
    }
    stream.reader.push_back(behind);
    clear_deadline(&stream.socket).or_say(|| "Cannot use the connection")?;
    Ok(stream)
}

/// The error that an answer of the hub stands for. Its words are a peer's: printed escaped, by whoever prints.
pub fn refusal(status: u16, body: &[u8]) -> Error {
    let ErrorBody { error, hint, code } = ErrorBody::read(body);
    let what = if error.is_empty() { format!("The hub answered with status {status}") } else { error };
    Error::new(what).hint(hint).kind(ErrorKind::Refused(status)).with_code(code)
}
