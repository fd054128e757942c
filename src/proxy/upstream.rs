//! A connection to a service. It belongs to the thread of one client, which keeps it for the next request.

use std::io;
use std::net::Shutdown;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::buffered_reader::BufferedReader;
use super::route_table::ProxyRoute;
use crate::net::connect::is_timeout;
use crate::net::duplex::Duplex;
use crate::net::duplex::Writer;
use crate::os::peer_user;
use crate::os::socket;
use crate::os::socket::Wakeup;

/// The first wait for data watches the service alone: most responses come within this time, and cost no extra system
/// call. After it the client is watched, too.
const UNWATCHED_READ: Duration = Duration::from_millis(50);
/// A service that accepts no bytes for this long is given up.
const UPSTREAM_WRITE_TIMEOUT: Duration = Duration::from_mins(2);
/// A longer wait wakes this often to check its deadline.
const UPSTREAM_READ_POLL: Duration = Duration::from_secs(10);
/// A client that writes no more waits this long for the next part of its answer.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_mins(1);
/// How often it is checked whether such a client is still there.
const HALF_CLOSED_POLL: Duration = Duration::from_millis(250);
/// Large enough for most responses of an API.
const UPSTREAM_BUFFER: usize = 16 * 1024;

pub struct Upstream {
    pub reader: UpstreamReader,
    pub writer: Writer,
    pub port: u16,
    pub service: String,
    /// It has carried a request before, so the service may have closed it in the meantime.
    pub used: bool,
    /// No other client may have it: see `IdleUpstreams::start_client`.
    pub personal: bool,
}

/// The direction from the service. While a body is sent, another thread has the writer.
pub struct UpstreamReader {
    pub buffer: BufferedReader,
    pub socket: Arc<TcpStream>,
}

/// Why nothing more can be read.
#[derive(Clone, Copy, Debug)]
pub enum ReadFault {
    Failed,
    ClientLeft,
    TimedOut,
}

impl Upstream {
    pub fn new(route: &ProxyRoute, port: u16, stream: Duplex) -> io::Result<Self> {
        let Duplex { reader, writer, socket } = stream;
        socket.set_read_timeout(Some(UNWATCHED_READ))?;
        socket.set_write_timeout(Some(UPSTREAM_WRITE_TIMEOUT))?;
        let reader = UpstreamReader { buffer: BufferedReader::new(reader, UPSTREAM_BUFFER), socket };
        Ok(Self { reader, writer, port, service: route.name.clone(), used: false, personal: false })
    }

    pub fn is_idle_and_open(&self) -> bool {
        self.reader.buffer.is_drained() && socket::is_idle_and_open(&self.reader.socket)
    }

    /// The connection for another protocol. Bytes that were read and not used are read from it first.
    pub fn into_duplex(self) -> Duplex {
        let UpstreamReader { buffer, socket } = self.reader;
        Duplex { reader: buffer.into_reader(), writer: self.writer, socket }
    }
}

impl UpstreamReader {
    /// One read on behalf of `client`, which ends when the client leaves. `Ok(0)` is the end of the stream.
    pub fn read_for(
        &mut self,
        client: &TcpStream,
        timeout: Option<Duration>,
        limit: usize,
    ) -> Result<usize, ReadFault> {
        let mut deadline = None;
        loop {
            match self.buffer.fill(limit) {
                Ok(count) => return Ok(count),
                Err(error) if is_timeout(&error) => {}
                Err(_) => return Err(ReadFault::Failed),
            }
            deadline = deadline.or_else(|| timeout.map(|timeout| Instant::now() + timeout));
            self.wait_for(client, deadline)?;
        }
    }

    /// Waits until there is something to read.
    pub fn wait_for(&self, client: &TcpStream, deadline: Option<Instant>) -> Result<(), ReadFault> {
        loop {
            match socket::wait_for_data(&self.socket, client, UPSTREAM_READ_POLL) {
                Ok(Wakeup::Readable) => return Ok(()),
                Ok(Wakeup::WatcherClosed) => return self.wait_for_half_closed(client),
                Ok(Wakeup::TimedOut) if deadline.is_some_and(|deadline| Instant::now() > deadline) => {
                    return Err(ReadFault::TimedOut);
                }
                Ok(Wakeup::TimedOut) => {}
                Err(_) => return Err(ReadFault::Failed),
            }
        }
    }

    /// A client that has ended only its own direction, like `nc -N`, still waits for its answer.
    fn wait_for_half_closed(&self, client: &TcpStream) -> Result<(), ReadFault> {
        let until = Instant::now() + HALF_CLOSED_TIMEOUT;
        while Instant::now() < until && peer_user::is_held(client) {
            match socket::wait_for_data(&self.socket, &self.socket, HALF_CLOSED_POLL) {
                Ok(Wakeup::TimedOut) => {}
                Ok(Wakeup::Readable | Wakeup::WatcherClosed) => return Ok(()),
                Err(_) => return Err(ReadFault::Failed),
            }
        }
        Err(ReadFault::ClientLeft)
    }

    pub fn cut(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
