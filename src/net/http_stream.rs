//! What both ends of HTTP/1.1 need: a connection, and the bytes received that no message has used yet. Every wait has
//! a deadline.

use std::io;
use std::io::Read;
use std::io::Write;
use std::time::Instant;

use super::connect::set_deadline;
use super::duplex::Duplex;
use crate::http::bad_message::BadBody;
use crate::http::body::BodyWalker;

/// Bytes of one read.
const READ_SIZE: usize = 8 * 1024;

pub struct HttpStream {
    pub connection: Duplex,
    pub buffer: Vec<u8>,
}

pub enum BodyFailure {
    Io(io::Error),
    Bad(BadBody),
}

impl HttpStream {
    pub fn new(connection: Duplex) -> Self {
        Self { connection, buffer: Vec::new() }
    }

    /// Appends one read to the buffer. 0 at the end of the stream.
    pub fn read_more(&mut self, deadline: Instant) -> io::Result<usize> {
        set_deadline(&self.connection.socket, deadline)?;
        let at = self.buffer.len();
        self.buffer.resize(at + READ_SIZE, 0);
        let read = self.connection.reader.read(&mut self.buffer[at..]);
        self.buffer.truncate(at + read.as_ref().copied().unwrap_or(0));
        read
    }

    /// Reads the rest of the body that `walker` is for. A declared length over `limit` is refused before anything is read.
    pub fn read_body(
        &mut self,
        walker: &mut BodyWalker,
        limit: usize,
        deadline: Instant,
    ) -> Result<Vec<u8>, BodyFailure> {
        let mut body = Vec::new();
        loop {
            let used = walker.collect(&self.buffer, &mut body, limit).map_err(BodyFailure::Bad)?;
            self.buffer.drain(..used);
            if walker.ended() {
                return Ok(body);
            }
            if self.read_more(deadline).map_err(BodyFailure::Io)? == 0 {
                let ended = walker.end_of_stream();
                return ended
                    .map(|()| body)
                    .map_err(|_| BodyFailure::Io(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    pub fn write_all(&mut self, bytes: &[u8], deadline: Instant) -> io::Result<()> {
        set_deadline(&self.connection.socket, deadline)?;
        self.connection.writer.write_all(bytes)
    }

    /// The connection for another protocol. Bytes that came after the last message are read from it first.
    pub fn into_duplex(mut self) -> Duplex {
        self.connection.reader.push_back(self.buffer);
        self.connection
    }
}
