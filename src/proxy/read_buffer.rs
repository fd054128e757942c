//! What was read and not yet used. It grows while reads fill it, up to a limit that its reader gives.

use std::io;
use std::io::Read;

pub struct ReadBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    first: usize,
}

impl ReadBuffer {
    /// Takes its first memory with the first read.
    pub fn new(first: usize) -> Self {
        Self { bytes: Vec::new(), start: 0, end: 0, first }
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
            (self.start, self.end) = (0, 0);
        }
    }

    pub fn take(&mut self) -> Vec<u8> {
        let rest = self.unread().to_vec();
        self.consume(rest.len());
        rest
    }

    /// One read. `Ok(0)` is the end of the stream; a full inbox of `limit` bytes is the caller's fault.
    pub fn fill(&mut self, from: &mut impl Read, limit: usize) -> io::Result<usize> {
        if self.end == self.bytes.len() {
            self.make_room(limit);
        }
        let count = loop {
            match from.read(&mut self.bytes[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        self.end += count;
        Ok(count)
    }

    /// Called when it is full: what is used makes room first, then it grows.
    fn make_room(&mut self, limit: usize) {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.bytes.len() {
            let size = (self.bytes.len() * 4).clamp(self.first, limit.max(self.first));
            self.bytes.resize(size, 0);
        }
    }

    /// Whether the last read brought all that there was room for: then more is on its way.
    pub fn is_full(&self) -> bool {
        self.end == self.bytes.len()
    }

    /// So that reads of a large body are large.
    pub fn widen(&mut self, size: usize) {
        if self.bytes.len() < size {
            self.bytes.resize(size, 0);
        }
    }

    /// Gives back the memory of a busy time.
    pub fn shrink(&mut self) {
        if self.is_empty() && self.bytes.len() > self.first {
            self.bytes = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_comes_out_in_order_whatever_is_used_in_between() {
        let sent: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let (mut source, mut inbox, mut got) = (sent.as_slice(), ReadBuffer::new(16), Vec::new());
        while inbox.fill(&mut source, 64).unwrap() > 0 {
            let use_up = (inbox.unread().len() / 2).max(1);
            got.extend_from_slice(&inbox.unread()[..use_up]);
            inbox.consume(use_up);
        }
        got.extend_from_slice(inbox.unread());
        assert_eq!(got, sent);
    }

    #[test]
    fn it_grows_to_its_limit_and_shrinks_when_it_is_empty() {
        let (mut source, mut inbox) = (io::repeat(7), ReadBuffer::new(16));
        for _ in 0..10 {
            if inbox.unread().len() < 64 {
                inbox.fill(&mut source, 64).unwrap();
            }
        }
        assert_eq!(inbox.unread().len(), 64);
        inbox.consume(64);
        inbox.shrink();
        assert_eq!(inbox.bytes.len(), 0);
    }
}
