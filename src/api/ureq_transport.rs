//! ureq's side of our connections: it asks for one, reads and writes it through its own buffers, and decides whether
//! it is used again.

use std::fmt;
use std::io;
use std::io::Read;
use std::io::Write;
use std::time::Instant;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::ResolvedSocketAddrs;
use ureq::unversioned::resolver::Resolver;
use ureq::unversioned::transport::Buffers;
use ureq::unversioned::transport::ConnectionDetails;
use ureq::unversioned::transport::Connector;
use ureq::unversioned::transport::LazyBuffers;
use ureq::unversioned::transport::NextTimeout;
use ureq::unversioned::transport::Transport;

use super::hub_connector::HubConnector;
use crate::net::address::HubUrl;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::connect::is_timeout;
use crate::net::connect::set_deadline;
use crate::net::duplex::Duplex;
use crate::net::stop::Registration;
use crate::os::socket;

type UreqResult<T> = Result<T, ureq::Error>;

/// What ureq keeps for a head and a piece of body.
const UREQ_BUFFER: usize = 16 * 1024;

impl Connector for HubConnector {
    type Out = HubTransport;

    fn connect(&self, details: &ConnectionDetails, _: Option<()>) -> UreqResult<Option<HubTransport>> {
        let authority = details.uri.authority().map(ToString::to_string).unwrap_or_default();
        let connected = HubUrl::parse(&authority)
            .and_then(|url| HubConnector::connect(self, &url, deadline(&details.timeout)))
            .map_err(|error| ureq::Error::Other(Box::new(error)))?;
        let (connection, cut) = connected;
        let buffers = LazyBuffers::new(UREQ_BUFFER, UREQ_BUFFER);
        Ok(Some(HubTransport { connection, buffers, _cut: cut }))
    }
}

pub struct HubTransport {
    connection: Duplex,
    buffers: LazyBuffers,
    _cut: Registration,
}

impl fmt::Debug for HubTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubTransport")
    }
}

impl Transport for HubTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> UreqResult<()> {
        set_deadline(&self.connection.socket, deadline(&timeout))?;
        let output = &self.buffers.output()[..amount];
        self.connection.writer.write_all(output).map_err(|error| timed(error, &timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> UreqResult<bool> {
        set_deadline(&self.connection.socket, deadline(&timeout))?;
        let read = self.connection.reader.read(self.buffers.input_append_buf());
        let count = read.map_err(|error| timed(error, &timeout))?;
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        socket::is_idle_and_open(&self.connection.socket)
    }

    fn is_tls(&self) -> bool {
        true
    }
}

fn deadline(timeout: &NextTimeout) -> Instant {
    Instant::now() + (*timeout.after).min(NETWORK_TIMEOUT)
}

fn timed(error: io::Error, timeout: &NextTimeout) -> ureq::Error {
    if is_timeout(&error) { ureq::Error::Timeout(timeout.reason) } else { ureq::Error::Io(error) }
}

/// The connector resolves names itself, or leaves that to a forward proxy.
#[derive(Debug)]
pub struct NoResolver;

impl Resolver for NoResolver {
    fn resolve(&self, _: &Uri, _: &Config, _: NextTimeout) -> UreqResult<ResolvedSocketAddrs> {
        Ok(self.empty())
    }
}
