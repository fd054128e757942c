//! The frames of a session over its TLS, as a half that reads and a half that writes.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use crate::net::connect::is_timeout;
use crate::net::duplex::WriteLayer;
use crate::net::relay::AdaptiveBuffer;
use crate::net::stop::Registration;
use crate::net::stop::Stop;
use crate::os::socket;
use crate::tls::TlsReader;
use crate::tls::TlsWriter;
use crate::wire::frame;
use crate::wire::frame::DATA_LIMIT;
use crate::wire::frame::FRAME_HEADER;
use crate::wire::frame::FrameHeader;
use crate::wire::frame::FrameKind;

/// A local peer that does not read blocks whoever writes to it; so often that one looks whether the
/// connection was broken off in the meantime.
const WRITE_POLL: Duration = Duration::from_millis(250);
/// What a quiet connection reads with.
const IDLE_READ: usize = 4 * 1024;

pub struct FrameReader {
    tls: TlsReader,
    socket: Arc<TcpStream>,
}

pub struct FrameWriter {
    tls: TlsWriter,
    buffer: AdaptiveBuffer,
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
    pub fn new(tls: TlsReader, socket: Arc<TcpStream>) -> Self {
        socket::set_liveness_poll(&socket);
        Self { tls, socket }
    }

    /// What is here of the session, at least a byte. Waits for as long as the other end is there.
    fn fill(&mut self) -> io::Result<&[u8]> {
        loop {
            match self.tls.fill().map(<[u8]>::is_empty) {
                Ok(true) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(false) => return self.tls.fill(),
                Err(error) if socket::peer_alive_after(&self.socket, &error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    pub fn next_header(&mut self) -> io::Result<FrameHeader> {
        let mut bytes = [0; FRAME_HEADER];
        let mut have = 0;
        loop {
            let parsed = FrameHeader::parse(&bytes[..have]);
            let bad = |bad| io::Error::new(io::ErrorKind::InvalidData, format!("bad frame: {bad:?}"));
            if let Some(header) = parsed.map_err(bad)? {
                return Ok(header);
            }
            have += self.take(&mut bytes[have..])?;
        }
    }

    /// Takes what is here, at least a byte and at most what there is room for.
    fn take(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let plain = self.fill()?;
        let count = plain.len().min(room.len());
        room[..count].copy_from_slice(&plain[..count]);
        self.tls.consume(count);
        Ok(count)
    }

    /// The payload of a data frame, into `local`. An error of `local` is the inner result: the session
    /// goes on, and the rest of the payload is read and dropped.
    pub fn data_into(&mut self, length: usize, mut local: Option<&TcpStream>) -> io::Result<io::Result<()>> {
        let (mut left, mut outcome) = (length, Ok(()));
        while left > 0 {
            let plain = self.fill()?;
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
        let (mut bytes, mut have) = (vec![0; length], 0);
        while have < length {
            have += self.take(&mut bytes[have..])?;
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub fn shrink(&mut self) {
        self.tls.shrink();
    }
}

impl FrameWriter {
    pub fn new(tls: TlsWriter) -> Self {
        Self { tls, buffer: AdaptiveBuffer::new(2 * FRAME_HEADER, IDLE_READ, DATA_LIMIT) }
    }

    /// Begins a direction: `kind`, and in the same write what `local` has said by now, which saves three
    /// processes a turn. Nothing is taken from `local` unless it was sent. How much that was.
    pub fn begin(&mut self, kind: FrameKind, mut local: &TcpStream) -> io::Result<usize> {
        let length = socket::peek(local, self.buffer.room());
        let frames = self.buffer.filled(length);
        frames[..FRAME_HEADER].copy_from_slice(&frame::empty(kind));
        if length == 0 {
            return self.tls.write_all(&frames[..FRAME_HEADER]).map(|()| 0);
        }
        frames[FRAME_HEADER..2 * FRAME_HEADER]
            .copy_from_slice(&FrameHeader { kind: FrameKind::Data, length }.encode());
        self.tls.write_all(frames)?;
        // It is there. Where the connection has broken since, the next read says so.
        let _ = local.read_exact(&mut self.buffer.room()[..length]);
        Ok(length)
    }

    /// Frames without data, in one write.
    pub fn send(&mut self, kinds: &[FrameKind]) -> io::Result<()> {
        let frames: Vec<u8> = kinds.iter().flat_map(|kind| frame::empty(*kind)).collect();
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
            let frame = &mut self.buffer.filled(length)[FRAME_HEADER..];
            frame[..FRAME_HEADER].copy_from_slice(&FrameHeader { kind: FrameKind::Data, length }.encode());
            self.tls.write_all(frame)?;
            self.buffer.adapt(length);
            count(length);
        }
    }

    pub fn shrink(&mut self) {
        self.buffer.shrink();
        self.tls.shrink();
    }

    /// Sends TLS's `close_notify`, so that the other end sees an end and not a cut.
    pub fn close_notify(&mut self) {
        let _ = self.tls.finish();
    }
}

pub fn out_of_turn(kind: FrameKind) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{kind:?} out of turn"))
}

/// Ends a local connection as broken: whoever reads it here wakes, whoever writes to it wakes before long,
/// and its peer gets a reset when the last holder lets go. Not a `shutdown` of both directions: that would
/// send an end of file first, and what was cut would look whole.
pub fn abort(local: &TcpStream) {
    socket::reset_on_close(local);
    let _ = local.shutdown(Shutdown::Read);
}

/// The local connection is broken off when everything stops.
pub fn abort_on_stop(stop: &Stop, local: &Arc<TcpStream>) -> Option<Registration> {
    let local = Arc::clone(local);
    stop.on_stop(move || abort(&local))
}

/// From here on a write to this local connection looks up now and then.
pub fn poll_while_blocked(local: &TcpStream) {
    let _ = local.set_write_timeout(Some(WRITE_POLL));
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
