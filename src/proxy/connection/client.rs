//! The client's end of a connection, in the clear or inside TLS.

use std::io;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use crate::http::forward::ClientInfo;
use crate::http::reply::Reply;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::duplex::Duplex;
use crate::net::duplex::Writer;
use crate::os::socket;
use crate::proxy::buffered_reader::BufferedReader;
use crate::proxy::context::ProxyContext;
use crate::tls;
use crate::wire::tls_record::TLS_HANDSHAKE;

/// A read that waits for the client returns this often, to check the deadlines.
const CLIENT_READ_POLL: Duration = Duration::from_secs(2);
/// A client that accepts no bytes for this long is given up. Long enough for a paused video.
const CLIENT_WRITE_TIMEOUT: Duration = Duration::from_mins(10);
/// After an early answer, at most this much of the request is read and dropped, for at most `DRAIN_TIMEOUT`.
pub const DRAIN_LIMIT: usize = 64 * 1024 * 1024;
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Large enough for a browser's request.
pub const CLIENT_BUFFER: usize = 8 * 1024;

pub struct ClientStream {
    pub reader: BufferedReader,
    pub writer: ClientWriter,
    pub info: ClientInfo,
}

/// The direction to the client.
pub struct ClientWriter {
    pub stream: Writer,
    pub socket: Arc<TcpStream>,
    /// Buffer for what is written next. Empty between two answers.
    pub out: Vec<u8>,
}

impl ClientStream {
    /// On an HTTPS port the first byte tells TLS from plain HTTP, which will be redirected.
    pub fn accept(context: &ProxyContext, socket: Arc<TcpStream>) -> io::Result<Self> {
        let mut first = [0];
        if context.settings.https {
            socket.set_read_timeout(Some(NETWORK_TIMEOUT))?;
            if socket.peek(&mut first)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let is_tls = first[0] == TLS_HANDSHAKE;
        let plain = Duplex::plain(socket);
        let stream = if is_tls { accept_tls(context, plain)? } else { plain };
        Self::new(context, stream, is_tls)
    }

    pub fn new(context: &ProxyContext, stream: Duplex, https: bool) -> io::Result<Self> {
        let Duplex { reader, writer, socket } = stream;
        socket.set_read_timeout(Some(CLIENT_READ_POLL))?;
        socket.set_write_timeout(Some(CLIENT_WRITE_TIMEOUT))?;
        let info = ClientInfo::new(socket.peer_addr()?.ip(), https, &context.via);
        let writer = ClientWriter { stream: writer, socket, out: Vec::new() };
        Ok(Self { reader: BufferedReader::new(reader, CLIENT_BUFFER), writer, info })
    }

    /// The connection for another protocol. Bytes that were read and not used are read from it first.
    pub fn into_duplex(self) -> Duplex {
        let ClientWriter { stream, socket, .. } = self.writer;
        Duplex { reader: self.reader.into_reader(), writer: stream, socket }
    }

    /// Whether the client has sent nothing more, so that closing resets nothing. TLS always lingers: that sends its
    /// `close_notify`.
    pub fn is_drained(&self) -> bool {
        let plain = self.writer.stream.plain();
        self.reader.is_empty() && plain.is_some_and(|plain| socket::peek(plain, &mut [0]) == 0)
    }

    /// Closes without a reset: closing with unread bytes would send one, and it could overtake our answer.
    pub fn linger(&mut self) {
        let _ = self.writer.stream.finish();
        let began = Instant::now();
        let mut drained = 0;
        let _ = self.writer.socket.set_read_timeout(Some(DRAIN_TIMEOUT / 5));
        while began.elapsed() < DRAIN_TIMEOUT && drained < DRAIN_LIMIT {
            self.reader.discard();
            match self.reader.fill(CLIENT_BUFFER) {
                Ok(count @ 1..) => drained += count,
                _ => break,
            }
        }
        let _ = self.writer.socket.shutdown(Shutdown::Both);
    }
}

impl ClientWriter {
    pub fn write_reply(&mut self, reply: &Reply, keep_alive: bool, head_only: bool) -> io::Result<()> {
        self.out.clear();
        reply.write_into(&mut self.out, keep_alive, head_only);
        self.flush()
    }

    /// Writes `out` and then `content`. Where both are there, they go in one write.
    pub fn write_with_rest(&mut self, content: &[u8]) -> io::Result<()> {
        if self.out.is_empty() {
            return self.stream.write_all(content);
        }
        self.out.extend_from_slice(content);
        self.flush()
    }

    pub fn flush(&mut self) -> io::Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        let written = self.stream.write_all(&self.out);
        self.out.clear();
        written
    }
}

/// The same connection inside TLS, which ends at this proxy.
pub fn accept_tls(context: &ProxyContext, below: Duplex) -> io::Result<Duplex> {
    let certificates = context.certificates().map_err(io::Error::other)?;
    Ok(tls::server(&certificates.config, below, Instant::now() + NETWORK_TIMEOUT, tls::BUFFER_BUSY)?
        .into_duplex())
}
