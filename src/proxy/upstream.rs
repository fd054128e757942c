//! A connection to a service. It belongs to the thread of one client, which keeps it for the next request.

use std::io;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use super::inbox::Inbox;
use crate::net::connect::is_timeout;
use crate::os::socket;
use crate::os::socket::Woken;

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

pub struct Upstream {
    pub socket: Arc<TcpStream>,
    pub inbox: Inbox,
    pub port: u16,
    pub service: String,
    /// Whether it has carried a request before: then it may have died since.
    pub used: bool,
}

/// Why nothing (more) can be read.
#[derive(Debug)]
pub enum Silence {
    Failed,
    ClientLeft,
    TooLong,
}

impl Upstream {
    /// IPv4 first, then IPv6: development servers listen on either.
    pub fn dial(service: &str, port: u16) -> io::Result<Self> {
        let four = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let six = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        let stream = TcpStream::connect_timeout(&four, DIAL)
            .or_else(|error| TcpStream::connect_timeout(&six, DIAL).map_err(|_| error))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(GLANCE))?;
        stream.set_write_timeout(Some(TAKE))?;
        let inbox = Inbox::new(INBOX);
        Ok(Self { socket: Arc::new(stream), inbox, port, service: service.to_owned(), used: false })
    }

    pub fn is_at_rest(&self) -> bool {
        self.inbox.is_empty() && socket::is_at_rest(&self.socket)
    }

    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        (&*self.socket).write_all(bytes)
    }

    /// One read for `client`, for whom it ends when that one leaves. `Ok(0)` is the end of the stream.
    pub fn read_for(
        &mut self,
        client: &TcpStream,
        patience: Option<Duration>,
        limit: usize,
    ) -> Result<usize, Silence> {
        let began = Instant::now();
        loop {
            match self.inbox.fill(&mut &*self.socket, limit) {
                Ok(count) => return Ok(count),
                Err(error) if is_timeout(&error) => {}
                Err(_) => return Err(Silence::Failed),
            }
            self.wait_for(client, patience.map(|most| began + most))?;
        }
    }

    /// Until there is something to read.
    pub fn wait_for(&self, client: &TcpStream, until: Option<Instant>) -> Result<(), Silence> {
        loop {
            match socket::wait_for_data(&self.socket, client, TURN) {
                Ok(Woken::Data) => return Ok(()),
                Ok(Woken::WatcherLeft) => return Err(Silence::ClientLeft),
                Ok(Woken::Nothing) if until.is_some_and(|until| Instant::now() > until) => {
                    return Err(Silence::TooLong);
                }
                Ok(Woken::Nothing) => {}
                Err(_) => return Err(Silence::Failed),
            }
        }
    }

    pub fn cut(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}
