//! A relay: two half-copies between two connections, each owned by its thread.
//!
//! When one direction ends, the other side is half-closed and only that copy is done. An error cuts both connections.
//! Nothing is buffered but the bytes of one read.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;

use super::duplex::Duplex;
use super::duplex::Reader;
use super::duplex::Writer;
use super::threads::THREAD_STACK;
use crate::os::socket;

/// The buffer of a quiet connection.
const RELAY_BUFFER_IDLE: usize = 4 * 1024;
/// The buffer of a busy connection. Measured over the whole encrypted path, copies of this size are faster than
/// `splice(2)`: that saves CPU on the hub, but its smaller segments cost more CPU at both ends.
const RELAY_BUFFER_BUSY: usize = 256 * 1024;
/// After this many short reads in a row, the buffer shrinks again.
const SHORT_READS_UNTIL_SHRINK: u32 = 64;

/// Copies one direction until the end of the stream or an error.
pub fn copy(from: &TcpStream, to: &TcpStream, count: &AtomicU64) {
    match copy_all(&mut &*from, &mut &*to, from, count) {
        // The other direction may have cut it already.
        Ok(()) => drop(to.shutdown(Shutdown::Write)),
        Err(error) => {
            log::debug!("a relay was cut: {error}");
            cut([from, to]);
        }
    }
}

/// Copies in both directions, through whatever layers each side has, until both have ended.
pub fn both_ways(one: Duplex, other: Duplex) {
    let sockets = [&*one.socket, &*other.socket];
    thread::scope(|scope| {
        let (reader, writer, turned) = (other.reader, one.writer, [sockets[1], sockets[0]]);
        let back = thread::Builder::new().name("relay".into()).stack_size(THREAD_STACK);
        if let Err(error) = back.spawn_scoped(scope, move || one_way(reader, writer, turned)) {
            log::warn!("cannot start a thread: {error}");
            return cut(sockets);
        }
        one_way(one.reader, other.writer, sockets);
    });
}

/// `sockets` are the TCP sockets of the source and the destination, in this order.
fn one_way(mut from: Reader, mut to: Writer, sockets: [&TcpStream; 2]) {
    let copied = copy_all(&mut from, &mut to, sockets[0], &AtomicU64::new(0));
    if copied.and_then(|()| to.finish()).is_err() {
        cut(sockets);
    }
}

fn cut(sockets: [&TcpStream; 2]) {
    for socket in sockets {
        let _ = socket.shutdown(Shutdown::Both);
    }
}

/// Copies without closing anything at the end. `socket` is the TCP socket below `from`.
fn copy_all(
    from: &mut impl Read,
    to: &mut impl Write,
    socket: &TcpStream,
    count: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = AdaptiveBuffer::new(0, RELAY_BUFFER_IDLE, RELAY_BUFFER_BUSY);
    socket::set_liveness_poll(socket);
    loop {
        let read = match from.read(buffer.room()) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if socket::peer_alive_after(socket, &error) => {
                buffer.shrink();
                continue;
            }
            Err(error) => return Err(error),
        };
        to.write_all(buffer.filled(read))?;
        buffer.adapt(read);
        count.fetch_add(read as u64, Ordering::Relaxed);
    }
}

/// A buffer that is large while reads fill it, and small while the connection is quiet, so that thousands of quiet
/// connections take little memory. What it holds is lost when its size changes.
pub struct AdaptiveBuffer {
    bytes: Vec<u8>,
    /// Bytes before the room that are reserved for the owner's header.
    front: usize,
    idle: usize,
    busy: usize,
    short_reads: u32,
}

impl AdaptiveBuffer {
    pub fn new(front: usize, idle: usize, busy: usize) -> Self {
        Self { bytes: vec![0; front + idle], front, idle, busy, short_reads: 0 }
    }

    /// The room for the next read.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.front..]
    }

    /// The header's bytes and the `count` bytes of the last read.
    pub fn filled(&mut self, count: usize) -> &mut [u8] {
        &mut self.bytes[..self.front + count]
    }

    /// Resizes the buffer after a read of `count` bytes.
    pub fn adapt(&mut self, count: usize) {
        let room = self.bytes.len() - self.front;
        if count == room && room < self.busy {
            // New instead of larger: the system gives memory only for the pages that reads fill.
            self.bytes = vec![0; self.front + self.busy];
            self.short_reads = 0;
        } else if count <= self.idle && room > self.idle {
            self.short_reads += 1;
            if self.short_reads >= SHORT_READS_UNTIL_SHRINK {
                self.shrink();
            }
        } else {
            self.short_reads = 0;
        }
    }

    pub fn is_busy(&self) -> bool {
        self.bytes.len() == self.front + self.busy
    }

    pub fn shrink(&mut self) {
        self.bytes.truncate(self.front + self.idle);
        self.bytes.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn the_end_of_one_direction_leaves_the_other_open() {
        let ((mut a, a_far), (mut b, b_far)) = (pair(), pair());
        thread::scope(|scope| {
            scope.spawn(|| copy(&a_far, &b_far, &AtomicU64::new(0)));
            scope.spawn(|| copy(&b_far, &a_far, &AtomicU64::new(0)));
            a.write_all(b"question").unwrap();
            a.shutdown(Shutdown::Write).unwrap();
            let mut heard = String::new();
            b.read_to_string(&mut heard).unwrap();
            assert_eq!(heard, "question");
            b.write_all(&vec![7; 3_000_000]).unwrap();
            b.shutdown(Shutdown::Write).unwrap();
            let mut answer = Vec::new();
            a.read_to_end(&mut answer).unwrap();
            assert_eq!(answer, vec![7; 3_000_000]);
        });
    }

    #[test]
    fn a_buffer_grows_when_it_is_filled_and_shrinks_when_it_is_calm() {
        let mut buffer = AdaptiveBuffer::new(2, 4, 64);
        assert_eq!(buffer.filled(4).len(), 6);
        buffer.adapt(4);
        assert_eq!(buffer.room().len(), 64);
        for _ in 0..SHORT_READS_UNTIL_SHRINK {
            assert_eq!(buffer.room().len(), 64);
            buffer.adapt(1);
        }
        assert_eq!(buffer.room().len(), 4);
    }
}
