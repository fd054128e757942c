//! A connection as two halves that two threads own, plain or encrypted, and the socket to cut both.

use std::io;
use std::io::IoSlice;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;

use crate::tls::TlsReader;
use crate::tls::TlsWriter;

pub struct Duplex {
    pub reader: Reader,
    pub writer: Writer,
    /// The TCP connection below everything: timeouts and cuts act on it.
    pub socket: Arc<TcpStream>,
}

/// Reads what came too early first: bytes behind an HTTP head belong to what follows it.
pub struct Reader {
    early: Vec<u8>,
    source: ReadSource,
}

enum ReadSource {
    Plain(Arc<TcpStream>),
    Tls(Box<TlsReader>),
}

pub enum Writer {
    Plain(Arc<TcpStream>),
    Tls(Box<TlsWriter>),
}

impl Duplex {
    pub fn plain(socket: Arc<TcpStream>) -> Self {
        Self {
            reader: Reader { early: Vec::new(), source: ReadSource::Plain(Arc::clone(&socket)) },
            writer: Writer::Plain(Arc::clone(&socket)),
            socket,
        }
    }

    pub fn tls(reader: TlsReader, writer: TlsWriter, socket: Arc<TcpStream>) -> Self {
        Self {
            reader: Reader { early: Vec::new(), source: ReadSource::Tls(Box::new(reader)) },
            writer: Writer::Tls(Box::new(writer)),
            socket,
        }
    }

    /// The socket itself, when nothing stands between it and the bytes: then a relay needs no decryption.
    pub fn into_plain(self) -> Result<(Arc<TcpStream>, Vec<u8>), Self> {
        match self.reader.source {
            ReadSource::Plain(_) => Ok((self.socket, self.reader.early)),
            ReadSource::Tls(_) => Err(self),
        }
    }
}

impl Reader {
    /// Whether what is read is what the socket holds.
    pub fn is_plain(&self) -> bool {
        matches!(self.source, ReadSource::Plain(_)) && self.early.is_empty()
    }

    /// Whether nothing lies here that was received and not yet read.
    pub fn is_empty(&self) -> bool {
        self.early.is_empty()
            && match &self.source {
                ReadSource::Plain(_) => true,
                ReadSource::Tls(reader) => reader.is_empty(),
            }
    }

    /// Puts bytes back in front of what is read next.
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
            ReadSource::Plain(socket) => retry(|| (&**socket).read(buffer)),
            ReadSource::Tls(reader) => reader.read(buffer),
        }
    }
}

/// A signal does not end a connection: under a deadline the system lets a read fail whenever the process
/// was stopped and went on.
fn retry(mut attempt: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match attempt() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => (&**socket).write(bytes),
            Self::Tls(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Writer {
    /// The socket itself, when nothing stands between it and the bytes.
    pub fn plain(&self) -> Option<&Arc<TcpStream>> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(_) => None,
        }
    }

    /// Writes `first`, which is empty afterwards, and `rest` behind it: in one piece, copied only where they have to be
    /// encrypted as one.
    pub fn write_both(&mut self, first: &mut Vec<u8>, rest: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(socket) if !first.is_empty() && !rest.is_empty() => {
                let both = [IoSlice::new(first), IoSlice::new(rest)];
                let written = retry(|| (&**socket).write_vectored(&both))?;
                let of_first = written.min(first.len());
                self.write_all(&first[of_first..])?;
                self.write_all(&rest[written - of_first..])?;
            }
            _ if first.is_empty() => self.write_all(rest)?,
            _ => {
                first.extend_from_slice(rest);
                self.write_all(first)?;
            }
        }
        first.clear();
        Ok(())
    }

    /// No more will be written: the other end reads the end of the stream, not a cut.
    pub fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.shutdown(Shutdown::Write),
            Self::Tls(writer) => writer.finish(),
        }
    }
}
