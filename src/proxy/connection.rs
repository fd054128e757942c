//! A client's connection: what its thread keeps for it, and how it is answered.

use std::io;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::context::ProxyContext;
use super::current_request::CurrentRequest;
use super::idle_upstreams::IdleUpstreams;
use super::open_clients::OpenClient;
use super::read_buffer::ReadBuffer;
use super::recent_requests::FinishedRequest;
use crate::http::forward::ClientInfo;
use crate::http::reply::Reply;
use crate::net::duplex::Duplex;
use crate::net::duplex::Reader;
use crate::net::duplex::Writer;
use crate::os::socket;

/// How often a read that waits for the client looks at the clock.
const TURN: Duration = Duration::from_secs(2);
/// A client that takes no more bytes for so long is given up; a paused video is not.
const TAKE: Duration = Duration::from_mins(10);
/// Behind an answer that came early, so much of the request is read away, for so long.
pub const DRAIN_BYTES: usize = 64 * 1024 * 1024;
pub const DRAIN_TIME: Duration = Duration::from_secs(5);
const INBOX: usize = 8 * 1024;

/// What a client finds here.
pub struct Visit<'f> {
    pub context: &'f ProxyContext,
    pub entry: &'f OpenClient<'f>,
    pub shelf: &'f mut IdleUpstreams,
}

pub struct Connection<'f> {
    pub context: &'f ProxyContext,
    pub client: Client,
    pub entry: &'f OpenClient<'f>,
    pub asked: CurrentRequest,
    pub shelf: &'f mut IdleUpstreams,
    /// The request as it goes on, and the answer as it goes home.
    pub onward: Vec<u8>,
    pub homeward: Vec<u8>,
    pub sender: ClientInfo,
    pub secure: bool,
}

pub struct Client {
    pub reader: Reader,
    pub writer: Writer,
    pub socket: Arc<TcpStream>,
    pub inbox: ReadBuffer,
}

/// What happens to the connection after a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Again,
    Close,
    /// Close, but so that the client gets what was written: what it still sends is read away first.
    Linger,
    /// Go on inside TLS, which the client begins.
    Secure,
}

impl<'f> Connection<'f> {
    pub fn new(visit: Visit<'f>, stream: Duplex, secure: bool) -> io::Result<Self> {
        let Visit { context, entry, shelf } = visit;
        let Duplex { reader, writer, socket } = stream;
        socket.set_read_timeout(Some(TURN))?;
        socket.set_write_timeout(Some(TAKE))?;
        let sender = ClientInfo::new(socket.peer_addr()?.ip(), secure, &context.via);
        let client = Client { reader, writer, socket, inbox: ReadBuffer::new(INBOX) };
        let (asked, onward, homeward) = (CurrentRequest::new(), Vec::new(), Vec::new());
        Ok(Self { context, client, entry, asked, shelf, onward, homeward, sender, secure })
    }

    pub fn into_visit(self) -> Visit<'f> {
        Visit { context: self.context, entry: self.entry, shelf: self.shelf }
    }

    /// The client's connection as a whole again, with what was read too much put back.
    pub fn take_over(&mut self) -> Duplex {
        let nothing = Duplex::plain(Arc::clone(&self.client.socket));
        let mut reader = std::mem::replace(&mut self.client.reader, nothing.reader);
        let writer = std::mem::replace(&mut self.client.writer, nothing.writer);
        reader.push_back(self.client.inbox.take());
        Duplex { reader, writer, socket: Arc::clone(&self.client.socket) }
    }

    /// Answers a request that is understood. What it has of a body is not read, so then it is the last.
    pub fn say(&mut self, reply: &Reply) -> Next {
        self.note(reply.status);
        self.answer(reply)
    }

    pub fn answer(&mut self, reply: &Reply) -> Next {
        let stays = self.asked.keep_alive && !self.asked.has_body() && !self.context.stop.is_stopped();
        self.write(reply, stays)
    }

    /// Answers what is not HTTP, or not plainly so: nobody knows where the next request begins.
    pub fn refuse(&mut self, reply: &Reply) -> Next {
        self.context.note(&FinishedRequest {
            method: "-",
            service: "",
            target: "-",
            status: reply.status,
            began: Instant::now(),
        });
        self.write(reply, false)
    }

    pub fn write(&mut self, reply: &Reply, keep_alive: bool) -> Next {
        self.homeward.clear();
        reply.write_into(&mut self.homeward, keep_alive, self.asked.is_head());
        let written = self.client.writer.write_all(&self.homeward);
        self.homeward.clear();
        match written {
            Err(_) => Next::Close,
            Ok(()) if keep_alive => Next::Again,
            Ok(()) => Next::Linger,
        }
    }

    pub fn note(&self, status: u16) {
        let CurrentRequest { method, target, service, began, .. } = &self.asked;
        self.context.note(&FinishedRequest { method, service, target, status, began: *began });
    }
}

impl Client {
    /// Whether closing resets nothing. TLS says its farewell by lingering.
    pub fn is_done(&self) -> bool {
        self.inbox.is_empty() && self.writer.plain().is_some_and(|plain| socket::peek(plain, &mut [0]) == 0)
    }

    /// Closing with unread bytes would reset the connection, and the reset could overtake our answer.
    pub fn linger(&mut self) {
        let _ = self.writer.finish();
        let began = Instant::now();
        let (mut drained, mut waste) = (0, [0; 8 * 1024]);
        let _ = self.socket.set_read_timeout(Some(DRAIN_TIME / 5));
        while began.elapsed() < DRAIN_TIME && drained < DRAIN_BYTES {
            match io::Read::read(&mut self.reader, &mut waste) {
                Ok(count @ 1..) => drained += count,
                _ => break,
            }
        }
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
