//! A connection to a service. It belongs to the thread of one client, which keeps it for the next request.

use std::io;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use rustls::ClientConfig;

use super::read_buffer::ReadBuffer;
use super::route_table::ProxyRoute;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::is_timeout;
use crate::net::duplex::Duplex;
use crate::net::duplex::Reader;
use crate::net::duplex::Writer;
use crate::os::socket;
use crate::os::socket::Wakeup;
use crate::tls;

/// On this machine a listener answers at once; a tunnel's does too.
const DIAL: Duration = Duration::from_secs(5);
/// A plain read for so long: most answers come by then. Only behind it is the client watched as well, so
/// that a quick answer costs no extra system call.
const GLANCE: Duration = Duration::from_millis(50);
/// A service that takes no more bytes for so long is given up.
const TAKE: Duration = Duration::from_mins(2);
/// How often a long wait looks up.
const TURN: Duration = Duration::from_secs(10);
const INBOX: usize = 16 * 1024;

/// What clients are told of a service that gives no answer.
pub const NOT_RESPONDING: &str = "Bad Gateway: the service is not responding.";
pub const NO_TLS: &str = "Bad Gateway: the service is said to speak https, and does not.";

pub struct Upstream {
    pub reader: Reader,
    pub writer: Writer,
    pub socket: Arc<TcpStream>,
    pub inbox: ReadBuffer,
    pub port: u16,
    pub service: String,
    /// Whether it has carried a request before: then it may have died since.
    pub used: bool,
    /// Whether no other client may have it: see `IdleUpstreams::next_client`.
    pub personal: bool,
}

/// Why nothing (more) can be read.
#[derive(Debug)]
pub enum Silence {
    Failed,
    ClientLeft,
    TooLong,
}

impl Upstream {
    /// In the clear, or by TLS where `tls` is given.
    pub fn dial(route: &ProxyRoute, port: u16, tls: Option<&Arc<ClientConfig>>) -> io::Result<Self> {
        let plain = Duplex::plain(Arc::new(connect(port)?));
        let Duplex { reader, writer, socket } = match tls {
            Some(config) => {
                let name = format!("{}.localhost", route.name);
                tls::client(config, &name, plain, Instant::now() + NETWORK_TIMEOUT)?.into_duplex()
            }
            None => plain,
        };
        socket.set_read_timeout(Some(GLANCE))?;
        socket.set_write_timeout(Some(TAKE))?;
        let (inbox, service) = (ReadBuffer::new(INBOX), route.name.clone());
        Ok(Self { reader, writer, socket, inbox, port, service, used: false, personal: false })
    }

    /// Of what was received.
    pub fn holds_nothing(&self) -> bool {
        self.inbox.is_empty() && self.reader.is_empty()
    }

    pub fn is_at_rest(&self) -> bool {
        self.holds_nothing() && socket::is_idle_and_open(&self.socket)
    }

    /// One read for `client`, for whom it ends when that one leaves. `Ok(0)` is the end of the stream.
    pub fn read_for(
        &mut self,
        client: &TcpStream,
        patience: Option<Duration>,
        limit: usize,
    ) -> Result<usize, Silence> {
        let mut until = None;
        loop {
            match self.inbox.fill(&mut self.reader, limit) {
                Ok(count) => return Ok(count),
                Err(error) if is_timeout(&error) => {}
                Err(_) => return Err(Silence::Failed),
            }
            until = until.or_else(|| patience.map(|most| Instant::now() + most));
            self.wait_for(client, until)?;
        }
    }

    /// Until there is something to read.
    pub fn wait_for(&self, client: &TcpStream, until: Option<Instant>) -> Result<(), Silence> {
        loop {
            match socket::wait_for_data(&self.socket, client, TURN) {
                Ok(Wakeup::Readable) => return Ok(()),
                Ok(Wakeup::WatcherClosed) => return Err(Silence::ClientLeft),
                Ok(Wakeup::TimedOut) if until.is_some_and(|until| Instant::now() > until) => {
                    return Err(Silence::TooLong);
                }
                Ok(Wakeup::TimedOut) => {}
                Err(_) => return Err(Silence::Failed),
            }
        }
    }

    pub fn cut(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// For what leaves HTTP, with what was read too much put back.
    pub fn into_duplex(mut self) -> Duplex {
        self.reader.push_back(self.inbox.take());
        Duplex { reader: self.reader, writer: self.writer, socket: self.socket }
    }
}

/// IPv4 first, then IPv6: development servers listen on either.
fn connect(port: u16) -> io::Result<TcpStream> {
    let four = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let six = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    let stream = socket::connect_local(four, DIAL)
        .or_else(|error| socket::connect_local(six, DIAL).map_err(|_| error))?;
    socket::prepare(&stream, four.ip());
    Ok(stream)
}
