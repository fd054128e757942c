//! The frames of a session over its TLS, as a half that reads and a half that writes.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use crate::net::connect::is_timeout;
use crate::net::relay::Adaptive;
use crate::net::stop::Registration;
use crate::net::stop::Stop;
use crate::net::tls::TlsReader;
use crate::net::tls::TlsWriter;
use crate::os::socket;
use crate::wire::frame;
use crate::wire::frame::DATA_LIMIT;
use crate::wire::frame::HEADER;
use crate::wire::frame::Header;
use crate::wire::frame::Kind;

/// A local peer that does not read blocks whoever writes to it; so often that one looks whether the
/// connection was broken off in the meantime.
const LOOK_UP: Duration = Duration::from_millis(250);
/// What a quiet connection reads with.
const CHUNK_IDLE: usize = 4 * 1024;

pub struct FrameReader {
    tls: TlsReader,
}

pub struct FrameWriter {
    tls: TlsWriter,
    buffer: Adaptive,
}

/// Why copying into the session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyEnd {
    /// The local side has no more to say.
    Eof,
    /// The local connection broke.
    Broken,
}

impl FrameReader {
    pub fn new(tls: TlsReader) -> Self {
        Self { tls }
    }

    pub fn next_header(&mut self) -> io::Result<Header> {
        let mut bytes = [0; HEADER];
        let mut have = 0;
        loop {
            let parsed = Header::parse(&bytes[..have]);
            let bad = |bad| io::Error::new(io::ErrorKind::InvalidData, format!("bad frame: {bad:?}"));
            if let Some(header) = parsed.map_err(bad)? {
                return Ok(header);
            }
            let count = self.tls.read(&mut bytes[have..])?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            have += count;
        }
    }

    /// The payload of a data frame, into `local`. An error of `local` is the inner result: the session
    /// goes on, and the rest of the payload is read and dropped.
    pub fn data_into(&mut self, length: usize, mut local: Option<&TcpStream>) -> io::Result<io::Result<()>> {
        let (mut left, mut outcome) = (length, Ok(()));
        while left > 0 {
            let plain = self.tls.fill()?;
            if plain.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let piece = &plain[..plain.len().min(left)];
            if let Some(socket) = local
                && let Err(error) = write_all(socket, piece)
            {
                outcome = Err(error);
                local = None;
            }
            left -= piece.len();
            let count = piece.len();
            self.tls.consume(count);
        }
        Ok(outcome)
    }

    pub fn reason(&mut self, length: usize) -> io::Result<String> {
        let mut bytes = vec![0; length];
        self.tls.read_exact(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub fn shrink(&mut self) {
        self.tls.shrink();
    }
}

impl FrameWriter {
    pub fn new(tls: TlsWriter) -> Self {
        Self { tls, buffer: Adaptive::new(HEADER, CHUNK_IDLE, DATA_LIMIT) }
    }

    /// Frames without data, in one write.
    pub fn send(&mut self, kinds: &[Kind]) -> io::Result<()> {
        let frames: Vec<u8> = kinds.iter().flat_map(|kind| frame::bare(*kind)).collect();
        self.tls.write_all(&frames)
    }

    pub fn refuse(&mut self, reason: &str) -> io::Result<()> {
        self.tls.write_all(&frame::refused(reason))
    }

    /// Copies everything that `local` says. An error of the session is the outer one.
    pub fn copy_from(&mut self, mut local: &TcpStream, count: impl Fn(usize)) -> io::Result<CopyEnd> {
        loop {
            let length = match local.read(self.buffer.room()) {
                // What was broken off here reads as if it had ended.
                Ok(0) if socket::resets_on_close(local) => return Ok(CopyEnd::Broken),
                Ok(0) => return Ok(CopyEnd::Eof),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Ok(CopyEnd::Broken),
            };
            let frame = self.buffer.filled(length);
            frame[..HEADER].copy_from_slice(&Header { kind: Kind::Data, length }.encode());
            self.tls.write_all(frame)?;
            self.buffer.adapt(length);
            count(length);
        }
    }

    pub fn shrink(&mut self) {
        self.buffer.shrink();
        self.tls.shrink();
    }

    /// Says TLS's farewell, so that the other end sees an end and not a cut.
    pub fn farewell(&mut self) {
        let _ = self.tls.finish();
    }
}

/// Ends a local connection as broken: whoever reads it here wakes, whoever writes to it wakes before long,
/// and its peer gets a reset when the last holder lets go. Not a `shutdown` of both directions: that would
/// send an end of file first, and what was cut would look whole.
pub fn break_off(local: &TcpStream) {
    socket::reset_on_close(local);
    let _ = local.shutdown(Shutdown::Read);
}

/// The local connection is broken off when everything stops.
pub fn breaks_off(stop: &Stop, local: &Arc<TcpStream>) -> Option<Registration> {
    let local = Arc::clone(local);
    stop.on_stop(move || break_off(&local))
}

/// From here on a write to this local connection looks up now and then.
pub fn look_up(local: &TcpStream) {
    let _ = local.set_write_timeout(Some(LOOK_UP));
}

/// Writes everything, until the connection is broken off.
fn write_all(mut local: &TcpStream, mut piece: &[u8]) -> io::Result<()> {
    while !piece.is_empty() {
        match local.write(piece) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => piece = &piece[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) && !socket::resets_on_close(local) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
