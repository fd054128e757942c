//! Frames over a session's TLS: one half reads them, the other writes them. Data goes straight from a frame to the local
//! socket and back, with no queue in between.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;

use super::local_socket::write_all;
use super::traffic::CarriedBytes;
use crate::model::session_protocol::FrameKind;
use crate::model::session_protocol::LocalEnd;
use crate::net::duplex::WriteLayer;
use crate::net::relay::AdaptiveBuffer;
use crate::os::socket;
use crate::tls::TlsReader;
use crate::tls::TlsWriter;
use crate::wire::frame;
use crate::wire::frame::DATA_LIMIT;
use crate::wire::frame::FRAME_HEADER;
use crate::wire::frame::FrameHeader;

/// A quiet connection is read with a buffer of this size, so that thousands of them stay cheap.
const QUIET_READ: usize = 4 * 1024;

pub struct FrameReader {
    tls: TlsReader,
    socket: Arc<TcpStream>,
}

pub struct FrameWriter {
    tls: TlsWriter,
    /// Room for two headers, then for data.
    buffer: AdaptiveBuffer,
}

impl FrameReader {
    pub fn new(tls: TlsReader, socket: Arc<TcpStream>) -> Self {
        socket::set_liveness_poll(&socket);
        Self { tls, socket }
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
            have += self.read(&mut bytes[have..])?;
        }
    }

    /// Writes the payload of a data frame to `local`, or drops it. The inner error is `local`'s: the rest of the payload
    /// is then dropped, and the session goes on.
    pub fn data_into(&mut self, length: usize, local: Option<&TcpStream>) -> io::Result<io::Result<()>> {
        let mut written = Ok(());
        let mut left = length;
        while left > 0 {
            let plain = self.fill()?;
            let count = plain.len().min(left);
            if let Some(local) = local
                && written.is_ok()
            {
                written = write_all(local, &plain[..count]);
            }
            self.tls.consume(count);
            left -= count;
        }
        Ok(written)
    }

    pub fn text(&mut self, length: usize) -> io::Result<String> {
        let mut bytes = vec![0; length];
        let mut have = 0;
        while have < length {
            have += self.read(&mut bytes[have..])?;
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Gives back the buffers of a busy time.
    pub fn shrink(&mut self) {
        self.tls.shrink();
    }

    /// Reads at least one byte and at most what `room` holds.
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let plain = self.fill()?;
        let count = plain.len().min(room.len());
        room[..count].copy_from_slice(&plain[..count]);
        self.tls.consume(count);
        Ok(count)
    }

    /// The plaintext that has arrived, at least one byte. Waits while the other end's machine is alive.
    fn fill(&mut self) -> io::Result<&[u8]> {
        loop {
            match self.tls.fill().map(<[u8]>::is_empty) {
                Ok(true) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(false) => return self.tls.fill(),
                Err(error) if socket::peer_alive_after(&self.socket, &error) => self.tls.shrink(),
                Err(error) => return Err(error),
            }
        }
    }
}

impl FrameWriter {
    pub fn new(tls: TlsWriter) -> Self {
        Self { tls, buffer: AdaptiveBuffer::new(2 * FRAME_HEADER, QUIET_READ, DATA_LIMIT) }
    }

    /// Begins a direction with `kind`, and sends in the same write what `local` has brought so far: one packet instead of
    /// two wakes agent, hub and joiner once less. The data is taken from `local` only after it was sent, so that a
    /// connection that could not be opened may be tried on another session. Returns the length of the data.
    pub fn begin(&mut self, kind: FrameKind, mut local: &TcpStream) -> io::Result<usize> {
        let length = socket::peek(local, self.buffer.room());
        let frames = self.buffer.filled(length);
        frames[..FRAME_HEADER].copy_from_slice(&frame::empty(kind));
        if length == 0 {
            self.tls.write_all(&frames[..FRAME_HEADER])?;
            return Ok(0);
        }
        let header = FrameHeader { kind: FrameKind::Data, length };
        frames[FRAME_HEADER..2 * FRAME_HEADER].copy_from_slice(&header.encode());
        self.tls.write_all(frames)?;
        // It has been peeked, so it is there. If the connection has broken since, the next read says so.
        let _ = local.read_exact(&mut self.buffer.room()[..length]);
        Ok(length)
    }

    /// Sends frames without data, in one write.
    pub fn send(&mut self, kinds: &[FrameKind]) -> io::Result<()> {
        let frames: Vec<u8> = kinds.iter().flat_map(|kind| frame::empty(*kind)).collect();
        self.tls.write_all(&frames)
    }

    pub fn say(&mut self, kind: FrameKind, text: &str) -> io::Result<()> {
        self.tls.write_all(&frame::text(kind, text))
    }

    /// Copies what `local` brings, to its end. The outer error is the session's.
    pub fn copy_from(&mut self, mut local: &TcpStream, count: impl Fn(usize)) -> io::Result<LocalEnd> {
        let mut was_busy = false;
        loop {
            let length = match local.read(self.buffer.room()) {
                // An aborted connection reads as if it had ended.
                Ok(0) if socket::resets_on_close(local) => return Ok(LocalEnd::Broken),
                Ok(0) => return Ok(LocalEnd::Eof),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // After a busy time it has been silent for some seconds. `TimedOut` would mean that its machine is gone.
                Err(error) if was_busy && error.kind() == io::ErrorKind::WouldBlock => {
                    self.shrink();
                    continue;
                }
                Err(_) => return Ok(LocalEnd::Broken),
            };
            let frame = &mut self.buffer.filled(length)[FRAME_HEADER..];
            frame[..FRAME_HEADER].copy_from_slice(&FrameHeader { kind: FrameKind::Data, length }.encode());
            self.tls.write_all(frame)?;
            self.buffer.adapt(length);
            if self.buffer.is_busy() && !was_busy {
                socket::set_liveness_poll(local);
                was_busy = true;
            }
            count(length);
        }
    }

    /// Gives back the buffers of a busy time.
    pub fn shrink(&mut self) {
        self.buffer.shrink();
        self.tls.shrink();
    }

    /// What has crossed the connection below, as a relay counts it.
    pub fn record_bytes(&self) -> CarriedBytes {
        let (to_agent, to_joiner) = self.tls.record_bytes();
        CarriedBytes { to_agent, to_joiner }
    }

    /// Sends TLS's `close_notify`, so that the other end sees an end and not a cut.
    pub fn close_notify(&mut self) {
        let _ = self.tls.finish();
    }
}
