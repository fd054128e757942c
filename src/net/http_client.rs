//! The client's side of HTTP/1.1: one request at a time with a whole answer, an answer that is read line by line, or an
//! upgrade to another protocol.

use std::io;
use std::time::Instant;

use super::connect::clear_deadline;
use super::duplex::Duplex;
use super::http_stream::BodyFailure;
use super::http_stream::HttpStream;
use super::stop::Registration;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::OrSay;
use crate::error::Result;
use crate::http::body::BodyWalker;
use crate::http::body::response_body;
use crate::http::head;
use crate::http::message::ErrorBody;
use crate::http::message::Response;
use crate::os::socket;

/// A list of thousands of services is larger than any request, so this limit is higher than `BODY_LIMIT`.
pub const ANSWER_LIMIT: usize = 16 * 1024 * 1024;

pub struct ClientRequest<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub host: &'a str,
    pub fields: &'a [(&'a str, &'a str)],
    /// A JSON text.
    pub body: Option<&'a [u8]>,
}

/// A connection to a server. A stop cuts it as long as it holds `cut`.
pub struct ClientConnection {
    stream: HttpStream,
    cut: Registration,
}

impl ClientConnection {
    pub fn new(connection: Duplex, cut: Registration) -> Self {
        Self { stream: HttpStream::new(connection), cut }
    }

    /// Whether it can be used again: it is open, and the server has sent nothing unasked.
    pub fn is_idle(&self) -> bool {
        self.stream.buffer.is_empty() && socket::is_idle_and_open(&self.stream.connection.socket)
    }

    pub fn exchange(&mut self, request: &ClientRequest<'_>, deadline: Instant) -> io::Result<Response> {
        let (mut response, mut walker) = send_request(&mut self.stream, request, deadline)?;
        response.body = self.read_answer(&mut walker, deadline)?;
        Ok(response)
    }

    fn read_answer(&mut self, walker: &mut BodyWalker, deadline: Instant) -> io::Result<Vec<u8>> {
        self.stream.read_body(walker, ANSWER_LIMIT, deadline).map_err(|failure| match failure {
            BodyFailure::Io(error) => error,
            BodyFailure::Bad(bad) => invalid(bad.reason()),
        })
    }

    /// Sends a request whose answer is a long stream of lines. Returns its status and the lines.
    pub fn into_lines(
        mut self,
        request: &ClientRequest<'_>,
        deadline: Instant,
    ) -> io::Result<(u16, ResponseLines)> {
        let (response, walker) = send_request(&mut self.stream, request, deadline)?;
        let lines = ResponseLines { stream: self.stream, walker, content: Vec::new(), _cut: self.cut };
        Ok((response.status, lines))
    }

    /// Switches the connection to `protocol`. A refusal becomes an error with its status, and with the hub's message if the
    /// hub `is_proven`. Without TLS anybody on the way may have written it, so its text is not even read.
    pub fn upgrade(
        mut self,
        protocol: &str,
        request: &ClientRequest<'_>,
        is_proven: bool,
        deadline: Instant,
    ) -> Result<Duplex> {
        let mut fields = vec![("Connection", "Upgrade"), ("Upgrade", protocol)];
        fields.extend_from_slice(request.fields);
        let request = ClientRequest { fields: &fields, ..*request };
        let silent =
            |error| Error::new("The hub does not answer").because(error).kind(ErrorKind::Unreachable);
        let (response, mut walker) = send_request(&mut self.stream, &request, deadline).map_err(silent)?;
        if response.status != 101 {
            let text =
                if is_proven { self.read_answer(&mut walker, deadline).map_err(silent)? } else { Vec::new() };
            return Err(refusal(response.status, &text));
        }
        clear_deadline(&self.stream.connection.socket).or_say(|| "Cannot use the connection")?;
        Ok(self.stream.into_duplex())
    }
}

/// An answer that is read line by line while it arrives.
pub struct ResponseLines {
    stream: HttpStream,
    walker: BodyWalker,
    content: Vec<u8>,
    _cut: Registration,
}

impl ResponseLines {
    /// The next line without its line end. `None` after the end of the answer.
    pub fn next(&mut self, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            let collected = self.walker.collect(&self.stream.buffer, &mut self.content, ANSWER_LIMIT);
            let used = collected.map_err(|bad| invalid(bad.reason()))?;
            self.stream.buffer.drain(..used);
            if let Some(at) = self.content[searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.content.drain(..=searched + at);
                return Ok(Some(line.take(searched + at).collect()));
            }
            searched = self.content.len();
            if self.walker.ended() || self.stream.read_more(deadline)? == 0 {
                return Ok(None);
            }
        }
    }
}

/// Sends one request and reads the head of its answer. The walker is at the beginning of the answer's body.
pub fn send_request(
    stream: &mut HttpStream,
    request: &ClientRequest<'_>,
    deadline: Instant,
) -> io::Result<(Response, BodyWalker)> {
    let ClientRequest { method, path, host, fields, body } = request;
    let mut out = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n");
    for (name, value) in *fields {
        // Tickets come from the hub and keys from the user. Neither may begin a new header line.
        if value.bytes().any(|byte| byte.is_ascii_control()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("the {name} is not plain text")));
        }
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(body) = body {
        out.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    out.push_str("\r\n");
    let mut out = out.into_bytes();
    out.extend_from_slice(body.unwrap_or_default());
    stream.write_all(&out, deadline)?;
    loop {
        if let Some(head) = head::parse_response(&stream.buffer).map_err(|bad| invalid(bad.reason()))? {
            let response = Response::from_head(&head);
            let body = response_body(method, &head).map_err(|bad| invalid(bad.reason()))?;
            let length = head.length;
            stream.buffer.drain(..length);
            return Ok((response, BodyWalker::new(body)));
        }
        if stream.read_more(deadline)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// The error in an answer of the hub. Its text comes from a peer, so it must be escaped before it is printed.
pub fn refusal(status: u16, body: &[u8]) -> Error {
    let ErrorBody { error, hint, code } = ErrorBody::read(body);
    let what = if error.is_empty() { format!("The hub answered with status {status}") } else { error };
    Error::new(what).hint(hint).kind(ErrorKind::Refused(status)).with_code(code)
}
