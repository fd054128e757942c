//! CONNECT: the client leaves HTTP for a service, or for a host outside.

use std::io::Write;
use std::time::Duration;
use std::time::Instant;

use super::AfterRequest;
use super::ProxyClient;
use super::client::CLIENT_BUFFER;
use crate::http::reply::CONNECTED;
use crate::model::service::Protocol;
use crate::net::connect;
use crate::net::connect::NETWORK_TIMEOUT;
use crate::net::duplex::Duplex;
use crate::proxy::refusal;
use crate::proxy::route_table::ProxyRoute;
use crate::wire::tls_record::TLS_HANDSHAKE;

/// After a CONNECT the client has this long for its first byte, which tells TLS from anything else. Protocols in which
/// the server speaks first wait this long once.
const CONNECT_FIRST_BYTE_TIMEOUT: Duration = Duration::from_millis(500);

impl ProxyClient<'_> {
    /// What follows CONNECT goes to the service as it is. Only TLS that a client begins with an HTTP service ends at this
    /// proxy, as on an HTTPS port.
    ///
    /// The service is reached first, so that a client is never told 200 for one that is down.
    pub fn connect(&mut self, route: &ProxyRoute) -> AfterRequest {
        let dialled = self.context.check(route).and_then(|()| self.context.dial(route, false));
        let service = match dialled {
            Ok(upstream) => upstream,
            Err(trouble) => return self.refuse(&trouble, true),
        };
        if route.protocol != Protocol::Http {
            return self.grant_connect(service.into_duplex());
        }
        if self.client.writer.stream.write_all(CONNECTED).is_err() {
            return AfterRequest::Close;
        }
        self.record(200);
        if self.first_byte() == Some(TLS_HANDSHAKE) {
            // The client takes us for the service's own HTTPS: requests inside are served like any others.
            self.idle.keep(service);
            return AfterRequest::StartTls;
        }
        AfterRequest::Relay(service.into_duplex())
    }

    /// To a host that `--connect-allow` names.
    pub fn connect_outside(&mut self, host: &str, port: u16) -> AfterRequest {
        match connect::dial(host, port, Instant::now() + NETWORK_TIMEOUT, &self.context.stop) {
            Ok(socket) => self.grant_connect(Duplex::plain(socket)),
            Err(error) => {
                log::debug!("{error}");
                self.reply(&refusal::outside_unreachable(host, port))
            }
        }
    }

    fn grant_connect(&mut self, service: Duplex) -> AfterRequest {
        self.record(200);
        match self.client.writer.stream.write_all(CONNECTED) {
            Ok(()) => AfterRequest::Relay(service),
            Err(_) => AfterRequest::Close,
        }
    }

    fn first_byte(&mut self) -> Option<u8> {
        if self.client.reader.is_empty() {
            self.client.writer.socket.set_read_timeout(Some(CONNECT_FIRST_BYTE_TIMEOUT)).ok()?;
            let _ = self.client.reader.fill(CLIENT_BUFFER);
        }
        self.client.reader.unread().first().copied()
    }
}
