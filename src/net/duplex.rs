//! A connection as two halves that two threads own, and the socket to cut both.
//!
//! Each half is the plain socket or a layer above it, such as TLS. A layer is made from the halves below it, so layers can
//! be stacked: CONNECT through an https proxy is TLS above TLS.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;

pub struct Duplex {
    pub reader: Reader,
    pub writer: Writer,
    /// The TCP connection below all layers: timeouts and cuts act on it.
    pub socket: Arc<TcpStream>,
}

/// The reading half of a layer. It is a trait so that `net` does not import the modules above it.
pub trait ReadLayer: Read + Send + Sync {
    /// Whether it has no bytes that were received but not read yet.
    fn is_empty(&self) -> bool;
}

pub trait WriteLayer: Write + Send + Sync {
    /// Tells the peer that no more will be written; TLS sends `close_notify`.
    fn finish(&mut self) -> io::Result<()>;
}

pub struct Reader {
    /// Bytes to read before anything else, such as those that came with an HTTP head but belong to what follows it.
    early: Vec<u8>,
    source: ReadSource,
}

enum ReadSource {
    Plain(Arc<TcpStream>),
    Layer(Box<dyn ReadLayer>),
}

pub enum Writer {
    Plain(Arc<TcpStream>),
    Layer(Box<dyn WriteLayer>),
}

impl Duplex {
    pub fn plain(socket: Arc<TcpStream>) -> Self {
        Self {
            reader: Reader { early: Vec::new(), source: ReadSource::Plain(Arc::clone(&socket)) },
            writer: Writer::Plain(Arc::clone(&socket)),
            socket,
        }
    }

    pub fn layered(
        reader: impl ReadLayer + 'static,
        writer: impl WriteLayer + 'static,
        socket: Arc<TcpStream>,
    ) -> Self {
        Self {
            reader: Reader { early: Vec::new(), source: ReadSource::Layer(Box::new(reader)) },
            writer: Writer::Layer(Box::new(writer)),
            socket,
        }
    }

    /// The socket itself and the bytes already read from it, if there is no layer: then a relay copies without
    /// decrypting.
    pub fn into_plain(self) -> Result<(Arc<TcpStream>, Vec<u8>), Self> {
        match self.reader.source {
            ReadSource::Plain(_) => Ok((self.socket, self.reader.early)),
            ReadSource::Layer(_) => Err(self),
        }
    }
}

impl Reader {
    /// Whether the next byte read is the next byte of the socket.
    pub fn is_plain(&self) -> bool {
        matches!(self.source, ReadSource::Plain(_)) && self.early.is_empty()
    }

    /// Whether there are no bytes that were received but not read yet.
    pub fn is_empty(&self) -> bool {
        self.early.is_empty()
            && match &self.source {
                ReadSource::Plain(_) => true,
                ReadSource::Layer(layer) => layer.is_empty(),
            }
    }

    /// Puts bytes back, so that they are read next.
    pub fn push_back(&mut self, bytes: Vec<u8>) {
        self.early.splice(0..0, bytes);
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.early.is_empty() {
            let count = self.early.len().min(buffer.len());
            buffer[..count].copy_from_slice(&self.early[..count]);
            self.early.drain(..count);
            return Ok(count);
        }
        match &mut self.source {
            // With a timeout set, Linux fails a read with EINTR even after the process was only stopped and continued.
            ReadSource::Plain(socket) => loop {
                match (&**socket).read(buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    done => return done,
                }
            },
            ReadSource::Layer(layer) => layer.read(buffer),
        }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => (&**socket).write(bytes),
            Self::Layer(layer) => layer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Writer {
    /// The socket itself, if there is no layer.
    pub fn plain(&self) -> Option<&Arc<TcpStream>> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Layer(_) => None,
        }
    }

    /// Ends the writing direction in order: the peer reads an end of stream, not an error.
    pub fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.shutdown(Shutdown::Write),
            Self::Layer(layer) => layer.finish(),
        }
    }
}
