//! A reader that keeps what it has read until it is used. Its memory grows while reads fill it, up to a limit that the
//! caller gives with each read.

use std::io;
use std::io::Read;

use crate::http::bad_message::BadBody;
use crate::http::body::BodyWalker;
use crate::http::chunks::write_chunk;
use crate::http::forward::write_last_chunk;
use crate::net::duplex::Reader;

pub struct BufferedReader<R = Reader> {
    from: R,
    bytes: Vec<u8>,
    /// `bytes[start..end]` has been read and not used.
    start: usize,
    end: usize,
    first_size: usize,
}

impl BufferedReader {
    /// The connection itself. The unread bytes are read from it first.
    pub fn into_reader(mut self) -> Reader {
        let unread = self.unread().to_vec();
        self.from.push_back(unread);
        self.from
    }

    /// Whether every received byte has been used, those inside TLS included.
    pub fn is_drained(&self) -> bool {
        self.is_empty() && self.from.is_empty()
    }

    /// Whether the socket below can be read in place of this reader.
    pub fn is_plain(&self) -> bool {
        self.from.is_plain()
    }
}

impl<R: Read> BufferedReader<R> {
    /// Allocates no memory before the first read.
    pub fn new(from: R, first_size: usize) -> Self {
        Self { from, bytes: Vec::new(), start: 0, end: 0, first_size }
    }

    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            self.discard();
        }
    }

    pub fn discard(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// One read. `Ok(0)` is the end of the stream. Must not be called while `limit` bytes are unread.
    pub fn fill(&mut self, limit: usize) -> io::Result<usize> {
        if self.end == self.bytes.len() {
            self.make_room(limit);
        }
        let count = self.from.read(&mut self.bytes[self.end..])?;
        self.end += count;
        Ok(count)
    }

    /// Moves the unread bytes to the front. If that makes no room, the memory grows.
    fn make_room(&mut self, limit: usize) {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.bytes.len() {
            let size = (self.bytes.len() * 4).clamp(self.first_size, limit.max(self.first_size));
            self.bytes.resize(size, 0);
        }
    }

    /// Whether the last read filled all the room that it had: then more is on its way.
    pub fn is_full(&self) -> bool {
        self.end == self.bytes.len()
    }

    /// Makes reads of a large body large.
    pub fn widen(&mut self, size: usize) {
        if self.bytes.len() < size {
            self.bytes.resize(size, 0);
        }
    }

    /// Gives back the memory that a large body took.
    pub fn shrink(&mut self) {
        if self.is_empty() && self.bytes.len() > self.first_size {
            self.bytes = Vec::new();
        }
    }

    /// Moves the unread part of a body to `out`, with new framing, and with the last chunk if the body ends in it.
    pub fn move_body(
        &mut self,
        walker: &mut BodyWalker,
        chunked: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), BadBody> {
        let had_ended = walker.ended();
        while !walker.ended() && !self.is_empty() {
            let step = walker.step(self.unread())?;
            let content = &self.unread()[step.payload];
            if chunked {
                write_chunk(content, out);
            } else {
                out.extend_from_slice(content);
            }
            self.consume(step.used);
        }
        if chunked && walker.ended() && !had_ended {
            write_last_chunk(&walker.trailers(), out);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_comes_out_in_order_whatever_is_used_in_between() {
        let sent: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let mut reader = BufferedReader::new(sent.as_slice(), 16);
        let mut got = Vec::new();
        while reader.fill(64).unwrap() > 0 {
            let used = (reader.unread().len() / 2).max(1);
            got.extend_from_slice(&reader.unread()[..used]);
            reader.consume(used);
        }
        got.extend_from_slice(reader.unread());
        assert_eq!(got, sent);
    }

    #[test]
    fn it_grows_to_its_limit_and_shrinks_when_it_is_empty() {
        let mut reader = BufferedReader::new(io::repeat(7), 16);
        for _ in 0..10 {
            if reader.unread().len() < 64 {
                reader.fill(64).unwrap();
            }
        }
        assert_eq!(reader.unread().len(), 64);
        reader.consume(64);
        reader.shrink();
        assert_eq!(reader.bytes.len(), 0);
    }
}
